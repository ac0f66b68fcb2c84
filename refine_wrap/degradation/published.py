"""Two published synthetic degradations, to compare with: BSRGAN's and Real-ESRGAN's, with their constants.

Sources: Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution" (ICCV 2021); Wang
et al., "Real-ESRGAN" (ICCV workshops 2021), with the constants of its x4plus training. The code is ours, since theirs
draws from global generators. Differences: no camera pipeline in BSRGAN's (its public code needs a model of one);
Real-ESRGAN's ground truth is not sharpened first, and its JPEG is a real one of a whole-numbered quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from .rounding import as_float, to_8bit
from .scene import LUMA
from .settings import Jpeg
from .synthetic import compress, downsample, filtered

Array = npt.NDArray[Any]
Pipeline = Callable[[Array, int, np.random.Generator], Array]
"""(H, W, 3) float32 RGB in [0, 1], scale, chance -> (H / scale, W / scale, 3) float32; values may leave [0, 1]."""


def published(image: Array, name: str, scale: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The low-quality version of an image by one of `PIPELINES`.

    Args:
        image: (H, W, 3) float32, RGB in [0, 1], both sides multiples of `scale`. It is not changed.
        name: bicubic, bsrgan or realesrgan.
        scale: how many times smaller each side becomes.
        rng: the only source of chance.

    Returns:
        (H / scale, W / scale, 3) uint8.

    Raises:
        ImageError: no such pipeline, or another size.
    """
    if name not in PIPELINES:
        raise ImageError(f"There is no degradation {name!r}", " or ".join(PIPELINES))
    if image.shape[0] % scale or image.shape[1] % scale or 0 in image.shape:
        came = f"An image of {image.shape[1]}x{image.shape[0]} pixels"
        raise ImageError(came, f"sides that are multiples of {scale}")
    return to_8bit(PIPELINES[name](image, scale, rng))


def bicubic(image: Array, scale: int, rng: np.random.Generator) -> Array:
    """Made smaller and nothing else."""
    return downsample(image, scale)


# ---------------------------------------------------------------- BSRGAN


