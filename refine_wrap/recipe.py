"""Recipe: the typed, strict form of a training run, read from YAML.

    Recipe.load("nafnet_denoise", ["train.steps=1000", "data.train.gt=[~/photos]"])

Every refusal names the file and line (or the override), the key, and what was expected. Numbers and booleans follow
YAML 1.2: `1e-4` is a number, `no` and `off` are words.
"""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError, core_schema

from .degradation.settings import Between, Degradation, Section, Share
from .errors import RecipeError, RefineWrapError
from .resources import recipe_path

__all__ = ["Recipe", "explain_key", "recipe_schema"]

Key = tuple[str | int, ...]


# ---------------------------------------------------------------- the models


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _at_home(value: str | None) -> str | None:
    """`~` to the home folder; Hub and shipped addresses stay."""
    return str(Path(value).expanduser()) if value is not None and value.startswith("~") else value


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
Folders = Annotated[list[FilePath], BeforeValidator(_listed), Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
MOST_WEIGHT = 1e6
Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]


class BackboneChoice(Section):
    """The restoration network that is wrapped or trained."""

    arch: str | None = None
    """Name of an architecture (BasicSR's registry or spandrel), or package.module:Class; null: the weights tell."""
    options: dict[str, Any] = {}
    """The architecture's constructor arguments."""
    weights: Annotated[str, Field(min_length=1), AfterValidator(_at_home)] | None = None
    """A checkpoint (.safetensors, .pth), hf://org/name/file@revision or shipped:NAME; null: as constructed."""
    spec: dict[str, Any] = {}
    """Fields of the backbone's declaration that are known better than probed, such as value_range or order."""

    @model_validator(mode="after")
    def _something(self) -> BackboneChoice:
        if self.arch is None and self.weights is None:
            raise _cross("arch", "the backbone has neither arch nor weights", "one of the two, or both")
        return self


class RefinerChoice(Section):
    """The refinement net behind the backbone, for the objective refine."""

    preset: Literal["ornet-lite", "ornet-small", "ornet"] | None = "ornet-lite"
    """A ready-made size; null: the options alone."""
    options: dict[str, Any] = {}
    """Constructor arguments of ORNet, in place of those of the preset."""
    train_size: Annotated[int, Field(ge=16)] | None = None
    """Pool over windows of this side in pixels, at every image size; null: over the whole image, as officially."""


class LoraChoice(Section):
    """LoRA beside the backbone's layers, for trainable: [lora]. It is merged into the result, which costs no more."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of what is learned for each layer."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """What is learned counts alpha / rank times; null: once."""
    targets: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Layers by regular expressions for the end of their names; null: those that the backbone's family declares."""


class StrengthChoice(Section):
    """The refiner's strength: 0 keeps fidelity, 1 asks for the most detail."""

    train: Annotated[list[float], Between(0, 1)] = [0.0, 1.0]
    """The range that each training sample's strength is drawn from."""
    default: Share = 0.3
    """The strength of the finished adapter when none is asked for; validation uses it."""


class TrainFolders(Section):
    """Where the training images are. Folders, lists, LMDBs and tars may stand side by side."""

    gt: Folders
    """Ground truth: folders, file lists (.txt), LMDBs of BasicSR (.lmdb), tars of key.png or key.gt.png ("a/*.tar")."""
    lq: Folders | None = None
    """Low quality, one for each of gt, paired by name (of key.lq.png, the same tars); null: by data.degradation."""
    gt_root: FilePath | None = None
    """Folder that the paths in the lists of gt are relative to; null: the list's own."""
    lq_root: FilePath | None = None
    """The same for the lists of lq."""
    gt_pattern: str | None = None
    """How a ground-truth file's name is made of the common name, such as "{name}_mean"; null: it is the common name."""
    lq_pattern: str | None = None
    """The same for the low-quality files, such as "{name}_real"."""


class ValidationFolders(TrainFolders):
    """Where the validation images are. They should not be among the training images."""

    limit: Count = 8
    """How many images to validate on, spread evenly over the sorted names."""
    crop: Annotated[int, Field(ge=16)] | None = 512
    """Side of the central part that is validated on, in ground-truth pixels; null: whole images."""
    pictures: Annotated[int, Field(ge=0)] = 4
    """Of how many images to save low quality, output and ground truth side by side."""


