"""Any no-reference metric of pyiqa, where pyiqa is installed and the metric's weights are on the machine already.

pyiqa's licence is non-commercial. It fetches weights when a metric is made; here, what is missing is refused by name.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backbone.checkpoint import tensors_digest
from ..errors import CheckpointError, RefineWrapError
from .core import Scorer
from .library import one_by_one

_PROBE = 224
"""Side of the image on which a metric is tried when it is loaded."""


class PyIQA(Scorer):
    """A metric of pyiqa by its name there, on its scale: direction and range are those of pyiqa's own table.

    Whether it has a gradient is tried on an image. Images go through it one at a time.

    Args:
        metric: as in `pyiqa.list_models(metric_mode="NR")`.

    Raises:
        RefineWrapError: pyiqa is not there, has no such metric, or none that scores an image alone on a known scale.
        CheckpointError: the metric's weights are not on this machine.
    """

    licence = "PolyForm-Noncommercial-1.0.0 (pyiqa)"

    def __init__(self, metric: str) -> None:
        super().__init__()
        configs, version = _table()
        self.name, self.version = ("piqe" if metric == "piqe" else f"pyiqa:{metric}"), version
        self.worst, self.best = _scale(metric, configs)
        self.net = _built(metric, self.name).requires_grad_(False)
        self.differentiable = self._has_gradient()

    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,)."""
        image = self.checked(image)
        with torch.autocast(image.device.type, enabled=False):
            return one_by_one(self.name, image, self._score)

    def _score(self, image: Tensor) -> Tensor:
        score: Tensor = self.net(image)
        return score

    def _has_gradient(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, _PROBE, _PROBE, generator=generator).requires_grad_()
        with torch.enable_grad():
            score = self.raw(image)
            if not score.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(score.sum(), image, allow_unused=True)
        return gradient is not None and bool(gradient.isfinite().all() & gradient.any())

    def digest(self) -> str:
        """Of the weights and pyiqa's version: its code changes too."""
        return hashlib.sha256(f"pyiqa {self.version} {tensors_digest(self.state_dict())}".encode()).hexdigest()


def _table() -> tuple[dict[str, dict[str, Any]], str]:
    """pyiqa's table of metrics, and its version."""
    try:
        from pyiqa import __version__
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError as error:
        raise RefineWrapError(
            f"This scorer needs the package pyiqa, which cannot be imported ({error})",
            "pyiqa installed; its licence is non-commercial",
            "pip install 'refine-wrap[iqa]'",
        ) from None
    return dict(DEFAULT_CONFIGS), str(__version__)


def _scale(metric: str, configs: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Worst and best value, as the table says: its ranges read `0, 100` or, roughly, `~0, ~100`."""
    usable = {name: bounds for name, config in configs.items() if (bounds := _bounds(config)) is not None}
    if metric not in usable:
        near = difflib.get_close_matches(metric, usable, n=3, cutoff=0.5)
        known = "has no range for it, or needs a reference" if metric in configs else "has none of that name"
        raise RefineWrapError(
            f"The metric {metric!r} cannot be had from pyiqa, which {known}",
            "one of " + ", ".join(list(usable)[:8]) + ", ...",
            f"did you mean {' or '.join('pyiqa:' + name for name in near)}?" if near else None,
        )
    return usable[metric]


def _bounds(config: dict[str, Any]) -> tuple[float, float] | None:
    try:
        low, high = (float(text.strip().lstrip("~")) for text in str(config.get("score_range")).split(","))
    except ValueError:
        return None
    if config.get("metric_mode") != "NR":
        return None
    return (high, low) if config.get("lower_better") else (low, high)


# ---------------------------------------------------------------- without downloads


def _built(metric: str, name: str) -> Any:
    """The metric's network.

    Raises:
        CheckpointError: it would have to fetch a file.
        RefineWrapError: it cannot be made for another reason.
    """
    from pyiqa.models.inference_model import InferenceModel

    with _offline() as asked, contextlib.redirect_stdout(io.StringIO()):
        try:
            return InferenceModel(metric, device="cpu").net.eval()
        # What pyiqa and the libraries below it raise without a network is of many kinds.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            failure = error
    address = asked[-1] if asked else _address_in(failure)
    if address is None:
        raise RefineWrapError(
            f"{name} cannot be made by pyiqa ({reason.splitlines()[0][:160]})", "what pyiqa needs for it installed"
        ) from failure
    file = address.rsplit("/", 1)[-1]
    raise CheckpointError(
        f"{name} needs {file}, which is not on this machine; nothing is downloaded here",
        f"what pyiqa keeps of {address}",
        f"fetch it once with pyiqa itself: python -c \"import pyiqa; pyiqa.create_metric('{metric}')\"",
    ) from failure


_guarded = threading.local()
_hooked = threading.Lock()
_hook_is_set = False


@contextlib.contextmanager
def _offline() -> Iterator[list[str]]:
    """Let this thread open no connection, as if there were no network; gives the addresses that were asked for.

    What lies in a cache is found, as it would be without a network.
    """
    global _hook_is_set
    from huggingface_hub import constants

    with _hooked:
        if not _hook_is_set:
            sys.addaudithook(_refuse)  # there is no way to remove one; outside of this block it does nothing
            _hook_is_set = True
    asked: list[str] = []
    before = constants.HF_HUB_OFFLINE  # the Hub's library would try for long
    _guarded.asked, constants.HF_HUB_OFFLINE = asked, True
    try:
        yield asked
    finally:
        _guarded.asked, constants.HF_HUB_OFFLINE = None, before


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("urllib.Request", "socket.getaddrinfo") and getattr(_guarded, "asked", None) is not None:
        _guarded.asked.append(str(arguments[0]))
        raise ConnectionRefusedError(f"not fetched: {arguments[0]}")


def _address_in(error: BaseException | None) -> str | None:
    """The address that the Hub's library names in one of the errors that led to this one."""
    while error is not None:
        word = next((word for word in str(error).split() if word.startswith("https://")), None)
        if word is not None:
            return word.rstrip(":.,'\"")
        error = error.__cause__ or error.__context__
    return None
