"""The comparison page: the same pictures from several folders, in one HTML file that opens without network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, OutputError, RefineWrapError
from ..evaluation import Protocol
from ..folder import atomic_path, list_images
from ..images import Picture, read_image
from .figures import Figure, Row, in_words, table
from .page import Payloads, count, render

if TYPE_CHECKING:
    from PIL.Image import Image

PathLike = str | os.PathLike[str]
Size = tuple[int, int]
Box = tuple[int, int, int, int]

MAX_SIDE = 1600
"""Longer side, in pixels, of what a page shows of a picture; the close-up keeps the original pixels."""
PAGE_BYTES = 200 * 2**20
"""Pictures stop being embedded beyond this much text. A browser still opens such a page; the table goes on."""
_CROP = 96
_REGION = 640
_SCALE_SUFFIX = re.compile(r"^(?P<name>.+)x[2348]$")
_SMALLEST_SIDE = 64


def compare_page(
    folders: Sequence[PathLike],
    out: PathLike,
    *,
    reference: PathLike | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    limit: int | None = None,
    max_side: int | None = None,
    border: int = 0,
    luma: bool = False,
    overwrite: bool = True,
) -> Path:
    """Write one self-contained HTML page that shows the same pictures from several folders.

    Pictures are paired by their path below each folder, without the suffix; `0801x4.png` also meets `0801.png`. Two or
    more single files make a page of one picture. With a reference, PSNR and SSIM are measured on the stored values
    (not on what the page shows), transparency apart.

    Args:
        folders: folders or image files, in the order of the page.
        out: the page, `.html`; missing parent folders are made.
        reference: folder or file to measure against. One of `folders`, or another, which is then shown last.
        labels: one name for each of `folders`, and one more for `reference` if that is not among them (optional).
        title: heading of the page.
        limit: use the first `limit` pictures (by name) only.
        max_side: longer side in pixels above which a picture is shown reduced; 1600 unless given.
        border, luma: protocol of PSNR and SSIM, see `refine_wrap.evaluation`.
        overwrite: write over an existing page.

    Returns:
        The path of the page.

    Raises:
        DataError: fewer than two folders, a folder that is missing or empty, no picture in common, none readable,
            labels that do not fit. A picture that cannot be read is left out and named on the page.
        OutputError: the page cannot be written.
    """
    page = _page_path(out, overwrite)
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} leaves no picture.", "1 or more")
    side = MAX_SIDE if max_side is None else max_side
    if side < _SMALLEST_SIDE:
        raise DataError(
            f"Pictures of at most {side} pixels a side show nothing.", f"max_side of at least {_SMALLEST_SIDE}"
        )
    sources = _sources(folders, reference, labels)
    matches, lonely = _match(sources)
    report = _Report(sources, [Protocol("PSNR", border, luma), Protocol("SSIM", border, luma)], lonely)
    report.unused = len(matches) - len(matches[:limit])
    for name, paths in matches[:limit]:
        pictures = _read_all(name, paths, report)
        if pictures:
            report.add(name, pictures, side)
    if not report.rows:
        raise DataError(
            f"None of the {len(report.left_out)} pictures in common can be used; the first: {report.left_out[0][1]}",
            "images that can be read",
        )
    html = _render(report, title or "Comparison")
    with atomic_path(page) as temporary:
        temporary.write_bytes(html)
    return page


# ---------------------------------------------------------------- what is compared


@dataclass
class _Source:
    path: Path
    label: str
    reference: bool
    files: dict[str, Path]
    """Name that pictures are paired by -> file."""


def _page_path(out: PathLike, overwrite: bool) -> Path:
    page = Path(out)
    if page.suffix.lower() not in {".html", ".htm"}:
        raise DataError(f"The page cannot be called {page.name!r}.", "a name that ends in .html")
    if page.exists() and not overwrite:
        raise OutputError(f"{page} exists already.", "a new name", "Overwrite it, or choose another name.")
    return page


def _sources(folders: Sequence[PathLike], reference: PathLike | None, labels: Sequence[str] | None) -> list[_Source]:
    if isinstance(folders, (str, os.PathLike)):
        raise DataError(f"Only one folder was given: {folders}", "two or more folders, or image files, in a list")
    paths = [Path(folder) for folder in folders]
    given = len(paths)
    real = [os.path.realpath(path) for path in paths]
    for index, path in enumerate(paths):
        if real[index] in real[:index]:
            raise DataError(f"{path} was given twice.", "different folders")
    chosen = None if reference is None else os.path.realpath(reference)
    if reference is not None and chosen not in real:
        paths.append(Path(reference))
    if len(paths) < 2:
        raise DataError(f"{len(paths)} folder{'s were' if not paths else ' was'} given.", "two or more to compare")
    names = _labels(paths, given, labels)
    return [
        _Source(path, name, os.path.realpath(path) == chosen, _files(path))
        for path, name in zip(paths, names, strict=True)
    ]


def _labels(paths: list[Path], given: int, labels: Sequence[str] | None) -> list[str]:
    if labels is not None:
        if isinstance(labels, str) or len(labels) not in (given, len(paths)):
            raise DataError(f"{len(labels)} labels were given for {given} folders.", "one label a folder")
        return [str(label) for label in labels] + ["Reference"] * (len(paths) - len(labels))
    # As much of the path as tells them apart: a/out and b/out in place of twice "out".
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return [_text(os.path.join(*part[-depth:])) for part in parts]


def _text(name: str) -> str:
    """A file's name as text that can be encoded, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "replace")


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.stem: path}
    files: dict[str, Path] = {}
    for image in list_images(path):
        name = image.relative_to(path).with_suffix("").as_posix()
        if name in files:
            raise _two_for_one(name, files[name], image)
        files[name] = image
    return files


