"""Quality as a condition: what the scores of a training set mean on the dial from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ImageError, RefineWrapError
from ..refiner import check_dial

Quality = float | Tensor
Normalise = Literal["quantile", "minmax"]
KNOTS = 101
"""Of a scale by quantiles."""


def quality_values(quality: Quality, image: Tensor, name: str = "quality") -> Tensor:
    """The quality of each image of a batch, (B,) in the image's type, checked for shape and for [0, 1].

    Args:
        quality: a number, or a tensor of one value or of B values.
        image: (B, ...).
        name: what it is called where it is refused.

    Raises:
        ImageError: another shape, outside [0, 1], or not a number.
    """
    batch = image.shape[0]
    if not isinstance(quality, (Real, Tensor)):
        raise ImageError(f"{name} is a {type(quality).__name__}", f"a number or a tensor of shape ({batch},)")
    if not isinstance(quality, Tensor):
        if not 0 <= quality <= 1:  # also catches NaN
            raise ImageError(f"{name} is {quality}", "a number in [0, 1]")
        return image.new_full((batch,), float(quality))
    if quality.shape not in {(), (1,), (batch,)}:
        raise ImageError(f"{name} has shape {tuple(quality.shape)} for a batch of {batch}", f"a number or ({batch},)")
    check_dial(quality, name)
    return quality.to(image).reshape(-1).expand(batch)


@dataclass(frozen=True)
class Condition:
    """How the scores of one image become its quality.

    Each scorer's scores are moved to [0, 1] over the training set, their mean is taken, and that again.
    """

    scales: tuple[Scale, ...]
    """One for each scorer."""
    whole: Scale
    """Of their mean."""
    scorers: tuple[str, ...] = ()
    """Whose scores, `NAME@DIGEST` each."""

    @classmethod
    def fit(
        cls, scores: Sequence[Sequence[float]], how: Normalise = "quantile", scorers: Sequence[str] = ()
    ) -> Condition:
        """Of a training set.

        Args:
            scores: for each scorer the scores of all images, higher is better.
            how: quantile: the share of the set that is worse, so that each part of the dial has as many images.
                minmax: from the lowest to the highest score, as paper 2.
            scorers: their names.

        Raises:
            RefineWrapError: no scores, one that is no number, or all are the same.
        """
        scales = tuple(Scale.fit(own, how) for own in scores)
        rows = [scale(own) for scale, own in zip(scales, scores, strict=True)]
        return cls(scales, Scale.fit(np.mean(rows, 0).tolist(), how), tuple(scorers))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Condition:
        """What `to_dict` gave.

        Raises:
            RefineWrapError: it is something else.
        """
        try:
            scales = tuple(Scale(tuple(map(float, knots))) for knots in values["scales"])
            condition = cls(scales, Scale(tuple(map(float, values["whole"]))), tuple(map(str, values["scorers"])))
        except (KeyError, TypeError, ValueError) as error:
            raise RefineWrapError(f"A condition is damaged: {error!r}", "scales, whole and scorers") from None
        every = (*condition.scales, condition.whole)
        if any(len(each.knots) < 2 or list(each.knots) != sorted(each.knots) for each in every):
            raise RefineWrapError("A condition is damaged", "rising knots")
        return condition

    def to_dict(self) -> dict[str, Any]:
        """As JSON, knots with six digits."""
        *scales, whole = ([float(f"{knot:.6g}") for knot in scale.knots] for scale in (*self.scales, self.whole))
        return {"scorers": list(self.scorers), "scales": scales, "whole": whole}

    def __call__(self, scores: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        """The quality of each image, (images,) in [0, 1], from the scores of each scorer."""
        rows = [scale(own) for scale, own in zip(self.scales, scores, strict=True)]
        return self.whole(np.mean(rows, 0).tolist())


@dataclass(frozen=True)
class Scale:
    """A rising map of scores onto [0, 1]: straight between its knots, which lie evenly there."""

    knots: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], how: Normalise = "quantile") -> Scale:
        """See `Condition.fit`."""
        values = _checked(scores).sort().values
        if values[0] == values[-1]:
            raise RefineWrapError(
                f"All {len(values)} images have the score {float(values[0]):.4g}",
                "ground truths of different quality: pristine, flawed (refine-wrap make-flawed), enhanced",
            )
        places = torch.linspace(0, 1, KNOTS if how == "quantile" else 2, dtype=torch.float64)
        return cls(tuple(values.quantile(places).tolist()))

    def __call__(self, scores: Sequence[float]) -> npt.NDArray[np.float64]:
        """[0, 1], one for each score; beyond the knots it stays at 0 and 1."""
        # A run of equal knots is a step: its middle is what a score there means.
        low, high = (np.searchsorted(self.knots, scores, side) for side in ("left", "right"))
        places = np.linspace(0, 1, len(self.knots))
        between = np.interp(scores, self.knots, places)
        middle = (places[np.clip(low, 0, len(places) - 1)] + places[np.clip(high - 1, 0, len(places) - 1)]) / 2
        found: npt.NDArray[np.float64] = np.where(high - low > 1, middle, between)
        return found


def _checked(scores: Sequence[float]) -> Tensor:
    values = torch.as_tensor(scores, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or not bool(values.isfinite().all()):
        raise RefineWrapError(f"{values.numel()} scores, or some that are no numbers", "one finite score an image")
    return values
