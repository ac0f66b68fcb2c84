"""Where the images of an analysis come from, and which of them belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..degradation.published import PIPELINES, published
from ..degradation.rounding import to_8bit
from ..degradation.synthetic import downsample
from ..errors import DataError, ImageError
from ..folder import Listing, PathLike, common_name, pair_listings, readable
from ..images import Picture, read_image, upright
from ..resources import file_digest

CLEAN = "bicubic"
"""The set that others are compared with: the clean images, made smaller and nothing else."""


@dataclass
class Places:
    """All sets' images. With clean images each name is in every set."""

    scale: int
    seed: int
    clean: dict[str, Path]
    """High-resolution images by their common name; empty without."""
    folders: dict[str, dict[str, Path]]
    """Of each set that is there, by label: its images by their common name."""
    made: list[str] = field(default_factory=list)
    """Of `PIPELINES`: sets that are made of the clean images, when they are asked for."""

    @property
    def labels(self) -> list[str]:
        return [*self.made, *self.folders]

    def rows(self, limit: int | None = None) -> list[tuple[str, list[str]]]:
        """What is looked at together: a name and the sets that have it, at most `limit` of each, spread evenly."""
        if self.clean:
            return [(name, self.labels) for name in _spread(list(self.clean), limit)]
        return [(name, [label]) for label, files in self.folders.items() for name in _spread(list(files), limit)]

    def read(self, name: str, labels: Sequence[str]) -> dict[str, Picture]:
        """A row's pictures by label, upright; with clean images all of one size, the first being the clean one.

        Raises:
            ImageError: one cannot be read, or is of another size.
        """
        found = self._made(name) if self.clean else {}
        size = found[CLEAN] if found else None
        for label in labels:
            if label in self.folders:
                path = self.folders[label][name]
                picture = found[label] = upright(read_image(path))
                if size is not None and (picture.height, picture.width) != (size.height, size.width):
                    raise ImageError(
                        f"{path} has {picture.width}x{picture.height} pixels",
                        f"{size.width}x{size.height}: the clean image {self.scale} times smaller",
                        "check the scale, or leave the image out",
                    )
        return found

    def _made(self, name: str) -> dict[str, Picture]:
        """The clean image and what pipelines make of it, the same for one seed and file whatever else is there."""
        path = self.clean[name]
        whole = upright(read_image(path))
        # A rest of less than a pixel is cut off, as in training.
        height, width = whole.height // self.scale * self.scale, whole.width // self.scale * self.scale
        if not height or not width:
            came = f"{path} has {whole.width}x{whole.height} pixels"
            raise ImageError(came, f"at least {self.scale}x{self.scale}", "leave it out")
        image = np.ascontiguousarray(whole.tensor(0, 0, height, width)[0].permute(1, 2, 0).numpy())
        found = {CLEAN: Picture(to_8bit(downsample(image, self.scale)))}
        others = [each for each in self.made if each != CLEAN]
        digest = file_digest(path) if others else ""
        for each in others:
            chance = int(hashlib.sha256(f"{self.seed} {digest} {each}".encode()).hexdigest(), 16)
            found[each] = Picture(published(image, each, self.scale, np.random.default_rng(chance)))
        return found

    def without_paths(self, text: str, name: str) -> str:
        """A message with files by their names: a result gets passed on, and says nothing about this machine."""
        for label, files in {"clean": self.clean, **self.folders}.items():
            if name in files:
                text = text.replace(str(files[name]), f"{label}: {readable(files[name].name)}")
        return text


def gather(
    sets: Mapping[str, PathLike], clean: PathLike | None, scale: int, compare: Sequence[str], seed: int
) -> Places:
    """Find the images; arguments as `analyze_degradation`.

    Raises:
        DataError: nothing to look at, a folder is missing or empty, images without a partner, or labels that are not
            distinct.
    """
    unknown = [each for each in compare if each not in PIPELINES]
    if unknown:
        raise DataError(f"There is no degradation {unknown[0]!r} to compare with", " or ".join(PIPELINES))
    if compare and clean is None:
        came = f"{compare[0]} is to be compared with, and there is nothing to degrade"
        raise DataError(came, "the folder of clean high-resolution images, clean")
    if not sets and clean is None:
        raise DataError("There is nothing to analyse", "folders of degraded images, or clean ones and what to compare")
    made = list(dict.fromkeys([CLEAN, *compare])) if clean is not None else []
    twice = next((label for label in made if label in sets), None)
    if twice is not None:
        raise DataError(f"A set is called {twice!r}, as one that is made here", "another name: NAME=FOLDER")
    if clean is None:
        return Places(scale, seed, {}, {label: _named(_listing(folder)) for label, folder in sets.items()})
    truth = _listing(clean)
    named = _named(truth)
    names = {path: name for name, path in named.items()}
    folders = {}
    for label, folder in sets.items():
        pairs = pair_listings(truth, _listing(folder), sides=("clean", "degraded"))
        folders[label] = {names[path]: partner for path, partner in pairs}
    return Places(scale, seed, named, folders, made)


def _listing(folder: PathLike) -> Listing[Path]:
    if Path(folder).is_file():
        raise DataError(f"{folder} is a file", "a folder of images", "name the folder that holds it")
    return Listing.of_folder(folder)


def _named(listing: Listing[Path]) -> dict[str, Path]:
    """A listing's images by the name that they are paired by."""
    named: dict[str, Path] = {}
    for below, path in listing.items:
        name = readable(common_name(below, None) or below)
        if name in named:
            came = f"two files stand for {name!r}: {named[name]} and {path}"
            raise DataError(came, "one file a name", "move one of them away")
        named[name] = path
    return named


def _spread(names: list[str], limit: int | None) -> list[str]:
    count = len(names) if limit is None else min(limit, len(names))
    return [names[i * len(names) // count] for i in range(count)]
