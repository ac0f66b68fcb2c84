"""Loading, declaring, probing and fingerprinting of backbones, beyond the contract table."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from networks import Stride4, family_backbone
from safetensors.torch import save_file
from torch import Tensor, nn

from refine_wrap import Backbone, RefineWrapError, load_backbone
from refine_wrap.backbone import Spec
from refine_wrap.errors import CheckpointError

SRVGG = {"num_feat": 8, "num_conv": 16, "upscale": 2}
RRDB = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "num_grow_ch": 32, "scale": 4}


def saved(backbone: Backbone, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in backbone.published_state_dict().items()}, path)
    return path


class Negative(nn.Module):
    """Gives back 255 minus the picture, in BGR and 0..255: a wrong range or order shows at once."""

    def forward(self, bgr: Tensor) -> Tensor:
        assert bgr.max() > 1, "this network works on 0..255"
        weights = bgr.new_tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        return 255 - bgr * weights / 3


def test_range_and_order_are_converted_on_both_ways() -> None:
    body = Backbone(Negative(), {"value_range": (0, 255), "order": "bgr"})
    x = torch.rand(2, 3, 5, 7)
    expected = 1 - x * torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1, 1) / 3  # blue, first in BGR, has weight 1
    torch.testing.assert_close(body(x), expected)
    assert not {"value_range", "order"} & body.assumed and "tiling" in body.assumed


def test_minus_one_to_one() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    body = Backbone(Watch(), {"value_range": (-1, 1)})
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(body(x), x)
    torch.testing.assert_close(seen[-1], 2 * x - 1)


def test_a_grey_network_runs_each_channel() -> None:
    body = family_backbone("DnCNN grey")
    x = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        for channel in range(3):
            torch.testing.assert_close(
                body(x)[:, channel], body.module(x[:, channel : channel + 1])[:, 0], atol=1e-6, rtol=1e-5
            )


def test_padding_is_reflected_then_replicated_and_cropped() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    body = Backbone(Watch(), Spec("watch", multiple_of=8, minimum=8))
    ramp = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 3, 1, 3) / 2
    assert torch.equal(body(ramp), ramp)
    # 0 1 2 | mirrored: 1 0 | then the last value for what is left
    assert torch.equal(seen[-1][0, 0, 0] * 2, torch.tensor([0.0, 1, 2, 1, 0, 0, 0, 0]))
    assert torch.equal(seen[-1][0, 0, 7], seen[-1][0, 0, 0])


def test_probing_leaves_the_module_and_the_random_state_alone() -> None:
    module = Stride4().train()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    body = Backbone(module)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training and not module.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert body.assumed == {"value_range", "order", "half_ok", "tiling", "tap", "lora"}


class InPlace(nn.Module):
    """Works on its input, as RCAN does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5).add_(0.1)


