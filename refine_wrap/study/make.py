"""Make a study: the raters' folder, in which nothing tells the methods apart, and the key beside it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import DataError, OutputError
from ..evaluation.places import Outputs, Place, Places, gather
from ..folder import PathLike, atomic_path, readable
from ..images import Picture
from ..manifests import locked, write_manifest
from ..report.page import encode, fill, resource
from .formats import KEY, RATERS, Key, Trial
from .pictures import Box, box_in, cut, damaged, enlarged, shows
from .plan import TRIALS, Settings, draw_plan

if TYPE_CHECKING:
    from PIL.Image import Image

_TIME = 946684800
"""Of every file that raters get, 2000-01-01: when a file was written could tell what it is."""
PAGE = "index.html"
PICTURES = "pictures"
"""The folder below the raters' that holds the pictures."""


def make_study(
    methods: Sequence[Outputs],
    out: PathLike,
    *,
    inputs: PathLike | None = None,
    reference: PathLike | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
) -> Key:
    """Write `out/raters`, a page that works without network or server, and `out/key.json`, which raters do not get.

    The same seed, settings and images make the same bytes.

    Args:
        methods: two or more folders of the same images, paired by name as `pair_by_name` does.
        out: a folder; it is made.
        inputs: folder of the low-quality inputs, shown beside the two, enlarged to their size.
        reference: folder of the ground truth, shown beside.
        settings: see `Settings`.
        overwrite: replace the study that is there.

    Raises:
        DataError: fewer than two methods, folders or sizes that do not fit, or too few images fit for catch trials.
        ImageError: an image cannot be read.
        OutputError: there is a study already, or it cannot be written.
    """
    folder = Path(out)
    places = _places(methods, inputs, reference)
    with locked(folder / KEY, seconds=0):
        _check_free(folder, overwrite)
        study = _Study(places, settings or Settings())
        fresh = folder / f".{RATERS}.{os.getpid()}-{secrets.token_hex(6)}.tmp"
        try:
            study.write(fresh)
            _exchange(fresh, folder / RATERS, folder / KEY, study.key)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    if study.alike:
        warnings.warn(
            f"{study.alike} of {len(study.key.trials)} trials show two pictures that are the same, pixel by pixel",
            stacklevel=2,
        )
    return study.key


def _places(methods: Sequence[Outputs], inputs: PathLike | None, reference: PathLike | None) -> Places:
    if len(methods) < 2:
        raise DataError(f"{len(methods)} method{'' if len(methods) == 1 else 's'} given", "two or more folders")
    real = [os.path.realpath(method.source) for method in methods]
    for number, method in enumerate(methods):
        if method.runs:
            raise DataError(f"{method.source} is an adapter", "a folder of images", "run refine-wrap restore first")
        if real[number] in real[:number]:
            raise DataError(f"{method.source} is given twice", "different folders")
    return gather(methods, reference, inputs)


def _check_free(folder: Path, overwrite: bool) -> None:
    there = next((path for path in (folder / KEY, folder / RATERS) if os.path.lexists(path)), None)
    if there is None:
        return
    if not overwrite:
        raise OutputError(f"{there} exists already", "a new folder", "give --overwrite, or choose another --out")
    # What is removed is a study, and nothing else of that name.
    Key.read(folder / KEY)


