"""load_backbone: from a name, a file, a Hub address or a module to a Backbone."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, RefineWrapError
from ..resources import file_digest
from .checkpoint import SUFFIXES, read_checkpoint, recorded_architecture
from .core import Backbone
from .families import family_of
from .spec import Spec

NICKNAMES = {
    "SRVGG": "SRVGGNetCompact",
    "Compact": "SRVGGNetCompact",
    "ESRGAN": "RRDBNet",
    "RealESRGAN": "RRDBNet",
    "CodebookRestorer": "refine_wrap.quality:CodebookRestorer",
}
BASICSR_NETWORKS = ("SwinIR", "RRDBNet", "EDSR", "SRVGGNetCompact", "RCAN", "MSRResNet")


def load_backbone(
    source: str | Path | nn.Module | Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    spec: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load a restoration network as a `Backbone`, in float32 and evaluation mode.

    Args:
        source: one of
            a checkpoint, `.safetensors` or `.pth`, whose architecture spandrel recognises;
            `"hf://org/name/file@revision"`, such a checkpoint on the Hub;
            `"shipped:NAME"`, one that comes with this package;
            the name of an architecture (`"SwinIR"`, BasicSR's registry or spandrel) or `"package.module:Class"`;
            a mapping `{"arch": ..., "options": {...}, "weights": ...}` as in a recipe;
            an `nn.Module`.
        options: the architecture's constructor arguments, with a name.
        weights: a checkpoint to load into a named architecture, strictly. None leaves it as constructed.
        spec: fields of `Spec` that are known better than declared or probed.
        device: where to put it.

    Raises:
        RefineWrapError: there is no such architecture, or its options are wrong.
        CheckpointError: the file cannot be read or does not fit.
        HubError: the Hub file cannot be had.
    """
    if isinstance(source, Backbone):
        return source.to(device)
    if isinstance(source, nn.Module):
        return Backbone(source, spec).to(device)
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - {"arch", "options", "weights", "spec"})
        if unknown or not (source.get("arch") or source.get("weights")):
            raise RefineWrapError(f"The backbone is given as {dict(source)}", "arch and options, or weights, or both")
        spec = {**dict(source.get("spec") or {}), **dict(spec or {})}
        options, weights = source.get("options") or options, source.get("weights") or weights
        if not source.get("arch"):
            return load_backbone(source["weights"], options=options, spec=spec, device=device)
        return load_backbone(source["arch"], options=options, weights=weights, spec=spec, device=device)
    text = str(source)
    if text.startswith(("hf://", "shipped:")) or Path(text).suffix.lower() in SUFFIXES:
        if weights is not None:
            raise RefineWrapError(
                f"Weights are given twice: {text} and {weights}", "a checkpoint, or a name with weights"
            )
        backbone = _from_checkpoint(text, options, spec)
    else:
        backbone = _from_name(text, dict(options or {}), weights, spec)
    return backbone.eval().to(device)


def locate(weights: str | Path) -> tuple[Path, dict[str, Any]]:
    """The local file of a checkpoint and what to record of it: its name or address, and its SHA-256."""
    text = str(weights)
    if text.startswith("hf://"):
        from ..hub import fetch_file

        path = fetch_file(text)
    elif text.startswith("shipped:"):
        from ..resources import shipped_weights

        path = shipped_weights(text.removeprefix("shipped:"))
    else:
        path = Path(text).expanduser()
        text = path.name  # a machine's path says nothing elsewhere
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}", "a checkpoint: " + ", ".join(SUFFIXES))
    return path, {"weights": text, "sha256": file_digest(path)}


