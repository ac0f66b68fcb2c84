"""Quality as a condition in a recipe: whose scores it is made of, the head that is steered by it, codebooks."""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..degradation.settings import FilePath, Section
from .sections import Weight


class QualityChoice(Section):
    """The scores of the training set's ground truths, and the head that learns to paint what they mean."""

    scorers: Annotated[list[FilePath], Field(min_length=1)] = ["shipped:ranker"]
    """Scorers, as `refine-wrap score --scorer` takes them; of several the mean counts. They judge nothing after."""
    normalise: Literal["quantile", "minmax"] = "quantile"
    """How scores become a quality in [0, 1]. quantile: the share of the training set that is worse, so that the whole
    dial is used. minmax: from the lowest to the highest score, as paper 2."""
    default: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The quality that is asked for where none is named."""
    head: dict[str, Any] = {}
    """Constructor arguments of QualityHead; its channels follow from the backbone."""
    match_scores: Weight = 0.0
    """Weight of the mean absolute difference between the scores of output and ground truth, for the objective quality:
    pixel losses alone paint the mean of what might be, which no ground truth looks like. Differentiable scorers."""


class CodebookChoice(Section):
    """Codebook networks, in three stages, each a run of its own."""

    stage: Literal["autoencoder", "codes", "fuse"]
    """autoencoder: images become codes, from ground truths alone. codes: a restorer predicts the codes of the ground
    truth from the degraded image. fuse: its fuse blocks learn to bring details of the degraded image back."""
    options: dict[str, Any] = {}
    """autoencoder: constructor arguments of DualCodebookAutoencoder; hq_threshold is a quality: by quantiles the best
    quarter of the training set is above 0.75. codes: those of CodebookRestorer that the autoencoder does not have."""
    start: FilePath | None = None
    """codes: the autoencoder, an adapter folder of kind codebook. fuse: the restorer of stage codes."""
    commitment: Weight = 1.0
    """autoencoder: of the distance of latents and codes."""
    feature: Weight = 1.0
    """codes: of the squared distance of the latent to the ground truth's codes."""
    index: Weight = 0.5
    """codes: of each codebook's cross-entropy."""
    codes: Literal["hard", "straight", "gumbel", "soft"] = "soft"
    """codes: how codes are taken from the logits, for losses of the image. hard: as published, nothing between image
    and latent has a gradient. straight: the best code, with the softmax's gradient. gumbel: one that is drawn. soft:
    their expectation, which cost least where we compared (benchmarks)."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of straight, gumbel and soft."""
    scorers: list[FilePath] = []
    """codes: differentiable scorers whose scores of the output are raised."""
    scorer_weight: Weight = 0.1
    """Of each of these scorers."""
