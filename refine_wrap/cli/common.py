"""What several verbs share: loading what is named on the command line, and showing progress."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RefineWrapError

if TYPE_CHECKING:
    from ..evaluation.run import Notify
    from ..wrapper import RefineWrapper

Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of an adapter on the Hub.", show_default=False)
]
OtherWeights = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights",
        help="Accept a backbone of the same structure with other weights than the adapter was trained on.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only part I of N, counted from 0: for several processes.", show_default=False),
]

DEFAULT_ADAPTER = "shipped:demo_refiner"
"""The adapter that comes with the package, with its backbone: what `restore` uses unasked."""


def guarded(verb: Callable[..., int | None]) -> Callable[..., None]:
    """A verb whose errors leave the program as its user should see them: at most three lines, and an exit code."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = verb(*args, **kwargs) or 0
        except RefineWrapError as error:
            typer.echo(f"Error: {error}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            code = 130
        except BrokenPipeError:
            # Who read our output has gone (`refine-wrap info X | head`); Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        raise typer.Exit(code)

    return run


def device_named(name: str) -> str:
    """The device of that name, checked; "auto" is the first GPU that there is, else the CPU."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RefineWrapError(
            f"The device {name!r} cannot be used: {str(error).splitlines()[0][:120]}", "auto, cpu, cuda, cuda:N or mps"
        ) from None
    return name


def part(shard: str | None) -> tuple[int, int]:
    """(index, count) of I/N; all of it unless given."""
    if shard is None:
        return 0, 1
    index, slash, count = shard.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise RefineWrapError(f"--shard is {shard!r}", "I/N, such as 0/4 for the first of four parts")
    return int(index), int(count)


def tile_side(text: str) -> int | str | None:
    """What --tile means: "auto", a side in pixels, or None for the whole image."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or int(text) == 0:
        raise RefineWrapError(f"--tile is {text!r}", "auto, none, or a number of pixels")
    return int(text)


def options_of(words: list[str] | None) -> dict[str, Any]:
    """What `KEY=VALUE` words say, the values in YAML. Raises RecipeError."""
    if not words:
        return {}
    from ..recipe.lines import Places, apply_override

    options: dict[str, Any] = {}
    places = Places()
    for word in words:
        apply_override(options, places, word)
    return options


def load_wrapper(
    adapter: str | None,
    backbone: str | None,
    revision: str | None,
    other_weights: bool,
    device: str,
    options: Mapping[str, Any] | None = None,
) -> RefineWrapper:
    """The wrapper that the options name: an adapter, a bare backbone, both, or the shipped default."""
    from ..backbone import load_backbone
    from ..wrapper import RefineWrapper

    if options and backbone is None:
        raise RefineWrapError("--backbone-option is given without --backbone", "both")

    if adapter is None and backbone is not None:
        if revision is not None:
            raise RefineWrapError("--revision is given without --adapter", "hf://org/name/file@revision for a backbone")
        return RefineWrapper(load_backbone(backbone, options=options, device=device), refiner=None).eval()
    return RefineWrapper.from_pretrained(
        adapter or DEFAULT_ADAPTER,
        backbone=None if backbone is None else load_backbone(backbone, options=options, device=device),
        revision=revision,
        allow_other_weights=other_weights,
        device=device,
    )


@contextmanager
def notices() -> Iterator[None]:
    """Show warnings as one line each on standard error, without the place in the code; libraries' own are left out."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)):
            typer.echo(f"Note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def labelled(text: str) -> tuple[str | None, str]:
    """LABEL=FOLDER taken apart; a folder whose name holds the sign is a folder."""
    label, sign, folder = text.partition("=")
    return (label, folder) if sign and label and folder and not Path(text).exists() else (None, text)


def tell(source: Path, target: Path, outcome: str, message: str | None, quiet: bool) -> None:
    """A line for a picture of a folder: what was written, or why it failed."""
    if outcome == "failed":
        typer.echo(f"{source}: {message}", err=True)
    elif outcome == "done" and not quiet:
        typer.echo(str(target))


@contextmanager
def images_progress(quiet: bool) -> Iterator[Notify]:
    """A bar over the images of an evaluation or analysis, and a line for each that is left out."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)

        def notify(done: int, total: int, name: str, reason: str | None) -> None:
            progress.update(task, completed=done, total=total)
            if reason is not None:
                typer.echo(f"Left out: {name}: {reason}", err=True)

        yield notify
