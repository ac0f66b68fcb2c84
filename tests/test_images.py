"""images/: nothing is lost between a file and a Picture, and what would be lost is refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from refine_wrap.errors import ImageError, OutputError
from refine_wrap.images import Picture, bleed_alpha, read_image, resize_alpha, samples, upright, write_image

ROOT = Path(__file__).resolve().parents[1]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int, channels: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 2**bits, (height, width, channels)).astype(np.uint8 if bits == 8 else np.uint16)


def picture(height=9, width=7, channels=3, bits=8, alpha=False, seed=0, **extra) -> Picture:
    mask = noise(height, width, 1, bits, seed + 1)[..., 0] if alpha else None
    return Picture(noise(height, width, channels, bits, seed), mask, **extra)


def exif_block(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[274], exif[271], exif[0x8769] = orientation, "Maker", {36867: "2020:01:02 03:04:05"}
    return exif.tobytes().removeprefix(b"Exif\0\0")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bytes(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + png_chunk(b"IEND", b"")


def same(a: Picture, b: Picture) -> None:
    assert a.pixels.dtype == b.pixels.dtype
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None and b.alpha is not None:
        assert a.alpha.dtype == b.alpha.dtype
        np.testing.assert_array_equal(a.alpha, b.alpha)


# ---------------------------------------------------------------- round trips


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    channels=st.sampled_from([1, 3]),
    bits=st.sampled_from([8, 16]),
    alpha=st.booleans(),
    suffix=st.sampled_from([".png", ".tif", ".PNG", ".tiff"]),
    flat=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_png_and_tiff_give_back_every_bit(height, width, channels, bits, alpha, suffix, flat, seed):
    made = picture(height, width, channels, bits, alpha, seed)
    if flat:  # runs and gradients take other filters than noise
        made.pixels[:] = (np.arange(height)[:, None, None] * 257 + np.arange(width)[None, :, None]) % 2**bits
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        made.save(path)
        same(read_image(path), made)
        assert read_image(path).bits == bits


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 33), width=st.integers(1, 33), alpha=st.booleans(), seed=st.integers(0, 999))
def test_webp_gives_back_every_bit_even_under_transparency(height, width, alpha, seed):
    made = picture(height, width, 3, 8, alpha, seed)
    if made.alpha is not None:
        made.alpha[0, 0] = 0
        made.alpha[-1, -1] = 7  # WebP drops an alpha that is 255 everywhere
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "x.webp")
        same(read_image(Path(folder) / "x.webp"), made)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_and_keeps_full_chroma(tmp_path, channels):
    made = Picture(cv2.resize(noise(5, 6, channels), (60, 50), interpolation=cv2.INTER_CUBIC).reshape(50, 60, channels))
    made.save(tmp_path / "x.jpg")
    read = read_image(tmp_path / "x.jpg")
    assert read.pixels.shape == made.pixels.shape and read.format == "JPEG"
    assert np.abs(read.pixels.astype(int) - made.pixels).mean() < 2
    with Image.open(tmp_path / "x.jpg") as image:
        if channels == 3:
            assert image.layer[0][1:3] == image.layer[1][1:3]  # 4:4:4
        assert max(image.quantization[0]) <= 12  # quality 95


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_other_libraries_read_our_files_alike(tmp_path, channels, alpha, bits):
    """An error made both in our writer and in our reader would pass a round trip."""
    made = picture(40, 31, channels, bits, alpha)
    made.pixels[:20] = 1000 % 2**bits
    whole = made.pixels if made.alpha is None else np.dstack([made.pixels, made.alpha])
    made.save(tmp_path / "x.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif").reshape(whole.shape), whole)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert [int(extra) for extra in file.pages[0].extrasamples] == ([2] if alpha else [])
    made.save(tmp_path / "x.png")
    decoded = cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_UNCHANGED)
    decoded = decoded[..., None] if decoded.ndim == 2 else decoded[..., [2, 1, 0, 3][: decoded.shape[2]]]
    if channels == 1 and alpha:
        decoded = decoded[..., [0, 3]]
    np.testing.assert_array_equal(decoded, whole)
    if bits == 8:
        for suffix in ("png", "tif"):
            with Image.open(tmp_path / f"x.{suffix}") as image:
                np.testing.assert_array_equal(np.asarray(image).reshape(whole.shape), whole)


def test_many_bands_join(tmp_path, monkeypatch):
    made = picture(50, 20, 3, 16, True)
    # Equal rows of stripes: each row is coded against the one above, over the bands' borders too.
    made.pixels[:] = np.arange(20)[:, None] % 2 * 0x0303
    made.alpha[:] = np.arange(20) % 2 * 0x0303
    monkeypatch.setattr(samples, "BAND_PIXELS", 60)
    for suffix in ("png", "tif"):
        made.save(tmp_path / f"x.{suffix}")
        same(read_image(tmp_path / f"x.{suffix}"), made)
    eight = picture(50, 20, 3, 8, True)
    eight.save(tmp_path / "y.png")
    same(read_image(tmp_path / "y.png"), eight)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_icc_and_exif_are_kept_and_pixels_not_turned(tmp_path, suffix, bits):
    made = picture(12, 20, 3, bits, icc=SRGB, exif=exif_block(6))
    made.save(tmp_path / f"x.{suffix}")
    read = read_image(tmp_path / f"x.{suffix}")
    assert read.icc == SRGB
    assert (read.height, read.width) == (12, 20)
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + read.exif)
    assert exif[274] == 6 and exif[271] == "Maker"
    assert exif.get_ifd(0x8769)[36867] == "2020:01:02 03:04:05"
    if suffix != "tif" or bits == 8:  # Pillow opens no 16-bit colour TIFF
        with Image.open(tmp_path / f"x.{suffix}") as image:
            assert image.getexif()[274] == 6 and image.info["icc_profile"] == SRGB
    second = tmp_path / f"y.{suffix}"
    read.save(second)
    assert read_image(second).exif == read.exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiff_of_other_programs_keeps_orientation(tmp_path, orientation, compression):
    pixels = noise(9, 14, 3)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.tif", compression=compression, exif=exif)
    read = read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(read.pixels, pixels)
    kept = Image.Exif()
    kept.load(b"Exif\0\0" + read.exif)
    assert kept[274] == orientation


def test_exif_after_the_pixels_of_a_png_is_found(tmp_path):
    for depth, size in ((8, 1), (16, 2)):
        data = png_bytes(1, 1, depth, 0, b"\0" + b"\x12" * size)
        (tmp_path / "x.png").write_bytes(data[:-12] + png_chunk(b"eXIf", exif_block()) + data[-12:])
        assert read_image(tmp_path / "x.png").exif == exif_block()


def test_large_exif_into_jpeg_keeps_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[274], exif[0x8769] = 8, {37500: b"m" * 70000}
    made = picture(exif=exif.tobytes().removeprefix(b"Exif\0\0"))
    made.save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.getexif()[274] == 8


def test_grey_png_takes_no_rgb_profile(tmp_path):
    picture(channels=1, icc=SRGB).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").icc is None


# ---------------------------------------------------------------- kinds of files


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(noise(10, 11, 3)).quantize(17)
    image.save(tmp_path / "p.png")
    read = read_image(tmp_path / "p.png")
    assert read.alpha is None
    np.testing.assert_array_equal(read.pixels, np.asarray(image.convert("RGB")))
    image.save(tmp_path / "t.png", transparency=bytes([0, 128] + [255] * 15))
    read = read_image(tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as again:
        expected = np.asarray(again.convert("RGBA"))
    np.testing.assert_array_equal(np.dstack([read.pixels, read.alpha]), expected)
    assert {0, 128, 255} == set(np.unique(read.alpha))
    image.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif").pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("depth", "colour"), [(8, 0), (8, 2), (16, 0), (16, 2)])
def test_one_transparent_colour(tmp_path, depth, colour):
    count = 3 if colour == 2 else 1
    pixels = noise(6, 5, count, depth)
    key = pixels[2, 3]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels)
    extra = png_chunk(b"tRNS", key.astype(">u2").tobytes())
    (tmp_path / "x.png").write_bytes(png_bytes(5, 6, depth, colour, rows, extra))
    read = read_image(tmp_path / "x.png")
    assert read.bits == depth
    np.testing.assert_array_equal(read.pixels, pixels)
    expected = np.where((pixels == key).all(2), 0, 2**depth - 1)
    np.testing.assert_array_equal(read.alpha, expected)
    assert read.alpha[2, 3] == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_low_depth_grey_becomes_eight_bits(tmp_path, depth):
    (tmp_path / "x.png").write_bytes(png_bytes(8 // depth, 1, depth, 0, bytes([0, 0b10110001])))
    read = read_image(tmp_path / "x.png")
    steps = [int(f"{0b10110001:08b}"[i : i + depth], 2) for i in range(0, 8, depth)]
    assert read.pixels[..., 0].tolist() == [[255 * step // (2**depth - 1) for step in steps]]
    assert read.bits == 8 and read.grey


def test_one_bit_tiff(tmp_path):
    image = Image.fromarray(noise(9, 13, 1)[..., 0]).convert("1")
    for compression in ("raw", "group4"):
        image.save(tmp_path / "x.tif", compression=compression)
        np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels[..., 0], np.asarray(image) * np.uint8(255))


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    image = Image.fromarray(noise(16, 16, 3)).resize((64, 64)).convert("CMYK")
    profile = SRGB[:16] + b"CMYK" + SRGB[20:]
    for suffix in ("jpg", "tif"):
        image.save(tmp_path / f"x.{suffix}", icc_profile=profile)
        read = read_image(tmp_path / f"x.{suffix}")
        with Image.open(tmp_path / f"x.{suffix}") as again:
            np.testing.assert_array_equal(read.pixels, np.asarray(again.convert("RGB")))
        assert read.icc is None
    image.save(tmp_path / "y.jpg", icc_profile=SRGB)
    assert read_image(tmp_path / "y.jpg").icc is None


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"planarconfig": "separate"},
        {"bigtiff": True},
        {"rowsperstrip": 2},
    ],
    ids=str,
)
def test_tiff_layouts(tmp_path, byteorder, dtype, layout):
    pixels = noise(20, 17, 3, 8 if dtype == np.uint8 else 16)
    data = np.moveaxis(pixels, -1, 0) if "planarconfig" in layout else pixels
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.ascontiguousarray(data),
        photometric="rgb",
        byteorder=byteorder,
        iccprofile=SRGB,
        extratags=[(274, "H", 1, 3, True)],
        **layout,
    )
    read = read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(read.pixels, pixels)
    assert read.pixels.dtype == dtype and read.pixels.dtype.isnative and read.icc == SRGB
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + read.exif)
    assert exif[274] == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lzw_tiff_of_16_bits(tmp_path, channels):
    pixels = noise(20, 17, channels, 16)
    lzw = [cv2.IMWRITE_TIFF_COMPRESSION, 5]
    cv2.imwrite(str(tmp_path / "x.tif"), pixels[..., [2, 1, 0, 3][:channels]] if channels > 1 else pixels, lzw)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert file.pages[0].compression == 5
    read = read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(read.pixels, pixels[..., :3])
    if channels == 4:
        np.testing.assert_array_equal(read.alpha, pixels[..., 3])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_tiff_of_8_bits_by_pillow(tmp_path, mode, compression):
    data = noise(20, 17, len(mode) if mode != "L" else 1)
    image = Image.fromarray(data[..., 0] if mode == "L" else data)
    assert image.mode == mode
    image.save(tmp_path / "x.tif", compression=compression)
    read = read_image(tmp_path / "x.tif")
    whole = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
    np.testing.assert_array_equal(whole, data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_and_premultiplied_tiff(tmp_path, dtype):
    bits = np.dtype(dtype).itemsize * 8
    grey = noise(5, 6, 1, bits)[..., 0]
    tifffile.imwrite(tmp_path / "w.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "w.tif").pixels[..., 0], np.iinfo(dtype).max - grey)
    top = np.iinfo(dtype).max
    half = np.full((3, 3, 4), top // 2 + 1, dtype)
    half[0, 0] = 0
    tifffile.imwrite(tmp_path / "a.tif", half, photometric="rgb", extrasamples=["assocalpha"])
    read = read_image(tmp_path / "a.tif")
    assert read.pixels[1, 1].tolist() == [top] * 3 and read.alpha[1, 1] == top // 2 + 1
    assert read.pixels[0, 0].tolist() == [0] * 3 and read.alpha[0, 0] == 0


def test_content_counts_not_the_suffix(tmp_path):
    made = picture()
    made.save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", tmp_path / "x.jpg")
    same(read_image(tmp_path / "x.jpg"), made)
    assert read_image(tmp_path / "x.jpg").format == "PNG"


def test_phone_jpeg_with_a_second_picture_behind(tmp_path):
    first = Image.fromarray(noise(16, 16, 3))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.n_frames == 2
    assert read_image(tmp_path / "x.jpg").pixels.shape == (16, 16, 3)


# ---------------------------------------------------------------- refusals


def encoded(kind: str, bits: int = 8, size: int = 64) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{kind}"
        picture(size, size, 3, bits).save(path)
        return path.read_bytes()


CASES = [("png", 8), ("png", 16), ("jpg", 8), ("webp", 8), ("tif", 8), ("tif", 16)]


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_a_truncated_file_is_refused_at_every_length(tmp_path, kind, bits):
    data = encoded(kind, bits)
    path = tmp_path / f"x.{kind}"
    for part in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        path.write_bytes(data[: max(1, int(len(data) * part))])
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(path) in str(caught.value) and str(caught.value).count("\n") <= 2
    path.write_bytes(data)
    read_image(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_with_its_directory_first_is_refused(tmp_path, compression):
    """Where tifffile would fill what is missing with black."""
    tifffile.imwrite(
        tmp_path / "x.tif", noise(64, 64, 3, 16), photometric="rgb", compression=compression, rowsperstrip=8
    )
    data = (tmp_path / "x.tif").read_bytes()
    for part in (0.5, 0.9, 0.99):
        (tmp_path / "x.tif").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ImageError, match="ends early"):
            read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("kind", "bits"), [("png", 8), ("png", 16), ("tif", 8), ("tif", 16)])
def test_a_flipped_byte_is_refused(tmp_path, kind, bits):
    data = bytearray(encoded(kind, bits))
    data[len(data) // 2] ^= 0x55
    (tmp_path / f"x.{kind}").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("depth", [8, 16])
def test_a_flipped_byte_in_the_metadata_of_a_png_is_refused(tmp_path, depth):
    """The pixels' own checksum does not cover it."""
    chunk = bytearray(png_chunk(b"eXIf", exif_block(6)))
    chunk[-6] ^= 1
    (tmp_path / "x.png").write_bytes(png_bytes(1, 1, depth, 0, bytes(1 + depth // 8), bytes(chunk)))
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "x.png")


@settings(max_examples=120, deadline=None)
@given(case=st.sampled_from(CASES), place=st.floats(0, 1), patch=st.binary(min_size=1, max_size=6), cut=st.booleans())
def test_damage_never_raises_anything_but_image_error(case, place, patch, cut):
    data = bytearray(_SAMPLES.setdefault(case, encoded(*case, 16)))
    at = min(int(place * min(len(data), 200)), len(data) - 1)  # headers are where decoders stumble
    data[at : at + len(patch)] = patch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data[:at] if cut else data)
        try:
            read_image(path)
        except ImageError as error:
            assert str(error).count("\n") <= 2


_SAMPLES: dict[tuple[str, int], bytes] = {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is a text\n", "is text"),
        (b"GIF89a\x01\0\x01\0", "is a GIF"),
        (b"BM\x01\x02\x03\x04\x05\x06", "is a BMP"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x01\x02\x03\x04\xff\xfe\xfd\xfc\xfb", "01 02 03 04"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "x.png")


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="no file name"):
        read_image("a\0b.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_no_permission(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(ImageError, match="permission denied"):
            read_image(tmp_path / "x.png")
        return
    # Root reads anything: look as nobody, in a child.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setuid(65534)
            read_image(tmp_path / "x.png")
        except ImageError as error:
            code = 0 if "permission denied" in str(error) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_several_pictures_in_one_file(tmp_path):
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "b.tif", noise(3, 8, 8, 16), imagej=True)
    for name in ("a.png", "a.webp", "a.tif", "b.tif"):
        with pytest.raises(ImageError, match=r"holds 3 .*would be lost"):
            read_image(tmp_path / name)


def test_a_thumbnail_page_is_no_second_picture(tmp_path):
    pixels = noise(16, 16, 3)
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(pixels, photometric="rgb")
        writer.write(pixels[::4, ::4], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels, pixels)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), {"photometric": "rgb"}, "floating-point"),
        (np.zeros((4, 4), np.float64), {}, "floating-point"),
        (np.zeros((4, 4), np.int16), {}, "signed"),
        (np.zeros((4, 4), np.uint32), {}, "32 bits"),
        (np.zeros((4, 4, 6), np.uint8), {"photometric": "rgb", "planarconfig": "contig"}, "6 channels"),
        (np.zeros((4, 4, 4), np.uint16), {"photometric": "separated"}, "SEPARATED"),
    ],
)
def test_tiff_samples_that_cannot_be_kept(tmp_path, data, options, words):
    tifffile.imwrite(tmp_path / "x.tif", data, **options)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "x.tif")


