"""`refine-wrap info`: what is known of a backbone, a checkpoint, an adapter or a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    what: Annotated[
        str | None, typer.Argument(help="A checkpoint, an architecture, an adapter or a recipe.", show_default=False)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", "-b", help="The backbone of an adapter that does not name one.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the input for which multiply-adds are counted.")] = 256,
    measure: Annotated[bool, typer.Option(help="Measure what tiles cost, on a test picture.")] = True,
    architectures: Annotated[
        bool, typer.Option("--architectures", help="List the architectures that can be named.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is declared, measured or assumed of a backbone, an adapter or a recipe."""
    from ..errors import RefineWrapError
    from .common import notices

    with notices():
        if architectures:
            from ..backbone import architectures as names

            _print({"architectures": names()}, as_json)
            return
        if what is None:
            raise RefineWrapError(
                "info was asked about nothing", "a checkpoint, an architecture, an adapter or a recipe"
            )
        _print(_about(what, backbone, size, measure), as_json)


def _about(what: str, backbone: str | None, size: int, measure: bool) -> dict[str, Any]:
    from ..resources import recipe_names

    path = Path(what)
    if path.suffix.lower() in {".yaml", ".yml"} or (what in recipe_names() and not path.exists()):
        return _about_recipe(what)
    if path.is_dir() or _is_shipped_adapter(what) or _is_hub_adapter(what, path):
        return _about_adapter(what, backbone, size, measure)
    from ..backbone import load_backbone
    from ..wrapper import RefineWrapper

    return _about_wrapper(RefineWrapper(load_backbone(what)), size, measure)


def _is_shipped_adapter(what: str) -> bool:
    from ..hub import TENSORS
    from ..resources import shipped_weights

    return what.startswith("shipped:") and shipped_weights(what.removeprefix("shipped:")).name == TENSORS


def _is_hub_adapter(what: str, path: Path) -> bool:
    from ..backbone.checkpoint import SUFFIXES

    return what.count("/") == 1 and not path.exists() and ":" not in what and path.suffix.lower() not in SUFFIXES


def _about_recipe(what: str) -> dict[str, Any]:
    from ..recipe import Recipe

    return {"kind": "recipe", **Recipe.load(what).to_dict()}


def _about_adapter(what: str, backbone: str | None, size: int, measure: bool) -> dict[str, Any]:
    from ..errors import CheckpointError
    from ..hub import load_adapter, resolve
    from ..wrapper import RefineWrapper

    adapter = load_adapter(resolve(what))
    about: dict[str, Any] = {
        "kind": f"adapter ({adapter.kind})",
        "made by": f"refine-wrap {adapter.version}",
        "strength": adapter.strength,
        "config": adapter.config,
        "made for": adapter.backbone or "any backbone",
        "metrics": adapter.metrics,
        "data": adapter.data,
        "scorers": adapter.scorers,
        "licence": adapter.licence,
    }
    try:
        wrapper = RefineWrapper.from_pretrained(what, backbone=backbone)
    except CheckpointError as error:
        if backbone is not None:
            raise
        return {**about, "backbone": f"not loaded: {error.came}"}
    return {**about, **_about_wrapper(wrapper, size, measure)}


def _about_wrapper(wrapper: Any, size: int, measure: bool) -> dict[str, Any]:
    from ..restore import plan_for, tile_difference, trace

    layers = trace(wrapper)
    tiles: dict[str, Any] = {
        "receptive field": f"{layers.receptive_radius} pixels to each side",
        "halo": plan_for(wrapper, 4096, 4096).halo,
        "grid": wrapper.tile_grid,
        "global operations": list(layers.global_operations) or "none",
    }
    tiles["equal to the whole"] = (
        wrapper.exact_tiles and not layers.global_operations and tiles["halo"] >= layers.receptive_radius
    )
    if measure:
        tiles["largest difference"] = f"{tile_difference(wrapper, tiles['halo']) * 255:.3g}/255 on a test picture"
    return {
        "backbone": wrapper.backbone.describe(),
        "structure": wrapper.backbone.structure_hash(),
        "weights": wrapper.backbone.weights_hash(),
        "tiles": tiles,
        **{f"wrapped: {key}": value for key, value in wrapper.summary(size, size).items()},
    }


def _print(about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def rows(values: dict[str, Any], indent: str) -> None:
        assumed = set(values.get("assumed", ()))
        for key, value in values.items():
            name = Text(f"{indent}{key}")
            if isinstance(value, dict) and value:
                table.add_row(name, "")
                rows(value, indent + "  ")
            else:
                table.add_row(name, Text(_words(value) + (" (assumed)" if key in assumed else "")))

    rows(about, "")
    Console().print(table)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and value:
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        between = "\n" if any(isinstance(item, dict) for item in value) else ", "
        return between.join(map(_words, value)) or "none"
    return "none" if value is None or value == {} else str(value)
