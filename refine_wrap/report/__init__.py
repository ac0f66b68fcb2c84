"""Pages that show results: one HTML file each, which opens without network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import attribute

# Public name -> the module that has it. Resolved on first use: the statistics and pages of a study need no torch.
_PLACES = {
    "audit_page": "audit",
    "compare_page": "compare",
    "degradation_page": "degradation",
    "evaluation_page": "evaluation",
}

if TYPE_CHECKING:
    from .audit import audit_page
    from .compare import compare_page
    from .degradation import degradation_page
    from .evaluation import evaluation_page

__all__ = [
    "audit_page",
    "compare_page",
    "degradation_page",
    "evaluation_page",
]


def __getattr__(name: str) -> Any:
    return attribute(__name__, _PLACES, name)
