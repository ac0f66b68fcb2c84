"""Small drawings of an analysis: bars of shares, and curves over frequency. Each set has a colour of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BELOW = 720, 280, 44, 34
_BAR = 90
COLOURS = 10
"""Sets beyond so many begin with the first colour again."""


def bar(share: float, place: int) -> str:
    """A share in [0, 1] of the set at `place`."""
    return (
        f'<svg class="share c{place % COLOURS}" viewBox="0 0 {_BAR} 10" width="{_BAR}" height="10" aria-hidden="true">'
        f'<rect width="{share * _BAR:.1f}" height="10"/></svg>'
    )


def key(labels: Sequence[str]) -> str:
    """Which colour is whose."""
    return " ".join(
        f'<svg class="key c{place % COLOURS}" viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">'
        f'<rect width="10" height="10"/></svg> {escape(label)}'
        for place, label in enumerate(labels)
    )


def curves(rings: Sequence[Sequence[float | None]], label: str) -> str:
    """A curve of dB for each set, over rings of equal width from 0 to 0.5 cycles a pixel."""
    values = [value for ring in rings for value in ring if value is not None]
    step = 10 if max(values) - min(values) > 15 else 5
    low, high = step * math.floor(min(values) / step), step * math.ceil(max(values) / step)
    high = high if high > low else low + step

    def x(frequency: float) -> float:
        return _LEFT + (_WIDTH - _LEFT) * frequency / 0.5

    def y(value: float) -> float:
        return (_HEIGHT - _BELOW) * (high - value) / (high - low) + 6

    shapes = []
    for line in range(low, high + 1, step):
        shapes.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(line):.1f}" y2="{y(line):.1f}"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{y(line) + 4:.1f}" text-anchor="end">{line} dB</text>')
    for tenth in range(6):
        anchor = "end" if tenth == 5 else "middle"
        shapes.append(f'<text x="{x(tenth / 10):.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{tenth / 10:g}</text>')
    for place, ring in enumerate(rings):
        points = [
            f"{x((number + 0.5) * 0.5 / len(ring)):.1f} {y(value):.1f}"
            for number, value in enumerate(ring)
            if value is not None
        ]
        shapes.append(f'<path class="c{place % COLOURS}" d="M{"L".join(points)}"/>')
    return (
        f'<svg class="curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(shapes)}</svg>"
    )
