"""VQ-VAE and VQ-VAE-2, with the house's quantiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, RefineWrapError
from ..quantize import VectorQuantizer
from .core import Reconstruction, Reconstructor

COMMITMENT = 0.25


class ResBlock(nn.Module):
    """(B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, inside, 3, padding=1), nn.ReLU(), nn.Conv2d(inside, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv(x)
        return result


class Stack(nn.Module):
    """Layers, then residual blocks, then layers; of a published encoder or decoder as one `nn.Sequential`."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blocks(x)
        return result


def encoder(inside: int, channels: int, res_blocks: int, res_channels: int, stride: int) -> Stack:
    """(B, inside, H, W) -> (B, channels, H / stride, W / stride), stride 2 or 4."""
    half = channels // 2
    blocks: list[nn.Module] = [nn.Conv2d(inside, half, 4, stride=2, padding=1), nn.ReLU()]
    if stride == 4:
        blocks += [nn.Conv2d(half, channels, 4, stride=2, padding=1), nn.ReLU()]
    blocks.append(nn.Conv2d(channels if stride == 4 else half, channels, 3, padding=1))
    blocks += [ResBlock(channels, res_channels) for _ in range(res_blocks)]
    return Stack(*blocks, nn.ReLU())


def decoder(inside: int, outside: int, channels: int, res_blocks: int, res_channels: int, stride: int) -> Stack:
    """(B, inside, h, w) -> (B, outside, h * stride, w * stride), stride 2 or 4."""
    blocks: list[nn.Module] = [nn.Conv2d(inside, channels, 3, padding=1)]
    blocks += [ResBlock(channels, res_channels) for _ in range(res_blocks)]
    blocks.append(nn.ReLU())
    if stride == 4:
        blocks += [nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1), nn.ReLU()]
    blocks.append(nn.ConvTranspose2d(channels // 2 if stride == 4 else channels, outside, 4, stride=2, padding=1))
    return Stack(*blocks)


class CodedReconstructor(Reconstructor):
    """What both share: their arguments, and the codebooks they name."""

    def __init__(
        self,
        channels: int = 128,
        res_blocks: int = 2,
        res_channels: int = 32,
        width: int = 64,
        codes: int = 512,
        decay: float | None = 0.99,
        restart_after: int | None = None,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2 or min(res_channels, width, codes) < 1 or res_blocks < 0:
            raise RefineWrapError(
                f"A VQ-VAE of channels={channels}, res_blocks={res_blocks}, res_channels={res_channels}, "
                f"width={width}, codes={codes}",
                "an even number of channels, no negative res_blocks, at least 1 of the others",
            )
        self._config = {
            "channels": channels,
            "res_blocks": res_blocks,
            "res_channels": res_channels,
            "width": width,
            "codes": codes,
            "decay": decay,
            "restart_after": restart_after,
        }

        def book() -> VectorQuantizer:
            return VectorQuantizer(codes, width, beta=1 / COMMITMENT, decay=decay, restart_after=restart_after)

        self._build((channels, res_blocks, res_channels), width, book)

    def _build(self, blocks: tuple[int, int, int], width: int, book: Callable[[], VectorQuantizer]) -> None:
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        return dict(self._config)


class VQVAE(CodedReconstructor):
    """One codebook at a quarter of the size (van den Oord et al. 2017, arXiv 1711.00937).

    Args:
        channels: of encoder and decoder, even.
        res_blocks, res_channels: residual blocks of each, and their channels inside.
        width: of a code.
        codes: how many.
        decay, restart_after: as in `VectorQuantizer`.
    """

    kind = "vqvae"
    stride = 4

    def _build(self, blocks: tuple[int, int, int], width: int, book: Callable[[], VectorQuantizer]) -> None:
        self.enc = encoder(3, *blocks, stride=4)
        self.quantize_conv = nn.Conv2d(blocks[0], width, 1)
        self.quantize = book()
        self.dec = decoder(width, 3, *blocks, stride=4)

    def forward(self, image: Tensor) -> Reconstruction:
        found = self.quantize(self.quantize_conv(self.enc(image)))
        return Reconstruction(self.dec(found.latent), COMMITMENT * found.loss.mean())


class VQVAE2(CodedReconstructor):
    """Two codebooks, at a quarter and at an eighth of the size (Razavi et al. 2019, arXiv 1906.00446).

    By default as paper 3's first author trained it: 1,388,867 parameters beside the codebooks. Their names are those of
    that code, but for the codebooks', see `vqvae2_from_published`.

    Args:
        channels, res_blocks, res_channels, width, codes, decay, restart_after: as in `VQVAE`.
    """

    kind = "vqvae2"
    stride = 8

    def _build(self, blocks: tuple[int, int, int], width: int, book: Callable[[], VectorQuantizer]) -> None:
        channels = blocks[0]
        self.enc_b = encoder(3, *blocks, stride=4)
        self.enc_t = encoder(channels, *blocks, stride=2)
        self.quantize_conv_t = nn.Conv2d(channels, width, 1)
        self.quantize_t = book()
        self.dec_t = decoder(width, width, *blocks, stride=2)
        self.quantize_conv_b = nn.Conv2d(width + channels, width, 1)
        self.quantize_b = book()
        self.upsample_t = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.dec = decoder(2 * width, 3, *blocks, stride=4)

    def forward(self, image: Tensor) -> Reconstruction:
        below = self.enc_b(image)
        top = self.quantize_t(self.quantize_conv_t(self.enc_t(below)))
        bottom = self.quantize_b(self.quantize_conv_b(torch.cat((self.dec_t(top.latent), below), 1)))
        output = self.dec(torch.cat((self.upsample_t(top.latent), bottom.latent), 1))
        return Reconstruction(output, COMMITMENT * (top.loss.mean() + bottom.loss.mean()))


def vqvae2_from_published(path: str | Path) -> VQVAE2:
    """A VQ-VAE-2 with the weights of a checkpoint of github.com/rosinality/vq-vae-2-pytorch or of its forks.

    Read weights-only: no code of the file is run. Sizes follow from the tensors.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not those of a VQ-VAE-2.
    """
    from ..backbone.checkpoint import check_keys, read_checkpoint

    state, _ = read_checkpoint(Path(path))
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        book, _, buffer = name.rpartition(".")
        if buffer in _BUFFERS and book.startswith("quantize_"):
            # Codes lie in columns there.
            renamed[f"{book}.{_BUFFERS[buffer]}"] = value.mT.contiguous() if value.ndim == 2 else value
        else:
            renamed[name] = value
    for name in ("enc_b.blocks.2.weight", "quantize_t.embedding.weight", "quantize_b.embedding.weight"):
        if name not in renamed:
            raise CheckpointError(f"{path} is no VQ-VAE-2: it has no {name}", "a checkpoint of vq-vae-2-pytorch")
    codes, width = renamed["quantize_t.embedding.weight"].shape
    within = [name for name in renamed if name.startswith("enc_b.blocks.") and name.endswith(".conv.1.weight")]
    network = VQVAE2(
        channels=renamed["enc_b.blocks.2.weight"].shape[0],
        res_blocks=len(within),
        res_channels=renamed[within[0]].shape[0] if within else 1,
        width=width,
        codes=codes,
    )
    check_keys(network.state_dict(), renamed, str(path), "VQVAE2")
    network.load_state_dict(renamed)
    return network.eval()


_BUFFERS = {"embed": "embedding.weight", "cluster_size": "counts", "embed_avg": "sums"}
