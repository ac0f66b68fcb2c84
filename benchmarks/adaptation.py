"""Two real networks, adapted: a refiner behind them, LoRA in them, and the refiner absorbed into them.

    python benchmarks/adaptation.py SHARED [--only dncnn|rrdb] [--threads N] [--output DIR] [--refiner-steps N]
        [--lora-steps N] [--steps N]

dncnn: `dncnn_color_15` on PolyU's camera noise, every fourth scene held out (non-commercial: nothing of it is shipped).
rrdb: `RealESRGAN_x4plus` on photos that are made four times smaller, every eighth photo held out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write
from polyu_refiner import split

from refine_wrap import Backbone, Recipe, RefineWrapper, load_backbone
from refine_wrap.evaluation import Protocol
from refine_wrap.folder import list_images
from refine_wrap.tiling import trace_layers
from refine_wrap.training import absorb, explained, finetune, gain_kept
from refine_wrap.training.data import training_data, validation_data

STEPS = {"dncnn": (1500, 200, 300, 4), "rrdb": (600, 100, 150, 2)}
"""Steps of the refiner, of LoRA, of absorbing the refiner, and samples of a step of absorbing."""
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--only", choices=STEPS)
    parser.add_argument("--steps", type=int, help="of absorbing")
    parser.add_argument("--refiner-steps", type=int)
    parser.add_argument("--lora-steps", type=int)
    parser.add_argument("--batch-size", type=int, help="of absorbing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="keep the runs here; they are gone on with if they are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (refiner_steps, lora_steps, steps, batch_size) in STEPS.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            place = (options.output or Path(temporary)) / name
            recipe = RECIPES[name](options.shared.resolve(), place, options.refiner_steps or refiner_steps)
            results = measure(
                recipe,
                options.lora_steps or lora_steps,
                options.steps or steps,
                options.batch_size or batch_size,
                place,
            )
            for way in ("refiner", "lora"):
                last = max((place / way / "pictures").iterdir())
                shutil.copy(min(last.iterdir()), RESULTS / f"adaptation_{name}_{way}.png")
        write(f"adaptation_{name}", results)


def dncnn(shared: Path, place: Path, steps: int) -> Recipe:
    """As `polyu_refiner`."""
    if not (place / "train").is_dir():
        split(shared / "data/paired/polyu", place)
    folders = [
        f"data.{part}.{kind}={place / folder / kind}"
        for part, folder in (("train", "train"), ("validation", "test"))
        for kind in ("gt", "lq")
    ]
    return Recipe.load(
        Path(__file__).parent / "polyu_refiner.yaml",
        [
            *folders,
            f"backbone.weights={shared / 'weights/dncnn_color_15.safetensors'}",
            f"train.steps={steps}",
            f"output={place / 'refiner'}",
            "name=absorb_dncnn",
            "data.samples_per_image=4",
            "data.variants=3",
            "backbone_cache.keep=memory",
            "data.validation.crop=128",
            "data.validation.limit=24",
        ],
    )


def rrdb(shared: Path, place: Path, steps: int) -> Recipe:
    """Small crops: the network takes some 0.3 s for 24 x 24 pixels on one core."""
    photos = list_images(shared / "data/train")
    for number, photo in enumerate(photos):
        link = place / ("train" if number % 8 else "test") / f"{number}_{photo.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(photo)
    return Recipe.from_dict(
        {
            "version": 1,
            "name": "absorb_rrdb",
            "objective": "refine",
            "backbone": {"weights": str(shared / "weights/RealESRGAN_x4plus.fp16.safetensors")},
            "data": {
                "train": {"gt": [str(place / "train")]},
                "validation": {"gt": [str(place / "test")], "crop": 128, "limit": 12},
                "degradation": {
                    "scale": 4,
                    "noise": {"sigma": [1, 6]},
                    "jpeg": {"quality": [70, 95]},
                },
                "crop": 96,
                "variants": 2,
            },
            "backbone_cache": {"keep": "memory"},
            "train": {
                "steps": steps,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "final_learning_rate": 1e-5,
                "warmup_steps": 50,
                "gradient_clip": 1.0,
                "ema": 0.99,
            },
            "losses": {"charbonnier": 1.0},
            "output": str(place / "refiner"),
        }
    )


RECIPES = {"dncnn": dncnn, "rrdb": rrdb}


def curves(run: Path) -> dict[str, Any]:
    """Losses and validations of a run by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": {line["step"]: line["loss"] for line in lines if line["kind"] == "train"},
        "validation": {
            line["step"]: {metric["name"]: metric["value"] for metric in line["metrics"]}
            for line in lines
            if line["kind"] == "validation"
        },
    }