def _from_checkpoint(text: str, options: Mapping[str, Any] | None, spec: Mapping[str, Any] | None) -> Backbone:
    path, record = locate(text)
    state, metadata = read_checkpoint(path)
    recorded = recorded_architecture(metadata)
    if recorded:
        backbone = _from_name(
            recorded["arch"],
            {**recorded.get("options", {}), **dict(options or {})},
            None,
            {**recorded.get("spec", {}), **dict(spec or {})},
        )
        backbone.load_published(state, str(path))
        backbone.source = {**backbone.source, **record}
        return backbone
    if options:
        raise RefineWrapError(
            f"Options are given for {path}, whose architecture is read from its keys",
            "options only with a name",
            "load_backbone('ARCHITECTURE', options=..., weights=...)",
        )
    backbone = _recognise(state, path, spec)
    backbone.source = {**record, "unwrapped": metadata["unwrapped"]}
    return backbone


def _recognise(state: dict[str, Tensor], path: Path, given: Mapping[str, Any] | None) -> Backbone:
    """Have spandrel tell the architecture from the keys."""
    import spandrel

    try:
        descriptor = spandrel.ModelLoader(registry=_registry()).load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        raise CheckpointError(
            f"{path}: no known architecture has these keys ({', '.join(list(state)[:3])}, ... {len(state)} in all)",
            "a checkpoint of an architecture that spandrel recognises",
            "name it: load_backbone('ARCHITECTURE', options={...}, weights=...) or recipe key backbone.arch",
        ) from None
    except (RuntimeError, KeyError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{path} looks like a known architecture but does not fit it ({str(error).splitlines()[0][:120]})",
            "a complete checkpoint",
            "copy or download it again, or name the architecture and its options",
        ) from None
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise CheckpointError(
            f"{path} is {descriptor.architecture.name}, which needs a mask", "a network that takes an image alone"
        )
    module = descriptor.model
    spec: Spec | Mapping[str, Any] | None = given
    # spandrel calls some networks with more than the image. Its plain call is a lambda, which pickling refuses.
    plain = type(descriptor._call_fn).__name__ == "function" and descriptor._call_fn.__qualname__.startswith(
        "ImageModelDescriptor."
    )
    call: Callable[[nn.Module, Tensor], Tensor] | None = None if plain else descriptor._call_fn
    if family_of(module) is None:
        size = descriptor.size_requirements
        if descriptor.input_channels not in (1, 3) or descriptor.input_channels != descriptor.output_channels:
            raise CheckpointError(
                f"{path} ({descriptor.architecture.name}) takes {descriptor.input_channels} channels "
                f"and gives {descriptor.output_channels}",
                "3 or 1 channels in and out",
            )
        known = {
            "scale": descriptor.scale,
            "multiple_of": size.multiple_of,
            "minimum": max(size.minimum, 1),
            "square": size.square,
            "channels": descriptor.input_channels,
            "half_ok": descriptor.supports_half,
            "value_range": (0.0, 1.0),
            "order": "rgb",
        }
        spec = {**known, **dict(given or {}), "family": descriptor.architecture.id}
    else:
        call = None  # the families' networks take the image alone
    return Backbone(module, spec, call=call)


def _registry() -> Any:
    """spandrel's architectures, with those of spandrel_extra_arches where that is installed."""
    import spandrel

    registry = spandrel.MAIN_REGISTRY.copy()
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        return registry
    registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _from_name(
    arch: str, options: dict[str, Any], weights: str | Path | None, spec: Mapping[str, Any] | None
) -> Backbone:
    build = find_class(arch)
    try:
        module = build(**options)
    except RefineWrapError:
        raise
    except Exception as error:  # constructors are anybody's
        raise RefineWrapError(
            f"{arch} cannot be built with {options}: {type(error).__name__}: {error}",
            f"options of its constructor: {', '.join(inspect.signature(build).parameters)}",
            "compare with the recipe or the code that its weights were trained with",
        ) from None
    if not isinstance(module, nn.Module):
        raise RefineWrapError(f"{arch} builds a {type(module).__name__}", "an nn.Module")
    backbone = Backbone(module, spec)
    backbone.source = {"arch": arch, "options": options, **({"spec": dict(spec)} if spec else {})}
    if weights is not None:
        path, record = locate(weights)
        state, _ = read_checkpoint(path)
        backbone.load_published(state, str(path))
        backbone.source |= record
    return backbone


