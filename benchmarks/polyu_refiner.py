"""A refiner behind `dncnn_color_15`, trained on PolyU's training scenes, measured on scenes that it has not seen.

    python benchmarks/polyu_refiner.py SHARED [--steps N]

Every fourth scene is a test scene. PolyU is non-commercial: nothing trained here is shipped.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write

from refine_wrap import Recipe, RefineWrapper, load_backbone, read_image
from refine_wrap.evaluation import Protocol
from refine_wrap.training import finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="keep the run here; it is resumed if it is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = options.shared / "weights" / "dncnn_color_15.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        test_scenes = split(options.shared / "data/paired/polyu", place)
        recipe = Recipe.load(
            Path(__file__).parent / "polyu_refiner.yaml",
            [
                f"backbone.weights={checkpoint}",
                *(
                    f"data.{part}.{kind}={place / folder / kind}"
                    for part, folder in (("train", "train"), ("validation", "test"))
                    for kind in ("gt", "lq")
                ),
                f"train.steps={options.steps}",
                f"output={options.output or place / 'run'}",
            ],
        )
        adapter = finetune(recipe)
        wrapper = RefineWrapper.from_pretrained(adapter, backbone=load_backbone(checkpoint))
        results = measure(wrapper, place / "test")
    write("polyu_refiner", {"steps": options.steps, "test_scenes": test_scenes, **results})


def split(polyu: Path, place: Path) -> list[str]:
    """Links of PolyU's pairs under train/ and test/, split by scene: the file's name before its crop number."""
    scenes: dict[str, list[str]] = {}
    for path in sorted(polyu.glob("*_mean.JPG")):
        stem = path.name.removesuffix("_mean.JPG")
        scenes.setdefault(re.sub(r"_*\d+$", "", stem), []).append(stem)
    test = sorted(scenes)[::4]
    for scene, stems in scenes.items():
        for stem in stems:
            for kind, ending in (("gt", "mean"), ("lq", "real")):
                folder = place / ("test" if scene in test else "train") / kind
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{stem}.jpg").symlink_to((polyu / f"{stem}_{ending}.JPG").resolve())
    return test


def measure(wrapper: RefineWrapper, folder: Path) -> dict[str, Any]:
    """PSNR and SSIM of input, backbone and refiner over the test pairs."""
    psnr, ssim = Protocol("PSNR"), Protocol("SSIM")
    rows = []
    for path in sorted((folder / "lq").iterdir()):
        gt = read_image(folder / "gt" / path.name).tensor()
        with wrapper.disabled():
            bare = wrapper.restore(path).tensor()
        images = {"input": read_image(path).tensor(), "backbone": bare, "refined": wrapper.restore(path).tensor()}
        row: dict[str, Any] = {"image": path.name}
        for name, image in images.items():
            row |= {f"{name}_psnr": float(psnr(image, gt)), f"{name}_ssim": float(ssim(image, gt))}
        rows.append(row)
    keys = [key for key in rows[0] if key != "image"]
    gains = [row["refined_psnr"] - row["backbone_psnr"] for row in rows]
    return {
        "protocol": [str(psnr), str(ssim)],
        "images": len(rows),
        "mean": {key: sum(row[key] for row in rows) / len(rows) for key in keys},
        "improved": sum(gain > 0 for gain in gains),
        "worst_gain": min(gains),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
