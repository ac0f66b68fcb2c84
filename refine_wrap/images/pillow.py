"""Between Pillow's images and arrays of samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ImageError
from .metadata import clean_exif, usable_icc
from .samples import Array, Parts, bands

if TYPE_CHECKING:
    from PIL import Image as PILImage

_bomb_lock = threading.Lock()


@contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Pillow's decompression bomb limit, a global, set aside while one file is read (`MAX_PIXELS` holds).

    Pillow's PNG and JPEG classes do not look at it when they are used directly; TIFF does. One thread at a time, since
    a thread that looked at the limit while another has set it aside would not know what it is.
    """
    from PIL import Image

    with _bomb_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def read_by_pillow(image: PILImage.Image, name: str) -> Parts:
    pixels, alpha = pil_arrays(image, name)
    # After the pixels: metadata may come last in a file.
    icc, exif = image.info.get("icc_profile"), image.info.get("exif")
    return pixels, alpha, usable_icc(icc, image.mode), clean_exif(exif)


def pil_arrays(image: PILImage.Image, what: object) -> tuple[Array, Array | None]:
    """The pixels and alpha of a Pillow image, converted band by band."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None], None
    clear = "transparency" in image.info
    modes = {
        "1": "LA" if clear else "L",
        "L": "LA" if clear else "L",
        "LA": "LA",
        "La": "LA",
        "P": "RGBA" if clear or (image.palette is not None and image.palette.mode == "RGBA") else "RGB",
        "PA": "RGBA",
        "RGB": "RGBA" if clear else "RGB",
        "RGBA": "RGBA",
        "RGBa": "RGBA",
        "RGBX": "RGBX",
        "YCbCr": "RGB",
        "CMYK": "RGB",
    }
    mode = modes.get(image.mode)
    if mode is None:
        raise ImageError(
            f"{what} has samples of Pillow's mode {image.mode}, which cannot be kept",
            "8 or 16 bit unsigned grey or RGB",
            "convert it first",
        )
    width, height = image.size
    pixels = np.empty((height, width, 1 if mode.startswith("L") else 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if len(mode) in (2, 4) else None
    for rows in bands(height, width, Image.MAX_IMAGE_PIXELS):  # `crop` obeys that limit too
        band = image.crop((0, rows.start, width, rows.stop))
        values = np.asarray(band if band.mode == mode else band.convert(mode)).reshape(*band.size[::-1], -1)
        pixels[rows] = values[..., : pixels.shape[2]]
        if alpha is not None:
            alpha[rows] = values[..., -1]
    return pixels, alpha


def pil_image(pixels: Array, alpha: Array | None) -> PILImage.Image:
    """An 8-bit Pillow image."""
    from PIL import Image

    if alpha is not None:
        return Image.fromarray(np.dstack([pixels, alpha]))
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
