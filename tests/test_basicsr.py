"""BasicSR both ways: its pipeline around a wrapper, and its options as recipes."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from refine_wrap import RefineWrapper, load_backbone
from refine_wrap.basicsr_options import recipe_from_basicsr
from refine_wrap.basicsr_plugin import RefineWrapper as Network
from refine_wrap.basicsr_plugin import main, register
from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, RecipeError, RefineWrapError
from refine_wrap.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent

SWINIR = {
    "upscale": 2,
    "img_size": 16,
    "window_size": 4,
    "depths": [1],
    "num_heads": [2],
    "embed_dim": 8,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}
REFINER = {"preset": "ornet-lite", "width": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these run many times slower on two threads of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- BasicSR's own pipeline


def save_pairs(place: Path, count: int, height: int, width: int) -> None:
    """Smooth pictures and the same of half the size, as PNG."""
    rng = np.random.default_rng(count)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        for kind, size in (("gt", (width, height)), ("lq", (width // 2, height // 2))):
            (place / kind).mkdir(parents=True, exist_ok=True)
            coarse.resize(size, Image.Resampling.BICUBIC).save(place / kind / f"{number}.png")


def pipeline(place: Path, *arguments: str) -> str:
    """Run the plugin in a process of its own; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "refine_wrap.basicsr_plugin", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which BasicSR has trained a wrapper for three steps, and what it printed."""
    if importlib.util.find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    place = tmp_path_factory.mktemp("basicsr")
    save_pairs(place / "train", 4, 48, 56)
    save_pairs(place / "val", 2, 44, 60)  # lq of 22x30: no multiple of the window
    torch.manual_seed(0)
    body = load_backbone("SwinIR", options=SWINIR)
    torch.save({"params": body.published_state_dict()}, place / "swinir.pth")
    images = {"type": "PairedImageDataset", "io_backend": {"type": "disk"}}
    options: dict[str, Any] = {
        "name": "tiny",
        "model_type": "RefineWrapperModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": {
                **images,
                "name": "train",
                "dataroot_gt": "train/gt",
                "dataroot_lq": "train/lq",
                "gt_size": 32,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
            },
            "val": {**images, "name": "val", "dataroot_gt": "val/gt", "dataroot_lq": "val/lq"},
        },
        "network_g": {
            "type": "RefineWrapper",
            "backbone": {"type": "SwinIR", **SWINIR, "weights": "swinir.pth"},
            "refiner": REFINER,
            "strength": 0.25,
        },
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "AdamW", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [3], "gamma": 0.5},
            "total_iter": 3,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {
            "val_freq": 3,
            "save_img": False,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": False}},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    (place / "train.yml").write_text(yaml.safe_dump(options))
    for_test = copy.deepcopy(options)
    del for_test["datasets"]["train"], for_test["train"]
    for_test["name"] = "tiny_test"
    for_test["path"] |= {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth", "param_key_g": "params_ema"}
    for_test["val"] |= {"save_img": True, "suffix": None}
    (place / "test.yml").write_text(yaml.safe_dump(for_test))
    return place, pipeline(place, "train", "-opt", "train.yml")


def test_training_saves_checkpoints_and_an_adapter(trained: tuple[Path, str]) -> None:
    place, printed = trained
    models = place / "experiments" / "tiny" / "models"
    assert {path.name for path in models.iterdir()} == {
        "net_g_2.pth",
        "net_g_latest.pth",
        "adapter_2",
        "adapter_latest",
    }
    assert "will not be optimized" not in printed  # a line for each frozen weight of a large backbone
    assert "parameters are trained; the others are frozen" in printed

    saved = torch.load(models / "net_g_latest.pth", weights_only=True)
    published = torch.load(place / "swinir.pth", weights_only=True)["params"]
    for kind in ("params", "params_ema"):  # frozen, bit by bit, through training and averaging
        for name, value in published.items():
            assert torch.equal(saved[kind][f"backbone.module.{name}"], value), (kind, name)
    assert bool((saved["params"]["refiner.ending.weight"] != 0).any())
    assert not torch.equal(saved["params"]["refiner.ending.weight"], saved["params_ema"]["refiner.ending.weight"])

    wrapper = adapter(place)
    assert wrapper.strength == 0.25
    for name, value in wrapper.refiner.state_dict().items():
        assert torch.equal(value, saved["params_ema"][f"refiner.{name}"]), name


def adapter(place: Path) -> RefineWrapper:
    body = load_backbone("SwinIR", options=SWINIR, weights=place / "swinir.pth")
    return RefineWrapper.from_pretrained(place / "experiments/tiny/models/adapter_latest", backbone=body)


def test_basicsr_tests_a_wrapper(trained: tuple[Path, str]) -> None:
    place, _ = trained
    printed = pipeline(place, "test", "-opt", "test.yml")
    assert "psnr:" in printed
    wrapper = adapter(place)
    for number in range(2):
        lq = torch.from_numpy(np.array(Image.open(place / "val" / "lq" / f"{number}.png"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            expected = wrapper(lq)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
        written = np.array(Image.open(place / "results/tiny_test/visualization/val" / f"{number}_tiny_test.png"))
        assert written.shape == (44, 60, 3)
        assert np.abs(written.astype(int) - expected).max() <= 1  # one kernel or another: a half may round either way


def test_training_resumes_on_a_cpu(trained: tuple[Path, str]) -> None:
    place, first = trained
    state = "experiments/tiny/training_states/2.state"
    printed = pipeline(place, "train", "-opt", "train.yml", "--force_yml", f"path:resume_state={state}")
    assert "Resuming training from epoch: 0, iter: 2" in printed
    steps = [line for line in printed.splitlines() if "l_pix" in line]
    assert len(steps) == 1 and "iter:       3, lr:(1.000e-03,)" in steps[0]
    assert "iter:       3, lr:(1.000e-03,)" in first
    saved = torch.load(place / "experiments/tiny/models/net_g_latest.pth", weights_only=True)
    before = torch.load(place / "experiments/tiny/models/net_g_2.pth", weights_only=True)
    moved = (saved["params"]["refiner.intro.weight"] - before["params"]["refiner.intro.weight"]).abs().max()
    assert 0 < moved < 5e-3  # one step of about the learning rate from the checkpoint, not from the start


def test_auto_resume_takes_the_newest_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("basicsr")
    from refine_wrap.compat import _resume_state

    for step in (2, 10):
        torch.save({"iter": step, "epoch": 0, "optimizers": [], "schedulers": []}, tmp_path / f"{step}.state")
    opt: dict[str, Any] = {
        "auto_resume": True,
        "network_g": {},
        "path": {"training_states": str(tmp_path), "models": "models", "resume_state": None},
    }
    state = _resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert opt["path"]["pretrain_network_g"] == os.path.join("models", "net_g_10.pth")
    opt["auto_resume"], opt["path"]["resume_state"] = False, None
    assert _resume_state(opt) is None


# ---------------------------------------------------------------- the network and the models


def build(tmp_path: Path, model: str = "RefineWrapperModel", network: Any = None, **changes: Any) -> Any:
    """A model of BasicSR's registry, as its training pipeline builds it."""
    pytest.importorskip("basicsr")
    register()
    from basicsr.models import build_model

    opt: dict[str, Any] = {
        "name": "unit",
        "model_type": model,
        "num_gpu": 0,
        "dist": False,
        "is_train": True,
        "rank": 0,
        "network_g": {"type": "RefineWrapper", "backbone": {"type": "networks:Stride4"}, "refiner": REFINER}
        | (network or {}),
        "path": {"models": str(tmp_path / "models"), "training_states": str(tmp_path)},
        "train": {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": 1e-2},
            "scheduler": {"type": "MultiStepLR", "milestones": [100]},
            "pixel_opt": {"type": "L1Loss"},
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            opt[section][name] = value
        else:
            opt[section] = value
    (tmp_path / "models").mkdir(exist_ok=True)
    return build_model(opt)


def step(model: Any, count: int = 1, **data: Any) -> None:
    lq = torch.rand(2, 3, 14, 18)  # no multiple of 4
    for number in range(count):
        model.feed_data({"lq": lq, "gt": lq.flip(3), **data})
        model.optimize_parameters(number + 1)


def test_frozen_parts_do_not_move(tmp_path: Path) -> None:
    model = build(tmp_path)
    before = copy.deepcopy(model.net_g.backbone.state_dict())
    model.net_g.train()
    step(model, 12)
    for net in (model.net_g, model.net_g_ema):
        for name, value in net.backbone.state_dict().items():
            assert torch.equal(value, before[name]), name  # weights and norm statistics
    now, mean = (net.refiner.ending.weight.abs().mean().item() for net in (model.net_g, model.net_g_ema))
    assert 0 < mean < 0.1 * now  # the average lags: 1 - 0.999^12 = 1.2%
    assert len(model.optimizer_g.param_groups[0]["params"]) == len(list(model.net_g.refiner.parameters()))


def test_a_backbone_that_trains_comes_with_its_adapter(tmp_path: Path) -> None:
    options = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 1}
    model = build(tmp_path, network={"backbone": {"type": "EDSR", **options}, "trainable": ["refiner", "backbone"]})
    before = copy.deepcopy(model.net_g.backbone.state_dict())
    step(model, 2)
    assert any(not torch.equal(v, before[n]) for n, v in model.net_g.backbone.state_dict().items())
    model.save(0, -1)
    wrapper = RefineWrapper.from_pretrained(tmp_path / "models" / "adapter_latest")
    image = torch.rand(1, 3, 9, 11)
    model.net_g_ema.eval()
    with torch.no_grad():
        assert torch.allclose(wrapper(image), model.net_g_ema(image), atol=1e-6)


def test_norm_statistics_of_a_trained_backbone_reach_the_average(tmp_path: Path) -> None:
    model = build(tmp_path, network={"trainable": ["refiner", "backbone"]})
    step(model, 3)
    now, mean = (net.backbone.module.norm.running_mean for net in (model.net_g, model.net_g_ema))
    assert bool((now != 0).any()) and torch.equal(now, mean)


def test_pretrain_network_g_takes_three_kinds(tmp_path: Path) -> None:
    first = build(tmp_path)
    with torch.no_grad():
        first.net_g.refiner.ending.bias.fill_(0.1)
    first.model_ema(0)
    first.save(0, -1)
    whole, folder, alone = (tmp_path / "models" / name for name in ("net_g_latest.pth", "adapter_latest", "body.pth"))
    body = first.net_g.backbone
    torch.save({"params": body.published_state_dict()}, alone)

    second = build(tmp_path, path__pretrain_network_g=str(whole))
    third = build(tmp_path, path__pretrain_network_g=str(alone))
    for model in (second, third):
        for net in (model.net_g, model.net_g_ema):
            assert net.backbone.weights_hash() == body.weights_hash()
    assert bool((second.net_g.refiner.ending.bias == 0.1).all()) and bool((third.net_g.refiner.ending.bias == 0).all())
    assert third.net_g.backbone.source["weights"] == "body.pth"

    backbone = {"arch": "networks:Stride4", "weights": str(alone)}
    fourth = build(tmp_path, network={"backbone": backbone}, path__pretrain_network_g=str(folder))
    assert bool((fourth.net_g_ema.refiner.ending.bias == 0.1).all())
    with pytest.raises(CheckpointError, match="does not fit"):
        build(
            tmp_path,
            network={"backbone": {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1, "upscale": 1}},
            path__pretrain_network_g=str(alone),
        )


def test_the_strength_is_drawn_in_training_and_fixed_after() -> None:
    network = Network({"arch": "networks:Stride4"}, REFINER, {"train": [0.5, 1.0], "default": 0.4})
    seen: list[Any] = []
    network.refiner.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    image = torch.rand(8, 3, 8, 8)
    network.train()(image)
    assert (
        seen[-1].shape == (8,) and seen[-1].unique().numel() == 8 and bool(((seen[-1] >= 0.5) & (seen[-1] <= 1)).all())
    )
    network.eval()(image)
    assert seen[-1] == 0.4
    network.train()(image, 0.7)
    assert seen[-1] == 0.7


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backbone": None}, "no backbone"),
        ({"backbon": {}}, "backbon"),
        ({"trainable": ["backbone"]}, "trainable"),
        ({"trainable": ["refiner", "head"]}, "head"),
        ({"strength": {"train": [0.5, 1.5]}}, "strength"),
        ({"strength": {"start": 1}}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"backbone": {"type": "SwinRI"}}, "SwinRI"),
        ({"refiner": "ornet-huge"}, "ornet-huge"),
    ],
)
def test_wrong_options_of_the_network_are_refused(options: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"backbone": {"arch": "networks:Stride4"}, **options}
    with pytest.raises(RefineWrapError, match=named) as refused:
        Network(**given)
    assert refused.value.expected


