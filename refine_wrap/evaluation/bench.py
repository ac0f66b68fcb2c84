"""Look at one image of an evaluation: read it from every place, measure it, let the judges see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ImageError
from ..images import Picture
from ..scorers.core import Scorer
from ..tiling import is_out_of_memory
from .gaming import Signs, alike, texture
from .metrics import Metric
from .places import Place, Places
from .result import Image, Seen
from .statistics import Figure

LARGEST_SCALE = 8
"""An input may be so many times smaller than its ground truth."""


@dataclass
class Bench:
    """What every image is measured by."""

    metrics: Sequence[Metric]
    judges: Sequence[Scorer]
    device: str = "cpu"

    def look(self, places: Places, name: str) -> tuple[Image, list[Signs]]:
        """An image, and what is conspicuous about each candidate's; in memory are at most four pictures of it.

        Raises:
            RefineWrapError: one of them cannot be read, or is of another size.
        """
        gt = places.gt.read(name) if places.gt else None
        baseline = places.outputs[0].read(name) if places.outputs else None
        frame = gt or baseline
        assert frame is not None
        truth = None if gt is None else gt.tensor(device=self.device)
        seen_gt = seen_lq = lq = None
        if places.gt is not None and gt is not None and truth is not None:
            seen_gt = self._seen(places.gt, name, gt, truth)
        if places.lq is not None:
            lq = _enlarged(places.lq.read(name), frame)
            seen_lq = self._seen(places.lq, name, lq, lq.tensor(device=self.device))
        image = Image(name, frame.width, frame.height, seen_gt, seen_lq, outputs=[])
        signs = []
        for number, place in enumerate(places.outputs):
            picture = place.read(name) if number else baseline
            assert picture is not None
            if (picture.width, picture.height) != (frame.width, frame.height):
                raise ImageError(f"{place.label} has {_size(picture)} pixels, not {_size(frame)}")
            seen = self._seen(place, name, picture, picture.tensor(device=self.device), truth)
            image.outputs.append(seen)
            if number:
                signs.append(_signs(picture, seen, gt, seen_gt, lq, baseline))
            del picture  # before the next one is read
        return image, signs

    def _seen(self, place: Place, name: str, picture: Picture, image: Tensor, truth: Tensor | None = None) -> Seen:
        figures: dict[str, Figure] = {}
        if truth is not None:
            figures = {metric.name: _measured(metric, image, truth) for metric in self.metrics}
        figures |= {judge.name: _judged(judge, image) for judge in self.judges}
        return Seen(place.sha256(name), texture(picture), figures)


def _measured(metric: Metric, image: Tensor, truth: Tensor) -> Figure:
    try:
        value = float(metric(image, truth)[0])
    except ImageError as error:  # too small, or not defined for this pair
        return error.came
    return "no number" if math.isnan(value) else value


def _judged(judge: Scorer, image: Tensor) -> Figure:
    """The raw score. One that is not finite is no score: `outcome` lets the other picture win."""
    try:
        with torch.no_grad():
            value = judge.raw(image).item()
    except ImageError as error:
        return error.came
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return "too large for the memory there is"
    return float(value) if math.isfinite(value) else "not finite"


def _enlarged(lq: Picture, frame: Picture) -> Picture:
    """An input at the size of the others.

    Raises:
        ImageError: it is not smaller by a whole factor.
    """
    scale = frame.width // lq.width
    if not 1 <= scale <= LARGEST_SCALE or (lq.width * scale, lq.height * scale) != (frame.width, frame.height):
        raise ImageError(f"the input has {_size(lq)} pixels, which is no whole part of {_size(frame)}")
    if scale == 1:
        return lq
    from PIL.Image import Resampling

    return Picture.from_pil(lq.to_pil().resize((frame.width, frame.height), Resampling.BICUBIC))


def _signs(
    picture: Picture, seen: Seen, gt: Picture | None, seen_gt: Seen | None, lq: Picture | None, baseline: Picture | None
) -> Signs:
    detail, noise = seen.texture.ratios(seen_gt.texture) if seen_gt else (None, None)
    return Signs(
        copy=gt is not None and alike(picture, gt),
        unchanged=lq is not None and alike(picture, lq),
        baseline=baseline is not None and alike(picture, baseline),
        constant=seen.texture.constant and not (seen_gt is not None and seen_gt.texture.constant),
        detail=detail,
        noise=noise,
    )


def _size(picture: Picture) -> str:
    return f"{picture.width}x{picture.height}"
