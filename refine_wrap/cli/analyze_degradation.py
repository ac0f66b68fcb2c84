"""`refine-wrap analyze-degradation`: what degraded training sets look like, as figures, a JSON file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Device, Overwrite, Quiet, device_named, images_progress, labelled, notices

if TYPE_CHECKING:
    from ..analysis import Analysis


def analyze_degradation(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]FOLDER...",
            help="Folders of degraded low-resolution images. NAME=FOLDER gives one another name than the folder's.",
            show_default=False,
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the clean high-resolution images that they were made of, paired by name. Made smaller by "
            "bicubic, they are what colours and spectra are compared with.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[int, typer.Option(help="How many times smaller the degraded images are.")] = 4,
    compare: Annotated[
        str,
        typer.Option(
            help="Published degradations to make of the clean images and set beside, with commas between them: "
            "bsrgan, realesrgan (bicubic is there anyway).",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page, .html; the JSON of the same name is written beside it.")
    ] = Path("degradation.html"),
    classifier: Annotated[
        str, typer.Option(help="Classifier of corruptions: a folder, shipped:NAME or org/name on the Hub.")
    ] = "shipped:corruptions",
    limit: Annotated[
        int | None, typer.Option(help="At most so many images of each set, spread evenly.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="How many images of each set the page shows.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the published degradations and of the bootstrap.")] = 0,
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default=False)] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Analyse degraded training sets: diversity, colour differences, spectra, noise, samples side by side."""
    from ..errors import OutputError, RefineWrapError

    named = _named(sets or [])
    with notices():
        from ..analysis import analyze_degradation as run
        from ..folder import atomic_path
        from ..report import degradation_page
        from ..report.page import page_path

        # What is wrong with the call is said before the work.
        document = page_path(out, overwrite).with_suffix(".json")
        if document.exists() and not overwrite:
            raise OutputError(f"{document} exists already", "a new name", "give --overwrite, or choose another --out")
        if samples < 0:
            raise RefineWrapError(f"--samples is {samples}", "0 or more")
        with atomic_path(document) as json_file, atomic_path(out) as page, images_progress(quiet) as notify:
            result = run(
                named,
                clean=clean,
                scale=scale,
                compare=[each.strip() for each in compare.split(",") if each.strip()],
                classifier=classifier,
                limit=limit,
                seed=seed,
                device=device_named(device),
                notify=notify,
            )
            result.save(json_file)
            degradation_page(result, page, samples=samples, title=title)
    _show(result)
    typer.echo(f"{out}\n{document}")
    return 1 if result.left_out else 0


def _named(sets: Sequence[str]) -> dict[str, Path]:
    """Folders by label."""
    from ..errors import DataError
    from ..folder import short_names

    pairs = [labelled(text) for text in sets]
    shorts = short_names([folder for _, folder in pairs]) if pairs else []
    named: dict[str, Path] = {}
    for (label, folder), short in zip(pairs, shorts, strict=True):
        if (label or short) in named:
            raise DataError(f"Two sets are called {label or short!r}", "a name of its own for each: NAME=FOLDER")
        named[label or short] = Path(folder)
    return named


def _show(result: Analysis) -> None:
    """The figures on the standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..analysis.words import DIVERSITY_HEAD, LOOK_HEAD, classifier_line, diversity_lines, look_lines

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no edge: nothing is cut off
    tables = (
        ("Diversity", DIVERSITY_HEAD, diversity_lines(result)),
        ("Colour, noise and detail", LOOK_HEAD, look_lines(result)),
    )
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(head):
            table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
        for cells in rows:
            table.add_row(*map(escape, cells))
        console.print(table)
    console.print(escape(classifier_line(result)))
    if result.left_out:
        console.print(f"{len(result.left_out)} left out")
