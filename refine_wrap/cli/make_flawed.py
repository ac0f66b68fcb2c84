"""`refine-wrap make-flawed`: a test set whose truth is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RefineWrapError
from .common import Quiet, Shard, notices, part, tell


def make_flawed(
    photos: Annotated[
        Path | None, typer.Argument(help="A folder of sharp, clean photos, or one.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The set's folder.", show_default=False)] = None,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            "--degradation",
            "-d",
            metavar="SOURCE|KEY=VALUE",
            help="How inputs are made of the flawed ground truth, in a recipe's words; may be given several times: a "
            "YAML or JSON file, or a recipe whose data.degradation is taken; KEY=VALUE, such as noise.sigma=[5,25], "
            "scale=4 or blur.motion=[8,16]. What is given stands alone, nothing of the default is left, which is "
            "noise.kind=poisson-gaussian noise.sigma=[10,25] noise.correlation=[0,0.6].",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    crop: Annotated[
        int | None,
        typer.Option(
            help="Side of the central part to take, in pixels after --downscale; without it, whole photos.",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="With --crop: every such part that fits side by side.")] = False,
    downscale: Annotated[
        int,
        typer.Option(
            help="Make photos so many times smaller first. 2 to 4 for photos straight from a camera or phone, and for "
            "JPEG files: what is soft, noisy or compressed at full size is sharp and clean then. 1 only for photos "
            "that show no noise, blocks or softness at 100%.",
        ),
    ] = 1,
    recursive: Annotated[bool, typer.Option(help="Take the folders below, too.")] = True,
    shard: Shard = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make nothing: check every file of the set against its manifest.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Make a test set that measures what goes beyond the ground truth.

    Of pristine photos P it makes flawed ground truths G, and inputs of G.
    Let a method see only G and the input, and judge it by
    full-reference metrics against P.

    G has mild blur, sensor noise and JPEG, as real data sets have: level 1
    as means of many frames, 2 as single photos of phones, 3 as frames of a
    hand-held camera. OUT/manifest.json tells the settings.

    OUT/pristine, OUT/flawed_gt/level1..3, OUT/input/level1..3: PNG of the
    same names. The same call makes the same bytes; run again, it goes on
    and leaves alone what is right by the manifest.
    """
    if out is None:
        raise RefineWrapError("No folder is named for the set", "--out FOLDER")
    if verify:
        if photos is not None:
            raise RefineWrapError(f"--verify is given with photos, {photos}", "refine-wrap make-flawed --verify -o SET")
        return _verify(out)
    if photos is None:
        raise RefineWrapError("No photos are named", "a folder of sharp, clean photos, or one")
    from ..evaluation import flawed
    from ..evaluation.flawed import Manifest
    from ..recipe import load_degradation

    with notices():
        tally = flawed.make_flawed(
            photos,
            out,
            degradation=load_degradation(degradation) if degradation else flawed.DEFAULT_DEGRADATION,
            seed=seed,
            crop=crop,
            grid=grid,
            downscale=downscale,
            recursive=recursive,
            shard=part(shard),
            on_done=partial(tell, quiet=quiet),
        )
    if not quiet:
        typer.echo(
            f"{tally.done} made, {tally.skipped} skipped (they are right), {len(tally.failed)} left out", err=True
        )
        means = Manifest.read(out).mean_psnr()
        if means:
            figures = ", ".join(f"{folder} {value:.2f} dB" for folder, value in means.items())
            typer.echo(f"PSNR against pristine, mean of the set: {figures}", err=True)
    return tally.exit_code


def _verify(out: Path) -> int:
    from ..evaluation.flawed import verify_flawed

    found = verify_flawed(out)
    for path, problem in found.problems:
        typer.echo(f"{path}: {problem}", err=True)
    typer.echo(f"{found.files} files in the manifest, {len(found.problems)} problems")
    return 1 if found.problems else 0
