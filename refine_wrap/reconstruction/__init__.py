"""Paper 3: reconstructors. Trained too little, they degrade a clean low-resolution image as real cameras do."""

from .core import Reconstruction, Reconstructor
from .ddim import DDIM
from .load import load_reconstructor, save_reconstructor
from .mae import MAE
from .make import degrade_folder
from .manifest import Manifest
from .vae import VanillaVAE
from .vqvae import VQVAE, VQVAE2, vqvae2_from_published

__all__ = [
    "DDIM",
    "MAE",
    "VQVAE",
    "VQVAE2",
    "Manifest",
    "Reconstruction",
    "Reconstructor",
    "VanillaVAE",
    "degrade_folder",
    "load_reconstructor",
    "save_reconstructor",
    "vqvae2_from_published",
]
