"""One contract around every no-reference scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.checkpoint import tensors_digest
from ..errors import ImageError


class Scorer(nn.Module):
    """How good an image looks, without a reference: `scorer(image) -> (B,)` in [0, 1], higher is better.

    A subclass has `raw`, and says of itself what stands below. It is always in evaluation mode and its own weights are
    frozen; a gradient, where there is one, is that of the image.
    """

    name: str
    """How it is called, on the command line and in the card of what was trained on it."""
    differentiable: bool = False
    """Whether the score has a gradient with respect to the image. Tests hold every scorer to it."""
    worst: float
    """The published scale's value that counts as 0. It may be above `best`: NIQE's is."""
    best: float
    """The published scale's value that counts as 1."""
    smallest: int = 1
    """Least height and width that can be scored."""
    licence: str = "Apache-2.0"
    """SPDX identifier of the weights' licence, or a word about it."""

    def raw(self, image: Tensor) -> Tensor:
        """The score of each image on the published scale, float32.

        Args:
            image: (B, 3, H, W), floating point, RGB in [0, 1], at least `smallest` high and wide; see `checked`.
        """
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,) in [0, 1], higher is better.

        `raw`, with `worst` moved to 0 and `best` to 1, and what lies beyond either held there.

        Raises:
            ImageError: another shape or type, a value that is not finite, or an image that is too small.
        """
        return self.normalised(self.raw(image))

    def normalised(self, raw: Tensor) -> Tensor:
        """Published scale to [0, 1]."""
        return ((raw - self.worst) / (self.best - self.worst)).clamp(0.0, 1.0)

    def checked(self, image: Tensor) -> Tensor:
        """The image in float32, held in [0, 1] as a file would hold it; not a copy where it is so already.

        Raises:
            ImageError: as `forward`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape or not image.is_floating_point():
            raise ImageError(
                f"An image of shape {tuple(image.shape)} and type {image.dtype} cannot be scored",
                "(B, 3, H, W) of floating point, RGB in [0, 1]",
            )
        if min(image.shape[-2:]) < self.smallest:
            raise ImageError(
                f"{self.name} cannot score an image of {image.shape[-1]}x{image.shape[-2]} pixels",
                f"at least {self.smallest}x{self.smallest}",
            )
        low, high = torch.aminmax(image.detach())  # NaN where any value is
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ImageError("An image to be scored holds values that are not finite", "numbers in [0, 1]")
        if bool((low < 0) | (high > 1)):  # else without a copy, of which a large photo's is large
            image = image.clamp(0.0, 1.0)
        return image.float()

    def about(self) -> dict[str, Any]:
        """What a result names beside its numbers: `name`, `digest` (of the weights), `scale` and `differentiable`."""
        return {
            "name": self.name,
            "digest": self.digest(),
            "scale": [self.worst, self.best],
            "differentiable": self.differentiable,
        }

    def digest(self) -> str:
        """SHA-256 of its parameters and buffers: two scorers of one name and digest give the same scores."""
        return tensors_digest(self.state_dict())

    def entry(self) -> str:
        """How what it trained records it: `NAME@DIGEST`."""
        return f"{self.name}@{self.digest()}"

    def _apply(self, fn: Any, recurse: bool = True) -> Scorer:
        """`.to(device)` moves it; `.half()` and `.to(dtype)` leave its precision, on which scores would depend."""

        def moved(tensor: Tensor) -> Tensor:
            new: Tensor = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Scorer:
        """Nothing here learns: always evaluation mode."""
        super().train(False)
        return self


def frozen(scorer: Scorer, state: Mapping[str, Tensor]) -> None:
    """Load a scorer's weights, strictly, and freeze them.

    Raises:
        CheckpointError: names or shapes are not its own.
    """
    from ..backbone.checkpoint import check_keys

    check_keys(scorer.state_dict(), state, f"What is given for {scorer.name}", type(scorer).__name__)
    scorer.load_state_dict(dict(state), strict=True)
    scorer.requires_grad_(False)
