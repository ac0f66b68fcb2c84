"""The training loop, for every objective, to be read from top to bottom."""

from __future__ import annotations

import importlib.util
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import OutputError, TrainingError
from ..folder import shard
from ..manifests import locked
from ..recipe import Recipe, TrainChoice
from .activations import checkpoint_activations
from .adversary import Adversary
from .checkpoint import Average, Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from .data import ImageData, Sample, StepBatches, loader
from .frozen import FrozenData, fill, frozen_data, needed
from .monitor import ABOUT, Monitor, open_run
from .objectives import ImageObjective, Objective, RefineObjective, build_objective

MOST_SKIPPED = 5
"""Steps in a row whose loss is not finite before the run stops."""
Notify = Callable[[int, int], None]
FREE_KEYS = {
    "description",
    "licence",
    "output",
    "validate_every",
    "save_every",
    "save_at",
    "save_at_epochs",
    "keep_checkpoints",
    "data.validation",
    "data.cache",
    "data.sources",
    "backbone_cache.keep",
    "backbone_cache.folder",
    "train.accumulate",
    "train.workers",
    "train.threads",
    "train.device",
    "train.log_every",
    "train.trackers",
    "train.activation_checkpointing",
}
"""What may change between a run and its resumption."""


def finetune(recipe: Recipe | str | Path, *, resume: str | Path = "auto", quiet: bool = False) -> Path:
    """Train what a recipe says.

    Args:
        recipe: a `Recipe`, or what `Recipe.load` takes.
        resume: "auto": go on from the newest whole checkpoint of the run's folder, if there is one; "never": refuse a
            folder that has checkpoints; or the path of one checkpoint of the same recipe.
        quiet: show nothing on the terminal.

    Returns:
        the folder of the result: an adapter (objective refine) or a backbone (restore).

    Raises:
        RecipeError: the recipe does not fit the backbone, the machine or the run that is resumed.
        DataError: the images cannot be used.
        CheckpointError: the backbone's weights or the checkpoints cannot be read.
        OutputError: the run's folder cannot be written, or another process trains in it.
        TrainingError: the loss was not finite for several steps in a row.
        KeyboardInterrupt: Ctrl-C (or SIGTERM), after the step was finished and a checkpoint saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    with threads(recipe.train.threads), interruptions() as interrupted:
        run = prepare(recipe, resume)
        with locked(recipe.folder / ABOUT, 0) if run.first else nullcontext():
            return _train(run, quiet, interrupted)


@dataclass
class Run:
    """A run that is ready: everything on its device, nothing written yet."""

    recipe: Recipe
    accelerator: Any
    objective: Objective
    model: Any
    """The objective as accelerate runs it."""
    optimizer: Any
    prepared: Any
    """The optimiser as accelerate steps it."""
    average: Average
    data: ImageData
    validation: ImageData | None
    batches: StepBatches

    @property
    def first(self) -> bool:
        """Whether this process writes and shows."""
        return bool(self.accelerator.is_main_process)

    @property
    def result_steps(self) -> set[int]:
        """Steps after which the result is written too, as the recipe says."""
        share = self.batches.count / self.batches.batch_size
        return {*self.recipe.save_at, *(max(1, round(epochs * share)) for epochs in self.recipe.save_at_epochs)}

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.recipe.train.channels_last else torch.contiguous_format


def prepare(recipe: Recipe, resume: str | Path = "auto") -> Run:
    """Build and load everything. What can be refused is refused here, before anything is written."""
    options = recipe.train
    accelerator = _accelerator(recipe)
    saved = _resumed(recipe, resume)
    objective = build_objective(recipe)
    data, validation = objective.data(recipe)
    alone = recipe.backbone is None or recipe.backbone.weights is not None
    if recipe.objective in ("refine", "quality") and not alone:
        text = "The backbone has no weights: what is added is trained with a random network"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    if options.activation_checkpointing and not checkpoint_activations(objective.networks()[-1]):
        text = "train.activation_checkpointing finds no repeated blocks in this network, and changes nothing"
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    gan = recipe.losses.gan
    if gan is not None and gan.weight > 0:
        assert isinstance(objective, ImageObjective)  # the recipe has checked it
        with recipe.at("losses.gan", "losses"):
            objective.adversary = Adversary(gan, accelerator, options.seed)

    # The order matters: weights before the optimiser, and both on their device before the saved state is put in.
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    objective.train().to(accelerator.device)
    objective.to(memory_format=layout)
    if saved:
        _load(objective.trained(), saved.weights, "weights")
    optimizer = torch.optim.AdamW(
        objective.parameters(),
        options.learning_rate,
        betas=(options.betas[0], options.betas[1]),
        weight_decay=options.weight_decay,
    )
    average = Average(objective.trained(), options.ema)
    if options.compile:
        for network in objective.networks():
            network.compile()
    model, prepared = accelerator.prepare(objective, optimizer)
    if saved:
        optimizer.load_state_dict(saved.optimizer)
        average.values = {name: value.to(accelerator.device) for name, value in saved.average.items()}
        average.count = int(saved.more["averaged"])
        if accelerator.scaler is not None and saved.more.get("scaler"):
            accelerator.scaler.load_state_dict(saved.more["scaler"])
        if objective.adversary is not None:
            objective.adversary.load(saved.adversary)
    start = saved.step if saved else 0
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = StepBatches(len(data), options.batch_size, options.seed, start, options.steps, rank, world)
    run = Run(recipe, accelerator, objective, model, optimizer, prepared, average, data, validation, batches)
    late = max(run.result_steps, default=0)
    if late > options.steps:
        key = "save_at" if late in recipe.save_at else "save_at_epochs"
        raise recipe.refuse(key, f"{key} names step {late}", f"none after train.steps, {options.steps}")
    return run


def _train(run: Run, quiet: bool, interrupted: list[int]) -> Path:
    recipe, options, folder = run.recipe, run.recipe.train, run.recipe.folder
    objective, average, accelerator, start = run.objective, run.average, run.accelerator, run.batches.start
    checkpoints = folder / "checkpoints"
    _open(run)

    metrics: list[dict[str, Any]] = []
    failures: list[list[str]] = []  # the files of the last steps in a row whose loss was not finite
    with Monitor(folder, options.steps, start, quiet=quiet, active=run.first, trackers=accelerator) as monitor:
        monitor.say(_headline(run))
        samples = _samples(run, monitor, interrupted)
        monitor.resume_clock()
        clock = time.perf_counter()
        for step, batch in enumerate(loader(samples, run.batches, options.workers), start):
            waited = time.perf_counter() - clock
            done, last = step + 1, step + 1 == options.steps
            result = take_step(run, step, batch, interrupted)
            failures = [] if result.finite else [*failures, batch["name"]]
            monitor.step(done, result, waited, options.log_every, objective.measured)
            if len(failures) >= MOST_SKIPPED:
                advice = (
                    f"look at these files, lower train.learning_rate or use float32; checkpoints are in {checkpoints}"
                )
                raise not_finite(done, failures, advice)

            # Validation, checkpoints, Ctrl-C.
            began = time.perf_counter()
            stop = result.stop and not last
            if run.validation is not None and (last or (done % recipe.validate_every == 0 and not stop)):
                if run.first:
                    before = metrics
                    with average.applied():
                        metrics = _validate(run, folder / "pictures" / f"step_{done:08d}")
                    if metrics == before:
                        text = f"Validation at step {done} is what it was before, to the last digit: nothing is learned"
                        warnings.warn(text, RuntimeWarning, stacklevel=4)
                    monitor.write({"kind": "validation", "step": done, "metrics": metrics})
                    monitor.say(f"step {done}: " + ", ".join(f"{m['name']} {m['value']:.4f}" for m in metrics))
                accelerator.wait_for_everyone()
            if done in run.result_steps and run.first:
                seen = {"value": done * options.batch_size, "protocol": "steps times batch size", "data": "data.train"}
                with average.applied():
                    objective.save(folder / "at" / f"step_{done}", recipe, [{"name": "images seen", **seen}])
            if last or stop or done % recipe.save_every == 0:
                _save(run, done)
            if stop:
                monitor.say(f"stopped at step {done}, saved in {checkpoints}")
                raise KeyboardInterrupt
            clock = time.perf_counter()
            monitor.pause(clock - began)

        if start >= options.steps and run.validation is not None and run.first:  # resumed when all was done
            with average.applied():
                metrics = _validate(run, None)

    with average.applied():
        objective.eval().to("cpu")
        if run.first:
            objective.save(folder, recipe, metrics)
    accelerator.wait_for_everyone()
    return folder / objective.result


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step came to, the same in every process."""

    losses: dict[str, float]
    finite: bool
    stop: bool
    """Whether a process was told to stop."""
    rate: float
    """The learning rate."""
    adversary: dict[str, float] = field(default_factory=dict)
    """What the discriminator says of itself, where there is one."""


