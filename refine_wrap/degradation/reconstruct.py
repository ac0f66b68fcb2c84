"""Undertrained networks as a degradation: paper 3, with cures for what it names as causes of failure.

Colour shift: colours are matched, and a bound on the difference holds for each picture. One seed decides: each picture
takes one of several networks. The same thing gets the same degradation: it is shown to the network turned and moved,
and mixed in a drawn strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .colour import matched, mean_delta_e, to_lab
from .rounding import as_float, to_8bit
from .scene import Drawn, drawn_from
from .settings import Degradation, Reconstruct

if TYPE_CHECKING:
    from ..reconstruction import Reconstructor

Floats = npt.NDArray[Any]
TILE, HALO = 1024, 128
"""Sides of what a network is shown at once, in pixels; VQ-VAE-2 takes about 350 bytes for each."""
MOST_SHIFT = 16
"""Cells beyond that are whole tiles, where a shift changes little."""
_TRIALS, _CLOSE = 12, 0.95
"""Of the search for the largest strength within the bound: how many at most, and what share of the bound will do."""


def load_networks(settings: Degradation) -> dict[str, Reconstructor]:
    """The reconstructors that a degradation names, by these names, on the CPU; {} where it names none.

    Raises:
        CheckpointError: there is none of that name, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    names = settings.checkpoints()
    if not names:
        return {}
    from ..reconstruction import load_reconstructor

    return {name: load_reconstructor(name).requires_grad_(False) for name in names}


def sealed(settings: Degradation, networks: Mapping[str, Reconstructor]) -> Degradation:
    """The same with a digest of each reconstructor in place of its name: what its pictures depend on, and no paths."""
    digests = {name: network.digest() for name, network in networks.items()}

    def stage(one: Degradation) -> Degradation:
        part = one.reconstruct
        if part is not None:
            part = part.model_copy(update={"checkpoints": [digests[name] for name in part.checkpoints]})
        return one.model_copy(
            update={"reconstruct": part, "then": list(map(stage, one.then)), "also": list(map(stage, one.also))}
        )

    return stage(settings)


def painted_again(
    image: Floats,
    settings: Reconstruct,
    networks: Mapping[str, Reconstructor],
    rng: np.random.Generator,
    drawn: Drawn | None = None,
) -> Floats:
    """A picture as an undertrained network paints it, at a drawn strength.

    Pictures go through the network one by one: in a batch, some would differ in the last bit from what they are alone.

    Args:
        image: (H, W, 3) float32 about [0, 1]; it is clamped.
        settings: what is drawn.
        networks: by the names of `settings.checkpoints`.
        rng: the only source of chance.
        drawn: gets the number of the checkpoint, the strength that was drawn and the one that was used, and the mean
            CIEDE2000 to the picture as it came at both.

    Returns:
        (H, W, 3) float32, 8 bits in [0, 1].

    Raises:
        ImageError: what the network gives is not finite.
    """
    number = int(rng.integers(len(settings.checkpoints)))
    network, strength = networks[settings.checkpoints[number]], drawn_from(settings.strength, rng)
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    shift = rng.random(2) * min(network.stride, MOST_SHIFT)
    image = np.clip(image, 0, 1)
    shown = image
    if settings.vary:
        down, right = (int(each) for each in shift)
        shown = np.rot90(image[:, ::-1] if mirror else image, turns)
        shown = np.pad(shown, ((down, 0), (right, 0), (0, 0)), mode="edge")
    painted = _painted(shown, network, settings.half_range)
    if settings.vary:
        painted = np.rot90(painted[down:, right:], -turns)
        painted = painted[:, ::-1] if mirror else painted
    change = matched(np.ascontiguousarray(painted), image, settings.match) - image
    made = to_8bit(image + np.float32(strength) * change)
    used = strength
    if settings.max_delta_e is not None or drawn is not None:
        lab = to_lab(to_8bit(image))
        before = after = mean_delta_e(made, lab)
        if settings.max_delta_e is not None and before > settings.max_delta_e:
            made, used, after = _within(image, change, lab, (strength, before), settings.max_delta_e)
        if drawn is not None:
            drawn |= {"checkpoint": number, "strength": strength, "used": used, "delta_e": [before, after]}
            drawn |= {"turns": turns, "mirrored": mirror, "shift": [down, right]} if settings.vary else {}
    return as_float(made)


def _painted(image: Floats, network: Reconstructor, half_range: bool) -> Floats:
    """(H, W, 3) in [0, 1], in tiles where it is large: their seams lie where the network hardly sees."""
    import torch

    from ..tiling import run_tiles

    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    whole = torch.empty_like(planes)
    height, width = image.shape[:2]

    def write(top: int, left: int, part: torch.Tensor) -> None:
        whole[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part

    run_tiles(
        lambda part: network.reconstruct(part, half_range=half_range),
        lambda top, left, high, wide: planes[..., top : top + high, left : left + wide],
        write,
        height=height,
        width=width,
        tile=TILE if max(height, width) > TILE else None,
        halo=HALO,
        multiple_of=network.stride,
    )
    return whole[0].numpy().transpose(1, 2, 0)


def _within(
    image: Floats, change: Floats, lab: Floats, highest: tuple[float, float], bound: float
) -> tuple[npt.NDArray[np.uint8], float, float]:
    """The picture at the largest strength, about, whose difference is within the bound; that strength and difference.

    Args:
        image, change: (H, W, 3) float32; at strength s it is `image + s * change`.
        lab: of the image, rounded.
        highest: a strength that is too much, and its difference.
    """
    made, low, high = to_8bit(image), (0.0, 0.0), highest
    for _ in range(_TRIALS):
        if low[1] >= _CLOSE * bound:
            break
        # Along the line through both ends, which is nearly the curve; a little below the bound.
        share = ((1 + _CLOSE) / 2 * bound - low[1]) / (high[1] - low[1])
        strength = low[0] + (high[0] - low[0]) * min(max(share, 0.05), 0.95)
        tried = to_8bit(image + np.float32(strength) * change)
        difference = mean_delta_e(tried, lab)
        if difference <= bound:
            made, low = tried, (strength, difference)
        else:
            high = (strength, difference)
    return made, low[0], low[1]
