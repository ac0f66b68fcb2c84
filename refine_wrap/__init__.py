"""Refine-Wrap: a refinement net and a quality head for any image restoration network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import compat
from .lazy import attribute

compat.install()

__version__ = "0.1.0"

# Public name -> the module that has it. Resolved on first use: `import refine_wrap` imports no torch.
_PLACES = {
    "RefineWrapper": "wrapper",
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "ORNet": "refiner",
    "Picture": "images",
    "read_image": "images",
    "write_image": "images",
    "Recipe": "recipe",
    "RefineWrapError": "errors",
}

if TYPE_CHECKING:
    from .backbone import Backbone, load_backbone
    from .errors import RefineWrapError
    from .images import Picture, read_image, write_image
    from .recipe import Recipe
    from .refiner import ORNet
    from .wrapper import RefineWrapper

__all__ = [
    "Backbone",
    "ORNet",
    "Picture",
    "Recipe",
    "RefineWrapError",
    "RefineWrapper",
    "__version__",
    "load_backbone",
    "read_image",
    "write_image",
]


def __getattr__(name: str) -> Any:
    return attribute(__name__, _PLACES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
