"""`refine-wrap push`: upload an adapter or a trained backbone to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[
        Path, typer.Argument(help="An adapter folder, or the folder backbone of a training run.", show_default=False)
    ],
    repository: Annotated[str, typer.Argument(help="org/name on the Hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.", show_default=False)] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
) -> None:
    """Upload an adapter or a trained backbone to the Hugging Face Hub, with its settings and its card."""
    from ..hub import push_folder
    from .common import notices

    with notices():
        typer.echo(push_folder(folder, repository, private=private, revision=revision, message=message))
