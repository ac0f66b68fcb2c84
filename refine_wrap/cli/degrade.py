"""`refine-wrap degrade`: low-resolution pictures as real cameras make them, to train super-resolution on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, Shard, notices, part, tell

SHIPPED = "shipped:vqvae2"


def degrade(
    hr: Annotated[Path, typer.Argument(help="A folder of good, high-resolution pictures, or one.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The output folder.", show_default=False)],
    reconstructor: Annotated[
        list[str] | None,
        typer.Option(
            "--reconstructor",
            "-r",
            metavar="CKPT[,CKPT...]",
            help="Undertrained reconstructors, of which each picture takes one: folders, shipped:NAME or org/name on "
            "the Hub; may be given several times. Several seeds and steps give more kinds of degradation. Default: "
            "shipped:vqvae2, and with --degradation what that names.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        int | None, typer.Option(help="How many times smaller each side becomes. Default: 4.", show_default=False)
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            metavar="S|LOW,HIGH",
            help="How much of what the reconstructor paints is taken; the rest is clean. Default: 1.",
            show_default=False,
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="none|lab|low-frequency",
            help="How colours that it shifted are brought back: mean and deviation in LAB, or all that is coarser than "
            "8 pixels. Default: low-frequency.",
            show_default=False,
        ),
    ] = None,
    max_delta_e: Annotated[
        float | None,
        typer.Option(
            help="Bound of each picture's mean CIEDE2000 difference to the clean one; the strength is lowered where it "
            "would be more.",
            show_default=False,
        ),
    ] = None,
    half_range: Annotated[
        bool,
        typer.Option("--half-range", help="Feed the network half of the range that it knows, as the author's script."),
    ] = False,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            "--degradation",
            "-d",
            metavar="SOURCE|KEY=VALUE",
            help="More, in a recipe's words; may be given several times: a YAML or JSON file, or a recipe whose "
            "data.degradation is taken; KEY=VALUE, such as blur.sigma=[0.2,1], noise.sigma=[1,10] or "
            "jpeg.quality=[60,95]. Blur comes before the reconstructor, noise and JPEG after it; "
            "then=[{reconstruct: {checkpoints: [CKPT]}}] paints after them.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    recursive: Annotated[bool, typer.Option(help="Take the folders below, too.")] = True,
    shard: Shard = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make all anew, with other settings too; otherwise OUT is gone on with.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Make low-resolution pictures as real cameras do, paired with good ones.

    Each picture is made smaller and painted again by a network that was
    trained too little (refine-wrap finetune, objective reconstruct).

    OUT has the names of HR, PNG of 8 bits, and a manifest.json with the
    settings, hashes, and what was drawn. The same call makes the same
    bytes; ended in any way, it goes on. Pictures that cannot be used are
    named, counted and left out.
    """
    from ..recipe import load_degradation

    words = list(degradation or [])
    if not reconstructor and not words:
        reconstructor = [SHIPPED]
    given = {
        "scale": scale,
        "reconstruct.checkpoints": json.dumps(_names(reconstructor), ensure_ascii=False) if reconstructor else None,
        "reconstruct.strength": None if strength is None else f"[{strength}]" if "," in strength else strength,
        "reconstruct.match": match,
        "reconstruct.max_delta_e": max_delta_e,
        "reconstruct.half_range": "true" if half_range else None,
    }
    words += [f"{key}={value}" for key, value in given.items() if value is not None]
    settings = load_degradation(words, scale=4)
    part_of = part(shard)
    with notices():
        from ..reconstruction.make import degrade_folder

        tally = degrade_folder(
            hr,
            out,
            settings,
            seed=seed,
            recursive=recursive,
            shard=part_of,
            overwrite=overwrite,
            on_done=partial(tell, quiet=quiet),
        )
    if not quiet:
        held = f", {tally.held_back} held back by the bound" if tally.held_back else ""
        typer.echo(
            f"{tally.done} made, {tally.skipped} skipped (they are right), {len(tally.failed)} failed{held}", err=True
        )
    return tally.exit_code


def _names(given: list[str]) -> list[str]:
    """Each one, or several with commas between; a folder whose name has a comma is one."""
    return [name for text in given for name in ([text] if Path(text).exists() else text.split(","))]
