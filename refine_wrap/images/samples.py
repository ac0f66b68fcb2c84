"""Samples as integers: depth, bands of rows, and what is refused whatever the format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageError

Array = npt.NDArray[Any]
Parts = tuple[Array, Array | None, bytes | None, bytes | None]
"""What a file holds: pixels, alpha, ICC profile, EXIF block."""

MAX_PIXELS = 2**30
"""A picture of more pixels is refused: it is a damaged or hostile header rather than a photo."""

BAND_PIXELS = 2**18  # pictures are converted in bands of rows of about this many pixels
ZLIB_LEVEL = 1  # on photographs, higher levels cost up to twice the time for a few percent of the size


def top_value(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)


def with_bits(values: Array, bits: int) -> Array:
    """The nearest values at another depth: 65535 is 255 and 255 is 65535."""
    if values.dtype.itemsize * 8 == bits:
        return values
    if bits == 16:
        return np.multiply(values, 257, dtype=np.uint16)
    out = np.empty(values.shape, np.uint8)
    for rows in bands(*values.shape[:2]):  # the wide integers of one band only
        out[rows] = (values[rows].astype(np.uint32) + 128) // 257
    return out


def bands(height: int, width: int, limit: int | None = None) -> Iterator[slice]:
    pixels = BAND_PIXELS if limit is None else min(BAND_PIXELS, limit)
    step = max(1, pixels // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def with_alpha(pixels: Array, alpha: Array | None, rows: slice) -> Array:
    return pixels[rows] if alpha is None else np.dstack([pixels[rows], alpha[rows]])


def check_size(width: int, height: int, what: object) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{what} has {width}x{height} pixels", "at least 1x1")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} has {width}x{height} pixels, {width * height / 1e6:.0f} million",
            f"at most {MAX_PIXELS / 1e6:.0f} million",
            "cut it into parts",
        )


def refuse_frames(name: str, count: int, word: str) -> None:
    if count > 1:
        raise ImageError(
            f"{name} holds {count} {word}: all but the first would be lost",
            "a file of one picture",
            f"save the {word} as single files first",
        )


def split_cv2(decoded: Array, grey: bool) -> tuple[Array, Array | None]:
    """OpenCV's grey, BGR or BGRA as our pixels and alpha; `grey` says that the colours are all the same."""
    import cv2

    if decoded.ndim == 2:
        return decoded[..., None], None
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    if grey:
        return np.ascontiguousarray(decoded[..., :1]), alpha
    if alpha is not None:
        return cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), alpha
    for rows in bands(*decoded.shape[:2]):  # in place: cvtColor would hold a second picture
        decoded[rows] = decoded[rows, :, ::-1].copy()
    return decoded, None
