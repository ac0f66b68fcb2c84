"""PNG: 8 bits are read by Pillow, 16 by OpenCV (Pillow would cut them to 8); written here, over zlib.

No library among these writes 16-bit colour, grey with alpha, ICC and EXIF together.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from .metadata import clean_exif, usable_icc
from .pillow import read_by_pillow
from .samples import ZLIB_LEVEL, Array, Parts, bands, check_size, refuse_frames, split_cv2, with_alpha

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_png(file: IO[bytes], name: str) -> Parts:
    from PIL import PngImagePlugin

    head = file.read(33)
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise ImageError(f"{name} is a PNG without a header", "a whole file", "get the file again")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    check_size(width, height, name)
    file.seek(0)
    if depth == 16:
        return _read_deep(file, name, colour)
    with PngImagePlugin.PngImageFile(file) as image:
        refuse_frames(name, getattr(image, "n_frames", 1), "animation frames")
        return read_by_pillow(image, name)


def _read_deep(file: IO[bytes], name: str, colour: int) -> Parts:
    import cv2

    data = np.frombuffer(file.read(), np.uint8)
    chunks = _chunks(data)
    if b"acTL" in chunks:
        refuse_frames(name, struct.unpack(">I", chunks[b"acTL"][:4])[0], "animation frames")
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = split_cv2(decoded, grey=colour in (0, 4))
    if colour == 0 and b"tRNS" in chunks:  # OpenCV applies it to colour only
        alpha = np.where(pixels[..., 0] == struct.unpack(">H", chunks[b"tRNS"])[0], 0, 65535).astype(np.uint16)
    icc = None
    if b"iCCP" in chunks:
        icc = zlib.decompress(chunks[b"iCCP"].partition(b"\0")[2][1:])
    return pixels, alpha, usable_icc(icc, "I;16"), clean_exif(chunks.get(b"eXIf"))


def _chunks(data: npt.NDArray[np.uint8]) -> dict[bytes, bytes]:
    """The small chunks of interest; every chunk's checksum is verified, since OpenCV only warns."""
    wanted = {b"iCCP", b"eXIf", b"tRNS", b"acTL"}
    view = data.data
    found: dict[bytes, bytes] = {}
    place = len(PNG_SIGNATURE)
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


def write_png(file: IO[bytes], pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None) -> None:
    """PNG of 8 or 16 bits: grey, grey and alpha, RGB or RGBA. Filters: for each row, the better of Sub and Up."""

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name)
        file.write(data)
        file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

    height, width, colours = pixels.shape
    depth = pixels.dtype.itemsize * 8
    colour = {(1, False): 0, (3, False): 2, (1, True): 4, (3, True): 6}[colours, alpha is not None]
    file.write(PNG_SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    # The PNG standard forbids another profile; readers warn and leave it out.
    if icc and icc[16:20] == (b"GRAY" if colours == 1 else b"RGB "):
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        chunk(b"eXIf", exif)
    packer = zlib.compressobj(ZLIB_LEVEL)
    step = (colours + (alpha is not None)) * depth // 8  # bytes a pixel
    above = np.zeros((1, width, step), np.uint8)
    for rows in bands(height, width):
        samples = with_alpha(pixels, alpha, rows)
        raw = samples.astype(samples.dtype.newbyteorder(">"), order="C").view(np.uint8).reshape(-1, width, step)
        packed = packer.compress(_filter_rows(raw, above).tobytes())
        if packed:
            chunk(b"IDAT", packed)
        above = raw[-1:]
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


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
