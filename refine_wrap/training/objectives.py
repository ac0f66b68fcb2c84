"""What is trained: an objective takes a batch and gives named losses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, load_backbone
from ..errors import RefineWrapError
from ..wrapper import RefineWrapper
from .data import ImageData, training_data, validation_data
from .lora import add_lora, lora_weights, merged, save_lora, without_lora
from .losses import LossSet
from .monitor import save_strip
from .start import start_plain

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .adversary import Adversary


class Objective(nn.Module):
    """`losses = objective(batch)`: a dict of named, weighted terms whose sum is minimised.

    `parameters()` is only what is trained. A batch is what its own data makes.
    """

    result: str
    """Name of the folder that `save` writes in the run's."""
    adversary: Adversary | None = None
    """Set where the recipe has a `gan` loss. It is no submodule: it is trained, moved and saved by itself."""

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        """The training samples, and those to validate on, if the recipe has any.

        Raises:
            DataError, RecipeError: they cannot be used.
        """
        raise NotImplementedError

    def begin(self, folder: Path) -> None:
        """Write what is known before the first step into the run's folder; the first process is asked."""

    def measured(self) -> dict[str, float]:
        """Figures of the batches since it was asked last, for metrics.jsonl, beside the losses."""
        return {}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """What runs in a training step, the trained parts last: for torch.compile and activation checkpointing."""
        raise NotImplementedError

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """Measure what was trained on held-out samples; call it inside `evaluation()`.

        Args:
            pictures: a folder for pictures of some of them; None: no pictures.
            limit: how many samples; None: all.

        Returns:
            `name`, `value`, `protocol` and `data`, as a model card lists them.
        """
        raise NotImplementedError

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode and no gradients, while it lasts."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

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


