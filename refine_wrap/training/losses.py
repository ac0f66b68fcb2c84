"""Losses between an output and its ground truth, both (B, 3, H, W) RGB in [0, 1], by name and weight.

All are computed in float32, inside autocast too: the small differences of a late training stage vanish in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import DataError, RefineWrapError

TOLERANCE = 1e-3
"""How far a ground truth may leave [0, 1], for the rounding of resizing."""


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (output - target).abs().mean()


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(difference^2 + 1e-6): L1 that is smooth at zero (Lai et al. 2017); its floor is 0.001."""
    return torch.sqrt((output - target).square() + 1e-6).mean()


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference."""
    return (output - target).square().mean()


def fft(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the 2-D spectrum (as in MIMO-UNet, Cho et al. 2021).

    `rfft2` with norm "ortho": white noise of standard deviation s in the difference costs about 0.56 s at any image
    size, so its weight means the same for every crop. (MIMO-UNet's spectrum is sqrt(H * W) times larger.)
    """
    difference = torch.fft.rfft2(output - target, norm="ortho")  # linear: one transform instead of two
    return torch.view_as_real(difference).abs().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "charbonnier": charbonnier, "mse": mse, "fft": fft}


def weighted_losses(output: Tensor, target: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The named losses, each times its weight, in float32; what is minimised is their sum.

    Args:
        output: (B, 3, H, W), not clamped. Values that are not finite give a loss that is not finite, which the trainer
            counts.
        target: the same shape, in [0, 1].
        weights: loss name to weight.

    Raises:
        RefineWrapError: shapes differ, or a loss is unknown.
        DataError: the target leaves [0, 1].
    """
    if output.shape != target.shape or output.ndim != 4:
        raise RefineWrapError(
            f"The loss got an output of {tuple(output.shape)} and a target of {tuple(target.shape)}",
            "one shape (B, 3, H, W)",
        )
    unknown = sorted(set(weights) - set(LOSSES))
    if unknown or not weights:
        raise RefineWrapError(f"The losses are {', '.join(unknown) or 'none'}", "some of " + ", ".join(LOSSES))
    with torch.autocast(output.device.type, enabled=False):
        output, target = output.float(), target.float()
        low, high = (float(value) for value in torch.aminmax(target))
        # A NaN compares false here, and shows as a loss that is not finite.
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise DataError(f"The ground truth has values from {low:.4g} to {high:.4g}", "RGB in [0, 1]")
        return {name: weight * LOSSES[name](output, target) for name, weight in weights.items()}
