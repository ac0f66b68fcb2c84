"""An adapter as a folder on disk, and the Hugging Face Hub: save, load, fetch, push, and the model card.

An adapter folder holds `adapter.safetensors` (only the tensors that we added), `adapter.json` (what they are, which
backbone they are for, how they were made) and `README.md` (the card). `adapter.json` is written last and carries the
SHA-256 of the tensors, so that no mixture of two saves is ever taken for an adapter.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, HubError, OutputError, RefineWrapError
from .resources import file_digest, known_backbone, manifest, verify_file, verify_weights

__all__ = [
    "FORMAT_VERSION",
    "KINDS",
    "Adapter",
    "Reference",
    "fetch_file",
    "load_adapter",
    "manifest",
    "model_card",
    "parse_reference",
    "push_folder",
    "resolve",
    "save_adapter",
    "verify_file",
    "verify_weights",
]

FORMAT_VERSION = 1
"""Version of the layout of an adapter folder. A newer one is refused, with both named."""

KINDS = {
    "refiner": "a refiner, which works on a restored image",
    "quality": "a quality head, which steers a backbone toward a wanted quality",
    "backbone": "a fine-tuned backbone",
    "masks": "a generator of frequency masks",
    "codebook": "a codebook of features",
    "reconstructor": "a reconstructor, which degrades images as real cameras do",
    "scorer": "a scorer of image quality",
}
"""What an adapter can be, with a word for people."""

TENSORS, DOCUMENT, CARD, BACKBONE = "adapter.safetensors", "adapter.json", "README.md", "backbone.safetensors"
CARD_MARK = "<!-- card written by refine-wrap: it is written anew on each save; take this line out to keep your own -->"
UPGRADE = "pip install --upgrade refine-wrap"
LOCK_SECONDS = 60.0
READ_ATTEMPTS = 5


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
    """`source`, `family`, `scale`, `structure` and `weights` (hashes, hexadecimal). None: it belongs to no backbone."""
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


# ---------------------------------------------------------------------------------------------------------- writing


def save_adapter(
    folder: str | Path, adapter: Adapter, *, card: str | None = None, backbone_file: str | Path | None = None
) -> Path:
    """Write an adapter folder: whole or not at all.

    A folder that does not exist appears in one step. In one that exists, the files are prepared first and then replaced
    one by one under a lock, `adapter.json` last; other files in it are left alone. A `README.md` of a person is kept.

    Args:
        folder: made if it is missing, with its parents.
        adapter: what to save. `version` is set.
        card: Markdown for `README.md` in place of the one that is made from `adapter`.
        backbone_file: a fine-tuned backbone to save beside it as `backbone.safetensors`. One that lies in the folder
            already is listed in `adapter.json` too.

    Raises:
        CheckpointError: the adapter holds what cannot be saved: values that are not finite, an unknown kind, config
            that is not JSON.
        OutputError: the folder cannot be written; what was there is intact.
    """
    folder = Path(folder).expanduser()
    adapter.version = _own_version()
    tensors = _packed(adapter)
    document = _document(adapter)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", "a folder to save the adapter in, or a name that is free")
    if backbone_file is not None and not Path(backbone_file).is_file():
        raise CheckpointError(f"There is no file {backbone_file}", "the fine-tuned backbone to save")
    staging = _staging_place(folder)
    try:
        staging.mkdir(parents=True)
        if backbone_file is not None:
            shutil.copyfile(backbone_file, staging / BACKBONE)
        _write(staging / TENSORS, tensors)
        listed = {TENSORS: _entry(staging / TENSORS)}
        tuned = next((path for path in (staging / BACKBONE, folder / BACKBONE) if path.is_file()), None)
        if tuned is not None:
            listed[BACKBONE] = _entry(tuned)
        document["files"] = listed
        text = card if card is not None else model_card(adapter)
        _write(staging / CARD, text.encode())
        _write(staging / DOCUMENT, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
        _move_in(staging, folder, keep_card=card is None)
    except (OSError, NotImplementedError) as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _staging_place(folder: Path) -> Path:
    """A new folder name on the same file system: inside a folder that exists, beside one that does not."""
    name = f"{folder.resolve().name}.{uuid.uuid4().hex[:8]}.saving"
    return (folder if folder.is_dir() else folder.parent) / f".{name}"


def _move_in(staging: Path, folder: Path, *, keep_card: bool) -> None:
    if not folder.exists():
        try:
            os.rename(staging, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
            # Another process was first: go on as into a folder that exists.
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".adapter.lock", timeout=LOCK_SECONDS):
            if keep_card and not _is_our_card(folder / CARD):
                (staging / CARD).unlink()
            for name in (BACKBONE, CARD, TENSORS, DOCUMENT):
                if (staging / name).is_file():
                    os.replace(staging / name, folder / name)
    except Timeout:
        raise OutputError(
            f"{folder} has been locked by another process for {LOCK_SECONDS:.0f} s",
            "one that saves at a time",
            "wait for the other run, or save into another folder",
        ) from None


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _cannot_write(folder: Path, error: BaseException) -> OutputError:
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OutputError(
        f"{folder} cannot be written: {reason}",
        "room on the disk" if full else "a folder with write rights",
        "free some space, or save elsewhere; what was in the folder is unchanged" if full else "save elsewhere",
    )


def _packed(adapter: Adapter) -> bytes:
    """The tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    if not isinstance(adapter.tensors, Mapping) or (not adapter.tensors and adapter.kind != "backbone"):
        raise CheckpointError("The adapter holds no tensors", "the state dict of what was added")
    plain = {}
    for name, value in adapter.tensors.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"The adapter's {name} is a {type(value).__name__}", "a tensor")
        # A copy each: safetensors refuses tensors that share memory, and views would drag their whole storage along.
        plain[name] = value.detach().to("cpu").contiguous().clone()
    _check_finite(plain, "The adapter")
    structure = (adapter.backbone or {}).get("structure") or ""
    header = {"format_version": str(FORMAT_VERSION), "kind": adapter.kind, "backbone_structure": str(structure)}
    return _in_order(save(plain, {**header, "format": "pt"}))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: it comes in random order, and equal adapters shall be equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data starts at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{what}: {name} holds values that are not finite",
                "finite weights",
                "these come from a broken run; use another",
            )


