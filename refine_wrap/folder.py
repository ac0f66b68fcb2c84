"""Many image files: list, pair by name, plan outputs, shard, write whole files or none."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from .errors import DataError, OutputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})

T = TypeVar("T")
PathLike = str | os.PathLike[str]
Job = tuple[Path, Path]

_SHOWN = 5
_SCALE_SUFFIX = re.compile(r"^(?P<name>.+)x[2348]$")

# What an operating system says when an output cannot be had, and what the user can do about it.
_WRITE_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another output folder, then run again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another output folder, then run again"),
    errno.EFBIG: ("the file would be larger than allowed here", "choose another output folder or raise the limit"),
    errno.EROFS: ("the file system is read-only", "choose an output folder that can be written"),
    errno.EACCES: ("permission denied", "choose an output folder that can be written, or change its permissions"),
    errno.EPERM: ("the operation is not permitted", "choose an output folder that can be written"),
    errno.EIO: ("the device reported an input/output error", "check the disk or choose another output folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter output name"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "choose another output folder"),
    errno.EEXIST: ("a part of its path is a file, not a folder", "choose another output folder"),
    errno.EISDIR: ("a folder of that name is in the way", "choose another output name"),
    errno.EMFILE: ("too many files are open", "close some, or raise the limit (ulimit -n)"),
    errno.ENOENT: ("its folder does not exist or went away", "check the output folder"),
    errno.ELOOP: ("its path is a loop of symbolic links", "choose another output folder"),
}


# ---------------------------------------------------------------- listing


def list_images(root: PathLike, recursive: bool = True, *, skip: PathLike | None = None) -> list[Path]:
    """The image files of a folder, sorted; or the one file that `root` is.

    Files are taken by suffix (`IMAGE_SUFFIXES`, any case). Hidden files and folders are left out, so that a
    temporary file of a running job is never an input. A linked folder is followed once, a loop of links ends.

    Args:
        root: a folder, or one file (taken whatever its suffix is, since the user named it).
        recursive: look into subfolders too.
        skip: a folder to leave out, e.g. an output folder that lies inside `root`.

    Raises:
        DataError: `root` does not exist, cannot be read, or holds no image.
    """
    base = Path(root)
    if base.is_file():
        return [base]
    if not base.is_dir():
        broken = base.is_symlink() or base.exists()
        raise DataError(
            f"{base} {'is neither a folder nor a file' if broken else 'does not exist'}",
            "a folder of images, or one image",
            "check the path",
        )
    skipped = os.path.realpath(skip) if skip is not None else None
    found = sorted(_walk(base, recursive, skipped))
    if not found:
        where = "in it or its subfolders" if recursive else "directly in it (subfolders were not searched)"
        raise DataError(
            f"{base} holds no images: no file {where} has a known suffix",
            "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES)),
            "check the path",
        )
    return found


def _walk(base: Path, recursive: bool, skipped: str | None) -> Iterator[Path]:
    seen = {os.path.realpath(base)}
    stack = [base]
    while stack:
        folder = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"the folder {folder} cannot be read: {error.strerror or error}", None, "check its permissions"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_dir(entry):
                real = os.path.realpath(entry.path)
                # Each real folder once: a link to a parent would otherwise never end.
                if recursive and real != skipped and real not in seen:
                    seen.add(real)
                    stack.append(folder / entry.name)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                # A link whose target is gone is listed: reading it then says so, instead of dropping it unseen.
                yield folder / entry.name


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself is no folder
        return False


def shard(items: Sequence[T], index: int, count: int) -> list[T]:
    """Every `count`-th item from `index` on: the part of process `index` of `count`.

    Shards are disjoint, together they hold every item, and their sizes differ by at most one.

    Raises:
        DataError: not 0 <= index < count.
    """
    if count < 1 or not 0 <= index < count:
        raise DataError(f"shard {index} of {count}", "0 <= index < count", "number the shards from 0")
    return list(items[index::count])


def short_names(paths: Sequence[PathLike]) -> list[str]:
    """As much of the end of each path as tells them apart, for people: a/out and b/out in place of twice "out"."""
    parts = [Path(path).resolve().parts for path in paths]
    depths = range(1, max(map(len, parts)))
    # Of one path given twice, the last part: a whole path would say where it lies on this machine.
    depth = next((depth for depth in depths if len({part[-depth:] for part in parts}) == len(parts)), 1)
    return [readable(os.path.join(*part[-depth:])) for part in parts]


def readable(name: str) -> str:
    """A file's name as text that can be encoded, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "replace")


