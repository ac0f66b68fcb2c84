"""Reconstructors on disk: an adapter folder of kind reconstructor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import RefineWrapError
from ..hub import Adapter, load_network, save_adapter
from .core import Reconstructor
from .ddim import DDIM
from .mae import MAE
from .vae import VanillaVAE
from .vqvae import VQVAE, VQVAE2

KIND = "reconstructor"
RECONSTRUCTORS: dict[str, type[Reconstructor]] = {each.kind: each for each in (VanillaVAE, VQVAE, VQVAE2, MAE, DDIM)}
"""By the names that recipes and adapters call them."""


def build_reconstructor(kind: str, **options: Any) -> Reconstructor:
    """A new reconstructor by its name, from its constructor's arguments.

    Raises:
        RefineWrapError: no such name, the arguments do not fit, or the package that it needs is not installed.
    """
    if kind not in RECONSTRUCTORS:
        raise RefineWrapError(f"There is no reconstructor {kind!r}", " or ".join(RECONSTRUCTORS))
    try:
        return RECONSTRUCTORS[kind](**options)
    except TypeError as error:
        raise RefineWrapError(f"{kind} cannot be built: {error}", "the arguments that it documents") from None


def load_reconstructor(source: str | Path, *, device: str | torch.device = "cpu") -> Reconstructor:
    """Load a reconstructor, in evaluation mode.

    Args:
        source: a folder as `save_reconstructor` writes it, `"shipped:NAME"`, or `org/name` on the Hub.
        device: where to put it.

    Raises:
        CheckpointError: there is none, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    network, _ = load_network(source, KIND, build_reconstructor, "reconstructor")
    return network.to(device)


def save_reconstructor(folder: str | Path, network: Reconstructor, **about: Any) -> Path:
    """Write a reconstructor as an adapter folder.

    Args:
        folder: made if it is missing; an adapter that is there is replaced as a whole.
        network: what to save.
        about: `recipe`, `metrics`, `data`, `licence` as in `refine_wrap.hub.Adapter`.

    Raises:
        CheckpointError: it cannot be saved: values that are not finite.
        OutputError: the folder cannot be written; an adapter that was there is intact.
    """
    config = {"kind": network.kind, **network.config()}
    return save_adapter(folder, Adapter(kind=KIND, config=config, tensors=dict(network.state_dict()), **about))
