"""What a run over many pictures found: the rows, their statistics, and both as CSV or JSON.

Nothing here says when or where a run was made, so that the same pictures and scorers give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RefineWrapError
from ..folder import PathLike, atomic_path
from .cache import PROTOCOL

SUFFIXES = (".csv", ".json")
MOST_BINS = 20
_WORDS = ("n", "mean", "sd", "min", "q1", "median", "q3", "max")


@dataclass(frozen=True)
class ScoredImage:
    """One picture."""

    file: str
    """Its path below the folder that was named, with `/`."""
    width: int
    height: int
    raw: dict[str, float]
    """On each scorer's published scale."""
    scores: dict[str, float]
    """In [0, 1], higher is better."""


@dataclass
class ScoreTable:
    """The pictures of a run, sorted by `file`."""

    scorers: list[dict[str, Any]]
    """`Scorer.about()` of each."""
    images: list[ScoredImage] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(file, reason) of what could not be scored, by one scorer or by all: it has no row."""
    computed: int = 0
    """How many scores were computed, or refused, and not known before. It is not written."""

    @property
    def names(self) -> list[str]:
        return [about["name"] for about in self.scorers]

    def summary(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """For each scorer, of `raw` and `score`: n, mean, sd (of the sample, n - 1), min, q1, median, q3 and max.

        Quartiles are interpolated linearly. None where there are too few pictures.
        """
        return {
            name: {
                "score": _statistics([image.scores[name] for image in self.images]),
                "raw": _statistics([image.raw[name] for image in self.images]),
            }
            for name in self.names
        }

    def histogram(self) -> dict[str, dict[str, list[Any]]]:
        """For each scorer, of its scores in [0, 1]: `edges` (one more than bins) and `counts`.

        The bins are of one width (1, 2 or 5 times a power of ten) and at most 20. A bin holds its lower edge, the last
        one its upper edge too.
        """
        return {name: _histogram([image.scores[name] for image in self.images]) for name in self.names}

    def csv(self) -> str:
        """A line a picture: file, width, height, and for each scorer NAME and NAME_raw, to 6 significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "width", "height", *(f"{n}{end}" for n in self.names for end in ("", "_raw"))])
        for image in self.images:
            values = [f"{of[name]:.6g}" for name in self.names for of in (image.scores, image.raw)]
            writer.writerow([image.file, image.width, image.height, *values])
        return text.getvalue()

    def json(self) -> str:
        """All there is, numbers to 6 significant digits."""
        from .. import __version__

        document = {
            "refine_wrap": __version__,
            "protocol": PROTOCOL,
            "scorers": self.scorers,
            "images": [
                {
                    "file": image.file,
                    "width": image.width,
                    "height": image.height,
                    "scores": {n: {"score": image.scores[n], "raw": image.raw[n]} for n in self.names},
                }
                for image in self.images
            ],
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "summary": self.summary(),
            "histogram": self.histogram(),
        }
        return json.dumps(_rounded(document), indent=1, allow_nan=False) + "\n"

    def save(self, path: PathLike) -> None:
        """Write a .csv or .json, whole or not at all; an existing one is replaced.

        Raises:
            RefineWrapError: another ending.
            OutputError: it cannot be written.
        """
        check_table_name(path)
        with atomic_path(path) as temporary:
            self.write(temporary)

    def write(self, path: Path) -> None:
        path.write_bytes(self.encoded(path.suffix))

    def encoded(self, suffix: str) -> bytes:
        """The table in the format of that suffix. A file's name may hold bytes that are no UTF-8: they pass through."""
        text = self.csv() if suffix.lower() == ".csv" else self.json()
        return text.encode("utf-8", "surrogateescape")


def check_table_name(path: PathLike) -> None:
    """Raises RefineWrapError: not a name that a table can be written under."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise RefineWrapError(f"The output {path} is no table by its name", "a name that ends in .csv or .json")


def text_summary(summary: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """Statistics as a table of plain text: for each scorer its scores, then its raw scores."""
    rows = [["", *_WORDS]]
    for name, statistics in summary.items():
        for title, values in ((name, statistics["score"]), (f"{name} raw", statistics["raw"])):
            rows.append([title, *("-" if value is None else f"{value:.4g}" for value in values.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def text_histogram(histogram: dict[str, list[Any]], columns: int = 50) -> str:
    """A histogram as lines of plain text, the longest bar `columns` wide."""
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return "  nothing scored"
    digits = max(len(f"{edge:.10g}".partition(".")[2]) for edge in edges)
    widest = max(counts)
    lines = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * math.ceil(count * columns / widest)
        lines.append(f"  {low:.{digits}f} to {high:.{digits}f} {count:>{len(str(widest))}} {bar}".rstrip())
    return "\n".join(lines)


def _statistics(values: list[float]) -> dict[str, float | None]:
    import numpy as np

    if not values:
        return {**dict.fromkeys(_WORDS), "n": 0}
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found = (len(values), float(np.mean(values)), sd, *map(float, np.percentile(values, (0, 25, 50, 75, 100))))
    return dict(zip(_WORDS, found, strict=True))


def _histogram(values: list[float]) -> dict[str, list[Any]]:
    if not values:
        return {"edges": [], "counts": []}
    low, high = min(values), max(values)
    steps = (digit * 10.0**power for power in range(-3, 1) for digit in (1, 2, 5))
    # One bin more than fit between the values, since they need not begin at an edge.
    step = next(step for step in steps if (high - low) / step <= MOST_BINS - 1)
    last = max(1, math.ceil(high / step))
    first = min(math.floor(low / step), last - 1)
    edges = [round(number * step, 9) for number in range(first, last + 1)]
    counts = [0] * (last - first)
    for value in values:
        counts[min(math.floor(value / step), last - 1) - first] += 1
    return {"edges": edges, "counts": counts}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
