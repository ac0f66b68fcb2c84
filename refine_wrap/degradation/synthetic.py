"""The synthetic degradation, every draw from one given generator.

The order is that of a camera and its file: the scene's light (darkness, water), optics (blur), sampling (bicubic,
antialiased), the rest of a camera (an undertrained network), sensor (noise), file (JPEG, 8 bits), and what befalls the
picture after (enlarged again, holes, other files). One generator in the same state gives the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from .reconstruct import load_networks, painted_again
from .rounding import as_float, to_8bit
from .scene import Array, Drawn, drawn_from, to_linear, to_srgb, too_dark, under_water, with_holes, without_colour
from .settings import Blur, Degradation, Jpeg, Noise, blur_radius, streak_radius

if TYPE_CHECKING:
    from ..reconstruction import Reconstructor


def degrade(
    image: Array,
    settings: Degradation,
    rng: np.random.Generator,
    drawn: Drawn | None = None,
    networks: Mapping[str, Reconstructor] | None = None,
) -> npt.NDArray[np.uint8]:
    """The low-quality version of an image.

    Args:
        image: (H, W, 3) float32, RGB in [0, 1], both sides multiples of `settings.scale`. It is not changed.
        settings: which parts, and the ranges that they are drawn from.
        rng: the only source of chance.
        drawn: gets a dict for each part (blur, noise, jpeg ...) that the image went through; of several kinds, also
            the number of the one that was taken, 0 being the first.
        networks: the reconstructors that the settings name, as `load_networks` gives them; None: they are loaded.

    Returns:
        (H / scale, W / scale, 3) uint8.

    Raises:
        ImageError: another shape, type or size.
        CheckpointError: a reconstructor cannot be loaded.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.float32:
        raise ImageError(f"An image of shape {image.shape} and type {image.dtype}", "(H, W, 3) float32 in [0, 1]")
    if image.shape[0] % settings.scale or image.shape[1] % settings.scale or 0 in image.shape:
        raise ImageError(
            f"An image of {image.shape[1]}x{image.shape[0]} pixels", f"sides that are multiples of {settings.scale}"
        )
    if networks is None:
        networks = load_networks(settings)
    told, drawn = drawn is not None, {} if drawn is None else drawn
    if settings.also:
        kinds = settings.kinds()
        number = int(rng.integers(len(kinds)))
        settings, drawn["kind"] = kinds[number], {"number": number}
    # Each part draws from its own stream, so that a change to one leaves the draws of the others as they were.
    blur_rng, noise_rng, jpeg_rng, light_rng, water_rng, grey_rng, shrink_rng, holes_rng, painter_rng, then_rng = (
        np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, 10)
    )
    if settings.light is not None and light_rng.random() < settings.light.probability:
        image = too_dark(image, settings.light, light_rng, drawn.setdefault("light", {}))
    if settings.water is not None and water_rng.random() < settings.water.probability:
        image = under_water(image, settings.water, water_rng, drawn.setdefault("water", {}))
    if settings.blur is not None and blur_rng.random() < settings.blur.probability:
        image = blur(image, settings.blur, blur_rng, drawn.setdefault("blur", {}))
    if settings.scale > 1:
        image = downsample(image, settings.scale)
    if settings.reconstruct is not None and painter_rng.random() < settings.reconstruct.probability:
        record = drawn.setdefault("reconstruct", {}) if told else None
        image = painted_again(image, settings.reconstruct, networks, painter_rng, record)
    size, times = image.shape[:2], drawn_from(settings.shrink, shrink_rng)
    if times > 1:
        drawn["shrink"] = {"times": times}
        image = resized(image, (max(1, round(size[0] / times)), max(1, round(size[1] / times))))
    if settings.noise is not None and noise_rng.random() < settings.noise.probability:
        image = add_noise(image, settings.noise, noise_rng, drawn.setdefault("noise", {}))
    if grey_rng.random() < settings.grey:
        drawn["grey"] = {}
        image = without_colour(image)
    rounded = to_8bit(image)
    if settings.jpeg is not None and jpeg_rng.random() < settings.jpeg.probability:
        rounded = compress(rounded, settings.jpeg, jpeg_rng, drawn.setdefault("jpeg", {}))
    if times > 1:
        rounded = to_8bit(resized(as_float(rounded), size))
    if settings.holes is not None and holes_rng.random() < settings.holes.probability:
        rounded = with_holes(rounded, settings.holes, holes_rng, drawn.setdefault("holes", {}))
    for following in settings.then:
        record = {} if told else None
        rounded = degrade(as_float(rounded), following, then_rng, record, networks)
        drawn.setdefault("then", []).append(record)
    return rounded


def blur(image: Array, settings: Blur, rng: np.random.Generator, drawn: Drawn | None = None) -> Array:
    """Gaussian blur with drawn sigmas and direction, then a drawn streak; the border is mirrored."""
    first, second = (drawn_from(settings.sigma, rng) for _ in range(2))
    angle = rng.uniform(0.0, math.pi)
    if rng.random() >= settings.anisotropic:
        second = first
    length, direction = drawn_from(settings.motion, rng), rng.uniform(0.0, math.pi)
    if drawn is not None:
        drawn |= {"sigma": [first, second], "angle": angle}
        drawn |= {"motion": length, "direction": direction} if length else {}
    return filtered(filtered(image, gaussian_kernel(first, second, angle)), streak_kernel(length, direction))