def test_the_adversarial_model_trains_both_networks(tmp_path: Path) -> None:
    model = build(
        tmp_path,
        "RefineWrapperGANModel",
        network_d={"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        train__optim_d={"type": "Adam", "lr": 1e-3},
        train__gan_opt={
            "type": "GANLoss",
            "gan_type": "vanilla",
            "real_label_val": 1.0,
            "fake_label_val": 0.0,
            "loss_weight": 0.1,
        },
    )
    before = copy.deepcopy(model.net_d.state_dict())
    lq = torch.rand(2, 3, 16, 16)
    step(model, 2, lq=lq, gt=lq.flip(2))
    assert "l_g_gan" in model.log_dict and bool((model.net_g.refiner.ending.weight != 0).any())
    assert any(not torch.equal(v, before[n]) for n, v in model.net_d.state_dict().items())
    model.save(0, 2)
    assert (tmp_path / "models" / "adapter_2" / "adapter.json").is_file()


def test_an_unknown_optimiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefineWrapError, match="AdamX"):
        build(tmp_path, train__optim_g={"type": "AdamX", "lr": 1e-3})


def test_the_plugin_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "train or test" in capsys.readouterr().err
    for name in [name for name in sys.modules if name.split(".")[0] == "basicsr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "basicsr", None)
    assert main(["train", "-opt", "nothing.yml"]) == 2
    assert "BasicSR cannot be imported" in capsys.readouterr().err


# ---------------------------------------------------------------- options to recipes

NAFNET = """
name: Deblur-width8
model_type: ImageRestorationModel
scale: 1
num_gpu: 8
manual_seed: 42
datasets:
  train:
    name: blurred
    type: PairedImageDataset
    dataroot_gt: ./sets/train/sharp.lmdb
    dataroot_lq: ./sets/train/blur.lmdb
    filename_tmpl: '{}'
    io_backend:
      type: lmdb
    gt_size: 64
    use_flip: true
    use_rot: false
    use_shuffle: true
    num_worker_per_gpu: 4
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
  val:
    name: blurred-test
    type: PairedImageDataset
    dataroot_gt: ./sets/test/sharp
    dataroot_lq: ./sets/test/blur
    io_backend:
      type: disk
network_g:
  type: NAFNetLocal
  width: 8
  enc_blk_nums: [1, 1]
  middle_blk_num: 1
  dec_blk_nums: [1, 1]
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
train:
  optim_g:
    type: AdamW
    lr: !!float 1e-3
    weight_decay: !!float 1e-3
    betas: [0.9, 0.9]
  scheduler:
    type: TrueCosineAnnealingLR
    T_max: 200000
    eta_min: !!float 1e-7
  total_iter: 200000
  warmup_iter: -1
  mixup: false
  pixel_opt:
    type: PSNRLoss
    loss_weight: 1
    reduction: mean
val:
  val_freq: !!float 2e4
  save_img: false
  metrics:
    psnr:
      type: calculate_psnr
logger:
  print_freq: 200
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~
dist_params:
  backend: nccl
  port: 29500
"""

HAT = """
name: HAT tiny x4
model_type: HATModel
scale: 4
num_gpu: auto
manual_seed: 0
datasets:
  train:
    name: DF2K
    type: PairedImageDataset
    dataroot_gt: sets/HR_sub
    dataroot_lq: sets/LR_sub
    meta_info_file: sets/meta_info_GT.txt
    io_backend: {type: disk}
    gt_size: 128
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 10
  val_1:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: sets/Set5/GT
    dataroot_lq: sets/Set5/LR
    filename_tmpl: '{}x4'
    io_backend: {type: disk}
  val_2:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: sets/Set14/GT
    dataroot_lq: sets/Set14/LR
    filename_tmpl: '{}x4'
    io_backend: {type: disk}
  val_3:
    name: real
    type: SingleImageDataset
    dataroot_lq: sets/real
    io_backend: {type: disk}
network_g:
  type: HAT
  upscale: 4
  in_chans: 3
  img_size: 32
  window_size: 8
  compress_ratio: 3
  squeeze_factor: 30
  conv_scale: 0.01
  overlap_ratio: 0.5
  img_range: 1.
  depths: [1]
  embed_dim: 12
  num_heads: [2]
  mlp_ratio: 2
  upsampler: 'pixelshuffle'
  resi_connection: '1conv'
path:
  pretrain_network_g: experiments/hat.pth
  param_key_g: 'params_ema'
  strict_load_g: true
train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: 2e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [125000, 200000, 250000]
    gamma: 0.5
  total_iter: 250000
  warmup_iter: 1000
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
val: {val_freq: 5e3, save_img: false}
logger: {print_freq: 100, save_checkpoint_freq: 1e4, use_tb_logger: false}
"""


def options_file(tmp_path: Path, text: str, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    path = tmp_path / "options.yml"
    if change is not None:
        tree = yaml.safe_load(text)
        change(tree)
        text = yaml.safe_dump(tree, sort_keys=False)
    path.write_text(text)
    return path


def test_nafnet_options_become_a_recipe(tmp_path: Path) -> None:
    converted = recipe_from_basicsr(options_file(tmp_path, NAFNET))
    written = tmp_path / "recipe.yaml"
    written.write_text(converted.to_yaml())
    recipe = Recipe.load(written)
    assert recipe == converted.recipe()
    assert (recipe.name, recipe.objective, recipe.backbone.arch) == ("Deblur-width8", "refine", "NAFNet")
    assert recipe.backbone.options == {"width": 8, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}
    assert recipe.backbone.weights == "experiments/Deblur-width8/models/net_g_latest.pth"
    assert (recipe.data.train.gt, recipe.data.train.lq) == (["./sets/train/sharp.lmdb"], ["./sets/train/blur.lmdb"])
    assert recipe.data.validation is not None and recipe.data.validation.gt == ["./sets/test/sharp"]
    assert (recipe.data.crop, recipe.data.flips, recipe.data.rotations) == (64, True, False)
    train = recipe.train
    assert (train.steps, train.batch_size, train.workers, train.seed) == (200_000, 32, 4, 42)
    assert (train.learning_rate, train.final_learning_rate, train.schedule) == (1e-3, 1e-7, "cosine")
    assert (train.weight_decay, train.betas, train.gradient_clip, train.ema) == (1e-3, [0.9, 0.9], 0.01, 0)
    assert recipe.losses.weights() == {"charbonnier": 1.0}
    assert (recipe.validate_every, recipe.save_every, train.log_every) == (20_000, 5_000, 200)
    notes = "\n".join(converted.notes)
    for named in ("NAFNetLocal", "PSNRLoss", "val.metrics", "dist_params", "net_g_latest.pth"):
        assert named in notes, named
    for carried in ("manual_seed", "gt_size", "T_max", "total_iter", "use_shuffle", "mixup"):
        assert carried not in notes, carried


def test_hat_options_become_a_recipe(tmp_path: Path) -> None:
    converted = recipe_from_basicsr(options_file(tmp_path, HAT), "restore")
    recipe = converted.recipe()
    assert (recipe.name, recipe.objective) == ("HAT_tiny_x4", "restore") and "refiner" not in converted.values
    assert (recipe.backbone.arch, recipe.backbone.weights) == ("HAT", "experiments/hat.pth")
    train, validation = recipe.data.train, recipe.data.validation
    assert (train.gt, train.gt_root, train.lq) == (["sets/meta_info_GT.txt"], "sets/HR_sub", ["sets/LR_sub"])
    assert validation is not None and validation.lq_pattern == "{name}x4"
    assert (validation.gt, validation.lq) == (["sets/Set5/GT", "sets/Set14/GT"], ["sets/Set5/LR", "sets/Set14/LR"])
    assert (recipe.data.crop, recipe.data.samples_per_image, recipe.train.batch_size) == (128, 10, 4)
    assert (recipe.train.schedule, recipe.train.milestones, recipe.train.gamma) == ("multistep", [0.5, 0.8], 0.5)
    assert (recipe.train.learning_rate, recipe.train.warmup_steps, recipe.train.ema) == (2e-4, 1000, 0.999)
    notes = "\n".join(converted.notes)
    assert "num_gpu (auto)" in notes and "datasets.val_3.type (SingleImageDataset)" in notes


def real_esrgan(tree: dict[str, Any]) -> None:
    train = tree["datasets"]["train"]
    del train["dataroot_lq"], train["meta_info_file"]
    tree["model_type"] = "RealESRGANModel"
    tree |= {
        "l1_gt_usm": True,
        "noise_range": [1, 30],
        "gray_noise_prob": 0.4,
        "jpeg_range": [30, 95],
        "jpeg_range2": [30, 90],
    }
    train |= {"type": "RealESRGANDataset", "kernel_list": ["iso", "aniso"], "kernel_prob": [0.7, 0.3]}
    train |= {"blur_sigma": [0.2, 3], "final_sinc_prob": 0.8}
    tree["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 32, "skip_connection": True}
    tree["train"]["optim_d"] = {"type": "Adam", "lr": 1e-4}
    tree["train"]["perceptual_opt"] = {
        "type": "PerceptualLoss",
        "layer_weights": {"conv5_4": 1},
        "perceptual_weight": 0.5,
    }
    tree["train"]["gan_opt"] = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1}
    tree["train"]["ldl_opt"] = {"type": "L1Loss"}


def test_real_esrgan_loses_its_degradation_loudly(tmp_path: Path) -> None:
    converted = recipe_from_basicsr(options_file(tmp_path, HAT, real_esrgan))
    recipe = converted.recipe()
    made = recipe.data.degradation
    assert made is not None and made.scale == 4 and made.blur is not None and made.noise is not None and made.jpeg
    assert (made.blur.sigma, made.blur.anisotropic) == ([0.2, 3], 0.3)
    assert (made.noise.sigma, made.noise.grey, made.jpeg.quality) == ([1, 30], 0.4, [30, 95])
    assert recipe.losses.vgg is not None and recipe.losses.gan is not None
    assert (recipe.losses.vgg.weight, recipe.losses.vgg.layers) == (0.5, {"conv5_4": 1.0})
    assert (recipe.losses.gan.weight, recipe.losses.gan.features, recipe.losses.gan.kind) == (0.1, 32, "vanilla")
    notes = "\n".join(converted.notes)
    for named in ("NOT carried over", "jpeg_range2", "final_sinc_prob", "l1_gt_usm", "train.ldl_opt.type"):
        assert named in notes, named


def test_nothing_is_dropped_silently(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["datasets"]["train"]["mean"] = [0.5, 0.5, 0.5]
        tree["train"]["fancy"] = {"deep": 3}
        tree["train"]["scheduler"]["restarts"] = [0, 1000]
        tree["path"]["resume_state"] = "9.state"
        tree["path"]["strict_load_g"] = False
        tree["train"]["optim_g"]["weight_decay"] = 1e-4
        tree["odd"] = False

    converted = recipe_from_basicsr(options_file(tmp_path, HAT, change))
    text = converted.to_yaml()
    comments = " ".join(line.removeprefix("#").strip(" -") for line in text.splitlines() if line.startswith("#"))
    for named in (
        "datasets.train.mean",
        "train.fancy.deep (3)",
        "scheduler.restarts",
        "resume_state",
        "strict_load_g",
        "weight_decay",
        "odd (false)",
    ):
        assert named in "\n".join(converted.notes), named
        assert named in comments, named


def test_the_command_line_says_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = options_file(tmp_path, NAFNET)

    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as left:
            app(["recipe", "from-basicsr", *map(str, arguments)])
        return int(left.value.code or 0)

    assert call(source) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["objective"] == "refine" and "# - " in shown.out
    assert "Note: train.pixel_opt.type (PSNRLoss)" in shown.err
    assert call(source, "-o", tmp_path / "mine.yaml", "--objective", "restore") == 0
    assert Recipe.load(tmp_path / "mine.yaml").objective == "restore" and not capsys.readouterr().out
    assert call(tmp_path / "none.yml") == 2 and "none.yml" in capsys.readouterr().err


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        *parents, name = key.split(".")
        for parent in parents:
            tree = tree[parent]
        if value is None:
            del tree[name]
        else:
            tree[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("network_g.type", "NAFSSR"), r":\d+: network_g.type: There is no architecture 'NAFSSR'"),
        (put("network_g.widht", 8), r":\d+: network_g.widht is no option of HAT"),
        (put("network_g.type", None), r"network_g.type"),
        (put("datasets.train", None), r"datasets.train.*\n.*training, not for test"),
        (put("datasets.train.type", "REDSDataset"), r":\d+: datasets.train.type is REDSDataset"),
        (put("datasets.train.dataroot_lq", None), r"dataroot_lq"),
        (put("datasets.train.gt_size", None), r"gt_size"),
        (put("datasets.train.batch_size_per_gpu", None), r"batch_size_per_gpu"),
        (put("train.total_iter", None), r"total_iter"),
        (put("train.total_iter", 10.5), r":\d+: train.total_iter is 10.5"),
        (put("train.optim_g.lr", "quick"), r":\d+: train.optim_g.lr is 'quick'"),
        (put("train.optim_g.lr", 3.0), r"train.learning_rate"),
        (put("train.pixel_opt.type", "FancyLoss"), r":\d+: train.pixel_opt.type is FancyLoss"),
        (put("train.pixel_opt", None), r"no loss"),
        (put("datasets.train.use_rot", "maybe"), r"use_rot is 'maybe'"),
    ],
)
def test_options_without_a_counterpart_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    with pytest.raises(RecipeError, match=named) as refused:
        recipe_from_basicsr(options_file(tmp_path, HAT, change))
    assert "options.yml" in str(refused.value) and refused.value.expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("just words", "no options file"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", r"options.yml:1: "),
        ("a: 1\na: 2", "given twice"),
    ],
)
def test_files_that_are_no_options_are_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe_from_basicsr(options_file(tmp_path, text))


