"""Distortions of graded strength: the steps of a ladder are worse and worse versions of one picture.

What a scorer of image quality is trained and tested on. Every step of a ladder has the same draws (noise pattern,
direction, codec), so that strength alone tells the steps apart. Strength runs from 0 (hardly visible) to 1 (bad).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RefineWrapError
from .rounding import as_float, to_8bit
from .scene import LUMA
from .settings import Jpeg, Noise
from .synthetic import add_noise, compress, correlated, filtered, gaussian_kernel, streak_kernel

Array = npt.NDArray[Any]
Distortion = Callable[[Array, float, np.random.Generator], Array]
"""(H, W, 3) float32 RGB in [0, 1], strength, chance -> the same shape and type; values may leave [0, 1]."""


def ladder(image: Array, name: str, strengths: Sequence[float], rng: np.random.Generator) -> list[Array]:
    """One picture at several strengths of one distortion.

    Args:
        image: (H, W, 3) float32, RGB in [0, 1].
        name: one of `DISTORTIONS`.
        strengths: from 0 to 1 each.
        rng: the only source of chance; all steps have the same draws.

    Returns:
        (H, W, 3) float32 in [0, 1] for each strength, rounded to 8 bits as a file would be.

    Raises:
        RefineWrapError: no such distortion.
    """
    if name not in DISTORTIONS:
        raise RefineWrapError(f"There is no distortion {name!r}", ", ".join(DISTORTIONS))
    seed = int(rng.integers(0, 2**63))
    steps = (DISTORTIONS[name](image, strength, np.random.default_rng(seed)) for strength in strengths)
    return [rounded(step) for step in steps]


def rounded(image: Array) -> Array:
    """To the nearest of 256 levels, float32 in [0, 1]."""
    return as_float(to_8bit(image))


def between(low: float, high: float, strength: float) -> float:
    """From `low` at strength 0 to `high` at 1 in equal ratios, as differences are seen."""
    return float(low * (high / low) ** strength)


# ---------------------------------------------------------------- blur


def gaussian_blur(image: Array, strength: float, rng: np.random.Generator) -> Array:
    sigma, stretch = between(0.35, 3.5, strength), rng.uniform(1.0, 1.6)
    return filtered(image, gaussian_kernel(sigma * stretch, sigma / stretch, rng.uniform(0, math.pi)))


def motion_blur(image: Array, strength: float, rng: np.random.Generator) -> Array:
    length, angle = between(1.6, 16.0, strength), rng.uniform(0, math.pi)
    return filtered(image, streak_kernel(length, angle))


def defocus_blur(image: Array, strength: float, rng: np.random.Generator) -> Array:
    radius = between(0.7, 5.5, strength)
    side = math.ceil(radius)
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    # A soft edge of one pixel, so that radii between whole numbers differ.
    disk = np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0)
    return filtered(image, (disk / disk.sum()).astype(np.float32))


def resampled(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Made smaller and large again, by one of the usual kernels."""
    import cv2

    factor = between(1.15, 5.0, strength)
    up = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_CUBIC, cv2.INTER_NEAREST]))
    height, width = image.shape[:2]
    small = max(round(width / factor), 1), max(round(height / factor), 1)
    return np.asarray(
        cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=up)
    )


# ---------------------------------------------------------------- noise


def gaussian_noise(image: Array, strength: float, rng: np.random.Generator) -> Array:
    grey = float(rng.random() < 0.3)
    return add_noise(image, Noise(sigma=_both(between(1.5, 45, strength)), grey=grey), rng)


