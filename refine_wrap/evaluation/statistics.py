"""A candidate against the baseline on the same images: how often it wins, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
RESAMPLES = 5000
TIE = 1e-6
"""Two numbers that differ by no more than this share of themselves are a tie."""

Figure = float | str
"""A number, or why there is none."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Versus:
    """A candidate against the baseline by one measure. Where only one of the two has a number, that one wins."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    """Of the images, in [0, 1]; a tie counts half."""
    win_rate_interval: Interval
    """95%: bootstrap over the images, or where all of them agree, the exact one of Clopper and Pearson."""
    sign_test: float
    """Two-sided p of as many wins or more if both were as likely, ties left out; 1 where there are only ties."""
    difference: float | None
    """Mean of candidate minus baseline, over the images where both are finite; None without any."""
    difference_interval: Interval | None
    """95%, bootstrap over the images; None where all differences are the same, or there is one."""
    finite: int
    """Images behind `difference`."""

    @property
    def images(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def verdict(self) -> str:
        """better or worse where interval and test agree: one half is not in the interval, and p is below 5%."""
        low, high = self.win_rate_interval
        if self.sign_test >= 1 - CONFIDENCE or low <= 0.5 <= high:
            return "undecided"
        return "better" if low > 0.5 else "worse"


def versus(
    candidate: Sequence[Figure],
    baseline: Sequence[Figure],
    *,
    higher_is_better: bool,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Versus | None:
    """Compare the numbers of the same images in the same order; None where no image has a number.

    Args:
        candidate, baseline: an image that has a number in neither is left out. `inf` is a number.
        higher_is_better: which of two numbers wins.
        seed, resamples: of the bootstrap (percentile method).
    """
    pairs = list(zip(candidate, baseline, strict=True))
    outcomes = [o for o in (outcome(a, b, higher_is_better) for a, b in pairs) if o is not None]
    if not outcomes:
        return None
    from scipy.stats import binomtest

    wins, losses = outcomes.count(1), outcomes.count(-1)
    scores = [(1 + o) / 2 for o in outcomes]
    differences = [
        float(a) - float(b)
        for a, b in pairs
        if isinstance(a, float) and isinstance(b, float) and math.isfinite(a) and math.isfinite(b)
    ]
    return Versus(
        wins=wins,
        ties=len(outcomes) - wins - losses,
        losses=losses,
        win_rate=sum(scores) / len(scores),
        win_rate_interval=bootstrap(scores, seed, resamples) or exact_interval(wins, losses),
        sign_test=float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        difference=math.fsum(differences) / len(differences) if differences else None,
        difference_interval=bootstrap(differences, seed, resamples),
        finite=len(differences),
    )


def outcome(candidate: Figure, baseline: Figure, higher_is_better: bool) -> int | None:
    """1: the candidate is better, -1: the baseline is, 0: a tie, None: neither has a number."""
    if isinstance(candidate, str):
        return None if isinstance(baseline, str) else -1
    if isinstance(baseline, str):
        return 1
    if math.isclose(candidate, baseline, rel_tol=TIE):
        return 0
    return 1 if (candidate > baseline) == higher_is_better else -1


def gain(candidate: Figure, baseline: Figure, higher_is_better: bool) -> float | None:
    """By how much the candidate is better; infinite where only one of the two has a number, None where none has."""
    won = outcome(candidate, baseline, higher_is_better)
    if not won:
        return won
    if isinstance(candidate, str) or isinstance(baseline, str):
        return won * math.inf
    return (candidate - baseline) * (1 if higher_is_better else -1)


def mean(figures: Sequence[Figure]) -> float | None:
    """Of the finite ones: one identical picture would make the mean PSNR infinite and hide the rest.

    `inf` where all numbers are infinite, None where there is no number.
    """
    numbers = [value for value in figures if isinstance(value, float)]
    finite = [value for value in numbers if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else numbers[0] if numbers else None


def bootstrap(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """95% interval of the mean by the percentile bootstrap; None where it says nothing: all values are the same."""
    if len(set(values)) < 2:
        return None
    import numpy as np
    from scipy.stats import bootstrap as resample

    # Blocks of resamples, or many images would take gigabytes.
    found = resample(
        (np.asarray(values),),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def exact_interval(wins: int, losses: int) -> Interval:
    """95% interval of the share of wins by Clopper and Pearson (1934); of none of either, everything is possible."""
    from scipy.stats import binomtest

    if wins + losses == 0:
        return 0.0, 1.0
    found = binomtest(wins, wins + losses).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)
