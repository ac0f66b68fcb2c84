"""Losses between an output and its ground truth, both (B, 3, H, W) RGB in [0, 1], by name and weight.

All are computed in float32, inside autocast too: the small differences of a late training stage vanish in bfloat16.

A ground truth outside [0, 1] is refused. An output may leave [0, 1] and is clamped by none of the losses, since a clamp
has no gradient there: the pixel losses draw it back, SSIM stays defined, and features are taken of it as it is. Losses
whose networks expect another range than [0, 1] convert both images themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError, RefineWrapError
from ..recipe import SMALLEST_CROP, LossChoice
from .feature_losses import FEATURE_LOSSES

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


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004), the mean over images, channels and positions; 0 for identical images, at most 2.

    Gaussian window of 11x11 with sigma 1.5 where it lies wholly inside the image, K1 = 0.01, K2 = 0.03, range 1, as
    `refine_wrap.evaluation.ssim` with `eight_bit=False`, which clamps its images; here the output is not clamped.
    """
    window = gaussian(1.5, 5)
    x, y, xx, yy, xy = smooth(
        torch.stack((output, target, output * output, target * target, output * target)), window
    ).unbind()
    luminance = (2 * x * y + 0.01**2) / (x * x + y * y + 0.01**2)
    structure = (2 * (xy - x * y) + 0.03**2) / (xx - x * x + yy - y * y + 0.03**2)
    return 1 - (luminance * structure).mean()


def color(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference after a Gaussian low pass of sigma 3 pixels: tones and colours, but no detail.

    The window of 21x21 is that of DPED's colour loss (Ignatov et al. 2017), which squares. Near the border it is
    normalised over the pixels that there are.
    """
    window = gaussian(3.0, 10)
    padded = functional.pad(output - target, (10, 10, 10, 10))  # the blur is linear: one instead of two
    height, width = (
        smooth_along(functional.pad(output.new_ones(side), (10, 10)), window, 0) for side in output.shape[-2:]
    )
    return (smooth(padded, window) / (height[:, None] * width)).abs().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "charbonnier": charbonnier,
    "mse": mse,
    "fft": fft,
    "ssim": ssim,
    "color": color,
}
"""Those that need nothing but the two images."""


class LossSet(nn.Module):
    """`losses(output, target)`: the losses of a recipe, each times its weight; what is minimised is their sum.

    The feature nets are submodules, so that they move with it; they are frozen and stay in evaluation mode. `gan` is
    not among these losses: its discriminator learns, see `adversary.py`.

    Args:
        choice: the recipe's `losses`.
        needed: whether there must be one.

    Raises:
        RefineWrapError: one is needed and none has a weight above 0, or a loss needs a package that is not there.
        CheckpointError: weights of a feature net are missing or are not its.
    """

    def __init__(self, choice: LossChoice, needed: bool = True) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in choice.weights().items() if name != "gan"}
        if needed and not self.weights:
            raise RefineWrapError("No loss has a weight above 0", "some of " + ", ".join((*LOSSES, *FEATURE_LOSSES)))
        self.nets = nn.ModuleDict(
            {name: build(getattr(choice, name)) for name, build in FEATURE_LOSSES.items() if name in self.weights}
        )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LossSet:
        """Nothing here learns: always evaluation mode."""
        super().train(False)
        return self

    def forward(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The named losses, each times its weight, float32, shape ().

        Args:
            output: (B, 3, H, W), not clamped. Values that are not finite give a loss that is not finite, which the
                trainer counts.
            target: the same shape, in [0, 1].

        Raises:
            RefineWrapError: shapes differ, or the images are too small for a loss.
            DataError: the target leaves [0, 1].
        """
        if output.shape != target.shape or output.ndim != 4 or output.shape[1] != 3:
            raise RefineWrapError(
                f"The loss got an output of {tuple(output.shape)} and a target of {tuple(target.shape)}",
                "one shape (B, 3, H, W)",
            )
        for name in self.weights:
            if min(output.shape[-2:]) < SMALLEST_CROP.get(name, 1):
                raise RefineWrapError(
                    f"The loss {name} got images of {output.shape[-2]}x{output.shape[-1]}",
                    f"sides of at least {SMALLEST_CROP[name]}",
                )
        with torch.autocast(output.device.type, enabled=False):
            output, target = output.float(), target.float()
            low, high = (float(value) for value in torch.aminmax(target))
            # A NaN compares false here, and shows as a loss that is not finite.
            if low < -TOLERANCE or high > 1 + TOLERANCE:
                raise DataError(f"The ground truth has values from {low:.4g} to {high:.4g}", "RGB in [0, 1]")
            terms: dict[str, Tensor] = {}
            for name, weight in self.weights.items():
                loss = self.nets[name] if name in self.nets else LOSSES[name]
                terms[name] = weight * loss(output, target).mean()  # feature nets give one an image
            return terms


def weighted_losses(output: Tensor, target: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`LossSet` as a function, for the losses that need nothing but the two images.

    Raises:
        RefineWrapError: a loss is not one of `LOSSES`, or as `LossSet`.
        DataError: the target leaves [0, 1].
    """
    unknown = sorted(set(weights) - set(LOSSES))
    if unknown:
        raise RefineWrapError(f"The losses are {', '.join(unknown)}", "some of " + ", ".join(LOSSES))
    return LossSet(LossChoice.model_validate(dict(weights)))(output, target)


# ---------------------------------------------------------------- Gaussian windows


@lru_cache(maxsize=8)
def gaussian(sigma: float, radius: int) -> tuple[float, ...]:
    """A window of 2 * radius + 1 weights that sum to 1."""
    weights = [math.exp(-(k * k) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def smooth(image: Tensor, window: tuple[float, ...]) -> Tensor:
    """(..., H, W) -> (..., H - len + 1, W - len + 1): the window along both, where it lies wholly inside."""
    return smooth_along(smooth_along(image, window, -2), window, -1)


def smooth_along(image: Tensor, window: tuple[float, ...], dim: int) -> Tensor:
    """The symmetric window along one dimension, where it lies wholly inside."""
    result: Tensor = _Smooth.apply(image, window, dim)  # type: ignore[no-untyped-call]
    return result


class _Smooth(torch.autograd.Function):
    """Sums of shifted views. A convolution would use TF32 on a GPU, too coarse for the variances of SSIM."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: tuple[float, ...], dim: int) -> Tensor:
        ctx.window, ctx.dim = window, dim
        return _sum(image, window, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        around = len(ctx.window) - 1  # the adjoint of a symmetric window is the window itself, all around
        margin = (around, around) if ctx.dim in (-1, gradient.ndim - 1) else (0, 0, around, around)
        return _sum(functional.pad(gradient, margin), ctx.window, ctx.dim), None, None


def _sum(image: Tensor, window: tuple[float, ...], dim: int) -> Tensor:
    size = image.shape[dim] - len(window) + 1
    total = image.narrow(dim, 0, size) * window[0]
    for k, weight in enumerate(window[1:], 1):
        total.add_(image.narrow(dim, k, size), alpha=weight)
    return total
