"""`refine-wrap evaluate`: candidates against a baseline, as figures, a JSON file and a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Device, Overwrite, Quiet, device_named, images_progress, labelled, notices

if TYPE_CHECKING:
    from ..evaluation import Evaluation, Outputs


def evaluate(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="What is evaluated: folders of outputs, or adapters, which are run on the inputs (a folder, "
            "shipped:NAME, hf://org/name). LABEL=FOLDER gives it another name than the folder's.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str, typer.Option("--baseline", "-b", help="What they are compared with; the same.", show_default=False)
    ],
    gt: Annotated[Path | None, typer.Option(help="Folder of the ground truth.", show_default=False)] = None,
    lq: Annotated[Path | None, typer.Option(help="Folder of the inputs.", show_default=False)] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page, .html; the JSON of the same name is written beside it.")
    ] = Path("evaluation.html"),
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help="Full-reference metric, such as FSIM or LPIPS; may be given several times. Default: PSNR, SSIM.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            "-j",
            help="Scorer without a reference, as --scorer of `score`; may be given several times.",
            show_default=False,
        ),
    ] = None,
    validity: Annotated[
        Path | None,
        typer.Option(
            help="Without pairs of ground truth and input: the JSON of an evaluation with pairs, where the judges' "
            "validity is taken from.",
            show_default=False,
        ),
    ] = None,
    validity_pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="GT LQ", help="The same from two folders of pairs, which are judged first.", show_default=False
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            help="Adapter that made the candidates' images: scorers that it was trained on do not count. "
            "LABEL=ADAPTER for the candidate of that label only. May be given several times.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone of adapters that are run and do not know theirs.", show_default=False),
    ] = None,
    rank_by: Annotated[
        str | None,
        typer.Option(
            help="Measure by which the best, median and worst image are shown. Default: the first that counts.",
            show_default=False,
        ),
    ] = None,
    gt_pattern: Annotated[
        str | None,
        typer.Option(help="How names are made of the common name, e.g. '{name}_mean'.", show_default=False),
    ] = None,
    lq_pattern: Annotated[str | None, typer.Option(help="The same of the inputs.", show_default=False)] = None,
    pattern: Annotated[
        str | None, typer.Option(help="The same of the outputs. Default: as the inputs'.", show_default=False)
    ] = None,
    subset: Annotated[
        bool, typer.Option("--subset", help="Leave out and count images that an output folder lacks.")
    ] = False,
    border: Annotated[int, typer.Option(help="Pixels left out at each side by the metrics.")] = 0,
    luma: Annotated[bool, typer.Option("--luma", help="PSNR and SSIM on Y instead of RGB.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default=False)] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Evaluate candidates against a baseline: metrics, judges that are valid, checks against gamed scores."""
    from ..errors import OutputError, RefineWrapError

    with notices():
        from ..evaluation import evaluate as run
        from ..evaluation import judge_validity
        from ..folder import atomic_path
        from ..report import evaluation_page
        from ..report.page import page_path
        from ..scorers import load_scorer

        # What is wrong with the call is said before the work.
        document = page_path(out, overwrite).with_suffix(".json")
        if document.exists() and not overwrite:
            raise OutputError(f"{document} exists already", "a new name", "give --overwrite, or choose another --out")
        if validity is not None and validity_pairs is not None:
            raise RefineWrapError("--validity and --validity-pairs are given together", "one of them")
        outputs = _outputs(candidates, baseline, adapter or [], backbone)
        where: dict[str, Any] = {"gt_pattern": gt_pattern, "lq_pattern": lq_pattern, "device": device_named(device)}
        judges = [load_scorer(name, device=where["device"]) for name in judge or []]
        # The outputs are opened first: learn before the work, not after it, that they cannot be written.
        with atomic_path(document) as json_file, atomic_path(out) as page, images_progress(quiet) as notify:
            known = judge_validity(judges, *validity_pairs, **where, notify=notify) if validity_pairs else validity
            result = run(
                outputs[1:],
                outputs[0],
                gt=gt,
                lq=lq,
                metrics=metric,
                judges=judges,
                validity=known,
                ranked_by=rank_by,
                pattern=pattern,
                subset=subset,
                border=border,
                luma=luma,
                seed=seed,
                notify=notify,
                **where,
            )
            result.save(json_file)
            evaluation_page(result, page, title=title)
    _show(result)
    typer.echo(f"{out}\n{document}")
    return 1 if result.left_out else 0


def _outputs(candidates: list[str], baseline: str, adapters: list[str], backbone: str | None) -> list[Outputs]:
    """The baseline, then the candidates, each with the adapters that made it."""
    from ..errors import RefineWrapError
    from ..evaluation import Outputs

    named = [labelled(text) for text in (baseline, *candidates)]
    labels = [label for label, _ in named]
    made: list[list[str]] = [[] for _ in named]
    for label, folder in map(labelled, adapters):
        if label is not None and label not in labels:
            known = ", ".join(each for each in labels if each) or "no candidate has a label: LABEL=FOLDER gives one"
            raise RefineWrapError(f"--adapter is given for {label!r}, which is no candidate", known)
        for own, entry in zip(
            labels[1:] if label is None else labels, made[1:] if label is None else made, strict=True
        ):
            if label in (None, own):
                entry.append(folder)
    return [
        Outputs(folder, label, tuple(own), backbone=backbone) for (label, folder), own in zip(named, made, strict=True)
    ]


def _show(result: Evaluation) -> None:
    """The result on the standard output: what is conspicuous first, then the figures, what does not count in grey."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..evaluation.words import HEAD, KEY, TEXTURE_HEAD, flag_lines, judge_lines, lines, mean_notes, texture_lines

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no edge: nothing is cut off

    def table(title: str, head: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
        made = Table(title=escape(title), title_justify="left", title_style="bold")
        for index, name in enumerate(head):
            made.add_column(name, justify="left" if index in (0, len(head) - 1) else "right", overflow="fold")
        for cells, style in rows:
            made.add_row(*map(escape, cells), style=style)
        console.print(made)

    for place, candidate in enumerate(result.candidates, 1):
        rows = []
        for line in lines(result, place):
            last = line.verdict if line.reason is None else f"not counted: {line.reason}"
            filled = (*line.cells, *[""] * (len(HEAD) - len(line.cells)), last)
            rows.append((filled, "" if line.reason is None else "dim strike"))
        table(f"{candidate.label} against {result.baseline}", (*HEAD, "Verdict"), rows)
        for text in flag_lines(candidate):
            console.print(escape(f"! {text}"), style="bold yellow")
        for text in mean_notes(result, place):
            console.print(escape(text))
    console.print(KEY)
    judged = [(cells, "" if measure.gate is None else "dim") for measure, cells in judge_lines(result)]
    if judged:
        table("Judges", ("Judge", "Ground truth", "Input", "Validity"), judged)
    table("Texture (medians)", TEXTURE_HEAD, [(cells, "") for cells in texture_lines(result)])
    console.print(
        f"{len(result.images)} images, {len(result.left_out)} left out"
        + (f", {result.unused} not in every folder" if result.unused else "")
    )
