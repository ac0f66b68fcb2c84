"""Measure sets of degraded images alike, with the published degradations of the same photos beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backbone.checkpoint import tensors_digest
from ..errors import DataError, RefineWrapError
from ..evaluation.statistics import CONFIDENCE, RESAMPLES
from ..folder import PathLike
from ..resources import versions
from .classifier import CorruptionClassifier, load_classifier
from .measures import CAST, RINGS, Look, look
from .places import CLEAN, Places, gather
from .result import Analysis, Set

CLASSIFIER = "shipped:corruptions"
Notify = Callable[[int, int, str, "str | None"], None]
"""Called after each image as notify(done, in all, name, reason): a reason where it was left out."""


def analyze_degradation(
    sets: Mapping[str, PathLike],
    *,
    clean: PathLike | None = None,
    scale: int = 4,
    compare: Sequence[str] = (),
    classifier: str | Path | CorruptionClassifier = CLASSIFIER,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    device: str = "cpu",
    notify: Notify | None = None,
) -> Analysis:
    """Measure sets of degraded images: what corruptions they look like, colours, spectra, noise.

    Images are taken upright, without their transparency. With clean images, they are paired by name, and an image that
    cannot be read in one place, or is of another size there, is left out everywhere: all figures are over the same
    images. Of a set, one image at a time is in memory.

    Args:
        sets: folders of degraded low-resolution images, by label.
        clean: folder of the clean high-resolution images that they were made of. Made smaller by bicubic, they are the
            first set, and what colours and spectra are compared with.
        scale: how many times smaller the degraded images are.
        compare: pipelines that degrade the clean images, for comparison: bsrgan, realesrgan (bicubic is there anyway).
        classifier: as `load_classifier` takes it.
        limit: of how many images of a set, spread evenly over the sorted names; None: all.
        seed, resamples: of the pipelines, and of the bootstrap.
        device: where the classifier runs.
        notify: called after each image.

    Raises:
        DataError: nothing to look at, a folder is missing or empty, images without a partner, or none that can be used.
        RefineWrapError: an argument out of range, or a classifier that cannot be loaded.
    """
    if not 1 <= scale <= 16:
        raise RefineWrapError(f"The scale is {scale}", "a whole number from 1 to 16")
    if limit is not None and limit < 1:
        raise RefineWrapError(f"A limit of {limit} leaves no image", "1 or more")
    if seed < 0:
        raise RefineWrapError(f"The seed is {seed}", "0 or more")
    places = gather(sets, clean, scale, compare, seed)
    known = isinstance(classifier, CorruptionClassifier)
    network = classifier if isinstance(classifier, CorruptionClassifier) else load_classifier(classifier)
    network = network.to(device).eval()
    found = {label: Set(label) for label in places.labels}
    left_out = []
    rows = places.rows(limit)
    for number, (name, labels) in enumerate(rows, 1):
        reason = None
        try:
            for label, one in _look(places, name, labels, network).items():
                found[label].looks[name] = one
        except RefineWrapError as error:
            reason = places.without_paths(error.came, name)
            left_out.append((name, reason))
        if notify is not None:
            notify(number, len(rows), name, reason)
    empty = next((each.label for each in found.values() if not each.looks), None)
    if empty is not None:
        raise DataError(
            f"No image of {empty} can be used; the first, {left_out[0][0]}: {left_out[0][1]}",
            f"images that can be read, {scale} times smaller than the clean ones" if clean else "images",
        )
    for each in found.values():
        each.settle(seed, resamples)
    return Analysis(
        sets=list(found.values()),
        left_out=left_out,
        classifier={
            "name": "given" if known else _name(str(classifier)),
            "digest": tensors_digest(network.state_dict()),
            "metrics": network.metrics,
        },
        settings=_settings(scale, seed, resamples),
        versions=versions("torch", "numpy", "scipy", "scikit-image", "pillow", "opencv-python", "timm"),
        places=places,
    )


def _look(places: Places, name: str, labels: Sequence[str], network: CorruptionClassifier) -> dict[str, Look]:
    pictures = places.read(name, labels)
    clean = pictures.get(CLEAN) if places.clean else None
    return {label: look(pictures[label], clean, network) for label in labels}


def _name(source: str) -> str:
    """Of a folder, its last part: where it lies is nobody's business."""
    return source if source.startswith(("shipped:", "hf://")) else Path(source).name


def _settings(scale: int, seed: int, resamples: int) -> dict[str, Any]:
    return {
        "scale": scale,
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "entropy": "-sum P ln P over the shares of images that look most like each of 15 corruptions",
        "interval": "percentile bootstrap over the images",
        "clean": "the high-resolution image made smaller by bicubic with antialiasing, 8 bits",
        "delta_e": f"CIEDE2000 by pixel, sRGB, D65; cast: of the mean colours of squares of {CAST} pixels",
        "noise": "median of the diagonal Haar coefficients / 0.6745, luma, levels of 255",
        "detail": "share of the luma's energy above 0.25 cycles a pixel",
        "spectrum": f"dB of the luma in levels of 255, {RINGS} rings from 0 to 0.5 cycles a pixel, blocks of 64 pixels",
    }