class ImageObjective(Objective):
    """From image to image: what `RestoreObjective` and `RefineObjective` share.

    A batch has `lq` (B, 3, h, w) and `gt` (B, 3, h * scale, w * scale), RGB in [0, 1], and `strength` (B,).
    """

    losses: LossSet

    def __init__(self, losses: LossSet) -> None:
        super().__init__()
        self.losses = losses
        self.seen: list[tuple[Tensor, Tensor]] = []
        """With an adversary: outputs and ground truths since `take_seen`, for its own step."""

    @property
    def backbone(self) -> Backbone:
        """The restoration network, trained or frozen."""
        raise NotImplementedError

    @property
    def scale(self) -> int:
        """Output pixels of a side for each input pixel."""
        return self.backbone.spec.scale

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        with recipe.at("data.train"):
            train = training_data(recipe, self.scale)
        with recipe.at("data.validation"):
            return train, validation_data(recipe, self.scale)

    def compare(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The weighted losses of (B, 3, H, W), the adversarial one among them."""
        terms: dict[str, Tensor] = self.losses(output, target)
        if self.adversary is not None:
            terms["gan"] = self.adversary.generator_term(output)
            self.seen.append((output.detach(), target))
        return terms

    def take_seen(self) -> list[tuple[Tensor, Tensor]]:
        """What was compared since the last call."""
        seen, self.seen = self.seen, []
        return seen

    def predict(self, lq: Tensor) -> Tensor:
        """What the finished model makes of (B, 3, h, w); not clamped, no gradients."""
        raise NotImplementedError

    def baseline(self, lq: Tensor) -> Tensor | None:
        """What the untrained part alone makes of it, to compare with; None where nothing is fixed."""
        return None

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """PSNR and SSIM of the output and, where it is fixed, of the bare backbone.

        Pictures: low quality | backbone | output | ground truth side by side.
        """
        from ..evaluation import Protocol

        part = recipe.data.validation
        assert part is not None  # there is validation data
        count = len(data) if limit is None else min(limit, len(data))
        # As super-resolution is usually measured: pixels near the border depend on what lies beyond it.
        border = self.scale if self.scale > 1 else 0
        protocols = [Protocol("PSNR", border=border), Protocol("SSIM", border=border)]
        sums: dict[tuple[str, str], float] = {}
        for index in range(count):
            sample = data[index]
            lq, gt = (sample[name][None].to(device) for name in ("lq" if "lq" in sample else "gt", "gt"))
            shown = {
                "": self.predict(lq),
                " backbone": self.baseline(lq),
                " input": lq if border == 0 and "lq" in sample else None,
            }
            for protocol in protocols:
                for of, image in shown.items():
                    if image is not None:
                        key = (protocol.metric + of, str(protocol))
                        sums[key] = sums.get(key, 0.0) + _capped(float(protocol(_finite(image), gt)))
            if pictures is not None and index < part.pictures:
                strip = [image for image in (lq, shown[" backbone"], shown[""], gt) if image is not None]
                save_strip(
                    pictures / f"{index:02d}_{Path(sample['name']).stem}.png", [_finite(image) for image in strip]
                )
        about = ", ".join(Path(root).name for root in part.gt) + f" ({count} images)"
        return [
            {"name": name, "value": total / count, "protocol": protocol, "data": about}
            for (name, protocol), total in sums.items()
        ]


def _finite(image: Tensor) -> Tensor:
    """A diverged output is measured, and shown, as black where it is not a number: the curve must show it, not stop."""
    return torch.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0)


def _capped(value: float) -> float:
    return min(value, 100.0)  # identical images have an infinite PSNR, and no mean


class RestoreObjective(ImageObjective):
    """Train the backbone toward the ground truth: all its weights, or LoRA alone.

    Args:
        backbone: changed in place.
        losses: between its output and the ground truth.
        lora: the arguments of `add_lora`; None: all weights are trained. With LoRA the backbone stays in evaluation
            mode, its norm statistics as published.
    """

    result = "backbone"

    def __init__(self, backbone: Backbone, losses: LossSet, lora: Mapping[str, Any] | None = None) -> None:
        super().__init__(losses)
        self.network, self.with_lora = backbone, lora is not None
        if lora is not None:
            add_lora(backbone, **lora)
            return
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def train(self, mode: bool = True) -> RestoreObjective:
        super().train(mode)
        if self.with_lora:
            self.network.eval()
        return self

    @property
    def backbone(self) -> Backbone:
        return self.network

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.compare(self.backbone(batch["lq"]), batch["gt"])

    def networks(self) -> list[nn.Module]:
        return [self.backbone.module]

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        output: Tensor = self.backbone(lq)
        return output

    @torch.no_grad()
    def baseline(self, lq: Tensor) -> Tensor | None:
        """With LoRA: the backbone without it."""
        if not self.with_lora:
            return None
        with without_lora(self.backbone):
            output: Tensor = self.backbone(lq)
        return output

    def trained(self) -> nn.Module:
        return lora_weights(self.backbone) if self.with_lora else self.backbone.module

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """`NAME.safetensors` of published names, which `load_backbone` reads, and `backbone.json` about it.

        LoRA is merged into these weights, and is written by itself in `lora/` too.
        """
        if not self.with_lora:
            return save_backbone(self.backbone, folder, recipe, metrics)
        saved = save_backbone(merged(self.backbone), folder, recipe, metrics)
        save_lora(self.backbone, saved / "lora")
        return saved


class WrapperObjective(ImageObjective):
    """Keep the backbone of a wrapper frozen and train a part that is added to it."""

    result = "adapter"

    def __init__(self, wrapper: RefineWrapper, losses: LossSet, trained_on: list[str]) -> None:
        super().__init__(losses)
        wrapper.freeze()
        self.wrapper = wrapper
        self.trained_on = trained_on
        """Scorers that took part, which may not judge the result."""

    @property
    def backbone(self) -> Backbone:
        return self.wrapper.backbone

    @property
    def part(self) -> nn.Module:
        """What is trained: the head, or else the refiner."""
        found = self.wrapper.quality_head or self.wrapper.refiner
        assert found is not None
        return found

    def networks(self) -> list[nn.Module]:
        return [self.wrapper.backbone.module, self.part]

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        """At the adapter's own strength and quality."""
        output: Tensor = self.wrapper(lq)
        return output

    @torch.no_grad()
    def baseline(self, lq: Tensor) -> Tensor | None:
        output: Tensor = self.wrapper.backbone(lq)
        return output

    def trained(self) -> nn.Module:
        return self.part

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder, which `RefineWrapper.from_pretrained` reads."""
        return self.wrapper.save_pretrained(
            folder / self.result, scorers=self.trained_on, **card_facts(recipe, metrics)
        )


class RefineObjective(WrapperObjective):
    """Keep the backbone frozen and train the refiner toward the ground truth, at all strengths of the recipe."""

    def __init__(self, wrapper: RefineWrapper, losses: LossSet) -> None:
        super().__init__(wrapper, losses, [])

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        restored = (batch if "restored" in batch else self.frozen(batch["lq"]))["restored"]
        refined = self.part(restored, batch["strength"].to(restored.dtype))
        return self.compare(refined, batch["gt"])

    @torch.no_grad()
    def frozen(self, lq: Tensor) -> dict[str, Tensor]:
        """What the backbone makes of (B, 3, h, w), each with B entries; a batch may hold it in place of `lq`."""
        return {"restored": self.wrapper.backbone(lq)}


def card_facts(recipe: Recipe, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What the card of anything that a recipe trains says: arguments of `refine_wrap.hub.Adapter`."""
    return {
        "recipe": recipe.to_dict(),
        "metrics": metrics,
        "data": [source.model_dump(exclude_none=True) for source in recipe.data.sources],
        "licence": recipe.licence,
    }


def build_objective(recipe: Recipe) -> Objective:
    """The objective of a recipe, on the CPU, its new weights drawn from the recipe's seed.

    Raises:
        RefineWrapError: the backbone or the refiner cannot be built (see `load_backbone`), or a loss needs a package
            that is not there.
        CheckpointError: weights of a loss are missing or are not its.
    """
    if recipe.objective == "score":
        from .score import ScoreObjective

        return ScoreObjective.of(recipe)
    if recipe.objective == "classify":
        from .classify import ClassifyObjective

        return ClassifyObjective.of(recipe)
    if recipe.objective == "masks":
        from .supervised import MasksObjective

        return MasksObjective.of(recipe)
    with recipe.at("losses"):
        # Codes, and the noise of an image, can be learned without comparing images: the recipe has checked it.
        losses = LossSet(recipe.losses, needed=recipe.objective not in ("codebook", "reconstruct"))
    if recipe.objective == "codebook":
        from .codebook import build_stage

        return build_stage(recipe, losses)
    if recipe.objective == "reconstruct":
        from .reconstruction import ReconstructObjective

        return ReconstructObjective.of(recipe, losses)
    torch.manual_seed(recipe.train.seed)
    if recipe.backbone is None:
        backbone = load_backbone(nn.Identity())
    else:
        choice = recipe.backbone.model_dump(exclude_none=True)
        with recipe.at("backbone.weights", "backbone"):
            backbone = load_backbone({key: value for key, value in choice.items() if value or key == "options"})
    if recipe.objective == "quality":
        from .quality import QualityObjective

        return QualityObjective.of(recipe, backbone, losses)
    if recipe.objective == "restore":
        if backbone.spec.family == "SRVGG" and "weights" not in backbone.source:
            start_plain(backbone.module)
        if recipe.trainable != ["lora"]:
            return RestoreObjective(backbone, losses)
        try:
            return RestoreObjective(backbone, losses, recipe.lora.model_dump())
        except RefineWrapError as error:
            raise recipe.refuse("lora.targets", error.came, error.expected, error.next_step) from None
    wrapper = RefineWrapper(backbone, refiner=refiner_options(recipe), strength=recipe.strength.default)
    if recipe.supervision is None:
        return RefineObjective(wrapper, losses)
    from .supervised import EnhancedObjective

    with recipe.at("supervision", "supervision.masks"):
        return EnhancedObjective(wrapper, losses, recipe.supervision)


def refiner_options(recipe: Recipe) -> dict[str, Any]:
    """The arguments of the ORNet that a recipe names."""
    from ..refiner import PRESETS

    choice = recipe.refiner
    options = {**(PRESETS[choice.preset] if choice.preset else {}), **choice.options}
    if choice.train_size is not None:
        options["train_size"] = choice.train_size
    return options


def without_places(value: Any) -> Any:
    """A recipe's data with absolute paths cut to their last part: a machine's folders say nothing elsewhere."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def save_backbone(
    backbone: Backbone, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]], scorers: Sequence[str] = ()
) -> Path:
    """A trained backbone as `folder/backbone/NAME.safetensors` and `backbone.json`.

    Raises:
        CheckpointError: a weight is not finite.
        OutputError: the folder cannot be written.
    """
    from .. import __version__
    from ..folder import atomic_path
    from ..hub import TRAINED

    target = backbone.save_published(folder / "backbone" / f"{recipe.name}.safetensors")
    about = {
        "format_version": 1,
        "file": target.name,
        **backbone.rebuild(),
        "started_from": backbone.source.get("weights"),
        "family": backbone.spec.family,
        "scale": backbone.spec.scale,
        "structure": backbone.structure_hash(),
        "weights": backbone.weights_hash(),
        "recipe": without_places(recipe.to_dict()),
        "scorers": list(scorers),
        "metrics": metrics,
        "data": [source.model_dump(exclude_none=True) for source in recipe.data.sources],
        "licence": recipe.licence,
        "version": __version__,
    }
    with atomic_path(target.parent / TRAINED) as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target.parent
