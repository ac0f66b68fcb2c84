"""Where the images of an evaluation come from, and which of them belong together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ImageError
from ..folder import Listing, PathLike, common_name, pair_listings, readable, short_names
from ..images import Picture, read_image, upright
from ..resources import file_digest

if TYPE_CHECKING:
    from ..wrapper import RefineWrapper
    from .result import Image, Seen

_ADAPTER = "adapter.json"


@dataclass(frozen=True)
class Outputs:
    """What one method made of the inputs."""

    source: PathLike
    """A folder of images; or an adapter, which is run on the inputs: its folder, `shipped:NAME`, `hf://org/name`."""
    label: str | None = None
    """Its name in the results; None: the folder's."""
    adapters: Sequence[PathLike] = ()
    """Adapters that made the images: what they were trained on may not judge them. One that is run is among them."""
    pattern: str | None = None
    """How the images' names are made of the common name, see `pair_by_name`; None: as the evaluation's `pattern`."""
    backbone: Any = None
    """For an adapter that is run and does not know its own, as `RefineWrapper.from_pretrained` takes it."""

    @property
    def runs(self) -> bool:
        """Whether it is an adapter to be run."""
        text = str(self.source)
        return text.startswith(("shipped:", "hf://")) or (Path(text).expanduser() / _ADAPTER).is_file()


@dataclass
class Place:
    """A folder: its images by their common name."""

    label: str
    files: dict[str, Path]

    def read(self, name: str) -> Picture:
        """The picture, upright. Raises RefineWrapError."""
        return upright(read_image(self.files[name]))

    def sha256(self, name: str) -> str | None:
        """Of the picture's file; None where it comes from none. Raises ImageError."""
        try:
            return file_digest(self.files[name])
        except OSError as error:
            raise ImageError(
                f"{self.files[name]} cannot be read: {error.strerror or error}", "an image file"
            ) from error


@dataclass
class Run(Place):
    """What an adapter makes of a folder's images, made when it is asked for."""

    wrapper: RefineWrapper

    def read(self, name: str) -> Picture:
        picture: Picture = self.wrapper.restore(self.files[name])
        return upright(picture)

    def sha256(self, name: str) -> str | None:
        return None


@dataclass
class Places:
    """All images of an evaluation. Each of `names` is in every place."""

    names: list[str]
    gt: Place | None
    lq: Place | None
    outputs: list[Place] = field(default_factory=list)
    """The baseline, then the candidates."""
    trained_on: list[list[str]] = field(default_factory=list)
    """Of each of `outputs`: the scorers that it was trained on."""
    unused: int = 0
    """Images that are left out because not every place has them."""
    folders: tuple[str, str] = ("", "")
    """Short names of the folders of ground truth and input."""

    def about(self, images: Sequence[Image]) -> dict[str, Any]:
        """What was evaluated: the name of each folder, and the digest of the names and hashes of its images."""
        gt = self.gt and {"folder": self.folders[0], "digest": _digest(images, attrgetter("gt"))}
        lq = self.lq and {"folder": self.folders[1], "digest": _digest(images, attrgetter("lq"))}
        outputs = [
            {"label": place.label, "digest": _digest(images, partial(_output, n))}
            for n, place in enumerate(self.outputs)
        ]
        return {"images": len(images), "gt": gt, "lq": lq, "baseline": outputs[0], "candidates": outputs[1:]}

    def pairs_name(self, images: Sequence[Image]) -> str:
        """The pairs of ground truth and input, by folder, number and digest."""
        folder = " and ".join(dict.fromkeys(self.folders))
        both = "".join(_digest(images, attrgetter(side)) or "" for side in ("gt", "lq"))
        return f"{folder} ({len(images)} pairs, digest {hashlib.sha256(both.encode()).hexdigest()[:12]})"

    def without_paths(self, text: str, name: str) -> str:
        """A message with files by their names: a result gets passed on, and says nothing about this machine."""
        for place in (self.gt, self.lq, *self.outputs):
            if place is not None and name in place.files:
                path = place.files[name]
                text = text.replace(str(path), f"{place.label}: {readable(path.name)}")
        return text


