"""Normalised Laplacian pyramid distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .strips import Rows, blurred_half, part

_BLUR = [0.05, 0.25, 0.4, 0.25, 0.05]
_CONSTANTS = (0.0248, 0.0185, 0.0179, 0.0191, 0.0220, 0.2782)
_NEIGHBOURS = (
    # below, above, right, left, two to the left
    (0.1011, 0.1015, 0.1493, 0.1460, 0.0072),
    (0.0757, 0.0837, 0.1986, 0.1846, 0.0),
    (0.0477, 0.0467, 0.2138, 0.2243, 0.0),
    (0.0, 0.0, 0.2503, 0.2616, 0.0),
    (0.0, 0.0, 0.2598, 0.2552, 0.0),
    (0.0, 0.0, 0.2215, 0.0717, 0.0),
)
"""Of each level: the constant, for images in [0, 1], and the weights of a pixel's neighbours in the estimate of its
amplitude. Those of the authors' NLP_dist.m (www.cns.nyu.edu/~lcv/NLPyr), which they fitted to the undistorted photos of
the McGill set."""


def nlpd(x: Rows, y: Rows) -> Tensor:
    """Normalised Laplacian pyramid distance (Laparra et al. 2016), as the authors' NLP_dist.m; 0 is best.

    Six levels of a Laplacian pyramid, each value divided by the amplitude around it plus a constant; the root of the
    mean squared difference in each level, and the mean over the levels.
    """
    total = x.zeros()
    for level in range(len(_CONSTANTS)):
        last = level == len(_CONSTANTS) - 1
        lower = [None if last else blurred_half(rows, _BLUR, "symmetric") for rows in (x, y)]
        squares = x.zeros()
        for top, bottom in x.strips():
            a, b = (_band(rows, half, top, bottom, level) for rows, half in zip((x, y), lower, strict=True))
            squares += (a - b).square().sum(dim=(1, 2, 3))
        total += (squares / (x.height * x.width)).sqrt()
        x, y = (rows if half is None else Rows(half) for rows, half in zip((x, y), lower, strict=True))
    return total / len(_CONSTANTS)


def _band(rows: Rows, half: Tensor | None, top: int, bottom: int, level: int) -> Tensor:
    """Rows of one level of the pyramid, normalised. Without the blurred half it is the last, which keeps its mean."""
    first, last = max(top - 1, 0), min(bottom + 1, rows.height)
    band = rows(first, last)
    if half is not None:
        band = band - _doubled(_doubled(half, 2, first, last), 3, 0, rows.width)
    around = part(part(band.abs(), 2, top - 1 - first, bottom + 1 - first, "zero"), 3, -2, rows.width + 1, "zero")
    below, above, right, left, far = _NEIGHBOURS[level]
    here = around[:, :, 1:-1]
    amplitude = below * around[:, :, 2:, 2:-1] + above * around[:, :, :-2, 2:-1]
    amplitude += right * here[..., 3:] + left * here[..., 1:-2] + far * here[..., :-3]
    return band[:, :, top - first : bottom - first] / (255.0 * _CONSTANTS[level] + amplitude)


def _doubled(image: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """From `start` to `stop` of the image at twice its size: zeros put between its pixels, blurred, times 2."""
    low, high = start // 2, math.ceil(stop / 2)
    near = part(image, dim, low - 1, high + 1, "replicate")
    before, here, after = (near.narrow(dim, k, high - low) for k in range(3))
    outer, between, middle = (2 * weight for weight in _BLUR[:3])
    even = middle * here + outer * (before + after)
    odd = between * (here + after)
    return torch.stack((even, odd), dim + 1).flatten(dim, dim + 1).narrow(dim, start - 2 * low, stop - start)
