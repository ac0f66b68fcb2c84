"""Quality as a condition: a head learns what the scores of ground truths mean, and paints what it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..degradation.rounding import as_float
from ..errors import ImageError, RefineWrapError
from ..manifests import write_text
from ..quality import Condition
from ..scorers.cache import Kept, ScoreCache, scorer_key
from ..wrapper import RefineWrapper
from .data import ImageData, ImageStore, Sample, as_tensor
from .losses import LossSet
from .objectives import WrapperObjective, refiner_options
from .scorer_losses import differentiable_scorers, scorable
from .sources import Item

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..scorers import Scorer

QUALITIES = "qualities.tsv"
SHOWN_QUALITIES = (0.1, 0.5, 0.9)
"""What a head is validated at."""


class QualityObjective(WrapperObjective):
    """Keep the backbone frozen and train a quality head: asked for a ground truth's own quality, it paints that one.

    Or a refiner that knows quality, for networks without features to steer. A batch has `lq` (B, 3, h, w) and `gt`
    (B, 3, h * scale, w * scale), RGB in [0, 1], and `quality` (B,), the ground truth's. The same low-quality image with
    ground truths of several qualities is what teaches the dial.

    Source: paper 2 (arXiv 2603.29773), 3.2 and 3.3, on any backbone.
    """

    def __init__(
        self, wrapper: RefineWrapper, losses: LossSet, scorers: Sequence[Scorer], match_scores: float = 0.0
    ) -> None:
        super().__init__(wrapper, losses, [scorer.entry() for scorer in scorers])
        self.scorers, self.match_scores = list(scorers), match_scores
        self.trained_with = nn.ModuleList(scorers if match_scores else [])

    @classmethod
    def of(cls, recipe: Recipe, backbone: Backbone, losses: LossSet) -> QualityObjective:
        """The untrained head, or refiner, of a recipe around a backbone, its weights drawn from the recipe's seed."""
        from ..scorers import load_scorer

        choice = recipe.quality
        assert choice is not None  # the recipe has checked it
        torch.manual_seed(recipe.train.seed)
        if recipe.trainable == ["refiner"]:
            refiner = {**refiner_options(recipe), "quality": True}
            wrapper = RefineWrapper(backbone, refiner=refiner, strength=recipe.strength.default, quality=choice.default)
        else:
            with recipe.at("quality.head", "quality"):
                head = choice.head or True
                wrapper = RefineWrapper(backbone, refiner=None, quality_head=head, quality=choice.default)
        with recipe.at("quality.scorers"):
            if choice.match_scores:
                scorers = differentiable_scorers(choice.scorers, recipe.data.crop)
            else:
                scorers = [load_scorer(source) for source in choice.scorers]
        return cls(wrapper, losses, scorers, choice.match_scores)

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        """As any image objective's, and the quality of each ground truth."""
        train, validation = super().data(recipe)
        self.qualities = add_qualities(recipe, train, self.scorers)
        self.wrapper.condition = self.qualities.condition.to_dict()
        return train, validation

    def begin(self, folder: Path) -> None:
        self.qualities.write(folder / QUALITIES)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        strength = None if self.wrapper.refiner is None else batch["strength"]
        output = self.wrapper(batch["lq"], strength, batch["quality"])
        terms = self.compare(output, batch["gt"])
        for scorer in self.trained_with:
            with torch.no_grad():
                wanted = scorer(batch["gt"])
            term = self.match_scores * (scorer(scorable(output)) - wanted).abs().mean()
            terms[f"score {scorer.name}"] = terms.get(f"score {scorer.name}", 0) + term  # two may have one name
        return terms

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """PSNR and SSIM at the default quality and of the bare backbone, and what the training scorers say of the dial.

        They are no judges: but a dial that does not move even them has learned nothing.
        """
        found = super().validate(recipe, data, device, pictures, limit)
        count = len(data) if limit is None else min(limit, len(data))
        for scorer in self.scorers:
            scorer.to(device)
            for quality in SHOWN_QUALITIES:
                outputs = (self.wrapper(data[i]["lq"][None].to(device), quality=quality) for i in range(count))
                mean = sum(float(scorer(scorable(output))) for output in outputs) / count
                found.append(
                    {
                        "name": f"{scorer.name}, quality {quality}",
                        "value": mean,
                        "protocol": f"{scorer.name}, which trained it, 0 to 1",
                        "data": f"{count} images",
                    }
                )
        return found


