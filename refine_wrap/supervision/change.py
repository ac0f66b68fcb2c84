"""What an enhancement changed in a picture: how much, in which band of frequencies, and the limits it is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..degradation.settings import Section
from ..images import Picture
from .masks import FrequencyMaskGenerator

BANDS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, math.sqrt(2))
"""Edges of the bands, as shares of the highest frequency along a side."""
SIZES = ("over 32 px", "16 to 32 px", "8 to 16 px", "4 to 8 px", "2 to 4 px", "diagonals")
"""The bands by the size of their detail; of the last, diagonals alone have any."""
COARSE = 4
"""Fidelity is measured on means over so many pixels squared: what is sharpened or cleaned looks the same there, and
what is drawn anew, moved or coloured does not."""
_GRID = 129
_STEP = 0.99
"""By how much a change is made smaller at least, while rounding leaves the picture below its bound."""


class Change(Section):
    """What became of one picture, measured on the values as they are written (of JPEG: before its own loss)."""

    psnr: float | None
    """dB to the ground truth, RGB; null: nothing changed."""
    fidelity: float | None
    """The same of both pictures at a quarter of their sides."""
    largest: float
    """The largest change of any value, as a share of the full range."""
    limited: bool
    """Whether a limit took some of the change back."""
    weights: list[list[float]]
    """[image][band]: the mean of its mask in a band, the ground truth first."""
    gain: list[float | None]
    """For each band, how strong its detail is, as a multiple of the ground truth's (luma); null: that has none."""
    change: list[float | None]
    """For each band, how strong the difference is, on the same scale."""


def within(
    mixed: Tensor, truth: Picture, *, max_change: float | None = None, min_psnr: float | None = None
) -> tuple[Picture, bool]:
    """The picture that a mixture makes of a ground truth, held within limits, and whether they took something back.

    Args:
        mixed: (1, 3, H, W), RGB, not clamped, on the CPU.
        truth: the ground truth, whose depth and kind the picture has; no alpha.
        max_change: no value changes by more than this share of the full range.
        min_psnr: dB; where the picture is farther from the ground truth, all of its change is made smaller by one
            factor.

    Raises:
        ImageError: the mixture is not finite.
    """
    gt = truth.tensor()
    change = mixed.clamp(0, 1).sub_(gt)
    took_back = False
    if max_change is not None:
        top = 2**truth.bits - 1
        most = math.floor(max_change * top + 1e-9) / top  # rounding must not carry a value beyond
        took_back = float(change.abs().max()) > most
        change.clamp_(-most, most)
    result = truth.blank_like(truth.height, truth.width)
    result.put(0, 0, gt + change)
    if min_psnr is not None:
        found, factor = decibels(result.tensor(), gt), 1.0
        while found < min_psnr:
            factor *= min(10 ** ((found - min_psnr) / 20), _STEP)
            result.put(0, 0, gt + factor * change)
            found, took_back = decibels(result.tensor(), gt), True
    return result, took_back


def measured(result: Tensor, gt: Tensor, weights: Tensor, limited: bool) -> Change:
    """The figures of one picture, (1, 3, H, W) each, on the CPU; `weights` as `band_weights` gives them."""
    energies = _energies(result, gt)
    return Change(
        psnr=_rounded(decibels(result, gt), 3),
        fidelity=_rounded(decibels(_coarse(result), _coarse(gt)), 3),
        largest=round(float((result - gt).abs().max()), 6),
        limited=limited,
        weights=[[round(value, 4) for value in image] for image in weights.tolist()],
        gain=[_ratio(enhanced, own) for enhanced, own, _ in energies],
        change=[_ratio(difference, own) for _, own, difference in energies],
    )


def band_weights(generator: FrequencyMaskGenerator, coefficients: Tensor) -> Tensor:
    """Of coefficients (1, images, rings): the mean of each image's mask in each band, (images, bands)."""
    masks = generator.masks(coefficients, _GRID, _GRID)[0]
    line = torch.linspace(-1, 1, _GRID, device=masks.device)
    band = _band(torch.hypot(line[:, None], line[None]))
    return torch.stack([masks[:, band == number].mean(1) for number in range(len(BANDS) - 1)], 1)


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR of two tensors in [0, 1]; infinite where they are equal."""
    error = float((a - b).square().mean(dtype=torch.float64))
    return -10 * math.log10(error) if error else math.inf


def _coarse(image: Tensor) -> Tensor:
    return functional.avg_pool2d(image, COARSE, ceil_mode=True, count_include_pad=False)


def _energies(result: Tensor, gt: Tensor) -> list[list[float]]:
    """For each band, the energy of the result, of the ground truth and of their difference (luma, without the mean)."""
    height, width = gt.shape[-2:]
    before, after = (_spectrum(image) for image in (gt, result))
    rows = torch.fft.fftfreq(height).abs() * 2
    columns = torch.fft.rfftfreq(width) * 2
    band = _band(torch.hypot(rows[:, None], columns[None])).flatten()
    return torch.stack(
        [
            torch.bincount(band, (each.abs() / (height * width)).square().double().flatten(), len(BANDS) - 1)
            for each in (after, before, after - before)
        ],
        1,
    ).tolist()


def _spectrum(image: Tensor) -> Tensor:
    red, green, blue = image[0].unbind()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.fft.rfft2(luma - luma.mean())


def _band(radius: Tensor) -> Tensor:
    edges = torch.tensor(BANDS[1:-1], device=radius.device)
    return torch.bucketize(radius, edges)


def _ratio(energy: float, own: float) -> float | None:
    # Below it there is nothing but the rounding of a flat area.
    return round(math.sqrt(energy / own), 4) if own > 1e-12 else None


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