def camera_noise(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Noise as it lies in a camera's file: soft in light, coarse in colour or without any, often through a JPEG.

    Strength gives its root mean square in luminance, 1 to 30 levels of 255, however dark the picture is. Darkness has
    more of it, and so has detail, which the camera's own smoothing spares.
    """
    # More often coarse than fine: soft grey grain is what scorers take for texture.
    grain, blotches = 1.1 * np.sqrt(rng.random()), rng.uniform(0.8, 2.5)
    colour = rng.uniform(0.0, 1.0) if rng.random() < 0.5 else 0.0  # cameras smooth colour first
    dark, plain = rng.uniform(-0.2, 0.6), rng.uniform(0.3, 1.0)
    in_file = rng.random() < 0.6
    white = rng.standard_normal(image.shape, dtype=np.float32)
    light = white.mean(axis=2, keepdims=True)
    luma = image @ LUMA
    wide = gaussian_kernel(2.0, 2.0, 0.0)
    detail = np.sqrt(filtered((luma - filtered(luma, wide)) ** 2, wide).clip(min=0))
    where = plain + (1 - plain) * detail / (detail + detail.mean() + np.float32(1e-3))
    where = (where * (luma + 0.05) ** -dark)[..., None]
    soft = correlated(light, grain) * where
    noise = soft + correlated(white - light, blotches) * where * np.float32(colour)
    noise *= between(1.0, 30.0, strength) / 255 / np.sqrt((soft**2).mean())
    if not in_file:
        return image + noise
    return as_float(compress(to_8bit(image + noise), Jpeg(quality=[70, 98], subsampling="random"), rng))


def speckle_noise(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Noise in proportion to the light."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return image + image * noise * np.float32(between(0.015, 0.35, strength))


def impulse_noise(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Black and white pixels."""
    chance = rng.random(image.shape[:2])
    white = rng.random(image.shape[:2]) < 0.5
    return np.where((chance < between(0.0006, 0.06, strength))[..., None], white[..., None], image).astype(np.float32)


# ---------------------------------------------------------------- files


def jpeg(image: Array, strength: float, rng: np.random.Generator) -> Array:
    quality = round(100 - between(8, 94, strength))
    settings = Jpeg(quality=[quality, quality], subsampling="random")
    return as_float(compress(to_8bit(image), settings, rng))


def webp(image: Array, strength: float, rng: np.random.Generator) -> Array:
    import cv2

    flags = [cv2.IMWRITE_WEBP_QUALITY, round(100 - between(8, 98, strength))]
    done, data = cv2.imencode(".webp", np.ascontiguousarray(to_8bit(image)[:, :, ::-1]), flags)
    if not done:
        raise RefineWrapError(f"OpenCV cannot encode a WebP of {image.shape[1]}x{image.shape[0]} pixels")
    return as_float(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[:, :, ::-1])


def banding(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Few levels of each colour."""
    levels = between(90, 7, strength)
    return np.round(image * np.float32(levels)) / np.float32(levels)


# ---------------------------------------------------------------- too much of a good thing


def ringing(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """A low pass with a hard edge in frequency, as careless resizing has (Wang et al. 2021, Real-ESRGAN: sinc)."""
    height, width = image.shape[:2]
    cutoff = between(0.48, 0.09, strength)
    spectrum = np.fft.rfft2(_mirrored(image), axes=(0, 1))
    y, x = np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None]
    kept = 1 / (1 + np.exp((np.hypot(y, x) - cutoff) / 0.006))
    whole = np.fft.irfft2(spectrum * kept[..., None], s=(2 * height, 2 * width), axes=(0, 1))
    return np.ascontiguousarray(whole[:height, :width], dtype=np.float32)


def oversharpened(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """An unsharp mask."""
    sigma, amount = rng.uniform(0.6, 1.8), between(0.35, 5.0, strength)
    soft = filtered(image, gaussian_kernel(sigma, sigma, 0.0))
    return image + np.float32(amount) * (image - soft)


# ---------------------------------------------------------------- smoothing


def median_filtered(image: Array, strength: float, rng: np.random.Generator) -> Array:
    import cv2

    # Whole windows of 3, 5, 7 and 9 pixels; between them, mixtures.
    place = 0.35 + 3.6 * strength
    low, share = int(place), place - int(place)
    rounded_image = to_8bit(image)
    steps = [
        image if n == 0 else as_float(np.asarray(cv2.medianBlur(rounded_image, 2 * n + 1))) for n in (low, low + 1)
    ]
    return np.asarray(steps[0] * np.float32(1 - share) + steps[1] * np.float32(share))


def bilateral_filtered(image: Array, strength: float, rng: np.random.Generator) -> Array:
    import cv2

    return np.asarray(cv2.bilateralFilter(image, 9, between(0.04, 0.4, strength), between(1.5, 4.0, strength)))


def edge_preserved(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Painted by a recursive edge-preserving filter (Gastal and Oliveira 2011)."""
    import cv2

    flat = cv2.edgePreservingFilter(
        to_8bit(image), flags=cv2.RECURS_FILTER, sigma_s=between(5, 60, strength), sigma_r=between(0.08, 0.6, strength)
    )
    return as_float(np.asarray(flat))


def non_local_means(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Noise, and a denoiser's attempt at it (Buades et al. 2005) that takes texture along."""
    import cv2

    sigma = between(1.5, 40, strength)
    noisy = to_8bit(add_noise(image, Noise(sigma=_both(sigma), correlation=[0.0, 0.5]), rng))
    h = float(sigma * 1.1 + 1)
    return as_float(np.asarray(cv2.fastNlMeansDenoisingColored(noisy, None, h, h, 5, 11)))


def low_light(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """A phone in the dark: camera noise, smoothed away in part, sharpened, compressed."""
    steps = (camera_noise, bilateral_filtered, oversharpened, jpeg)
    for step, share in zip(steps, (0.9, 0.7, 0.4, 0.5), strict=True):
        image = np.clip(step(image, strength * share, rng), 0.0, 1.0)
    return image


def mixture(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Two or three distortions, one after the other."""
    names = rng.choice([name for name in DISTORTIONS if name != "mixture"], int(rng.integers(2, 4)), replace=False)
    for name in names:
        image = np.clip(DISTORTIONS[name](image, strength * float(rng.uniform(0.4, 0.9)), rng), 0.0, 1.0)
    return image


DISTORTIONS: dict[str, Distortion] = {
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "resampled": resampled,
    "gaussian_noise": gaussian_noise,
    "camera_noise": camera_noise,
    "speckle_noise": speckle_noise,
    "impulse_noise": impulse_noise,
    "jpeg": jpeg,
    "webp": webp,
    "banding": banding,
    "ringing": ringing,
    "oversharpened": oversharpened,
    "median_filtered": median_filtered,
    "bilateral_filtered": bilateral_filtered,
    "edge_preserved": edge_preserved,
    "non_local_means": non_local_means,
    "low_light": low_light,
    "mixture": mixture,
}
"""Every distortion by name."""


def _both(value: float) -> list[float]:
    return [value, value]


def _mirrored(image: Array) -> Array:
    """Twice the size, so that the ends meet and the Fourier transform sees no edge there."""
    wide = np.concatenate((image, image[:, ::-1]), axis=1)
    return np.concatenate((wide, wide[::-1]), axis=0)
