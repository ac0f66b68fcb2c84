"""QualityHead: steers what a backbone is about to paint by the quality that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbone import Backbone
from ..errors import RefineWrapError
from ..naf import simple_gate

Blocks = Literal["convolution", "attention"]
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Beside the heads: a head with a lock inside could be neither copied nor pickled."""
EPS = 1e-6


class QualityEmbedding(nn.Module):
    """Quality in [0, 1], (B,) -> (B, width), continuous.

    It first climbs a ladder of ramps, of which a quality has gone up all below it: what a layer makes of it can rise
    with the quality step by step, with no bins to fall between. Paper 2 has ten bins instead, and no place for 1.0.
    """

    def __init__(self, width: int, ramps: int = 10) -> None:
        super().__init__()
        self.ramps = ramps
        self.mlp = nn.Sequential(nn.Linear(ramps, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, quality: Tensor) -> Tensor:
        steps = torch.arange(self.ramps, device=quality.device, dtype=quality.dtype)
        climbed = (quality[:, None] * self.ramps - steps).clamp(0, 1)
        embedded: Tensor = self.mlp(climbed.to(next(self.mlp.parameters()).dtype))
        return embedded


class Modulation(nn.Module):
    """`parts` planes (B, channels, 1, 1) from an embedded quality (B, width); zero when new."""

    def __init__(self, width: int, channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedded: Tensor) -> tuple[Tensor, ...]:
        return self.linear(embedded)[..., None, None].chunk(self.parts, 1)


class ConvolutionBlock(nn.Module):
    """A NAF-like block without pooling, so that tiles stay exact; its norm and its gate follow from the quality."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, channels, 3)
        self.inside = nn.Conv2d(channels, 2 * channels, 1)
        self.around = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.outside = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(embedded)
        y = normed(x)[0] * (1 + scale) + shift
        return x + gate * self.outside(simple_gate(self.around(self.inside(y))))


class AttentionBlock(nn.Module):
    """A transformer block over windows; the norms and gates of attention and MLP follow from the quality (adaLN-zero,
    arXiv 2212.09748)."""

    def __init__(self, channels: int, width: int, window: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.modulation = Modulation(width, channels, 6)
        self.position = nn.Parameter(torch.zeros(1, channels, window, window))
        self.qkv, self.project = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedded)
        x = x + gate1 * self._attend(normed(x)[0] * (1 + scale1) + shift1)
        mixed: Tensor = self.mlp(normed(x)[0] * (1 + scale2) + shift2)
        return x + gate2 * mixed

    def _attend(self, x: Tensor) -> Tensor:
        from einops import rearrange

        side, (height, width) = self.window, x.shape[-2:]
        x = F.pad(x, (0, -width % side, 0, -height % side), mode="replicate")
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        qkv = self.qkv(x + self.position.repeat(1, 1, rows, columns))
        sizes = {"three": 3, "n": self.heads, "wy": side, "wx": side}
        q, k, v = rearrange(qkv, "b (three n d) (y wy) (x wx) -> three (b y x) n (wy wx) d", **sizes)
        y = F.scaled_dot_product_attention(q, k, v)
        sizes = {"y": rows, "x": columns, "wy": side, "wx": side}
        y = rearrange(y, "(b y x) n (wy wx) d -> b (n d) (y wy) (x wx)", **sizes)
        projected: Tensor = self.project(y[..., :height, :width])
        return projected


class QualityHead(nn.Module):
    """A residual for a backbone's features, from these and the wanted quality. Exactly zero when new.

    Source: the quality condition of "Image Quality Prior" (arXiv 2603.29773, 3.3), on any network and any size.

    Args:
        channels: C of the features.
        width: channels inside, and of the embedded quality; a multiple of 4.
        depth: how many blocks.
        blocks: convolution: tiles stay exact. attention: over windows of 8x8 features.
    """

    def __init__(self, channels: int, width: int = 32, depth: int = 3, blocks: Blocks = "convolution") -> None:
        super().__init__()
        if channels < 1 or width < 4 or width % 4 or depth < 0 or blocks not in ("convolution", "attention"):
            raise RefineWrapError(
                f"QualityHead got channels={channels}, width={width}, depth={depth}, blocks={blocks!r}",
                "at least one channel, width a multiple of 4, no negative depth, convolution or attention",
            )
        self.channels, self.width, self.depth, self.blocks_kind = channels, width, depth, blocks
        self.embedding = QualityEmbedding(width)
        self.intro = nn.Conv2d(channels, width, 1)
        block = ConvolutionBlock if blocks == "convolution" else AttentionBlock
        self.blocks = nn.ModuleList(block(width, width) for _ in range(depth))
        self.outro = nn.Conv2d(width, channels, 1)
        self.gate = Modulation(width, channels, 1)
        self.image_by_image = False
        """Whether the backbone runs each channel of an image by itself, one after the other."""
        self.wanted: Tensor | None = None
        """(B,), while a backbone runs that is to be steered; None leaves it alone."""
        self.learns = False
        """Whether it was trained when a backbone was steered last."""
        self.tap: str | None = None
        """The submodule that it was attached to last, by name."""

    @property
    def exact_tiles(self) -> bool:
        """Whether a tile with a wide enough halo equals the same part of the whole image."""
        return self.blocks_kind == "convolution"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"channels": self.channels, "width": self.width, "depth": self.depth, "blocks": self.blocks_kind}

    def forward(self, features: Tensor, quality: Tensor) -> Tensor:
        """The residual.

        Args:
            features: (B, C, h, w), of any size and range: each position is normed, and the residual is in its units.
            quality: (B,) in [0, 1].

        Returns:
            (B, C, h, w), in the type of the features.
        """
        embedded = self.embedding(quality)
        x, deviation = normed(features.to(self.intro.weight.dtype))
        x = self.intro(x)
        for block in self.blocks:
            x = block(x, embedded)
        residual: Tensor = self.gate(embedded)[0] * self.outro(x) * deviation
        return residual.to(features.dtype)

    def lock(self) -> Any:
        """Of this head, for the time that `wanted` is set."""
        return _locks.setdefault(self, RLock())

    def attach(self, backbone: Backbone) -> RemovableHandle:
        """Steer the backbone's tapped features from now on, whenever `wanted` is set; the handle takes it off again.

        The hook is a method of this module, so that a copy of a backbone with its head is steered by the copied head.
        A head that is on already is put on anew.

        Raises:
            RefineWrapError: there is no tap, or the backbone is compiled: its graph would not know of the head.
        """
        if any(isinstance(module, torch.jit.ScriptModule) for module in backbone.modules()):
            raise RefineWrapError(
                "The backbone is a traced or scripted copy, which is not steered", "the network that it was made of"
            )
        compiled = ("_compiled_call_impl", "_orig_mod")
        if any(getattr(module, name, None) is not None for module in backbone.modules() for name in compiled):
            raise RefineWrapError("The backbone is compiled already", "a head first, then torch.compile")
        self.detach(backbone)
        self.image_by_image, self.tap = backbone.spec.channels == 1, backbone.spec.tap
        return tapped(backbone).register_forward_hook(self._steer)

    def detach(self, backbone: Backbone) -> None:
        """Take this head off a backbone."""
        take_off(backbone, lambda head: head is self)

    def _steer(self, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        # A checkpointed region runs without gradients first, or once more in backward, when nobody asks for a quality.
        if self.learns and (_in_backward() if self.wanted is None else not torch.is_grad_enabled()):
            raise RefineWrapError(
                f"The tapped {type(module).__name__} is inside a checkpointed region (or runs without gradients)",
                "a tap that runs once, with gradients",
                "switch activation checkpointing off, or tap another module: Backbone(network, spec={'tap': name})",
            )
        if self.wanted is None:
            return None
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] != self.channels:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise RefineWrapError(
                f"The tapped {type(module).__name__} gives {got}", f"features (B, {self.channels}, h, w), for this head"
            )
        steered: Tensor = output + self(output, self._wanted_of(len(output), type(module).__name__))
        return steered

    def _wanted_of(self, maps: int, name: str) -> Tensor:
        """The quality of each of the maps that the tapped module gives, (maps,)."""
        assert self.wanted is not None
        images = len(self.wanted)
        if maps == images or (self.image_by_image and maps == 3 * images):
            return self.wanted.repeat_interleave(maps // images)
        if images > 1 and not bool((self.wanted == self.wanted[0]).all()):
            raise RefineWrapError(
                f"The tapped {name} gives {maps} maps for {images} images",
                "one for each image: in which order others come is not known",
                "one quality for all, or one image at a time (in training train.batch_size: 1), or tap another module: "
                "Backbone(network, spec={'tap': name})",
            )
        return self.wanted[:1].expand(maps)


def _in_backward() -> bool:
    # As torch.utils.checkpoint asks it; there is no public way.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def normed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each position of (B, C, h, w) with mean 0 and deviation 1 over its channels, and the deviation (B, 1, h, w)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = wide - wide.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + EPS).sqrt()
    return (centred / deviation).to(x.dtype), deviation.to(x.dtype)


def take_off(backbone: Backbone, which: Callable[[QualityHead], bool] = lambda head: True) -> None:
    """Take heads off a backbone, all unless told which: nothing of them is left in it."""
    for module in backbone.modules():
        for key, hook in list(module._forward_hooks.items()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, QualityHead) and which(owner):
                del module._forward_hooks[key]


def tapped(backbone: Backbone) -> nn.Module:
    """The module whose output a head reads and steers.

    Raises:
        RefineWrapError: none is declared, and none was found.
    """
    if backbone.spec.tap is None:
        raise RefineWrapError(
            f"{backbone.spec.family} has no features that a quality head could steer",
            "a tap: the name of a submodule whose output is (B, C, h, w)",
            "Backbone(network, spec={'tap': name}), or a refiner that knows quality: refiner={'quality': True}",
        )
    found = dict(backbone.module.named_modules()).get(backbone.spec.tap)
    if found is None:
        came = f"{type(backbone.module).__name__} has no submodule {backbone.spec.tap!r} to steer"
        raise RefineWrapError(came, "the network that the head was made for")
    return found


@torch.no_grad()
def tap_channels(backbone: Backbone) -> int:
    """How many channels the tapped features have, by running the backbone once on a small picture.

    Raises:
        RefineWrapError: there is no tap, it does not run, or it gives no (B, C, h, w).
    """
    seen: list[Any] = []
    handle = tapped(backbone).register_forward_hook(lambda module, inputs, output: seen.append(output))
    was_training = {module: module.training for module in backbone.modules()}
    side = max(backbone.spec.minimum, backbone.spec.multiple_of, 16)
    backbone.eval()
    try:
        backbone(torch.zeros(1, 3, side, side, device=backbone.device))
    finally:
        handle.remove()
        for module, mode in was_training.items():
            module.training = mode
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        got = type(seen[0]).__name__ if seen else "nothing"
        raise RefineWrapError(f"The tap {backbone.spec.tap} gives {got}", "features (B, C, h, w)", "tap another module")
    return int(seen[0].shape[1])


def build_head(head: bool | Mapping[str, Any] | nn.Module, backbone: Backbone) -> QualityHead:
    """A head for a backbone: from True, from options of `QualityHead` (its channels are found), or as it is."""
    if isinstance(head, QualityHead):
        return head
    if head is not True and not isinstance(head, Mapping):
        raise RefineWrapError(f"quality_head is {head!r}", "True, options of QualityHead, one, or None")
    options = {} if head is True else dict(head)
    channels = options.pop("channels", None) or tap_channels(backbone)
    try:
        return QualityHead(channels=channels, **options)
    except TypeError as error:
        raise RefineWrapError(f"QualityHead cannot be built: {error}", "the arguments that it documents") from None
