"""A picture as it is meant to be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .metadata import ORIENTATION
from .picture import Picture

_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def upright(picture: Picture) -> Picture:
    """The picture turned as its EXIF orientation says, and then without EXIF; itself where nothing is to be turned."""
    turn = _TURNS.get(_orientation(picture.exif))
    if turn is None:
        return picture
    alpha = None if picture.alpha is None else np.ascontiguousarray(turn(picture.alpha))
    return replace(picture, pixels=np.ascontiguousarray(turn(picture.pixels)), alpha=alpha, exif=None)


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    from PIL import Image

    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError):
        # PIL raises any of these on a damaged block, which says nothing about which way is up.
        return 1