def test_a_converted_recipe_trains(tmp_path: Path) -> None:
    from refine_wrap.training import finetune

    save_pairs(tmp_path / "set", 3, 48, 48)
    body = load_backbone("SRVGGNetCompact", options={"num_feat": 4, "num_conv": 1, "upscale": 2})
    torch.save({"params": body.published_state_dict()}, tmp_path / "body.pth")

    def change(tree: dict[str, Any]) -> None:
        tree["scale"], tree["name"], tree["num_gpu"] = 2, "tiny", 0
        tree["network_g"] = {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1, "upscale": 2}
        tree["path"] = {"pretrain_network_g": str(tmp_path / "body.pth")}
        places = {"dataroot_gt": str(tmp_path / "set" / "gt"), "dataroot_lq": str(tmp_path / "set" / "lq")}
        (tmp_path / "list.txt").write_text("0.png (48,48,3)\n2.png (48,48,3)\n")
        tree["datasets"]["train"] |= places | {
            "meta_info_file": str(tmp_path / "list.txt"),
            "gt_size": 32,
            "num_worker_per_gpu": 0,
        }
        tree["datasets"] = {"train": tree["datasets"]["train"], "val": {"type": "PairedImageDataset", **places}}
        tree["train"]["total_iter"] = 2

    written = tmp_path / "recipe.yaml"
    written.write_text(recipe_from_basicsr(options_file(tmp_path, HAT, change)).to_yaml())
    recipe = Recipe.load(written, [f"output={tmp_path / 'run'}", "refiner.options={width: 4}", "train.device=cpu"])
    finetune(recipe, quiet=True)
    assert RefineWrapper.from_pretrained(tmp_path / "run" / "adapter", backbone=body).scale == 2
