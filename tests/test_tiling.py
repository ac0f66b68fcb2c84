"""Tiles: what the layers say is true, tiles equal the whole, and nothing bad is ever pasted."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from refine_wrap.errors import ImageError, RefineWrapError
from refine_wrap.tiling import (
    DEFAULT_HALO,
    LayerTrace,
    TileReport,
    measure_tiling,
    memory_budget,
    photo_like,
    plan_tiles,
    run_tiles,
    trace_layers,
)

SLOW = settings(max_examples=20, deadline=None, derandomize=True)
Layer = tuple[str, int, int]


class Padded(nn.Module):
    """Any size, as a Backbone does it: reflected at the bottom and right up to a multiple, cut afterwards."""

    def __init__(self, body: nn.Module, multiple: int, scale: int = 1) -> None:
        super().__init__()
        self.body, self.multiple, self.scale = body, multiple, scale

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        down, right = -h % self.multiple, -w % self.multiple
        mode = "reflect" if down < h and right < w else "replicate"
        out = self.body(F.pad(x, (0, right, 0, down), mode=mode))
        return out[..., : h * self.scale, : w * self.scale]


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(a: int, b: int, kernel: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=more.pop("padding", more.get("dilation", 1) * (kernel - 1) // 2), **more)


class UNet(nn.Module):
    """Strided convolution down, transposed convolution up, a skip, bilinear and nearest branches."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.down, self.middle = conv(3, 6, 3), nn.Conv2d(6, 8, 2, 2), conv(8, 8, 5, groups=8)
        self.up, self.tail = nn.ConvTranspose2d(8, 6, 2, 2), conv(6, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        z = self.middle(F.gelu(self.down(y)))
        z = F.interpolate(F.avg_pool2d(z, 2), scale_factor=2.0, mode="bilinear") + F.max_pool2d(z, 3, 1, 1)
        return self.tail(y + self.up(z)) + x


def unshuffled(r: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.PixelUnshuffle(r), conv(3 * r * r, 12, 3), nn.ReLU(), conv(12, 3 * r * r, 3), nn.PixelShuffle(r)
    )


def fold_by_view(x: Tensor) -> Tensor:
    """PixelUnshuffle as BasicSR writes it."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def unfold_by_view(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)


def half_size(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


def upscaler(scale: int) -> nn.Module:
    return nn.Sequential(conv(3, 8, 3), nn.LeakyReLU(), conv(8, 3 * scale**2, 3), nn.PixelShuffle(scale), conv(3, 3, 3))


class ChannelNorm(nn.Module):
    """Layer norm over the channels, once by hand in NCHW, once by layer_norm in NHWC: local both times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 8, 3), nn.LayerNorm(8)
        self.tail = conv(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1e-6).sqrt()
        b, c, h, w = y.shape
        tokens = self.norm(y.flatten(2).transpose(1, 2))
        return self.tail(self.norm(tokens.view(b, h, w, c)).permute(0, 3, 1, 2))


