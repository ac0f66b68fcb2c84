"""Recipe: the typed, strict form of a training run, read from YAML."""

from .core import Recipe, recipe_schema
from .lines import Places, read_tree
from .sections import (
    SMALLEST_CROP,
    DataChoice,
    DistsLoss,
    GanLoss,
    LossChoice,
    LpipsLoss,
    SqueezeLoss,
    TrainChoice,
    TrainFolders,
    VggLoss,
)
from .words import explain_key

__all__ = [
    "SMALLEST_CROP",
    "DataChoice",
    "DistsLoss",
    "GanLoss",
    "LossChoice",
    "LpipsLoss",
    "Places",
    "Recipe",
    "SqueezeLoss",
    "TrainChoice",
    "TrainFolders",
    "VggLoss",
    "explain_key",
    "read_tree",
    "recipe_schema",
]
