"""Signs that a score was gained by other means than restoring: noise put back, sharpening, a copy, an empty picture.

Two figures of a picture's own texture are set against the ground truth's. Detail: the energy of its spectrum above
`FREQUENCY`, which noise and sharpening raise and smoothing lowers. Noise: the standard deviation that the median of the
finest diagonal wavelet coefficients stands for (Donoho and Johnstone 1994, Haar wavelet), so that edges and texture in
less than half of the picture do not count as noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..images import Picture

Array = npt.NDArray[np.float32]

FREQUENCY = 0.25
"""Cycles a pixel, from the centre of the spectrum; 0.5 is the finest that rows or columns can hold."""
BLOCK = 64
"""Side in pixels of the blocks (Hann window, mean taken out) whose spectra are added up."""
DETAIL_LIMITS = (0.5, 1.5)
NOISE_LIMIT = 1.5
"""Ratios to the ground truth's, on an image, beyond which it counts as conspicuous.

Measured on photos: JPEG of quality 70 reaches x1.3 the detail, denoisers x1.2 of it and x1.1 the noise; an unsharp mask
of 50% x1.7 to 2.2 the detail (behind a denoiser 1.4 to 1.7), noise of 5/255 x1.3 to 12 the noise.
"""
IMAGES_LIMIT = 0.25
"""Share of images from which a ratio is flagged."""
COPY_PSNR = 60.0
"""dB, 8-bit RGB: two pictures this close are one picture saved twice."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_ROUNDING = 1 / 12
"""Variance of rounding to 8 bits: it keeps ratios finite, and calm where there is nothing to see."""


@dataclass(frozen=True)
class Texture:
    """Of the luma of one picture, in levels of 255."""

    energy: float
    """Mean square, blocks' means taken out."""
    detail: float
    """The part of `energy` above `FREQUENCY`."""
    noise: float
    """Standard deviation."""
    constant: bool
    """Whether all pixels are the same."""

    @property
    def share(self) -> float:
        """Of the energy, above `FREQUENCY`, in [0, 1]."""
        return self.detail / (self.energy + _ROUNDING)

    def ratios(self, truth: Texture) -> tuple[float, float]:
        """Detail and noise against the ground truth's; 1 is as much."""
        detail = (self.detail + _ROUNDING) / (truth.detail + _ROUNDING)
        return detail, math.sqrt((self.noise**2 + _ROUNDING) / (truth.noise**2 + _ROUNDING))


def texture(picture: Picture) -> Texture:
    """Measured on all pixels, a band of rows at a time."""
    first = picture.pixels[0, 0]
    return Texture(
        *_spectrum(picture), noise=_noise(picture), constant=bool(all((row == first).all() for row in picture.pixels))
    )


def _luma(picture: Picture, top: int, bottom: int) -> Array:
    """(rows, W) float32 in [0, 255]."""
    rows = picture.pixels[top:bottom].astype(np.float32)
    grey = rows[..., 0] if picture.grey else rows @ _LUMA
    return grey if picture.bits == 8 else grey / np.float32(257)


def frequencies(block: int) -> npt.NDArray[np.float64]:
    """Of a block's half spectrum, (block, block // 2 + 1): cycles a pixel, from the centre of the spectrum."""
    return np.hypot(np.fft.fftfreq(block)[:, None], np.fft.rfftfreq(block))