def _document(adapter: Adapter) -> dict[str, Any]:
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
    _check_document(plain, "The adapter")
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


def _own_version() -> str:
    from . import __version__

    return __version__


# ---------------------------------------------------------------------------------------------------------- reading

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
    "files": ((dict,), "a mapping"),
}
_KNOWN = {"format_version", "kind", *_TYPES}


def load_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder, strictly: format, kind, types, sizes, hashes, finite values.

    Whether the tensors' names and shapes fit the network is for the caller to check.

    Raises:
        CheckpointError: no adapter folder, a file is missing, damaged or of another save, or the format is newer.

    Warns:
        UserWarning: `adapter.json` has keys that this version does not know; they are named and left out.
    """
    folder = Path(folder).expanduser()
    _check_is_adapter(folder)
    document, content, problem = _read_pair(folder)
    if problem is None and BACKBONE in document["files"]:
        tuned = folder / BACKBONE
        if not tuned.is_file():
            raise CheckpointError(
                f"{tuned} is missing", f"the fine-tuned backbone that {DOCUMENT} lists", "copy it again"
            )
        problem = _difference(BACKBONE, tuned.stat().st_size, file_digest(tuned), document)
    if problem is not None:
        raise CheckpointError(f"{folder}: {problem}", "files of one save", "copy, download or save the adapter again")
    tensors, header = _unpacked(content, folder / TENSORS)
    structure = str((document["backbone"] or {}).get("structure") or "")
    if (header.get("kind"), header.get("backbone_structure")) != (document["kind"], structure):
        raise CheckpointError(
            f"{folder}: {DOCUMENT} speaks of kind {document['kind']}, backbone {structure[:8] or 'none'}; "
            f"{TENSORS} of kind {header.get('kind')}, backbone {str(header.get('backbone_structure'))[:8] or 'none'}",
            "the files of one save, unedited",
        )
    unknown = sorted(set(document) - _KNOWN)
    if unknown:
        warnings.warn(
            f"{folder / DOCUMENT} has keys that refine-wrap {_own_version()} does not know, left out: "
            f"{', '.join(unknown)}. Saved by version {document['refine_wrap_version'] or '?'}; upgrade: {UPGRADE}",
            UserWarning,
            stacklevel=2,
        )
    return Adapter(
        kind=document["kind"],
        config=document["config"],
        tensors=tensors,
        backbone=document["backbone"],
        strength=float(document["strength"]),
        recipe=document["recipe"],
        scorers=document["scorers"],
        metrics=document["metrics"],
        data=document["data"],
        licence=document["licence"],
        version=document["refine_wrap_version"],
    )


def _read_pair(folder: Path) -> tuple[dict[str, Any], bytes, str | None]:
    """`adapter.json`, the bytes of the tensors, and how these two differ (None: they do not)."""
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(0.05)  # another process may be between its two replacements
        document = _read_document(folder / DOCUMENT)
        content = _read(folder / TENSORS)
        problem = _difference(TENSORS, len(content), hashlib.sha256(content).hexdigest(), document)
        if problem is None:
            break
    return document, content, problem


def _check_is_adapter(folder: Path) -> None:
    holds = f"a folder with {DOCUMENT} and {TENSORS}"
    if folder.is_file():
        hint = f"give its folder, {folder.parent}" if folder.name in (DOCUMENT, TENSORS) else None
        raise CheckpointError(f"{folder} is a file, not an adapter folder", holds, hint)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}", holds)
    missing = [name for name in (DOCUMENT, TENSORS) if not (folder / name).is_file()]
    if len(missing) == 2:
        raise CheckpointError(f"{folder} is not an adapter folder", holds)
    if missing:
        raise CheckpointError(f"{folder} has no {missing[0]}", holds, "copy, download or save the adapter again")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}", "a readable file") from None


def _read_document(path: Path) -> dict[str, Any]:
    """`adapter.json`, checked, with defaults for what may be missing."""
    try:
        document = json.loads(_read(path).decode("utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}, line {error.lineno}: {error.msg}",
            "JSON, as save_pretrained writes it",
            "copy or download it again",
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no JSON ({type(error).__name__})", "JSON in UTF-8", "copy or download it again"
        ) from None
    if not isinstance(document, dict) or "format_version" not in document:
        raise CheckpointError(f"{path} has no format_version", f"{DOCUMENT} as save_pretrained writes it")
    version = document["format_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} has format_version {version!r}", f"a whole number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        by = document.get("refine_wrap_version", "a later one")
        raise CheckpointError(
            f"{path} has format {version} (saved by refine-wrap {by})",
            f"format {FORMAT_VERSION} or older, which refine-wrap {_own_version()} reads",
            UPGRADE,
        )
    defaults: dict[str, Any] = {"strength": 0.3, "backbone": None, "recipe": None, "licence": None}
    defaults |= {"scorers": [], "metrics": [], "data": [], "refine_wrap_version": ""}
    document = {**defaults, **document}
    _check_document(document, str(path))
    _check_files(document, path)
    return document


def _check_document(document: Mapping[str, Any], what: str) -> None:
    kind = document.get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{what} is of kind {kind!r}", "one of " + ", ".join(KINDS), f"if it is newer: {UPGRADE}")
    for key, (types, words) in _TYPES.items():
        if key == "files":
            continue
        value = document.get(key)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise CheckpointError(f"{what}: {key} is {_short(value)}", words)
    for key, item_type in (("scorers", str), ("metrics", dict), ("data", dict)):
        for item in document[key]:
            if not isinstance(item, item_type):
                raise CheckpointError(f"{what}: {key} holds {_short(item)}", _TYPES[key][1])
    if not 0 <= document["strength"] <= 1:
        raise CheckpointError(f"{what}: strength is {document['strength']}", "a number from 0 to 1")


def _check_files(document: Mapping[str, Any], path: Path) -> None:
    files = document.get("files")
    if not isinstance(files, dict) or TENSORS not in files or not set(files) <= {TENSORS, BACKBONE}:
        raise CheckpointError(
            f"{path}: files is {_short(files)}", f"size and sha256 of {TENSORS}, and of {BACKBONE} if there is one"
        )
    for name, entry in files.items():
        if not (
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        ):
            raise CheckpointError(f"{path}: files.{name} is {_short(entry)}", "bytes and sha256")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _difference(name: str, size: int, digest: str, document: Mapping[str, Any]) -> str | None:
    """How a file differs from what `adapter.json` says of it, None if it does not."""
    wanted = document["files"][name]
    if size < wanted["bytes"]:
        return f"{name} is incomplete: {size:,} bytes of {wanted['bytes']:,}"
    if size != wanted["bytes"] or digest != wanted["sha256"].lower():
        hashes = f"sha256 {digest[:12]}, not {wanted['sha256'][:12]}"
        return f"{name} is not the one that {DOCUMENT} was saved with ({hashes})"
    return None


def _unpacked(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        # The header was just parsed by safetensors: its length and JSON are sound.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error})", "a complete file", "copy or download it again"
        ) from None
    _check_finite(tensors, str(path))
    return tensors, dict(header.get("__metadata__") or {})


# ---------------------------------------------------------------------------------------------------------- the card

_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail"),
}
_RESTRICTED = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)


def model_card(adapter: Adapter, name: str = "FOLDER_OR_ORG/NAME") -> str:
    """The card of an adapter, Markdown with the Hub's YAML front matter, from nothing but what the adapter records.

    Args:
        adapter: absolute paths in it are cut to their last part.
        name: how the loading example calls it: the Hub repository, if that is known.
    """
    record = _document(adapter)
    title = name.rsplit("/", 1)[-1] if name != "FOLDER_OR_ORG/NAME" else f"{adapter.kind} adapter"
    parts = [
        f"# {title}",
        CARD_MARK,
        _what_it_is(record),
        "## Use\n\n" + _fenced(_snippet(record, name), "python"),
        "## Backbone\n\n" + _about_backbone(record["backbone"]),
        "## Training data\n\n" + _about_data(record),
        "## Recipe\n\n" + (_fenced(_yaml(record["recipe"]), "yaml") if record["recipe"] else "None was recorded."),
        "## Metrics\n\n" + _about_metrics(record),
        "## Limits\n\n" + _limits(record),
        "## Licences\n\n" + _about_licences(record),
        f"Saved by refine-wrap {adapter.version or _own_version()}, format {FORMAT_VERSION}.",
    ]
    return _front_matter(record) + "\n" + "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    head: dict[str, Any] = {"library_name": "refine-wrap", "pipeline_tag": "image-to-image"}
    family = (record["backbone"] or {}).get("family")
    head["tags"] = ["refine-wrap", "image-restoration", record["kind"], *([str(family).lower()] if family else [])]
    if record["licence"]:
        known = record["licence"].lower() in _HUB_LICENCES
        head["license"] = record["licence"].lower() if known else "other"
        if not known:
            head["license_name"] = record["licence"]
    repo = _hub_repo(record["backbone"])
    if repo:
        head["base_model"] = repo
    return f"---\n{_yaml(head)}---\n"


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def _fenced(text: str, language: str) -> str:
    # A fence longer than any in the text: nothing inside can end the block.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _source(backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    source = (backbone or {}).get("source")
    return dict(source) if isinstance(source, Mapping) else {}


def _hub_reference(backbone: Mapping[str, Any] | None) -> Reference | None:
    weights = _source(backbone).get("weights")
    if isinstance(weights, str) and weights.startswith("hf://"):
        try:
            return parse_reference(weights)
        except HubError:
            return None  # a card is written for any record; loading it is what refuses a bad address
    return None


def _hub_repo(backbone: Mapping[str, Any] | None) -> str | None:
    reference = _hub_reference(backbone)
    return reference.repo if reference else None


def _what_it_is(record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    text = f"This is {KINDS[record['kind']]}, made with refine-wrap."
    if backbone:
        family, scale = backbone.get("family") or "custom", backbone.get("scale", "?")
        made = "from" if record["kind"] == "backbone" else "for"
        text += f" It was made {made} a {family} backbone (scale x{scale})"
        if record["kind"] != "backbone":
            text += ", which is not part of it: the backbone's own weights stay as published"
        text += "."
    return text + f" Default strength: {record['strength']}." * (record["kind"] == "refiner")


def _snippet(record: Mapping[str, Any], name: str) -> str:
    if record["kind"] != "refiner" or not record["backbone"]:
        return f'from refine_wrap.hub import load_adapter, resolve\n\nadapter = load_adapter(resolve("{name}"))'
    weights = str(_source(record["backbone"]).get("weights", ""))
    if weights.startswith(("hf://", "shipped:")):
        call, names = f'RefineWrapper.from_pretrained("{name}")', "RefineWrapper"
    else:
        local = weights or "YOUR_BACKBONE.safetensors"
        call = f'RefineWrapper.from_pretrained("{name}", backbone=load_backbone("{local}"))'
        names = "RefineWrapper, load_backbone"
    return f'from refine_wrap import {names}\n\nmodel = {call}\nmodel.restore("photo.jpg", "restored.png")'


def _about_backbone(backbone: Mapping[str, Any] | None) -> str:
    if not backbone:
        return "It belongs to no backbone."
    source = _source(backbone)
    rows = [
        ("family", backbone.get("family")),
        ("scale", backbone.get("scale")),
        ("architecture", source.get("arch")),
        ("weights from", source.get("weights") or source.get("file") or source.get("path")),
        ("sha256 of that file", source.get("sha256")),
        ("structure hash", backbone.get("structure")),
        ("weights hash", backbone.get("weights")),
    ]
    table = _table(("", ""), [(key, value) for key, value in rows if value is not None])
    return table + "\n\nOnto a backbone of another structure it does not load; onto other weights only when asked to."


def _about_data(record: Mapping[str, Any]) -> str:
    if not record["data"]:
        return "None was recorded."
    rows = []
    for item in record["data"]:
        more = "; ".join(f"{key}: {value}" for key, value in item.items() if key not in ("name", "licence"))
        rows.append((item.get("name"), item.get("licence") or "not stated", more))
    return _table(("data", "licence", "more"), rows)


def _about_metrics(record: Mapping[str, Any]) -> str:
    if not record["metrics"]:
        return "None were recorded."
    keys = ("name", "value", "protocol", "data")
    rows = [tuple(_rounded(item.get(key, "not stated")) for key in keys) for item in record["metrics"]]
    return _table(("metric", "value", "protocol", "data"), rows) + "\n\nA figure holds for its protocol only."


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _limits(record: Mapping[str, Any]) -> str:
    lines = ["It was trained for the degradations of its recipe; on others it may add detail that was never there."]
    if record["kind"] == "refiner":
        lines.append("A higher strength asks for more perceptual detail at the cost of fidelity; 0 keeps fidelity.")
    if record["scorers"]:
        names = ", ".join(record["scorers"])
        lines.append(f"It was trained on these scorers, whose scores therefore say nothing about it: {names}.")
    if not record["metrics"]:
        lines.append("Nothing was measured when it was saved.")
    if any(_RESTRICTED.search(str(item.get("licence") or "")) for item in record["data"]):
        lines.append("Trained on data for research or non-commercial use: treat these weights as research-only.")
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _about_licences(record: Mapping[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = [("this adapter", record["licence"] or "not stated")]
    backbone = record["backbone"]
    if backbone:
        reference = _hub_reference(backbone)
        listed = known_backbone(reference.repo, reference.path) if reference and reference.path else None
        licence = _source(backbone).get("licence") or (listed or {}).get("licence")
        rows.append(
            (f"backbone ({backbone.get('family') or 'custom'})", licence or "not recorded: see where it comes from")
        )
    rows += [(f"data {item.get('name')}", item.get("licence") or "not stated") for item in record["data"]]
    rows += [(f"scorer {name}", "the scorer's own: see where it comes from") for name in record["scorers"]]
    return _table(("part", "licence"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _is_our_card(path: Path) -> bool:
    """Whether a card may be replaced: it is ours, or there is none."""
    return not path.is_file() or CARD_MARK.encode() in path.read_bytes()


# ---------------------------------------------------------------------------------------------------------- the Hub

_FORM = "hf://org/name/path/to/file@revision (path and @revision are optional)"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_FILE_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".pkl", ".bin", ".json", ".yaml", ".yml", ".zip"}


@dataclass(frozen=True)
class Reference:
    """A place on the Hub: `hf://repo/path@revision`."""

    repo: str
    """`org/name`."""
    path: str | None = None
    """A file in it, None for the whole repository."""
    revision: str | None = None
    """Branch, tag or commit; None for the default branch."""

    def __str__(self) -> str:
        return f"hf://{self.repo}{'/' + self.path if self.path else ''}{'@' + self.revision if self.revision else ''}"


def parse_reference(text: str) -> Reference:
    """Read `hf://org/name`, `hf://org/name/path/to/file` or either with `@revision` at the end.

    Raises:
        HubError: it is none of these.
    """
    body, at, revision = text.removeprefix("hf://").partition("@")
    if at and "@" in revision:  # a file such as icon@2x.pth: the revision is after the last one
        body, _, revision = text.removeprefix("hf://").rpartition("@")
    parts = body.split("/")
    repo, rest = "/".join(parts[:2]), parts[2:]
    sound = text.startswith("hf://") and len(parts) >= 2 and _is_repo_name(repo) and (not at or revision)
    sound = sound and not any(part in ("", ".", "..") for part in rest) and not re.search(r"[\s\\?#%]", text)
    if not sound or (at and any(part in ("", ".", "..") for part in revision.split("/"))):
        raise HubError(f"{text!r} is not a place on the Hub", _FORM)
    return Reference(repo, "/".join(rest) or None, revision or None)


def _is_repo_name(text: str) -> bool:
    # The Hub's own rules: no doubled or closing signs, no .git.
    return bool(_REPO.fullmatch(text)) and not re.search(r"--|\.\.|[.-](?:/|$)|\.git$", text)


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of an adapter: a folder itself, or a repository on the Hub.

    Of a repository, `adapter.json`, `adapter.safetensors`, `README.md` (and `backbone.safetensors` where `adapter.json`
    lists it) are fetched into the Hub's cache, all of one commit, and checked by size and SHA-256. Nothing is fetched
    for a folder that exists, nor for text that looks like a path: it starts with `.`, `/` or `~`, or ends like a file.

    Args:
        source: folder, `org/name`, or `hf://org/name@revision`.
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: there is no such folder, or what came is no adapter.
        HubError: the repository, revision or a file cannot be had, or came incomplete.
    """
    text = str(source)
    if not text.startswith("hf://"):
        path = Path(text).expanduser()
        if path.is_dir():
            if revision is not None:
                raise HubError(
                    f"Revision {revision!r} is given for the local folder {path}",
                    "a revision with a Hub repository only",
                    f"hf://{text} for the repository of that name" if _is_repo_name(text) else None,
                )
            return path
        like_a_path = isinstance(source, Path) or path.suffix.lower() in _FILE_SUFFIXES or not _is_repo_name(text)
        if like_a_path or path.exists():
            _check_is_adapter(path)
        text = f"hf://{text}"
    reference = parse_reference(text)
    if reference.path is not None:
        raise HubError(f"{text} names a file", "an adapter's repository: hf://org/name@revision")
    if revision is not None and reference.revision not in (None, revision):
        raise HubError(f"Two revisions are given: {text} and {revision!r}", "one of them")
    return _fetch_adapter(Reference(reference.repo, None, revision or reference.revision))


