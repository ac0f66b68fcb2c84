"""Pages that show results: one HTML file each, which opens without network."""

from .compare import compare_page
from .evaluation import evaluation_page

__all__ = ["compare_page", "evaluation_page"]
