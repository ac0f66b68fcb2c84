"""What a quality head costs, for each family: multiply-adds and time as a share of the backbone's.

    python benchmarks/head_cost.py [--side N] [--runs N] [--threads N]

Networks of the sizes that are published, with random weights, which cost the same. Time is that of a forward pass with
the head over one without, interleaved; the median of several.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import side_by_side, write

from refine_wrap import Recipe, RefineWrapper, load_backbone

NAFNET_GOPRO = {"width": 32, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}
DAT = {"upscale": 4, "split_size": [8, 32], "depth": [6] * 6, "num_heads": [6] * 6, "expansion_factor": 4.0}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "SwinIR-M x4": ("SwinIR", {}),
    "HAT x4": ("HAT", {}),
    "RRDB x4": ("RRDBNet", {"num_in_ch": 3, "num_out_ch": 3}),
    "EDSR x4": ("EDSR", {}),
    "NAFNet-GoPro-32": ("NAFNet", NAFNET_GOPRO),
    "DnCNN colour, 20 layers": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 64, "nb": 20, "act_mode": "R"}),
    "DAT x4": ("DAT", DAT),
    "RCAN x4": ("RCAN", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 20, "upscale": 4}),
    "MSRResNet x4": ("MSRResNet", {}),
    "SCUNet": ("SCUNet", {"in_nc": 3, "config": [4] * 7, "dim": 64}),
    "Restormer": ("Restormer", {}),
    "CodebookRestorer": ("CodebookRestorer", {}),
    "SRVGG x4 (animevideov3)": ("SRVGGNetCompact", {"num_feat": 64, "num_conv": 16, "upscale": 4, "act_type": "prelu"}),
}
RECIPES = {"SwinIR-M x4": "swinir_x4", "HAT x4": "hat_x4", "EDSR x4": "edsr_x4"}
"""Recipes that have the network's options."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the input")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for name, (arch, given) in NETWORKS.items():
        choice = Recipe.load(RECIPES[name]).backbone if name in RECIPES else None
        body = load_backbone(arch, options=given if choice is None else choice.options)
        wrapper = RefineWrapper(body, refiner=None, quality_head=True).eval()
        summary = wrapper.summary(options.side, options.side)
        image = torch.rand(1, 3, options.side, options.side)

        def steered(wrapper: RefineWrapper = wrapper, image: torch.Tensor = image) -> None:
            with torch.no_grad():
                wrapper(image, quality=0.9)

        def bare(body: Any = body, image: torch.Tensor = image) -> None:
            with torch.no_grad():
                body(image)

        times = side_by_side(options.runs, steered=steered, bare=bare)
        macs = summary["macs"]
        found[name] = {
            "parameters": summary["parameters"]["quality_head"],
            "backbone_macs": macs["backbone"],
            "head_macs": macs["quality_head"],
            "macs_share": macs["quality_head"] / macs["backbone"],
            "time_share": times["steered"] / times["bare"] - 1,
        }
        print(name, {key: round(value, 4) for key, value in found[name].items()}, flush=True)
    write("head_cost", {"side": options.side, "runs": options.runs, "networks": found})


if __name__ == "__main__":
    main()