def _fetch_adapter(reference: Reference) -> Path:
    document_path = _download(reference, DOCUMENT)
    folder = document_path.parent
    # The cache names the folder of a snapshot by its commit. The other files are asked for by it: a push in between
    # must not mix two versions.
    exact = Reference(reference.repo, None, folder.name)
    document = _read_document(document_path)
    for name in document["files"]:
        path = _download(exact, name, asked=reference)
        problem = _difference(name, path.stat().st_size, file_digest(path), document)
        if problem is not None:
            raise _damaged(reference, name, problem)
    with contextlib.suppress(_NotThereError):  # a card is for people; nothing is loaded from it
        _download(exact, CARD, asked=reference)
    return folder


def fetch_file(reference: str) -> Path:
    """Fetch one file from the Hub into its cache: `hf://org/name/path/to/file@revision`.

    `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and tokens are huggingface_hub's own. A file that the weights manifest
    lists is checked against its size and SHA-256, unless another revision than the listed one is asked for by name.

    Raises:
        HubError: it cannot be had (each cause has its own sentence), or came incomplete or changed.
    """
    place = parse_reference(reference)
    if place.path is None:
        raise HubError(f"{reference} names a repository", "a file in it: hf://org/name/path/to/file@revision")
    path = _download(place, place.path)
    entry = known_backbone(place.repo, place.path)
    if entry is not None and place.revision in (None, "main", entry.get("revision")):
        try:
            verify_file(path, entry)
        except CheckpointError as error:
            raise _damaged(place, place.path, f"{error.came}; the manifest says {error.expected}") from None
    return path


