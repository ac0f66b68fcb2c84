"""Metrics over the two images in their rows: PSNR by pixel, the rest by local structure.

Each takes `Rows` (what is measured, then the ground truth) in [0, 255] and gives (B,) float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ImageError
from .strips import Rows, blur, blurred_half, gaussian, part, pooled

_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
WINDOW = 11
"""Side of the window of SSIM and MS-SSIM."""
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales (Wang et al. 2003, section 3.2)."""
_VIF_NOISE = 2.0
"""Variance of the eye's own noise (Sheikh and Bovik 2006, section IV)."""


def psnr(x: Rows, y: Rows) -> Tensor:
    """Peak signal-to-noise ratio in dB; `inf` where the two are identical."""
    squares, channels = x.zeros(), 0
    for top, bottom in x.strips():
        difference = x(top, bottom) - y(top, bottom)
        channels = difference.shape[1]
        squares += difference.square().sum(dim=(1, 2, 3))
    return 10.0 * torch.log10(255.0**2 * x.height * x.width * channels / squares)


def ssim(x: Rows, y: Rows) -> Tensor:
    """Structural similarity: Gaussian window of 11x11, sigma 1.5, where it lies wholly inside; the mean over all."""
    return _similarities(x, y)[0]


def ms_ssim(x: Rows, y: Rows) -> Tensor:
    """SSIM over five scales, each the 2x2 mean of the one before (Wang et al. 2003).

    The product of the scales' mean contrast and structure, the last one's with luminance, to the power of the paper's
    exponents. A mean below 0, which has no power, counts as 0.
    """
    total = x.zeros() + 1.0
    for level, exponent in enumerate(_SCALES):
        whole, structure = _similarities(x, y)
        last = level == len(_SCALES) - 1
        total *= (whole if last else structure).clamp_min(0.0) ** exponent
        if not last:
            x, y = (Rows(pooled(rows, 2, "replicate")) for rows in (x, y))
    return total


def _similarities(x: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """The means of SSIM and of its contrast-and-structure term alone."""
    weights = gaussian(WINDOW, 1.5)
    wholes, structures, channels = x.zeros(), x.zeros(), 0
    for top, bottom in x.strips(WINDOW - 1):
        a, b = x(top, bottom), y(top, bottom)
        channels = a.shape[1]
        for channel in range(channels):
            luminance, structure = _terms(a[:, channel : channel + 1], b[:, channel : channel + 1], weights)
            wholes += (luminance * structure).sum(dim=(1, 2, 3))
            structures += structure.sum(dim=(1, 2, 3))
    count = (x.height - WINDOW + 1) * (x.width - WINDOW + 1) * channels
    return wholes / count, structures / count


def _terms(x: Tensor, y: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
    mean_x, mean_y = blur(x, weights), blur(y, weights)
    variance_x = blur(x * x, weights) - mean_x.square()
    variance_y = blur(y * y, weights) - mean_y.square()
    covariance = blur(x * y, weights) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return luminance, (2 * covariance + _C2) / (variance_x + variance_y + _C2)


def gmsd(x: Rows, y: Rows) -> Tensor:
    """Gradient magnitude similarity deviation (Xue et al. 2014), as the authors' GMSD.m; 0 is best.

    The 2x2 mean, Prewitt gradients with 0 beyond the border, T = 170, and the standard deviation (over n - 1) of the
    similarity. It sees gradients only: a change of brightness costs nothing.
    """
    x, y = (Rows(pooled(rows, 2, "zero")) for rows in (x, y))
    # Sums of 1 - similarity: exactly 0 for identical images, where sums of squares near 1 would leave their rounding.
    sums, squares = x.zeros(), x.zeros()
    for top, bottom in x.strips():
        a, b = (gradient(rows(top - 1, bottom + 1, "zero"), (1 / 3, 1 / 3)) for rows in (x, y))
        lost = (a - b).square() / (a.square() + b.square() + 170.0)
        sums += lost.sum(dim=(1, 2, 3))
        squares += lost.square().sum(dim=(1, 2, 3))
    count = x.height * x.width
    return ((squares - sums.square() / count) / (count - 1)).clamp_min(0.0).sqrt()


def gradient(image: Tensor, weights: tuple[float, float]) -> Tensor:
    """(B, 1, H + 2, W) -> (B, 1, H, W): the magnitude of the 3x3 gradient with these (outer, middle) weights."""
    image = part(image, 3, -1, image.shape[3] + 1, "zero")
    outer, middle = weights
    rows = image[:, :, 2:] - image[:, :, :-2]
    columns = image[..., 2:] - image[..., :-2]
    down = outer * (rows[..., :-2] + rows[..., 2:]) + middle * rows[..., 1:-1]
    across = outer * (columns[:, :, :-2] + columns[:, :, 2:]) + middle * columns[:, :, 1:-1]
    return torch.hypot(down, across)


def vif(x: Rows, y: Rows) -> Tensor:
    """Visual information fidelity in the pixel domain (Sheikh and Bovik 2006), as the authors' vifp_mscale.m.

    How much of the ground truth's information is left in the picture, over four scales. 1 is as much as there was; a
    picture with more contrast than the ground truth's may have more. The order of the two matters.

    Raises:
        ImageError: a ground truth is flat, and has no information to keep.
    """
    kept, there = x.zeros(), x.zeros()
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        window = gaussian(size, size / 5)
        if scale:
            x, y = (Rows(blurred_half(rows, window)) for rows in (x, y))
        for top, bottom in x.strips(size - 1):
            part_kept, part_there = _information(x(top, bottom), y(top, bottom), window)
            kept += part_kept
            there += part_there
    if not bool((there > 1e-6).all()):
        raise ImageError("VIF has nothing to measure against: a ground truth is flat.", "a picture with some structure")
    return kept / there


def _information(x: Tensor, y: Tensor, window: list[float]) -> tuple[Tensor, Tensor]:
    """What a channel of `gain` and `noise` passes on of the ground truth y, and what y holds."""
    tiny = 1e-10  # the authors': below it a variance is none
    mean_x, mean_y = blur(x, window), blur(y, window)
    variance_x = (blur(x * x, window) - mean_x.square()).clamp_min(0.0)
    variance_y = (blur(y * y, window) - mean_y.square()).clamp_min(0.0)
    covariance = blur(x * y, window) - mean_x * mean_y
    gain = covariance / (variance_y + tiny)
    noise = variance_x - gain * covariance
    no_y, no_x = variance_y < tiny, variance_x < tiny
    gain = gain.masked_fill(no_y | no_x, 0.0)
    noise = torch.where(no_y, variance_x, noise).masked_fill(no_x, 0.0)
    variance_y = variance_y.masked_fill(no_y, 0.0)
    noise = torch.where(gain < 0, variance_x, noise).clamp_min(tiny)
    gain = gain.clamp_min(0.0)
    kept = torch.log10(1 + gain.square() * variance_y / (noise + _VIF_NOISE))
    there = torch.log10(1 + variance_y / _VIF_NOISE)
    return kept.sum(dim=(1, 2, 3)), there.sum(dim=(1, 2, 3))
