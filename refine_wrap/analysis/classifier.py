"""A classifier of common corruptions: by the classes that it finds in a set, its diversity is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone.core import check_image
from ..degradation.corruptions import CORRUPTIONS
from ..errors import RefineWrapError
from ..hub import Adapter, load_network, save_adapter
from ..scorers.learned import LEAST, detail, tiles

KIND = "classifier"
CLASSES = (*CORRUPTIONS, "clean")
"""What it tells apart. Clean is ours: without it, a set that has no corruption at all would still look like some."""
TILE = 96
"""Longest side that is looked at at once: the tiles of a larger image have 48 to 96 pixels, near those of training."""


class CorruptionClassifier(nn.Module):
    """Looks at an image and its detail through a small network of timm.

    Args:
        trunk: name of a model of timm, built from scratch.
        options: arguments of that model.

    Raises:
        RefineWrapError: timm has no such model, or the options are not its.
    """

    def __init__(self, trunk: str, options: Mapping[str, Any] | None = None) -> None:
        import timm

        super().__init__()
        self.trunk, self.options = trunk, dict(options or {})
        self.metrics: list[dict[str, Any]] = []
        """How it did on held-out photos, as its adapter tells."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.options.items()
        }
        try:
            self.network: nn.Module = timm.create_model(
                trunk, pretrained=False, num_classes=len(CLASSES), in_chans=6, **given
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise RefineWrapError(
                f"timm cannot build {trunk} with {self.options}: {error}",
                "a model of timm.list_models() and its arguments",
            ) from None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"trunk": self.trunk, "options": self.options}

    def forward(self, image: Tensor) -> Tensor:
        """Logits of `CLASSES`, (B, 3, H, W) in [0, 1] -> (B, 16), of the whole at once."""
        down, right = (max(LEAST - side, 0) for side in image.shape[-2:])
        if down or right:
            image = functional.pad(image, (0, right, 0, down), mode="replicate")
        logits: Tensor = self.network(torch.cat((image * 2 - 1, detail(image)), 1))
        return logits

    @torch.no_grad()
    def classify(self, image: Tensor) -> Tensor:
        """Shares of `CLASSES`, (B, 3, H, W) in [0, 1] -> (B, 16) that sum to 1: the mean of the logits over its tiles.

        Raises:
            ImageError: another shape or type, or values that are not finite.
        """
        check_image(image)
        logits = torch.stack([self(tile) for tile in tiles(image, TILE)])
        return logits.mean(0).softmax(1)


def corruption(shares: Tensor) -> Tensor:
    """The corruption that an image looks most like, (B, 16) -> (B,), the place in `CORRUPTIONS`: never clean."""
    return shares[:, : len(CORRUPTIONS)].argmax(1)


def load_classifier(source: str | Path, *, device: str | torch.device = "cpu") -> CorruptionClassifier:
    """Load a classifier, in evaluation mode.

    Args:
        source: a folder as `save_classifier` writes it, `"shipped:NAME"`, or `org/name` on the Hub.
        device: where to put it.

    Raises:
        CheckpointError: there is none, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    network, adapter = load_network(source, KIND, CorruptionClassifier, "classifier")
    network.metrics = adapter.metrics
    return network.to(device)


def save_classifier(folder: str | Path, network: CorruptionClassifier, **about: Any) -> Path:
    """Write a classifier as an adapter folder.

    Args:
        folder: made if it is missing; an adapter that is there is replaced as a whole.
        network: what to save.
        about: `recipe`, `metrics`, `data`, `licence` as in `refine_wrap.hub.Adapter`.

    Raises:
        CheckpointError: it cannot be saved: values that are not finite.
        OutputError: the folder cannot be written; an adapter that was there is intact.
    """
    # Half precision suffices for what is convolved with; norms' statistics span too wide a range for it.
    tensors = {name: value.half() if value.ndim > 1 else value for name, value in network.state_dict().items()}
    return save_adapter(folder, Adapter(kind=KIND, config=network.config(), tensors=tensors, **about))
