"""One error class for everything the package refuses, and its few kinds."""

from __future__ import annotations


class RefineWrapError(Exception):
    """What came, what was expected, what to do next: one line each, at most three lines in all.

    Args:
        came: what was met, with the value or the file's name in it.
        expected: what would have been right.
        next_step: what the caller can do about it.
    """

    exit_code = 2
    """Exit code of the command line: 2, the call or an input named in it is wrong; 1, the work itself failed."""

    def __init__(self, came: str, expected: str | None = None, next_step: str | None = None) -> None:
        self.came, self.expected, self.next_step = came, expected, next_step
        lines = [came, f"Expected: {expected}" if expected else None, f"Next: {next_step}" if next_step else None]
        super().__init__("\n".join(" ".join(line.split()) for line in lines if line))


class ImageError(RefineWrapError):
    """An image, as a file or a tensor, cannot be used."""


class CheckpointError(RefineWrapError):
    """A file of weights cannot be read, or its keys or shapes do not fit."""


class MismatchError(CheckpointError):
    """An adapter meets another backbone than the one that it was made for."""


class RecipeError(RefineWrapError):
    """A recipe has an unknown key or a value out of range."""


class DataError(RefineWrapError):
    """A folder of images cannot be used: empty, unpaired, too many unreadable files."""


class HubError(RefineWrapError):
    """Something asked of the Hugging Face Hub cannot be had."""


class OutputError(RefineWrapError):
    """An output cannot be written."""

    exit_code = 1


class TrainingError(RefineWrapError):
    """A training run cannot go on."""

    exit_code = 1


def check_share(**values: float | None) -> None:
    """Refuse what is not in [0, 1]; None is let through.

    Raises:
        RefineWrapError: with the name and the value.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise RefineWrapError(f"{name} is {value}", "a number in [0, 1]")
