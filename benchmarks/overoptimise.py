"""Who still believes a picture that was optimised for one scorer? Pixels, continuous latents, and discrete codes.

    python benchmarks/overoptimise.py SHARED --restorer SOURCE --photos FOLDER [--target SCORER] [--steps N] [--limit N]
        [--degradation SOURCE] [--name NAME] [--threads N]

Photos that nothing was trained on are degraded as the restorer's recipe does it, and restored: codes are predicted, and
the generator paints them. From there the score of `--target` is raised step by step, by Adam, over

  pixels    of the picture that was painted;
  latents   that the generator paints from, which may then lie anywhere between the codes and beyond them;
  codes     by the logits that choose them: what is painted and scored is always made of codes. Three ways of passing
            the gradient on: straight, gumbel and soft (see `refine_wrap.quality.restorer.Codes`).

Other scorers, and metrics that know the pristine photo, say what became of it. NIMA is shown, but it is no valid judge:
on real pairs it agrees with the ground truth too seldom (`baselines.py`). The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import write, write_curves, write_pictures
from torch import Tensor

from refine_wrap import load_backbone, read_image
from refine_wrap.degradation import degrade
from refine_wrap.evaluation import full_reference
from refine_wrap.folder import list_images
from refine_wrap.quality import CodebookRestorer
from refine_wrap.quality.autoencoder import adapt_statistics
from refine_wrap.recipe import load_degradation
from refine_wrap.scorers import load_scorer

CROP = 128
SHOWN = 4
RATES = {"pixels": 0.002, "latents": 0.02, "straight": 0.2, "gumbel": 0.2, "soft": 0.2}
"""Adam's, of each space, in its own units: [0, 1], those of the latents, logits."""
METRICS = ("PSNR", "SSIM", "FSIM")
Paint = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--restorer", required=True, help="what the recipe codes has made")
    parser.add_argument("--photos", type=Path, required=True, help="photos that nothing was trained on")
    parser.add_argument("--target", default="shipped:ranker", help="the scorer that is raised")
    parser.add_argument("--judge", action="append", help="default: shipped:gauge, shipped:ranker, NIMA but the target")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between measurements")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--degradation", action="append", default=None, help="as make-flawed takes it; default: codes")
    parser.add_argument("--name", default="overoptimise", help="of the JSON and the pictures")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    restorer = load_backbone(options.restorer).module.requires_grad_(False).eval()
    if not isinstance(restorer, CodebookRestorer):
        raise SystemExit(f"{options.restorer} is a {type(restorer).__name__}, and no CodebookRestorer")
    target = load_scorer(options.target)
    weights = options.shared / "weights"
    names = options.judge or [
        "shipped:ranker",
        "shipped:gauge",
        f"nima={weights}/nima_mobilenet_aesthetic_keras.safetensors",
    ]
    judges = [judge for judge in map(load_scorer, names) if judge.name != target.name]
    metrics = [full_reference(name) for name in METRICS]
    metrics.append(full_reference("squeeze", file=weights / "squeezenet1_1_caffe.fp16.safetensors"))
    degradation = load_degradation(options.degradation or ["codes"])

    def measured(image: Tensor, pristine: Tensor) -> dict[str, float]:
        image = image.detach().clamp(0, 1)
        found = {scorer.name: float(scorer(image)) for scorer in (target, *judges)}
        return found | {metric.name: float(metric(image, pristine)) for metric in metrics}

    every = list_images(options.photos)
    count = min(options.limit, len(every))
    curves: dict[str, list[list[dict[str, float]]]] = {space: [] for space in RATES}
    changed: dict[str, list[float]] = {space: [] for space in ("straight", "gumbel", "soft")}
    pictures = []
    for number in range(count):
        path = every[number * len(every) // count]
        pristine = central(read_image(path).tensor(), CROP)
        pixels = np.ascontiguousarray(pristine[0].permute(1, 2, 0).numpy())
        low = degrade(pixels, degradation, np.random.default_rng((0, number)))
        lq = torch.from_numpy(low).permute(2, 0, 1)[None].float() / 255
        ends = {}
        for space, rate in RATES.items():
            free, paint, show = start(restorer, lq, space)
            optimiser = torch.optim.Adam([free], lr=rate)
            before = free.detach().argmax(2) if free.ndim == 4 and space in changed else None
            curve = [measured(show(), pristine)]
            ends.setdefault("start", show().detach())
            for step in range(1, options.steps + 1):
                optimiser.zero_grad()
                (-target(paint().clamp(0, 1)).mean()).backward()
                optimiser.step()
                if step % options.every == 0:
                    curve.append(measured(show(), pristine))
            curves[space].append(curve)
            ends[space] = show().detach()
            if before is not None:
                changed[space].append(float((free.detach().argmax(2) != before).float().mean()))
        if len(pictures) < SHOWN:
            pictures.append([lq, pristine, *ends.values()])
        print(
            path.name,
            {space: {k: round(v, 3) for k, v in curves[space][-1][-1].items()} for space in RATES},
            flush=True,
        )
    write_pictures(options.name, pictures)
    means = {
        space: [
            {key: mean(curve[place][key] for curve in found) for key in found[0][0]} for place in range(len(found[0]))
        ]
        for space, found in curves.items()
    }
    panels = {
        name: {
            space: ([row[target.name] for row in rows], [row[name] for row in rows]) for space, rows in means.items()
        }
        for name in (*(judge.name for judge in judges), *(metric.name for metric in metrics))
    }
    write_curves(f"{options.name}_curves", f"{target.name}, which is raised", panels)
    write(
        options.name,
        {
            "restorer": Path(options.restorer).name,
            "target": target.name,
            "judges": [judge.name for judge in judges],
            "pictures": count,
            "crop": CROP,
            "steps": options.steps,
            "every": options.every,
            "learning_rates": RATES,
            "pictured": ["input", "pristine", "start", *RATES],
            "codes_changed": {space: mean(found) for space, found in changed.items()},
            "means": means,
        },
    )


def start(restorer: CodebookRestorer, lq: Tensor, space: str) -> tuple[Tensor, Paint, Paint]:
    """What is free in a space, what is painted of it with a gradient, and what of it is looked at; all start alike."""
    with torch.no_grad():
        logits, latent, levels = restorer.predict(lq * 2 - 1)
        share, size = restorer.hq_share(lq, None), latent.shape[-2:]

    def painted(found: Tensor) -> Tensor:
        if restorer.adain:
            found = adapt_statistics(found, latent)
        return (restorer.generate(found, levels, 0.0) + 1) / 2

    def chosen(codes: Any) -> Paint:
        return lambda: painted(restorer.take(free, share, size, codes))

    if space == "pixels":
        with torch.no_grad():
            free = painted(restorer.take(logits, share, size)).clamp(0, 1).requires_grad_()
        return free, lambda: free, lambda: free
    if space == "latents":
        free = restorer.take(logits, share, size).clone().requires_grad_()
        return free, lambda: painted(free), lambda: painted(free)
    free = logits.clone().requires_grad_()
    return free, chosen(space), chosen("hard")


def central(image: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


if __name__ == "__main__":
    main()
