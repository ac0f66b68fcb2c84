"""Mask generators on disk: an adapter folder of kind masks, one on the Hub, or a published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..backbone.checkpoint import SUFFIXES
from ..backbone.load import locate
from ..hub import TENSORS, Adapter, load_network, save_adapter
from .masks import FrequencyMaskGenerator, mask_generator_from_published

KIND = "masks"


def load_mask_generator(
    source: str | Path | FrequencyMaskGenerator, *, device: str | torch.device = "cpu"
) -> FrequencyMaskGenerator:
    """Load a mask generator, in evaluation mode; its `scorers` are those that it was trained on, as far as is known.

    Args:
        source: one of
            a folder as `save_mask_generator` writes it, `"shipped:NAME"`, or `org/name` on the Hub;
            a published checkpoint, `.safetensors`, `.pth` or `.pkl`, which may be `hf://org/name/file` too;
            a `FrequencyMaskGenerator`.
        device: where to put it.

    Raises:
        CheckpointError: there is none, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    if isinstance(source, FrequencyMaskGenerator):
        return source.eval().to(device)
    text = str(source)
    file = Path(text.rpartition("@")[0] or text if text.startswith("hf://") else text)
    if file.suffix.lower() in SUFFIXES and file.name != TENSORS and not file.is_dir():
        return mask_generator_from_published(locate(source)[0]).to(device)
    generator, adapter = load_network(source, KIND, FrequencyMaskGenerator, "mask generator")
    generator.scorers = tuple(adapter.scorers)
    factors = ((adapter.recipe or {}).get("supervision") or {}).get("factors") or ()
    if len(factors) == generator.images - 1:
        generator.factors = tuple(factors)
    return generator.to(device)


def save_mask_generator(folder: str | Path, generator: FrequencyMaskGenerator, **about: Any) -> Path:
    """Write a mask generator as an adapter folder.

    Args:
        folder: made if it is missing; an adapter that is there is replaced as a whole.
        generator: what to save.
        about: `strength` (the one to use unasked), `recipe`, `scorers`, `metrics`, `data`, `licence` as in
            `refine_wrap.hub.Adapter`. `scorers` are the generator's own unless given.

    Raises:
        CheckpointError: it cannot be saved: values that are not finite.
        OutputError: the folder cannot be written; an adapter that was there is intact.
    """
    about = {"scorers": list(generator.scorers), **about}
    adapter = Adapter(kind=KIND, config=generator.config(), tensors=dict(generator.state_dict()), **about)
    return save_adapter(folder, adapter)
