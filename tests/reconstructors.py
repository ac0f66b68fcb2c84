"""Every kind of reconstructor, small."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from refine_wrap.reconstruction import Reconstructor
from refine_wrap.reconstruction.load import build_reconstructor

CODED: dict[str, Any] = {"channels": 16, "res_blocks": 1, "res_channels": 4, "width": 8, "codes": 32}
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"latent": 8, "channels": [8, 16, 16]},
    "vqvae": CODED,
    "vqvae2": CODED,
    "mae": {
        "size": 16,
        "patch": 4,
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "decoder_dim": 8,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "ddim": {"channels": [8, 16], "layers": 1, "attention": [1], "steps": 4},
}


def need(kind: str) -> None:
    """Skip where the package that a kind needs is missing."""
    if kind == "ddim" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed: pip install 'refine-wrap[ddim]'")


def small(kind: str, **options: Any) -> Reconstructor:
    """In evaluation mode, always with the same weights."""
    need(kind)
    torch.manual_seed(0)
    return build_reconstructor(kind, **{**SMALL[kind], **options}).eval()
