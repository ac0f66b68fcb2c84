"""Distances between what a frozen network sees in two images: losses in training, metrics in evaluation.

Each is called as `net(a, b) -> (B,)`, of images (B, 3, H, W) in [0, 1]. Nothing is downloaded, ever. Weights come from
a file that is given, or from torch's hub folder when they lie there already; where they are missing, the refusal says
which file belongs where. `called` is what that refusal calls the net, and `called.file` and so on its options.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .backbone.checkpoint import check_keys, read_checkpoint
from .errors import CheckpointError, RefineWrapError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (104.0, 117.0, 123.0)
"""Of blue, green and red, in 0..255."""
SQUEEZE_TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Entries of torchvision's `squeezenet1_1().features` after which features are taken: the activations of the first
convolution and of the fire modules, each resolution's last and then all."""
DISTS_FILE = "DISTS_weights-f5e65c96.pth"


class Vgg(nn.Module):
    """Weighted sum over layers of the mean absolute difference of VGG19's features, taken before the activation.

    The ImageNet normalisation is done here. As `PerceptualLoss` of BasicSR with `use_input_norm`, `range_norm: false`
    and criterion l1.

    Args:
        layers: from conv1_1 to conv5_4, and the weight of each.
        file: torchvision's vgg19 weights; None: in torch's hub folder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Mapping[str, float], file: str | None = None, *, called: str = "vgg") -> None:
        from torchvision.models import VGG19_Weights, vgg19

        super().__init__()
        state = _trunk(called, file, VGG19_Weights.IMAGENET1K_V1.url)
        with torch.device("meta"):  # no memory, no random draws
            trunk = vgg19().features
        self.taps = {place: layers[name] for place, name in _vgg_names(trunk) if name in layers}
        self.trunk = _filled(trunk, state, called, "VGG19")[: max(self.taps) + 1]
        _add_normalisation(self)

    def features(self, image: Tensor) -> dict[int, Tensor]:
        """Entry of the trunk -> (B, C, h, w)."""
        return _tapped(self.trunk, (image - self.mean) / self.std, self.taps)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        parts = [
            self.taps[place] * (features - wanted[place]).abs().mean(dim=(1, 2, 3))
            for place, features in self.features(output).items()
        ]
        return torch.stack(parts).sum(dim=0)


class Squeeze(nn.Module):
    """Distance of SqueezeNet 1.1's features, scaled to unit length over the channels at each position.

    The mean over positions of the squared distance, then the mean over the seven layers of `SQUEEZE_TAPS`: from 0 to 2.
    Images are converted here to what the weights expect. This is not LPIPS, whose channels are weighted after people's
    judgements, and for other weights.

    Args:
        file: weights with torchvision's key names.
        input: what they expect, BGR - mean in 0..255 or normalised RGB; None: as the file's metadata says.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, file: str, input: Literal["caffe", "torchvision"] | None = None, *, called: str = "squeeze"
    ) -> None:
        from torchvision.models import squeezenet1_1

        super().__init__()
        _must_be_there(Path(file), called, "a file of weights", f"set {called}.file")
        state, metadata = read_checkpoint(Path(file))
        self.caffe = _expects_caffe(file, input, metadata, called)
        with torch.device("meta"):
            trunk = squeezenet1_1().features
        self.trunk = _filled(trunk, state, called, "SqueezeNet 1.1")
        _add_normalisation(self, *((CAFFE_MEAN, (1.0, 1.0, 1.0)) if self.caffe else ()))

    def features(self, image: Tensor) -> dict[int, Tensor]:
        """Entry of the trunk -> (B, C, h, w), of unit length over C."""
        prepared = image.flip(1) * 255 if self.caffe else image
        tapped = _tapped(self.trunk, (prepared - self.mean) / self.std, SQUEEZE_TAPS)
        return {place: _unit(features) for place, features in tapped.items()}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        parts = [
            (features - wanted[place]).square().sum(1).mean(dim=(1, 2))
            for place, features in self.features(output).items()
        ]
        return torch.stack(parts).mean(dim=0)


