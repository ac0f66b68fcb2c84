"""What a run shows and writes down: progress, metrics.jsonl, versions, pictures."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError
from ..folder import atomic_path
from ..images import Picture
from ..resources import versions

if TYPE_CHECKING:
    from .trainer import StepResult

METRICS, RECIPE, ABOUT = "metrics.jsonl", "recipe.yaml", "run.json"


class Monitor:
    """Progress on the terminal, and the run's metrics. Processes but the first have `active=False` and do nothing.

    `trackers`: an `Accelerator` whose trackers get the metrics too.
    """

    def __init__(
        self, folder: Path, steps: int, start: int, *, quiet: bool, active: bool = True, trackers: Any = None
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.folder, self.steps, self.active = folder, steps, active
        self.console = Console(stderr=True, quiet=quiet or not active)
        self.sums: dict[str, float] = {}
        self.judged: dict[str, float] = {}
        self.count = self.skipped = 0
        self.wait = 0.0
        self.since = time.perf_counter()
        self.live = self.console.is_terminal and not self.console.quiet
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.task = self.progress.add_task("training", total=steps, completed=start, state="")
        if active:
            _trim(folder / METRICS, start)
        self.trackers = trackers if trackers is not None and trackers.log_with else None

    def __enter__(self) -> Monitor:
        if self.trackers is not None:
            self.trackers.init_trackers("tracked")
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.trackers is not None:
            self.trackers.end_training()

    def say(self, text: str) -> None:
        """One line on the terminal."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(
        self,
        step: int,
        result: StepResult,
        wait: float,
        every: int,
        measured: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """After each step. Writes a line every `every` steps and at the end, with what is measured then."""
        self.wait += wait
        self.count += 1
        self.skipped += not result.finite
        if result.finite:
            for sums, values in ((self.sums, result.losses), (self.judged, result.adversary)):
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
        self.progress.update(self.task, completed=step)
        if step % every and step != self.steps:
            return
        seconds = time.perf_counter() - self.since
        done = max(self.count - self.skipped, 1)
        means = {name: value / done for name, value in self.sums.items()}
        more = measured()
        line = {
            "kind": "train",
            "step": step,
            "loss": sum(means.values()),
            "losses": means,
            **({"adversary": {name: value / done for name, value in self.judged.items()}} if self.judged else {}),
            "learning_rate": result.rate,
            "seconds_per_step": seconds / self.count,
            "data_wait_share": min(self.wait / max(seconds, 1e-9), 1.0),
            "skipped": self.skipped,
            **({"measured": more} if more else {}),
        }
        self.write(line)
        left = (self.steps - step) * seconds / self.count
        state = f"loss {line['loss']:.5f}  {seconds / self.count:.3g} s/step  data {line['data_wait_share']:.0%}"
        self.progress.update(self.task, state=state)
        if not self.live:
            self.say(f"step {step}/{self.steps}  {state}  {_duration(left)} left")
        self.resume_clock()

    def filling(self, done: int, total: int) -> None:
        """After each batch of outputs of the frozen backbone that are computed before the first step."""
        state = f"backbone cache {done}/{total}"
        self.progress.update(self.task, state=state)
        if not self.live and (done == total or time.perf_counter() - self.since > 60):
            self.say(state)
            self.since = time.perf_counter()

    def resume_clock(self) -> None:
        """Begin a new stretch: what came before (a validation, a checkpoint) does not count as training time."""
        self.sums, self.judged, self.count, self.skipped, self.wait = {}, {}, 0, 0, 0.0
        self.since = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Take time that was not training out of the present stretch."""
        self.since += seconds

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if not self.active:
            return
        if self.trackers is not None:
            self.trackers.log(_scalars(line), step=line["step"])
        path = self.folder / METRICS
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}", None, "make room, then resume"
            ) from error


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line by name, as trackers take them."""
    if line["kind"] == "validation":
        return {f"validation/{metric['name']}": metric["value"] for metric in line["metrics"]}
    figures = line["losses"] | line.get("adversary", {}) | line.get("measured", {})
    losses = {f"train/{name}": value for name, value in figures.items()}
    return {**losses, **{f"train/{name}": line[name] for name in ("loss", "learning_rate", "seconds_per_step")}}


def _trim(path: Path, step: int) -> None:
    """Drop the lines of steps that are done again after a resumption, and a line that was cut off."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{hours:.1f} h"


def open_run(folder: Path, recipe_yaml: str, about: Mapping[str, Any]) -> None:
    """Make the run's folder with its resolved recipe and what it runs on.

    Raises:
        OutputError: the folder cannot be written.
    """
    packages = ("torch", "accelerate", "numpy", "safetensors", "spandrel", "pillow", "opencv-python")
    system = {"platform": platform.platform(), "processor": platform.machine(), "threads": torch.get_num_threads()}
    # The recipe's paths are relative to the folder that the run was started in.
    call = {"folder": os.getcwd(), "argv": [Path(sys.argv[0]).name, *sys.argv[1:]]}
    document = {**about, "versions": versions(*packages), "system": system, **call}
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The run's folder {folder} is a file", "a folder, or a name that is free", "set output=...")
    with atomic_path(folder / RECIPE) as temporary:
        temporary.write_text(recipe_yaml, encoding="utf-8")
    with atomic_path(folder / ABOUT) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def save_strip(path: Path, images: list[Tensor]) -> None:
    """Pictures side by side at the height of the last; smaller ones are enlarged by repeating pixels.

    Args:
        path: a PNG file.
        images: (1, 3, H, W) each, in [0, 1]; clamped.
    """
    height = images[-1].shape[-2]
    shown = []
    for image in images:
        times = height // image.shape[-2]
        shown.append(image.float().cpu().repeat_interleave(times, 2).repeat_interleave(times, 3))
    strip = torch.cat(shown, 3)
    picture = Picture(np.zeros((height, strip.shape[-1], 3), np.uint8))
    picture.put(0, 0, strip)
    picture.save(path, overwrite=True)
