"""ORNet: parity with the official one, cost, strength, local pooling, exact tiles of lite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file
from torch import nn

from refine_wrap import ORNet, RefineWrapError
from refine_wrap.naf import LayerNorm2d, NAFBlock
from refine_wrap.refiner import PRESETS, build_refiner
from refine_wrap.tiling import run_tiles, trace_layers


def moved(net: ORNet, std: float = 0.1) -> ORNet:
    """The net with random weights, the last layer's too."""
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return net.eval()


@pytest.mark.shared
@pytest.mark.parametrize("file", ["ornet_w8_61x45", "ornet_w8_64x64"])
def test_golden(file: str) -> None:
    golden = load_file(SHARED / "golden" / f"{file}.safetensors")
    net = ORNet(width=8)
    net.load_state_dict({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}, strict=True)
    for strength in ("0.0", "0.3", "1.0"):
        with torch.no_grad():
            assert (net(golden["input"], float(strength)) - golden[f"output.c{strength}"]).abs().max() < 1e-5


def test_layout_is_the_published_one() -> None:
    state = ORNet().state_dict()
    assert len(state) == 178 and sum(v.numel() for v in state.values()) == 17_888_003
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["intro.weight"] == (64, 4, 3, 3) and shapes["ending.weight"] == (3, 64, 3, 3)
    assert shapes["encoders.2.0.conv2.weight"] == (512, 1, 3, 3) and shapes["middle_blks.0.sca.1.weight"] == (
        1024,
        1024,
        1,
        1,
    )
    assert shapes["downs.3.weight"] == (1024, 512, 2, 2) and shapes["ups.0.0.weight"] == (2048, 1024, 1, 1)
    assert shapes["decoders.3.0.beta"] == (1, 64, 1, 1)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (17, 250), (1, 1)])
def test_lite_costs_at_most_6_percent_of_ornet(size: tuple[int, int]) -> None:
    lite, ornet = (trace_layers(build_refiner(name), *size).macs for name in ("ornet-lite", "ornet"))
    assert 0 < lite <= 0.06 * ornet


