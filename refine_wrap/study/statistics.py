"""What preferences say: strengths of Bradley and Terry, tests for several comparisons, agreement of raters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import RefineWrapError
from ..evaluation.statistics import CONFIDENCE, Interval

RESAMPLES = 2000
_STEPS = 500
_LONGEST_STEP = 1.0
_PRECISE = 1e-9
_BLOCK = 100
"""Resamples at a time: all at once would take gigabytes for many raters and images."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """An answer about two methods."""

    rater: str
    image: str
    methods: tuple[int, int]
    """Their numbers, the smaller first."""
    outcome: int
    """1: the first was preferred, -1: the second, 0: neither."""


@dataclass(frozen=True)
class Strengths:
    """Of methods, as logarithms: one that is stronger by d is preferred with probability 1 / (1 + exp(-d))."""

    values: list[float]
    """Their mean is 0."""
    intervals: list[Interval] | None
    """95%; None where `separable`, or where there is but one rater and one image."""
    separable: bool
    """Whether no finite strengths have the greatest likelihood: then a tie was added to each two methods."""
    ahead: list[list[bool]]
    """[one][other]: whether the 95% interval of how much one is stronger than the other lies above 0."""


def strengths(votes: Sequence[Vote], methods: int, seed: int = 0, resamples: int = RESAMPLES) -> Strengths:
    """Strengths with intervals by the percentile bootstrap over raters and over images, both at once.

    Answers of one rater are alike, and so are answers about one image: resampling answers would make the intervals too
    narrow (Owen 2007, "The pigeonhole bootstrap").

    Args:
        votes: one or more.
        methods: how many there are.
        seed, resamples: of the bootstrap.
    """
    table = _table(votes, methods)
    found, separable = bradley_terry(table.sum((0, 1)))
    draw = np.random.default_rng(seed)
    made = np.concatenate(
        [
            bradley_terry(_resampled(table, min(_BLOCK, resamples - start), draw))[0]
            for start in range(0, resamples, _BLOCK)
        ]
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(made, [tail, 100 - tail], axis=0)
    ahead = np.percentile(made[:, :, None] - made[:, None, :], tail, axis=0) > 0
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    known = not separable and max(table.shape[:2]) > 1
    return Strengths(found.tolist(), intervals if known else None, bool(separable), ahead.tolist())


def bradley_terry(wins: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Strengths of the greatest likelihood (Bradley and Terry 1952), by Newton's method.

    Where some methods never won against the others, there are no finite ones (Ford 1957): a tie of each two methods is
    added there.

    Args:
        wins: (..., methods, methods), how often the row was preferred to the column; a tie is half a win of both.

    Returns:
        (..., methods) logarithms with mean 0, and (...) where ties were added.

    Raises:
        RefineWrapError: it does not converge.
    """
    methods = wins.shape[-1]
    separable = ~_connected(wins)
    wins = wins + separable[..., None, None] * 0.5 * (1 - np.eye(methods))
    games = wins + wins.swapaxes(-1, -2)
    found: Array = np.zeros(wins.shape[:-1])
    for _ in range(_STEPS):
        share = 1 / (1 + np.exp(found[..., None, :] - found[..., :, None]))
        slope = (wins - games * share).sum(-1)
        if np.abs(slope).max() <= _PRECISE * games.max():
            return found - found.mean(-1, keepdims=True), separable
        bend = games * share * (1 - share)
        # The likelihood knows differences only: the added matrix holds the mean where it is.
        hessian = np.eye(methods) * bend.sum(-1)[..., None] - bend + 1 / methods
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        found = found + step * np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
    raise RefineWrapError(f"The strengths do not converge in {_STEPS} steps", "counts of preferences")


def _connected(wins: Array) -> npt.NDArray[np.bool_]:
    """Whether from each method a way of wins leads to each other."""
    methods = wins.shape[-1]
    reach = (wins > 0) | np.eye(methods, dtype=bool)
    for _ in range(methods.bit_length()):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return np.asarray(reach.all((-1, -2)))


def _table(votes: Sequence[Vote], methods: int) -> Array:
    """(raters, images, methods, methods) wins of the row against the column."""
    raters = {name: number for number, name in enumerate(sorted({vote.rater for vote in votes}))}
    images = {name: number for number, name in enumerate(sorted({vote.image for vote in votes}))}
    table: Array = np.zeros((len(raters), len(images), methods, methods))
    for vote in votes:
        one, other = vote.methods
        place = table[raters[vote.rater], images[vote.image]]
        place[one, other] += (1 + vote.outcome) / 2
        place[other, one] += (1 - vote.outcome) / 2
    return table


def _resampled(table: Array, times: int, draw: np.random.Generator) -> Array:
    """(times, methods, methods) wins, of raters and images each drawn as often as there are."""
    drawn = [draw.multinomial(count, np.full(count, 1 / count), size=times) for count in table.shape[:2]]
    by_rater = np.tensordot(drawn[0].astype(np.float64), table, axes=1)
    return np.einsum("ti,tixy->txy", drawn[1].astype(np.float64), by_rater)


def holm(values: Sequence[float]) -> list[float]:
    """p of several tests, corrected so that all of them together err in as few cases as one would (Holm 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [1.0] * len(values)
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


@dataclass(frozen=True)
class Agreement:
    """Of raters who answered the same trials."""

    trials: int
    """Trials that two raters or more have answered."""
    share: float
    """Of two raters' answers to a trial that are the same, in [0, 1]: the mean over trials."""
    kappa: float | None
    """Fleiss' kappa: 0 is chance, 1 is full agreement; None where all say "neither"."""


def agreement(votes: Sequence[Vote]) -> Agreement | None:
    """None where no two raters have answered the same trial."""
    counts: dict[tuple[str, tuple[int, int]], list[float]] = {}
    for vote in votes:
        counts.setdefault((vote.image, vote.methods), [0, 0, 0])[1 - vote.outcome] += 1
    several = np.array([own for own in counts.values() if sum(own) > 1])
    if not len(several):
        return None
    # Which of two methods is called the first means nothing: each trial counts in both orders.
    share, kappa = fleiss(np.concatenate([several, several[:, ::-1]]))
    return Agreement(len(several), share, kappa)


def fleiss(counts: Array) -> tuple[float, float | None]:
    """Mean agreement and kappa (Fleiss 1971); of subjects with other numbers of raters each, by their own number.

    Args:
        counts: (subjects, categories), how many raters have said what; two or more in all of each subject.

    Returns:
        The mean share of agreeing pairs of raters, and kappa; None where all are in one category.
    """
    raters = counts.sum(1)
    share = float(np.mean((counts * (counts - 1)).sum(1) / (raters * (raters - 1))))
    chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return share, None if chance == 1 else (share - chance) / (1 - chance)
