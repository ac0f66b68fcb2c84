"""The manifest of a folder of enhanced ground truths: what was made of what, with which settings, and what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..degradation.settings import Section
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
from .change import Change


class Settings(Section):
    """What the pictures depend on: those of other settings do not belong into one folder."""

    strength: float
    masks: str
    """SHA-256 of the mask generator's weights."""
    masks_config: dict[str, Any]
    """Its constructor's arguments."""
    sr: str | None
    """The same of the super-resolver; null: the variants were there."""
    factors: list[int]
    """The variants: 2, 3 and 4."""
    max_change: float | None
    min_psnr: float | None
    ext: str | None
    """The format, where it is not each picture's own."""


class EnhancedPicture(Section):
    """One picture."""

    source: str
    """The ground truth's path below its folder."""
    sha256: str
    """Of the ground truth's file."""
    variants: list[str]
    """SHA-256 of the files of the variants, where they were there."""
    output: str
    """SHA-256 of the enhanced file."""
    change: Change
    flagged: bool
    """Whether the fidelity is below `min_fidelity`: something may have been invented."""

    def judged(self, min_fidelity: float) -> EnhancedPicture:
        """The same, flagged by that bound."""
        found = self.change.fidelity
        return self.model_copy(update={"flagged": found is not None and found < min_fidelity})


class Manifest(Section):
    """`manifest.json`."""

    format: Literal[1] = 1
    kind: Literal["enhanced ground truth"] = "enhanced ground truth"
    refine_wrap: str
    """Our version, when the folder was begun."""
    made_with: dict[str, str]
    """Versions of the libraries that the last digit of a value may depend on."""
    masks: str
    """Where the mask generator is from."""
    scorers: list[str]
    """Scorers that it was trained on."""
    sr: str | None
    """Where the super-resolver is from."""
    settings: Settings
    min_fidelity: float
    """dB."""
    bands: list[float]
    """Edges of the bands of `weights`, `gain` and `change`, as shares of the highest frequency along a side."""
    pictures: dict[str, EnhancedPicture]
    """By the enhanced file's path below the folder."""

    @classmethod
    def read(cls, out: PathLike) -> Manifest:
        """The manifest of a folder.

        Raises:
            DataError: there is none, it is damaged, or of something else.
        """
        return read_manifest(
            cls,
            Path(out) / MANIFEST,
            there="a folder that refine-wrap enhance has made",
            other=", or not of enhanced ground truths",
            expected="the manifest as refine-wrap enhance wrote it (format 1)",
            next_step="choose another output folder",
        )


class ManifestFile(SharedManifest[Manifest, EnhancedPicture]):
    """`manifest.json` while pictures are added to it."""

    FIELD = "pictures"

    @classmethod
    def open(cls, out: Path, wanted: Manifest, targets: list[Path], overwrite: bool) -> ManifestFile:
        """Begin a folder, or go on with one of the same settings; `min_fidelity` may be another.

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
            found = None
            if (out / MANIFEST).exists():
                found = Manifest.read(out)
                if overwrite and found.settings != wanted.settings:
                    found = None
            elif not overwrite:
                refuse_unclaimed(out, targets, "enhance", ANOTHER)
            if found is None:
                found = wanted
            else:
                _refuse_other(out, found, wanted)
                judged = {name: each.judged(wanted.min_fidelity) for name, each in found.pictures.items()}
                found = found.model_copy(update={"min_fidelity": wanted.min_fidelity, "pictures": judged})
            write_manifest(out / MANIFEST, found)
        return cls(out, found.model_copy(update={"pictures": {}}), dict(found.pictures))

    def read(self) -> Manifest:
        found = Manifest.read(self.out)
        _refuse_other(self.out, found, self.settings)
        return found


def _refuse_other(out: Path, found: Manifest, wanted: Manifest) -> None:
    for name in Settings.model_fields:
        old, new = getattr(found.settings, name), getattr(wanted.settings, name)
        if old != new:
            other = "another mask generator"
            what = {"masks": other, "masks_config": other, "sr": "another super-resolver, or none"}.get(name)
            raise other_settings(out, what or f"{name} {old}, not {new}")
