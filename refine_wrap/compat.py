"""What old dependencies need on today's versions of others. Light: nothing heavy is imported before it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SHIMMED = "torchvision.transforms.functional_tensor"
"""basicsr 1.4.2 imports `rgb_to_grayscale` from this module, which torchvision 0.17 removed (BasicSR issue 663)."""


class _FunctionalTensor(MetaPathFinder, Loader):
    """Provides the removed module; it stands last, so that a torchvision that still has it is asked first."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == SHIMMED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms import functional

        module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]


def install() -> None:
    """Make `import basicsr` work with today's torchvision. `import refine_wrap` calls it; again: nothing."""
    if not any(isinstance(finder, _FunctionalTensor) for finder in sys.meta_path):
        sys.meta_path.append(_FunctionalTensor())


def shim_state() -> str:
    """In words, for `refine-wrap doctor`: whether the shim is in place and in use."""
    if not any(isinstance(finder, _FunctionalTensor) for finder in sys.meta_path):
        return "not installed"
    module = sys.modules.get(SHIMMED)
    if module is None:
        return "installed, not needed so far"
    loader = getattr(module.__spec__, "loader", None)
    return (
        "installed and in use"
        if isinstance(loader, _FunctionalTensor)
        else "installed, torchvision's own module is used"
    )


def mend_basicsr() -> None:
    """Replace what of basicsr 1.4.2's pipeline fails today, for `refine_wrap.basicsr_plugin`; again: nothing.

    Raises:
        ImportError: BasicSR is not installed.
    """
    install()
    # It maps every tensor of a training state to a GPU, and so cannot resume where there is none.
    import_module("basicsr.train").load_resume_state = _resume_state  # type: ignore[attr-defined]


def _resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The training state that BasicSR's options ask for, on the CPU: the optimisers put it where their weights are."""
    import torch

    if opt["auto_resume"]:
        states = sorted(Path(opt["path"]["training_states"]).glob("*.state"), key=lambda state: float(state.stem))
        opt["path"]["resume_state"] = str(states[-1]) if states else None
    if not opt["path"].get("resume_state"):
        return None
    state: dict[str, Any] = torch.load(opt["path"]["resume_state"], map_location="cpu", weights_only=True)
    import_module("basicsr.utils").check_resume(opt, state["iter"])
    return state
