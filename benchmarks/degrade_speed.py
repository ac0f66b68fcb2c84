"""How many low-resolution tiles of 64x64 pixels `refine-wrap degrade` makes in a second, reading and writing included.

An untrained VQ-VAE-2 of the published size, high-resolution PNGs of 256x256 pixels; without the colour guard, and with
a bound that it has to search for with every tile. In one process, and in as many as there are cores, by shards. A
process starts counting when its first tile is done: what it loads before is no part of it.

python benchmarks/degrade_speed.py [--tiles N] [--processes N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write

from refine_wrap import Picture, read_image, write_image
from refine_wrap.degradation import Degradation, Reconstruct
from refine_wrap.reconstruction import VQVAE2, Manifest, degrade_folder, save_reconstructor
from refine_wrap.resources import weights_dir

SIDE, SCALE = 256, 4
GUARDS = {"plain": None, "guarded": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=300)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--child", nargs=4, metavar=("FOLDER", "OUT", "GUARD", "SHARD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, out, guard, shard = options.child
        child(Path(folder), Path(out), GUARDS[guard], *map(int, shard.split("/")))
        return
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cut(folder / "hr", options.tiles)
        torch.manual_seed(0)
        save_reconstructor(folder / "reconstructor", VQVAE2())
        for guard in GUARDS:
            for processes in sorted({1, options.processes}):
                out = folder / f"{guard}{processes}"
                results[f"{guard}, processes: {processes}"] = figures = together(folder, out, guard, processes)
                print(guard, processes, figures, flush=True)
            told = [entry.drawn["reconstruct"]["delta_e"] for entry in Manifest.read(out).pictures.values()]
            results[f"{guard}, delta_e"] = dict(zip(("before", "after"), np.mean(told, 0).tolist(), strict=True))
    write("degrade_speed", {"tiles": options.tiles, "tile": SIDE // SCALE, "speed": results})


def cut(folder: Path, count: int) -> None:
    """Crops of the shipped photo."""
    pixels = read_image(weights_dir() / "demo_photo.png").pixels
    rng = np.random.default_rng(0)
    for number in range(count):
        top, left = (int(rng.integers(side - SIDE, endpoint=True)) for side in pixels.shape[:2])
        part = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
        write_image(folder / f"{number:05}.png", Picture(part))


def together(folder: Path, out: Path, guard: str, processes: int) -> dict[str, float]:
    """Several processes at once, each with its shard: their rates added up, and the CPU time of a tile."""
    command = [sys.executable, __file__, "--child", str(folder), str(out), guard]
    running = [
        subprocess.Popen([*command, f"{index}/{processes}"], stdout=subprocess.PIPE, text=True)
        for index in range(processes)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return {
        "tiles_per_second": sum(each["tiles"] / each["seconds"] for each in found),
        "cpu_ms_per_tile": 1e3 * sum(each["cpu"] for each in found) / sum(each["tiles"] for each in found),
    }


def child(folder: Path, out: Path, bound: float | None, index: int, count: int) -> None:
    painting = Reconstruct(checkpoints=[str(folder / "reconstructor")], max_delta_e=bound)
    times: list[tuple[float, float]] = []
    degrade_folder(
        folder / "hr",
        out,
        Degradation(scale=SCALE, reconstruct=painting),
        shard=(index, count),
        on_done=lambda *_: times.append((time.perf_counter(), time.process_time())),
    )
    (start, cpu), (stop, cpu_stop) = times[0], times[-1]
    print(json.dumps({"tiles": len(times) - 1, "seconds": stop - start, "cpu": cpu_stop - cpu}))


if __name__ == "__main__":
    main()
