"""TIFF: read by tifffile, or by OpenCV or Pillow for the compressions that tifffile leaves to an optional package.

It is written here, over zlib, for the reason that PNG is.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError
from .metadata import (
    DESCRIPTIVE_TAGS,
    EXIF_IFD,
    EXIF_PREFIX,
    GPS_IFD,
    ORIENTATION,
    clean_exif,
    is_layout_note,
    usable_icc,
)
from .pillow import no_pillow_limit, pil_arrays
from .samples import ZLIB_LEVEL, Array, Parts, bands, check_size, refuse_frames, split_cv2, top_value, with_alpha

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from tifffile import TiffPage


def read_tiff(file: IO[bytes], name: str) -> Parts:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        # Thumbnails and masks are not pages of their own.
        full = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
        pages = [page for page in full if not page.is_reduced and not page.is_mask]
        count = len(tiff.pages) if len(pages) != 1 else 1
        if tiff.is_imagej:  # ImageJ stores a stack behind one page
            count = max(count, int((tiff.imagej_metadata or {}).get("images", 1)))
        refuse_frames(name, count, "pages")
        if not pages:
            raise ValueError("it has no full-size page")
        page = pages[0]
        _check_kind(name, page)
        _check_data(page, file.seek(0, os.SEEK_END))
        pixels, alpha = _decode(file, name, page)
        icc = page.tags.valueof(34675)
        exif = _exif_of(file, page)
    mode = "CMYK" if page.photometric == tifffile.PHOTOMETRIC.SEPARATED else "RGB"
    return pixels, alpha, usable_icc(icc, mode), exif


def _check_kind(name: str, page: TiffPage) -> None:
    """Refuse what could only be read with a loss."""
    from tifffile import PHOTOMETRIC

    check_size(page.imagewidth, page.imagelength, name)
    expected = "8 or 16 bit unsigned grey, RGB or palette, with at most one alpha channel"
    if page.imagedepth > 1:
        refuse_frames(name, page.imagedepth, "slices")
    if page.sampleformat != 1:
        kind = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}.get(int(page.sampleformat), "unknown")
        raise ImageError(f"{name} has {kind} samples", expected, "convert it to 16 bit first")
    if page.bitspersample not in (1, 2, 4, 8, 16):
        raise ImageError(f"{name} has {page.bitspersample} bits a sample", expected, "convert it to 16 bit first")
    kinds: dict[int, int] = {PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.RGB: 3}
    if page.bitspersample < 16:
        kinds |= {PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3}
    # An unknown number arrives as a plain int.
    colours = kinds.get(page.photometric)
    if colours is None:
        space = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"{name} has {page.bitspersample}-bit {space} pixels", expected, "convert it to RGB first")
    if not colours <= page.samplesperpixel <= colours + 1:
        raise ImageError(f"{name} has {page.samplesperpixel} channels", expected, "keep colour and one alpha channel")


def _check_data(page: TiffPage, size: int) -> None:
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


def _decode(file: IO[bytes], name: str, page: TiffPage) -> tuple[Array, Array | None]:
    from tifffile import PHOTOMETRIC

    plain = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
    if not plain or page.bitspersample < 8:
        return _decode_by_pillow(file, name)
    try:
        samples = _samples(page)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if page.bitspersample == 8:
            return _decode_by_pillow(file, name)
        samples = _decode_by_cv2(file, name, page)
    pixels, alpha = _split(samples, page)
    if alpha is not None and tuple(int(extra) for extra in page.extrasamples) == (1,):
        _unmultiply(pixels, alpha)
    return pixels, alpha


def _samples(page: TiffPage) -> Array:
    """(H, W, S) or (H, W), in the machine's byte order."""
    decoded = page.asarray()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        decoded = np.moveaxis(decoded, 0, -1)
    return decoded.astype(decoded.dtype.newbyteorder("="), copy=False)