# ---------------------------------------------------------------- pairing


def pair_by_name(
    gt_root: PathLike,
    lq_root: PathLike,
    *,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
    recursive: bool = True,
) -> list[tuple[Path, Path]]:
    """Pair ground truth with low quality by the path below each root, without the suffix.

    `gt/a/001.png` meets `lq/a/001.jpg`, and `lq/a/001x4.png` where no `gt/a/001x4` exists (BasicSR, DIV2K).
    A pattern tells how a file's name (without suffix) is made of the common name: `"{name}_mean"` and
    `"{name}_real"` pair PolyU's `X_mean.JPG` with `X_real.JPG`, and both may lie in one folder.
    With a pattern, files that do not fit it are not part of the data. In one folder, a file that fits both patterns
    goes to the longer one, so `"{name}"` with `"{name}_lq"` works.

    Returns:
        (gt, lq) paths, sorted by name.

    Raises:
        DataError: a folder is missing or empty, a file has no partner (up to five are named on either side),
            or two files of one side have the same name.
    """
    gt_base, lq_base = Path(gt_root), Path(lq_root)
    for base in (gt_base, lq_base):
        if base.is_file():
            raise DataError(f"{base} is a file", "a folder of images to pair by name", "name the folder that holds it")
    gt, lq = (Listing.of_folder(base, recursive) for base in (gt_base, lq_base))
    same = os.path.realpath(gt_base) == os.path.realpath(lq_base)
    return pair_listings(gt, lq, gt_pattern=gt_pattern, lq_pattern=lq_pattern, same=same)


@dataclass(frozen=True)
class Listing(Generic[T]):
    """The images of one place, such as a folder or an archive."""

    place: str
    """Its name for people."""
    items: list[tuple[str, T]]
    """(name below the place, with `/` and the suffix; the image). `str()` of an image is its full name for people."""
    kind: str = "folder"
    selects: bool = False
    """Whether it is a choice of images: what its partner holds beyond it is left out instead of refused."""

    @staticmethod
    def of_folder(base: PathLike, recursive: bool = True) -> Listing[Path]:
        """The images of a folder, as `list_images`."""
        root = Path(base)
        return Listing(str(root), [(path.relative_to(root).as_posix(), path) for path in list_images(root, recursive)])


def pair_listings(
    gt: Listing[T],
    lq: Listing[T],
    *,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
    same: bool = False,
    sides: tuple[str, str] = ("ground-truth", "low-quality"),
) -> list[tuple[T, T]]:
    """Pair the images of two places by the rules of `pair_by_name`.

    Args:
        same: both are one place.
        sides: what refusals call an image of `gt` and of `lq`.
    """
    gt_rule, lq_rule = _rule(gt_pattern), _rule(lq_pattern)
    gt_items, lq_items = gt.items, lq.items
    if same:
        if gt_rule.pattern == lq_rule.pattern:
            raise DataError(
                f"ground truth and low quality are the same {gt.kind}, {gt.place}",
                f"two {gt.kind}s, or two patterns that tell the files apart",
                'give e.g. gt_pattern="{name}_mean", lq_pattern="{name}_real"',
            )
        gt_items, lq_items = _split(gt_items, gt_rule, lq_rule)
    gt_named = _by_name(gt.place, gt_items, gt_rule, gt_pattern)
    lq_named = _by_name(lq.place, lq_items, lq_rule, lq_pattern)
    if lq_pattern is None:
        lq_named = _without_scale_suffix(lq_named, gt_named)
    _refuse_unpaired(gt, lq, gt_named, lq_named, sides)
    return [(gt_named[name][1], lq_named[name][1]) for name in sorted(gt_named.keys() & lq_named.keys())]


Named = tuple[str, T]
"""(name below its place, image)."""


def _rule(pattern: str | None) -> re.Pattern[str]:
    pattern = "{name}" if pattern is None else pattern
    before, mark, after = pattern.partition("{name}")
    if not mark or "{name}" in after or "/" in pattern or "\\" in pattern:
        raise DataError(
            f"the pattern {pattern!r} cannot be used",
            "{name} exactly once in a file's name without its suffix, no folder, e.g. '{name}_mean'",
        )
    return re.compile(f"{re.escape(before)}(?P<name>.+){re.escape(after)}", re.DOTALL)


