"""How good a restored image is: against its ground truth, by judges that are valid, against a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import attribute

# Public name -> the module that has it. Resolved on first use: the statistics and pages of a study need no torch.
_PLACES = {
    "make_flawed": "flawed",
    "verify_flawed": "flawed",
    "Metric": "metrics",
    "Protocol": "metrics",
    "full_reference": "metrics",
    "full_reference_names": "metrics",
    "psnr": "metrics",
    "ssim": "metrics",
    "Outputs": "places",
    "Evaluation": "result",
    "evaluate": "run",
    "judge_validity": "run",
}

if TYPE_CHECKING:
    from .flawed import make_flawed, verify_flawed
    from .metrics import Metric, Protocol, full_reference, full_reference_names, psnr, ssim
    from .places import Outputs
    from .result import Evaluation
    from .run import evaluate, judge_validity

__all__ = [
    "Evaluation",
    "Metric",
    "Outputs",
    "Protocol",
    "evaluate",
    "full_reference",
    "full_reference_names",
    "judge_validity",
    "make_flawed",
    "psnr",
    "ssim",
    "verify_flawed",
]


def __getattr__(name: str) -> Any:
    return attribute(__name__, _PLACES, name)
