"""DualCodebookAutoencoder: images as codes, those of good images in a codebook of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import RefineWrapError, check_share
from ..quantize import Quantized, VectorQuantizer
from .autoencoder import GROUPS, Encoder, Generator, Layout, check_size
from .condition import Quality, quality_values

if TYPE_CHECKING:
    from .restorer import CodebookRestorer

Fusion = Literal["add", "attention"]


class Autoencoded(NamedTuple):
    """What a `DualCodebookAutoencoder` makes of an image."""

    output: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    loss_common: Tensor
    """Scalar, the mean over the samples."""
    loss_hq: Tensor
    """Scalar, the mean over all samples; those at the threshold or below count as 0."""
    index_common: Tensor
    """(B, h, w), int64."""
    index_hq: Tensor
    """(B, h, w), int64: which HQ+ code is nearest, also where it takes no part."""
    latent: Tensor
    """(B, emb_dim, h, w), before it is quantised."""


class CodebookFusion(nn.Module):
    """The common codes and those of HQ+ together, (B, C, h, w) each.

    Args:
        width: C.
        how: add: common + weight * HQ+. attention: the common codes look for what they want among those of HQ+.
    """

    def __init__(self, width: int, how: Fusion, heads: int = 8) -> None:
        super().__init__()
        if how not in ("add", "attention"):
            raise RefineWrapError(f"fusion is {how!r}", "add or attention")
        self.attention = None
        if how == "attention":
            heads = next(n for n in range(min(heads, width), 0, -1) if width % n == 0)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, common: Tensor, hq: Tensor, weight: Tensor) -> Tensor:
        """`weight` (B, 1, 1, 1): 0 is the common codes alone."""
        if self.attention is not None:
            rows = hq.flatten(2).mT
            found = self.attention(common.flatten(2).mT, rows, rows, need_weights=False)[0]
            hq = found.mT.reshape(common.shape)
        return common + weight * hq


class DualCodebookAutoencoder(nn.Module):
    """Stage 1 of "Image Quality Prior" (IQPIR, arXiv 2603.29773): VQGAN with two codebooks.

    The common codebook learns from all images, HQ+ only from those whose score is above a threshold. The state dict of
    the official VQAutoEncoder with `dual_codebook` and `add` loads strictly. Unlike there, any size that is a multiple
    of the stride works, HQ+ has any number of codes, and codebooks may be averaged and their dead codes restarted.

    Images are in [-1, 1], as published weights have it; a `Backbone` around it takes [0, 1].

    Args:
        nf, ch_mult, res_blocks, attn_resolutions, emb_dim, img_size, groups: as in `Layout`.
        codebook_size: common codes.
        hq_codebook_size: codes of HQ+; 0: the common codebook alone, a plain VQGAN.
        hq_threshold: scores above it let HQ+ take part. Paper 2's released 0.70 lets 91% of FFHQ through, 0.91 0.3%;
            of scores that a `Condition` has made qualities by quantile, 0.75 lets the best quarter through.
        hq_weight: how much of HQ+ is added, alpha.
        fusion: how, see `CodebookFusion`; attention adds tensors that the official layout does not have.
        decay, restart_after: as in `VectorQuantizer`, for both codebooks; they add buffers.
        condition: how scores became the qualities that it was trained with, `Condition.to_dict()`; it is only kept.

    Raises:
        RefineWrapError: an argument is out of range.
    """

    def __init__(
        self,
        nf: int = 64,
        ch_mult: Sequence[int] = (1, 2, 2, 4, 4, 8),
        res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        codebook_size: int = 1024,
        hq_codebook_size: int = 1024,
        emb_dim: int = 256,
        hq_threshold: float = 0.7,
        hq_weight: float = 0.8,
        fusion: Fusion = "add",
        img_size: int | None = None,
        groups: int = GROUPS,
        decay: float | None = None,
        restart_after: int | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.condition = condition
        self.layout = Layout(nf, tuple(ch_mult), res_blocks, tuple(attn_resolutions), emb_dim, img_size, groups)
        check_share(hq_threshold=hq_threshold, hq_weight=hq_weight)
        self.hq_threshold, self.hq_weight = hq_threshold, hq_weight
        self.fusion_kind: Fusion = fusion
        self.encoder, self.generator = Encoder(self.layout), Generator(self.layout)
        learns: dict[str, Any] = {"decay": decay, "restart_after": restart_after}
        self.quantize = VectorQuantizer(codebook_size, emb_dim, **learns)
        self.quantize_aesthetic = VectorQuantizer(hq_codebook_size, emb_dim, **learns) if hq_codebook_size else None
        self.fusion = CodebookFusion(emb_dim, fusion)

    @property
    def stride(self) -> int:
        """Pixels of a side for each code."""
        return self.layout.stride

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {
            **shared_config(self),
            "decay": self.quantize.decay,
            "restart_after": self.quantize.restart_after,
        }

    def forward(self, image: Tensor, score: Quality) -> Autoencoded:
        """Encode, quantise, decode.

        Args:
            image: (B, 3, H, W), RGB in [-1, 1], sides multiples of the stride.
            score: of each image, in [0, 1]: a number or (B,).

        Raises:
            ImageError: a size that does not fit, or a score of another shape or outside [0, 1].
        """
        check_size(image, self.stride, type(self).__name__)
        latent = self.encoder(image)
        common = self.quantize(latent)
        if self.quantize_aesthetic is None:
            hq, fused = Quantized(common.latent, common.index, torch.zeros_like(common.loss)), common.latent
        else:
            good = quality_values(score, image, "score") > self.hq_threshold
            hq = self.quantize_aesthetic(latent, learn=good)
            fused = self.fusion(common.latent, hq.latent, (good * self.hq_weight).to(latent.dtype)[:, None, None, None])
        return Autoencoded(self.generator(fused), common.loss.mean(), hq.loss.mean(), common.index, hq.index, latent)

    @torch.no_grad()
    def indices(self, image: Tensor) -> Tensor:
        """Which codes an image has, (B, books, h, w): common, and HQ+ where there is one."""
        check_size(image, self.stride, type(self).__name__)
        latent = self.encoder(image)
        books = [book for book in (self.quantize, self.quantize_aesthetic) if book is not None]
        return torch.stack([book.nearest(latent) for book in books], 1)

    def decode(self, indices: Tensor) -> Tensor:
        """The image of codes (B, books, h, w), HQ+ with its weight."""
        fused = self.quantize.look_up(indices[:, 0])
        if self.quantize_aesthetic is not None:
            weight = fused.new_full((1, 1, 1, 1), self.hq_weight)
            fused = self.fusion(fused, self.quantize_aesthetic.look_up(indices[:, 1]), weight)
        image: Tensor = self.generator(fused)
        return image


def shared_config(network: DualCodebookAutoencoder | CodebookRestorer) -> dict[str, Any]:
    """The arguments that autoencoder and restorer share, as JSON."""
    layout, hq = network.layout, network.quantize_aesthetic
    return {
        "nf": layout.nf,
        "ch_mult": list(layout.ch_mult),
        "res_blocks": layout.res_blocks,
        "attn_resolutions": list(layout.attn_resolutions),
        "emb_dim": layout.emb_dim,
        "img_size": layout.img_size,
        "groups": layout.groups,
        "codebook_size": network.quantize.codes,
        "hq_codebook_size": hq.codes if hq else 0,
        "hq_threshold": network.hq_threshold,
        "hq_weight": network.hq_weight,
        "fusion": network.fusion_kind,
        "condition": network.condition,
    }
