"""`refine-wrap`: the verbs, and how errors leave the program.

Nothing heavy is imported before a verb runs: `refine-wrap --help` answers without torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..allocator import keep_freed_memory
from .absorb import absorb
from .analyze_degradation import analyze_degradation
from .common import guarded
from .compare import compare
from .convert import convert
from .degrade import degrade
from .demo import demo
from .doctor import doctor
from .enhance import enhance
from .evaluate import evaluate
from .finetune import finetune
from .info import info
from .make_flawed import make_flawed
from .push import push
from .recipe import recipe
from .restore import restore
from .score import score
from .study import study

app = typer.Typer(
    name="refine-wrap",
    help="A refinement net behind any image restoration network: restore, fine-tune, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    restore,
    finetune,
    absorb,
    score,
    evaluate,
    make_flawed,
    enhance,
    degrade,
    analyze_degradation,
    info,
    compare,
    convert,
    push,
    demo,
    doctor,
):
    app.command()(guarded(verb))
app.add_typer(recipe, name="recipe")
app.add_typer(study, name="study")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"refine-wrap {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 some or all of the work failed, 2 the call or an input named in it is wrong,
    130 interrupted."""
    keep_freed_memory()
    app()


if __name__ == "__main__":
    run()