def gather(
    outputs: Sequence[Outputs],
    gt: PathLike | None,
    lq: PathLike | None,
    *,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
    pattern: str | None = None,
    subset: bool = False,
    device: str = "cpu",
) -> Places:
    """Find the images and load the adapters that are to be run; arguments as `evaluate`.

    Raises:
        DataError: a folder is missing or empty, images have no partner, labels are not distinct, or an adapter is to be
            run without inputs.
        RefineWrapError: an adapter cannot be loaded.
    """
    labels = _labels(outputs)
    running = [each for each in outputs if each.runs]
    if running and lq is None:
        raise DataError(f"The adapter {running[0].source} has no inputs to be run on", "the folder of inputs, lq")
    patterns = [each.pattern or pattern or lq_pattern for each in outputs]
    roles = [_Role(gt, gt_pattern, "ground-truth"), _Role(lq, lq_pattern, "low-quality")]
    roles += [
        _Role(None if each.runs else each.source, own, label, subset)
        for each, own, label in zip(outputs, patterns, labels, strict=True)
    ]
    # Everything is paired with one place: the ground truth where there is one, since its names tell a x4 suffix.
    anchor = next(role for role in roles if role.root is not None)
    found = [anchor.partners(role) if role.root is not None else None for role in roles]
    everywhere = [set(files) for files in found if files is not None]
    names = sorted(set.intersection(*everywhere))
    if not names:
        raise DataError("The folders have no image in common", "the same names in each")
    gt_files, lq_files, *folders = found
    places: list[Place] = [
        Place(label, files) if files is not None else Run(label, lq_files or {}, _wrapper(each, device))
        for each, label, files in zip(outputs, labels, folders, strict=True)
    ]
    return Places(
        names,
        Place("ground truth", gt_files) if gt_files is not None else None,
        Place("input", lq_files) if lq_files is not None else None,
        places,
        [_trained_on(each) for each in outputs],
        len(set.union(*everywhere)) - len(names),
        _folder_names(gt, lq),
    )


@dataclass(frozen=True)
class _Role:
    """A folder and what its names are made of; `word` is what refusals call its images."""

    root: PathLike | None
    pattern: str | None
    word: str
    selects: bool = False

    def listing(self) -> Listing[Path]:
        assert self.root is not None
        if Path(self.root).is_file():
            raise DataError(f"{self.root} is a file", "a folder of images", "name the folder that holds it")
        return replace(Listing.of_folder(self.root), selects=self.selects)

    def partners(self, other: _Role) -> dict[str, Path]:
        """The images of another folder by their common name."""
        assert self.root is not None and other.root is not None
        same = os.path.realpath(self.root) == os.path.realpath(other.root)
        own = self.listing()
        names = {path: common_name(below, self.pattern) for below, path in own.items}
        if same and self.pattern == other.pattern:
            return {name: path for path, name in names.items() if name is not None}
        pairs = pair_listings(
            own,
            other.listing(),
            gt_pattern=self.pattern,
            lq_pattern=other.pattern,
            same=same,
            sides=(self.word, other.word),
        )
        return {names[path] or "": partner for path, partner in pairs}


def _labels(outputs: Sequence[Outputs]) -> list[str]:
    if not outputs:
        return []
    given = [each.label for each in outputs]
    sources = [Path(str(each.source).removeprefix("shipped:").removeprefix("hf://")) for each in outputs]
    labels = [label or short for label, short in zip(given, short_names(sources), strict=True)]
    for number, label in enumerate(labels):
        if label in labels[:number]:
            raise DataError(f"Two methods' outputs are called {label!r}", "a label of its own for each", "give labels")
    return [readable(label) for label in labels]


def _folder_names(gt: PathLike | None, lq: PathLike | None) -> tuple[str, str]:
    gt_name, lq_name = (short_names([folder])[0] if folder is not None else "" for folder in (gt, lq))
    if gt is not None and lq is not None and gt_name == lq_name and os.path.realpath(gt) != os.path.realpath(lq):
        gt_name, lq_name = short_names([gt, lq])
    return gt_name, lq_name


def _wrapper(outputs: Outputs, device: str) -> RefineWrapper:
    from ..wrapper import RefineWrapper

    return RefineWrapper.from_pretrained(str(outputs.source), backbone=outputs.backbone, device=device)


def _trained_on(outputs: Outputs) -> list[str]:
    from ..hub import resolve
    from ..hub.disk import DOCUMENT, check_is_adapter, read_document

    found: list[str] = []
    for adapter in (*outputs.adapters, *([outputs.source] if outputs.runs else [])):
        folder = resolve(adapter if isinstance(adapter, str) else Path(adapter))
        check_is_adapter(folder)
        found += [str(scorer) for scorer in read_document(folder / DOCUMENT)["scorers"]]
    return list(dict.fromkeys(found))


def _digest(images: Sequence[Image], side: Callable[[Image], Seen]) -> str | None:
    """SHA-256 of one side's names and files; None where they are no files."""
    lines = [f"{image.name}\0{side(image).sha256}\n" for image in images if side(image).sha256 is not None]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest() if lines else None


def _output(number: int, image: Image) -> Seen:
    return image.outputs[number]
