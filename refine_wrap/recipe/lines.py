"""YAML whose keys know their lines, and the overrides of the command line.

Numbers and booleans follow YAML 1.2: `1e-4` is a number, `no` and `off` are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError

Key = tuple[str | int, ...]


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


@dataclass
class Places:
    """Where each key of a recipe was written. Two recipes of the same values are equal wherever they were written."""

    file: str = field(default="", compare=False)
    lines: dict[Key, int] = field(default_factory=dict, compare=False)
    overrides: dict[Key, str] = field(default_factory=dict, compare=False)

    def of(self, key: Key) -> str:
        """The place of a key or of its nearest parent that was written, as the beginning of a message."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return f"override {self.overrides[key[:length]]}: "
            if key[:length] in self.lines:
                return f"{self.file}:{self.lines[key[:length]]}: "
        return f"{self.file}: " if self.file else ""

    def exactly(self, key: Key) -> str:
        """The place of a key where that key itself was written, else nothing."""
        return self.of(key) if key in self.lines or key in self.overrides else ""

    def order(self, key: Key) -> tuple[int, int]:
        """Sorts by line, overrides last."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return (1, 0)
            if key[:length] in self.lines:
                return (0, self.lines[key[:length]])
        return (0, 0)


class _Loader(yaml.SafeLoader):
    """Scalars by YAML 1.2: no `yes`/`no` booleans, no octal or base-60 numbers, no dates; `1e-4` is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML wants it so)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))

_SCALARS: dict[str, Any] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: (
        float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if text[-1:].isdigit() or text.endswith(".")
        else float(text.lower().replace(".", ""))
    ),
    "tag:yaml.org,2002:str": str,
}
_MOST_NODES = 20_000
"""A recipe has some hundred; aliases of aliases can stand for billions."""


def read_tree(
    path: Path, what: str = "recipe", example: str = "version: 1, name: ..., objective: ..."
) -> tuple[Any, Places]:
    """The plain data of a YAML file, a mapping, and the line of each key.

    Args:
        what, example: what refusals call such a file, and what they say stands in one.

    Raises:
        RecipeError: it cannot be read, is not YAML, no mapping, a key is given twice, or a value has a tag of its own.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}", "a YAML file in UTF-8") from None
    file = str(path)
    places = Places(file)
    node = _compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{file}:1: this is no {what}", f"keys and values: {example}")
    tree = _Builder(file, places.lines).build(node, ())
    return tree, places


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(
            f"{place}: this is not YAML: {error.problem or error.context}",
            "key: value",
            "look at the brackets, quotes and indentation there",
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{file}: this is not YAML: {error}", "key: value") from None


@dataclass
class _Builder:
    """From YAML nodes to plain data, remembering the line of each key."""

    file: str
    lines: dict[Key, int]
    built: int = 0

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.built += 1
        # A loop of aliases would never end.
        if self.built > _MOST_NODES or len(key) > 50:
            raise RecipeError(f"{self.file}:{node.start_mark.line + 1}: the recipe is nested too deeply or too large")
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return {name: self.build(value, (*key, name)) for name, value in self._items(node, key)}
        if isinstance(node, yaml.SequenceNode):
            return [self.build(value, (*key, index)) for index, value in enumerate(node.value)]
        convert = _SCALARS.get(node.tag)
        if convert is None:
            where = f"{self.file}:{node.start_mark.line + 1}"
            raise RecipeError(f"{where}: {dotted(key)} has the tag {node.tag}", "a plain value, without a tag")
        return convert(node.value)

    def _items(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for name_node, value in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise RecipeError(f"{self.file}:{line}: a key that is no word", "key: value")
            name = str(name_node.value)
            if name in seen:
                raise RecipeError(
                    f"{self.file}:{line}: {dotted((*key, name))} is given twice",
                    f"it once; the first is on line {seen[name]}",
                    "keep one of the two",
                )
            seen[name] = line
            inner: Key = (*key, name)
            self.lines[inner] = line
            yield name, value


def apply_override(tree: dict[str, Any], places: Places, override: str) -> None:
    """Set one `key=value` in the tree."""
    name, sign, text = override.partition("=")
    name = name.strip()
    if not sign or not all(name.split(".")):
        raise RecipeError(f"The override {override!r}", "key=value, such as train.steps=100")
    where = f"override {override}"
    node = _compose(text, where)
    key: Key = tuple(name.split("."))
    if places.overrides.get(key, override) != override:
        # A shell makes several of `key={a,b}`: the last one alone would count.
        raise RecipeError(
            f"{where}: {dotted(key)} is given twice, with {places.overrides[key]}",
            "each key once",
            "a list is one override in quotes: 'key=[a, b]'",
        )
    value = None if node is None else _Builder(where, {}).build(node, key)
    place = tree
    for index, part in enumerate(key[:-1]):
        inner = place.get(str(part))
        if inner is None:
            inner = place[str(part)] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {dotted(key[: index + 1])} is {inner!r}, which has no keys below it")
        place = inner
    place[str(key[-1])] = value
    for known in [k for k in places.lines if k[: len(key)] == key]:
        del places.lines[known]
    places.overrides = {k: v for k, v in places.overrides.items() if k[: len(key)] != key}
    places.overrides[key] = override
