"""Peak memory and time of restoring one large photo, against a smaller one: each in a process of its own.

The C library keeps freed memory, as it does in the command; the smallest photo is restored without that, too.

python benchmarks/large_image.py [--threads N]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write

from refine_wrap import Picture, RefineWrapper, read_image, write_image
from refine_wrap.allocator import keep_freed_memory
from refine_wrap.resources import weights_dir

SIZES = {"2K": (1080, 2048), "4K": (2160, 3840), "8K": (4320, 7680)}
KEPT = [(name, size, "kept") for name, size in SIZES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", nargs=3, metavar=("PHOTO", "OUT", "KEEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        photo, out, keep = options.child
        child(Path(photo), Path(out), keep == "kept")
        return
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, size, keep in (("2K, memory given back", SIZES["2K"], "default"), *KEPT):
            photo = Path(temporary) / f"{size[0]}.png"
            write_image(photo, tiled_photo(*size), overwrite=True)
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(options.threads),
                "--child",
                photo,
                Path(temporary) / "o.png",
                keep,
            ]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            megapixels = size[0] * size[1] / 1e6
            results[name] = {
                "megapixels": megapixels,
                **figures,
                "seconds_per_megapixel": figures["seconds"] / megapixels,
            }
            print(name, results[name], flush=True)
            (Path(temporary) / "o.png").unlink()
    write("large_image", {"images": results})


def tiled_photo(height: int, width: int) -> Picture:
    """The shipped photo, mirrored until it is large enough."""
    pixels = read_image(weights_dir() / "demo_photo.png").pixels
    for axis, wanted in ((0, height), (1, width)):
        count = -(-wanted // pixels.shape[axis])
        pixels = np.concatenate([pixels if i % 2 == 0 else np.flip(pixels, axis) for i in range(count)], axis)
    return Picture(np.ascontiguousarray(pixels[:height, :width]))


def child(photo: Path, out: Path, keep: bool) -> None:
    if keep:
        assert keep_freed_memory()
    model = RefineWrapper.from_pretrained("shipped:demo_refiner")
    model.restore(torch.rand(1, 3, 64, 64))  # everything is imported and traced now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model.restore(photo, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "peak_over_start_mib": (peak - before) / 1024}))


if __name__ == "__main__":
    main()