class DataSource(Section):
    """A set of training images, for the model card."""

    name: Annotated[str, Field(min_length=1)]
    """What the set is called."""
    licence: str | None = None
    """Its licence, as an SPDX identifier where there is one."""
    source: str | None = None
    """Where it can be had."""


class DataChoice(Section):
    """The images, and how samples are made of them."""

    train: TrainFolders
    """Training images."""
    validation: ValidationFolders | None = None
    """Validation images; null: no validation."""
    degradation: Degradation | None = None
    """How low quality is made from ground truth where there are no lq folders."""
    crop: Annotated[int, Field(ge=8, le=2048)] = 128
    """Side of a training crop in ground-truth pixels, a multiple of the scale. Smaller images are mirrored up to it."""
    samples_per_image: Count = 1
    """Crops of each image in an epoch."""
    variants: Count | None = None
    """Different crops, orientations and degradations of a sample, taken in turn by the epochs; null: always new."""
    flips: bool = True
    """Mirror half of the samples left to right."""
    rotations: bool = True
    """Turn samples by 0, 90, 180 or 270 degrees."""
    cache: Annotated[float, Field(ge=0, le=1024)] = 2.0
    """GB of decoded images to keep in memory; the rest is decoded for every sample."""
    sources: list[DataSource] = []
    """Names and licences of the training sets, for the model card."""


class CacheChoice(Section):
    """What the frozen backbone makes of the training samples is computed once and kept. Needs data.variants."""

    keep: Literal["none", "memory", "disk"] = "none"
    """Where. none: the backbone runs in every step."""
    folder: FilePath | None = None
    """disk: a folder, which several runs may share; null: in the run's."""
    dtype: Literal["float16"] | None = None
    """Type that outputs are kept in; null: as computed, which changes nothing."""


class TrainChoice(Section):
    """The optimisation."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)]
    """Optimiser steps of the whole run."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Samples of one optimiser step, over all processes and accumulated parts: a run does not depend on these."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """Parts that a step's samples are worked through in, to save memory."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that prepare samples; 0: the training process itself."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Highest learning rate of AdamW."""
    final_learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-7
    """Where the cosine schedule ends."""
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    milestones: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = [0.5, 0.8, 0.9, 0.95]
    """multistep: where the rate falls, as shares of steps."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """multistep: what the rate is multiplied by at each milestone."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from 0; at most half of steps is used."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    """AdamW's two decay rates."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null: not limited."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the averaged weights, which are validated and saved; 0: no averaging."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Numbers of the forward pass; fp16 needs a GPU."""
    channels_last: bool = False
    """Memory order of the network's tensors; often faster for convolutions."""
    compile: bool = False
    """Run the network and the refiner through torch.compile: slow to start, faster after."""
    activation_checkpointing: bool = False
    """Compute the inside of each block again in the backward pass: far less memory, about a third more time."""
    trackers: list[Literal["tensorboard", "wandb"]] = []
    """Where to log besides metrics.jsonl; wandb must be installed."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of torch; null: as it is."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """All chance follows from it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: the best there is."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class _Weighed:
    """Marks a loss with options of its own: a plain number is a section of that weight, and 0 is none."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._section, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": MOST_WEIGHT}, *handler(schema)["anyOf"]]}

    def _section(self, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value} if value else None
        if value is None or isinstance(value, (Mapping, Section)):
            return value
        raise PydanticCustomError("range", "is no loss", {"expected": "a number (its weight), or keys and values"})


VGG_LAYERS = tuple(f"conv{block}_{n}" for block in range(1, 6) for n in range(1, 3 if block < 3 else 5))
"""The convolutions of VGG19 by their usual names."""


def _vgg_layers(layers: dict[str, float]) -> dict[str, float]:
    weights_fit = all(0 < weight <= MOST_WEIGHT for weight in layers.values())
    if not layers or not set(layers) <= set(VGG_LAYERS) or not weights_fit:
        expected = f"weights above 0 of some of {', '.join(VGG_LAYERS)}"
        raise PydanticCustomError("range", "are no layers", {"expected": expected})
    return layers


class VggLoss(Section):
    """Mean absolute difference of VGG19's features before the activation, as in ESRGAN (Wang et al. 2018)."""

    weight: Weight
    """Of this loss."""
    file: FilePath | None = None
    """torchvision's vgg19 weights; null: vgg19-dcbb9e9d.pth in torch's hub folder. Nothing is downloaded."""
    layers: Annotated[dict[str, float], AfterValidator(_vgg_layers)] = {
        "conv1_2": 0.1,
        "conv2_2": 0.1,
        "conv3_4": 1.0,
        "conv4_4": 1.0,
        "conv5_4": 1.0,
    }
    """Layers, from conv1_1 to conv5_4, and the weight of each; as in Real-ESRGAN."""


