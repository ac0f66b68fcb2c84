"""Read and write PNG, JPEG, WebP and TIFF without losing depth, alpha, grey, ICC or EXIF.

A `Picture` holds integers as they were stored: an 8K photo stays at its own 100 MB, and the float tensors that a
network wants are made region by region (`Picture.tensor`, `Picture.put`).

Each format goes to the library that decodes it exactly, refuses damage and holds few copies: JPEG and 8-bit PNG to
Pillow; WebP and 16-bit PNG, which Pillow would cut to 8 bits, to OpenCV; TIFF to tifffile, or to OpenCV or Pillow for
the compressions that tifffile leaves to an optional package. JPEG and WebP are encoded by Pillow. PNG and TIFF are
encoded here, over zlib, because no library among these writes 16-bit colour, grey with alpha, ICC and EXIF together.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from .errors import ImageError, OutputError
from .folder import IMAGE_SUFFIXES, PathLike, atomic_path

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from tifffile import TiffPage

__all__ = ["IMAGE_SUFFIXES", "Picture", "bleed_alpha", "read_image", "resize_alpha", "write_image"]

Array = npt.NDArray[Any]

MAX_PIXELS = 2**30
"""A picture of more pixels is refused: it is a damaged or hostile header rather than a photo."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_PREFIX = b"Exif\0\0"
_ZLIB_LEVEL = 1  # on photographs, higher levels cost up to twice the time for a few percent of the size
_BAND_PIXELS = 2**18  # pictures are converted in bands of rows of about this many pixels

_ORIENTATION, _EXIF_IFD, _GPS_IFD = 274, 0x8769, 0x8825
# TIFF keeps EXIF among the tags that lay out its pixels; these are the ones that describe the picture.
_DESCRIPTIVE_TAGS = frozenset(
    {269, 270, 271, 272, _ORIENTATION, 282, 283, 296, 305, 306, 315, 316, 0x4746, 0x4749, 33432, *range(0x9C9B, 0x9CA0)}
)


# ---------------------------------------------------------------- the picture


