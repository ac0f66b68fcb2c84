"""Enhanced supervision: masks against the official ones, mixup, and what must hold for any image."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, ImageError, RefineWrapError
from refine_wrap.supervision import (
    FrequencyMaskGenerator,
    frequency_mixup,
    load_mask_generator,
    mask_generator_from_published,
    save_mask_generator,
)
from refine_wrap.supervision.masks import BLOCK, PROFILE_BANDS, PROFILE_RANKS, SILENT, block_profile

TINY = {"width": 4, "rings": 7}


def generator(seed: int = 0, **options: object) -> FrequencyMaskGenerator:
    torch.manual_seed(seed)
    net = FrequencyMaskGenerator(**{**TINY, **options}).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, tensor in net.named_parameters():  # new blocks are the identity
            if name.endswith(("beta", "gamma")):
                tensor.normal_()
    return net


def by_the_formula(images: Tensor, masks: Tensor) -> Tensor:
    """The official computation, one image of a batch at a time."""
    spectra = torch.fft.fftshift(torch.fft.fft2(images), (-2, -1)) * masks[:, :, None]
    return torch.fft.ifft2(torch.fft.ifftshift(spectra.sum(1), (-2, -1))).real


@pytest.mark.shared
@pytest.mark.parametrize("file", ["cfmg_w8_61x45", "cfmg_w8_64x64"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_official_masks(tmp_path: Path, file: str, strength: float) -> None:
    golden = load_file(SHARED / "golden" / f"{file}.safetensors")
    state = {name.removeprefix("state."): tensor for name, tensor in golden.items() if name.startswith("state.")}
    assert {"ending.weight", "mask_height", "mask_width"} <= set(state)
    net = FrequencyMaskGenerator(width=8).eval()
    net.load_state_dict(state, strict=True)
    save_file(state, tmp_path / "cfmg.safetensors")
    published = mask_generator_from_published(tmp_path / "cfmg.safetensors")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "cfmg.safetensors"), str(tmp_path / "adapter")])
    assert done.exit_code == 0 and "width 8 for 3 variants" in done.output
    converted = load_mask_generator(tmp_path / "adapter")
    end = f"c{strength}"
    with torch.no_grad():
        masks = net(golden["input"], strength)
        assert torch.equal(masks, published(golden["input"], strength))
        assert torch.equal(masks, converted(golden["input"], strength))
        coefficients = net.coefficients(golden["input"], strength)
        # In a batch each comes out as alone, also where the images differ.
        batch = torch.cat((golden["input"].flip(-1), golden["input"]))
        together = net(batch, torch.tensor([0.7, strength]))[1:]
    assert (masks - golden[f"mask.{end}"]).abs().max() < 1e-5
    assert (coefficients - golden[f"prob.{end}"]).abs().max() < 1e-5
    assert torch.allclose(together, masks, atol=1e-6)
    images = torch.stack([golden[f"image.{number}"] for number in range(4)], 1)
    assert (frequency_mixup(images, masks) - golden[f"mixed.{end}"]).abs().max() < 1e-5
    assert set(net.state_dict()) == {n for n in state if not n.startswith(("ending", "mask_"))}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.booleans(), st.integers(1, 5), st.integers(0, 2**31))
def test_masks_of_any_size(height: int, width: int, strength: float, option: bool, images: int, seed: int) -> None:
    net = generator(seed, centred=option, profile=not option, images=images)
    image = torch.rand(2, 3, height, width)
    with torch.no_grad():
        masks = net(image, strength)
        assert masks.shape == (2, images, height, width) and bool((masks >= 0).all())
        assert (masks.sum(1) - 1).abs().max() < 1e-6
        same = image[:, None].expand(-1, images, -1, -1, -1)
        assert torch.allclose(frequency_mixup(same, masks), image, atol=2e-6)
        variants = torch.rand(2, images, 3, height, width, dtype=torch.float64)
        expected = by_the_formula(variants, masks.double())
        assert torch.allclose(frequency_mixup(variants, masks.double()), expected, atol=1e-9)


def test_the_official_rings_are_as_the_paper_lists_them() -> None:
    net = FrequencyMaskGenerator(width=1)
    listed = {1: 0.0025, 5: 0.0614, 12: 0.3536, 20: 0.9821, 24: 1.4142}
    assert all(abs(float(net.centres[ring]) - centre) < 6e-5 for ring, centre in listed.items())
    assert abs(float(net.spreads[0]) - 0.05) < 1e-7 and abs(float(net.spreads[24]) - 0.55) < 1e-6
    total = net._rings(torch.tensor([[0.0, 0.5, 1.0, 2**0.5]])).sum(0)[0]
    assert torch.allclose(total, torch.tensor([8.22, 8.9, 7.6, 4.77]), atol=0.06)


@pytest.mark.parametrize("size", [(24, 24), (25, 40)])
def test_centred_masks_are_round_in_cycles_a_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = FrequencyMaskGenerator(**TINY, centred=True)
    coefficients = torch.rand(1, 4, 7).softmax(1)
    mask = net.masks(coefficients, *size)[0, 1]
    y, x = (torch.fft.fftshift(torch.fft.fftfreq(side)).abs() for side in size)
    radius = torch.hypot(y[:, None], x[None]).flatten()
    order = radius.argsort()
    close = (radius[order].diff() < 1e-7).nonzero()[:, 0]
    values = mask.flatten()[order]
    assert len(close) > 20 and torch.allclose(values[close], values[close + 1], atol=1e-6)
    # The mirror of every frequency has its weight: no imaginary part is dropped.
    flipped = torch.fft.ifftshift(mask).flip(0, 1).roll((1, 1), (0, 1))
    assert torch.allclose(flipped, torch.fft.ifftshift(mask), atol=1e-7)


@pytest.mark.parametrize("size", [(64, 48), (37, 50), (9, 8)])
def test_the_block_profile_is_that_of_the_cosines_of_all_whole_blocks(size: tuple[int, int]) -> None:
    from scipy.fft import dctn

    image = torch.rand(2, 3, *size, dtype=torch.float64)
    height, width = (side // BLOCK for side in size)
    whole = image[..., : height * BLOCK, : width * BLOCK].numpy().reshape(2, 3, height, BLOCK, width, BLOCK)
    power = (
        np.square(dctn(whole, axes=(3, 5), norm="ortho")).transpose(0, 1, 2, 4, 3, 5).reshape(2, 3, -1, BLOCK, BLOCK)
    )
    order = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
    profile = block_profile(image)
    assert profile.shape == (2, 3, len(PROFILE_BANDS) - 1, len(PROFILE_RANKS))
    for band, (low, high) in enumerate(itertools.pairwise(PROFILE_BANDS)):
        means = np.sort(power[..., (order >= low) & (order < high)].mean(-1), -1)
        for number, rank in enumerate(PROFILE_RANKS):
            expected = means[..., round(rank * (height * width - 1))] + SILENT
            assert np.allclose(10 ** (profile[:, :, band, number].numpy() * 2 - 4), expected, rtol=1e-9)


def test_the_block_profile_tells_noise_from_blur() -> None:
    """A photo's blocks are calm or busy; noise stirs the calm ones, blur calms the busy ones."""
    torch.manual_seed(0)
    photo = torch.full((1, 3, 128, 128), 0.5)
    photo[..., ::4, 64:] = 0.9
    sharp = block_profile(photo)
    noisy = block_profile(photo + 0.01 * torch.randn_like(photo))
    soft = block_profile(torch.nn.functional.avg_pool2d(photo, 3, 1, 1))
    assert bool((noisy - sharp)[..., 0].min() > 1) and bool((noisy - sharp)[..., -1].abs().min() < 0.1)
    assert bool((sharp - soft)[:, :, 3:, -1].max() > 0.3)
    flat = torch.full((1, 3, 9, 9), 0.3)
    for side in (1, 7, 9):
        assert torch.allclose(block_profile(flat[..., :side, :side]), torch.full((1,), -2.0), atol=1e-3)


