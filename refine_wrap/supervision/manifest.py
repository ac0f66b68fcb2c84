"""The manifest of a folder of enhanced ground truths: what was made of what, with which settings, and what changed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..degradation.settings import Section
from ..errors import DataError
from ..folder import PathLike
from ..manifests import locked, read_manifest, write_text
from .change import Change

MANIFEST = "manifest.json"
FLUSH_SECONDS = 5.0
"""What a killed run made since the manifest was written last is made again by the next."""
_SPARING = 20
"""A large manifest is written so seldom that no more than this part of the time goes into it."""


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


@dataclass
class ManifestFile:
    """A manifest that several processes write: each adds its pictures to what is there, under a lock."""

    out: Path
    settings: Manifest
    """Without pictures."""
    pictures: dict[str, EnhancedPicture]
    """As far as this process knows."""
    fresh: dict[str, EnhancedPicture] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)
    pause: float = FLUSH_SECONDS

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
            elif not overwrite and (there := next((path for path in targets if path.exists()), None)):
                raise DataError(
                    f"{there} is there, and no {out / MANIFEST} that says what it is",
                    "a new folder, or one that refine-wrap enhance has made",
                    "choose another output folder, or pass --overwrite",
                )
            if found is None:
                found = wanted
            else:
                _refuse_other(out, found, wanted)
                judged = {name: each.judged(wanted.min_fidelity) for name, each in found.pictures.items()}
                found = found.model_copy(update={"min_fidelity": wanted.min_fidelity, "pictures": judged})
            write_text(out / MANIFEST, _as_text(found))
        return cls(out, found.model_copy(update={"pictures": {}}), dict(found.pictures))

    def add(self, name: str, picture: EnhancedPicture) -> None:
        self.pictures[name] = self.fresh[name] = picture
        if time.monotonic() - self.written > self.pause:
            self.flush()

    def flush(self) -> None:
        """Write what was added.

        Raises:
            DataError: the folder has other settings by now.
            OutputError: it cannot be written.
        """
        if not self.fresh:
            return
        begun = time.monotonic()
        with locked(self.out / MANIFEST):
            found = Manifest.read(self.out)
            _refuse_other(self.out, found, self.settings)
            pictures = {**found.pictures, **self.fresh}
            found = found.model_copy(update={"pictures": dict(sorted(pictures.items()))})
            write_text(self.out / MANIFEST, _as_text(found))
        self.fresh = {}
        self.written = time.monotonic()
        self.pause = max(FLUSH_SECONDS, _SPARING * (self.written - begun))


def _as_text(manifest: Manifest) -> str:
    """JSON, with each list of numbers on one line."""
    text = manifest.model_dump_json(indent=1)
    return re.sub(r"\[\s+([-\d.,\seEnul]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _refuse_other(out: Path, found: Manifest, wanted: Manifest) -> None:
    for name in Settings.model_fields:
        old, new = getattr(found.settings, name), getattr(wanted.settings, name)
        if old != new:
            other = "another mask generator"
            what = {"masks": other, "masks_config": other, "sr": "another super-resolver, or none"}.get(name)
            raise DataError(
                f"{out} was made with {what or f'{name} {old}, not {new}'}",
                "the settings in its " + MANIFEST,
                "choose another output folder, or pass --overwrite to make all of it anew",
            )
