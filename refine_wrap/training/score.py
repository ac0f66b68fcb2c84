"""Training a scorer of image quality: ladders of distortions, whose order or full-reference quality is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone, load_backbone
from ..degradation.ladders import DISTORTIONS, between, gaussian_blur, ladder, rounded
from ..degradation.settings import Noise
from ..degradation.synthetic import add_noise, as_float
from ..scorers.learned import LearnedScorer
from .data import ImageData, ImageStore, as_tensor, mirrored, rows, validation_rows
from .frozen import OutputStore
from .objectives import Objective
from .sources import digest

if TYPE_CHECKING:
    from ..recipe import Recipe, ScorerChoice

Array = npt.NDArray[Any]
FORMAT = 1
"""Version of the ladders that are kept; part of every key."""
TRIES, LEAST_CONTRAST = 8, 0.03
"""How often a crop is drawn again while its standard deviation is below this: blur does not show on a plain wall."""
NETWORK = "network:"
"""What the name of a ladder begins with whose steps a network has made."""


class ScoreData(ImageData):
    """Ladders: `images` (N + 1, 3, c, c), a crop and its N distorted versions from good to bad, RGB in [0, 1].

    With supervision `reference` there is also `target` (N + 1,), what full-reference metrics say of each, in [0, 1].

    Args:
        store: the decoded photos.
        choice: the recipe's `scorer`.
        kept: where finished ladders are kept, for `data.variants`; None: they are made again every time.
        options: of `ImageData`.
    """

    def __init__(self, store: ImageStore, choice: ScorerChoice, kept: OutputStore | None = None, **options: Any):
        super().__init__(store, **options)
        self.choice, self.kept = choice, kept
        self.names = tuple(choice.distortions or DISTORTIONS)
        self.networks: dict[str, Backbone] = {}
        self.digests: dict[int, str] = {}
        self.settings: list[Any] | None = None

    def sample(self, row: int, variant: int, index: int) -> dict[str, Tensor]:
        if self.kept is None:
            return super().sample(row, variant, index)
        name = self._key(row, variant, index)
        if self.kept.has(name):
            kept = self.kept.get(name)
            return {**kept, "images": kept["images"].float() / 255}
        made = super().sample(row, variant, index)
        self.kept.put(name, {**made, "images": (made["images"] * 255).round().to(torch.uint8)})
        return made

    def _key(self, row: int, variant: int, index: int) -> str:
        """SHA-256 of all that a ladder follows from."""
        if row not in self.digests:
            self.digests[row] = digest(self.store.rows[row][0])
        if self.settings is None:
            # A network by its weights: another file of the same name makes other ladders.
            networks = [self.network(weights).weights_hash() for weights in self.choice.networks]
            choice = self.choice.model_dump(mode="json", exclude={"trunk", "options", "networks"})
            self.settings = [FORMAT, self.seed, self.crop, self.flips, self.rotations, choice, networks]
        text = json.dumps([self.settings, self.digests[row], variant, index], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        choice = self.choice
        pristine = self.photo_crop(row, rng)
        base = pristine
        if rng.random() < choice.soft:  # photos are often a little soft, and a scorer must not take that for the worst
            base = rounded(gaussian_blur(base, float(rng.uniform(0.0, 0.35)), rng))
        network = bool(choice.networks) and rng.random() < choice.network_share
        names = [NETWORK + weights for weights in choice.networks] if network else self.names
        name = str(names[int(rng.integers(len(names)))])
        # Sometimes the whole ladder is in the light half: small differences are what is asked for in the end.
        top = float(rng.uniform(0.35, 1.0))
        start = float(rng.uniform(0.1, 1.0))
        strengths = [top * (step + start) / choice.steps for step in range(choice.steps)]
        worse = self.steps(base, name, strengths, rng)
        images = torch.stack([as_tensor(image) for image in (base, *worse)])
        if choice.supervision == "order":
            return {"images": images}
        from .references import targets

        return {"images": images, "target": targets(images, as_tensor(pristine)[None])}

    def steps(self, base: Array, name: str, strengths: Sequence[float], rng: np.random.Generator) -> list[Array]:
        """The distorted versions of a crop, each (c, c, 3)."""
        if not name.startswith(NETWORK):
            return ladder(base, name, strengths, rng)
        network = self.network(name.removeprefix(NETWORK))
        seed = int(rng.integers(0, 2**63))
        return [through(network, base, strength, np.random.default_rng(seed)) for strength in strengths]

    def network(self, weights: str) -> Backbone:
        """One of the recipe's networks, loaded when it is first asked for."""
        if weights not in self.networks:
            self.networks[weights] = load_backbone(weights)
        return self.networks[weights]

    def photo_crop(self, row: int, rng: np.random.Generator) -> Array:
        """A square of a photo that was made smaller by a drawn factor; one without structure is drawn again."""
        image = self.store.get(self.store.rows[row][0])
        for _ in range(TRIES):
            part = self._square(image, rng)
            if float(part.mean(axis=2).std()) >= LEAST_CONTRAST:
                break
        return part

    def _square(self, image: Array, rng: np.random.Generator) -> Array:
        import cv2

        side = self.side(image.shape[0], image.shape[1])
        most = min(self.choice.shrink, *(have / want for have, want in zip(image.shape, side, strict=False)))
        factor = float(rng.uniform(1.0, max(most, 1.0)))
        wanted = (max(round(side[0] * factor), side[0]), max(round(side[1] * factor), side[1]))
        image = mirrored(image, *wanted)
        place = self.place(image.shape[0], image.shape[1], wanted, rng)
        part = as_float(image[place.top : place.top + wanted[0], place.left : place.left + wanted[1]])
        if wanted != side:
            part = np.asarray(cv2.resize(part, (side[1], side[0]), interpolation=cv2.INTER_AREA), dtype=np.float32)
        return rounded(np.ascontiguousarray(place.orient(part)))


