"""Does undertrained reconstruction teach super-resolution what unknown photos need, and which part of it hurts?

    python benchmarks/degraded_sr.py SHARED --photos FOLDER --held-out FOLDER --reconstructors RUN [RUN ...]
        --network edsr|swinir|rrdb --work FOLDER [--others RUN ...] [--only SET ...] [--seed N] [--steps N]
        [--base-steps N] [--limit N] [--real-limit N] [--threads N]

Of the photos several training sets are made, which differ in their low-quality side alone: bicubic, Real-ESRGAN's
degradation, each checkpoint of the runs of an undertrained reconstructor as the paper uses it, all of them mixed,
and what is done against the paper's loss, alone and together (guarded): low frequencies kept, a bound on the colour
difference, images shown to the network turned; with as many bicubic pairs too; and the runs of other reconstructors,
as published and guarded. On each a x4 network that was trained on bicubic pairs (or by others: rrdb, by LoRA)
is fine-tuned for the same steps, and evaluated against itself without: on held-out photos made smaller by bicubic, or
by degradations that no set has, and on real photos without ground truth.
Paper 3 (arXiv 2503.02767), table 2, whose PSNR falls in every row.
--work keeps sets, networks and outputs, and goes on with them.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import judges, progress, summary
from common import write

from refine_wrap import Picture, Recipe, RefineWrapper, load_backbone, read_image, write_image
from refine_wrap.degradation import Degradation
from refine_wrap.degradation.published import published
from refine_wrap.evaluation import Outputs, evaluate, full_reference, judge_validity
from refine_wrap.folder import list_images
from refine_wrap.reconstruction import degrade_folder
from refine_wrap.training import finetune

SCALE = 4
CROP = 256
"""Side of the middle of a held-out photo."""
REAL_SIDE = 160
"""Most input pixels of a side of a real photo: its middle."""
MAX_DELTA_E = 4.0
UNKNOWN = {
    "soft": {"blur": {"sigma": [2, 4]}, "noise": {"kind": "poisson-gaussian", "sigma": [2, 6]}},
    "passed on": {"shrink": [1.3, 2], "noise": {"sigma": [2, 8]}, "jpeg": {"quality": [50, 80]}},
}
"""Degradations beside the scale that no training set has."""
EDSR = {"num_feat": 32, "num_block": 8, "img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040]}
SWINIR = {"window_size": 8, "depths": [2, 2], "num_heads": [4, 4], "embed_dim": 32, "mlp_ratio": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "edsr": {"arch": "EDSR", "options": {"num_in_ch": 3, "num_out_ch": 3, "upscale": SCALE, **EDSR}},
    "swinir": {
        "arch": "SwinIR",
        "options": {"img_size": 32, "upscale": SCALE, "upsampler": "pixelshuffledirect", **SWINIR},
    },
    "rrdb": {"weights": "weights/RealESRGAN_x4plus.fp16.safetensors"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--reconstructors", type=Path, nargs="+", required=True, help="folders of training runs")
    parser.add_argument("--others", type=Path, nargs="+", default=[], help="folders of runs of other reconstructors")
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400, help="of a fine-tuning")
    parser.add_argument("--base-steps", type=int, default=2000, help="of the training on bicubic pairs before it")
    parser.add_argument("--only", action="append", help="training sets; all unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the fine-tunings")
    parser.add_argument("--limit", type=int, default=24, help="held-out photos")
    parser.add_argument("--real-limit", type=int, default=20, help="photos of RealSRSet")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study(options)
    sets = training_sets(options.reconstructors, options.others)
    outputs = {name: study.trained(name, kinds) for name, kinds in sets.items() if name in (options.only or sets)}
    found = study.evaluated({"without": study.base(), **outputs})
    about = {key: getattr(options, key) for key in ("network", "seed", "steps", "base_steps", "limit", "real_limit")}
    about |= {"crop": CROP, "max_delta_e": MAX_DELTA_E, "unknown": UNKNOWN}
    write(f"degraded_sr_{study.name}", {**about, "sets": {name: summary(each) for name, each in found.items()}})


def checkpoints_of(run: Path) -> dict[str, str]:
    """What a training run wrote at its steps, the first step first."""
    steps = sorted(int(place.name.removeprefix("step_")) for place in (run / "at").iterdir())
    return {f"{run.name} after {step} steps": str(run / f"at/step_{step}/reconstructor") for step in steps}


def training_sets(runs: list[Path], others: list[Path]) -> dict[str, list[str | Degradation]]:
    """The low-quality sides of each training set: the name of a published degradation, or one of ours."""
    checkpoints = {name: place for run in runs for name, place in checkpoints_of(run).items()}

    def painted(names: list[str], **more: Any) -> Degradation:
        return Degradation.model_validate({"scale": SCALE, "reconstruct": {"checkpoints": names, **more}})

    paper: dict[str, Any] = {"match": "none", "vary": False}
    every = list(checkpoints.values())
    guarded = painted(every, max_delta_e=MAX_DELTA_E)
    return {
        "bicubic": ["bicubic"],
        "Real-ESRGAN": ["realesrgan"],
        **{name: [painted([place], **paper)] for name, place in checkpoints.items()},
        **{f"{name}, guarded": [painted([place], max_delta_e=MAX_DELTA_E)] for name, place in checkpoints.items()},
        "all mixed": [painted(every, **paper)],
        "all mixed, half bicubic": [painted(every, **paper), "bicubic"],
        "all mixed, matched": [painted(every, vary=False)],
        "all mixed, bounded": [painted(every, **paper, max_delta_e=MAX_DELTA_E)],
        "all mixed, guarded": [guarded],
        "all mixed, guarded, half bicubic": [guarded, "bicubic"],
        **{f"{run.name} mixed": [painted(list(checkpoints_of(run).values()), **paper)] for run in others},
        **{
            f"{run.name} mixed, guarded": [painted(list(checkpoints_of(run).values()), max_delta_e=MAX_DELTA_E)]
            for run in others
        },
    }


class Study:
    """The sets, the networks and what they make of the held-out photos."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work
        self.choice = dict(NETWORKS[options.network])
        if "weights" in self.choice:
            self.choice["weights"] = str(options.shared / self.choice["weights"])
        self.name = options.network + (f"_seed{options.seed}" if options.seed else "")
        self.lora = options.network == "rrdb"
        held_out = list_images(options.held_out)
        chosen = [held_out[number * len(held_out) // options.limit] for number in range(options.limit)]
        for path in chosen:
            middle(path, self.work / "test/gt" / f"{path.stem}.png", CROP)
        for path in list_images(options.shared / "data/real_lq/RealSRSet")[: options.real_limit]:
            middle(path, self.work / "test/real" / f"{path.stem}.png", REAL_SIDE)
        self.low = {"clean": self.work / "test/clean"}
        degrade_folder(self.work / "test/gt", self.low["clean"], Degradation(scale=SCALE))
        for name, parts in UNKNOWN.items():
            self.low[name] = self.work / f"test/{name.replace(' ', '_')}"
            degrade_folder(self.work / "test/gt", self.low[name], Degradation(scale=SCALE, **parts))

    def low_side(self, kind: str | Degradation) -> Path:
        """The training photos made smaller, now or before."""
        text = kind if isinstance(kind, str) else kind.model_dump_json()
        folder: Path = self.work / "train" / (kind if isinstance(kind, str) else f"{zlib.crc32(text.encode()):08x}")
        if isinstance(kind, Degradation):
            degrade_folder(self.options.photos, folder, kind)
            return folder
        for path in list_images(self.options.photos):
            target = folder / f"{path.stem}.png"
            if not target.is_file():
                rng = np.random.default_rng(zlib.crc32(path.name.encode()))
                pixels = read_image(path).pixels.astype(np.float32) / 255
                write_image(target, Picture(published(pixels, kind, SCALE, rng)))
        return folder

    def base(self) -> str:
        """The network before it is fine-tuned: its weights."""
        if "weights" in self.choice:
            return str(self.choice["weights"])
        return self._finetune("base", ["bicubic"], self.choice, self.options.base_steps, 5e-4)

    def trained(self, name: str, kinds: list[str | Degradation]) -> str:
        """The weights of the network, fine-tuned on a set."""
        return self._finetune(name, kinds, {**self.choice, "weights": self.base()}, self.options.steps, 1e-4)

    def _finetune(
        self, name: str, kinds: list[str | Degradation], backbone: dict[str, Any], steps: int, rate: float
    ) -> str:
        network = self.options.network if name == "base" else self.name
        output = self.work / "runs" / network / name.replace(", ", "_").replace(" ", "_")
        done = list((output / "backbone").glob("*.safetensors"))
        if done:
            return str(done[0])
        values: dict[str, Any] = {
            "version": 1,
            "name": self.options.network,
            "objective": "restore",
            "backbone": backbone,
            "data": {
                "train": {
                    "gt": [str(self.options.photos)] * len(kinds),
                    "lq": [str(self.low_side(kind)) for kind in kinds],
                },
                "crop": 96 if self.lora else 128,
            },
            "train": {
                "seed": 0 if name == "base" else self.options.seed,
                "steps": steps,
                "batch_size": 4 if self.lora else 8,
                "learning_rate": rate,
                "final_learning_rate": 1e-6,
                "warmup_steps": 50,
                "gradient_clip": 1.0,
                "ema": 0.99,
                "log_every": 50,
            },
            "losses": {"l1": 1.0},
            "output": str(output),
        }
        if self.lora:
            values["trainable"] = ["lora"]
        return str(next(finetune(Recipe.from_dict(values)).glob("*.safetensors")))

    def evaluated(self, weights: dict[str, str]) -> dict[str, Any]:
        """Every network against the first, on each test set."""
        gt, squeeze = self.work / "test/gt", self.options.shared / "weights/squeezenet1_1_caffe.fp16.safetensors"
        every = judges(self.options.shared)
        validity = judge_validity(every, gt, self.low["passed on"], notify=progress)
        found = {}
        for name, low in {**self.low, "RealSRSet": self.work / "test/real"}.items():
            places = [Outputs(self.restored(label, path, low), label, adapters=[]) for label, path in weights.items()]
            real = name == "RealSRSet"
            metrics = None if real else ["PSNR", "SSIM", full_reference("squeeze", file=squeeze)]
            found[name] = evaluate(
                places[1:],
                places[0],
                gt=None if real else gt,
                lq=low,
                metrics=metrics,
                judges=every,
                validity=validity if real else None,
                notify=progress,
            )
        return found

    def restored(self, label: str, weights: str, low: Path) -> Path:
        """What a network makes of a test set, now or before."""
        target = self.work / "restored" / self.name / label.replace(", ", "_").replace(" ", "_") / low.name
        missing = [path for path in list_images(low) if not (target / path.name).is_file()]
        if missing:
            wrapper = RefineWrapper(load_backbone(weights), refiner=None)
            for path in missing:
                wrapper.restore(path, target / path.name)
        return target


def middle(path: Path, target: Path, side: int) -> None:
    """Write the middle of a photo, unless it is there."""
    if target.is_file():
        return
    picture = read_image(path)
    top, left = (max(length - side, 0) // 2 for length in (picture.height, picture.width))
    write_image(target, Picture(np.ascontiguousarray(picture.pixels[top : top + side, left : left + side])))


if __name__ == "__main__":
    main()
