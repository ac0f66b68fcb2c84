"""Score picture files: each content once, the next picture read while one is scored, and a run that can be resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, ImageError, RefineWrapError
from ..folder import PathLike, list_images
from ..images import Picture, read_image, upright
from ..resources import file_digest
from ..tiling import is_out_of_memory
from .cache import Kept, ScoreCache, scorer_key
from .core import Scorer
from .load import load_scorer
from .table import ScoredImage, ScoreTable

AHEAD_BYTES = 64_000_000
"""While a picture of more bytes than this is scored, no other one is read: of large pictures, one is held at a time."""
BATCH, BATCH_PIXELS = 32, 1 << 17
"""Pictures of one size go through a scorer together, at most so many, and no further one from so many pixels on. Small
networks on a CPU are up to 5 times as fast so for pictures up to 128x128, and no faster from 256x256 on."""
NO_MEMORY = "Memory runs out when it is scored"

Notify = Callable[[int, int, str, "str | None"], None]
"""Called after each picture as notify(done, in all, file, reason): a reason where it could not be scored."""


def score_files(
    sources: PathLike | Sequence[PathLike],
    scorers: str | Path | Scorer | Sequence[str | Path | Scorer],
    *,
    recursive: bool = True,
    cache: ScoreCache | None = None,
    device: torch.device | str = "cpu",
    notify: Notify | None = None,
) -> ScoreTable:
    """Score pictures without a reference.

    A picture is scored upright, as its EXIF orientation says, and otherwise as it is stored: colours without their
    ICC profile, 16 bits as 16 bits, grey as three equal channels, alpha left out (what lies under transparent pixels
    counts).

    A score is known by the file's SHA-256, the scorer's name and weights: the same picture under another name is not
    scored twice. With a cache on disk, the same call goes on with a run that was ended in any way, and finds the same
    to the last bit. (With other pictures beside it in a batch, a score may differ in the seventh digit.)

    Args:
        sources: files and folders.
        scorers: as `load_scorer` takes them.
        recursive: look into subfolders too.
        cache: where scores are kept between runs, such as `ScoreCache.default()`; None: nowhere.
        device: where scorers run.
        notify: called after each picture.

    Returns:
        a row for each picture, and what could not be scored. A picture's name is its path below the deepest folder
        that holds all `sources`: for one folder, below it.

    Raises:
        DataError: a source does not exist, or a folder holds no pictures.
        RefineWrapError: an unknown scorer, or two of one name.
    """
    files = _files(sources, recursive)
    loaded = _loaded(scorers, device)
    table = ScoreTable([scorer.about() for scorer in loaded])
    keyed = [(scorer_key(about["name"], about["digest"]), s) for about, s in zip(table.scorers, loaded, strict=True)]
    known = ScoreCache(None) if cache is None else cache
    known.load([key for key, _ in keyed])

    groups = _groups(files, lambda digest: all(known.get(key, digest) for key, _ in keyed))
    seen = 0
    with closing(_ahead(groups)) as batches:
        for group in batches:
            table.computed += _score(group, keyed, known, device)
            for file in group:
                row = None if file.problem else _row(file, keyed, known)
                if row is not None:
                    table.images.append(row)
                else:
                    table.failed.append((file.name, file.problem or ""))
                seen += 1
                if notify is not None:
                    notify(seen, len(files), file.name, file.problem)
    return table


@dataclass
class _File:
    """A picture's file, and what has been read of it."""

    name: str
    path: Path
    digest: str = ""
    picture: Picture | None = None
    """None where no scorer needs it."""
    problem: str | None = None

    def read(self, is_known: Callable[[str], bool]) -> None:
        """Take the digest, and the picture unless that says that its scores are known."""
        try:
            before = self._stamp()
            self.digest = self._digest()
            if is_known(self.digest):
                return
            self.picture = upright(read_image(self.path))
            self.picture.alpha = None
            if self._stamp() != before:
                raise ImageError(f"{self.path} has changed while it was read", "a file that stays as it is")
        except ImageError as error:
            self.refuse(_text(error))
            self.picture = None

    def refuse(self, problem: str) -> None:
        # By its name below the folder: what is written must not depend on where the folder lies.
        text = problem.replace(str(self.path), self.name)
        self.problem = text if self.name in text else f"{self.name}: {text}"

    def _stamp(self) -> tuple[int, ...]:
        try:
            now = os.stat(self.path)
        except OSError:
            return ()  # reading it says why
        return now.st_ino, now.st_size, now.st_mtime_ns

    def _digest(self) -> str:
        if not self.path.is_file():  # opening a pipe would wait for ever
            raise ImageError(f"{self.path} does not exist or is not a regular file", "an image file")
        try:
            return file_digest(self.path)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror or error}", "an image file") from error


