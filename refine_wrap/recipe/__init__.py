"""Recipe: the typed, strict form of a training run, read from YAML."""

from .core import Recipe, recipe_schema
from .degradation import load_degradation
from .lines import Places, read_tree
from .quality import CodebookChoice, QualityChoice
from .reconstruction import ReconstructorChoice
from .sections import (
    SMALLEST_CROP,
    DataChoice,
    DistsLoss,
    GanLoss,
    LossChoice,
    LpipsLoss,
    ScorerChoice,
    SqueezeLoss,
    TrainChoice,
    TrainFolders,
    ValidationFolders,
    VggLoss,
)
from .supervision import MasksChoice, SupervisionChoice
from .words import explain_key

__all__ = [
    "SMALLEST_CROP",
    "CodebookChoice",
    "DataChoice",
    "DistsLoss",
    "GanLoss",
    "LossChoice",
    "LpipsLoss",
    "MasksChoice",
    "Places",
    "QualityChoice",
    "Recipe",
    "ReconstructorChoice",
    "ScorerChoice",
    "SqueezeLoss",
    "SupervisionChoice",
    "TrainChoice",
    "TrainFolders",
    "ValidationFolders",
    "VggLoss",
    "explain_key",
    "load_degradation",
    "read_tree",
    "recipe_schema",
]
