"""How far a tensor's elements reach into the input image, and which of its dimensions are space.

An element of a tensor at `jump` j stands for the cell [i*j, (i+1)*j) of input pixels along an axis, and depends on the
pixels of [i*j - before, (i+1)*j + after). A tile whose core is made of whole cells therefore needs a halo of
max(before, after) pixels. `before` and `after` are signed: a padding shifts them one way, the unpadded convolution
behind it shifts them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Factor = tuple[str, int]
"""A part of a dimension and its size: "Y" or "X" for image rows or columns, "y" or "x" for the places within one cell,
"" for others."""
Dim = tuple[Factor, ...]


@dataclass(frozen=True)
class Axis:
    """Reach along one axis of the image, in input pixels."""

    before: float = 0.0
    after: float = 0.0
    jump: float = 1.0

    def grown(self, before: float, after: float, jump: float) -> Axis:
        """The axis after an operation that reaches this much further, given in elements, onto cells of size `jump`."""
        return Axis(self.before + before * self.jump, self.after + after * self.jump, jump)

    def rescaled(self, jump: float) -> Axis:
        """The axis seen in cells of another size; an element of a smaller cell may depend on all of the larger one."""
        lost = max(0.0, self.jump - jump)
        return Axis(self.before + lost, self.after + lost, jump)

    def joined(self, other: Axis) -> Axis:
        """What depends on both, in this axis' cells."""
        other = other.rescaled(self.jump) if other.jump > self.jump else other
        return Axis(max(self.before, other.before), max(self.after, other.after), self.jump)


@dataclass(frozen=True)
class Reach:
    """What is known of one tensor: its reach along both axes, and what each of its dimensions is made of."""

    y: Axis
    x: Axis
    dims: tuple[Dim, ...]

    def labels(self, dim: int) -> str:
        """Labels of one dimension, such as "YX" for image tokens."""
        return "".join(label for label, size in self.dims[dim] if size > 1)

    def size(self, label: str) -> int:
        return math.prod(size for dim in self.dims for name, size in dim if name == label)

    def has(self, label: str) -> bool:
        return any(name == label for dim in self.dims for name, _ in dim)

    def axis(self, name: str) -> Axis:
        return self.y if name == "y" else self.x

    def with_axis(self, name: str, axis: Axis) -> Reach:
        return replace(self, y=axis) if name == "y" else replace(self, x=axis)

    def with_dims(self, dims: Sequence[Dim]) -> Reach:
        """The same elements seen as other dimensions: cells shrink or grow with the number of rows and columns."""
        new = replace(self, dims=tuple(dims))
        for label, name in (("Y", "y"), ("X", "x")):
            if self.has(label) and new.has(label):
                axis = self.axis(name)
                new = new.with_axis(name, axis.rescaled(axis.jump * self.size(label) / new.size(label)))
        return new

    def joined(self, other: Reach) -> Reach:
        """What depends on both, laid out as this one."""
        y, x = self.y, self.x
        # A tensor without rows (pooled statistics, a vector of weights) has no cells to compare.
        y = y.joined(other.y if other.has("Y") else replace(other.y, jump=min(y.jump, other.y.jump)))
        x = x.joined(other.x if other.has("X") else replace(other.x, jump=min(x.jump, other.x.jump)))
        return replace(self, y=y, x=x)

    @property
    def radius(self) -> float:
        return max(0.0, self.y.before, self.y.after, self.x.before, self.x.after)


def image_dims(shape: Sequence[int]) -> tuple[Dim, ...]:
    """Dimensions of (B, C, H, W), or of whatever else the shape looks most like: (B, tokens, C) for three
    dimensions."""
    if len(shape) == 4:
        return ((("", shape[0]),), (("", shape[1]),), (("Y", shape[2]),), (("X", shape[3]),))
    return tuple((("Y" if 0 < n < len(shape) - 1 else "", size),) for n, size in enumerate(shape))


