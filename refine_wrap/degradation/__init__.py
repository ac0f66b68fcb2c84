"""Make low-quality images from good ones."""

from .settings import Blur, Degradation, Jpeg, Noise
from .synthetic import degrade

__all__ = ["Blur", "Degradation", "Jpeg", "Noise", "degrade"]
