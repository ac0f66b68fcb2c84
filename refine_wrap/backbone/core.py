"""Backbone: one contract around any restoration network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ImageError, MismatchError, RefineWrapError
from .checkpoint import BACKBONE_KEY, check_finite, check_keys, tensors_digest
from .families import declared, published_name
from .probe import probe
from .spec import Spec

# Buffers that follow from the options and the training size, by a part of their names: no part of what was learned.
COMPUTED = ("attn_mask", "relative_position_index", "relative_coords_table", "rpe_biases", "num_batches_tracked")
HALF = (torch.float16, torch.bfloat16)


class Backbone(nn.Module):
    """An untouched restoration network behind one contract.

    `backbone(image)` takes (B, 3, H, W) RGB in [0, 1] of any size from 1x1 up and any floating type, and returns
    (B, 3, H * scale, W * scale) in the same type, not clamped. Range, order, grey channels and padding (reflected up to
    size - 1, then replicated, cropped after) are handled here and nowhere else.

    Args:
        module: the network. Its class is looked up among the declared families; a class that nobody declared is probed
            (scale, size multiple, minimum, channels, tap), the rest is assumed.
        spec: what is known of it, instead of looking it up; or a mapping of the fields that differ, such as
            `{"value_range": (-1, 1), "order": "bgr"}`.
        source: where it came from, as JSON (`load_backbone` fills it in).
        call: how to call it, where that is not `module(image)`.

    Raises:
        RefineWrapError: the module cannot be run on an image, or a field of `spec` is wrong.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: Spec | Mapping[str, Any] | None = None,
        *,
        source: Mapping[str, Any] | None = None,
        call: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(module, Backbone):
            raise RefineWrapError("Backbone got a Backbone", "the network itself", "use backbone.module")
        if not isinstance(module, nn.Module):
            raise RefineWrapError(f"Backbone got {type(module).__name__}", "an nn.Module")
        self.module = module
        self.source: dict[str, Any] = dict(source or {})
        self.call = call
        self.assumed: frozenset[str] = frozenset()
        if isinstance(spec, Spec):
            self.spec = spec
        else:
            known = declared(module)
            if known is None:
                known, self.assumed = probe(module, call, dict(spec or {}))
            try:
                self.spec = replace(known, **dict(spec or {}))
            except TypeError:
                wrong = sorted(set(spec or {}) - set(known.as_dict()))
                raise RefineWrapError(
                    f"Backbone got spec fields {wrong}", f"some of {', '.join(known.as_dict())}"
                ) from None
        if self.spec.tap is not None and self.spec.tap not in dict(module.named_modules()):
            raise RefineWrapError(
                f"{type(module).__name__} has no submodule {self.spec.tap!r} to tap", "a name from named_modules()"
            )

    def forward(self, image: Tensor, quality: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H * scale, W * scale); a quality (B,) is for one that takes it (`spec.quality`)."""
        spec = self.spec
        check_image(image)
        x = image.clone()  # some networks work on their input in place, such as RCAN
        dtype = self.dtype
        if dtype in HALF:
            if dtype == torch.float16 and not spec.half_ok:
                raise RefineWrapError(
                    f"{spec.family} has float16 weights",
                    "float32 or bfloat16: float16 is not declared safe for it",
                    "use .float(), .bfloat16() or autocast",
                )
            x = x.to(dtype)
        elif image.dtype in HALF and not torch.is_autocast_enabled(image.device.type):
            x = x.to(dtype)
        batch, channels, height, width = x.shape
        if spec.channels == 1:
            x = x.reshape(batch * channels, 1, height, width)
        elif spec.order == "bgr":
            x = x.flip(1)
        low, high = spec.value_range
        if (low, high) != (0.0, 1.0):
            x = x * (high - low) + low
        x = _pad(x, *spec.padded(height, width))
        # Networks that make float32 masks or means on the way (SwinIR) run in half weights only with autocast's help.
        with torch.autocast(x.device.type, dtype) if x.dtype in HALF else nullcontext():
            if spec.quality and quality is not None:
                y = self.module(x, quality.to(x.dtype))
            else:
                y = self.module(x) if self.call is None else self.call(self.module, x)
        expected = (x.shape[0], x.shape[1], x.shape[2] * spec.scale, x.shape[3] * spec.scale)
        if not isinstance(y, Tensor) or tuple(y.shape) != expected:
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise RefineWrapError(
                f"{spec.family} returned {got} for an input of {tuple(x.shape)}",
                f"a tensor of shape {expected}",
                "pass Backbone(module, spec={'scale': ...}) or wrap the module so that it returns the image",
            )
        y = y[..., : height * spec.scale, : width * spec.scale]
        if (low, high) != (0.0, 1.0):
            y = (y - low) / (high - low)
        if spec.channels == 1:
            y = y.reshape(batch, channels, *y.shape[-2:])
        elif spec.order == "bgr":
            y = y.flip(1)
        # Under autocast the network decides the type, as it does without us.
        return y if torch.is_autocast_enabled(image.device.type) else y.to(image.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating parameter or buffer; float32 where there is none."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer; the CPU where there is none."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            return tensor.device
        return torch.device("cpu")

    def published_state_dict(self) -> dict[str, Tensor]:
        """The network's whole state dict under its published names (spandrel renames ESRGAN's)."""
        rename = published_name(self.module)
        return {rename(name): value for name, value in self.module.state_dict().items()}

    def load_published(self, state: Mapping[str, Tensor], what: str = "the checkpoint") -> None:
        """Load a state dict of published names, strictly; buffers that are computed may be there or not.

        Raises:
            CheckpointError: keys are missing or unexpected, or shapes differ; nothing is loaded then.
        """
        rename = published_name(self.module)
        own = {rename(name): name for name in self.module.state_dict()}
        given = {name: value for name, value in state.items() if name in own or not _computed(name)}
        check_keys(self._learned(), {n: v for n, v in given.items() if not _computed(n)}, what, self.spec.family)
        fitting = {own[n]: v for n, v in given.items() if not _computed(n)}
        self.module.load_state_dict(fitting, strict=False)

    def save_published(self, path: str | Path) -> Path:
        """Write the weights under their published names, as others load them: spandrel, BasicSR, chaiNNer.

        Args:
            path: `.pth` for `{"params_ema": {name: tensor}}` as BasicSR saves it, `.safetensors` for the tensors alone
                (with the architecture in the metadata where it was named). A file that is there is replaced.

        Raises:
            CheckpointError: another suffix, or a weight is not finite.
            OutputError: it cannot be written; a file that was there is intact.
        """
        from safetensors.torch import save

        from ..folder import atomic_path

        path = Path(path)
        if path.suffix.lower() not in (".pth", ".safetensors"):
            raise CheckpointError(f"{path} is no checkpoint by its name", "a file ending in .pth or .safetensors")
        # Clones: tensors that share memory are refused by safetensors, and a .pth would hold all that they are part of.
        tensors = {n: v.detach().cpu().clone().contiguous() for n, v in self.published_state_dict().items()}
        check_finite(tensors, "do not keep this run")
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".pth":
                torch.save({"params_ema": tensors}, temporary)
            else:
                # Of a network that spandrel recognises by its keys nothing needs to be recorded.
                rebuild = self.rebuild()
                metadata = {"format": "pt", **({BACKBONE_KEY: json.dumps(rebuild)} if "arch" in rebuild else {})}
                # Through bytes: safetensors' own files are readable by their owner alone, whatever the umask.
                temporary.write_bytes(save(tensors, metadata))
        return path

    def rebuild(self) -> dict[str, Any]:
        """What `load_backbone` needs beside the weights, of a network that was built by its architecture's name."""
        return {key: self.source[key] for key in ("arch", "options", "spec") if self.source.get(key)}

    def _learned(self) -> dict[str, Tensor]:
        """What training made: the published state dict without the buffers that are computed."""
        return {name: value for name, value in self.published_state_dict().items() if not _computed(name)}

    def structure_hash(self) -> str:
        """SHA-256 over the published names and shapes: two networks of one hash can take one another's weights."""
        lines = sorted(f"{name} {tuple(value.shape)}" for name, value in self._learned().items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def weights_hash(self) -> str:
        """SHA-256 over the published names and the values as float32: a lossless copy in float16 has the same."""
        return tensors_digest(self._learned())

    def check_fingerprint(self, wanted: Mapping[str, Any], *, allow_other_weights: bool = False) -> None:
        """Compare with what an adapter recorded: `{"family", "structure", "weights"}`.

        Raises:
            MismatchError: another structure, or other weights and `allow_other_weights` is false.
        """
        theirs = f"{wanted.get('family', 'a network')} ({_short(wanted.get('structure'))})"
        ours = f"{self.spec.family} ({_short(self.structure_hash())})"
        if wanted.get("structure") != self.structure_hash():
            raise MismatchError(
                f"This adapter was made for the backbone {theirs}, not for {ours}",
                "a backbone of the same architecture and options",
                "load the backbone that the adapter's card names",
            )
        if not allow_other_weights and wanted.get("weights") != self.weights_hash():
            raise MismatchError(
                f"This adapter was made for {theirs} with weights {_short(wanted.get('weights'))}, "
                f"this {self.spec.family} has weights {_short(self.weights_hash())}",
                "the very weights that the adapter was trained on",
                "load those, or pass allow_other_weights=True if you know that they are near",
            )

    def describe(self) -> dict[str, Any]:
        """The declaration and what of it is only assumed, for `info`."""
        return {
            **self.spec.as_dict(),
            "class": type(self.module).__name__,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "assumed": sorted(self.assumed),
            "source": self.source,
        }

    def extra_repr(self) -> str:
        return f"family={self.spec.family!r}, scale={self.spec.scale}"


def check_image(image: Tensor) -> None:
    """Refuse what is not (B, 3, H, W) of a floating type with at least one pixel.

    Raises:
        ImageError: with what came and what was expected.
    """
    if not isinstance(image, Tensor):
        raise ImageError(f"The image is a {type(image).__name__}", "a tensor (B, 3, H, W), RGB in [0, 1]")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ImageError(f"The image has shape {tuple(image.shape)}", "(B, 3, H, W) with at least one pixel")
    if not image.is_floating_point():
        raise ImageError(f"The image is of type {image.dtype}", "a floating type, RGB in [0, 1]", "divide by 255 first")


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Grow to (height, width) at the right and below: reflected as far as that goes, replicated beyond."""
    down, right = height - x.shape[-2], width - x.shape[-1]
    if not (down or right):
        return x
    mirrored = (min(right, x.shape[-1] - 1), min(down, x.shape[-2] - 1))
    if any(mirrored):
        x = F.pad(x, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
    rest = (right - mirrored[0], down - mirrored[1])
    return F.pad(x, (0, rest[0], 0, rest[1]), mode="replicate") if any(rest) else x


def _computed(name: str) -> bool:
    return any(part in name for part in COMPUTED)


def _short(digest: Any) -> str:
    return str(digest)[:8] if digest else "not recorded"
