"""NAFNet blocks that the refiner and the mask generator share.

The names of the parameters are those of the published NAFNet and ORNet checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIP_BYTES = 4 << 20
"""Of the widest features of a strip, which should stay in a CPU's cache."""
_LEAST_ROWS = 4


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel, (B, C, H, W) -> (B, C, H, W), computed in float32 or wider."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            channels = (self.weight.numel(),)
            with torch.autocast(x.device.type, enabled=False):  # it is wide inside, and gives the type it took
                normed = F.layer_norm(
                    x.permute(0, 2, 3, 1), channels, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
                )
            return normed.permute(0, 3, 1, 2)
        # Half types lose the variance of large features; autocast would not widen these ops by itself.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.mean(1, keepdim=True)
        centred = wide - mean
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        normed = (centred * scale).to(x.dtype)
        return normed * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class LocalPool(nn.Module):
    """Mean over a window of `size` pixels around each pixel, instead of over the whole image.

    Where the image is smaller than the window in one direction, the mean is over the whole of that direction, as it was
    in training. Shape (B, C, H, W) -> (B, C, H, W). Source: test-time local statistics (Chu et al., ECCV 2022).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        for dim in (-2, -1):
            wide = self._along(wide, dim)
        return wide.to(x.dtype)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        length = x.shape[dim]
        if length <= self.size:
            return x.mean(dim, keepdim=True).expand_as(x)
        # Differences of running sums cost the same for every window; without the mean the sums stay small.
        mean = x.mean(dim, keepdim=True)
        sums = F.pad((x - mean).cumsum(dim), (0, 0, 1, 0) if dim == -2 else (1, 0))
        windows = (
            sums.narrow(dim, self.size, length - self.size + 1) - sums.narrow(dim, 0, length - self.size + 1)
        ) / self.size
        before = (self.size - 1) // 2
        # At the border the window stays inside the image: every pixel there shares the first or the last full window.
        index = (torch.arange(length, device=x.device) - before).clamp(0, length - self.size)
        return windows.index_select(dim, index) + mean


class NAFBlock(nn.Module):
    """The nonlinearity-free block of NAFNet (Chen et al., ECCV 2022), (B, C, H, W) -> (B, C, H, W). Identity when new.

    Args:
        channels: C, even after doubling (any C).
        channel_attention: multiply by the pooled features, as in NAFNet; without it the block sees 3x3 pixels only.
        pool_size: None pools over the whole image, a number over windows of that many pixels (`LocalPool`).
    """

    def __init__(self, channels: int, channel_attention: bool = True, pool_size: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        pool: nn.Module = nn.AdaptiveAvgPool2d(1) if pool_size is None else LocalPool(pool_size)
        self.sca = nn.Sequential(pool, nn.Conv2d(channels, channels, 1)) if channel_attention else None
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = _strip_rows(x)
        if rows < x.shape[2]:
            return self._in_strips(x, rows)
        y = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        if self.sca is not None:
            y = y * self.sca(y)
        x = x + self.conv3(y) * self.beta
        y = self.conv5(simple_gate(self.conv4(self.norm2(x))))
        return x + y * self.gamma

    def _in_strips(self, x: Tensor, rows: int) -> Tensor:
        """The same, some rows at a time: what lies between stays in the cache, and little of it is alive at once."""
        result = torch.empty_like(x)  # channels last, as x
        beta, gamma = self.beta.flatten(), self.gamma.flatten()
        for image, gated in zip(x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1), strict=True):  # (H, W, C)
            self._gated_in_strips(image, gated, rows)
            scale = None if self.sca is None else self.sca(gated[None].permute(0, 3, 1, 2))[0].permute(1, 2, 0)
            local = scale is not None and len(scale) > 1
            for top in range(0, len(image), rows):
                strip = gated[top : top + rows]
                y = strip if scale is None else strip * (scale[top : top + rows] if local else scale)
                z = torch.addcmul(image[top : top + rows], _pointwise(self.conv3, y), beta)
                y = _pointwise(self.conv4, _channel_norm(self.norm2, z))
                a, b = y.chunk(2, -1)
                torch.addcmul(z, _pointwise(self.conv5, a * b), gamma, out=strip)
        return result

    def _gated_in_strips(self, image: Tensor, gated: Tensor, rows: int) -> None:
        """The first half of (H, W, C), up to the gate. The 3x3 convolution sees zeros above and below the image."""
        height, width, conv = *image.shape[:2], self.conv2
        border = image.new_zeros(1, width, conv.in_channels)
        around = border
        for top in range(0, height, rows):
            end = min(top + rows, height)
            # A row further than what is made; the two rows before it are there since the last strip.
            fresh = image[top and top + 1 : end + 1]
            parts = [around[-2:], _pointwise(self.conv1, _channel_norm(self.norm1, fresh))]
            around = torch.cat([*parts, border] if end == height else parts)
            deep = F.conv2d(
                around[None].permute(0, 3, 1, 2), conv.weight, conv.bias, padding=(0, 1), groups=conv.groups
            )
            a, b = deep[0].permute(1, 2, 0).chunk(2, -1)
            torch.mul(a, b, out=gated[top:end])


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of (..., C)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _channel_norm(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """Layer norm of (..., C)."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _strip_rows(x: Tensor) -> int:
    """Rows that are worked on at a time: all of them, except for large images on a CPU that nobody differentiates."""
    if (
        x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined, unused-ignore]
        or torch.is_autocast_enabled("cpu")
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return x.shape[2]
    return max(_LEAST_ROWS, _STRIP_BYTES // (2 * x.shape[1] * x.shape[3] * x.element_size()))


def cpu_layout(x: Tensor) -> Tensor:
    """(B, C, H, W) with the channels last, where it is on a CPU: all that follows is faster so."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def simple_gate(x: Tensor) -> Tensor:
    """Product of the two halves of the channels, (B, 2C, H, W) -> (B, C, H, W)."""
    a, b = x.chunk(2, dim=1)
    return a * b


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below until both sides are multiples; the image itself when they are."""
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(image, (0, right, 0, down)) if down or right else image
