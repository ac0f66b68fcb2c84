"""Scores of pictures kept between runs, by the content of the file, the scorer and its weights.

A text file that is only ever appended to, a line for each batch of scores, with its checksum. So a run that is killed
loses at most the line that it was writing, processes that share the file need no locks (network file systems often
have none that work), and of a damaged file every whole line is still good.
"""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

from ..errors import RefineWrapError
from ..folder import PathLike, user_cache

PROTOCOL = 1
"""Version of how a file's score comes about (reading, the scorers' own code). Raise it where a score changes."""
NAME = "scores.jsonl"
_LONGEST = 1 << 16  # bytes of a line; garbage without line ends is read in such pieces


@dataclass(frozen=True, slots=True)
class Kept:
    """One picture's score by one scorer, or why there is none."""

    width: int
    height: int
    raw: float | None
    """A finite number."""
    problem: str | None = None


class ScoreCache:
    """Scores by the SHA-256 of a picture's file and a scorer's key.

    It only spares time: where the file cannot be read or written, a warning says so once, what is added is kept in
    memory, and the run goes on. Lines that are damaged are never used: the file is set aside as NAME.damaged, with a
    warning, and its whole lines are kept on in a new one.

    Args:
        place: a folder, or a file that ends in .jsonl; None: in memory only.

    Raises:
        RefineWrapError: the place is a file of another kind.
    """

    def __init__(self, place: PathLike | None) -> None:
        self.path = None if place is None else _file(Path(place).expanduser())
        """The file; None once it is known that nothing can be kept in it."""
        self.kept: dict[tuple[str, str], Kept] = {}

    @classmethod
    def default(cls) -> ScoreCache:
        """The one in the user's cache folder."""
        return cls(user_cache() / NAME)

    def load(self, keys: Collection[str]) -> None:
        """Read what is kept of the scorers with these keys, see `scorer_key`."""
        if self.path is None:
            return
        try:
            damaged = self._read(keys)
            if damaged:
                time.sleep(0.1)  # another process may have been writing its line
                damaged = self._read(keys)
            if damaged:
                self._set_aside(damaged)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)

    def get(self, key: str, image: str) -> Kept | None:
        """The score of the picture whose file has this SHA-256, if it is known."""
        return self.kept.get((key, image))

    def put(self, key: str, scores: Mapping[str, Kept], *, lasting: bool = True) -> None:
        """Keep the scores of some pictures, all or none; not beyond this run unless `lasting`.

        They are on their way to the disk when this returns: killing the process does not lose them.
        """
        self.kept.update({(key, image): kept for image, kept in scores.items()})
        if self.path is None or not lasting or not scores:
            return
        text = f"{key}, {json.dumps([[image, *astuple(kept)] for image, kept in scores.items()])}]".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened each time: another process may have set the file aside. The line end comes first, so that half a
            # line that a killed process has left spoils no other.
            with open(self.path, "ab", buffering=0) as file:
                line = b"\n%08x %s" % (zlib.crc32(text), text)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error)

    def _read(self, keys: Collection[str]) -> int:
        """Take the lines of these scorers; how many lines are damaged."""
        assert self.path is not None
        wanted = tuple(f"{key}, ".encode() for key in keys)
        damaged = 0
        with open(self.path, "rb") as file:
            for line in _lines(file):
                text = _whole(line)
                if text is None:
                    damaged += 1
                elif text.startswith(wanted):
                    *key, values = json.loads(text)
                    self.kept.update({(_text(key), image): Kept(*value) for image, *value in values})
        return damaged

    def _set_aside(self, damaged: int) -> None:
        assert self.path is not None
        aside = self.path.with_name(self.path.name + ".damaged")
        os.replace(self.path, aside)
        with open(aside, "rb") as old, open(self.path, "ab") as new:
            new.writelines(b"\n" + line for line in _lines(old) if _whole(line) is not None)
        warnings.warn(
            f"{damaged} lines of the kept scores in {self.path} were damaged: they are scored again, the others are "
            f"kept on (the file as it was: {aside})",
            stacklevel=4,
        )

    def _give_up(self, error: OSError) -> None:
        warnings.warn(
            f"Scores cannot be kept in {self.path} ({error.strerror or error}): the run goes on without", stacklevel=4
        )
        self.path = None


def scorer_key(name: str, digest: str) -> str:
    """What tells apart the scores of two scorers, beside the picture."""
    return _text([name, digest, PROTOCOL])


def _text(key: list[str | int]) -> str:
    return json.dumps(key)[:-1]  # without the bracket: the beginning of a line's list


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that are not empty, without their ends."""
    while line := file.readline(_LONGEST):
        if line := line.rstrip(b"\n"):
            yield line


def _whole(line: bytes) -> bytes | None:
    """The text of a line; None where it is damaged."""
    text = line[9:]
    return text if line[:9] == b"%08x " % zlib.crc32(text) else None


def _file(place: Path) -> Path:
    if place.suffix == ".jsonl" and not place.is_dir():
        return place
    if place.is_file():
        raise RefineWrapError(
            f"{place} is no place to keep scores in", "a folder, or a file that ends in .jsonl", "name another place"
        )
    return place / NAME
