"""What is measured of one degraded image, and what follows for a set: diversity, colours, spectrum, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ..degradation.corruptions import CORRUPTIONS
from ..evaluation.gaming import frequencies, power, texture
from ..evaluation.metrics.colour import delta_e
from ..evaluation.statistics import CONFIDENCE, Interval
from ..images import Picture
from .classifier import CLASSES, CorruptionClassifier, corruption

RINGS = 16
"""Of the spectrum, all of one width, from 0 to 0.5 cycles a pixel."""
LARGEST_ENTROPY = math.log(len(CORRUPTIONS))
CAST = 8
"""Side in pixels of the squares whose mean colours are compared: noise and lost detail hardly show there."""
_STRIP = 64
_FLOOR = 1 / 12
"""Variance of rounding to 8 bits: below it there is nothing to see."""


@dataclass(frozen=True)
class Colour:
    """CIEDE2000 between an image and the clean one; about 1 is just noticeable."""

    mean: float
    median: float
    percentile_95: float
    """Over the pixels."""
    cast: float
    """Mean over squares of `CAST` pixels, whose mean colours are compared: a shift of colour, without noise."""


@dataclass(frozen=True)
class Look:
    """One image, measured."""

    corruption: str
    """What it looks most like: one of `CORRUPTIONS`."""
    looks_clean: bool
    """Whether it looks more like a clean image than like any of them."""
    noise: float
    """Standard deviation in levels of 255, from the median of the finest diagonal Haar coefficients."""
    detail: float
    """Share of the energy above 0.25 cycles a pixel, in [0, 1]: falls with blur, rises with noise."""
    spectrum: list[float | None]
    """dB of squared levels of 255 a frequency, by ring; None where a tiny image has no such frequency."""
    colour: Colour | None = None
    """None without a clean image to compare with."""


def look(picture: Picture, clean: Picture | None, classifier: CorruptionClassifier) -> Look:
    """Measure one image.

    Args:
        picture: what is measured.
        clean: the same of the same size, without degradation; None: colours are not compared.
        classifier: on the device where it runs.
    """
    shares = classifier.classify(picture.tensor(device=next(classifier.parameters()).device)).cpu()
    own = texture(picture)
    return Look(
        corruption=CLASSES[int(corruption(shares))],
        looks_clean=CLASSES[int(shares.argmax())] == "clean",
        noise=own.noise,
        detail=own.share,
        spectrum=spectrum(picture),
        colour=colour(picture, clean) if clean is not None else None,
    )


def spectrum(picture: Picture) -> list[float | None]:
    """Power of the luma in dB by ring of frequency, the innermost first; white noise is flat at its variance."""
    found = power(picture)
    ring = np.floor(frequencies(len(found)) * 2 * RINGS)
    values: list[float | None] = []
    for each in range(RINGS):
        inside = found[ring == each]
        values.append(float(10 * np.log10(inside.mean() + _FLOOR)) if inside.size else None)
    return values


def colour(picture: Picture, clean: Picture) -> Colour:
    """Compare colours, a strip at a time.

    Raises:
        ImageError: the sizes differ.
    """
    a, b = picture.tensor(), clean.tensor()
    strips = zip(torch.split(a, _STRIP, 2), torch.split(b, _STRIP, 2), strict=True)
    pixels = torch.cat([delta_e(*both).flatten() for both in strips])
    small = (functional.avg_pool2d(image, CAST, ceil_mode=True) for image in (a, b))
    return Colour(
        mean=float(pixels.mean()),
        median=float(pixels.median()),
        percentile_95=float(np.percentile(pixels.numpy(), 95)),
        cast=float(delta_e(*small).mean()),
    )


# ---------------------------------------------------------------- of a set


def entropy(counts: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """-sum P ln P over the classes' shares P, in [0, ln of the number of classes]; 0 of nothing.

    Source: paper 3 (arXiv 2503.02767), 3.2.
    """
    shares = np.asarray(counts, dtype=np.float64)
    shares = shares[shares > 0] / max(shares.sum(), 1)
    return float(-(shares * np.log(shares)).sum()) + 0.0  # a single class has -0


def entropy_interval(counts: Sequence[int], seed: int, resamples: int) -> Interval | None:
    """95% interval of the entropy by the percentile bootstrap over the images; None of a single image or class."""
    if sum(counts) < 2 or sum(count > 0 for count in counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(sum(counts), np.asarray(counts) / sum(counts), resamples)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile([entropy(each) for each in drawn], [tail, 100 - tail])
    return float(low), float(high)


def mean_spectrum(spectra: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Ring by ring over the images that have it."""
    rings = [[value for value in ring if value is not None] for ring in zip(*spectra, strict=True)]
    return [math.fsum(ring) / len(ring) if ring else None for ring in rings]
