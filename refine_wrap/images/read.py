"""Read an image file by its content, whatever its suffix says."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from ..folder import PathLike
from .metadata import clean_exif, usable_icc
from .picture import Picture
from .pillow import read_by_pillow
from .png import PNG_SIGNATURE, read_png
from .samples import Parts, check_size, refuse_frames, split_cv2
from .tiff import read_tiff


class Stored(Protocol):
    """A picture that is no file of its own, such as a member of an archive. `str()` of it is its name for people."""

    def open(self) -> IO[bytes]:
        """Its bytes as a file that can be read and sought. Raises ImageError."""


def read_image(source: PathLike | Stored) -> Picture:
    """Read a PNG, JPEG, WebP or TIFF, by its content whatever its suffix says, as it is stored.

    Palettes become RGB, CMYK becomes RGB (its ICC profile is dropped, it would not fit any more), 1, 2 and 4 bits
    become 8, 16 bits stay. Of a JPEG with further pictures behind the first (MPO: phones store gain maps so) the first
    is read, as every viewer does. Peak memory is the picture and what its decoder holds: for an 8-bit RGB photo about
    2.4 times its bytes in all.

    Args:
        source: a file, or what is stored elsewhere (`Stored`).

    Raises:
        ImageError: no such file, no picture, a damaged or truncated one, one of a kind that would lose something
            without notice (several pages, animation, float or signed samples), or more than `MAX_PIXELS` pixels.
    """
    name = str(Path(source)) if isinstance(source, (str, os.PathLike)) else str(source)
    with _naming(name):
        file = _open(Path(source)) if isinstance(source, (str, os.PathLike)) else source.open()
    with file:
        with _naming(name):
            head = file.read(32)
        kind = _sniff(name, head)
        try:
            file.seek(0)
            return Picture(*_READERS[kind](file, name), format=kind)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name} does not fit into memory", None, "use a machine with more memory") from error
        # The decoders raise whatever they like on damaged files: OSError, SyntaxError, ValueError, struct.error, ...
        except Exception as error:
            detail = str(error) or type(error).__name__
            raise ImageError(
                f"{name} is a damaged or truncated {kind} file: {detail}", "a whole file", "get the file again"
            ) from error


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What the operating system refuses, as an error that names the file."""
    try:
        yield
    except OSError as error:
        known = {FileNotFoundError: "does not exist", PermissionError: "cannot be read: permission denied"}
        reason = known.get(type(error), f"cannot be read: {error.strerror or error}")
        raise ImageError(f"{name} {reason}", "an image file that can be read", "check the path") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{name!r} is no file name: {error}") from error


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise ImageError(f"{path} is a folder", "an image file", "name one file, or use the tools for folders")
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ImageError(f"{path} is not a regular file", "an image file")
    return open(path, "rb")


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


def _sniff(name: str, head: bytes) -> str:
    if not head:
        raise ImageError(f"{name} is empty (0 bytes)", "an image file", "get the file again")
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    found = next((kind for magic, kind in _OTHER_KINDS if head.startswith(magic)), None)
    if found is None and head[4:8] == b"ftyp":
        found = "a HEIF, AVIF or video file"
    if found is None and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        found = "text"
    what = f"is {found}" if found else f"begins with the bytes {head[:8].hex(' ')}"
    raise ImageError(
        f"{name} is not an image of a known kind: it {what}",
        "a PNG, JPEG, WebP or TIFF file (by content, not by name)",
        "convert it, or get the file again",
    )


def _read_jpeg(file: IO[bytes], name: str) -> Parts:
    from PIL import JpegImagePlugin

    with JpegImagePlugin.JpegImageFile(file) as image:
        check_size(image.width, image.height, name)
        return read_by_pillow(image, name)


def _read_webp(file: IO[bytes], name: str) -> Parts:
    """By OpenCV: Pillow's decoder for animations holds several copies of a picture."""
    import cv2

    data = np.frombuffer(file.read(), np.uint8)
    chunks, frames = _riff_chunks(data)
    refuse_frames(name, frames, "animation frames")
    if frames:
        raise ValueError("it is an animation of one frame")
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint8:
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = split_cv2(decoded, grey=False)
    icc, exif = chunks.get(b"ICCP"), chunks.get(b"EXIF")
    return pixels, alpha, usable_icc(icc, "RGB"), clean_exif(exif)


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


_READERS = {"PNG": read_png, "JPEG": _read_jpeg, "WEBP": _read_webp, "TIFF": read_tiff}
