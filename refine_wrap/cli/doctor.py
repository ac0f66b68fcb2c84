"""`refine-wrap doctor`: what is installed, what it runs on, and what will not work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path

import typer

REQUIRED = (
    "torch",
    "torchvision",
    "spandrel",
    "safetensors",
    "huggingface_hub",
    "accelerate",
    "pydantic",
    "pillow",
    "opencv-python",
)
OPTIONAL = {
    "basicsr": "BasicSR's registry (EDSR, RCAN, MSRResNet)",
    "spandrel_extra_arches": "Restormer, SRFormer and others",
}


def doctor() -> int:
    """Check the installation: versions, device, BasicSR's shim, cache, write rights, shipped weights."""
    from .. import __version__
    from .common import notices

    failed: list[str] = []

    def line(good: bool | None, what: str, detail: str) -> None:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[good]
        typer.echo(f"{mark}  {what:24} {detail}")
        if good is False:
            failed.append(what)

    line(None, "refine-wrap", __version__)
    line(None, "python", f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        version = _version(name)
        line(version is not None, name, version or "not installed")
    for name, use in OPTIONAL.items():
        line(None, name, _version(name) or f"not installed ({use} cannot be had)")
    with notices():
        line(*_basicsr())
        line(*_device())
        line(*_cache())
        line(*_writable("this folder", Path.cwd()))
        line(*_writable("temporary files", Path(tempfile.gettempdir())))
        for good, name, detail in _weights():
            line(good, name, detail)
    typer.echo("All is well." if not failed else f"Wrong: {', '.join(failed)}")
    return 1 if failed else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _version("opencv-python-headless") if package == "opencv-python" else None


def _basicsr() -> tuple[bool | None, str, str]:
    from ..compat import shim_state as state

    if _version("basicsr") is None:
        return None, "torchvision shim", state()
    try:
        import basicsr.archs  # noqa: F401
    except Exception as error:  # whatever an old package raises on new ones is what the user wants to read
        return False, "torchvision shim", f"{state()}, and basicsr does not import: {type(error).__name__}: {error}"
    return True, "torchvision shim", f"{state()}; basicsr imports"


def _device() -> tuple[bool | None, str, str]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return True, "device", f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if torch.backends.mps.is_available():
        return True, "device", "mps"
    return True, "device", f"cpu only, {torch.get_num_threads()} threads"


def _cache() -> tuple[bool | None, str, str]:
    from huggingface_hub import constants

    offline = " (offline: nothing is downloaded)" if constants.HF_HUB_OFFLINE else ""
    good, _, detail = _writable("Hub cache", Path(constants.HF_HUB_CACHE))
    return good, "Hub cache", f"{detail}, from {constants.ENDPOINT}{offline}"


def _writable(name: str, folder: Path) -> tuple[bool | None, str, str]:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    return os.access(there, os.W_OK), name, f"{folder} is {'writable' if os.access(there, os.W_OK) else 'not writable'}"


def _weights() -> list[tuple[bool | None, str, str]]:
    from ..resources import verify_weights

    return [(check.ok, f"weights {check.name}", check.message or str(check.path.name)) for check in verify_weights()]
