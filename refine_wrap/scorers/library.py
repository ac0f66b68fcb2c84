"""What the scorers that call other libraries share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ImageError
from ..tiling import is_out_of_memory


def one_by_one(name: str, image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, 3, H, W) -> (B,) float32, from `score` of (1, 3, H, W) -> one value: so no image depends on its neighbours.

    Raises:
        ImageError: the library fails on an image, or gives no number for it.
    """
    scores = []
    for place in range(image.shape[0]):
        one = image[place : place + 1]
        size = f"{one.shape[-1]}x{one.shape[-2]} pixels"
        try:
            value = score(one).reshape(()).float()
        # Libraries raise whatever they like on images that are too small or too flat for them.
        except Exception as error:
            if isinstance(error, MemoryError) or is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise ImageError(
                f"{name} fails on an image of {size} ({reason})", "a larger image, or one with some texture"
            ) from error
        if not math.isfinite(float(value.detach())):
            raise ImageError(f"{name} gives no number for an image of {size}", "an image with some texture")
        scores.append(value)
    return torch.stack(scores)