class LpipsLoss(Section):
    """LPIPS 0.1 (Zhang et al. 2018), from the package lpips, which has its linear weights but not its trunk's."""

    weight: Weight
    """Of this loss."""
    net: Literal["alex", "vgg", "squeeze"] = "alex"
    """The trunk whose features are compared."""
    file: FilePath | None = None
    """torchvision's weights of alexnet, vgg16 or squeezenet1_1; null: in torch's hub folder. Nothing is downloaded."""


class DistsLoss(Section):
    """DISTS (Ding et al. 2020), from the package pyiqa, whose licence is non-commercial."""

    weight: Weight
    """Of this loss."""
    file: FilePath | None = None
    """Its own weights; null: DISTS_weights-f5e65c96.pth in torch's hub folder, where VGG16's must be in any case."""


class SqueezeLoss(Section):
    """Distance of SqueezeNet 1.1's features. It is not LPIPS: nothing in it was fitted to what people see."""

    weight: Weight
    """Of this loss."""
    file: FilePath
    """Weights with torchvision's key names, .safetensors or .pth."""
    input: Literal["caffe", "torchvision"] | None = None
    """What the weights expect, BGR - mean in 0..255 or normalised RGB; null: as the file's metadata says."""


class GanLoss(Section):
    """Adversarial loss with BasicSR's U-Net discriminator, which learns beside (Wang et al. 2021, Real-ESRGAN)."""

    weight: Weight
    """Of this loss."""
    kind: Literal["vanilla", "lsgan", "hinge"] = "vanilla"
    """vanilla: cross-entropy. lsgan: squares. hinge: the discriminator is content with a margin of 1."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Highest learning rate of the discriminator; it falls as train.learning_rate does."""
    start: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the discriminator learns from this loss."""
    features: Annotated[int, Field(ge=1, le=1024)] = 64
    """Width of the discriminator."""


SMALLEST_CROP = {"ssim": 11, "vgg": 32, "lpips": 32, "dists": 32, "squeeze": 32, "gan": 8}
"""Sides of the smallest images that a loss can compare."""


class LossChoice(Section):
    """Losses between output and ground truth, RGB in [0, 1]: a weight each, or keys and values; 0 leaves one out."""

    l1: Weight = 0.0
    """Mean absolute difference."""
    charbonnier: Weight = 0.0
    """Mean of sqrt(difference^2 + 1e-6)."""
    mse: Weight = 0.0
    """Mean squared difference."""
    fft: Weight = 0.0
    """Mean absolute difference of the real and imaginary parts of the orthonormal 2-D spectrum."""
    ssim: Weight = 0.0
    """1 - SSIM, with the usual window: Gaussian, 11x11, sigma 1.5."""
    color: Weight = 0.0
    """Mean absolute difference after a Gaussian low pass of sigma 3 pixels: tones and colours without detail."""
    vgg: Annotated[VggLoss | None, _Weighed()] = None
    """Perceptual: features of VGG19."""
    lpips: Annotated[LpipsLoss | None, _Weighed()] = None
    """Perceptual: LPIPS, through the package lpips."""
    dists: Annotated[DistsLoss | None, _Weighed()] = None
    """Perceptual: DISTS, through the package pyiqa."""
    squeeze: Annotated[SqueezeLoss | None, _Weighed()] = None
    """Perceptual: features of SqueezeNet 1.1, from a file of weights."""
    gan: Annotated[GanLoss | None, _Weighed()] = None
    """Adversarial, with BasicSR's U-Net discriminator; besides another loss."""

    def weights(self) -> dict[str, float]:
        """The losses that take part."""
        every = {name: value if isinstance(value, float) else value.weight for name, value in self if value is not None}
        return {name: weight for name, weight in every.items() if weight > 0}


