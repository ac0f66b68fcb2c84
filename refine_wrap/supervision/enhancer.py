"""One picture on its way to an enhanced ground truth, in bounded memory, and where its variants come from."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backbone import Backbone
from ..errors import DataError, ImageError
from ..folder import PathLike, list_images
from ..images import Picture, bleed_alpha, read_image
from ..resources import file_digest
from ..tiling import split_box
from ..wrapper import RefineWrapper
from .change import Change, band_weights, measured, within
from .masks import BLOCK, FrequencyMaskGenerator
from .mixup import mix
from .variants import variants

WHOLE = 2**20
"""Pixels that the mask generator's network sees at once, for about 1 GB at width 32. Of a larger picture, it sees tiles
of about this many, and the rings' coefficients are the mean of theirs."""


class Variants(Protocol):
    """Where the variants of a ground truth come from."""

    def of(self, gt: Tensor, name: str) -> Iterator[Tensor]:
        """Each as (1, 3, H, W) in [0, 1]. `name`: the picture's path below its folder. Raises RefineWrapError."""

    def digests(self, name: str) -> list[str]:
        """SHA-256 of the files that they come from. Raises RefineWrapError."""


class NetworkVariants:
    """Variants made by a super-resolver, in tiles where a picture is large.

    Args:
        network: of scale 2 or more, or of scale 1 for one that restores an enlarged picture; see `Variant`.
        factors: of the variants.
        tile: "auto", the side of a tile in pixels, or None for the whole picture at once.
    """

    def __init__(self, network: Backbone, factors: tuple[int, ...], tile: int | str | None = "auto") -> None:
        self.tile = tile
        self.makers = [RefineWrapper(each, refiner=None) for each in variants(network, factors)]
        # With an exact network the resizing alone is left, which is far within 1/255; else one notice is enough.
        for number, maker in enumerate(self.makers):
            maker.tiles_noticed = number > 0 or network.spec.tiling == "exact"

    def of(self, gt: Tensor, name: str) -> Iterator[Tensor]:
        for maker in self.makers:
            yield maker.restore(gt, tile=self.tile)

    def digests(self, name: str) -> list[str]:
        return []


class FolderVariants:
    """Variants that are there as files: FOLDER/x2/NAME, FOLDER/x3/NAME, ..., of any suffix.

    They lie as the ground truth is stored: where it has an EXIF orientation, they are not turned by it.

    Args:
        folder: as above.
        factors: of the variants: there must be these folders and no other of such a name.
        names: of all ground truths, as paths below their folder.

    Raises:
        DataError: other folders.
    """

    def __init__(self, folder: PathLike, factors: tuple[int, ...], names: list[str]) -> None:
        base = Path(folder)
        self.folders = [base / f"x{factor}" for factor in factors]
        there = sorted(path.name for path in base.glob("x*") if path.is_dir() and re.fullmatch(r"x\d+", path.name))
        if there != [path.name for path in self.folders]:
            raise DataError(
                f"{base} holds the variants {', '.join(there) or 'none'}",
                f"the folders {', '.join(path.name for path in self.folders)}, as the mask generator was made for "
                f"{len(factors) + 1} images: the ground truth and these",
            )
        self.files = [self._listed(path) for path in self.folders]
        self.stems = Counter(PurePosixPath(name).with_suffix("") for name in names)

    def of(self, gt: Tensor, name: str) -> Iterator[Tensor]:
        height, width = gt.shape[-2:]
        for path in self._paths(name):
            picture = read_image(path)
            if (picture.height, picture.width) != (height, width):
                raise ImageError(
                    f"The variant {path} has {picture.width}x{picture.height} pixels",
                    f"{width}x{height}, as the ground truth {name}",
                    "resize the variants back to the size of their ground truths",
                )
            yield picture.tensor(device=gt.device)

    def digests(self, name: str) -> list[str]:
        try:
            return [file_digest(path) for path in self._paths(name)]
        except OSError as error:
            raise ImageError(
                f"A variant of {name} cannot be read: {error.strerror or error}", None, "check it"
            ) from None

    @staticmethod
    def _listed(folder: Path) -> dict[PurePosixPath, list[Path]]:
        found: dict[PurePosixPath, list[Path]] = {}
        for path in list_images(folder):
            found.setdefault(PurePosixPath(path.relative_to(folder).as_posix()).with_suffix(""), []).append(path)
        return found

    def _paths(self, name: str) -> list[Path]:
        own = PurePosixPath(name)
        stem = own.with_suffix("")
        paths = []
        for folder, files in zip(self.folders, self.files, strict=True):
            there = files.get(stem, [])
            exact = [path for path in there if path.name == own.name]
            # Where two ground truths differ in the suffix alone, only the suffix tells whose a variant is.
            fitting = exact or (there if self.stems[stem] < 2 else [])
            if len(fitting) != 1:
                raise DataError(
                    f"{len(fitting) or 'No'} files in {folder} are the variant of {name}",
                    f"one, {folder / name} or of another suffix",
                )
            paths += fitting
        return paths


@dataclass
class Enhancer:
    """Makes enhanced ground truths of pictures.

    Peak memory beside the super-resolver's tiles: 120 bytes a pixel (2.9 GB measured at 24 megapixels), at least the
    1 GB of the mask generator.
    """

    generator: FrequencyMaskGenerator
    variants: Variants
    strength: float = 0.3
    max_change: float | None = None
    min_psnr: float | None = None

    def __call__(self, picture: Picture, name: str) -> tuple[Picture, Change]:
        """The enhanced picture, of the same depth and kind, and what changed.

        Grey stays grey, alpha is carried (the colour under it is extended from its edge first), depth, ICC, EXIF and
        the orientation are kept.

        Raises:
            RefineWrapError: a variant is missing or wrong, or the result is not finite.
        """
        device = next(self.generator.parameters()).device
        truth = bleed_alpha(picture)
        with torch.inference_mode():
            gt = truth.tensor(device=device)
            rings = coefficients(self.generator, gt, self.strength)
            # One variant is in memory at a time.
            images = chain([gt], (each.to(device) for each in self.variants.of(gt, name)))
            mixed = mix(images, self.generator.masks(rings, truth.height, truth.width)).cpu()
            result, limited = within(mixed, truth, max_change=self.max_change, min_psnr=self.min_psnr)
            del mixed, gt
            change = measured(result.tensor(), truth.tensor(), band_weights(self.generator, rings), limited)
        result.alpha = None if picture.alpha is None else picture.alpha.copy()
        return result, change


def coefficients(generator: FrequencyMaskGenerator, image: Tensor, strength: float) -> Tensor:
    """The generator's coefficients for an image of any size, (1, images, rings): of a large one the mean over tiles.

    The tiles are about square, begin where JPEG's blocks do, cover the image once, and each weighs as much as it has
    pixels.
    """
    height, width = image.shape[-2:]
    if height * width <= WHOLE:
        return generator.coefficients(image, strength)
    total: Any = 0
    for top, left, bottom, right in split_box((0, 0, height, width), math.isqrt(WHOLE), BLOCK):
        share = (bottom - top) * (right - left) / (height * width)
        total = total + share * generator.coefficients(image[..., top:bottom, left:right], strength)
    mean: Tensor = total
    return mean
