"""Codebook networks in three stages: images become codes, degraded images are given codes, details come back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone
from ..degradation import Degradation
from ..errors import RefineWrapError
from ..hub import TRAINED
from ..quality import CodebookRestorer, Condition, DualCodebookAutoencoder, load_autoencoder, save_autoencoder
from ..quantize import VectorQuantizer, silhouette, usage
from .data import ImageData, training_data, validation_data
from .losses import LossSet
from .objectives import ImageObjective, card_facts, save_backbone, without_places
from .quality import QUALITIES, add_qualities
from .scorer_losses import differentiable_scorers, scorable

if TYPE_CHECKING:
    from ..recipe import CodebookChoice, Recipe
    from ..scorers import Scorer


class CodebookObjective(ImageObjective):
    """What the three stages share: images are compared in [0, 1], and each sample has its ground truth's `quality`.

    Source: paper 2 (arXiv 2603.29773), 3.2 to 3.4, and its training configurations.
    """

    def __init__(self, losses: LossSet, choice: CodebookChoice, scorers: list[Scorer]) -> None:
        super().__init__(losses)
        self.choice, self.scorers = choice, scorers
        self.trained_on = [scorer.entry() for scorer in scorers]
        """Scorers that took part, which may not judge the result."""

    @property
    def conditioned(self) -> DualCodebookAutoencoder | CodebookRestorer:
        """The network that keeps how scores became qualities; where a stage before has said it, it stays so."""
        raise NotImplementedError

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        with recipe.at("data.train"):
            train = training_data(recipe, 1)
        with recipe.at("data.validation"):
            validation = validation_data(recipe, 1)
        network = self.conditioned
        known = None if network.condition is None else Condition.from_dict(network.condition)
        self.qualities = add_qualities(recipe, train, self.scorers, known)
        network.condition = self.qualities.condition.to_dict()
        return train, validation

    def begin(self, folder: Path) -> None:
        self.qualities.write(folder / QUALITIES)


class AutoencoderObjective(CodebookObjective):
    """Stage 1: encoder, both codebooks and generator, from ground truths alone.

    A batch has `gt` (B, 3, H, W) in [0, 1] and `quality` (B,): only those above `hq_threshold` reach HQ+.
    """

    result = "codebook"

    def __init__(
        self, network: DualCodebookAutoencoder, losses: LossSet, choice: CodebookChoice, scorers: list[Scorer]
    ) -> None:
        super().__init__(losses, choice, scorers)
        self.network = network
        self.chosen: dict[str, list[Tensor]] = {}
        """Indices of the codes of the batches since `measured`, by book."""

    @property
    def conditioned(self) -> DualCodebookAutoencoder:
        return self.network

    @property
    def scale(self) -> int:
        return 1

    def books(self) -> dict[str, VectorQuantizer]:
        """The codebooks that there are, by what they are called."""
        both = {"common": self.network.quantize, "HQ+": self.network.quantize_aesthetic}
        return {name: book for name, book in both.items() if book is not None}

    def measured(self) -> dict[str, float]:
        """How many codes the batches used, their perplexity (HQ+: of good images alone), how separate the books are."""
        found: dict[str, float] = {}
        for name, chosen in self.chosen.items():
            index = torch.cat(chosen)
            if len(index):
                used = usage(index, self.books()[name].codes)
                found |= {f"{name} codes used": used[0], f"{name} perplexity": used[1]}
        if found and len(self.books()) == 2:
            found["separation"] = silhouette(*(book.embedding.weight.detach() for book in self.books().values()))
        self.chosen = {}
        return found

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        made = self.network(batch["gt"] * 2 - 1, batch["quality"])
        good = batch["quality"] > self.network.hq_threshold
        for name, index in (("common", made.index_common), ("HQ+", made.index_hq[good])):
            if name in self.books():
                self.chosen.setdefault(name, []).append(index.detach().flatten())
        terms = self.compare((made.output + 1) / 2, batch["gt"])
        return {
            **terms,
            "codes_common": self.choice.commitment * made.loss_common,
            "codes_hq": self.choice.commitment * made.loss_hq,
        }

    def networks(self) -> list[nn.Module]:
        return [self.network.encoder, self.network.generator]

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        """What its codes keep of an image, both books taking part."""
        return _padded(lq, self.network.stride, lambda x: (self.network(x * 2 - 1, 1.0).output + 1) / 2)

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """PSNR and SSIM of what the codes keep; how many are used, their perplexity, how separate the books are."""
        found = super().validate(recipe, data, device, pictures, limit)
        count = len(data) if limit is None else min(limit, len(data))
        images = (data[i]["gt"][None].to(device) * 2 - 1 for i in range(count))
        indices = [_padded(image, self.network.stride, self.network.indices, crop=False) for image in images]
        about = f"{count} images"
        for place, (name, book) in enumerate(self.books().items()):
            used, perplexity = usage(torch.cat([each[:, place].flatten() for each in indices]), book.codes)
            for what, value in (("codes used", used), ("perplexity", perplexity)):
                found.append({"name": f"{name} {what}", "value": value, "protocol": "nearest codes", "data": about})
        if len(self.books()) == 2:
            value = silhouette(*(book.embedding.weight.detach() for book in self.books().values()))
            found.append({"name": "separation", "value": value, "protocol": "silhouette of the codes", "data": "codes"})
        return found

    def trained(self) -> nn.Module:
        return self.network

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder of kind codebook, which `load_autoencoder` and the next stage read."""
        return save_autoencoder(
            folder / self.result,
            self.network,
            scorers=self.trained_on,
            **card_facts(recipe, metrics),
        )


