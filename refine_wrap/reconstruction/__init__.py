"""Paper 3: reconstructors. Trained too little, they degrade a clean low-resolution image as real cameras do."""

from .core import Reconstruction, Reconstructor
from .load import load_reconstructor, save_reconstructor
from .make import degrade_folder
from .manifest import Manifest
from .vqvae import VQVAE, VQVAE2, vqvae2_from_published

__all__ = [
    "VQVAE",
    "VQVAE2",
    "Manifest",
    "Reconstruction",
    "Reconstructor",
    "degrade_folder",
    "load_reconstructor",
    "save_reconstructor",
    "vqvae2_from_published",
]