def test_no_pixels_and_too_many(tmp_path):
    for width, height, words in ((0, 5, "damaged|0x5"), (2**15 + 1, 2**15, "at most 1074 million")):
        for depth in (8, 16):
            (tmp_path / "x.png").write_bytes(png_bytes(width, height, depth, 2, b"\0"))
            with pytest.raises(ImageError, match=words):
                read_image(tmp_path / "x.png")
    jpeg = bytearray(encoded("jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "x.jpg").write_bytes(jpeg)
    with pytest.raises(ImageError, match="at most 1074 million"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "lzw"])
def test_pillows_limit_neither_stops_us_nor_changes(tmp_path, monkeypatch, kind):
    made = picture(600, 600)  # more than one band
    path = tmp_path / f"x.{'tif' if kind == 'lzw' else kind}"
    if kind == "lzw":
        Image.fromarray(made.pixels).save(path, compression="tiff_lzw")
    else:
        made.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).height == 600
    assert Image.MAX_IMAGE_PIXELS == 5000


def test_pillows_limit_comes_back_after_threads_and_failures(tmp_path, monkeypatch):
    Image.fromarray(noise(200, 200, 3)).save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[2000:3000] = b"\xff" * 1000
    (tmp_path / "bad.tif").write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    outcomes: list[str] = []

    def read(name: str) -> None:
        try:
            read_image(tmp_path / name)
            outcomes.append("read")
        except ImageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=read, args=(name,)) for name in ("x.tif", "bad.tif") * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 5000
    assert sorted(outcomes) == ["read"] * 6 + ["refused"] * 6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to know a process's peak memory")