def take_step(run: Run, step: int, batch: dict[str, Any], interrupted: Sequence[int]) -> StepResult:
    """One optimiser step, counted from 0."""
    options, accelerator, objective = run.recipe.train, run.accelerator, run.objective
    rate = learning_rate(step, options)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(_step_seed(options.seed, step, run.batches.rank))  # for dropout and stochastic depth
    adversary = objective.adversary
    if adversary is not None:
        adversary.now = step

    # Forward and backward, in parts. Gradients meet between processes with the last part only.
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    parts = _split(tensors, options.accumulate, accelerator.device, run.layout)
    losses: dict[str, Tensor] = {}
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else accelerator.no_sync(run.model):
            terms: dict[str, Tensor] = run.model(part)
            accelerator.backward(torch.stack(list(terms.values())).sum() / len(parts))
        for name, value in terms.items():
            losses[name] = losses.get(name, value.new_zeros(())) + value.detach() / len(parts)

    # One reduction tells every process the mean losses, and whether one was told to stop.
    limit = options.gradient_clip if options.gradient_clip is not None else math.inf
    norm = accelerator.clip_grad_norm_(list(objective.parameters()), limit)
    told = torch.stack([*losses.values(), torch.tensor(float(bool(interrupted)), device=accelerator.device)])
    told = accelerator.reduce(told, "mean").tolist()
    values = dict(zip(losses, told, strict=False))
    # float16 has infinite gradients now and then; its scaler skips those steps and lowers its scale.
    scaled = accelerator.scaler is not None
    finite = all(map(math.isfinite, values.values())) and (scaled or math.isfinite(float(norm)))
    if finite or scaled:
        run.prepared.step()
    run.prepared.zero_grad(set_to_none=True)
    if finite and not accelerator.optimizer_step_was_skipped:
        run.average.update()

    # The discriminator learns from what the objective has just shown it.
    judged: dict[str, float] = {}
    if adversary is not None:
        assert isinstance(objective, ImageObjective)  # only these have one
        seen = objective.take_seen()
        if finite:
            judged = {name: float(v) for name, v in adversary.step(seen, rate / options.learning_rate).items()}
    return StepResult(values, finite, told[-1] > 0, rate, judged)


