"""The sections of a recipe: what each key means, which values it takes, and its default."""

# ruff: noqa: RUF012 (pydantic copies default values)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError, core_schema

from ..degradation.settings import Between, Degradation, FilePath, Section, Share, cross


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
    weights: FilePath | None = None
    """A checkpoint (.safetensors, .pth), hf://org/name/file@revision or shipped:NAME; null: as constructed."""
    spec: dict[str, Any] = {}
    """Fields of the backbone's declaration that are known better than probed, such as value_range or order."""

    @model_validator(mode="after")
    def _something(self) -> BackboneChoice:
        if self.arch is None and self.weights is None:
            raise cross("arch", "the backbone has neither arch nor weights", "one of the two, or both")
        return self


class RefinerChoice(Section):
    """The refinement net behind the backbone, for the objective refine."""

    preset: Literal["ornet-lite", "ornet-small", "ornet"] | None = "ornet-lite"
    """A ready-made size; null: the options alone."""
    options: dict[str, Any] = {}
    """Constructor arguments of ORNet, in place of those of the preset."""
    train_size: Annotated[int, Field(ge=16)] | None = None
    """Pool over windows of this side in pixels, at every image size; null: over the whole image, as officially."""


def _distortions(shares: dict[str, float] | None) -> dict[str, float] | None:
    from ..degradation.ladders import DISTORTIONS

    if shares is not None and (not shares or not set(shares) <= set(DISTORTIONS)):
        raise PydanticCustomError("range", "are no distortions", {"expected": f"some of {', '.join(DISTORTIONS)}"})
    return shares


class ScorerChoice(Section):
    """The no-reference scorer that is trained, and the ladders of worse and worse pictures that it learns from."""

    trunk: str
    """A small model of timm, by name; it starts from scratch."""
    options: dict[str, Any] = {}
    """Arguments of that model."""
    supervision: Literal["order", "reference"] = "order"
    """The better step of a ladder must score higher. Besides, order: of two pictures the one that all `metrics` clearly
    prefer; reference: of two versions of a crop the one that the mean of `metrics` prefers, by how much it does."""
    metrics: Annotated[list[Literal["SSIM", "FSIM", "VIF", "GMSD", "NLPD"]], Field(min_length=1)] = [
        "SSIM",
        "FSIM",
        "VIF",
        "GMSD",
        "NLPD",
    ]
    """Full-reference metrics that compare a crop's versions with the pristine crop."""
    distortions: Annotated[dict[str, Annotated[float, Field(gt=0, le=1000)]] | None, AfterValidator(_distortions)] = (
        None
    )
    """How often ladders are made of each distortion, relative to the others; null: of all alike."""
    ladders: Annotated[int, Field(ge=1, le=8)] = 2
    """Ladders that are made of one crop."""
    steps: Annotated[int, Field(ge=2, le=16)] = 4
    """Distorted versions in a ladder, besides the crop itself."""
    shrink: Annotated[float, Field(ge=1, le=16)] = 3.0
    """Photos are made up to so many times smaller before a crop is taken, as far as they are large enough."""
    soft: Share = 0.5
    """Share of the crops that are as a camera's full resolution is: a little soft, most of them through its JPEG."""
    networks: list[FilePath] = []
    """Restoration networks (as backbone.weights) whose outputs make ladders too: denoised, or upscaled again."""
    network_share: Share = 0.1
    """Share of the ladders that a network makes."""


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


@dataclass(frozen=True)
class _OrNamed:
    """Marks a degradation that may be given by a recipe's name too: it is that recipe's."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._named, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, *handler(schema)["anyOf"]]}

    def _named(self, value: Any) -> Any:
        from .degradation import load_degradation

        return load_degradation([value]) if isinstance(value, str) else value


class DataChoice(Section):
    """The images, and how samples are made of them."""

    train: TrainFolders
    """Training images."""
    validation: ValidationFolders | None = None
    """Validation images; null: no validation."""
    degradation: Annotated[Degradation | None, _OrNamed()] = None
    """How low quality is made from ground truth where there are no lq folders; or the recipe, by name or file, whose
    degradation it is."""
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
