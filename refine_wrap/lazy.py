"""Public names of a package, resolved on first use (PEP 562): importing the package imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def attribute(package: str, places: Mapping[str, str], name: str) -> Any:
    """What a package's `__getattr__` answers.

    Args:
        places: public name -> the module of the package that has it.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(f"{package}.{places[name]}"), name)
    setattr(sys.modules[package], name, value)
    return value
