"""The super-resolved variants of training samples: made of each crop, or cut from ready pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backbone import Backbone
from ..degradation.rounding import as_float
from ..errors import DataError
from ..folder import list_images
from ..supervision.variants import variants
from .data import SHOWN, ImageData, ImageStore, Place, Sample, as_tensor, mirrored
from .frozen import OutputStore
from .sources import Item

if TYPE_CHECKING:
    from ..recipe import TrainFolders

FORMAT = 1
"""Version of the variants that are kept; part of every key."""


class MadeVariants:
    """Adds `variants` (N, 3, c, c) in [0, 1] to a sample: what a super-resolver makes of its crop.

    Args:
        network: the super-resolver.
        factors: one variant for each.
        of: which of the sample's pictures they are made of, `gt` or `lq`.
        kept: where they are kept by the crop's own pixels, for samples that come again; None: they do not.
    """

    def __init__(self, network: Backbone, factors: Sequence[int], of: str = "gt", kept: OutputStore | None = None):
        self.networks = [each.eval() for each in variants(network, tuple(factors))]
        self.of, self.kept = of, kept
        self.about = f"{FORMAT} {network.weights_hash()} {list(factors)}"

    def __call__(self, sample: Sample, files: Sequence[Item]) -> Sample:
        image: Tensor = sample[self.of]
        if self.kept is None:
            return {"variants": self._made(image)}
        name = hashlib.sha256(self.about.encode() + image.numpy().tobytes()).hexdigest()
        if not self.kept.has(name):
            # Half a level of 16 bits is lost: far less than a network's own rounding from machine to machine.
            self.kept.put(name, {"variants": (self._made(image) * 65535).round().to(torch.uint16)})
        return {"variants": self.kept.get(name)["variants"].float() / 65535}

    @torch.no_grad()
    def _made(self, image: Tensor) -> Tensor:
        return torch.cat([network(image[None]) for network in self.networks])


class ReadyVariants:
    """Adds `variants` (N, 3, c, c) in [0, 1] to a sample, cut from pictures that lie ready, where its crop lies.

    Args:
        folder: with a folder x2 for the factor 2, and so on.
        factors: one variant for each.
        part: the folders of ground truth, whose names below them the variants have.
        data: the samples.
        cache_bytes: of decoded variants that are kept in memory.

    Raises:
        DataError: an image without a variant or with one of another size, or a source that is no folder.
    """

    def __init__(
        self, folder: Path, factors: Sequence[int], part: TrainFolders, data: ImageData, cache_bytes: int
    ) -> None:
        listings = {f"x{factor}": _by_name(folder / f"x{factor}") for factor in factors}
        names = dict(named for source in part.gt for named in _names(source))
        missing = [
            f"{factor}/{names[row[0]]}"
            for row in data.store.rows
            for factor, listing in listings.items()
            if names[row[0]] not in listing
        ]
        if missing:
            raise DataError(
                f"{folder} lacks {len(missing)} variants: {', '.join(missing[:SHOWN])}",
                "a picture of the name of each ground truth in each of " + ", ".join(listings),
            )
        self.files = {row[0]: tuple(each[names[row[0]]] for each in listings.values()) for row in data.store.rows}
        self.store = ImageStore(list(self.files.values()), cache_bytes)
        sizes = {**data.store.sizes, **self.store.sizes}
        for gt, paths in self.files.items():
            wrong = next((one for one in paths if one in sizes and sizes[one] != sizes[gt]), None)
            if wrong is not None:
                (height, width), (h, w) = sizes[wrong], sizes[gt]
                raise DataError(f"{wrong} has {width}x{height} pixels, its ground truth {w}x{h}", "both of one size")

    def __call__(self, sample: Sample, files: Sequence[Item]) -> Sample:
        gt: Tensor = sample["gt"]
        top, left, flip, turns = sample["place"].tolist()
        place = Place(top, left, bool(flip), turns)
        height, width = gt.shape[-2:] if turns % 2 == 0 else (gt.shape[-1], gt.shape[-2])
        cut = []
        for path in self.files[files[0]]:
            image = mirrored(self.store.get(path), top + height, left + width)
            image = image[top : top + height, left : left + width]
            cut.append(as_tensor(place.orient(as_float(image))))
        return {"variants": torch.stack(cut)}


def _names(source: str) -> list[tuple[Item, str]]:
    root = Path(source)
    if not root.is_dir() or root.suffix == ".lmdb":
        raise DataError(f"{source} is no folder", "folders of ground truth, for ready variants")
    return [(path, path.relative_to(root).with_suffix("").as_posix()) for path in list_images(root)]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{found[name]} and {path} have one name", "one variant of each name")
        found[name] = path
    return found
