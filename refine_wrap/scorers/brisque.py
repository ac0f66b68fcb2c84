"""BRISQUE: a support vector machine on the statistics of local contrast (Mittal et al. 2012)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RefineWrapError
from .core import Scorer
from .library import one_by_one


class BRISQUE(Scorer):
    """BRISQUE as the package brisque computes it, with the model that comes with it; 0 to 100, lower is better.

    Its model and its downscaling are not those of the MATLAB code, so its numbers differ from published ones. It is
    computed in NumPy on the CPU: slow (seconds a megapixel), and in memory of some 100 bytes a pixel.

    Raises:
        RefineWrapError: the package is not there.
    """

    name = "brisque"
    worst = 100.0
    best = 0.0
    smallest = 32

    def __init__(self) -> None:
        super().__init__()
        self.library, self.version = _library()

    @torch.no_grad()
    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,). The images are rounded to 8 bits."""
        image = self.checked(image)
        return one_by_one(self.name, image.cpu(), self._score).to(image.device)

    def _score(self, image: Tensor) -> Tensor:
        pixels = (image[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy's, where a root is not found; what comes of it is checked
            return torch.tensor(float(self.library.score(pixels)))

    def digest(self) -> str:
        """Of the package's version: its model comes with it."""
        return hashlib.sha256(f"brisque {self.version}".encode()).hexdigest()


def _library() -> tuple[Any, str]:
    """The package's scorer, and the package's version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports by SciPy's old names
            import brisque
    except ImportError as error:
        raise RefineWrapError(
            f"The scorer brisque needs the package brisque, which cannot be imported ({error})",
            "brisque installed",
            "pip install brisque",
        ) from None
    import numpy as np

    class Library(brisque.BRISQUE):  # type: ignore[misc]
        def scale_features(self, features: Sequence[Any]) -> Any:
            # Some come as arrays of one value, which NumPy 2.4 does not take for numbers any more.
            return super().scale_features([float(np.ravel(feature)[0]) for feature in features])

    return Library(url=False), str(brisque.__version__)
