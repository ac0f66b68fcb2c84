"""Full-reference metrics: how close a picture is to its ground truth."""

from .colour import delta_e
from .metric import Metric
from .protocol import Protocol, full_reference, full_reference_names, psnr, ssim

__all__ = ["Metric", "Protocol", "delta_e", "full_reference", "full_reference_names", "psnr", "ssim"]
