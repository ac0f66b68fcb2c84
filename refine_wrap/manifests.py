"""Manifests of output folders: what was made of what, written by several processes at once."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import DataError, ImageError, OutputError
from .folder import PathLike, atomic_path
from .resources import file_digest

M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", bound=BaseModel)
MANIFEST = "manifest.json"
ANOTHER = "choose another output folder, or pass --overwrite"
"""What to do where a folder holds something else."""
LOCK_SECONDS = 60.0
FLUSH_SECONDS = 5.0
"""What a killed run made since the manifest was written last is made again by the next: the same bytes."""
_SPARING = 20
"""A large manifest is written so seldom that no more than this part of the time goes into it."""


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


def refuse_unclaimed(out: Path, targets: Iterable[Path], verb: str, next_step: str | None = None) -> None:
    """For a folder without a manifest. Raises DataError: one of the files that are to be made is there."""
    taken = next((path for path in targets if path.exists()), None)
    if taken is not None:
        raise DataError(
            f"{taken} is there, and no {out / MANIFEST} that says what it is",
            f"a new folder, or one that refine-wrap {verb} has made",
            next_step,
        )


def other_settings(out: Path, came: str) -> DataError:
    """For a folder that was made with something else than is wanted now."""
    return DataError(
        f"{out} was made with {came}", f"the settings in its {MANIFEST}", f"{ANOTHER} to make all of it anew"
    )


def is_right(path: Path, digest: str) -> bool:
    """Whether a file is there and is the one that a manifest names."""
    try:
        return path.is_file() and file_digest(path) == digest
    except OSError:
        return False


@contextmanager
def locked(path: PathLike, seconds: float = LOCK_SECONDS) -> Iterator[None]:
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
            f"{target} is locked by another process" + (f", for {seconds:.0f} s now" if seconds else ""),
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


def write_manifest(path: PathLike, manifest: BaseModel) -> None:
    """Replace a manifest, with each list of numbers on one line. Raises OutputError."""
    text = manifest.model_dump_json(indent=1)
    numbers = re.compile(r"\[\n([-\d.,\seEnul]*?)\n\s*\]")  # a line break: no string of JSON holds one
    write_text(path, numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text))


@dataclass
class SharedManifest(ABC, Generic[M, E]):
    """The manifest of a folder that several processes fill: each adds its entries to what is there, under a lock."""

    out: Path
    settings: M
    """Without entries."""
    entries: dict[str, E]
    """As far as this process knows."""
    fresh: dict[str, E] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)
    pause: float = field(default_factory=lambda: FLUSH_SECONDS)
    """Seconds between two writings."""

    FIELD: ClassVar[str]
    """The manifest's field that holds the entries."""

    @abstractmethod
    def read(self) -> M:
        """What is on the disk. Raises DataError: other settings than this run's."""

    def merged(self, name: str, there: E | None, fresh: E) -> E:
        """What to write where another process may have written its own. Raises OutputError."""
        return fresh

    def add(self, name: str, entry: E) -> None:
        self.entries[name] = self.fresh[name] = entry
        if time.monotonic() - self.written > self.pause:
            self.flush()

    def flush(self) -> None:
        """Write what was added.

        Raises:
            DataError: the folder has other settings by now.
            OutputError: it cannot be written.
        """
        if not self.fresh:
            return
        begun = time.monotonic()
        with locked(self.out / MANIFEST):
            found = self.read()
            entries: dict[str, E] = dict(getattr(found, self.FIELD))
            entries |= {name: self.merged(name, entries.get(name), entry) for name, entry in self.fresh.items()}
            found = found.model_copy(update={self.FIELD: dict(sorted(entries.items()))})
            write_manifest(self.out / MANIFEST, found)
        self.fresh = {}
        self.written = time.monotonic()
        self.pause = max(FLUSH_SECONDS, _SPARING * (self.written - begun))