def power(picture: Picture) -> npt.NDArray[np.float64]:
    """Power of the luma by frequency, (block, block // 2 + 1), the mean over blocks, in squared levels of 255.

    White noise has its variance at every frequency. Blocks are `BLOCK` pixels, or as large as a smaller picture holds.
    """
    block = min(BLOCK, picture.height, picture.width)
    window = np.outer(*[np.hanning(block + 2)[1:-1].astype(np.float32)] * 2)
    window /= np.sqrt(np.square(window).mean())
    weight = window / window.sum()
    total = np.zeros((block, block // 2 + 1))
    tops, lefts = _starts(picture.height, block), _starts(picture.width, block)
    for top in tops:
        rows = _luma(picture, top, top + block)
        blocks = np.stack([rows[:, left : left + block] for left in lefts])
        blocks -= (blocks * weight).sum(axis=(1, 2), keepdims=True)
        total += np.square(np.abs(np.fft.rfft2(blocks * window))).sum(axis=0)
    return total / (len(tops) * len(lefts) * block**2)


def _spectrum(picture: Picture) -> tuple[float, float]:
    """Energy, and its part above `FREQUENCY`."""
    found = power(picture)
    block = len(found)
    # Half of the spectrum stands for both halves; the columns at 0 and, for an even side, at 0.5 have no twin.
    twice = np.full(found.shape, 2.0)
    twice[:, 0] = 1
    if block % 2 == 0:
        twice[:, -1] = 1
    found = found * twice / block**2
    return float(found.sum()), float(found[frequencies(block) > FREQUENCY].sum())


def _starts(size: int, block: int) -> list[int]:
    """Where blocks begin, so that they cover the whole; the last may overlap the one before."""
    starts = list(range(0, size - block + 1, block))
    return starts if starts[-1] + block == size else [*starts, size - block]


def _noise(picture: Picture) -> float:
    height, width = picture.height // 2 * 2, picture.width // 2 * 2
    if not height or not width:
        return 0.0
    parts = []
    for top in range(0, height, BLOCK):
        rows = _luma(picture, top, min(top + BLOCK, height))
        left, right = rows[:, 0:width:2], rows[:, 1:width:2]
        across = left - right
        parts.append(np.abs(across[::2] - across[1::2]).ravel() / 2)
    # 0.6745: the median of the absolute values of a normal distribution of standard deviation 1.
    return float(np.median(np.concatenate(parts))) / 0.6745


def alike(a: Picture, b: Picture) -> bool:
    """Whether two pictures are one: of the same size, with a PSNR of at least `COPY_PSNR` as 8-bit RGB."""
    if (a.height, a.width) != (b.height, b.width):
        return False
    squares = 0.0
    allowed = 255.0**2 / 10 ** (COPY_PSNR / 10) * a.height * a.width * 3
    for top in range(0, a.height, BLOCK):
        x, y = (_levels(picture, top) for picture in (a, b))
        squares += float(np.square(x - y, dtype=np.float32).sum(dtype=np.float64)) * 3 / max(x.shape[2], y.shape[2])
        if squares > allowed:
            return False
    return True


def _levels(picture: Picture, top: int) -> Array:
    """A band of rows, float32, rounded to levels of 255."""
    rows = picture.pixels[top : top + BLOCK]
    return rows.astype(np.float32) if picture.bits == 8 else np.rint(rows / np.float32(257))


@dataclass(frozen=True)
class Flag:
    """Something about a candidate that a reader must know before its figures."""

    kind: str
    """copy, unchanged, baseline, constant, detail, smooth or noise."""
    images: int
    """On how many it was found, of `of`."""
    of: int
    words: str


@dataclass(frozen=True)
class Signs:
    """What was seen on one image of a candidate."""

    copy: bool
    """It is the ground truth."""
    unchanged: bool
    """It is the input."""
    baseline: bool
    """It is the baseline's."""
    constant: bool
    """It is of one colour, and the ground truth is not."""
    detail: float | None
    noise: float | None
    """Ratios to the ground truth's; None without one."""


def flags(images: Sequence[Signs]) -> list[Flag]:
    """What is conspicuous about a candidate, the worst first."""
    of = len(images)
    found = []

    def add(kind: str, seen: Sequence[bool], least: float, words: str) -> None:
        if sum(seen) and sum(seen) >= least * of:
            on = "every image" if sum(seen) == of else f"{sum(seen)} of {of} images"
            found.append(Flag(kind, sum(seen), of, f"{words} on {on}"))

    near = f"(PSNR of {COPY_PSNR:g} dB or more)"
    add("copy", [one.copy for one in images], 0, f"is a copy of the ground truth {near}")
    add("constant", [one.constant for one in images], 0, "is of one colour")
    add("unchanged", [one.unchanged for one in images], 0, f"is the input {near}")
    add("baseline", [one.baseline for one in images], 0, f"is the same as the baseline {near}")
    details = [one.detail for one in images if one.detail is not None]
    noises = [one.noise for one in images if one.noise is not None]
    if details and noises:
        low, high = DETAIL_LIMITS
        ratio = f"(x{median(details):.2g} in the median"
        limit = (
            f"has more than x{high:g} the ground truth's high-frequency energy {ratio}): noise, sharpening or contrast"
        )
        add("detail", [value > high for value in details], IMAGES_LIMIT, limit)
        limit = f"has more than x{NOISE_LIMIT:g} the ground truth's noise (x{median(noises):.2g} in the median): noise"
        add("noise", [value > NOISE_LIMIT for value in noises], IMAGES_LIMIT, f"{limit} left in or added")
        limit = f"has less than x{low:g} the ground truth's high-frequency energy {ratio}): smoothed"
        add("smooth", [value < low for value in details], IMAGES_LIMIT, limit)
    return found
