"""PSNR and SSIM, with the protocol that a published number depends on.

The same pair of images gives figures some tenths of a dB apart between RGB and luma, with and without the border, and
before and after rounding to 8 bits. Every function here therefore takes those three choices, and `Protocol` writes them
beside the number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ImageError

_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
# ITU-R BT.601 luma of R, G, B in [0, 1], as MATLAB's rgb2ycbcr: Y runs from 16 to 235.
_LUMA = (65.481, 128.553, 24.966)
_LUMA_OFFSET = 16.0
# Strips keep the float64 copies of an 8K photo at a few MB in place of several GB, and mostly in the CPU's cache.
_STRIP_PIXELS = 1 << 17


def psnr(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, eight_bit: bool = True) -> Tensor:
    """Peak signal-to-noise ratio in dB, of each pair in a batch.

    Args:
        a, b: images, (B, 3, H, W), floating point, RGB. Values outside [0, 1] are clamped, as saving a file does.
        border: pixels left out at each edge.
        luma: measure on BT.601 luma (Y from 16 to 235, as BasicSR and MATLAB) in place of R, G and B.
        eight_bit: round to 8 bits first, as if both had been saved as 8-bit files. Luma itself is never rounded.

    Returns:
        (B,), float64; `inf` where the two images are identical.

    Raises:
        ImageError: shapes differ or are not (B, 3, H, W), a value is not finite, or the border leaves no pixel.

    With `eight_bit` it equals `basicsr.metrics.calculate_psnr` on the two 8-bit images.
    """
    a, b = _checked(a, b, border, smallest=1)
    squares = torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    values = a.shape[-2] * a.shape[-1] * (1 if luma else 3)
    for x, y in _strips(a, b, luma=luma, eight_bit=eight_bit, overlap=0):
        squares += (x - y).square().sum(dim=(1, 2, 3))
    return 10.0 * torch.log10(255.0**2 * values / squares)


def ssim(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, eight_bit: bool = True) -> Tensor:
    """Structural similarity (Wang et al. 2004), of each pair in a batch.

    Gaussian window of 11x11 with sigma 1.5, only where it lies wholly inside the image, K1 = 0.01, K2 = 0.03; the mean
    over pixels and channels. No downsampling beforehand.

    Args:
        a, b: images, (B, 3, H, W), floating point, RGB. Values outside [0, 1] are clamped, as saving a file does.
        border: pixels left out at each edge.
        luma: measure on BT.601 luma (Y from 16 to 235, as BasicSR and MATLAB) in place of R, G and B.
        eight_bit: round to 8 bits first, as if both had been saved as 8-bit files. Luma itself is never rounded.

    Returns:
        (B,), float64, at most 1; exactly 1 where the two images are identical.

    Raises:
        ImageError: as `psnr`, and where fewer than 11x11 pixels are left after the border.

    With `eight_bit` it equals `basicsr.metrics.calculate_ssim` on the two 8-bit images.
    """
    a, b = _checked(a, b, border, smallest=_WINDOW)
    total = torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    channels = 1 if luma else 3
    count = (a.shape[-2] - _WINDOW + 1) * (a.shape[-1] - _WINDOW + 1) * channels
    weights = _gaussian()
    for x, y in _strips(a, b, luma=luma, eight_bit=eight_bit, overlap=_WINDOW - 1):
        for channel in range(channels):
            total += _ssim_map(x[:, channel : channel + 1], y[:, channel : channel + 1], weights).sum(dim=(1, 2, 3))
    return total / count


@dataclass(frozen=True)
class Protocol:
    """One way to measure: call it to get the number, print it to get what stands beside the number.

    >>> str(Protocol("SSIM", luma=True, border=4))
    'SSIM, Y (BT.601), 8-bit, border 4'
    """

    metric: str = "PSNR"
    border: int = 0
    luma: bool = False
    eight_bit: bool = True

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise ImageError(f"There is no full-reference metric {self.metric!r}.", " or ".join(_METRICS))

    def __str__(self) -> str:
        colour = "Y (BT.601)" if self.luma else "RGB"
        depth = "8-bit" if self.eight_bit else "unrounded"
        return f"{self.metric}, {colour}, {depth}, border {self.border}"

    @property
    def smallest(self) -> int:
        """The least height and width that can be measured."""
        return 2 * self.border + (_WINDOW if self.metric == "SSIM" else 1)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,) float64."""
        return _METRICS[self.metric](a, b, border=self.border, luma=self.luma, eight_bit=self.eight_bit)


