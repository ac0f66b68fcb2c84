"""The masked autoencoder, of timm's transformer blocks."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RefineWrapError
from .core import Reconstruction, Reconstructor


class MAE(Reconstructor):
    """A transformer sees some patches of a square, and a second one paints all of them (He et al. 2022,
    arXiv 2111.06377).

    As in paper 3 all patches are painted and compared, those that were seen too, as pixels that are not normalised: the
    recipe's losses are all there is. By default as the published ViT-B with its decoder: 111,655,680 parameters, beside
    252,160 numbers of fixed positions. It knows the positions of one size alone: larger images are painted in tiles.

    Args:
        size: side of the square in pixels, a multiple of `patch`.
        patch: side of a patch.
        dim, depth, heads: of the encoder.
        decoder_dim, decoder_depth, decoder_heads: of the decoder.
        masked: share of the patches that are hidden in training, drawn anew for each image.
        masked_in_use: share that is hidden by `reconstruct`. The paper does not say; by default none is, so that the
            output shows what the network keeps of each patch. Above 0 the pattern follows from the square's own
            pixels: the same for the same image, alone or in a batch.
    """

    kind = "mae"
    fixed = True
    places: Tensor
    decoder_places: Tensor

    def __init__(
        self,
        size: int = 224,
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        masked: float = 0.75,
        masked_in_use: float = 0.0,
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = {
            "size": size,
            "patch": patch,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "decoder_dim": decoder_dim,
            "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads,
            "masked": masked,
            "masked_in_use": masked_in_use,
        }
        self._check()
        self.stride, self.masked, self.masked_in_use = size, masked, masked_in_use
        self.across = size // patch
        self.embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = _transformer(dim, depth, heads)
        self.to_decoder = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = _transformer(decoder_dim, decoder_depth, decoder_heads)
        self.to_pixels = nn.Linear(decoder_dim, 3 * patch**2)
        self.register_buffer("places", _positions(self.across, dim), persistent=False)
        self.register_buffer("decoder_places", _positions(self.across, decoder_dim), persistent=False)
        self._start()

    def _check(self) -> None:
        options = self._config
        whole = {name: value for name, value in options.items() if not name.startswith("masked")}
        shares = [options["masked"], options["masked_in_use"]]
        fits = min(whole.values()) >= 1 and options["size"] % options["patch"] == 0
        for name in ("", "decoder_"):
            # The positions of an axis are sines and cosines.
            fits = fits and options[f"{name}dim"] % 4 == 0 and options[f"{name}dim"] % options[f"{name}heads"] == 0
        if not fits or not all(0 <= share < 1 for share in shares):
            raise RefineWrapError(
                "An MAE of " + ", ".join(f"{name}={value}" for name, value in options.items()),
                "a size that is a multiple of patch, dims of 4 and of their heads; masked shares from 0 to below 1",
            )

    def _start(self) -> None:
        """As published: Xavier's for linear layers and the patches' one, narrow normal ones for the tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.data.flatten(1))
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=0.02)

    def forward(self, image: Tensor) -> Reconstruction:
        """(B, 3, size, size), RGB in [-1, 1]."""
        tokens = self.embed(image).flatten(2).mT + self.places
        seen = self._seen(image)[..., None]
        shown = tokens.gather(1, seen.expand(-1, -1, tokens.shape[2]))
        shown = torch.cat((self.class_token.expand(len(image), -1, -1), shown), 1)
        coded = self.to_decoder(self.encoder(shown))
        patches = self.mask_token.to(coded.dtype).expand(*tokens.shape[:2], -1)
        patches = patches.scatter(1, seen.expand(-1, -1, coded.shape[2]), coded[:, 1:]) + self.decoder_places
        pixels = self.to_pixels(self.decoder(torch.cat((coded[:, :1], patches), 1))[:, 1:])
        grid = pixels.mT.unflatten(2, (self.across, self.across))
        return Reconstruction(F.pixel_shuffle(grid, self._config["patch"]), None)

    def _seen(self, image: Tensor) -> Tensor:
        """The patches that the encoder is shown, (B, n), in ascending order."""
        count = self.across**2
        hidden = self.masked if self.training else self.masked_in_use
        if self.training:
            lots = torch.rand(len(image), count, device=image.device)
        elif hidden:
            lots = torch.stack([_lots(one, count) for one in image]).to(image.device)
        else:
            lots = image.new_zeros(len(image), count)
        shown = max(1, int(count * (1 - hidden)))
        return lots.argsort(1)[:, :shown].sort(1).values

    def config(self) -> dict[str, Any]:
        return dict(self._config)


def _transformer(dim: int, depth: int, heads: int) -> nn.Sequential:
    """(B, n, dim) -> (B, n, dim)."""
    from timm.layers.norm import LayerNorm
    from timm.models.vision_transformer import Block

    blocks = (Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
    return nn.Sequential(*blocks, LayerNorm(dim, eps=1e-6))


def _positions(across: int, dim: int) -> Tensor:
    """Sines and cosines of both coordinates, (across^2, dim)."""
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    places: Tensor = build_sincos2d_pos_embed([across, across], dim)
    return places


def _lots(image: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) that follow from (3, H, W), rounded to 255 levels a unit: 8-bit images fall on these."""
    pixels = (image.float().cpu() * 255).round().clamp(-32768, 32767).to(torch.int16)
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
    chance = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(count, generator=chance)