@dataclass(eq=False)
class Picture:
    """A picture as stored: integers, 8 or 16 bits, and what belongs to it.

    Args:
        pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16; colour is straight, not multiplied by alpha.
        alpha: (H, W) of the same dtype, 0 is transparent; None: opaque.
        icc: the ICC profile.
        exif: the EXIF block as a TIFF structure (it begins with "II" or "MM"). Its orientation tag is kept and the
            pixels stay as stored, so that input and output look alike in every viewer.
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
        if self.format not in _LONGEST_SIDE:
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
        planes /= np.float32(_top_value(region.dtype))
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
        whole = values.clamp(0.0, 1.0).mul_(_top_value(self.pixels.dtype)).add_(0.5).floor_()
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
        _check_size(width, height, "the Pillow image")
        pixels, alpha = _pil_arrays(image, f"a Pillow image of mode {image.mode}")
        kind = image.format if image.format in _LONGEST_SIDE else None
        exif = _clean_exif(image.getexif().tobytes()) if len(image.getexif()) else None
        return cls(pixels, alpha, _usable_icc(image.info.get("icc_profile"), image.mode), exif, kind or "PNG")

    def to_pil(self) -> PILImage.Image:
        """As a Pillow image of mode L, LA, RGB or RGBA, or I;16 (16-bit grey without alpha).

        Pillow has no other 16-bit mode: the rest is rounded to 8 bits. ICC and EXIF go into `.info`.
        """
        from PIL import Image

        if self.bits == 16 and self.grey and self.alpha is None:
            image = Image.fromarray(np.ascontiguousarray(self.pixels[..., 0]))
        else:
            image = _pil_image(_with_bits(self.pixels, 8), None if self.alpha is None else _with_bits(self.alpha, 8))
        if self.icc:
            image.info["icc_profile"] = self.icc
        if self.exif:
            image.info["exif"] = _EXIF_PREFIX + self.exif
        return image


def _top_value(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)


def _with_bits(values: Array, bits: int) -> Array:
    """The nearest values at another depth: 65535 is 255 and 255 is 65535."""
    if values.dtype.itemsize * 8 == bits:
        return values
    if bits == 16:
        return np.multiply(values, 257, dtype=np.uint16)
    out = np.empty(values.shape, np.uint8)
    for rows in _bands(*values.shape[:2]):  # the wide integers of one band only
        out[rows] = (values[rows].astype(np.uint32) + 128) // 257
    return out


def _bands(height: int, width: int, limit: int | None = None) -> Iterator[slice]:
    pixels = _BAND_PIXELS if limit is None else min(_BAND_PIXELS, limit)
    step = max(1, pixels // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


# ---------------------------------------------------------------- alpha


def bleed_alpha(picture: Picture) -> Picture:
    """The picture with the colour under fully transparent pixels replaced by that of the nearest visible pixel.

    What lies under alpha 0 is arbitrary, often black, and a network would smear it into the visible edge. Visible
    pixels and alpha stay as they are; a picture without transparent pixels, or without visible ones, is returned
    itself. "Nearest" is by OpenCV's 5x5 distance transform, within about 2% of the Euclidean distance.
    Working memory is about 12 bytes a pixel.
    """
    if picture.alpha is None:
        return picture
    hidden = picture.alpha == 0
    if not hidden.any() or hidden.all():
        return picture
    import cv2

    source = hidden.astype(np.uint8)
    # Every visible pixel gets its own label, and every hidden one the label of its nearest visible pixel.
    labels = cv2.distanceTransformWithLabels(source, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    # Only visible pixels beside hidden ones can be nearest to any, so the table of labels holds little else.
    edge = (cv2.dilate(source, np.ones((3, 3), np.uint8)) != 0) & ~hidden
    place = np.zeros(int(labels.max()) + 1, np.int32)
    place[labels[edge]] = np.flatnonzero(edge)
    pixels = picture.pixels.copy()
    flat = picture.pixels.reshape(-1, picture.pixels.shape[2])
    for rows in _bands(picture.height, picture.width):
        inside = hidden[rows]
        pixels[rows][inside] = flat[place[labels[rows][inside]]]
    return Picture(pixels, picture.alpha, picture.icc, picture.exif, picture.format)


def resize_alpha(picture: Picture, height: int, width: int) -> Array | None:
    """The alpha at another size, (height, width) in the picture's dtype; None if the picture has none.

    Bicubic, antialiased when it shrinks, clamped. Fully opaque stays fully opaque.
    """
    if height < 1 or width < 1:
        raise ImageError(f"alpha resized to {width}x{height}", "at least 1x1")
    alpha = picture.alpha
    if alpha is None or alpha.shape == (height, width):
        return None if alpha is None else alpha.copy()
    if int(alpha.min()) == int(alpha.max()):
        return np.full((height, width), alpha.flat[0], alpha.dtype)
    from PIL import Image

    if picture.bits == 8:
        return np.array(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
    wide = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    rounded: Array = np.clip(np.rint(np.asarray(wide)), 0, _top_value(alpha.dtype))
    return rounded.astype(alpha.dtype, copy=False)


# ---------------------------------------------------------------- reading


def read_image(path: PathLike) -> Picture:
    """Read a PNG, JPEG, WebP or TIFF file, whatever its suffix says, as it is stored.

    Palettes become RGB, CMYK becomes RGB (its ICC profile is dropped, it would not fit any more), 1, 2 and 4 bits
    become 8, 16 bits stay. Of a JPEG with further pictures behind the first (MPO: phones store gain maps so) the first
    is read, as every viewer does. Peak memory is the picture and what its decoder holds: for an 8-bit RGB photo about
    2.4 times its bytes in all.

    Raises:
        ImageError: no such file, no picture, a damaged or truncated one, one of a kind that would lose something
            without notice (several pages, animation, float or signed samples), or more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    head = _read_head(path)
    kind = _sniff(path, head)
    try:
        return _READERS[kind](path)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory", None, "use a machine with more memory") from error
    # The decoders raise whatever they like on damaged files: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        detail = str(error) or type(error).__name__
        raise ImageError(
            f"{path} is a damaged or truncated {kind} file: {detail}", "a whole file", "get the file again"
        ) from error


