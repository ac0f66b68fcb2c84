"""An adapter as a folder on disk.

The folder holds `adapter.safetensors` (only the tensors that we added), `adapter.json` (what they are, which backbone
they are for, how they were made) and `README.md` (the card). `adapter.json` is written last and carries the SHA-256 of
the tensors, so that no mixture of two saves is ever taken for an adapter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..backbone.checkpoint import check_finite
from ..errors import CheckpointError, OutputError
from ..resources import file_digest
from .adapter import FORMAT_VERSION, KNOWN_KEYS, UPGRADE, Adapter, as_document, check_document, shortened
from .card import is_our_card, model_card

BROKEN_RUN = "these come from a broken run; use another"

TENSORS, DOCUMENT, CARD, BACKBONE = "adapter.safetensors", "adapter.json", "README.md", "backbone.safetensors"
LOCK_SECONDS = 60.0
READ_ATTEMPTS = 8


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
    adapter.version = __version__
    tensors = _packed(adapter)
    document = as_document(adapter)
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
            if keep_card and not is_our_card(folder / CARD):
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
    check_finite(plain, BROKEN_RUN, "The adapter")
    structure = (adapter.backbone or {}).get("structure") or ""
    header = {"format_version": str(FORMAT_VERSION), "kind": adapter.kind, "backbone_structure": str(structure)}
    return _in_order(save(plain, {**header, "format": "pt"}))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: it comes in random order, and equal adapters shall be equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data starts at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]


def load_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder, strictly: format, kind, types, sizes, hashes, finite values.

    Whether the tensors' names and shapes fit the network is for the caller to check.

    Raises:
        CheckpointError: no adapter folder, a file is missing, damaged or of another save, or the format is newer.

    Warns:
        UserWarning: `adapter.json` has keys that this version does not know; they are named and left out.
    """
    folder = Path(folder).expanduser()
    check_is_adapter(folder)
    document, content, problem = _read_pair(folder)
    if problem is None and BACKBONE in document["files"]:
        tuned = folder / BACKBONE
        if not tuned.is_file():
            raise CheckpointError(
                f"{tuned} is missing", f"the fine-tuned backbone that {DOCUMENT} lists", "copy it again"
            )
        problem = difference(BACKBONE, tuned.stat().st_size, file_digest(tuned), document)
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
    unknown = sorted(set(document) - KNOWN_KEYS)
    if unknown:
        warnings.warn(
            f"{folder / DOCUMENT} has keys that refine-wrap {__version__} does not know, left out: "
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
            time.sleep(0.05 * attempt)  # another process may be between its two replacements
        document = read_document(folder / DOCUMENT)
        content = _read(folder / TENSORS)
        problem = difference(TENSORS, len(content), hashlib.sha256(content).hexdigest(), document)
        if problem is None:
            break
    return document, content, problem


def check_is_adapter(folder: Path) -> None:
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


def read_document(path: Path) -> dict[str, Any]:
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
            f"format {FORMAT_VERSION} or older, which refine-wrap {__version__} reads",
            UPGRADE,
        )
    defaults: dict[str, Any] = {"strength": 0.3, "backbone": None, "recipe": None, "licence": None}
    defaults |= {"scorers": [], "metrics": [], "data": [], "refine_wrap_version": ""}
    document = {**defaults, **document}
    check_document(document, str(path))
    _check_files(document, path)
    return document


def _check_files(document: Mapping[str, Any], path: Path) -> None:
    files = document.get("files")
    if not isinstance(files, dict) or TENSORS not in files or not set(files) <= {TENSORS, BACKBONE}:
        raise CheckpointError(
            f"{path}: files is {shortened(files)}", f"size and sha256 of {TENSORS}, and of {BACKBONE} if there is one"
        )
    for name, entry in files.items():
        if not (
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        ):
            raise CheckpointError(f"{path}: files.{name} is {shortened(entry)}", "bytes and sha256")


def difference(name: str, size: int, digest: str, document: Mapping[str, Any]) -> str | None:
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
    check_finite(tensors, BROKEN_RUN, str(path))
    return tensors, dict(header.get("__metadata__") or {})