def test_the_image_of_the_caller_stays_as_it_was() -> None:
    image = torch.rand(1, 3, 8, 8)
    before = image.clone()
    assert torch.allclose(Backbone(InPlace())(image), before * 0.5 + 0.1)
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: x.mean((2, 3)), "tensor of shape"),
        (lambda x: x[..., :33], "whole multiple"),
        (lambda x: x.no_such_thing, "does not run"),
        (lambda x: torch.cat([x, x], 1), "as many channels"),
    ],
)
def test_a_module_that_is_no_restorer_is_refused(forward, says: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    with pytest.raises(RefineWrapError, match=says):
        Backbone(Odd())


def test_wrong_spec_and_wrong_source_are_refused() -> None:
    with pytest.raises(RefineWrapError, match="spec fields"):
        Backbone(nn.Identity(), {"skale": 2})
    with pytest.raises(RefineWrapError, match="tap"):
        Backbone(nn.Identity(), {"tap": "nowhere"})
    with pytest.raises(RefineWrapError, match="arch and options"):
        load_backbone({"architecture": "SwinIR"})
    with pytest.raises(RefineWrapError, match="cannot be built"):
        load_backbone("SwinIR", options={"no_such": 1})
    with pytest.raises(RefineWrapError, match="imported"):
        load_backbone("no_such_package:Net")
    body = Backbone(nn.Conv2d(3, 3, 3, padding=1), Spec("x", scale=2))
    with pytest.raises(RefineWrapError, match="returned"):
        body(torch.rand(1, 3, 8, 8))


def test_averaged_weights_come_before_plain_ones(tmp_path: Path) -> None:
    plain, averaged = (load_backbone("SRVGGNetCompact", options=SRVGG) for _ in range(2))
    with torch.no_grad():
        next(averaged.parameters()).add_(1)
    content = {"params": plain.published_state_dict(), "params_ema": averaged.published_state_dict()}
    torch.save(content, tmp_path / "both.pth")
    assert load_backbone(tmp_path / "both.pth").weights_hash() == averaged.weights_hash()
    assert load_backbone(tmp_path / "both.pth").source["unwrapped"] == "params_ema"
    torch.save({"params": {f"module.{k}": v for k, v in content["params"].items()}}, tmp_path / "plain.pth")
    assert load_backbone(tmp_path / "plain.pth").weights_hash() == plain.weights_hash()


def test_named_architecture_with_weights_is_strict(tmp_path: Path) -> None:
    body = load_backbone("SRVGGNetCompact", options=SRVGG)
    path = saved(body, tmp_path / "w.safetensors")
    again = load_backbone("SRVGGNetCompact", options=SRVGG, weights=path)
    assert again.weights_hash() == body.weights_hash()
    assert again.source["weights"] == "w.safetensors" and len(again.source["sha256"]) == 64
    with pytest.raises(CheckpointError, match="of another shape") as refused:
        load_backbone("SRVGGNetCompact", options={**SRVGG, "num_feat": 12}, weights=path)
    assert len(str(refused.value).splitlines()) <= 3
    with pytest.raises(CheckpointError, match="missing"):
        load_backbone("SRVGGNetCompact", options={**SRVGG, "num_conv": 18}, weights=path)
    with pytest.raises(CheckpointError, match="unexpected"):
        load_backbone("SRVGGNetCompact", options={**SRVGG, "num_conv": 14}, weights=path)


def test_hashes_are_over_published_names_and_float32_values(tmp_path: Path) -> None:
    """spandrel keeps ESRGAN under other names than BasicSR: the hashes must not see it, nor a copy in float16."""
    ours = load_backbone("RRDBNet", options=RRDB)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.half())
    assert set(ours.published_state_dict()) >= {
        "conv_first.weight",
        "body.1.rdb3.conv5.bias",
        "conv_up2.weight",
        "conv_hr.bias",
    }
    state = {name: value.half().contiguous() for name, value in ours.published_state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    through_spandrel = load_backbone(tmp_path / "half.safetensors")
    assert set(through_spandrel.published_state_dict()) == set(state)
    assert through_spandrel.dtype == torch.float32
    assert through_spandrel.structure_hash() == ours.structure_hash()
    assert through_spandrel.weights_hash() == ours.weights_hash()
    x = torch.rand(1, 3, 6, 9)
    with torch.no_grad():
        torch.testing.assert_close(through_spandrel(x), ours(x), atol=1e-5, rtol=0)
        next(ours.parameters()).add_(1e-4)
    assert through_spandrel.structure_hash() == ours.structure_hash()
    assert through_spandrel.weights_hash() != ours.weights_hash()


def test_computed_buffers_are_no_part_of_the_fingerprint() -> None:
    def swinir(size: int) -> Backbone:
        torch.manual_seed(0)
        options = {
            "img_size": size,
            "window_size": 4,
            "depths": [2],
            "num_heads": [2],
            "embed_dim": 8,
            "mlp_ratio": 2,
            "upscale": 2,
        }
        return load_backbone("SwinIR", options={**options, "upsampler": "pixelshuffledirect"})

    small, large = swinir(8), swinir(16)
    assert any("attn_mask" in name for name in small.published_state_dict())
    assert small.structure_hash() == large.structure_hash() and small.weights_hash() == large.weights_hash()
    large.load_published(small.published_state_dict())


def test_a_recorded_architecture_rebuilds_what_spandrel_cannot_recognise(tmp_path: Path) -> None:
    body = load_backbone("networks:Stride4")
    record = {"arch": "networks:Stride4", "options": {}, "spec": {"order": "bgr"}}
    state = {name: value.contiguous() for name, value in body.published_state_dict().items()}
    save_file(state, tmp_path / "own.safetensors", metadata={"refine_wrap.backbone": json.dumps(record)})
    again = load_backbone(tmp_path / "own.safetensors")
    assert again.weights_hash() == body.weights_hash() and again.spec.order == "bgr"
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="no known architecture"):
        load_backbone(tmp_path / "bare.safetensors")