def _read_head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder", "an image file", "name one file, or use the tools for folders")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ImageError(f"{path} is not a regular file", "an image file")
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as error:
        known = {FileNotFoundError: "does not exist", PermissionError: "cannot be read: permission denied"}
        reason = known.get(type(error), f"cannot be read: {error.strerror or error}")
        raise ImageError(f"{path} {reason}", "an image file that can be read", "check the path") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{str(path)!r} is no file name: {error}") from error
    if not head:
        raise ImageError(f"{path} is empty (0 bytes)", "an image file", "get the file again")
    return head


_OTHER_KINDS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)


def _sniff(path: Path, head: bytes) -> str:
    if head.startswith(_PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    found = next((name for magic, name in _OTHER_KINDS if head.startswith(magic)), None)
    if found is None and head[4:8] == b"ftyp":
        found = "a HEIF, AVIF or video file"
    if found is None and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        found = "text"
    what = f"is {found}" if found else f"begins with the bytes {head[:8].hex(' ')}"
    raise ImageError(
        f"{path} is not an image of a known kind: it {what}",
        "a PNG, JPEG, WebP or TIFF file (by content, not by name)",
        "convert it, or get the file again",
    )


def _check_size(width: int, height: int, what: object) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{what} has {width}x{height} pixels", "at least 1x1")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} has {width}x{height} pixels, {width * height / 1e6:.0f} million",
            f"at most {MAX_PIXELS / 1e6:.0f} million",
            "cut it into parts",
        )


def _refuse_frames(path: Path, count: int, word: str) -> None:
    if count > 1:
        raise ImageError(
            f"{path} holds {count} {word}: all but the first would be lost",
            "a file of one picture",
            f"save the {word} as single files first",
        )


_bomb_lock = threading.Lock()


@contextmanager
def _no_pillow_limit() -> Iterator[None]:
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


def _read_png(path: Path) -> Picture:
    from PIL import PngImagePlugin

    with open(path, "rb") as file:
        head = file.read(33)
        if len(head) < 33 or head[12:16] != b"IHDR":
            raise ImageError(f"{path} is a PNG without a header", "a whole file", "get the file again")
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        _check_size(width, height, path)
        if depth == 16:
            return _read_png16(path, colour)
        file.seek(0)
        with PngImagePlugin.PngImageFile(file) as image:
            _refuse_frames(path, getattr(image, "n_frames", 1), "animation frames")
            return _picture_of(image, path, "PNG")


def _read_png16(path: Path, colour: int) -> Picture:
    import cv2

    data = np.fromfile(path, np.uint8)
    chunks = _png_chunks(data)
    if b"acTL" in chunks:
        _refuse_frames(path, struct.unpack(">I", chunks[b"acTL"][:4])[0], "animation frames")
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = _split_cv2(decoded, grey=colour in (0, 4))
    if colour == 0 and b"tRNS" in chunks:  # OpenCV applies it to colour only
        alpha = np.where(pixels[..., 0] == struct.unpack(">H", chunks[b"tRNS"])[0], 0, 65535).astype(np.uint16)
    icc = None
    if b"iCCP" in chunks:
        icc = zlib.decompress(chunks[b"iCCP"].partition(b"\0")[2][1:])
    return Picture(pixels, alpha, _usable_icc(icc, "I;16"), _clean_exif(chunks.get(b"eXIf")), "PNG")


def _png_chunks(data: npt.NDArray[np.uint8]) -> dict[bytes, bytes]:
    """The small chunks of interest; every chunk's checksum is verified, since OpenCV only warns."""
    wanted = {b"iCCP", b"eXIf", b"tRNS", b"acTL"}
    view = data.data
    found: dict[bytes, bytes] = {}
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(view):
        length, name = struct.unpack(">I4s", view[place : place + 8])
        end = place + 8 + length
        if end + 4 > len(view):
            break
        if zlib.crc32(view[place + 4 : end]) != struct.unpack(">I", view[end : end + 4])[0]:
            raise ValueError(f"wrong checksum in its {name.decode('latin-1')} chunk")
        if name == b"IEND":
            return found
        if name in wanted:
            found[name] = bytes(view[place + 8 : end])
        place = end + 4
    raise ValueError("it ends early")


