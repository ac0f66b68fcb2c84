"""Enhanced supervision: masks that mix ground truths with their variants are trained, and refiners on what they mix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import load_backbone
from ..errors import RefineWrapError
from ..supervision import FrequencyMaskGenerator, enhanced, load_mask_generator, save_mask_generator
from ..supervision.mixup import mix
from ..wrapper import RefineWrapper
from .data import ImageData, training_data, validation_data
from .frozen import OutputStore
from .losses import LossSet
from .objectives import Objective, RefineObjective, card_facts
from .scorer_losses import differentiable_scorers, scorable
from .variants import MadeVariants, ReadyVariants

if TYPE_CHECKING:
    from ..evaluation.metrics import Metric
    from ..recipe import MasksChoice, Recipe, SupervisionChoice
    from ..scorers import Scorer

SHOWN_STRENGTHS = (0.0, 0.3, 1.0)
"""The strengths that masks are validated at."""
SOUND = 1e-4
"""Squared error, of images in [-1, 1], of a ground truth that is as good as its pristine photo: 46 dB."""


def add_variants(recipe: Recipe, data: ImageData, validation: ImageData | None, of: str) -> None:
    """Have the samples of a recipe with `supervision` hold their `variants` too.

    Args:
        of: which of a sample's pictures they are made of, `gt` or `lq`; those that lie ready are of the ground truth.

    Raises:
        RefineWrapError: the super-resolver cannot be loaded, or ready variants do not fit.
    """
    choice = recipe.supervision
    assert choice is not None  # the recipe has checked it
    if choice.variants is not None:
        with recipe.at("supervision.variants"):
            cache = int(recipe.data.cache * 1e9)
            folder = Path(choice.variants)
            data.also = ReadyVariants(folder, choice.factors, recipe.data.train, data, cache)
            if validation is not None and recipe.data.validation is not None:
                validation.also = ReadyVariants(folder, choice.factors, recipe.data.validation, validation, cache)
        return
    with recipe.at("supervision.sr", "supervision"):
        network = load_backbone(str(choice.sr)).requires_grad_(False)
        kept = OutputStore(recipe.folder / "variants") if recipe.data.variants is not None else None
        data.also = MadeVariants(network, choice.factors, of, kept)
        if validation is not None:
            validation.also = MadeVariants(network, choice.factors, of)


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """(B,), of images in [0, 1] as if they were in [-1, 1]."""
    return 4 * (a - b).square().mean((1, 2, 3))


class MasksObjective(Objective):
    """Train a mask generator: the enhanced ground truth stays close to the ground truth, and gets better.

    A batch has the ground truth `gt` (B, 3, H, W), its `variants` (B, N, 3, H, W), RGB in [0, 1], and `strength` (B,).
    With a degradation `gt` is the pristine photo, and `lq` of the same size the flawed ground truth made of it.

    Source: paper 1, 3.3 and train_cfmg.py, whose squared error is that of images in [-1, 1], as here.
    """

    result = "masks"

    def __init__(self, generator: FrequencyMaskGenerator, choice: MasksChoice, scorers: list[Scorer]) -> None:
        super().__init__()
        self.generator, self.choice = generator, choice
        self.scorers = nn.ModuleList(scorers)
        self.names = [scorer.name for scorer in scorers]
        self.recorded = [scorer.entry() for scorer in scorers]

    @classmethod
    def of(cls, recipe: Recipe) -> MasksObjective:
        """The untrained generator of a recipe, its weights drawn from the recipe's seed."""
        choice, supervision = recipe.masks, recipe.supervision
        assert choice is not None and supervision is not None  # the recipe has checked it
        torch.manual_seed(recipe.train.seed)
        with recipe.at("masks.options", "masks"):
            try:
                generator = FrequencyMaskGenerator(**{**choice.options, "images": len(supervision.factors) + 1})
            except TypeError as error:
                raise RefineWrapError(
                    f"The mask generator cannot be built: {error}", "arguments of FrequencyMaskGenerator"
                ) from None
        with recipe.at("masks.scorers"):
            scorers = differentiable_scorers(choice.scorers, recipe.data.crop)
        return cls(generator, choice, scorers)

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        with recipe.at("data.train"):
            train = training_data(recipe, 1)
        with recipe.at("data.validation"):
            validation = validation_data(recipe, 1)
        add_variants(recipe, train, validation, "gt" if recipe.data.degradation is None else "lq")
        return train, validation

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        gt, variants, strength = batch["lq" if "lq" in batch else "gt"], batch["variants"], batch["strength"]
        coefficients = self.generator.coefficients(gt, strength)
        masks = self.generator.masks(coefficients, gt.shape[-2], gt.shape[-1])
        mixed = mix([gt, *variants.unbind(1)], masks)
        pull = strength.square() if self.choice.weighting == "official" else strength
        distance, whole = squared_error(mixed, gt), torch.ones_like(pull)
        losses = {}
        if "lq" in batch and self.choice.pristine:
            # As shares of the flaw, what is left of it as their logarithm: a badly flawed ground truth must not teach
            # that all of them are. As a mean of both: that little is to change at a low strength counts as much as what
            # is best at a high one.
            flaw = squared_error(gt, batch["gt"]) + SOUND
            whole = 1 - pull + pull * self.choice.pristine
            distance = distance / flaw
            left = torch.log((squared_error(mixed, batch["gt"]) + SOUND) / flaw)
            losses["pristine"] = self.choice.pristine * (pull / whole * left).mean()
        losses["fidelity"] = ((1 - pull) / whole * distance).mean()
        if self.choice.logit_decay:
            logits = coefficients.clamp(min=1e-30).log()
            losses["logits"] = self.choice.logit_decay * (logits - logits.mean(1, keepdim=True)).square().mean()
        for name, scorer in zip(self.names, self.scorers, strict=True):
            # What is missing to the best score: the same gradient as the negative score of the paper, never below 0.
            term = self.choice.scorer_weight * (pull / whole * (1 - scorer(scorable(mixed)))).mean()
            losses[name] = losses.get(name, 0) + term  # two may have one name
        return losses

    def networks(self) -> list[nn.Module]:
        return [self.generator]

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """PSNR of the enhanced ground truth to the ground truth, and where there is a better photo, of each to that.

        Beside it those of the plain average and of each variant, and what scorers that train say.
        """
        from ..evaluation import full_reference

        psnr = full_reference("PSNR")
        sums: dict[tuple[str, str], float] = {}
        count = len(data) if limit is None else min(limit, len(data))
        for index in range(count):
            sample = {name: value[None].to(device) for name, value in data[index].items() if isinstance(value, Tensor)}
            gt, variants = sample["lq" if "lq" in sample else "gt"], sample["variants"]
            shown = {"ground truth": gt, "average": torch.cat((gt[:, None], variants), 1).mean(1)}
            shown |= {f"variant {n}": one for n, one in enumerate(variants.unbind(1), 1)}
            shown |= {f"strength {s}": enhanced(gt, variants, self.generator, s) for s in SHOWN_STRENGTHS}
            for name, image in shown.items():
                self._measure(sums, psnr, name, image.clamp(0, 1), gt, sample["gt"] if "lq" in sample else None)
        about = f"{count} crops"
        return [{"name": n, "value": total / count, "protocol": p, "data": about} for (n, p), total in sums.items()]

    def _measure(
        self,
        sums: dict[tuple[str, str], float],
        psnr: Metric,
        name: str,
        image: Tensor,
        gt: Tensor,
        pristine: Tensor | None,
    ) -> None:
        found = (
            {}
            if image is gt
            else {(f"PSNR to the ground truth, {name}", str(psnr)): min(float(psnr(image, gt)), 100.0)}
        )
        if pristine is not None:
            found[f"PSNR to the pristine photo, {name}", str(psnr)] = min(float(psnr(image, pristine)), 100.0)
        for label, scorer in zip(self.names, self.scorers, strict=True):
            found[f"{label}, {name}", f"{label}, 0 to 1"] = float(scorer(image))
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + value

    def trained(self) -> nn.Module:
        return self.generator

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder of kind masks, which `load_mask_generator` reads."""
        return save_mask_generator(
            folder / self.result,
            self.generator,
            strength=recipe.strength.default,
            scorers=self.recorded,
            **card_facts(recipe, metrics),
        )


class EnhancedObjective(RefineObjective):
    """Keep the backbone frozen and train the refiner toward enhanced ground truth, at each sample's own strength.

    A batch is that of `RefineObjective` with `variants` (B, N, 3, H, W) of its ground truth. Without a backbone it is
    that of `MasksObjective`: where `gt` is a pristine photo, the flawed `lq` is the ground truth.

    Source: paper 1, 3.4 and train.py, where the refiner is shown the ground truth alone.
    """

    def __init__(self, wrapper: RefineWrapper, losses: LossSet, choice: SupervisionChoice) -> None:
        super().__init__(wrapper, losses)
        self.choice = choice
        self.alone = wrapper.any_backbone
        self.generator = load_mask_generator(choice.masks).requires_grad_(False).eval()
        if self.generator.images != len(choice.factors) + 1:
            raise RefineWrapError(
                f"{choice.masks} mixes {self.generator.images} images, and there are {len(choice.factors)} variants",
                f"{self.generator.images - 1} factors in supervision.factors",
            )
        # What the masks were trained on, the refiner learns too.
        self.trained_on = list(self.generator.scorers)
        self.fidelity = None if choice.fidelity is None else LossSet(choice.fidelity)

    def baseline(self, lq: Tensor) -> Tensor | None:
        """The backbone's output, if there is one."""
        return None if self.alone else super().baseline(lq)

    def train(self, mode: bool = True) -> EnhancedObjective:
        super().train(mode)
        self.generator.eval()
        return self

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        train, validation = super().data(recipe)
        # Validation is against the ground truth as it is.
        add_variants(recipe, train, None, "lq" if self.alone and recipe.data.degradation is not None else "gt")
        return train, validation

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        gt, strength = batch["lq" if self.alone and "lq" in batch else "gt"], batch["strength"]
        with torch.no_grad():
            target = enhanced(gt, batch["variants"], self.generator, strength).clamp(0, 1)
        shown = []
        if self.choice.input != "ground_truth":
            shown.append((batch if "restored" in batch else self.frozen(batch["lq"]))["restored"])
        if self.choice.input != "backbone":
            shown.append(gt.to(shown[0].dtype) if shown else gt)
        times = len(shown)
        refined = self.part(torch.cat(shown), strength.to(gt.dtype).repeat(times))
        losses = self.compare(refined, target.repeat(times, 1, 1, 1))
        if self.fidelity is not None:
            found = self.fidelity(refined, gt.repeat(times, 1, 1, 1))
            losses |= {f"fidelity {name}": value for name, value in found.items()}
        return losses
