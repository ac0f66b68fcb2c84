"""CodebookRestorer: a transformer predicts the codes of a good image from a degraded one, steered by quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, RefineWrapError, check_share
from ..quantize import VectorQuantizer, choose
from .autoencoder import GROUPS, Encoder, Generator, Layout, ResBlock, adapt_statistics, check_size
from .codebook import CodebookFusion, DualCodebookAutoencoder, Fusion, shared_config
from .condition import Quality, quality_values

Conditioning = Literal["add", "adaln"]
Codes = Literal["hard", "straight", "gumbel", "soft"]
"""How codes are taken from logits: `hard` is the best one, and the gradient passes by logits and codes to the latent
(official); `straight` the best one with the gradient of the softmax, `gumbel` one that is drawn, with it; `soft` their
expectation."""
ADALN_CHANNELS = 32


class Restored(NamedTuple):
    """What a `CodebookRestorer` makes of an image, for its losses."""

    output: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    logits: Tensor
    """(B, h * w, codes, books): book 0 is HQ+ and book 1 common where there are two, as published."""
    latent: Tensor
    """(B, emb_dim, h, w), the encoder's, with the quality where that is added."""


class TransformerLayer(nn.Module):
    """Self-attention and MLP, each after its norm, over tokens (T, B, C).

    Args:
        dim: C.
        heads: of the attention.
        mlp: channels inside the MLP.
        modulated: scale, shift and gate of both follow from the quality (adaLN, arXiv 2212.09748). Zero when new. In
            the published code the attention's result is lost in this mode; here it counts.
    """

    def __init__(self, dim: int, heads: int, mlp: int, modulated: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, mlp), nn.Linear(mlp, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Conv2d(ADALN_CHANNELS, 6 * dim, 3, padding=1))
            for parameter in self.adaLN_modulation.parameters():
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, position: Tensor, quality: Tensor | None) -> Tensor:
        """`position` (T, 1, C); `quality` (B, 32, h, w) or None."""
        if quality is None:
            shift1 = scale1 = shift2 = scale2 = torch.zeros((), dtype=tokens.dtype, device=tokens.device)
            gate1 = gate2 = torch.ones((), dtype=tokens.dtype, device=tokens.device)
        else:
            parts = self.adaLN_modulation(quality).flatten(2).permute(2, 0, 1).chunk(6, -1)
            shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = self.norm1(tokens) * (1 + scale1) + shift1
        places = y + position
        tokens = tokens + gate1 * self.self_attn(places, places, y, need_weights=False)[0]
        y = self.norm2(tokens) * (1 + scale2) + shift2
        result: Tensor = tokens + gate2 * self.linear2(F.gelu(self.linear1(y)))
        return result


