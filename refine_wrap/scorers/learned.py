"""Our own scorers: a small trunk from scratch, a map of local scores, and their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import RefineWrapError
from .core import Scorer

TILE = 512
"""Longest side that the trunk sees at once; a larger image is scored in tiles, so that memory stays bounded."""
LEAST = 32
"""A smaller image is continued by its edge pixels up to this side: the trunk makes it 32 times smaller."""
COLOURS = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""Luminance and two colour differences of RGB (ITU-R BT.601)."""
FINE, LIFT = 1.5, 40.0
"""What a Gaussian of this sigma (pixels) takes away is detail; a detail of 1 / LIFT is seen as about 1."""
SPREAD = 4.0
"""How wide the scale from 0 to 1 is, in logits. Training pulls those of good and bad pictures up to 20 apart."""


class LearnedScorer(Scorer):
    """Looks at an image and its detail through a trunk of timm; every place gets a score and a weight, and the image
    their weighted mean: a plain wall tells less of an image's quality than what stands before it.

    It is trained by recipes of objective `score`. The scale is its own: 0 to 1, by the logistic function.

    Args:
        name: how the scorer is called.
        trunk: name of a model of timm, built from scratch without its classifier.
        options: arguments of that model.
        licence: of the weights.

    Raises:
        RefineWrapError: timm has no such model, or the options are not its.
    """

    differentiable = True
    worst, best = 0.0, 1.0

    def __init__(
        self, name: str, trunk: str, options: Mapping[str, Any] | None = None, licence: str = "CC-BY-SA-4.0"
    ) -> None:
        import timm

        super().__init__()
        self.name, self.licence = name, licence
        options = dict(options or {})
        self.config: dict[str, Any] = {"name": name, "trunk": trunk, "options": options}
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
        }
        try:
            model: Any = timm.create_model(trunk, pretrained=False, num_classes=0, global_pool="", in_chans=6, **given)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RefineWrapError(
                f"timm cannot build {trunk} with {options}: {error}", "a model of timm.list_models() and its arguments"
            ) from None
        self.trunk = model
        self.head = nn.Conv2d(int(model.num_features), 2, 1)
        self.eval()

    def raw(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return torch.sigmoid(self.logits(image) / SPREAD)

    def logits(self, image: Tensor) -> Tensor:
        """The score before the logistic function, times `SPREAD`, (B, 3, H, W) -> (B,) float32.

        Differences of it are trained on.
        """
        image = self.checked(image).to(self.head.weight.dtype)
        total = weight = image.new_zeros(image.shape[0], dtype=torch.float32)
        for tile in tiles(image, TILE):
            scores, weights = self._map(tile).float().unbind(1)
            weights = functional.softplus(weights)
            # Per pixel, so that a tile counts by its size however it is rounded to the trunk's stride.
            area = tile.shape[-2] * tile.shape[-1] / weights[0].numel()
            total = total + (scores * weights).sum((1, 2)) * area
            weight = weight + weights.sum((1, 2)) * area
        return total / weight

    def _map(self, image: Tensor) -> Tensor:
        """Local scores, and logits of their weights, (B, 2, h, w)."""
        down, right = (max(LEAST - side, 0) for side in image.shape[-2:])
        if down or right:
            image = functional.pad(image, (0, right, 0, down), mode="replicate")
        trunk: Any = self.trunk
        scores: Tensor = self.head(trunk.forward_features(torch.cat((image * 2 - 1, detail(image)), 1)))
        return scores


def detail(image: Tensor) -> Tensor:
    """What is finer than a slight blur, of luminance and colour differences, (B, 3, H, W), small differences lifted.

    Light noise and light smoothing are less than a hundredth of an image's range; they decide, and a small trunk
    needs long to find them by itself.
    """
    line = torch.exp(-0.5 * (torch.arange(-4, 5, dtype=torch.float32) / FINE) ** 2)
    line = (line / line.sum()).to(image).expand(3, 1, 1, -1)
    planes = torch.einsum("ij,bjhw->bihw", torch.tensor(COLOURS).to(image), image)
    wide = functional.pad(planes, (4, 4, 4, 4), mode="replicate")
    soft = functional.conv2d(functional.conv2d(wide, line, groups=3), line.mT, groups=3)
    return torch.asinh(LIFT * (planes - soft))


def tiles(image: Tensor, longest: int) -> Iterator[Tensor]:
    """(B, C, H, W) in equal parts of at most `longest` pixels a side, without overlap."""
    rows, columns = (torch.arange(side).tensor_split(-(-side // longest)) for side in image.shape[-2:])
    for row in rows:
        for column in columns:
            yield image[..., int(row[0]) : int(row[-1]) + 1, int(column[0]) : int(column[-1]) + 1]
