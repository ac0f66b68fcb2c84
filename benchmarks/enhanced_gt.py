"""Is an enhanced ground truth better than the ground truth? On sets whose pristine photos are known.

    python benchmarks/enhanced_gt.py SHARED --photos FOLDER [--limit N] [--masks SOURCE ...] [--sr SOURCE] [--threads N]

From photos that nothing was trained on `make_flawed` makes flawed ground truths of three levels. Compared with the
pristine photo: the flawed ground truth, each variant, the plain average, and what the masks mix at several strengths.
No score without a reference takes part. The pristine photos themselves are enhanced too: they should stay as they are.
--masks may be given several times: mask generators of other numbers of rings, or of another weighting.
The picture shows photos of SHARED/data/photos, a row for each level: pristine, flawed, average, x4, enhanced.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import write, write_pictures
from torch import Tensor

from refine_wrap import load_backbone, read_image
from refine_wrap.evaluation import full_reference, make_flawed
from refine_wrap.folder import list_images
from refine_wrap.supervision import enhanced, load_mask_generator
from refine_wrap.supervision.variants import variants

CROP = 256
STRENGTHS = (0.1, 0.3, 0.5, 1.0)
METRICS = ("PSNR", "SSIM", "FSIM", "GMSD")
SHOWN, PHOTOS = 96, ("city-lossless.png", "dog-lossless.png")
"""Side, and names, of the photos in the picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--masks", action="append")
    parser.add_argument("--sr", default="shipped:sr_x2")
    parser.add_argument("--name", default="enhanced_gt", help="of the JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = load_backbone(options.sr)
    masks = options.masks or ["shipped:masks"]
    study = Study(masks, network, options.shared / "weights/squeezenet1_1_caffe.fp16.safetensors")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        photos.mkdir()
        every = list_images(options.photos)
        for number in range(min(options.limit, len(every))):
            path = every[number * len(every) // min(options.limit, len(every))]
            (photos / path.name).symlink_to(path.resolve())
        place = Path(temporary) / "set"
        make_flawed(photos, place, crop=CROP)
        for level in ("level1", "level2", "level3"):
            found[level] = study.run(place / "flawed_gt" / level, place / "pristine")
            print(level, {name: round(figures["PSNR"], 2) for name, figures in found[level].items()}, flush=True)
        found["pristine"] = study.run(place / "pristine", place / "pristine")
        print("pristine", {name: round(figures["PSNR"], 2) for name, figures in found["pristine"].items()})
        make_flawed(options.shared / "data/photos", Path(temporary) / "shown", crop=SHOWN, downscale=2)
        write_pictures(options.name, study.rows(Path(temporary) / "shown", *PHOTOS))
    about = {"photos": min(options.limit, len(every)), "crop": CROP, "masks": masks, "sr": options.sr}
    write(options.name, {**about, "levels": found})


class Study:
    """Mask generators and a super-resolver, measured."""

    def __init__(self, masks: list[str], network: Any, squeeze: Path) -> None:
        self.generators = {name: load_mask_generator(name) for name in masks}
        self.networks = variants(network)
        self.metrics = [full_reference(name) for name in METRICS]
        self.metrics.append(full_reference("squeeze", file=squeeze))

    @torch.no_grad()
    def run(self, gts: Path, pristines: Path) -> dict[str, dict[str, float]]:
        """Mean figures of each picture against the pristine photo, and the share of images better than the flawed."""
        rows: dict[str, list[list[float]]] = {}
        for path in list_images(gts):
            gt, pristine = (read_image(file).tensor() for file in (path, pristines / path.name))
            for name, image in self.pictures(gt).items():
                rows.setdefault(name, []).append([self.value(metric, image, pristine) for metric in self.metrics])
        figures = {}
        for name, values in rows.items():
            figures[name] = {m.name: mean(row[i] for row in values) for i, m in enumerate(self.metrics)}
            if name != "ground truth":
                pairs = zip(values, rows["ground truth"], strict=True)
                figures[name]["better by PSNR"] = mean(own[0] > flawed[0] for own, flawed in pairs)
        return figures

    def pictures(self, gt: Tensor) -> dict[str, Tensor]:
        made = torch.stack([network(gt) for network in self.networks], 1).clamp(0, 1)
        found = {"ground truth": gt}
        found |= {f"variant x{factor}": one for factor, one in zip((2, 3, 4), made.unbind(1), strict=True)}
        found["average"] = torch.cat((gt[:, None], made), 1).mean(1)
        for name, generator in self.generators.items():
            for strength in STRENGTHS:
                label = f"enhanced {strength}" + f", {name}" * (len(self.generators) > 1)
                found[label] = enhanced(gt, made, generator, strength).clamp(0, 1)
        return found

    @torch.no_grad()
    def rows(self, place: Path, *names: str) -> list[list[Tensor]]:
        """What the picture shows."""
        rows = []
        for name in names:
            for level in ("level1", "level2", "level3"):
                made = self.pictures(read_image(place / "flawed_gt" / level / name).tensor())
                shown = [made[label] for label in ("ground truth", "average", "variant x4")]
                enhanced_03 = next(image for label, image in made.items() if label.startswith("enhanced 0.3"))
                rows.append([read_image(place / "pristine" / name).tensor(), *shown, enhanced_03])
        return rows

    @staticmethod
    def value(metric: Any, image: Tensor, pristine: Tensor) -> float:
        return min(float(metric(image, pristine)), 100.0)  # equal pictures have an infinite PSNR, and no mean


if __name__ == "__main__":
    main()
