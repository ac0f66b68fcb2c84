"""Recipe: the typed, strict form of a training run, read from YAML.

Recipe.load("nafnet_denoise", ["train.steps=1000", "data.train.gt=[~/photos]"])
"""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from ..degradation.settings import FilePath, Section, cross
from ..errors import RecipeError, RefineWrapError
from ..resources import recipe_path
from .lines import Places, apply_override, read_tree
from .quality import CodebookChoice, QualityChoice
from .reconstruction import ClassifierChoice, ReconstructorChoice
from .sections import (
    SMALLEST_CROP,
    BackboneChoice,
    CacheChoice,
    Count,
    DataChoice,
    LoraChoice,
    LossChoice,
    RefinerChoice,
    ScorerChoice,
    StrengthChoice,
    TrainChoice,
    TrainFolders,
)
from .supervision import MasksChoice, SupervisionChoice
from .words import explain_step, refusal

Trainable = Literal[
    "backbone", "lora", "refiner", "quality_head", "codebook", "reconstructor", "scorer", "masks", "classifier"
]


class Recipe(Section):
    """One training run. See `adapters/` for examples with comments."""

    version: Literal[1]
    """Version of the recipe format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the run and of what it makes: letters, digits, dot, dash, underscore."""
    description: str = ""
    """One line for people."""
    objective: Literal["restore", "refine", "quality", "codebook", "reconstruct", "score", "masks", "classify"]
    """restore: train the backbone. refine: keep the backbone frozen and train the refiner toward the ground truth.
    quality: keep the backbone frozen and train a head that steers its features by the ground truth's quality.
    codebook: train a codebook autoencoder, or a restorer that predicts its codes. reconstruct: train a reconstructor,
    too little, for realistic degradation. score: train a no-reference scorer of image quality. masks: train the
    generator of frequency masks that mixes a ground truth with its super-resolved variants. classify: train a
    classifier of common corruptions, by which degraded training sets are analysed."""
    backbone: BackboneChoice | None = None
    """The restoration network, for the objectives restore, refine and quality. Without one a refiner learns from ground
    truths alone (supervision.input: ground_truth), and goes behind any network."""
    scorer: ScorerChoice | None = None
    """The scorer, for the objective score."""
    supervision: SupervisionChoice | None = None
    """Enhanced ground truth, for the objectives masks and refine; null with refine: the ground truth as it is."""
    masks: MasksChoice | None = None
    """The mask generator, for the objective masks."""
    quality: QualityChoice | None = None
    """The quality condition, for the objectives quality and codebook, and its head."""
    codebook: CodebookChoice | None = None
    """The codebook networks, for the objective codebook."""
    reconstructor: ReconstructorChoice | None = None
    """The reconstructor, for the objective reconstruct."""
    classifier: ClassifierChoice | None = None
    """The classifier, for the objective classify."""
    trainable: list[Trainable] | None = None
    """What is trained. restore: [backbone], all of it, or [lora], small matrices beside its layers. refine: [refiner].
    quality: [quality_head], or [refiner], one that takes the quality in. codebook: [codebook].
    reconstruct: [reconstructor]. score: [scorer]. masks: [masks]. classify: [classifier]. null: the first of these."""
    lora: LoraChoice = LoraChoice()
    """The size and place of LoRA, for trainable: [lora]."""
    refiner: RefinerChoice = RefinerChoice()
    """The refinement net, for the objective refine, and for quality with trainable: [refiner]."""
    strength: StrengthChoice = StrengthChoice()
    """The refiner's strength, for the same."""
    data: DataChoice
    """The images."""
    backbone_cache: CacheChoice = CacheChoice()
    """Spares the frozen backbone's work after the first epochs, for the objective refine."""
    train: TrainChoice
    """The optimisation."""
    losses: LossChoice = LossChoice(l1=1.0)
    """The losses by name and weight, for the objectives restore, refine, quality, codebook and reconstruct. {}: none,
    which only stage codes of codebook and the reconstructor ddim can do with."""
    validate_every: Count = 1000
    """Steps between validations; there is one at the end too."""
    save_every: Count = 1000
    """Steps between checkpoints; there is one at the end and on Ctrl-C too."""
    save_at: list[Count] = []
    """Steps after which the result is written too, into at/step_N of the run's folder."""
    save_at_epochs: list[Count] = []
    """The same after whole passes over the training samples, rounded to steps."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints to keep."""
    licence: str | None = None
    """Licence of the result, as an SPDX identifier, for the model card."""
    output: FilePath | None = None
    """Folder of the run; null: runs/NAME."""

    _places: Places = PrivateAttr(default_factory=Places)

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        _check_parts(self)
        _check_trainable(self)
        if self.backbone is not None:
            _check_folders(self.data)
        if self.data.degradation is not None and self.data.crop % self.data.degradation.scale:
            scale = self.data.degradation.scale
            raise cross("data.crop", f"data.crop is {self.data.crop}", f"a multiple of data.degradation.scale, {scale}")
        if self.train.batch_size % self.train.accumulate:
            raise cross(
                "train.accumulate",
                f"train.accumulate is {self.train.accumulate}",
                f"a divisor of train.batch_size, {self.train.batch_size}",
            )
        if self.backbone_cache.keep != "none":
            if self.objective != "refine" or self.backbone is None:
                raise cross(
                    "backbone_cache.keep",
                    f"backbone_cache.keep is {self.backbone_cache.keep} with objective {self.objective}"
                    + " and no backbone" * (self.backbone is None),
                    "objective refine, whose backbone is frozen",
                )
            if self.data.variants is None:
                raise cross(
                    "backbone_cache.keep",
                    f"backbone_cache.keep is {self.backbone_cache.keep} and data.variants is not given",
                    "data.variants, the number of variants of each sample to keep",
                    "set data.variants=8, for example",
                )
        only_codes = self.codebook is not None and self.codebook.stage == "codes" and not self.losses.weights()
        if self.reconstructor is not None and not self.reconstructor.compares:
            if self.losses.weights():
                came = f"losses compare images, and {self.reconstructor.kind} learns from its own loss alone"
                raise cross("losses", came, "losses: {}", "set losses={}")
        elif self.objective not in ("score", "masks", "classify") and not only_codes:
            _check_losses("losses", self.losses.weights(), self.data.crop)
        if self.supervision is not None:
            _check_supervision(self, self.supervision)
        if self.codebook is not None:
            _check_codebook(self, self.codebook)
        if (
            self.quality is not None
            and self.quality.head
            and (self.objective != "quality" or self.trainable not in (None, ["quality_head"]))
        ):
            raise cross("quality.head", "quality.head is given, and no head is trained", "trainable: [quality_head]")
        if self.quality is not None and self.quality.match_scores and self.objective != "quality":
            came = f"quality.match_scores is given with objective {self.objective}"
            raise cross("quality.match_scores", came, "objective quality; codebook has codebook.scorers")
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        Args:
            source: path of a YAML file, or the name of a shipped recipe. Paths in a recipe are relative to the current
                folder; `~` is the home folder.
            overrides: `key=value` with dotted keys, the values in YAML: `train.steps=100`, `data.train.gt=[a, b]`.

        Raises:
            RecipeError: no such recipe, not YAML, unknown or repeated keys, values of the wrong type or out of range.
                It names file and line, or the override.
        """
        tree, places = read_tree(recipe_path(source))
        for override in overrides:
            apply_override(tree, places, override)
        return cls._from_tree(tree, places)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data, such as the `recipe` of an adapter.

        Raises:
            RecipeError: as `load`, without lines.
        """
        return cls._from_tree(dict(values), Places())

    @classmethod
    def _from_tree(cls, tree: dict[str, Any], places: Places) -> Recipe:
        try:
            recipe = cls.model_validate(tree)
        except ValidationError as error:
            raise refusal(error, tree, places) from None
        recipe._places = places
        return recipe

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output) if self.output is not None else Path("runs") / self.name

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Every key with its value; `load` reads it back to an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    def refuse(self, key: str, came: str, expected: str | None = None, next_step: str | None = None) -> RecipeError:
        """An error about a key that only shows at run time, with its place."""
        path = tuple(key.split("."))
        return RecipeError(f"{self._places.of(path)}{came}", expected, next_step or explain_step(path))

    @contextmanager
    def at(self, *keys: str) -> Iterator[None]:
        """Errors from inside begin with the place of the first of the keys that was written."""
        try:
            yield
        except RefineWrapError as error:
            place = next(filter(None, (self._places.exactly(tuple(key.split("."))) for key in keys)), "")
            raise type(error)(f"{place}{error.came}", error.expected, error.next_step) from None