class CodesObjective(CodebookObjective):
    """Stages 2 and 3: a restorer learns to predict the ground truth's codes, its fuse blocks to bring details back.

    A batch has `lq` and `gt` (B, 3, H, W) in [0, 1], and the ground truth's `quality` (B,).

    Stage 2, `codes`: encoder, transformer and heads learn; generator and codebooks stay. Cross-entropy of the codes and
    distance of the latents, as published; images are compared too if `losses` says so, and scorers may raise the
    quality of the output: by way of codes that pass the gradient on (`codebook.codes`). HQ+ counts only for ground
    truths that are above the autoencoder's threshold: below it stage 1 has taught it nothing.
    Stage 3, `fuse`: the fuse blocks alone, at fidelity 1.
    """

    result = "backbone"

    def __init__(
        self,
        restorer: CodebookRestorer,
        autoencoder: DualCodebookAutoencoder | None,
        losses: LossSet,
        choice: CodebookChoice,
        scorers: list[Scorer],
        raised: list[Scorer],
    ) -> None:
        super().__init__(losses, choice, scorers)
        self.restorer, self.autoencoder, self.raised = restorer, autoencoder, nn.ModuleList(raised)
        # What trained a stage before, trained this one.
        before = [] if autoencoder is not None else restorer.scorers
        self.trained_on = list(dict.fromkeys([*self.trained_on, *(scorer.entry() for scorer in raised), *before]))
        restorer.scorers = self.trained_on
        self.body = Backbone(restorer, source={"arch": "CodebookRestorer", "options": restorer.config()})
        restorer.requires_grad_(False)
        parts: list[nn.Module] = [restorer.fuse_convs_dict]
        if autoencoder is not None:
            autoencoder.requires_grad_(False).eval()
            parts = [restorer.encoder, restorer.feat_emb, restorer.ft_layers, restorer.idx_pred_layer]
            restorer.position_emb.requires_grad_(True)
            if restorer.conditioning is not None:
                parts.append(restorer.score_embed)
        for part in parts:
            part.requires_grad_(True)

    @property
    def backbone(self) -> Backbone:
        return self.body

    @property
    def conditioned(self) -> CodebookRestorer:
        return self.restorer

    def train(self, mode: bool = True) -> CodesObjective:
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        lq, gt, quality = batch["lq"] * 2 - 1, batch["gt"], batch["quality"]
        if self.autoencoder is None:
            return self.compare((self.restorer(lq, quality, fidelity=1.0) + 1) / 2, gt)
        made = self.restorer.restore(lq, quality, 0.0, self.choice.codes, self.choice.temperature)
        losses = self._codes(made.logits, made.latent, gt * 2 - 1, quality)
        image = (made.output + 1) / 2
        losses |= self.compare(image, gt)
        for scorer in self.raised:
            missing = 1 - scorer(scorable(image)).mean()
            name = f"quality {scorer.name}"
            losses[name] = losses.get(name, 0) + self.choice.scorer_weight * missing  # two may have one name
        return losses

    def _codes(self, logits: Tensor, latent: Tensor, gt: Tensor, quality: Tensor) -> dict[str, Tensor]:
        assert self.autoencoder is not None
        with torch.no_grad():
            indices = self.autoencoder.indices(gt)
            good = (quality > self.autoencoder.hq_threshold).to(latent.dtype)
            target = self.restorer.quantize.look_up(indices[:, 0])
            if self.restorer.quantize_aesthetic is not None:
                weight = self.restorer.hq_weight * good[:, None, None, None]
                target = self.restorer.fusion(target, self.restorer.quantize_aesthetic.look_up(indices[:, 1]), weight)
        losses = {"feature": self.choice.feature * F.mse_loss(latent, target)}
        for place, own in enumerate(self.restorer.own_logits(logits)):
            wrong = F.cross_entropy(own.transpose(1, 2), indices[:, place].flatten(1), reduction="none").mean(1)
            name, each = ("hq", wrong * good) if place else ("common", wrong)
            losses[f"index_{name}"] = self.choice.index * each.mean()
        return losses

    def networks(self) -> list[nn.Module]:
        return [self.restorer]

    @torch.no_grad()
    def predict(self, lq: Tensor) -> Tensor:
        """At the restorer's own quality and fidelity."""
        output: Tensor = self.body(lq)
        return output

    def trained(self) -> nn.Module:
        return self.restorer

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """`NAME.safetensors`, which `load_backbone` reads, and `backbone.json` about it."""
        self.body.source["options"] = self.restorer.config()  # with how scores became qualities
        return save_backbone(self.body, folder, recipe, metrics, self.trained_on)


