"""Make low-quality images from good ones."""

from .reconstruct import load_networks
from .settings import Blur, Degradation, Holes, Jpeg, Light, Noise, Reconstruct, Water
from .synthetic import degrade

__all__ = [
    "Blur",
    "Degradation",
    "Holes",
    "Jpeg",
    "Light",
    "Noise",
    "Reconstruct",
    "Water",
    "degrade",
    "load_networks",
]