_TRAINABLE = {
    "restore": (["backbone"], ["lora"]),
    "refine": (["refiner"],),
    "quality": (["quality_head"], ["refiner"]),
    "codebook": (["codebook"],),
    "reconstruct": (["reconstructor"],),
    "score": (["scorer"],),
    "masks": (["masks"],),
    "classify": (["classifier"],),
}
_SECTIONS = {
    "restore": (("backbone",), ()),
    "refine": (("backbone",), ("supervision",)),
    "quality": (("backbone", "quality"), ()),
    "codebook": (("codebook", "quality"), ()),
    "reconstruct": (("reconstructor",), ()),
    "score": (("scorer",), ()),
    "masks": (("supervision", "masks"), ()),
    "classify": (("classifier",), ()),
}
"""The sections that an objective must have, and may have."""


def _check_parts(recipe: Recipe) -> None:
    """Each objective has its own sections."""
    needed, allowed = _SECTIONS[recipe.objective]
    for name in ("backbone", "scorer", "supervision", "masks", "quality", "codebook", "reconstructor", "classifier"):
        given = getattr(recipe, name) is not None
        if name == "backbone" and recipe.objective == "refine" and not given and recipe.supervision is not None:
            if recipe.supervision.input != "ground_truth":
                raise cross(
                    "supervision.input",
                    f"supervision.input is {recipe.supervision.input}, and there is no backbone",
                    "a section backbone, or supervision.input: ground_truth, which makes a refiner for any network",
                )
        elif name in needed and not given:
            raise cross(name, f"{name} is not given", f"a section {name}, for the objective {recipe.objective}")
        if given and name not in (*needed, *allowed):
            raise cross(name, f"{name} is given with objective {recipe.objective}", f"no section {name}")
    if recipe.objective == "score" and (recipe.data.degradation is not None or recipe.data.train.lq is not None):
        raise cross(
            "data", "the objective score makes its own pictures from data.train.gt", "neither lq nor data.degradation"
        )
    from_ground_truths = recipe.objective in ("reconstruct", "classify")
    if from_ground_truths and (recipe.data.degradation is not None or recipe.data.train.lq is not None):
        came = f"the objective {recipe.objective} looks at ground truths alone"
        raise cross("data", came, "neither lq nor data.degradation")
    if recipe.objective in ("masks", "refine") and recipe.backbone is None and recipe.data.train.lq is not None:
        raise cross("data.train.lq", f"the objective {recipe.objective} looks at ground truths alone here", "no lq")


