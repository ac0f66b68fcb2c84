"""Where things stand: published networks on real photos, with every judge's validity.

    python benchmarks/baselines.py SHARED [--work FOLDER] [--pairs N] [--photos N] [--threads N]

PolyU (camera noise): `dncnn_color_15` and the ground truth itself against the noisy photo. RealSRSet (small real photos
without ground truth): realesr-animevideov3 and RealESRGAN_x4plus against bicubic; there the judges' validity is the one
found on PolyU. The judges are the scorers that come with the package and those whose weights lie in SHARED/weights.
--work keeps the restored pictures, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch
from common import write

from refine_wrap import Picture, RefineWrapper, load_backbone, read_image, write_image
from refine_wrap.evaluation import Evaluation, Outputs, evaluate
from refine_wrap.folder import list_images

METRICS = ("PSNR", "SSIM", "FSIM", "VIF")
DENOISER = "dncnn_color_15"
UPSCALERS = ("realesr-animevideov3", "RealESRGAN_x4plus")
SCALE = 4


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        polyu = on_polyu(options.shared, work / "polyu", options.pairs)
        polyu.save(work / "polyu.json")
        real = on_realsrset(options.shared, work / "realsrset", options.photos, work / "polyu.json")
    write("baselines", {"polyu": summary(polyu), "realsrset": summary(real)})


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Where the photos are, how many of them, and where pictures are kept."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--pairs", type=int, help="PolyU pairs; default: all")
    parser.add_argument("--photos", type=int, help="photos of RealSRSet; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def judges(shared: Path) -> list[str]:
    weights = shared / "weights"
    return [
        "shipped:ranker",
        "shipped:gauge",
        f"niqe={weights / 'niqe_pris_params.npz'}",
        f"cnniqa={weights / 'cnniqa_live.safetensors'}",
        f"nima={weights / 'nima_mobilenet_aesthetic_keras.safetensors'}",
    ]


def on_polyu(shared: Path, work: Path, limit: int | None) -> Evaluation:
    polyu_pictures(shared, work, limit)
    return evaluate(
        [Outputs(work / DENOISER), Outputs(work / "gt", "ground truth")],
        Outputs(work / "noisy"),
        gt=work / "gt",
        lq=work / "noisy",
        metrics=METRICS,
        judges=judges(shared),
        notify=progress,
    )


def on_realsrset(shared: Path, work: Path, limit: int | None, validity: Path) -> Evaluation:
    realsrset_pictures(shared, work, limit)
    return evaluate(
        [Outputs(work / name) for name in UPSCALERS],
        Outputs(work / "bicubic"),
        lq=work / "lq",
        judges=judges(shared),
        validity=validity,
        notify=progress,
    )


def polyu_pictures(shared: Path, work: Path, limit: int | None) -> None:
    """`noisy`, `gt` and what the denoiser makes, each in its folder; what is there stays."""
    folder = shared / "data/paired/polyu"
    noisy = sorted(folder.glob("*_real.JPG"))
    for path in noisy[:: -(-len(noisy) // (limit or len(noisy)))]:
        name = path.name.removesuffix("_real.JPG")
        for kind, source in (("noisy", path), ("gt", path.with_name(f"{name}_mean.JPG"))):
            link(source, work / kind / f"{name}.jpg")
    restored(load_backbone(shared / f"weights/{DENOISER}.safetensors"), work / "noisy", work / DENOISER)


def realsrset_pictures(shared: Path, work: Path, limit: int | None) -> None:
    """`lq`, `bicubic` and what each upscaler makes, each in its folder; what is there stays."""
    for path in list_images(shared / "data/real_lq/RealSRSet")[:limit]:
        link(path, work / "lq" / path.name)
        target = work / "bicubic" / f"{path.stem}.png"
        if not target.is_file():
            pixels = read_image(path).pixels
            larger = cv2.resize(pixels, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
            write_image(target, Picture(larger.reshape(*larger.shape[:2], pixels.shape[2])))
    for name in UPSCALERS:
        restored(load_backbone(shared / f"weights/{name}.fp16.safetensors"), work / "lq", work / name)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(source.resolve())


def restored(backbone: Any, source: Path, target: Path) -> None:
    """Each picture of a folder through a network."""
    wrapper = RefineWrapper(backbone)
    for number, path in enumerate(list_images(source), 1):
        output = target / f"{path.stem}.png"
        if not output.is_file():
            wrapper.restore(path, output)
            progress(number, len(list_images(source)), output.name, None)


def progress(done: int, count: int, name: str, reason: str | None) -> None:
    if reason or done % 10 == 0 or done == count:
        print(f"{done} of {count}: {name}{f' left out: {reason}' if reason else ''}", flush=True)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Without the single images."""
    document = evaluation.document()
    return {**document, "images": len(document["images"])}


if __name__ == "__main__":
    main()
