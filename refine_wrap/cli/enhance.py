"""`refine-wrap enhance`: ground truths better than they are, as a folder to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Device, Quiet, Shard, device_named, notices, part, tell, tile_side

if TYPE_CHECKING:
    from ..pipeline import OnDone
    from ..supervision import EnhanceTally

_NAMED = 5


def enhance(
    gt: Annotated[Path, typer.Argument(help="A folder of ground truths, or one.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The output folder.", show_default=False)],
    strength: Annotated[float, typer.Option(help="0 keeps the ground truth, 1 asks for the most detail.")] = 0.3,
    masks: Annotated[
        str,
        typer.Option(
            help="Mask generator: a folder, org/name on the Hub, shipped:NAME, or a published checkpoint (.pkl, .pth, "
            ".safetensors)."
        ),
    ] = "shipped:masks",
    sr: Annotated[
        str | None,
        typer.Option(
            help="Super-resolver that makes the variants: a checkpoint, hf://org/name/file@revision, shipped:NAME. "
            "Default: shipped:sr_x2.",
            show_default=False,
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            help="In its place, a folder of ready variants: FOLDER/x2/NAME, x3/NAME and x4/NAME for each ground truth, "
            "resized back to its size, of any format.",
            show_default=False,
        ),
    ] = None,
    max_change: Annotated[
        float | None,
        typer.Option(
            help="No value changes by more than this share of the full range: 0.1 is 25 of 255.", show_default=False
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="PSNR to its ground truth that each picture keeps at least: where it would have less, all of its "
            "change is made smaller by one factor. 38 leaves photos as they are for the eye, for sets that are sharp "
            "and clean.",
            show_default=False,
        ),
    ] = None,
    min_fidelity: Annotated[
        float,
        typer.Option(
            metavar="DB",
            help="Flag pictures below this PSNR to their ground truths with both at a quarter of their sides: "
            "something may have been invented.",
        ),
    ] = 33.0,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="Write a page about all pictures of OUT: what changed in which band, before and after. One that is "
            "there is replaced.",
            show_default=False,
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            help="With --audit: score pictures before and after, as `score` does; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tile: Annotated[str, typer.Option(help="Of the super-resolver: auto, none, or a side in pixels.")] = "auto",
    ext: Annotated[
        str | None,
        typer.Option(
            help="Format of the outputs: png, jpg, webp, tif. Default: as the ground truth. JPEG loses some of what "
            "is gained.",
            show_default=False,
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Take the folders below, too.")] = True,
    shard: Shard = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make all anew, with other settings too; otherwise OUT is gone on with.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Enhance ground truths: mix each with super-resolved variants of it, frequency by frequency.

    The output has the names, folders, formats and depth of the input, and
    a manifest.json with the settings, hashes, and what changed. Ended in
    any way, the same call goes on. Pictures that cannot be enhanced are
    named, counted and left out.
    """
    from ..errors import RefineWrapError
    from ..folder import atomic_path, list_images

    # What is wrong with the call is said before anything is loaded.
    if scorer and audit is None:
        raise RefineWrapError("--scorer is given without --audit", "--audit PAGE.html, where the scores are shown")
    side, shards = tile_side(tile), part(shard)
    list_images(gt, recursive, skip=out)
    with notices():
        from ..report import audit_page
        from ..report.page import page_path
        from ..scorers import load_scorer
        from ..scorers.cache import ScoreCache
        from ..supervision import enhance as run

        if audit is not None:
            page_path(audit, overwrite=True)
        place = device_named(device)
        scorers = [load_scorer(name, device=place) for name in scorer or []]
        # Learn before the work, not after it, that the page cannot be written.
        with nullcontext() if audit is None else atomic_path(audit) as page:
            with _progress(gt, recursive, out, shards, quiet) as on_done:
                tally = run(
                    gt,
                    out,
                    masks=masks,
                    sr=sr,
                    variants=variants,
                    strength=strength,
                    max_change=max_change,
                    min_psnr=min_psnr,
                    min_fidelity=min_fidelity,
                    tile=side,
                    ext=ext,
                    recursive=recursive,
                    shard=shards,
                    overwrite=overwrite,
                    device=place,
                    on_done=on_done,
                )
            if page is not None:
                left_out = [_named(path, reason, gt, (out, variants)) for path, reason in tally.failed]
                kept = ScoreCache.default() if scorers else None
                audit_page(gt, out, page, scorers=scorers, cache=kept, left_out=left_out, device=place)
    _say(tally, min_fidelity, quiet)
    if audit is not None:
        typer.echo(str(audit))
    return tally.exit_code


@contextmanager
def _progress(gt: Path, recursive: bool, out: Path, shards: tuple[int, int], quiet: bool) -> Iterator[OnDone]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..folder import list_images
    from ..folder import shard as shard_of

    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("pictures", total=len(shard_of(list_images(gt, recursive, skip=out), *shards)))

        def on_done(source: Path, target: Path, outcome: str, message: str | None) -> None:
            progress.advance(task)
            tell(source, target, outcome, message, quiet)

        yield on_done


def _named(path: Path, reason: str, gt: Path, folders: tuple[Path | None, ...]) -> tuple[str, str]:
    """A picture that failed and why, without the place of the folders on this machine: a page gets passed on."""
    from ..folder import readable

    name = path.relative_to(gt).as_posix() if gt.is_dir() else path.name
    text = reason.replace(str(path), name)
    for folder in folders:
        text = text if folder is None else text.replace(str(folder), folder.name)
    return readable(name), readable(text)


def _say(tally: EnhanceTally, min_fidelity: float, quiet: bool) -> None:
    if tally.flagged:
        names = ", ".join(tally.flagged[:_NAMED])
        more = f" and {len(tally.flagged) - _NAMED} more" if len(tally.flagged) > _NAMED else ""
        typer.echo(
            f"{len(tally.flagged)} flagged, fidelity below {min_fidelity:g} dB, something may have been invented: "
            f"{names}{more}",
            err=True,
        )
    if not quiet:
        limited = f", {tally.limited} held back by a limit" if tally.limited else ""
        typer.echo(
            f"{tally.done} enhanced, {tally.skipped} skipped (they are right), {len(tally.failed)} failed{limited}",
            err=True,
        )