def _exchange(fresh: Path, raters: Path, key_path: Path, key: Key) -> None:
    """Put a study in the place of the one that may be there: both of its parts or none."""
    old = fresh.with_suffix(".old")
    try:
        if raters.exists():
            os.rename(raters, old)
        os.rename(fresh, raters)
        write_manifest(key_path, key)
    except BaseException as error:
        if not fresh.exists():
            os.rename(raters, fresh)
        if old.exists():
            os.rename(old, raters)
        if isinstance(error, OSError):
            raise OutputError(f"{raters} cannot be written: {error.strerror or error}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------- what it is made of

_DAMAGED = ""
"""In the place of a method: the damaged copy of the other picture."""


class _Study:
    """A study on its way: its plan, and once it is written its key."""

    def __init__(self, places: Places, settings: Settings) -> None:
        self.places, self.settings = places, settings
        self.methods = {place.label: place for place in places.outputs}
        self.open: tuple[str, dict[Path, Picture]] = ("", {})
        self.files: dict[tuple[str, str], tuple[str, bytes]] = {}
        """(image, method or else) of what is written -> its file's name and the hash of its bytes."""
        couples = list(combinations(self.methods, 2))
        every = len(couples) * len(places.names)
        trials = min(every, TRIALS) if settings.trials is None else settings.trials
        if trials > every:
            raise DataError(
                f"{trials} trials are asked for", f"at most {every}: {len(couples)} pairs of methods on each image"
            )
        draw = random.Random(self.token("order"))
        catches = [(image, label, _DAMAGED) for image, label in self.catches(draw)]
        self.plan = draw_plan(couples, places.names, catches, trials=trials, orders=settings.orders, draw=draw)

    @cached_property
    def secret(self) -> str:
        """What all names are made of: who has not the original files cannot make it again, so names tell nothing."""
        sides = [place for place in (*self.places.outputs, self.places.lq, self.places.gt) if place is not None]
        made_of = [[place.label, name, place.sha256(name)] for place in sides for name in self.places.names]
        return hashlib.sha256(json.dumps([asdict(self.settings), made_of]).encode()).hexdigest()

    def token(self, *what: str) -> str:
        return hashlib.sha256("\0".join((self.secret, *what)).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def catches(self, draw: random.Random) -> list[tuple[str, str]]:
        """(image, method) of pictures whose damage shows, of different images as long as there are."""
        images = draw.sample(self.places.names, len(self.places.names))
        labels = draw.sample(list(self.methods), len(self.methods))
        found: list[tuple[str, str]] = []
        for lap in range(len(labels)):
            for number, image in enumerate(images):
                if len(found) == self.settings.catches:
                    return found
                label = labels[(number + lap) % len(labels)]
                picture = self.shown(image, self.methods[label])
                if shows(damaged(picture), picture):
                    found.append((image, label))
        if len(found) < self.settings.catches:
            raise DataError(
                f"Only {len(found)} pictures can be damaged so that it shows: the others are flat or tiny",
                f"{self.settings.catches}, for as many catch trials",
                "ask for fewer by --catch, or for a larger --crop",
            )
        return found

    # ---------------------------------------------------------------- pictures

    def read(self, place: Place, image: str) -> Picture:
        """Kept as long as it is the image's turn."""
        if self.open[0] != image:
            self.open = (image, {})
        file = place.files[image]
        if file not in self.open[1]:
            self.open[1][file] = place.read(image)
        return self.open[1][file]

    def frame(self, image: str) -> Picture:
        """The first method's picture, whose size all have."""
        return self.read(self.places.outputs[0], image)

    def box(self, image: str) -> Box:
        """What is shown of an image."""
        draw = random.Random(self.token("box", image))
        return box_in(self.frame(image), self.settings.crop, draw.random(), draw.random())

    def shown(self, image: str, place: Place) -> Image:
        """What raters see of a method's picture or the reference. Raises DataError: not of the first one's size."""
        picture, frame = self.read(place, image), self.frame(image)
        if (picture.width, picture.height) != (frame.width, frame.height):
            raise DataError(
                f"{place.files[image]} has {picture.width}x{picture.height} pixels",
                f"{frame.width}x{frame.height}, as {self.places.outputs[0].files[image]}",
            )
        return cut(picture, self.box(image))

    def shown_input(self, image: str, place: Place) -> Image:
        """The same of the input, enlarged. Raises DataError: it is larger, or of another shape."""
        try:
            return enlarged(self.read(place, image), self.box(image), self.frame(image))
        except DataError as error:
            raise DataError(f"{place.files[image]} has {error.came}", error.expected) from None

    # ---------------------------------------------------------------- writing

    def write(self, folder: Path) -> None:
        """The raters' folder; `key` and `alike` are there after it."""
        trials: dict[str, Trial] = {}
        entries: dict[str, dict[str, Any]] = {}
        numbers: dict[int, str] = {}
        alike = 0
        used = {number for order in self.plan.orders for number, _ in order}
        for number in sorted(used, key=lambda number: self.plan.trials[number]):
            image, *sides = self.plan.trials[number]
            name = numbers[number] = self.token("trial", *self.plan.trials[number])
            shown = [self._method(folder, image, sides, side) for side in sides]
            trials[name] = Trial(
                image=readable(image), files={file: side or None for (file, _), side in zip(shown, sides, strict=True)}
            )
            entries[name] = {"id": name, "files": [file for file, _ in shown], "beside": self._beside(folder, image)}
            alike += shown[0][1] == shown[1][1]
        # Sorted by what are hashes: the order in the page's source tells nothing.
        places = {name: place for place, name in enumerate(sorted(entries))}
        self.alike = alike
        self.key = Key(
            refine_wrap=__version__,
            study=self.token("study"),
            methods=list(self.methods),
            trials=dict(sorted(trials.items())),
            **{name: getattr(self.settings, name) for name in ("question", "ties", "seed", "crop", "orders")},
        )
        data = {
            "study": self.key.study,
            "ties": self.settings.ties,
            "trials": [entries[name] for name in places],
            "orders": [[[places[numbers[number]], flip] for number, flip in order] for order in self.plan.orders],
        }
        style = resource("page.css") + resource("page.css", __package__)
        page = fill(
            resource("page.html", __package__),
            style,
            resource("page.js", __package__),
            self.settings.question,
            data,
            {"ties": "" if self.settings.ties else " hidden"},
        )
        self._put(folder / PAGE, page)

    def _method(self, folder: Path, image: str, sides: list[str], side: str) -> tuple[str, bytes]:
        """The file of one of the two, and the hash of its bytes."""
        # A damaged copy belongs to the picture that it was made of.
        label = side or sides[0]
        key = (image, f"{label}\0{'method' if side else 'damaged'}")
        if key not in self.files:
            place = self.methods[label]
            picture = self.shown(image, place)
            made = picture if side else damaged(picture)
            self.files[key] = self._picture(folder, key, made, self.read(place, image).icc)
        return self.files[key]

    def _beside(self, folder: Path, image: str) -> dict[str, str]:
        found: dict[str, str] = {}
        sides = (("input", self.places.lq, self.shown_input), ("reference", self.places.gt, self.shown))
        for role, place, show in sides:
            if place is not None:
                key = (image, f"\0{role}")
                if key not in self.files:
                    self.files[key] = self._picture(folder, key, show(image, place), self.read(place, image).icc)
                found[role] = self.files[key][0]
        return found

    def _picture(self, folder: Path, key: tuple[str, str], image: Image, icc: bytes | None) -> tuple[str, bytes]:
        kind, content = encode(image, icc)
        name = f"{self.token('file', *key)}.{kind.removeprefix('image/')}"
        self._put(folder / PICTURES / name, content)
        return name, hashlib.sha256(content).digest()

    def _put(self, path: Path, content: bytes) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            os.utime(temporary, (_TIME, _TIME))
