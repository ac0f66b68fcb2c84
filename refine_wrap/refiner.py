"""The refiner: ORNet and its presets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckpointError, ImageError, RefineWrapError
from .naf import NAFBlock, cpu_layout, pad_to_multiple

Strength = float | Tensor
QUALITY = 0.9
"""The quality that is asked for where none is named."""

PRESETS: dict[str, dict[str, Any]] = {
    # 1.2 of paper 1's code: 17.9 M parameters, 295 kMAC a pixel.
    "ornet": {"width": 64},
    "ornet-small": {"width": 32},
    # Ours: a quarter of the pixels, no pooling (tiles are exact), 0.46 M parameters, under 6% of ornet's MACs.
    "ornet-lite": {
        "width": 32,
        "encoder_blocks": (1, 2),
        "middle_blocks": 2,
        "decoder_blocks": (2, 1),
        "unshuffle": 2,
        "channel_attention": False,
    },
}
DEFAULT_PRESET = "ornet-lite"


class ORNet(nn.Module):
    """Output refinement net of "Beyond the Ground Truth" (arXiv 2512.03932), steered by a strength.

    The state dict of the official ORNet loads strictly. Unlike there, the last convolution starts at zero, so that an
    untrained net returns its input exactly.

    Args:
        width: channels at the first level; each level down doubles them.
        encoder_blocks: NAF blocks at each level on the way down; its length is the number of levels.
        middle_blocks: NAF blocks at the lowest level.
        decoder_blocks: NAF blocks at each level on the way up, as many levels as `encoder_blocks`.
        unshuffle: pixels of a side that are folded into channels before the first level (1: none, as official).
        channel_attention: the blocks' pooled attention, as official. Without it the net sees a bounded
            neighbourhood and tiles are exact.
        train_size: None pools over the whole image, as official. A number, the side of the training crops in pixels,
            pools over windows of that size at every level, so that large images meet the statistics of training
            (local pooling, Chu et al., ECCV 2022). Not for checkpoints that were made with global pooling.
        quality: whether the net takes the wanted quality in too, as a plane beside the strength.
    """

    def __init__(
        self,
        width: int = 64,
        encoder_blocks: Sequence[int] = (1, 1, 1, 1),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
        unshuffle: int = 1,
        channel_attention: bool = True,
        train_size: int | None = None,
        quality: bool = False,
    ) -> None:
        super().__init__()
        if len(encoder_blocks) != len(decoder_blocks):
            raise RefineWrapError(
                f"ORNet got {len(encoder_blocks)} encoder levels and {len(decoder_blocks)} decoder levels",
                "as many of one as of the other",
            )
        if width < 1 or unshuffle < 1 or min([*encoder_blocks, *decoder_blocks, middle_blocks], default=0) < 0:
            raise RefineWrapError(
                f"ORNet got width={width}, unshuffle={unshuffle}, blocks {tuple(encoder_blocks)}, {middle_blocks}, "
                f"{tuple(decoder_blocks)}",
                "width and unshuffle of at least 1, no negative number of blocks",
            )
        levels = len(encoder_blocks)
        if train_size is not None and train_size < unshuffle * 2**levels:
            raise RefineWrapError(
                f"train_size={train_size} is smaller than one pixel of the lowest level",
                f"the side of the training crops, at least {unshuffle * 2**levels} pixels",
            )
        self.width, self.unshuffle = width, unshuffle
        self.channel_attention, self.train_size, self.quality = channel_attention, train_size, quality
        self.block_counts = (tuple(encoder_blocks), middle_blocks, tuple(decoder_blocks))
        self.multiple_of = unshuffle * 2**levels

        def blocks(count: int, level: int) -> nn.Sequential:
            pool = None if train_size is None else max(1, train_size // (unshuffle * 2**level))
            return nn.Sequential(*(NAFBlock(width * 2**level, channel_attention, pool) for _ in range(count)))

        self.intro = nn.Conv2d((5 if quality else 4) * unshuffle**2, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3 * unshuffle**2, 3, padding=1)
        nn.init.zeros_(self.ending.weight)
        nn.init.zeros_(self.ending.bias)  # type: ignore[arg-type]
        self.encoders = nn.ModuleList(blocks(n, level) for level, n in enumerate(encoder_blocks))
        self.downs = nn.ModuleList(
            nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 2, 2) for level in range(levels)
        )
        self.middle_blks = blocks(middle_blocks, levels)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 1, bias=False), nn.PixelShuffle(2))
            for level in range(levels, 0, -1)
        )
        self.decoders = nn.ModuleList(blocks(n, levels - 1 - i) for i, n in enumerate(decoder_blocks))

    @property
    def exact_tiles(self) -> bool:
        """Whether a tile with a wide enough halo equals the same part of the whole image (no pooling in the net)."""
        return not self.channel_attention

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        encoder, middle, decoder = self.block_counts
        return {
            "width": self.width,
            "encoder_blocks": list(encoder),
            "middle_blocks": middle,
            "decoder_blocks": list(decoder),
            "unshuffle": self.unshuffle,
            "channel_attention": self.channel_attention,
            "train_size": self.train_size,
            "quality": self.quality,
        }

    def forward(self, image: Tensor, strength: Strength = 0.3, quality: Strength | None = None) -> Tensor:
        """Refine a restored image.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], any size from 1x1 up, any floating type.
            strength: in [0, 1]; a number, a (B,) tensor, or a (B, 1, H, W) map. 0 keeps fidelity, 1 asks for detail.
            quality: the wanted quality in [0, 1], a number or a (B,) tensor; None: 0.9. A net that was made without it
                does not look at it.

        Returns:
            (B, 3, H, W) in the type of `image`, not clamped.
        """
        height, width = image.shape[-2:]
        weight = self.intro.weight
        planes = [strength_plane(strength, image)]
        if self.quality:
            planes.append(strength_plane(QUALITY if quality is None else quality, image, "quality"))
        plane = torch.cat(planes, 1)
        x = pad_to_multiple(image, self.multiple_of)
        plane = F.pad(plane, (0, x.shape[-1] - width, 0, x.shape[-2] - height), mode="replicate")
        x = torch.cat([x, plane], dim=1).to(weight.dtype)
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.intro(cpu_layout(x))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        x = self.ending(x)
        if self.unshuffle > 1:
            x = F.pixel_shuffle(x, self.unshuffle)
        return image + x[..., :height, :width].to(image.dtype)


def ornet_from_published(path: str | Path) -> ORNet:
    """An ORNet with the weights of a published checkpoint, bare or under `params`, with or without `module.`.

    Read weights-only: no code of the file is run. Width and blocks follow from the tensors.

    Raises:
        CheckpointError: the file cannot be read, or it is not an ORNet.
    """
    from .backbone.checkpoint import check_keys, read_checkpoint

    state, _ = read_checkpoint(Path(path))
    intro = state.get("intro.weight")
    if intro is None or intro.ndim != 4 or intro.shape[1] != 4:
        raise CheckpointError(
            f"{path} is not an ORNet: "
            + ("it has no intro.weight" if intro is None else f"intro.weight is {tuple(intro.shape)}"),
            "a checkpoint of the official ORNet, whose first convolution takes RGB and the strength",
        )

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    levels = count("encoders.")
    refiner = ORNet(
        width=intro.shape[0],
        encoder_blocks=[count(f"encoders.{level}.") for level in range(levels)],
        middle_blocks=count("middle_blks."),
        decoder_blocks=[count(f"decoders.{level}.") for level in range(levels)],
    )
    check_keys(refiner.state_dict(), state, str(path), f"ORNet of width {refiner.width}")
    refiner.load_state_dict(state)
    return refiner


def strength_plane(strength: Strength, image: Tensor, name: str = "strength") -> Tensor:
    """The strength as a (B, 1, H, W) plane for `image` (B, 3, H, W), checked for shape and for [0, 1].

    `name` is what it is called where it is refused.
    """
    batch, _, height, width = image.shape
    if not isinstance(strength, Tensor):
        if not 0 <= strength <= 1:  # also catches NaN
            raise ImageError(f"{name} is {strength}", "a number in [0, 1]")
        return image.new_full((1, 1, 1, 1), float(strength)).expand(batch, 1, height, width)
    if strength.ndim == 0:
        strength = strength.reshape(1)
    if strength.shape in {(batch,), (1,)}:
        plane = strength.reshape(-1, 1, 1, 1)
    elif strength.shape in {(batch, 1, height, width), (1, 1, height, width)}:
        plane = strength
    else:
        raise ImageError(
            f"{name} has shape {tuple(strength.shape)} for an image of {tuple(image.shape)}",
            f"a number, ({batch},) or ({batch}, 1, {height}, {width})",
        )
    check_dial(plane, name)
    return plane.to(image).expand(batch, 1, height, width)


def check_dial(values: Tensor, name: str) -> None:
    """Refuse values outside [0, 1], where looking costs nothing.

    Raises:
        ImageError: with the name and the range.
    """
    # Reading values back would break a compiled graph and stall a GPU.
    if (
        not torch.compiler.is_compiling()
        and values.device.type == "cpu"
        and not bool(((values >= 0) & (values <= 1)).all())
    ):
        raise ImageError(f"{name} goes from {values.min():.3g} to {values.max():.3g}", "values in [0, 1]")


def build_refiner(refiner: str | Mapping[str, Any] | nn.Module) -> nn.Module:
    """A refiner from a preset's name, from `ORNet.config()` (with an optional "preset" to start from), or as it is."""
    if isinstance(refiner, nn.Module):
        return refiner
    options = {"preset": refiner} if isinstance(refiner, str) else dict(refiner)
    preset = options.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, 1)
        raise RefineWrapError(
            f"There is no refiner preset {preset!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            f"one of {', '.join(PRESETS)}",
        )
    try:
        return ORNet(**{**(PRESETS[preset] if preset else {}), **options})
    except TypeError as error:
        raise RefineWrapError(f"ORNet cannot be built: {error}", "the arguments that ORNet documents") from None
