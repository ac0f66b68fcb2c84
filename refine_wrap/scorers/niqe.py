"""NIQE: how far the statistics of an image's blocks are from those of good photos (Mittal et al. 2013)."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ImageError
from .core import Scorer, frozen

_BLOCK = 96
_PARAMETERS = {"mu_pris_param": (1, 36), "cov_pris_param": (36, 36), "gaussian_window": (7, 7)}
# Bicubic (a = -0.5) at half size, widened against aliasing: the same eight weights at every pixel, exact in binary.
_HALF = tuple(k / 256 for k in (-3, -9, 29, 111, 111, 29, -9, -3))
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# BT.601 luma of R, G, B in [0, 1], as MATLAB's rgb2ycbcr: Y runs from 16 to 235.
_LUMA, _LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0


class NIQE(Scorer):
    """NIQE of the BT.601 luma at 8 bits, without border, in blocks of 96x96; lower is better, photos mostly 2 to 10.

    Equal to `basicsr.metrics.calculate_niqe` with crop_border 0 on the 8-bit image. It rounds, so it has no gradient,
    and is always computed on the CPU. Memory beside the image: some four bytes a pixel, and strips of a row of blocks.

    Args:
        file: the statistics of good photos, `niqe_pris_params.npz`. None: the file in an installed BasicSR.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """

    name = "niqe"
    worst = 20.0
    best = 0.0
    smallest = 2 * _BLOCK  # the covariance over blocks needs some
    mu_pris_param: Tensor
    cov_pris_param: Tensor
    gaussian_window: Tensor

    def __init__(self, file: str | Path | None = None) -> None:
        super().__init__()
        for name, shape in _PARAMETERS.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        frozen(self, _read_parameters(Path(file).expanduser() if file is not None else _of_basicsr()))

    @torch.no_grad()
    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,).

        Raises:
            ImageError: as `checked`, or the image is flat nearly everywhere: fewer than two of its blocks vary.
        """
        device, plane = image.device, _luma(self.checked(image).cpu())
        features = torch.cat((self._features(plane, _BLOCK), self._features(_halved(plane), _BLOCK // 2)), dim=2)
        scores = [self._distance(blocks, place) for place, blocks in enumerate(features)]
        return torch.stack(scores).float().to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> NIQE:
        """It stays where it is: on the CPU, in float64."""
        return self

    def _features(self, plane: Tensor, block: int) -> Tensor:
        """(B, H, W), sides multiples of `block` -> (B, blocks, 18)."""
        found = []
        for top in range(0, plane.shape[1], block):
            contrast = self._contrast(plane, top, top + block)
            # (B, blocks in this row, block, block)
            blocks = contrast.view(*contrast.shape[:2], -1, block).transpose(1, 2)
            parts = [_spread(blocks)]
            for shift in _SHIFTS:
                parts.append(_products(blocks * blocks.roll(shift, dims=(2, 3))))
            found.append(torch.cat(parts, dim=2))
        return torch.cat(found, dim=1)

    def _contrast(self, plane: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top..bottom, less the local mean and over the local deviation + 1; (B, rows, W) float32.

        The intermediate results are rounded to float32 as in BasicSR: whether a pixel of a flat area is exactly 0 or
        1e-14 decides in which of the statistics it counts.
        """
        margin = self.gaussian_window.shape[0] // 2
        rows = torch.arange(top - margin, bottom + margin).clamp(0, plane.shape[1] - 1)
        strip = torch.nn.functional.pad(plane[:, rows].float(), (margin, margin), mode="replicate")
        mean = self._smooth(strip).float()
        deviation = (self._smooth(strip.square()).float() - mean.square()).abs().sqrt()
        return (strip[:, margin:-margin, margin:-margin] - mean) / (deviation + 1)

    def _smooth(self, strip: Tensor) -> Tensor:
        """(B, H, W) float32 -> (B, H - 6, W - 6) float64. The Gaussian window is the product of its two sums."""
        down, across = (self.gaussian_window.sum(dim) for dim in (1, 0))
        return _weighted(_weighted(strip.double(), down.tolist(), 1), across.tolist(), 2)

    def _distance(self, blocks: Tensor, place: int) -> Tensor:
        """(blocks, 36) -> (): the Mahalanobis distance between the blocks' Gaussian and that of good photos."""
        whole = blocks[~blocks.isnan().any(dim=1)]
        if len(whole) < 2:
            raise ImageError(
                f"NIQE is not defined for image {place} of the batch: {len(whole)} of its {len(blocks)} blocks vary",
                f"at least two blocks of {_BLOCK}x{_BLOCK} with some texture",
            )
        covariance = (self.cov_pris_param + torch.cov(whole.T)) / 2
        away = self.mu_pris_param[0] - blocks.nanmean(dim=0)
        return (away @ torch.linalg.pinv(covariance, rtol=1e-15) @ away).sqrt()


# ---------------------------------------------------------------- planes


def _luma(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H', W') uint8: the 8-bit luma of the 8-bit image, cut to whole blocks at right and bottom."""
    height, width = (side // _BLOCK * _BLOCK for side in image.shape[2:])
    plane = image.new_empty((image.shape[0], height, width), dtype=torch.uint8)
    weights = torch.tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1)
    for top in range(0, height, _BLOCK):
        strip = (image[:, :, top : top + _BLOCK, :width] * 255.0).round() / 255.0
        luma = (strip.double() * weights).sum(dim=1) + _LUMA_OFFSET
        plane[:, top : top + _BLOCK] = luma.round().to(torch.uint8)
    return plane


def _halved(plane: Tensor) -> Tensor:
    """(B, H, W) -> (B, H / 2, W / 2) float32, with the border mirrored about the edge of the image.

    As BasicSR: in float32, of values in [0, 1], and each sum by BLAS over the same layout in memory, on whose alignment
    its rounding depends. In flat areas the rounding is what NIQE sees: it moves smooth photos by up to 0.03.
    """
    batch, height, width = plane.shape
    taps = len(_HALF)
    weights = torch.tensor(_HALF)
    rows, columns = _mirrored(height), _mirrored(width)
    half = torch.empty(batch, height // 2, width // 2)
    for image, result in zip(plane, half, strict=True):
        flat = torch.empty(height // 2, len(columns))
        for y in range(height // 2):
            flat[y] = (image[rows[2 * y : 2 * y + taps]].float() / 255.0).T.mv(weights)[columns]
        for x in range(width // 2):
            result[:, x] = flat[:, 2 * x : 2 * x + taps].mv(weights)
    return half.mul_(255.0)


def _mirrored(size: int) -> Tensor:
    """The places of a side, continued by three at either end."""
    places = torch.arange(-3, size + 3)
    places = torch.where(places < 0, -1 - places, places)
    return torch.where(places >= size, 2 * size - 1 - places, places)


def _weighted(image: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """The window along one dimension, where it lies wholly inside."""
    # Sums of shifted views: on a CPU far faster than conv2d, which is not tuned for float64.
    size = image.shape[dim] - len(weights) + 1
    total = image.narrow(dim, 0, size) * weights[0]
    for k in range(1, len(weights)):
        total.add_(image.narrow(dim, k, size), alpha=weights[k])
    return total


# ---------------------------------------------------------------- statistics of a block


def _spread(blocks: Tensor) -> Tensor:
    """(..., h, w) -> (..., 2): shape and mean width of the asymmetric generalised Gaussian fitted to the contrast."""
    shape, left, right, _ = _fitted(blocks)
    return torch.stack((shape, (left + right) / 2), dim=-1)


def _products(blocks: Tensor) -> Tensor:
    """(..., h, w) -> (..., 4): shape, mean and both widths of the one fitted to products of neighbours."""
    shape, left, right, ratio = _fitted(blocks)
    return torch.stack((shape, (right - left) * ratio, left, right), dim=-1)


def _fitted(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, left and right width, and gamma(2 / shape) / gamma(1 / shape), each of (..., h, w) -> (...).

    By moments, the shape from a table in steps of 0.001 (Lasmar et al. 2009). Where the values are all of one sign or
    zero, the widths are NaN and the shape is the table's first: BasicSR's means over blocks contain that.
    """
    values = blocks.double()
    left, right = (_root_mean_square(values.clamp(**side)) for side in ({"max": 0.0}, {"min": 0.0}))
    ratio = left / right
    rho = values.abs().mean(dim=(-2, -1)).square() / values.square().mean(dim=(-2, -1))
    rho = rho * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shapes, moments, scales, ratios = _table()
    above = torch.searchsorted(moments, rho.contiguous()).clamp(1, len(moments) - 1)
    nearest = torch.where(rho - moments[above - 1] <= moments[above] - rho, above - 1, above)
    nearest = torch.where(rho.isnan(), 0, nearest)
    return shapes[nearest], left * scales[nearest], right * scales[nearest], ratios[nearest]


@lru_cache(maxsize=1)
def _table() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes s; the moment that each is known by, rising; its width over its deviation; gamma(2 / s) / gamma(1 / s)."""
    shapes = 0.2 + 0.001 * torch.arange(9801, dtype=torch.float64)
    one, two, three = (torch.lgamma(k / shapes) for k in (1, 2, 3))
    return shapes, (2 * two - one - three).exp(), ((one - three) / 2).exp(), (two - one).exp()


def _root_mean_square(values: Tensor) -> Tensor:
    """Over those that are not zero; NaN where all are."""
    return (values.square().sum(dim=(-2, -1)) / values.count_nonzero(dim=(-2, -1))).sqrt()


# ---------------------------------------------------------------- parameters


def _of_basicsr() -> Path:
    spec = importlib.util.find_spec("basicsr")  # finds it without importing it
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "metrics" / "niqe_pris_params.npz"
        if path.is_file():
            return path
    raise CheckpointError(
        "NIQE needs the statistics of good photos, which come with BasicSR, and BasicSR is not installed",
        "niqe=FILE with its niqe_pris_params.npz, or BasicSR",
        "pip install basicsr (Python below 3.13), or get the file from its repository",
    )


def _read_parameters(path: Path) -> dict[str, Tensor]:
    import numpy as np

    if not path.is_file():
        raise CheckpointError(f"There is no file {path}", "niqe_pris_params.npz, as it comes with BasicSR")
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a whole .npz file ({str(error)[:100]})",
            "niqe_pris_params.npz, as it comes with BasicSR",
            "copy or download it again",
        ) from None
    window = state.get("gaussian_window")
    if window is not None and not torch.allclose(window, window.sum(1, keepdim=True) * window.sum(0), atol=1e-6):
        raise CheckpointError(f"{path}: its window is not a Gaussian that sums to 1", "niqe_pris_params.npz of BasicSR")
    return state
