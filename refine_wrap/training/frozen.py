"""What a frozen backbone makes of the training samples, computed once.

A recipe with `data.variants: K` has K seeded crops, orientations and degradations of each sample. What the frozen part
makes of each is kept, with its ground truth, under a key of all that it follows from: the backbone's fingerprint, the
bytes of the image files, how samples are cut and degraded, the variant, the precision. Whatever of these changes, the
key is another one, and it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..degradation.reconstruct import sealed
from ..errors import DataError, OutputError
from ..folder import atomic_path
from .data import DegradedData, ImageData, Sample, StepBatches, loader, step_keys
from .sources import digest

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..recipe import Recipe

FORMAT = 2
"""Version of what is kept; part of every key."""
Tensors = dict[str, Tensor]
Key = tuple[int, int]


class OutputStore:
    """Small sets of tensors by name, in memory or as safetensors files.

    Args:
        folder: where the files are; None: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.kept: dict[str, Tensors] = {}

    def path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name[:2] / f"{name}.safetensors"  # at most 256 folders, of a few thousand files each

    def has(self, name: str) -> bool:
        """Whether the entry is there and whole."""
        if self.folder is None:
            return name in self.kept
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(name), "pt"):  # compares the header with the file's length
                return True
        except (OSError, SafetensorError):
            return False

    def put(self, name: str, tensors: Tensors) -> None:
        """Raises OutputError where the file cannot be written; nothing half-written stays."""
        if self.folder is None:
            self.kept[name] = tensors
            return
        from safetensors.torch import save

        with atomic_path(self.path(name)) as temporary:
            # Of networks that answer in channels-last, too.
            temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def get(self, name: str) -> Tensors:
        """Raises DataError where the entry is gone or damaged."""
        if self.folder is None:
            return self.kept[name]
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(name)
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}, which this run has made, cannot be read: {error}", None, "run again: it is computed anew"
            ) from None

    def free(self) -> int:
        """Bytes that may be filled."""
        if self.folder is None:
            import psutil

            return int(psutil.virtual_memory().available * 0.8)
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free


class FrozenData(Dataset[Sample]):
    """The samples of `data` with what the frozen part makes of them in place of `lq`."""

    def __init__(self, data: ImageData, store: OutputStore, common: str) -> None:
        self.data, self.store, self.common = data, store, common
        self.digests: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.data)

    def name(self, variant: int, index: int) -> str:
        """The entry of a sample: SHA-256 of all that it follows from."""
        row = index % len(self.data.store.rows)
        if row not in self.digests:
            self.digests[row] = " ".join(map(digest, self.data.store.rows[row]))
        text = f"{self.common} {self.digests[row]} {variant} {index}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        tensors = dict(self.store.get(self.name(self.data.variant(epoch), index)))
        gt = _from_integers(tensors.pop("gt"))
        files = self.data.store.rows[index % len(self.data.store.rows)]
        sample = {**tensors, "gt": gt}
        if self.data.also is not None:
            sample |= self.data.also(sample, files)
        return {**sample, "strength": self.data.draw_strength(epoch, index), "name": str(files[0])}


def frozen_data(recipe: Recipe, backbone: Backbone, data: ImageData) -> FrozenData:
    """The kept outputs of a recipe; what is missing is not computed yet (see `fill`)."""
    choice = recipe.backbone_cache
    folder = None
    if choice.keep == "disk":
        folder = Path(choice.folder) if choice.folder is not None else recipe.folder / "backbone_cache"
    return FrozenData(data, OutputStore(folder), _common(recipe, backbone, data))


def fill(
    frozen: FrozenData,
    keys: Sequence[Key],
    compute: Callable[[Tensor], Tensors],
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    notify: Callable[[int, int], None] | None = None,
) -> int:
    """Compute what is missing of some samples.

    Args:
        keys: (variant, index) of the samples.
        compute: (B, 3, h, w) on `device` to named tensors of B entries each.
        dtype: floating outputs are kept in this type; None: as computed.
        notify: called with (samples done, samples in all) after each batch.

    Returns:
        how many were computed.

    Raises:
        OutputError: they cannot be written, or there is no room for them.
        DataError: an output is not finite.
    """
    missing = [key for key in keys if not frozen.store.has(frozen.name(*key))]
    lots = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    done = 0
    for lot, batch in zip(lots, loader(frozen.data, lots, workers), strict=True):
        made = compute(batch["lq"].to(device))
        for number, key in enumerate(lot):
            # Copies of their own: slices would keep the whole batch in memory.
            one = {name: value[number].to("cpu", dtype or value.dtype).clone() for name, value in made.items()}
            for value in one.values():
                if not bool(torch.isfinite(value).all()):
                    raise DataError(
                        f"What the backbone makes of {batch['name'][number]} is not finite", "finite values"
                    )
            one["gt"] = _as_integers(batch["gt"][number]).clone()
            one["place"] = batch["place"][number].clone()
            if done == 0:
                _check_room(frozen.store, len(missing), sum(value.nbytes for value in one.values()))
            frozen.store.put(frozen.name(*key), one)
            done += 1
        if notify is not None:
            notify(done, len(missing))
    return done


def needed(batches: StepBatches, variants: int) -> list[Key]:
    """The (variant, index) of all samples of a run's steps, of all its processes."""
    positions = (batches.stop - batches.start) * batches.batch_size
    if positions >= variants * batches.count:  # nearly all or all: an epoch takes every index once
        return [(variant, index) for variant in range(variants) for index in range(batches.count)]
    keys = {
        (epoch % variants, index)
        for step in range(batches.start, batches.stop)
        for epoch, index in step_keys(batches.count, batches.batch_size, batches.seed, step)
    }
    return sorted(keys)


def _common(recipe: Recipe, backbone: Backbone, data: ImageData) -> str:
    """What all samples of a run depend on."""
    from .. import __version__

    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "structure": backbone.structure_hash(),
        "weights": backbone.weights_hash(),
        "spec": backbone.spec.as_dict(),
        "kind": type(data).__name__,
        "scale": data.scale,
        "crop": data.crop,
        "flips": data.flips,
        "rotations": data.rotations,
        "seed": data.seed,
        "degradation": sealed(data.degradation, data.networks).model_dump(mode="json", exclude_defaults=True)
        if isinstance(data, DegradedData)
        else None,
        "precision": recipe.train.precision,
        "dtype": recipe.backbone_cache.dtype,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_room(store: OutputStore, count: int, each: int) -> None:
    free = store.free()
    if count * each > free:
        place = "the memory" if store.folder is None else str(store.folder)
        raise OutputError(
            f"{count} outputs of the backbone need {count * each / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB",
            None,
            "fewer data.variants, a smaller data.crop, backbone_cache.dtype=float16, or another backbone_cache.folder",
        )


def _as_integers(image: Tensor) -> Tensor:
    """[0, 1] as the 8 or 16 bits that it came from, where that loses nothing."""
    for dtype, white in ((torch.uint8, 255), (torch.uint16, 65535)):
        values = (image * white).round()
        if torch.equal(values / white, image):
            return values.to(dtype)
    return image


def _from_integers(image: Tensor) -> Tensor:
    if image.is_floating_point():
        return image
    return image.float() / (255 if image.dtype == torch.uint8 else 65535)
