"""A study's report in words and rows, for the terminal and the page."""

from __future__ import annotations

from ..evaluation.statistics import Interval
from ..report.page import count
from .report import RULES, Pair, Rank, Rater, StudyReport

RANKING_HEAD = ("Method", "Strength", "95% interval")
PAIRS_HEAD = ("Pair", "Wins", "Losses", "Ties", "Rate", "95% interval", "p", "p (Holm)", "Preferred significantly")
RATERS_HEAD = ("Rater", "Answers", "Catch trials failed", "Median seconds", "")


def verdict(report: StudyReport) -> str:
    """The winner, or that there is none and why."""
    if report.winner is not None:
        return f"{report.winner} is preferred to each other method, significantly."
    return f"No winner: the difference is not significant ({report.reason})."


def ranking_row(rank: Rank) -> tuple[str, ...]:
    return rank.method, f"{rank.strength:+.3f}", _interval(rank.interval, "+.3f")


def pair_row(pair: Pair) -> tuple[str, ...]:
    return (
        f"{pair.first} against {pair.second}",
        str(pair.wins),
        str(pair.losses),
        str(pair.ties),
        "none" if pair.rate is None else f"{pair.rate:.1%}",
        _interval(pair.interval, ".1%"),
        _p(pair.p),
        _p(pair.corrected),
        pair.verdict,
    )


def rater_row(rater: Rater) -> tuple[str, ...]:
    share = rater.failed_share
    return (
        rater.name,
        f"{rater.answers + rater.catches} of {rater.asked}",
        "none answered" if share is None else f"{rater.failed} of {rater.catches} ({share:.0%})",
        "" if rater.seconds is None else f"{rater.seconds:.1f}",
        "left out" if rater.left_out else "",
    )


def notes(report: StudyReport) -> list[str]:
    """What a reader must know besides the tables, in sentences."""
    there = len(report.raters) - len(report.left_out)
    lines = [
        f"{count(report.answers, 'answer')} of {count(there, 'rater')} about {count(report.images, 'image')}.",
    ]
    if report.left_out:
        names = ", ".join(f"{rater.name} ({rater.failed_share or 0:.0%})" for rater in report.left_out)
        bound = report.settings["max_failed"]
        lines.append(f"Left out, more than {bound:.0%} of the catch trials failed: {names}.")
    unproved = [rater.name for rater in report.raters if not rater.catches]
    if unproved:
        lines.append(f"Answered no catch trial: {', '.join(unproved)}.")
    if report.separable:
        lines.append(
            "Some methods were always preferred to others, so that no finite strength fits best: for the ranking a tie "
            "was added to each two methods, and there are no intervals."
        )
    elif report.ranking[0].interval is None:
        lines.append("One rater and one image: strengths have no intervals.")
    if there == 1:
        lines.append("One rater only: this says what that person prefers.")
    lines.append(_agreement(report))
    return lines


def _agreement(report: StudyReport) -> str:
    found = report.agreement
    if found is None:
        return "No two raters judged the same pair of pictures: their agreement is unknown."
    kappa = "" if found.kappa is None else f", Fleiss' kappa {found.kappa:.2f}"
    trials = count(found.trials, "pair") + " of pictures"
    return f"Agreement of raters who judged the same, over {trials}: {found.share:.0%}{kappa}."


def _interval(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "below 0.0001"


def rules(report: StudyReport) -> list[str]:
    """How it was reckoned, in sentences."""
    said = [f"{name.capitalize().replace('_', ' ')}: {text}." for name, text in RULES.items()]
    return [*said, f"Bootstrap: {report.settings['resamples']} resamples, seed {report.settings['seed']}."]
