"""Quality as a condition: what the scores of a training set mean on the dial from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ImageError, RefineWrapError

Quality = float | Tensor


def quality_values(quality: Quality, image: Tensor, name: str = "quality") -> Tensor:
    """The quality of each image of a batch, (B,) in the image's type, checked for shape and for [0, 1].

    Args:
        quality: a number, or a tensor of one value or of B values.
        image: (B, ...).
        name: what it is called where it is refused.

    Raises:
        ImageError: another shape, outside [0, 1], or not a number.
    """
    batch = image.shape[0]
    if not isinstance(quality, Tensor):
        if not 0 <= quality <= 1:  # also catches NaN
            raise ImageError(f"{name} is {quality}", "a number in [0, 1]")
        return image.new_full((batch,), float(quality))
    if quality.shape not in {(), (1,), (batch,)}:
        raise ImageError(f"{name} has shape {tuple(quality.shape)} for a batch of {batch}", f"a number or ({batch},)")
    # Reading values back would break a compiled graph and stall a GPU.
    if (
        not torch.compiler.is_compiling()
        and quality.device.type == "cpu"
        and not bool(((quality >= 0) & (quality <= 1)).all())
    ):
        raise ImageError(f"{name} goes from {quality.min():.3g} to {quality.max():.3g}", "values in [0, 1]")
    return quality.to(image).reshape(-1).expand(batch)


def threshold(scores: Sequence[float], quantile: float) -> float:
    """The score that a share `quantile` of a set lies at or below: for `hq_threshold`.

    Raises:
        RefineWrapError: no scores, one that is no number, or a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise RefineWrapError(f"quantile is {quantile}", "a number in [0, 1]")
    return float(_checked(scores).quantile(quantile))


def _checked(scores: Sequence[float]) -> Tensor:
    values = torch.as_tensor(scores, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or not bool(values.isfinite().all()):
        raise RefineWrapError(f"{values.numel()} scores, or some that are no numbers", "one finite score an image")
    return values
