"""Checkpoints of a run: a folder each, whole or not there, and the newest whole one for resuming.

checkpoints/step_00001000/
    weights.safetensors      what is trained
    average.safetensors      its exponential moving average (without averaging: empty)
    optimizer.safetensors    the optimiser's tensors
    adversary.safetensors    the discriminator with its optimiser (without one: empty)
    state.json               step, recipe, the optimiser's numbers, SHA-256 of the files; written last
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, OutputError
from ..resources import file_digest

WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "average.safetensors", "optimizer.safetensors"
ADVERSARY, STATE = "adversary.safetensors", "state.json"
PREFIX = "step_"


@dataclass
class Checkpoint:
    """All that a run needs to go on exactly: chance follows from the step, so no generator is stored."""

    step: int
    """Steps done."""
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Empty without averaging."""
    optimizer: dict[str, Any]
    """As `optimizer.state_dict()`."""
    recipe: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    """JSON: counters, the gradient scaler."""
    adversary: dict[str, Tensor] = field(default_factory=dict)
    """As `Adversary.state()`; empty without one."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step_N`, then remove all but the newest `keep`.

    Raises:
        OutputError: it cannot be written (full disk, no permission); earlier checkpoints are intact.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"{PREFIX}{checkpoint.step:08d}"
    staging = folder / f".{target.name}.{uuid.uuid4().hex}"
    tensors, numbers = _pack(checkpoint.optimizer)
    parts = {WEIGHTS: checkpoint.weights, AVERAGE: checkpoint.average, OPTIMIZER: tensors}
    parts[ADVERSARY] = checkpoint.adversary
    try:
        staging.mkdir(parents=True)
        for name, part in parts.items():
            # Clones: tensors that share memory are refused by safetensors.
            save_file({key: value.detach().cpu().clone().contiguous() for key, value in part.items()}, staging / name)
            _sync(staging / name)
        state = {
            "step": checkpoint.step,
            "recipe": checkpoint.recipe,
            "optimizer": numbers,
            "more": checkpoint.more,
            "sha256": {name: file_digest(staging / name) for name in parts},
        }
        (staging / STATE).write_text(json.dumps(state), encoding="utf-8")
        _sync(staging / STATE)
        if target.exists():  # a broken one, or the same step after a resumption
            shutil.rmtree(target)
        os.replace(staging, target)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else (getattr(error, "strerror", None) or str(error))
        raise OutputError(
            f"The checkpoint {target} cannot be written: {reason}", None, "make room or rights, then resume the run"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for old in _found(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; broken ones before it are named in a warning. None: there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all are broken.
    """
    found = _found(folder)
    faults = []
    for path in found:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            faults.append(error.came)
            warnings.warn(f"{error.came}; the one before is taken", RuntimeWarning, stacklevel=2)
    if faults:
        raise CheckpointError(
            f"No checkpoint in {folder} is whole: {'; '.join(faults[:2])}",
            "one whole checkpoint",
            "start again with another output folder, or remove this one",
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if file_digest(path / name) != digest:
                raise CheckpointError(f"The checkpoint {path} is broken: {name} is not as it was written")
        weights, average, tensors, adversary = (
            load_file(path / name) for name in (WEIGHTS, AVERAGE, OPTIMIZER, ADVERSARY)
        )
        optimizer = _unpack(tensors, state["optimizer"])
        return Checkpoint(int(state["step"]), weights, average, optimizer, state["recipe"], state["more"], adversary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The checkpoint {path} is broken ({reason})", "a whole checkpoint") from None


def _found(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    names = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(names, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def _sync(path: Path) -> None:
    """To the disk before the rename, so that a power cut leaves no empty files under the final name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _pack(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by "number.name", and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"groups": optimizer["param_groups"], "numbers": numbers}


def _unpack(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in rest["numbers"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} for group in rest["groups"]]
    return {"state": state, "param_groups": groups}


class Average:
    """Exponential moving average of a module's whole state.

    Floating tensors are averaged in float32, others copied. Early on the decay is smaller, (1 + n) / (10 + n), so that
    short runs do not keep their first weights.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.count = 0
        self.values: dict[str, Tensor] = {}
        if decay:
            self.values = {name: self._own(value) for name, value in module.state_dict().items()}

    @staticmethod
    def _own(value: Tensor) -> Tensor:
        return value.detach().float().clone() if value.is_floating_point() else value.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """After an optimiser step."""
        if not self.decay:
            return
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in self.module.state_dict().items():
            mean = self.values[name]
            if value.is_floating_point():
                mean.lerp_(value.detach().float(), 1 - decay)
            else:
                mean.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged values (without averaging: its own)."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()} if self.decay else {}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        state = self.module.state_dict()
        for name, value in values.items():
            state[name].copy_(value)
