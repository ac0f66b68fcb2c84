"""Enhanced supervision in a recipe: how variants are had, how masks are trained, what they are used for."""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..degradation.settings import FilePath, Section
from .sections import LossChoice, Weight


class SupervisionChoice(Section):
    """The ground truth and its super-resolved variants, mixed by masks over frequency into an enhanced ground truth."""

    sr: FilePath | None = "shipped:sr_x2"
    """The super-resolver that makes the variants of each crop, as backbone.weights; null: `variants`."""
    variants: FilePath | None = None
    """A folder of ready variants of the size of data.*.gt, which are folders then, and by their names below them:
    FOLDER/x2/NAME.png, and x3, x4."""
    factors: Annotated[list[Annotated[int, Field(ge=1, le=8)]], Field(min_length=1, max_length=8)] = [2, 3, 4]
    """How many times larger than the ground truth each variant was super-resolved."""
    masks: FilePath = "shipped:masks"
    """For the objective refine: the mask generator, which is frozen."""
    input: Literal["backbone", "ground_truth", "both"] = "backbone"
    """For the objective refine: what the refiner is shown. ground_truth: as the paper's code; no backbone is needed
    then. both: each sample twice."""
    fidelity: LossChoice | None = None
    """For the objective refine: losses toward the ground truth as it is, beside `losses` toward the enhanced one."""


class MasksChoice(Section):
    """The mask generator that is trained: close to the ground truth at strength 0, better the higher the strength."""

    options: dict[str, Any] = {}
    """Constructor arguments of FrequencyMaskGenerator; `images` follows from supervision.factors."""
    weighting: Literal["official", "paper"] = "official"
    """How fidelity and quality are weighed at strength s. official: 1 - s^2 and s^2. paper: 1 - s and s."""
    scorers: list[FilePath] = []
    """Differentiable scorers, as `refine-wrap score --scorer` takes them, whose scores are raised."""
    scorer_weight: Weight = 0.1
    """Of each scorer."""
    pristine: Weight = 1.0
    """With data.degradation, which makes the ground truth from a better photo: of the logarithm of the squared distance
    to that photo. Both distances count as shares of the ground truth's own to that photo then, and as a mean of both:
    where w is the weight of quality, fidelity counts (1 - w) / (1 - w + w * pristine)."""
    logit_decay: Weight = 0.0
    """Of the squared logits of the coefficients. Without it a ring that all images agree on at first is given to one of
    the images for good: the softmax saturates, and what differs from image to image is not learned any more."""
