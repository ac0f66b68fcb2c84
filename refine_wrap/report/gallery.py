"""The pictures of a page, as its viewer takes them: sides by side, with a close-up of where they differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..images import Picture
from .page import Payloads, count

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
Box = tuple[int, int, int, int]

MAX_SIDE = 1600
"""Longer side, in pixels, of what a page shows of a picture; the close-up keeps the original pixels."""
PAGE_BYTES = 200 * 2**20
"""Pictures stop being embedded beyond this much text. A browser still opens such a page; the table goes on."""
_CROP = 96
_REGION = 640


class Gallery:
    """Items to show, each one picture from every source.

    Args:
        labels: name of each source, for people.
        reference: which of them is the ground truth, if one is.
        side: longer side in pixels above which a picture is shown reduced.
    """

    def __init__(self, labels: Sequence[str], reference: int | None, side: int = MAX_SIDE) -> None:
        self.labels, self.reference, self.side = list(labels), reference, side
        self.items: list[dict[str, Any]] = []
        self.payloads = Payloads()
        self.reduced = 0

    @property
    def full(self) -> bool:
        """Whether another item would make the page too large."""
        return self.payloads.size >= PAGE_BYTES

    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        sources = [{"label": label, "reference": i == self.reference} for i, label in enumerate(self.labels)]
        return {"sources": sources, "items": self.items}

    def add(self, name: str, pictures: Sequence[Picture], figures: Sequence[str]) -> int:
        """Take one picture from every source, with a line of figures for each; its place among the items."""
        frame = (
            pictures[self.reference] if self.reference is not None else max(pictures, key=lambda p: p.height * p.width)
        )
        width, height = frame.width, frame.height
        shrink = min(1.0, self.side / max(width, height))
        page = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        views = [view(picture) for picture in pictures]
        crop = _most_different(views, width, height)
        whole = all(max(view.size) <= self.side for view in views) and shrink == 1.0
        bounds = (0, 0, width, height) if whole else _around(crop, width, height)
        images = [
            self._image(f"{len(self.items)}-{index}", view, picture, (width, height), page, bounds)
            for index, (view, picture) in enumerate(zip(views, pictures, strict=True))
        ]
        for image, line in zip(images, figures, strict=True):
            image["figures"] = line
        self.reduced += shrink < 1.0
        item = {
            "name": name,
            "width": width,
            "height": height,
            "page": page,
            "crop": {"x": crop[0], "y": crop[1], "size": crop[2]},
            "bounds": bounds,
            "notes": _notes(self.labels, pictures, (width, height), page),
            "images": images,
        }
        self.items.append(item)
        return len(self.items) - 1

    def footer(self) -> list[str]:
        """How the pictures are stored, in sentences."""
        parts = [f"Pictures are embedded as {self.payloads.format_names()}."] if self.items else []
        if self.reduced:
            parts.append(f"{count(self.reduced, 'picture')} shown reduced; the close-up keeps the original pixels.")
        return parts

    def _image(
        self,
        key: str,
        view: Image,
        picture: Picture,
        frame: Size,
        page: Size,
        bounds: Box,
    ) -> dict[str, Any]:
        from PIL import Image

        shown = view if view.size == page else view.resize(page, Image.Resampling.BICUBIC)
        entry: dict[str, Any] = {
            "id": self.payloads.embed(f"p-{key}", shown, picture.icc),
            "size": view.size,
            "resized": view.size != frame,
            "alpha": view.mode == "RGBA",
            "detail": None,
        }
        if shown is not view:
            box = _own_box(bounds, view.size, frame)
            part = view.crop(box)
            x, y = view.width / frame[0], view.height / frame[1]
            entry["detail"] = {
                "id": self.payloads.embed(f"d-{key}", part, picture.icc),
                "x": box[0] / x,
                "y": box[1] / y,
                "w": part.width / x,
                "h": part.height / y,
                "pw": part.width,
                "ph": part.height,
            }
        return entry


def see_through(picture: Picture) -> bool:
    return picture.alpha is not None and bool((picture.alpha < (1 << picture.bits) - 1).any())


def view(picture: Picture) -> Image:
    """What a browser shows: 8 bits, RGB, or RGBA where something is transparent."""
    from PIL import Image

    def eight(values: np.ndarray) -> np.ndarray:
        return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)

    pixels = np.broadcast_to(eight(picture.pixels), (picture.height, picture.width, 3))
    if picture.alpha is not None and see_through(picture):
        pixels = np.dstack([pixels, eight(picture.alpha)])
    return Image.fromarray(np.ascontiguousarray(pixels))


def _most_different(views: list[Image], width: int, height: int) -> tuple[int, int, int]:
    """(left, top, side) of the square in the frame where the pictures differ most, on average over its pixels."""
    from PIL import Image

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    for view in views:
        if view.mode == "RGBA":
            view = Image.alpha_composite(Image.new("RGBA", view.size, (128, 128, 128, 255)), view).convert("RGB")
        if view.size != (width, height):
            view = view.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(view)
        low = pixels if low is None else np.minimum(low, pixels)
        high = pixels if high is None else np.maximum(high, pixels)
    assert low is not None and high is not None
    side = min(_CROP, width, height)
    block = max(1, side // 4)
    spread = high - low
    rows, columns = height // block, width // block
    # Means of small blocks first: a full-size running sum of an 8K photo would take a gigabyte.
    small = spread[: rows * block, : columns * block].reshape(rows, block, columns, block * 3).mean(axis=(1, 3))
    across = min(side // block, rows, columns)
    sums = np.zeros((rows + 1, columns + 1))
    sums[1:, 1:] = small.cumsum(0).cumsum(1)
    windows = sums[across:, across:] - sums[:-across, across:] - sums[across:, :-across] + sums[:-across, :-across]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return min(int(left) * block, width - side), min(int(top) * block, height - side), side


def _around(crop: tuple[int, int, int], width: int, height: int) -> Box:
    """The part of a large picture whose original pixels are embedded: the crop, with room to look around."""
    left, top, side = crop
    w, h = min(width, _REGION), min(height, _REGION)
    x = min(max(0, left + side // 2 - w // 2), width - w)
    y = min(max(0, top + side // 2 - h // 2), height - h)
    return x, y, x + w, y + h


def _own_box(bounds: Box, own: Size, frame: Size) -> Box:
    """The box of a picture's own pixels that covers `bounds` of the frame."""
    x, y = own[0] / frame[0], own[1] / frame[1]
    left, top = math.floor(bounds[0] * x), math.floor(bounds[1] * y)
    right, bottom = min(own[0], math.ceil(bounds[2] * x)), min(own[1], math.ceil(bounds[3] * y))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _notes(labels: Sequence[str], pictures: Sequence[Picture], frame: Size, page: Size) -> list[str]:
    notes = []
    if page != frame:
        notes.append(f"shown reduced to {page[0]} × {page[1]}, the close-up has the original pixels")
    for label, picture in zip(labels, pictures, strict=True):
        if (picture.width, picture.height) != frame:
            notes.append(f"{label} is {picture.width} × {picture.height}, resized by bicubic for viewing only")
    deep = [label for label, picture in zip(labels, pictures, strict=True) if picture.bits == 16]
    if deep:
        notes.append(f"{', '.join(deep)}: 16 bits, shown in 8")
    return notes
