"""A sheet of one photo restored at several qualities and strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RefineWrapError
from ..folder import PathLike
from ..images import Picture, read_image

if TYPE_CHECKING:
    from ..wrapper import RefineWrapper

QUALITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
STRENGTHS = (0.0, 0.3, 0.6, 1.0)
SIDE = 256
"""Most input pixels of a side that are shown: the middle of a larger photo."""
LABEL, GAP = 16, 4


def sweep_sheet(
    wrapper: RefineWrapper,
    image: PathLike | Picture,
    *,
    qualities: Sequence[float] = QUALITIES,
    strengths: Sequence[float] = STRENGTHS,
    side: int = SIDE,
    **options: Any,
) -> Picture:
    """One picture that shows the backbone's output and, below it, a row a quality and a column a strength.

    Args:
        wrapper: one without a quality head has one row, one without a refiner one column.
        image: a photo; of a larger one its middle is shown, transparency apart.
        qualities, strengths: in [0, 1].
        side: most input pixels of a side that are shown.
        options: of `refine_wrap.restore.restore`: tile, halo, dtype.

    Returns:
        The sheet, 8 bits.

    Raises:
        RefineWrapError: there is nothing to sweep: neither a head nor a refiner.
        ImageError: the photo cannot be read.
    """
    rows: Sequence[float | None] = qualities if wrapper.knows_quality else [None]
    columns: Sequence[float | None] = strengths if wrapper.refiner is not None else [None]
    if not wrapper.knows_quality and wrapper.refiner is None:
        raise RefineWrapError("This wrapper has neither a quality head nor a refiner", "one with a dial to sweep")
    whole = image if isinstance(image, Picture) else read_image(image)
    top, left = (max(length - side, 0) // 2 for length in (whole.height, whole.width))
    shown = Picture(np.ascontiguousarray(whole.pixels[top : top + side, left : left + side]))

    def cell(quality: float | None, strength: float | None) -> Any:
        made = wrapper.restore(shown, quality=quality, strength=strength, **options)
        dials = {"quality": quality, "strength": strength}
        return _labelled(made, ", ".join(f"{name} {value:g}" for name, value in dials.items() if value is not None))

    with wrapper.disabled():
        bare = _labelled(wrapper.restore(shown, **options), "backbone")
    grid = [[cell(quality, strength) for strength in columns] for quality in rows]
    height, width = bare.height + GAP, max(each.width for row in [[bare], *grid] for each in row) + GAP
    sheet = np.full((height * (len(rows) + 1), width * len(columns), 3), 255, np.uint8)
    for row, cells in enumerate([[bare], *grid]):
        for column, each in enumerate(cells):
            place = slice(row * height, row * height + each.height), slice(column * width, column * width + each.width)
            sheet[place] = np.asarray(each.convert("RGB"))
    return Picture(sheet)


def _labelled(picture: Picture, text: str) -> Any:
    """A Pillow image with a line of text above it."""
    from PIL import Image, ImageDraw

    small = Picture((picture.pixels >> 8).astype(np.uint8)) if picture.bits == 16 else picture
    needed = 4 + math.ceil(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(text))
    image = Image.new("RGB", (max(picture.width, needed), picture.height + LABEL), "white")
    image.paste(small.to_pil().convert("RGB"), (0, LABEL))
    ImageDraw.Draw(image).text((2, 2), text, fill="black")
    return image
