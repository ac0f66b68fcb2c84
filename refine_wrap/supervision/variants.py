"""Super-resolved variants of a ground truth: seen at another size by a super-resolver, and brought back to its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone, Spec
from ..errors import RefineWrapError

FACTORS = (2, 3, 4)
"""The variants of the paper: x2, x3 and x4."""
GRID = 12
"""Tiles begin at multiples of this many pixels: there every factor and scale up to 4 meets whole pixels."""


class Variant(nn.Module):
    """One variant of a ground truth, (B, 3, H, W) -> (B, 3, H, W), RGB in [0, 1].

    The ground truth is resized by factor / scale, super-resolved by the network, and resized back: for an x4 network,
    x2 is made of the ground truth at half its size, x4 of the ground truth as it is. A network of scale 1 that restores
    an image which was enlarged by an interpolation, as one-step diffusion super-resolvers do, gets it enlarged by the
    factor. Resizing is bicubic (a = -0.5) with antialiasing, Pillow's and MATLAB's kernel; values are clamped to [0, 1]
    before and after the network.

    Args:
        network: the super-resolver.
        factor: how many times larger than the ground truth the network's output is.

    Source: paper 1, 3.1 (there OSEDiff and a factor of 2, 3 and 4).
    """

    def __init__(self, network: Backbone, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise RefineWrapError(f"A variant of factor {factor}", "1 or more; the paper's are 2, 3 and 4")
        self.network, self.factor = network, factor

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        ratio = self.factor / self.network.spec.scale
        seen = resized(image, max(round(height * ratio), 1), max(round(width * ratio), 1))
        return resized(self.network(seen).clamp(0, 1), height, width)


def variants(network: Backbone, factors: tuple[int, ...] = FACTORS) -> list[Backbone]:
    """A backbone of scale 1 for each factor, which makes that variant of a ground truth of any size, in tiles too."""
    if network.spec.scale > max(factors):
        raise RefineWrapError(
            f"{network.spec.family} enlarges {network.spec.scale} times", f"a super-resolver of at most x{max(factors)}"
        )
    family = f"{network.spec.family} variant"
    return [
        Backbone(Variant(network, factor), spec=Spec(family=family, scale=1, multiple_of=GRID)) for factor in factors
    ]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, width), bicubic with antialiasing, clamped to [0, 1]; itself at its own size."""
    if image.shape[-2:] == (height, width):
        return image
    larger = functional.interpolate(image.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return larger.clamp(0, 1).to(image.dtype)
