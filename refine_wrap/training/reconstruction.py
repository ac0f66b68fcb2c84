"""Reconstructors, which are stopped early: what they cannot paint yet degrades an image as real cameras do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reconstruction import Reconstruction, Reconstructor, save_reconstructor
from ..reconstruction.load import build_reconstructor
from .data import ImageData, Sample, training_data, validation_data
from .losses import LossSet
from .objectives import ImageObjective, card_facts
from .sources import Item

if TYPE_CHECKING:
    from ..recipe import Recipe


class ReconstructObjective(ImageObjective):
    """Train a reconstructor on clean low-resolution images, each its own ground truth.

    A batch has `gt` (B, 3, h, w) in [0, 1], already made smaller. Without losses, which a recipe with ddim has none of,
    the network's own one is all there is.

    Source: paper 3 (arXiv 2503.02767), 3.1 and 3.2, and its first author's training of VQ-VAE-2.
    """

    result = "reconstructor"

    def __init__(self, network: Reconstructor, losses: LossSet, downscale: int) -> None:
        super().__init__(losses)
        self.network, self.downscale = network, downscale

    @classmethod
    def of(cls, recipe: Recipe, losses: LossSet) -> ReconstructObjective:
        """The untrained reconstructor of a recipe, its weights drawn from the recipe's seed."""
        choice = recipe.reconstructor
        assert choice is not None  # the recipe has checked it
        torch.manual_seed(recipe.train.seed)
        with recipe.at("reconstructor.options", "reconstructor"):
            network = build_reconstructor(choice.kind, **choice.options)
        side = choice.downscale * network.stride
        if recipe.data.crop % side or (network.fixed and recipe.data.crop != side):
            expected = f"{'' if network.fixed else 'a multiple of '}{side}: reconstructor.downscale times its stride"
            raise recipe.refuse("data.crop", f"data.crop is {recipe.data.crop}", expected)
        return cls(network, losses, choice.downscale)

    @property
    def scale(self) -> int:
        return 1

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        with recipe.at("data.train"):
            train = training_data(recipe, 1)
        with recipe.at("data.validation"):
            validation = validation_data(recipe, 1)
        for part in (train, validation):
            if part is not None:
                part.also = MadeSmaller(self.downscale)
        return train, validation

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        made: Reconstruction = self.network(batch["gt"] * 2 - 1)
        own = {} if made.loss is None else {self.network.term: made.loss}
        return {**self.compare((made.output + 1) / 2, batch["gt"]), **own}

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def predict(self, lq: Tensor) -> Tensor:
        """What it paints of (B, 3, h, w), at any size."""
        return self.network.reconstruct(lq)

    def trained(self) -> nn.Module:
        return self.network

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder of kind reconstructor, which `load_reconstructor` reads."""
        return save_reconstructor(folder / self.result, self.network, **card_facts(recipe, metrics))


class MadeSmaller:
    """A sample's ground truth some times smaller, bicubic with antialiasing; a rest of less than a pixel is cut off."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, sample: Sample, files: Sequence[Item]) -> Sample:
        gt = sample["gt"]
        height, width = (side // self.times * self.times for side in gt.shape[-2:])
        size = (height // self.times, width // self.times)
        smaller = F.interpolate(gt[None, :, :height, :width], size, mode="bicubic", antialias=True)
        return {"gt": smaller[0].clamp(0, 1)}
