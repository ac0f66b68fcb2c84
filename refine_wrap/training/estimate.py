"""What a run would take: two steps of it, written nowhere."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..recipe import Recipe
from .data import loader
from .frozen import FrozenData, OutputStore, needed
from .trainer import Run, fill_cache, prepare, take_step, threads


def dry_run(recipe: Recipe | str | Path) -> dict[str, Any]:
    """Two steps of a recipe, the second one timed, and what the whole run would take. Nothing is written.

    Returns:
        `parameters` (trained, in all, share), `images`, `steps`, `seconds_per_step`, `data_wait_share`,
        `validation_seconds` (of one validation, by one image), `hours` (of the whole run, without saving),
        `peak_memory_mib` (of the GPU; on a CPU of this process), `checkpoint_mib`, `losses`, `device`. With
        `backbone_cache` also `cached_outputs` (how many are to be computed) and `cached_mib`; the step is timed with
        them kept, and `hours` has the time to make them.

    Raises:
        what `finetune` raises before it writes.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    with threads(recipe.train.threads):
        return _try(prepare(recipe, "auto"))


def _try(run: Run) -> dict[str, Any]:
    options, objective, device = run.recipe.train, run.objective, run.accelerator.device
    batches = replace(run.batches, start=0, stop=2)
    samples: Any = run.data
    cache: dict[str, Any] = {}
    making = 0.0
    if run.recipe.backbone_cache.keep != "none":
        frozen = FrozenData(run.data, OutputStore(None), "")  # in memory, under names of no other run
        keys = needed(run.batches, run.data.variants or 1)
        began = time.perf_counter()
        made = fill_cache(run, frozen, needed(batches, run.data.variants or 1))
        each = sum(t.nbytes for entry in frozen.store.kept.values() for t in entry.values()) / max(made, 1)
        making = (time.perf_counter() - began) / max(made, 1) * len(keys)
        cache = {"cached_outputs": len(keys), "cached_mib": each * len(keys) / 2**20}
        samples = frozen
    clock = time.perf_counter()
    for step, batch in enumerate(loader(samples, batches, options.workers)):
        waited = time.perf_counter() - clock
        result = take_step(run, step, batch, ())
        synchronize(device)
        seconds = time.perf_counter() - clock
        clock = time.perf_counter()
    checking = 0.0
    if run.validation is not None:
        with objective.evaluation():
            objective.validate(run.recipe, run.validation, device, None, 1)
        checking = (time.perf_counter() - clock) * len(run.validation)
    validations = -(-options.steps // run.recipe.validate_every) if run.validation is not None else 0
    trained = sum(parameter.numel() for parameter in objective.parameters())
    total = sum(parameter.numel() for module in objective.networks() for parameter in module.parameters())
    moments = sum(v.nbytes for entry in run.optimizer.state.values() for v in entry.values() if isinstance(v, Tensor))
    kept = sum(v.nbytes for v in (*objective.trained().state_dict().values(), *run.average.values.values()))
    return {
        "parameters": {"trained": trained, "all": total, "share": trained / total},
        "images": len(run.data.store.rows),
        "steps": options.steps,
        "device": str(device),
        "losses": result.losses,
        "seconds_per_step": seconds,
        "data_wait_share": waited / seconds,
        "validation_seconds": checking,
        "hours": (seconds * options.steps + checking * validations + making) / 3600,
        "peak_memory_mib": peak_memory(device) / 2**20,
        "checkpoint_mib": (moments + kept) / 2**20,
        **cache,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Most bytes so far: allocated on a GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
