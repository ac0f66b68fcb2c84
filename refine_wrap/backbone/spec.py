"""What has to be known of a network to run it on any image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["rgb", "bgr"]
Tiling = Literal["exact", "approximate"]


@dataclass(frozen=True)
class Spec:
    """Capabilities of a restoration network, declared and never discovered by failing."""

    family: str
    """Name of the declared family, or of the class where nobody declared it."""
    scale: int = 1
    """Output pixels of a side for each input pixel."""
    multiple_of: int = 1
    """Both sides of the input must be multiples of this; also the grid that tiles keep to."""
    minimum: int = 1
    """Smallest side of the input."""
    channels: int = 3
    """Channels in and out: 3, or 1 for a grey network, which then runs on each of R, G and B."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """The network's values of black and white, in and out."""
    order: Order = "rgb"
    """Order of its channels."""
    half_ok: bool = False
    """Whether float16 is safe. bfloat16 is always allowed."""
    tiling: Tiling = "approximate"
    """exact: a tile whose halo covers the receptive field equals the whole. approximate: windows, global statistics."""
    tap: str | None = None
    """Name of the submodule whose output, (B, C, h, w), a quality head reads and steers."""
    quality: bool = False
    """Whether the network itself takes the wanted quality, (B,) in [0, 1], as its second argument."""
    square: bool = False
    """Whether the input must be square."""
    lora: tuple[str, ...] = (".*",)
    """Which linear and convolution layers LoRA is put on: regular expressions, each for the end of a layer's name, from
    its beginning or from a dot. ".*" is every layer that can take it."""

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size, at least (height, width), that the network accepts."""

        def fit(side: int) -> int:
            side = max(side, self.minimum)
            return side + -side % self.multiple_of

        height, width = fit(height), fit(width)
        return (max(height, width),) * 2 if self.square else (height, width)

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {**self.__dict__, "value_range": list(self.value_range), "lora": list(self.lora)}
