"""The declared families: what is known of a network by its class.

To declare a family, add one entry to `FAMILIES`. The contract test (`tests/test_contract.py`) then tries to falsify it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .spec import Spec

Rename = Callable[[str], str]
Network = Any
"""A network of the family: which attributes it has is what the functions below rely on."""


@dataclass(frozen=True)
class Family:
    """One architecture, whoever's class implements it (BasicSR's, spandrel's, or its own repository's)."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes. A class of that name without the attributes that `spec` reads is not of the family."""
    spec: Callable[[nn.Module], Spec]
    published: Callable[[nn.Module], Rename] | None = None
    """Maps the names of this module's tensors to those of the published checkpoints, where they differ."""


def declared(module: nn.Module) -> Spec | None:
    """The spec of a module whose class is declared, else None."""
    family = family_of(module)
    return family.spec(module) if family else None


def family_of(module: nn.Module) -> Family | None:
    """The family of a module by its class, if the class has what the family's has."""
    for family in FAMILIES:
        if type(module).__name__ in family.classes:
            try:
                family.spec(module)
            except (AttributeError, IndexError, TypeError):
                continue  # another network of the same class name: it is probed like any other
            return family
    return None


def published_name(module: nn.Module) -> Rename:
    """The map from the names of a module's tensors to their published names; the identity for most."""
    family = family_of(module)
    return family.published(module) if family and family.published else lambda name: name


# LoRA goes on all linear and convolution layers but those that gate channels or make position tables. What a variant
# lacks stands beside what every variant has, so that each pattern names layers of every network of its family.
_ENDS = r"conv_(first|after_body|before_upsample|up\d|hr|last)(\.\d)?|upsample\.\d+"
_GROUP_ENDS = rf"layers\.\d+\.conv(\.\d)?|{_ENDS}"


def _swinir(m: Network) -> Spec:
    unshuffle = getattr(m, "start_unshuffle", 1)
    # BasicSR's class does not keep its window; its blocks do.
    window = m.layers[0].residual_group.blocks[0].window_size
    return Spec(
        "SwinIR",
        scale=m.upscale // unshuffle,
        multiple_of=window * unshuffle,
        minimum=window * unshuffle,
        channels=m.conv_first.in_channels // unshuffle**2,
        tap="conv_after_body",
        lora=(r"attn\.(qkv|proj)", r"mlp\.fc[12]", _GROUP_ENDS),
    )


def _hat(m: Network) -> Spec:
    return Spec(
        "HAT",
        scale=m.upscale,
        multiple_of=m.window_size,
        minimum=m.window_size,
        channels=m.conv_first.in_channels,
        tap="conv_after_body",
        lora=(r"(overlap_)?attn\.(qkv|proj)", r"mlp\.fc[12]", r"cab\.\d", _GROUP_ENDS),
    )


def _dat(m: Network) -> Spec:
    # The windows pad themselves; below 16 pixels its attention fails.
    return Spec(
        "DAT",
        scale=m.upscale,
        minimum=16,
        channels=m.conv_first.in_channels,
        tap="conv_after_body",
        lora=(r"attn\.(qkv|proj)", r"ffn\.fc[12]", _GROUP_ENDS),
    )


def _nafnet(m: Network) -> Spec:
    if not len(m.decoders):
        raise AttributeError("without decoders there is nothing of the family's to tap")
    return Spec(
        "NAFNet",
        multiple_of=2 ** len(m.encoders),
        channels=m.intro.in_channels,
        tap=f"decoders.{len(m.decoders) - 1}",
        lora=("conv[1345]", "intro|ending", r"downs\.\d", r"ups\.\d\.0"),  # conv2 is depthwise
    )


def _rrdb(m: Network) -> Spec:
    # BasicSR folds pixels into channels for scales below 4; its `scale` is already that of the whole network.
    folded = {1: 4, 2: 2}.get(m.scale, 1)
    return Spec(
        "ESRGAN",
        scale=m.scale,
        multiple_of=folded,
        minimum=2 * folded,
        channels=m.conv_first.in_channels // folded**2,
        half_ok=True,
        tiling="exact",
        tap="conv_body",
        lora=(r"rdb\d\.conv\d", r"conv_(first|body|up\d|hr|last)"),
    )


def _esrgan(m: Network) -> Spec:
    folded = m.shuffle_factor or 1
    return Spec(
        "ESRGAN",
        scale=m.scale // folded,
        multiple_of=folded,
        minimum=2 * folded,
        channels=m.model[0].in_channels // folded**2,
        half_ok=True,
        tiling="exact",
        tap=f"model.1.sub.{len(m.model[1].sub) - 1}",
        lora=(r"RDB\d\.conv\d\.0", r"model(\.1\.sub)?\.\d+"),
    )


