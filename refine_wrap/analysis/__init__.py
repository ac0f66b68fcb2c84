"""What a set of degraded images looks like: its diversity, colours, spectra, noise, beside other degradations."""

from .classifier import CLASSES, CorruptionClassifier, load_classifier, save_classifier
from .result import Analysis
from .run import analyze_degradation

__all__ = [
    "CLASSES",
    "Analysis",
    "CorruptionClassifier",
    "analyze_degradation",
    "load_classifier",
    "save_classifier",
]
