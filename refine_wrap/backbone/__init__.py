"""One contract around any restoration network."""

from .checkpoint import read_checkpoint
from .core import Backbone, check_image
from .load import architectures, load_backbone
from .spec import Spec

__all__ = ["Backbone", "Spec", "architectures", "check_image", "load_backbone", "read_checkpoint"]
