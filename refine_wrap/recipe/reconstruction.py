"""The sections of a recipe about reconstructors, and about the classifier that tells what they did."""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..degradation.settings import Section


class ReconstructorChoice(Section):
    """The network that paints images again, and is trained too little."""

    kind: Literal["vae", "vqvae", "vqvae2", "mae", "ddim"] = "vqvae2"
    """Which network: vae makes one vector of 64x64 pixels. vqvae has one codebook, at a quarter of the size, vqvae2
    another at an eighth. mae, a transformer, sees a quarter of the patches of 224x224 pixels. ddim takes noise away
    (diffusion); it needs the package diffusers, and losses: {}, for its own loss is all that it learns from."""
    options: dict[str, Any] = {}
    """Its constructor's arguments, as refine_wrap.reconstruction explains them: sizes, and what follows from them."""
    downscale: Annotated[int, Field(ge=1, le=8)] = 4
    """How many times smaller the images of data.train become first (bicubic, antialiased): it learns, as it is used, on
    clean low-resolution images."""

    @property
    def compares(self) -> bool:
        """Whether it learns by comparing images."""
        return self.kind != "ddim"


class ClassifierChoice(Section):
    """The classifier of the 15 common corruptions, and of what is clean."""

    trunk: str = "resnet10t"
    """A small model of timm, by name; it starts from scratch."""
    options: dict[str, Any] = {}
    """Arguments of that model."""
    downscale: Annotated[int, Field(ge=1, le=8)] = 4
    """How many times smaller the images of data.train become first (bicubic, antialiased), before they are corrupted:
    what it learns to look at is low-resolution images."""
