"""`refine-wrap`: the verbs, and how errors leave the program.

Nothing heavy is imported before a verb runs: `refine-wrap --help` answers without torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from .. import __version__
from ..errors import RefineWrapError
from .compare import compare
from .convert import convert
from .demo import demo
from .doctor import doctor
from .finetune import finetune
from .info import info
from .push import push
from .recipe import recipe
from .restore import restore

app = typer.Typer(
    name="refine-wrap",
    help="A refinement net behind any image restoration network: restore, fine-tune, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (restore, finetune, info, compare, convert, push, demo, doctor):
    app.command()(verb)
app.add_typer(recipe, name="recipe")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"refine-wrap {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 some or all of the work failed, 2 the call or an input named in it is wrong,
    130 interrupted."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="refine-wrap", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except RefineWrapError as error:
        typer.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        typer.echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`refine-wrap info X | head`); Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    run()
