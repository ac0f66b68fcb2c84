"""Several scorers as one: the mean of their min-max normalised scores, as IQPIR conditions on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RefineWrapError
from .core import Scorer


class Ensemble(Scorer):
    """Each scorer's raw score from the lowest to the highest over a set of images, moved to [0, 1], and their mean.

    Higher is better: a scorer whose published scale runs the other way is turned round. `raw` is that mean, and leaves
    [0, 1] for an image that is beyond the set; the scores themselves are held in it.

    Args:
        scorers: two or more, of different names.
        bounds: for each, in their order, its lowest and highest raw score over the set; see `fit`.

    Raises:
        RefineWrapError: fewer than two scorers, two of one name, or bounds that are not two finite numbers in order.
    """

    worst = 0.0
    best = 1.0

    def __init__(self, scorers: Sequence[Scorer], bounds: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        names = [scorer.name for scorer in scorers]
        if len(names) < 2 or len(set(names)) < len(names):
            raise RefineWrapError(f"An ensemble of {', '.join(names) or 'nothing'}", "two or more different scorers")
        if len(bounds) != len(names):
            raise RefineWrapError(f"An ensemble of {len(names)} scorers has {len(bounds)} bounds", "one pair for each")
        for name, (low, high) in zip(names, bounds, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise RefineWrapError(f"The bounds of {name} are {low} and {high}", "its lowest and its highest score")
        self.scorers = nn.ModuleList(scorers)
        self.bounds = [(float(low), float(high)) for low, high in bounds]
        self.name = f"ensemble({'+'.join(names)})"
        self.differentiable = all(scorer.differentiable for scorer in scorers)
        self.smallest = max(scorer.smallest for scorer in scorers)
        self.licence = "; ".join(sorted({scorer.licence for scorer in scorers}))

    @classmethod
    def fit(cls, scorers: Sequence[Scorer], raw_table: Mapping[str, Sequence[float]]) -> Ensemble:
        """With the bounds of raw scores over a set of images.

        Args:
            scorers: as for `Ensemble`.
            raw_table: by each scorer's name its raw scores, one an image.

        Raises:
            RefineWrapError: a scorer has no scores, one that is not finite, or only equal ones.
        """
        bounds = []
        for scorer in scorers:
            scores = [float(score) for score in raw_table.get(scorer.name, ())]
            if not scores or not all(map(math.isfinite, scores)) or min(scores) == max(scores):
                state = f"{len(scores)} scores, {len(set(scores))} of them different" if scores else "no scores"
                raise RefineWrapError(
                    f"An ensemble cannot be fitted: {scorer.name} has {state}", "finite scores of two or more images"
                )
            bounds.append((min(scores), max(scores)))
        return cls(scorers, bounds)

    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,): the mean of the normalised scores, not held in [0, 1]."""
        image = self.checked(image)
        parts = []
        for scorer, (low, high) in zip(self.members(), self.bounds, strict=True):
            share = (scorer.raw(image) - low) / (high - low)
            parts.append(share if scorer.best > scorer.worst else 1 - share)
        return torch.stack(parts).mean(dim=0)

    def members(self) -> list[Scorer]:
        """The scorers, in order."""
        return [scorer for scorer in self.scorers if isinstance(scorer, Scorer)]

    def about(self) -> dict[str, Any]:
        """As of any scorer, and `scorers` (what each says of itself) with `bounds`, from which it can be made again."""
        return {
            **super().about(),
            "scorers": [scorer.about() for scorer in self.members()],
            "bounds": [list(pair) for pair in self.bounds],
        }

    def digest(self) -> str:
        """Of the scorers' names, digests and bounds."""
        pairs = zip(self.members(), self.bounds, strict=True)
        parts = [[scorer.name, scorer.digest(), low, high] for scorer, (low, high) in pairs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