def _normal(factors: Sequence[Factor]) -> Dim:
    """Rows followed by places within a row (or by what was a channel: a shuffle) are finer rows."""
    out: list[Factor] = []
    for label, size in factors:
        if out and out[-1][0] in ("Y", "X") and label in ("", out[-1][0].lower()):
            out[-1] = (out[-1][0], out[-1][1] * size)
        elif out and out[-1][0] == label:
            out[-1] = (label, out[-1][1] * size)
        else:
            out.append((label, size))
    return tuple(out)


def view_dims(dims: Sequence[Dim], shape: Sequence[int]) -> tuple[Dim, ...] | None:
    """Dimensions after a view to `shape`, or None where a new dimension cuts an old one at no whole factor."""
    waiting = [factor for dim in dims for factor in dim if factor[1] > 1]
    out: list[Dim] = []
    for wanted in shape:
        taken: list[Factor] = []
        while wanted > 1:
            if not waiting:
                return None
            label, size = waiting.pop(0)
            if size > wanted:
                if size % wanted:
                    return None
                waiting.insert(0, (label.lower(), size // wanted))
                size = wanted
            if wanted % size:
                return None
            wanted //= size
            taken.append((label, size))
        out.append(_normal(taken))
    return tuple(out) if not waiting else None


def resized(dim: Dim, size: int) -> Dim:
    """The dimension after a cut or a padding to `size`."""
    if len(dim) == 1:
        return ((dim[0][0], size),)
    label = next((label for label, _ in dim if label), "")
    return ((label, size),)


def window(kernel: int, stride: int, padding: int, dilation: int) -> tuple[float, float, float]:
    """(before, after, jump factor) of a convolution or pooling, in input elements."""
    return float(padding), float(dilation * (kernel - 1) - padding - (stride - 1)), float(stride)


def transposed_window(kernel: int, stride: int, padding: int, dilation: int) -> tuple[float, float, float]:
    """(before, after, jump factor) of a transposed convolution: the widest over its `stride` phases."""
    before, after = -math.inf, -math.inf
    for phase in range(stride):
        places = [phase + padding - dilation * tap for tap in range(kernel)]
        sources = [place // stride for place in places if place % stride == 0]
        if sources:
            before = max(before, phase / stride - min(sources))
            after = max(after, max(sources) + 1 - (phase + 1) / stride)
    return before, after, 1 / stride


def resampled(mode: str, ratio: float, count: int) -> tuple[float, float, float]:
    """(before, after, jump factor) of an interpolation; `ratio` is input size over output size.

    The places are those of torch.nn.functional.interpolate with align_corners=False.
    """
    ranges: dict[str, Callable[[int], tuple[int, int]]] = {
        "nearest": lambda o: (math.floor(o * ratio + 1e-6),) * 2,  # type: ignore[dict-item,return-value]
        "exact": lambda o: (math.floor((o + 0.5) * ratio + 1e-6),) * 2,  # type: ignore[dict-item,return-value]
        "bilinear": lambda o: _taps((o + 0.5) * ratio - 0.5, 0, 1),
        "bicubic": lambda o: _taps((o + 0.5) * ratio - 0.5, 1, 2),
        "bilinear_aa": lambda o: _support((o + 0.5) * ratio, max(1.0, ratio)),
        "bicubic_aa": lambda o: _support((o + 0.5) * ratio, 2 * max(1.0, ratio)),
    }
    before, after = -math.inf, -math.inf
    for place in range(max(1, min(count, 256))):
        low, high = ranges[mode](place)
        before, after = max(before, place * ratio - low), max(after, high + 1 - (place + 1) * ratio)
    return before, after, ratio


def _taps(source: float, left: int, right: int) -> tuple[int, int]:
    low = math.floor(source + 1e-6)
    return (low, low) if abs(source - low) < 1e-5 else (low - left, low + right)


def _support(centre: float, support: float) -> tuple[int, int]:
    return math.floor(centre - support + 0.5), math.floor(centre + support + 0.5) - 1
