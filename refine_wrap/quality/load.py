"""Autoencoders on disk: an adapter folder of kind codebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..hub import Adapter, load_network, save_adapter
from .codebook import DualCodebookAutoencoder

KIND = "codebook"


def load_autoencoder(source: str | Path, *, device: str | torch.device = "cpu") -> DualCodebookAutoencoder:
    """Load an autoencoder, in evaluation mode.

    Args:
        source: a folder as `save_autoencoder` writes it, `"shipped:NAME"`, or `org/name` on the Hub.
        device: where to put it.

    Raises:
        CheckpointError: there is none, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    network, _ = load_network(source, KIND, DualCodebookAutoencoder, "autoencoder")
    return network.to(device)


def save_autoencoder(folder: str | Path, network: DualCodebookAutoencoder, **about: Any) -> Path:
    """Write an autoencoder as an adapter folder.

    Args:
        folder: made if it is missing; an adapter that is there is replaced as a whole.
        network: what to save.
        about: `recipe`, `scorers`, `metrics`, `data`, `licence` as in `refine_wrap.hub.Adapter`.

    Raises:
        CheckpointError: it cannot be saved: values that are not finite.
        OutputError: the folder cannot be written; an adapter that was there is intact.
    """
    return save_adapter(
        folder, Adapter(kind=KIND, config=network.config(), tensors=dict(network.state_dict()), **about)
    )
