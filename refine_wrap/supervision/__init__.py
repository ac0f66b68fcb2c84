"""Enhanced supervision: ground truths mixed with their super-resolved variants, frequency by frequency.

Source: "Beyond the Ground Truth: Enhanced Supervision for Image Restoration" (arXiv 2512.03932).
"""

from .load import load_mask_generator, save_mask_generator
from .make import EnhanceTally, enhance
from .manifest import Manifest
from .masks import FrequencyMaskGenerator, mask_generator_from_published
from .mixup import enhanced, frequency_mixup
from .variants import Variant, variants

__all__ = [
    "EnhanceTally",
    "FrequencyMaskGenerator",
    "Manifest",
    "Variant",
    "enhance",
    "enhanced",
    "frequency_mixup",
    "load_mask_generator",
    "mask_generator_from_published",
    "save_mask_generator",
    "variants",
]
