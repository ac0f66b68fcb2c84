"""The comparison page: the same pictures from several folders, in one HTML file that opens without network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ..errors import DataError, RefineWrapError
from ..evaluation import Protocol
from ..folder import PathLike, atomic_path, list_images, readable, short_names
from ..images import Picture, read_image, upright
from .figures import Figure, Row, in_words, table
from .gallery import MAX_SIDE, Gallery, see_through
from .page import COMPLETE, count, notice, page_path, render

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
    page = page_path(out, overwrite)
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} leaves no picture.", "1 or more")
    side = MAX_SIDE if max_side is None else max_side
    if side < _SMALLEST_SIDE:
        raise DataError(
            f"Pictures of at most {side} pixels a side show nothing.", f"max_side of at least {_SMALLEST_SIDE}"
        )
    sources = _sources(folders, reference, labels)
    matches, lonely = _match(sources)
    reference_at = next((index for index, source in enumerate(sources) if source.reference), None)
    gallery = Gallery([source.label for source in sources], reference_at, side)
    report = _Report(sources, [Protocol("PSNR", border, luma), Protocol("SSIM", border, luma)], lonely, gallery)
    report.unused = len(matches) - len(matches[:limit])
    for name, paths in matches[:limit]:
        pictures = _read_all(name, paths, report)
        if pictures:
            report.add(name, pictures)
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
    return short_names(paths)


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
        return [(readable(sources[0].path.stem), [source.path for source in sources])], [[] for _ in sources]
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
    matches = [(readable(name), [source.files[name] for source in sources]) for name in common]
    lonely = [sorted(readable(name) for name in source.files.keys() - set(common)) for source in sources]
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
            pictures.append(upright(read_image(path)))
        except RefineWrapError as error:
            # A page gets passed on: it names the file, not where it lies on this machine.
            report.left_out.append((name, f"{source.label}: {readable(error.came.replace(str(path), path.name))}"))
            return []
    return pictures


# ---------------------------------------------------------------- measuring and embedding


@dataclass
class _Report:
    sources: list[_Source]
    protocols: list[Protocol]
    lonely: list[list[str]]
    gallery: Gallery
    unused: int = 0
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    transparent: bool = False

    def add(self, name: str, pictures: list[Picture]) -> None:
        self.transparent |= any(see_through(picture) for picture in pictures)
        row = Row(name, self._figures(pictures))
        if not self.gallery.full:
            lines = [in_words(self.protocols, figures) for figures in row.figures]
            row.item = self.gallery.add(name, pictures, lines)
        self.rows.append(row)

    def _figures(self, pictures: list[Picture]) -> list[list[Figure]]:
        reference = self.gallery.reference
        truth = None if reference is None else pictures[reference]
        return [
            [
                None if truth is None or picture is truth else _measure(protocol, picture, truth)
                for protocol in self.protocols
            ]
            for picture in pictures
        ]


def _measure(protocol: Protocol, picture: Picture, truth: Picture) -> float | str:
    if (picture.height, picture.width) != (truth.height, truth.width):
        return "other size"
    if min(picture.height, picture.width) < protocol.smallest:
        return "too small"
    return float(protocol(picture.tensor(), truth.tensor())[0])


# ---------------------------------------------------------------- the page


def _render(report: _Report, title: str) -> bytes:
    gallery = report.gallery
    parts = {
        "facts": escape(_facts(report)),
        "summary": "",
        "table": table(report.rows, gallery.labels, gallery.reference, report.protocols, _remark(report)),
        "left_out": _left_out(report),
        "footer": escape(_footer(report)),
    }
    return render(title, gallery.data(), gallery.payloads, parts)


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
    parts = report.gallery.footer()
    missing = len(report.rows) - len(report.gallery.items)
    if missing:
        parts.append(f"The last {count(missing, 'picture')} would make the page too large: in the table only.")
    return " ".join([*parts, COMPLETE])


def _left_out(report: _Report) -> str:
    blocks = []
    if report.left_out:
        verb = "was" if len(report.left_out) == 1 else "were"
        summary = f"{count(len(report.left_out), 'picture')} could not be read and {verb} left out"
        lines = [f"<b>{escape(name)}</b>: {escape(why)}" for name, why in report.left_out]
        blocks.append(notice(f'<summary class="warn">{summary}</summary>', lines, " open"))
    if any(report.lonely):
        summary = f"{count(sum(map(len, report.lonely)), 'file')} without a partner in every folder"
        lines = [
            escape(f"{source.label}: {len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})")
            for source, names in zip(report.sources, report.lonely, strict=True)
            if names
        ]
        blocks.append(notice(f"<summary>{summary}</summary>", lines, ""))
    return f'<section class="left-out">{"".join(blocks)}</section>' if blocks else ""
