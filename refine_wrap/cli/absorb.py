"""`refine-wrap absorb`: move what an adapter learned into its backbone's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Device, OtherWeights, Overwrite, Quiet, Revision, device_named, load_wrapper, notices


def absorb(
    adapter: Annotated[
        str, typer.Argument(help="Adapter: a folder, org/name on the Hub, shipped:NAME.", show_default=False)
    ],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A folder of low-quality images; no ground truth.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The checkpoint to write: .pth or .safetensors.", show_default=False)
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", show_default=False)],
    rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA.")] = 16,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="Backbone: a checkpoint, hf://org/name/file@revision, shipped:NAME. Default: the adapter's.",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="The strength that the result has. Default: the adapter's own.", show_default=False),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Images to measure with. Default: every eighth of the data.", show_default=False),
    ] = None,
    crop: Annotated[int, typer.Option(min=8, help="Side of the training crops in low-quality pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops of a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-4,
    seed: Annotated[int, typer.Option(min=0, help="All chance follows from it.")] = 0,
    run: Annotated[
        Path | None,
        typer.Option(help="A folder for metrics and checkpoints; a run that is there is gone on with."),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    revision: Revision = None,
    allow_other_weights: OtherWeights = False,
    quiet: Quiet = False,
) -> None:
    """Distil an adapter into its backbone: the same network and speed, with weights that do what both did."""
    from ..errors import OutputError, RefineWrapError

    # What is wrong with the call is said before anything is loaded.
    if out.suffix.lower() not in (".pth", ".safetensors"):
        raise RefineWrapError(f"{out} is no checkpoint by its name", "a file ending in .pth or .safetensors")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists", "a new name", "pass --overwrite to replace it")
    from ..training import absorb as distil

    with notices():
        place = device_named(device)
        wrapper = load_wrapper(adapter, backbone, revision, allow_other_weights, place)
        plain = distil(
            wrapper,
            data,
            steps=steps,
            rank=rank,
            strength=strength,
            held_out=held_out,
            crop=crop,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            run=run,
            quiet=quiet,
        )
    plain.save_published(out)
    figures = plain.source["absorbed"]
    typer.echo(f"{out}: {figures['explained']:.1%} of the adapter's change, on {figures['held_out']} held-out images")