@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_memory_stays_near_the_picture(tmp_path, kind):
    """18 million pixels, 54 MB. Peak over what the process held before, the picture itself included."""
    row, column = np.arange(6000, dtype=np.uint16)[None, :, None], np.arange(3000, dtype=np.uint16)[:, None, None]
    write_image(
        tmp_path / f"x.{kind}", Picture(((row + column + np.arange(3, dtype=np.uint16)) % 251).astype(np.uint8))
    )
    picture().save(tmp_path / f"small.{kind}")
    code = f"""
from refine_wrap.images import read_image
def peak():  # not ru_maxrss: a child's begins with its parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
read_image({str(tmp_path / f"small.{kind}")!r})
before = peak()
picture = read_image({str(tmp_path / f"x.{kind}")!r})
print((peak() - before) / picture.pixels.nbytes)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert 0.9 <= float(done.stdout) < 2.6


# ---------------------------------------------------------------- tensors


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([8, 16]), channels=st.sampled_from([1, 3]), seed=st.integers(0, 999), data=st.data())
def test_tensor_and_put_are_inverse_on_any_region(bits, channels, seed, data):
    made = picture(11, 13, channels, bits, seed=seed)
    top, left = data.draw(st.integers(0, 10)), data.draw(st.integers(0, 12))
    height, width = data.draw(st.integers(1, 11 - top)), data.draw(st.integers(1, 13 - left))
    tensor = made.tensor(top, left, height, width)
    assert tensor.shape == (1, 3, height, width) and tensor.dtype == torch.float32
    assert float(tensor.min()) >= 0 and float(tensor.max()) <= 1
    blank = made.blank_like(11, 13)
    blank.put(top, left, tensor)
    region = (slice(top, top + height), slice(left, left + width))
    np.testing.assert_array_equal(blank.pixels[region], made.pixels[region])
    blank.pixels[region] = 0
    assert not blank.pixels.any()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_value_survives(bits, channels):
    values = np.arange(2**bits).astype(np.uint8 if bits == 8 else np.uint16).reshape(-1, 256, 1)
    made = Picture(np.repeat(values, channels, 2))
    blank = made.blank_like(made.height, made.width)
    blank.put(0, 0, made.tensor())
    np.testing.assert_array_equal(blank.pixels, made.pixels)
    np.testing.assert_array_equal(
        made.tensor()[0, 0].numpy(), values[..., 0].astype(np.float32) / np.float32(2**bits - 1)
    )


def test_put_rounds_clamps_and_leaves_the_tensor():
    made = picture(1, 6)
    tensor = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 3.0]).expand(1, 3, 1, 6).clone()
    before = tensor.clone()
    made.put(0, 0, tensor)
    assert made.pixels[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]
    assert torch.equal(tensor, before)
    for dtype in (torch.float16, torch.bfloat16):
        made.put(0, 0, tensor.to(dtype))
        assert made.pixels[0, [0, 5], 0].tolist() == [0, 255]


def test_put_in_grey_is_bt601_luma():
    made = picture(1, 3, 1)
    made.put(0, 0, torch.eye(3)[None, :, None])
    assert made.pixels[0, :, 0].tolist() == [round(0.299 * 255), round(0.587 * 255), round(0.114 * 255)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_put_refuses_what_is_not_finite_and_changes_nothing(bad):
    for channels in (1, 3):
        made = picture(4, 4, channels)
        before = made.pixels.copy()
        tensor = torch.full((1, 3, 4, 4), 0.5)
        tensor[0, 1, 2, 3] = bad
        with pytest.raises(ImageError, match="1 of 48 values"):
            made.put(0, 0, tensor)
        np.testing.assert_array_equal(made.pixels, before)


def test_regions_and_shapes_are_checked():
    made = picture(4, 5)
    for region in ((-1, 0, 1, 1), (0, 0, 5, 1), (0, 5, 1, 1), (0, 0, 0, 1)):
        with pytest.raises(ImageError, match="inside the picture"):
            made.tensor(*region)
    with pytest.raises(ImageError, match="inside the picture"):
        made.put(3, 0, torch.zeros(1, 3, 2, 2))
    for shape in ((3, 2, 2), (2, 3, 2, 2), (1, 1, 2, 2), (1, 3, 0, 2)):
        with pytest.raises(ImageError, match="a tensor of shape"):
            made.put(0, 0, torch.zeros(shape))
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ImageError, match="pixels of shape"):
            Picture(pixels)
    with pytest.raises(ImageError, match="at least 1x1"):
        Picture(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ImageError, match="alpha of shape"):
        Picture(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16))


def test_blank_like_and_pil():
    made = picture(4, 5, 1, 16, True, icc=SRGB, exif=exif_block(), format="TIFF")
    blank = made.blank_like(8, 10)
    assert (blank.height, blank.width, blank.bits, blank.grey, blank.alpha) == (8, 10, 16, True, None)
    assert (blank.icc, blank.exif, blank.format) == (SRGB, made.exif, "TIFF")
    for channels in (1, 3):
        for alpha in (False, True):
            eight = picture(4, 5, channels, 8, alpha, icc=SRGB, exif=exif_block())
            back = Picture.from_pil(eight.to_pil())
            same(back, eight)
            assert back.icc == SRGB and back.exif == exif_block()
    grey = picture(4, 5, 1, 16)
    same(Picture.from_pil(grey.to_pil()), grey)
    assert picture(bits=16).to_pil().mode == "RGB"
    with pytest.raises(ImageError, match="mode F"):
        Picture.from_pil(Image.new("F", (3, 3)))


# ---------------------------------------------------------------- alpha


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 24), width=st.integers(1, 24), share=st.floats(0.02, 0.98), seed=st.integers(0, 999))
def test_bleed_takes_the_nearest_visible_colour(height, width, share, seed):
    made = picture(height, width, 3, 16, True, seed)
    visible = rng(seed + 9).random((height, width)) < share
    made.alpha[:] = np.where(visible, np.maximum(made.alpha, 1), 0)
    before = made.pixels.copy()
    bled = bleed_alpha(made)
    np.testing.assert_array_equal(made.pixels, before)
    np.testing.assert_array_equal(bled.alpha, made.alpha)
    np.testing.assert_array_equal(bled.pixels[visible], before[visible])
    places = np.argwhere(visible)
    if not len(places):
        np.testing.assert_array_equal(bled.pixels, before)
        return
    for row, column in np.argwhere(~visible):
        away = np.hypot(*(places - (row, column)).T)
        taken = [
            distance
            for distance, place in zip(away, places, strict=True)
            if (before[tuple(place)] == bled.pixels[row, column]).all()
        ]
        assert taken and min(taken) <= away.min() * 1.05 + 1e-6


def test_bleed_leaves_what_needs_nothing():
    opaque = picture()
    assert bleed_alpha(opaque) is opaque
    clear = picture(alpha=True)
    clear.alpha[:] = 0
    assert bleed_alpha(clear) is clear
    faint = picture(alpha=True)
    faint.alpha[:] = 1
    assert bleed_alpha(faint) is faint


@pytest.mark.parametrize("bits", [8, 16])
def test_resize_alpha(bits):
    assert resize_alpha(picture(bits=bits), 3, 3) is None
    top = 2**bits - 1
    made = picture(40, 40, bits=bits, alpha=True)
    made.alpha[:] = top
    assert (resize_alpha(made, 80, 20) == top).all()
    made.alpha[:, :20] = 0
    large = resize_alpha(made, 160, 120)
    assert large.shape == (160, 120) and large.dtype == made.pixels.dtype
    assert (large[:, :50] == 0).all() and (large[:, 70:] == top).all()
    # One-pixel stripes: antialiased they become an even grey, by nearest or plain bicubic they do not.
    made.alpha[:] = np.where(np.arange(40) % 2, top, 0)
    small = resize_alpha(made, 10, 10).astype(float)
    assert np.abs(small[:, 2:-2] - top / 2).max() < 0.05 * top
    with pytest.raises(ImageError):
        resize_alpha(made, 0, 3)


# ---------------------------------------------------------------- writing


def test_depth_changes_are_rounded(tmp_path):
    values = np.arange(65536).astype(np.uint16).reshape(256, 256, 1)
    expected = np.floor(np.arange(65536) / 257 + 0.5).reshape(256, 256)
    made = Picture(values, values[..., 0].copy())
    made.save(tmp_path / "x.png", bits=8)
    read = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(read.pixels[..., 0], expected)
    np.testing.assert_array_equal(read.alpha, expected)
    assert read.pixels[-1, -1, 0] == 255 and read.bits == 8
    read.save(tmp_path / "y.tif", bits=16)
    np.testing.assert_array_equal(read_image(tmp_path / "y.tif").pixels[..., 0], expected * 257)
    Picture(values.repeat(3, 2)).save(tmp_path / "z.webp")
    np.testing.assert_array_equal(read_image(tmp_path / "z.webp").pixels[..., 1], expected)


def test_what_a_format_cannot_hold(tmp_path):
    cases = [
        ("x.jpg", picture(alpha=True), {}, "cannot hold alpha"),
        ("x.jpg", picture(bits=16), {"bits": 16}, "16 bits"),
        ("x.webp", picture(bits=16), {"bits": 16}, "16 bits"),
        ("x.webp", picture(1, 16384), {}, "at most 16383"),
        ("x.jpg", picture(65501, 1), {}, "at most 65500"),
        ("x.bmp", picture(), {}, "unknown suffix"),
        ("x", picture(), {}, "unknown suffix"),
        ("x.png", picture(), {"bits": 12}, "12 bits"),
    ]
    for name, made, options, words in cases:
        with pytest.raises(ImageError, match=words):
            made.save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_told(tmp_path):
    path = tmp_path / "x.png"
    first, second = picture(seed=1), picture(seed=2)
    first.save(path)
    with pytest.raises(OutputError, match="exists already"):
        second.save(path)
    same(read_image(path), first)
    second.save(path, overwrite=True)
    same(read_image(path), second)


def test_a_file_cut_short_by_the_system_leaves_nothing(tmp_path):
    """A real limit of the kernel: writes beyond it are cut short or fail, as on a full disk."""
    code = """
