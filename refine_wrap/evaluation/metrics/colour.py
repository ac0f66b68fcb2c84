"""Colour differences as they are seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backbone.core import check_image
from ...errors import ImageError, RefineWrapError
from .strips import Rows


def delta_e(a: Tensor, b: Tensor) -> Tensor:
    """CIEDE2000 colour difference of each pixel, by scikit-image; about 1 is just noticeable.

    Args:
        a, b: (B, 3, H, W), sRGB (D65) in [0, 1]. Takes some 300 bytes of memory a pixel: give large pictures in parts.

    Returns:
        (B, H, W), float64, on the device of `a`.

    Raises:
        ImageError: shapes differ or are not (B, 3, H, W), or a type is not floating point.
        RefineWrapError: scikit-image cannot be imported.
    """
    for image in (a, b):
        check_image(image)
    if a.shape != b.shape:
        raise ImageError(f"Images of shapes {tuple(a.shape)} and {tuple(b.shape)} are compared", "the same shape")
    try:
        from skimage.color import deltaE_ciede2000, rgb2lab
    except ImportError as error:
        raise RefineWrapError(
            f"CIEDE2000 needs the package scikit-image, which cannot be imported ({error})",
            "scikit-image installed",
            "pip install scikit-image",
        ) from None
    labs = (rgb2lab(image.detach().cpu().double().permute(0, 2, 3, 1).numpy()) for image in (a, b))
    difference = deltaE_ciede2000(*labs)  # type: ignore[no-untyped-call]
    return torch.from_numpy(difference).to(a.device)


def ciede2000(x: Rows, y: Rows) -> Tensor:
    """Mean CIEDE2000 colour difference over the pixels; 0 is best.

    Args:
        x, y: values in [0, 255].

    Raises:
        RefineWrapError: scikit-image cannot be imported.
    """
    total = x.zeros()
    for top, bottom in x.strips():
        total += delta_e(x(top, bottom) / 255.0, y(top, bottom) / 255.0).sum(dim=(1, 2))
    return total / (x.height * x.width)
