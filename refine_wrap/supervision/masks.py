"""The mask generator: how much of each image goes into the enhanced ground truth, frequency by frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError, RefineWrapError
from ..naf import NAFBlock, cpu_layout, pad_to_multiple
from ..refiner import Strength, strength_plane

DEAD = ("ending.", "mask_height", "mask_width")
"""Keys of official checkpoints that nothing is computed from."""
ROWS = 2**20
"""Values of ring functions that are in memory at once; more come in blocks of rows."""
LEAN = 2.0
"""By how much an untrained generator leans to the ground truth, in logits of its coefficients."""
BLOCK = 8
"""Side of the blocks of a `block_profile` in pixels, that of JPEG's."""
PROFILE_BANDS = (1, 2, 3, 5, 7, 9, 11, 15)
"""Where its bands of frequency begin, in the sum of a block's two frequencies; the mean colour is left out."""
PROFILE_RANKS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Which of the blocks it tells, in each band from the calmest, 0, to the busiest, 1."""
FADE = 0.1
"""Beside a profile the strength counts as exp(-strength / FADE): so 0, where the ground truth is to stay as it is, is
told from little."""
SILENT = 1e-8
"""Power that no photo is below, 8 bits or 16: a flat image has a finite profile too."""


class FrequencyMaskGenerator(nn.Module):
    """CFMG of "Beyond the Ground Truth" (arXiv 2512.03932): masks over frequency for a ground truth and its variants.

    An image's coefficients weigh radial functions, the rings; a softmax over the images makes masks that sum to 1. The
    state dict of the official CFMG loads strictly; keys of it that nothing is computed from are dropped. Unlike there,
    an untrained generator leans to the ground truth, each image of a batch comes out as it does alone, and the device
    is free.

    Args:
        width: channels at the first level; each level down doubles them.
        rings: radial functions.
        images: the ground truth and its variants.
        encoder_blocks: NAF blocks at each level; its length is the number of levels.
        middle_blocks: NAF blocks at the lowest level.
        centred: the rings lie around frequency 0 and are round in cycles a pixel. Official checkpoints were trained
            without: their centre lies half a bin beside it, and an image's sides each count as 1.
        profile: the coefficients follow from the image's `block_profile` too, in which noise shows in the calmest
            blocks, blur in the busiest. Official checkpoints are without: the mean over their features does not know
            where in the spectrum they were.
    """

    def __init__(
        self,
        width: int = 32,
        rings: int = 25,
        images: int = 4,
        encoder_blocks: Sequence[int] = (1, 1, 1, 1),
        middle_blocks: int = 1,
        centred: bool = False,
        profile: bool = False,
    ) -> None:
        super().__init__()
        if min(width, images) < 1 or rings < 2 or min([*encoder_blocks, middle_blocks], default=0) < 0:
            raise RefineWrapError(
                f"FrequencyMaskGenerator got width={width}, rings={rings}, images={images}, blocks "
                f"{tuple(encoder_blocks)}, {middle_blocks}",
                "width and images of at least 1, at least 2 rings, no negative number of blocks",
            )
        levels = len(encoder_blocks)
        self.width, self.rings, self.images, self.centred = width, rings, images, centred
        self.block_counts = tuple(encoder_blocks), middle_blocks
        self.factors = tuple(range(2, images + 1))
        self.multiple_of = 2**levels
        self.intro = nn.Conv2d(7, width, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(n, width * 2**level) for level, n in enumerate(encoder_blocks))
        self.downs = nn.ModuleList(
            nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 2, 2) for level in range(levels)
        )
        self.middle_blks = _blocks(middle_blocks, width * 2**levels)
        inside = width * 2**levels
        seen, hidden = 3 * (len(PROFILE_BANDS) - 1) * len(PROFILE_RANKS) + 1, 64
        self.profile = (
            nn.Sequential(
                nn.Linear(seen, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, inside)
            )
            if profile
            else None
        )
        self.dropout = nn.Dropout(0.2)
        self.fclayer_1 = nn.Linear(inside, images * rings)
        self.fclayer_last = nn.Linear(images * rings, images * rings)
        with torch.no_grad():
            self.fclayer_last.bias.view(images, rings)[0] += LEAN
        place = torch.linspace(0, 1, rings, dtype=torch.float64).square()
        self.register_buffer("centres", (math.sqrt(2) * place).float(), persistent=False)
        self.register_buffer("spreads", (0.05 * (1 + 10 * place)).float(), persistent=False)
        self.register_load_state_dict_pre_hook(_drop_dead)  # type: ignore[no-untyped-call]

    centres: Tensor
    spreads: Tensor
    factors: tuple[int, ...]
    """How many times larger each variant is to be super-resolved; an adapter tells it where it is not x2, x3, x4."""
    scorers: tuple[str, ...] = ()
    """Scorers that it was trained on, as an adapter records them: they do not judge what it makes."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        encoder, middle = self.block_counts
        return {
            "width": self.width,
            "rings": self.rings,
            "images": self.images,
            "encoder_blocks": list(encoder),
            "middle_blocks": middle,
            "centred": self.centred,
            "profile": self.profile is not None,
        }

    def forward(self, image: Tensor, strength: Strength = 0.3) -> Tensor:
        """The masks of a ground truth and its variants.

        Args:
            image: (B, 3, H, W), the ground truth, RGB in [0, 1], any size.
            strength: in [0, 1], a number or a (B,) tensor. 0 keeps the ground truth, 1 asks for the most detail.

        Returns:
            (B, images, H, W), not negative, sum 1 over the images, image 0 being the ground truth; frequency 0 in the
            middle, at (H // 2, W // 2).

        Raises:
            ImageError: a strength of another shape, or outside [0, 1].
        """
        return self.masks(self.coefficients(image, strength), image.shape[-2], image.shape[-1])

    def coefficients(self, image: Tensor, strength: Strength = 0.3) -> Tensor:
        """The weight of each ring for each image, (B, images, rings), sum 1 over the images; arguments as `forward`."""
        plane = strength_plane(strength, image)
        padded = pad_to_multiple(image, self.multiple_of)
        height, width = padded.shape[-2:]
        level = plane[..., :1, :1].expand(-1, -1, height, width)
        x = cpu_layout(torch.cat((padded, log_spectrum(padded), level), 1).to(self.intro.weight.dtype))
        x = self.intro(x)
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = down(encoder(x))
        x = self.middle_blks(x).mean((2, 3))
        if self.profile is not None:
            # Three times, to be heard among the many values of the profile.
            faded = 3 * torch.exp(-plane[..., 0, 0] / FADE)
            seen = torch.cat((block_profile(image).flatten(1), faded), 1)
            x = x + self.profile(seen.to(x.dtype))
        x = self.fclayer_last(self.dropout(self.fclayer_1(self.dropout(x))))
        return x.view(-1, self.images, self.rings).softmax(1)

    def masks(self, coefficients: Tensor, height: int, width: int) -> Tensor:
        """What coefficients (B, images, rings) mean for images of a size, (B, images, height, width)."""
        # The radius is the same in all four quarters of the plane: one is computed, the others mirror it.
        down, across = (self._axis(side, coefficients) for side in (height, width))
        block = max(ROWS // (self.rings * len(across)), 1)
        logits = [
            torch.einsum("bir,rhw->bihw", coefficients, self._rings(torch.hypot(part[:, None], across[None])))
            for part in torch.split(down, block)
        ]
        quarter = torch.cat(logits, 2).softmax(1)
        return self._mirrored(self._mirrored(quarter, 2, height), 3, width)

    def _rings(self, radius: Tensor) -> Tensor:
        """The radial functions, (rings, h, w)."""
        centres, spreads = (each.to(radius)[:, None, None] for each in (self.centres, self.spreads))
        narrow = math.sqrt(0.5) / spreads
        return (radius * narrow).sub_(centres * narrow).square_().neg_().exp_()

    def _axis(self, side: int, like: Tensor) -> Tensor:
        """The distinct distances from the middle along one side, (side // 2 + 1,) or ((side + 1) // 2,)."""
        if self.centred:
            return torch.arange(side // 2 + 1, device=like.device, dtype=like.dtype) * (2 / side)
        line = torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype)
        return line[: (side + 1) // 2].abs()

    def _mirrored(self, part: Tensor, dim: int, side: int) -> Tensor:
        """A side whole again, from what stands at its distinct distances."""
        if self.centred:  # distances side // 2 to 1, then 0 and up; an even side has one frequency more below
            return torch.cat((part.narrow(dim, 1, side // 2).flip(dim), part.narrow(dim, 0, (side + 1) // 2)), dim)
        return torch.cat((part, part.narrow(dim, 0, side // 2).flip(dim)), dim)


def log_spectrum(image: Tensor) -> Tensor:
    """log10(|FFT| + 1), frequency 0 in the middle, (B, 3, H, W) -> (B, 3, H, W).

    The planes come as blue, red, green: the official network was trained so, its shift moves the channels too. It also
    moves the images of a batch, so that each is masked by another one's spectrum; that is left out.
    """
    wide = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    height, width = image.shape[-2:]
    half = torch.log10(torch.fft.rfft2(wide).abs() + 1)
    # The other half mirrors it: |F(-k)| = |F(k)|.
    rows = torch.arange(height, device=image.device)
    other = half[..., 1 : (width + 1) // 2].index_select(-2, -rows % height).flip(-1)
    return torch.fft.fftshift(torch.cat((half, other), -1), (-2, -1)).roll(1, 1).to(image.dtype)


def block_profile(image: Tensor) -> Tensor:
    """How much detail an image's blocks have in each band of frequency: (B, 3, H, W) -> (B, 3, bands, ranks).

    log10 of the mean power of the block's cosines (8x8, orthonormal, from the first pixel on as in JPEG) in the band,
    scaled to about [-2, 2], of the blocks at PROFILE_RANKS. What does not fill a block is left out; an image smaller
    than one is continued by its last pixels.
    """
    wide = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    down, right = (max(BLOCK - side, 0) for side in wide.shape[-2:])
    wide = functional.pad(wide, (0, right, 0, down), mode="replicate")
    place = torch.arange(BLOCK, device=wide.device, dtype=wide.dtype)
    cosines = torch.cos(math.pi / BLOCK * (place + 0.5) * place[:, None]) * math.sqrt(2 / BLOCK)
    cosines[0] *= math.sqrt(0.5)
    power = (cosines @ wide.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK) @ cosines.T).square().flatten(2, 3)
    order = place[:, None] + place
    levels = []
    for low, high in pairwise(PROFILE_BANDS):
        level = torch.log10(power[..., (order >= low) & (order < high)].mean(-1) + SILENT)
        ranked = level.sort(-1).values
        levels.append(ranked[..., [round(rank * (ranked.shape[-1] - 1)) for rank in PROFILE_RANKS]])
    return (torch.stack(levels, 2) + 4) / 2


def mask_generator_from_published(path: str | Path) -> FrequencyMaskGenerator:
    """A mask generator with the weights of a published checkpoint, bare or under `params`, with or without `module.`.

    Read weights-only: no code of the file is run. Width, rings and blocks follow from the tensors; the number of images
    is 4, which they do not tell from the rings.

    Raises:
        CheckpointError: the file cannot be read, or it is no CFMG.
    """
    from ..backbone.checkpoint import check_keys, read_checkpoint

    state, _ = read_checkpoint(Path(path))
    state = {name: tensor for name, tensor in state.items() if not name.startswith(DEAD)}
    intro, last = state.get("intro.weight"), state.get("fclayer_last.weight")
    if intro is None or intro.ndim != 4 or intro.shape[1] != 7 or last is None or len(last) % 4:
        raise CheckpointError(
            f"{path} is not a frequency mask generator",
            "a checkpoint of the official CFMG: intro.weight over 7 channels, and fclayer_last for 4 images",
        )
    levels = _count(state, "encoders.")
    generator = FrequencyMaskGenerator(
        width=intro.shape[0],
        rings=len(last) // 4,
        encoder_blocks=[_count(state, f"encoders.{level}.") for level in range(levels)],
        middle_blocks=_count(state, "middle_blks."),
    )
    check_keys(generator.state_dict(), state, str(path), f"FrequencyMaskGenerator of width {generator.width}")
    generator.load_state_dict(state)
    return generator.eval()


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _drop_dead(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(tuple(prefix + dead for dead in DEAD))]:
        del state[name]
