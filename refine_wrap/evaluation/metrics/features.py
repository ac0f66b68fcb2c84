"""Metrics that compare what a frozen network sees in the two images. Their weights are given, or lie there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ...backbone.checkpoint import tensors_digest
from ...errors import RefineWrapError
from ...feature_nets import SQUEEZE_TAPS, Dists, Lpips, Squeeze
from ...recipe import SMALLEST_CROP
from .metric import Metric, depth, version
from .strips import checked, prepared

_STRIDES = dict(zip(SQUEEZE_TAPS, (2, 4, 8, 16, 16, 16, 16), strict=True))
TILE = 768
"""Pixels a side that a tile of the squeeze-perceptual distance adds up; a multiple of the largest stride."""
_HALO = 128
"""Pixels around them that it sees: more than what the zeros beyond a tile reach into its features, 96 and a window."""


class FeatureMetric(Metric):
    """A distance of features: 0 where the two images are identical.

    Args:
        name: what `full_reference` takes.
        net: gives (B,) of two images in [0, 1].
        words: what str() says of it besides the rest.
        border, eight_bit: as `Protocol`.
    """

    higher_is_better = False
    unit = ""

    def __init__(self, name: str, net: nn.Module, words: str, border: int = 0, eight_bit: bool = True) -> None:
        self._name, self.net, self.border, self.eight_bit = name, net, border, eight_bit
        self._words = f"{words}, weights {tensors_digest(net.state_dict())[:8]}"
        self._least = SMALLEST_CROP[name.lower()]

    @property
    def name(self) -> str:
        return self._name

    @property
    def smallest(self) -> int:
        return 2 * self.border + self._least

    def __str__(self) -> str:
        return f"{self._words}, RGB, {depth(self.eight_bit)}, border {self.border}"

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = checked(a, b, self.border, self._least)
        self.net.to(a.device)
        with torch.autocast(a.device.type, enabled=False):
            return self._distance(a, b)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        distance: Tensor = self.net(self._ready(a), self._ready(b))
        return distance.to(torch.float64)

    def _ready(self, image: Tensor) -> Tensor:
        return (prepared(image, "RGB", self.eight_bit) / 255.0).float()


class _Squeeze(FeatureMetric):
    """In tiles, which change nothing but the rounding of float32: its features are local."""

    net: Squeeze

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        sums = {place: a.new_zeros(a.shape[0], dtype=torch.float64) for place in SQUEEZE_TAPS}
        counts = dict.fromkeys(SQUEEZE_TAPS, 0)
        for rows, own_rows in _tiles(a.shape[2]):
            for columns, own_columns in _tiles(a.shape[3]):
                seen, wanted = (self.net.features(self._ready(image[:, :, rows, columns])) for image in (a, b))
                for place, stride in _STRIDES.items():
                    lost = (seen[place] - wanted[place]).square().sum(dim=1)
                    lost = lost[:, _own(own_rows, stride), _own(own_columns, stride)]
                    sums[place] += lost.sum(dim=(1, 2), dtype=torch.float64)
                    counts[place] += lost[0].numel()
        return torch.stack([sums[place] / counts[place] for place in SQUEEZE_TAPS]).mean(dim=0)


def _tiles(size: int) -> Iterator[tuple[slice, tuple[int, int | None]]]:
    """What each tile sees, and where in it its own pixels begin and end; None: with the image."""
    start = 0
    while start < size:
        # The last tile takes what is too small for a tile of its own.
        last = size - start < TILE + _HALO
        first, stop = max(0, start - _HALO), size if last else start + TILE + _HALO
        yield slice(first, stop), (start - first, None if last else start - first + TILE)
        start = size if last else start + TILE


def _own(pixels: tuple[int, int | None], stride: int) -> slice:
    start, stop = pixels
    return slice(start // stride, None if stop is None else stop // stride)


def squeeze(
    border: int = 0,
    eight_bit: bool = True,
    file: str | None = None,
    input: Literal["caffe", "torchvision"] | None = None,
) -> FeatureMetric:
    """Distance of SqueezeNet 1.1's features, `feature_nets.Squeeze`: from 0 to 2."""
    if file is None:
        raise RefineWrapError(
            "squeeze needs weights of SqueezeNet 1.1, which do not come with this package",
            "a file with torchvision's key names",
            "name it: squeeze=FILE",
        )
    words = "squeeze-perceptual distance (SqueezeNet 1.1; not LPIPS)"
    return _Squeeze("squeeze", Squeeze(str(file), input), words, border, eight_bit)


def lpips(
    border: int = 0, eight_bit: bool = True, net: Literal["alex", "vgg", "squeeze"] = "alex", file: str | None = None
) -> FeatureMetric:
    """LPIPS 0.1, `feature_nets.Lpips`."""
    distance = Lpips(net, file and str(file))
    return FeatureMetric("LPIPS", distance, f"LPIPS 0.1 ({net}), {version('lpips')}", border, eight_bit)


def dists(border: int = 0, eight_bit: bool = True, file: str | None = None) -> FeatureMetric:
    """DISTS, `feature_nets.Dists`."""
    distance = Dists(file and str(file))
    return FeatureMetric("DISTS", distance, f"DISTS, {version('pyiqa')} (non-commercial)", border, eight_bit)


FEATURE_METRICS: dict[str, Callable[..., FeatureMetric]] = {"squeeze": squeeze, "LPIPS": lpips, "DISTS": dists}