def test_costs_are_the_published_ones() -> None:
    assert trace_layers(build_refiner("ornet"), 256, 256).macs == pytest.approx(19.344e9, rel=1e-3)
    assert trace_layers(build_refiner("ornet-small"), 512, 512).macs == pytest.approx(19.895e9, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_strength_steers_and_its_forms_agree(preset: str) -> None:
    net = moved(build_refiner({"preset": preset, "width": 4}))
    x = torch.rand(2, 3, 21, 34)
    with torch.no_grad():
        weak, strong = net(x, 0.1), net(x, 0.9)
        assert not torch.allclose(weak, strong)
        assert torch.equal(net(x, torch.tensor(0.1)), weak)
        torch.testing.assert_close(
            net(x, torch.tensor([0.1, 0.9])), torch.stack([weak[0], strong[1]]), atol=1e-5, rtol=1e-4
        )
        assert torch.equal(net(x, torch.full((2, 1, 21, 34), 0.9)), strong)
        half = torch.full((1, 1, 21, 34), 0.1)
        half[..., 17:] = 0.9
        assert not torch.allclose(net(x, half), weak) and not torch.allclose(net(x, half), strong)


def test_local_pooling_equals_global_at_the_training_size_and_differs_beyond() -> None:
    options = {"width": 4}
    whole, local = moved(ORNet(**options), 0.2), ORNet(**options, train_size=64)
    local.load_state_dict(whole.state_dict())
    assert local.config()["train_size"] == 64
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(local(x), whole(x), atol=1e-5, rtol=1e-4)
        x = torch.rand(1, 3, 160, 192)
        x[..., 96:] *= 0.1  # other statistics at the right
        assert (local(x) - whole(x)).abs().max() > 1e-4


def test_local_pool_is_the_mean_of_each_window() -> None:
    from refine_wrap.naf import LocalPool

    x = torch.rand(1, 2, 9, 7, dtype=torch.float64)
    pooled = LocalPool(4)(x)
    means = x.unfold(2, 4, 1).unfold(3, 4, 1).mean((-1, -2))
    rows, columns = (torch.arange(n).sub(1).clamp(0, n - 4) for n in (9, 7))
    torch.testing.assert_close(pooled, means[:, :, rows][:, :, :, columns])
    torch.testing.assert_close(LocalPool(20)(x), x.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize("options", [{}, {"train_size": 24}, {"channel_attention": False}, {"unshuffle": 2}], ids=str)
@pytest.mark.parametrize("size", [(2, 48, 64), (1, 80, 20), (1, 5, 70)])
def test_strips_give_what_the_whole_gives(
    options: dict[str, Any], size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = moved(ORNet(width=8, encoder_blocks=(2, 1), decoder_blocks=(1, 1), **options), 0.3).double()
    image = torch.rand(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = net(image)  # with gradients: never in strips
    strips = []
    monkeypatch.setattr(NAFBlock, "_gated_in_strips", spy(NAFBlock._gated_in_strips, strips))
    with torch.no_grad():
        assert torch.allclose(net(image), whole, atol=1e-10) and not strips  # small: in one
        monkeypatch.setattr("refine_wrap.naf._STRIP_BYTES", 0)
        monkeypatch.setattr("refine_wrap.naf._LEAST_ROWS", 3)
        assert torch.allclose(net(image), whole, atol=1e-10) and strips
        count = len(strips)
        with torch.autocast("cpu", torch.bfloat16):
            assert (net.float()(image.float()) - whole).abs().mean() < 0.05 * whole.abs().mean()
        assert len(strips) == count
    assert (whole - image).abs().max() > 0.1


def spy(method: Any, calls: list[object]) -> Any:
    def called(self: object, *args: object) -> object:
        calls.append(self)
        return method(self, *args)

    return called


def test_layouts_agree() -> None:
    norm = LayerNorm2d(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    image = torch.randn(2, 6, 5, 7) * 3 + 2
    last = norm(image.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(norm(image), last, atol=1e-5) and last.is_contiguous(memory_format=torch.channels_last)
    half = norm(
        (image * 1000).half().contiguous(memory_format=torch.channels_last)
    )  # their squares are no half numbers
    assert half.dtype == torch.float16 and torch.allclose(half.float(), norm(image * 1000), atol=2e-2)


def test_tiles_of_lite_are_exact() -> None:
    net = moved(build_refiner("ornet-lite"), 0.05)
    assert net.exact_tiles and not build_refiner("ornet").exact_tiles
    trace = trace_layers(net, 64, 64)
    assert trace.exact and trace.receptive_radius <= 64
    x = torch.rand(1, 3, 101, 150)
    result = torch.empty_like(x)

    def write(top: int, left: int, part: torch.Tensor) -> None:
        result[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part

    with torch.no_grad():
        run_tiles(
            net,
            lambda top, left, h, w: x[..., top : top + h, left : left + w],
            write,
            height=101,
            width=150,
            tile=32,
            halo=trace.receptive_radius,
            multiple_of=net.multiple_of,
        )
        assert (result - net(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("refiner", "says"),
    [
        ("ornet-light", "did you mean 'ornet-lite'"),
        ({"widht": 3}, "widht"),
        ({"encoder_blocks": [1], "decoder_blocks": [1, 1]}, "levels"),
        ({"width": 0}, "width"),
        ({"preset": "ornet", "train_size": 4}, "train_size"),
    ],
)
def test_wrong_options_are_refused(refiner: object, says: str) -> None:
    with pytest.raises(RefineWrapError, match=says):
        build_refiner(refiner)  # type: ignore[arg-type]


def test_config_builds_the_same_net() -> None:
    net = moved(build_refiner("ornet-lite"))
    again = build_refiner(net.config())
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(again(x, 0.7), net(x, 0.7))