def bsrgan(image: Array, scale: int, rng: np.random.Generator) -> Array:
    """Two blurs, two steps of making smaller, noise and JPEG in a drawn order, then JPEG once more."""
    if scale == 4 and rng.random() < 0.25:
        half = (image.shape[0] // 2, image.shape[1] // 2)
        image = np.clip(_by_opencv(image, half, rng) if rng.random() < 0.5 else downsample(image, 2), 0, 1)
        scale = 2
    size = image.shape[:2]
    order = list(rng.permutation(["blur", "blur again", "smaller", "final size", "noise", "jpeg"]))
    first, second = order.index("smaller"), order.index("final size")
    if first > second:
        order[first], order[second] = order[second], order[first]
    for step in order:
        if step.startswith("blur"):
            image = _bsrgan_blur(image, scale, rng)
        elif step == "smaller":
            image = np.clip(_bsrgan_smaller(image, scale, rng), 0, 1)
        elif step == "final size":
            image = np.clip(_by_opencv(image, (size[0] // scale, size[1] // scale), rng), 0, 1)
        elif step == "noise":
            image = np.clip(_bsrgan_noise(image, rng), 0, 1)
        elif rng.random() < 0.9:
            image = _jpeg(image, rng)
    return _jpeg(image, rng)


def _bsrgan_blur(image: Array, scale: int, rng: np.random.Generator) -> Array:
    side = 2 * int(rng.integers(2, 11, endpoint=True)) + 3
    if rng.random() < 0.5:
        along, across = np.sqrt((4 + scale) * rng.random(2))  # these are drawn as variances
    else:
        along = across = (2 + 0.2 * scale) * rng.random()
    return filtered(image, generalized_gaussian(side, along, across, rng.uniform(0, math.pi)))


def _bsrgan_smaller(image: Array, scale: int, rng: np.random.Generator) -> Array:
    if rng.random() < 0.75:
        times = rng.uniform(1, 2 * scale)
        return _by_opencv(image, (int(image.shape[0] / times), int(image.shape[1] / times)), rng)
    # A Gaussian around the middle of the pixels that one will stand for.
    y, x = np.mgrid[-12:13, -12:13] - (scale - 1) / 2
    sigma = rng.uniform(0.1, 0.6 * scale)
    weights = np.exp(-0.5 * (x**2 + y**2 - (x**2 + y**2).min()) / sigma**2)
    return filtered(image, (weights / weights.sum()).astype(np.float32))[::scale, ::scale]


def _bsrgan_noise(image: Array, rng: np.random.Generator) -> Array:
    """Of each channel by itself, of all alike, or correlated between them."""
    sigma, kind = int(rng.integers(2, 25, endpoint=True)) / 255, rng.random()
    if kind > 0.6 or kind < 0.4:
        shape = image.shape if kind > 0.6 else (*image.shape[:2], 1)
        return image + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    turn = np.linalg.qr(rng.random((3, 3)))[0]
    covariance = np.abs((25 / 255) ** 2 * turn.T @ np.diag(rng.random(3)) @ turn)
    # The absolute values need not be a covariance: what is negative of it counts as none, as numpy has it.
    noise = rng.multivariate_normal(np.zeros(3), covariance, image.shape[:2], check_valid="ignore")
    return image + noise.astype(np.float32)


def _by_opencv(image: Array, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Bilinear, bicubic or area, the first two without antialiasing."""
    import cv2

    kernel = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA]))
    return np.asarray(cv2.resize(image, (max(size[1], 1), max(size[0], 1)), interpolation=kernel))


# ---------------------------------------------------------------- Real-ESRGAN


def realesrgan(image: Array, scale: int, rng: np.random.Generator) -> Array:
    """Blur, resizing, noise and JPEG, twice; somewhere in the second round the final size and a sinc filter."""
    height, width = image.shape[:2]
    final = (height // scale, width // scale)
    image = filtered(image, _realesrgan_kernel([0.2, 3.0], rng))
    times = _resize_factor([0.2, 0.7, 0.1], [0.15, 1.5], rng)
    image = _by_torch(image, (int(height * times), int(width * times)), rng)
    image = _jpeg(_realesrgan_noise(image, 30, 3.0, rng), rng)
    if rng.random() < 0.8:
        image = filtered(image, _realesrgan_kernel([0.2, 1.5], rng))
    times = _resize_factor([0.3, 0.4, 0.3], [0.3, 1.2], rng)
    image = _by_torch(image, (int(final[0] * times), int(final[1] * times)), rng)
    image = _realesrgan_noise(image, 25, 2.5, rng)
    compressed_last = rng.random() < 0.5
    if not compressed_last:
        image = _jpeg(image, rng)
    image = _by_torch(image, final, rng)
    if rng.random() < 0.8:
        image = filtered(image, sinc(rng.uniform(math.pi / 3, math.pi), _side(rng)))
    return _jpeg(image, rng) if compressed_last else image


def _side(rng: np.random.Generator) -> int:
    return 2 * int(rng.integers(3, 10, endpoint=True)) + 1


def _realesrgan_kernel(sigmas: Sequence[float], rng: np.random.Generator) -> Array:
    """A sinc, a (generalised) Gaussian or a plateau, of 7 to 21 pixels, the same in all directions or not."""
    side = _side(rng)
    if rng.random() < 0.1:
        return sinc(rng.uniform(math.pi / (3 if side < 13 else 5), math.pi), side)
    shape, turned = divmod(int(rng.choice(6, p=[0.45, 0.25, 0.12, 0.03, 0.12, 0.03])), 2)
    along, across = (rng.uniform(sigmas[0], sigmas[1]) for _ in range(2))
    angle = rng.uniform(-math.pi, math.pi)
    widths = (along, across) if turned else (along, along)
    if shape == 0:
        return generalized_gaussian(side, *widths, angle)
    low, high = ((0.5, 4.0), (1.0, 2.0))[shape - 1]
    beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return (generalized_gaussian, plateau)[shape - 1](side, *widths, angle, beta)


def _resize_factor(chances: Sequence[float], bounds: Sequence[float], rng: np.random.Generator) -> float:
    """Larger, smaller or as it is."""
    kind = int(rng.choice(3, p=chances))
    return float((rng.uniform(1, bounds[1]), rng.uniform(bounds[0], 1), 1.0)[kind])


def _realesrgan_noise(image: Array, sigma: float, most_shot: float, rng: np.random.Generator) -> Array:
    """Gaussian or of photons, in colour or grey; clamped."""
    grey = rng.random() < 0.4
    if rng.random() < 0.5:
        shape = (*image.shape[:2], 1 if grey else 3)
        noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.uniform(1, sigma) / 255)
    else:
        light = as_float(to_8bit(image))
        light = (light @ LUMA)[..., None] if grey else light
        # As many photons in white as there are levels in the picture, to the next power of two.
        photons = 2 ** math.ceil(math.log2(len(np.unique(to_8bit(light)))))
        noise = (rng.poisson(light * photons) / photons - light).astype(np.float32)
        noise *= np.float32(rng.uniform(0.05, most_shot))
    return np.clip(image + noise, 0, 1)


def _by_torch(image: Array, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Area, bilinear or bicubic, the last two without antialiasing."""
    import torch
    from torch.nn import functional

    mode = str(rng.choice(["area", "bilinear", "bicubic"]))
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    other = functional.interpolate(planes, (max(size[0], 1), max(size[1], 1)), mode=mode)
    return np.ascontiguousarray(other[0].numpy().transpose(1, 2, 0))


# ---------------------------------------------------------------- pieces


def _jpeg(image: Array, rng: np.random.Generator) -> Array:
    return as_float(compress(to_8bit(image), Jpeg(quality=[30, 95]), rng))


def _distance(side: int, along: float, across: float, angle: float) -> Array:
    """Squared, in standard deviations, from the middle of a kernel."""
    y, x = np.mgrid[-(side // 2) : side // 2 + 1, -(side // 2) : side // 2 + 1].astype(np.float64)
    # Nothing narrower than this shows on a grid of pixels.
    widths = max(along, 0.05), max(across, 0.05)
    own = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return np.asarray((own[0] / widths[0]) ** 2 + (own[1] / widths[1]) ** 2)


def generalized_gaussian(side: int, along: float, across: float, angle: float, beta: float = 1.0) -> Array:
    """exp(-d^(2 beta) / 2) of the distance d in standard deviations, (side, side) float32, sum 1; with 1 a Gaussian."""
    weights = np.exp(-0.5 * _distance(side, along, across, angle) ** beta)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def plateau(side: int, along: float, across: float, angle: float, beta: float) -> Array:
    """1 / (1 + d^(2 beta)), the same otherwise."""
    weights = 1 / (1 + _distance(side, along, across, angle) ** beta)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def sinc(cutoff: float, side: int) -> Array:
    """A circular low pass with a hard edge at `cutoff` (radians a pixel, at most pi), (side, side) float32, sum 1."""
    from scipy.special import j1

    y, x = np.mgrid[-(side // 2) : side // 2 + 1, -(side // 2) : side // 2 + 1]
    radius = np.hypot(x, y)
    radius[side // 2, side // 2] = 1
    weights = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    weights[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


PIPELINES: dict[str, Pipeline] = {"bicubic": bicubic, "bsrgan": bsrgan, "realesrgan": realesrgan}
"""What `refine-wrap analyze-degradation --compare` knows."""