class Recipe(Section):
    """One training run. See `adapters/` for examples with comments."""

    version: Literal[1]
    """Version of the recipe format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the run and of what it makes: letters, digits, dot, dash, underscore."""
    description: str = ""
    """One line for people."""
    objective: Literal["restore", "refine"]
    """restore: train the backbone. refine: keep the backbone frozen and train the refiner toward the ground truth."""
    backbone: BackboneChoice
    """The restoration network."""
    trainable: list[Literal["backbone", "lora", "refiner"]] | None = None
    """What is trained. restore: [backbone], all of it, or [lora], small matrices beside its layers. refine: [refiner].
    null: the first of these."""
    lora: LoraChoice = LoraChoice()
    """The size and place of LoRA, for trainable: [lora]."""
    refiner: RefinerChoice = RefinerChoice()
    """The refinement net, for the objective refine."""
    strength: StrengthChoice = StrengthChoice()
    """The refiner's strength, for the objective refine."""
    data: DataChoice
    """The images."""
    backbone_cache: CacheChoice = CacheChoice()
    """Spares the frozen backbone's work after the first epochs, for the objective refine."""
    train: TrainChoice
    """The optimisation."""
    losses: LossChoice = LossChoice(l1=1.0)
    """The losses by name and weight."""
    validate_every: Count = 1000
    """Steps between validations; there is one at the end too."""
    save_every: Count = 1000
    """Steps between checkpoints; there is one at the end and on Ctrl-C too."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints to keep."""
    licence: str | None = None
    """Licence of the result, as an SPDX identifier, for the model card."""
    output: FilePath | None = None
    """Folder of the run; null: runs/NAME."""

    _places: Places = PrivateAttr(default_factory=lambda: Places())

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        _check_trainable(self)
        _check_folders(self.data)
        if self.data.degradation is not None and self.data.crop % self.data.degradation.scale:
            scale = self.data.degradation.scale
            raise _cross(
                "data.crop", f"data.crop is {self.data.crop}", f"a multiple of data.degradation.scale, {scale}"
            )
        if self.train.batch_size % self.train.accumulate:
            raise _cross(
                "train.accumulate",
                f"train.accumulate is {self.train.accumulate}",
                f"a divisor of train.batch_size, {self.train.batch_size}",
            )
        if self.backbone_cache.keep != "none":
            if self.objective != "refine":
                raise _cross(
                    "backbone_cache.keep",
                    f"backbone_cache.keep is {self.backbone_cache.keep} with objective {self.objective}",
                    "objective refine, whose backbone is frozen",
                )
            if self.data.variants is None:
                raise _cross(
                    "backbone_cache.keep",
                    f"backbone_cache.keep is {self.backbone_cache.keep} and data.variants is not given",
                    "data.variants, the number of variants of each sample to keep",
                    "set data.variants=8, for example",
                )
        _check_losses(self.losses.weights(), self.data.crop)
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
        path = recipe_path(source)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}", "a YAML file in UTF-8") from None
        tree, places = read_tree(text, str(path))
        for override in overrides:
            _apply(tree, places, override)
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
            raise _refusal(error, tree, places) from None
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
        return RecipeError(f"{self._places.of(path)}{came}", expected, next_step or _explain_step(path))

    @contextmanager
    def at(self, *keys: str) -> Iterator[None]:
        """Errors from inside begin with the place of the first of the keys that was written."""
        try:
            yield
        except RefineWrapError as error:
            place = next(filter(None, (self._places.exactly(tuple(key.split("."))) for key in keys)), "")
            raise type(error)(f"{place}{error.came}", error.expected, error.next_step) from None


def _cross(key: str, came: str, expected: str, next_step: str = "") -> PydanticCustomError:
    """A refusal of values that do not go together; `key` is where the line is taken from."""
    context = {"key": key, "came": came, "expected": expected, "next_step": next_step}
    return PydanticCustomError("cross", "values that do not go together", context)


_TRAINABLE = {"restore": (["backbone"], ["lora"]), "refine": (["refiner"],)}


def _check_trainable(recipe: Recipe) -> None:
    allowed = _TRAINABLE[recipe.objective]
    if recipe.trainable is not None and recipe.trainable not in allowed:
        absorbing = "lora" in recipe.trainable and recipe.objective == "refine"
        raise _cross(
            "trainable",
            f"trainable is [{', '.join(recipe.trainable)}] with objective {recipe.objective}",
            " or ".join(f"[{', '.join(parts)}]" for parts in allowed),
            "to move what a refiner learned into its backbone by LoRA: refine-wrap absorb" if absorbing else "",
        )
    if recipe.trainable != ["lora"] and recipe.lora != LoraChoice():
        raise _cross("lora", "lora is given, and LoRA is not what is trained", "trainable: [lora], or no lora section")


