"""Training and validation images as torch Datasets.

Every random draw (crop, flip, rotation, degradation, strength) comes from a generator seeded by (seed, epoch, sample
index), so that workers, processes and resumption change nothing. A sample is asked for as `data[epoch, index]`.

Decoding a photo of 10 MP takes some 200 ms, for a crop that takes one. So decoded images are kept in memory, as
integers, up to `cache` GB, filled before training: worker processes that are forked share that memory. Where processes
are spawned (macOS, Windows) the cache is not sent along, and each worker fills its own share of the limit as it goes.
What does not fit is decoded for every sample.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..degradation import Degradation, degrade, load_networks
from ..degradation.rounding import as_float
from ..errors import DataError, ImageError, RefineWrapError
from ..images import read_image
from .sources import Item, images, open_item, pairs

if TYPE_CHECKING:
    from ..recipe import DataChoice, Recipe, TrainFolders, ValidationFolders
    from ..reconstruction import Reconstructor

Array = npt.NDArray[Any]
Sample = dict[str, Any]
Samples = TypeVar("Samples", bound="ImageData")
"""`lq` (3, h, w) and `gt` (3, h * scale, w * scale) float32 in [0, 1], `strength` () float32, `name` str, and `place`
(4,), where the ground truth was cut (`Place.numbers`)."""
Also = Callable[[Sample, Sequence[Item]], Sample]
"""What is added to a sample, from it and its image files."""

TRAINING, VALIDATION, SHUFFLE, STRENGTH = 0, 1, 2, 3  # streams of chance that never meet
SHOWN = 5


class ImageStore:
    """Decoded images by number: kept in memory up to a limit, decoded again beyond it.

    Args:
        rows: the images that belong to one sample, such as (gt,) or (gt, lq), as files or as `sources` gives them. A
            row with an unreadable one is left out.
        cache_bytes: memory limit.

    Raises:
        DataError: more than 1% of the rows, and more than one, are unreadable, or none is left. Fewer are named in a
            warning.
    """

    def __init__(self, rows: Sequence[tuple[Item, ...]], cache_bytes: int) -> None:
        self.limit = cache_bytes
        self.used = 0
        self.kept: dict[Item, Array] = {}
        self.sizes: dict[Item, tuple[int, int]] = {}
        self.total = len(rows)
        self.unreadable: dict[Item, str] = {}
        self._fill([item for row in rows for item in row])
        self.rows = [row for row in rows if not any(item in self.unreadable for item in row)]
        self._judge()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}, "used": 0}  # a spawned worker fills its own

    def get(self, item: Item) -> Array:
        """(H, W, 3 or 1), uint8 or uint16. Raises ImageError."""
        pixels = self.kept.get(item)
        if pixels is None:
            pixels = read_image(item).pixels
            self._keep(item, pixels)
        return pixels

    def drop(self, row: int, error: RefineWrapError) -> None:
        """Note that a file which looked sound cannot be decoded.

        Raises:
            DataError: by now these are too many.
        """
        self.unreadable[self.rows[row][0]] = str(error).splitlines()[0]
        self._judge()

    def _fill(self, items: list[Item]) -> None:
        """Decode until the limit is reached; of the others read the header only."""
        with ThreadPoolExecutor(4) as pool:
            for start in range(0, len(items), 16):  # in small lots, so that little is decoded beyond the limit
                lot = items[start : start + 16]
                read = self._try if self.used < self.limit else self._try_header
                for item, result in zip(lot, pool.map(read, lot), strict=True):
                    if isinstance(result, str):
                        self.unreadable[item] = result
                    elif isinstance(result, tuple):
                        self.sizes[item] = result
                    else:
                        self.sizes[item] = (result.shape[0], result.shape[1])
                        self._keep(item, result)

    def _keep(self, item: Item, pixels: Array) -> None:
        worker = get_worker_info()
        limit = self.limit if worker is None else max(self.limit // worker.num_workers, self.used)
        if item not in self.kept and self.used + pixels.nbytes <= limit:
            self.kept[item] = pixels
            self.used += pixels.nbytes

    @staticmethod
    def _try(item: Item) -> Array | str:
        try:
            return read_image(item).pixels
        except ImageError as error:
            return error.came

    @staticmethod
    def _try_header(item: Item) -> tuple[int, int] | Array | str:
        from PIL import Image

        try:
            with open_item(item) as file, Image.open(file) as image:
                return image.height, image.width
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return ImageStore._try(item)  # what Pillow does not know, ours may

    def _judge(self) -> None:
        if not self.unreadable:
            return
        names = ", ".join(str(item) for item in list(self.unreadable)[:SHOWN])
        more = f" and {len(self.unreadable) - SHOWN} more" if len(self.unreadable) > SHOWN else ""
        reason = next(iter(self.unreadable.values()))
        came = f"{len(self.unreadable)} of {self.total} training images cannot be read: {names}{more} ({reason})"
        if len(self.unreadable) > max(1, self.total // 100) or len(self.unreadable) >= self.total:
            raise DataError(came, "at most 1% unreadable files", "replace or remove them")
        warnings.warn(f"{came}; left out", RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class Place:
    """What one sample takes from an image: a square of ground truth, flipped and turned."""

    top: int
    left: int
    flip: bool
    turns: int

    def orient(self, image: Array) -> Array:
        """Flip and turn (H, W, C)."""
        image = image[:, ::-1] if self.flip else image
        return np.rot90(image, self.turns)

    def numbers(self, scale: int = 1) -> Tensor:
        """As four integers, (4,), the corner `scale` times as far: for another picture of the same place."""
        return torch.tensor([self.top * scale, self.left * scale, int(self.flip), self.turns])


class ImageData(Dataset[Sample]):
    """What all kinds of samples share: keys, crops, orientation.

    Args:
        store: the decoded images.
        scale: ground-truth pixels of a side for each low-quality pixel.
        crop: side of a sample in ground-truth pixels, a multiple of `scale`; None: the whole image, cut at the right
            and below to a multiple of `scale`. An image smaller than `crop` is mirrored up to it.
        flips, rotations: whether samples are flipped and turned.
        strength: the range of the refiner's strength.
        samples_per_image: samples of each image in an epoch.
        variants: how many different crops, orientations and degradations a sample has, taken in turn by the epochs;
            None: new ones in every epoch.
        seed: all chance follows from it.
        fixed: for validation: the crop is the central one and at most the image, nothing is flipped, and the
            degradation has a stream of its own.
    """

    def __init__(
        self,
        store: ImageStore,
        *,
        scale: int = 1,
        crop: int | None = 128,
        flips: bool = True,
        rotations: bool = True,
        strength: Sequence[float] = (0.0, 1.0),
        samples_per_image: int = 1,
        variants: int | None = None,
        seed: int = 0,
        fixed: bool = False,
    ) -> None:
        if crop is not None and crop % scale:
            raise DataError(f"A crop of {crop} ground-truth pixels", f"a multiple of the scale, {scale}")
        self.store, self.scale, self.crop = store, scale, crop
        self.flips, self.rotations, self.fixed = flips and not fixed, rotations and not fixed, fixed
        self.strength, self.samples_per_image, self.seed = tuple(strength), samples_per_image, seed
        self.variants = variants
        self.also: Also | None = None  # set where an objective needs more
        self._warn_small()

    def __len__(self) -> int:
        return len(self.store.rows) * self.samples_per_image

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The sample of (epoch, index); a bare index is of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = len(self.store.rows)
        for step in range(rows):
            row = (index + step) % rows
            try:
                tensors = self.sample(row, self.variant(epoch), index)
            except ImageError as error:  # its header was sound, its pixels are not: the next image takes its place
                self.store.drop(row, error)
                continue
            if self.also is not None:
                tensors = {**tensors, **self.also(tensors, self.store.rows[row])}
            name = str(self.store.rows[row][0])
            return {**tensors, "strength": self.draw_strength(epoch, index), "name": name}
        raise DataError("No training image can be read")

    def variant(self, epoch: int) -> int:
        """Which variant of its samples an epoch takes."""
        return epoch if self.variants is None else epoch % self.variants

    def draw_strength(self, epoch: int, index: int) -> Tensor:
        """The refiner's strength for a sample: new in every epoch, also where its images repeat."""
        rng = np.random.default_rng((self.seed, STRENGTH, epoch, index))
        return torch.tensor(np.float32(rng.uniform(self.strength[0], self.strength[1])))

    def sample(self, row: int, variant: int, index: int) -> dict[str, Tensor]:
        """One variant of one sample, all chance drawn anew from its key."""
        stream = VALIDATION if self.fixed else TRAINING
        return self.make(row, np.random.default_rng((self.seed, stream, variant, index)))

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """What a sample of one image holds, see `Sample`."""
        raise NotImplementedError

    def side(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the crop from an image of ground truth, multiples of the scale."""
        whole = height // self.scale * self.scale, width // self.scale * self.scale
        if self.crop is None:
            return whole
        # Validation shows no mirrored pixels: it takes what is there.
        return (min(self.crop, whole[0]), min(self.crop, whole[1])) if self.fixed else (self.crop, self.crop)

    def place(self, height: int, width: int, side: tuple[int, int], rng: np.random.Generator) -> Place:
        """Draw a crop of `side` from (height, width), and its orientation."""
        free = height - side[0], width - side[1]
        corner = rng.integers(0, np.array(free), endpoint=True)
        flip, turns = bool(rng.random() < 0.5), int(rng.integers(4))
        if self.fixed:
            corner = np.array(free) // 2
        turns = turns if self.rotations else 0
        return Place(int(corner[0]), int(corner[1]), flip and self.flips, turns)

    def _warn_small(self) -> None:
        if self.crop is None or self.fixed:
            return
        gts = [row[0] for row in self.store.rows]
        small = [path for path in gts if min(self.store.sizes[path]) < self.crop]
        if small:
            names = ", ".join(map(str, small[:SHOWN]))
            warnings.warn(
                f"{len(small)} of {len(gts)} images are smaller than the crop of {self.crop} pixels and are mirrored "
                f"up to it: {names}{', ...' if len(small) > SHOWN else ''}",
                RuntimeWarning,
                stacklevel=3,
            )


class DegradedData(ImageData):
    """Ground truth alone; its low-quality version is made on the fly.

    The degradation works on the crop and a margin around it, so that blur and JPEG blocks meet real neighbours. JPEG's
    blocks begin at the crop's corner, as in a file (unless the degradation shrinks). Undertrained networks run on the
    CPU, in the workers.
    """

    def __init__(
        self,
        store: ImageStore,
        degradation: Degradation,
        networks: Mapping[str, Reconstructor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(store, scale=degradation.scale, **options)
        self.degradation = degradation
        self.networks = load_networks(degradation) if networks is None else networks

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image, scale = self.store.get(self.store.rows[row][0]), self.scale
        crop = self.side(image.shape[0], image.shape[1])
        image = mirrored(image, *crop)
        height, width = image.shape[:2]
        place = self.place(height, width, crop, rng)
        margin, grid = self.degradation.margin(), self.degradation.grid()
        above, before = (min(margin, corner // grid * grid) for corner in (place.top, place.left))
        below = min(margin, (height - place.top - crop[0]) // scale * scale)
        after = min(margin, (width - place.left - crop[1]) // scale * scale)
        region = as_float(
            image[place.top - above : place.top + crop[0] + below, place.left - before : place.left + crop[1] + after]
        )
        gt = region[above : above + crop[0], before : before + crop[1]]
        low = degrade(region, self.degradation, rng, networks=self.networks)
        top, left = above // scale, before // scale
        lq = as_float(low[top : top + crop[0] // scale, left : left + crop[1] // scale])
        return {"lq": as_tensor(place.orient(lq)), "gt": as_tensor(place.orient(gt)), "place": place.numbers()}


class GroundTruthData(ImageData):
    """Ground truth alone, with no low-quality version of it."""

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image = self.store.get(self.store.rows[row][0])
        crop = self.side(image.shape[0], image.shape[1])
        image = mirrored(image, *crop)
        place = self.place(image.shape[0], image.shape[1], crop, rng)
        gt = as_float(image[place.top : place.top + crop[0], place.left : place.left + crop[1]])
        return {"gt": as_tensor(place.orient(gt)), "place": place.numbers()}


class PairedData(ImageData):
    """Ground truth and low quality from two files.

    Raises:
        DataError: a ground truth is not `scale` times its low quality (a rest of less than `scale` pixels is cut off).
    """

    def __init__(self, store: ImageStore, *, scale: int, **options: Any) -> None:
        super().__init__(store, scale=scale, **options)
        wrong = []
        for gt, lq in store.rows:
            sizes = store.sizes[gt], store.sizes[lq]
            if any(g // scale != small for g, small in zip(*sizes, strict=True)):
                wrong.append(f"{gt} ({sizes[0][1]}x{sizes[0][0]}) and {lq} ({sizes[1][1]}x{sizes[1][0]})")
        if wrong:
            raise DataError(
                f"{len(wrong)} pairs are not of scale {scale}: {'; '.join(wrong[:SHOWN])}"
                + ("; ..." if len(wrong) > SHOWN else ""),
                f"ground truth {scale} times as large as low quality" if scale > 1 else "both of one size",
            )

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        scale = self.scale
        gt, lq = (self.store.get(path) for path in self.store.rows[row])
        crop = self.side(lq.shape[0] * scale, lq.shape[1] * scale)
        side = crop[0] // scale, crop[1] // scale
        gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        lq, gt = mirrored(lq, *side), mirrored(gt, side[0] * scale, side[1] * scale)
        place = self.place(lq.shape[0], lq.shape[1], side, rng)
        lq = lq[place.top : place.top + side[0], place.left : place.left + side[1]]
        top, left = place.top * scale, place.left * scale
        gt = gt[top : top + side[0] * scale, left : left + side[1] * scale]
        tensors = {name: as_tensor(place.orient(as_float(image))) for name, image in (("lq", lq), ("gt", gt))}
        return {**tensors, "place": place.numbers(scale)}


def mirrored(image: Array, height: int, width: int) -> Array:
    """At least (height, width): a smaller image is continued by its mirror image at the right and below.

    The edge pixels are repeated ("symmetric"), so that a pair of two scales stays aligned.
    """
    down, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    return np.pad(image, ((0, down), (0, right), (0, 0)), mode="symmetric") if down or right else image


def as_tensor(image: Array) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


# ---------------------------------------------------------------- from a recipe


def training_data(recipe: Recipe, scale: int) -> ImageData:
    """The training set of a recipe for a backbone of `scale`.

    Raises:
        DataError: a folder, list, LMDB or tar is missing, empty, damaged or unpaired, sizes do not fit, or too many
            files are unreadable.
        RecipeError: the scale of the degradation is not the backbone's.
    """
    data = recipe.data
    options = {
        "crop": data.crop,
        "flips": data.flips,
        "rotations": data.rotations,
        "strength": recipe.strength.train,
        "samples_per_image": data.samples_per_image,
        "variants": data.variants,
        "seed": recipe.train.seed,
    }
    return _dataset(recipe, data.train, rows(data.train), scale, options)


def validation_data(recipe: Recipe, scale: int) -> ImageData | None:
    """The validation set of a recipe: at most `limit` images, central crops, the same draws at every validation."""
    part = recipe.data.validation
    if part is None:
        return None
    crop = part.crop // scale * scale if part.crop is not None else None
    return _dataset(
        recipe, part, validation_rows(part), scale, {"crop": crop, "seed": recipe.train.seed, "fixed": True}
    )


def ground_truths(recipe: Recipe, make: Callable[..., Samples], **training: Any) -> tuple[Samples, Samples | None]:
    """Training and validation samples of an objective that makes its own of ground truths alone.

    Args:
        make: from a store of images and options of `ImageData`.
        training: what it gets for the training samples besides.

    Raises:
        DataError: as `training_data`.
    """
    data, part = recipe.data, recipe.data.validation
    options: dict[str, Any] = {"crop": data.crop, "seed": recipe.train.seed}
    with recipe.at("data.train"):
        train = make(
            ImageStore(rows(data.train), int(data.cache * 1e9)),
            **options,
            flips=data.flips,
            rotations=data.rotations,
            samples_per_image=data.samples_per_image,
            variants=data.variants,
            **training,
        )
    if part is None:
        return train, None
    with recipe.at("data.validation"):
        held_out = ImageStore(validation_rows(part), int(data.cache * 1e9))
    return train, make(held_out, **options, fixed=True)


def validation_rows(part: ValidationFolders) -> list[tuple[Item, ...]]:
    """At most `limit` images, spread evenly."""
    found = rows(part)
    count = min(part.limit, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _dataset(
    recipe: Recipe, part: TrainFolders, rows: list[tuple[Item, ...]], scale: int, options: dict[str, Any]
) -> ImageData:
    data: DataChoice = recipe.data
    if part.lq is None and data.degradation is not None and data.degradation.scale != scale:
        raise recipe.refuse(
            "data.degradation.scale",
            f"data.degradation.scale is {data.degradation.scale}, the backbone's scale is {scale}",
            f"data.degradation.scale: {scale}",
        )
    if data.crop % scale:
        raise recipe.refuse("data.crop", f"data.crop is {data.crop}", f"a multiple of the backbone's scale, {scale}")
    networks = {}
    if part.lq is None and data.degradation is not None:
        with recipe.at("data.degradation.reconstruct.checkpoints", "data.degradation"):
            networks = load_networks(data.degradation)
    store = ImageStore(rows, int(data.cache * 1e9))
    if part.lq is not None:
        return PairedData(store, scale=scale, **options)
    if data.degradation is not None:
        return DegradedData(store, data.degradation, networks, **options)
    return GroundTruthData(store, scale=scale, **options)


def rows(part: TrainFolders) -> list[tuple[Item, ...]]:
    """The images of each sample: (gt,) or (gt, lq)."""
    if part.lq is None:
        found: list[tuple[Item, ...]] = [(item,) for source in part.gt for item in images(source, part.gt_root)]
    else:
        names = {
            "gt_root": part.gt_root,
            "lq_root": part.lq_root,
            "gt_pattern": part.gt_pattern,
            "lq_pattern": part.lq_pattern,
        }
        found = [pair for gt, lq in zip(part.gt, part.lq, strict=True) for pair in pairs(gt, lq, **names)]
    return list(dict.fromkeys(found))  # a folder that is named twice counts once


# ---------------------------------------------------------------- batches


def step_keys(count: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """The (epoch, index) of each sample of one step.

    Epochs are permutations of the samples, laid end to end; a batch may hold the end of one and the start of the next.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [
        (position // count, int(_order(count, seed, position // count)[position % count])) for position in positions
    ]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng((seed, SHUFFLE, epoch)).permutation(count)


@dataclass(frozen=True)
class StepBatches:
    """Keys of the batches of steps [start, stop), the part of process `rank` of `world`."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world
        for step in range(self.start, self.stop):
            keys = step_keys(self.count, self.batch_size, self.seed, step)
            yield keys[self.rank * share : (self.rank + 1) * share]

    def __len__(self) -> int:
        return self.stop - self.start


def loader(data: Dataset[Sample], batches: Iterable[list[tuple[int, int]]], workers: int) -> DataLoader[Sample]:
    """Batches of samples, in the order of the steps."""
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _quiet_worker(_: int) -> None:
    """A worker leaves Ctrl-C to the training process, which still wants the batches of its last step."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