class Lpips(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018), from the package lpips, which takes [-1, 1].

    Args:
        net: the trunk whose features are compared.
        file: torchvision's weights of alexnet, vgg16 or squeezenet1_1; None: in torch's hub folder.
    """

    def __init__(
        self, net: Literal["alex", "vgg", "squeeze"] = "alex", file: str | None = None, *, called: str = "lpips"
    ) -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise _package(called, "lpips", error) from None
        from torchvision import models

        weights: Any = {
            "alex": models.AlexNet_Weights,
            "vgg": models.VGG16_Weights,
            "squeeze": models.SqueezeNet1_1_Weights,
        }
        trunk = _trunk(called, file, weights[net].IMAGENET1K_V1.url)
        linear, _ = read_checkpoint(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about how lpips calls it
            # pnet_rand: without trunk weights, which it would download.
            model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        state = {f"scaling_layer.{name}": value for name, value in lpips.ScalingLayer().state_dict().items()}
        for name in model.state_dict():
            part, *rest = name.split(".")
            if part == "net":  # net.slice2.3.weight is the trunk's features.3.weight
                given, source = trunk, ".".join(("features", *rest[1:]))
            elif part == "lins":  # lins.0 and lin0 are one
                given, source = linear, f"lin{rest[0]}." + ".".join(rest[1:])
            else:
                given, source = linear, name
            if source in given:
                state[name] = given[source].float()
        check_keys(model.state_dict(), state, f"The file of {called}", f"LPIPS with {net}")
        model.load_state_dict(state, strict=True, assign=True)
        self.net = _frozen(model)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        distance: Tensor = self.net(2 * output - 1, 2 * target - 1)
        return distance.flatten()


class Dists(nn.Module):
    """DISTS (Ding et al. 2020), from the package pyiqa, whose licence is non-commercial.

    Args:
        file: its own weights; None: in torch's hub folder, where VGG16's must be in any case.
    """

    def __init__(self, file: str | None = None, *, called: str = "dists") -> None:
        super().__init__()
        try:
            from pyiqa.archs.dists_arch import DISTS
        except ImportError as error:
            raise _package(called, "pyiqa", error) from None
        from torchvision.models import VGG16_Weights

        own = Path(file) if file else Path(torch.hub.get_dir()) / "pyiqa" / DISTS_FILE
        _must_be_there(own, called, f"{DISTS_FILE}, there or in {called}.file", "get it from pyiqa's authors")
        url = VGG16_Weights.IMAGENET1K_V1.url
        trunk = _hub_file(url)
        _must_be_there(trunk, called, f"{trunk.name} there", f"get it from {url}")  # pyiqa would download it
        state, _ = read_checkpoint(own)
        try:
            net = DISTS(pretrained=False)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{called}: {trunk} is not VGG16's weights ({str(error).splitlines()[0][:120]})",
                "torchvision's file",
                f"download {url} again",
            ) from None
        wanted = {name: value for name, value in net.state_dict().items() if name in ("alpha", "beta")}
        given = {name: value.float() for name, value in state.items() if name in wanted}
        check_keys(wanted, given, f"{called}: {own}", "DISTS")
        net.load_state_dict(given, strict=False)
        self.net = _frozen(net)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        distance: Tensor = self.net(output, target)
        return distance.flatten()


# ---------------------------------------------------------------- features


def _vgg_names(trunk: nn.Sequential) -> list[tuple[int, str]]:
    """The place of each convolution and its name; a pooling ends a block."""
    names, block, number = [], 1, 0
    for place, layer in enumerate(trunk):
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            number += 1
            names.append((place, f"conv{block}_{number}"))
    return names


def _tapped(trunk: nn.Sequential, image: Tensor, taps: Any) -> dict[int, Tensor]:
    found = {}
    for place, layer in enumerate(trunk):
        image = layer(image)
        if place in taps:
            found[place] = image
    return found


def _unit(features: Tensor) -> Tensor:
    """Of unit length over the channels. The floor bounds the gradient where all are near zero."""
    return features / torch.sqrt(features.square().sum(1, keepdim=True) + 1e-10)


def _add_normalisation(
    net: nn.Module, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> None:
    net.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
    net.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))


def _frozen(net: nn.Module) -> Any:
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # it would change the features that are taken before it
    return net.requires_grad_(False).eval()


# ---------------------------------------------------------------- weights


def _hub_file(url: str) -> Path:
    """Where torch keeps what it downloads from there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _trunk(called: str, given: str | None, url: str) -> dict[str, Tensor]:
    """The features' weights of torchvision's file, given or where torch keeps it."""
    path = Path(given) if given else _hub_file(url)
    _must_be_there(path, called, f"{_hub_file(url).name}, there or in {called}.file", f"get it from {url}")
    state, _ = read_checkpoint(path)
    return {name: value for name, value in state.items() if name.startswith("features.")}


def _must_be_there(path: Path, called: str, expected: str, next_step: str) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{called} needs weights, and there is no file {path}",
            expected,
            f"{next_step}; nothing is downloaded here",
        )


def _filled(trunk: nn.Sequential, state: Mapping[str, Tensor], called: str, network: str) -> nn.Sequential:
    """The trunk with the weights that stand under `features.`, frozen."""
    given = {
        name.removeprefix("features."): value.float() for name, value in state.items() if name.startswith("features.")
    }
    check_keys(trunk.state_dict(), given, f"The file of {called}", network)
    trunk.load_state_dict(given, strict=True, assign=True)
    filled: nn.Sequential = _frozen(trunk)
    return filled


def _expects_caffe(file: str, input: str | None, metadata: Mapping[str, str], called: str) -> bool:
    said = metadata.get("input", "")
    if input is None and not said.startswith(("BGR", "RGB")):
        raise CheckpointError(
            f"{file} does not say what input its weights expect",
            f"{called}.input: caffe (BGR, 0..255 minus the mean) or torchvision (normalised RGB)",
        )
    return input == "caffe" or (input is None and said.startswith("BGR"))


def _package(called: str, package: str, error: ImportError) -> RefineWrapError:
    return RefineWrapError(
        f"{called} needs the package {package}, which cannot be imported ({error})",
        f"{package} installed",
        f"pip install {package}, or leave {called} out",
    )
