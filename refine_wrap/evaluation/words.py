"""An evaluation as lines of plain text, for the terminal and the page alike."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .result import Candidate, Evaluation, Measure, Seen
from .statistics import Versus

HEAD = ("Measure", "Baseline", "Candidate", "Difference [95%]", "Win rate [95%]", "Wins/ties/losses", "Sign test p")
KEY = "↑ higher is better, ↓ lower is better; a tie counts half in the win rate."
TEXTURE_HEAD = ("", "High-frequency share", "Noise", "High-frequency energy / GT", "Noise / GT")


@dataclass(frozen=True)
class Line:
    """One measure of a candidate."""

    measure: Measure
    cells: tuple[str, ...]
    """As `HEAD`; the first three only where it does not count."""
    reason: str | None
    """Why it does not count; None where it does."""
    verdict: str = ""
    """better, worse or undecided; empty where it does not count."""


def lines(result: Evaluation, place: int) -> list[Line]:
    """The measures of the candidate at `outputs[place]`."""
    candidate = result.candidates[place - 1]
    found = []
    for measure in result.measures:
        means = tuple(_mean(result, measure, number) for number in (0, place))
        cells = (f"{measure.name} {'↑' if measure.higher_is_better else '↓'}", *means)
        one = candidate.versus.get(measure.name)
        if one is None:
            found.append(Line(measure, cells, candidate.not_counted[measure.name]))
        else:
            found.append(Line(measure, (*cells, *_versus(measure, one)), None, one.verdict))
    return found


def _mean(result: Evaluation, measure: Measure, place: int | str) -> str:
    value = result.mean(measure.name, place)
    return "none" if value is None else measure.in_words(value)


def _versus(measure: Measure, one: Versus) -> tuple[str, ...]:
    digits = 2 if measure.unit == "dB" else 4
    difference = "none" if one.difference is None else f"{one.difference:+.{digits}f}"
    if one.difference_interval is not None:
        low, high = one.difference_interval
        difference += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    low, high = one.win_rate_interval
    p = "< 0.001" if one.sign_test < 0.001 else f"{one.sign_test:.3f}"
    return (
        difference,
        f"{one.win_rate:.0%} [{low:.0%}, {high:.0%}]",
        f"{one.wins}/{one.ties}/{one.losses}",
        p,
    )


def flag_lines(candidate: Candidate) -> list[str]:
    """What is conspicuous about a candidate, the worst first."""
    return [f"{candidate.label} {flag.words}." for flag in candidate.flags]


def mean_notes(result: Evaluation, place: int) -> list[str]:
    """What the means of the candidate at `outputs[place]` and of the baseline leave out."""
    found = []
    for measure in result.measures:
        for number in (0, place):
            figures = result.figures(measure.name, number)
            finite = [f for f in figures if isinstance(f, float) and abs(f) != float("inf")]
            if 0 < len(finite) < len(figures):
                found.append(
                    f"Mean {measure.name} of {result.labels[number]}: over {len(finite)} of {len(figures)} images, "
                    "the others have none or an infinite one."
                )
    return found


def judge_lines(result: Evaluation) -> list[tuple[Measure, tuple[str, str, str, str]]]:
    """Each judge: name, mean of the ground truth and of the input, and its validity in words."""
    return [
        (
            measure,
            (
                f"{measure.name} {'↑' if measure.higher_is_better else '↓'}",
                _mean(result, measure, "gt"),
                _mean(result, measure, "lq"),
                f"{measure.validity}: {'counted' if measure.gate is None else 'not counted'}",
            ),
        )
        for measure in result.measures
        if measure.validity is not None
    ]


def texture_lines(result: Evaluation) -> list[tuple[str, ...]]:
    """Ground truth, input, baseline and candidates: as `TEXTURE_HEAD`, medians over the images."""
    found: list[tuple[str, ...]] = []
    sides: list[tuple[str, list[Seen | None]]]
    sides = [("ground truth", [i.gt for i in result.images]), ("input", [i.lq for i in result.images])]
    sides += [(label, [i.outputs[n] for i in result.images]) for n, label in enumerate(result.labels)]
    for label, seen in sides:
        textures = [one.texture for one in seen if one is not None]
        if not textures:
            continue
        ratios = [
            one.texture.ratios(image.gt.texture)
            for one, image in zip(seen, result.images, strict=True)
            if one is not None and image.gt is not None
        ]
        relative = tuple(f"{median(each):.2f}" for each in zip(*ratios, strict=True)) or ("", "")
        share, noise = median(t.share for t in textures), median(t.noise for t in textures)
        found.append((label, f"{share:.2%}", f"{noise:.2f}", *relative))
    return found
