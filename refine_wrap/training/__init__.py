"""Fine-tune from a recipe: `finetune(Recipe.load("nafnet_denoise", overrides))`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import DegradedData, PairedData
    from .distil import absorb, explained, gain_kept
    from .estimate import dry_run
    from .losses import charbonnier, fft, l1, mse
    from .objectives import Objective, RefineObjective, RestoreObjective
    from .trainer import finetune

_PLACES = {
    "absorb": "distil",
    "explained": "distil",
    "gain_kept": "distil",
    "dry_run": "estimate",
    "finetune": "trainer",
    "Objective": "objectives",
    "RefineObjective": "objectives",
    "RestoreObjective": "objectives",
    "DegradedData": "data",
    "PairedData": "data",
    "charbonnier": "losses",
    "fft": "losses",
    "l1": "losses",
    "mse": "losses",
}

__all__ = [
    "DegradedData",
    "Objective",
    "PairedData",
    "RefineObjective",
    "RestoreObjective",
    "absorb",
    "charbonnier",
    "dry_run",
    "explained",
    "fft",
    "finetune",
    "gain_kept",
    "l1",
    "mse",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
