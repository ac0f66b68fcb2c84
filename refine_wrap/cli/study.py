"""`refine-wrap study`: a blind pairwise page for raters, and the report of what they preferred."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Overwrite, guarded, labelled, notices

if TYPE_CHECKING:
    from ..study import StudyReport

study = typer.Typer(help="A blind pairwise study of methods, and the report of its results.", no_args_is_help=True)


@study.command()
@guarded
def make(
    methods: Annotated[
        list[str],
        typer.Argument(
            help="Two or more folders of the same images, one a method. LABEL=FOLDER gives it another name than the "
            "folder's.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder: raters/ in it is for raters, key.json for nobody else.")
    ] = Path("study"),
    inputs: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Folder of the inputs, shown beside, enlarged.", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-r", help="Folder of the ground truth, shown beside.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option(help="What raters are asked.")] = "Which picture do you prefer?",
    trials: Annotated[
        int | None,
        typer.Option(
            help="Pairs of pictures for each rater, besides catch trials. Default: 60, or all where there are fewer.",
            show_default=False,
        ),
    ] = None,
    raters: Annotated[
        int, typer.Option(help="Raters that are expected: so many orders are drawn, and images shared among them.")
    ] = 24,
    catch: Annotated[
        int, typer.Option(help="Catch trials for each rater: a picture against a damaged copy of itself.")
    ] = 6,
    crop: Annotated[
        int, typer.Option(help="Most pixels of a side that are shown, of the same place of each method's. 0: all.")
    ] = 512,
    ties: Annotated[bool, typer.Option("--ties", help="Raters may prefer neither.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same study.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a page on which raters choose between two methods' pictures, blind and in random order."""
    from ..evaluation import Outputs
    from ..study import Settings, make_study
    from ..study.formats import KEY, RATERS
    from ..study.make import PAGE

    settings = Settings(question, trials, raters, catch, crop or None, ties, seed)
    outputs = [Outputs(folder, label) for label, folder in map(labelled, methods)]
    with notices():
        key = make_study(outputs, out, inputs=inputs, reference=reference, settings=settings, overwrite=overwrite)
    typer.echo(f"{out / RATERS / PAGE}: give the whole folder to raters 1 to {key.orders}, as their ids")
    typer.echo(f"{out / KEY}: keep it to yourself, it tells which picture is whose")


@study.command()
@guarded
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Files that raters have downloaded, or folders of them.", show_default=False),
    ],
    key: Annotated[Path, typer.Option("--key", "-k", help="The study's key.")] = Path("study/key.json"),
    max_failed: Annotated[
        float, typer.Option(help="Who fails more than this share of the catch trials is left out.")
    ] = 0.2,
    json: Annotated[Path | None, typer.Option("--json", help="Write it as JSON.", show_default=False)] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write it as a page, .html.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Say which method raters prefer: rates, tests, a Bradley-Terry ranking, and a winner only if it is significant."""
    from ..errors import OutputError
    from ..report.page import page_path
    from ..study import study_page, study_report

    # What is wrong with the call is said before the work.
    if page is not None:
        page_path(page, overwrite)
    if json is not None and json.exists() and not overwrite:
        raise OutputError(f"{json} exists already", "a new name", "give --overwrite, or choose another --json")
    found = study_report(results, key, max_failed=max_failed, seed=seed)
    _show(found)
    if json is not None:
        found.save(json)
        typer.echo(str(json))
    if page is not None:
        study_page(found, page)
        typer.echo(str(page))


def _show(found: StudyReport) -> None:
    """The verdict, the tables, and what must be known besides."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..study import words

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no edge: nothing is cut off

    def table(title: str, head: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
        made = Table(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(head):
            made.add_column(name, justify="right" if index else "left", overflow="fold")
        for cells, style in rows:
            made.add_row(*map(escape, cells), style=style)
        console.print(made)

    console.print(escape(found.key.question), style="bold")
    table("Ranking", words.RANKING_HEAD, [(words.ranking_row(rank), "") for rank in found.ranking])
    table("Pairs of methods", words.PAIRS_HEAD, [(words.pair_row(pair), "") for pair in found.pairs])
    raters = [(words.rater_row(rater), "dim strike" if rater.left_out else "") for rater in found.raters]
    table("Raters", words.RATERS_HEAD, raters)
    for text in words.notes(found):
        console.print(escape(text))
    console.print(escape(words.verdict(found)), style="bold" if found.winner else "bold yellow")
