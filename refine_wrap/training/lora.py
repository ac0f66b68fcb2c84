"""LoRA: a backbone is adapted by small matrices beside its layers, and these are merged into its weights at the end.

    names = add_lora(backbone, rank=8)     # in place: the network keeps its class, its other weights are frozen
    lora_weights(backbone)                 # a module of what is trained
    plain = merged(backbone)               # a copy with the published names, as fast as before

A linear layer W x becomes W x + (alpha / rank) B A x, with A of `rank` rows drawn at random and B zero, so that nothing
changes at the start (Hu et al., "LoRA", arXiv 2106.09685). Of a convolution, A is a convolution of the same kernel into
`rank` channels and B one of 1x1. The layers are peft's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..backbone import Backbone
from ..backbone.checkpoint import check_finite
from ..errors import CheckpointError, RefineWrapError

ADAPTER = "default"
"""peft's name for the only set of matrices that we put on."""
SHOWN = 8


def lora_targets(backbone: Backbone, patterns: Sequence[str] | None = None) -> list[str]:
    """The names of the layers that LoRA goes on.

    Only plain linear layers and 2-D convolutions can take it; others are passed over where a pattern takes both.

    Args:
        backbone: without LoRA.
        patterns: as `Spec.lora`; None: those that the backbone declares.

    Raises:
        RefineWrapError: a pattern is no regular expression, or names no layer that can take LoRA.
    """
    refused: dict[str, str] = {}
    able: list[str] = []
    for name, layer in backbone.module.named_modules():
        reason = _unable(layer)
        if reason is None:
            able.append(name)
        elif reason:
            refused[name] = reason
    chosen: set[str] = set()
    for pattern in backbone.spec.lora if patterns is None else patterns:
        try:
            ends = re.compile(rf"(?:.*\.)?(?:{pattern})")
        except re.error as error:
            raise RefineWrapError(f"The LoRA target {pattern!r} is no regular expression: {error}") from None
        found = [name for name in able if ends.fullmatch(name)]
        if not found:
            unfit = [f"{name} {reason}" for name, reason in refused.items() if ends.fullmatch(name)]
            raise RefineWrapError(
                f"The LoRA target {pattern!r} names no layer of {backbone.spec.family} that LoRA can go on"
                + (f": {unfit[0]}" if unfit else ""),
                f"one of {', '.join(_kinds(able))}" if able else "a network with linear layers or 2-D convolutions",
            )
        chosen.update(found)
    return [name for name in able if name in chosen]


def add_lora(
    backbone: Backbone, *, rank: int = 8, alpha: float | None = None, targets: Sequence[str] | None = None
) -> list[str]:
    """Put LoRA on a backbone's layers, in place; returns their names.

    The output is what it was, bit for bit. All the network's own parameters are frozen; the new ones are float32, drawn
    from torch's generator. Until `merged`, names in the network's state dict and its hashes are not the published ones.

    Args:
        backbone: changed in place; its class stays.
        rank: rows of A, at least 1.
        alpha: what is learned counts alpha / rank times; None: once.
        targets: patterns of layer names; None: those of `backbone.spec.lora`.

    Raises:
        RefineWrapError: peft is not installed, the backbone has LoRA already, or a pattern names no layer.
    """
    peft = _peft()
    if rank < 1:
        raise RefineWrapError(f"The rank of LoRA is {rank}", "at least 1")
    if _lora_layers(backbone.module):
        raise RefineWrapError("The backbone has LoRA already", "a backbone without it", "merge it first: merged(...)")
    names = lora_targets(backbone, targets)
    if not names:
        raise RefineWrapError("No LoRA targets are given", "at least one pattern of layer names")
    # A regular expression of whole names: peft would take each name of a list as the end of others, too.
    whole = "|".join(map(re.escape, names))
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=whole)
    peft.inject_adapter_in_model(config, backbone.module, ADAPTER)
    added = _lora_layers(backbone.module)
    if list(added) != names:
        raise RefineWrapError(f"peft put LoRA on {len(added)} layers", f"on the {len(names)} that were named")
    backbone.requires_grad_(False)
    for parameter in lora_weights(backbone).parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return names


