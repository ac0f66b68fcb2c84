"""An adapter as a folder on disk, and the Hugging Face Hub: save, load, fetch, push, and the model card."""

from ..resources import manifest, verify_file, verify_weights
from .adapter import FORMAT_VERSION, KINDS, WRAPPED, Adapter
from .card import model_card
from .disk import TENSORS, load_adapter, save_adapter
from .network import load_network
from .reference import Reference, parse_reference
from .remote import TRAINED, fetch_file, push_folder, resolve

__all__ = [
    "FORMAT_VERSION",
    "KINDS",
    "TENSORS",
    "TRAINED",
    "WRAPPED",
    "Adapter",
    "Reference",
    "fetch_file",
    "load_adapter",
    "load_network",
    "manifest",
    "model_card",
    "parse_reference",
    "push_folder",
    "resolve",
    "save_adapter",
    "verify_file",
    "verify_weights",
]
