"""`refine-wrap convert`: a published checkpoint of paper 1 into an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A published checkpoint of ORNet or CFMG (.pkl, .pth, .safetensors).", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="The adapter folder to write.", show_default=False)],
    strength: Annotated[
        float, typer.Option(help="The adapter's default strength; the published code evaluates at 0.3.")
    ] = 0.3,
    licence: Annotated[
        str | None, typer.Option(help="SPDX identifier of the weights' licence, for the card.", show_default=False)
    ] = None,
) -> None:
    """Turn a published refiner (ORNet) or mask generator (CFMG) into an adapter.

    The checkpoint is read weights-only: no code in it is run.
    """
    from ..backbone.checkpoint import read_checkpoint
    from ..hub import Adapter, save_adapter
    from ..refiner import ornet_from_published
    from ..supervision import mask_generator_from_published, save_mask_generator

    state, _ = read_checkpoint(checkpoint)
    if "fclayer_last.weight" in state:  # only CFMG ends in a linear layer
        generator = mask_generator_from_published(checkpoint)
        save_mask_generator(out, generator, strength=strength, licence=licence)
        typer.echo(f"{out}: mask generator of width {generator.width} for {generator.images - 1} variants")
        return
    refiner = ornet_from_published(checkpoint)
    adapter = Adapter(
        kind="refiner",
        config={"refiner": refiner.config()},
        tensors={f"refiner.{name}": value for name, value in refiner.state_dict().items()},
        strength=strength,
        licence=licence,
    )
    save_adapter(out, adapter)
    typer.echo(f"{out}: ORNet of width {refiner.width}; it goes with any backbone")