# ---------------------------------------------------------------- the pieces


def learning_rate(step: int, options: TrainChoice) -> float:
    """The learning rate of a step, counted from 0: of the step alone, so that there is nothing to resume."""
    warmup = min(options.warmup_steps, options.steps // 2)
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return options.learning_rate
    if options.schedule == "multistep":
        passed = sum(step >= share * options.steps for share in options.milestones)
        return float(options.learning_rate * options.gamma**passed)
    final = min(options.final_learning_rate, options.learning_rate)
    progress = (step - warmup) / max(options.steps - warmup, 1)
    return final + (options.learning_rate - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _open(run: Run) -> None:
    """Make the run's folder, with what is known before the first step."""
    if run.first:
        open_run(
            run.recipe.folder,
            run.recipe.to_yaml(),
            {
                "seed": run.recipe.train.seed,
                "device": str(run.accelerator.device),
                "processes": run.batches.world,
                "resumed_at": run.batches.start or None,
                "training_images": len(run.data.store.rows),
                "unreadable": sorted(map(str, run.data.store.unreadable)),
            },
        )
        run.objective.begin(run.recipe.folder)
    run.accelerator.wait_for_everyone()


def _samples(run: Run, monitor: Monitor, interrupted: list[int]) -> Dataset[Sample]:
    """The training samples; with `backbone_cache`, what the frozen backbone makes of them is computed first."""
    if run.recipe.backbone_cache.keep == "none":
        return run.data
    assert isinstance(run.objective, RefineObjective)  # the recipe has checked it
    frozen = frozen_data(run.recipe, run.objective.backbone, run.data)
    keys = needed(run.batches, run.data.variants or 1)
    if frozen.store.folder is not None:  # the processes share the files, and the work
        keys = shard(keys, run.batches.rank, run.batches.world)

    def notify(done: int, total: int) -> None:
        monitor.filling(done, total)
        if interrupted:  # what is made is kept on the disk
            raise KeyboardInterrupt

    made = fill_cache(run, frozen, keys, notify)
    monitor.say(f"backbone cache: {made} outputs computed, {len(keys) - made} were there")
    run.accelerator.wait_for_everyone()
    return frozen


def fill_cache(run: Run, frozen: FrozenData, keys: list[tuple[int, int]], notify: Notify | None = None) -> int:
    options, objective = run.recipe.train, run.objective
    assert isinstance(objective, RefineObjective)  # the recipe has checked it

    def compute(lq: Tensor) -> dict[str, Tensor]:
        with run.accelerator.autocast():
            return objective.frozen(lq.contiguous(memory_format=run.layout))

    return fill(
        frozen,
        keys,
        compute,
        batch_size=max(1, options.batch_size // run.batches.world // options.accumulate),
        workers=options.workers,
        device=run.accelerator.device,
        dtype=torch.float16 if run.recipe.backbone_cache.dtype == "float16" else None,
        notify=notify,
    )


def _validate(run: Run, pictures: Path | None) -> list[dict[str, Any]]:
    assert run.validation is not None  # asked by the caller
    with run.objective.evaluation():
        return run.objective.validate(run.recipe, run.validation, run.accelerator.device, pictures, None)


def _save(run: Run, step: int) -> None:
    """A checkpoint after `step` steps."""
    if run.first:
        scaler = run.accelerator.scaler
        save_checkpoint(
            run.recipe.folder / "checkpoints",
            Checkpoint(
                step,
                dict(run.objective.trained().state_dict()),
                run.average.values,
                run.optimizer.state_dict(),
                run.recipe.to_dict(),
                {"averaged": run.average.count, "scaler": scaler.state_dict() if scaler is not None else None},
                run.objective.adversary.state() if run.objective.adversary is not None else {},
            ),
            run.recipe.keep_checkpoints,
        )
    run.accelerator.wait_for_everyone()


def _accelerator(recipe: Recipe) -> Any:
    """accelerate for the recipe's device and precision.

    Raises:
        RecipeError: the device is not there, or the batch cannot be divided among the processes.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    options = recipe.train
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(options.device, True):
        raise recipe.refuse(
            "train.device", f"train.device is {options.device}, which torch does not find here", "auto or cpu"
        )
    if PartialState._shared_state == {} or PartialState().num_processes == 1:
        # accelerate keeps device and precision of the first run in this process; a second one must not get them.
        AcceleratorState._reset_state(reset_partial_state=True)
    precision = "no" if options.precision == "float32" else options.precision
    on_cpu = options.device == "cpu" or (options.device == "auto" and not any(there.values()))
    if on_cpu and precision == "fp16":
        raise recipe.refuse("train.precision", "train.precision is fp16 on a CPU", "float32 or bf16, or a GPU")
    for tracker in options.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise recipe.refuse(
                "train.trackers", f"train.trackers names {tracker}, which is not installed", f"pip install {tracker}"
            )
    accelerator = Accelerator(
        mixed_precision=precision, cpu=on_cpu, log_with=list(options.trackers) or None, project_dir=str(recipe.folder)
    )
    pieces = accelerator.num_processes * options.accumulate
    if options.batch_size % pieces:
        raise recipe.refuse(
            "train.batch_size",
            f"train.batch_size is {options.batch_size}",
            f"a multiple of {pieces}, processes ({accelerator.num_processes}) times train.accumulate",
        )
    return accelerator


def _resumed(recipe: Recipe, resume: str | Path) -> Checkpoint | None:
    """The checkpoint to go on from.

    Raises:
        RecipeError: it was made by another recipe.
        OutputError: there is one and "never" was asked for.
    """
    folder = recipe.folder / "checkpoints"
    if str(resume) == "never":
        if folder.is_dir() and any(folder.glob("step_*")):
            raise OutputError(f"{recipe.folder} holds a run", "a new folder", "set output=..., or resume it")
        return None
    saved = newest_checkpoint(folder) if str(resume) == "auto" else load_checkpoint(Path(resume))
    if saved is None:
        return None
    # Read again: keys that recipes did not have when the run began stand at their defaults.
    changed = sorted(_differences(Recipe.from_dict(saved.recipe).to_dict(), recipe.to_dict()))
    if changed:
        shown = ", ".join(f"{key} ({old!r} then, {new!r} now)" for key, old, new in changed[:3])
        raise recipe.refuse(
            changed[0][0],
            f"The run in {recipe.folder} was started with another recipe: {shown}",
            "the same recipe to resume",
            "set output=... for a new run",
        )
    return saved


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ and matter for what is trained."""
    for name in sorted({*old, *new}):
        key = f"{above}{name}"
        before, now = old.get(name), new.get(name)
        if key in FREE_KEYS or before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{key}.")
        else:
            yield key, before, now


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    from ..backbone.checkpoint import check_keys

    check_keys(module.state_dict(), state, f"The checkpoint's {what}", type(module).__name__)
    module.load_state_dict(dict(state), strict=True)


def _split(
    batch: Mapping[str, Tensor], parts: int, device: torch.device, layout: torch.memory_format
) -> list[dict[str, Tensor]]:
    """The batch on its device, in equal parts."""

    def moved(value: Tensor) -> Tensor:
        value = value.to(device, non_blocking=True)
        return value.contiguous(memory_format=layout) if value.ndim == 4 else value

    pieces = {name: [moved(piece) for piece in value.chunk(parts)] for name, value in batch.items()}
    return [{name: piece[number] for name, piece in pieces.items()} for number in range(parts)]


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for what the network draws itself."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63


def not_finite(step: int, failures: Sequence[Sequence[str]], next_step: str) -> TrainingError:
    """After too many steps in a row without a finite loss; `failures`: the files of each."""
    files = list(dict.fromkeys(name for names in failures for name in names))
    shown = ", ".join(files[:12]) + (f" and {len(files) - 12} more" if len(files) > 12 else "")
    return TrainingError(
        f"The loss was not finite in {len(failures)} steps in a row, up to step {step}; in their batches: {shown}",
        "finite losses",
        next_step,
    )


def _headline(run: Run) -> str:
    recipe, start = run.recipe, run.batches.start
    trained = sum(parameter.numel() for parameter in run.objective.parameters())
    text = f"{recipe.name}: {recipe.objective}, {trained / 1e6:.2f} M parameters trained on {run.accelerator.device}, "
    text += f"{len(run.data.store.rows)} images, {recipe.train.steps} steps, in {recipe.folder}"
    text += "" if run.validation is not None else "; no data.validation: nothing is validated"
    return text + (f"; resumed at step {start}" if start else "")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses `count` CPU threads."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C or SIGTERM is noted in the list that is given; a second one ends the step at once."""
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield noted
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
