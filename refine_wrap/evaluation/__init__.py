"""How close a restored image is to its ground truth."""

from .full_reference import Protocol, psnr, ssim

__all__ = ["Protocol", "psnr", "ssim"]
