"""Runs a network over an image in tiles; memory that runs out and values that are not finite never reach the
picture."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ImageError, RefineWrapError

Network = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]
"""top, left, bottom, right in input pixels"""

_SMALLEST = 16
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "not enough memory",
)


@dataclass
class TileReport:
    """What a run did: tiles written, how often the tile size was halved, tiles redone in float32, and the last tile
    size (None = whole)."""

    tiles: int = 0
    halvings: int = 0
    float32_redone: int = 0
    tile: int | None = None


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def smallest_tile(multiple_of: int) -> int:
    """Side of the smallest core that is tried before giving up."""
    return round_up(_SMALLEST, multiple_of)


def run_tiles(
    network: Network,
    read: Callable[[int, int, int, int], Tensor],
    write: Callable[[int, int, Tensor], None],
    *,
    height: int,
    width: int,
    scale: int = 1,
    tile: int | None = None,
    halo: int = 0,
    multiple_of: int = 1,
    float32: Network | None = None,
    notify: Callable[[int, int], None] | None = None,
) -> TileReport:
    """Restores an image tile by tile.

    Args:
        network: (1, C, h, w) -> (1, C, h * scale, w * scale), any h and w from 1 up.
        read: read(top, left, height, width) -> (1, C, height, width), in input pixels.
        write: write(top, left, tensor), in output pixels; each output pixel is written once. When memory runs out
            within `write`, the same place is written again.
        height, width: the image in input pixels.
        tile: side of a tile's core; rounded up to `multiple_of`; None or 0 = the whole image, in tiles only after
            memory ran out.
        halo: input pixels around the core that are shown to the network and whose output is thrown away; rounded up to
            `multiple_of`.
        multiple_of: the network's size multiple. Every tile begins at a multiple of it, so that strides, unshuffles
            and windows lie as in the whole image.
        float32: the network in float32, to redo a tile whose output is not finite.
        notify: notify(done, total) after each tile; `total` grows when tiles are halved.

    Raises:
        ImageError: the output of a tile is not finite, in float32 too.
        RefineWrapError: memory runs out at the smallest tile; the network's output has a wrong size.
        Other errors of the network pass unchanged.
    """
    run = _Run(network, read, write, scale, round_up(max(0, halo), multiple_of), multiple_of, float32, height, width)
    run.report.tile = round_up(tile, multiple_of) if tile else None
    waiting: deque[Box] = deque([(0, 0, height, width)])
    while waiting:
        box = waiting.popleft()
        parts = split_box(box, run.report.tile, multiple_of)
        if len(parts) > 1:
            waiting.extendleft(reversed(parts))
            continue
        if run.memory_suffices(box):
            run.report.tiles += 1
            if notify is not None:
                total = run.report.tiles + sum(len(split_box(b, run.report.tile, multiple_of)) for b in waiting)
                notify(run.report.tiles, total)
        else:
            _free_memory()
            run.halve(box)
            waiting.appendleft(box)
    return run.report


def split_box(box: Box, tile: int | None, multiple_of: int) -> list[Box]:
    """A box in parts of at most about `tile` pixels a side, all about equally large, that begin at multiples."""
    top, left, bottom, right = box
    rows, columns = _cuts(top, bottom, tile, multiple_of), _cuts(left, right, tile, multiple_of)
    return [(y0, x0, y1, x1) for y0, y1 in _pairs(rows) for x0, x1 in _pairs(columns)]


def _pairs(cuts: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(cuts))


def _cuts(start: int, stop: int, tile: int | None, multiple_of: int) -> list[int]:
    if tile is None or stop - start <= tile:
        return [start, stop]
    count = -(-(stop - start) // tile)
    step = round_up(-(-(stop - start) // count), multiple_of)
    return [*range(start, stop, step), stop]


class _Run:
    """The state of one run."""

    def __init__(
        self,
        network: Network,
        read: Callable[[int, int, int, int], Tensor],
        write: Callable[[int, int, Tensor], None],
        scale: int,
        halo: int,
        multiple_of: int,
        float32: Network | None,
        height: int,
        width: int,
    ) -> None:
        self.network, self.read, self.write, self.float32 = network, read, write, float32
        self.scale, self.halo, self.multiple_of, self.height, self.width = scale, halo, multiple_of, height, width
        self.report, self.warned = TileReport(), False

    def memory_suffices(self, box: Box) -> bool:
        """Restores and writes one tile; False when memory ran out on the way."""
        try:
            with torch.no_grad():
                self.restore(box)
        except (RuntimeError, MemoryError) as error:
            # Returned, not handled here: as long as the error lives, its traceback holds the network's tensors.
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def restore(self, box: Box) -> None:
        top, left = box[:2]
        outer = self.region(box)
        image = self.read(outer[0], outer[1], outer[2] - outer[0], outer[3] - outer[1])
        core = self.core(self.network, image, box, outer)
        if not _finite(core):
            core = self.redo(image, box, outer)
        self.write(top * self.scale, left * self.scale, core)

    def region(self, box: Box) -> Box:
        """Core and halo, cut at the image's border and beginning at multiples.

        At least two multiples long where the image is: at the bottom and right border a network pads to its multiple,
            by less than one,
        and a reflection needs as many pixels plus one to be the same as in the whole image.
        """
        top, bottom = self.span(box[0], box[2], self.height)
        left, right = self.span(box[1], box[3], self.width)
        return top, left, bottom, right

    def span(self, start: int, stop: int, size: int) -> tuple[int, int]:
        least = 2 * self.multiple_of
        end = min(size, round_up(stop + self.halo, self.multiple_of))
        begin = max(0, min(start - self.halo, end - least))
        return begin // self.multiple_of * self.multiple_of, end

    def core(self, network: Network, image: Tensor, box: Box, outer: Box) -> Tensor:
        output, s = network(image), self.scale
        want = (image.shape[-2] * s, image.shape[-1] * s)
        if output.ndim != 4 or tuple(output.shape[-2:]) != want:
            raise RefineWrapError(
                f"The network gives shape {tuple(output.shape)} for an image of shape {tuple(image.shape)}.",
                f"height and width {want[0]} x {want[1]}, {s} times the input's.",
                "check the declared scale and size multiple of the backbone.",
            )
        top, left = (box[0] - outer[0]) * s, (box[1] - outer[1]) * s
        return output[..., top : top + (box[2] - box[0]) * s, left : left + (box[3] - box[1]) * s]

    def redo(self, image: Tensor, box: Box, outer: Box) -> Tensor:
        """The tile once more in float32, after an output that is not finite."""
        place = f"rows {box[0]} to {box[2] - 1}, columns {box[1]} to {box[3] - 1}"
        if not _finite(image):
            raise ImageError(
                f"The image has values that are not finite in {place} or beside it.", "finite values in [0, 1]."
            )
        if self.float32 is not None:
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"The network's output is not finite in {place}; such tiles are redone in float32.", stacklevel=4
                )
            core = self.core(self.float32, image.float(), box, outer)
            if _finite(core):
                self.report.float32_redone += 1
                return core
        raise ImageError(
            f"The network's output is not finite in {place}{', in float32 too' if self.float32 else ''}.",
            "finite values.",
            "check the weights" + (" of the backbone." if self.float32 else ", or run in float32."),
        )

    def halve(self, box: Box) -> None:
        """Makes this tile and all later ones half as large."""
        side = max(box[2] - box[0], box[3] - box[1])
        least = smallest_tile(self.multiple_of)
        if side <= least:
            outer = self.region(box)
            raise RefineWrapError(
                f"Memory runs out even for a tile of {side} pixels "
                f"(with its halo {outer[2] - outer[0]} x {outer[3] - outer[1]}).",
                "enough memory for one such tile.",
                "close other programs, take a smaller halo, a smaller network or another device.",
            )
        self.report.tile = max(least, round_up(side // 2, self.multiple_of))
        self.report.halvings += 1


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of CUDA, of the CPU allocator, of Python. Nothing else counts."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
