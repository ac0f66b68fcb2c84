"""The 15 common corruptions in five severities, with the constants of Tiny-ImageNet-C, whose images have 64 pixels.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(ICLR 2019). The constants are theirs, the code is not. Differences: frost is drawn, not taken from six photos; fog is a
sum of octaves instead of a diamond-square fractal; glass takes each pixel from a neighbour instead of swapping pairs;
motion blur is computed here instead of by ImageMagick. Lengths are in pixels whatever the picture's size is.

The packages that have them (imagecorruptions, imagecorruptions-imaug, corrupt-tta) draw from numpy's global generator,
so that a picture would depend on the ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RefineWrapError
from .ladders import rounded
from .rounding import as_float, to_8bit
from .scene import LUMA
from .settings import Jpeg
from .synthetic import compress, filtered, gaussian_kernel

Array = npt.NDArray[Any]
Corruption = Callable[[Array, int, np.random.Generator], Array]
"""(H, W, 3) float32 RGB in [0, 1], severity from 0 to 4, chance -> the same shape; values may leave [0, 1]."""
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: Array, name: str, severity: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A picture with one corruption.

    Args:
        image: (H, W, 3) float32, RGB in [0, 1]. It is not changed.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        rng: the only source of chance.

    Returns:
        (H, W, 3) float32 in [0, 1], rounded to 8 bits as a file would be.

    Raises:
        RefineWrapError: no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise RefineWrapError(f"There is no corruption {name!r}", ", ".join(CORRUPTIONS))
    if severity not in SEVERITIES:
        raise RefineWrapError(f"The severity is {severity}", "1, 2, 3, 4 or 5")
    return rounded(CORRUPTIONS[name](image, severity - 1, rng))


# ---------------------------------------------------------------- noise


def gaussian_noise(image: Array, level: int, rng: np.random.Generator) -> Array:
    sigma = (0.04, 0.08, 0.12, 0.15, 0.18)[level]
    return image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)


def shot_noise(image: Array, level: int, rng: np.random.Generator) -> Array:
    photons = (250, 100, 50, 30, 15)[level]
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Array, level: int, rng: np.random.Generator) -> Array:
    """Black or white, each channel by itself."""
    share = (0.01, 0.02, 0.05, 0.08, 0.14)[level]
    hit, white = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, white, image).astype(np.float32)


# ---------------------------------------------------------------- blur


def defocus_blur(image: Array, level: int, rng: np.random.Generator) -> Array:
    radius, soft = ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1))[level]
    y, x = np.mgrid[-8:9, -8:9]
    disk = (np.hypot(x, y) <= radius).astype(np.float32)
    return filtered(filtered(image, disk / disk.sum()), gaussian_kernel(soft, soft, 0.0))


def glass_blur(image: Array, level: int, rng: np.random.Generator) -> Array:
    sigma, reach, times = ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2))[level]
    soft = gaussian_kernel(sigma, sigma, 0.0)
    image = filtered(image, soft)
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    for _ in range(times):
        down, right = rng.integers(-reach, reach, (2, height, width), endpoint=True)
        image = image[np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
    return filtered(image, soft)


def motion_blur(image: Array, level: int, rng: np.random.Generator) -> Array:
    radius, sigma = ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3))[level]
    return filtered(image, _tail(radius, sigma, rng.uniform(-45, 45)))


def zoom_blur(image: Array, level: int, rng: np.random.Generator) -> Array:
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)
    return np.asarray((image + sum(_zoomed(image, float(z)) for z in factors)) / np.float32(len(factors) + 1))


# ---------------------------------------------------------------- weather


def snow(image: Array, level: int, rng: np.random.Generator) -> Array:
    mean, spread, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    )[level]
    flakes = _zoomed(rng.normal(mean, spread, image.shape[:2]).astype(np.float32), zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1).astype(np.float32)
    flakes = filtered(flakes, _tail(radius, sigma, rng.uniform(-135, -45)))
    pale = np.maximum(image, (image @ LUMA)[..., None] * np.float32(1.5) + np.float32(0.5))
    return image * np.float32(kept) + pale * np.float32(1 - kept) + (flakes + np.rot90(flakes, 2))[..., None]


def frost(image: Array, level: int, rng: np.random.Generator) -> Array:
    """Feathery crystals of ice: ridges of noise along one another, in patches, bluish white."""
    through, ice = ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55))[level]
    size = image.shape[:2]
    ridges = np.ones(size, np.float32)
    for cell in (24, 11, 5):
        ridges *= 1 - 0.8 * np.abs(2 * _noise(size, cell, rng) - 1)
    patches = 0.35 + 0.65 * _noise(size, 40, rng)
    grain = 0.85 + 0.3 * rng.random(size, dtype=np.float32)
    crystals = np.clip(1.6 * patches * np.sqrt(ridges) * grain, 0, 1)[..., None]
    colour = np.array([0.82, 0.92, 1.0], np.float32)
    return image * np.float32(through) + crystals * colour * np.float32(ice)


def fog(image: Array, level: int, rng: np.random.Generator) -> Array:
    thick, decay = ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75))[level]
    longest = max(image.shape[:2])
    clouds = np.zeros(image.shape[:2], np.float32)
    for octave in range(max(1, math.ceil(math.log2(max(longest, 2))))):
        clouds += (_noise(image.shape[:2], longest / 2**octave, rng) - np.float32(0.5)) / np.float32(decay**octave)
    low, high = float(clouds.min()), float(clouds.max())
    clouds = (clouds - low) / (high - low) if high > low else np.full_like(clouds, 0.5)
    top = np.float32(image.max())
    return (image + np.float32(thick) * clouds[..., None]) * top / (top + np.float32(thick))


def brightness(image: Array, level: int, rng: np.random.Generator) -> Array:
    """The value of HSV raised: hue and saturation stay."""
    top = image.max(axis=2, keepdims=True)
    raised = np.minimum(top + np.float32((0.1, 0.2, 0.3, 0.4, 0.5)[level]), 1)
    return np.where(top > 0, image * (raised / np.maximum(top, np.float32(1e-6))), raised)


# ---------------------------------------------------------------- digital


def contrast(image: Array, level: int, rng: np.random.Generator) -> Array:
    means = image.mean(axis=(0, 1), keepdims=True)
    return (image - means) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[level]) + means


def elastic_transform(image: Array, level: int, rng: np.random.Generator) -> Array:
    """Sheared by three moved points, then each pixel moved by a smooth field."""
    import cv2

    strength, sigma, shift = (
        (0, 0, 5.12),
        (3.2, 19.2, 3.84),
        (6.4, 5.12, 3.84),
        (6.4, 1.92, 1.92),
        (10.24, 1.92, 1.28),
    )[level]
    height, width = image.shape[:2]
    middle, arm = np.array([width, height], np.float32) // 2, max(min(height, width) // 3, 1)
    corners = middle + np.array([[arm, arm], [arm, -arm], [-arm, -arm]], np.float32)
    # No farther than a fourth of the way between the points: a tiny picture would be turned inside out.
    most = min(shift, arm / 2)
    moved = corners + rng.uniform(-most, most, (3, 2)).astype(np.float32)
    affine = np.asarray(cv2.getAffineTransform(corners, moved))
    sheared = cv2.warpAffine(image, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for plane in (x, y):
        field = rng.uniform(-1, 1, (height, width)).astype(np.float32)
        plane += filtered(field, gaussian_kernel(sigma, sigma, 0.0)) * np.float32(strength)
    return np.asarray(cv2.remap(sheared, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def pixelate(image: Array, level: int, rng: np.random.Generator) -> Array:
    from PIL import Image

    share = (0.9, 0.8, 0.7, 0.6, 0.5)[level]
    whole = Image.fromarray(to_8bit(image))
    small = max(int(whole.width * share), 1), max(int(whole.height * share), 1)
    box = Image.Resampling.BOX
    return as_float(np.asarray(whole.resize(small, box).resize(whole.size, box)))


def jpeg_compression(image: Array, level: int, rng: np.random.Generator) -> Array:
    quality = (65, 58, 50, 40, 25)[level]
    return as_float(compress(to_8bit(image), Jpeg(quality=[quality, quality]), rng))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
"""Every corruption by name, in the order of the classes."""


# ---------------------------------------------------------------- pieces


def _tail(radius: int, sigma: float, degrees: float) -> npt.NDArray[np.float32]:
    """One half of a Gaussian along a line of 2 radius pixels from the middle, sum 1."""
    reach = 2 * radius
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    angle = math.radians(degrees)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = np.abs(y * math.cos(angle) - x * math.sin(angle))
    weights = np.exp(-0.5 * (along / sigma) ** 2) * np.clip(along + 1, 0, 1) * np.clip(1 - across, 0, 1)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def _zoomed(image: Array, times: float) -> Array:
    """The middle of it, `times` as large, at the same size."""
    import cv2

    height, width = image.shape[:2]
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = np.array([[times, 0, (1 - times) * x], [0, times, (1 - times) * y]])
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101))


def _noise(size: tuple[int, int], cell: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(H, W) in [0, 1]: even noise at points `cell` pixels apart, smooth between them, at a drawn place."""
    import cv2

    rows, columns = (math.ceil(side / cell) + 3 for side in size)
    points = rng.random((rows, columns), dtype=np.float32)
    top, left = rng.random(2)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    field = cv2.remap(
        points, x / np.float32(cell) + np.float32(left), y / np.float32(cell) + np.float32(top), cv2.INTER_CUBIC
    )
    return np.clip(np.asarray(field, dtype=np.float32), 0, 1)
