"""What each operation of torch does to the reach of a tensor.

An operation with neither a rule nor torch's own mark of working element by element is flagged: what is
not known is not called exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .reach import Dim, Reach, image_dims, resampled, resized, transposed_window, view_dims, window

Named = dict[str, Any]
_AXES = {"Y": "y", "X": "x"}
_SPACE = set("YXyx")
_WHOLE = set("YX")

# fmt: off
_REDUCTIONS = frozenset((
    "mean", "sum", "nansum", "prod", "amax", "amin", "aminmax", "max", "min", "var", "std", "var_mean", "std_mean",
    "norm", "linalg_vector_norm", "logsumexp", "argmax", "argmin", "any", "all", "median", "nanmedian", "mode",
    "kthvalue", "count_nonzero",
))
_ORDERED = frozenset((
    "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "topk", "flip", "roll", "gather",
    "index_select", "take_along_dim",
))
_MATRIX = {
    "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
}
_POOLS = frozenset(("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"))
_PADS = frozenset((
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "pad",
))
_VIEWS = frozenset((
    "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "unsqueeze", "squeeze",
    "flatten", "unflatten",
))
_LOCAL = frozenset((
    "clone", "copy", "_to_copy", "to", "detach", "alias", "lift_fresh", "contiguous", "fill", "zero", "zeros_like",
    "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_full",
    "new_empty_strided", "native_dropout", "dropout", "masked_fill", "where", "clamp", "glu", "_prelu_kernel", "prelu",
    "rrelu", "rrelu_with_noise", "celu", "native_channel_shuffle", "channel_shuffle", "view_as_real", "view_as_complex",
    "real", "imag", "sym_size", "sym_stride", "sym_numel", "is_same_size", "resolve_conj", "resolve_neg", "_conj",
))
"""Operations that leave every value at its place and that torch does not tag as pointwise."""
# fmt: on
_UPSAMPLES = {
    "upsample_nearest2d": "nearest",
    "_upsample_nearest_exact2d": "exact",
    "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "_upsample_bilinear2d_aa": "bilinear_aa",
    "_upsample_bicubic2d_aa": "bicubic_aa",
}
_ANYWHERE = {
    "grid_sampler_2d": "grid_sample",
    "deform_conv2d": "deform_conv2d",
    "_local_scalar_dense": "item",
    "native_group_norm": "group_norm",
    "scatter": "scatter",
    "scatter_add": "scatter",
    "masked_select": "masked_select",
    "nonzero": "nonzero",
}
"""Operations whose place in the image cannot be told or that always take statistics over it, and the name to show."""


def is_write(func: Any) -> bool:
    """Whether the operation writes into one of its inputs."""
    return bool(func._schema.is_mutable)


def _name(func: Any) -> str:
    name: str = func._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _bind(func: Any, args: Sequence[Any], kwargs: Named) -> Named:
    named = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    named.update(zip((a.name for a in func._schema.arguments), args, strict=False))
    named.update(kwargs)
    return named


def _each(value: Any, count: int, default: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value or [default])
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _axis(reach: Reach, dim: int) -> str | None:
    """Name of the axis that the dimension runs along, when it is rows or columns and nothing else."""
    labels = reach.labels(dim)
    if reach.dims[dim] and not labels:
        labels = reach.dims[dim][0][0]
    return _AXES.get(labels)


class Rules:
    """Applies the rules, and remembers the operations that make tiles approximate."""

    def __init__(self) -> None:
        self.flagged: dict[str, None] = {}

    def flag(self, name: str) -> None:
        self.flagged[name] = None

    def apply(self, func: Any, args: Any, kwargs: Named, seen: dict[int, Reach], outputs: list[Tensor]) -> list[Reach]:
        """Reach of each output, given the reach of the inputs by id."""
        name, named = _name(func), _bind(func, args, kwargs)
        local = torch.Tag.pointwise in func.tags or (name in _LOCAL and func.namespace == "aten")
        call = _Call(self, name, named, seen, outputs, local)
        try:
            reaches = call.outputs()
        except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
            # A form of the operation that its rule does not know: the result stands, the promise of exact tiles does
            # not. lf.flag(f"{name} (not understood)")
            reaches = [next(iter(seen.values()))] * len(outputs)
        return [_fitted(reach, out) for reach, out in zip(reaches, outputs, strict=True)]


def _fitted(reach: Reach, output: Tensor) -> Reach:
    """A rule that lost the shape is mended by its most likely meaning."""
    if len(reach.dims) == output.ndim and all(
        _size(dim) == size for dim, size in zip(reach.dims, output.shape, strict=True)
    ):
        return reach
    return reach.with_dims(image_dims(output.shape))


def _size(dim: Dim) -> int:
    size = 1
    for _, part in dim:
        size *= part
    return size


class _Call:
    """One operation being applied."""

    def __init__(
        self, rules: Rules, name: str, named: Named, seen: dict[int, Reach], outputs: list[Tensor], local: bool
    ) -> None:
        self.rules, self.name, self.named, self.seen, self.out = rules, name, named, seen, outputs
        self.local = local

    def reach(self, key: str) -> Reach | None:
        value = self.named.get(key)
        return self.seen.get(id(value)) if isinstance(value, Tensor) else None

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in self.named.values():
            found += [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor)]
        return found

    def joined(self, first: Reach | None = None) -> Reach:
        """All inputs together, laid out as the first."""
        others = [self.seen[id(t)] for t in self.tensors() if id(t) in self.seen]
        first = first or others[0]
        for other in others:
            first = first.joined(other)
        return first

    def outputs(self) -> list[Reach]:
        name = self.name
        main = self.reach("self") or self.reach("input")
        if name in _ANYWHERE:
            self.rules.flag(_ANYWHERE[name])
            return self.plain()
        for kinds, rule in self.table():
            if name in kinds and (main is not None or rule in (self.matrix, self.cat, self.stack, self.attention)):
                return rule(main)  # type: ignore[arg-type]
        if name.startswith("_fft"):
            return self.ordered_over(main, self.named.get("dim"), "fft")
        if name.startswith("_scaled_dot_product"):
            return self.attention(self.reach("query"))
        if "batch_norm" in name and main is not None:
            return self.batch_norm(main)
        if not self.local:
            self.rules.flag(f"{name} (not understood)")
        return self.plain()

    def table(self) -> list[tuple[Any, Callable[..., list[Reach]]]]:
        return [
            (
                ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution"),
                self.convolution,
            ),
            (_POOLS | {f"{p}_with_indices" for p in _POOLS}, self.pool),
            (("im2col",), self.unfold),
            (("col2im",), self.fold),
            (
                ("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool3d"),
                self.adaptive,
            ),
            (("pixel_shuffle",), self.shuffle),
            (("pixel_unshuffle",), self.unshuffle),
            (_UPSAMPLES, self.upsample),
            (_PADS, self.pad),
            (("slice",), self.slice),
            (("select",), self.select),
            (("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split"), self.split),
            (("unbind",), self.unbind),
            (("permute",), self.permute),
            (("transpose", "t", "swapaxes", "movedim"), self.transpose),
            (("expand",), self.expand),
            (_VIEWS, self.view),
            (("cat", "concat"), self.cat),
            (("stack",), self.stack),
            (_REDUCTIONS, self.reduction),
            (_ORDERED, self.ordered),
            (("_softmax", "_log_softmax", "softmax", "_safe_softmax"), self.softmax),
            (("native_layer_norm", "layer_norm"), self.layer_norm),
            (("linear",), self.linear),
            (_MATRIX, self.matrix),
            (("index", "_unsafe_index"), self.index),
        ]

    def plain(self) -> list[Reach]:
        """Element by element, with broadcasting; also what is not known, when its output has the shape of an input."""
        result = []
        for out in self.out:
            same = [t for t in self.tensors() if id(t) in self.seen and t.shape == out.shape]
            if same:
                result.append(self.joined(self.seen[id(same[0])]))
            else:
                base = self.joined()
                result.append(replace(base, dims=self.broadcast(out)))
        return result

    def broadcast(self, out: Tensor) -> tuple[Dim, ...]:
        dims: list[Dim] = [(("", size),) for size in out.shape]
        for tensor in self.tensors():
            reach = self.seen.get(id(tensor))
            if reach is None or tensor.ndim > out.ndim:
                continue
            for back in range(1, tensor.ndim + 1):
                if tensor.shape[-back] == out.shape[-back] and reach.labels(-back):
                    dims[-back] = reach.dims[-back]
        return tuple(dims)

    # --- windows ---

    def along(self, reach: Reach, count: int, steps: Sequence[tuple[float, float, float]], name: str) -> Reach:
        """Grows the reach along the last `count` dimensions by (before, after, jump factor) each."""
        for place, (before, after, factor) in enumerate(steps):
            dim = len(reach.dims) - count + place
            key = _axis(reach, dim)
            if key is not None:
                axis = reach.axis(key)
                reach = reach.with_axis(key, axis.grown(before, after, axis.jump * factor))
            elif _WHOLE & set(reach.labels(dim)) and (before, after, factor) != (0, 0, 1):
                self.rules.flag(f"{name} over tokens")
        return reach

    def sized(self, reach: Reach, count: int, channels: bool = False) -> list[Reach]:
        """The reach with the output's sizes in its last `count` dimensions; the rest is kept or becomes plain
        channels."""
        result = []
        for out in self.out:
            dims = [resized(dim, size) for dim, size in zip(reach.dims, out.shape, strict=False)]
            if channels:
                dims[1] = (("", out.shape[1]),)
            result.append(replace(reach, dims=tuple(dims)))
        return result

    def convolution(self, main: Reach) -> list[Reach]:
        weight: Tensor = self.named["weight"]
        count = weight.ndim - 2
        stride, padding, dilation = (
            _each(self.named.get(k), count, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        kind = transposed_window if self.named.get("transposed") else window
        steps = [kind(weight.shape[2 + n], stride[n], padding[n], dilation[n]) for n in range(count)]
        name = "transposed convolution" if self.named.get("transposed") else "convolution"
        return self.sized(self.along(self.joined(main), count, steps, name), count, channels=True)

    def pool(self, main: Reach) -> list[Reach]:
        source: Tensor = self.named["self"]
        count = int(self.name.split("pool")[1][0])
        kernel = _each(self.named["kernel_size"], count, 1)
        stride = _each(self.named.get("stride") or kernel, count, 1)
        padding, dilation = (_each(self.named.get(k), count, d) for k, d in (("padding", 0), ("dilation", 1)))
        for n, size in enumerate(source.shape[-count:]):
            if kernel[n] >= size > 1 and set(main.labels(source.ndim - count + n)) & _WHOLE:
                self.rules.flag("pooling over the image")
        steps = [window(*step) for step in zip(kernel, stride, padding, dilation, strict=True)]
        return self.sized(self.along(main, count, steps, "pooling"), count)

    def unfold(self, main: Reach) -> list[Reach]:
        reach = self.along(main, 2, [window(*step) for step in self.taps()], "unfold")
        out = self.out[0]
        rows = reach.size("Y") if reach.has("Y") else 1
        rows = max(1, round(rows / self.taps()[0][1]))
        dims: tuple[Dim, ...] = (reach.dims[0], (("", out.shape[1]),), (("Y", rows), ("X", out.shape[2] // rows)))
        if rows * (out.shape[2] // rows) != out.shape[2]:
            dims = (reach.dims[0], (("", out.shape[1]),), (("Y", out.shape[2]),))
        return [replace(reach, dims=dims)]

    def fold(self, main: Reach) -> list[Reach]:
        reach = replace(main, dims=image_dims(self.out[0].shape))
        return [self.along(reach, 2, [transposed_window(*step) for step in self.taps()], "fold")]

    def taps(self) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, padding, dilation of an unfold or fold, for rows and columns."""
        kernel, stride, padding, dilation = (
            _each(self.named[k], 2, 1) for k in ("kernel_size", "stride", "padding", "dilation")
        )
        return list(zip(kernel, stride, padding, dilation, strict=True))

    def adaptive(self, main: Reach) -> list[Reach]:
        source: Tensor = self.named["self"]
        if source.shape[-2:] == self.out[0].shape[-2:]:
            return self.sized(main, 2)
        self.rules.flag("adaptive pooling")
        gone = tuple(d[:0] if n >= len(main.dims) - 2 else d for n, d in enumerate(main.dims))
        small = [tuple(g or (("", s),) for g, s in zip(gone, out.shape, strict=True)) for out in self.out]
        return [replace(main, dims=dims) for dims in small]

    def shuffle(self, main: Reach) -> list[Reach]:
        r = int(self.named["upscale_factor"])
        return self.sized(
            self.along(main, 2, [((r - 1) / r, (r - 1) / r, 1 / r)] * 2, "pixel shuffle"), 2, channels=True
        )

    def unshuffle(self, main: Reach) -> list[Reach]:
        r = int(self.named["downscale_factor"])
        return self.sized(self.along(main, 2, [(0.0, 0.0, float(r))] * 2, "pixel unshuffle"), 2, channels=True)

    def upsample(self, main: Reach) -> list[Reach]:
        source: Tensor = self.named["self" if "self" in self.named else "input"]
        sizes = list(zip(source.shape[-2:], self.out[0].shape[-2:], strict=True))
        if self.named.get("align_corners") and any(a != b for a, b in sizes):
            self.rules.flag("interpolate with align_corners")
        scales = self.named.get("scale_factors") or [self.named.get("scales_h"), self.named.get("scales_w")]
        ratios = [1 / s if s else a / b for s, (a, b) in zip(scales, sizes, strict=True)]
        # Growing from one place (pooled statistics) has no rows to look at.
        steps = [
            resampled(_UPSAMPLES[self.name], ratios[n], sizes[n][1]) if main.labels(n - 2) else (0.0, 0.0, 1.0)
            for n in range(2)
        ]
        return self.sized(self.along(main, 2, steps, "interpolate"), 2)

    # --- cuts and layouts ---

    def shifted(self, reach: Reach, dim: int, start: int, step: int = 1) -> Reach:
        """Element i of the new dimension is element start + i * step of the old one."""
        key = _axis(reach, dim)
        if key is None or (start == 0 and step == 1):
            return reach
        axis = reach.axis(key)
        return reach.with_axis(key, axis.grown(-start, start + 1 - step, axis.jump * step))

    def pad(self, main: Reach) -> list[Reach]:
        amounts = list(self.named.get("padding") or self.named["pad"])
        for n in range(len(amounts) // 2):
            main = self.shifted(main, len(main.dims) - 1 - n, -int(amounts[2 * n]))
        return self.sized(main, 0)

    def slice(self, main: Reach) -> list[Reach]:
        dim, source = int(self.named["dim"]), self.named["self"]
        size, start = source.shape[dim], int(self.named.get("start") or 0)
        start = min(size, start + size if start < 0 else start)
        main = self.shifted(main, dim % source.ndim, start, int(self.named.get("step") or 1))
        return self.cut(main, dim % source.ndim)

    def cut(self, main: Reach, dim: int) -> list[Reach]:
        result = []
        for out in self.out:
            dims = list(main.dims)
            if _size(dims[dim]) != out.shape[dim]:
                dims[dim] = resized(dims[dim], out.shape[dim])
            result.append(replace(main, dims=tuple(dims)))
        return result

    def select(self, main: Reach) -> list[Reach]:
        dim = int(self.named["dim"]) % len(main.dims)
        return [replace(main, dims=main.dims[:dim] + main.dims[dim + 1 :])]

    def split(self, main: Reach) -> list[Reach]:
        dim, start, result = int(self.named.get("dim") or 0) % len(main.dims), 0, []
        for out in self.out:
            moved = self.shifted(main, dim, start)
            dims = list(moved.dims)
            dims[dim] = resized(dims[dim], out.shape[dim])
            result.append(replace(moved, dims=tuple(dims)))
            start += out.shape[dim]
        return result

    def unbind(self, main: Reach) -> list[Reach]:
        return self.select(main) * len(self.out)

    def permute(self, main: Reach) -> list[Reach]:
        return [replace(main, dims=tuple(main.dims[d] for d in self.named["dims"]))]

    def transpose(self, main: Reach) -> list[Reach]:
        dims = list(main.dims)
        if len(dims) > 1:
            a, b = int(self.named.get("dim0", 0)), int(self.named.get("dim1", 1))
            dims[a], dims[b] = dims[b], dims[a]
        return [replace(main, dims=tuple(dims))]

    def expand(self, main: Reach) -> list[Reach]:
        out, dims = self.out[0], list(main.dims)
        dims = [()] * (out.ndim - len(dims)) + dims
        return [
            replace(main, dims=tuple(d if _size(d) == s else (("", s),) for d, s in zip(dims, out.shape, strict=True)))
        ]

    def view(self, main: Reach) -> list[Reach]:
        dims = view_dims(main.dims, self.out[0].shape)
        return [main.with_dims(dims if dims is not None else image_dims(self.out[0].shape))]

    def cat(self, main: Reach | None) -> list[Reach]:
        parts: list[Tensor] = self.named["tensors"]
        out, start = self.out[0], 0
        dim = int(self.named.get("dim") or 0) % out.ndim
        total: Reach | None = None
        for part in parts:
            reach = self.seen.get(id(part))
            if reach is not None and part.ndim == out.ndim:
                reach = self.shifted(reach, dim, -start)
                total = total.joined(reach) if total is not None else reach
            start += part.shape[dim] if part.ndim == out.ndim else 0
        if total is None:
            return self.plain()
        dims = list(total.dims)
        dims[dim] = resized(dims[dim], out.shape[dim])
        return [replace(total, dims=tuple(dims))]

    def stack(self, main: Reach | None) -> list[Reach]:
        base, out = self.joined(), self.out[0]
        dim = int(self.named.get("dim") or 0) % out.ndim
        return [replace(base, dims=(*base.dims[:dim], (("", out.shape[dim]),), *base.dims[dim:]))]

    # --- operations that may see the whole image ---

    def over(self, main: Reach, dim: Any) -> list[int]:
        if dim is None or (isinstance(dim, (list, tuple)) and not dim):
            return list(range(len(main.dims)))
        return [int(d) % max(1, len(main.dims)) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]

    def touches(self, main: Reach, dims: Sequence[int], labels: set[str]) -> bool:
        return any(set(main.labels(d)) & labels for d in dims if -len(main.dims) <= d < len(main.dims))

    def reduction(self, main: Reach) -> list[Reach]:
        other = self.named.get("other")
        if isinstance(other, Tensor) or (self.out and self.out[0].shape == self.named["self"].shape):
            return self.plain()  # max and min of two tensors
        dims = self.over(main, self.named.get("dim"))
        if self.touches(main, dims, _WHOLE):
            self.rules.flag(f"{self.name} over the image")
        keep = self.out[0].ndim == len(main.dims)
        left = tuple(() if n in dims else d for n, d in enumerate(main.dims) if keep or n not in dims)
        return [replace(main, dims=left)] * len(self.out)

    def ordered(self, main: Reach) -> list[Reach]:
        dim = self.named.get("dims", self.named.get("dim"))
        return self.ordered_over(main, dim, self.name)

    def ordered_over(self, main: Reach | None, dim: Any, name: str) -> list[Reach]:
        if main is not None and self.touches(main, self.over(main, dim), _SPACE):
            self.rules.flag(name)
        return self.plain()

    def softmax(self, main: Reach) -> list[Reach]:
        return self.ordered_over(main, self.named["dim"], "softmax over places")

    def layer_norm(self, main: Reach) -> list[Reach]:
        count = len(self.named["normalized_shape"])
        if self.touches(main, [-n for n in range(1, count + 1)], _SPACE):
            self.rules.flag("layer_norm over the image")
        reduced = replace(main, dims=tuple(d if n < len(main.dims) - count else () for n, d in enumerate(main.dims)))
        return [main, reduced, reduced][: len(self.out)]

    def batch_norm(self, main: Reach) -> list[Reach]:
        training = self.named.get("training", "no_training" not in self.name)
        if training:
            self.rules.flag("normalisation by the image's own statistics")
        bare = replace(main, dims=())
        return [main] + [replace(bare, dims=tuple((("", s),) for s in out.shape)) for out in self.out[1:]]

    def linear(self, main: Reach) -> list[Reach]:
        if self.touches(main, [-1], _SPACE):
            self.rules.flag("linear over places")
        return [replace(main, dims=(*main.dims[:-1], (("", self.out[0].shape[-1]),)))]

    def matrix(self, main: Reach | None) -> list[Reach]:
        first, second = (self.reach(key) for key in _MATRIX[self.name])
        if (first and self.touches(first, [-1], _SPACE)) or (second and self.touches(second, [-2], _SPACE)):
            self.rules.flag("matrix product over places")
        out = self.out[0]
        rows = first.dims[:-1] if first else ()
        batch = second.dims[:-2] if second else ()
        columns: Dim = second.dims[-1] if second and len(second.dims) > 1 else (("", out.shape[-1]),)
        dims = (rows or (*batch, (("", out.shape[-2] if out.ndim > 1 else 1),))) + ((columns,) if out.ndim > 1 else ())
        return [replace(self.joined(first or second), dims=dims)]

    def attention(self, query: Reach | None) -> list[Reach]:
        if query is not None and self.touches(query, [-1, -2], _SPACE):
            self.rules.flag("attention over places")
        return self.plain()

    def index(self, main: Reach) -> list[Reach]:
        indices = self.named["indices"]
        if self.touches(main, [n for n, index in enumerate(indices) if index is not None], _SPACE):
            self.rules.flag("indexing of places")
        return self.plain()
