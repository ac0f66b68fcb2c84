"""What is trained: an objective takes a batch and gives named losses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, load_backbone
from ..errors import CheckpointError
from ..wrapper import RefineWrapper
from .losses import weighted_losses

if TYPE_CHECKING:
    from ..recipe import Recipe

BACKBONE_KEY = "refine_wrap.backbone"
"""Key of the safetensors metadata under which `load_backbone` finds the architecture and its options."""


class Objective(nn.Module):
    """`losses = objective(batch)`: a dict of named, weighted terms whose sum is minimised.

    A batch has `lq` (B, 3, h, w) and `gt` (B, 3, h * scale, w * scale), RGB in [0, 1], and `strength` (B,).
    `parameters()` is only what is trained.
    """

    weights: dict[str, float]
    result: str
    """Name of the folder that `save` writes in the run's."""

    @property
    def backbone(self) -> Backbone:
        """The restoration network, trained or frozen."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, lq: Tensor) -> Tensor:
        """What the finished model makes of (B, 3, h, w); not clamped, no gradients."""
        raise NotImplementedError

    def baseline(self, lq: Tensor) -> Tensor | None:
        """What the untrained part alone makes of it, to compare with; None where nothing is fixed."""
        return None

    def trained(self) -> nn.Module:
        """The module whose whole state is trained, checkpointed and averaged."""
        raise NotImplementedError

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """Write the result; returns its folder."""
        raise NotImplementedError

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Only what is trained; `parameters()` follows from it."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if parameter.requires_grad:
                yield name, parameter


class RestoreObjective(Objective):
    """Train the backbone toward the ground truth."""

    result = "backbone"

    def __init__(self, backbone: Backbone, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.network, self.weights = backbone, dict(weights)
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    @property
    def backbone(self) -> Backbone:
        return self.network

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return weighted_losses(self.backbone(batch["lq"]), batch["gt"], self.weights)

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        output: Tensor = self.backbone(lq)
        return output

    def trained(self) -> nn.Module:
        return self.backbone.module

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """`NAME.safetensors` of published names, which `load_backbone` reads, and `backbone.json` about it."""
        return save_backbone(self.backbone, folder, recipe, metrics)


class RefineObjective(Objective):
    """Keep the backbone frozen and train the refiner toward the ground truth, at all strengths of the recipe."""

    result = "adapter"

    def __init__(self, wrapper: RefineWrapper, weights: Mapping[str, float]) -> None:
        super().__init__()
        wrapper.freeze()
        self.wrapper, self.weights = wrapper, dict(weights)

    @property
    def backbone(self) -> Backbone:
        return self.wrapper.backbone

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.no_grad():
            restored = self.wrapper.backbone(batch["lq"])
        refined = self.wrapper.refiner(restored, batch["strength"].to(restored.dtype))
        return weighted_losses(refined, batch["gt"], self.weights)

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        """At the adapter's default strength."""
        output: Tensor = self.wrapper(lq)
        return output

    @torch.no_grad()
    def baseline(self, lq: Tensor) -> Tensor | None:
        output: Tensor = self.wrapper.backbone(lq)
        return output

    def trained(self) -> nn.Module:
        return self.wrapper.refiner

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder, which `RefineWrapper.from_pretrained` reads."""
        return self.wrapper.save_pretrained(
            folder / self.result,
            recipe=recipe.to_dict(),
            metrics=metrics,
            data=[source.model_dump(exclude_none=True) for source in recipe.data.sources],
            licence=recipe.licence,
        )


def build_objective(recipe: Recipe) -> Objective:
    """The objective of a recipe, on the CPU, its new weights drawn from the recipe's seed.

    Raises:
        RefineWrapError: the backbone or the refiner cannot be built (see `load_backbone`).
    """
    torch.manual_seed(recipe.train.seed)
    choice = recipe.backbone.model_dump(exclude_none=True)
    backbone = load_backbone({key: value for key, value in choice.items() if value or key == "options"})
    if recipe.objective == "restore":
        return RestoreObjective(backbone, recipe.losses.weights())
    return RefineObjective(_wrap(recipe, backbone), recipe.losses.weights())


def _wrap(recipe: Recipe, backbone: Backbone) -> RefineWrapper:
    from ..refiner import PRESETS

    choice = recipe.refiner
    options = {**(PRESETS[choice.preset] if choice.preset else {}), **choice.options}
    if choice.train_size is not None:
        options["train_size"] = choice.train_size
    return RefineWrapper(backbone, refiner=options, strength=recipe.strength.default)


def without_places(value: Any) -> Any:
    """A recipe's data with absolute paths cut to their last part: a machine's folders say nothing elsewhere."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def save_backbone(backbone: Backbone, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
    """A trained backbone as `folder/backbone/NAME.safetensors` and `backbone.json`.

    Raises:
        CheckpointError: a weight is not finite.
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save

    from .. import __version__
    from ..folder import atomic_path

    tensors = {
        name: value.detach().cpu().clone().contiguous() for name, value in backbone.published_state_dict().items()
    }
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name} holds values that are not finite", "finite weights", "do not keep this run")
    rebuild = {key: backbone.source[key] for key in ("arch", "options", "spec") if backbone.source.get(key)}
    target = folder / "backbone" / f"{recipe.name}.safetensors"
    with atomic_path(target) as temporary:
        # Of a network that spandrel recognises by its keys nothing needs to be recorded.
        metadata = {"format": "pt", **({BACKBONE_KEY: json.dumps(rebuild)} if "arch" in rebuild else {})}
        # Through bytes: safetensors' own files are readable by their owner alone, whatever the umask.
        temporary.write_bytes(save(tensors, metadata))
    about = {
        "format_version": 1,
        "file": target.name,
        **rebuild,
        "started_from": backbone.source.get("weights"),
        "family": backbone.spec.family,
        "scale": backbone.spec.scale,
        "structure": backbone.structure_hash(),
        "weights": backbone.weights_hash(),
        "recipe": without_places(recipe.to_dict()),
        "metrics": metrics,
        "data": [source.model_dump(exclude_none=True) for source in recipe.data.sources],
        "licence": recipe.licence,
        "version": __version__,
    }
    with atomic_path(target.parent / "backbone.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target.parent