def find_class(arch: str) -> Callable[..., Any]:
    """The constructor of an architecture: an import path, BasicSR's registry, or spandrel."""
    arch = NICKNAMES.get(arch, arch)
    if ":" in arch:
        module_name, _, name = arch.partition(":")
        try:
            return getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise RefineWrapError(
                f"{arch} cannot be imported: {error}", "package.module:Class on the Python path"
            ) from None
    # BasicSR goes first, since others register their networks there. Nobody has where it is not imported, and that
    # takes seconds.
    if (arch in BASICSR_NETWORKS or "basicsr" in sys.modules) and (found := _of_basicsr(arch)) is not None:
        return found
    if arch == "RRDBNet":
        return _rrdbnet_of_spandrel
    if arch == "SRVGGNetCompact":
        arch = "Compact"
    classes = _spandrel_classes()
    if arch in classes:
        return classes[arch]
    if (found := _of_basicsr(arch)) is not None:
        return found
    if arch in BASICSR_NETWORKS:
        raise RefineWrapError(
            f"{arch} comes from BasicSR, which is not installed", "Python below 3.13 and basicsr", "pip install basicsr"
        )
    names = sorted({*classes, *BASICSR_NETWORKS, *(name for name, _ in _basicsr_registry() or ())})
    near = difflib.get_close_matches(arch, names, 1, cutoff=0.5)
    raise RefineWrapError(
        f"There is no architecture {arch!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        f"a checkpoint file, or one of {', '.join(names[:12])}, ...",
        "refine-wrap info --architectures lists them all",
    )


def _rrdbnet_of_spandrel(
    num_in_ch: int = 3,
    num_out_ch: int = 3,
    scale: int = 4,
    num_feat: int = 64,
    num_block: int = 23,
    num_grow_ch: int = 32,
) -> nn.Module:
    """BasicSR's RRDBNet where BasicSR is not installed. It always upscales x4; below that it folds pixels first."""
    if num_grow_ch != 32:
        raise RefineWrapError(
            f"RRDBNet with num_grow_ch={num_grow_ch} needs BasicSR, which is not installed", "num_grow_ch=32"
        )
    folded = {1: 4, 2: 2}.get(scale, 1)
    network: nn.Module = _spandrel_classes()["ESRGAN"](
        in_nc=num_in_ch * folded**2,
        out_nc=num_out_ch,
        num_filters=num_feat,
        num_blocks=num_block,
        scale=4,
        shuffle_factor=folded if folded > 1 else None,
    )
    return network


def architectures() -> list[str]:
    """The names that `load_backbone` takes, here and now."""
    ours = [name for name, place in NICKNAMES.items() if ":" in place]
    return sorted({*_spandrel_classes(), *ours, *(name for name, _ in _basicsr_registry() or ())})


def _of_basicsr(arch: str) -> Callable[..., Any] | None:
    registry = _basicsr_registry()
    found: Callable[..., Any] | None = registry.get(arch) if registry is not None and arch in registry else None
    return found


def _basicsr_registry() -> Any:
    try:
        import basicsr.archs
        from basicsr.utils.registry import ARCH_REGISTRY
    except ImportError:
        return None
    return ARCH_REGISTRY if basicsr.archs else None


def _spandrel_classes() -> dict[str, Callable[..., Any]]:
    """Network classes that spandrel and spandrel_extra_arches export, by their names and by their architecture's."""
    found: dict[str, Callable[..., Any]] = {}
    for support in _registry():
        package = importlib.import_module(type(support.architecture).__module__)
        networks = [
            n
            for n in package.__all__
            if isinstance(getattr(package, n), type) and issubclass(getattr(package, n), nn.Module)
        ]
        found |= {name: getattr(package, name) for name in networks}
        if len(networks) == 1:
            found[support.architecture.id] = getattr(package, networks[0])
    return found
