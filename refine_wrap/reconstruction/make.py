"""Degraded low-resolution pictures of a folder of high-resolution ones: what super-resolution learns from."""

from __future__ import annotations

import errno
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..degradation import Degradation, degrade, load_networks
from ..degradation.reconstruct import sealed
from ..degradation.rounding import as_float
from ..degradation.scene import Drawn
from ..errors import DataError, ImageError, OutputError, RefineWrapError
from ..folder import IMAGE_SUFFIXES, PathLike, atomic_path, list_images, plan_outputs
from ..folder import shard as shard_of
from ..images import Picture, read_image
from ..images.png import write_png
from ..manifests import ANOTHER, is_right, source_digest
from ..pipeline import OnDone, Tally
from ..resources import versions
from ..tiling import is_out_of_memory
from .core import Reconstructor
from .manifest import DegradedPicture, Manifest, ManifestFile, Painter, Settings

SMALL = 256 * 256
"""Pixels of a low-resolution picture below which a second thread waits more than it works."""
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class DegradeTally(Tally):
    """What became of the pictures of one run."""

    held_back: int = 0
    """Those, done or skipped, whose strength the bound on the colour difference lowered."""


def degrade_folder(
    hr: PathLike,
    out: PathLike,
    degradation: Degradation,
    *,
    seed: int = 0,
    recursive: bool = True,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_done: OnDone | None = None,
) -> DegradeTally:
    """Write the low-resolution version of each picture, or go on with that: what is there and right is left alone.

    The outputs have the names and subfolders of the inputs and are PNG of 8 bits, RGB, with their ICC and EXIF. Of
    sides that are no multiples of the scale, the rest at the right and below is cut off, as in training.

    Chance depends on the seed and the picture's name below the folder alone: a picture more or less, another order or
    number of processes, or an interruption changes nothing. `manifest.json` tells the settings, and for each picture
    its hashes and what was drawn; the same call makes the same bytes with the versions that it names as `made_with`.
    Several processes may work on one folder.

    Args:
        hr: a folder of good pictures, or one.
        out: the output folder.
        degradation: what is done to them, its scale included.
        seed: of everything that is drawn.
        recursive: take the folders below, too.
        shard: (index, count): only this process's part of the pictures, see `folder.shard`.
        overwrite: make everything anew, with other settings too.
        on_done: called for each picture, with the outcome.

    Returns:
        The counts, and for each picture that failed the reason: unreadable, smaller than the scale, transparent, or
        the folder has one of that name that was made of another picture.

    Raises:
        RefineWrapError: the seed is negative, or the degradation does nothing.
        DataError: no pictures, two that would have one name, or `out` has other settings.
        CheckpointError: a reconstructor cannot be loaded.
        OutputError: the manifest cannot be written, or the disk is full.
    """
    if seed < 0:
        raise RefineWrapError(f"The seed is {seed}", "0 or more")
    if degradation.does_nothing():
        raise RefineWrapError("The degradation does nothing", "a scale above 1, or a part such as reconstruct or noise")
    root, base = Path(hr), Path(out)
    if base.suffix.lower() in IMAGE_SUFFIXES and not base.is_dir():
        raise RefineWrapError(f"The output {base} is a file by its name", "a folder")
    planned = plan_outputs(list_images(root, recursive, skip=base), root, base, ext="png")
    jobs = shard_of(planned, *shard)
    named = load_networks(degradation)
    networks = {network.digest(): network for network in named.values()}
    manifest = ManifestFile.open(
        base,
        Manifest(
            refine_wrap=__version__,
            made_with=versions("torch", "numpy", "opencv-python", "scikit-image") | {"zlib": zlib.ZLIB_RUNTIME_VERSION},
            reconstructors={network.digest(): _painter(name, network) for name, network in named.items()},
            settings=Settings(seed=seed, degradation=sealed(degradation, named)),
            pictures={},
        ),
        [target for _, target in jobs],
        overwrite,
    )
    maker = _Maker(root, networks, manifest, overwrite, torch.get_num_threads())
    tally = DegradeTally()
    try:
        for source, target in jobs:
            outcome, message = "failed", None
            try:
                made = maker(source, target)
            except RefineWrapError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _HOPELESS:
                    raise
                message = str(error)
                tally.failed.append((source, message))
            else:
                outcome = "skipped" if made is None else "done"
                tally.done += made is not None
                tally.skipped += made is None
                name = target.relative_to(base).as_posix()
                if made is not None:
                    manifest.add(name, made)
                tally.held_back += manifest.entries[name].held_back()
            if on_done is not None:
                on_done(source, target, outcome, message)
    finally:
        torch.set_num_threads(maker.threads)
        manifest.flush()
    return tally