class FuseBlock(nn.Module):
    """Brings the encoder's features of one level into the generator's (controllable feature transformation)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.encode_enc = ResBlock(2 * channels, channels, groups)

        def two() -> nn.Sequential:
            first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            return nn.Sequential(first, nn.LeakyReLU(0.2), last)

        self.scale, self.shift = two(), two()

    def forward(self, encoded: Tensor, decoded: Tensor, weight: float) -> Tensor:
        both = self.encode_enc(torch.cat((encoded, decoded), 1))
        result: Tensor = decoded + weight * (decoded * self.scale(both) + self.shift(both))
        return result


class CodebookRestorer(nn.Module):
    """Stages 2 and 3 of IQPIR (arXiv 2603.29773): CodeFormer with two codebooks and a quality condition.

    The published checkpoints' layout (`params_ema`, 517 tensors) loads strictly, see `restorer_from_published`. Unlike
    there: any size that is a multiple of the stride, positions being interpolated; a quality for each image of a batch;
    quality anywhere in [0, 1], 0 and 1 included; a quality loss can reach transformer, heads and codebooks (`codes`).

    Images are in [-1, 1], as published weights have it; a `Backbone` around it takes [0, 1].

    Args:
        nf, ch_mult, res_blocks, attn_resolutions, emb_dim, img_size, groups: as in `Layout`.
        codebook_size, hq_codebook_size, hq_weight, fusion: as in `DualCodebookAutoencoder`; two codebooks must have as
            many codes each, since the published head predicts them interleaved.
        hq_threshold: HQ+ takes part for qualities above it, as it did in the autoencoder. None: always, as published.
        dim, heads, layers, mlp: of the transformer.
        connect: sides of the levels that have a fuse block.
        conditioning: how the quality comes in: `add`ed to the latent (as released), by `adaln` in each layer, or None.
        bins: qualities that are learned. Between their middles it is interpolated linearly, below the first and above
            the last one it stays.
        quality: what `quality=None` means.
        fidelity: what `fidelity=None` means: the weight w of the fuse blocks, 0 leaves them out. Only stage 3 trains
            them: in the published stage-2 checkpoints they are random.
        adain: give the codes the mean and deviation of the encoder's features.
        condition: as in `DualCodebookAutoencoder`.
        scorers: those that it was trained on, `NAME@DIGEST` each: they do not judge what it makes.
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
        hq_weight: float = 0.8,
        hq_threshold: float | None = None,
        fusion: Fusion = "add",
        img_size: int | None = None,
        groups: int = GROUPS,
        dim: int = 512,
        heads: int = 8,
        layers: int = 9,
        mlp: int = 1024,
        connect: Sequence[int] = (32, 64, 128, 256),
        conditioning: Conditioning | None = "add",
        bins: int = 10,
        quality: float = 0.95,
        fidelity: float = 0.0,
        adain: bool = True,
        condition: Mapping[str, Any] | None = None,
        scorers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.condition, self.scorers = condition, list(scorers)
        self.layout = Layout(nf, tuple(ch_mult), res_blocks, tuple(attn_resolutions), emb_dim, img_size, groups)
        if min(dim, heads, mlp) < 1 or layers < 0 or dim % heads:
            raise RefineWrapError(
                f"CodebookRestorer got dim={dim}, heads={heads}, layers={layers}, mlp={mlp}",
                "dim a multiple of heads, at least 1 of each, and no negative number of layers",
            )
        if hq_codebook_size not in (0, codebook_size):
            raise RefineWrapError(
                f"The codebooks have {codebook_size} and {hq_codebook_size} codes",
                "as many codes each, or hq_codebook_size=0 for the common one alone",
            )
        if conditioning not in (None, "add", "adaln") or bins < 1 or not 0 <= quality <= 1 or not 0 <= fidelity <= 1:
            raise RefineWrapError(
                f"CodebookRestorer got conditioning={conditioning!r}, bins={bins}, quality={quality}, "
                f"fidelity={fidelity}",
                "add, adaln or None, at least one bin, quality and fidelity in [0, 1]",
            )
        check_share(hq_weight=hq_weight, hq_threshold=hq_threshold)
        self.hq_weight, self.hq_threshold = hq_weight, hq_threshold
        self.conditioning, self.bins = conditioning, bins
        self.quality, self.fidelity, self.adain = quality, fidelity, adain
        self._own = {"dim": dim, "heads": heads, "layers": layers, "mlp": mlp, "connect": list(connect)}
        self.fusion_kind: Fusion = fusion
        self.encoder, self.generator = Encoder(self.layout), Generator(self.layout)
        self.quantize = VectorQuantizer(codebook_size, emb_dim)
        self.quantize_aesthetic = VectorQuantizer(hq_codebook_size, emb_dim) if hq_codebook_size else None
        self.fusion = CodebookFusion(emb_dim, fusion)
        side = self.layout.sizes[-1]
        self.position_emb = nn.Parameter(torch.zeros(side * side, dim))
        self.feat_emb = nn.Linear(emb_dim, dim)
        self.ft_layers = nn.ModuleList(
            TransformerLayer(dim, heads, mlp, conditioning == "adaln") for _ in range(layers)
        )
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, codebook_size * self.books, bias=False))
        if conditioning is not None:
            channels = emb_dim if conditioning == "add" else ADALN_CHANNELS
            self.score_embed = nn.Embedding(bins, channels * side * side)
        missing = [size for size in connect if size not in self.layout.sizes]
        if missing:
            raise RefineWrapError(f"connect names levels of {missing} pixels", f"some of {self.layout.sizes}")
        self.fuse_convs_dict = nn.ModuleDict({str(s): FuseBlock(self.layout.channels(s), groups) for s in connect})

    @property
    def books(self) -> int:
        """Codebooks: 2, or 1 without HQ+."""
        return 1 if self.quantize_aesthetic is None else 2

    @property
    def stride(self) -> int:
        """Pixels of a side for each code."""
        return self.layout.stride

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {
            **shared_config(self),
            **self._own,
            "conditioning": self.conditioning,
            "bins": self.bins,
            "quality": self.quality,
            "fidelity": self.fidelity,
            "adain": self.adain,
            "scorers": self.scorers,
        }

    def forward(self, image: Tensor, quality: Quality | None = None, fidelity: float | None = None) -> Tensor:
        """Restore.

        Args:
            image: (B, 3, H, W), RGB in [-1, 1], sides multiples of the stride.
            quality: wanted, in [0, 1]: a number or (B,). None: `self.quality`.
            fidelity: weight of the fuse blocks in [0, 1]. None: `self.fidelity`.

        Returns:
            (B, 3, H, W), about [-1, 1], not clamped.

        Raises:
            ImageError: a size that does not fit, or a quality of another shape or outside [0, 1].
        """
        return self.restore(image, quality, fidelity).output

    def restore(
        self,
        image: Tensor,
        quality: Quality | None = None,
        fidelity: float | None = None,
        codes: Codes = "hard",
        temperature: float = 1.0,
    ) -> Restored:
        """As `forward`, with what losses need; `codes` says how the codes are taken, `temperature` how softly."""
        fidelity = self.fidelity if fidelity is None else fidelity
        if not 0 <= fidelity <= 1:
            raise RefineWrapError(f"fidelity is {fidelity}", "a number in [0, 1]")
        logits, latent, levels = self.predict(image, quality)
        found = self.take(logits, self.hq_share(image, quality), latent.shape[-2:], codes, temperature)
        if codes == "hard":  # as published: what is asked of the image reaches the encoder, and nothing between
            found = found.detach() + (latent - latent.detach())
        if self.adain:
            found = adapt_statistics(found, latent)
        return Restored(self.generate(found, levels, fidelity), logits, latent)

    def predict(self, image: Tensor, quality: Quality | None = None) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Logits and latent as in `Restored`, and the encoder's levels by their sides."""
        check_size(image, self.stride, type(self).__name__)
        latent, levels = self.encoder.with_levels(image)
        height, width = latent.shape[-2:]
        wanted = None
        if self.conditioning is not None:
            values = quality_values(self.quality if quality is None else quality, image)
            wanted = self._embedded(values, height, width).to(latent.dtype)
            if self.conditioning == "add":
                latent, wanted = latent + wanted, None
        side = self.layout.sizes[-1]
        position = self._sized(self.position_emb.T.reshape(1, -1, side, side), height, width)
        position = position.flatten(2).permute(2, 0, 1).to(latent.dtype)
        tokens = self.feat_emb(latent.flatten(2).permute(2, 0, 1))
        for layer in self.ft_layers:
            tokens = layer(tokens, position, wanted)
        logits = self.idx_pred_layer(tokens).transpose(0, 1)
        return logits.reshape(*logits.shape[:2], self.quantize.codes, self.books), latent, levels

    def hq_share(self, image: Tensor, quality: Quality | None) -> Tensor:
        """The weight of HQ+ for each image, (B, 1, 1, 1)."""
        values = quality_values(self.quality if quality is None else quality, image)
        good = torch.ones_like(values) if self.hq_threshold is None else (values > self.hq_threshold).to(values.dtype)
        return (self.hq_weight * good)[:, None, None, None]

    def own_logits(self, logits: Tensor) -> list[Tensor]:
        """Those of the common codebook and of HQ+, (B, h * w, codes) each; published logits have HQ+ first."""
        return list(logits.unbind(-1))[::-1]

    def take(
        self, logits: Tensor, share: Tensor, size: Sequence[int], codes: Codes = "hard", temperature: float = 1.0
    ) -> Tensor:
        """The latent (B, emb_dim, h, w) that logits (B, h * w, codes, books) choose, HQ+ with its share."""
        if codes not in ("hard", "straight", "gumbel", "soft"):
            raise RefineWrapError(f"codes is {codes!r}", "hard, straight, gumbel or soft")
        books = (self.quantize, self.quantize_aesthetic)
        found = []
        for own, book in zip(self.own_logits(logits), books, strict=False):
            assert book is not None  # there are as many logits as codebooks
            placed = own.reshape(len(own), *size, -1)
            if codes == "hard":
                found.append(book.look_up(placed.argmax(-1)))
            else:
                weights = choose(placed.float(), temperature, noise=codes == "gumbel", hard=codes != "soft")
                found.append(book.expected(weights))
        return found[0] if len(found) == 1 else self.fusion(found[0], found[1], share.to(found[0].dtype))

    def generate(self, latent: Tensor, levels: Mapping[int, Tensor], fidelity: float) -> Tensor:
        """The image of a latent, with the encoder's levels at the weight `fidelity`."""
        fused = {self.generator.starts[int(size)]: int(size) for size in self.fuse_convs_dict} if fidelity > 0 else {}
        x = latent
        for index, block in enumerate(self.generator.blocks):
            x = block(x)
            if index in fused:
                x = self.fuse_convs_dict[str(fused[index])](levels[fused[index]].detach(), x, fidelity)
        return x

    def _embedded(self, quality: Tensor, height: int, width: int) -> Tensor:
        """(B,) -> (B, channels, height, width), linear between the middles of the bins."""
        side = self.layout.sizes[-1]
        place = (quality.float() * self.bins - 0.5).clamp(0, self.bins - 1)
        below = place.floor().long().clamp(max=max(self.bins - 2, 0))
        share = (place - below)[:, None]
        table = self.score_embed.weight
        above = (below + 1).clamp(max=self.bins - 1)
        mixed = table[below] * (1 - share) + table[above] * share
        return self._sized(mixed.reshape(len(mixed), -1, side, side), height, width)

    def _sized(self, plane: Tensor, height: int, width: int) -> Tensor:
        """Learned for the nominal size, resized for another one."""
        if plane.shape[-2:] == (height, width):
            return plane
        return F.interpolate(plane, (height, width), mode="bicubic", align_corners=False)

    @classmethod
    def of_autoencoder(cls, autoencoder: DualCodebookAutoencoder, **options: Any) -> CodebookRestorer:
        """A new restorer with the encoder, codebooks and generator of stage 1.

        Args:
            options: the arguments that the autoencoder does not have.
        """
        own = autoencoder.config()
        shared = {key: own[key] for key in own if key not in ("decay", "restart_after")}
        both = sorted(set(shared) & set(options) - {"hq_weight", "hq_threshold"})
        if both:
            raise RefineWrapError(f"options have {', '.join(both)}, which the autoencoder has", "the others alone")
        made = cls(**{**shared, **options})
        state = {
            name: value for name, value in autoencoder.state_dict().items() if name.split(".")[-1] not in _BOOKKEEPING
        }
        made.load_state_dict({**made.state_dict(), **state})
        return made


