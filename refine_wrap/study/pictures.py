"""What raters see of a picture: the same part of each, as it is, on the same grey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..images import Picture
from ..report.gallery import view

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

_GREY = 128
_BLOCKS = 48
_SMALLEST_BLOCK = 4
_VISIBLE = 6.0
"""Root mean square, of 255, below which a damaged copy might be taken for the picture."""


def box_in(picture: Picture, side: int | None, x: float, y: float) -> Box:
    """A box of `side` pixels or the picture's own where that is less; None: all of it.

    Args:
        x, y: in [0, 1], where in the room that there is.
    """
    width, height = (length if side is None else min(side, length) for length in (picture.width, picture.height))
    left, top = round(x * (picture.width - width)), round(y * (picture.height - height))
    return left, top, left + width, top + height


def cut(picture: Picture, box: Box) -> Image:
    """Part of a picture, 8 bits RGB, what is transparent on grey."""
    from PIL import Image

    part = view(picture).crop(box)
    if part.mode == "RGBA":
        part = Image.alpha_composite(Image.new("RGBA", part.size, (_GREY, _GREY, _GREY, 255)), part).convert("RGB")
    return part


def enlarged(picture: Picture, box: Box, frame: Picture) -> Image:
    """The part of a smaller picture that shows what a box of `frame` does, by bicubic at the box's size.

    Raises:
        DataError: it is larger, or of another shape.
    """
    from PIL import Image

    own, full = (picture.width, picture.height), (frame.width, frame.height)
    # An input's sides are a scale's part of the frame's, rounded by less than a pixel each.
    if own[0] > full[0] or own[1] > full[1] or abs(own[0] * full[1] - own[1] * full[0]) >= sum(full):
        raise DataError(f"{own[0]}x{own[1]} pixels", f"{full[0]}x{full[1]}, or less in the same shape")
    if own == full:
        return cut(picture, box)
    x, y = own[0] / full[0], own[1] / full[1]
    whole = cut(picture, (0, 0, *own))
    size = (box[2] - box[0], box[3] - box[1])
    return whole.resize(size, Image.Resampling.BICUBIC, box=(box[0] * x, box[1] * y, box[2] * x, box[3] * y))


def damaged(image: Image) -> Image:
    """The picture in coarse blocks, which nobody would prefer."""
    from PIL import Image

    side = max(_SMALLEST_BLOCK, max(image.size) // _BLOCKS)
    small = image.resize([-(-length // side) for length in image.size], Image.Resampling.BOX)
    return small.resize([length * side for length in small.size], Image.Resampling.NEAREST).crop((0, 0, *image.size))


def shows(copy: Image, image: Image) -> bool:
    """Whether nobody could take a damaged copy for the picture."""
    difference = np.asarray(copy, np.float64) - np.asarray(image, np.float64)
    return float(np.sqrt(np.mean(difference**2))) >= _VISIBLE
