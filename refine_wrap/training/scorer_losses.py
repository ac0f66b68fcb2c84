"""No-reference scorers as losses: their score of an output has a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RefineWrapError
from ..scorers import Scorer, load_scorer


def differentiable_scorers(sources: Sequence[str], crop: int) -> list[Scorer]:
    """Scorers whose gradient can be trained with, on crops of a side.

    Raises:
        RefineWrapError: one has no gradient, or cannot score so small an image.
        CheckpointError, HubError: its weights cannot be had.
    """
    scorers = [load_scorer(source) for source in sources]
    for scorer in scorers:
        if not scorer.differentiable:
            raise RefineWrapError(f"{scorer.name} is not differentiable", "a scorer with a gradient")
        if crop < scorer.smallest:
            raise RefineWrapError(
                f"{scorer.name} cannot score crops of {crop} pixels", f"data.crop of at least {scorer.smallest}"
            )
    return scorers


def scorable(image: Tensor) -> Tensor:
    """An output, (B, 3, H, W), as scorers take it.

    They refuse what is no number; the other losses are NaN or infinite then, and the trainer skips the step.
    """
    return torch.nan_to_num(image).clamp(0, 1)
