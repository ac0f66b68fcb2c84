"""Tiny networks of every declared family, and some that nobody declared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_wrap import Backbone, load_backbone

WINDOWED = {"depths": [1], "num_heads": [2], "embed_dim": 8, "mlp_ratio": 2}

# name -> (architecture, options, what the declaration must say)
FAMILIES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "SwinIR x4": (
        "SwinIR",
        {**WINDOWED, "img_size": 16, "window_size": 8, "upscale": 4, "upsampler": "pixelshuffle", "img_range": 1.0},
        {"scale": 4, "multiple_of": 8},
    ),
    "SwinIR x2 light": (
        "SwinIR",
        {**WINDOWED, "img_size": 16, "window_size": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
        {"scale": 2, "multiple_of": 4},
    ),
    "SwinIR x1": (
        "SwinIR",
        {**WINDOWED, "img_size": 16, "window_size": 7, "upscale": 1, "upsampler": ""},
        {"scale": 1, "multiple_of": 7},
    ),
    "HAT x4": (
        "HAT",
        {
            **WINDOWED,
            "img_size": 16,
            "window_size": 8,
            "upscale": 4,
            "upsampler": "pixelshuffle",
            "compress_ratio": 2,
            "squeeze_factor": 4,
            "overlap_ratio": 0.5,
        },
        {"scale": 4, "multiple_of": 8},
    ),
    "DAT x2": (
        "DAT",
        {
            "img_size": 16,
            "embed_dim": 32,
            "split_size": [4, 8],
            "depth": [2],
            "num_heads": [2],
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
        {"scale": 2},
    ),
    "NAFNet": (
        "NAFNet",
        {"width": 4, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]},
        {"scale": 1, "multiple_of": 4},
    ),
    "RRDBNet x4": (
        "RRDBNet",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 32, "scale": 4},
        {"scale": 4, "tiling": "exact"},
    ),
    "RRDBNet x2": (
        "RRDBNet",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 32, "scale": 2},
        {"scale": 2, "multiple_of": 2},
    ),
    "RRDBNet x1": (
        "RRDBNet",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 32, "scale": 1},
        {"scale": 1, "multiple_of": 4},
    ),
    "EDSR x3": (
        "EDSR",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 3},
        {"scale": 3, "tiling": "exact"},
    ),
    "EDSR x4": ("EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4}, {"scale": 4}),
    "RCAN x2": (
        "RCAN",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_group": 1, "num_block": 1, "upscale": 2},
        {"scale": 2, "tiling": "approximate"},
    ),
    "SRVGG x4": ("SRVGGNetCompact", {"num_feat": 8, "num_conv": 2, "upscale": 4}, {"scale": 4, "tiling": "exact"}),
    "SRVGG x2": ("SRVGGNetCompact", {"num_feat": 8, "num_conv": 2, "upscale": 2}, {"scale": 2}),
    "MSRResNet x2": ("MSRResNet", {"num_feat": 8, "num_block": 2, "upscale": 2}, {"scale": 2, "tiling": "exact"}),
    "DnCNN": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 5, "act_mode": "R"}, {"scale": 1, "tiling": "exact"}),
    "DnCNN grey": ("DnCNN", {"in_nc": 1, "out_nc": 1, "nc": 8, "nb": 5, "act_mode": "BR"}, {"scale": 1, "channels": 1}),
    "SCUNet": ("SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}, {"scale": 1, "multiple_of": 64}),
    "Restormer": (
        "Restormer",
        {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1]},
        {"scale": 1, "multiple_of": 8},
    ),
    "CodebookRestorer": (
        "CodebookRestorer",
        {
            "nf": 32,
            "ch_mult": [1, 1, 1],
            "res_blocks": 1,
            "attn_resolutions": [4],
            "emb_dim": 8,
            "codebook_size": 16,
            "hq_codebook_size": 16,
            "dim": 16,
            "heads": 2,
            "layers": 1,
            "mlp": 16,
            "connect": [8, 16],
        },
        {"scale": 1, "multiple_of": 4, "value_range": (-1.0, 1.0)},
    ),
}
FROM_BASICSR = {"EDSR", "RCAN", "MSRResNet"}


def family_backbone(name: str) -> Backbone:
    """A tiny backbone of a declared family; skips where the package that has it is not installed."""
    import pytest

    arch, options, _ = FAMILIES[name]
    if arch in FROM_BASICSR and importlib.util.find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    if arch == "Restormer" and importlib.util.find_spec("spandrel_extra_arches") is None:
        pytest.skip("spandrel_extra_arches is not installed")
    torch.manual_seed(0)
    return load_backbone(arch, options=options)


class Stride4(nn.Module):
    """Fails on sizes that are no multiple of 4, as many published networks do; has norm statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 3, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.norm(self.down(x)))


class Upscaler(nn.Module):
    """x2 or x3 of any size."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3 * scale**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=float(self.scale), mode="bilinear")
        return base + F.pixel_shuffle(self.body(x), self.scale)


class SwinIR(nn.Module):
    """Bears the name of a declared class and is nothing like it: it must be probed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, grey: Tensor) -> Tensor:
        return self.layer(grey)


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], dict[str, object]]] = {
    "stride 4": (Stride4, {"scale": 1, "multiple_of": 4, "channels": 3}),
    "upscaler x2": (lambda: Upscaler(2), {"scale": 2, "multiple_of": 1}),
    "upscaler x3": (lambda: Upscaler(3), {"scale": 3, "multiple_of": 1}),
    "grey impostor": (SwinIR, {"scale": 1, "channels": 1}),
    "no parameters": (nn.Identity, {"scale": 1, "multiple_of": 1}),
}


def backbone(name: str) -> Backbone:
    """Any of the above by name."""
    if name in FAMILIES:
        return family_backbone(name)
    torch.manual_seed(0)
    return Backbone(UNKNOWN[name][0]()).eval()
