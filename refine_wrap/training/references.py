"""What full-reference metrics say of distorted crops, on one scale: the pseudo-labels of a scorer's training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..evaluation import full_reference

DECILES = {
    "SSIM": [0.1537, 0.7106, 0.8398, 0.8936, 0.93, 0.951, 0.966, 0.9779, 0.9898, 0.996, 1.0],
    "FSIM": [0.5062, 0.8483, 0.9031, 0.946, 0.9617, 0.974, 0.9815, 0.9882, 0.9926, 0.997, 1.0],
    "VIF": [0.0198, 0.3192, 0.4601, 0.5556, 0.6353, 0.6895, 0.7581, 0.7926, 0.8654, 0.9309, 1.0],
    "GMSD": [0.271, 0.0995, 0.0578, 0.0336, 0.021, 0.0133, 0.0085, 0.005, 0.0028, 0.0011, 0.0],
    "NLPD": [0.7236, 0.2733, 0.1732, 0.1291, 0.1052, 0.0851, 0.0667, 0.0521, 0.0393, 0.0227, 0.0],
}
"""Each metric's deciles, worst first, over 328 distorted crops (82 ladders of CID22 and CC0 photos, 96 pixels): a
metric's value counts as the share of those that are worse."""


def shares(images: Tensor, pristine: Tensor, metrics: Sequence[str]) -> Tensor:
    """The quality of some versions of a crop by each metric, (N, metrics) float32 in [0, 1].

    Args:
        images: (N, 3, c, c), RGB in [0, 1].
        pristine: (1, 3, c, c), what all of them were made from.
        metrics: names in `DECILES`.

    Raises:
        ImageError: no metric is defined for this crop.
    """
    truth = pristine.expand_as(images)
    found, undefined = {}, []
    for name in metrics:
        try:
            values = full_reference(name)(images, truth).numpy()
        except ImageError as error:
            refusal = error
            undefined.append(name)
            continue
        if name == "VIF":
            values = np.minimum(values, 1 / np.maximum(values, 1e-6))  # above 1: over-sharpened, as far from the photo
        deciles = DECILES[name]
        rising = deciles if deciles[0] < deciles[-1] else deciles[::-1]
        share = np.interp(values, rising, np.linspace(0, 1, len(rising)))
        found[name] = share if rising is deciles else 1 - share
    if not found:
        raise refusal
    # VIF and FSIM are not defined where the pristine crop is flat; the others stand in for them.
    found |= dict.fromkeys(undefined, np.mean(list(found.values()), axis=0))
    return torch.from_numpy(np.stack([found[name] for name in metrics], axis=1).astype(np.float32))