def lora_weights(backbone: Backbone) -> nn.Module:
    """What LoRA trains as a module of its own, whose state dict is `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.

    It holds the very parameters of the backbone: loading into it, or training it, changes the backbone.
    """
    view = nn.Module()
    for name, layer in _lora_layers(backbone.module).items():
        for part in ("lora_A", "lora_B"):
            place = view
            for step in f"{name}.{part}".split("."):
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.register_parameter("weight", getattr(layer, part)[ADAPTER].weight)
    return view


@contextmanager
def without_lora(backbone: Backbone) -> Iterator[None]:
    """Inside, the backbone is what it was before `add_lora`. For evaluation, not around a backward pass."""
    layers = _lora_layers(backbone.module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(backbone: Backbone) -> Backbone:
    """A copy of the backbone with LoRA added into its own weights: the same class, names, shapes and speed as before.

    Its output differs from that of the backbone with LoRA by rounding alone.
    """
    from ..quality.head import take_off

    plain = copy.deepcopy(backbone)
    take_off(plain)
    for name, layer in _lora_layers(plain.module).items():
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(plain.module.get_submodule(parent), leaf, layer.get_base_layer())
    if hasattr(plain.module, "peft_config"):  # peft's note about what it put on
        del plain.module.peft_config
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return plain


def save_lora(backbone: Backbone, folder: str | Path) -> Path:
    """Write LoRA alone, as peft keeps it: `adapter_model.safetensors` and `adapter_config.json`.

    `peft.PeftModel.from_pretrained(load_backbone(...).module, folder)` puts it onto the network that it was trained on.

    Raises:
        CheckpointError: the backbone has no LoRA, or it is not finite.
        OutputError: the folder cannot be written.
    """
    import json

    from safetensors.torch import save

    from ..folder import atomic_path

    state = lora_weights(backbone).state_dict()
    if not state:
        raise CheckpointError("The backbone has no LoRA to save", "one that add_lora has changed")
    # peft's PeftModel keeps the network under base_model.model.
    tensors = {f"base_model.model.{name}": value.detach().cpu().clone().contiguous() for name, value in state.items()}
    check_finite(tensors, "do not keep this run")
    folder = Path(folder)
    config = backbone.module.peft_config[ADAPTER].to_dict()  # type: ignore[union-attr, index, operator]
    config |= {"base_model_name_or_path": backbone.source.get("weights"), "inference_mode": True}
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    with atomic_path(folder / "adapter_config.json") as temporary:
        temporary.write_text(json.dumps(_plain(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _plain(value: Any) -> Any:
    """peft's settings as JSON: its enumerations are strings, its sets are lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    return value if value is None or isinstance(value, (bool, int, float)) else str(getattr(value, "value", value))


def _unable(layer: nn.Module) -> str | None:
    """Why a layer cannot take LoRA: None if it can, "" for what is neither linear nor a convolution.

    peft trains grouped convolutions but cannot merge them, and leaves dilation and padding modes out of A. Of classes
    derived from these two, nobody knows what else they do with their weights.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return "is a transposed convolution" if isinstance(layer, nn.ConvTranspose2d) else ""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"is a {type(layer).__name__}"
    if "weight" not in layer._parameters:
        return "computes its weight from others"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            return "is a grouped convolution"
        if layer.dilation != (1, 1) or layer.padding_mode != "zeros":
            return "is a convolution with dilation or a padding mode"
    return None


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    """peft's layers by name."""
    # Nothing to find where peft was never imported, which takes seconds.
    import sys

    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _kinds(names: Sequence[str]) -> list[str]:
    """A few of the names, those that differ in a number alone shown once."""
    kinds = list(dict.fromkeys(re.sub(r"\d+", r"\\d+", name.replace(".", r"\.")) for name in names))
    return kinds if len(kinds) <= SHOWN else [*kinds[:SHOWN], "..."]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RefineWrapError(
            f"LoRA needs peft, which cannot be imported: {error}", "peft 0.14 or newer", "pip install 'peft>=0.14'"
        ) from None
    return peft
