"""What the layers of a network say: receptive radius, operations that see the whole image, memory and work."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import RefineWrapError
from .reach import Axis, Reach, image_dims
from .rules import Rules, is_write

_MARK = "_refine_wrap_reach"
# The reach travels as an attribute of the tensor: torch keeps a tensor's Python attributes for as long as the tensor
# lives, also while only C++ holds it, whereas weak references to such a tensor die early.


@dataclass(frozen=True)
class LayerTrace:
    """What one forward pass showed.

    Attributes:
        receptive_radius: input pixels beyond a pixel's own on which its output can depend, leaving out what
            `global_operations` bring in.
        global_operations: names of operations that join places of the image without limit or whose result depends on
            where the tile is cut; empty for a network whose tiles equal the whole.
        peak_bytes_per_pixel: largest number of bytes alive at once, input and output included, weights and the
            workspace of kernels not, per input pixel.
        macs: multiply-adds of convolutions, linear layers and matrix products in this pass.
        height, width: size of the traced input in pixels.
        scale: output height over input height.
    """

    receptive_radius: int
    global_operations: tuple[str, ...]
    peak_bytes_per_pixel: float
    macs: int
    height: int
    width: int
    scale: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether tiles equal the whole once the halo is as wide as the receptive radius."""
        return not self.global_operations

    @property
    def macs_per_pixel(self) -> float:
        return self.macs / (self.height * self.width)


class _Memory:
    """Bytes of the storages that were born under watch and are still alive."""

    def __init__(self) -> None:
        self.alive, self.peak = 0, 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def own(self, tensor: Tensor, count: bool = True) -> None:
        """Watches the tensor's storage; `count=False` for one that was there before, such as a weight."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and other tensors without a storage
            return
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if count else 0
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone(_: object) -> None:
            self.alive -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows reach, memory and multiply-adds through every operation of one forward pass."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self.height, self.width = height, width
        self.memory, self.rules, self.macs = _Memory(), Rules(), 0
        self._flops = flop_registry
        self._written: dict[int, Reach] = {}

    def read(self, tensor: Tensor) -> Reach | None:
        """The tensor's reach, with what was written into its storage through other views."""
        reach: Reach | None = getattr(tensor, _MARK, None)
        written = self._written.get(_storage_key(tensor))
        if written is None:
            return reach
        if reach is None:
            dims = image_dims(tensor.shape)
            reach = Reach(Axis(), Axis(), dims)
            y, x = (self.height / reach.size("Y"), self.width / reach.size("X"))
            reach = replace(reach, y=Axis(jump=y), x=Axis(jump=x))
        return reach.joined(written)

    def mark(self, tensor: Tensor, reach: Reach, written: bool) -> None:
        setattr(tensor, _MARK, reach)
        key = _storage_key(tensor)
        if written and key:
            before = self._written.get(key)
            self._written[key] = before.joined(reach) if before else reach

    def forget(self, tensor: Tensor) -> None:
        """A storage that has just been made may sit where an older one was."""
        self._written.pop(_storage_key(tensor), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # A composite operation comes undivided where tensors were made in inference mode: its parts are looked at.
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self.memory.own(tensor, count=False)
        # Before the call: an operation in place overwrites what its input was.
        seen = {id(tensor): reach for tensor in inputs if (reach := self.read(tensor)) is not None}
        old = {_storage_key(tensor) for tensor in inputs}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            if _storage_key(tensor) not in old:
                self.forget(tensor)
            self.memory.own(tensor)
        count = self._flops.get(func._overloadpacket)
        if count is not None:
            self.macs += int(count(*args, **kwargs, out_val=result)) // 2
        if seen:
            reaches = self.rules.apply(func, args, kwargs, seen, outputs)
            for tensor, reach in zip(outputs, reaches, strict=True):
                self.mark(tensor, reach, is_write(func))
        return result


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        return 0


def trace_layers(
    function: Callable[[Tensor], Tensor],
    height: int,
    width: int,
    channels: int = 3,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LayerTrace:
    """Runs one forward pass and works out what tiling needs to know.

    Args:
        function: (1, channels, height, width) in [0, 1] -> (1, C, height * scale, width * scale); a module in eval
            mode, or a call around it.
        height, width: size of the trial input in pixels. It needs not hold the receptive field: 64 is enough for most
            networks. Take a multiple of the network's size multiple, else the padding inside counts into memory and
            work.
        channels, device, dtype: of the trial input.

    Returns:
        The trace; `receptive_radius` is an upper bound, reached exactly by plain stacks of layers.

    Raises:
        RefineWrapError: the function gives anything but a tensor of four dimensions.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, height, width, generator=generator).to(device=device, dtype=dtype)
    tracer = _Tracer(height, width)
    tracer.memory.own(image)
    setattr(image, _MARK, Reach(Axis(), Axis(), image_dims(image.shape)))
    with torch.no_grad(), tracer:
        output = function(image)
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise RefineWrapError(
            f"The network gives {shape} for an image of shape {tuple(image.shape)}.",
            "one tensor of shape (B, C, H, W).",
            "wrap the network so that its forward returns the restored image only.",
        )
    reach = tracer.read(output)
    return LayerTrace(
        receptive_radius=math.ceil(reach.radius - 1e-4) if reach else 0,
        global_operations=tuple(tracer.rules.flagged),
        peak_bytes_per_pixel=tracer.memory.peak / (height * width),
        macs=tracer.macs,
        height=height,
        width=width,
        scale=output.shape[-2] / height,
    )
