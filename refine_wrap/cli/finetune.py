"""`refine-wrap finetune`: train what a recipe says."""

from __future__ import annotations

from typing import Annotated

import typer


def finetune(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Values that replace the recipe's, e.g. train.steps=100.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on from the run's newest checkpoint; never; or a checkpoint.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Fine-tune from a recipe."""
    from ..recipe import Recipe
    from ..training import finetune as train
    from .common import notices

    with notices():
        result = train(Recipe.load(recipe, overrides or []), resume=resume, quiet=quiet)
    typer.echo(str(result))
