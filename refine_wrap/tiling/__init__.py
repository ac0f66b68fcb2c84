"""Large images: halo tiles, memory back-off, and what a network's layers say about both."""

from .measure import measure_tiling, photo_like
from .plan import DEFAULT_HALO, TilePlan, memory_budget, plan_tiles
from .run import TileReport, is_out_of_memory, run_tiles, split_box
from .trace import LayerTrace, trace_layers

__all__ = [
    "DEFAULT_HALO",
    "LayerTrace",
    "TilePlan",
    "TileReport",
    "is_out_of_memory",
    "measure_tiling",
    "memory_budget",
    "photo_like",
    "plan_tiles",
    "run_tiles",
    "split_box",
    "trace_layers",
]
