"""Pristine-referenced test sets: flawed ground truths of known truth, to measure what goes beyond the ground truth.

The ground truths of real data sets are flawed, and against them a method that undoes the flaw scores worse than one
that copies it. Here the truth is known: from pristine photos P flawed ground truths G are made, and low-quality inputs
from G. A method sees G and the input only; it is judged by full-reference metrics against P, so that no score without a
reference is needed.

    OUT/pristine                    P, 8 bits, or 16 where the photo has them
    OUT/flawed_gt/level1 .. level3  G, 8 bits, the size of P
    OUT/input/level1 .. level3      made of G of that level by the degradation, smaller by its scale
    OUT/manifest.json               settings, and for each file its hash and what was drawn

All are RGB PNG of the same names. Chance depends on the seed, the photo's content and the crop's place alone: a photo
more or less, another order or another number of processes changes nothing, and the three levels of a photo have their
settings drawn alike, each within its own ranges. The bytes also depend on the versions of the libraries, which the
manifest names as `made_with`.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ... import __version__
from ...degradation import Degradation, Noise, degrade, load_networks
from ...degradation.reconstruct import sealed
from ...degradation.scene import Drawn
from ...degradation.synthetic import downsample
from ...errors import DataError, ImageError, OutputError, RefineWrapError
from ...folder import PathLike, atomic_path, list_images, plan_outputs
from ...folder import shard as shard_of
from ...images import Picture, read_image, upright
from ...images.png import write_png
from ...manifests import is_right, source_digest
from ...pipeline import OnDone, Tally
from ...reconstruction import Reconstructor
from ..metrics import psnr
from .levels import LEVELS
from .manifest import FLAWED, INPUT, PRISTINE, Manifest, ManifestFile, SetImage, SetPhoto

DEFAULT_DEGRADATION = Degradation(noise=Noise(kind="poisson-gaussian", sigma=[10.0, 25.0], correlation=[0.0, 0.6]))
"""From G to the input, unless another is given: a noisy photo, the task of a denoiser."""


def make_flawed(
    photos: PathLike,
    out: PathLike,
    *,
    degradation: Degradation = DEFAULT_DEGRADATION,
    seed: int = 0,
    crop: int | None = None,
    grid: bool = False,
    downscale: int = 1,
    recursive: bool = True,
    shard: tuple[int, int] = (0, 1),
    on_done: OnDone | None = None,
) -> Tally:
    """Make a set, or go on with one: what is there and right by its manifest is left alone.

    Grey photos become RGB. EXIF orientation is applied and EXIF left out, an ICC profile is kept. Sides are cut to a
    multiple of `downscale` and the degradation's scale, evenly on both sides. Several processes may work on one set.

    Args:
        photos: a folder of sharp, clean photos, or one photo.
        out: the set's folder.
        degradation: how the input is made of G.
        seed: of everything that is drawn.
        crop: side in pixels, after `downscale`, of the central part that is taken; None: the whole photo, which takes
            about 130 bytes of memory a pixel.
        grid: with `crop`, all parts of that size that fit side by side, named NAME_r0c0, NAME_r0c1, ...
        downscale: make photos so many times smaller first, antialiased: what is soft, noisy or compressed at full size
            is sharp and clean then. 2 to 4 for photos straight from a camera or phone.
        recursive: take the folders below, too.
        shard: (index, count): only this process's part of the photos, see `folder.shard`.
        on_done: called for each photo, with the outcome.

    Returns:
        The counts, and for each photo that was left out the reason: unreadable, smaller than the crop, or transparent.

    Raises:
        RefineWrapError: arguments out of range, a degradation that does nothing, or a reconstructor that cannot be
            loaded.
        DataError: no photos, two that would have one name, or `out` is another set or none of ours.
        OutputError: the manifest cannot be written.
    """
    _check(degradation, seed, crop, grid, downscale)
    root, base = Path(photos), Path(out)
    if root.is_dir() and base.exists() and root.samefile(base):
        raise DataError(f"The photos and the set are the same folder, {base}", "another folder for the set")
    listed = list_images(root, recursive, skip=base)
    planned = plan_outputs(listed, root, base / PRISTINE, ext="png")
    networks = load_networks(degradation)
    wanted = Manifest(
        format=1,
        refine_wrap=__version__,
        made_with=_versions(),
        seed=seed,
        crop=crop,
        grid=grid,
        downscale=downscale,
        levels={str(number): level for number, level in LEVELS.items()},
        degradation=sealed(degradation, networks),
        photos={},
    )
    jobs = shard_of(planned, *shard)
    manifest = ManifestFile.open(base, wanted)
    by_digest = {network.digest(): network for network in networks.values()}
    tally = Tally()
    compressed = 0
    try:
        for source, target in jobs:
            name = target.relative_to(base / PRISTINE).with_suffix("").as_posix()
            below = source.relative_to(root).as_posix() if root.is_dir() else source.name
            maker = _Maker(base, manifest, source, below, name, by_digest)
            outcome, message, made = "skipped", None, None
            try:
                made = maker.run()
            except RefineWrapError as error:
                outcome, message = "failed", str(error)
                tally.failed.append((source, message))
            if made is not None:
                outcome = "done"
                manifest.add(name, made)
                compressed += maker.compressed
            tally.done += outcome == "done"
            tally.skipped += outcome == "skipped"
            if on_done is not None:
                on_done(source, target, outcome, message)
    finally:
        manifest.flush()
    if compressed and downscale == 1:
        warnings.warn(
            f"{compressed} of {tally.done} photos are JPEG files: what compression did to them is in the pristine "
            "photos too. A downscale of 2 or more averages it away",
            stacklevel=2,
        )
    return tally


def _check(degradation: Degradation, seed: int, crop: int | None, grid: bool, downscale: int) -> None:
    if degradation.does_nothing():
        raise RefineWrapError(
            "The degradation does nothing: the inputs would be the flawed ground truths",
            "a scale above 1, or a part such as blur, noise, jpeg or light",
        )
    if seed < 0:
        raise RefineWrapError(f"The seed is {seed}", "0 or more")
    if crop is not None and (crop < degradation.scale or crop % degradation.scale):
        raise RefineWrapError(f"The crop is {crop}", f"a multiple of the degradation's scale, {degradation.scale}")
    if grid and crop is None:
        raise RefineWrapError("A grid is asked for without a crop", "the side of its parts as crop")
    if not 1 <= downscale <= 16:
        raise RefineWrapError(f"The downscale is {downscale}", "a whole number from 1 to 16")


def _versions() -> dict[str, str]:
    import cv2

    return {
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "torch": str(torch.__version__),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }


@dataclass
class _Maker:
    """One photo on its way into the set."""

    out: Path
    manifest: ManifestFile
    source: Path
    below: str
    """The photo's path below the folder of photos."""
    name: str
    """That without its suffix: the photo's name in the set."""
    networks: dict[str, Reconstructor]
    """By digest, as the manifest names them."""
    compressed: bool = False

    def run(self) -> SetPhoto | None:
        """What was made; None: nothing had to be. Raises RefineWrapError."""
        entry = self.manifest.entries.get(self.name)
        digest = source_digest(self.source, self.below)
        if entry is not None:
            if (entry.source, entry.sha256) != (self.below, digest):
                raise DataError(
                    f"{self.source} is not the photo that {self.name} in {self.out} was made of, {entry.source}",
                    "the same photos as before",
                    "choose another output folder, or rename the photo",
                )
            if all(is_right(self.out / path, right) for image in entry.images for path, right in image.files()):
                return None
        picture = self._read()
        images = [self._make(picture, digest, place, entry) for place in self._places(picture)]
        return SetPhoto(source=self.below, sha256=digest, images=images)

    def _read(self) -> Picture:
        picture = read_image(self.source)
        if picture.alpha is not None and int(picture.alpha.min()) < np.iinfo(picture.alpha.dtype).max:
            raise ImageError(
                f"{self.source} is transparent in places: there is no truth to measure against",
                "an opaque photo",
                "put it on a background, or leave it out",
            )
        self.compressed = picture.format == "JPEG"
        return upright(picture)

    def _places(self, picture: Picture) -> Iterator[tuple[str, list[int]]]:
        """Of each part of the photo: its name in the set, and [top, left, height, width]."""
        settings = self.manifest.settings
        unit = settings.downscale * (settings.crop or settings.degradation.scale)
        rows, columns = picture.height // unit, picture.width // unit
        if not rows or not columns:
            raise ImageError(
                f"{self.source} has {picture.width}x{picture.height} pixels",
                f"at least {unit}x{unit}",
                "choose a smaller crop or downscale, or leave it out",
            )
        height, width = (rows * unit, columns * unit) if settings.crop is None else (unit, unit)
        if not settings.grid:
            rows = columns = 1
        top, left = (picture.height - rows * height) // 2, (picture.width - columns * width) // 2
        for row in range(rows):
            for column in range(columns):
                which = f"_r{row}c{column}" if settings.grid else ""
                yield f"{self.name}{which}.png", [top + row * height, left + column * width, height, width]

    def _make(self, picture: Picture, digest: str, place: tuple[str, list[int]], entry: SetPhoto | None) -> SetImage:
        """Write the seven files of one part of the photo."""
        name, region = place
        settings = self.manifest.settings
        earlier = {path: right for image in entry.images for path, right in image.files()} if entry else {}
        image = SetImage(name=name, region=region, sha256={}, drawn={}, psnr={})
        pristine = _pristine(picture, region, settings.downscale)
        for folder, made, drawn in _degraded(pristine, f"{settings.seed} {digest} {region}", settings, self.networks):
            path = f"{folder}/{name}"
            image.sha256[folder] = _write(self.out / path, made, earlier.get(path), settings)
            if folder != PRISTINE:
                image.drawn[folder] = drawn
            if folder.startswith(FLAWED):
                decibels = float(psnr(made.tensor(), pristine.tensor()))
                image.psnr[folder] = round(decibels, 3) if math.isfinite(decibels) else None
        return image


