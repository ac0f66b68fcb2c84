"""`refine-wrap recipe`: what recipes are there, their schema, and recipes from options of BasicSR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import guarded, notices

recipe = typer.Typer(
    help="The shipped recipes, the schema of all, and recipes from options of BasicSR.", no_args_is_help=True
)


@recipe.command("list")
@guarded
def list_recipes() -> None:
    """List the shipped recipes."""
    from ..recipe import Recipe
    from ..resources import recipe_names

    for name in recipe_names():
        typer.echo(f"{name:18} {Recipe.load(name).description}")


@recipe.command()
@guarded
def show(name: Annotated[str, typer.Argument(help="A shipped recipe, or a YAML file.", show_default=False)]) -> None:
    """Print a recipe as it was written, to start your own from."""
    from ..resources import recipe_path

    typer.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


@recipe.command()
@guarded
def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it to a file.", show_default=False)] = None,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from ..folder import atomic_path
    from ..recipe import recipe_schema

    text = json.dumps(recipe_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")


@recipe.command("from-basicsr")
@guarded
def from_basicsr(
    options: Annotated[
        Path, typer.Argument(help="Options for training, of BasicSR, HAT or NAFNet.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it to a file.", show_default=False)] = None,
    objective: Annotated[
        Literal["refine", "restore"],
        typer.Option(help="Train a refiner behind the network, or the network itself."),
    ] = "refine",
) -> None:
    """Make a recipe of an options file of BasicSR; what cannot be carried over is said, and written at its top."""
    from ..basicsr_options import recipe_from_basicsr
    from ..folder import atomic_path

    with notices():
        converted = recipe_from_basicsr(options, objective)
    for note in converted.notes:
        typer.echo(f"Note: {note}", err=True)
    if out is None:
        typer.echo(converted.to_yaml(), nl=False)
    else:
        with atomic_path(out) as temporary:
            temporary.write_text(converted.to_yaml(), encoding="utf-8")
