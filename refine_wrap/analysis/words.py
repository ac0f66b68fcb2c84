"""An analysis as lines of plain text, for the terminal and the page alike."""

from __future__ import annotations

from ..evaluation.statistics import Interval
from .measures import LARGEST_ENTROPY
from .result import Analysis

DIVERSITY_HEAD = ("Set", "Images", "H [95%]", "Of ln 15", "Most like", "Looks clean")
LOOK_HEAD = ("Set", "CIEDE2000 [95%]", "Median", "95th percentile", "Cast", "Noise", "Detail")


def diversity_lines(analysis: Analysis) -> list[tuple[str, ...]]:
    """Each set: as `DIVERSITY_HEAD`."""
    found: list[tuple[str, ...]] = []
    for each in analysis.sets:
        name, share = max(each.shares.items(), key=lambda item: item[1])
        found.append(
            (
                each.label,
                str(len(each.looks)),
                f"{each.entropy:.3f}{_interval(each.entropy_interval, 3)}",
                f"{each.entropy / LARGEST_ENTROPY:.0%}",
                f"{name.replace('_', ' ')} ({share:.0%})",
                f"{each.looks_clean:.0%}",
            )
        )
    return found


def look_lines(analysis: Analysis) -> list[tuple[str, ...]]:
    """Each set: as `LOOK_HEAD`."""
    found: list[tuple[str, ...]] = []
    for each in analysis.sets:
        first, *others = (_number(each.mean(f"colour.{of}")) for of in ("mean", "median", "percentile_95", "cast"))
        noise, detail = each.median("noise"), each.median("detail")
        first += _interval(each.colour_interval, 2)
        found.append((each.label, first, *others, _number(noise), f"{detail:.2%}"))
    return found


def classifier_line(analysis: Analysis) -> str:
    """How far the classifier is to be trusted."""
    if analysis.accuracy is None:
        return f"Classifier {analysis.classifier['name']}: its card tells no accuracy."
    return f"Classifier {analysis.classifier['name']}: {analysis.accuracy:.1%} right on photos it did not see."


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _interval(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
