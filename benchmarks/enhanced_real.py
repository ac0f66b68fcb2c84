"""Does a refiner that learned enhanced ground truth make restored photos better? By the judges that are valid there.

    python benchmarks/enhanced_real.py SHARED --held-out FOLDER [--adapter SOURCE] [--work FOLDER] [--pairs N]
        [--photos N] [--threads N]

The refiner works behind networks that it was not trained with: dncnn_color_15 on PolyU (camera noise),
realesr-animevideov3 and RealESRGAN_x4plus on RealSRSet (no ground truth; the judges' validity is that on PolyU), and
the shipped denoiser on noise that `make_flawed` adds to photos that nothing was trained on. Each strength is compared
with what the network makes alone: win rate, metrics where a ground truth exists, signs of gaming.
--work keeps the pictures, and may be that of baselines.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from baselines import (
    DENOISER,
    UPSCALERS,
    arguments,
    judges,
    polyu_pictures,
    progress,
    realsrset_pictures,
    restored,
    summary,
)
from common import write
from torch import nn

from refine_wrap import RefineWrapper, load_backbone
from refine_wrap.evaluation import Evaluation, Outputs, evaluate, full_reference, make_flawed
from refine_wrap.evaluation.metrics import Metric
from refine_wrap.folder import list_images

STRENGTHS = (0.1, 0.3, 0.6, 1.0)
CROP = 256


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--held-out", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--adapter", default="shipped:refiner")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shared: Path = options.shared
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = options.work or Path(temporary)
        study = Study(shared, options.adapter, work / "refined.json")

        polyu = work / "polyu"
        polyu_pictures(shared, polyu, options.pairs)
        found = {DENOISER: study.evaluated(polyu / DENOISER, polyu / "noisy", polyu / "gt")}
        found[DENOISER].save(study.validity)

        real = work / "realsrset"
        realsrset_pictures(shared, real, options.photos)
        for name in UPSCALERS:
            found[name] = study.evaluated(real / name, real / "lq", None)

        flawed = work / "flawed"
        make_flawed(options.held_out, flawed, crop=CROP)
        denoised = work / "flawed_denoised"
        restored(load_backbone("shipped:demo_denoiser"), flawed / "input/level1", denoised)
        found["shipped:demo_denoiser"] = study.evaluated(denoised, flawed / "input/level1", flawed / "pristine")
    about = {"adapter": options.adapter, "strengths": STRENGTHS}
    write("enhanced_real", {**about, "sets": {name: summary(each) for name, each in found.items()}})


class Study:
    """A refiner at several strengths on pictures that were restored before."""

    def __init__(self, shared: Path, adapter: str, validity: Path) -> None:
        self.shared, self.adapter, self.validity = shared, adapter, validity
        self.wrapper = RefineWrapper.from_pretrained(adapter, backbone=nn.Identity())

    def metrics(self) -> list[str | Metric]:
        squeeze = full_reference("squeeze", file=self.shared / "weights/squeezenet1_1_caffe.fp16.safetensors")
        return ["PSNR", "SSIM", "FSIM", squeeze]

    def evaluated(self, base: Path, lq: Path, gt: Path | None) -> Evaluation:
        """Every strength against the restored pictures in `base`."""
        outputs = []
        for strength in STRENGTHS:
            target = base.with_name(f"{base.name}_{strength}")
            for path in list_images(base):
                if not (target / path.name).is_file():
                    self.wrapper.restore(path, target / path.name, strength=strength)
            outputs.append(Outputs(target, f"strength {strength}", adapters=[self.adapter]))
        found = evaluate(
            outputs,
            Outputs(base, "without"),
            gt=gt,
            lq=lq,
            metrics=None if gt is None else self.metrics(),
            judges=judges(self.shared),
            validity=None if gt is not None else self.validity,
            notify=progress,
        )
        for candidate in found.candidates:
            print(candidate.label, {name: f"{one.win_rate:.0%}" for name, one in candidate.versus.items()}, flush=True)
        return found


if __name__ == "__main__":
    main()