def build_stage(recipe: Recipe, losses: LossSet) -> CodebookObjective:
    """The objective of a stage, its new weights drawn from the recipe's seed.

    Raises:
        RefineWrapError: it cannot be built, or what it starts from cannot be loaded or does not fit.
    """
    torch.manual_seed(recipe.train.seed)
    made = _stage(recipe, losses)
    stride = made.network.stride if isinstance(made, AutoencoderObjective) else made.restorer.stride
    if recipe.data.crop % stride:
        raise recipe.refuse("data.crop", f"data.crop is {recipe.data.crop}", f"a multiple of the stride, {stride}")
    return made


def _stage(recipe: Recipe, losses: LossSet) -> AutoencoderObjective | CodesObjective:
    from ..backbone import load_backbone
    from ..scorers import load_scorer

    choice, condition = recipe.codebook, recipe.quality
    assert choice is not None and condition is not None  # the recipe has checked it
    with recipe.at("quality.scorers"):
        scorers = [load_scorer(source) for source in condition.scorers]
    with recipe.at("codebook.scorers"):
        raised = differentiable_scorers(choice.scorers, recipe.data.crop)
    try:
        if choice.stage == "autoencoder":
            with recipe.at("codebook.options", "codebook"):
                return AutoencoderObjective(DualCodebookAutoencoder(**choice.options), losses, choice, scorers)
        if choice.stage == "codes":
            with recipe.at("codebook.start", "codebook"):
                autoencoder = load_autoencoder(str(choice.start))
            with recipe.at("codebook.options", "codebook"):
                options = {"quality": condition.default, **choice.options}
                restorer = CodebookRestorer.of_autoencoder(autoencoder, **options)
            if restorer.hq_threshold is None or restorer.hq_threshold < autoencoder.hq_threshold:
                text = f"HQ+ takes part above {restorer.hq_threshold or 0:g}, and is trained above "
                text += f"{autoencoder.hq_threshold:g} alone: between the two its codes mean nothing"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            return CodesObjective(restorer, autoencoder, losses, choice, scorers, raised)
    except TypeError as error:
        raise recipe.refuse("codebook.options", f"The network cannot be built: {error}") from None
    with recipe.at("codebook.start", "codebook"):
        module = load_backbone(str(choice.start)).module
        if not isinstance(module, CodebookRestorer):
            raise RefineWrapError(f"{choice.start} is a {type(module).__name__}", "a CodebookRestorer, of stage codes")
    module.quality, module.fidelity = condition.default, 1.0
    _compare_degradations(recipe, Path(str(choice.start)).with_name(TRAINED))
    return CodesObjective(module, None, losses, choice, scorers, [])


def _compare_degradations(recipe: Recipe, about: Path) -> None:
    """Warn where the stage before met other low-quality images: its codes were learned for those."""
    if not about.is_file():
        return
    before = json.loads(about.read_text(encoding="utf-8"))["recipe"]["data"].get("degradation")
    own = without_places(recipe.to_dict())["data"]["degradation"]
    # Read again: keys that there were not then stand at their defaults.
    if (before and Degradation.model_validate(before)) != (own and Degradation.model_validate(own)):
        text = "data.degradation is not that of codebook.start, whose codes were learned for that"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _padded(image: Tensor, stride: int, network: Any, crop: bool = True) -> Tensor:
    """For a network that takes multiples of its stride alone."""
    height, width = image.shape[-2:]
    found: Tensor = network(F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate"))
    return found[..., :height, :width] if crop else found
