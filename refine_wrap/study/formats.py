"""The two files of a study: the key that the experimenter keeps, and the results that a rater sends."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import DataError
from ..folder import PathLike
from ..manifests import read_manifest

KEY = "key.json"
RATERS = "raters"
"""The folder beside the key that raters are given."""


class Document(BaseModel):
    """A part of a file: unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Trial(Document):
    """Two pictures that are shown together."""

    image: str
    """Their common name."""
    files: dict[str, str | None]
    """Of each of the two files, the method that made it; of a catch trial, null for the damaged copy."""

    @property
    def methods(self) -> list[str]:
        """The methods that are compared, one of a catch trial."""
        return [method for method in self.files.values() if method is not None]

    @property
    def is_catch(self) -> bool:
        return len(self.methods) == 1


class Key(Document):
    """`key.json`: what the pictures of a study are. Who has it is not blind any more."""

    format: Literal[1] = 1
    kind: Literal["key of a study"] = "key of a study"
    refine_wrap: str
    """Our version, when the study was made."""
    study: str
    """Its id, which results name."""
    question: str
    ties: bool
    """Whether raters may prefer neither."""
    seed: int
    crop: int | None
    """Most pixels of a side that are shown; null: whole images."""
    methods: list[str]
    trials: dict[str, Trial]
    """By the id that results name them by."""
    orders: int
    """Different orders of the trials; a rater meets one of them."""

    @classmethod
    def read(cls, path: PathLike) -> Key:
        """Raises DataError: there is none, it is damaged, or something else."""
        return read_manifest(
            cls,
            Path(path),
            there="the key.json that refine-wrap study make wrote beside the raters' folder; --key names it",
            other=", or no key of a study",
            expected="the key as refine-wrap study make wrote it (format 1)",
            next_step="make the study again with the same seed: that makes the same key",
        )


class Answer(Document):
    """What a rater said of one trial."""

    trial: str
    left: str
    """The file that was shown on the left."""
    right: str
    choice: Literal["left", "right", "none"]
    """Which was preferred; none: neither."""
    seconds: Annotated[float, Field(ge=0)]
    """From when both pictures were there to the answer."""
    at: str
    """When, by the rater's clock, as ISO 8601 in UTC."""

    @property
    def chosen(self) -> str | None:
        """The preferred file."""
        return {"left": self.left, "right": self.right, "none": None}[self.choice]


class Results(Document):
    """What a rater downloads from the page, complete or not."""

    format: Literal[1] = 1
    kind: Literal["results of a study"] = "results of a study"
    study: str
    rater: Annotated[str, Field(min_length=1)]
    trials: int
    """How many the rater was asked."""
    answers: list[Answer]

    @classmethod
    def read(cls, path: Path, key: Key) -> Results:
        """One file, checked against its study.

        Raises:
            DataError: it cannot be read, is damaged, of another study, or has an answer that cannot have been given.
        """
        found = read_manifest(
            cls,
            path,
            there="a file that a rater has downloaded from the page",
            other=", or no results of a study",
            expected="the results as the page wrote them (format 1)",
            next_step="ask the rater for the file again, or leave it out",
        )
        if found.study != key.study:
            raise DataError(
                f"{path} is of another study: {found.study}", f"study {key.study}", "name the key of its study by --key"
            )
        for answer in found.answers:
            _check(path, answer, key)
        return found


def read_results(paths: Iterable[PathLike], key: Key) -> dict[Path, Results]:
    """The results of files, and of all `.json` directly in folders, by file.

    Raises:
        DataError: a file as `Results.read` refuses it, no file at all, or a rater has answered a trial twice.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} has no .json in it", "the files that raters have downloaded")
        files += inside
    if not files:
        raise DataError("No results are given", "one or more files that raters have downloaded")
    found: dict[Path, Results] = {}
    answered: dict[tuple[str, str], Path] = {}
    for file in files:
        if file in found:
            raise DataError(f"{file} is given twice", "each file once")
        found[file] = results = Results.read(file, key)
        for answer in results.answers:
            asked = (results.rater, answer.trial)
            if asked in answered:
                where = " and ".join(dict.fromkeys(map(str, (answered[asked], file))))
                raise DataError(
                    f"Rater {results.rater!r} has answered trial {answer.trial} twice: in {where}",
                    "each answer once",
                    "of several downloads of one rater give the last only; give two people ids of their own",
                )
            answered[asked] = file
    return found


def _check(path: Path, answer: Answer, key: Key) -> None:
    trial = key.trials.get(answer.trial)
    if trial is None:
        raise DataError(f"{path} answers a trial that the study has not: {answer.trial!r}", "results of this study")
    if {answer.left, answer.right} != set(trial.files):
        raise DataError(
            f"{path}: trial {answer.trial} shows {answer.left} and {answer.right}", " and ".join(trial.files)
        )
    if answer.choice == "none" and not key.ties:
        raise DataError(f"{path}: trial {answer.trial} has no preference", "left or right: this study allows no ties")
