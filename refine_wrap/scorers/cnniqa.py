"""CNNIQA: a small network that looks at patches of the grey image (Kang et al. 2014)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone.checkpoint import read_checkpoint
from .core import Scorer, frozen

_PATCH = 32
_AT_ONCE = 512
"""Patches that the network sees at once: the output of its convolution takes 135 kB each."""
_GREY = (0.299, 0.587, 0.114)


class CNNIQA(Scorer):
    """The mean over all patches of 32x32 without overlap of a predicted DMOS, 0 to 100; lower is better.

    What is left at the right and bottom is not looked at. (The published code also leaves out the last whole row and
    column of patches where the side is a multiple of 32, and rounds the grey image to 8 bits.)

    Args:
        file: the weights trained on LIVE: `.safetensors`, or the published state dict named `.pth`.

    Raises:
        CheckpointError: the file cannot be read, or holds other weights.
    """

    name = "cnniqa"
    differentiable = True
    worst = 100.0
    best = 0.0
    smallest = _PATCH
    licence = "none stated; research"

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.conv1 = nn.Conv2d(1, 50, 7)
            self.fc1, self.fc2, self.fc3 = nn.Linear(100, 800), nn.Linear(800, 800), nn.Linear(800, 1)
        frozen(self, read_checkpoint(Path(file).expanduser())[0])

    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,)."""
        image = self.checked(image)
        batch, _, height, width = image.shape
        down, across = height // _PATCH, width // _PATCH
        rows = max(1, _AT_ONCE // (batch * across))
        total = image.new_zeros(batch)
        with torch.autocast(image.device.type, enabled=False):
            for row in range(0, down, rows):
                strip = image[:, :, row * _PATCH : min(row + rows, down) * _PATCH, : across * _PATCH]
                weights = strip.new_tensor(_GREY).view(1, 3, 1, 1)
                patches = _patches((strip * weights).sum(dim=1))
                patches = patches.flatten(0, 1)
                scores = [self._score(patches[n : n + _AT_ONCE]) for n in range(0, len(patches), _AT_ONCE)]
                total = total + torch.cat(scores).view(batch, -1).sum(dim=1)
        return total / (down * across)

    def _score(self, patches: Tensor) -> Tensor:
        """(N, 32, 32) grey in [0, 1] -> (N,)."""
        features = self.conv1(_normalised(patches.unsqueeze(1))).flatten(2)
        pooled = torch.cat((features.amax(dim=2), features.amin(dim=2)), dim=1)
        scores: Tensor = self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(pooled)))))
        return scores.squeeze(1)


def _patches(grey: Tensor) -> Tensor:
    """(B, H, W), sides multiples of 32 -> (B, N, 32, 32)."""
    batch, height, width = grey.shape
    return grey.reshape(batch, height // _PATCH, _PATCH, width // _PATCH, _PATCH).transpose(2, 3).flatten(1, 2)


def _normalised(patches: Tensor) -> Tensor:
    """(N, 1, 32, 32): each pixel less the mean of the 3x3 around it, over their deviation + 1, in each patch alone."""
    padded = functional.pad(patches, (1, 1, 1, 1), mode="replicate")
    mean = functional.avg_pool2d(padded, 3, 1)
    variance = functional.avg_pool2d(padded.square(), 3, 1) - mean.square()
    return (patches - mean) / (variance.clamp(min=1e-12).sqrt() + 1)  # at 0, a root has no gradient
