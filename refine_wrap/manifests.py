"""Manifests of output folders: what was made of what, written by several processes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .errors import DataError, ImageError, OutputError
from .folder import PathLike, atomic_path
from .resources import file_digest

M = TypeVar("M", bound=BaseModel)


def read_manifest(model: type[M], path: Path, *, there: str, other: str, expected: str, next_step: str) -> M:
    """A manifest, checked.

    Args:
        there: what was expected where there is no such file.
        other: what a file that does not fit is besides damaged; `expected` and `next_step` are said with it.

    Raises:
        DataError: there is none, or it cannot be read, is damaged, or of something else.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"There is no {path}", there) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "a manifest") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is damaged{other}: {where} {first['msg']}", expected, next_step) from None


def source_digest(source: Path, below: str) -> str:
    """SHA-256 of a file that a manifest will call `below`.

    Raises:
        DataError: a manifest cannot hold that name.
        ImageError: the file cannot be read.
    """
    try:
        below.encode()
    except UnicodeEncodeError:
        raise DataError(f"The name {below!r} is no UTF-8 and fits no manifest", None, "rename it") from None
    try:
        return file_digest(source)
    except OSError as error:
        raise ImageError(f"{source} cannot be read: {error.strerror or error}", None, "check it") from None


def is_right(path: Path, digest: str) -> bool:
    """Whether a file is there and is the one that a manifest names."""
    try:
        return path.is_file() and file_digest(path) == digest
    except OSError:
        return False


@contextmanager
def locked(path: PathLike, seconds: float = 60.0) -> Iterator[None]:
    """Hold the lock of a file that several processes write, `.STEM.lock` beside it; its folder is made.

    Raises:
        OutputError: another process has held it for so many seconds, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    target = Path(path)
    lock = FileLock(target.with_name(f".{target.stem}.lock"), timeout=seconds)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{target} has been locked by another process for {seconds:.0f} s",
            "one that writes at a time",
            "wait for the other run, then run again",
        ) from None
    except OSError as error:
        raise OutputError(
            f"{target.parent} cannot be written: {error.strerror or error}",
            "a folder to write to",
            "choose another folder",
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_text(path: PathLike, text: str) -> None:
    """Replace a file by this text in UTF-8, whole, and on the disk when this returns. Raises OutputError."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
