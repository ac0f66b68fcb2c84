"""`absorb`: what a wrapper learned behind its backbone is moved into the backbone's own weights.

    plain = absorb(wrapper, "photos/", steps=2000)
    plain.save_published("absorbed.pth")

LoRA on the backbone is trained toward the wrapper's own outputs, at one strength, and merged. It takes no ground truth.
What comes back is the plain backbone: the same class, names and multiply-adds, with other weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbone.checkpoint import tensors_digest
from ..errors import DataError, OutputError, RefineWrapError, TrainingError
from ..evaluation import Protocol
from ..recipe import TrainChoice
from ..wrapper import RefineWrapper
from .checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from .data import GroundTruthData, ImageData, ImageStore, StepBatches, loader
from .lora import add_lora, lora_weights, merged
from .monitor import Monitor
from .sources import Item, images
from .trainer import MOST_SKIPPED, StepResult, interruptions, learning_rate, not_finite

Images = str | Path | Sequence[str | Path] | ImageData
"""Low-quality images: a place that a recipe's data.train.gt may name (a folder, a list, an LMDB, a tar), several of
these, or a data set, of which only `lq` is used."""

HELD_OUT = 8
"""Of images that are not a data set, one in so many is held out."""


class LowQualityData(GroundTruthData):
    """Low-quality images alone: `lq`, and `gt` the same."""

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        sample = super().make(row, rng)
        return {**sample, "lq": sample["gt"]}


def absorb(
    wrapper: RefineWrapper,
    data: Images,
    *,
    steps: int,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    strength: float | None = None,
    quality: float | None = None,
    held_out: Images | None = None,
    crop: int = 64,
    batch_size: int = 8,
    learning_rate: float = 3e-4,
    seed: int = 0,
    device: str | torch.device | None = None,
    run: str | Path | None = None,
    save_every: int = 500,
    log_every: int = 50,
    quiet: bool = False,
) -> Backbone:
    """Distil a wrapper into its backbone.

    What is minimised is the share of the wrapper's change that is missing: |student - wrapper|^2 in units of
    |backbone - wrapper|^2, by AdamW with a cosine schedule. 1 at the start, 0 where the student does all.

    Args:
        wrapper: not altered.
        data: low-quality images to train on.
        steps: optimiser steps of the whole run.
        rank, alpha, targets: of LoRA, as in `add_lora`.
        strength: the one strength that the result has; None: the wrapper's own.
        quality: the one quality that it has, for a wrapper with a quality head.
        held_out: images that are not trained on, to measure with. None: every eighth of those in `data`; of a data set
            none, and nothing is measured.
        crop: side of the training crops in low-quality pixels; a data set has its own.
        batch_size: crops of a step.
        learning_rate: highest learning rate. Trained networks want less than those that are drawn at random: of
            dncnn_color_15, 80 steps at 1e-4, 3e-4, 1e-3 and 3e-3 explained 30, 67, 28 and 0% of a change of contrast.
        seed: all chance follows from it.
        device: where to work; None: where the wrapper is.
        run: a folder for `metrics.jsonl` and checkpoints. A run of the same wrapper and settings that is there is gone
            on with. None: nothing is kept.
        save_every: steps between checkpoints; there is one on Ctrl-C too.
        log_every: steps between lines of `metrics.jsonl`.
        quiet: show nothing on the terminal.

    Returns:
        a plain backbone on the CPU, in evaluation mode. `source["absorbed"]` says what it is made of; `explained` in it
        is the share of the wrapper's change that it makes on the held-out images (see `explained`).

    Raises:
        RefineWrapError: an argument is out of range, peft is missing, or the wrapper changes nothing.
        DataError: the images cannot be used.
        OutputError: the run's folder cannot be written, or holds another run.
        TrainingError: the loss was not finite for several steps in a row.
        KeyboardInterrupt: Ctrl-C, after the step was finished and, with `run`, a checkpoint saved.
    """
    if steps < 1 or batch_size < 1 or not 0 < learning_rate <= 1:
        came = f"steps is {steps}, batch_size {batch_size}, learning_rate {learning_rate}"
        raise RefineWrapError(came, "at least one step and one sample, and a learning rate in (0, 1]")
    samples, kept = _data(data, held_out, crop, seed)
    place = torch.device(device) if device is not None else wrapper.backbone.device
    teacher = _Teacher(copy.deepcopy(wrapper).eval().to(place), strength, quality)
    student = copy.deepcopy(wrapper.backbone).to(place).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = add_lora(student, rank=rank, alpha=alpha, targets=targets)
    settings = {
        "backbone": wrapper.backbone.weights_hash(),
        "added": _digest(wrapper),
        "steps": steps,
        "rank": rank,
        "alpha": alpha,
        "layers": layers,
        "strength": teacher.strength,
        "quality": teacher.quality,
        "crop": samples.crop,
        "images": len(samples.store.rows),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    schedule = TrainChoice(steps=steps, learning_rate=learning_rate, warmup_steps=min(20, steps // 10))
    if run is not None:
        try:
            Path(run).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"The run's folder {run} cannot be made: {reason}", "a folder, or a free name") from None
    temporary: AbstractContextManager[str | Path] = TemporaryDirectory() if run is None else nullcontext(run)
    with temporary as folder, interruptions() as interrupted:
        work = _Work(teacher, student, samples, schedule, batch_size, seed, Path(folder), run is not None, settings)
        work.train(save_every, log_every, quiet, interrupted)
    figures = {key: settings[key] for key in ("backbone", "steps", "rank", "strength", "quality")}
    plain = merged(student)
    if kept is not None:
        measured = (kept[number]["lq"] for number in range(len(kept)))
        figures["explained"] = explained(teacher.wrapper, plain, measured, strength=strength, quality=quality)
        figures["held_out"] = len(kept)
    plain.source = {**plain.rebuild(), "absorbed": figures}
    return plain.cpu().eval()


@torch.no_grad()
def explained(
    wrapper: RefineWrapper,
    absorbed: Backbone,
    images: Iterable[Tensor],
    *,
    strength: float | None = None,
    quality: float | None = None,
) -> float:
    """How much of what the wrapper changes the absorbed backbone does: 1 - |absorbed - wrapped|^2 / |bare - wrapped|^2.

    1: all of it. 0: no better than the bare backbone. It can be negative.

    Args:
        wrapper: with the bare backbone in it.
        absorbed: on the wrapper's device.
        images: (3, h, w) each, RGB in [0, 1]; the squares are summed over all of them.

    Raises:
        RefineWrapError: the wrapper changes nothing.
    """
    teacher = _Teacher(wrapper, strength, quality)
    missing = change = 0.0
    for image in images:
        lq = image[None].to(wrapper.backbone.device)
        wanted = teacher(lq)
        missing += float((absorbed(lq) - wanted).double().square().sum())
        change += float((wrapper.backbone(lq) - wanted).double().square().sum())
    if change == 0:
        raise _nothing_to_absorb()
    return 1 - missing / change


@torch.no_grad()
def gain_kept(
    wrapper: RefineWrapper,
    absorbed: Backbone,
    samples: Iterable[Mapping[str, Any]],
    protocol: Protocol | None = None,
    *,
    strength: float | None = None,
    quality: float | None = None,
) -> dict[str, float | None]:
    """A metric of the bare backbone, the wrapper and the absorbed backbone against the ground truth.

    Args:
        samples: `lq` (3, h, w) and `gt` (3, h * scale, w * scale) each, such as an `ImageData`.
        protocol: the metric; None: PSNR, without a border of `scale` pixels above scale 1.

    Returns:
        the means `backbone`, `wrapped` and `absorbed`, and `kept`: (absorbed - backbone) / (wrapped - backbone), None
        where the wrapper gains nothing.
    """
    scale = wrapper.scale
    metric = protocol or Protocol("PSNR", border=scale if scale > 1 else 0)
    teacher = _Teacher(wrapper, strength, quality)
    sums = {"backbone": 0.0, "wrapped": 0.0, "absorbed": 0.0}
    count = 0
    for sample in samples:
        lq = sample["lq"][None].to(wrapper.backbone.device)
        gt = sample["gt"][None].to(lq.device)
        outputs = {"backbone": wrapper.backbone(lq), "wrapped": teacher(lq), "absorbed": absorbed(lq)}
        for name, output in outputs.items():
            sums[name] += float(metric(output, gt))
        count += 1
    if not count:
        raise DataError("There are no samples to measure on")
    means = {name: total / count for name, total in sums.items()}
    gain = means["wrapped"] - means["backbone"]
    return {**means, "kept": (means["absorbed"] - means["backbone"]) / gain if gain > 0 else None}


# ---------------------------------------------------------------- the pieces


class _Teacher:
    """A wrapper at one strength and quality."""

    def __init__(self, wrapper: RefineWrapper, strength: float | None, quality: float | None) -> None:
        self.wrapper = wrapper
        self.quality = wrapper.quality if quality is None and wrapper.adds_quality else quality
        self.strength = wrapper.strength if strength is None else strength

    @torch.no_grad()
    def __call__(self, lq: Tensor) -> Tensor:
        output: Tensor = self.wrapper(lq, self.strength, self.quality)
        return output


@dataclass
class _Work:
    teacher: _Teacher
    student: Backbone
    samples: ImageData
    schedule: TrainChoice
    batch_size: int
    seed: int
    folder: Path
    keeps: bool
    """Whether checkpoints are written."""
    settings: dict[str, Any]

    def train(self, save_every: int, log_every: int, quiet: bool, interrupted: list[int]) -> None:
        trained, steps = lora_weights(self.student), self.schedule.steps
        parameters = list(trained.parameters())
        optimizer = torch.optim.AdamW(parameters, self.schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        unit = self._unit()
        start = self._resume(optimizer)
        failures: list[list[str]] = []
        batches = StepBatches(len(self.samples), self.batch_size, self.seed, start, steps)
        with Monitor(self.folder, steps, start, quiet=quiet) as monitor:
            monitor.say(
                f"absorbing into {len(self.settings['layers'])} layers of {self.student.spec.family}, "
                f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(self.samples.store.rows)} images"
                + (f"; resumed at step {start}" if start else "")
            )
            clock = time.perf_counter()
            for step, batch in enumerate(loader(self.samples, batches, 0), start):
                waited = time.perf_counter() - clock
                rate = learning_rate(step, self.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                lq = batch["lq"].to(self.student.device)
                missing = (self.student(lq) - self.teacher(lq)).float().square().mean() / unit
                missing.backward()
                norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
                finite = math.isfinite(norm) and math.isfinite(float(missing.detach()))
                if finite:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                failures = [] if finite else [*failures, batch["name"]]
                done = step + 1
                result = StepResult({"missing": float(missing.detach())}, finite, bool(interrupted), rate)
                monitor.step(done, result, waited, log_every)
                if len(failures) >= MOST_SKIPPED:
                    raise not_finite(done, failures, "look at these files, or lower the learning rate")
                stop = result.stop and done < steps
                if self.keeps and (stop or done == steps or done % save_every == 0):
                    self._save(done, optimizer)
                if stop:
                    monitor.say(f"stopped at step {done}" + (f", saved in {self.folder}" if self.keeps else ""))
                    raise KeyboardInterrupt
                clock = time.perf_counter()

    @torch.no_grad()
    def _unit(self) -> float:
        """Mean square of what the wrapper changes, in the samples of a few steps."""
        squares = []
        for batch in loader(self.samples, StepBatches(len(self.samples), self.batch_size, self.seed, 0, 4), 0):
            lq = batch["lq"].to(self.student.device)
            squares.append(float((self.teacher(lq) - self.teacher.wrapper.backbone(lq)).float().square().mean()))
        unit = sum(squares) / len(squares)
        if unit == 0:
            raise _nothing_to_absorb()
        if not math.isfinite(unit):
            raise TrainingError("The wrapper's outputs are not finite", "finite outputs to learn from")
        return unit

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        saved = newest_checkpoint(self.folder / "checkpoints") if self.keeps else None
        if saved is None:
            return 0
        changed = sorted(name for name, value in self.settings.items() if saved.recipe.get(name) != value)
        if changed:
            raise RefineWrapError(
                f"{self.folder} holds a run with another {', '.join(changed[:4])}",
                "the same wrapper and settings to go on with it",
                "name another folder",
            )
        lora_weights(self.student).load_state_dict(saved.weights)
        optimizer.load_state_dict(saved.optimizer)
        return saved.step

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        weights = dict(lora_weights(self.student).state_dict())
        checkpoint = Checkpoint(step, weights, {}, optimizer.state_dict(), self.settings)
        save_checkpoint(self.folder / "checkpoints", checkpoint, keep=2)


def _data(data: Images, held_out: Images | None, crop: int, seed: int) -> tuple[ImageData, ImageData | None]:
    """The samples to train on, and those to measure with."""
    if isinstance(data, ImageData):
        return data, None if held_out is None else _measured(held_out, crop, seed)
    files = _files(data)
    measured: ImageData
    if held_out is None:
        if len(files) < 2:
            raise DataError(
                f"There is {len(files)} image to learn from", "two or more: one is held out to measure with"
            )
        measured = LowQualityData(_store(files[::HELD_OUT]), crop=crop, seed=seed, fixed=True)
        files = [file for number, file in enumerate(files) if number % HELD_OUT]
    else:
        measured = _measured(held_out, crop, seed)
    return LowQualityData(_store(files), crop=crop, seed=seed), measured


def _measured(held_out: Images, crop: int, seed: int) -> ImageData:
    if isinstance(held_out, ImageData):
        return held_out
    return LowQualityData(_store(_files(held_out)), crop=crop, seed=seed, fixed=True)


def _files(places: str | Path | Sequence[str | Path]) -> list[Item]:
    listed = [places] if isinstance(places, (str, Path)) else places
    return list(dict.fromkeys(item for place in listed for item in images(str(Path(place).expanduser()))))


def _store(files: Sequence[Item]) -> ImageStore:
    return ImageStore([(file,) for file in files], int(2e9))


def _digest(wrapper: RefineWrapper) -> str:
    """SHA-256 of what was added to the backbone."""
    return tensors_digest({n: v for n, v in wrapper.state_dict().items() if not n.startswith("backbone.")})


def _nothing_to_absorb() -> RefineWrapError:
    return RefineWrapError(
        "The wrapper returns what its backbone returns: there is nothing to absorb",
        "a wrapper with a trained refiner, at a strength where it changes something",
    )
