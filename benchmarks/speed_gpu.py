"""How fast the refiners are on a GPU, beside the official one and beside what the hardware allows. Under 8 minutes.

    python benchmarks/speed_gpu.py [--official CHECKOUT] [--runs N] [--size WIDTHxHEIGHT ...] [--device cuda]

Each network in float32, bfloat16 and float16, as it is, with channels last, compiled, and as a CUDA graph; the official
one by float16 autocast, as its test script runs it. The ceiling of each: the longer of its multiply-adds at the rate of
a measured matrix product, and of the bytes that its operations read and write at the rate of a measured copy. Then
training steps a second. --device cpu tries the script out, with a small --size. Written: results/speed_gpu.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import write
from speed import filled, official
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refine_wrap.refiner import build_refiner
from refine_wrap.tiling import trace_layers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAYS = ("plain", "channels last", "compiled", "CUDA graph")
PRESETS = ("ornet", "ornet-lite")
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of the official repository")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", action="append", help="default: 1920x1080 and 3840x2160")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    ceilings = {name: ceiling(options, dtype) for name, dtype in DTYPES.items()}
    print(ceilings, flush=True)
    found: Figures = {"ceilings": ceilings, "sizes": {}}
    for size in options.size or ["1920x1080", "3840x2160"]:
        width, height = map(int, size.split("x"))
        image = torch.rand(1, 3, height, width, device=options.device)
        found["sizes"][size] = {
            preset: {name: network(options, preset, name, image, ceilings[name]) for name in DTYPES}
            for preset in PRESETS
        }
        if options.official:
            found["sizes"][size]["official"] = official_times(options, image)
        write("speed_gpu", found)
    found["training"] = {
        preset: {name: training(options, preset, dtype) for name, dtype in DTYPES.items() if name != "float16"}
        for preset in PRESETS
    }
    write("speed_gpu", found)


def synchronize(options: argparse.Namespace) -> None:
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(options: argparse.Namespace, call: Callable[[], object]) -> float:
    """Median seconds of a call, after two that warm it."""
    times = []
    for _ in range(options.runs + 2):
        synchronize(options)
        start = time.perf_counter()
        call()
        synchronize(options)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def ceiling(options: argparse.Namespace, dtype: torch.dtype) -> Figures:
    """Bytes and multiply-adds a second, of a copy and of a matrix product in this type."""
    large = options.device.startswith("cuda")
    source = torch.rand(2**28 if large else 2**22, device=options.device).to(dtype)
    target = torch.empty_like(source)
    side = 8192 if large else 512
    a, b = (torch.rand(side, side, device=options.device).to(dtype) for _ in range(2))
    bytes_moved = 2 * source.numel() * source.element_size()
    return {
        "bytes_a_second": bytes_moved / timed(options, lambda: target.copy_(source)),
        "macs_a_second": side**3 / timed(options, lambda: a @ b),
    }


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        if any(tensor.untyped_storage().data_ptr() not in known for tensor in outputs) or func._schema.is_mutable:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        return result


@torch.inference_mode()
def network(options: argparse.Namespace, preset: str, name: str, image: Tensor, limits: Figures) -> Figures:
    """Seconds of each way to run it, and the share of the ceiling that it reaches."""
    net = filled(build_refiner(preset)).to(options.device)
    reference = net(image, 0.3)
    net = net.to(DTYPES[name])
    typed = image.to(DTYPES[name])
    with Traffic() as traffic:
        error = (net(typed, 0.3).float() - reference).square().mean()
    macs = trace_layers(net, *image.shape[-2:], device=options.device, dtype=DTYPES[name]).macs
    least = max(macs / limits["macs_a_second"], traffic.bytes / limits["bytes_a_second"])
    found: Figures = {
        "macs": macs,
        "bytes": traffic.bytes,
        "ceiling_seconds": least,
        "psnr_to_float32": float(-10 * error.log10()) if error else None,
        "ways": {},
    }
    for way in WAYS:
        call = as_called(options, net, typed, way)
        if call is None:
            continue
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        seconds = timed(options, call)
        found["ways"][way] = {"seconds": seconds, "of_ceiling": least / seconds}
        if options.device.startswith("cuda"):
            found["ways"][way]["peak_mib"] = (torch.cuda.max_memory_allocated() - held) / 2**20
        print(preset, name, tuple(image.shape), way, found["ways"][way], flush=True)
    return found


def as_called(options: argparse.Namespace, net: nn.Module, image: Tensor, way: str) -> Callable[[], Tensor] | None:
    if way == "plain":
        return lambda: net(image, 0.3)
    last = image.contiguous(memory_format=torch.channels_last)
    moved = net.to(memory_format=torch.channels_last)
    if way == "channels last":
        return lambda: moved(last, 0.3)
    if way == "compiled":
        compiled = torch.compile(moved)
        return lambda: compiled(last, 0.3)
    if not options.device.startswith("cuda"):
        return None
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm, outside of the graph
        moved(last, 0.3)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = moved(last, 0.3)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@torch.inference_mode()
def official_times(options: argparse.Namespace, image: Tensor) -> Figures:
    net = official(options, "ORNet_arch").ORNet(4, 3, 64, 1, [1] * 4, [1] * 4).eval()
    net.load_state_dict(filled(build_refiner("ornet")).state_dict())
    net = net.to(options.device)

    def low() -> Tensor:
        with torch.autocast(options.device.split(":")[0], torch.float16):
            return net(image, 0.3)  # type: ignore[no-any-return]

    return {"float32": timed(options, lambda: net(image, 0.3)), "float16 autocast": timed(options, low)}


def training(options: argparse.Namespace, preset: str, dtype: torch.dtype) -> Figures:
    """Steps a second of L1 and AdamW on four crops of 256 pixels, by autocast in bfloat16."""
    net = filled(build_refiner(preset)).to(options.device).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    images, wanted = (torch.rand(4, 3, 256, 256, device=options.device) for _ in range(2))

    def step() -> None:
        with torch.autocast(options.device.split(":")[0], dtype, enabled=dtype != torch.float32):
            loss = (net(images, 0.3) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    found = {"steps_a_second": 1 / timed(options, step)}
    if options.device.startswith("cuda"):
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    print(preset, dtype, found, flush=True)
    return found


if __name__ == "__main__":
    main()
