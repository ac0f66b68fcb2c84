"""Read a file of weights, safely, and say what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pkl", ".bin")
WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net")
"""In this order: the averaged weights are the ones that papers report."""
BACKBONE_KEY = "refine_wrap.backbone"
"""Key of the safetensors metadata under which `load_backbone` finds the architecture and its options."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of a `.safetensors` or `.pth` file, and its metadata.

    `.pth` is read by weights-only loading: no code of the file is run. `params_ema` comes before `params` before a bare
    state dict; a common `module.` is taken off. The metadata gains `"unwrapped"`, the key that was used.

    Raises:
        CheckpointError: missing, empty, truncated, not a state dict, or with values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}", "a checkpoint: " + ", ".join(SUFFIXES))
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path} is not a checkpoint by its name", "a file ending in " + ", ".join(SUFFIXES))
    if path.suffix.lower() == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content, metadata = _read_pickle(path), {}
    state, used = unwrap(content, path)
    check_finite(state, "this file was saved from a broken run", str(path))
    return state, {**metadata, "unwrapped": used}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error})", "a complete file", "copy or download it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}", "a readable file") from None


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(2)
        if head[:1] != b"\x80" and head != b"PK":  # a pickle, or torch's archive; at other files torch guesses
            raise CheckpointError(
                f"{path} is no whole checkpoint", "a file written by torch.save", "copy or download it again"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise CheckpointError(
                f"{path} holds more than tensors: {_unsafe_global(str(error))}",
                "a file that weights-only loading can read",
                "if you trust it, load it once with weights_only=False and save its state dict as safetensors",
            ) from None
        raise CheckpointError(
            f"{path} is no whole checkpoint", "a file written by torch.save", "copy or download it again"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, IndexError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no whole checkpoint ({reason})", "a file written by torch.save", "copy or download it again"
        ) from None


def _unsafe_global(message: str) -> str:
    for line in message.splitlines():
        if "global" in line.lower():
            return line.strip()[:160]
    return message.splitlines()[0][:160]


def unwrap(content: Any, path: Path | str) -> tuple[dict[str, Tensor], str]:
    """The state dict inside a checkpoint, and the key under which it stood ("" for a bare one).

    Raises:
        CheckpointError: there is none; the keys that are there are named.
    """
    used = ""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content, used = content[key], key
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = (
            ", ".join(map(str, list(content)[:6]))
            if isinstance(content, Mapping) and content
            else type(content).__name__
        )
        raise CheckpointError(
            f"{path} holds no state dict (found: {found})", "tensors by name, bare or under " + ", ".join(WRAPPERS)
        )
    state = {str(name): value for name, value in content.items()}
    for prefix in ("module.", "netG.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state, used


def check_keys(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str, network: str) -> None:
    """Refuse, in one sentence, a state dict whose keys or shapes are not those of the network.

    Raises:
        CheckpointError: naming the first few missing, unexpected and mis-shaped keys.
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shaped = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{what} does not fit {network}: keys {'; '.join(faults)}",
            "every key, and each of the same shape",
            "check the architecture's options against those that the checkpoint was trained with",
        )


def check_finite(tensors: Mapping[str, Tensor], next_step: str, what: str | None = None) -> None:
    """Refuse weights that are not finite.

    Raises:
        CheckpointError: it names `what` (where they are from) and the first such tensor.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            place = f"{what}: " if what is not None else ""
            raise CheckpointError(f"{place}{name} holds values that are not finite", "finite weights", next_step)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and the values as float32, whatever type and device they are in."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def recorded_architecture(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The architecture's name and options that our trainer writes beside the weights it saves."""
    text = metadata.get(BACKBONE_KEY)
    return json.loads(text) if text else None
