"""The mask generator: how much of each image goes into the enhanced ground truth, frequency by frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, RefineWrapError
from ..naf import NAFBlock, pad_to_multiple
from ..refiner import Strength, strength_plane

DEAD = ("ending.", "mask_height", "mask_width")
"""Keys of official checkpoints that nothing is computed from."""
ROWS = 2**20
"""Values of ring functions that are in memory at once; more come in blocks of rows."""
LEAN = 2.0
"""By how much an untrained generator leans to the ground truth, in logits of its coefficients."""
PROFILE_BANDS = 16
"""Bands of frequency in a `power_profile`: all of them are filled from 32 pixels up."""
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
        profile: the coefficients follow from the image's `power_profile` too, in which blur and noise show at any
            size. Official checkpoints are without: the mean over their features does not know where in the spectrum
            they were.
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
        self.profile = (
            nn.Sequential(
                nn.Linear(3 * PROFILE_BANDS + 1, 4 * PROFILE_BANDS), nn.GELU(), nn.Linear(4 * PROFILE_BANDS, inside)
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
        x = self.intro(torch.cat((padded, log_spectrum(padded), level), 1).to(self.intro.weight.dtype))
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = down(encoder(x))
        x = self.middle_blks(x).mean((2, 3))
        if self.profile is not None:
            seen = torch.cat((power_profile(image).flatten(1), plane[..., 0, 0]), 1)
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


def power_profile(image: Tensor) -> Tensor:
    """How strong an image is in each band of frequency, whatever its size: (B, 3, H, W) -> (B, 3, PROFILE_BANDS).

    log10 of the mean power |FFT|^2 / (H W) of a frequency in the band, scaled to about [-1, 1]; the mean colour is left
    out. The bands are equally wide from 0 to half a cycle a pixel; the corners of the plane count to the last one. A
    band that an image is too small for has the power of the one below.
    """
    wide = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    height, width = wide.shape[-2:]
    power = torch.fft.rfft2(wide - wide.mean((-2, -1), keepdim=True)).abs().square() / (height * width)
    down, across = (
        line(side, device=wide.device, dtype=wide.dtype)
        for line, side in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width))
    )
    radius = torch.hypot(down[:, None], across[None])
    band = (radius * (2 * PROFILE_BANDS)).long().clamp_(max=PROFILE_BANDS - 1).flatten()
    # In half a plane, all columns but that of frequency 0 and, of an even side, the last stand for two.
    times = wide.new_full((len(across),), 2)
    times[0] = 1
    times[width // 2] = 1 if width % 2 == 0 else 2
    counts = wide.new_zeros(PROFILE_BANDS).index_add_(0, band, times.expand(height, -1).flatten())
    sums = wide.new_zeros(*wide.shape[:2], PROFILE_BANDS).index_add_(2, band, (power * times).flatten(2))
    means = list((sums / counts.clamp(min=1)).unbind(2))
    for index in range(1, PROFILE_BANDS):
        if not counts[index]:
            means[index] = means[index - 1]
    return (torch.log10(torch.stack(means, 2) + SILENT) + 3) / 3


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
