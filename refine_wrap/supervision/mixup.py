"""Frequency mixup: some images become one, each with its own weight at every frequency."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ImageError

if TYPE_CHECKING:
    from ..refiner import Strength
    from .masks import FrequencyMaskGenerator


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
    return mix(images.unbind(1), masks)


def mix(images: Iterable[Tensor], masks: Tensor) -> Tensor:
    """`frequency_mixup` of images (B, 3, H, W) that come one after the other: one of them is in memory at a time."""
    mixed: Tensor | None = None
    for image, mask in zip(images, masks.unbind(1), strict=True):
        wide = torch.float32 if image.dtype in (torch.float16, torch.bfloat16) else image.dtype
        part = torch.fft.rfft2(image.to(wide)) * half_spectrum(mask.to(wide))[:, None]
        mixed = part if mixed is None else mixed + part
    assert mixed is not None
    return torch.fft.irfft2(mixed, s=masks.shape[-2:]).to(image.dtype)


def enhanced(gt: Tensor, variants: Tensor, generator: FrequencyMaskGenerator, strength: Strength = 0.3) -> Tensor:
    """The enhanced ground truth: mixed with its variants by the masks that the generator makes of it.

    Args:
        gt: (B, 3, H, W), RGB in [0, 1], any size.
        variants: (B, N, 3, H, W), N being the generator's `images` - 1, in its order: x2, x3, x4.
        generator: in evaluation mode each image of a batch comes out as it does alone.
        strength: in [0, 1], a number or a (B,) tensor: 0 keeps the ground truth, 1 asks for the most detail.

    Returns:
        (B, 3, H, W), not clamped, with gradients to all that takes them.

    Raises:
        ImageError: shapes that do not belong together, or a strength outside [0, 1].

    Source: paper 1, 3.2.
    """
    if gt.ndim != 4 or variants.shape != (gt.shape[0], generator.images - 1, *gt.shape[1:]):
        raise ImageError(
            f"A ground truth of shape {tuple(gt.shape)} and variants of shape {tuple(variants.shape)}",
            f"(B, 3, H, W) and (B, {generator.images - 1}, 3, H, W)",
        )
    return mix([gt, *variants.unbind(1)], generator(gt, strength))


def half_spectrum(masks: Tensor) -> Tensor:
    """Masks averaged with their mirrors, in the order of `rfft2`: (..., H, W) -> (..., H, W // 2 + 1)."""
    height, width = masks.shape[-2:]
    middle = width // 2
    # Slices, flips and rolls: gathering by index takes several times as long.
    own = masks[..., middle:]
    if width % 2 == 0:  # the highest frequency stands at the left end
        own = torch.cat((own, masks[..., :1]), -1)
    mirror = masks[..., : middle + 1].flip(-2, -1)
    return (own.roll(-(height // 2), -2) + mirror.roll(height // 2 + 1, -2)) * 0.5