def _decode_by_cv2(file: IO[bytes], name: str, page: TiffPage) -> Array:
    import cv2

    # OpenCV mixes up separate planes and drops the alpha of grey.
    if page.samplesperpixel == 2 or (page.planarconfig == 2 and page.samplesperpixel > 1):
        packing = getattr(page.compression, "name", page.compression)
        raise ImageError(
            f"{name} stores 16-bit samples with {packing} compression in an unusual layout",
            "no or Deflate compression",
            "save it so, or pip install imagecodecs",
        )
    file.seek(0)
    decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("its pixels cannot be decoded")
    pixels, alpha = split_cv2(decoded, grey=False)
    return pixels if alpha is None else np.dstack([pixels, alpha])


def _decode_by_pillow(file: IO[bytes], name: str) -> tuple[Array, Array | None]:
    from PIL import Image, TiffImagePlugin

    file.seek(0)
    with no_pillow_limit(), TiffImagePlugin.TiffImageFile(file) as image:
        orientation = image.tag_v2.get(ORIENTATION, 1)
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
        turned = back is not None and ORIENTATION not in image.tag_v2
        stored: PILImage.Image = image.transpose(back) if back is not None and turned else image
        return pil_arrays(stored, name)


def _split(decoded: Array, page: TiffPage) -> tuple[Array, Array | None]:
    from tifffile import PHOTOMETRIC

    samples = decoded.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    pixels = np.array(samples[..., :colours], order="C") if samples.shape[2] > colours else samples
    # An extra channel of unspecified meaning is taken as alpha, as GIMP does, rather than dropped.
    alpha = np.array(samples[..., -1], order="C") if samples.shape[2] > colours else None
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        pixels = top_value(pixels.dtype) - pixels
    return np.ascontiguousarray(pixels), alpha


def _unmultiply(pixels: Array, alpha: Array) -> None:
    """Straight colour from colour multiplied by alpha, in place."""
    top = top_value(alpha.dtype)
    for rows in bands(*alpha.shape):
        share = np.maximum(alpha[rows], 1).astype(np.uint64)[..., None]
        pixels[rows] = np.minimum((pixels[rows].astype(np.uint64) * top + share // 2) // share, top)


def _exif_of(file: IO[bytes], page: TiffPage) -> bytes | None:
    """The descriptive tags and the EXIF and GPS directories of a TIFF, as an EXIF block of their own."""
    from PIL import Image

    if page.parent.is_bigtiff:  # Pillow's EXIF reader knows classic TIFF only
        orientation = page.tags.valueof(ORIENTATION)
        if orientation is None:
            return None
        exif = Image.Exif()
        exif[ORIENTATION] = int(orientation)
        return clean_exif(exif.tobytes())
    file.seek(0)
    exif = Image.Exif()
    exif.load_from_fp(file)
    kept = Image.Exif()
    tags, directories = _descriptive(exif)
    for tag, value in (tags | directories).items():
        kept[tag] = value
    return clean_exif(kept.tobytes()) if len(kept) else None


def _descriptive(exif: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """What is kept of an EXIF block: descriptive tags, and the EXIF and GPS directories that hold something."""
    tags = {tag: exif[tag] for tag in exif if tag in DESCRIPTIVE_TAGS and not is_layout_note(exif[tag])}
    directories = {tag: dict(values) for tag in (EXIF_IFD, GPS_IFD) if tag in exif and (values := exif.get_ifd(tag))}
    return tags, directories


def write_tiff(file: IO[bytes], pixels: Array, alpha: Array | None, icc: bytes | None, exif: bytes | None) -> None:
    """A little-endian TIFF of Deflate strips with horizontal differences; the directory comes last."""
    from PIL import TiffImagePlugin

    height, width, colours = pixels.shape
    bits = pixels.dtype.itemsize * 8
    channels = colours + (alpha is not None)
    file.write(b"II*\0\0\0\0\0")
    offsets, counts = [], []
    for rows in bands(height, width):
        values = with_alpha(pixels, alpha, rows)
        differences = values.copy()
        differences[:, 1:] -= values[:, :-1]
        packed = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")).tobytes(), ZLIB_LEVEL)
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
        278: (4, next(bands(height, width)).stop),
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
    block.load(EXIF_PREFIX + exif)
    tags, directories = _descriptive(block)
    for tag in directories:
        directory.tagtype[tag] = 4
    for tag, value in (tags | directories).items():
        directory[tag] = value