def _two_for_one(name: str, first: Path, second: Path) -> DataError:
    return DataError(f"Two files stand for {name!r}: {first} and {second}", "one file a name", "Move one of them away.")


def _match(sources: list[_Source]) -> tuple[list[tuple[str, list[Path]]], list[list[str]]]:
    """Pictures that every source has, by name, and what else each source holds."""
    if all(source.path.is_file() for source in sources):
        # Files that were named one by one belong together whatever they are called.
        return [(_text(sources[0].path.stem), [source.path for source in sources])], [[] for _ in sources]
    known = {name for source in sources for name in source.files}
    for source in sources:
        source.files = _without_scale_suffix(source.files, known)
    common = sorted(set.intersection(*(set(source.files) for source in sources)))
    if not common:
        shown = "; ".join(f"{source.path} has {', '.join(sorted(source.files)[:2])}" for source in sources[:3])
        raise DataError(
            f"The folders have no picture in common: {shown}",
            "the same names in each (the suffix, and x2/x3/x4 at the end, may differ)",
            "Check the folders, or name single files, which are compared whatever they are called.",
        )
    matches = [(_text(name), [source.files[name] for source in sources]) for name in common]
    lonely = [sorted(_text(name) for name in source.files.keys() - set(common)) for source in sources]
    return matches, lonely


def _without_scale_suffix(files: dict[str, Path], known: set[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for own, path in files.items():
        match = _SCALE_SUFFIX.match(own)
        name = match["name"] if match and match["name"] in known and match["name"] not in files else own
        if name in named:
            raise _two_for_one(name, named[name], path)
        named[name] = path
    return named


def _read_all(name: str, paths: list[Path], report: _Report) -> list[Picture]:
    """One picture from every source; none at all, and a note why, where one of them cannot be read."""
    pictures = []
    for source, path in zip(report.sources, paths, strict=True):
        try:
            pictures.append(_read(path))
        except RefineWrapError as error:
            # A page gets passed on: it names the file, not where it lies on this machine.
            report.left_out.append((name, f"{source.label}: {_text(error.came.replace(str(path), path.name))}"))
            return []
    return pictures


def _read(path: Path) -> Picture:
    """The picture as it is meant to be seen: turned as its EXIF orientation says."""
    picture = read_image(path)
    turn = _TURNS.get(_orientation(picture.exif))
    if turn is None:
        return picture
    alpha = None if picture.alpha is None else np.ascontiguousarray(turn(picture.alpha))
    return replace(picture, pixels=np.ascontiguousarray(turn(picture.pixels)), alpha=alpha, exif=None)


_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}
_ORIENTATION = 0x0112


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    from PIL import Image

    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError):
        # PIL raises any of these on a damaged block, which says nothing about which way is up.
        return 1


# ---------------------------------------------------------------- measuring and embedding


