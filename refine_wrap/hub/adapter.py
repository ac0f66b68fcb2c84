"""An adapter in memory, and what its description in JSON may say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..resources import file_digest

FORMAT_VERSION = 1
"""Version of the layout of an adapter folder. A newer one is refused, with both named."""

KINDS = {
    "refiner": "a refiner, which works on a restored image",
    "quality": "a quality head, which steers a backbone toward a wanted quality",
    "backbone": "a fine-tuned backbone",
    "masks": "a generator of frequency masks",
    "codebook": "an autoencoder with codebooks of features",
    "reconstructor": "a reconstructor, which degrades images as real cameras do",
    "scorer": "a scorer of image quality",
    "classifier": "a classifier of common corruptions",
}
"""What an adapter can be, with a word for people."""

WRAPPED = ("refiner", "quality")
"""The kinds that go around a backbone: `RefineWrapper` loads them."""

UPGRADE = "pip install --upgrade refine-wrap"


@dataclass
class Adapter:
    """What we added to a backbone, as saved.

    Absolute paths in `config`, `backbone`, `recipe`, `metrics` and `data` are cut to their last part when saved:
    an adapter folder says nothing about the machine that it was made on.
    """

    kind: str
    """One of `KINDS`."""
    config: dict[str, Any]
    """Constructor arguments of what the tensors belong to, JSON."""
    tensors: dict[str, Tensor]
    """Only what was added; the backbone is not in it."""
    backbone: dict[str, Any] | None = None
    """`source`, `family`, `scale`, `structure` and `weights` (hashes, hexadecimal). None: it belongs to no backbone;
    a refiner goes with any then."""
    strength: float = 0.3
    """Default strength, in [0, 1]."""
    recipe: dict[str, Any] | None = None
    scorers: list[str] = field(default_factory=list)
    """Scorers that it was trained on; these must not judge it."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Each `name`, `value`, `protocol`, `data`."""
    data: list[dict[str, Any]] = field(default_factory=list)
    """Training data, each `name`, `licence` and what else is known (`source`, `images`)."""
    licence: str | None = None
    """SPDX identifier of the adapter's own licence."""
    version: str = ""
    """The version of this package that saved it; filled in on saving."""


def as_document(adapter: Adapter) -> dict[str, Any]:
    """`adapter.json` without the list of files, checked as `load_adapter` will check it."""
    document = {
        "format_version": FORMAT_VERSION,
        "refine_wrap_version": adapter.version,
        "kind": adapter.kind,
        "config": adapter.config,
        "strength": adapter.strength,
        "backbone": _without_place(adapter.backbone),
        "recipe": adapter.recipe,
        "scorers": list(adapter.scorers),
        "metrics": [_readable_infinity(metric) for metric in adapter.metrics],
        "data": list(adapter.data),
        "licence": adapter.licence,
    }
    plain: dict[str, Any] = _plain(document, "adapter")
    check_document(plain, "The adapter")
    return plain


def _readable_infinity(metric: Any) -> Any:
    """JSON has no infinity, and the PSNR of two equal images is infinite."""
    if isinstance(metric, Mapping) and isinstance(metric.get("value"), float) and not math.isfinite(metric["value"]):
        return {**metric, "value": str(metric["value"])}
    return metric


def _without_place(backbone: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A backbone's record with local files by name and SHA-256 only: their place is nobody else's business."""
    if backbone is None:
        return None
    source = backbone.get("source")
    if isinstance(source, (str, Path)):
        source = {"weights": str(source)}
    if isinstance(source, Mapping):
        source = dict(source)
        for key in ("weights", "path", "file"):
            text = source.get(key)
            elsewhere = isinstance(text, str) and ("://" in text or text.startswith("shipped:"))
            if isinstance(text, (str, Path)) and not elsewhere:
                path = Path(text).expanduser()
                if "sha256" not in source and path.is_file():
                    source["sha256"] = file_digest(path)
                source[key] = _last_part(str(text))
    return {**backbone, "source": source}


def _plain(value: Any, where: str) -> Any:
    """JSON's own types, with absolute paths cut to their last part; what JSON cannot hold is refused by its place."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{where} is {value}", "a finite number")
        return value
    if isinstance(value, (str, Path)):
        return _without_paths(str(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}", "keys that are text")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which adapter.json cannot hold", "numbers, text, lists, mappings"
    )


# Where a path of this machine begins: /a, ~/a, ~name/a, C:\a, \\host\a, file:///a. Not the slashes of https:// or a/b.
_ROOT = r"(?:file:/+|(?<![\w:/.~\\-])(?:~[\w.-]*/|[A-Za-z]:[\\/]|\\\\|/))"
_WHOLE_PATH = re.compile(rf"^{_ROOT}[^\n]*$")
_PATH_INSIDE = re.compile(rf"{_ROOT}[^\s\"'`,;()\[\]{{}}<>|/\\]+[/\\][^\s\"'`,;()\[\]{{}}<>|]*")


def _without_paths(text: str) -> str:
    if _WHOLE_PATH.match(text):
        return _last_part(text)
    name, sign, value = text.partition("=")
    if sign and _WHOLE_PATH.match(value):
        return f"{name}={_last_part(value)}"
    return _PATH_INSIDE.sub(lambda match: _last_part(match.group()), text)


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name or path.strip("/\\") or path  # knows both kinds of slashes


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "config": ((dict,), "a mapping"),
    "strength": ((int, float), "a number"),
    "backbone": ((dict, type(None)), "a mapping or null"),
    "recipe": ((dict, type(None)), "a mapping or null"),
    "scorers": ((list,), "a list of names"),
    "metrics": ((list,), "a list of mappings"),
    "data": ((list,), "a list of mappings"),
    "licence": ((str, type(None)), "text or null"),
    "refine_wrap_version": ((str,), "text"),
}
KNOWN_KEYS = {"format_version", "kind", "files", *_TYPES}


def check_document(document: Mapping[str, Any], what: str) -> None:
    kind = document.get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{what} is of kind {kind!r}", "one of " + ", ".join(KINDS), f"if it is newer: {UPGRADE}")
    for key, (types, words) in _TYPES.items():
        value = document.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            raise CheckpointError(f"{what}: {key} is {shortened(value)}", words)
    for key, item_type in (("scorers", str), ("metrics", dict), ("data", dict)):
        for item in document[key]:
            if not isinstance(item, item_type):
                raise CheckpointError(f"{what}: {key} holds {shortened(item)}", _TYPES[key][1])
    if not 0 <= document["strength"] <= 1:
        raise CheckpointError(f"{what}: strength is {document['strength']}", "a number from 0 to 1")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
