"""Training a classifier of common corruptions on low-resolution images that are corrupted on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..analysis.classifier import CLASSES, CorruptionClassifier, corruption, save_classifier
from ..degradation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ..degradation.ladders import rounded
from ..degradation.synthetic import downsample
from .data import VALIDATION, GroundTruthData, ImageData, ImageStore, as_tensor, ground_truths
from .objectives import Objective, card_facts

if TYPE_CHECKING:
    from ..recipe import Recipe

Array = npt.NDArray[Any]
TRIES, LEAST_CONTRAST = 8, 0.03
"""How often a training crop is drawn again while its standard deviation is below this: blur of a plain wall is none."""

CONFUSED = 0.05
"""Share of a corruption's images from which on it is told what they are taken for."""


class CorruptionData(GroundTruthData):
    """`image` (3, c, c), RGB in [0, 1], rounded to 8 bits, and `label` (), its place in `CLASSES`.

    Args:
        store: the decoded photos.
        downscale: how many times smaller photos become before they are corrupted.
        options: of `ImageData`; the crop is in the photos' pixels.
    """

    def __init__(self, store: ImageStore, downscale: int, **options: Any) -> None:
        super().__init__(store, **options)
        self.downscale = downscale

    def clean(self, row: int, rng: np.random.Generator) -> Array:
        """(c, c, 3): a crop, made smaller."""
        for _ in range(TRIES):
            gt = super().make(row, rng)["gt"].permute(1, 2, 0).numpy()
            height, width = (side // self.downscale * self.downscale for side in gt.shape[:2])
            small = rounded(downsample(gt[:height, :width], self.downscale))
            if self.fixed or float(small.mean(axis=2).std()) >= LEAST_CONTRAST:
                break
        return small

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image = self.clean(row, rng)
        label, severity = int(rng.integers(len(CLASSES))), int(rng.choice(SEVERITIES))
        if CLASSES[label] in CORRUPTIONS:
            image = corrupt(image, CLASSES[label], severity, rng)
        return {"image": as_tensor(image), "label": torch.tensor(label)}

    def versions(self, row: int) -> Iterator[tuple[int, int, Array]]:
        """One photo clean and with every corruption: (label, severity, image); of clean, the severity is 0."""
        image = self.clean(row, np.random.default_rng((self.seed, VALIDATION, row)))
        yield CLASSES.index("clean"), 0, image
        for label, name in enumerate(CORRUPTIONS):
            for severity in SEVERITIES:
                rng = np.random.default_rng((self.seed, VALIDATION, row, label, severity))
                yield label, severity, corrupt(image, name, severity, rng)


class ClassifyObjective(Objective):
    """Train a classifier of common corruptions by its cross-entropy."""

    result = "classifier"

    def __init__(self, network: CorruptionClassifier, downscale: int) -> None:
        super().__init__()
        self.network, self.downscale = network, downscale

    @classmethod
    def of(cls, recipe: Recipe) -> ClassifyObjective:
        """The untrained classifier of a recipe, its weights drawn from the recipe's seed."""
        choice = recipe.classifier
        assert choice is not None  # the recipe has checked it
        torch.manual_seed(recipe.train.seed)
        with recipe.at("classifier.trunk", "classifier"):
            network = CorruptionClassifier(choice.trunk, choice.options)
        if recipe.data.crop % choice.downscale:
            came = f"data.crop is {recipe.data.crop}"
            raise recipe.refuse("data.crop", came, f"a multiple of classifier.downscale, {choice.downscale}")
        return cls(network, choice.downscale)

    def data(self, recipe: Recipe) -> tuple[ImageData, ImageData | None]:
        return ground_truths(recipe, partial(CorruptionData, downscale=self.downscale))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"classes": functional.cross_entropy(self.network(batch["image"]), batch["label"])}

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def validate(
        self, recipe: Recipe, data: ImageData, device: torch.device, pictures: Path | None, limit: int | None
    ) -> list[dict[str, Any]]:
        """Accuracy over all corruptions and severities of the held-out photos, by class, by severity, and the
        confusion of classes: of each, what it is taken for, from a share of `CONFUSED` on.

        Pictures: a photo in every corruption of severity 3, side by side.
        """
        from .monitor import save_strip

        assert isinstance(data, CorruptionData)  # it made them
        assert recipe.data.validation is not None  # there is validation data
        count = len(data) if limit is None else min(limit, len(data))
        labels, severities, found, is_clean = [], [], [], []
        for row in range(count):
            versions = list(data.versions(row))
            images = torch.stack([as_tensor(image) for _, _, image in versions]).to(device)
            shares = self.network.classify(images).cpu()
            labels += [label for label, _, _ in versions]
            severities += [severity for _, severity, _ in versions]
            found += corruption(shares).tolist()
            is_clean += (shares.argmax(1) == CLASSES.index("clean")).tolist()
            if pictures is not None and row < recipe.data.validation.pictures:
                shown = [images[i : i + 1] for i, (_, severity, _) in enumerate(versions) if severity in (0, 3)]
                save_strip(pictures / f"{row:02d}.png", shown)
        return accuracies(labels, severities, found, is_clean, f"{count} photos, crops of {data.crop} pixels")

    def trained(self) -> nn.Module:
        return self.network

    def save(self, folder: Path, recipe: Recipe, metrics: list[dict[str, Any]]) -> Path:
        """An adapter folder of kind classifier, which `load_classifier` reads."""
        return save_classifier(folder / self.result, self.network, **card_facts(recipe, metrics))


def accuracies(
    labels: list[int], severities: list[int], found: list[int], is_clean: list[bool], about: str
) -> list[dict[str, Any]]:
    """What a model card lists, of images whose corruption is known.

    Args:
        labels: places in `CLASSES`.
        severities: 1 to 5; 0 of clean images.
        found: places in `CORRUPTIONS`, the most likely of the 15.
        is_clean: whether clean was more likely than each of them.
        about: what was looked at.
    """
    label, severity, guess, clean = (np.array(each) for each in (labels, severities, found, is_clean))
    corrupted = severity > 0
    right = label == guess
    protocol = "share of images whose corruption is told among 15, severities 1 to 5 alike"
    figures = [("accuracy", float(right[corrupted].mean()), protocol)]
    figures += [(f"accuracy, severity {each}", float(right[severity == each].mean()), protocol) for each in SEVERITIES]
    for place, name in enumerate(CORRUPTIONS):
        own = label == place
        figures.append((f"accuracy, {name}", float(right[own].mean()), protocol))
        taken = {CLASSES[other]: float((guess[own] == other).mean()) for other in range(len(CORRUPTIONS))}
        figures += [
            (f"{name} taken for {other}", share, protocol)
            for other, share in taken.items()
            if share >= CONFUSED and other != name
        ]
    protocol = "share of images that are taken for clean rather than for any of 15 corruptions"
    figures.append(("clean taken for clean", float(clean[~corrupted].mean()), protocol))
    figures.append(("corrupted taken for clean", float(clean[corrupted].mean()), protocol))
    return [{"name": name, "value": value, "protocol": protocol, "data": about} for name, value, protocol in figures]
