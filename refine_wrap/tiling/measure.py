"""The difference that tiles make, measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .run import Network, run_tiles


def photo_like(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """A picture with what photographs have: shading, edges, fine texture and noise; (1, 3, height, width) float32 in
    [0, 1], always the same."""
    generator = torch.Generator().manual_seed(20)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    x = torch.arange(width, dtype=torch.float32)[None, :]
    shading = 0.35 + 0.25 * torch.sin(x / 97 + 0.3) * torch.cos(y / 71)
    discs = torch.zeros(height, width)
    for level in (0.3, -0.25, 0.2):
        # On a lattice of 61 pixels, so that every tile has edges in it whatever the picture's size.
        place = torch.rand(2, generator=generator) * 61
        radius = 9 + 14 * torch.rand(1, generator=generator)
        distance = ((y - place[0] + 30) % 61 - 30) ** 2 + ((x - place[1] + 30) % 61 - 30) ** 2
        discs = discs + level * (distance < radius**2)
    stripes = 0.12 * torch.sign(torch.sin((x + 2 * y) / 5)) * (torch.sin(y / 43) > 0.2)
    texture = 0.1 * torch.sin(x * 1.9 + torch.sin(y / 7) * 3) * torch.sin(y * 1.3) * (torch.cos(x / 53) > 0)
    tint = torch.tensor([0.08, 0.0, -0.06])[:, None, None] * torch.sin((x - y) / 131 + math.pi / 5)
    noise = 0.03 * torch.randn(3, height, width, generator=generator)
    return (shading + discs + stripes + texture + tint + noise).clamp(0, 1)[None].to(device)


def measure_tiling(
    network: Network,
    *,
    scale: int = 1,
    multiple_of: int = 1,
    tile: int = 64,
    halo: int = 16,
    size: int | tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Largest |tiled - whole| over a fixed photo-like picture, in units of 1 (times 255 for grey levels); nothing is
    clamped.

    Args:
        network: (1, 3, h, w) in [0, 1] -> (1, 3, h * scale, w * scale).
        size: of the picture, a side or (height, width), in input pixels; None = large enough that a tile of `tile`
            with its halo does not hold all of it.
    """
    if size is None:
        size = max(2 * tile, tile + 2 * halo)
    height, width = (size, size) if isinstance(size, int) else size
    picture = photo_like(height, width, device)
    with torch.no_grad():
        whole = network(picture)
    difference = 0.0

    def write(top: int, left: int, part: Tensor) -> None:
        nonlocal difference
        place = whole[..., top : top + part.shape[-2], left : left + part.shape[-1]]
        difference = max(difference, float((part - place).abs().max()))

    run_tiles(
        network,
        lambda top, left, h, w: picture[..., top : top + h, left : left + w],
        write,
        height=height,
        width=width,
        scale=scale,
        tile=tile,
        halo=halo,
        multiple_of=multiple_of,
    )
    return difference
