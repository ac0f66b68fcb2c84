"""Are no-reference scorers valid? The table that a scorer has to pass before it judges anything.

    python benchmarks/scorers.py SHARED --split FOLDER
    python benchmarks/scorers.py SHARED --scorer shipped:ranker --scorer shipped:gauge --photos FOLDER/{scorer}/held_out

--split makes the folders that the recipes `ranker` and `gauge` train and validate on: CID22's photos, and
squares of the large CC0 photos. Each recipe holds out another quarter, the one to measure it on: {scorer} in --photos
is the scorer's name.

Measured: the rank correlation of score and strength for each distortion, its agreement with full-reference metrics on
mixed distortions, and on PolyU's camera noise whether the ground truth is preferred to the noisy photo and to smoothed
ones; whether added noise or an unsharp mask raises the score; how much a shift by one pixel or a crop moves it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import write
from scipy.stats import spearmanr

from refine_wrap import load_backbone, read_image
from refine_wrap.degradation.ladders import DISTORTIONS, ladder, rounded
from refine_wrap.degradation.rounding import as_float
from refine_wrap.evaluation import full_reference
from refine_wrap.folder import list_images, pair_by_name
from refine_wrap.scorers import Scorer, load_scorer
from refine_wrap.training.data import as_tensor

HALVES = "polyu, looked at", "polyu"
"""Every second pair's noise was looked at when `camera_noise` was written, so the other pairs are what counts. Both
halves show the same scenes, other parts of them."""
SIDE, SQUARE = 256, 1024
STRENGTHS = (0.07, 0.22, 0.4, 0.58, 0.77, 0.95)
METRICS = ("SSIM", "FSIM", "GMSD", "VIF", "NLPD")
HOLDS_OUT = {"ranker": 0, "gauge": 2}
"""Which photo of every four a recipe does not see."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--scorer", action="append", default=[])
    parser.add_argument("--photos", help="default: SHARED/data/photos")
    parser.add_argument("--limit", type=int, default=12, help="photos for the ladders")
    parser.add_argument("--pairs", type=int, default=100, help="PolyU pairs, half of them looked at")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.split is not None:
        split(options.shared, options.split)
        return
    scorers = {scorer.name: scorer for scorer in map(load_scorer, options.scorer)}
    tables = {}
    for name, scorer in scorers.items():
        folder = Path((options.photos or f"{options.shared}/data/photos").replace("{scorer}", name))
        crops = [crop(path) for path in spread(list_images(folder), options.limit)]
        tables[name] = {**scorer.about(), "photos": len(crops), "side": SIDE, **measure(scorer, crops)}
        print(name, tables[name], flush=True)
    polyu_folder = options.shared / "data/paired/polyu"
    found = pair_by_name(polyu_folder, polyu_folder, gt_pattern="{name}_mean", lq_pattern="{name}_real")
    smooth = Smooth(options.shared)
    for half, part in enumerate(HALVES):
        pairs = spread(found[half::2], options.pairs // 2)
        for name, figures in polyu(scorers, pairs, smooth).items():
            tables[name][part] = {"pairs": len(pairs), **figures}
            print(name, part, tables[name][part], flush=True)
    write("scorers", tables)


def split(shared: Path, place: Path) -> None:
    """PLACE/ranker/{train,held_out} and PLACE/gauge/{train,held_out}."""
    photos: list[tuple[str, Path]] = [(f"cid22_{p.stem}", p) for p in list_images(shared / "data/train/cid22")]
    squares = place / "squares"
    squares.mkdir(parents=True, exist_ok=True)
    for number, large in enumerate(list_images(shared / "data/train/budgie_cc0")):
        pixels = read_image(large).pixels
        for top in range(0, pixels.shape[0] - SQUARE + 1, SQUARE):
            for left in range(0, pixels.shape[1] - SQUARE + 1, SQUARE):
                target = squares / f"{number:02d}_{top}_{left}.png"
                if not target.is_file():
                    part = pixels[top : top + SQUARE, left : left + SQUARE, ::-1]
                    cv2.imwrite(str(target), np.ascontiguousarray(part))
    for recipe, held_out in HOLDS_OUT.items():
        for folder in ("train", "held_out"):
            (place / recipe / folder).mkdir(parents=True, exist_ok=True)
        for number, (name, path) in enumerate(photos):
            link(path, place / recipe / ("held_out" if number % 4 == held_out else "train") / f"{name}{path.suffix}")
        for path in list_images(squares):  # squares of one photo stay together
            outside = int(path.name[:2]) % 4 == held_out
            link(path, place / recipe / ("held_out" if outside else "train") / f"budgie_{path.name}")


def link(source: Path, target: Path) -> None:
    if not target.is_symlink():
        os.symlink(source.resolve(), target)


def spread(items: Iterable[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly."""
    found = list(items)
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def crop(path: Path) -> np.ndarray:
    """The middle of a photo; a large one is made smaller first, as on a screen."""
    image = as_float(read_image(path).pixels)
    shrink = min(image.shape[:2]) / 768
    if shrink > 1:
        image = cv2.resize(image, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    return rounded(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))


def score(scorer: Scorer, images: list[np.ndarray]) -> np.ndarray:
    """The raw score of pictures of one size, higher is better."""
    sign = 1.0 if scorer.best > scorer.worst else -1.0
    with torch.no_grad():
        return sign * scorer.raw(torch.stack([as_tensor(image) for image in images])).double().numpy()


def measure(scorer: Scorer, crops: list[np.ndarray]) -> dict[str, Any]:
    """What needs only clean photos."""
    by_distortion = {
        name: float(
            np.mean(
                [
                    spearmanr(score(scorer, [c, *ladder(c, name, STRENGTHS, generator(i))]), -np.arange(7)).statistic
                    for i, c in enumerate(crops)
                ]
            )
        )
        for name in DISTORTIONS
    }
    agreement, fooled = [], {"noise": [], "unsharp mask": []}
    moved = []
    clean = np.array([float(score(scorer, [c])[0]) for c in crops])
    for i, c in enumerate(crops):
        rng = generator(1000 + i)
        mixed = [ladder(c, "mixture", [float(rng.uniform(0.05, 0.9))], rng)[0] for _ in range(16)]
        agreement.append(float(spearmanr(score(scorer, mixed), reference(c, mixed)).statistic))
        cheats = {
            "noise": ladder(c, "camera_noise", (0.25, 0.5), rng),
            "unsharp mask": ladder(c, "oversharpened", (0.3, 0.6), rng),
        }
        for kind, images in cheats.items():
            fooled[kind] += (score(scorer, images) > clean[i]).tolist()
        shifted = [c[:-1, :-1], c[1:, 1:]]
        a, b = score(scorer, shifted)
        inner = float(score(scorer, [c[8:-8, 8:-8]])[0])
        moved.append((abs(a - b), abs(inner - clean[i])))
    spread_of = float(np.std(clean)) or float("nan")
    return {
        "srcc": {"mean": float(np.mean(list(by_distortion.values()))), **by_distortion},
        "agrees_with_full_reference": float(np.mean(agreement)),
        "fooled_by": {kind: float(np.mean(values)) for kind, values in fooled.items()},
        "moved_of_spread": dict(
            zip(("shift by 1 pixel", "crop of 8 pixels"), (np.mean(moved, 0) / spread_of).tolist(), strict=True)
        ),
    }


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng((4, seed))


def reference(clean: np.ndarray, images: list[np.ndarray]) -> np.ndarray:
    """Mean rank of some pictures by full-reference metrics, higher is better."""
    a = torch.stack([as_tensor(image) for image in images])
    b = as_tensor(clean)[None].expand_as(a)
    ranks = []
    for name in METRICS:
        metric = full_reference(name)
        values = metric(a, b).numpy() * (1 if metric.higher_is_better else -1)
        ranks.append(values.argsort().argsort())
    return np.mean(ranks, axis=0)


class Smooth:
    """Ways to smooth a photo too much."""

    def __init__(self, shared: Path) -> None:
        self.network = load_backbone(shared / "weights/dncnn_color_15.safetensors")

    def __call__(self, clean: np.ndarray, noisy: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "noisy": noisy,
            "noisy, denoised (dncnn_color_15)": self.dncnn(noisy),
            "clean, denoised (dncnn_color_15)": self.dncnn(clean),
            "clean, bilateral": rounded(cv2.bilateralFilter(clean, 9, 0.1, 3)),
            "clean, median of 5": rounded(cv2.medianBlur((clean * 255).astype(np.uint8), 5).astype(np.float32) / 255),
            "clean, Gaussian blur 1.2": rounded(cv2.GaussianBlur(clean, (0, 0), 1.2)),
        }

    @torch.no_grad()
    def dncnn(self, image: np.ndarray) -> np.ndarray:
        return rounded(self.network(as_tensor(image)[None])[0].permute(1, 2, 0).numpy())


def polyu(scorers: dict[str, Scorer], pairs: list[Any], smooth: Smooth) -> dict[str, dict[str, float]]:
    """Share of the pairs where the ground truth scores higher than something worse, and the mean scores."""
    wins: dict[str, dict[str, list[bool]]] = {name: {} for name in scorers}
    for number, (clean_path, noisy_path) in enumerate(pairs, 1):
        clean, noisy = (rounded(as_float(read_image(path).pixels)) for path in (clean_path, noisy_path))
        others = smooth(clean, noisy)
        for name, scorer in scorers.items():
            first, *rest = score(scorer, [clean, *others.values()])
            for kind, value in zip(others, rest, strict=True):
                wins[name].setdefault(kind, []).append(bool(first > value))
        if number % 10 == 0:
            print(f"{number} of {len(pairs)} pairs", flush=True)
    return {name: {kind: float(np.mean(values)) for kind, values in kinds.items()} for name, kinds in wins.items()}


if __name__ == "__main__":
    main()