# name -> (network, scale, multiple, true radius or None where only the bound is checked, slack)
EXACT: dict[str, tuple[Callable[[], nn.Module], int, int, int | None]] = {
    "pointwise": (lambda: nn.Conv2d(3, 3, 1), 1, 1, 0),
    "three convolutions": (lambda: nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 8, 5), conv(8, 3, 3)), 1, 1, 4),
    "dilated": (lambda: nn.Sequential(conv(3, 8, 3, dilation=4), conv(8, 3, 3, dilation=2)), 1, 1, 6),
    "dilated, padded on one side": (
        lambda: nn.Sequential(nn.ZeroPad2d((0, 4, 0, 4)), nn.Conv2d(3, 3, 3, dilation=2)), 1, 1, 4,
    ),
    "depthwise": (lambda: nn.Sequential(conv(3, 9, 7, groups=3), nn.Conv2d(9, 3, 1)), 1, 1, 3),
    "reflected padding": (lambda: nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 3, 7), conv(3, 3, 3)), 1, 1, 4),
    "even kernel": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 2), conv(3, 3, 3)), 1, 1, 2),
    "u-net": (UNet, 1, 4, None),
    "unshuffled": (unshuffled, 1, 2, None),
    "unshuffled by 4": (lambda: unshuffled(4), 1, 4, None),
    "unshuffled by view": (
        lambda: nn.Sequential(Lambda(fold_by_view), conv(12, 12, 3), Lambda(unfold_by_view)),
        1, 2, None,
    ),
    "focus": (lambda: nn.Sequential(Lambda(focus), conv(12, 12, 3), nn.PixelShuffle(2)), 1, 2, None),
    "stride 3": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5, 3, 1), nn.ConvTranspose2d(8, 3, 5, 3, 1)), 1, 3, None),
    "x2": (lambda: upscaler(2), 2, 1, None),
    "x3": (lambda: upscaler(3), 3, 1, None),
    "x4": (lambda: upscaler(4), 4, 1, None),
    "x4 by nearest": (
        lambda: nn.Sequential(
            conv(3, 4, 3), nn.Upsample(scale_factor=2), conv(4, 4, 3), nn.Upsample(scale_factor=2), conv(4, 3, 3)
        ),
        4, 1, None,
    ),
    "bicubic skip": (
        lambda: nn.Sequential(Lambda(half_size), nn.Upsample(scale_factor=2, mode="bicubic")),
        1, 2, None,
    ),
    "channel norms": (ChannelNorm, 1, 1, 2),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, int, int]:
    make, scale, multiple, _ = EXACT[name]
    torch.manual_seed(1)
    network = make().eval()
    return (Padded(network, multiple, scale) if multiple > 1 else network), scale, multiple


def probed_radius(network: Callable[[Tensor], Tensor], scale: int, size: int, step: int = 1) -> int:
    """Radius by experiment: the input pixels that the gradient of the output pixels of a middle cell reaches."""
    radius, middle = 0, size // 2
    for place in range(middle, middle + step):
        image = torch.rand(1, 3, size, size, requires_grad=True)
        out = network(image)
        for part in range(scale):
            (gradient,) = torch.autograd.grad(
                (out[..., place * scale + part, place * scale + part] ** 2).sum(), image, retain_graph=True
            )
            touched = gradient.abs().sum((0, 1)).nonzero()
            if len(touched):
                radius = max(radius, int((touched - place).abs().max()))
    return radius


def tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, scale: int = 1, **options: Any
) -> tuple[Tensor, TileReport]:
    """The picture put together from tiles; checks that each output pixel is written exactly once."""
    height, width = image.shape[-2:]
    out = torch.full((1, 3, height * scale, width * scale), torch.nan)
    count = torch.zeros(height * scale, width * scale)

    def write(top: int, left: int, part: Tensor) -> None:
        place = (..., slice(top, top + part.shape[-2]), slice(left, left + part.shape[-1]))
        out[place] = part.float()
        count[place[1:]] += 1

    def read(top: int, left: int, h: int, w: int) -> Tensor:
        region = image[..., top : top + h, left : left + w]
        assert top >= 0 and left >= 0 and region.shape[-2:] == (h, w), "a region outside of the image was asked for"
        return region

    report = run_tiles(network, read, write, height=height, width=width, scale=scale, **options)
    assert (count == 1).all(), "an output pixel was written twice or never"
    return out, report


def whole(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


# --- what the layers say ---


@pytest.mark.parametrize("name", EXACT)
def test_radius_holds_the_gradient(name: str) -> None:
    network, scale, multiple = build(name)
    trace = trace_layers(network, 48, 48)
    true = probed_radius(network, scale, 48, multiple)
    assert trace.global_operations == ()
    assert trace.scale == scale
    assert true <= trace.receptive_radius
    # A cell of an unshuffled or strided tensor is seen as a whole, hence up to two multiples more; one pixel for
    # upsampling.
    assert trace.receptive_radius <= true + (2 * multiple if multiple > 1 else int(scale > 1))
    known = EXACT[name][3]
    assert known is None or trace.receptive_radius == known


layers = st.lists(
    st.tuples(st.sampled_from(["conv", "pool", "pad"]), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2])),
    min_size=1, max_size=4,
)  # fmt: skip


