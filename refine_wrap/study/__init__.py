"""Which of several methods do people prefer: a blind pairwise page for raters, and the report of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import attribute

# Public name -> the module that has it. Resolved on first use: a report needs no torch.
_PLACES = {
    "Settings": "plan",
    "StudyReport": "report",
    "make_study": "make",
    "study_page": "page",
    "study_report": "report",
}

if TYPE_CHECKING:
    from .make import make_study
    from .page import study_page
    from .plan import Settings
    from .report import StudyReport, study_report

__all__ = ["Settings", "StudyReport", "make_study", "study_page", "study_report"]


def __getattr__(name: str) -> Any:
    return attribute(__name__, _PLACES, name)
