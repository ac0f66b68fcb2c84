"""A picture in memory: integers as stored, and float regions of it for a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ImageError
from ..folder import PathLike
from .metadata import EXIF_PREFIX, clean_exif, usable_icc
from .pillow import pil_arrays, pil_image
from .samples import Array, check_size, top_value, with_bits
from .write import LONGEST_SIDE, write_image

if TYPE_CHECKING:
    from PIL import Image as PILImage


@dataclass(eq=False)
class Picture:
    """A picture as stored: integers, 8 or 16 bits, and what belongs to it.

    Args:
        pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16; colour is straight, not multiplied by alpha.
        alpha: (H, W) of the same dtype, 0 is transparent; None: opaque.
        icc: the ICC profile.
        exif: the EXIF block as a TIFF structure (it begins with "II" or "MM"; the "Exif" that Pillow puts before it is
            taken off). Its orientation tag is kept and the pixels stay as stored, so that input and output look alike
            in every viewer.
        format: "PNG", "JPEG", "WEBP" or "TIFF": where it came from.

    Raises:
        ImageError: shapes or dtypes are not as above.
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"pixels of shape {tuple(pixels.shape)} and type {pixels.dtype}",
                "(height, width, 3) or (height, width, 1), uint8 or uint16",
            )
        if 0 in pixels.shape:
            raise ImageError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels", "at least 1x1")
        if self.alpha is not None and (self.alpha.shape != pixels.shape[:2] or self.alpha.dtype != pixels.dtype):
            raise ImageError(
                f"alpha of shape {tuple(self.alpha.shape)} and type {self.alpha.dtype}",
                f"{tuple(pixels.shape[:2])} and {pixels.dtype}, as the pixels",
            )
        if self.exif is not None and clean_exif(self.exif) is None:
            raise ImageError("an EXIF block that is no TIFF structure", 'bytes that begin with "II" or "MM"')
        self.exif = clean_exif(self.exif)
        if self.format not in LONGEST_SIDE:
            raise ImageError(f"the picture format {self.format!r}", "PNG, JPEG, WEBP or TIFF")

    @property
    def bits(self) -> int:
        """8 or 16, bits a sample."""
        return self.pixels.dtype.itemsize * 8

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def grey(self) -> bool:
        """Whether there is one channel."""
        return int(self.pixels.shape[2]) == 1

    def tensor(
        self,
        top: int = 0,
        left: int = 0,
        height: int | None = None,
        width: int | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """A region as (1, 3, height, width) float32 RGB in [0, 1]; None: to the border. Grey is repeated.

        Raises:
            ImageError: the region does not lie inside the picture.
        """
        height = self.height - top if height is None else height
        width = self.width - left if width is None else width
        self._check_region(top, left, height, width)
        region = self.pixels[top : top + height, left : left + width]
        planes = np.ascontiguousarray(region.transpose(2, 0, 1), dtype=np.float32)
        planes /= np.float32(top_value(region.dtype))
        tensor = torch.from_numpy(planes).to(device)[None]
        return tensor.repeat(1, 3, 1, 1) if self.grey else tensor

    def put(self, top: int, left: int, tensor: torch.Tensor) -> None:
        """Write a (1, 3, h, w) tensor, RGB in [0, 1], at a place: clamped and rounded to the nearest integer.

        A grey picture takes the BT.601 luma, which is exactly v where red, green and blue are all v.

        Raises:
            ImageError: another shape, a place outside the picture, or NaN or infinity in the tensor. The picture is
                unchanged then.
        """
        if tensor.ndim != 4 or tensor.shape[:2] != (1, 3) or 0 in tensor.shape:
            raise ImageError(f"a tensor of shape {tuple(tensor.shape)}", "(1, 3, height, width)")
        height, width = int(tensor.shape[2]), int(tensor.shape[3])
        self._check_region(top, left, height, width)
        values = tensor.detach().to(device="cpu", dtype=torch.float32)[0]
        if not bool(torch.isfinite(values).all()):
            count = int((~torch.isfinite(values)).sum())
            raise ImageError(
                f"{count} of {values.numel()} values to write at row {top}, column {left} are NaN or infinite",
                "finite values",
                "use float32 instead of half precision, and check the weights",
            )
        if self.grey:
            # Green plus differences, not a weighted sum: r = g = b = v gives v without rounding.
            red, green, blue = values.clamp(0.0, 1.0)
            values = (green + 0.299 * (red - green) + 0.114 * (blue - green))[None]
        # clamp makes a new tensor, so the caller's is not touched; adding a half and cutting off rounds halves up.
        whole = values.clamp(0.0, 1.0).mul_(top_value(self.pixels.dtype)).add_(0.5).floor_()
        # uint16 arithmetic is thin in torch: numpy converts.
        self.pixels[top : top + height, left : left + width] = whole.numpy().transpose(1, 2, 0)

    def _check_region(self, top: int, left: int, height: int, width: int) -> None:
        inside = top >= 0 and left >= 0 and top + height <= self.height and left + width <= self.width
        if not inside or height < 1 or width < 1:
            raise ImageError(
                f"a region of {width}x{height} at row {top}, column {left}",
                f"one inside the picture of {self.width}x{self.height}",
            )

    def blank_like(self, height: int, width: int) -> Picture:
        """A black picture of this depth and kind at another size, with this ICC, EXIF and format.

        It has no alpha: that is set by `blank.alpha = resize_alpha(picture, height, width)`.
        """
        pixels = np.zeros((height, width, self.pixels.shape[2]), self.pixels.dtype)
        return Picture(pixels, None, self.icc, self.exif, self.format)

    def save(self, path: PathLike, *, bits: int | None = None, overwrite: bool = False) -> None:
        """Write to a file, whole or not at all; see `write_image`."""
        write_image(path, self, bits=bits, overwrite=overwrite)

    @classmethod
    def from_pil(cls, image: PILImage.Image) -> Picture:
        """From a Pillow image of mode 1, L, LA, P, PA, RGB, RGBA, RGBa, La, YCbCr, CMYK or I;16.

        Raises:
            ImageError: another mode (float or signed integers, Lab), or more than `MAX_PIXELS`.
        """
        width, height = image.size
        check_size(width, height, "the Pillow image")
        pixels, alpha = pil_arrays(image, f"a Pillow image of mode {image.mode}")
        kind = image.format if image.format in LONGEST_SIDE else None
        exif = clean_exif(image.getexif().tobytes()) if len(image.getexif()) else None
        return cls(pixels, alpha, usable_icc(image.info.get("icc_profile"), image.mode), exif, kind or "PNG")

    def to_pil(self) -> PILImage.Image:
        """As a Pillow image of mode L, LA, RGB or RGBA, or I;16 (16-bit grey without alpha).

        Pillow has no other 16-bit mode: the rest is rounded to 8 bits. ICC and EXIF go into `.info`.
        """
        from PIL import Image

        if self.bits == 16 and self.grey and self.alpha is None:
            image = Image.fromarray(np.ascontiguousarray(self.pixels[..., 0]))
        else:
            image = pil_image(with_bits(self.pixels, 8), None if self.alpha is None else with_bits(self.alpha, 8))
        if self.icc:
            image.info["icc_profile"] = self.icc
        if self.exif:
            image.info["exif"] = EXIF_PREFIX + self.exif
        return image