def _split_cv2(decoded: Array, grey: bool) -> tuple[Array, Array | None]:
    """OpenCV's grey, BGR or BGRA as our pixels and alpha; `grey` says that the colours are all the same."""
    import cv2

    if decoded.ndim == 2:
        return decoded[..., None], None
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    if grey:
        return np.ascontiguousarray(decoded[..., :1]), alpha
    if alpha is not None:
        return cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), alpha
    for rows in _bands(*decoded.shape[:2]):  # in place: cvtColor would hold a second picture
        decoded[rows] = decoded[rows, :, ::-1].copy()
    return decoded, None


def _read_jpeg(path: Path) -> Picture:
    from PIL import JpegImagePlugin

    with open(path, "rb") as file, JpegImagePlugin.JpegImageFile(file) as image:
        _check_size(image.width, image.height, path)
        return _picture_of(image, path, "JPEG")


def _read_webp(path: Path) -> Picture:
    """By OpenCV: Pillow's decoder for animations holds several copies of a picture."""
    import cv2

    data = np.fromfile(path, np.uint8)
    chunks, frames = _riff_chunks(data)
    _refuse_frames(path, frames, "animation frames")
    if frames:
        raise ValueError("it is an animation of one frame")
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint8:
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = _split_cv2(decoded, grey=False)
    icc, exif = chunks.get(b"ICCP"), chunks.get(b"EXIF")
    return Picture(pixels, alpha, _usable_icc(icc, "RGB"), _clean_exif(exif), "WEBP")


def _riff_chunks(data: npt.NDArray[np.uint8]) -> tuple[dict[bytes, bytes], int]:
    """The ICC and EXIF chunks of a WebP, and its number of animation frames (0: it is no animation)."""
    view = data.data
    if len(view) < 20 or struct.unpack("<I", view[4:8])[0] + 8 > len(view):
        raise ValueError("it ends early")
    found: dict[bytes, bytes] = {}
    frames, place = 0, 12
    while place + 8 <= len(view):
        name, length = struct.unpack("<4sI", view[place : place + 8])
        frames += name == b"ANMF"
        if name in (b"ICCP", b"EXIF"):
            found[name] = bytes(view[place + 8 : place + 8 + length])
        place += 8 + length + length % 2
    return found, frames


def _picture_of(image: PILImage.Image, path: Path, kind: str) -> Picture:
    mode = image.mode
    pixels, alpha = _pil_arrays(image, path)
    # After the pixels: metadata may come last in a file.
    exif, icc = image.info.get("exif"), image.info.get("icc_profile")
    return Picture(pixels, alpha, _usable_icc(icc, mode), _clean_exif(exif), kind)


def _pil_arrays(image: PILImage.Image, what: object) -> tuple[Array, Array | None]:
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
    for rows in _bands(height, width, Image.MAX_IMAGE_PIXELS):  # `crop` obeys that limit too
        band = image.crop((0, rows.start, width, rows.stop))
        values = np.asarray(band if band.mode == mode else band.convert(mode)).reshape(*band.size[::-1], -1)
        pixels[rows] = values[..., : pixels.shape[2]]
        if alpha is not None:
            alpha[rows] = values[..., -1]
    return pixels, alpha


def _usable_icc(icc: object, mode: str) -> bytes | None:
    """The profile, unless it describes other colours (CMYK, Lab) than those that we hold."""
    if not isinstance(icc, bytes) or mode in ("CMYK", "LAB") or icc[16:20] not in (b"RGB ", b"GRAY"):
        return None
    return icc


def _clean_exif(exif: object) -> bytes | None:
    """Without the prefix that JPEG puts before it; None if it is no EXIF at all."""
    if not isinstance(exif, bytes):
        return None
    exif = exif.removeprefix(_EXIF_PREFIX)
    return exif if exif[:4] in (b"II*\0", b"MM\0*") else None


# ---------------------------------------------------------------- reading TIFF