def test_spandrel_networks_that_nobody_declared_keep_spandrels_facts(tmp_path: Path) -> None:
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(0)
    save_file(
        {
            k: v.contiguous()
            for k, v in SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict().items()
        },
        tmp_path / "span.safetensors",
    )
    body = load_backbone(tmp_path / "span.safetensors")
    assert body.spec.scale == 2 and "value_range" not in body.assumed and "tap" in body.assumed
    with torch.no_grad():
        assert body(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "family", "scale", "channels"),
    [
        ("RealESRGAN_x4plus.fp16.safetensors", "ESRGAN", 4, 3),
        ("realesr-animevideov3.fp16.safetensors", "SRVGG", 4, 3),
        ("dncnn_color_15.safetensors", "DnCNN", 1, 3),
        ("dncnn_25.pth", "DnCNN", 1, 1),
    ],
)
def test_real_checkpoints(file: str, family: str, scale: int, channels: int) -> None:
    body = load_backbone(SHARED / "weights" / file)
    assert (body.spec.family, body.spec.scale, body.spec.channels, body.assumed) == (
        family,
        scale,
        channels,
        frozenset(),
    )
    with torch.no_grad():
        for height, width in ((1, 1), (3, 2), (17, 24)):
            y = body(torch.rand(1, 3, height, width))
            assert y.shape == (1, 3, height * scale, width * scale) and torch.isfinite(y).all()


@pytest.mark.shared
def test_a_real_denoiser_denoises() -> None:
    from refine_wrap import read_image
    from refine_wrap.evaluation import psnr

    body = load_backbone(SHARED / "weights" / "dncnn_25.pth")
    clean = read_image(SHARED / "data" / "photos" / "dog-lossless.png").tensor(100, 100, 128, 128)
    noisy = clean + 25 / 255 * torch.randn_like(clean)
    with torch.no_grad():
        assert psnr(body(noisy).clamp(0, 1), clean) > psnr(noisy.clamp(0, 1), clean) + 5


@pytest.mark.shared
def test_what_is_no_restorer_among_real_files() -> None:
    with pytest.raises(CheckpointError, match="no known architecture"):
        load_backbone(SHARED / "weights" / "cnniqa_live.safetensors")


BASICSR = """
import sys
from refine_wrap import load_backbone
nafnet = {"width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1], "middle_blk_num": 1}
assert "nafnet" in type(load_backbone("NAFNet", options=nafnet).module).__module__.lower()
assert "basicsr" not in sys.modules
"""
REGISTERED = """
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class NAFNet(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)

assert isinstance(load_backbone("NAFNet").module, NAFNet)
"""


def test_basicsr_is_imported_only_for_its_own_networks_and_those_registered_there_go_first() -> None:
    if importlib.util.find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    subprocess.run([sys.executable, "-c", BASICSR + REGISTERED], check=True)