def _check_folders(data: DataChoice) -> None:
    parts: list[tuple[str, TrainFolders]] = [("data.train", data.train)]
    if data.validation is not None:
        parts.append(("data.validation", data.validation))
    for name, part in parts:
        if part.lq is None and data.degradation is None:
            raise _cross(f"{name}.lq", f"{name}.lq is not given, nor is data.degradation", "one of the two")
        if part.lq is not None and len(part.lq) != len(part.gt):
            raise _cross(
                f"{name}.lq",
                f"{name} has {len(part.gt)} gt and {len(part.lq)} lq folders",
                "one lq folder for each of gt",
            )
        for side in ("gt", "lq"):
            lists = [source for source in getattr(part, side) or () if source.lower().endswith(".txt")]
            if getattr(part, f"{side}_root") is not None and not lists:
                raise _cross(
                    f"{name}.{side}_root",
                    f"{name}.{side}_root is given and {name}.{side} names no list of files",
                    f"a .txt in {name}.{side}",
                    f"leave {side}_root out: it is for lists",
                )
        if part.lq is None and (part.gt_pattern or part.lq_pattern):
            raise _cross(f"{name}.gt_pattern", f"{name} has name patterns without lq folders", "patterns only with lq")
    if data.train.lq is not None and data.degradation is not None:
        raise _cross(
            "data.degradation",
            "data.train.lq and data.degradation are both given",
            "one of the two",
            "data.degradation=null takes the low-quality folders",
        )


def _check_losses(weights: Mapping[str, float], crop: int) -> None:
    if not set(weights) - {"gan"}:
        others = ", ".join(name for name in LossChoice.model_fields if name != "gan")
        came = "no loss besides gan has a weight above 0" if weights else "no loss has a weight above 0"
        raise _cross("losses", came, f"at least one of {others}")
    for name in weights:
        if crop < SMALLEST_CROP.get(name, 1):
            raise _cross("data.crop", f"data.crop is {crop} with losses.{name}", f"at least {SMALLEST_CROP[name]}")
    if "gan" in weights and crop % 8:
        raise _cross("data.crop", f"data.crop is {crop} with losses.gan", "a multiple of 8, for the discriminator")


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors (`adapters/recipe.schema.json`)."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Refine-Wrap recipe", **schema}


def explain_key(key: str, recipe: Recipe | None = None) -> str:
    """What a key of a recipe means, what it takes, its default and, of a recipe, its value.

    Args:
        key: with dots, such as "train.ema"; of a section, its keys are listed.

    Raises:
        RecipeError: there is no such key; it names the nearest.
    """
    path: Key = tuple(key.split("."))
    for length in range(1, len(path) + 1):
        if str(path[length - 1]) not in _node(path[: length - 1]).get("properties", {}):
            raise RecipeError(f"{_dotted(path[:length])} is not a known key", *_near(path[:length]))
    outer = _node(path[:-1])["properties"][path[-1]]
    required = path[-1] in _node(path[:-1]).get("required", ())
    lines = [_dotted(path), f"  {outer.get('description') or _node(path).get('description', '')}"]
    inner = _node(path).get("properties", {})
    if inner:
        lines += [f"  {name}: {node.get('description', '')}".rstrip(": ") for name, node in inner.items()]
    else:
        lines.append(f"  takes: {_accepted(path)}" + (", or null" if _takes_null(outer) else ""))
    if not inner:
        lines.append("  must be given" if required else f"  default: {_as_yaml(outer.get('default'))}")
    if recipe is not None:
        value: Any = recipe.to_dict()
        for part in path:
            value = value[part] if isinstance(value, dict) and part in value else None
        lines.append(f"  here: {_as_yaml(value)}")
    return "\n".join(lines)


def _takes_null(node: Mapping[str, Any]) -> bool:
    return any(inner.get("type") == "null" for inner in node.get("anyOf", ()))


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


# ---------------------------------------------------------------- YAML with lines


