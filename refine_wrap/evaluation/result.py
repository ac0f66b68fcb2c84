"""What an evaluation found, and how it is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..folder import PathLike, atomic_path
from .gaming import Flag, Texture
from .gate import Validity
from .statistics import Figure, Versus, mean

if TYPE_CHECKING:
    from .places import Places

FORMAT = 1
"""Version of the JSON."""


@dataclass(frozen=True)
class Measure:
    """A full-reference metric or a judge: a column of the result."""

    name: str
    protocol: str
    """What stands beside its numbers."""
    higher_is_better: bool
    unit: str = ""
    about: dict[str, Any] | None = None
    """Of a judge: `Scorer.about()`. None: a metric."""
    validity: Validity | None = None
    """Of a judge."""

    @property
    def kind(self) -> str:
        return "metric" if self.about is None else "judge"

    @property
    def gate(self) -> str | None:
        """Why it does not count for any candidate; None where it does."""
        if self.validity is None or self.validity.valid:
            return None
        share = self.validity.share
        return "unverified" if share is None else f"not valid ({share:.0%} of {self.validity.pairs} pairs)"

    def in_words(self, value: Figure | None) -> str:
        """A number to four significant digits and more, with its unit; or why there is none."""
        if not isinstance(value, float):
            return value or ""
        return "∞" if math.isinf(value) else f"{value:.2f}" if self.unit == "dB" else f"{value:.4f}"


@dataclass
class Seen:
    """One picture, measured."""

    sha256: str | None
    """Of its file; None where an adapter made it during the evaluation."""
    texture: Texture
    figures: dict[str, Figure]
    """By measure. Judges' are raw, on their published scale. Metrics of a candidate or the baseline only."""


@dataclass
class Image:
    """One image of the set."""

    name: str
    width: int
    height: int
    gt: Seen | None
    lq: Seen | None
    """The input, enlarged to the others' size where it is smaller."""
    outputs: list[Seen]
    """The baseline, then the candidates."""


@dataclass
class Candidate:
    """A candidate against the baseline."""

    label: str
    trained_on: list[str]
    """Scorers, as its adapters' cards name them."""
    versus: dict[str, Versus] = field(default_factory=dict)
    """By measure: those that count, and have a number for an image."""
    not_counted: dict[str, str] = field(default_factory=dict)
    """By measure: why it does not count. Each measure is in one of the two."""
    flags: list[Flag] = field(default_factory=list)
    detail: float | None = None
    noise: float | None = None
    """Median ratios of high-frequency energy and noise level to the ground truth's; None without ground truth."""
    shown: dict[str, str] = field(default_factory=dict)
    """`best`, `median` and `worst`: the image's name, by the gain over the baseline in `Evaluation.ranked_by`."""


@dataclass
class Evaluation:
    """Candidates against a baseline."""

    measures: list[Measure]
    baseline: str
    candidates: list[Candidate]
    images: list[Image]
    left_out: list[tuple[str, str]]
    """(image, why) of what could not be read or is of another size: it is in no figure."""
    unused: int
    """Images that were not asked for, since not every folder has them."""
    ranked_by: str
    settings: dict[str, Any]
    """How it was done: seed, resamples, limits, rules in words."""
    data: dict[str, Any]
    """Name, number of images and digest of each folder."""
    versions: dict[str, str]
    places: Places = field(repr=False, compare=False)
    """Where the pictures lie, for the page. It is not written."""

    @property
    def labels(self) -> list[str]:
        """Of the baseline, then the candidates: as `Image.outputs`."""
        return [self.baseline, *(candidate.label for candidate in self.candidates)]

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def figures(self, name: str, place: int | str) -> list[Figure]:
        """A measure's numbers of all images, of `outputs[place]`, "gt" or "lq"; empty where that is not there."""
        seen: Iterable[Seen | None]
        seen = (getattr(i, place) if isinstance(place, str) else i.outputs[place] for i in self.images)
        return [one.figures[name] for one in seen if one is not None and name in one.figures]

    def mean(self, name: str, place: int | str) -> float | None:
        """Of a measure, over the finite numbers; None where there are none."""
        return mean(self.figures(name, place))

    def document(self) -> dict[str, Any]:
        """All of it as JSON can hold it. Nothing in it tells where it was made."""
        return plain(
            {
                "format": FORMAT,
                "made_by": "refine-wrap evaluate",
                "versions": self.versions,
                "settings": self.settings,
                "data": self.data,
                "measures": [self._measure(measure) for measure in self.measures],
                "ranked_by": self.ranked_by,
                "baseline": {"label": self.baseline, "means": self._means(0)},
                "candidates": [self._candidate(i, one) for i, one in enumerate(self.candidates, 1)],
                "images": [self._image(image) for image in self.images],
                "left_out": [{"image": name, "reason": reason} for name, reason in self.left_out],
                "unused": self.unused,
            }
        )

    def save(self, path: PathLike) -> None:
        """Write the document, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        text = json.dumps(self.document(), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _means(self, place: int | str) -> dict[str, float | None]:
        return {measure.name: self.mean(measure.name, place) for measure in self.measures}

    def _measure(self, measure: Measure) -> dict[str, Any]:
        means = {place: self.mean(measure.name, place) for place in ("gt", "lq")}
        return {
            "name": measure.name,
            "kind": measure.kind,
            "protocol": measure.protocol,
            "higher_is_better": measure.higher_is_better,
            "unit": measure.unit,
            "about": measure.about,
            "validity": measure.validity and measure.validity.as_dict(),
            "gate": measure.gate,
            "means": means if measure.kind == "judge" else None,
        }

    def _candidate(self, place: int, candidate: Candidate) -> dict[str, Any]:
        versus = {name: {**vars(one), "verdict": one.verdict} for name, one in candidate.versus.items()}
        return {
            **vars(candidate),
            "means": self._means(place),
            "versus": versus,
            "flags": [vars(flag) for flag in candidate.flags],
        }

    def _image(self, image: Image) -> dict[str, Any]:
        baseline, *candidates = map(_seen, image.outputs)
        places = {"gt": _seen(image.gt), "lq": _seen(image.lq), "baseline": baseline, "candidates": candidates}
        return {"name": image.name, "width": image.width, "height": image.height, **places}


def _seen(one: Seen | None) -> dict[str, Any] | None:
    if one is None:
        return None
    found = one.texture
    texture = {"high_frequency": found.detail, "high_frequency_share": found.share, "noise": found.noise}
    return {"sha256": one.sha256, "figures": one.figures, "texture": texture}


def plain(value: Any) -> Any:
    """Numbers to 6 significant digits, and infinity as text: JSON has none, and the PSNR of two equal images is it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
