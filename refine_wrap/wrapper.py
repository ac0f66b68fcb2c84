"""RefineWrapper: a refiner, and optionally a quality head, around a frozen restoration network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbone import check_image, load_backbone
from .errors import CheckpointError, RefineWrapError, check_share
from .refiner import DEFAULT_PRESET, QUALITY, ORNet, Strength, build_refiner

if TYPE_CHECKING:
    from .images import Picture
    from .quality import Quality, QualityHead
    from .tiling import LayerTrace


class RefineWrapper(nn.Module):
    """A restoration network with a small refinement net behind it.

    The backbone's weights stay as published: it is frozen, and stays in evaluation mode under `.train()`, its norm
    statistics too (`freeze(False)` lets it train). An untrained wrapper returns exactly what the backbone returns.

    Args:
        backbone: a `Backbone`, or any restoration network as an `nn.Module` (it is made a `Backbone`). `nn.Identity()`
            for pictures that are restored already.
        refiner: a preset ("ornet-lite", "ornet-small", "ornet"), the options of `ORNet`, or a module that is called as
            `refiner(image, strength, quality)` and returns an image of the same shape. None: no refiner.
        quality_head: True, the options of `QualityHead`, or one: it steers the backbone's tapped features by the wanted
            quality. None: no head.
        strength: what `strength=None` means, in [0, 1].
        quality: what `quality=None` means, in [0, 1], where there is a head or a refiner that knows quality.

    Raises:
        RefineWrapError: the backbone cannot be run, or an argument is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        refiner: str | Mapping[str, Any] | nn.Module | None = DEFAULT_PRESET,
        quality_head: bool | Mapping[str, Any] | QualityHead | None = None,
        strength: float = 0.3,
        quality: float = QUALITY,
    ) -> None:
        super().__init__()
        check_share(strength=strength, quality=quality)
        self.backbone = load_backbone(backbone)
        self.refiner = None if refiner is None else build_refiner(refiner).to(self.backbone.device)
        self.quality_head: QualityHead | None = None
        if quality_head is not None and quality_head is not False:
            from .quality.head import build_head

            self.quality_head = build_head(quality_head, self.backbone).to(self.backbone.device)
            self.quality_head.attach(self.backbone)
        self.strength, self.quality = strength, quality
        knows = self.backbone.spec.quality
        self.scorers: list[str] = list(getattr(self.backbone.module, "scorers", ())) if knows else []
        """Scorers that it was trained on, as an adapter records them: they do not judge what it makes."""
        self.condition: Mapping[str, Any] | None = None
        """How scores became the qualities that it was trained with, `refine_wrap.quality.Condition.to_dict()`."""
        self._disabled = False
        self.layers: LayerTrace | None = None  # worked out by `refine_wrap.restore.trace` when it is first needed
        self.tiles_noticed = False
        self.frozen = False
        self.freeze()

    def freeze(self, frozen: bool = True) -> None:
        """Freeze the backbone (gradients and norm statistics), or let it train."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> RefineWrapper:
        """Training mode for what is trained: a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, lq: Tensor, strength: Strength | None = None, quality: Strength | None = None) -> Tensor:
        """Restore and refine.

        Args:
            lq: (B, 3, H, W), RGB in [0, 1], any size from 1x1 up.
            strength: in [0, 1]; a number, a (B,) tensor or a (B, 1, H * scale, W * scale) map: 0 keeps fidelity, 1
                asks for the most perceptual detail. None is the adapter's own default.
            quality: the wanted quality in [0, 1], a number or a (B,) tensor, with a quality head or a refiner that
                knows quality. None is the adapter's own default.

        Returns:
            (B, 3, H * scale, W * scale), not clamped.

        Raises:
            ImageError: the image, the strength or the quality has another shape or type, or is out of range.
            RefineWrapError: quality or strength is asked of a wrapper that does not know it.
        """
        self.check_dials(strength, quality)
        if self._disabled:
            return self.restored(lq)
        wanted = self._wanted(lq, quality)
        restored = self.restored(lq, wanted)
        if self.refiner is None:
            return restored
        refined: Tensor = self.refiner(restored, self.strength if strength is None else strength, wanted)
        return refined

    def restored(self, lq: Tensor, quality: Tensor | None = None) -> Tensor:
        """What the backbone makes of (B, 3, H, W): steered by a quality (B,) with a head, or left alone by None.

        A backbone that knows quality itself is asked for it where nothing that was added is.
        """
        if self.quality_head is None or quality is None:
            plain: Tensor = self.backbone(lq, None if self.adds_quality else quality)
            return plain
        # What is wanted waits in the head for the hook: another thread must not ask in between. A graph has no threads.
        with nullcontext() if torch.compiler.is_compiling() else self.quality_head.lock():
            self.quality_head.wanted = quality
            self.quality_head.learns = self.quality_head.training and torch.is_grad_enabled()
            try:
                steered: Tensor = self.backbone(lq)
            finally:
                self.quality_head.wanted = None
        return steered

    def _wanted(self, lq: Tensor, quality: Quality | None) -> Tensor | None:
        if quality is None and not self.adds_quality:
            return None  # a backbone that knows quality has a default of its own
        from .quality.condition import quality_values

        check_image(lq)
        return quality_values(self.quality if quality is None else quality, lq)

    def check_dials(self, strength: Strength | None, quality: Strength | None) -> None:
        """Refuse a dial that nothing here has. Raises RefineWrapError."""
        if quality is not None and not self.knows_quality:
            came = "A quality is asked for, and nothing here knows it: no quality head"
            raise RefineWrapError(came, "no quality, or an adapter with a quality head")
        if strength is not None and self.refiner is None:
            came = "A strength is asked for, and nothing here knows it: no refiner"
            raise RefineWrapError(came, "no strength, or an adapter with a refiner")

    @property
    def adds_quality(self) -> bool:
        """Whether what was added knows quality: a head, or a refiner that takes it in."""
        return self.quality_head is not None or bool(getattr(self.refiner, "quality", False))

    @property
    def knows_quality(self) -> bool:
        """Whether a quality can be asked for: of what was added, or of the backbone itself."""
        return self.adds_quality or self.backbone.spec.quality

    def remove_head(self) -> None:
        """Take the quality head off: the backbone is as it was."""
        if self.quality_head is not None:
            self.quality_head.detach(self.backbone)
            self.quality_head = None

    @property
    def _added(self) -> dict[str, nn.Module]:
        """What was added to the backbone, by its name in an adapter."""
        parts = {"refiner": self.refiner, "quality_head": self.quality_head}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def is_disabled(self) -> bool:
        """Whether this is inside `disabled()`."""
        return self._disabled

    @contextmanager
    def disabled(self, disabled: bool = True) -> Iterator[RefineWrapper]:
        """Inside, the wrapper is its backbone: nothing that was added takes part. False: it takes part again."""
        before, self._disabled = self._disabled, disabled
        try:
            yield self
        finally:
            self._disabled = before

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that take gradients: the refiner's and the head's, and the backbone's unless it is frozen."""
        return [p for p in self.parameters() if p.requires_grad]

    @property
    def any_backbone(self) -> bool:
        """Whether there is no network behind `backbone`: what is saved then goes with any."""
        return isinstance(self.backbone.module, nn.Identity)

    @property
    def scale(self) -> int:
        """Output pixels of a side for each input pixel."""
        return self.backbone.spec.scale

    @property
    def exact_tiles(self) -> bool:
        """Whether tiles with a wide enough halo equal the whole image, for the backbone and the refiner together."""
        exact = [bool(getattr(part, "exact_tiles", False)) for part in self._added.values()]
        return self.backbone.spec.tiling == "exact" and all(exact)

    @property
    def tile_grid(self) -> int:
        """Input pixels that a tile's corner is a multiple of, so that strides keep the phase they have in the whole."""
        refiner_grid = getattr(self.refiner, "multiple_of", 1)
        # The refiner's grid is in output pixels; this is the smallest input step that scales to a multiple of it.
        step = refiner_grid // math.gcd(refiner_grid, self.scale)
        return math.lcm(self.backbone.spec.multiple_of, step)

    def summary(self, height: int = 256, width: int = 256) -> dict[str, Any]:
        """Parameters, their trainable share, and multiply-adds for an input of (height, width).

        1 MAC is one multiply-add of a convolution, linear layer or matrix product.
        """
        from .tiling import trace_layers

        def count(module: nn.Module | None) -> int:
            return sum(p.numel() for p in module.parameters()) if module is not None else 0

        def macs(function: Callable[[Tensor], Tensor], scale: int = 1) -> int:
            body = self.backbone
            return trace_layers(function, height * scale, width * scale, device=body.device, dtype=body.dtype).macs

        total, trainable = count(self), sum(p.numel() for p in self.trainable_parameters())
        work = {"backbone": macs(self.backbone)}
        work["refiner"] = 0 if self.refiner is None else macs(self.refiner, self.scale)
        if self.quality_head is not None:
            steered = macs(lambda image: self.restored(image, self._wanted(image, None)))
            work["quality_head"] = steered - work["backbone"]
        return {
            "input": [height, width],
            "parameters": {
                "backbone": count(self.backbone),
                "refiner": count(self.refiner),
                "quality_head": count(self.quality_head),
                "total": total,
                "trainable": trainable,
            },
            "trainable_share": trainable / total if total else 0.0,
            "macs": work,
        }

    def restore(
        self,
        image: str | Path | Picture | Tensor,
        output: str | Path | None = None,
        **options: Any,
    ) -> Any:
        """The whole way of an image: read, tile, restore, refine, clamp, write. See `refine_wrap.restore.restore`."""
        from .restore import restore

        return restore(self, image, output, **options)

    def save_pretrained(self, folder: str | Path, **about: Any) -> Path:
        """Write an adapter folder: `adapter.safetensors` (only what we added), `adapter.json`, `README.md`.

        Args:
            folder: made if it is missing; an adapter that is there is replaced as a whole.
            about: `recipe`, `scorers`, `metrics`, `data`, `licence` as in `refine_wrap.hub.Adapter`.

        Raises:
            OutputError: the folder cannot be written; an adapter that was there is intact.
        """
        from .hub import Adapter, save_adapter

        if self.refiner is not None and not isinstance(self.refiner, ORNet):
            raise RefineWrapError(
                f"The refiner is a {type(self.refiner).__name__}",
                "an ORNet, which can be built again from its options",
                "save its state dict yourself and pass the module to RefineWrapper",
            )
        if not self._added:
            raise RefineWrapError("Nothing was added to this backbone", "a refiner or a quality head, to save it")
        # Those of a backbone that scorers trained, too: they judge neither.
        about["scorers"] = list(dict.fromkeys([*self.scorers, *about.get("scorers", ())]))
        added = {f"{part}.{n}": v for part, module in self._added.items() for n, v in module.state_dict().items()}
        config: dict[str, Any] = {"refiner": None if self.refiner is None else self.refiner.config()}
        if self.adds_quality:
            config |= {"quality": self.quality, "condition": self.condition}
        if self.quality_head is not None:
            config |= {"quality_head": self.quality_head.config(), "tap": self.quality_head.tap}
        adapter = Adapter(
            kind="refiner" if self.quality_head is None else "quality",
            config=config,
            tensors={name: value.detach().to("cpu").contiguous() for name, value in added.items()},
            backbone=None
            if self.any_backbone
            else {
                "source": self.backbone.source,
                "family": self.backbone.spec.family,
                "scale": self.scale,
                "structure": self.backbone.structure_hash(),
                "weights": self.backbone.weights_hash(),
            },
            strength=self.strength,
            **about,
        )
        save_adapter(Path(folder), adapter)
        return Path(folder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        backbone: Any = None,
        revision: str | None = None,
        allow_other_weights: bool = False,
        device: str | torch.device = "cpu",
    ) -> RefineWrapper:
        """Load an adapter folder, local or `org/name` on the Hub, onto its backbone.

        Args:
            source: the folder, the Hub repository, or `shipped:NAME` for one that comes with this package.
            backbone: what `load_backbone` takes. None: the one that the adapter names, if it came from the Hub or with
                this package.
            revision: branch, tag or commit on the Hub.
            allow_other_weights: accept a backbone of the same structure with other weights.
            device: where to put it.

        Raises:
            CheckpointError: the folder is no adapter, is broken, or does not fit.
            MismatchError: the backbone is another one.
            HubError: the repository cannot be had.
        """
        from .hub import WRAPPED, load_adapter, resolve

        folder = resolve(source, revision)
        adapter = load_adapter(folder)
        if adapter.kind not in WRAPPED:
            raise CheckpointError(
                f"{folder} is of kind {adapter.kind}", f"an adapter for a backbone, of kind {' or '.join(WRAPPED)}"
            )
        if backbone is None:
            backbone = _own_backbone(folder, adapter.backbone)
        body = load_backbone(backbone, device=device)
        if adapter.backbone is not None:  # one of no backbone goes with any
            body.check_fingerprint(adapter.backbone, allow_other_weights=allow_other_weights)
        refiner, head = (adapter.config.get(part) for part in ("refiner", "quality_head"))
        if not isinstance(head if adapter.kind == "quality" else refiner, Mapping):
            part, made = ("quality_head", "QualityHead") if adapter.kind == "quality" else ("refiner", "ORNet")
            raise CheckpointError(f"{folder}: the config has no {part}", f"the options of {made} under config.{part}")
        if head is not None:  # where it is put follows from the adapter, not from what a probe finds today
            body.spec = replace(body.spec, tap=adapter.config.get("tap", body.spec.tap))
        wrapper = cls(
            body,
            refiner=refiner,
            quality_head=head,
            strength=adapter.strength,
            quality=adapter.config.get("quality", QUALITY),
        )
        wrapper._load_added(adapter.tensors, str(folder))
        wrapper.condition = adapter.config.get("condition")
        wrapper.scorers = list(dict.fromkeys([*wrapper.scorers, *adapter.scorers]))
        return wrapper.eval()

    def _load_added(self, tensors: Mapping[str, Tensor], what: str) -> None:
        from .backbone.checkpoint import check_keys

        wanted = {f"{part}.{n}": v for part, module in self._added.items() for n, v in module.state_dict().items()}
        check_keys(wanted, tensors, what, "the " + " and the ".join(self._added).replace("_", " "))
        for part, module in self._added.items():
            module.load_state_dict(
                {n.removeprefix(f"{part}."): v for n, v in tensors.items() if n.startswith(f"{part}.")}
            )

    def push_to_hub(self, repo_id: str, *, private: bool = False, revision: str | None = None, **about: Any) -> str:
        """Save the adapter and upload its files to the Hub; returns the address.

        Args:
            repo_id: `org/name`.
            private: for a repository that is made by this.
            revision: branch to push to.
            about: as for `save_pretrained`.

        Raises:
            HubError: no network, no rights, no such organisation.
        """
        from tempfile import TemporaryDirectory

        from .hub import push_folder

        with TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "adapter", **about)
            return push_folder(folder, repo_id, private=private, revision=revision)


def _own_backbone(folder: Path, record: Mapping[str, Any] | None) -> Any:
    """What an adapter says its backbone is, where that can be had without asking."""
    if record is None:
        raise CheckpointError(
            f"The adapter {folder} goes with any backbone and names none",
            "a backbone",
            "pass backbone=load_backbone(...), or --backbone on the command line",
        )
    tuned = folder / "backbone.safetensors"
    if tuned.is_file():
        return tuned
    source = record.get("source") or {}
    weights = str(source.get("weights", ""))
    if weights.startswith(("hf://", "shipped:")):
        return {key: source[key] for key in ("arch", "options", "weights", "spec") if source.get(key)}
    named = f"{record.get('family')} ({weights})" if weights else f"{record.get('family')}"
    raise CheckpointError(
        f"The adapter {folder} was made for {named}, a local file that does not come with it",
        "that backbone",
        "pass backbone=load_backbone(...), or --backbone on the command line",
    )