def _read_tiff(path: Path) -> Picture:
    import tifffile

    with tifffile.TiffFile(path) as file:
        # Thumbnails and masks are not pages of their own.
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and not _is_side_page(page)]
        count = len(file.pages) if len(pages) != 1 else 1
        if file.is_imagej:  # ImageJ stores a stack behind one page
            count = max(count, int((file.imagej_metadata or {}).get("images", 1)))
        _refuse_frames(path, count, "pages")
        if not pages:
            raise ValueError("it has no full-size page")
        page = pages[0]
        _check_tiff(path, page)
        _check_tiff_data(page, path.stat().st_size)
        premultiplied = tuple(int(extra) for extra in page.extrasamples) == (1,)
        decoded = _decode_tiff(path, page)
        if isinstance(decoded, np.ndarray):
            pixels, alpha = _split_tiff(decoded, page)
            if premultiplied and alpha is not None:
                _unmultiply(pixels, alpha)
        else:
            pixels, alpha = decoded
        icc = page.tags.valueof(34675)
        exif = _tiff_exif(path, page)
    mode = "CMYK" if page.photometric == tifffile.PHOTOMETRIC.SEPARATED else "RGB"
    return Picture(pixels, alpha, _usable_icc(icc, mode), exif, "TIFF")


def _is_side_page(page: TiffPage) -> bool:
    return bool(page.is_reduced or page.is_mask)


def _check_tiff(path: Path, page: TiffPage) -> None:
    """Refuse what could only be read with a loss."""
    from tifffile import PHOTOMETRIC

    _check_size(page.imagewidth, page.imagelength, path)
    expected = "8 or 16 bit unsigned grey, RGB or palette, with at most one alpha channel"
    if page.imagedepth > 1:
        _refuse_frames(path, page.imagedepth, "slices")
    if page.sampleformat != 1:
        kind = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}.get(int(page.sampleformat), "unknown")
        raise ImageError(f"{path} has {kind} samples", expected, "convert it to 16 bit first")
    if page.bitspersample not in (1, 2, 4, 8, 16):
        raise ImageError(f"{path} has {page.bitspersample} bits a sample", expected, "convert it to 16 bit first")
    kinds: dict[int, int] = {PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.RGB: 3}
    if page.bitspersample < 16:
        kinds |= {PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3}
    # An unknown number arrives as a plain int.
    colours = kinds.get(page.photometric)
    if colours is None:
        name = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"{path} has {page.bitspersample}-bit {name} pixels", expected, "convert it to RGB first")
    if not colours <= page.samplesperpixel <= colours + 1:
        raise ImageError(f"{path} has {page.samplesperpixel} channels", expected, "keep colour and one alpha channel")


def _check_tiff_data(page: TiffPage, size: int) -> None:
    """Missing parts are filled with zeros by tifffile, which would be a black area in silence."""
    offsets, counts = page.dataoffsets, page.databytecounts
    tiles = math.prod(page.chunked)
    if len(offsets) < tiles or len(counts) < tiles:
        raise ValueError(f"{len(offsets)} of {tiles} parts of its pixels are there")
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
        raise ValueError("it ends early")
    if any(count == 0 or offset == 0 for offset, count in zip(offsets, counts, strict=False)):
        raise ValueError("parts of its pixels are missing")
    if page.compression == 1 and sum(counts) * 8 < page.imagewidth * page.imagelength * page.samplesperpixel * (
        page.bitspersample
    ):
        raise ValueError("it holds fewer pixels than it should")


def _decode_tiff(path: Path, page: TiffPage) -> Array | tuple[Array, Array | None]:
    """The raw samples, (H, W, S) or (H, W); or pixels and alpha when Pillow decoded them."""
    from tifffile import PHOTOMETRIC

    plain = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
    if not plain or page.bitspersample < 8:
        return _decode_tiff_pillow(path, page)
    try:
        decoded = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _decode_tiff_pillow(path, page) if page.bitspersample == 8 else _decode_tiff_cv2(path, page)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        decoded = np.moveaxis(decoded, 0, -1)
    return decoded.astype(decoded.dtype.newbyteorder("="), copy=False)


def _decode_tiff_cv2(path: Path, page: TiffPage) -> Array:
    import cv2

    # OpenCV mixes up separate planes and drops the alpha of grey.
    if page.samplesperpixel == 2 or (page.planarconfig == 2 and page.samplesperpixel > 1):
        name = getattr(page.compression, "name", page.compression)
        raise ImageError(
            f"{path} stores 16-bit samples with {name} compression in an unusual layout",
            "no or Deflate compression",
            "save it so, or pip install imagecodecs",
        )
    decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = _split_cv2(decoded, grey=False)
    return pixels if alpha is None else np.dstack([pixels, alpha])


