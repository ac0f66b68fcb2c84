"""What an analysis found, and how it is written down."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from ..degradation.corruptions import CORRUPTIONS
from ..evaluation.result import plain
from ..evaluation.statistics import Interval, bootstrap
from ..folder import PathLike, atomic_path
from .measures import LARGEST_ENTROPY, Look, entropy, entropy_interval, mean_spectrum

if TYPE_CHECKING:
    from .places import Places

FORMAT = 1
"""Version of the JSON."""


@dataclass
class Set:
    """Degraded images of one kind, measured."""

    label: str
    looks: dict[str, Look] = field(default_factory=dict)
    """By the image's name."""
    entropy_interval: Interval | None = None
    colour_interval: Interval | None = None
    """95% of the entropy, and of the mean colour difference, bootstrap over the images; None where it says nothing."""

    def settle(self, seed: int, resamples: int) -> None:
        """Draw the intervals."""
        self.entropy_interval = entropy_interval(self.counts, seed, resamples)
        self.colour_interval = bootstrap(self.values("colour.mean"), seed, resamples)

    @property
    def counts(self) -> list[int]:
        """Of the images, by what they look most like, in the order of `CORRUPTIONS`."""
        found = Counter(look.corruption for look in self.looks.values())
        return [found[name] for name in CORRUPTIONS]

    @property
    def shares(self) -> dict[str, float]:
        """The same as shares of the images."""
        return {name: count / len(self.looks) for name, count in zip(CORRUPTIONS, self.counts, strict=True)}

    @property
    def entropy(self) -> float:
        """Of the shares, natural logarithm, at most ln 15."""
        return entropy(self.counts)

    @property
    def looks_clean(self) -> float:
        """Share of the images that look clean rather than corrupted."""
        return sum(look.looks_clean for look in self.looks.values()) / len(self.looks)

    @property
    def spectrum(self) -> list[float | None]:
        """Means of the images' spectra in dB, by ring."""
        return mean_spectrum([look.spectrum for look in self.looks.values()])

    def values(self, of: str) -> list[float]:
        """One number of each image: `noise`, `detail`, or `colour.mean` and the like; empty where it has none."""
        if of.startswith("colour.") and any(look.colour is None for look in self.looks.values()):
            return []
        return [float(attrgetter(of)(look)) for look in self.looks.values()]

    def mean(self, of: str) -> float | None:
        """Of `values`; None without any."""
        values = self.values(of)
        return fmean(values) if values else None

    def median(self, of: str) -> float | None:
        """The same, the median."""
        values = self.values(of)
        return median(values) if values else None

    def above(self, clean: Set) -> list[float | None]:
        """By how many dB its spectrum lies above another set's, by ring."""
        pairs = zip(self.spectrum, clean.spectrum, strict=True)
        return [None if own is None or other is None else own - other for own, other in pairs]

    def document(self, clean: Set | None) -> dict[str, Any]:
        colour = {of: self.mean(f"colour.{of}") for of in ("mean", "median", "percentile_95", "cast")}
        return {
            "label": self.label,
            "images": len(self.looks),
            "entropy": self.entropy,
            "entropy_interval": self.entropy_interval,
            "shares": self.shares,
            "looks_clean": self.looks_clean,
            "delta_e": None if clean is None else {**colour, "mean_interval": self.colour_interval},
            "noise": {"mean": self.mean("noise"), "median": self.median("noise")},
            "detail": {"mean": self.mean("detail"), "median": self.median("detail")},
            "spectrum": self.spectrum,
            "spectrum_difference": None if clean is None else self.above(clean),
            "each": {name: asdict(each) for name, each in self.looks.items()},
        }


@dataclass
class Analysis:
    """Sets of degraded images, measured alike."""

    sets: list[Set]
    """With clean images the first is of these, made smaller and nothing else."""
    left_out: list[tuple[str, str]]
    """(image, why) of what could not be used; with clean images, it is in no set's figures."""
    classifier: dict[str, Any]
    """Name, digest, and the metrics that its card tells."""
    settings: dict[str, Any]
    """How it was done."""
    versions: dict[str, str]
    places: Places = field(repr=False, compare=False)
    """Where the pictures lie, for the page. It is not written."""

    @property
    def clean(self) -> Set | None:
        """What the others are compared with, if there is something."""
        return self.sets[0] if self.places.clean else None

    @property
    def accuracy(self) -> float | None:
        """Of the classifier, over all corruptions of held-out photos; None where its card tells none."""
        return next((m["value"] for m in self.classifier["metrics"] if m["name"] == "accuracy"), None)

    def document(self) -> dict[str, Any]:
        """All of it as JSON can hold it. Nothing in it tells where it was made."""
        document = {
            "format": FORMAT,
            "made_by": "refine-wrap analyze-degradation",
            "sets": [each.document(self.clean) for each in self.sets],
            "largest_entropy": LARGEST_ENTROPY,
            "left_out": [{"image": name, "why": why} for name, why in self.left_out],
            "classifier": self.classifier,
            "settings": self.settings,
            "versions": self.versions,
        }
        found: dict[str, Any] = plain(document)
        return found

    def save(self, path: PathLike) -> None:
        """Write it as JSON. Raises OutputError."""
        text = json.dumps(self.document(), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