@torch.no_grad()
def through(network: Backbone, image: Array, strength: float, rng: np.random.Generator) -> Array:
    """What a restoration network leaves of an image that was noisy (scale 1) or small (super-resolution).

    Its texture is what a scorer meets in real life: too smooth after denoising, invented after upscaling.
    """
    import cv2

    height, width = image.shape[:2]
    if network.spec.scale == 1:
        noisy = add_noise(image, Noise(sigma=[between(3, 50, strength)] * 2, correlation=[0.0, 0.8]), rng)
        low = rounded(noisy)
    else:
        factor = network.spec.scale * between(0.5, 2.0, strength)
        size = max(round(width / factor), 1), max(round(height / factor), 1)
        low = rounded(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)))
    output = network(as_tensor(low)[None])[0].permute(1, 2, 0).numpy()
    if output.shape[:2] != (height, width):
        kernel = cv2.INTER_AREA if output.shape[0] > height else cv2.INTER_CUBIC
        output = np.asarray(cv2.resize(output, (width, height), interpolation=kernel))
    return rounded(output)


class ScoreObjective(Objective):
    """Train a scorer: better steps of a ladder must score higher, or as the full-reference metrics say."""

    result = "scorer"

    def __init__(self, scorer: LearnedScorer, choice: ScorerChoice) -> None:
        super().__init__()
        self.scorer, self.choice = scorer, choice

    @classmethod
    def of(cls, recipe: Recipe) -> ScoreObjective:
        """The untrained scorer of a recipe, its weights drawn from the recipe's seed."""
        choice = recipe.scorer
        assert choice is not None  # the recipe has checked it
        torch.manual_seed(recipe.train.seed)
        with recipe.at("scorer.trunk", "scorer"):
            return cls(LearnedScorer(recipe.name, choice.trunk, choice.options, recipe.licence or "none given"), choice)

    def train(self, mode: bool = True) -> ScoreObjective:
        super().train(mode)
        for part in self.scorer.children():  # a scorer itself is always in evaluation mode
            part.train(mode)
        return self

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        data, part = recipe.data, recipe.data.validation
        kept = OutputStore(recipe.folder / "ladders") if data.variants is not None else None
        options: dict[str, Any] = {"crop": data.crop, "seed": recipe.train.seed}
        with recipe.at("data.train"):
            store = ImageStore(rows(data.train), int(data.cache * 1e9))
        train = ScoreData(
            store,
            self.choice,
            kept,
            **options,
            flips=data.flips,
            rotations=data.rotations,
            samples_per_image=data.samples_per_image,
            variants=data.variants,
        )
        if part is None:
            return train, None
        with recipe.at("data.validation"):
            held_out = ImageStore(validation_rows(part), int(data.cache * 1e9))
        return train, ScoreData(held_out, self.choice, **options, fixed=True)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images: Tensor = batch["images"]
        scores = self.scorer.logits(images.flatten(0, 1)).view(images.shape[:2])
        if self.choice.supervision == "order":
            return {"order": in_ladder(scores), "apart": apart(scores), "size": 1e-3 * scores.square().mean()}
        return {"target": functional.smooth_l1_loss(scores.sigmoid(), batch["target"], beta=0.05) * 10} | {
            "order": by_target(scores.flatten(), batch["target"].flatten())
        }

    def networks(self) -> list[nn.Module]:
        return [self.scorer.trunk]

    @torch.no_grad()
    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """Rank correlation of score and step, for each distortion, over the held-out photos."""
        from scipy.stats import spearmanr

        assert isinstance(data, ScoreData)  # it made them
        strengths = np.linspace(0.12, 1.0, 6)
        found: dict[str, list[float]] = {}
        self.eval()
        count = len(data) if limit is None else min(limit, len(data))
        for index in range(count):
            rng = np.random.default_rng((data.seed, 7, index))
            base = data.photo_crop(index, rng)
            for name in DISTORTIONS:
                steps = [base, *data.steps(base, name, list(strengths), rng)]
                images = torch.stack([as_tensor(image) for image in steps]).to(device)
                scores = self.scorer.logits(images).cpu().numpy()
                found.setdefault(name, []).append(float(spearmanr(scores, -np.arange(len(scores))).statistic))
        self.train()
        about = f"{count} crops of {data.crop} pixels"
        protocol = "mean Spearman correlation of score and step, 7 steps"
        values = {name: float(np.mean(values)) for name, values in found.items()}
        values = {"all": float(np.mean(list(values.values()))), **values}
        return [{"name": f"SRCC {n}", "value": v, "protocol": protocol, "data": about} for n, v in values.items()]

    def trained(self) -> nn.Module:
        return self.scorer

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """A scorer folder, which `load_scorer` reads."""
        from ..hub import Adapter, save_adapter

        adapter = Adapter(
            kind="scorer",
            config={"scorer": "learned", **self.scorer.config},
            tensors=dict(self.scorer.state_dict()),
            recipe=recipe.to_dict(),
            metrics=metrics,
            data=[source.model_dump(exclude_none=True) for source in recipe.data.sources],
            licence=recipe.licence,
        )
        return save_adapter(folder / self.result, adapter)


def in_ladder(scores: Tensor) -> Tensor:
    """Logistic loss over all pairs of one ladder, (B, N) from good to bad: the better step must score higher."""
    differences = scores[:, :, None] - scores[:, None, :]
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    return functional.softplus(-differences[:, better, worse]).mean()


def apart(scores: Tensor) -> Tensor:
    """Across pictures: no crop may score lower than another one's worst version."""
    return 0.3 * functional.softplus(-(scores[:, :1] - scores[:, -1][None])).mean()


def by_target(scores: Tensor, target: Tensor) -> Tensor:
    """Logistic loss over all pairs of a batch whose targets differ, weighted by how much."""
    gap = target[:, None] - target[None]
    weight = gap.clamp(min=0)
    losses = functional.softplus(-(scores[:, None] - scores[None]))
    return (losses * weight).sum() / weight.sum().clamp(min=1e-6)
