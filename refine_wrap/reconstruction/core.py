"""Reconstructor: what all networks that paint an image again have in common."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone.checkpoint import tensors_digest
from ..backbone.core import check_image
from .tiles import blended


class Reconstruction(NamedTuple):
    """What a `Reconstructor` makes of an image."""

    output: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    loss: Tensor | None
    """Scalar: the network's own term beside the distance of the images, weighed as published; None: it has none."""


class Reconstructor(nn.Module):
    """Paints an image again; the less it was trained, the worse.

    A subclass has `forward` and `config`, and says of itself what stands below. `forward`, a training step, may leave
    something to chance; `paint` may not.

    Source: "Undertrained Image Reconstruction" (arXiv 2503.02767), 3.1.
    """

    kind: str
    """How it is called in recipes and adapters."""
    stride: int
    """Sides that `forward` takes are multiples of it."""
    fixed = False
    """Whether both sides must be `stride` itself: larger images are painted in tiles."""
    term = "codes"
    """What `Reconstruction.loss` is called where losses are listed."""

    def forward(self, image: Tensor) -> Reconstruction:
        """(B, 3, H, W), RGB in [-1, 1], sides multiples of `stride`."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of kind, arguments and weights: the same for all that paint alike."""
        about = json.dumps([self.kind, self.config(), tensors_digest(self.state_dict())], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def paint(self, image: Tensor) -> Tensor:
        """The image as it is shown, (B, 3, H, W) as `forward` takes it, in evaluation mode: the same at each call."""
        return self(image).output

    @torch.no_grad()
    def reconstruct(self, image: Tensor, *, half_range: bool = False) -> Tensor:
        """The image, painted again, in evaluation mode: the same at each call.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], any size; it is padded by its border pixels and cropped after, and a
                network of one size paints a larger one in tiles, see `blended`.
            half_range: feed it as it is, [0, 1], to the network that was trained on [-1, 1], and hold what comes in
                [0, 1]: the first author's generation script does so, and the mismatch is a part of its degradation.

        Returns:
            (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: another shape or type.
        """
        check_image(image)
        height, width = image.shape[-2:]
        right, below = (max(0, self.stride - side) if self.fixed else -side % self.stride for side in (width, height))
        padded = F.pad(image, (0, right, 0, below), mode="replicate")
        shown = padded if half_range else padded * 2 - 1
        was_training = self.training
        self.eval()
        try:
            output = blended(self.paint, shown, self.stride) if self.fixed else self.paint(shown)
        finally:
            self.train(was_training)
        output = output[..., :height, :width]
        return (output if half_range else (output + 1) / 2).clamp(0, 1)
