"""Training a scorer of image quality: ladders of distortions, whose order or full-reference quality is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone, load_backbone
from ..degradation.ladders import DISTORTIONS, between, camera_noise, ladder, rounded
from ..degradation.rounding import as_float, to_8bit
from ..degradation.settings import Jpeg
from ..degradation.synthetic import compress, filtered, gaussian_kernel
from ..scorers.learned import LearnedScorer
from .data import ImageData, ImageStore, as_tensor, ground_truths, mirrored
from .frozen import OutputStore
from .objectives import Objective, card_facts
from .sources import digest

if TYPE_CHECKING:
    from ..recipe import Recipe, ScorerChoice

Array = npt.NDArray[Any]
FORMAT = 8
"""Version of the ladders that are kept; part of every key."""
TRIES, LEAST_CONTRAST = 8, 0.03
"""How often a crop is drawn again while its standard deviation is below this: blur does not show on a plain wall."""
CLEANED = 1.5
"""Photos are made smaller by this at least, as far as they are large enough: what is called pristine has less grain of
its own then, or a scorer learns that grain is good and smoothing it away bad."""
ENLARGED = 0.45, 1.0
"""Crops that are to look like a camera's full resolution, where little changes between pixels, are enlarged from this
share of their size."""
NETWORK = "network:"
"""What the name of a ladder begins with whose steps a network has made."""

SETTLED = 0.5
"""After this share of the training batch norms keep their statistics. A score of its own is what is learned then, not
one that depends on the other crops of a batch: a DenseNet gave its own training crops 2.6 logits less in use."""


class ScoreData(ImageData):
    """Ladders: `images` (M, 3, c, c), a crop and then its distorted versions, ladder after ladder, RGB in [0, 1].

    `ladder` (M,) numbers the ladders from 1, the crop itself being 0, and `step` (M,) their steps from good to bad;
    `shares` (M, metrics) is what full-reference metrics say of each against the crop, in [0, 1], higher is better.
    The crop is the measure also where it is soft: sharpening it is no improvement.

    Args:
        store: the decoded photos.
        choice: the recipe's `scorer`.
        kept: where finished ladders are kept, for `data.variants`; None: they are made again every time.
        options: of `ImageData`.
    """

    def __init__(self, store: ImageStore, choice: ScorerChoice, kept: OutputStore | None = None, **options: Any):
        super().__init__(store, **options)
        self.choice, self.kept = choice, kept
        self.often = choice.distortions or dict.fromkeys(DISTORTIONS, 1.0)
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
            choice = self.choice.model_dump(mode="json", exclude={"trunk", "options", "networks", "supervision"})
            self.settings = [FORMAT, self.seed, self.crop, self.flips, self.rotations, choice, networks]
        text = json.dumps([self.settings, self.digests[row], variant, index], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        from .references import shares

        choice = self.choice
        camera = Camera(rng) if rng.random() < choice.soft else None
        base = self.photo_crop(row, rng, soft=camera is not None)
        if camera is not None:
            base = camera.taken(base)
        versions, ladders, steps = [base], [0], [0]
        for number, name in enumerate(self.drawn(rng), 1):
            # Sometimes the whole ladder is in the light half: small differences are what is asked for in the end.
            top = float(rng.uniform(0.35, 1.0))
            start = float(rng.uniform(0.1, 1.0))
            strengths = [top * (step + start) / choice.steps for step in range(choice.steps)]
            versions += self.steps(base, name, strengths, rng)
            ladders += [number] * choice.steps
            steps += range(1, choice.steps + 1)
        images = torch.stack([as_tensor(v if camera is None else camera.saved(v)) for v in versions])
        return {
            "images": images,
            "ladder": torch.tensor(ladders),
            "step": torch.tensor(steps),
            "shares": shares(images, images[:1], choice.metrics),
        }

    def drawn(self, rng: np.random.Generator) -> list[str]:
        """The names of a crop's ladders, no two the same while there are enough."""
        left: dict[str, float] = {}
        drawn = []
        for _ in range(self.choice.ladders):
            if self.choice.networks and rng.random() < self.choice.network_share:
                drawn.append(NETWORK + str(rng.choice(self.choice.networks)))
            else:
                left = left or dict(self.often)
                shares = np.array(list(left.values()))
                drawn.append(str(rng.choice(list(left), p=shares / shares.sum())))
                del left[drawn[-1]]
        return drawn

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

    def photo_crop(self, row: int, rng: np.random.Generator, *, soft: bool = False) -> Array:
        """A square of a photo that was made smaller by a drawn factor; one without structure is drawn again.

        Args:
            row: which photo.
            rng: the only source of chance.
            soft: as a camera's full resolution.
        """
        image = self.store.get(self.store.rows[row][0])
        for _ in range(TRIES):
            part = self._square(image, rng, soft)
            if float(part.mean(axis=2).std()) >= LEAST_CONTRAST:
                break
        return part

    def _square(self, image: Array, rng: np.random.Generator, soft: bool) -> Array:
        import cv2

        side = self.side(image.shape[0], image.shape[1])
        share = float(rng.uniform(*ENLARGED)) if soft else 1.0
        inner = (round(side[0] * share), round(side[1] * share))
        most = min(self.choice.shrink, *(have / want for have, want in zip(image.shape, inner, strict=False)))
        most = max(most, 1.0)  # a photo smaller than the crop is mirrored, not enlarged
        factor = float(rng.uniform(min(CLEANED, most), most))
        wanted = (round(inner[0] * factor), round(inner[1] * factor))
        image = mirrored(image, *wanted)
        place = self.place(image.shape[0], image.shape[1], wanted, rng)
        part = as_float(image[place.top : place.top + wanted[0], place.left : place.left + wanted[1]])
        if wanted != inner:
            part = np.asarray(cv2.resize(part, (inner[1], inner[0]), interpolation=cv2.INTER_AREA), dtype=np.float32)
        if inner != side:
            part = np.asarray(cv2.resize(part, (side[1], side[0]), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
        return rounded(np.ascontiguousarray(place.orient(part)))


class Camera:
    """What every version of a crop goes through that is to look like a camera's full resolution.

    Its pixels are softer than those of a photo made smaller for the screen, and it lies in a JPEG file. A scorer that
    has not seen that takes sensor noise for detail, and compression's traces for something to be smoothed away.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.sigma = between(0.3, 1.1, float(rng.random()))
        self.quality = int(rng.integers(70, 98)) if rng.random() < 0.7 else None
        # Sensor noise was there before the file was written, a restored picture is made of the file.
        self.file_first = rng.random() < 0.6
        self.seed = int(rng.integers(0, 2**63))

    def taken(self, image: Array) -> Array:
        """Optics, demosaicking and perhaps the file: before anything happens to a picture."""
        soft = rounded(filtered(image, gaussian_kernel(self.sigma, self.sigma, 0.0)))
        return self._compressed(soft) if self.file_first else soft

    def saved(self, image: Array) -> Array:
        """The file, if it was not there before: after everything has happened."""
        return image if self.file_first else self._compressed(image)

    def _compressed(self, image: Array) -> Array:
        if self.quality is None:
            return image
        settings = Jpeg(quality=[self.quality, self.quality], subsampling="random")
        return as_float(compress(to_8bit(image), settings, np.random.default_rng(self.seed)))


@torch.no_grad()
def through(network: Backbone, image: Array, strength: float, rng: np.random.Generator) -> Array:
    """What a restoration network leaves of an image that was noisy (scale 1) or small (super-resolution).

    Its texture is what a scorer meets in real life: too smooth after denoising, invented after upscaling.
    """
    import cv2

    height, width = image.shape[:2]
    if network.spec.scale == 1:
        low = rounded(camera_noise(image, strength, rng))
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
    """Train a scorer: better steps of a ladder must score higher, and what full-reference metrics prefer."""

    result = "scorer"

    def __init__(self, scorer: LearnedScorer, choice: ScorerChoice, batches: int) -> None:
        super().__init__()
        self.scorer, self.choice = scorer, choice
        self.learned = round(SETTLED * batches)
        self.norms = [part for part in scorer.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.momentum = 0.01  # few crops make a batch: statistics of ten of them change with what they show

    @classmethod
    def of(cls, recipe: Recipe) -> ScoreObjective:
        """The untrained scorer of a recipe, its weights drawn from the recipe's seed."""
        choice, train = recipe.scorer, recipe.train
        assert choice is not None  # the recipe has checked it
        torch.manual_seed(train.seed)
        with recipe.at("scorer.trunk", "scorer"):
            scorer = LearnedScorer(recipe.name, choice.trunk, choice.options, recipe.licence or "none given")
        return cls(scorer, choice, train.steps * train.accumulate)

    def train(self, mode: bool = True) -> ScoreObjective:
        super().train(mode)
        for part in self.scorer.children():  # a scorer itself is always in evaluation mode
            part.train(mode)
        return self

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        kept = OutputStore(recipe.folder / "ladders") if recipe.data.variants is not None else None
        return ground_truths(recipe, partial(ScoreData, choice=self.choice), kept=kept)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.training and self.norms and int(self.norms[0].num_batches_tracked or 0) >= self.learned:
            for norm in self.norms:
                norm.eval()
        images: Tensor = batch["images"]
        scores = self.scorer.logits(images.flatten(0, 1))
        shares = batch["shares"].flatten(0, 1)
        crop = torch.arange(len(images), device=scores.device).repeat_interleave(images.shape[1])
        pairs = ordered(crop, batch["ladder"].flatten(), batch["step"].flatten(), shares)
        if self.choice.supervision == "reference":
            # Within a ladder the order is known for certain, also where it moves the metrics little, as light noise
            # does. Crops are not compared with others: softness and noise would be told from what they show, badly.
            losses = {
                "ladder": in_order(scores, pairs[0]),
                "crop": by_target(scores, shares.mean(1), crop[:, None] == crop[None]),
            }
        else:
            losses = {
                name: weight * in_order(scores, better) for (name, weight), better in zip(PAIRS, pairs, strict=True)
            }
        return {**losses, "size": 1e-3 * scores.square().mean()}

    def networks(self) -> list[nn.Module]:
        return [self.scorer.trunk]

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """Rank correlation of score and step, for each distortion, over the held-out photos."""
        from scipy.stats import spearmanr

        assert isinstance(data, ScoreData)  # it made them
        strengths = np.linspace(0.12, 1.0, 6)
        found: dict[str, list[float]] = {}
        count = len(data) if limit is None else min(limit, len(data))
        for index in range(count):
            rng = np.random.default_rng((data.seed, 7, index))
            base = data.photo_crop(index, rng)
            for name in DISTORTIONS:
                steps = [base, *data.steps(base, name, list(strengths), rng)]
                images = torch.stack([as_tensor(image) for image in steps]).to(device)
                scores = self.scorer.logits(images).cpu().numpy()
                found.setdefault(name, []).append(float(spearmanr(scores, -np.arange(len(scores))).statistic))
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
            # Half precision suffices for what is convolved with; norms' statistics span too wide a range for it.
            tensors={n: t.half() if t.ndim > 1 else t for n, t in self.scorer.state_dict().items()},
            **card_facts(recipe, metrics),
        )
        return save_adapter(folder / self.result, adapter)


PAIRS = (("ladder", 1.0), ("crop", 0.5), ("photos", 0.3))
"""The kinds of pairs that `ordered` tells apart, with their weights in the loss."""
CLEAR = 0.05, 0.3
"""By how much every metric must prefer one version of a crop to another one of it, and to one of another crop."""


def ordered(crop: Tensor, ladder: Tensor, step: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which picture is better than which, by how that is known, three times (N, N) bool; row is better than column.

    Args:
        crop, ladder, step: (N,), as in `ScoreData`.
        shares: (N, metrics), what full-reference metrics say.

    Returns:
        pairs of one ladder, by the step; pairs of two ladders of one crop, and pairs of two crops, where all metrics
        agree.
    """
    same = crop[:, None] == crop[None]
    one = same & ((ladder[:, None] == ladder[None]) | (ladder[:, None] == 0))
    agreed = (shares[:, None] - shares[None]).amin(-1)
    return (
        one & (step[:, None] < step[None]),
        same & ~one & (ladder[None] != 0) & (agreed > CLEAR[0]),
        ~same & (agreed > CLEAR[1]),
    )


def in_order(scores: Tensor, better: Tensor) -> Tensor:
    """Logistic loss, the mean over the pairs (N, N) of which the row must score higher; 0 where there is none."""
    losses = functional.softplus(scores[None] - scores[:, None])
    return (losses * better).sum() / better.sum().clamp(min=1)


def by_target(scores: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
    """Logistic loss over those of the pairs (N, N) bool whose targets differ, weighted by the root of how much.

    Not by how much itself: light noise moves full-reference metrics little, and would hardly be learned.
    """
    weight = (target[:, None] - target[None]).clamp(min=0).sqrt() * pairs
    losses = functional.softplus(scores[None] - scores[:, None])
    return (losses * weight).sum() / weight.sum().clamp(min=1e-6)
