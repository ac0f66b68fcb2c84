"""Colour that a network has shifted, brought back, and how far it still is from what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .settings import Match

Array = npt.NDArray[Any]
LOW = 8.0
"""Sigma of the Gaussian that parts low frequencies from the rest, in pixels."""
_FLAT = 0.1
"""Deviation in LAB, added to both: what is flat is not stretched without bounds."""
_STRIP = 1 << 17
"""Pixels at a time: scikit-image takes some 300 bytes for each."""


def matched(image: Array, model: Array, how: Match) -> Array:
    """A picture in the colours of another of the same content.

    Args:
        image, model: (H, W, 3) float32, sRGB in [0, 1].
        how: none: as it is. lab: each channel of LAB gets the model's mean and standard deviation (Reinhard et al.
            2001). low-frequency: what a Gaussian of sigma `LOW` leaves of the model replaces what it leaves of the
            picture.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    if how == "none":
        return image
    if how == "low-frequency":
        return np.clip(image + _low(model - image), 0, 1)
    lab, right = (_by_strips(_rgb_to_lab, picture) for picture in (image, model))
    (mean, deviation), (right_mean, right_deviation) = (_moments(each) for each in (lab, right))
    lab -= mean
    lab *= (right_deviation + _FLAT) / (deviation + _FLAT)
    lab += right_mean
    return np.clip(_by_strips(_lab_to_rgb, lab), 0, 1)


def mean_delta_e(image: Array, lab: Array) -> float:
    """Mean CIEDE2000 over the pixels.

    Args:
        image: (H, W, 3) uint8, sRGB.
        lab: of the other, as `to_lab` gives it.
    """
    from skimage.color import deltaE_ciede2000

    def difference(part: Array, other: Array) -> Array:
        return np.asarray(deltaE_ciede2000(_rgb_to_lab(part / 255.0), other))  # type: ignore[no-untyped-call]

    return float(_by_strips(difference, image, lab).mean())


def to_lab(image: Array) -> Array:
    """(H, W, 3) uint8 sRGB (D65) as LAB, float64."""
    return _by_strips(lambda part: _rgb_to_lab(part / 255.0), image)


def _rgb_to_lab(image: Array) -> Array:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(image))


def _lab_to_rgb(lab: Array) -> Array:
    """What sRGB does not have is clipped."""
    from skimage.color import lab2rgb

    light = lab[..., 0].clip(0, 100)
    # Yellower than this there is no light left to be blue: scikit-image clips it too, and warns of it.
    return np.asarray(lab2rgb(np.stack((light, lab[..., 1], lab[..., 2].clip(max=199.99 * (light + 16) / 116)), -1)))


def _by_strips(work: Callable[..., Array], *images: Array) -> Array:
    rows = max(1, _STRIP // images[0].shape[1])
    parts = [work(*(image[top : top + rows] for image in images)) for top in range(0, len(images[0]), rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _moments(lab: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel, (3,) each."""
    return (lab.mean((0, 1), dtype=np.float64).astype(np.float32), lab.std((0, 1), dtype=np.float64).astype(np.float32))


def _low(image: Array) -> Array:
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (0, 0), LOW, borderType=cv2.BORDER_REFLECT_101))
