"""The sections of a recipe about reconstructors, and about the classifier that tells what they did."""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..degradation.settings import Section


class ReconstructorChoice(Section):
    """The network that paints images again, and is trained too little."""

    kind: Literal["vqvae", "vqvae2"] = "vqvae2"
    """Which network: vqvae has one codebook, at a quarter of the size, vqvae2 another at an eighth."""
    options: dict[str, Any] = {}
    """Its constructor's arguments."""
    downscale: Annotated[int, Field(ge=1, le=8)] = 4
    """How many times smaller the images of data.train become first (bicubic, antialiased): it learns, as it is used, on
    clean low-resolution images."""


class ClassifierChoice(Section):
    """The classifier of the 15 common corruptions, and of what is clean."""

    trunk: str = "resnet10t"
    """A small model of timm, by name; it starts from scratch."""
    options: dict[str, Any] = {}
    """Arguments of that model."""
    downscale: Annotated[int, Field(ge=1, le=8)] = 4
    """How many times smaller the images of data.train become first (bicubic, antialiased), before they are corrupted:
    what it learns to look at is low-resolution images."""
