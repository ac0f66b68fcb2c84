"""Read and write PNG, JPEG, WebP and TIFF without losing depth, alpha, grey, ICC or EXIF.

A `Picture` holds integers as they were stored: an 8K photo stays at its own 100 MB, and the float tensors that a
network wants are made region by region (`Picture.tensor`, `Picture.put`). Each format goes to the library that decodes
it exactly, refuses damage and holds few copies.
"""

from ..folder import IMAGE_SUFFIXES
from .alpha import bleed_alpha, resize_alpha
from .picture import Picture
from .read import read_image
from .samples import MAX_PIXELS
from .upright import upright
from .write import write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Picture",
    "bleed_alpha",
    "read_image",
    "resize_alpha",
    "upright",
    "write_image",
]
