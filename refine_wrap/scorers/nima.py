"""NIMA: the distribution of people's marks for how a photo looks, predicted by a MobileNetV1 (Talebi et al. 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backbone.checkpoint import check_keys, read_checkpoint
from .core import Scorer

_SIDE = 224
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class NIMA(Scorer):
    """The mean of the predicted distribution of marks, 1 to 10; higher is better, photos mostly 4 to 6.

    It looks at the whole image, squeezed to 224x224 with antialiasing: composition and exposure more than noise.

    Args:
        file: weights of idealo's MobileNet, `.safetensors` with Keras names and layouts.

    Raises:
        CheckpointError: the file cannot be read, or holds other weights.
    """

    name = "nima"
    differentiable = True
    worst = 1.0
    best = 10.0

    def __init__(self, file: str | Path) -> None:
        import timm

        super().__init__()
        with torch.random.fork_rng(devices=[]):
            # TensorFlow pads a stride of 2 at right and bottom alone, and its batch norm has this epsilon.
            network: Any = timm.create_model(
                "mobilenetv1_100", pretrained=False, num_classes=10, pad_type="same", bn_eps=1e-3
            )
        own = {name: value for name, value in network.state_dict().items() if not name.endswith("batches_tracked")}
        given, _ = read_checkpoint(Path(file).expanduser())
        wanted = {_keras_name(name): _keras_layout(value) for name, value in own.items()}
        check_keys(wanted, given, f"{file}", "NIMA's MobileNetV1")
        state = {name: _torch_layout(given[_keras_name(name)]) for name in own}
        network.load_state_dict({**network.state_dict(), **state}, strict=True)
        self.network = network.requires_grad_(False).eval()

    def raw(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B,)."""
        return (self.distribution(image) * torch.arange(1.0, 11.0, device=image.device)).sum(dim=1)

    def distribution(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B, 10): the share of each mark from 1 to 10."""
        image = self.checked(image)
        with torch.autocast(image.device.type, enabled=False):
            small = functional.interpolate(image, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
            marks: Tensor = self.network(small * 2 - 1)
            return marks.softmax(dim=1)


def _keras_name(name: str) -> str:
    """timm's `blocks.1.0.conv_dw.weight` is Keras' `conv_dw_2/conv_dw_2/depthwise_kernel:0`.

    timm groups the 13 pairs of convolutions, depthwise and pointwise, in stages; Keras counts them.
    """
    *place, part, kind = name.split(".")
    if part == "classifier":
        return f"dense_1/dense_1/{'kernel' if kind == 'weight' else 'bias'}:0"
    if not place:
        layer = "conv1" if part == "conv_stem" else "conv1_bn"
    else:
        pair = _FIRST_OF_STAGE[int(place[1])] + int(place[2])
        word = {"conv_dw": f"dw_{pair}", "conv_pw": f"pw_{pair}", "bn1": f"dw_{pair}_bn", "bn2": f"pw_{pair}_bn"}[part]
        layer = f"conv_{word}"
    if layer.endswith("_bn"):
        return f"{layer}/{layer}/{_NORM[kind]}:0"
    return f"{layer}/{layer}/{'depthwise_kernel' if part == 'conv_dw' else 'kernel'}:0"


_FIRST_OF_STAGE = (1, 2, 4, 6, 12)
"""Which of Keras' pairs, counted from 1, begins each of timm's stages."""


def _keras_layout(value: Tensor) -> Tensor:
    """Kernels as (height, width, in, out), depthwise ones as (height, width, channels, 1); weights as (in, out)."""
    if value.ndim == 4:
        return value.permute(2, 3, 0, 1) if value.shape[1] == 1 else value.permute(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def _torch_layout(value: Tensor) -> Tensor:
    """The reverse of `_keras_layout`."""
    if value.ndim == 4:
        return value.permute(2, 3, 0, 1) if value.shape[3] == 1 else value.permute(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value