def _degraded(
    pristine: Picture, chance: str, settings: Manifest, networks: dict[str, Reconstructor]
) -> Iterator[tuple[str, Picture, Drawn]]:
    """For each folder of the set: its picture, and what was drawn for it."""
    yield PRISTINE, pristine, {}
    for number, level in settings.levels.items():
        picture = pristine
        for kind, steps in ((FLAWED, level.flaws), (INPUT, settings.degradation)):
            # The same draws for all levels: how strong the flaws are is all that tells the levels apart.
            seed = int(hashlib.sha256(f"{chance} {kind}".encode()).hexdigest(), 16)
            drawn: Drawn = {}
            pixels = degrade(_as_float(picture), steps, np.random.default_rng(seed), drawn, networks)
            picture = Picture(pixels, icc=pristine.icc)
            yield f"{kind}/level{number}", picture, drawn


def _pristine(picture: Picture, region: list[int], downscale: int) -> Picture:
    """A region as RGB of the photo's depth, made smaller."""
    top, left, height, width = region
    planes = picture.tensor(top, left, height, width)
    if downscale > 1:
        smaller = downsample(planes[0].permute(1, 2, 0).numpy(), downscale)
        planes = torch.from_numpy(np.ascontiguousarray(smaller.transpose(2, 0, 1)))[None]
    pristine = Picture(np.zeros((*planes.shape[-2:], 3), picture.pixels.dtype), icc=picture.icc)
    pristine.put(0, 0, planes)
    return pristine


def _as_float(picture: Picture) -> npt.NDArray[np.float32]:
    """(H, W, 3) in [0, 1]."""
    return np.ascontiguousarray(picture.tensor()[0].permute(1, 2, 0).numpy())


def _write(path: Path, picture: Picture, earlier: str | None, settings: Manifest) -> str:
    """Write a picture unless it is there already; its hash. `earlier`: what the hash must be."""
    buffer = io.BytesIO()
    write_png(buffer, picture.pixels, None, picture.icc, None)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    if earlier is not None and digest != earlier:
        made_with = ", ".join(f"{name} {version}" for name, version in settings.made_with.items())
        raise OutputError(
            f"{path} is missing or changed, and made again it has other bytes than before",
            f"the versions that the set was made with: {made_with}",
            "install these, or make the set anew in another folder",
        )
    if not is_right(path, digest):
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
    return digest
