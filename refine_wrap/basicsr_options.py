"""From an options file of BasicSR, HAT or NAFNet to a recipe.

Every key of the options is either carried over or named in the notes: nothing is dropped silently.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import RecipeError, RefineWrapError
from .recipe import Places, Recipe, read_tree
from .recipe.words import as_yaml

NETWORKS = {"NAFNetLocal": "NAFNet"}
"""Types that are another architecture with a way of running of its own; a note says so."""
PAIRED = ("PairedImageDataset", "RealESRGANPairedDataset")
DEGRADED = ("ImageNetPairedDataset", "RealESRGANDataset")
PIXEL_LOSSES = {"L1Loss": "l1", "MSELoss": "mse", "CharbonnierLoss": "charbonnier", "PSNRLoss": "charbonnier"}
NEUTRAL: dict[str, Any] = {
    "path.strict_load_g": True,
    "path.strict_load_d": True,
    "datasets.*.filename_tmpl": "{}",
    "datasets.*.use_shuffle": True,
    "datasets.*.dataset_enlarge_ratio": 1,
    "datasets.*.color": "rgb",
    "train.mixup": False,
    "train.scheduler.restarts": [0],
    "train.scheduler.restart_weights": [1],
    "train.perceptual_opt.use_input_norm": True,
    "train.perceptual_opt.range_norm": False,
    "train.perceptual_opt.style_weight": 0,
    "train.perceptual_opt.criterion": "l1",
    "train.perceptual_opt.vgg_type": "vgg19",
    "train.gan_opt.real_label_val": 1,
    "train.gan_opt.fake_label_val": 0,
    "train.net_d_iters": 1,
    "network_d.num_in_ch": 3,
    "network_d.skip_connection": True,
}
"""Values that say what holds here anyway. Keys without a value never need a word."""
REASONS = (
    (
        r"l1_gt_usm|percep_gt_usm|gan_gt_usm|queue_size|(second_)?(resize|gaussian|noise|poisson|gray|jpeg|blur)_.*"
        r"|datasets\.train\.(blur|kernel|beta|sinc|final)_?.*",
        "part of Real-ESRGAN's degradation without a counterpart",
    ),
    (r"val\.metrics", "validation here reports its own metrics"),
    (r"val\..*|datasets\.val.*", "validation here has its own settings (data.validation)"),
    (r"network_d\..*|train\.(optim_d|net_d).*", "the discriminator and its training have their own settings here"),
    (r"path\.param_key.*", "of a checkpoint with params_ema and params, params_ema is taken"),
    (r"path\.resume_state", "a run here resumes from its own checkpoints"),
    (r"dist_params", "several processes are started by `accelerate launch`"),
    (r"logger\..*", "logging has its own settings here (train.trackers)"),
    (
        r"datasets\..*\.(name|num_prefetch_queue|prefetch_mode|pin_memory|persistent_workers|io_backend\..*)",
        "only about loading",
    ),
)
NO_COUNTERPART = "without a counterpart here"
TOGETHER = ("val.metrics", "dist_params")
"""Sections that are named as a whole."""


@dataclass(frozen=True)
class Converted:
    """What became of an options file."""

    values: dict[str, Any]
    """The recipe's keys that follow from the options."""
    notes: list[str]
    """What was not carried over, or with a change, a line each: KEYS: why."""
    source: str
    """Name of the options file."""

    def recipe(self) -> Recipe:
        """The whole recipe."""
        return Recipe.from_dict(self.values)

    def to_yaml(self) -> str:
        """The recipe's keys, under the notes as comments; `Recipe.load` reads it."""
        comments = [
            f"# From {self.source}, by `refine-wrap recipe from-basicsr`.",
            "# Paths are relative to the current folder.",
            *(["# Not carried over, or with a change:"] if self.notes else []),
        ]
        for note in self.notes:
            comments += textwrap.wrap(
                note, 118, initial_indent="# - ", subsequent_indent="#   ", break_long_words=False
            )
        body = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
        return "\n".join(comments) + "\n" + body