@dataclass
class _Report:
    sources: list[_Source]
    protocols: list[Protocol]
    lonely: list[list[str]]
    unused: int = 0
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    payloads: Payloads = field(default_factory=Payloads)
    reduced: int = 0
    transparent: bool = False

    @property
    def reference(self) -> int | None:
        return next((index for index, source in enumerate(self.sources) if source.reference), None)

    def add(self, name: str, pictures: list[Picture], side: int) -> None:
        self.transparent |= any(_see_through(picture) for picture in pictures)
        row = Row(name, self._figures(pictures))
        if self.payloads.size < PAGE_BYTES:
            row.item = len(self.items)
            self.items.append(self._item(row, pictures, side))
        self.rows.append(row)

    def _figures(self, pictures: list[Picture]) -> list[list[Figure]]:
        truth = None if self.reference is None else pictures[self.reference]
        return [
            [
                None if truth is None or picture is truth else _measure(protocol, picture, truth)
                for protocol in self.protocols
            ]
            for picture in pictures
        ]

    def _item(self, row: Row, pictures: list[Picture], side: int) -> dict[str, Any]:
        frame = (
            pictures[self.reference] if self.reference is not None else max(pictures, key=lambda p: p.height * p.width)
        )
        width, height = frame.width, frame.height
        shrink = min(1.0, side / max(width, height))
        page = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        views = [_view(picture) for picture in pictures]
        crop = _most_different(views, width, height)
        whole = all(max(view.size) <= side for view in views) and shrink == 1.0
        bounds = (0, 0, width, height) if whole else _around(crop, width, height)
        images = [
            self._image(f"{len(self.items)}-{index}", view, picture, (width, height), page, bounds)
            for index, (view, picture) in enumerate(zip(views, pictures, strict=True))
        ]
        for image, figures in zip(images, row.figures, strict=True):
            image["figures"] = in_words(self.protocols, figures)
        self.reduced += shrink < 1.0
        return {
            "name": row.name,
            "width": width,
            "height": height,
            "page": page,
            "crop": {"x": crop[0], "y": crop[1], "size": crop[2]},
            "bounds": bounds,
            "notes": _notes(self.sources, pictures, (width, height), page),
            "images": images,
        }

    def _image(
        self,
        key: str,
        view: Image,
        picture: Picture,
        frame: Size,
        page: Size,
        bounds: Box,
    ) -> dict[str, Any]:
        from PIL import Image

        shown = view if view.size == page else view.resize(page, Image.Resampling.BICUBIC)
        entry: dict[str, Any] = {
            "id": self.payloads.embed(f"p-{key}", shown, picture.icc),
            "size": view.size,
            "resized": view.size != frame,
            "alpha": view.mode == "RGBA",
            "detail": None,
        }
        if shown is not view:
            box = _own_box(bounds, view.size, frame)
            part = view.crop(box)
            x, y = view.width / frame[0], view.height / frame[1]
            entry["detail"] = {
                "id": self.payloads.embed(f"d-{key}", part, picture.icc),
                "x": box[0] / x,
                "y": box[1] / y,
                "w": part.width / x,
                "h": part.height / y,
                "pw": part.width,
                "ph": part.height,
            }
        return entry


def _measure(protocol: Protocol, picture: Picture, truth: Picture) -> float | str:
    if (picture.height, picture.width) != (truth.height, truth.width):
        return "other size"
    if min(picture.height, picture.width) < protocol.smallest:
        return "too small"
    return float(protocol(picture.tensor(), truth.tensor())[0])


def _see_through(picture: Picture) -> bool:
    return picture.alpha is not None and bool((picture.alpha < (1 << picture.bits) - 1).any())


def _view(picture: Picture) -> Image:
    """What a browser shows: 8 bits, RGB, or RGBA where something is transparent."""
    from PIL import Image

    def eight(values: np.ndarray) -> np.ndarray:
        return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)

    pixels = np.broadcast_to(eight(picture.pixels), (picture.height, picture.width, 3))
    if picture.alpha is not None and _see_through(picture):
        pixels = np.dstack([pixels, eight(picture.alpha)])
    return Image.fromarray(np.ascontiguousarray(pixels))


