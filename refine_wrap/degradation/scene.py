"""What happens to the light before the optics, and to the picture after its file: darkness, water, holes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .settings import Holes, Light, Water

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Drawn = dict[str, Any]
"""What was drawn, for a record: by part, the values in the words and units of `settings`; angles in radians."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601's weights of red, green and blue."""


def too_dark(image: Array, settings: Light, rng: np.random.Generator, drawn: Drawn) -> Array:
    """(H, W, 3) as sRGB, some stops darker in linear light; lit from behind, a part alone, and the rest brighter."""
    stops, overexposure = drawn_from(settings.stops, rng), drawn_from(settings.overexposure, rng)
    drawn["stops"] = stops
    exposure: Any = -stops
    if rng.random() < settings.backlit:
        drawn["overexposure"] = overexposure
        dark = np.clip((smooth_field(image.shape[:2], rng) - 0.5) / 0.2 + 0.5, 0, 1)[..., None]
        exposure = overexposure - dark * (stops + overexposure)
    return to_srgb(to_linear(image) * np.exp2(np.float32(exposure)))


def under_water(image: Array, settings: Water, rng: np.random.Generator, drawn: Drawn) -> Array:
    """(H, W, 3) as sRGB, seen through water.

    In linear light, for each channel c with attenuation b: J exp(-b (depth + d)) + veil exp(-b depth) (1 - exp(-b d)).
    The light loses colour on its way down and from the thing to the camera, and what the water scatters into the view
    is added. The distance d runs smoothly through the picture, as no depth is known.

    Source: the simplified image formation model (McGlamery 1980, Jaffe 1990) that UWCNN (Li et al. 2020) trains on too.
    """
    channels = (settings.red, settings.green, settings.blue)
    attenuation = np.array([drawn_from(channel, rng) for channel in channels], np.float32)
    depth, veil = drawn_from(settings.depth, rng), drawn_from(settings.veiling_light, rng)
    near, far = sorted(drawn_from(settings.distance, rng) for _ in range(2))
    drawn |= {"attenuation": attenuation.tolist(), "depth": depth, "distance": [near, far], "veiling_light": veil}
    distance = (near + (far - near) * smooth_field(image.shape[:2], rng))[..., None]
    left = np.exp(-attenuation * distance)
    seen = to_linear(image) * left + np.float32(veil) * (1 - left)
    return to_srgb(seen * np.exp(-attenuation * np.float32(depth)))


def without_colour(image: Array) -> Array:
    """(H, W, 3) with its luma in every channel."""
    return np.repeat((image @ LUMA)[..., None], 3, axis=2)


def with_holes(image: Array, settings: Holes, rng: np.random.Generator, drawn: Drawn) -> Array:
    """(H, W, 3) uint8 with white strokes of a brush, until they cover the drawn share of it."""
    import cv2

    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    missing = round(drawn_from(settings.share, rng) * mask.size)
    while missing > 0:
        brush = drawn_from(settings.width, rng)
        at, heading = rng.uniform(0, (width, height)), rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(2, 9))):
            # The last strokes are thin and short: with its round ends one covers about thick * (length + thick).
            thick = max(1, round(min(brush, math.sqrt(missing / 3))))
            heading += rng.uniform(-1, 1)
            length = min(rng.uniform(1, 4) * thick, max(missing / thick - thick, 0))
            to = at + length * np.array([np.cos(heading), np.sin(heading)])
            ends = [(int(x), int(y)) for x, y in (at, to)]
            # Counted around the segment alone: a photo has many of them.
            (left, top), (right, below) = (np.clip(edge(ends, axis=0), 0, None) for edge in (np.min, np.max))
            around = mask[max(top - thick, 0) : below + thick + 1, max(left - thick, 0) : right + thick + 1]
            missing += int(around.sum())
            cv2.line(mask, ends[0], ends[1], 1, thick)
            missing -= int(around.sum())
            at = to
            if missing <= 0:
                break
    drawn["share"] = float(mask.mean())
    return np.where(mask[..., None] > 0, np.uint8(255), image)


def smooth_field(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(H, W) from 0 to 1, without detail: hills and valleys of about a third of the picture; 0.5 in a single pixel."""
    import cv2

    coarse = rng.standard_normal((4, 4)).astype(np.float32)
    field = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / (high - low) if high > low else np.full(size, 0.5), dtype=np.float32)


def drawn_from(bounds: list[float], rng: np.random.Generator) -> float:
    """Evenly from [low, high]."""
    return float(rng.uniform(bounds[0], bounds[1]))


def to_linear(srgb: Any) -> Floats:
    """sRGB's curve undone; [0, 1] to [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.0) + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(light: Array) -> Floats:
    """Linear light through sRGB's curve; held in [0, 1]."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)