def _split(
    items: list[Named[T]], gt_rule: re.Pattern[str], lq_rule: re.Pattern[str]
) -> tuple[list[Named[T]], list[Named[T]]]:
    """One place's files onto the two sides; one that fits both patterns goes to the more specific."""
    gt: list[Named[T]] = []
    lq: list[Named[T]] = []
    for name, item in items:
        stem = PurePosixPath(name).stem
        as_gt, as_lq = gt_rule.fullmatch(stem), lq_rule.fullmatch(stem)
        if as_gt and as_lq:
            # The shorter the common name, the more of the file's name the pattern itself accounts for.
            difference = len(as_gt["name"]) - len(as_lq["name"])
            if difference == 0:
                raise DataError(f"{item} fits both patterns equally well", "patterns that tell the two sides apart")
            (lq if difference > 0 else gt).append((name, item))
        elif as_gt:
            gt.append((name, item))
        elif as_lq:
            lq.append((name, item))
    return gt, lq


def _by_name(place: str, items: Iterable[Named[T]], rule: re.Pattern[str], pattern: str | None) -> dict[str, Named[T]]:
    named: dict[str, Named[T]] = {}
    for below, item in items:
        name = _common(below, rule)
        if name is None:
            continue
        if name in named:
            raise _two_for_one(name, named[name][1], item)
        named[name] = (below, item)
    if not named:
        raise DataError(
            f"no image in {place} fits the pattern {pattern!r}",
            "file names (without suffix) made as the pattern says",
            "check the pattern and the folder",
        )
    return named


def common_name(below: str, pattern: str | None) -> str | None:
    """The name that an image is paired by: its path below its place, without the suffix and what the pattern adds.

    None: it does not fit the pattern.
    """
    return _common(below, _rule(pattern))


def _common(below: str, rule: re.Pattern[str]) -> str | None:
    path = PurePosixPath(below)
    match = rule.fullmatch(path.stem)
    return (path.parent / match["name"]).as_posix() if match else None


def _two_for_one(name: str, first: object, second: object) -> DataError:
    return DataError(f"two files stand for {name!r}: {first} and {second}", "one file a name", "move one of them away")


def _without_scale_suffix(lq: dict[str, Named[T]], gt: dict[str, Named[T]]) -> dict[str, Named[T]]:
    named: dict[str, Named[T]] = {}
    for own, entry in lq.items():
        match = None if own in gt else _SCALE_SUFFIX.match(own)
        name = match["name"] if match and match["name"] in gt else own
        if name in named:
            raise _two_for_one(name, named[name][1], entry[1])
        named[name] = entry
    return named


def _refuse_unpaired(
    gt: Listing[T],
    lq: Listing[T],
    gt_named: dict[str, Named[T]],
    lq_named: dict[str, Named[T]],
    sides: tuple[str, str],
) -> None:
    parts = []
    both = ((gt, gt_named, lq, lq_named, sides[1]), (lq, lq_named, gt, gt_named, sides[0]))
    for place, own, partner, other, side in both:
        lonely = [own[name][0] for name in sorted(own.keys() - other.keys())]
        if lonely and not (partner.selects and not place.selects):
            more = f" and {len(lonely) - _SHOWN} more" if len(lonely) > _SHOWN else ""
            parts.append(f"{len(lonely)} without a {side} partner in {place.place}: {', '.join(lonely[:_SHOWN])}{more}")
    if parts:
        raise DataError(
            "; ".join(parts),
            "the same names on both sides (the suffix, and x2/x3/x4 at the end of a low-quality name, may differ)",
            "complete both sides, or describe the names with gt_pattern and lq_pattern",
        )


# ---------------------------------------------------------------- outputs


def plan_outputs(
    inputs: Iterable[PathLike], root: PathLike, out: PathLike, ext: str | None = None, suffix: str = ""
) -> list[Job]:
    """Where each input's output goes: `out` / the path below `root`, with `suffix` before `ext`.

    Args:
        inputs: image files below `root`.
        root: the folder that the inputs were listed from, or the one input file itself.
        out: the output folder. For a single input file it may also be the output file (a name with an image suffix).
        ext: another file suffix, with or without its dot ("png"); None keeps each input's own.
        suffix: added to the name, e.g. "_restored".

    Raises:
        DataError: two inputs would write one output, an output is an input, or `ext` is unknown.
    """
    base, target = Path(root), Path(out)
    end = _image_suffix(ext) if ext is not None else None
    jobs: list[Job] = []
    for item in inputs:
        src = Path(item)
        if base == src or not base.is_dir():
            single = target.suffix.lower() in IMAGE_SUFFIXES and not target.is_dir()
            dst = target if single else target / f"{src.stem}{suffix}{end or src.suffix}"
        else:
            below = _below(src, base)
            dst = target / below.with_name(f"{below.stem}{suffix}{end or below.suffix}")
        jobs.append((src, dst))
    _refuse_collisions(jobs)
    return jobs


