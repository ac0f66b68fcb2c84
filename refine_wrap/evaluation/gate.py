"""Which judges count: those that prefer the ground truth to the input, and that did not train what they judge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..folder import PathLike
from ..scorers.core import Scorer
from .statistics import Figure, outcome

THRESHOLD = 0.7
"""A judge counts from this share of pairs on whose ground truth it prefers to the input."""

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Validity:
    """How often a judge prefers the ground truth to the input, and on which pairs that was found."""

    judge: str
    digest: str
    """Of its weights."""
    preferred: int = 0
    """Pairs whose ground truth it rates strictly higher."""
    pairs: int = 0
    data: str = ""
    """The set of pairs, by name and digest."""
    carried: bool = False
    """Whether it was found on another set than the one that is evaluated."""

    @property
    def share(self) -> float | None:
        """Of the pairs; None without any."""
        return self.preferred / self.pairs if self.pairs else None

    @property
    def valid(self) -> bool:
        return self.share is not None and self.share >= THRESHOLD

    def __str__(self) -> str:
        if self.share is None:
            return "unverified: no pairs of ground truth and input"
        where = f"{'carried from ' if self.carried else ''}{self.data}"
        return f"prefers the ground truth to the input on {self.preferred} of {self.pairs} ({self.share:.0%}), {where}"

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "share": self.share, "valid": self.valid, "threshold": THRESHOLD}


def validity_of(scorer: Scorer, gt: Sequence[Figure], lq: Sequence[Figure], data: str) -> Validity:
    """What a judge's raw scores of ground truths and inputs, in the same order, say about it."""
    rises = scorer.best > scorer.worst
    outcomes = [outcome(a, b, rises) for a, b in zip(gt, lq, strict=True)]
    return Validity(scorer.name, scorer.digest(), outcomes.count(1), len(outcomes), data)


def carried(known: Iterable[Validity], scorer: Scorer) -> Validity:
    """What another set said about a judge of this name and these weights; unverified where it said nothing."""
    digest = scorer.digest()
    for one in known:
        if one.pairs and (one.judge, one.digest) == (scorer.name, digest):
            return replace(one, carried=True)
    return Validity(scorer.name, digest)


def read_validity(path: PathLike) -> list[Validity]:
    """Of the judges of an earlier evaluation, from its JSON.

    Raises:
        DataError: the file cannot be read or is no evaluation.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        found = [measure["validity"] for measure in document["measures"] if measure["kind"] == "judge"]
        return [_checked(one) for one in found]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "the JSON of an evaluation") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no validity of judges", "the JSON of an evaluation, as refine-wrap evaluate writes it"
        ) from error


def _checked(entry: dict[str, Any]) -> Validity:
    judge, digest, preferred, pairs, data = (entry[n] for n in ("judge", "digest", "preferred", "pairs", "data"))
    one = Validity(judge, digest, preferred, pairs, data, carried=True)
    words, numbers = (one.judge, one.digest, one.data), (one.preferred, one.pairs)
    if not all(isinstance(word, str) for word in words) or not all(type(number) is int for number in numbers):
        raise TypeError(entry)
    if not 0 <= one.preferred <= one.pairs:
        raise ValueError(entry)
    return one


def trainer(judge: Scorer | str, trained_on: Iterable[str]) -> str | None:
    """The scorer, of those that a model was trained on, that may not judge it: this one, or a part of it.

    Names are the same whatever their case, source and weights are (`pyiqa:niqe`, `niqe`, `NIQE=file.npz`): another
    implementation of a score, or other weights of it, would see the training too. A digest finds it renamed.

    Args:
        judge: a scorer with all that it is made of, or the name of a metric.
        trained_on: `scorers` of an adapter, each NAME or NAME@DIGEST.
    """
    parts = [judge] if isinstance(judge, str) else [part for part in judge.modules() if isinstance(part, Scorer)]
    names = {_plain(part if isinstance(part, str) else part.name) for part in parts}
    # Of scorers without weights, which have no tensors to tell them apart, the name must do.
    digests = [part.digest() for part in parts if isinstance(part, Scorer) and part.state_dict()]
    for entry in trained_on:
        name, _, digest = entry.rpartition("@")
        known = bool(_DIGEST.fullmatch(digest.lower())) and bool(name)
        # What is trained on ensemble(a+b) is trained on a and on b.
        trainers = re.split(r"[()+]", name if known else entry)
        if names & {_plain(each) for each in (name if known else entry, *trainers)}:
            return entry
        if known and any(own.startswith(digest.lower()) for own in digests):
            return entry
    return None


def _plain(name: str) -> str:
    """A scorer's own name: without its weights' file, the library or place that it comes from, and case."""
    return re.split(r"[:/]", name.partition("=")[0])[-1].strip().casefold()