def recipe_from_basicsr(path: str | Path, objective: Literal["refine", "restore"] = "refine") -> Converted:
    """Turn an options file for training into a recipe.

    Args:
        path: YAML of BasicSR, HAT or NAFNet's fork of BasicSR.
        objective: refine trains a refiner behind the network, restore the network itself.

    Raises:
        RecipeError: it cannot be read, is not for training, or a network, a data set or a value has no counterpart. It
            names file, line and key.
    """
    path = Path(path).expanduser()
    tree, places = read_tree(path, "options file", "name: ..., network_g: {type: ...}, datasets: ...")
    options = _Options(tree, places)
    if not isinstance(options.get("datasets.train"), dict) or not isinstance(options.get("train"), dict):
        raise options.refuse(
            "datasets", "there is no datasets.train, or no train", "options for training, not for test"
        )
    data = _data(options)  # first: the kind of data tells best what is no image restoration at all
    values: dict[str, Any] = {
        "version": 1,
        "name": _name(options),
        "description": f"From {path.name}",
        "objective": objective,
        "backbone": _backbone(options, objective),
        **({"refiner": {"preset": "ornet-lite"}} if objective == "refine" else {}),
        "data": data,
        "train": _train(options),
        "losses": _losses(options),
    }
    validate_every, save_every = options.whole("val.val_freq"), options.whole("logger.save_checkpoint_freq")
    values |= {"validate_every": validate_every} if validate_every else {}
    values |= {"save_every": save_every} if save_every else {}
    converted = Converted(values, [*options.notes, *options.rest()], path.name)
    try:
        converted.recipe()
    except RecipeError as error:
        raise RecipeError(f"{path} makes no recipe: {error.came}", error.expected, error.next_step) from None
    return converted