def _check_supervision(recipe: Recipe, choice: SupervisionChoice) -> None:
    if (choice.sr is None) == (choice.variants is None):
        raise cross(
            "supervision.variants",
            "supervision.sr and supervision.variants are " + ("both given" if choice.sr else "not given"),
            "one of the two",
            "supervision.sr=null takes the folder of ready variants" if choice.sr else "",
        )
    if choice.fidelity is not None:
        weights = choice.fidelity.weights()
        _check_losses("supervision.fidelity", weights, recipe.data.crop)
        if "gan" in weights:
            raise cross("supervision.fidelity.gan", "supervision.fidelity has an adversarial loss", "losses.gan")
    scale = 1 if recipe.data.degradation is None else recipe.data.degradation.scale
    if recipe.backbone is None and scale != 1:
        raise cross("data.degradation.scale", f"data.degradation.scale is {scale}", "1: a flawed ground truth's size")


def _check_codebook(recipe: Recipe, choice: CodebookChoice) -> None:
    """Each stage starts from the one before it, and has its own images."""
    alone = choice.stage == "autoencoder"
    if alone != (choice.start is None):
        raise cross(
            "codebook.start",
            f"codebook.start is {'given' if alone else 'not given'} with stage {choice.stage}",
            "what the stage before made" if not alone else "no start: it is the first stage",
        )
    if alone and (recipe.data.train.lq is not None or recipe.data.degradation is not None):
        raise cross("data", "the stage autoencoder looks at ground truths alone", "neither lq nor data.degradation")
    if not alone:
        _check_folders(recipe.data)
    if choice.options and choice.stage == "fuse":
        raise cross("codebook.options", "codebook.options are given with stage fuse", "none: the restorer has its own")
    if choice.scorers and choice.stage != "codes":
        raise cross("codebook.scorers", f"codebook.scorers are given with stage {choice.stage}", "stage codes")
    if choice.scorers and choice.codes == "hard":
        raise cross(
            "codebook.codes",
            "codebook.scorers are given with codebook.codes: hard, by which they reach the encoder alone",
            "straight, gumbel or soft",
        )
    if choice.stage == "codes" and recipe.train.compile:
        came = "train.compile is given with stage codes, which runs the parts of the network by themselves"
        raise cross("train.compile", came, "train.compile: false")