_BOOKKEEPING = ("counts", "sums", "idle")
"""Buffers of a codebook that learns; a restorer's codebooks do not."""


def restorer_from_published(path: str | Path, **options: Any) -> CodebookRestorer:
    """A restorer with the weights of a published IQPIR or CodeFormer checkpoint; `params_ema` before `params`.

    Read weights-only: no code of the file is run. Number of codebooks, conditioning, layers and bins follow from the
    tensors. What no tensor tells (`groups`, `hq_weight`, `quality`, `fidelity`, `adain`, `heads`) is given as options.

    Args:
        path: the checkpoint.
        options: arguments of `CodebookRestorer`.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not those of a restorer.
    """
    from ..backbone.checkpoint import check_keys, read_checkpoint

    state, _ = read_checkpoint(Path(path))
    needed = ("encoder.blocks.0.weight", "quantize.embedding.weight", "position_emb", "idx_pred_layer.1.weight")
    for name in needed:
        if name not in state:
            raise CheckpointError(
                f"{path} is no codebook restorer: it has no {name}", "a checkpoint of IQPIR's or CodeFormer's stage 2"
            )
    codes, width = state["quantize.embedding.weight"].shape
    positions, dim = state["position_emb"].shape
    found: dict[str, Any] = {
        "nf": state["encoder.blocks.0.weight"].shape[0],
        "codebook_size": codes,
        "hq_codebook_size": codes if "quantize_aesthetic.embedding.weight" in state else 0,
        "emb_dim": width,
        "dim": dim,
        "layers": len({name.split(".")[1] for name in state if name.startswith("ft_layers.")}),
        "connect": sorted({int(name.split(".")[1]) for name in state if name.startswith("fuse_convs_dict.")}),
        "conditioning": None,
    }
    if "score_embed.weight" in state:
        bins, values = state["score_embed.weight"].shape
        found |= {"bins": bins, "conditioning": "add" if values == width * positions else "adaln"}
    try:
        restorer = CodebookRestorer(**{**found, **options})
    except TypeError as error:
        raise RefineWrapError(
            f"CodebookRestorer cannot be built: {error}", "the arguments that CodebookRestorer documents"
        ) from None
    check_keys(restorer.state_dict(), state, str(path), "CodebookRestorer")
    restorer.load_state_dict(state)
    return restorer.eval()
