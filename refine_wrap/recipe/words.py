"""What is said of a recipe's keys: what they mean and take, and why a value was refused.

Every refusal names the file and line (or the override), the key, what was expected, and where to read on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from ..errors import RecipeError
from .lines import Key, Places, dotted

if TYPE_CHECKING:
    from .core import Recipe


def explain_key(key: str, recipe: Recipe | None = None) -> str:
    """What a key of a recipe means, what it takes, its default and, of a recipe, its value.

    Args:
        key: with dots, such as "train.ema"; of a section, its keys are listed.

    Raises:
        RecipeError: there is no such key; it names the nearest.
    """
    path: Key = tuple(key.split("."))
    for length in range(1, len(path) + 1):
        if str(path[length - 1]) not in _node(path[: length - 1]).get("properties", {}):
            raise RecipeError(f"{dotted(path[:length])} is not a known key", *_near(path[:length]))
    outer = _node(path[:-1])["properties"][path[-1]]
    required = path[-1] in _node(path[:-1]).get("required", ())
    lines = [dotted(path), f"  {outer.get('description') or _node(path).get('description', '')}"]
    inner = _node(path).get("properties", {})
    if inner:
        lines += [f"  {name}: {node.get('description', '')}".rstrip(": ") for name, node in inner.items()]
    else:
        lines.append(f"  takes: {_accepted(path)}" + (", or null" if _takes_null(outer) else ""))
    if not inner:
        lines.append("  must be given" if required else f"  default: {as_yaml(outer.get('default'))}")
    if recipe is not None:
        value: Any = recipe.to_dict()
        for part in path:
            value = value[part] if isinstance(value, dict) and part in value else None
        lines.append(f"  here: {as_yaml(value)}")
    return "\n".join(lines)


def _takes_null(node: Mapping[str, Any]) -> bool:
    return any(inner.get("type") == "null" for inner in node.get("anyOf", ()))


def as_yaml(value: Any) -> str:
    """A value in one line, as a recipe has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def refusal(error: ValidationError, tree: Mapping[str, Any], places: Places) -> RecipeError:
    """The first error by line in full; the places of the others."""
    # A key that is missing is mostly one that was misspelt below: the misspelling says more.
    found = sorted(error.errors(include_url=False), key=lambda e: (e["type"] == "missing", places.order(_key_of(e))))
    came, expected, next_step = _explain(found[0], tree, places)
    next_step = next_step or explain_step(_key_of(found[0]))
    others = [places.of(_key_of(e)).rstrip(": ") or dotted(_key_of(e)) for e in found[1:4]]
    if others:
        more = f"{len(found) - 1} more: " + ", ".join(others) + (", ..." if len(found) > 4 else "")
        next_step = f"{next_step}; {more}"
    return RecipeError(came, expected, next_step)


def explain_step(key: Key) -> str:
    """Where to read about a key, or about the section that it is not in."""
    known: list[str | int] = []
    for part in key:
        if str(part) not in _node(tuple(known)).get("properties", {}):
            break
        known.append(part)
    named = f"finetune --explain {dotted(tuple(known))}" if known else "recipe schema"
    return f"refine-wrap {named} tells more"


def _key_of(error: Any) -> Key:
    """Where an error points; refusals of several values carry their own key."""
    loc: Key = tuple(error["loc"])
    if error["type"] == "cross":
        return (*loc, *(int(part) if part.isdigit() else part for part in str(error["ctx"]["key"]).split(".")))
    return loc


def _explain(error: Any, tree: Mapping[str, Any], places: Places) -> tuple[str, str | None, str | None]:
    key, place = _key_of(error), places.of(_key_of(error))
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "cross":
        return place + context["came"], context["expected"], context["next_step"] or None
    if kind == "extra_forbidden":
        return f"{place}{dotted(key)} is not a known key", *_near(key)
    if kind == "missing":
        return f"{place}{dotted(key)} is missing", f"{dotted(key)}: {_accepted(key)}", None
    value = error["input"]
    shown = "nothing (null)" if value is None else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    hint = None
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        hint = f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    return f"{place}{dotted(key)} is {shown}", context.get("expected") if kind == "range" else _accepted(key), hint


def _near(key: Key) -> tuple[str, str | None]:
    """What to say of an unknown key: the nearest of its neighbours, or the same word elsewhere."""
    siblings = list(_node(key[:-1]).get("properties", {}))
    elsewhere = [path for path in all_keys() if path[-1] == key[-1]]
    # The same word in another section says more than a distant neighbour.
    close = difflib.get_close_matches(str(key[-1]), siblings, 1, cutoff=0.75 if elsewhere else 0.5)
    listed = ", ".join(siblings) or "no keys here"
    if close:
        return dotted((*key[:-1], close[0])), f"known here: {listed}" if len(listed) < 200 else None
    if elsewhere:
        return dotted(min(elsewhere, key=len)), None
    return f"one of {listed}", None


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    from .core import Recipe

    return Recipe.model_json_schema()


def _node(key: Key) -> dict[str, Any]:
    """The JSON schema of a key, references followed; {} where there is none."""
    node = _plain(_schema())
    for part in key:
        known = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        node = _plain(known)
    return node


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in node:
            node = _schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif len(inner := [n for n in node.get("anyOf", ()) if n.get("type") != "null"]) == 1:
            node = inner[0]
        elif len(sections := [n for n in inner if "$ref" in n]) == 1:  # or a number that stands for it
            node = sections[0]
        else:
            return node


def all_keys(key: Key = ()) -> Iterator[Key]:
    for name in _node(key).get("properties", {}):
        yield (*key, name)
        yield from all_keys((*key, name))


def _accepted(key: Key) -> str:
    """The values that a key takes, for people."""
    return _words(_node(key))


def _words(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    kind = node.get("type", "a value")
    if kind == "array":
        inner = _plain(node.get("items", {}))
        return f"a list, each item {_words(inner)}" if inner else "a list"
    if kind == "object":
        known = ", ".join(node.get("properties", {}))
        return f"keys and values{f' ({known})' if known else ''}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    words = names.get(kind, kind)
    if "pattern" in node:
        words += f" that matches {node['pattern']}"
    bounds = [
        f"{word} {node[name]}"
        for name, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in node
    ]
    if node.get("minLength"):
        bounds.append("not empty")
    return words + (", " + " and ".join(bounds) if bounds else "")
