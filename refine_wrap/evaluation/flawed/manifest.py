"""The manifest of a pristine-referenced test set: what was made of what, and whether it is still so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...degradation.settings import Degradation, Section
from ...errors import DataError, OutputError
from ...folder import PathLike
from ...manifests import MANIFEST, SharedManifest, locked, read_manifest, refuse_unclaimed, write_manifest
from ...resources import file_digest
from .levels import Level

PRISTINE, FLAWED, INPUT = "pristine", "flawed_gt", "input"


class SetImage(Section):
    """One image of the set, in all its folders."""

    name: str
    """Below each folder, with `/`."""
    region: list[int]
    """[top, left, height, width] in the upright photo, before it was made smaller."""
    sha256: dict[str, str]
    """Of the file in each folder."""
    drawn: dict[str, dict[str, Any]]
    """What was drawn for each folder, by part."""
    psnr: dict[str, float | None]
    """dB of the flawed ground truths against the pristine photo (RGB, 8 bits); null: identical."""

    def files(self) -> Iterator[tuple[str, str]]:
        """(path below the set, sha256)."""
        return ((f"{folder}/{self.name}", digest) for folder, digest in self.sha256.items())


class SetPhoto(Section):
    """What was made of one photo."""

    source: str
    """Its path below the folder of photos."""
    sha256: str
    images: list[SetImage]


class Manifest(Section):
    """`manifest.json`."""

    format: Literal[1]
    refine_wrap: str
    """Our version, when the set was begun."""
    made_with: dict[str, str]
    """Versions of the libraries that the bytes depend on."""
    seed: int
    crop: int | None
    grid: bool
    downscale: int
    levels: dict[str, Level]
    degradation: Degradation
    """From the flawed ground truth to the input."""
    photos: dict[str, SetPhoto]
    """By the photo's path below the folder of photos, without its suffix."""

    @classmethod
    def read(cls, out: PathLike) -> Manifest:
        """The manifest of a set.

        Raises:
            DataError: there is none, or it is damaged.
        """
        return read_manifest(
            cls,
            Path(out) / MANIFEST,
            there="the folder of a set that refine-wrap make-flawed has made",
            other=" or of another version",
            expected="the manifest as it was written (format 1)",
            next_step="get it again, or make the set anew in another folder",
        )

    def mean_psnr(self) -> dict[str, float]:
        """Of each folder of flawed ground truths: the mean over its images, dB against the pristine photos."""
        found: dict[str, list[float]] = {}
        for photo in self.photos.values():
            for image in photo.images:
                for folder, value in image.psnr.items():
                    found.setdefault(folder, []).extend([] if value is None else [value])
        return {folder: sum(values) / len(values) for folder, values in sorted(found.items()) if values}


class ManifestFile(SharedManifest[Manifest, SetPhoto]):
    """`manifest.json` while photos are added to it."""

    FIELD = "photos"

    @classmethod
    def open(cls, out: Path, wanted: Manifest) -> ManifestFile:
        """Begin a set, or go on with one of the same settings.

        Raises:
            DataError: the set has other settings, or there are such folders and no manifest.
            OutputError: it cannot be written.
        """
        with locked(out / MANIFEST):
            if (out / MANIFEST).exists():
                found = Manifest.read(out)
                _refuse_other(out, found, wanted)
            else:
                refuse_unclaimed(out, (out / name for name in (PRISTINE, FLAWED, INPUT)), "make-flawed")
                found = wanted
                write_manifest(out / MANIFEST, found)
        return cls(out, found.model_copy(update={"photos": {}}), dict(found.photos))

    def read(self) -> Manifest:
        found = Manifest.read(self.out)
        _refuse_other(self.out, found, self.settings)
        return found

    def merged(self, name: str, there: SetPhoto | None, fresh: SetPhoto) -> SetPhoto:
        if there not in (None, fresh):
            raise OutputError(
                f"Another run has made {name} in {self.out} of another photo meanwhile",
                "one folder of photos for a set",
                f"refine-wrap make-flawed --verify -o {self.out} says which files are which",
            )
        return fresh


def _refuse_other(out: Path, found: Manifest, wanted: Manifest) -> None:
    for name in ("seed", "crop", "grid", "downscale", "degradation", "levels"):
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new:
            if name in ("degradation", "levels"):
                raise DataError(f"{out} was made with other {name}", f"the {name} in its {MANIFEST}", _ANOTHER)
            raise DataError(f"{out} was made with {name} {old}, not {new}", f"{name} {old}", _ANOTHER)


_ANOTHER = "choose another output folder, or the settings that the set was made with"


# ---------------------------------------------------------------- verification


@dataclass(frozen=True)
class Verification:
    """What `verify_flawed` found."""

    files: int
    """How many the manifest names."""
    problems: list[tuple[str, str]]
    """(path below the set, what is wrong with it): missing, changed, unreadable, or not in the manifest."""


def verify_flawed(out: PathLike) -> Verification:
    """Check every file of a set against its manifest.

    Raises:
        DataError: there is no manifest, or it is damaged.
    """
    base = Path(out)
    wanted = {
        path: digest
        for photo in Manifest.read(base).photos.values()
        for image in photo.images
        for path, digest in image.files()
    }
    problems = [(path, problem) for path, digest in wanted.items() if (problem := _problem(base / path, digest))]
    for kind in (PRISTINE, FLAWED, INPUT):
        for folder, _, names in os.walk(base / kind):
            found = (PurePosixPath(Path(folder, name).relative_to(base).as_posix()) for name in names)
            # Hidden: a run at work, or one that was killed.
            problems += [
                (str(path), "not in the manifest")
                for path in found
                if str(path) not in wanted and not path.name.startswith(".")
            ]
    return Verification(len(wanted), sorted(problems))


def _problem(path: Path, digest: str) -> str | None:
    try:
        return None if file_digest(path) == digest else "changed"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