@dataclass
class Places:
    """Where each key of a recipe was written. Two recipes of the same values are equal wherever they were written."""

    file: str = field(default="", compare=False)
    lines: dict[Key, int] = field(default_factory=dict, compare=False)
    overrides: dict[Key, str] = field(default_factory=dict, compare=False)

    def of(self, key: Key) -> str:
        """The place of a key or of its nearest parent that was written, as the beginning of a message."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return f"override {self.overrides[key[:length]]}: "
            if key[:length] in self.lines:
                return f"{self.file}:{self.lines[key[:length]]}: "
        return f"{self.file}: " if self.file else ""

    def exactly(self, key: Key) -> str:
        """The place of a key where that key itself was written, else nothing."""
        return self.of(key) if key in self.lines or key in self.overrides else ""

    def order(self, key: Key) -> tuple[int, int]:
        """Sorts by line, overrides last."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return (1, 0)
            if key[:length] in self.lines:
                return (0, self.lines[key[:length]])
        return (0, 0)


class _Loader(yaml.SafeLoader):
    """Scalars by YAML 1.2: no `yes`/`no` booleans, no octal or base-60 numbers, no dates; `1e-4` is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))

_SCALARS: dict[str, Any] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: (
        float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if text[-1:].isdigit() or text.endswith(".")
        else float(text.lower().replace(".", ""))
    ),
    "tag:yaml.org,2002:str": str,
}
_MOST_NODES = 20_000
"""A recipe has some hundred; aliases of aliases can stand for billions."""


def read_tree(text: str, file: str, example: str = "version: 1, name: ..., objective: ...") -> tuple[Any, Places]:
    """The plain data of a YAML text, a mapping, and the line of each key.

    Raises:
        RecipeError: it is not YAML, no mapping, a key is given twice, or a value has a tag of its own.
    """
    places = Places(file)
    node = _compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        what = "recipe" if example.startswith("version") else "options file"
        raise RecipeError(f"{file}:1: this is no {what}", f"keys and values: {example}")
    tree = _Builder(file, places.lines).build(node, ())
    return tree, places


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(
            f"{place}: this is not YAML: {error.problem or error.context}",
            "key: value",
            "look at the brackets, quotes and indentation there",
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{file}: this is not YAML: {error}", "key: value") from None


@dataclass
class _Builder:
    """From YAML nodes to plain data, remembering the line of each key."""

    file: str
    lines: dict[Key, int]
    built: int = 0

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.built += 1
        # A loop of aliases would never end.
        if self.built > _MOST_NODES or len(key) > 50:
            raise RecipeError(f"{self.file}:{node.start_mark.line + 1}: the recipe is nested too deeply or too large")
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return {name: self.build(value, (*key, name)) for name, value in self._items(node, key)}
        if isinstance(node, yaml.SequenceNode):
            return [self.build(value, (*key, index)) for index, value in enumerate(node.value)]
        convert = _SCALARS.get(node.tag)
        if convert is None:
            where = f"{self.file}:{node.start_mark.line + 1}"
            raise RecipeError(f"{where}: {_dotted(key)} has the tag {node.tag}", "a plain value, without a tag")
        return convert(node.value)

    def _items(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for name_node, value in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise RecipeError(f"{self.file}:{line}: a key that is no word", "key: value")
            name = str(name_node.value)
            if name in seen:
                raise RecipeError(
                    f"{self.file}:{line}: {_dotted((*key, name))} is given twice",
                    f"it once; the first is on line {seen[name]}",
                    "keep one of the two",
                )
            seen[name] = line
            inner: Key = (*key, name)
            self.lines[inner] = line
            yield name, value


def _apply(tree: dict[str, Any], places: Places, override: str) -> None:
    """Set one `key=value` in the tree."""
    name, sign, text = override.partition("=")
    name = name.strip()
    if not sign or not all(name.split(".")):
        raise RecipeError(f"The override {override!r}", "key=value, such as train.steps=100")
    where = f"override {override}"
    node = _compose(text, where)
    key: Key = tuple(name.split("."))
    value = None if node is None else _Builder(where, {}).build(node, key)
    place = tree
    for index, part in enumerate(key[:-1]):
        inner = place.get(str(part))
        if inner is None:
            inner = place[str(part)] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {_dotted(key[: index + 1])} is {inner!r}, which has no keys below it")
        place = inner
    place[str(key[-1])] = value
    for known in [k for k in places.lines if k[: len(key)] == key]:
        del places.lines[known]
    places.overrides = {k: v for k, v in places.overrides.items() if k[: len(key)] != key}
    places.overrides[key] = override


# ---------------------------------------------------------------- refusals


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _refusal(error: ValidationError, tree: Mapping[str, Any], places: Places) -> RecipeError:
    """The first error by line in full; the places of the others."""
    # A key that is missing is mostly one that was misspelt below: the misspelling says more.
    found = sorted(error.errors(include_url=False), key=lambda e: (e["type"] == "missing", places.order(_key_of(e))))
    came, expected, next_step = _explain(found[0], tree, places)
    next_step = next_step or _explain_step(_key_of(found[0]))
    others = [places.of(_key_of(e)).rstrip(": ") or _dotted(_key_of(e)) for e in found[1:4]]
    if others:
        more = f"{len(found) - 1} more: " + ", ".join(others) + (", ..." if len(found) > 4 else "")
        next_step = f"{next_step}; {more}"
    return RecipeError(came, expected, next_step)


def _explain_step(key: Key) -> str:
    """Where to read about a key, or about the section that it is not in."""
    known: list[str | int] = []
    for part in key:
        if str(part) not in _node(tuple(known)).get("properties", {}):
            break
        known.append(part)
    named = f"finetune --explain {_dotted(tuple(known))}" if known else "recipe schema"
    return f"refine-wrap {named} tells more"


def _key_of(error: Any) -> Key:
    """Where an error points; refusals of several values carry their own key."""
    loc: Key = tuple(error["loc"])
    if error["type"] == "cross":
        return (*loc, *str(error["ctx"]["key"]).split("."))
    return loc


def _explain(error: Any, tree: Mapping[str, Any], places: Places) -> tuple[str, str | None, str | None]:
    key, place = _key_of(error), places.of(_key_of(error))
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "cross":
        return place + context["came"], context["expected"], context["next_step"] or None
    if kind == "extra_forbidden":
        return f"{place}{_dotted(key)} is not a known key", *_near(key)
    if kind == "missing":
        return f"{place}{_dotted(key)} is missing", f"{_dotted(key)}: {_accepted(key)}", None
    value = error["input"]
    shown = "nothing (null)" if value is None else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    hint = None
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        hint = f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    return f"{place}{_dotted(key)} is {shown}", context.get("expected") if kind == "range" else _accepted(key), hint


def _near(key: Key) -> tuple[str, str | None]:
    """What to say of an unknown key: the nearest of its neighbours, or the same word elsewhere."""
    siblings = list(_node(key[:-1]).get("properties", {}))
    elsewhere = [path for path in _all_keys() if path[-1] == key[-1]]
    # The same word in another section says more than a distant neighbour.
    close = difflib.get_close_matches(str(key[-1]), siblings, 1, cutoff=0.75 if elsewhere else 0.5)
    listed = ", ".join(siblings) or "no keys here"
    if close:
        return _dotted((*key[:-1], close[0])), f"known here: {listed}" if len(listed) < 200 else None
    if elsewhere:
        return _dotted(min(elsewhere, key=len)), None
    return f"one of {listed}", None


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _node(key: Key) -> dict[str, Any]:
    """The JSON schema of a key, references followed; {} where there is none."""
    schema = _schema()

    def plain(node: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
            elif len(inner := [n for n in node.get("anyOf", ()) if n.get("type") != "null"]) == 1:
                node = inner[0]
            elif len(sections := [n for n in inner if "$ref" in n]) == 1:  # or a number that stands for it
                node = sections[0]
            else:
                return node

    node = plain(schema)
    for part in key:
        known = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        node = plain(known)
    return node


def _all_keys(key: Key = ()) -> Iterator[Key]:
    for name in _node(key).get("properties", {}):
        yield (*key, name)
        yield from _all_keys((*key, name))


def _accepted(key: Key) -> str:
    """The values that a key takes, for people."""
    return _words(_node(key))


def _words(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    kind = node.get("type", "a value")
    if kind == "array":
        inner = node.get("items", {})
        return f"a list, each item {_words(inner)}" if inner else "a list"
    if kind == "object":
        known = ", ".join(node.get("properties", {}))
        return f"keys and values{f' ({known})' if known else ''}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    words = names.get(kind, kind)
    if "pattern" in node:
        words += f" that matches {node['pattern']}"
    bounds = [
        f"{word} {node[name]}"
        for name, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in node
    ]
    if node.get("minLength"):
        bounds.append("not empty")
    return words + (", " + " and ".join(bounds) if bounds else "")