import os, resource, signal, sys
import numpy as np
from refine_wrap.errors import OutputError
from refine_wrap.images import Picture
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
picture = Picture(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8))
for suffix in ("png", "jpg", "webp", "tif"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    picture.save(f"whole.{suffix}")
    size = os.path.getsize(f"whole.{suffix}")
    for limit in (10, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            picture.save(f"x.{suffix}")
        except OutputError as error:
            assert f"x.{suffix} cannot be written: the file would be larger" in str(error), error
        else:
            sys.exit(f"{suffix} written within {limit} of {size} bytes")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    picture.save(f"x.{suffix}")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [f"{name}.{suffix}" for name in ("whole", "x") for suffix in ("jpg", "png", "tif", "webp")]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file, not a folder"):
        picture().save(tmp_path / "file" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="a folder has this name"):
        picture().save(tmp_path / "folder.png", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        picture().save("/proc/nothing/x.png")


def test_pillow_reads_a_written_file_without_a_warning(tmp_path):
    for channels in (1, 3):
        for suffix in ("png", "tif", "webp", "jpg"):
            path = tmp_path / f"{channels}.{suffix}"
            picture(channels=channels, icc=SRGB, exif=exif_block()).save(path)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with Image.open(io.BytesIO(path.read_bytes())) as image:
                    image.load()


def test_an_exif_block_of_pillow_is_kept_and_another_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 6, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "tif"):
        path = tmp_path / f"turned.{suffix}"
        write_image(path, Picture(pixels, exif=exif.tobytes()))  # it begins with "Exif"
        assert upright(read_image(path)).pixels.shape == (6, 4, 3), suffix
    with pytest.raises(ImageError, match="no TIFF structure"):
        Picture(pixels, exif=b"Exif\0\0nonsense")