def _files(sources: PathLike | Sequence[PathLike], recursive: bool) -> list[_File]:
    """Each picture once, sorted by name."""
    roots = [Path(source) for source in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if not roots:
        raise DataError("There is nothing to score", "files or folders of images")
    found = {os.path.abspath(path): path for root in roots for path in list_images(root, recursive)}
    places = [os.path.abspath(root if root.is_dir() else root.parent) for root in roots]
    try:
        base = os.path.commonpath(places)
    except ValueError as error:  # two drives
        raise DataError("The pictures lie in no common folder", "one drive", "score them in two calls") from error
    return sorted(
        (_File(Path(full).relative_to(base).as_posix(), path) for full, path in found.items()),
        key=lambda file: file.name,
    )


def _loaded(scorers: str | Path | Scorer | Sequence[str | Path | Scorer], device: torch.device | str) -> list[Scorer]:
    named = [scorers] if isinstance(scorers, (str, Path, Scorer)) else scorers
    loaded = [load_scorer(scorer, device=device) for scorer in named]
    names = [scorer.name for scorer in loaded]
    if not names or len(set(names)) < len(names):
        came = f"Two scorers are called {max(names, key=names.count)!r}" if names else "No scorer is named"
        raise RefineWrapError(came, "one or more scorers, each once", "name others, or score in two calls")
    return loaded


def _groups(files: Sequence[_File], is_known: Callable[[str], bool]) -> Iterator[list[_File]]:
    """The files, read, in groups whose pictures are of one size and go through a scorer together.

    Which pictures come together depends on the files and on what was known before alone, so that it is the same when
    a run is resumed.
    """
    group: list[_File] = []
    size, pictures = (), 0
    seen: set[str] = set()
    for file in files:
        file.read(lambda digest: digest in seen or is_known(digest))
        if file.picture is not None:
            seen.add(file.digest)
            shape = file.picture.pixels.shape[:2]
            if group and shape != size:  # a group begins with a picture, or has none: what is known does not count
                yield group
                group, pictures = [], 0
            size, pictures = shape, pictures + 1
        group.append(file)
        if len(group) >= BATCH or pictures * math.prod(size) >= BATCH_PIXELS:
            yield group
            group, size, pictures = [], (), 0
    if group:
        yield group


def _ahead(groups: Iterator[list[_File]]) -> Generator[list[_File], None, None]:
    """The groups; the next one is read while the caller works, unless it works on a large picture."""
    with ThreadPoolExecutor(1) as thread:
        group = next(groups, None)
        while group is not None:
            size = sum(file.picture.pixels.nbytes for file in group if file.picture is not None)
            ahead = thread.submit(next, groups, None) if size <= AHEAD_BYTES else None
            yield group
            group = next(groups, None) if ahead is None else ahead.result()


def _score(
    group: Sequence[_File], keyed: Sequence[tuple[str, Scorer]], known: ScoreCache, device: torch.device | str
) -> int:
    """Add what is not known of a group; how many scores were computed."""
    images: dict[str, Tensor] = {}
    for file in group:
        if file.picture is not None:
            try:
                images[file.digest] = file.picture.tensor(device=device)
            except (RuntimeError, MemoryError) as error:
                file.refuse(_out_of_memory(error))
            file.picture = None  # a tensor is four times as large: one of the two is enough
    computed = 0
    for key, scorer in keyed:
        missing = [digest for digest in images if known.get(key, digest) is None]
        raws = _raw(scorer, [images[digest] for digest in missing])
        lasting: dict[bool, dict[str, Kept]] = {True: {}, False: {}}
        for digest, raw in zip(missing, raws, strict=True):
            height, width = images[digest].shape[-2:]
            if isinstance(raw, str):
                lasting[raw != NO_MEMORY][digest] = Kept(width, height, None, raw)
            else:
                lasting[True][digest] = Kept(width, height, raw)
        computed += len(missing)
        for keep, scores in lasting.items():
            known.put(key, scores, lasting=keep)
    return computed


def _raw(scorer: Scorer, images: Sequence[Tensor]) -> list[float | str]:
    """The score of each, or why there is none. What one of a batch is refused for is not the others' fault."""
    if not images:
        return []
    try:
        with torch.no_grad():
            raws = scorer.raw(torch.cat(list(images)) if len(images) > 1 else images[0]).tolist()
        return [raw if math.isfinite(raw) else f"{scorer.name} gives {raw} (expected: a finite score)" for raw in raws]
    except ImageError as error:
        problem = _text(error)
    except (RuntimeError, MemoryError) as error:
        problem = _out_of_memory(error)
    if len(images) == 1:
        return [problem]
    return [raw for image in images for raw in _raw(scorer, [image])]


def _out_of_memory(error: BaseException) -> str:
    """What is said of a picture that is too large for the memory. Raises every other error again."""
    if not is_out_of_memory(error):
        raise error
    return NO_MEMORY


def _text(error: ImageError) -> str:
    return f"{error.came} (expected: {error.expected})" if error.expected else error.came


def _row(file: _File, keyed: Sequence[tuple[str, Scorer]], known: ScoreCache) -> ScoredImage | None:
    """None, and the file has its problem, where a scorer has none for it."""
    raw: dict[str, float] = {}
    scores: dict[str, float] = {}
    size = (0, 0)
    for key, scorer in keyed:
        kept = known.get(key, file.digest)
        if kept is None or kept.raw is None:
            file.refuse(kept.problem if kept and kept.problem else NO_MEMORY)
            return None
        raw[scorer.name] = kept.raw
        scores[scorer.name] = float(scorer.normalised(torch.tensor(kept.raw)))
        size = kept.width, kept.height
    return ScoredImage(file.name, *size, raw, scores)