def _image_suffix(ext: str) -> str:
    end = ext if ext.startswith(".") else f".{ext}"
    if end.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"the output suffix {ext!r} is unknown", "one of " + ", ".join(sorted(IMAGE_SUFFIXES)))
    return end


def _below(path: Path, base: Path) -> Path:
    try:
        return path.relative_to(base)
    except ValueError as error:
        raise DataError(f"{path} does not lie in {base}", "inputs below their root") from error


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    sources = {_identity(src): src for src, _ in jobs}
    taken: dict[str, Path] = {}
    for src, dst in jobs:
        key = _identity(dst)
        if key in sources:
            whose = "itself" if sources[key] == src else f"another input, {sources[key]}"
            raise DataError(
                f"the output of {src} would overwrite {whose}: {dst}",
                "outputs that are not inputs",
                "choose another output folder, or add a suffix to the names",
            )
        if key in taken:
            raise DataError(
                f"{taken[key]} and {src} would both write {dst}",
                "one output an input",
                "keep the inputs' own suffixes, or rename one of them",
            )
        taken[key] = src


def _identity(path: Path) -> str:
    """The file that a path means, through links and `..`, whether it exists or not."""
    return os.path.normcase(os.path.realpath(path))


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed when it does not.

    The temporary name is hidden, unique to this process and call, and keeps the suffix of `path`, so that code which
    picks a format by suffix works. Nothing exists under it yet when the block begins. Missing parent folders are made.
    Of several writers of one path, each writes a whole file and the last one stays.

        with atomic_path("out/a.json") as temporary:
            temporary.write_text("{}")

    Raises:
        OutputError: the path cannot be written (full disk, no permission, a folder in its place, ...); the message
            names `path`. It is raised before the block where that can be known. Other exceptions of the block,
            KeyboardInterrupt too, pass through unchanged after the temporary file is removed.
    """
    target = Path(path)
    # Through a link, the file that it points to is written, as open(path, "wb") would.
    real = Path(os.path.realpath(target))
    if os.path.lexists(real) and not real.is_file():
        raise OutputError(
            f"{target} cannot be written: {'a folder' if real.is_dir() else 'no regular file'} has this name",
            "a new name or an existing file",
            "choose another output name",
        )
    token = f"{os.getpid()}-{secrets.token_hex(6)}"
    # The stem is cut (in bytes, a name may hold 255) to leave room for the token and a long suffix.
    stem = os.fsdecode(os.fsencode(real.stem)[:150])
    temporary = real.with_name(f".{stem}.{token}.tmp{real.suffix}")
    try:
        with _as_output_error(target, temporary):
            real.parent.mkdir(parents=True, exist_ok=True)
            # Learn now, not after an hour of work, that nothing can be written here.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(temporary)
            yield temporary
            if not os.path.lexists(temporary):
                raise OutputError(
                    f"nothing was written for {target}", "a file", "this is a fault of the code that writes"
                )
            os.replace(temporary, real)
    finally:
        # Gone already where the rename succeeded or nothing was written.
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)


@contextmanager
def _as_output_error(target: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not _is_ours(error, target, temporary):
            raise
        reason, advice = _WRITE_ERRORS.get(
            error.errno or 0, (error.strerror or str(error), "choose another output folder")
        )
        raise OutputError(f"{target} cannot be written: {reason}", None, advice) from error


def _is_ours(error: OSError, target: Path, temporary: Path) -> bool:
    """Whether an OSError came from writing the output, not from something else that the block opened."""
    if error.filename is None:
        return error.errno in _WRITE_ERRORS
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    return named is not None and (named == temporary or named in (target, *target.parents, *temporary.parents))


def user_cache() -> Path:
    """The folder for what only spares time and may be deleted; it may not exist yet. It honours XDG_CACHE_HOME."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative one ignored.
    base = named if os.path.isabs(named) else os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "refine-wrap")
