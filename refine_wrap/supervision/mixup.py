"""Frequency mixup: some images become one, each with its own weight at every frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ImageError


def frequency_mixup(images: Tensor, masks: Tensor) -> Tensor:
    """The real part of IFFT(sum_i masks_i * FFT(images_i)), (B, N, 3, H, W) and (B, N, H, W) -> (B, 3, H, W).

    A real image's spectrum is Hermitian, so the real part is what a mask averaged with its mirror gives, and half of
    the spectrum is enough. One image's spectrum is in memory at a time.

    Args:
        images: any range, any size; half types are computed in float32.
        masks: with the frequency 0 in the middle, at (H // 2, W // 2), as `FrequencyMaskGenerator` gives them.

    Returns:
        In the type of `images`, not clamped.

    Raises:
        ImageError: shapes that do not belong together.

    Source: paper 1, 3.2; enhancement.py.
    """
    if images.ndim != 5 or masks.shape != (*images.shape[:2], *images.shape[3:]):
        raise ImageError(
            f"Images of shape {tuple(images.shape)} and masks of shape {tuple(masks.shape)}",
            "(B, N, 3, H, W) and (B, N, H, W)",
        )
    height, width = images.shape[-2:]
    wide = torch.float32 if images.dtype in (torch.float16, torch.bfloat16) else images.dtype
    weights = half_spectrum(masks.to(wide))
    mixed: Tensor | None = None
    for image, weight in zip(images.unbind(1), weights.unbind(1), strict=True):
        part = torch.fft.rfft2(image.to(wide)) * weight[:, None]
        mixed = part if mixed is None else mixed + part
    assert mixed is not None
    return torch.fft.irfft2(mixed, s=(height, width)).to(images.dtype)


def half_spectrum(masks: Tensor) -> Tensor:
    """Masks averaged with their mirrors, in the order of `rfft2`: (..., H, W) -> (..., H, W // 2 + 1)."""
    height, width = masks.shape[-2:]
    rows = torch.arange(height, device=masks.device)
    columns = torch.arange(width // 2 + 1, device=masks.device)
    own, mirror = (
        masks.index_select(-2, (sign * rows + height // 2) % height).index_select(
            -1, (sign * columns + width // 2) % width
        )
        for sign in (1, -1)
    )
    return (own + mirror) / 2
