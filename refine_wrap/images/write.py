"""Write a picture to a file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from ..errors import ImageError, OutputError
from ..folder import IMAGE_SUFFIXES, PathLike, atomic_path
from .metadata import EXIF_PREFIX, short_exif
from .pillow import pil_image
from .png import write_png
from .samples import Array, with_bits
from .tiff import write_tiff

if TYPE_CHECKING:
    from .picture import Picture

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}


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
    pixels = with_bits(picture.pixels, depth)
    alpha = None if picture.alpha is None else with_bits(picture.alpha, depth)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _encode(file, kind, pixels, alpha, picture.icc, picture.exif)


def _check_fits(path: Path, picture: Picture, kind: str, bits: int | None) -> None:
    if bits not in (None, 8, 16):
        raise ImageError(f"{bits} bits a sample", "8 or 16")
    if bits == 16 and kind in ("JPEG", "WEBP"):
        raise ImageError(f"16 bits a sample in {path}", f"8: {kind} has no more", "write PNG or TIFF")
    if picture.alpha is not None and kind == "JPEG":
        raise ImageError(f"{path} cannot hold alpha: JPEG has none", None, "write PNG, WebP or TIFF")
    longest = LONGEST_SIDE[kind]
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


def _encode(
    file: IO[bytes], kind: str, pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None
) -> None:
    if kind in ("PNG", "TIFF"):
        (write_png if kind == "PNG" else write_tiff)(file, pixels, alpha, icc, exif)
        return
    out = cast("IO[bytes]", _Sink(file))
    image = pil_image(pixels, alpha)
    block = (EXIF_PREFIX + exif) if exif else b""
    if kind == "JPEG":
        image.save(out, "JPEG", quality=95, subsampling=0, icc_profile=icc, exif=short_exif(block))
    else:
        # "exact" keeps the colour under transparent pixels; "quality" is the effort here, not a loss.
        image.save(out, "WEBP", lossless=True, exact=True, quality=20, method=3, icc_profile=icc or b"", exif=block)
