"""A pair of images, checked, and handed out in strips of rows.

A metric works in float64, where one copy of a 50 MP photo takes 1.2 GB. It therefore never has a whole photo in
float64: it takes strips, adds up, and keeps at most what has been reduced to half the height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ImageError

STRIP_PIXELS = 1 << 17
"""Pixels in a strip, about: its copies mostly stay in a CPU's cache."""

Colour = Literal["RGB", "luma", "grey"]
Edge = Literal["replicate", "symmetric", "zero"]
"""What lies beyond an image: its outermost pixel again; its pixels mirrored, the outermost one twice; 0."""

# ITU-R BT.601 luma of R, G, B in [0, 1], as MATLAB's rgb2ycbcr: Y runs from 16 to 235.
_LUMA = (65.481, 128.553, 24.966)
_LUMA_OFFSET = 16.0
_GREY = (0.299, 0.587, 0.114)
"""The same weights for R, G and B without the offset: from 0 to 255."""


def checked(a: Tensor, b: Tensor, border: int, smallest: int) -> tuple[Tensor, Tensor]:
    """Both images without their border, or the refusal.

    Raises:
        ImageError: shapes differ or are not (B, 3, H, W), a value is not finite, or fewer than `smallest` pixels a side
            are left without the border.
    """
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


class Rows:
    """A batch of images that hands out rows, ready to be measured: `rows(top, bottom)` -> (B, C, bottom - top, W).

    Args:
        image: (B, C, H, W).
        ready: what is done to the rows when they are asked for.
    """

    def __init__(self, image: Tensor, ready: Callable[[Tensor], Tensor] | None = None) -> None:
        self._image, self._ready = image, ready
        self.batch, _, self.height, self.width = image.shape
        self.device = image.device

    def __call__(self, top: int, bottom: int, edge: Edge = "replicate") -> Tensor:
        """Rows beyond the image are made by `edge`."""
        first, last = max(top, 0), min(bottom, self.height)
        rows = self._image[:, :, first:last]
        return part(self._ready(rows) if self._ready else rows, 2, top - first, bottom - first, edge)

    def strips(self, overlap: int = 0) -> Iterator[tuple[int, int]]:
        """From top to bottom, `overlap` rows shared by neighbours."""
        rows = max(1, math.ceil(STRIP_PIXELS / (self.batch * self.width)))
        for top in range(0, self.height - overlap, rows):
            yield top, min(top + rows + overlap, self.height)

    def zeros(self) -> Tensor:
        """(B,), for what is added up over the strips."""
        return torch.zeros(self.batch, dtype=torch.float64, device=self.device)


def part(image: Tensor, dim: int, start: int, stop: int, edge: Edge) -> Tensor:
    """From `start` to `stop` along one dimension; what lies beyond the image is made by `edge`."""
    size = image.shape[dim]
    if start >= 0 and stop <= size:
        return image.narrow(dim, start, stop - start)
    if edge == "zero":
        beyond = (-start, stop - size)
        return F.pad(image, beyond if dim == 3 else (0, 0, *beyond))
    index = torch.arange(start, stop, device=image.device)
    if edge == "symmetric":
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index >= size, 2 * size - 1 - index, index)
    return image.index_select(dim, index.clamp(0, size - 1))


def prepared(image: Tensor, colour: Colour, eight_bit: bool) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> float64 in [0, 255]: 3 channels, or 1 of luma (from 16 to 235) or grey."""
    image = image.clamp(0.0, 1.0)
    # Half precision cannot hold 255 levels apart; float32 is where a file that is saved gets rounded.
    image = image.float() if image.dtype != torch.float64 else image
    image = (image * 255.0).round().to(torch.float64) if eight_bit else image.to(torch.float64) * 255.0
    if colour == "RGB":
        return image
    weights = _LUMA if colour == "luma" else _GREY
    weighted = torch.tensor(weights, dtype=torch.float64, device=image.device).view(1, 3, 1, 1)
    if colour == "grey":
        return (image * weighted).sum(dim=1, keepdim=True)
    if not eight_bit:
        return (image / 255.0 * weighted).sum(dim=1, keepdim=True) + _LUMA_OFFSET
    # BasicSR passes through float32 twice on this way, which moves a PSNR of 50 dB by some 1e-6 dB; so do we.
    y = ((image.float() / 255.0).to(torch.float64) * weighted).sum(dim=1, keepdim=True) + _LUMA_OFFSET
    return ((y / 255.0).float() * 255.0).to(torch.float64)


# ---------------------------------------------------------------- windows and smaller copies


def gaussian(size: int, sigma: float) -> list[float]:
    """`size` weights that sum to 1."""
    weights = [math.exp(-((k - size // 2) ** 2) / (2 * sigma**2)) for k in range(size)]
    return [weight / sum(weights) for weight in weights]


def blur(image: Tensor, weights: list[float]) -> Tensor:
    """The separable window over (..., H, W), only where it lies wholly inside."""
    return _blur_along(_blur_along(image, weights, -2), weights, -1)


def _blur_along(image: Tensor, weights: list[float], dim: int) -> Tensor:
    # Sums of shifted views: on a CPU some ten times as fast as conv2d, which is not tuned for float64.
    size = image.shape[dim] - len(weights) + 1
    total = image.narrow(dim, 0, size) * weights[0]
    for k, weight in enumerate(weights[1:], 1):
        total.add_(image.narrow(dim, k, size), alpha=weight)
    return total


def pooled(rows: Rows, factor: int, edge: Edge) -> Tensor:
    """The mean of every `factor` x `factor` pixels, of ceil(H / factor) x ceil(W / factor) of them.

    The blocks lie as those of MATLAB's `conv2(image, fspecial('average', factor), 'same')(1:factor:end)`: the first one
    begins (factor - 1) // 2 pixels before the image.
    """
    before = (factor - 1) // 2
    high, wide = (math.ceil(size / factor) for size in (rows.height, rows.width))

    def reduced(top: int, bottom: int) -> Tensor:
        whole = rows(top * factor - before, bottom * factor - before, edge)
        return F.avg_pool2d(part(whole, 3, -before, wide * factor - before, edge), factor)

    return _in_strips(reduced, high, wide * rows.batch * factor**2)


def blurred_half(rows: Rows, weights: list[float], edge: Edge | None = None) -> Tensor:
    """Every second pixel, in both directions, of `blur`; with an edge, of the image extended to keep its size."""
    around = len(weights) - 1
    before = around // 2 if edge else 0
    height, width = (size + 2 * before - around for size in (rows.height, rows.width))

    def reduced(top: int, bottom: int) -> Tensor:
        whole = rows(2 * top - before, 2 * bottom - 1 + around - before, edge or "replicate")
        whole = part(whole, 3, -before, rows.width + before, edge or "replicate")
        return blur(whole, weights)[..., ::2, ::2]

    return _in_strips(reduced, math.ceil(height / 2), 2 * width * rows.batch)


def _in_strips(reduced: Callable[[int, int], Tensor], height: int, pixels: int) -> Tensor:
    """`reduced` from top to bottom; `pixels` are what it takes for one row of its own."""
    step = max(1, math.ceil(STRIP_PIXELS / pixels))
    strip = reduced(0, min(step, height))
    whole = strip.new_empty(*strip.shape[:2], height, strip.shape[3])
    whole[:, :, :step] = strip
    for top in range(step, height, step):
        whole[:, :, top : top + step] = reduced(top, min(top + step, height))
    return whole
