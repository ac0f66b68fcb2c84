"""What raters preferred: rates, tests, a ranking, and whether there is a winner."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from ..errors import DataError, check_share
from ..evaluation.statistics import CONFIDENCE, Interval, exact_interval
from ..folder import PathLike, atomic_path
from ..resources import versions
from .formats import Key, Results, read_results
from .statistics import RESAMPLES, Agreement, Strengths, Vote, agreement, holm, strengths

FORMAT = 1
"""Version of the JSON."""
MAX_FAILED = 0.2
"""Share of the catch trials above which who failed them is left out."""

RULES = {
    "rate": "the share of preferences that went to the first; ties are left out",
    "interval": "95%, Clopper and Pearson, as if each answer were independent of the others",
    "test": "two-sided sign test without ties, as if they were independent, corrected by Holm for all pairs of methods",
    "strength": "Bradley-Terry, natural logarithm, mean 0, maximum likelihood; a tie is half a win of both",
    "strength_interval": "95%, percentile bootstrap over raters and images at once",
    "significant": "the corrected p is below 0.05, and the bootstrap interval of the difference in strength lies on "
    "the same side, since answers of one rater, and about one image, are alike",
    "winner": "who is preferred significantly to each other method",
    "agreement": "Fleiss' kappa over trials that several raters answered, each counted in both orders of its methods",
}


@dataclass(frozen=True)
class Rater:
    """One who answered."""

    name: str
    answers: int
    """About pairs of methods."""
    asked: int
    """Trials in the order that the rater met, with catch trials."""
    catches: int
    """Catch trials that were answered."""
    failed: int
    """Of these, where the damaged copy, or neither, was preferred."""
    seconds: float | None
    """Median time of an answer."""
    left_out: bool

    @property
    def failed_share(self) -> float | None:
        """In [0, 1]; None without catch trials."""
        return self.failed / self.catches if self.catches else None


@dataclass(frozen=True)
class Pair:
    """Two methods that raters compared."""

    first: str
    second: str
    wins: int
    """Of the first."""
    losses: int
    ties: int
    rate: float | None
    """Share of wins, in [0, 1], ties left out; None where there are only ties."""
    interval: Interval
    p: float
    corrected: float
    """p after Holm."""
    confirmed: bool
    """Whether the one with more wins is the stronger one by its bootstrap interval too."""

    @property
    def verdict(self) -> str:
        """The method that was preferred significantly, or undecided."""
        if self.corrected >= 1 - CONFIDENCE or not self.confirmed:
            return "undecided"
        return self.first if self.wins > self.losses else self.second


@dataclass(frozen=True)
class Rank:
    """A method in the ranking."""

    method: str
    strength: float
    interval: Interval | None


@dataclass(frozen=True)
class StudyReport:
    """What a study found."""

    key: Key
    raters: list[Rater]
    pairs: list[Pair]
    ranking: list[Rank]
    """The strongest first."""
    separable: bool
    """Whether the likelihood has no finite maximum: a tie was added to each two methods for the ranking."""
    winner: str | None
    reason: str
    """Why there is none; empty where there is one."""
    agreement: Agreement | None
    images: int
    """That were judged."""
    settings: dict[str, Any]

    @property
    def left_out(self) -> list[Rater]:
        return [rater for rater in self.raters if rater.left_out]

    @property
    def answers(self) -> int:
        return sum(rater.answers for rater in self.raters if not rater.left_out)

    def document(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        found = self.agreement
        return {
            "format": FORMAT,
            "made_by": "refine-wrap study report",
            "versions": versions("numpy", "scipy"),
            "study": self.key.study,
            "question": self.key.question,
            "ties_allowed": self.key.ties,
            "settings": self.settings,
            "rules": RULES,
            "winner": self.winner,
            "reason": self.reason or None,
            "images": self.images,
            "answers": self.answers,
            "pairs": [{**vars(pair), "verdict": pair.verdict} for pair in self.pairs],
            "ranking": [vars(rank) for rank in self.ranking],
            "separable": self.separable,
            "agreement": None if found is None else vars(found),
            "raters": [{**vars(rater), "failed_share": rater.failed_share} for rater in self.raters],
        }

    def save(self, path: PathLike) -> None:
        """Write the document, whole or not at all. Raises OutputError."""
        text = json.dumps(self.document(), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def study_report(
    results: Iterable[PathLike],
    key: PathLike,
    *,
    max_failed: float = MAX_FAILED,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> StudyReport:
    """Read what raters sent, and say what it means.

    Args:
        results: their files, or folders of them.
        key: the study's `key.json`.
        max_failed: who fails more than this share of the catch trials is left out.
        seed, resamples: of the bootstrap.

    Raises:
        DataError: a file cannot be read, is damaged or of another study, an answer comes twice or cannot have been
            given, or nothing is left.
    """
    check_share(max_failed=max_failed)
    study = Key.read(key)
    found = list(read_results(results, study).values())
    raters = _raters(found, study, max_failed)
    out = {rater.name for rater in raters if rater.left_out}
    votes = [vote for each in found if each.rater not in out for vote in _votes(each, study)]
    if not votes:
        why = f"{len(out)} of {len(raters)} raters failed more than {max_failed:.0%} of the catch trials"
        raise DataError(f"No answer is left: {why}" if out else "The results hold no answer", "answers of raters")
    estimate = strengths(votes, len(study.methods), seed, resamples)
    pairs = _pairs(votes, study.methods, estimate)
    order = sorted(range(len(study.methods)), key=lambda number: -estimate.values[number])
    intervals: Sequence[Interval | None] = estimate.intervals or [None] * len(order)
    reason = _not_won([study.methods[place] for place in order], pairs)
    return StudyReport(
        key=study,
        raters=raters,
        pairs=pairs,
        ranking=[Rank(study.methods[place], estimate.values[place], intervals[place]) for place in order],
        separable=estimate.separable,
        winner=None if reason else study.methods[order[0]],
        reason=reason,
        agreement=agreement(votes),
        images=len({vote.image for vote in votes}),
        settings={"max_failed": max_failed, "seed": seed, "resamples": resamples, "confidence": CONFIDENCE},
    )


def _raters(found: Sequence[Results], key: Key, max_failed: float) -> list[Rater]:
    """By name; one whose answers came in several files is one."""
    raters = []
    for name in sorted({results.rater for results in found}):
        own = [results for results in found if results.rater == name]
        answers = [answer for results in own for answer in results.answers]
        caught = [answer for answer in answers if key.trials[answer.trial].is_catch]
        failed = sum(
            answer.chosen is None or key.trials[answer.trial].files[answer.chosen] is None for answer in caught
        )
        raters.append(
            Rater(
                name=name,
                answers=len(answers) - len(caught),
                asked=max(results.trials for results in own),
                catches=len(caught),
                failed=failed,
                seconds=median(answer.seconds for answer in answers) if answers else None,
                left_out=failed > max_failed * len(caught),
            )
        )
    return raters


def _votes(results: Results, key: Key) -> list[Vote]:
    votes = []
    for answer in results.answers:
        trial = key.trials[answer.trial]
        if trial.is_catch:
            continue
        one, other = sorted(key.methods.index(method) for method in trial.methods)
        chosen = None if answer.chosen is None else trial.files[answer.chosen]
        outcome = 0 if chosen is None else 1 if chosen == key.methods[one] else -1
        votes.append(Vote(results.rater, trial.image, (one, other), outcome))
    return votes


def _pairs(votes: Sequence[Vote], methods: Sequence[str], estimate: Strengths) -> list[Pair]:
    from scipy.stats import binomtest

    couples = list(combinations(range(len(methods)), 2))
    outcomes = {couple: [vote.outcome for vote in votes if vote.methods == couple] for couple in couples}
    counts = {couple: (own.count(1), own.count(-1), own.count(0)) for couple, own in outcomes.items()}
    p = [float(binomtest(won, won + lost).pvalue) if won + lost else 1.0 for won, lost, _ in counts.values()]
    return [
        Pair(
            first=methods[one],
            second=methods[other],
            wins=won,
            losses=lost,
            ties=ties,
            rate=won / (won + lost) if won + lost else None,
            interval=exact_interval(won, lost),
            p=own,
            corrected=corrected,
            confirmed=estimate.ahead[one][other] if won > lost else estimate.ahead[other][one],
        )
        for ((one, other), (won, lost, ties)), own, corrected in zip(counts.items(), p, holm(p), strict=True)
    ]


def _not_won(ranking: Sequence[str], pairs: Sequence[Pair]) -> str:
    """Why the strongest method is no winner; empty where it is one."""
    first, *others = ranking
    reasons = []
    for other in others:
        pair = next(pair for pair in pairs if {pair.first, pair.second} == {first, other})
        if pair.verdict != first:
            sure = pair.corrected < 1 - CONFIDENCE
            why = ", but not so in the bootstrap over raters and images" if sure else ""
            reasons.append(f"{first} against {other}: p = {pair.corrected:.2g}{why}")
    return "; ".join(reasons)
