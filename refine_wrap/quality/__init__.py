"""Paper 2: quality as a condition. Codebooks, and a restorer that is optimised in their discrete space."""

from .codebook import Autoencoded, DualCodebookAutoencoder
from .condition import Quality, quality_values, threshold
from .head import QualityHead
from .restorer import CodebookRestorer, Restored, restorer_from_published

__all__ = [
    "Autoencoded",
    "CodebookRestorer",
    "DualCodebookAutoencoder",
    "Quality",
    "QualityHead",
    "Restored",
    "quality_values",
    "restorer_from_published",
    "threshold",
]
