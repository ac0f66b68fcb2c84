"""Paper 2: quality as a condition. Codebooks, and a restorer that is optimised in their discrete space."""

from .codebook import Autoencoded, DualCodebookAutoencoder
from .condition import Condition, Quality, quality_values
from .head import QualityHead
from .load import load_autoencoder, save_autoencoder
from .restorer import CodebookRestorer, Restored, restorer_from_published

__all__ = [
    "Autoencoded",
    "CodebookRestorer",
    "Condition",
    "DualCodebookAutoencoder",
    "Quality",
    "QualityHead",
    "Restored",
    "load_autoencoder",
    "quality_values",
    "restorer_from_published",
    "save_autoencoder",
]
