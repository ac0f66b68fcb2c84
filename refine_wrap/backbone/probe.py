"""Find out, by trying once, how a network that nobody declared wants its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RefineWrapError
from .spec import Spec

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 112, 128)
Call = Callable[[nn.Module, Tensor], Tensor] | None


def probe(module: nn.Module, call: Call, given: dict[str, Any]) -> tuple[Spec, frozenset[str]]:
    """Run the module on a few small pictures and read off scale, size multiple, minimum, channels and tap.

    Args:
        module: the network; its mode, gradients and the random state are left as they were.
        call: how to call it.
        given: fields that the user declares; they are not tried.

    Returns:
        The spec and the names of the fields that are only assumed: range, order and float16 cannot be tried.

    Raises:
        RefineWrapError: it runs on no picture, or its output is not an image of a whole multiple of the size.
    """
    tensors = [*module.parameters(), *module.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(1))
    if like.device.type == "meta":
        raise RefineWrapError(
            f"{type(module).__name__} has no values yet (meta device)", "a network that can run", "load it first"
        )
    was_training = {m: m.training for m in module.modules()}
    devices = [like.device] if like.device.type == "cuda" else []
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            return _probe(module, call, like, given)
    finally:
        for child, mode in was_training.items():
            child.training = mode


def _probe(module: nn.Module, call: Call, like: Tensor, given: dict[str, Any]) -> tuple[Spec, frozenset[str]]:
    errors: list[str] = []
    low, high = given.get("value_range", (0.0, 1.0))

    def run(channels: int, height: int, width: int) -> Tensor | None:
        torch.manual_seed(0)
        x = torch.rand(1, channels, height, width, device=like.device, dtype=like.dtype) * (high - low) + low
        try:
            y = module(x) if call is None else call(module, x)
        except Exception as error:  # the network is anybody's: whatever it raises says "not this size"
            errors.append(f"{type(error).__name__}: {error}")
            return None
        if not isinstance(y, Tensor) or y.ndim != 4:
            what = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise RefineWrapError(
                f"{type(module).__name__} returns {what} for an input of {tuple(x.shape)}",
                "one image, (B, C, H, W)",
                "wrap it in a module that returns the image alone",
            )
        return y

    channels, size, first = 0, 0, None
    for size in (64, 128, 192, 224, 256):
        for channels in [given["channels"]] if "channels" in given else (3, 1):
            first = run(channels, size, size)
            if first is not None:
                break
        if first is not None:
            break
    if first is None:
        raise RefineWrapError(
            f"{type(module).__name__} does not run on 3 or 1 channels of 64 to 256 pixels: {errors[0][:160]}",
            "a network that takes (B, C, H, W) and returns the restored image",
            "pass Backbone(module, spec={...}) with what it needs, or wrap it",
        )
    scale = given.get("scale", first.shape[-1] // size)
    if first.shape[-2:] != (size * scale, size * scale) or scale < 1 or first.shape[1] != channels:
        raise RefineWrapError(
            f"{type(module).__name__} returns {tuple(first.shape)} for an input of {(1, channels, size, size)}",
            "as many channels as it takes and a whole multiple of the size",
        )

    def fits(height: int, width: int) -> bool:
        y = run(channels, height, width)
        return y is not None and y.shape[-2:] == (height * scale, width * scale)

    multiple = given.get("multiple_of") or next(
        (m for m in MULTIPLES if m <= size and fits(*_odd_sizes(m, size))), size
    )
    sides = [multiple * k for k in (1, 2, 3, 4, 6, 8, 12, 16) if multiple * k < size]
    minimum = given.get("minimum") or next((s for s in sides if fits(s, s)), size)
    tap = given.get("tap") or _find_tap(module, call, run, channels, size)
    spec = Spec(
        family=type(module).__name__,
        scale=scale,
        multiple_of=multiple,
        minimum=minimum,
        channels=channels,
        tap=tap,
        tiling="approximate",
    )
    return spec, frozenset({"value_range", "order", "half_ok", "tiling", "tap", "lora"} - set(given))


def _odd_sizes(multiple: int, size: int) -> tuple[int, int]:
    """Two sides that are multiples of `multiple` and, as far as can be, of nothing else."""
    count = max(size // multiple, 1)
    return multiple * (count + 1 - count % 2), multiple * (count + 3 - count % 2)


def _find_tap(
    module: nn.Module, call: Call, run: Callable[[int, int, int], Tensor | None], channels: int, size: int
) -> str | None:
    """The last layer that leaves many maps at the input's own resolution: deep features before the output's tail.

    Where none does, the last one that leaves many maps of any size.
    """
    found: dict[bool, str] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] > 4 * channels:
                found[output.shape[-2:] == (size, size)] = name

        return hook

    layers = [(n, m) for n, m in module.named_modules() if n and isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    try:
        run(channels, size, size)
    finally:
        for handle in handles:
            handle.remove()
    return found.get(True, found.get(False))
