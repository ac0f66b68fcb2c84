"""How large the tiles of an image may be, and how wide their halo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..allocator import kept_bytes
from ..errors import RefineWrapError
from .run import round_up, smallest_tile
from .trace import LayerTrace

DEFAULT_HALO = 96
"""Widest halo taken unasked, in input pixels: beyond it the tiles cost more than they gain."""

_CUDA_SHARE = 0.6  # the rest: workspaces of kernels, fragments, other programs
_CPU_SHARE, _CPU_MOST = (
    0.25,
    4 << 30,
)  # a CPU run out of memory is killed or swaps, it seldom raises: stay far from that


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut.

    Attributes:
        tile: side of a tile's core in input pixels; None = the whole image at once.
        halo: input pixels around the core that the network sees and whose output is thrown away.
        exact: whether the result equals that of the whole image.
        receptive_radius: what the halo would have to be.
    """

    tile: int | None
    halo: int
    exact: bool
    receptive_radius: int = 0

    @property
    def covers_receptive_field(self) -> bool:
        """Whether every output pixel sees all that it would see in the whole image (global operations left aside)."""
        return self.tile is None or self.halo >= self.receptive_radius


def memory_budget(device: torch.device | str = "cpu") -> int:
    """Bytes that tiles may use on the device: a share of what is free now.

    CUDA: 60% of the free memory (with what torch's own cache holds unused). Otherwise a quarter of the free main
        memory, at most 4 GiB.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + cached) * _CUDA_SHARE)
    return min(int(_free_main_memory() * _CPU_SHARE), _CPU_MOST)


def _free_main_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available) + kept_bytes()


def plan_tiles(
    trace: LayerTrace,
    height: int,
    width: int,
    *,
    tile: str | int | None = "auto",
    halo: int | None = None,
    multiple_of: int = 1,
    exact: bool = True,
    available_bytes: int | None = None,
) -> TilePlan:
    """Chooses tile and halo for an image of height x width input pixels.

    Args:
        trace: from `trace_layers`.
        tile: "auto" = the whole image if it fits into memory, else the largest tile that does; None or 0 = the whole
            image; a number of input pixels = the side of the core, rounded up to `multiple_of`.
        halo: input pixels; None = the receptive radius when that is at most `DEFAULT_HALO`, else `DEFAULT_HALO`.
            Rounded up to `multiple_of`.
        multiple_of: the network's size multiple.
        exact: whether the network is declared to be exact in tiles; False also when the trace met a global operation.
        available_bytes: what tiles may use; None = `memory_budget()`, of the CPU.

    Raises:
        RefineWrapError: a tile or halo below zero, or a word other than "auto".
    """
    _check(tile, halo)
    wanted = halo if halo is not None else min(trace.receptive_radius, DEFAULT_HALO)
    wanted = round_up(wanted, multiple_of)
    if tile == "auto":
        budget = memory_budget() if available_bytes is None else available_bytes
        size = _largest_tile(trace.peak_bytes_per_pixel, height, width, wanted, multiple_of, budget)
    else:
        size = round_up(int(tile), multiple_of) if tile else None
    if size is not None and size >= max(height, width):
        size = None
    covers = wanted >= trace.receptive_radius
    same = size is None or (exact and trace.exact and covers)
    return TilePlan(size, wanted, same, trace.receptive_radius)


def _check(tile: str | int | None, halo: int | None) -> None:
    if (isinstance(tile, str) and tile != "auto") or (isinstance(tile, int) and tile < 0):
        raise RefineWrapError(
            f"tile is {tile!r}.", '"auto", None, or a number of input pixels.', 'leave it out for "auto".'
        )
    if halo is not None and halo < 0:
        raise RefineWrapError(
            f"halo is {halo}.", "a number of input pixels, zero or more.", "leave it out for the default."
        )


def _largest_tile(
    bytes_per_pixel: float, height: int, width: int, halo: int, multiple_of: int, budget: int
) -> int | None:
    def fits(tile: int) -> bool:
        # One multiple more: a region begins at a multiple, so it may begin a little before its halo does.
        side = tile + 2 * halo + multiple_of - 1
        return min(height, side) * min(width, side) * bytes_per_pixel <= budget

    if height * width * bytes_per_pixel <= budget:
        return None
    lowest = smallest_tile(multiple_of)
    return (
        _last(
            lambda n: fits(n * multiple_of),
            lowest // multiple_of,
            round_up(max(height, width), multiple_of) // multiple_of,
        )
        * multiple_of
    )


def _last(good: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number of [low, high] that is good, `low` when none is; what is good stays so downwards."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low
