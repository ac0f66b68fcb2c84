"""BasicSR's own training and test pipeline with a RefineWrapper as its network.

    python -m refine_wrap.basicsr_plugin train -opt options.yml [BasicSR's further arguments]
    python -m refine_wrap.basicsr_plugin test -opt options.yml

`experiments/` and `results/` are made in the current folder. What is new in the options:

    model_type: RefineWrapperModel    # RefineWrapperGANModel with network_d and gan_opt, as SRGANModel
    network_g:
      type: RefineWrapper
      backbone: {type: SwinIR, upscale: 4, ..., weights: FILE}   # or as in a recipe, or a checkpoint's path
      refiner: ornet-lite             # or options of ORNet: {preset: ornet-lite, width: 48}
      strength: 0.3                   # or {train: [0, 1], default: 0.3}
      trainable: [refiner]            # or [refiner, backbone]

While it trains, each sample's strength is drawn from `strength.train`; validation and test use the default. Sizes need
be no multiple of a window. BasicSR's checkpoints (`net_g_*.pth`) hold the whole wrapper, so that they resume and test
by themselves; beside each lies `adapter_*`, a folder for `RefineWrapper.from_pretrained` with the averaged weights
where there are any. `path.pretrain_network_g` takes such a checkpoint, an adapter folder, or a checkpoint of the
backbone alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import compat, wrapper
from .backbone import Backbone, load_backbone
from .backbone.checkpoint import read_checkpoint
from .backbone.load import locate
from .errors import RefineWrapError
from .refiner import DEFAULT_PRESET, Strength

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel
else:
    SRModel = object

PARTS = ("refiner", "backbone")
"""What can be named under `trainable`."""


class RefineWrapper(wrapper.RefineWrapper):
    """The wrapper as BasicSR's `network_g`: it draws its strength while it trains.

    Args:
        backbone: what `load_backbone` takes, or `{"type": NAME, "weights": FILE, "spec": {...}, **options}` as BasicSR
            writes networks.
        refiner: as for `refine_wrap.RefineWrapper`.
        strength: the default, or `{"train": [low, high], "default": value}`, each in [0, 1].
        trainable: `["refiner"]`, or `["refiner", "backbone"]`.

    Raises:
        RefineWrapError: an option is unknown or out of range, or the backbone cannot be built.
    """

    def __init__(
        self,
        backbone: Any = None,
        refiner: str | Mapping[str, Any] | nn.Module = DEFAULT_PRESET,
        strength: float | Mapping[str, Any] = 0.3,
        trainable: str | Sequence[str] = ("refiner",),
        **unknown: Any,
    ) -> None:
        if unknown or backbone is None:
            raise RefineWrapError(
                f"network_g has the option {next(iter(unknown))!r}" if unknown else "network_g has no backbone",
                "backbone, and optionally refiner, strength, trainable",
            )
        named = [trainable] if isinstance(trainable, str) else list(trainable)
        if "refiner" not in named or set(named) - set(PARTS):
            raise RefineWrapError(
                f"network_g.trainable is {named}",
                "[refiner] or [refiner, backbone]",
                "to train a backbone alone, give its own type in place of RefineWrapper",
            )
        steered = dict(strength) if isinstance(strength, Mapping) else {"default": strength}
        default, drawn = steered.pop("default", 0.3), steered.pop("train", [0.0, 1.0])
        pair = list(drawn) if isinstance(drawn, Sequence) else [drawn, drawn]
        if steered or len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
            raise RefineWrapError(
                f"network_g.strength is {strength}",
                "a number in [0, 1], or {train: [low, high], default: a number}, all in [0, 1]",
            )
        super().__init__(_backbone(backbone), refiner=refiner, strength=default)
        self.train_strength = (float(pair[0]), float(pair[1]))
        self.freeze("backbone" not in named)

    def forward(self, lq: Tensor, strength: Strength | None = None, quality: Strength | None = None) -> Tensor:
        """As `refine_wrap.RefineWrapper`; in training mode, no strength means one drawn for each sample."""
        if strength is None and self.training:
            strength = torch.empty(lq.shape[0], device=lq.device).uniform_(*self.train_strength)
        return super().forward(lq, strength, quality)

    def load_pretrained(self, path: str | Path) -> bool:
        """Load an adapter folder, or a checkpoint of the backbone alone, strictly.

        Returns:
            False if it is a checkpoint of a whole wrapper, for BasicSR to load.

        Raises:
            CheckpointError: it cannot be read or does not fit.
            MismatchError: the adapter was made for another backbone.
        """
        path = Path(path)
        if path.is_dir():
            from .hub import load_adapter

            adapter = load_adapter(path)
            if adapter.backbone is not None:
                self.backbone.check_fingerprint(adapter.backbone)
            self._load_added(adapter.tensors, str(path))
            return True
        state, _ = read_checkpoint(path)
        if any(name.startswith("backbone.module.") for name in state):
            return False
        self.backbone.load_published(state, str(path))
        self.backbone.source = {**self.backbone.rebuild(), **locate(path)[1]}
        return True

    def save_pretrained(self, folder: str | Path, **about: Any) -> Path:
        """As `refine_wrap.RefineWrapper`; a backbone that was trained comes along as `backbone.safetensors`."""
        if not self.frozen:
            self.backbone.save_published(Path(folder) / "backbone.safetensors")
        return super().save_pretrained(folder, **about)


def _backbone(source: Any) -> Backbone:
    """The backbone of `network_g.backbone`."""
    if isinstance(source, Mapping) and "type" in source:
        options = dict(source)
        arch, weights, spec = options.pop("type"), options.pop("weights", None), options.pop("spec", None)
        return load_backbone(str(arch), options=options, weights=weights, spec=spec)
    return load_backbone(source)


class WrapperModel(SRModel):
    """What a model of BasicSR needs for a wrapper. `register` puts it before BasicSR's own models."""

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params") -> None:
        """`path.pretrain_network_g` and resuming. Adapters and backbones alone are always loaded strictly."""
        bare = self.get_bare_model(net)
        if isinstance(bare, RefineWrapper) and bare.load_pretrained(load_path):
            _log(f"Loaded {load_path} into the {'refiner' if Path(load_path).is_dir() else 'backbone'}.")
            return
        super().load_network(net, load_path, strict, param_key)

    def setup_optimizers(self) -> None:
        """One optimiser for what is trainable of `net_g`, one for `net_d` where there is one."""
        bare = self.get_bare_model(self.net_g)
        trained, total = (sum(p.numel() for p in ps) for ps in (bare.trainable_parameters(), bare.parameters()))
        _log(f"{trained:,d} of {total:,d} parameters are trained; the others are frozen.")
        for letter in "gd":
            net = getattr(self, f"net_{letter}", None)
            if net is not None:
                options = dict(self.opt["train"][f"optim_{letter}"])
                trainable = [p for p in net.parameters() if p.requires_grad]
                optimizer = self.get_optimizer(options.pop("type"), trainable, options.pop("lr"), **options)
                setattr(self, f"optimizer_{letter}", optimizer)
                self.optimizers.append(optimizer)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
        """Any optimiser of `torch.optim`; BasicSR 1.4.2 knows Adam alone."""
        kind = getattr(torch.optim, optim_type, None)
        if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
            raise RefineWrapError(f"The optimiser's type is {optim_type!r}", "one of torch.optim, such as AdamW")
        return kind(params, lr=lr, **options)  # type: ignore[call-arg]

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """Average what is trained; frozen weights and norm statistics are copied, so that they cannot drift."""
        net, average = self.get_bare_model(self.net_g), self.net_g_ema
        for now, mean in zip(net.parameters(), average.parameters(), strict=True):
            if now.requires_grad:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)
        for now, mean in zip(net.buffers(), average.buffers(), strict=True):
            mean.copy_(now)

    def save(self, epoch: int, current_iter: int) -> None:
        """BasicSR's checkpoint and training state, and the adapter beside them."""
        super().save(epoch, current_iter)
        if self.opt["rank"] == 0:
            best = getattr(self, "net_g_ema", None) or self.get_bare_model(self.net_g)
            name = "latest" if current_iter == -1 else current_iter
            best.save_pretrained(Path(self.opt["path"]["models"]) / f"adapter_{name}")


