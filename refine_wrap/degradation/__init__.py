"""Make low-quality images from good ones."""

from .settings import Blur, Degradation, Holes, Jpeg, Light, Noise, Water
from .synthetic import degrade

__all__ = ["Blur", "Degradation", "Holes", "Jpeg", "Light", "Noise", "Water", "degrade"]
