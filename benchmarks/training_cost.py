"""What a training step costs: refiner alone (its backbone's outputs kept or not), LoRA, everything.

SwinIR-M x4 and RRDB x4 as published for super-resolution, random weights (they cost the same), 64-pixel low-quality
crops. Each way is a process of its own, for its peak memory; the ways take turns, for a fair share of a busy machine.

python benchmarks/training_cost.py [--threads N] [--batch N] [--rounds N] [--precision float32|bf16] [--only SwinIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import write

from refine_wrap import Picture, Recipe, write_image

BACKBONES: dict[str, dict[str, Any]] = {
    "SwinIR": {
        "arch": "SwinIR",
        "options": {
            "upscale": 4,
            "img_size": 64,
            "window_size": 8,
            "img_range": 1.0,
            "depths": [6] * 6,
            "embed_dim": 180,
            "num_heads": [6] * 6,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
            "resi_connection": "1conv",
        },
    },
    "RRDB": {
        "arch": "RRDBNet",
        "options": {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 64,
            "num_block": 23,
            "num_grow_ch": 32,
            "scale": 4,
        },
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"objective": "restore"},
    "full, activation checkpointing": {"objective": "restore", "train.activation_checkpointing": True},
    "lora": {"objective": "restore", "trainable": ["lora"]},
    "ornet": {"objective": "refine", "refiner": {"preset": "ornet"}},
    "ornet, cached": {"objective": "refine", "refiner": {"preset": "ornet"}, "backbone_cache.keep": "disk"},
    "ornet-lite": {"objective": "refine"},
    "ornet-lite, cached": {"objective": "refine", "backbone_cache.keep": "disk"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--only", choices=list(BACKBONES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as temporary:
        rng = np.random.default_rng(0)
        for number in range(8):
            pixels = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
            write_image(Path(temporary) / f"{number}.png", Picture(pixels))
        results = {
            name: measure(recipe(name, Path(temporary), options), options.rounds)
            for name in BACKBONES
            if options.only in (None, name)
        }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = {"device": device, "batch": options.batch, "crop": 256, "precision": options.precision}
    suffix = f"_{device}_{options.precision}" + (f"_{options.only}" if options.only else "")
    write(f"training_cost{suffix}", {**about, "threads": options.threads, "backbones": results})


def recipe(name: str, photos: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "cost",
        "backbone": BACKBONES[name],
        "data": {
            "train": {"gt": [str(photos)]},
            "degradation": {"scale": 4},
            "crop": 256,
            "variants": 1,
            "samples_per_image": 1,
        },
        "train": {
            "steps": 1_000_000,
            "batch_size": options.batch,
            "precision": options.precision,
            "threads": options.threads,
        },
        "backbone_cache": {"folder": str(photos / "cache")},
        "losses": {"l1": 1.0},
        "output": str(photos / "run"),
    }


def measure(base: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds and MiB of each way; the processes wait for each other's steps."""
    children = {}
    figures: dict[str, Any] = {}
    for way, changes in WAYS.items():
        task = {**base, **{k: v for k, v in changes.items() if "." not in k}, "changes": changes, "fills": False}
        command = [sys.executable, __file__, "--child"]
        if "cached" in way:  # kept on the disk by a process of its own: a step does not pay for it
            subprocess.run([*command, json.dumps({**task, "fills": True})], check=True)
        children[way] = subprocess.Popen(
            [*command, json.dumps(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        figures[way] = ready(children[way])
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, process in children.items():
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            told = ready(process)
            times[way].append(told["seconds"])
            figures[way]["peak_mib"] = told["peak_mib"]
    for process in children.values():
        process.communicate("")
    for way, values in times.items():
        figures[way] |= {
            "seconds": median(values),
            "time_over_full": median(values) / median(times["full"]),
            "memory_over_full": figures[way]["peak_mib"] / figures["full"]["peak_mib"],
            "training_memory_over_full": (figures[way]["peak_mib"] - figures[way]["idle_mib"])
            / (figures["full"]["peak_mib"] - figures["full"]["idle_mib"]),
        }
        print(way, figures[way], flush=True)
    return figures


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a child process ended with {process.wait()}")
    return dict(json.loads(line))


def child(task: dict[str, Any]) -> None:
    """One way: prepares, then takes a step for each line on standard input."""
    from refine_wrap.training.data import loader
    from refine_wrap.training.estimate import peak_memory, synchronize
    from refine_wrap.training.frozen import frozen_data, needed
    from refine_wrap.training.trainer import fill_cache, prepare, take_step

    changes, task_fills = task.pop("changes"), task.pop("fills")
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            task.setdefault(section, {})[name] = value
    loaded = Recipe.from_dict(task)
    torch.set_num_threads(loaded.train.threads or 1)
    run = prepare(loaded, "never")
    device, options = run.accelerator.device, loaded.train
    samples: Any = run.data
    if loaded.backbone_cache.keep != "none":
        samples = frozen_data(loaded, run.objective.backbone, run.data)
        if task_fills:
            fill_cache(run, samples, needed(run.batches, 1))
            return
    batches = loader(samples, run.batches, 0)
    idle = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_memory(device)
    trained = sum(p.numel() for p in run.objective.parameters())
    print(json.dumps({"idle_mib": idle / 2**20, "trained": trained, "batch": options.batch_size}), flush=True)
    for step, batch in enumerate(batches):
        if not sys.stdin.readline():
            return
        if step == 0:
            take_step(run, step, batch, ())  # warm
        synchronize(device)
        start = time.perf_counter()
        take_step(run, step, batch, ())
        synchronize(device)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_mib": peak_memory(device) / 2**20}), flush=True)


if __name__ == "__main__":
    main()
