"""An analysis as lines of plain text, for the terminal and the page alike."""

from __future__ import annotations

from ..evaluation.statistics import bootstrap
from .measures import LARGEST_ENTROPY
from .result import Analysis

DIVERSITY_HEAD = ("Set", "Images", "H [95%]", "Of ln 15", "Most like", "Looks clean")
LOOK_HEAD = ("Set", "CIEDE2000 [95%]", "Median", "95th percentile", "Cast", "Noise", "Detail")


def diversity_lines(analysis: Analysis) -> list[tuple[str, ...]]:
    """Each set: as `DIVERSITY_HEAD`."""
    found: list[tuple[str, ...]] = []
    for each in analysis.sets:
        interval = "" if each.interval is None else f" [{each.interval[0]:.3f}, {each.interval[1]:.3f}]"
        name, share = max(each.shares.items(), key=lambda item: item[1])
        found.append(
            (
                each.label,
                str(len(each.looks)),
                f"{each.entropy:.3f}{interval}",
                f"{each.entropy / LARGEST_ENTROPY:.0%}",
                f"{name.replace('_', ' ')} ({share:.0%})",
                f"{each.looks_clean:.0%}",
            )
        )
    return found


def look_lines(analysis: Analysis) -> list[tuple[str, ...]]:
    """Each set: as `LOOK_HEAD`."""
    seed, resamples = analysis.settings["seed"], analysis.settings["resamples"]
    found: list[tuple[str, ...]] = []
    for each in analysis.sets:
        interval = bootstrap(each.values("mean"), seed, resamples)
        words = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        colours = [_number(each.mean(of)) for of in ("mean", "median", "percentile_95", "cast")]
        noise, detail = _number(each.median("noise")), each.median("detail")
        found.append((each.label, colours[0] + words, *colours[1:], noise, f"{detail or 0:.2%}"))
    return found


def classifier_line(analysis: Analysis) -> str:
    """How far the classifier is to be trusted."""
    if analysis.accuracy is None:
        return f"Classifier {analysis.classifier['name']}: its card tells no accuracy."
    return f"Classifier {analysis.classifier['name']}: {analysis.accuracy:.1%} right on photos it did not see."


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