def stack(plan: list[Layer]) -> nn.Module:
    parts: list[nn.Module] = []
    for kind, kernel, dilation in plan:
        if kind == "conv":
            parts += [conv(3, 3, kernel, dilation=dilation), nn.SiLU()]
        elif kind == "pool":
            parts += [nn.AvgPool2d(kernel, 1, kernel // 2)]
        else:
            parts += [nn.ReplicationPad2d(kernel // 2), nn.Conv2d(3, 3, kernel)]
    return nn.Sequential(*parts)


@SLOW
@given(plan=layers)
def test_radius_of_plain_stacks_is_exact(plan: list[Layer]) -> None:
    network = stack(plan)
    assert trace_layers(network, 40, 40).receptive_radius == probed_radius(network, 1, 40)


strided = st.lists(
    st.tuples(
        st.sampled_from(["conv", "down", "up", "bilinear", "unshuffle", "shuffle"]),
        st.sampled_from([2, 3, 4, 5]),
        st.sampled_from([0, 1, 2]),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@SLOW
@given(plan=strided)
def test_radius_of_strided_nets_is_a_bound(plan: list[Layer]) -> None:
    parts: list[nn.Module] = []
    level = 0
    for kind, kernel, padding in plan:
        if kind == "down" and level < 2:
            parts.append(nn.Conv2d(3, 3, kernel, 2, min(padding, kernel // 2)))
            level += 1
        elif kind == "unshuffle" and level < 2:
            parts += [
                nn.ZeroPad2d((0, 1, 0, 1)),
                Lambda(lambda x: x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]),
            ]
            parts += [nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 1)]
            level += 1
        elif kind == "up" and level > 0:
            parts.append(nn.ConvTranspose2d(3, 3, kernel, 2, min(padding, (kernel - 1) // 2)))
            level -= 1
        elif kind == "bilinear" and level > 0:
            parts.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            level -= 1
        elif kind == "shuffle" and level > 0:
            parts += [nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)]
            level -= 1
        else:
            parts.append(conv(3, 3, 3))
    while level:
        parts += [nn.ConvTranspose2d(3, 3, 2, 2)]
        level -= 1
    network = nn.Sequential(*parts)
    assert probed_radius(network, 1, 64, 4) <= trace_layers(network, 64, 64).receptive_radius


def test_parallel_branches_are_not_added_up() -> None:
    a, b = conv(3, 3, 9), conv(3, 3, 5)
    assert trace_layers(lambda x: a(x) + b(x), 32, 32).receptive_radius == 4
    assert trace_layers(lambda x: torch.cat([a(x), b(x)], 1)[:, :3], 32, 32).receptive_radius == 4
    assert trace_layers(lambda x: b(a(x)), 32, 32).receptive_radius == 6


def test_writing_into_a_part_of_a_tensor_is_seen() -> None:
    a = conv(3, 3, 9)

    def network(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 1:] = a(x)[:, 1:]
        out[:, :1].add_(x[:, :1])
        return out

    assert trace_layers(network, 32, 32).receptive_radius == 4


def attend(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
    return (weights @ tokens).transpose(1, 2).reshape(x.shape)


def window_attend(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    tokens = x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
    tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return tokens.view(b, h // 8, w // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def channel_attend(x: Tensor) -> Tensor:
    """Restormer's: over channels, but every weight is a sum over the image."""
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view(x.shape)


def token_convolution(x: Tensor) -> Tensor:
    return F.conv1d(x.flatten(2), torch.ones(3, 3, 3), padding=1).view(x.shape)


GLOBAL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mean": (lambda x: x * x.mean((2, 3), keepdim=True), "mean"),
    "mean of tokens": (lambda x: x * x.flatten(2).mean(2)[..., None, None], "mean"),
    "row mean": (lambda x: x * x.mean(3, keepdim=True), "mean"),
    "mean of all": (lambda x: x - x.mean(), "mean"),
    "max": (lambda x: x / x.amax(dim=(2, 3), keepdim=True), "amax"),
    "pooled to one": (lambda x: x * F.adaptive_avg_pool2d(x, 1), "mean"),
    "pooled to few": (lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 4), scale_factor=8.0), "adaptive"),
    "max pooled to one": (lambda x: x * F.adaptive_max_pool2d(x, 1), "adaptive"),
    "pooled by a kernel as large": (lambda x: x * F.avg_pool2d(x, x.shape[-2:]), "pooling"),
    "instance norm": (lambda x: F.instance_norm(x), "statistics"),
    "batch norm in training": (lambda x: F.batch_norm(x, None, None, training=True), "statistics"),
    "group norm": (lambda x: F.group_norm(x, 1), "group_norm"),
    "layer norm over the image": (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
    "attention": (attend, "softmax"),
    "fused attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "attention"),
    "window attention": (window_attend, "attention"),
    "channel attention": (channel_attend, "matrix product"),
    "fft": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:]), "fft"),
    "roll": (lambda x: torch.roll(x, (2, 2), (2, 3)), "roll"),
    "cumsum": (lambda x: x.cumsum(2), "cumsum"),
    "flip": (lambda x: x + x.flip(3), "flip"),
    "grid sample": (lambda x: F.grid_sample(x, torch.zeros(1, *x.shape[2:], 2), align_corners=False), "grid_sample"),
    "align_corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners"),
    "value taken": (lambda x: x * float(x[0, 0, 0, 0]), "item"),
    "convolution over tokens": (token_convolution, "tokens"),
    "linear over tokens": (lambda x: F.linear(x.flatten(2), torch.ones(1024, 1024)).view(x.shape), "over places"),
    "unknown to the rules": (lambda x: torch.linalg.inv(x + torch.eye(32)), "not understood"),
}  # fmt: skip


@pytest.mark.parametrize("name", GLOBAL)
def test_global_operations_are_named(name: str) -> None:
    function, word = GLOBAL[name]
    trace = trace_layers(function, 32, 32)
    assert any(word in operation for operation in trace.global_operations), trace
    assert not trace.exact


LOCAL: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over channels": lambda x: x.softmax(1),
    "batch norm in evaluation": lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)),
    "channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2),
    "linear in channels last": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(3, 3)).permute(0, 3, 1, 2),
    "linear over the channels of tokens": lambda x: F.linear(x.flatten(2).mT, torch.ones(3, 3)).mT.reshape(x.shape),
    "mean of channels": lambda x: x - x.mean(1, keepdim=True),
    "split in two": lambda x: torch.cat([a * b for a, b in [torch.cat([x, x], 1).chunk(2, 1)]], 1),
    "autocast": lambda x: x.bfloat16().clamp(0, 1).float(),
    "channel shuffle": lambda x: F.channel_shuffle(torch.cat([x, x], 1), 2)[:, :3],
    "sliding sums": lambda x: F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, False),
    "threshold": lambda x: torch.where(x > 0.5, x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_operations_are_not_named(name: str) -> None:
    trace = trace_layers(LOCAL[name], 32, 32)
    assert trace.global_operations == ()
    assert trace.receptive_radius == {"sliding sums": 3, "unfold and fold": 2}.get(name, 0)


def test_work_and_memory_are_counted() -> None:
    network = nn.Sequential(conv(3, 16, 3), nn.ReLU(), conv(16, 3, 3))
    trace = trace_layers(network, 32, 40)
    assert trace.macs == 2 * 3 * 16 * 9 * 32 * 40
    assert trace.macs_per_pixel == 2 * 3 * 16 * 9
    # The input, one 16-channel tensor and its activation; the weights are not counted.
    assert trace.peak_bytes_per_pixel == 4 * (3 + 16 + 16)
    longer = nn.Sequential(conv(3, 16, 3), *[conv(16, 16, 3) for _ in range(6)], conv(16, 3, 3))
    assert trace_layers(longer, 32, 40).peak_bytes_per_pixel == 4 * (3 + 16 + 16), "what has been freed still counts"
    x4 = trace_layers(upscaler(4), 16, 16)
    assert x4.scale == 4 and x4.macs == 256 * (8 * 27 + 8 * 48 * 9 + 16 * 81)
    assert (
        trace_layers(lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(5, 3)).permute(0, 3, 1, 2), 8, 8).macs
        == 15 * 64
    )


def test_trace_refuses_what_is_no_image() -> None:
    with pytest.raises(RefineWrapError, match=r"shape \(1, 3\)"):
        trace_layers(lambda x: x.mean((2, 3)), 16, 16)
    with pytest.raises(RefineWrapError, match="gives list"):
        trace_layers(lambda x: [x], 16, 16)  # type: ignore[arg-type,return-value]


def test_trace_changes_nothing() -> None:
    network = build("u-net")[0]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = trace_layers(network, 32, 32)
    assert trace_layers(network, 32, 32) == first
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


# --- tiles equal the whole ---


@SLOW
@given(
    name=st.sampled_from(sorted(EXACT)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile=st.integers(1, 60),
    more=st.integers(0, 9),
)
def test_tiles_equal_the_whole(name: str, size: tuple[int, int], tile: int, more: int) -> None:
    if name == "reflected padding":
        size = (size[0] + 4, size[1] + 4)  # torch refuses to reflect more than there is
    network, scale, multiple = build(name)
    halo = trace_layers(network, 48, 48).receptive_radius + more
    image = photo_like(*size)
    result, _ = tiled(network, image, scale, tile=max(tile, 8), halo=halo, multiple_of=multiple)
    assert float((result - whole(network, image)).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["three convolutions", "dilated", "reflected padding", "channel norms"])
def test_a_halo_one_pixel_short_is_seen(name: str) -> None:
    network, scale, multiple = build(name)
    radius = trace_layers(network, 48, 48).receptive_radius
    image = photo_like(64, 64)
    exact, _ = tiled(network, image, scale, tile=32, halo=radius, multiple_of=multiple)
    short, _ = tiled(network, image, scale, tile=32, halo=radius - 1, multiple_of=multiple)
    assert float((exact - whole(network, image)).abs().max()) <= 1e-5
    assert float((short - whole(network, image)).abs().max()) > 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (7, 3), (33, 65), (17, 129)])
@pytest.mark.parametrize("name", ["unshuffled by 4", "u-net", "x3"])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    network, scale, multiple = build(name)
    halo = trace_layers(network, 48, 48).receptive_radius
    image = photo_like(*size)
    result, report = tiled(network, image, scale, tile=32, halo=halo, multiple_of=multiple)
    assert float((result - whole(network, image)).abs().max()) <= 1e-5
    assert report.tiles == -(-size[0] // 32) * -(-size[1] // 32)


def test_tiles_keep_the_phase_and_the_padding_of_the_whole() -> None:
    """Cells of 8 that see nothing but themselves: without a halo, right only where each region begins at a multiple."""
    cells = Padded(nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, 192, 1), nn.PixelShuffle(8)), 8)
    image = photo_like(41, 57)
    for tile in (8, 10, 16, 24):
        result, _ = tiled(cells, image, tile=tile, halo=0, multiple_of=8)
        assert float((result - whole(cells, image)).abs().max()) <= 1e-5


