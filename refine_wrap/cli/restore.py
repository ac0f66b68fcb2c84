"""`refine-wrap restore`: a photo or a folder of photos, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Device,
    OtherWeights,
    Quiet,
    Revision,
    device_named,
    load_wrapper,
    notices,
    options_of,
    tell,
    tile_side,
)

if TYPE_CHECKING:
    from ..images import Picture
    from ..wrapper import RefineWrapper


def restore(
    image: Annotated[Path, typer.Argument(help="A photo, or a folder of photos.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The output file or folder.", show_default=False)],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            "-a",
            help="Adapter: a folder, org/name on the Hub, shipped:NAME. Default: the shipped denoiser.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="Backbone: a checkpoint, hf://org/name/file@revision, shipped:NAME. Alone it runs bare.",
            show_default=False,
        ),
    ] = None,
    backbone_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A constructor argument of the backbone that its file leaves open, e.g. fidelity=0.5.",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="0 keeps fidelity, 1 asks for the most detail. Default: the adapter's own.", show_default=False
        ),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(
            help="Wanted quality, 0 to 1, of an adapter with a quality head. Default: the adapter's own.",
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Write a sheet over quality and strength instead of the restored photo.")
    ] = False,
    do_no_harm: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER",
            help="Keep the backbone's own output where this scorer finds the result worse, e.g. shipped:gauge.",
            show_default=False,
        ),
    ] = None,
    tile: Annotated[str, typer.Option(help="auto, none, or a side in input pixels.")] = "auto",
    halo: Annotated[
        int | None,
        typer.Option(help="Input pixels around each tile. Default: the receptive field.", show_default=False),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    ext: Annotated[
        str | None,
        typer.Option(help="Format of the outputs: png, jpg, webp, tif. Default: as the input.", show_default=False),
    ] = None,
    suffix: Annotated[str, typer.Option(help="Added to each name, before its ending.")] = "",
    bits: Annotated[int | None, typer.Option(help="8 or 16. Default: as the input.", show_default=False)] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Photos of one size that run through the network together. Default: 8 on a GPU, 1 on a CPU.",
            show_default=False,
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Take the folders below, too.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist; otherwise they are skipped.")
    ] = False,
    revision: Revision = None,
    allow_other_weights: OtherWeights = False,
    quiet: Quiet = False,
) -> int:
    """Restore a photo or a folder of photos."""
    from ..errors import RefineWrapError
    from ..folder import IMAGE_SUFFIXES, list_images, plan_outputs

    # What is wrong with the call is said before anything is loaded.
    if not image.exists():
        raise RefineWrapError(f"There is no file or folder {image}", "a photo, or a folder of photos")
    if bits not in (None, 8, 16):
        raise RefineWrapError(f"--bits is {bits}", "8 or 16")
    if image.is_dir() and out.suffix.lower() in IMAGE_SUFFIXES:
        raise RefineWrapError(
            f"{image} is a folder and the output {out} is a file by its name", "a folder for the outputs"
        )
    if sweep and (do_no_harm or quality is not None or strength is not None):
        raise RefineWrapError("--sweep is given with --quality, --strength or --do-no-harm", "--sweep by itself")
    if batch is not None and batch < 1:
        raise RefineWrapError(f"--batch is {batch}", "a number of photos, at least 1")
    if sweep and bits == 16:
        raise RefineWrapError("--sweep is given with --bits 16", "--sweep alone: a sheet has 8 bits")
    side = tile_side(tile)
    given = options_of(backbone_option)
    inputs = list_images(image, recursive, skip=out) if image.is_dir() else [image]
    jobs = plan_outputs(inputs, image, out, ext=ext, suffix=suffix)
    with notices():
        wrapper = load_wrapper(adapter, backbone, revision, allow_other_weights, device_named(device), given)
        options: dict[str, Any] = {"tile": side, "halo": halo, "dtype": dtype}
        if not sweep:
            options |= {"strength": strength, "quality": quality}
        if do_no_harm is not None:
            from ..restore import DoNoHarm

            options["guard"] = DoNoHarm(do_no_harm, device_named(device))
            options["guard"].check(wrapper)
        _check_options(wrapper, {key: value for key, value in options.items() if key != "guard"})
        if batch is None:
            batch = 8 if wrapper.backbone.device.type == "cuda" else 1
        return _run(wrapper, jobs, options, sweep=sweep, bits=bits, batch=batch, overwrite=overwrite, quiet=quiet)


def _check_options(wrapper: RefineWrapper, options: dict[str, Any]) -> None:
    """Have a wrong strength, halo or dtype refused once, and not for each photo."""
    import torch

    from ..restore import restore as restore_image

    side = wrapper.backbone.spec.minimum
    restore_image(wrapper, torch.zeros(1, 3, side, side), **options)


def _run(
    wrapper: RefineWrapper,
    jobs: list[tuple[Path, Path]],
    options: dict[str, Any],
    *,
    sweep: bool,
    bits: int | None,
    batch: int,
    overwrite: bool,
    quiet: bool,
) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..images import read_image, write_image
    from ..pipeline import process
    from ..restore import restore_pictures

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        photos = progress.add_task("photos", total=len(jobs))
        tiles = progress.add_task("tiles", total=1, visible=False)

        def notify(done: int, total: int) -> None:
            progress.update(tiles, completed=done, total=total, visible=total > 1)

        def work(pictures: list[Picture]) -> list[Picture]:
            progress.update(tiles, visible=False)
            if sweep:
                from ..report.sweep import sweep_sheet

                return [sweep_sheet(wrapper, picture, **options) for picture in pictures]
            return restore_pictures(wrapper, pictures, notify=notify, **options)

        def on_done(source: Path, target: Path, outcome: str, message: str | None) -> None:
            progress.advance(photos)
            tell(source, target, outcome, message, quiet)

        tally = process(
            jobs,
            read_image,
            work,
            lambda picture, path: write_image(path, picture, bits=bits, overwrite=True),
            batch=batch,
            alike=lambda picture: (picture.height, picture.width),
            overwrite=overwrite,
            on_done=on_done,
        )
    guard = options.get("guard")
    if guard is not None and not quiet:
        typer.echo(f"{guard.kept} of {guard.seen} kept as the backbone made them, by {guard.judge.name}", err=True)
    if not quiet:
        typer.echo(f"{tally.done} restored, {tally.skipped} skipped (they exist), {len(tally.failed)} failed", err=True)
    return tally.exit_code