def _most_different(views: list[Image], width: int, height: int) -> tuple[int, int, int]:
    """(left, top, side) of the square in the frame where the pictures differ most, on average over its pixels."""
    from PIL import Image

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    for view in views:
        if view.mode == "RGBA":
            view = Image.alpha_composite(Image.new("RGBA", view.size, (128, 128, 128, 255)), view).convert("RGB")
        if view.size != (width, height):
            view = view.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(view)
        low = pixels if low is None else np.minimum(low, pixels)
        high = pixels if high is None else np.maximum(high, pixels)
    assert low is not None and high is not None
    side = min(_CROP, width, height)
    block = max(1, side // 4)
    spread = high - low
    rows, columns = height // block, width // block
    # Means of small blocks first: a full-size running sum of an 8K photo would take a gigabyte.
    small = spread[: rows * block, : columns * block].reshape(rows, block, columns, block * 3).mean(axis=(1, 3))
    across = min(side // block, rows, columns)
    sums = np.zeros((rows + 1, columns + 1))
    sums[1:, 1:] = small.cumsum(0).cumsum(1)
    windows = sums[across:, across:] - sums[:-across, across:] - sums[across:, :-across] + sums[:-across, :-across]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return min(int(left) * block, width - side), min(int(top) * block, height - side), side


def _around(crop: tuple[int, int, int], width: int, height: int) -> Box:
    """The part of a large picture whose original pixels are embedded: the crop, with room to look around."""
    left, top, side = crop
    w, h = min(width, _REGION), min(height, _REGION)
    x = min(max(0, left + side // 2 - w // 2), width - w)
    y = min(max(0, top + side // 2 - h // 2), height - h)
    return x, y, x + w, y + h


def _own_box(bounds: Box, own: Size, frame: Size) -> Box:
    """The box of a picture's own pixels that covers `bounds` of the frame."""
    x, y = own[0] / frame[0], own[1] / frame[1]
    left, top = math.floor(bounds[0] * x), math.floor(bounds[1] * y)
    right, bottom = min(own[0], math.ceil(bounds[2] * x)), min(own[1], math.ceil(bounds[3] * y))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _notes(sources: list[_Source], pictures: list[Picture], frame: Size, page: Size) -> list[str]:
    notes = []
    if page != frame:
        notes.append(f"shown reduced to {page[0]} × {page[1]}, the close-up has the original pixels")
    for source, picture in zip(sources, pictures, strict=True):
        if (picture.width, picture.height) != frame:
            notes.append(f"{source.label} is {picture.width} × {picture.height}, resized by bicubic for viewing only")
    deep = [source.label for source, picture in zip(sources, pictures, strict=True) if picture.bits == 16]
    if deep:
        notes.append(f"{', '.join(deep)}: 16 bits, shown in 8")
    return notes


# ---------------------------------------------------------------- the page


def _render(report: _Report, title: str) -> bytes:
    data = {
        "sources": [{"label": source.label, "reference": source.reference} for source in report.sources],
        "items": report.items,
    }
    parts = {
        "facts": escape(_facts(report)),
        "table": table(
            report.rows, [s.label for s in report.sources], report.reference, report.protocols, _remark(report)
        ),
        "left_out": _left_out(report),
        "footer": escape(_footer(report)),
    }
    return render("compare", title, data, report.payloads, parts)


def _remark(report: _Report) -> str:
    return "Transparency is not measured, only colour." if report.transparent else ""


def _facts(report: _Report) -> str:
    labels = ", ".join(source.label + (" (reference)" if source.reference else "") for source in report.sources)
    facts = [count(len(report.rows), "picture"), labels]
    if report.unused:
        facts.append(f"{report.unused} more in common, not used")
    if report.left_out:
        facts.append(f"{len(report.left_out)} left out")
    return " · ".join(facts)


def _footer(report: _Report) -> str:
    parts = [f"Pictures are embedded as {report.payloads.format_names()}."]
    if report.reduced:
        parts.append(f"{count(report.reduced, 'picture')} shown reduced; the close-up keeps the original pixels.")
    missing = len(report.rows) - len(report.items)
    if missing:
        parts.append(f"The last {count(missing, 'picture')} would make the page too large: in the table only.")
    parts.append("This file is complete in itself and loads nothing from the network.")
    return " ".join(parts)


def _left_out(report: _Report) -> str:
    blocks = []
    if report.left_out:
        verb = "was" if len(report.left_out) == 1 else "were"
        summary = f"{count(len(report.left_out), 'picture')} could not be read and {verb} left out"
        lines = [f"<b>{escape(name)}</b>: {escape(why)}" for name, why in report.left_out]
        blocks.append(_notice(f'<summary class="warn">{summary}</summary>', lines, " open"))
    if any(report.lonely):
        summary = f"{count(sum(map(len, report.lonely)), 'file')} without a partner in every folder"
        lines = [
            escape(f"{source.label}: {len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})")
            for source, names in zip(report.sources, report.lonely, strict=True)
            if names
        ]
        blocks.append(_notice(f"<summary>{summary}</summary>", lines, ""))
    return f'<section class="left-out">{"".join(blocks)}</section>' if blocks else ""


def _notice(summary: str, lines: list[str], attributes: str) -> str:
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<details class="notice"{attributes}>{summary}<ul>{items}</ul></details>'
