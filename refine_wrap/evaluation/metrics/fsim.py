"""Feature similarity: where phases agree, as the eye finds edges whatever their contrast, and gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ImageError
from .strips import Rows, pooled
from .structure import gradient

_ORIENTATIONS = 4
_WAVELENGTHS = (6, 12, 24, 48)
"""Of the log-Gabor filters, in pixels."""
SMALLEST = _WAVELENGTHS[-1]
_WIDTH = 0.55
"""Of a filter's radial Gaussian: its sigma over its centre frequency."""
_SPREAD = math.pi / _ORIENTATIONS / 1.2
"""Standard deviation of a filter's angle, in radians."""
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def fsim(x: Rows, y: Rows) -> Tensor:
    """FSIMc (Zhang et al. 2011), which weighs in colour; 1 is best. It gives the figures of the authors' FeatureSIM.m.

    Images are first reduced by a whole factor so that the shorter side is about 256 pixels.

    Raises:
        ImageError: both images of a pair are flat, and there is no feature to compare.
    """
    return _similarity(x, y, colour=True)


def fsim_grey(x: Rows, y: Rows) -> Tensor:
    """FSIM, on luma alone; otherwise as `fsim`."""
    return _similarity(x, y, colour=False)


def _similarity(x: Rows, y: Rows, colour: bool) -> Tensor:
    factor = max(1, math.floor(min(x.height, x.width) / 256 + 0.5))
    a, b = (_yiq(pooled(rows, factor, "zero")) for rows in (x, y))
    congruency_a, congruency_b = (_phase_congruency(image[:, :1]) for image in (a, b))
    slope_a, slope_b = (gradient(F.pad(image[:, :1], (0, 0, 1, 1)), (3 / 16, 10 / 16)) for image in (a, b))
    weight = torch.maximum(congruency_a, congruency_b)
    alike = weight * _alike(congruency_a, congruency_b, 0.85) * _alike(slope_a, slope_b, 160.0)
    if colour:
        hue = _alike(a[:, 1:2], b[:, 1:2], 200.0) * _alike(a[:, 2:], b[:, 2:], 200.0)
        # The real part of a power that is complex where opposite colours make the product negative.
        power = hue.abs() ** 0.03
        alike = alike * torch.where(hue < 0, math.cos(0.03 * math.pi) * power, power)
    total = weight.sum(dim=(1, 2, 3))
    if not bool((total > 1e-6 * weight[0].numel()).all()):
        raise ImageError("FSIM has nothing to compare: both images are flat.", "pictures with some structure")
    return alike.sum(dim=(1, 2, 3)) / total


def _alike(a: Tensor, b: Tensor, constant: float) -> Tensor:
    return (2 * a * b + constant) / (a.square() + b.square() + constant)


def _yiq(image: Tensor) -> Tensor:
    matrix = torch.tensor(_TO_YIQ, dtype=image.dtype, device=image.device)
    return torch.einsum("kc,bchw->bkhw", matrix, image)


def _phase_congruency(image: Tensor) -> Tensor:
    """(B, 1, H, W) -> the same, in [0, 1]: Kovesi's phasecong2 with FSIM's settings."""
    spectrum = torch.fft.fft2(image)
    radius, angle = _frequencies(image)
    low = 1 / (1 + (radius / 0.45) ** 30)  # a Butterworth filter: nothing from the spectrum's corners
    radius[0, 0] = 1.0
    bands = [torch.exp(-(torch.log(radius * size) ** 2) / (2 * math.log(_WIDTH) ** 2)) * low for size in _WAVELENGTHS]
    for band in bands:
        band[0, 0] = 0.0
    energies, amplitudes = torch.zeros_like(image), torch.zeros_like(image)
    for k in range(_ORIENTATIONS):
        energy, amplitude = _oriented(spectrum, bands, _toward(angle, k * math.pi / _ORIENTATIONS))
        energies += energy
        amplitudes += amplitude
    return torch.where(amplitudes > 0, energies / amplitudes, 0.0)


def _frequencies(image: Tensor) -> tuple[Tensor, Tensor]:
    """Radius (cycles a pixel) and angle of every entry of the spectrum."""

    def along(size: int) -> Tensor:
        steps = torch.arange(size, dtype=image.dtype, device=image.device) - size // 2
        return torch.fft.ifftshift(steps / (size - size % 2))

    down, across = torch.meshgrid(along(image.shape[2]), along(image.shape[3]), indexing="ij")
    return torch.hypot(down, across), torch.atan2(-down, across)


def _toward(angle: Tensor, direction: float) -> Tensor:
    """A Gaussian of how far each angle is from the direction."""
    away = torch.remainder(angle - direction + math.pi, 2 * math.pi) - math.pi
    return torch.exp(-away.square() / (2 * _SPREAD**2))


def _oriented(spectrum: Tensor, bands: list[Tensor], toward: Tensor) -> tuple[Tensor, Tensor]:
    """Of one orientation: the energy above what noise would have, and the sum of the amplitudes."""
    responses = [torch.fft.ifft2(spectrum * band * toward) for band in bands]
    amplitude = torch.stack([response.abs() for response in responses]).sum(dim=0)
    whole = torch.stack(responses).sum(dim=0)
    mean = whole / (whole.abs() + 1e-4)
    energy = torch.zeros_like(amplitude)
    for response in responses:
        turned = response * mean.conj()
        energy += turned.real - turned.imag.abs()
    # Noise is judged by the smallest scale, which holds little else: its median power gives the Rayleigh distribution
    # of the energy that noise alone has.
    power = _median(responses[0].abs().square()) / math.log(2) / (bands[0] * toward).square().sum()
    filters = torch.fft.ifft2(torch.stack(bands).sum(dim=0) * toward).real.square().sum() * toward.numel()
    tau = (power * filters).sqrt()
    threshold = tau * (math.sqrt(math.pi / 2) + 2.0 * math.sqrt(2 - math.pi / 2)) / 1.7
    return (energy - threshold).clamp_min(0.0), amplitude


def _median(values: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 1, 1, 1): the mean of the two in the middle where their number is even."""
    ordered = values.flatten(1).sort(dim=1).values
    middle = ordered.shape[1]
    return (ordered[:, (middle - 1) // 2] + ordered[:, middle // 2]).div(2).view(-1, 1, 1, 1)
