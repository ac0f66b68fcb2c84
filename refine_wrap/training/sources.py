"""Where training images lie: folders, file lists, LMDBs of BasicSR, and tar shards in WebDataset's layout.

A recipe names any of them where it names a folder, and they may be mixed:

- `photos`: a folder with its subfolders, or one image;
- `names.txt`: a list, one path a line, relative to `gt_root` (`lq_root`) or else to the list's own folder. Empty lines
  and lines that begin with `#` are skipped; sizes behind a name are ignored (BasicSR's meta_info: `a.png (480,480,3)`);
- `set.lmdb`: a folder with data.mdb and meta_info.txt, as BasicSR's create_lmdb writes it; needs the package lmdb;
- `shards/*.tar`, `shards/{000..009}.tar`: uncompressed tar files. Members are `key.png` on both sides, or `key.gt.png`
  and `key.lq.png` in one shard, which is then named as gt and as lq. A key ends at the first dot (WebDataset).

Sets that are too large for a folder are read from tar shards rather than through Hugging Face datasets: an index of
where each member begins gives every image by its number, as a folder does, so that a sample still depends on (seed,
epoch, index) alone; the standard library reads them; and the same files stream through WebDataset elsewhere. Nothing
is ever extracted, so a member's name is only a name.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from ..errors import DataError, ImageError, OutputError
from ..folder import IMAGE_SUFFIXES, Listing, atomic_path, list_images, pair_by_name, pair_listings, user_cache

T = TypeVar("T")

SHOWN = 5
INDEXED_FROM = 16_000_000
"""Bytes of a shard from which on its index is kept between runs; smaller ones are indexed in well under a second."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file as it was when it was indexed."""

    path: Path
    size: int
    time: int


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar file: `size` bytes from `start` on."""

    shard: Shard
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard.path}/{self.name}"

    def __hash__(self) -> int:  # asked for at every sample: without the shard's own
        return hash((self.name, self.start))

    def open(self) -> IO[bytes]:
        """The bytes as a file. Raises ImageError: the shard is another one now; OSError."""
        # Opened for every image: costs microseconds, and nothing is left to be shared between processes or threads.
        file = open(self.shard.path, "rb", buffering=0)  # noqa: SIM115 (closed by what is returned)
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.shard.size, self.shard.time):
            file.close()
            raise ImageError(
                f"{self} cannot be read: {self.shard.path} has changed since the run began",
                "a shard that stays as it is",
                "start again",
            )

        def read(start: int, count: int) -> bytes:
            file.seek(self.start + start)
            return file.read(count)

        return io.BufferedReader(_Part(self.size, read, file.close), 1 << 16)


@dataclass(frozen=True, slots=True)
class Record:
    """An image in an LMDB."""

    folder: Path
    key: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.key}"

    def open(self) -> IO[bytes]:
        """The bytes as a file. Raises ImageError: no such record; DataError: the LMDB cannot be opened."""
        part = _Part(self._look(len), lambda start, count: self._look(lambda all: bytes(all[start : start + count])))
        return io.BufferedReader(part, 1 << 16)

    def _look(self, use: Callable[[memoryview], T]) -> T:
        """What `use` makes of the bytes where they lie."""
        import lmdb

        try:
            with _environment(self.folder).begin(buffers=True) as transaction:
                value = transaction.get(self.key.encode())
                if value is not None:
                    return use(value)
        except lmdb.Error as error:
            raise ImageError(f"{self} cannot be read: {error}", "a sound LMDB", "make it again") from error
        raise ImageError(f"{self} is in meta_info.txt but not in the database", "a record of this key", "make it again")


Item = Path | Record | Member
"""An image as stored. `str()` is its name for people; items can be hashed and sent to other processes."""


def open_item(item: Item) -> IO[bytes]:
    """The bytes as stored, as a file that can be read and sought. Raises ImageError, OSError."""
    return open(item, "rb") if isinstance(item, Path) else item.open()


def digest(item: Item) -> str:
    """The SHA-256 of the bytes as stored, in hexadecimal: the same wherever the image lies. Raises as `open_item`."""
    found = hashlib.sha256()
    with open_item(item) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


class _Part(io.RawIOBase):
    """A part of something larger, as a file of its own."""

    def __init__(
        self, size: int, read: Callable[[int, int], bytes], on_close: Callable[[], None] = lambda: None
    ) -> None:
        self._size, self._read, self._on_close, self._place = size, read, on_close, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if place < 0:
            raise ValueError(f"negative seek position {place}")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._read(self._place, max(0, min(len(view), self._size - self._place)))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._read(self._place, max(0, self._size - self._place))
        self._place += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._on_close()
        super().close()


# ---------------------------------------------------------------- what a recipe names


def images(source: str, root: str | None = None) -> list[Item]:
    """The images of one place: those of a tar in the order of their names, those of a list in its own.

    Args:
        source: a folder, an image, a list, an LMDB, a tar or a pattern of tars.
        root: what the paths of a list are relative to; None: its own folder.

    Raises:
        DataError: it does not exist, holds no image, is damaged or of another kind.
    """
    kind = _kind(source)
    if kind == "folder":
        return list(list_images(source))
    if kind == "list":
        return list(dict.fromkeys(_list(Path(source), root)))
    listing = _lmdb(Path(source)) if kind == "LMDB" else _of_side("gt", _tar(source))[0]
    return [item for _, item in listing.items]


def pairs(
    gt: str,
    lq: str,
    *,
    gt_root: str | None = None,
    lq_root: str | None = None,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
) -> list[tuple[Item, Item]]:
    """Ground truth with low quality, paired by name as `folder.pair_by_name` does, whatever their kinds are.

    The name is the path below a folder, below the root of a list (without one: below the deepest folder that holds
    all its files), the key of an LMDB, or a tar member's key. A list selects: what a partner of another kind holds
    beyond it is left out. Where one set of tars is named for both sides, each pair lies in one shard.

    Raises:
        DataError: as `images`, and for images without a partner or two of one name on one side.
    """
    kinds = _kind(gt), _kind(lq)
    if kinds == ("folder", "folder"):
        return list(pair_by_name(gt, lq, gt_pattern=gt_pattern, lq_pattern=lq_pattern))
    roots = {"gt": gt_root, "lq": lq_root}
    places = [_place(source, kind, root) for source, kind, root in zip((gt, lq), kinds, roots.values(), strict=True)]
    same = places[0] == places[1]
    by_pattern = gt_pattern is not None and lq_pattern is not None
    patterns = {"gt": gt_pattern, "lq": lq_pattern}
    listings: dict[str, Listing[Item]] = {}
    for side, source, kind in zip(("gt", "lq"), (gt, lq), kinds, strict=True):
        if kind == "tar":
            listings[side] = _tar(source, by_shard=same)
            if patterns[side] is None:
                listings[side], patterns[side] = _of_side(side, listings[side])
        elif kind == "list":
            listings[side] = _named(Path(source), roots[side], selects=kinds[0] != kinds[1])
        elif kind == "LMDB":
            listings[side] = _lmdb(Path(source))
        elif Path(source).is_file():
            raise DataError(f"{source} is a file", "a folder of images to pair by name", "name its folder")
        else:
            listings[side] = cast("Listing[Item]", Listing.of_folder(source))
    found = pair_listings(
        listings["gt"],
        listings["lq"],
        gt_pattern=patterns["gt"],
        lq_pattern=patterns["lq"],
        # Of tars, the fields have told the sides apart already.
        same=same and (by_pattern or kinds[0] != "tar"),
    )
    both = next((one for one, other in found if one == other), None)
    if both is not None:
        raise DataError(
            f"{both} is both ground truth and low quality",
            "members key.gt.png and key.lq.png, or two places, or two patterns that tell the images apart",
        )
    return found


_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)$")


def _kind(source: str) -> str:
    path, name = Path(source), source.lower()
    if name.endswith(".lmdb") or (path / "data.mdb").is_file():
        return "LMDB"
    if path.is_dir():
        return "folder"
    if name.endswith(".txt"):
        return "list"
    return "tar" if _TAR.search(name) else "folder"


def _place(source: str, kind: str, root: str | None) -> tuple[str, ...]:
    """Equal for two names of one place."""
    if kind == "tar":
        return tuple(os.path.realpath(path) for path in _shards(source))
    return (os.path.realpath(source), os.path.realpath(root or os.path.dirname(source)) if kind == "list" else "")


def _parts(name: str) -> list[str]:
    """Sorts names as paths are sorted, so that an archive of a folder has the order of the folder."""
    return name.split("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}", "one name a line", "save it as UTF-8") from error
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        reason = "does not exist" if gone else f"cannot be read: {error.strerror or error}"
        raise DataError(f"{path} {reason}", "a text file of names", "check the path") from error


_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
_SHAPE = re.compile(r"\s+\(\s*\d+(\s*,\s*\d+)+\s*\)(\s+\d+)?$")  # " (480,480,3) 1"
_SIZES = re.compile(rf"(?<=\S)(?P<name>{_SUFFIX})(\s+\d+(x\d+)*)+$", re.IGNORECASE)  # ".png 480 480", ".png 480x480"


def _without_sizes(line: str) -> str:
    return _SIZES.sub(r"\g<name>", _SHAPE.sub("", line))


# ---------------------------------------------------------------- lists


def _list(path: Path, root: str | None) -> list[Path]:
    """The files of a list."""
    base = Path(root) if root is not None else path.parent
    files = []
    first = 0
    for number, line in enumerate(_text(path).splitlines(), 1):
        name = _without_sizes(line.strip())
        if name and not name.startswith("#"):
            first = first or number
            files.append(base / name)
    if not files:
        raise DataError(f"{path} names no images", "one path a line", "check the list")
    # A file that is gone is named later, with what else cannot be read. That all are gone is another mistake.
    if not any(os.path.lexists(file) for file in files[:SHOWN]):
        count = f"The first {SHOWN} files" if len(files) > SHOWN else "The files"
        raise DataError(
            f"{count} of {path} do not exist; line {first} means {files[0]}",
            f"paths below {base}, or absolute ones",
            "give the folder that they are relative to as gt_root or lq_root",
        )
    return files


def _named(path: Path, root: str | None, selects: bool) -> Listing[Item]:
    """The files of a list with their names below its root, or else below their deepest common folder."""
    files = list(dict.fromkeys(_list(path, root)))
    full = [os.path.abspath(file) for file in files]
    base = os.path.abspath(root) if root is not None else ""
    if root is None or not all(name.startswith(os.path.join(base, "")) for name in full):
        base = os.path.commonpath([os.path.dirname(name) for name in full])
    names = [os.path.relpath(name, base).replace(os.sep, "/") for name in full]
    items = cast("list[tuple[str, Item]]", list(zip(names, files, strict=True)))
    return Listing(str(path), items, "list", selects)


# ---------------------------------------------------------------- LMDB


def _lmdb(folder: Path) -> Listing[Item]:
    """The records of an LMDB under the names of meta_info.txt, whose keys are without the suffix."""
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {reason}", "a folder with data.mdb and meta_info.txt", "check the path")
    for name in ("data.mdb", "meta_info.txt"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} is no LMDB of BasicSR: it has no {name}",
                "a folder with data.mdb and meta_info.txt",
                "make it with BasicSR's create_lmdb script",
            )
    _environment(folder)  # what is wrong with it shows now
    found: dict[str, str] = {}
    for number, line in enumerate(_text(folder / "meta_info.txt").splitlines(), 1):
        name = _without_sizes(line.strip())
        stem, suffix = os.path.splitext(name)
        key = stem if suffix.lower() in IMAGE_SUFFIXES else name
        if key in found:
            raise DataError(f"{folder / 'meta_info.txt'}:{number}: the key {key!r} comes twice", "each key once")
        if name:
            found[key] = name if key != name else f"{name}.png"
    if not found:
        raise DataError(f"{folder / 'meta_info.txt'} names no images", "lines such as: 0001.png (480,480,3) 1")
    items: list[tuple[str, Item]] = [(name, Record(folder, key)) for key, name in found.items()]
    return Listing(str(folder), sorted(items, key=lambda item: _parts(item[0])), "LMDB")


_environments: dict[str, Any] = {}
_opening = threading.Lock()


def _environment(folder: Path) -> Any:
    """The open LMDB, once a process: the library forbids to use one across a fork, or to open one twice."""
    path = os.path.realpath(folder)
    with _opening:
        if path not in _environments:
            _environments[path] = _open_lmdb(path)
        return _environments[path]


def _open_lmdb(path: str) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise DataError(
            f"{path} is an LMDB, and the package lmdb is not installed", "the package lmdb", "pip install lmdb"
        ) from error
    try:
        # No lock file, so that read-only disks will do; no reading ahead, since images are asked for in any order.
        environment = lmdb.open(path, readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened: {error}", "a sound LMDB", "make or copy it again") from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = os.path.getsize(os.path.join(path, "data.mdb"))
    if size < needed:  # reading behind its end would end the process
        environment.close()
        raise DataError(f"{path} is truncated: data.mdb has {size:,} bytes", f"{needed:,}", "copy it again")
    return environment


def _close_inherited() -> None:
    global _opening
    _opening = threading.Lock()
    for environment in _environments.values():
        environment.close()
    _environments.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


# ---------------------------------------------------------------- tar shards


def _shards(source: str) -> list[Path]:
    """The tar files that a pattern means: `*`, `?` and `[ab]`, `{000..009}` and `{a,b}`."""
    if os.path.lexists(source):
        return [Path(source)]
    found: list[str] = []
    missing: list[str] = []
    for name in _braces(source):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.lexists(name)
        found.extend(matches)
        missing.extend([] if matches else [name])
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        verb = "does" if len(missing) == 1 else "do"
        came = ", ".join(missing[:SHOWN]) + f"{more} {verb} not exist"
        raise DataError(came, "tar files", "check the path")
    return [Path(name) for name in dict.fromkeys(found)]


def _braces(text: str) -> Iterator[str]:
    match = re.search(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{}]*,[^{}]*))\}", text)
    if match is None:
        yield text
        return
    if match["words"] is not None:
        words = match["words"].split(",")
    else:
        first, last = int(match["first"]), int(match["last"])
        width = len(match["first"]) if match["first"].startswith("0") else 0
        if not first <= last < first + 1_000_000:
            raise DataError(f"{text} counts from {first} to {last}", "upwards, at most a million shards")
        words = [str(number).zfill(width) for number in range(first, last + 1)]
    for word in words:
        yield from _braces(text[: match.start()] + word + text[match.end() :])


def _tar(source: str, by_shard: bool = False) -> Listing[Item]:
    """All images of the shards; `by_shard`: named below their shard, so that equal keys of two shards are two."""
    shards = _shards(source)
    with ThreadPoolExecutor(4) as pool:  # on a network disk, it is the waiting that costs
        found = list(itertools.chain.from_iterable(pool.map(_members, shards)))
    if not found:
        raise DataError(
            f"{source} holds no images: no member has a known suffix",
            "members that end in " + ", ".join(sorted(IMAGE_SUFFIXES)),
            "check the path",
        )
    items: list[tuple[str, Item]] = [
        (f"{member.shard.path.as_posix()}/{member.name}" if by_shard else member.name, member) for member in found
    ]
    return Listing(source, items, "tar")


def _of_side(side: str, listing: Listing[Item]) -> tuple[Listing[Item], str | None]:
    """What of a shard's images is ground truth (`side` "gt") or low quality ("lq"), and the pattern of the names.

    Members of the field `gt` or `lq` where there are any, as in `key.gt.png`; else those without a field, `key.png`.
    """
    fields: dict[str, list[tuple[str, Item]]] = {}
    for name, item in listing.items:
        fields.setdefault(_field(name), []).append((name, item))
    own, plain = fields.get(side, []), fields.get("", [])
    if own and plain:
        raise DataError(
            f"{listing.place} has {len(own)} images of the field {side}, such as {own[0][1]}, and {len(plain)} of no "
            f"field, such as {plain[0][1]}",
            f"key.{side}.png or key.png, one way throughout",
            "rename the members, or tell them apart with gt_pattern and lq_pattern",
        )
    others = {field: items for field, items in fields.items() if field not in ("", "gt", "lq")}
    if not own and not plain:
        listed = ", ".join(f"{field} ({len(items)})" for field, items in list(fields.items())[:SHOWN])
        raise DataError(
            f"no image in {listing.place} has the field {side} or none: its fields are {listed}",
            f"members key.{side}.png or key.png",
            'with low quality, name them by patterns such as gt_pattern="{name}.hr"',
        )
    if others:
        names = [str(item) for items in others.values() for _, item in items]
        warnings.warn(
            f"{len(names)} members of {listing.place} are left out, since a key ends at the first dot and the rest is "
            f"neither a suffix nor gt nor lq: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}",
            RuntimeWarning,
            stacklevel=2,
        )
    return Listing(listing.place, own or plain, "tar"), f"{{name}}.{side}" if own else None


def _field(name: str) -> str:
    """`a.gt.png` is `gt`, `a.png` is empty."""
    return name[name.rfind("/") + 1 : name.rfind(".")].partition(".")[2].lower()


def _members(path: Path) -> list[Member]:
    """The images of one shard by name, from the index of an earlier run where there is one."""
    try:
        state = path.stat()
        shard = Shard(path, state.st_size, state.st_mtime_ns)
        kept = _index_file(path) if shard.size >= INDEXED_FROM else None
        found = _kept_index(kept, shard) if kept is not None else None
        if found is None:
            found = _index(shard)
            if kept is not None:
                _keep_index(kept, shard, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "a tar file", "check the path") from error
    return [Member(shard, *entry) for entry in found]


Entry = tuple[str, int, int]
"""Name, first byte, number of bytes."""

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _index(shard: Shard) -> list[Entry]:
    """Read the headers, seeking over what lies between them."""
    path = shard.path
    with open(path, "rb") as file:
        head = file.read(8)
        for magic, packing in _PACKED.items():
            if head.startswith(magic):
                raise DataError(
                    f"{path} is compressed with {packing}: its members cannot be reached one by one",
                    "an uncompressed tar; images are compressed already",
                    "unpack it with gunzip or the like, the .tar inside stays",
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                entries = list(_entries(archive, shard))
                end = archive.offset
        except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as error:
            raise _damaged(path, str(error)) from error
        _check_end(file, end, path)
    names = Counter(name for name, _, _ in entries)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DataError(
            f"{path} holds {twice[0]} {names[twice[0]]} times"
            + (f", and {len(twice) - 1} more names several times" if len(twice) > 1 else ""),
            "each name once",
            "pack it again",
        )
    return sorted(entries, key=lambda entry: _parts(entry[0]))


def _entries(archive: tarfile.TarFile, shard: Shard) -> Iterator[Entry]:
    while (member := archive.next()) is not None:
        cast(Any, archive).members = []  # it would keep them all
        # Bytes that are no UTF-8 come as halves of characters, which cannot be printed.
        name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or any(part.startswith(".") and part != ".." for part in parts):
            continue
        if os.path.splitext(parts[-1])[1].lower() not in IMAGE_SUFFIXES or member.isdir():
            continue
        name = "/".join(parts)
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{shard.path}/{name} is a {'sparse file' if member.issparse() else 'link'}, without its own bytes",
                "regular members",
                "pack the files themselves: tar --dereference --hard-dereference",
            )
        if member.size < 0 or member.offset_data + member.size > shard.size:
            raise tarfile.ReadError("unexpected end of data")
        yield name, member.offset_data, member.size


def _check_end(file: IO[bytes], end: int, path: Path) -> None:
    """tarfile takes a header that it cannot read for the end of the archive."""
    file.seek(end)
    blocks = file.read(1024)
    if len(blocks) < 1024:
        raise _damaged(path, "it has no end mark")
    if any(blocks):
        raise _damaged(path, f"no header at byte {end:,}")
    while rest := file.read(1 << 20):
        if any(rest):
            raise DataError(
                f"{path} goes on behind its end mark", "one archive", "pack it again, instead of joining tars by cat"
            )


def _damaged(path: Path, detail: str) -> DataError:
    return DataError(f"{path} is damaged or truncated: {detail}", "a whole tar file", "get or pack it again")


def _index_file(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return user_cache() / "tar-index" / f"{name}.json"


def _kept_index(file: Path, shard: Shard) -> list[Entry] | None:
    """None where there is none for this very file, or it is unreadable."""
    try:
        kept = json.loads(file.read_bytes())
        if kept["version"] != 1 or (kept["size"], kept["time"]) != (shard.size, shard.time):
            return None
        return [(str(name), int(start), int(size)) for name, start, size in kept["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_index(file: Path, shard: Shard, entries: Iterable[Entry]) -> None:
    values = {"version": 1, "shard": str(shard.path), "size": shard.size, "time": shard.time, "members": list(entries)}
    # It only spares time: where it cannot be written, it is made again by the next run.
    with suppress(OutputError), atomic_path(file) as temporary:
        temporary.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")
