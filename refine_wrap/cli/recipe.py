"""`refine-wrap recipe`: what recipes are there, and their schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import guarded

recipe = typer.Typer(help="The shipped recipes, and the schema of all.", no_args_is_help=True)


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
