"""Sets that measure "beyond the ground truth": pristine photos, flawed ground truths made of them, and inputs."""

from .levels import LEVELS, Level
from .make import DEFAULT_DEGRADATION, make_flawed
from .manifest import Manifest, Verification, verify_flawed

__all__ = ["DEFAULT_DEGRADATION", "LEVELS", "Level", "Manifest", "Verification", "make_flawed", "verify_flawed"]
