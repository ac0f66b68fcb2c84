"""Activation checkpointing: less memory for more time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(network: nn.Module) -> int:
    """Let the repeated blocks of a network keep their inputs alone, and compute their inside again going backward.

    The blocks are the outermost modules of a class that stands at least twice in `nn.Sequential`s and `nn.ModuleList`s
    of the network: SwinIR's RSTB, ESRGAN's RRDB, NAFNet's blocks. Values and gradients stay the same; names and state
    dict too.

    Returns:
        how many blocks; 0 for a plain chain of layers, which then keeps all as before.
    """
    counts = Counter(type(block) for block in _listed(network))
    blocks = list(_outermost(network, {kind for kind, count in counts.items() if count > 1}))
    for block in blocks:
        # As a method of its own: a deep copy of the network then has it bound to the copy.
        block.forward = MethodType(_forward, block)
    return len(blocks)


def _forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
    plain = type(self).forward
    if not torch.is_grad_enabled():
        return plain(self, *inputs, **options)
    return checkpoint(plain, self, *inputs, use_reentrant=False, **options)


def _listed(network: nn.Module) -> Iterator[nn.Module]:
    """The modules with parts of their own that stand in containers."""
    for container in network.modules():
        if isinstance(container, CONTAINERS):
            for module in container.children():
                if not isinstance(module, CONTAINERS) and any(True for _ in module.children()):
                    yield module


def _outermost(module: nn.Module, kinds: set[type[nn.Module]]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in kinds:
            yield child
        else:
            yield from _outermost(child, kinds)