class _NotThereError(HubError):
    """The repository has no such file, or the cache lacks it without a way to ask."""


def _download(reference: Reference, file: str, *, asked: Reference | None = None) -> Path:
    """One file into the Hub's cache. `asked` is what the user named, for messages, where `reference` is more exact."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(reference.repo, file, revision=reference.revision))
    except Exception as error:  # huggingface_hub raises many kinds, and those of its HTTP library, which changes
        raise _hub_failure(error, asked or reference, file) from error


def _damaged(reference: Reference, file: str, problem: str) -> HubError:
    return HubError(
        f"{file} of {reference.repo} came incomplete or changed: {' '.join(problem.split())}",
        "the file as it was published",
        _command(reference, file) + " --force-download",
    )


def _command(reference: Reference, file: str) -> str:
    return f"hf download {reference.repo} {file}" + (f" --revision {reference.revision}" if reference.revision else "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _hub_failure(error: Exception, reference: Reference, file: str) -> RefineWrapError:
    """One sentence for each cause of a failed download.

    Causes are told by the names of their classes: huggingface_hub has moved these classes between modules, and its HTTP
    library went from requests to httpx to httpx2.
    """
    repo, at = reference.repo, f"at revision {reference.revision!r}" if reference.revision else "at its default branch"
    causes = list(_causes(error))
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    status = next((s for s in map(_status, causes) if s is not None), None)
    raised = {cls.__name__ for cls in type(error).__mro__}
    fetch = _command(reference, file)
    if "GatedRepoError" in names:
        return HubError(
            f"{repo} is gated: its owner has not given you access to {file}",
            "an account that has accepted its terms",
            f"accept them at {_endpoint()}/{repo}, then `hf auth login`",
        )
    missing = _missing_part(names, raised, reference)
    if missing == "revision":
        return HubError(
            f"{repo} has no revision {reference.revision!r}",
            "a branch, tag or commit of it",
            f"see {_endpoint()}/{repo}",
        )
    if missing == "file":
        hint = "is it an adapter's repository?" if file == DOCUMENT else f"see {_endpoint()}/{repo}"
        return _NotThereError(f"{repo} has no file {file} {at}", None, hint)
    if missing == "repository":
        return HubError(
            f"There is no repository {repo} on {_endpoint()} that you can read, nor a folder of that name here",
            "the name of a public repository, or of one that your token can read",
            "check the name; for a private one: `hf auth login`",
        )
    if "OfflineModeIsEnabled" in names:
        return _NotThereError(
            f"{file} of {repo} ({at}) is not in the cache, and HF_HUB_OFFLINE keeps the Hub from being asked",
            "the file in the cache, or a network",
            f"where there is a network: {fetch}",
        )
    if status in (401, 403):
        return HubError(
            f"{_endpoint()} refuses {file} of {repo} (HTTP {status})", "a token with read access", "hf auth login"
        )
    if _is_cut_short(causes, names):
        return _damaged(reference, file, "the connection ended before the file did")
    if status is not None and status >= 400:
        return HubError(
            f"{_endpoint()} answers HTTP {status} for {file} of {repo} ({at})",
            "a Hub that answers",
            f"try again later: {fetch}",
        )
    if "FileMetadataError" in names:
        return HubError(
            f"{_endpoint()} does not answer as a Hub does for {file} of {repo}",
            "the Hub or a mirror of it",
            "check HF_ENDPOINT, proxy and firewall",
        )
    return _local_or_network_failure(error, causes, names, reference, file)


def _missing_part(names: set[str], raised: set[str], reference: Reference) -> str | None:
    """Which of repository, revision and file is missing, None if that is not what went wrong."""
    if "RevisionNotFoundError" in names:
        return "revision"
    if "EntryNotFoundError" in raised and "LocalEntryNotFoundError" not in raised:
        return "file"
    if "RepositoryNotFoundError" not in names:
        return None
    # Mirrors call every missing thing a missing repository: ask for the revision, then for the repository.
    if _answers(reference.repo, reference.revision or "main"):
        return "file"
    return "revision" if _answers(reference.repo, None) or _answers(reference.repo, "main") else "repository"


def _answers(repo: str, revision: str | None) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo, revision=revision)
    except Exception:  # whatever it is, the failure that is being explained stays as it is
        return False
    return True


_NETWORK = {
    "ConnectError",
    "ConnectionError",
    "TimeoutException",
    "Timeout",
    "NetworkError",
    "LocalEntryNotFoundError",
    "ProxyError",
}


def _local_or_network_failure(
    error: Exception, causes: Sequence[BaseException], names: set[str], reference: Reference, file: str
) -> RefineWrapError:
    repo = reference.repo
    if "HFValidationError" in names:
        return HubError(f"{reference} is not a place on the Hub: {_first_line(error)}", _FORM)
    if names & _NETWORK:
        return _NotThereError(
            f"{_endpoint()} cannot be reached, and {file} of {repo} is not in the cache",
            "a network, or the file in the cache",
            f"where there is a network: {_command(reference, file)}",
        )
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return OutputError(
                f"{file} of {repo} cannot be written into the Hub's cache: {cause.strerror or cause}",
                "room and write rights there",
                "set HF_HOME to another folder",
            )
    return HubError(
        f"{file} of {repo} cannot be fetched: {type(error).__name__}: {_first_line(error)}",
        None,
        _command(reference, file),
    )


def _is_cut_short(causes: Sequence[BaseException], names: set[str]) -> bool:
    if names & {"RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead", "ReadError"}:
        # The same error on the first request, before any file, is an endpoint that cannot be reached.
        return "LocalEntryNotFoundError" not in names
    return any("Consistency check failed" in str(cause) for cause in causes)


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def push_folder(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> str:
    """Upload an adapter folder to the Hub as one commit; the repository and branch are made if they are missing.

    Only the adapter's own files go: `adapter.safetensors`, `adapter.json`, `README.md`, and `backbone.safetensors` if
    `adapter.json` lists it. The folder is checked first, as for loading. A card of ours is written anew with the
    repository's name in it.

    Args:
        folder: as written by `save_adapter`.
        repo_id: `org/name`.
        private: for a repository that is made by this; one that exists stays as it is.
        revision: branch to push to.
        message: of the commit.

    Returns:
        The address of the repository (of the branch, if one is given).

    Raises:
        CheckpointError: the folder is no adapter or is damaged.
        HubError: malformed name, no network, no token, no rights, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder).expanduser()
    if not _is_repo_name(repo_id):
        raise HubError(f"{repo_id!r} is not the name of a repository", "org/name")
    adapter = load_adapter(folder)
    card = folder / CARD
    readme = model_card(adapter, repo_id).encode() if _is_our_card(card) else card.read_bytes()
    names = [TENSORS, DOCUMENT, *([BACKBONE] if BACKBONE in _read_document(folder / DOCUMENT)["files"] else [])]
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=readme))
    message = message or f"Add a {adapter.kind} adapter (refine-wrap {_own_version()})"
    api = HfApi(library_name="refine-wrap", library_version=_own_version())
    try:
        url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    except Exception as error:  # as in _download
        raise _push_failure(error, repo_id) from error
    return url if revision is None else f"{url}/tree/{revision}"


def _push_failure(error: Exception, repo: str) -> HubError:
    causes = list(_causes(error))
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    status = next((s for s in map(_status, causes) if s is not None), None)
    came, endpoint = f"Nothing was pushed to {repo}", _endpoint()
    rights = "a token with write access to it"
    if "OfflineModeIsEnabled" in names:
        return HubError(f"{came}: HF_HUB_OFFLINE is set", "a network", "unset HF_HUB_OFFLINE")
    if "LocalTokenNotFoundError" in names or status == 401:
        return HubError(f"{came}: you are not logged in, or the token is not valid", rights, "hf auth login")
    if status == 403:
        return HubError(f"{came}: your token may not write there", rights, "hf auth login")
    if status == 404:
        return HubError(f"{came}: {endpoint} knows no such organisation, repository or branch", "org/name of your own")
    if status is not None:
        return HubError(f"{came}: {endpoint} answers HTTP {status}: {_first_line(error)}", None, "try again later")
    if names & (_NETWORK | {"RemoteProtocolError", "ReadError"}):
        return HubError(f"{came}: {endpoint} cannot be reached", "a network", "check the network and HF_ENDPOINT")
    return HubError(f"{came}: {type(error).__name__}: {_first_line(error)}")
