"""`refine-wrap score`: scores of photos without a reference, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Device, Overwrite, Quiet, device_named, notices

if TYPE_CHECKING:
    from ..scorers.cache import ScoreCache
    from ..scorers.table import ScoreTable


def score(
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", show_default=False)],
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            help="niqe, brisque, piqe, pyiqa:NAME; NAME=FILE with its weights (niqe, cnniqa, nima); shipped:NAME, a "
            "folder or org/name on the Hub. May be given several times. Default: those that are shipped.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The table, .csv or .json (with statistics and histograms). Default: CSV on the standard output.",
            show_default=False,
        ),
    ] = None,
    histogram: Annotated[bool, typer.Option("--histogram", help="Show how the scores are distributed.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where scores are kept by the photo's content: a folder, or a .jsonl file. "
            "Default: in the user's cache folder.",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Score all anew and keep nothing.")] = False,
    device: Device = "auto",
    recursive: Annotated[bool, typer.Option(help="Take the folders below, too.")] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Score photos without a reference; higher is better, in [0, 1]. Ended in any way, the same call goes on."""
    from contextlib import nullcontext

    from ..errors import OutputError, RefineWrapError
    from ..folder import atomic_path, list_images

    # What is wrong with the call is said before anything is loaded.
    for photo in photos:
        list_images(photo, recursive)
    if no_cache and cache is not None:
        raise RefineWrapError("--cache and --no-cache are given together", "one of them")
    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"{out} exists", "a new name", "pass --overwrite to replace it")
    with notices():
        from ..scorers.cache import ScoreCache
        from ..scorers.load import shipped_scorers
        from ..scorers.table import check_table_name

        if out is not None:
            check_table_name(out)
        kept = ScoreCache(None) if no_cache else ScoreCache(cache) if cache is not None else ScoreCache.default()
        # Learn before the work, not after it, that the table cannot be written.
        with atomic_path(out) if out is not None else nullcontext() as temporary:
            table = _run(photos, scorer or shipped_scorers(), recursive, kept, device_named(device), quiet)
            if temporary is not None:
                table.write(temporary)
    # Bytes: a file's name may hold some that are no UTF-8.
    typer.echo(table.encoded(".csv") if out is None else f"{out}\n", nl=False)
    _say(table, histogram, quiet)
    return 1 if table.failed else 0


def _run(
    photos: list[Path], scorers: list[str], recursive: bool, cache: ScoreCache, device: str, quiet: bool
) -> ScoreTable:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..scorers.files import score_files

    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn())
    seen, total = 0, "?"
    try:
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
            task = progress.add_task("photos", total=None)

            def notify(done: int, of: int, file: str, reason: str | None) -> None:
                nonlocal seen, total
                seen, total = done, str(of)
                progress.update(task, completed=done, total=of)
                if reason is not None:
                    typer.echo(f"Left out: {reason}", err=True)

            return score_files(photos, scorers, recursive=recursive, cache=cache, device=device, notify=notify)
    except KeyboardInterrupt:
        kept = f"kept in {cache.path}: the same call goes on" if cache.path else "not kept"
        typer.echo(f"{seen} of {total} photos were done; their scores are {kept}.", err=True)
        raise


def _say(table: ScoreTable, histogram: bool, quiet: bool) -> None:
    from ..scorers.table import text_histogram, text_summary

    if not quiet:
        typer.echo(text_summary(table.summary()), err=True)
    if histogram:
        for name, counted in table.histogram().items():
            typer.echo(f"{name}\n{text_histogram(counted)}", err=True)
    if not quiet:
        found = f"{len(table.images)} photos scored, {len(table.failed)} left out"
        typer.echo(f"{found} ({table.computed} scores computed)", err=True)
