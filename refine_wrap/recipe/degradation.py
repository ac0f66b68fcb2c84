"""A degradation on its own, in a recipe's words: for what is no training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..degradation.settings import Degradation, Section
from ..errors import RecipeError
from ..resources import recipe_path
from .core import Recipe
from .lines import Key, Places, apply_override, read_tree
from .words import refusal

_PLACE: Key = ("data", "degradation")


class _Data(Section):
    degradation: Degradation


class _Around(Section):
    """So that keys are called in refusals as in a recipe, where `finetune --explain` tells more about them."""

    data: _Data


def load_degradation(words: Sequence[str], scale: int = 1) -> Degradation:
    """The degradation that some words on a command line name.

    Args:
        words: any number of `key=value` with the keys of a recipe's data.degradation (`noise.sigma=[5, 25]`, values in
            YAML), and before them at most one source: a YAML or JSON file of such keys, or a recipe, by file or name of
            a shipped one, whose data.degradation is taken. Without a source nothing is degraded but what they say.
        scale: where the words name none.

    Raises:
        RecipeError: no such file or recipe, a recipe without degradation, unknown keys, values out of range. It names
            file and line, or the override.
    """
    sources = [word for word in words if "=" not in word or Path(word).expanduser().is_file()]
    if len(sources) > 1:
        raise RecipeError(f"The degradation is given by {' and '.join(sources)}", "one file or recipe, then key=value")
    tree, places = _source(sources[0]) if sources else ({}, Places())
    inside = {"data": {"degradation": {"scale": scale, **tree}}}
    for word in words:
        if word not in sources:
            apply_override(inside, places, f"{'.'.join(map(str, _PLACE))}.{word.strip()}")
    try:
        return _Around.model_validate(inside).data.degradation
    except ValidationError as error:
        raise refusal(error, inside, places) from None


def _source(name: str) -> tuple[dict[str, Any], Places]:
    path = recipe_path(name)
    tree, written = read_tree(path, "degradation, and no recipe", "noise: ..., jpeg: ..., or a recipe")
    if "data" not in tree:
        return tree, Places(str(path), {(*_PLACE, *key): line for key, line in written.lines.items()})
    degradation = Recipe.load(path).data.degradation
    if degradation is None:
        raise RecipeError(f"The recipe {name} has no data.degradation", "a recipe that makes its low-quality images")
    return degradation.model_dump(mode="json"), Places(str(path))
