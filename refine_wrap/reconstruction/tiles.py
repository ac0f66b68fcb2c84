"""Images of any size for a network of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def blended(network: Callable[[Tensor], Tensor], image: Tensor, side: int) -> Tensor:
    """An image through a network that takes squares alone, without seams.

    The squares overlap by at least a quarter of their side, evenly spread. Each pixel is the mean of those that hold
    it, weighed by how far it lies from their borders: where they agree it is exactly what they say.

    Args:
        network: (B, C, side, side) -> the same shape.
        image: (B, C, H, W), no side below `side`.

    Returns:
        (B, C, H, W).
    """
    height, width = image.shape[-2:]
    near = torch.arange(1, side + 1, device=image.device, dtype=torch.float32)
    near = near.minimum(near.flip(0))
    window = near[:, None] * near
    mean, weight = torch.zeros_like(image), window.new_zeros(height, width)
    for top in starts(height, side):
        for left in starts(width, side):
            place = (slice(top, top + side), slice(left, left + side))
            weight[place] += window
            share = (window / weight[place]).to(image.dtype)
            before = mean[..., place[0], place[1]]
            before += share * (network(image[..., place[0], place[1]]) - before)  # the mean so far, moved
    return mean


def starts(length: int, side: int) -> list[int]:
    """Where squares begin that cover `length` pixels from end to end."""
    gaps = -(-(length - side) // (side - side // 4))
    return [place * (length - side) // max(gaps, 1) for place in range(gaps + 1)]
