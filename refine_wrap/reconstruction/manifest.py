"""The manifest of a folder of degraded pictures: what was made of what, with which networks, and what was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..degradation.settings import Degradation, Section
from ..folder import PathLike
from ..manifests import (
    ANOTHER,
    MANIFEST,
    SharedManifest,
    locked,
    other_settings,
    read_manifest,
    refuse_unclaimed,
    write_manifest,
)


class Settings(Section):
    """What the pictures depend on: those of other settings do not belong into one folder."""

    seed: int
    degradation: Degradation
    """With the digest of each reconstructor in place of its name."""


class Painter(Section):
    """A reconstructor."""

    name: str
    """What it was asked for by, without its place on this machine."""
    kind: str
    config: dict[str, Any]
    """Its constructor's arguments."""


class DegradedPicture(Section):
    """One picture."""

    source: str
    """The high-resolution picture's path below its folder."""
    sha256: str
    """Of its file."""
    size: list[int]
    """[height, width] of what was used of it, from the upper left corner: multiples of the scale."""
    output: str
    """SHA-256 of the degraded file."""
    drawn: dict[str, Any]
    """What was drawn, by part."""

    def held_back(self) -> bool:
        """Whether a bound on the colour difference lowered a strength."""
        rounds = (self.drawn, *self.drawn.get("then", ()))
        return any(made["used"] < made["strength"] for made in (one.get("reconstruct") for one in rounds) if made)


class Manifest(Section):
    """`manifest.json`."""

    format: Literal[1] = 1
    kind: Literal["degraded"] = "degraded"
    refine_wrap: str
    """Our version, when the folder was begun."""
    made_with: dict[str, str]
    """Versions of the libraries that the bytes depend on."""
    reconstructors: dict[str, Painter]
    """By digest."""
    settings: Settings
    pictures: dict[str, DegradedPicture]
    """By the degraded file's path below the folder."""

    @classmethod
    def read(cls, out: PathLike) -> Manifest:
        """The manifest of a folder.

        Raises:
            DataError: there is none, it is damaged, or of something else.
        """
        return read_manifest(
            cls,
            Path(out) / MANIFEST,
            there="a folder that refine-wrap degrade has made",
            other=", or not of degraded pictures",
            expected="the manifest as refine-wrap degrade wrote it (format 1)",
            next_step="choose another output folder",
        )


class ManifestFile(SharedManifest[Manifest, DegradedPicture]):
    """`manifest.json` while pictures are added to it."""

    FIELD = "pictures"

    @classmethod
    def open(cls, out: Path, wanted: Manifest, targets: list[Path], overwrite: bool) -> ManifestFile:
        """Begin a folder, or go on with one of the same settings.

        Args:
            out: the folder.
            wanted: without pictures.
            targets: the files that are to be made in it.
            overwrite: what is there of other settings, or of nobody known, is made anew.

        Raises:
            DataError: the folder has other settings, or there are such files and no manifest.
            OutputError: it cannot be written.
        """
        with locked(out / MANIFEST):
            found = wanted
            if (out / MANIFEST).exists():
                there = Manifest.read(out)
                if not overwrite:
                    _refuse_other(out, there, wanted)
                if there.settings == wanted.settings:
                    # Made anew, they are of these versions; those of other processes' parts are, too.
                    found = wanted.model_copy(update={"pictures": there.pictures}) if overwrite else there
            elif not overwrite:
                refuse_unclaimed(out, targets, "degrade", ANOTHER)
            write_manifest(out / MANIFEST, found)
        return cls(out, found.model_copy(update={"pictures": {}}), dict(found.pictures))

    def read(self) -> Manifest:
        found = Manifest.read(self.out)
        _refuse_other(self.out, found, self.settings)
        return found


def _refuse_other(out: Path, found: Manifest, wanted: Manifest) -> None:
    if found.settings.seed != wanted.settings.seed:
        came = f"seed {found.settings.seed}, not {wanted.settings.seed}"
    elif found.settings.degradation.checkpoints() != wanted.settings.degradation.checkpoints():
        came = "other reconstructors: " + ", ".join(painter.name for painter in found.reconstructors.values())
    elif found.settings != wanted.settings:
        came = "another degradation"
    else:
        return
    raise other_settings(out, came)
