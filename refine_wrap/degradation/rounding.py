"""From integers to numbers in [0, 1] and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def to_8bit(image: Array) -> npt.NDArray[np.uint8]:
    """[0, 1] to 0..255, clamped and rounded."""
    return (np.clip(image, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)


def as_float(image: Array) -> npt.NDArray[np.float32]:
    """(H, W, 1 or 3) integers to (H, W, 3) float32 in [0, 1]."""
    scaled = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled
