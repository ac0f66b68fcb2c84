"""Full-reference metrics: equal to the figures of their authors and of BasicSR, and what all of them keep to."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refine_wrap.errors import ImageError, RefineWrapError
from refine_wrap.evaluation import Metric, Protocol, full_reference, full_reference_names, psnr, ssim
from refine_wrap.evaluation.metrics import delta_e, strips
from refine_wrap.resources import weights_dir

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
    assert Protocol("PSNR") == Protocol("PSNR", luma=False)
    with pytest.raises(ImageError, match="PSNR, SSIM, MS-SSIM"):
        Protocol("LPIPS")


# ---------------------------------------------------------------- every metric

TWO_IMAGES = ["PSNR", "SSIM", "MS-SSIM", "FSIM", "GMSD", "VIF", "NLPD", "CIEDE2000"]
BEST = {"PSNR": math.inf, "GMSD": 0.0, "NLPD": 0.0, "CIEDE2000": 0.0, "squeeze": 0.0, "LPIPS": 0.0}


def photo() -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(weights_dir() / "demo_photo.png").convert("RGB"))


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


ODD = photo()[30:223, 50:257]
"""193 x 207 pixels."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of random weights under torchvision's names."""
    from torchvision.models import alexnet, squeezenet1_1

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    for build in (squeezenet1_1, alexnet):
        with torch.device("meta"):
            features = build().features
        features.to_empty(device="cpu")
        for layer in features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, 0, 0.05)
        torch.save(
            {f"features.{name}": value for name, value in features.state_dict().items()},
            folder / f"{build.__name__}.pth",
        )
    return folder


Build = Callable[..., Metric]


@pytest.fixture(params=[*TWO_IMAGES, "FSIM on luma", "squeeze", "LPIPS"])
def build(request: pytest.FixtureRequest, weights: Path) -> Build:
    name, _, luma = request.param.partition(" on ")
    if name == "squeeze":
        return partial(full_reference, f"squeeze={weights / 'squeezenet1_1.pth'}", input="torchvision")
    if name == "LPIPS":
        if importlib.util.find_spec("lpips") is None:
            pytest.skip("lpips is not installed")
        return partial(full_reference, f"LPIPS={weights / 'alexnet.pth'}")
    return partial(full_reference, name, **({"luma": True} if luma else {}))


@pytest.fixture
def metric(build: Build) -> Metric:
    return build()


def worse(pixels: np.ndarray, how: str, strength: float) -> np.ndarray:
    from PIL import Image, ImageFilter

    image = Image.fromarray(pixels)
    if how == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(strength)))
    if how == "JPEG":
        image.save(file := io.BytesIO(), "JPEG", quality=int(strength))
        return np.asarray(Image.open(file))
    noise = np.random.default_rng(0).standard_normal(pixels.shape)
    return np.clip(np.round(pixels + strength * noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("how", "strengths"), [("blur", (0.6, 1.2, 2.5)), ("noise", (3, 9, 27)), ("JPEG", (85, 40, 10))]
)
def test_worse_pictures_measure_worse(metric: Metric, how: str, strengths: tuple[float, ...]) -> None:
    truth = tensor(ODD)
    pictures = torch.cat([truth, *(tensor(worse(ODD, how, strength)) for strength in strengths)])
    figures = metric(pictures, truth.expand_as(pictures))
    assert figures.shape == (4,) and figures.dtype == torch.float64
    assert figures[0].item() == pytest.approx(BEST.get(metric.name, 1.0), abs=1e-9)
    rising = figures if metric.higher_is_better else -figures
    assert (rising.diff() < 0).all(), figures
    # Each pair alone gives what it gives among others.
    alone = [metric(picture[None], truth).item() for picture in pictures]
    assert figures.tolist() == pytest.approx(
        alone, rel=1e-5 if metric.name in ("squeeze", "LPIPS") else 1e-12, abs=1e-9
    )


def test_grey_pictures_are_measured(metric: Metric) -> None:
    grey = ODD[..., :1].repeat(3, axis=2)
    noisy = worse(ODD, "noise", 9)[..., :1].repeat(3, axis=2)
    figure, best = metric(tensor(noisy), tensor(grey)), metric(tensor(grey), tensor(grey))
    assert bool(torch.isfinite(figure)) and (figure < best) == metric.higher_is_better


def test_values_outside_are_clamped_and_rounded(metric: Metric) -> None:
    truth = tensor(ODD)
    bright = truth * 1.5
    saved = (bright.clamp(0, 1) * 255).round() / 255
    assert metric(bright, truth).item() == metric(saved, truth).item()


def test_every_metric_refuses_the_same(metric: Metric) -> None:
    side = metric.smallest
    image = torch.rand(1, 3, side, side + 1)
    assert not bool(metric(image, image.flip(3)).isnan())
    for other, words in [
        (image[..., 1:], "the same shape"),
        (image * torch.nan, "not finite"),
        (image[0], r"\(B, 3, H, W\)"),
    ]:
        with pytest.raises(ImageError, match=words):
            metric(other, image)
    with pytest.raises(ImageError, match="floating point"):
        metric(image.byte(), image.byte())
    if side > 1:
        with pytest.raises(ImageError, match=f"at least {side}x{side}"):
            metric(image[:, :, 1:], image[:, :, 1:])


def test_the_border_is_left_out(build: Build) -> None:
    truth = tensor(ODD)
    framed = truth.clone()
    framed[..., :8], framed[..., -8:], framed[:, :, :8], framed[:, :, -8:] = 0, 0, 0, 0
    bordered = build(border=8)
    assert bordered.smallest == 16 + build().smallest and str(bordered) == str(build()).replace("border 0", "border 8")
    assert bordered(framed, truth).item() == pytest.approx(BEST.get(bordered.name, 1.0), abs=1e-9)
    assert bordered(framed, truth).item() != build(border=7)(framed, truth).item()


@pytest.mark.parametrize(
    ("name", "luma"), [*((name, None) for name in TWO_IMAGES), ("PSNR", True), ("SSIM", True), ("FSIM", True)]
)
def test_strips_change_nothing(name: str, luma: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    high, wide = (181, 177) if name == "MS-SSIM" else (61, 53)
    a, b = random_pair(high, wide)
    metric = Protocol(name, luma=luma)
    whole = metric(a, b).item()
    most = []

    def prepared(image: Tensor, *rest: Any, **options: Any) -> Tensor:
        most.append(image.shape[2])
        return strips.prepared(image, *rest, **options)

    monkeypatch.setattr("refine_wrap.evaluation.metrics.protocol.prepared", prepared)
    for rows in (1, 7, 30, high - 11, high - 1):
        monkeypatch.setattr(strips, "STRIP_PIXELS", rows * wide)
        most.clear()
        assert metric(a, b).item() == pytest.approx(whole, abs=1e-11)
        # Never more of the photo than a strip and what its windows see around it.
        assert max(most) <= rows + 18, rows


@pytest.mark.parametrize(("height", "width"), [(400, 333), (96, 529)])
def test_tiles_change_nothing(height: int, width: int, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refine_wrap.evaluation.metrics import features

    metric = full_reference("squeeze", file=weights / "squeezenet1_1.pth", input="torchvision", eight_bit=False)
    a, b = random_pair(height, width)
    whole = metric(a, b).item()
    monkeypatch.setattr(features, "TILE", 64)
    assert metric(a, b).item() == pytest.approx(whole, rel=1e-6)


# ---------------------------------------------------------------- figures


def coarser(pixels: np.ndarray) -> np.ndarray:
    """Softer, with a pattern over it; integers only, so that every machine makes the same."""
    pixels = pixels.astype(np.int64)
    i, j, c = np.indices(pixels.shape)
    soft = (pixels + np.roll(pixels, 1, 0) + np.roll(pixels, 1, 1) + np.roll(pixels, (1, 1), (0, 1))) // 4
    return np.clip(soft + (i * 73 + j * 151 + c * 37) % 31 - 15, 0, 255).astype(np.uint8)


LARGE = np.tile(photo(), (2, 2, 1))[:400]
"""400 x 768 pixels, which FSIM halves."""


# FSIM and VIF: piq 0.8.0 (FSIMc in float32). GMSD, MS-SSIM and NLPD: written out with scipy 1.17 from the authors' MATLAB
# files. CIEDE2000: colour-science 0.4.7, whose matrix to XYZ has four digits. On five pairs of TID2013 and two more, the
# metrics here also give the figures of that MATLAB code as IQA-PyTorch and piq publish them: GMSD and NLPD in all 14
# digits, FSIM, FSIMc and VIF in the 4 or 5 that are there. (IQA-PyTorch's MS-SSIM is that code's weighted sum.)
@pytest.mark.parametrize(
    ("name", "options", "odd", "large", "tolerance"),
    [
        ("FSIM", {}, 0.8915745616, 0.9631932378, 2e-6),
        ("FSIM", {"luma": True}, 0.8959326744, 0.9644805659, 2e-7),
        ("GMSD", {}, 0.0577922833511, 0.0625306690591, 1e-12),
        ("VIF", {}, 0.4050630825, 0.4071416991, 2e-9),
        ("MS-SSIM", {}, 0.967433638482725, 0.966705946506905, 1e-12),
        ("NLPD", {}, 0.305432732195197, 0.279492720156946, 1e-12),
        ("CIEDE2000", {}, 5.867917, None, 2e-4),
    ],
)
def test_figures_of_other_implementations(
    name: str, options: dict[str, Any], odd: float, large: float | None, tolerance: float
) -> None:
    metric = full_reference(name, **options)
    for pixels, figure in [(ODD, odd), (LARGE, large)]:
        if figure is not None:
            assert metric(tensor(coarser(pixels)), tensor(pixels)).item() == pytest.approx(figure, abs=tolerance)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_blocks_lie_as_those_of_matlab(factor: int) -> None:
    image = torch.rand(1, 1, 14, 9, dtype=torch.float64)
    padded = nn.functional.pad(image, (factor, factor, factor, factor))
    # conv2(..., 'same') begins floor(factor / 2) after the first value of the whole convolution.
    first = factor - (factor - 1) + factor // 2
    means = nn.functional.avg_pool2d(padded[..., first:, first:], factor, stride=1)[..., :14, :9]
    assert torch.allclose(strips.pooled(strips.Rows(image), factor, "zero"), means[..., ::factor, ::factor])


def test_colour_differences_of_known_colours() -> None:
    colours = (
        torch.tensor([[1.0, 0, 0], [1, 1, 1]]).view(2, 3, 1, 1),
        torch.tensor([[0.0, 1, 0], [0, 0, 0]]).view(2, 3, 1, 1),
    )
    # Of pure red from pure green, and of white from black, as colour calculators give them.
    assert full_reference("CIEDE2000")(*colours).tolist() == pytest.approx([86.608, 100.0], abs=1e-3)


def test_colour_differences_by_pixel_are_those_of_the_metric() -> None:
    pictures = torch.rand(2, 2, 3, 5, 7)
    by_pixel = delta_e(*pictures)
    assert by_pixel.shape == (2, 5, 7)
    whole = full_reference("CIEDE2000", eight_bit=False)(*pictures)
    assert torch.allclose(by_pixel.mean(dim=(1, 2)), whole, atol=1e-9)
    assert not delta_e(pictures[0], pictures[0]).any()
    with pytest.raises(ImageError, match="are compared"):
        delta_e(pictures[0], pictures[0][:1])


def test_more_contrast_than_the_ground_truth_has_more_information() -> None:
    truth = tensor(ODD) * 0.5 + 0.25
    stronger = (truth - 0.5) * 1.3 + 0.5
    vif = full_reference("VIF")
    assert vif(stronger, truth).item() > 1 > vif(truth, stronger).item()


def test_fsim_on_luma_does_not_see_colour() -> None:
    truth = tensor(ODD)
    grey = (truth * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(truth)
    on_luma = full_reference("FSIM", luma=True, eight_bit=False)(grey, truth).item()
    assert on_luma == pytest.approx(1.0, abs=1e-6) and full_reference("FSIM")(grey, truth).item() < 0.999


def test_flat_pictures() -> None:
    flat, lighter = torch.full((1, 3, 64, 64), 0.4), torch.full((1, 3, 64, 64), 0.5)
    textured = tensor(ODD)[..., :64, :64]
    with pytest.raises(ImageError, match="a ground truth is flat"):
        full_reference("VIF")(textured, flat)
    with pytest.raises(ImageError, match="both images are flat"):
        full_reference("FSIM")(lighter, flat)
    for name in ("VIF", "FSIM", "NLPD", "GMSD", "SSIM"):  # nothing restored: bad, and a number
        metric = full_reference(name)
        figure, best = metric(flat, textured).item(), metric(textured, textured).item()
        assert math.isfinite(figure) and abs(figure - best) > 0.15, name


@pytest.mark.shared
def test_squeeze_sees_what_its_loss_sees(shared: Path) -> None:
    from refine_wrap.feature_nets import Squeeze

    file = shared / "weights" / "squeezenet1_1_caffe.fp16.safetensors"
    metric = full_reference("squeeze", file=file)
    a, b = tensor(worse(ODD, "JPEG", 30)), tensor(ODD)
    assert metric(a, b).item() == pytest.approx(Squeeze(str(file))(a, b).item(), rel=1e-6)
    assert str(metric).startswith("squeeze-perceptual distance (SqueezeNet 1.1; not LPIPS), weights ")


# ---------------------------------------------------------------- by name


def test_metrics_by_name(weights: Path) -> None:
    assert full_reference_names() == [*TWO_IMAGES, "squeeze", "LPIPS", "DISTS"]
    assert [full_reference(name).name for name in TWO_IMAGES] == TWO_IMAGES
    assert full_reference("ms-ssim", border=3) == Protocol("MS-SSIM", border=3)
    assert {name for name in TWO_IMAGES if not full_reference(name).higher_is_better} == {"GMSD", "NLPD", "CIEDE2000"}
    assert full_reference("psnr").unit == "dB" and not full_reference("ssim").unit
    assert str(full_reference("fsim")) == "FSIMc, YIQ, 8-bit, border 0"
    assert str(full_reference("fsim", luma=True)) == "FSIM, grey (BT.601), 8-bit, border 0"
    assert str(full_reference("vif")) == "VIF in the pixel domain, grey (BT.601), 8-bit, border 0"
    from importlib.metadata import version

    assert str(full_reference("ciede2000")).endswith(f", border 0, scikit-image {version('scikit-image')}")


@pytest.mark.parametrize(
    ("name", "options", "came", "expected"),
    [
        ("SIM", {}, "no full-reference metric 'SIM'", "MS-SSIM"),
        ("gmsd", {"lumma": True}, "GMSD has no option 'lumma'", "border, luma, eight_bit"),
        ("squeeze", {"net": "alex"}, "squeeze has no option 'net'", "file, input"),
        ("psnr=file.pth", {}, "PSNR has no option 'file'", "border"),
        ("gmsd", {"luma": False}, "GMSD is not defined for colours", "luma=True"),
        ("ciede2000", {"luma": True}, "CIEDE2000 is not defined for luma", "luma=False"),
        ("squeeze", {}, "squeeze needs weights", "torchvision"),
        ("squeeze=nowhere.pth", {}, "squeeze needs weights, and there is no file nowhere.pth", "a file of weights"),
        ("lpips=nowhere.pth", {}, "lpips needs weights, and there is no file nowhere.pth", "alexnet"),
    ],
)
def test_names_and_options_that_are_refused(name: str, options: dict[str, Any], came: str, expected: str) -> None:
    if name.startswith("lpips"):
        pytest.importorskip("lpips")
    with pytest.raises(RefineWrapError) as caught:
        full_reference(name, **options)
    assert came in caught.value.came and expected in str(caught.value.expected)


@pytest.mark.parametrize(("name", "package"), [("CIEDE2000", "skimage"), ("DISTS", "pyiqa"), ("LPIPS", "lpips")])
def test_missing_packages_are_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RefineWrapError, match="needs the package") as caught:
        full_reference(name)(A, A)
    assert "pip install" in str(caught.value)