def _check_trainable(recipe: Recipe) -> None:
    allowed = _TRAINABLE[recipe.objective]
    if recipe.trainable is not None and recipe.trainable not in allowed:
        absorbing = "lora" in recipe.trainable and recipe.objective == "refine"
        raise cross(
            "trainable",
            f"trainable is [{', '.join(recipe.trainable)}] with objective {recipe.objective}",
            " or ".join(f"[{', '.join(parts)}]" for parts in allowed),
            "to move what a refiner learned into its backbone by LoRA: refine-wrap absorb" if absorbing else "",
        )
    if recipe.trainable != ["lora"] and recipe.lora != LoraChoice():
        raise cross("lora", "lora is given, and LoRA is not what is trained", "trainable: [lora], or no lora section")


def _check_folders(data: DataChoice) -> None:
    parts: list[tuple[str, TrainFolders]] = [("data.train", data.train)]
    if data.validation is not None:
        parts.append(("data.validation", data.validation))
    for name, part in parts:
        if part.lq is None and data.degradation is None:
            raise cross(f"{name}.lq", f"{name}.lq is not given, nor is data.degradation", "one of the two")
        if part.lq is not None and len(part.lq) != len(part.gt):
            raise cross(
                f"{name}.lq",
                f"{name} has {len(part.gt)} gt and {len(part.lq)} lq folders",
                "one lq folder for each of gt",
            )
        for side in ("gt", "lq"):
            lists = [source for source in getattr(part, side) or () if source.lower().endswith(".txt")]
            if getattr(part, f"{side}_root") is not None and not lists:
                raise cross(
                    f"{name}.{side}_root",
                    f"{name}.{side}_root is given and {name}.{side} names no list of files",
                    f"a .txt in {name}.{side}",
                    f"leave {side}_root out: it is for lists",
                )
        if part.lq is None and (part.gt_pattern or part.lq_pattern):
            raise cross(f"{name}.gt_pattern", f"{name} has name patterns without lq folders", "patterns only with lq")
    if data.train.lq is not None and data.degradation is not None:
        raise cross(
            "data.degradation",
            "data.train.lq and data.degradation are both given",
            "one of the two",
            "data.degradation=null takes the low-quality folders",
        )


def _check_losses(place: str, weights: Mapping[str, float], crop: int) -> None:
    if not set(weights) - {"gan"}:
        others = ", ".join(name for name in LossChoice.model_fields if name != "gan")
        came = "no loss besides gan has a weight above 0" if weights else "no loss has a weight above 0"
        raise cross(place, came, f"at least one of {others}")
    for name in weights:
        if crop < SMALLEST_CROP.get(name, 1):
            raise cross("data.crop", f"data.crop is {crop} with {place}.{name}", f"at least {SMALLEST_CROP[name]}")
    if "gan" in weights and crop % 8:
        raise cross("data.crop", f"data.crop is {crop} with losses.gan", "a multiple of 8, for the discriminator")


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors (`adapters/recipe.schema.json`)."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Refine-Wrap recipe", **schema}
