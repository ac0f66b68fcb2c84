"""`refine-wrap finetune`: train what a recipe says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError
from .common import Quiet, notices

if TYPE_CHECKING:
    from ..recipe import Recipe


def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Values that replace the recipe's, e.g. train.steps=100.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on from the run's newest checkpoint; never; or a checkpoint.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two steps, written nowhere: time, memory and trainable share.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="KEY", help="What a key of a recipe means and takes.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="--dry-run as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune from a recipe."""
    from ..recipe import Recipe, explain_key

    if recipe is None and explain is None:
        raise RecipeError("no recipe is named", "a YAML file, or one of `refine-wrap recipe list`")
    with notices():
        loaded = Recipe.load(recipe, overrides or []) if recipe is not None else None
        if explain is not None:
            typer.echo(explain_key(explain, loaded))
            return
        assert loaded is not None
        if dry_run:
            from ..training import dry_run as attempt

            report = attempt(loaded)
            typer.echo(json.dumps(report, indent=2) if as_json else _in_words(loaded, report))
            return
        from ..training import finetune as train

        typer.echo(str(train(loaded, resume=resume, quiet=quiet)))


def _in_words(recipe: Recipe, report: dict[str, Any]) -> str:
    parameters, wait = report["parameters"], report["data_wait_share"]
    rows = [
        ("trained", f"{parameters['trained']:,} of {parameters['all']:,} parameters ({parameters['share']:.2%})"),
        ("images", f"{report['images']:,}, in batches of {recipe.train.batch_size}"),
        ("step", f"{report['seconds_per_step']:.3g} s on {report['device']}, {wait:.0%} waiting for data"),
        ("losses", ", ".join(f"{name} {value:.4g}" for name, value in report["losses"].items())),
        ("peak memory", f"{report['peak_memory_mib']:,.0f} MiB" + (" (process)" if report["device"] == "cpu" else "")),
        ("checkpoint", f"{report['checkpoint_mib']:,.1f} MiB, {recipe.keep_checkpoints} kept"),
        ("whole run", f"about {report['hours']:.2g} h for {report['steps']:,} steps"),
    ]
    if "cached_outputs" in report:
        kept = f"{report['cached_outputs']:,} outputs, {report['cached_mib']:,.0f} MiB ({recipe.backbone_cache.keep})"
        rows.insert(-1, ("backbone cache", kept))
    return "\n".join(f"{name:15}{value}" for name, value in rows)
