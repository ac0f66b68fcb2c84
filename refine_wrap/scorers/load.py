"""load_scorer: from a name, a file or a folder to a Scorer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, RefineWrapError
from ..resources import manifest, weights_dir
from .brisque import BRISQUE
from .cnniqa import CNNIQA
from .core import Scorer, frozen
from .learned import LearnedScorer
from .nima import NIMA
from .niqe import NIQE
from .pyiqa import PyIQA

WITH_FILE: dict[str, Callable[[Path], Scorer]] = {"niqe": NIQE, "cnniqa": CNNIQA, "nima": NIMA}
"""Scorers whose weights are a file: `NAME=FILE`."""
ORIGIN = {
    "cnniqa": "CNNIQA-LIVE of github.com/lidq92/CNNIQA, its name ending in .pth, or the same as .safetensors",
    "nima": "weights_mobilenet_aesthetic_0.07 of github.com/idealo/image-quality-assessment as .safetensors",
}
"""Which file belongs to one that cannot be had otherwise."""
ALONE: dict[str, Callable[[], Scorer]] = {"niqe": NIQE, "brisque": BRISQUE, "piqe": lambda: PyIQA("piqe")}
"""Scorers that need no file, where the packages they come from are installed."""
NETWORKS: dict[str, Callable[..., Scorer]] = {"learned": LearnedScorer}
"""What the config of an adapter of kind scorer may name under `scorer`; the rest of the config are its arguments."""


def load_scorer(source: str | Path | Scorer, *, device: str | torch.device = "cpu") -> Scorer:
    """Load a no-reference scorer.

    Args:
        source: one of
            `"niqe"`, `"brisque"`, `"piqe"`, where BasicSR, brisque or pyiqa are installed;
            `"niqe=FILE"`, `"cnniqa=FILE"`, `"nima=FILE"`: with the weights of a file, which may be `hf://` too;
            `"pyiqa:NAME"`, a no-reference metric of pyiqa whose weights are on this machine already;
            a folder, `"shipped:NAME"`, or `org/name` on the Hub: a scorer that this package trained;
            a `Scorer`.
        device: where to put it.

    Raises:
        RefineWrapError: there is no such scorer, or the package that it needs is not installed.
        CheckpointError: its weights cannot be had, or are not its.
        HubError: the Hub repository cannot be had.
    """
    if isinstance(source, Scorer):
        return source.to(device)
    text = str(source)
    name, sign, file = text.partition("=")
    if isinstance(source, Path):
        scorer = _from_adapter(source)
    elif text.startswith("pyiqa:"):
        scorer = PyIQA(text.removeprefix("pyiqa:"))
    elif text in ALONE:
        scorer = ALONE[text]()
    elif sign and name in WITH_FILE:
        scorer = _from_file(name, file)
    elif text.startswith(("shipped:", "hf://")) or "/" in text or Path(text).is_dir():
        scorer = _from_adapter(text)
    else:
        raise _unknown(text)
    return scorer.to(device)


def scorer_names() -> list[str]:
    """The names that `load_scorer` knows without a file or a folder of one's own: built in, and shipped."""
    return sorted({*ALONE, *WITH_FILE}) + shipped_scorers()


def shipped_scorers() -> list[str]:
    """The scorers that come with the package, as `load_scorer` takes them."""
    from ..hub.disk import DOCUMENT, TENSORS, read_document

    folders = {
        str(entry["name"]): (weights_dir() / entry["file"]).parent
        for entry in manifest()["local"]
        if Path(entry["file"]).name == TENSORS
    }
    kinds = {name: read_document(folder / DOCUMENT)["kind"] for name, folder in folders.items()}
    return sorted(f"shipped:{name}" for name, kind in kinds.items() if kind == "scorer")


def _from_file(name: str, file: str) -> Scorer:
    from ..backbone.load import locate

    if not file:
        raise CheckpointError(f"{name}= names no file", f"{name}=FILE")
    return WITH_FILE[name](locate(file)[0])


def _from_adapter(source: str | Path) -> Scorer:
    from ..hub import load_adapter, resolve

    path = Path(source)
    if path.is_file() and path.name not in ("adapter.json", "adapter.safetensors"):
        choices = " or ".join(f"{name}={source}" for name in WITH_FILE)
        raise RefineWrapError(f"{source} is a file, and does not say which scorer's it is", "its name too", choices)
    folder = resolve(source)
    adapter = load_adapter(folder)
    if adapter.kind != "scorer":
        raise CheckpointError(f"{folder} is of kind {adapter.kind}", "an adapter of kind scorer")
    scorer = _built(adapter.config, str(source))
    frozen(scorer, adapter.tensors)
    if adapter.licence is not None:
        scorer.licence = adapter.licence
    return scorer.eval()


def _built(config: Mapping[str, Any], what: str) -> Scorer:
    network, arguments = config.get("scorer"), {key: value for key, value in config.items() if key != "scorer"}
    if network not in NETWORKS:
        raise CheckpointError(
            f"{what} holds a scorer of the network {network!r}",
            "one of " + ", ".join(NETWORKS),
            "if it is newer: pip install --upgrade refine-wrap",
        )
    try:
        return NETWORKS[network](**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"{what}: the network {network} cannot be built with {arguments}: {error}", "its own config, unedited"
        ) from None


def _unknown(text: str) -> RefineWrapError:
    name = text.partition("=")[0].strip().lower()
    if text in WITH_FILE:
        return CheckpointError(
            f"{text} needs weights, which do not come with this package", f"{text}=FILE with {ORIGIN[text]}"
        )
    if "=" in text and name in ALONE:
        return RefineWrapError(f"{name} takes no file", name)
    known = scorer_names()
    near = difflib.get_close_matches(name, [*known, *(word.removeprefix("shipped:") for word in known)], 2, cutoff=0.5)
    near = [word if word in known else f"shipped:{word}" for word in near]
    return RefineWrapError(
        f"There is no scorer {text!r}",
        "one of " + ", ".join(known) + ", pyiqa:NAME, NAME=FILE, or a scorer's folder",
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else None,
    )
