"""What a set of degraded images looks like: its diversity, colours, spectra, noise, beside other degradations."""

from .classifier import CLASSES, CorruptionClassifier, load_classifier, save_classifier

__all__ = ["CLASSES", "CorruptionClassifier", "load_classifier", "save_classifier"]
