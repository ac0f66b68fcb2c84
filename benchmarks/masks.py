"""Masks and mixup at 1280x720, from ring coefficients to the mixed image: time and memory, beside the official way.

    python benchmarks/masks.py [--threads N] [--runs N]

The official way is written here after its description (paper 1, 3.2): every image has its own copy of the 25 ring maps,
and complex transforms of all axes. Both give the same image. Memory is the peak of a process of its own, above what it
held before the call (Linux).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

import torch
from common import side_by_side, write
from torch import Tensor

from refine_wrap.supervision import FrequencyMaskGenerator, frequency_mixup

HEIGHT, WIDTH = 720, 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", choices=("official", "ours"), help="print the peak memory of one of them in MiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, coefficients, generator = inputs()
    functions = {
        "official": lambda: official(images, coefficients),
        "ours": lambda: frequency_mixup(images, generator.masks(coefficients, HEIGHT, WIDTH)),
    }
    with torch.inference_mode():
        if options.peak:
            functions[options.peak]()  # the libraries' own memory is there then
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            functions[options.peak]()
            print(status("VmHWM") - before)
            return
        difference = float((functions["official"]() - functions["ours"]()).abs().max())
        times = side_by_side(options.runs, **functions)
    memory = {name: peak(name, options.threads) for name in functions}
    ratios = {"time": times["official"] / times["ours"], "memory": memory["ours"] / memory["official"]}
    results = {
        "size": [WIDTH, HEIGHT],
        "seconds": times,
        "peak_mib": memory,
        "ratios": ratios,
        "difference": difference,
    }
    print(results)
    write("masks", results)


def inputs() -> tuple[Tensor, Tensor, FrequencyMaskGenerator]:
    torch.manual_seed(0)
    images = torch.rand(1, 4, 3, HEIGHT, WIDTH)
    return images, torch.rand(1, 4, 25).softmax(1), FrequencyMaskGenerator(width=1).eval()


def status(key: str) -> float:
    """Of this process, in MiB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(name: str, threads: int) -> float:
    command = [sys.executable, __file__, "--peak", name, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def official(images: Tensor, coefficients: Tensor) -> Tensor:
    y, x = torch.linspace(-1, 1, HEIGHT)[:, None], torch.linspace(-1, 1, WIDTH)[None]
    radius = (x.square() + y.square()).sqrt()
    place = torch.linspace(0, 1, 25).square()[:, None, None]
    rings = torch.exp(-((radius - math.sqrt(2) * place) ** 2) / (2 * (0.05 * (1 + 10 * place)) ** 2))
    rings = rings.expand(1, 4, -1, -1, -1).clone()
    masks = (rings * coefficients[..., None, None]).sum(2).softmax(1)
    spectra = [torch.fft.fftshift(torch.fft.fftn(images[:, number], norm="ortho")) for number in range(4)]
    mixed = sum(spectrum * masks[:, number : number + 1] for number, spectrum in enumerate(spectra))
    return torch.fft.ifftn(torch.fft.ifftshift(mixed), norm="ortho").real


if __name__ == "__main__":
    main()
