"""Pages that show results: one HTML file each, which opens without network."""

from .audit import audit_page
from .compare import compare_page
from .degradation import degradation_page
from .evaluation import evaluation_page

__all__ = ["audit_page", "compare_page", "degradation_page", "evaluation_page"]