def _log(message: str) -> None:
    import_module("basicsr.utils").get_root_logger().info(message)


def register() -> None:
    """Make BasicSR know `RefineWrapper` and its models; again: nothing.

    Raises:
        RefineWrapError: BasicSR is not installed.
    """
    try:
        compat.mend_basicsr()
        registry = import_module("basicsr.utils.registry")
        models = {
            "RefineWrapperModel": import_module("basicsr.models.sr_model").SRModel,
            "RefineWrapperGANModel": import_module("basicsr.models.srgan_model").SRGANModel,
        }
        import_module("basicsr.archs")
    except ImportError as error:
        raise RefineWrapError(
            f"BasicSR cannot be imported: {error}", "Python below 3.13 and basicsr 1.4.2", "pip install basicsr"
        ) from None
    if "RefineWrapper" not in registry.ARCH_REGISTRY:
        registry.ARCH_REGISTRY.register(RefineWrapper)
    for name, base in models.items():
        if name not in registry.MODEL_REGISTRY:
            registry.MODEL_REGISTRY.register(type(name, (WrapperModel, base), {}))


def main(arguments: Sequence[str]) -> int:
    """`train` or `test`, then BasicSR's own arguments; returns the exit code."""
    try:
        if not arguments or arguments[0] not in ("train", "test"):
            raise RefineWrapError(
                f"The arguments are {' '.join(arguments) or 'none'}",
                "train or test, then those of BasicSR",
                "python -m refine_wrap.basicsr_plugin train -opt options.yml",
            )
        register()
        verb = arguments[0]
        sys.argv = [f"refine_wrap.basicsr_plugin {verb}", *arguments[1:]]  # BasicSR reads its arguments there
        pipeline = import_module(f"basicsr.{verb}")
        getattr(pipeline, f"{verb}_pipeline")(os.getcwd())
    except RefineWrapError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
