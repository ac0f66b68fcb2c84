"""ICC profiles and EXIF blocks: what is kept, and what would be wrong to keep."""

from __future__ import annotations

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION, EXIF_IFD, GPS_IFD = 274, 0x8769, 0x8825
# TIFF keeps EXIF among the tags that lay out its pixels; these are the ones that describe the picture.
DESCRIPTIVE_TAGS = frozenset(
    {269, 270, 271, 272, ORIENTATION, 282, 283, 296, 305, 306, 315, 316, 0x4746, 0x4749, 33432, *range(0x9C9B, 0x9CA0)}
)


def usable_icc(icc: object, mode: str) -> bytes | None:
    """The profile, unless it describes other colours (CMYK, Lab) than those that we hold."""
    if not isinstance(icc, bytes) or mode in ("CMYK", "LAB") or icc[16:20] not in (b"RGB ", b"GRAY"):
        return None
    return icc


def clean_exif(exif: object) -> bytes | None:
    """Without the prefix that JPEG puts before it; None if it is no EXIF at all."""
    if not isinstance(exif, bytes):
        return None
    exif = exif.removeprefix(EXIF_PREFIX)
    return exif if exif[:4] in (b"II*\0", b"MM\0*") else None


def short_exif(block: bytes) -> bytes:
    """What fits into a JPEG's one marker."""
    if len(block) <= 65533:
        return block
    from PIL import Image

    kept = Image.Exif()
    full = Image.Exif()
    full.load(block)
    for tag in full:
        if tag in DESCRIPTIVE_TAGS and (not isinstance(full[tag], (str, bytes)) or len(full[tag]) < 1024):
            kept[tag] = full[tag]
    return kept.tobytes() if len(kept) else b""


def is_layout_note(value: object) -> bool:
    """Whether a description is a program's note on the array's shape, which would be wrong after a resize."""
    return isinstance(value, str) and value.startswith(("ImageJ=", '{"shape"'))