def test_a_profile_is_seen_alone_in_a_batch_and_is_saved(tmp_path: Path) -> None:
    net = generator(profile=True)
    images = torch.rand(3, 3, 40, 24) * torch.tensor([1.0, 0.1, 0.5])[:, None, None, None]
    with torch.no_grad():
        together = net(images, torch.tensor([0.1, 0.9, 0.5]))
        assert torch.allclose(together[1:2], net(images[1:2], 0.9), atol=1e-6)
        again = load_mask_generator(save_mask_generator(tmp_path / "masks", net))
        assert again.config()["profile"] is True
        assert torch.equal(again(images, 0.4), net(images, 0.4))
        plain = generator()
        plain.load_state_dict({name: value for name, value in net.state_dict().items() if "profile" not in name})
        assert (plain(images, 0.4) - net(images, 0.4)).abs().max() > 1e-3
    assert generator().config()["profile"] is False


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = generator()
    coefficients = torch.rand(2, 4, 7).softmax(1)
    whole = net.masks(coefficients, 33, 20)
    monkeypatch.setattr("refine_wrap.supervision.masks.ROWS", 7 * 10 * 3)
    assert torch.equal(net.masks(coefficients, 33, 20), whole)


def test_an_untrained_generator_leans_to_the_ground_truth() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        masks = FrequencyMaskGenerator().eval()(torch.rand(1, 3, 32, 32), 0.5)
    assert float(masks[:, 0].min()) > 0.8


def test_gradients() -> None:
    images = torch.rand(1, 2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(frequency_mixup, (images, masks))
    net = generator(width=2, rings=3, images=2, encoder_blocks=(1,), profile=True).double()
    image = torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, 0.4), (image,), atol=1e-6)
    frequency_mixup(images, net(image, 0.4)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert float(net.fclayer_last.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images, masks = torch.rand(1, 4, 3, 48, 64), torch.rand(1, 4, 48, 64).softmax(1)
    mixed = frequency_mixup(images.to(dtype), masks.to(dtype))
    assert mixed.dtype == dtype and (mixed.float() - frequency_mixup(images, masks)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("images", "masks"), [((1, 4, 3, 8, 8), (1, 3, 8, 8)), ((4, 3, 8, 8), (4, 8, 8)), ((1, 4, 3, 8, 8), (1, 4, 8, 7))]
)
def test_shapes_that_do_not_fit_are_refused(images: tuple[int, ...], masks: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="masks of shape"):
        frequency_mixup(torch.rand(images), torch.rand(masks))


def test_strengths_are_checked() -> None:
    net = generator()
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        each = net(image, torch.tensor([0.1, 0.9]))
        assert torch.allclose(each[1:], net(image[1:], 0.9), atol=1e-6) and not torch.allclose(
            each[:1], net(image[:1], 0.9)
        )
    with pytest.raises(ImageError, match="strength"):
        net(image, 1.2)
    with pytest.raises(RefineWrapError, match="rings"):
        FrequencyMaskGenerator(rings=1)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"intro.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "ornet.safetensors")
    with pytest.raises(CheckpointError, match="not a frequency mask generator"):
        mask_generator_from_published(tmp_path / "ornet.safetensors")
    state = FrequencyMaskGenerator(width=2, rings=3).state_dict()
    state.pop("fclayer_1.bias")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"fclayer_1\.bias"):
        mask_generator_from_published(tmp_path / "part.safetensors")