def filtered(image: Array, kernel: Array) -> Array:
    """(H, W, C) float32 through a kernel of odd sides and sum 1; the border is mirrored."""
    if kernel.size == 1:
        return image
    import cv2

    return np.asarray(cv2.filter2D(image, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> npt.NDArray[np.float32]:
    """A Gaussian of two sigmas in pixels, turned by `angle` (radians), odd sides, sum 1; 1x1 where both are tiny."""
    radius = blur_radius(max(sigma_x, sigma_y)) if max(sigma_x, sigma_y) > 0.05 else 0
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    # A sigma of zero keeps its direction sharp: nothing narrower than this shows on a grid of pixels.
    widths = max(sigma_x, 0.05), max(sigma_y, 0.05)
    weights = np.exp(-0.5 * ((along / widths[0]) ** 2 + (across / widths[1]) ** 2))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def streak_kernel(length: float, angle: float) -> npt.NDArray[np.float32]:
    """A straight line of `length` pixels through the middle, turned by `angle` (radians), soft at its edges, sum 1."""
    radius = streak_radius(length)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = np.abs(x * math.cos(angle) + y * math.sin(angle))
    across = np.abs(y * math.cos(angle) - x * math.sin(angle))
    line = np.clip(length / 2 + 0.5 - along, 0, 1) * np.clip(1 - across, 0, 1)
    return np.asarray(line / line.sum(), dtype=np.float32)


def downsample(image: Array, scale: int) -> Array:
    """Smaller by a whole number with an antialiased bicubic kernel (a = -0.5, as Pillow and MATLAB's imresize)."""
    return resized(image, (image.shape[0] // scale, image.shape[1] // scale), "bicubic")


def resized(image: Array, size: tuple[int, int], mode: str = "bilinear") -> Array:
    """(H, W, C) float32 at another size (height, width), antialiased."""
    import torch
    import torch.nn.functional as F

    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    other = F.interpolate(planes, size, mode=mode, antialias=True, align_corners=False)
    return other[0].numpy().transpose(1, 2, 0)


def add_noise(image: Array, settings: Noise, rng: np.random.Generator, drawn: Drawn | None = None) -> Array:
    """Noise of a drawn strength; the result is not clamped."""
    sigma = drawn_from(settings.sigma, rng) / 255.0
    shot = drawn_from(settings.shot, rng)
    correlation = drawn_from(settings.correlation, rng)
    gains = rng.uniform(1 - settings.channel_spread, 1 + settings.channel_spread, 3).astype(np.float32)
    channels = 1 if rng.random() < settings.grey else 3
    if drawn is not None:
        drawn |= {"sigma": sigma * 255.0, "correlation": correlation, "gains": gains.tolist(), "grey": channels == 1}
        drawn |= {"shot": shot} if settings.kind == "poisson-gaussian" else {}
    if sigma == 0:
        return image
    if settings.kind == "gaussian":
        noise = _normal(rng, (*image.shape[:2], channels)) * np.float32(sigma)
        return image + correlated(noise, correlation) * gains
    if not settings.linear_light:
        return image + correlated(_sensor(image, sigma, shot, channels, rng), correlation) * gains
    # The curve's slope at mid-grey makes sigma mean the same in both spaces.
    slope = float(to_linear(np.float32(0.505)) - to_linear(np.float32(0.495))) / 0.01
    light = to_linear(image)
    middle = float(to_linear(np.float32(0.5)))
    noise = correlated(_sensor(light, sigma * slope, shot, channels, rng, middle), correlation) * gains
    return to_srgb(light + noise)


def _sensor(
    light: Array, sigma: float, shot: float, channels: int, rng: np.random.Generator, middle: float = 0.5
) -> Array:
    """Shot and read noise; at the level `middle` their standard deviation is `sigma`."""
    read = _normal(rng, (*light.shape[:2], channels)) * np.float32(sigma * math.sqrt(1 - shot))
    gain = shot * sigma**2 / middle  # variance of the shot noise for each unit of light
    if gain == 0:
        return read
    light = np.clip(light, 0.0, 1.0)
    light = light if channels == 3 else light.mean(axis=2, keepdims=True)
    return read + (rng.poisson(light / gain) * gain - light).astype(np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def correlated(noise: Array, sigma: float) -> Array:
    """Blur noise and scale it back to the standard deviation that it had."""
    kernel = gaussian_kernel(sigma, sigma, 0.0)
    if kernel.size == 1:
        return noise
    import cv2

    kept = float(np.sqrt((kernel.astype(np.float64) ** 2).sum()))
    mixed = cv2.filter2D(noise, cv2.CV_32F, kernel / kept, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(mixed.reshape(noise.shape))  # OpenCV drops a channel axis of length 1


def compress(
    image: npt.NDArray[np.uint8], settings: Jpeg, rng: np.random.Generator, drawn: Drawn | None = None
) -> npt.NDArray[np.uint8]:
    """Through JPEG and back, (H, W, 3) RGB uint8."""
    import cv2

    quality = int(rng.integers(settings.quality[0], settings.quality[1], endpoint=True))
    full = bool(rng.random() < 0.5) if settings.subsampling == "random" else settings.subsampling == "4:4:4"
    if drawn is not None:
        drawn |= {"quality": quality, "subsampling": "4:4:4" if full else "4:2:0"}
    factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), flags)
    if not done:
        raise ImageError(f"OpenCV cannot encode a JPEG of {image.shape[1]}x{image.shape[0]} pixels")
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])
