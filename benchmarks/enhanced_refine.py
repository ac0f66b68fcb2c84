"""Does a refiner gain from enhanced ground truth? Against pristine photos, and no score without a reference takes part.

    python benchmarks/enhanced_refine.py SHARED --photos FOLDER --held-out FOLDER [--work FOLDER] [--level 1|2|3]
        [--steps N] [--only RUN ...] [--masks SOURCE] [--sr SOURCE] [--threads N]

Of both folders `make_flawed` makes flawed ground truths and noisy inputs made of those. Training sees only these; what
comes out for the held-out inputs is compared with the pristine photos. The runs differ in one thing each: the refiner's
target, what it is shown, its size; and the backbone itself is trained on enhanced ground truths, as an upper bound.
Inputs of other degradations (a strong blur, little noise) show what happens beside the training data.
--work keeps sets and runs, and goes on with them.
The picture shows photos of SHARED/data/photos: pristine, flawed, input, backbone, and refined at strength 1 by the runs
"flawed ground truth" and "enhanced".
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import write, write_pictures
from torch import Tensor, nn

from refine_wrap import Recipe, RefineWrapper, load_backbone, read_image
from refine_wrap.degradation import Degradation
from refine_wrap.evaluation import full_reference, make_flawed
from refine_wrap.folder import list_images
from refine_wrap.supervision import enhance
from refine_wrap.training import finetune

CROP = 256
STRENGTHS = (0.0, 0.3, 0.6, 1.0)
METRICS = ("PSNR", "SSIM", "FSIM")
BACKBONE = "shipped:demo_denoiser"
SHOWN, PICTURED = 96, ("flawed ground truth", "enhanced")
"""Side of the photos in the picture, and the runs that it shows."""
OTHER_INPUTS = {
    "blur of sigma 2.5": Degradation.model_validate({"blur": {"sigma": [2.5, 2.5]}}),
    "noise of sigma 9": Degradation.model_validate({"noise": {"sigma": [9, 9]}}),
}
"""Out of distribution, as paper 1 has it."""
HELD_OUT = "as trained"
KINDS = (HELD_OUT, *OTHER_INPUTS)
ENHANCED: dict[str, Any] = {"supervision": {"input": "backbone"}}
RUNS: dict[str, dict[str, Any]] = {
    "flawed ground truth": {},
    "enhanced": ENHANCED,
    "enhanced, shown the ground truth": {"supervision": {"input": "ground_truth"}},
    "enhanced, shown both": {"supervision": {"input": "both"}},
    "enhanced, and faithful": {"supervision": {"input": "backbone", "fidelity": {"l1": 0.5}}},
    "enhanced, ornet-small": {**ENHANCED, "refiner": {"preset": "ornet-small"}},
    "enhanced, ornet": {**ENHANCED, "refiner": {"preset": "ornet"}},
    "backbone trained on enhanced": {"objective": "restore"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--level", type=int, choices=(1, 2, 3), default=3, help="of the flaws")
    parser.add_argument("--limit", type=int, default=24, help="held-out photos")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", action="append", choices=RUNS)
    parser.add_argument("--masks", default="shipped:masks")
    parser.add_argument("--sr", default="shipped:sr_x2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        study = Study(options, options.work or Path(temporary))
        backbone = load_backbone(BACKBONE)
        found, shown = {"backbone alone": study.measure(backbone)}, [backbone]
        for name in options.only or RUNS:
            model = study.trained(name)
            found[name] = study.measure(model)
            shown += [partial(model, strength=1.0)] * (name in PICTURED)
            print(name, {at: round(row[HELD_OUT]["PSNR"], 3) for at, row in found[name].items()}, flush=True)
        write_pictures(f"enhanced_refine_level{options.level}", study.rows(shown))
    about = {key: getattr(options, key) for key in ("level", "steps", "masks", "sr", "limit")}
    write(f"enhanced_refine_level{options.level}", {**about, "crop": CROP, "backbone": BACKBONE, "runs": found})


class Study:
    """The sets, the runs and their figures."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options, self.place = options, place
        self.level = f"level{options.level}"
        make_flawed(options.photos, place / "train", crop=CROP, grid=True)
        make_flawed(options.held_out, place / HELD_OUT, crop=CROP)
        for name, degradation in OTHER_INPUTS.items():
            make_flawed(options.held_out, place / name, crop=CROP, degradation=degradation)
        self.metrics = [full_reference(name) for name in METRICS]
        squeeze = options.shared / "weights/squeezenet1_1_caffe.fp16.safetensors"
        self.metrics.append(full_reference("squeeze", file=squeeze))

    def trained(self, name: str) -> nn.Module:
        """The model of one run, trained now or before."""
        changes = RUNS[name]
        output = self.place / "runs" / self.level / name.replace(", ", "_").replace(" ", "_")
        truths = self.place / "train/flawed_gt" / self.level
        if changes.get("objective") == "restore":
            enhanced = self.place / "enhanced" / self.level
            enhance(truths, enhanced, masks=self.options.masks, sr=self.options.sr, strength=1.0)
            truths = enhanced
        values: dict[str, Any] = {
            "version": 1,
            "name": "study",
            "objective": "refine",
            "backbone": {"weights": BACKBONE},
            "data": {
                "train": {"gt": [str(truths)], "lq": [str(self.place / "train/input" / self.level)]},
                "crop": 96,
                "samples_per_image": 1,
                "variants": 4,
            },
            "train": {
                "steps": self.options.steps,
                "batch_size": 8,
                "learning_rate": 5e-4,
                "final_learning_rate": 1e-6,
                "warmup_steps": 100,
                "gradient_clip": 1.0,
                "ema": 0.998,
                "channels_last": True,
            },
            "losses": {"charbonnier": 1.0, "fft": 0.02},
            "output": str(output),
            **changes,
        }
        if "supervision" in changes:
            sources = {"sr": self.options.sr, "masks": self.options.masks}
            values["supervision"] = {**changes["supervision"], **sources}
        if values["objective"] == "refine":
            values["backbone_cache"] = {"keep": "disk"}
            # The same crops in every run: their variants are made once.
            (self.place / "variants").mkdir(exist_ok=True)
            output.mkdir(parents=True, exist_ok=True)
            if not (output / "variants").is_symlink():
                (output / "variants").symlink_to((self.place / "variants").resolve())
        made = finetune(Recipe.from_dict(values))
        if values["objective"] == "restore":
            return load_backbone(str(next(made.glob("*.safetensors"))))
        return RefineWrapper.from_pretrained(made)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
        """Mean figures against the pristine photos, by strength and by kind of input."""
        if not isinstance(model, RefineWrapper):
            return {"alone": {kind: self.figures(model, kind) for kind in KINDS}}
        return {
            f"strength {at}": {kind: self.figures(partial(model, strength=at), kind) for kind in KINDS}
            for at in STRENGTHS
        }

    @torch.no_grad()
    def rows(self, models: list[Callable[[Tensor], Tensor]]) -> list[list[Tensor]]:
        """What the picture shows."""
        place = self.place / "shown"
        make_flawed(self.options.shared / "data/photos", place, crop=SHOWN, downscale=2)
        rows = []
        for path in list_images(place / "pristine"):
            truth, low = (read_image(place / kind / self.level / path.name).tensor() for kind in ("flawed_gt", "input"))
            rows.append([read_image(path).tensor(), truth, low, *(model(low) for model in models)])
        return rows

    def figures(self, model: Callable[[Tensor], Tensor], kind: str) -> dict[str, float]:
        rows = []
        for path in list_images(self.place / kind / "input" / self.level)[: self.options.limit]:
            output = model(read_image(path).tensor()).clamp(0, 1)
            pristine = read_image(self.place / kind / "pristine" / path.name).tensor()
            rows.append([float(metric(output, pristine)) for metric in self.metrics])
        return {metric.name: mean(row[i] for row in rows) for i, metric in enumerate(self.metrics)}


if __name__ == "__main__":
    main()