def _painter(name: str, network: Reconstructor) -> Painter:
    path = Path(name)
    # Two folders, since trainings call theirs step_100/reconstructor; else a name on the Hub or of what we ship.
    called = "/".join(path.resolve().parts[-2:]) if path.exists() else name
    return Painter(name=called, kind=network.kind, config=network.config())


@dataclass
class _Maker:
    """Makes one picture of the folder."""

    root: Path
    networks: dict[str, Reconstructor]
    """By digest, as the manifest names them."""
    manifest: ManifestFile
    overwrite: bool
    threads: int
    """How many a large picture takes; the pixels do not depend on it."""

    def __call__(self, source: Path, target: Path) -> DegradedPicture | None:
        """What was made; None: nothing had to be. Raises RefineWrapError."""
        below = source.relative_to(self.root).as_posix() if self.root.is_dir() else source.name
        name = target.relative_to(self.manifest.out).as_posix()
        digest = source_digest(source, below)
        entry = None if self.overwrite else self.manifest.entries.get(name)
        if entry is not None:
            if (entry.source, entry.sha256) != (below, digest):
                raise DataError(
                    f"{target} was made of another picture than {source} is now",
                    "the same as before",
                    f"{ANOTHER} to make all of it anew",
                )
            if is_right(target, entry.output):
                return None
        try:
            low, size, drawn = self._degraded(source, name)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                f"{source} does not fit into memory",
                "40 to 120 bytes a pixel, by scale",
                "use a machine with more memory",
            ) from error
        buffer = io.BytesIO()
        write_png(buffer, low.pixels, None, low.icc, low.exif)
        output = hashlib.sha256(buffer.getvalue()).hexdigest()
        if entry is not None and output != entry.output:
            made_with = ", ".join(
                f"{package} {version}" for package, version in self.manifest.settings.made_with.items()
            )
            raise OutputError(
                f"{target} is missing or changed, and made again it has other bytes than before",
                f"the versions that it was made with: {made_with}",
                "install these, or pass --overwrite to make all of it anew",
            )
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
        return DegradedPicture(source=below, sha256=digest, size=size, output=output, drawn=drawn)

    def _degraded(self, source: Path, name: str) -> tuple[Picture, list[int], Drawn]:
        """The picture, made smaller; the size of what was used of it; and what was drawn. Raises ImageError."""
        picture = read_image(source)
        if picture.alpha is not None and int(picture.alpha.min()) < np.iinfo(picture.alpha.dtype).max:
            raise ImageError(
                f"{source} is transparent in places", "an opaque picture", "put it on a background, or leave it out"
            )
        settings = self.manifest.settings.settings
        scale = settings.degradation.scale
        height, width = (side // scale * scale for side in (picture.height, picture.width))
        if not height or not width:
            raise ImageError(f"{source} has {picture.width}x{picture.height} pixels", f"at least {scale}x{scale}")
        # The name, not the content: of two copies of one picture, each has its own draws.
        chance = hashlib.sha256(f"{settings.seed} {Path(name).with_suffix('').as_posix()}".encode()).hexdigest()
        drawn: Drawn = {}
        threads = 1 if height * width < SMALL * scale**2 else self.threads
        if threads != torch.get_num_threads():  # to change it takes longer than a small picture
            torch.set_num_threads(threads)
        pixels = degrade(
            as_float(picture.pixels[:height, :width]),
            settings.degradation,
            np.random.default_rng(int(chance, 16)),
            drawn,
            self.networks,
        )
        return Picture(pixels, None, picture.icc, picture.exif), [height, width], drawn
