"""What the benchmarks share: the machine in words, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

import refine_wrap
from refine_wrap import write_image
from refine_wrap.images import Picture

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    about = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "refine_wrap": refine_wrap.__version__,
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(runs: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each function, their calls interleaved so that a busy machine slows all of them alike."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: median(values) for name, values in times.items()}


def write(name: str, results: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"wrote {path}")
    return path


def write_pictures(name: str, rows: list[list[Tensor]]) -> None:
    """Pictures (1, 3, H, W) of one size, in rows, as one PNG."""
    table = make_grid(torch.cat([image for row in rows for image in row]), nrow=len(rows[0]), padding=4, pad_value=1)
    pixels = table.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    RESULTS.mkdir(exist_ok=True)
    write_image(RESULTS / f"{name}.png", Picture(pixels), overwrite=True)


def write_curves(name: str, xlabel: str, panels: dict[str, dict[str, tuple[list[float], list[float]]]]) -> None:
    """A panel for each title, in it a line of (x, y) for each label, as one PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, (x, y) in lines.items():
            axis.plot(x, y, marker="." if len(x) > 2 else "", linestyle="-" if len(x) > 2 else "--", label=label)
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=80)
    pyplot.close(figure)
