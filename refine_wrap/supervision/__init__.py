"""Enhanced supervision: ground truths mixed with their super-resolved variants, frequency by frequency.

Source: "Beyond the Ground Truth: Enhanced Supervision for Image Restoration" (arXiv 2512.03932).
"""

from .masks import FrequencyMaskGenerator, mask_generator_from_published
from .mixup import frequency_mixup

__all__ = ["FrequencyMaskGenerator", "frequency_mixup", "mask_generator_from_published"]