def lora(recipe: Recipe, steps: int, place: Path) -> dict[str, Any]:
    """LoRA on the backbone, on the same data."""
    values = recipe.to_dict()
    values |= {"objective": "restore", "trainable": ["lora"], "name": f"{recipe.name}_lora"}
    values |= {"output": str(place / "lora"), "backbone_cache": {}, "validate_every": max(steps // 3, 1)}
    values["train"] |= {"steps": steps, "learning_rate": 3e-4, "warmup_steps": steps // 10, "log_every": 10}
    began = time.perf_counter()
    finetune(Recipe.from_dict(values))
    return {"steps": steps, "minutes": (time.perf_counter() - began) / 60, **curves(place / "lora")}


def measure(recipe: Recipe, lora_steps: int, steps: int, batch_size: int, place: Path) -> dict[str, Any]:
    began = time.perf_counter()
    adapter = finetune(recipe)
    trained = time.perf_counter()
    with_lora = lora(recipe, lora_steps, place)
    distilling = time.perf_counter()
    checkpoint = str(recipe.backbone.weights)
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=load_backbone(checkpoint))
    # The refiner learned from cached variants; here every crop is new.
    fresh = recipe.model_copy(update={"data": recipe.data.model_copy(update={"variants": None})})
    images, held_out = training_data(fresh, wrapper.scale), validation_data(fresh, wrapper.scale)
    assert held_out is not None  # the recipes have validation data
    plain = absorb(
        wrapper,
        images,
        steps=steps,
        rank=RANK,
        held_out=held_out,
        batch_size=batch_size,
        run=place / "absorbed",
        save_every=50,
        log_every=10,
    )
    done = time.perf_counter()
    crops = [held_out[number] for number in range(len(held_out))]
    metric = Protocol("PSNR", border=wrapper.scale if wrapper.scale > 1 else 0)
    share = explained(wrapper, plain, [crop["lq"] for crop in crops])
    macs = [
        trace_layers(network, 64, 64, device=network.device, dtype=torch.float32).macs
        for network in (wrapper.backbone, plain)
    ]
    return {
        "checkpoint": Path(checkpoint).name,
        "refiner": {
            "steps": recipe.train.steps,
            "minutes": (trained - began) / 60,
            **curves(place / "refiner"),
        },
        "lora": with_lora,
        "absorb": {
            "steps": steps,
            "rank": RANK,
            "batch_size": batch_size,
            "crop": int(images[0]["lq"].shape[-1]),
            "minutes": (done - distilling) / 60,
        },
        "strength": wrapper.strength,
        "held_out": {"crops": len(crops), "side": int(crops[0]["gt"].shape[-1])},
        "explained": share,
        "protocol": str(metric),
        "psnr": gain_kept(wrapper, plain, crops, metric),
        "macs_64x64": {"backbone": macs[0], "absorbed": macs[1], "equal": macs[0] == macs[1]},
        "loads": loads(plain, place),
    }


def loads(plain: Backbone, place: Path) -> dict[str, Any]:
    """Whether others read the file, and by how much their output differs from ours on a random picture."""
    import spandrel

    file = plain.save_published(place / "absorbed.pth")
    x = torch.rand(1, 3, 32, 32)
    found: dict[str, Any] = {}
    with torch.no_grad():
        ours = plain(x)
        theirs = spandrel.ModelLoader().load_from_file(file)
        found["spandrel"] = float((theirs.model.eval()(x) - ours).abs().max())
        if plain.spec.family == "ESRGAN":
            from basicsr.archs.rrdbnet_arch import RRDBNet

            network = RRDBNet(3, 3, scale=4, num_feat=64, num_block=23, num_grow_ch=32).eval()
            network.load_state_dict(torch.load(file, weights_only=True)["params_ema"], strict=True)
            found["basicsr"] = float((network(x) - ours).abs().max())
    return found


if __name__ == "__main__":
    main()
