"""How good a restored image is: against its ground truth, by judges that are valid, against a baseline."""

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
