"""PSNR and SSIM: equal to BasicSR's, and to figures worked out by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from refine_wrap.errors import ImageError
from refine_wrap.evaluation import Protocol, full_reference, psnr, ssim

SHARED = Path(os.environ.get("REFINE_WRAP_SHARED", Path(__file__).parents[2] / "shared"))
PHOTOS = SHARED / "data" / "photos"


def random_pair(height: int = 37, width: int = 52, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(1, 3, height, width, generator=generator)
    b = a + noise * torch.randn(a.shape, generator=generator)
    return a, b.clamp(0, 1)


def photo_pair(noise: float) -> tuple[Tensor, Tensor]:
    from PIL import Image

    pixels = np.asarray(Image.open(PHOTOS / "dog-lossless.png").convert("RGB"))[100:260, 80:303]
    a = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    b = (a + noise * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    return a, b


def as_basicsr(image: Tensor) -> np.ndarray:
    """What BasicSR measures: the file as OpenCV reads it, uint8, height x width x BGR."""
    return (image[0].flip(0).permute(1, 2, 0).numpy() * 255.0).round().astype(np.uint8)


def basicsr_metrics():  # type: ignore[no-untyped-def]
    pytest.importorskip("cv2")
    pytest.importorskip("basicsr", reason="BasicSR is not installed")
    from basicsr.metrics import calculate_psnr, calculate_ssim

    return calculate_psnr, calculate_ssim


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("noise", [0.005, 0.1, 0.5])
def test_random_images_measure_as_in_basicsr(luma: bool, border: int, noise: float) -> None:
    calculate_psnr, calculate_ssim = basicsr_metrics()
    a, b = random_pair(noise=noise)
    pixels = as_basicsr(a), as_basicsr(b)
    assert psnr(a, b, border=border, luma=luma).item() == pytest.approx(
        calculate_psnr(*pixels, crop_border=border, test_y_channel=luma), abs=1e-6
    )
    assert ssim(a, b, border=border, luma=luma).item() == pytest.approx(
        calculate_ssim(*pixels, crop_border=border, test_y_channel=luma), abs=1e-6
    )


@pytest.mark.shared
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of ../shared are not here")
@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_photos_measure_as_in_basicsr(luma: bool, noise: float) -> None:
    calculate_psnr, calculate_ssim = basicsr_metrics()
    a, b = photo_pair(noise)
    pixels = as_basicsr(a), as_basicsr(b)
    assert psnr(a, b, luma=luma).item() == pytest.approx(
        calculate_psnr(*pixels, crop_border=0, test_y_channel=luma), abs=1e-6
    )
    assert ssim(a, b, luma=luma).item() == pytest.approx(
        calculate_ssim(*pixels, crop_border=0, test_y_channel=luma), abs=1e-6
    )


def test_known_figures() -> None:
    black, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 51 / 255)
    assert psnr(black, grey).item() == pytest.approx(20 * math.log10(255 / 51), abs=1e-9)
    # Luma of a grey step of 51 is 51 x (235 - 16) / 255.
    assert psnr(black, grey, luma=True).item() == pytest.approx(20 * math.log10(255 / (51 * 219 / 255)), abs=1e-6)
    # Flat images have no variance: what is left is the luminance term.
    c1 = (0.01 * 255) ** 2
    assert ssim(black, grey).item() == pytest.approx(c1 / (51**2 + c1), abs=1e-9)


def test_eight_bit_rounds_and_unrounded_does_not() -> None:
    a = torch.full((1, 3, 16, 16), 100.0 / 255)
    assert psnr(a, a + 0.4 / 255).item() == math.inf
    assert psnr(a, a + 0.4 / 255, eight_bit=False).item() == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    assert psnr(a.double(), a.double() + 0.4 / 255, eight_bit=False).item() == pytest.approx(
        20 * math.log10(255 / 0.4), abs=1e-4
    )


def test_identical_images() -> None:
    a, _ = random_pair()
    assert psnr(a, a).tolist() == [math.inf]
    assert ssim(a, a).tolist() == [1.0]


def test_a_batch_is_measured_image_by_image() -> None:
    pairs = [random_pair(noise=noise, seed=seed) for seed, noise in enumerate((0.02, 0.1, 0.4))]
    a, b = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
    for metric in (psnr, ssim):
        together = metric(a, b)
        assert together.shape == (3,) and together.dtype == torch.float64
        assert together.tolist() == pytest.approx([metric(*pair).item() for pair in pairs], abs=1e-12)


@pytest.mark.parametrize("luma", [False, True])
def test_strips_change_nothing(luma: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_pair(61, 23)
    whole = psnr(a, b, luma=luma).item(), ssim(a, b, luma=luma).item()
    for rows in (1, 7, 50, 51, 60):
        monkeypatch.setattr(full_reference, "_STRIP_PIXELS", rows * 23)
        assert (psnr(a, b, luma=luma).item(), ssim(a, b, luma=luma).item()) == pytest.approx(whole, abs=1e-12)


def test_border_leaves_the_edge_out() -> None:
    a, _ = random_pair(40, 40)
    b = a.clone()
    b[:, :, :4], b[:, :, -4:], b[:, :, :, :4], b[:, :, :, -4:] = 0, 0, 0, 0
    assert psnr(a, b, border=4).item() == math.inf
    assert math.isfinite(psnr(a, b, border=3).item())
    assert ssim(a, b, border=4).item() == 1.0
    assert ssim(a, b, border=3).item() < 1.0


def test_values_out_of_range_are_clamped_and_half_precision_is_taken() -> None:
    a, b = random_pair()
    assert psnr(a * 3 - 1, b).item() == psnr((a * 3 - 1).clamp(0, 1), b).item()
    short = a.bfloat16(), b.bfloat16()
    for metric in (psnr, ssim):
        assert metric(*short).item() == metric(short[0].float(), short[1].float()).item()


def test_the_smallest_image() -> None:
    a, b = random_pair(11, 11)
    assert 0 < ssim(a, b).item() < 1
    one = torch.zeros(1, 3, 1, 1)
    assert psnr(one, one + 1).item() == 0.0


A = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("metric", "a", "b", "options", "words"),
    [
        (psnr, A, A[:, :, :19], {}, "the same shape"),
        (ssim, A, A[:1], {}, "the same shape"),
        (psnr, A[0], A[0], {}, r"\(B, 3, H, W\)"),
        (psnr, A[:, :1], A[:, :1], {}, r"\(B, 3, H, W\)"),
        (ssim, A[:0], A[:0], {}, r"\(B, 3, H, W\)"),
        (psnr, (A * 255).byte(), (A * 255).byte(), {}, "floating point"),
        (psnr, A, A * torch.nan, {}, "not finite"),
        (ssim, A / 0, A, {}, "not finite"),
        (ssim, A[:, :, :10], A[:, :, :10], {}, "at least 11x11"),
        (ssim, A, A, {"border": 5}, "leaves 10x10"),
        (psnr, A, A, {"border": 10}, "leaves 0x0"),
        (psnr, A, A, {"border": -1}, "border of -1"),
    ],
)
def test_refusals(metric, a, b, options, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageError, match=words):
        metric(a, b, **options)


def test_a_protocol_measures_and_says_how() -> None:
    a, b = random_pair()
    assert str(Protocol("PSNR")) == "PSNR, RGB, 8-bit, border 0"
    plain = Protocol("SSIM", border=4, luma=True, eight_bit=False)
    assert str(plain) == "SSIM, Y (BT.601), unrounded, border 4"
    assert plain(a, b).item() == ssim(a, b, border=4, luma=True, eight_bit=False).item()
    assert plain(a, b).item() != Protocol("SSIM", border=4, luma=True)(a, b).item()
    assert Protocol("PSNR", border=2)(a, b).item() == psnr(a, b, border=2).item()
    with pytest.raises(ImageError, match="PSNR or SSIM"):
        Protocol("LPIPS")
