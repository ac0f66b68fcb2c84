"""Real checkpoints, wrapped, on real photos.

What the wrapper changes untrained (nothing), what tiles change, what the refiner costs.

python benchmarks/real_weights.py SHARED [--polyu N] [--threads N]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import side_by_side, write

from refine_wrap import Picture, RefineWrapper, load_backbone, read_image
from refine_wrap.restore import plan_for

# checkpoint, tile, PolyU crops too, side of the input at which times are taken
BACKBONES = {
    "realesr-animevideov3.fp16.safetensors": (128, True, 256),
    "dncnn_color_15.safetensors": (192, True, 256),
    "RealESRGAN_x4plus.fp16.safetensors": (256, False, 96),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--polyu", type=int, default=100, help="how many of the PolyU crops, spread evenly")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help="one checkpoint, by a part of its name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    photos = sorted((options.shared / "data/real_lq/RealSRSet").glob("*.png"))
    crops = sorted((options.shared / "data/paired/polyu").glob("*_real.JPG"))[:: max(1, 100 // max(options.polyu, 1))]
    for name, (tile, with_polyu, side) in BACKBONES.items():
        if options.only and options.only not in name:
            continue
        images = photos + (crops[: options.polyu] if with_polyu else [])
        write(f"real_weights_{name.split('.')[0]}", measure(options.shared / "weights" / name, images, tile, side))


@torch.inference_mode()
def measure(checkpoint: Path, images: list[Path], tile: int, side: int) -> dict[str, Any]:
    backbone = load_backbone(checkpoint)
    lite = RefineWrapper(backbone).eval()
    ornet = RefineWrapper(backbone, refiner="ornet").eval()
    plan = plan_for(lite, 4096, 4096, tile)
    rows = []
    for path in images:
        image = read_image(path).tensor()
        bare = backbone(image)
        whole = Picture(np.zeros((*bare.shape[-2:], 3), np.uint8))
        whole.put(0, 0, bare)  # rounded to 8 bits, as files are; `restore` is the whole way from the file
        tiled = lite.restore(path, tile=tile)
        row = {
            "image": path.name,
            "size": list(image.shape[-2:]),
            "unchanged": bool(torch.equal(lite(image), bare)),
            "in_tiles": max(image.shape[-2:]) > plan.tile,
            "tiles_differ_by": int(abs(whole.pixels.astype(int) - tiled.pixels).max()),
        }
        rows.append(row)
        print(row, flush=True)
    sample = torch.rand(1, 3, side, side)
    restored = backbone(sample)
    times = side_by_side(
        5,
        backbone=lambda: backbone(sample),
        with_lite=lambda: lite(sample),
        with_ornet=lambda: ornet(sample),
        lite=lambda: lite.refiner(restored),
        ornet=lambda: ornet.refiner(restored),
    )
    return {
        "checkpoint": checkpoint.name,
        "images": len(rows),
        "all_unchanged": all(row["unchanged"] for row in rows),
        "largest_tile_difference_of_255": max(row["tiles_differ_by"] for row in rows),
        "tile": tile,
        "halo": plan.halo,
        "receptive_radius": plan.receptive_radius,
        "images_in_tiles": sum(row["in_tiles"] for row in rows),
        "time": {
            "input": [side, side],
            "seconds": times,
            "wrapped_over_bare": {k: times[f"with_{k}"] / times["backbone"] for k in ("lite", "ornet")},
            "refiner_share_of_backbone": {k: times[k] / times["backbone"] for k in ("lite", "ornet")},
        },
        "rows": rows,
    }


if __name__ == "__main__":
    main()