def test_regions_are_no_larger_than_needed() -> None:
    sizes: list[tuple[int, int]] = []

    def network(x: Tensor) -> Tensor:
        sizes.append((x.shape[-2], x.shape[-1]))
        return x

    tiled(network, photo_like(200, 100), tile=64, halo=8)
    assert max(h for h, _ in sizes) <= 64 + 16 and max(w for _, w in sizes) <= 64 + 16
    sizes.clear()
    tiled(network, photo_like(200, 100), tile=None, halo=8)
    assert sizes == [(200, 100)]


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    tiled(lambda x: x, photo_like(64, 96), tile=32, halo=4, notify=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]


def test_a_wrong_output_size_is_refused() -> None:
    with pytest.raises(RefineWrapError, match="height and width 64 x 64, 2 times"):
        tiled(lambda x: x, photo_like(32, 32), 2, tile=32)


# --- memory ---


MESSAGES: list[Callable[[], Exception]] = [
    lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: 9"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    lambda: MemoryError(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MESSAGES)))
@pytest.mark.parametrize("tile", [None, 64])
def test_out_of_memory_halves_the_tile_and_repeats_it(number: int, tile: int | None) -> None:
    network, _, _ = build("three convolutions")
    image = photo_like(100, 130)
    tried: list[int] = []

    def scarce(x: Tensor) -> Tensor:
        tried.append(x.shape[-1] * x.shape[-2])
        # The fourth call meets less memory than the first three: tiles before it must stand, later ones be small.
        if x.shape[-1] * x.shape[-2] > (80 * 80 if len(tried) <= 3 else 41 * 41):
            raise MESSAGES[number]()
        return network(x)

    result, report = tiled(scarce, image, tile=tile, halo=4)
    assert float((result - whole(network, image)).abs().max()) <= 1e-5
    assert report.halvings >= 1 and report.tile is not None and report.tile <= 33
    assert all(pixels <= 41 * 41 for pixels in tried[6:])


def test_real_allocation_failure_on_the_cpu_halves() -> None:
    """Not a made-up message: the allocator's own, for more bytes than any machine has."""

    def greedy(x: Tensor) -> Tensor:
        if x.shape[-1] > 40:
            torch.empty(1 << 60, dtype=torch.uint8)
        return x

    image = photo_like(64, 64)
    result, report = tiled(greedy, image, tile=None, halo=2)
    assert torch.equal(result, image) and report.halvings == 1 and report.tile == 32


def test_memory_that_never_suffices_ends_in_an_error_and_nothing_written() -> None:
    def network(x: Tensor) -> Tensor:
        raise RuntimeError("CUDA out of memory.")

    written: list[int] = []
    image = photo_like(100, 100)
    with pytest.raises(RefineWrapError, match=r"Memory runs out even for a tile of 1. pixels") as caught:
        run_tiles(
            network, lambda top, left, h, w: image[..., top : top + h, left : left + w], lambda *a: written.append(1),
            height=100, width=100, halo=8,
        )  # fmt: skip
    assert written == [] and len(str(caught.value).splitlines()) == 3


def test_memory_is_given_back_before_the_tile_is_repeated() -> None:
    alive: list[int] = []

    class Block:
        count = 0

        def __init__(self) -> None:
            Block.count += 1

        def __del__(self) -> None:
            Block.count -= 1

    def network(x: Tensor) -> Tensor:
        alive.append(Block.count)
        block = Block()
        if x.shape[-1] > 30:
            raise RuntimeError("out of memory")
        del block
        return x

    tiled(network, photo_like(60, 60), halo=0)
    assert len(alive) > 3 and set(alive) == {0}, "the failed attempt's tensors are still alive when the tile is redone"


def test_other_errors_pass_unchanged() -> None:
    for error in (RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'"), KeyError("memory"), ValueError("no")):

        def network(x: Tensor, error: Exception = error) -> Tensor:
            raise error

        with pytest.raises(type(error)) as caught:
            tiled(network, photo_like(32, 32), tile=16)
        assert caught.value is error


# --- values that are not finite ---


def overflowing(x: Tensor) -> Tensor:
    """Half precision that overflows where the picture is bright."""
    return torch.where(x > 0.8, torch.full_like(x, torch.inf), x)


def test_not_finite_tiles_are_redone_in_float32_with_one_warning() -> None:
    image = photo_like(64, 64) * 0.5
    image[..., 5, 5] = 0.9
    image[..., 60, 60] = 0.9
    seen: list[torch.dtype] = []

    def precise(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result, report = tiled(overflowing, image.half(), tile=16, halo=0, float32=precise)
    assert torch.equal(result, image.half().float())
    assert report.float32_redone == 2 and report.tiles == 16 and seen == [torch.float32] * 2
    assert len(caught) == 1 and "rows 0 to 15, columns 0 to 15" in str(caught[0].message)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_finite_in_float32_too_is_an_error_that_names_the_place(bad: float) -> None:
    def network(x: Tensor) -> Tensor:
        return torch.where(x > 0.8, torch.full_like(x, bad), x)

    image = photo_like(64, 64) * 0.5
    image[..., 40, 20] = 0.9
    for float32 in (network, None):
        with (
            pytest.raises(ImageError, match="rows 32 to 47, columns 16 to 31"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            tiled(network, image, tile=16, halo=2, float32=float32)


def test_a_not_finite_image_is_called_so() -> None:
    image = photo_like(32, 32).clone()
    image[..., 3, 3] = torch.nan
    with pytest.raises(ImageError, match="The image has values that are not finite"):
        tiled(lambda x: x, image, tile=16, float32=lambda x: x)


# --- the plan ---


TRACE = LayerTrace(20, (), 1000.0, 10**6, 64, 64)


def test_plan_takes_the_whole_image_when_it_fits() -> None:
    plan = plan_tiles(TRACE, 100, 100, available_bytes=10**7)
    assert plan.tile is None and plan.exact and plan.covers_receptive_field and plan.halo == 20


def test_plan_takes_the_largest_tile_that_fits() -> None:
    plan = plan_tiles(TRACE, 1000, 1000, available_bytes=10**8, multiple_of=8)
    assert plan.tile is not None and plan.tile % 8 == 0 and plan.halo == 24 and plan.exact
    side = plan.tile + 2 * plan.halo + 7
    assert side**2 * 1000 <= 10**8 < (side + 8) ** 2 * 1000
    # A narrow picture takes longer tiles: what counts is the region inside the picture.
    narrow = plan_tiles(TRACE, 60, 10000, available_bytes=10**8)
    assert narrow.tile is not None and narrow.tile > 1000
    assert plan_tiles(TRACE, 1000, 1000, available_bytes=1).tile == 16


def test_plan_run_keeps_to_its_bytes() -> None:
    network, _, multiple = build("u-net")
    trace = trace_layers(network, 64, 64)
    plan = plan_tiles(trace, 500, 300, available_bytes=int(trace.peak_bytes_per_pixel * 150**2), multiple_of=multiple)
    largest = [0]

    def counted(x: Tensor) -> Tensor:
        largest[0] = max(largest[0], x.shape[-1] * x.shape[-2])
        return network(x)

    tiled(counted, photo_like(500, 300), tile=plan.tile, halo=plan.halo, multiple_of=multiple)
    assert 60**2 < largest[0] <= 150**2


def test_plan_says_when_the_halo_falls_short() -> None:
    wide = LayerTrace(349, (), 1000.0, 10**6, 64, 64)
    plan = plan_tiles(wide, 2000, 2000, tile=256)
    assert plan.halo == DEFAULT_HALO and not plan.covers_receptive_field and not plan.exact
    plan = plan_tiles(wide, 2000, 2000, tile=256, halo=350)
    assert plan.covers_receptive_field and plan.exact
    assert plan_tiles(wide, 200, 200, tile=256).exact, "one tile is the whole image"
    assert not plan_tiles(TRACE, 2000, 2000, tile=256, halo=19).covers_receptive_field


def test_plan_is_not_exact_with_global_operations() -> None:
    pooled = LayerTrace(20, ("mean over the image",), 1000.0, 10**6, 64, 64)
    assert not plan_tiles(pooled, 2000, 2000, tile=256).exact
    assert not plan_tiles(TRACE, 2000, 2000, tile=256, exact=False).exact
    assert plan_tiles(pooled, 2000, 2000, tile=None).exact


@pytest.mark.parametrize("options", [{"tile": -1}, {"tile": "big"}, {"halo": -3}])
def test_plan_refuses_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(RefineWrapError):
        plan_tiles(TRACE, 100, 100, **options)


def test_memory_budget_is_cautious_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory_budget("cpu") <= 4 << 30
    monkeypatch.setattr("refine_wrap.tiling.plan._free_main_memory", lambda: 8 << 30)
    assert memory_budget("cpu") == 2 << 30
    monkeypatch.setattr("refine_wrap.tiling.plan._free_main_memory", lambda: 64 << 30)
    assert memory_budget("cpu") == 4 << 30


# --- the difference, measured ---


def test_measure_sees_what_tiles_change() -> None:
    network, _, multiple = build("u-net")
    radius = trace_layers(network, 48, 48).receptive_radius
    assert measure_tiling(network, multiple_of=multiple, tile=32, halo=radius) <= 1e-5
    assert measure_tiling(network, multiple_of=multiple, tile=32, halo=0) > 1e-3
    assert measure_tiling(GLOBAL["mean"][0], tile=32, halo=16) > 1e-3
    assert measure_tiling(upscaler(2).eval(), scale=2, tile=32, halo=4, size=(40, 90)) <= 1e-5


def test_the_picture_is_always_the_same_and_photo_like() -> None:
    a = photo_like(120, 90)
    assert torch.equal(a, photo_like(120, 90)) and a.shape == (1, 3, 120, 90)
    assert a.min() >= 0 and a.max() <= 1 and a.std() > 0.1
    for top, left in itertools.product((0, 60), (0, 45)):
        part = a[..., top : top + 60, left : left + 45]
        assert (part[..., 1:] - part[..., :-1]).abs().max() > 0.15, "a quarter without any edge"


# --- real weights ---


def real(shared: Path, name: str) -> nn.Module:
    spandrel = pytest.importorskip("spandrel")
    from safetensors.torch import load_file

    weights = {key: value.float() for key, value in load_file(shared / "weights" / name).items()}
    return spandrel.ModelLoader().load_from_state_dict(weights).model.eval()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "scale", "radius", "size", "tile"),
    [
        ("dncnn_color_15.safetensors", 1, 20, (64, 144), 64),
        ("realesr-animevideov3.fp16.safetensors", 4, 19, (48, 96), 48),
    ],
)
def test_real_networks_in_tiles(
    shared: Path, name: str, scale: int, radius: int, size: tuple[int, int], tile: int
) -> None:
    network = real(shared, name)
    trace = trace_layers(network, 64, 64)
    assert trace.receptive_radius == radius and trace.exact
    assert measure_tiling(network, scale=scale, tile=tile, halo=radius, size=size) <= 1e-4
    assert measure_tiling(network, scale=scale, tile=tile, halo=2, size=size) > 1e-4


@pytest.mark.shared
def test_real_rrdb_falls_short_and_says_so(shared: Path) -> None:
    """It reaches 349 pixels: the plan says that 64 do not cover it, and what is lost can be measured."""
    network = real(shared, "RealESRGAN_x4plus.fp16.safetensors")
    trace = trace_layers(network, 8, 8)
    assert trace.receptive_radius == 349 and trace.exact
    plan = plan_tiles(trace, 1024, 1024, tile=128)
    assert plan.halo == DEFAULT_HALO and not plan.covers_receptive_field
    assert measure_tiling(network, scale=4, tile=16, halo=2, size=(12, 32)) > 1 / 255
