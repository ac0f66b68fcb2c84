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


class Reconstruction(NamedTuple):
    """What a `Reconstructor` makes of an image."""

    output: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    loss: Tensor
    """Scalar: the network's own term beside the distance of the images, weighed as published."""


class Reconstructor(nn.Module):
    """Paints an image again; the less it was trained, the worse.

    A subclass has `forward` and `config`, and says of itself what stands below.

    Source: "Undertrained Image Reconstruction" (arXiv 2503.02767), 3.1.
    """

    kind: str
    """How it is called in recipes and adapters."""
    stride: int
    """Sides that `forward` takes are multiples of it."""

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

    @torch.no_grad()
    def reconstruct(self, image: Tensor, *, half_range: bool = False) -> Tensor:
        """The image, painted again.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], any size; it is padded by its border pixels and cropped after.
            half_range: feed it as it is, [0, 1], to the network that was trained on [-1, 1], and hold what comes in
                [0, 1]: the first author's generation script does so, and the mismatch is a part of its degradation.

        Returns:
            (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: another shape or type.
        """
        check_image(image)
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        output = self(padded if half_range else padded * 2 - 1).output[..., :height, :width]
        return (output if half_range else (output + 1) / 2).clamp(0, 1)