def add_qualities(
    recipe: Recipe, data: ImageData, scorers: Sequence[Scorer], condition: Condition | None = None
) -> Qualities:
    """Have the samples of a recipe with `quality` hold their ground truth's quality too.

    Each process scores a part of the ground truths on its device, and reads the others' scores from the cache.

    Args:
        condition: that of an earlier stage, whose qualities must mean the same; None: it is fitted to this set.

    Raises:
        RefineWrapError: an image cannot be scored, all have the same score, or the condition is of other scorers.
    """
    from accelerate.state import PartialState

    assert recipe.quality is not None  # the recipe has checked it
    truths = list(dict.fromkeys(row[0] for row in data.store.rows))
    state = PartialState()
    with recipe.at("quality.scorers"):
        if state.num_processes > 1:
            own = truths[state.process_index :: state.num_processes]
            score_items(data.store, own, scorers, ScoreCache.default(), state.device)
            state.wait_for_everyone()
        found = score_items(data.store, truths, scorers, ScoreCache.default(), state.device)
        names = [scorer.entry() for scorer in scorers]
        if condition is None:
            condition = Condition.fit(_by_scorer(found), recipe.quality.normalise, names)
        elif list(condition.scorers) != names:
            raise RefineWrapError(
                f"The qualities of codebook.start are of {', '.join(condition.scorers)}, these of {', '.join(names)}",
                "the same scorers in all stages",
            )
    data.also = qualities = Qualities(found, condition)
    return qualities


def _by_scorer(scores: Mapping[Item, list[float]]) -> list[list[float]]:
    return list(map(list, zip(*scores.values(), strict=True)))


class Qualities:
    """Adds the ground truth's `quality` () to a sample.

    Args:
        scores: of each ground truth by each scorer, higher is better, in the order of `condition.scorers`.
        condition: how they become qualities.
    """

    def __init__(self, scores: Mapping[Item, list[float]], condition: Condition) -> None:
        self.scores, self.condition = scores, condition
        self.known = dict(zip(scores, condition(_by_scorer(scores)).tolist(), strict=True))

    def __call__(self, sample: Sample, files: Sequence[Item]) -> Sample:
        return {"quality": torch.tensor(self.known[files[0]], dtype=torch.float32)}

    def write(self, path: Path) -> None:
        """A table for people: image, quality, scores. Raises OutputError."""
        rows = [("image", "quality", *self.condition.scorers)]
        for item, scores in self.scores.items():
            rows.append((str(item), *(f"{value:.6g}" for value in (self.known[item], *scores))))
        write_text(path, "".join("\t".join(row) + "\n" for row in rows))


@torch.no_grad()
def score_items(
    store: ImageStore,
    items: Sequence[Item],
    scorers: Sequence[Scorer],
    cache: ScoreCache,
    device: torch.device | str = "cpu",
) -> dict[Item, list[float]]:
    """By each scorer the score of every image, higher is better; each content is scored once, also by other runs.

    An image that cannot be read is left out: training leaves it out too.

    Raises:
        ImageError: an image is too small for a scorer.
    """
    keys = [scorer_key(scorer.name, scorer.digest()) for scorer in scorers]
    cache.load(keys)
    for scorer in scorers:
        scorer.to(device)
    found: dict[Item, list[float]] = {}
    for item in items:
        try:
            pixels = store.get(item)
        except ImageError:
            continue
        digest = hashlib.sha256(f"{pixels.dtype}{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        found[item] = []
        for key, scorer in zip(keys, scorers, strict=True):
            kept = cache.get(key, digest)
            if kept is None or kept.raw is None:
                raw = float(scorer.raw(as_tensor(as_float(pixels))[None].to(device)))
                kept = Kept(pixels.shape[1], pixels.shape[0], raw)
                cache.put(key, {digest: kept})
            assert kept.raw is not None
            found[item].append(float(scorer.normalised(torch.tensor(kept.raw))))
    return found