@dataclass
class _Options:
    """The options by dotted key. It remembers which were asked for, so that the others can be named."""

    tree: dict[str, Any]
    places: Places
    asked: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, `default` where it is missing or null."""
        self.asked.add(key)
        value: Any = self.tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """As `get`, a number; text such as "2e-4" too, which YAML 1.1 takes for a word."""
        value = self.get(key, default)
        try:
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                return value
            return float(value)
        except (TypeError, ValueError):
            raise self.refuse(key, f"{key} is {value!r}", "a number") from None

    def whole(self, key: str, default: int | None = None) -> Any:
        """As `number`, an int: BasicSR's files write 5e3 for 5000."""
        value = self.number(key, default)
        if value is not None and value != int(value):
            raise self.refuse(key, f"{key} is {value}", "a whole number")
        return None if value is None else int(value)

    def flag(self, key: str, default: bool) -> bool:
        """As `get`, true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"{key} is {value!r}", "true or false")
        return value

    def note(self, key: str, reason: str) -> None:
        """A key that is carried over with a change, or not at all."""
        self.asked.add(key)
        self.notes.append(f"{key} ({_short(self.get(key))}): {reason}")

    def refuse(self, key: str, came: str, expected: str, next_step: str | None = None) -> RecipeError:
        """An error about a key, with its place."""
        return RecipeError(f"{self.places.of(tuple(key.split('.')))}{came}", expected, next_step)

    def rest(self) -> list[str]:
        """Notes about the keys that nobody asked for."""
        found: dict[str, list[str]] = {}
        for key, value in _leaves(self.tree):
            if key in self.asked or value is None or value in ("", {}) or _neutral(key, value):
                continue
            reason = next((why for pattern, why in REASONS if re.fullmatch(pattern, key)), NO_COUNTERPART)
            found.setdefault(reason, []).append(f"{key} ({_short(value)})")
        return [f"{', '.join(keys)}: {reason}" for reason, keys in found.items()]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and key not in TOGETHER:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _neutral(key: str, value: Any) -> bool:
    return NEUTRAL.get(re.sub(r"^datasets\.[^.]+", "datasets.*", key)) == value


def _short(value: Any) -> str:
    text = as_yaml(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- the parts


def _name(options: _Options) -> str:
    given = str(options.get("name", "basicsr"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", given).lstrip("._-")[:100] or "basicsr"
    if name != given:
        options.note("name", f"it is {name} here")
    return name


def _backbone(options: _Options, objective: str) -> dict[str, Any]:
    """`network_g` and `path.pretrain_network_g`. The network is not built, but its options are checked by name."""
    from .backbone.load import find_class

    arch = options.get("network_g.type")
    if not isinstance(arch, str):
        raise options.refuse("network_g", "there is no network_g.type", "network_g: {type: ..., ...}")
    if arch in NETWORKS:
        options.note("network_g.type", f"{NETWORKS[arch]} here; pooling over windows at test time is left out")
        for key in ("train_size", "fast_imp", "base_size"):
            options.get(f"network_g.{key}")
    arch = NETWORKS.get(arch, arch)
    try:
        build = find_class(arch)
    except RefineWrapError as error:
        expected = "an architecture of BasicSR or spandrel that takes an image and returns one"
        raise options.refuse("network_g.type", f"network_g.type: {error.came}", expected, error.next_step) from None
    chosen = {}
    parameters = inspect.signature(build).parameters
    for name in options.get("network_g"):
        key = f"network_g.{name}"
        if name in parameters:
            chosen[name] = options.get(key)
        elif key not in options.asked:
            known = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            raise options.refuse(key, f"{key} is no option of {arch}", "some of " + ", ".join(known))
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in chosen
    ]
    if missing:
        raise options.refuse("network_g", f"network_g has no {', '.join(missing)}", f"the options that {arch} needs")
    weights = options.get("path.pretrain_network_g")
    if weights is None and objective == "refine":
        weights = f"experiments/{options.get('name', 'NAME')}/models/net_g_latest.pth"
        options.notes.append(f"backbone.weights: {weights}, which these options train; change it if it lies elsewhere")
    if options.get("path.strict_load_g") is False:
        options.note("path.strict_load_g", "weights are always loaded strictly")
    if options.get("path.param_key_g") == "params_ema":
        options.asked.add("path.param_key_g")
    elif options.get("path.param_key_g") is not None:
        options.note("path.param_key_g", "of a checkpoint with params_ema and params, params_ema is taken")
    return {"arch": arch, "options": chosen, "weights": weights}


def _data(options: _Options) -> dict[str, Any]:
    part, scale = "datasets.train", options.whole("scale", 1)
    kind = options.get(f"{part}.type")
    if kind not in (*PAIRED, *DEGRADED):
        raise options.refuse(f"{part}.type", f"{part}.type is {kind}", "one of " + ", ".join((*PAIRED, *DEGRADED)))
    data: dict[str, Any] = {"train": _folders(options, part, paired=kind in PAIRED)}
    validation = _validation(options)
    if validation:
        data["validation"] = validation
    if kind in DEGRADED:
        data["degradation"] = {"scale": scale}
        if kind == "RealESRGANDataset":
            data["degradation"] |= _first_order(options)
        else:
            options.note(f"{part}.type", "images smaller than the crop are mirrored here, not enlarged")
    crop = options.whole(f"{part}.gt_size") or options.whole("gt_size")
    options.get("gt_size")
    if crop is None:
        raise options.refuse(part, f"{part} has no gt_size", "the side of a training crop in ground-truth pixels")
    data["crop"] = crop
    ratio = options.number(f"{part}.dataset_enlarge_ratio", 1)
    if ratio >= 1 and ratio == int(ratio):
        data["samples_per_image"] = int(ratio)
    else:
        options.note(f"{part}.dataset_enlarge_ratio", "one sample of each image in an epoch")
    flips = options.get(f"{part}.use_flip")  # NAFNet's word for use_hflip
    data["flips"] = options.flag(f"{part}.use_hflip", bool(flips))
    data["rotations"] = options.flag(f"{part}.use_rot", False)
    if (name := options.get(f"{part}.name")) is not None:
        data["sources"] = [{"name": str(name)}]
    if options.get(f"{part}.color") == "y":
        options.note(f"{part}.color", "a network of one channel runs on each of red, green and blue here")
    return data


def _folders(options: _Options, part: str, *, paired: bool) -> dict[str, Any]:
    """Where images are, of one of `datasets`."""
    gt, lq = options.get(f"{part}.dataroot_gt"), options.get(f"{part}.dataroot_lq") if paired else None
    if gt is None or (paired and lq is None):
        raise options.refuse(part, f"{part} has no dataroot_{'lq' if gt else 'gt'}", "a folder")
    folders: dict[str, Any] = {"gt": gt if isinstance(gt, list) else [gt]}
    if paired:
        folders["lq"] = lq if isinstance(lq, list) else [lq]
    lmdb = options.get(f"{part}.io_backend.type") == "lmdb"
    for key in (f"{part}.meta_info_file", f"{part}.meta_info"):
        named = options.get(key)
        if named is None or lmdb:  # an LMDB has its own list, which BasicSR takes
            continue
        if len(folders["gt"]) == 1 and options.get(f"{part}.type") != "RealESRGANPairedDataset":
            folders |= {"gt": [named], "gt_root": folders["gt"][0]}
        else:
            options.note(key, "all images of the folders are taken")
    template = str(options.get(f"{part}.filename_tmpl", "{}"))
    if template != "{}" and paired:
        folders["lq_pattern"] = template.replace("{}", "{name}")
    return folders


def _validation(options: _Options) -> dict[str, Any] | None:
    """All paired validation sets of one file name pattern, as one."""
    together: dict[str, Any] | None = None
    for phase in options.get("datasets"):
        part = f"datasets.{phase}"
        if phase.split("_")[0] != "val" or not isinstance(options.get(part), dict):
            continue
        if options.get(f"{part}.type") not in PAIRED:
            options.note(f"{part}.type", "validation needs pairs; this set is left out")
            options.asked |= {key for key, _ in _leaves(options.tree) if key.startswith(f"{part}.")}
            continue
        folders = _folders(options, part, paired=True)
        if together is None:
            together = folders
        elif all(together.get(key) == folders.get(key) for key in ("lq_pattern", "gt_root")):
            together = {**together, "gt": together["gt"] + folders["gt"], "lq": together["lq"] + folders["lq"]}
        else:
            options.note(f"{part}.dataroot_gt", "left out: all validation sets have one pattern and one root here")
    if together:
        options.notes.append(
            "data.validation: 8 images, spread over the sets, and their central 512 pixels, where BasicSR takes all "
            "images whole; data.validation.limit and crop change that"
        )
    return together


def _first_order(options: _Options) -> dict[str, Any]:
    """What of Real-ESRGAN's degradation has a counterpart: the first order's blur, Gaussian noise and JPEG."""
    part = "datasets.train"
    made: dict[str, Any] = {}
    kernels, shares = options.get(f"{part}.kernel_list", []), options.get(f"{part}.kernel_prob", [])
    carried = []
    if sigma := options.get(f"{part}.blur_sigma"):
        uneven = sum(share for kernel, share in zip(kernels, shares, strict=False) if "aniso" in str(kernel))
        made["blur"] = {"sigma": sigma, "anisotropic": round(min(uneven, 1.0), 6)}
        carried.append("blur_sigma and the share of anisotropic kernels")
    if sigma := options.get("noise_range"):
        made["noise"] = {"sigma": sigma, "grey": options.number("gray_noise_prob", 0.0)}
        carried.append("noise_range and gray_noise_prob")
    if quality := options.get("jpeg_range"):
        made["jpeg"] = {"quality": quality}
        carried.append("jpeg_range")
    options.notes.append(
        "The degradation of Real-ESRGAN is NOT carried over. In its place: smaller by the scale, with "
        + (", ".join(carried) or "nothing else")
        + " of its first order, all kernels Gaussian and all noise Gaussian"
    )
    return made


def _train(options: _Options) -> dict[str, Any]:
    train: dict[str, Any] = {}
    steps = options.whole("train.total_iter")
    if steps is None:
        raise options.refuse("train", "train has no total_iter", "the number of steps")
    train["steps"] = steps
    train["batch_size"] = _batch_size(options)
    workers = options.whole("datasets.train.num_worker_per_gpu")
    train |= {"workers": workers} if workers is not None else {}
    _optimizer(options, train)
    _schedule(options, steps, train)
    train["warmup_steps"] = max(options.whole("train.warmup_iter", 0), 0)
    train["ema"] = options.number("train.ema_decay", 0)
    # NAFNet's trainer clips unless it is told not to.
    if options.get("model_type") == "ImageRestorationModel" and options.flag("train.use_grad_clip", True):
        train["gradient_clip"] = 0.01
    seed = options.whole("manual_seed")
    train |= {"seed": seed} if seed is not None else {}
    every = options.whole("logger.print_freq")
    train |= {"log_every": every} if every else {}
    trackers = ["tensorboard"] if options.get("logger.use_tb_logger") is True else []
    if options.get("logger.wandb.project") is not None:
        options.note("logger.wandb.project", "the project is called as the tracker calls it here")
        trackers.append("wandb")
    return {**train, "trackers": trackers}


def _batch_size(options: _Options) -> int:
    each, gpus = options.whole("datasets.train.batch_size_per_gpu"), options.get("num_gpu", 1)
    if each is None:
        raise options.refuse("datasets.train", "datasets.train has no batch_size_per_gpu", "a whole number")
    if gpus == "auto":
        options.note("num_gpu", f"train.batch_size counts one GPU, {each}; multiply it by the GPUs that it ran on")
        return int(each)
    return int(each * max(options.whole("num_gpu", 1), 1))


def _optimizer(options: _Options, train: dict[str, Any]) -> None:
    kind, rate = options.get("train.optim_g.type"), options.number("train.optim_g.lr")
    if rate is None:
        raise options.refuse("train", "train.optim_g has no lr", "the learning rate")
    train["learning_rate"] = rate
    decay = options.number("train.optim_g.weight_decay", 0.01 if kind == "AdamW" else 0)
    train["weight_decay"] = decay
    train["betas"] = options.get("train.optim_g.betas", [0.9, 0.999])
    if kind not in ("Adam", "AdamW"):
        options.note("train.optim_g.type", "AdamW here")
    elif kind == "Adam" and decay:
        options.note("train.optim_g.weight_decay", "AdamW's here, which does not go through the gradient")


def _schedule(options: _Options, steps: int, train: dict[str, Any]) -> None:
    key = "train.scheduler"
    kind = options.get(f"{key}.type")
    if kind in ("MultiStepLR", "MultiStepRestartLR"):
        gamma = options.number(f"{key}.gamma", 0.1)
        given = options.get(f"{key}.milestones", [])
        # A milestone at the end or beyond never comes.
        shares = [milestone / steps for milestone in given if 0 < milestone < steps]
        if shares and gamma != 1:
            train |= {"schedule": "multistep", "milestones": shares, "gamma": gamma}
        else:
            train["schedule"] = "constant"
    elif kind in ("CosineAnnealingRestartLR", "TrueCosineAnnealingLR"):
        train |= {"schedule": "cosine", "final_learning_rate": options.number(f"{key}.eta_min", 0)}
        once = options.get(f"{key}.T_max") if kind == "TrueCosineAnnealingLR" else options.get(f"{key}.periods")
        if once not in (steps, [steps]):
            options.note(f"{key}.{'periods' if kind != 'TrueCosineAnnealingLR' else 'T_max'}", f"one fall over {steps}")
    else:
        options.note(f"{key}.type", "the learning rate is constant here")
        train["schedule"] = "constant"


def _losses(options: _Options) -> dict[str, Any]:
    losses: dict[str, Any] = {}
    key = "train.pixel_opt"
    kind = options.get(f"{key}.type")
    if kind is not None:
        if kind not in PIXEL_LOSSES:
            raise options.refuse(f"{key}.type", f"{key}.type is {kind}", "one of " + ", ".join(PIXEL_LOSSES))
        losses[PIXEL_LOSSES[kind]] = float(options.number(f"{key}.loss_weight", 1.0))
        if kind == "PSNRLoss":
            options.note(f"{key}.type", "charbonnier in its place, of the same weight")
        if kind == "CharbonnierLoss":
            options.note(f"{key}.eps", "1e-6 here")
        if options.get(f"{key}.reduction", "mean") != "mean":
            options.note(f"{key}.reduction", "losses are means here")
    weight = options.number("train.perceptual_opt.perceptual_weight", 1.0)
    if isinstance(options.get("train.perceptual_opt"), dict) and weight:
        layers = options.get("train.perceptual_opt.layer_weights")
        for layer in layers or ():
            options.get(f"train.perceptual_opt.layer_weights.{layer}")
        options.get("train.perceptual_opt.type")
        losses["vgg"] = {"weight": float(weight)} | ({"layers": _floats(layers)} if layers else {})
        options.notes.append("losses.vgg: VGG19's weights are not downloaded; losses.vgg.file says where they lie")
    if "GAN" in str(options.get("model_type")) and isinstance(options.get("train.gan_opt"), dict):
        losses["gan"] = _adversary(options)
    if not losses:
        raise options.refuse("train", "no loss of train has a counterpart", "a pixel_opt, perceptual_opt or gan_opt")
    return losses


def _adversary(options: _Options) -> dict[str, Any]:
    """`gan_opt` and what goes with it."""
    key = "train.gan_opt"
    kind = options.get(f"{key}.gan_type", "vanilla")
    if kind not in ("vanilla", "lsgan", "hinge"):
        raise options.refuse(f"{key}.gan_type", f"{key}.gan_type is {kind}", "one of vanilla, lsgan, hinge")
    options.get(f"{key}.type")
    made = {"weight": float(options.number(f"{key}.loss_weight", 1.0)), "kind": kind}
    rate, start = options.number("train.optim_d.lr"), options.whole("train.net_d_init_iters", 0)
    made |= {"learning_rate": rate} if rate is not None else {}
    made |= {"start": start} if start else {}
    if start:
        options.note("train.net_d_init_iters", "here the other losses train the network from the first step")
    network = options.get("network_d.type")
    if network == "UNetDiscriminatorSN":
        made["features"] = options.whole("network_d.num_feat", 64)
    else:
        options.note("network_d.type", "BasicSR's U-Net discriminator here")
    if options.get("model_type") == "ESRGANModel":
        options.note("model_type", "its relativistic adversarial loss is a plain one here")
    return made


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