_METRICS = {"PSNR": psnr, "SSIM": ssim}


def _checked(a: Tensor, b: Tensor, border: int, smallest: int) -> tuple[Tensor, Tensor]:
    """Both images without their border, or the refusal."""
    for image in (a, b):
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[0] == 0:
            raise ImageError(f"An image of shape {tuple(image.shape)} cannot be measured.", "(B, 3, H, W)")
        if not image.is_floating_point():
            raise ImageError(f"An image of {image.dtype} cannot be measured.", "floating point in [0, 1]")
    if a.shape != b.shape:
        raise ImageError(
            f"Images of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be measured against each other.",
            "the same shape",
            "Resize or crop one of them first, and say so beside the number.",
        )
    height, width = a.shape[-2:]
    if border < 0:
        raise ImageError(f"A border of {border} pixels cannot be left out.", "0 or more")
    if min(height, width) - 2 * border < smallest:
        left = f"{height - 2 * border}x{width - 2 * border}" if border else f"{height}x{width}"
        raise ImageError(
            f"An image of {height}x{width} with a border of {border} leaves {left} pixels to measure.",
            f"at least {smallest}x{smallest}",
        )
    a, b = (image.detach()[:, :, border : height - border, border : width - border] for image in (a, b))
    for image in (a, b):
        # The sum is cheap and finite unless something is not, or values are absurdly large: then look at each.
        if not bool(torch.isfinite(image.sum())) and not bool(torch.isfinite(image).all()):
            raise ImageError("An image holds values that are not finite.", "numbers in [0, 1]")
    # Apple's GPU has no float64.
    device = torch.device("cpu") if "mps" in (a.device.type, b.device.type) else a.device
    return a.to(device), b.to(device)


def _strips(a: Tensor, b: Tensor, *, luma: bool, eight_bit: bool, overlap: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both images from top to bottom, `overlap` rows shared by neighbours, float64 in [0, 255], 3 channels or luma."""
    batch, _, height, width = a.shape
    rows = max(1, math.ceil(_STRIP_PIXELS / (batch * width)))
    for top in range(0, height - overlap, rows):
        bottom = min(top + rows + overlap, height)
        yield (
            _prepared(a[:, :, top:bottom], luma=luma, eight_bit=eight_bit),
            _prepared(b[:, :, top:bottom], luma=luma, eight_bit=eight_bit),
        )


def _prepared(image: Tensor, *, luma: bool, eight_bit: bool) -> Tensor:
    image = image.clamp(0.0, 1.0)
    # Half precision cannot hold 255 levels apart; float32 is where a file that is saved gets rounded.
    image = image.float() if image.dtype != torch.float64 else image
    image = (image * 255.0).round().to(torch.float64) if eight_bit else image.to(torch.float64) * 255.0
    if not luma:
        return image
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=image.device).view(1, 3, 1, 1)
    if not eight_bit:
        return (image / 255.0 * weights).sum(dim=1, keepdim=True) + _LUMA_OFFSET
    # BasicSR passes through float32 twice on this way, which moves a PSNR of 50 dB by some 1e-6 dB; so do we.
    y = ((image.float() / 255.0).to(torch.float64) * weights).sum(dim=1, keepdim=True) + _LUMA_OFFSET
    return ((y / 255.0).float() * 255.0).to(torch.float64)


def _gaussian() -> list[float]:
    weights = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]
    return [weight / sum(weights) for weight in weights]


def _blur(image: Tensor, weights: list[float]) -> Tensor:
    """The separable Gaussian over the valid region of (..., H, W)."""
    return _blur_along(_blur_along(image, weights, -2), weights, -1)


def _blur_along(image: Tensor, weights: list[float], dim: int) -> Tensor:
    # Sums of shifted views: on a CPU some ten times as fast as conv2d, which is not tuned for float64.
    size = image.shape[dim] - _WINDOW + 1
    total = image.narrow(dim, 0, size) * weights[0]
    for k in range(1, _WINDOW):
        total.add_(image.narrow(dim, k, size), alpha=weights[k])
    return total


def _ssim_map(x: Tensor, y: Tensor, weights: list[float]) -> Tensor:
    mean_x, mean_y = _blur(x, weights), _blur(y, weights)
    variance_x = _blur(x * x, weights) - mean_x.square()
    variance_y = _blur(y * y, weights) - mean_y.square()
    covariance = _blur(x * y, weights) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)