def _decode_tiff_pillow(path: Path, page: TiffPage) -> tuple[Array, Array | None]:
    from PIL import Image, TiffImagePlugin

    with _no_pillow_limit(), open(path, "rb") as file, TiffImagePlugin.TiffImageFile(file) as image:
        orientation = image.tag_v2.get(_ORIENTATION, 1)
        image.load()
        back = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }.get(orientation)
        # Pillow turns a TIFF upright and then forgets the tag; we keep pixels as stored, with their tag.
        turned = back is not None and _ORIENTATION not in image.tag_v2
        stored: PILImage.Image = image.transpose(back) if back is not None and turned else image
        return _pil_arrays(stored, path)


def _split_tiff(decoded: Array, page: TiffPage) -> tuple[Array, Array | None]:
    from tifffile import PHOTOMETRIC

    samples = decoded.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    pixels = np.array(samples[..., :colours], order="C") if samples.shape[2] > colours else samples
    # An extra channel of unspecified meaning is taken as alpha, as GIMP does, rather than dropped.
    alpha = np.array(samples[..., -1], order="C") if samples.shape[2] > colours else None
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        pixels = _top_value(pixels.dtype) - pixels
    return np.ascontiguousarray(pixels), alpha


def _unmultiply(pixels: Array, alpha: Array) -> None:
    """Straight colour from colour multiplied by alpha, in place."""
    top = _top_value(alpha.dtype)
    for rows in _bands(*alpha.shape):
        share = np.maximum(alpha[rows], 1).astype(np.uint64)[..., None]
        pixels[rows] = np.minimum((pixels[rows].astype(np.uint64) * top + share // 2) // share, top)


def _tiff_exif(path: Path, page: TiffPage) -> bytes | None:
    """The descriptive tags and the EXIF and GPS directories of a TIFF, as an EXIF block of their own."""
    from PIL import Image

    if page.parent.is_bigtiff:  # Pillow's EXIF reader knows classic TIFF only
        orientation = page.tags.valueof(_ORIENTATION)
        if orientation is None:
            return None
        exif = Image.Exif()
        exif[_ORIENTATION] = int(orientation)
        return _clean_exif(exif.tobytes())
    with open(path, "rb") as file:
        exif = Image.Exif()
        exif.load_from_fp(file)
        kept = Image.Exif()
        for tag in exif:
            if tag in _DESCRIPTIVE_TAGS and not _is_layout_note(exif[tag]):
                kept[tag] = exif[tag]
        for directory in (_EXIF_IFD, _GPS_IFD):
            values = exif.get_ifd(directory) if directory in exif else {}
            if values:
                kept[directory] = dict(values)
        return _clean_exif(kept.tobytes()) if len(kept) else None


def _is_layout_note(value: object) -> bool:
    """Whether a description is a program's note on the array's shape, which would be wrong after a resize."""
    return isinstance(value, str) and value.startswith(("ImageJ=", '{"shape"'))


_READERS = {"PNG": _read_png, "JPEG": _read_jpeg, "WEBP": _read_webp, "TIFF": _read_tiff}


# ---------------------------------------------------------------- writing


def write_image(path: PathLike, picture: Picture, *, bits: int | None = None, overwrite: bool = False) -> None:
    """Write a picture, whole or not at all; the suffix decides the format.

    PNG and TIFF (Deflate) are written at the picture's depth or at `bits`; JPEG at quality 95 without chroma
    subsampling and WebP without loss, both at 8 bits. 16 bits become 8 by rounding v / 257, 8 become 16 by 257 v.
    Grey in WebP comes back as RGB, WebP has no grey. JPEG holds at most 64 KiB of EXIF: of a larger block only the main
    tags (orientation, camera, date) go into it.

    Args:
        bits: 8, 16, or None for the picture's own.
        overwrite: replace an existing file; without it, that is refused.

    Raises:
        ImageError: the format cannot hold the picture (alpha or 16 bits in JPEG, too many pixels a side), or the
            suffix is unknown.
        OutputError: the file exists, or cannot be written (full disk, no permission, ...).
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ImageError(
            f"{path} has the unknown suffix {path.suffix!r}", "one of " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    _check_fits(path, picture, kind, bits)
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists already", "a new name", "allow overwriting, or choose another name")
    depth = 8 if kind in ("JPEG", "WEBP") else bits or picture.bits
    pixels = _with_bits(picture.pixels, depth)
    alpha = None if picture.alpha is None else _with_bits(picture.alpha, depth)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _encode(_Sink(file), kind, pixels, alpha, picture.icc, picture.exif)


def _check_fits(path: Path, picture: Picture, kind: str, bits: int | None) -> None:
    if bits not in (None, 8, 16):
        raise ImageError(f"{bits} bits a sample", "8 or 16")
    if bits == 16 and kind in ("JPEG", "WEBP"):
        raise ImageError(f"16 bits a sample in {path}", f"8: {kind} has no more", "write PNG or TIFF")
    if picture.alpha is not None and kind == "JPEG":
        raise ImageError(f"{path} cannot hold alpha: JPEG has none", None, "write PNG, WebP or TIFF")
    longest = _LONGEST_SIDE[kind]
    if max(picture.height, picture.width) > longest:
        raise ImageError(
            f"{picture.width}x{picture.height} pixels in {path}",
            f"at most {longest} a side in {kind}",
            "write PNG or TIFF",
        )
    raw = picture.pixels.nbytes * (2 if bits == 16 and picture.bits == 8 else 1)
    if kind == "TIFF" and raw * 4 // 3 > 0xF000_0000:  # with alpha, and room for what does not compress
        raise ImageError(f"a TIFF of {raw / 2**30:.1f} GiB in {path}", "less than 4 GiB", "write PNG")


class _Sink:
    """A file that offers Pillow `write` only.

    Given a file descriptor, Pillow writes past Python's buffer, and some versions do not notice a write that a full
    disk cut short.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def flush(self) -> None:
        self._file.flush()


def _encode(file: _Sink, kind: str, pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None) -> None:
    out = cast("IO[bytes]", file)
    if kind == "TIFF":
        _write_tiff(file, pixels, alpha, icc, exif)
        return
    if kind == "PNG":
        _write_png(file, pixels, alpha, icc, exif)
        return
    image = _pil_image(pixels, alpha)
    block = (_EXIF_PREFIX + exif) if exif else b""
    if kind == "JPEG":
        image.save(out, "JPEG", quality=95, subsampling=0, icc_profile=icc, exif=_short_exif(block))
    else:
        # "exact" keeps the colour under transparent pixels; "quality" is the effort here, not a loss.
        image.save(out, "WEBP", lossless=True, exact=True, quality=20, method=3, icc_profile=icc or b"", exif=block)


def _pil_image(pixels: Array, alpha: Array | None) -> PILImage.Image:
    """An 8-bit Pillow image."""
    from PIL import Image

    if alpha is not None:
        return Image.fromarray(np.dstack([pixels, alpha]))
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def _short_exif(block: bytes) -> bytes:
    """What fits into a JPEG's one marker."""
    if len(block) <= 65533:
        return block
    from PIL import Image

    kept = Image.Exif()
    full = Image.Exif()
    full.load(block)
    for tag in full:
        if tag in _DESCRIPTIVE_TAGS and (not isinstance(full[tag], (str, bytes)) or len(full[tag]) < 1024):
            kept[tag] = full[tag]
    return kept.tobytes() if len(kept) else b""


def _write_png(file: _Sink, pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None) -> None:
    """PNG of 8 or 16 bits: grey, grey and alpha, RGB or RGBA. Filters: for each row, the better of Sub and Up."""

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name)
        file.write(data)
        file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

    height, width, colours = pixels.shape
    depth = pixels.dtype.itemsize * 8
    colour = {(1, False): 0, (3, False): 2, (1, True): 4, (3, True): 6}[colours, alpha is not None]
    file.write(_PNG_SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    # The PNG standard forbids another profile; readers warn and leave it out.
    if icc and icc[16:20] == (b"GRAY" if colours == 1 else b"RGB "):
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        chunk(b"eXIf", exif)
    packer = zlib.compressobj(_ZLIB_LEVEL)
    step = (colours + (alpha is not None)) * depth // 8  # bytes a pixel
    above = np.zeros((1, width, step), np.uint8)
    for rows in _bands(height, width):
        samples = _samples(pixels, alpha, rows)
        raw = samples.astype(samples.dtype.newbyteorder(">"), order="C").view(np.uint8).reshape(-1, width, step)
        packed = packer.compress(_filter_rows(raw, above).tobytes())
        if packed:
            chunk(b"IDAT", packed)
        above = raw[-1:]
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _samples(pixels: Array, alpha: Array | None, rows: slice) -> Array:
    return pixels[rows] if alpha is None else np.dstack([pixels[rows], alpha[rows]])


def _filter_rows(raw: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """PNG's filters Sub (1) and Up (2) over bytes; the one of smaller sum is taken, as the PNG standard advises."""
    sub = raw.copy()
    sub[:, 1:] -= raw[:, :-1]
    up = raw.copy()
    up[0] -= above[0]
    up[1:] -= raw[:-1]
    # As signed bytes; int16 because the absolute value of -128 is no int8.
    cost_sub, cost_up = (np.abs(way.view(np.int8).astype(np.int16)).sum((1, 2), dtype=np.int64) for way in (sub, up))
    use_up = cost_up < cost_sub
    out = np.empty((raw.shape[0], 1 + raw.shape[1] * raw.shape[2]), np.uint8)
    out[:, 0] = np.where(use_up, 2, 1)
    out[:, 1:] = np.where(use_up[:, None, None], up, sub).reshape(raw.shape[0], -1)
    return out


def _write_tiff(file: _Sink, pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None) -> None:
    """A little-endian TIFF of Deflate strips with horizontal differences; the directory comes last."""
    from PIL import TiffImagePlugin

    height, width, colours = pixels.shape
    bits = pixels.dtype.itemsize * 8
    channels = colours + (alpha is not None)
    file.write(b"II*\0\0\0\0\0")
    offsets, counts = [], []
    bands = list(_bands(height, width))
    for rows in bands:
        values = _samples(pixels, alpha, rows)
        differences = values.copy()
        differences[:, 1:] -= values[:, :-1]
        packed = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")).tobytes(), _ZLIB_LEVEL)
        offsets.append(file.tell())
        counts.append(len(packed))
        file.write(packed)
        if len(packed) % 2:  # parts begin at even places
            file.write(b"\0")
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    _copy_exif(exif, directory)
    tags: dict[int, tuple[int, Any]] = {  # tag: (type, value); type 3 is 16 bit, 4 is 32 bit, 7 is bytes
        256: (4, width),
        257: (4, height),
        258: (3, (bits,) * channels),
        259: (3, 8),  # Deflate
        262: (3, 2 if colours == 3 else 1),  # RGB, or 0 is black
        273: (4, tuple(offsets)),
        277: (3, channels),
        278: (4, bands[0].stop),
        279: (4, tuple(counts)),
        284: (3, 1),  # samples of a pixel together
        317: (3, 2),  # horizontal differences
        339: (3, (1,) * channels),  # unsigned
    }
    if alpha is not None:
        tags[338] = (3, 2)  # straight alpha
    if icc:
        tags[34675] = (7, icc)
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    place = file.tell()
    block = bytearray(directory.tobytes(place))
    # Pillow shifts strip offsets as if the strips followed the directory; ours are absolute, so they are set again.
    entry = 2 + 12 * sum(tag < 273 for tag in directory)
    where = entry + 8 if len(offsets) == 1 else struct.unpack_from("<I", block, entry + 8)[0] - place
    struct.pack_into(f"<{len(offsets)}I", block, where, *offsets)
    file.write(bytes(block))
    file.seek(4)
    file.write(struct.pack("<I", place))


def _copy_exif(exif: bytes | None, directory: Any) -> None:
    if not exif:
        return
    from PIL import Image

    block = Image.Exif()
    block.load(_EXIF_PREFIX + exif)
    for tag in block:
        if tag in _DESCRIPTIVE_TAGS and not _is_layout_note(block[tag]):
            directory[tag] = block[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        values = block.get_ifd(tag) if tag in block else {}
        if values:
            directory.tagtype[tag] = 4
            directory[tag] = dict(values)
