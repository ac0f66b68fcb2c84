"""Does asking for more quality give more of it? A head's dial on photos that nothing was trained on.

    python benchmarks/quality_dial.py SHARED --adapter SOURCE --photos FOLDER [--backbone SOURCE] [--limit N]
        [--crop N] [--degradation SOURCE] [--name NAME] [--threads N]

Without an adapter the backbone has the dial itself: a codebook restorer.

Of the photos `make_flawed` makes noisy inputs; each is restored at qualities from 0.1 to 1. Scorers judge what comes
out, and those that the head was trained on are marked; metrics compare it with the pristine photo. For each scorer: the
rank correlation of quality and score, picture by picture, and its mean.
The picture shows the first photos: input, backbone, quality 0.1, 0.5, 0.9 and 1; the curves (needs matplotlib) every
scorer and metric over the dial.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import write, write_curves, write_pictures
from scipy.stats import spearmanr

from refine_wrap import RefineWrapper, load_backbone, read_image
from refine_wrap.evaluation import full_reference, make_flawed
from refine_wrap.evaluation.gate import trainer
from refine_wrap.folder import list_images
from refine_wrap.recipe import load_degradation
from refine_wrap.scorers import load_scorer

SHOWN, SHOWN_SIDE = 4, 128
"""Photos in the picture, and the side of their middles that is shown."""
QUALITIES = tuple(step / 10 for step in range(1, 11))
PICTURED = (0.1, 0.5, 0.9, 1.0)
JUDGES = ("shipped:ranker", "shipped:gauge")
METRICS = ("PSNR", "SSIM", "FSIM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--adapter")
    parser.add_argument("--backbone", help="where the adapter does not say")
    parser.add_argument("--crop", type=int, default=256, help="side of the central part of a photo")
    parser.add_argument("--photos", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--degradation", action="append", help="of the inputs, as make-flawed takes it")
    parser.add_argument("--name", default="quality_dial", help="of the JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if not options.adapter and not options.backbone:
        parser.error("one of --adapter and --backbone, or both")
    torch.set_num_threads(options.threads)
    if options.adapter:
        wrapper = RefineWrapper.from_pretrained(options.adapter, backbone=options.backbone)
    else:
        wrapper = RefineWrapper(load_backbone(options.backbone), refiner=None).eval()
    side = min(SHOWN_SIDE, options.crop)
    middle = slice((options.crop - side) // 2, (options.crop + side) // 2)
    judges = [load_scorer(name) for name in JUDGES]
    metrics = [full_reference(name) for name in METRICS]
    metrics.append(full_reference("squeeze", file=options.shared / "weights/squeezenet1_1_caffe.fp16.safetensors"))
    given = {"degradation": load_degradation(options.degradation)} if options.degradation else {}
    rows: list[dict[str, dict[str, float]]] = []
    pictures = []
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        make_flawed(options.photos, temporary, crop=options.crop, **given)
        every = list_images(Path(temporary) / "pristine")
        count = min(options.limit, len(every))
        for path in (every[number * len(every) // count] for number in range(count)):
            pristine = read_image(path).tensor()
            low = read_image(Path(temporary) / "input/level1" / path.name).tensor()
            shown = {"backbone": wrapper.backbone(low)}
            shown |= {f"quality {quality}": wrapper(low, quality=quality) for quality in QUALITIES}
            shown = {name: image.clamp(0, 1) for name, image in shown.items()}
            rows.append(
                {
                    name: {
                        **{metric.name: float(metric(image, pristine)) for metric in metrics},
                        **{judge.name: float(judge(image)) for judge in judges},
                    }
                    for name, image in shown.items()
                }
            )
            if len(pictures) < SHOWN:
                large = torch.nn.functional.interpolate(low, pristine.shape[-2:])
                row = [large, shown["backbone"], *(shown[f"quality {quality}"] for quality in PICTURED)]
                pictures.append([image[..., middle, middle] for image in row])
            print(path.name, {name: round(row["PSNR"], 2) for name, row in rows[-1].items()}, flush=True)
    write_pictures(options.name, pictures)
    means = {name: {key: mean(row[name][key] for row in rows) for key in rows[0][name]} for name in rows[0]}
    dial: dict[str, Any] = {}
    for judge in judges:
        scored = [[row[f"quality {quality}"][judge.name] for quality in QUALITIES] for row in rows]
        dial[judge.name] = {
            "trained_it": trainer(judge, wrapper.scorers) is not None,
            "spearman": mean(map(spearman, scored)),
            "spearman_of_means": spearman([means[f"quality {quality}"][judge.name] for quality in QUALITIES]),
            "above_backbone_at_0.9": mean(row["quality 0.9"][judge.name] > row["backbone"][judge.name] for row in rows),
        }
    print(dial)
    asked = {quality: means[f"quality {quality}"] for quality in QUALITIES}
    panels = {
        key: {
            "asked": (list(asked), [row[key] for row in asked.values()]),
            "backbone": ([QUALITIES[0], QUALITIES[-1]], [means["backbone"][key]] * 2),
        }
        for key in (*(judge.name for judge in judges), *(metric.name for metric in metrics))
    }
    write_curves(f"{options.name}_curves", "quality that is asked for", panels)
    about = {
        "adapter": Path(options.adapter or options.backbone).name,
        "pictures": len(rows),
        "crop": options.crop,
        "scorers": wrapper.scorers,
    }
    write(options.name, {**about, "dial": dial, "means": means})


def spearman(scores: list[float]) -> float:
    """Rank correlation of the scores with their order; 0 where all are the same."""
    return float(spearmanr(scores, range(len(scores))).statistic) if len(set(scores)) > 1 else 0.0


if __name__ == "__main__":
    main()
