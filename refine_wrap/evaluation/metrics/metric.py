"""What every full-reference metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Metric(ABC):
    """How close a picture is to its ground truth: call it to get the number, print it to get what stands beside it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `full_reference` takes."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Whether the closer of two pictures has the higher number."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Of the number; empty where it has none."""

    @property
    @abstractmethod
    def smallest(self) -> int:
        """The least height and width that can be measured."""

    @abstractmethod
    def __str__(self) -> str:
        """The protocol in words: metric, colour, depth, border, library."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Measure pictures against their ground truths, pair by pair.

        Args:
            a, b: what is measured, and its ground truth: (B, 3, H, W), floating point, RGB. Values outside [0, 1] are
                clamped, as saving a file does.

        Returns:
            (B,), float64.

        Raises:
            ImageError: shapes differ or are not (B, 3, H, W), a value is not finite, the images are too small, or the
                metric is not defined for them.
        """


def depth(eight_bit: bool) -> str:
    return "8-bit" if eight_bit else "unrounded"


def version(package: str) -> str:
    """Name and version of a package that does the work."""
    from importlib import metadata

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not installed)"