def _esrgan_names(m: Network) -> Rename:
    """spandrel keeps ESRGAN in the layout of 2018; published checkpoints are in BasicSR's."""
    last = len(m.model[1].sub) - 1
    layers = max(int(name.split(".")[1]) for name, _ in m.named_parameters())
    fixed = {
        "model.0": "conv_first",
        f"model.1.sub.{last}": "conv_body",
        f"model.{layers - 2}": "conv_hr",
        f"model.{layers}": "conv_last",
    }
    fixed |= {f"model.{index}": f"conv_up{index // 3}" for index in range(3, layers - 2, 3)}

    def rename(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in fixed:
            return f"{fixed[stem]}.{leaf}"
        return re.sub(r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3.", name)

    return rename


def _edsr(m: Network) -> Spec:
    # The tail is one x3 or a few x2 shuffles; their product is the scale.
    scale = 1
    for layer in m.upsample:
        scale *= getattr(layer, "upscale_factor", 1)
    return Spec(
        "EDSR",
        scale=scale,
        channels=m.conv_first.in_channels,
        half_ok=True,
        tiling="exact",
        tap="conv_after_body",
        lora=(r"body\.\d+\.conv\d", _ENDS),
    )


def _rcan_basicsr(m: Network) -> Spec:
    spec = _edsr(m)
    return Spec(
        "RCAN",
        scale=spec.scale,
        channels=spec.channels,
        tap="conv_after_body",
        lora=(r"rcab\.\d", r"body\.\d+\.conv", _ENDS),
    )


def _rcan(m: Network) -> Spec:
    if hasattr(m, "conv_after_body"):
        return _rcan_basicsr(m)
    folded = getattr(m, "down_factor", 1) if getattr(m, "unshuffle_mod", False) else 1
    if folded != 1:
        raise AttributeError("an unshuffled RCAN is probed")
    return Spec(
        "RCAN",
        scale=m.scale,
        channels=m.head[-1].in_channels,
        tap=f"body.{len(m.body) - 1}",
        lora=(r"body\.\d+", r"head\.\d", r"tail\.(\d\.)?\d"),
    )


def _srvgg(m: Network) -> Spec:
    return Spec(
        "SRVGG",
        scale=m.upscale,
        channels=m.body[0].in_channels,
        half_ok=True,
        tiling="exact",
        tap=f"body.{len(m.body) - 2}",
        lora=(r"body\.\d+",),
    )


def _msrresnet(m: Network) -> Spec:
    return Spec(
        "MSRResNet",
        scale=m.upscale,
        channels=m.conv_first.in_channels,
        half_ok=True,
        tiling="exact",
        tap=f"body.{len(m.body) - 1}",
        lora=(r"body\.\d+\.conv\d", r"conv_(first|hr|last)|upconv\d"),
    )


def _dncnn(m: Network) -> Spec:
    first, last = m.model[0], m.model[-1]
    if first.in_channels != last.out_channels:
        raise AttributeError("FDnCNN takes a noise map as well; load_backbone gives it one")
    return Spec(
        "DnCNN", channels=first.in_channels, tiling="exact", tap=f"model.{len(m.model) - 2}", lora=(r"model\.\d+",)
    )


def _scunet(m: Network) -> Spec:
    return Spec(
        "SCUNet",
        multiple_of=64,
        minimum=64,
        channels=m.m_head[0].in_channels,
        half_ok=True,
        tap="m_up1",
        lora=(r"msa\.(embedding_layer|linear)", r"mlp\.\d", r"conv1_[12]|conv_block\.\d", r"m_(head|tail|down\d)\.\d+"),
    )


def _restormer(m: Network) -> Spec:
    if m.dual_pixel_task:
        raise AttributeError("the dual-pixel Restormer takes six channels")
    return Spec(
        "Restormer",
        multiple_of=8,
        minimum=8,
        channels=m.output.out_channels,
        tap="refinement",
        lora=(
            r"attn\.(qkv|project_out)",
            r"ffn\.project_(in|out)",
            r"patch_embed\.proj|output|reduce_chan_level\d",
            r"(up|down)\d_\d\.body\.0",
        ),
    )


def _codebook_restorer(m: Network) -> Spec:
    return Spec(
        "CodebookRestorer",
        multiple_of=m.stride,
        minimum=2 * m.stride,  # group norm needs two values
        value_range=(-1.0, 1.0),
        quality=m.conditioning is not None,
        tap=f"generator.blocks.{len(m.generator.blocks) - 3}",
        # What comes before the choice of codes has no gradient from the image, but for the statistics that AdaIN takes.
        lora=(r"(encoder|generator)\.blocks\.\d+(\.(conv\d?|conv_out|q|k|v|proj_out))?",),
    )


FAMILIES: tuple[Family, ...] = (
    Family("SwinIR", ("SwinIR",), _swinir),
    Family("HAT", ("HAT",), _hat),
    Family("DAT", ("DAT",), _dat),
    Family("NAFNet", ("NAFNet", "NAFNetLocal"), _nafnet),
    Family("ESRGAN", ("RRDBNet",), _rrdb),
    Family("ESRGAN", ("RRDBNet", "ESRGAN"), _esrgan, published=_esrgan_names),
    Family("EDSR", ("EDSR",), _edsr),
    Family("RCAN", ("RCAN",), _rcan),
    Family("SRVGG", ("SRVGGNetCompact",), _srvgg),
    Family("MSRResNet", ("MSRResNet",), _msrresnet),
    Family("DnCNN", ("DnCNN",), _dncnn),
    Family("SCUNet", ("SCUNet",), _scunet),
    Family("Restormer", ("Restormer",), _restormer),
    Family("CodebookRestorer", ("CodebookRestorer",), _codebook_restorer),
)
