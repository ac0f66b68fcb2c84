"""Encoder and generator of the codebook networks.

Names of the parameters, and the order of the blocks, are those of VQGAN as CodeFormer and paper 2 publish it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ImageError, RefineWrapError

GROUPS = 32
"""Of every GroupNorm, as published."""


class ResBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, inside: int, outside: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inside, groups), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = norm(outside, groups), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.conv_out = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_out(x) if hasattr(self, "conv_out") else x)


class AttnBlock(nn.Module):
    """Attention of one head over all positions, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).mT for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Half the size; padded at the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Twice the size, by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


@dataclass(frozen=True)
class Layout:
    """Sizes of an encoder and its generator, by their published names."""

    nf: int = 64
    """Channels at the first level."""
    ch_mult: Sequence[int] = (1, 2, 2, 4, 4, 8)
    """Channels of each level, in `nf`; each level but the first halves the size."""
    res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    """The sides, of an image of `img_size`, at which levels have attention."""
    emb_dim: int = 256
    """Channels of the latent."""
    img_size: int | None = None
    """The side that sizes are named after; any multiple of the stride can be run. None: the smallest of
    `attn_resolutions` is that of the latent."""
    groups: int = GROUPS
    """Of every GroupNorm. Fewer than the channels of the first level: with as many, the norm before the last
    convolution takes each channel's mean away, and no picture keeps its colour and brightness."""
    stride: int = field(init=False)
    side: int = field(init=False)
    """`img_size`, also where it was not given."""

    def __post_init__(self) -> None:
        if (
            min(self.nf, self.res_blocks, self.groups, *self.ch_mult, *self.attn_resolutions) < 1
            or not self.ch_mult
            or any(self.nf * times % self.groups for times in self.ch_mult)
        ):
            raise RefineWrapError(
                f"A layout of nf={self.nf}, ch_mult={tuple(self.ch_mult)}, res_blocks={self.res_blocks}, "
                f"groups={self.groups}",
                "levels whose channels are multiples of groups, and at least one block each",
            )
        stride = 2 ** (len(self.ch_mult) - 1)
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "side", self.img_size or min(self.attn_resolutions, default=16) * stride)
        if self.side % stride:
            raise RefineWrapError(f"img_size is {self.side}", f"a multiple of the stride, {stride}")
        missing = sorted(set(self.attn_resolutions) - set(self.sizes))
        if missing:
            raise RefineWrapError(f"attn_resolutions names levels of {missing} pixels", f"some of {self.sizes}")

    @property
    def sizes(self) -> list[int]:
        """Side of each level, from the image down."""
        return [self.side // 2**level for level in range(len(self.ch_mult))]

    def channels(self, size: int) -> int:
        """Channels of the level of a side."""
        return self.nf * self.ch_mult[self.sizes.index(size)]


def level(inside: int, size: int, layout: Layout) -> list[nn.Module]:
    """The blocks of the level of a side, after what has `inside` channels."""
    blocks: list[nn.Module] = []
    for _ in range(layout.res_blocks):
        blocks.append(ResBlock(inside, layout.channels(size), layout.groups))
        inside = layout.channels(size)
        if size in layout.attn_resolutions:
            blocks.append(AttnBlock(inside, layout.groups))
    return blocks


def middle(channels: int, groups: int) -> list[nn.Module]:
    """The blocks beside the latent."""
    return [ResBlock(channels, channels, groups), AttnBlock(channels, groups), ResBlock(channels, channels, groups)]


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, emb_dim, H / stride, W / stride)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        inside = layout.nf
        blocks: list[nn.Module] = [nn.Conv2d(3, inside, 3, padding=1)]
        self.ends: dict[int, int] = {}
        """The last block of each level, by its side."""
        for size in layout.sizes:
            if size != layout.side:
                blocks.append(Downsample(inside))
            blocks += level(inside, size, layout)
            inside = layout.channels(size)
            self.ends[size] = len(blocks) - 1
        blocks += [
            *middle(inside, layout.groups),
            norm(inside, layout.groups),
            nn.Conv2d(inside, layout.emb_dim, 3, padding=1),
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> Tensor:
        return reduce(lambda x, block: block(x), self.blocks, image)

    def with_levels(self, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The latent, and what each level came to, by its side."""
        levels, sides = {}, {index: size for size, index in self.ends.items()}
        x = image
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in sides:
                levels[sides[index]] = x
        return x, levels


class Generator(nn.Module):
    """(B, emb_dim, h, w) -> (B, 3, h * stride, w * stride), about [-1, 1]."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        inside = layout.channels(layout.sizes[-1])
        blocks: list[nn.Module] = [nn.Conv2d(layout.emb_dim, inside, 3, padding=1)]
        blocks += middle(inside, layout.groups)
        self.starts: dict[int, int] = {}
        """The first residual block of each level, by its side."""
        for size in reversed(layout.sizes):
            self.starts[size] = len(blocks)
            blocks += level(inside, size, layout)
            inside = layout.channels(size)
            if size != layout.side:
                blocks.append(Upsample(inside))
        self.blocks = nn.ModuleList([*blocks, norm(inside, layout.groups), nn.Conv2d(inside, 3, 3, padding=1)])

    def forward(self, latent: Tensor) -> Tensor:
        return reduce(lambda x, block: block(x), self.blocks, latent)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def adapt_statistics(latent: Tensor, style: Tensor) -> Tensor:
    """AdaIN (arXiv 1703.06868): each channel of (B, C, h, w) gets the mean and deviation that it has in `style`."""

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        several = x.shape[-2] * x.shape[-1] > 1
        deviation = (x.var((2, 3), keepdim=True, correction=int(several)) + 1e-5).sqrt()
        return x.mean((2, 3), keepdim=True), deviation

    (mean, deviation), (wanted_mean, wanted) = statistics(latent), statistics(style)
    return (latent - mean) / deviation * wanted + wanted_mean


def check_size(image: Tensor, stride: int, what: str) -> None:
    """Refuse an image whose sides are no multiples of the stride.

    Raises:
        ImageError: with the sides and the stride.
    """
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape or any(side % stride for side in image.shape[-2:]):
        raise ImageError(
            f"{what} got an image of shape {tuple(image.shape)}",
            f"(B, 3, H, W) with sides that are multiples of {stride}",
            "wrap it: Backbone(network) pads to that and crops after",
        )
