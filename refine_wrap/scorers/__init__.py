"""Scorers: how good an image looks, without a reference."""

from .cache import ScoreCache
from .core import Scorer
from .ensemble import Ensemble
from .files import score_files
from .load import load_scorer, scorer_names
from .table import ScoreTable

__all__ = ["Ensemble", "ScoreCache", "ScoreTable", "Scorer", "load_scorer", "score_files", "scorer_names"]
