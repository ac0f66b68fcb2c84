"""Perceptual losses: the distances of `feature_nets`, built of their sections of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..feature_nets import Dists, Lpips, Squeeze, Vgg

FEATURE_LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "vgg": lambda section: Vgg(section.layers, section.file, called="losses.vgg"),
    "lpips": lambda section: Lpips(section.net, section.file, called="losses.lpips"),
    "dists": lambda section: Dists(section.file, called="losses.dists"),
    "squeeze": lambda section: Squeeze(section.file, section.input, called="losses.squeeze"),
}
"""Each takes its section of the recipe and gives a frozen net: (output, target) -> (B,), float32."""
