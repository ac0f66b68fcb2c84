"""The bands of a picture as a small drawing: where each comes from, and how strong it became."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..supervision.change import SIZES

_STEP, _TALL, _LOW = 14, 26, 16


def drawing(weights: Sequence[Sequence[float]], gains: Sequence[float | None], images: Sequence[str]) -> str:
    """Bars for each band: above, the weights of the images on top of one another; below, the gain around its line."""
    shapes = []
    for band in range(len(SIZES)):
        top = 0.0
        for image in reversed(range(len(weights))):
            tall = weights[image][band] * _TALL
            shapes.append(_bar(f"i{min(image, 3)}", band, top, tall))
            top += tall
        gain = gains[band]
        if gain is not None:
            tall = max(-1.0, min(1.0, math.log2(max(gain, 1e-6)))) * _LOW / 2
            middle = _TALL + 2 + _LOW / 2
            shapes.append(_bar("more" if tall > 0 else "less", band, middle - max(tall, 0), abs(tall)))
    width, height = _STEP * len(SIZES), _TALL + 2 + _LOW
    shapes.append(f'<path class="as-it-was" d="M0 {_TALL + 2 + _LOW / 2:g}h{width}"/>')
    shares = "; ".join(f"{name} {' '.join(f'{w:.0%}' for w in own)}" for name, own in zip(images, weights, strict=True))
    label = f"From large to small detail: {shares}; strength {in_figures(gains)}"
    return (
        f'<svg class="bands" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )


def _bar(kind: str, band: int, top: float, tall: float) -> str:
    return f'<rect class="{kind}" x="{band * _STEP}" y="{top:.1f}" width="{_STEP - 2}" height="{tall:.1f}"/>'


def in_figures(gains: Sequence[float | None]) -> str:
    return " ".join(number(gain) for gain in gains)


def legend(images: Sequence[str]) -> str:
    marks = (
        f'<svg class="bands" viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">'
        f'<rect class="i{min(image, 3)}" width="10" height="10"/></svg> {escape(name)}'
        for image, name in enumerate(images)
    )
    return " ".join(marks)


def number(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
