"""Losses: values against references written apart from them, ranges, frozen networks, missing weights; the adversary."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import squeezenet1_1, vgg19

from refine_wrap import load_backbone
from refine_wrap.errors import CheckpointError, DataError, RecipeError, RefineWrapError
from refine_wrap.evaluation import ssim as measured_ssim
from refine_wrap.recipe import GanLoss, LossChoice, Recipe
from refine_wrap.training import finetune
from refine_wrap.training.adversary import Adversary
from refine_wrap.training.losses import LOSSES, LossSet, gaussian, smooth, weighted_losses
from refine_wrap.training.objectives import RefineObjective, RestoreObjective

ROOT = Path(__file__).resolve().parent.parent
CAFFE = "squeezenet1_1_caffe.fp16.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of so small sums wait for each other, for minutes on a machine that is at work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may reach for the network, and torch's hub folder is empty."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


def choice(**losses: Any) -> LossChoice:
    return LossChoice.model_validate(losses)


def value(name: str, options: Any, output: Tensor, target: Tensor) -> float:
    return float(LossSet(choice(**{name: options}))(output, target)[name].detach())


def pair(side: int = 40, batch: int = 2) -> tuple[Tensor, Tensor]:
    """An output and a ground truth of smooth content with some noise between them, in [0, 1]."""
    coarse = torch.rand(batch, 3, side // 8, side // 8)
    target = functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return (target + 0.1 * torch.randn(target.shape)).clamp(0, 1), target


# ---------------------------------------------------------------- weights of feature nets, made here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of random weights under torchvision's names."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)

    def save(network: str, features: nn.Module) -> None:
        state = {f"features.{name}": tensor.half() for name, tensor in features.state_dict().items()}
        for name, tensor in state.items():
            if name.endswith("bias"):
                tensor.normal_(0, 0.05)
        torch.save(state, folder / f"{network}.pth")

    save("squeezenet1_1", squeezenet1_1().features)
    with torch.device("meta"):
        deep = vgg19().features
    deep.to_empty(device="cpu")
    for layer in deep:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data.uniform_(-((6 / fan_in) ** 0.5), (6 / fan_in) ** 0.5)
    save("vgg19", deep)
    save("alexnet", _alexnet_features())
    return folder


def _alexnet_features() -> nn.Module:
    from torchvision.models import alexnet

    with torch.device("meta"):
        features: nn.Module = alexnet().features
    features.to_empty(device="cpu")
    for parameter in features.parameters():
        parameter.data.normal_(0, 0.05)
    return features


@pytest.fixture
def every(made: Path) -> dict[str, Any]:
    """Options of each loss that can be built here."""
    options: dict[str, Any] = dict.fromkeys(LOSSES, 1.0)
    options["vgg"] = {"weight": 1.0, "file": str(made / "vgg19.pth")}
    options["squeeze"] = {"weight": 1.0, "file": str(made / "squeezenet1_1.pth"), "input": "torchvision"}
    if importlib.util.find_spec("lpips") is not None:
        options["lpips"] = {"weight": 1.0, "file": str(made / "alexnet.pth")}
    return options


# ---------------------------------------------------------------- values


def test_ssim_is_the_metric() -> None:
    output, target = pair()
    metric = measured_ssim(output, target, eight_bit=False).mean()
    assert 0.1 < float(metric) < 0.9
    assert value("ssim", 1.0, output, target) == pytest.approx(1 - float(metric), abs=2e-6)
    assert value("ssim", 0.25, output, target) == pytest.approx(0.25 * (1 - float(metric)), abs=1e-6)
    assert value("ssim", 1.0, 1 - target, target) > 1  # negatives


def test_ssim_keeps_its_digits_between_nearly_equal_images() -> None:
    """The variances are differences of nearly equal numbers."""
    _, target = pair()
    output = target + 1e-3 * torch.randn(target.shape)
    exact = float(1 - LOSSES["ssim"](output.double(), target.double()))
    assert 1 - value("ssim", 1.0, output, target) == pytest.approx(exact, abs=2e-6)


def test_color_sees_tones_not_detail() -> None:
    target = torch.full((1, 3, 30, 30), 0.5)
    assert value("color", 2.0, target + 0.1, target) == pytest.approx(0.2, rel=1e-5)  # up to the border
    checks = 0.2 * ((torch.arange(30)[:, None] + torch.arange(30)) % 2) - 0.1
    assert value("l1", 1.0, target + checks, target) == pytest.approx(0.1, rel=1e-5)
    assert value("color", 1.0, target + checks, target) < 0.01
    small = torch.rand(1, 3, 9, 9)  # smaller than the window
    assert value("color", 1.0, small.flip(3), small) > 0


def test_color_is_a_gaussian_low_pass() -> None:
    output, target = torch.rand(2, 1, 3, 41, 41)
    axis = torch.arange(-10, 11, dtype=torch.float64)
    kernel = torch.exp(-(axis[:, None] ** 2 + axis**2) / 18)
    both = torch.stack((output - target, torch.ones_like(target))).double().view(6, 1, 41, 41)
    blurred, covered = functional.conv2d(both, kernel[None, None], padding=10).view(2, 3, 41, 41)
    assert value("color", 1.0, output, target) == pytest.approx(float((blurred / covered).abs().mean()), rel=1e-5)


def test_the_gradient_of_the_window_is_right() -> None:
    image = torch.rand(2, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth(x, gaussian(1.5, 2)), (image,))


def by_hand(model: nn.Sequential, image: Tensor, places: set[int]) -> list[Tensor]:
    found = []
    for place, layer in enumerate(model):
        image = layer(image)
        if place in places:
            found.append(image.clone())
    return found


def squeeze_distance(features: nn.Sequential, output: Tensor, target: Tensor) -> float:
    total = 0.0
    taps = {1, 4, 7, 9, 10, 11, 12}
    for a, b in zip(by_hand(features, output, taps), by_hand(features, target, taps), strict=True):
        a, b = (x.double() / x.double().norm(dim=1, keepdim=True).clamp_min(1e-5) for x in (a, b))
        total += float((2 - 2 * (a * b).sum(1))[(a.norm(dim=1) > 0) & (b.norm(dim=1) > 0)].sum() / a[:, 0].numel())
    return total / len(taps)


@pytest.mark.shared
def test_squeeze_against_torchvision(shared: Path) -> None:
    file = shared / "weights" / CAFFE
    network = squeezenet1_1().eval()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    output, target = pair(64)
    mean = torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = squeeze_distance(
            network.features, *(image[:, [2, 1, 0]] * 255.0 - mean for image in (output, target))
        )
    options = {"weight": 1.0, "file": str(file)}
    assert value("squeeze", options, output, target) == pytest.approx(expected, rel=1e-4)
    # What the metadata says, and what the recipe says against it.
    assert value("squeeze", {**options, "input": "caffe"}, output, target) == value("squeeze", options, output, target)
    assert value("squeeze", {**options, "input": "torchvision"}, output, target) != pytest.approx(expected, rel=0.01)


@pytest.mark.shared
def test_squeeze_sees_blur_grow(shared: Path) -> None:
    from PIL import Image
    from torchvision.transforms.functional import gaussian_blur, to_tensor

    with Image.open(min((shared / "data" / "photos").glob("*.*g"))) as file:
        middle = (file.width // 2, file.height // 2)
        photo = to_tensor(file.convert("RGB").crop((*middle, middle[0] + 128, middle[1] + 128)))[None]
    losses = LossSet(choice(squeeze={"weight": 1.0, "file": str(shared / "weights" / CAFFE)}))
    seen = [float(losses(gaussian_blur(photo, 21, sigma), photo)["squeeze"]) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert 0 < seen[0] < seen[1] < seen[2] < seen[3] < 2


def test_squeeze_with_torchvision_input(made: Path) -> None:
    state = {name.removeprefix("features."): t.float() for name, t in torch.load(made / "squeezenet1_1.pth").items()}
    features = squeezenet1_1().features
    features.load_state_dict(state)
    output, target = pair()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = squeeze_distance(features, (output - mean) / std, (target - mean) / std)
    options = {"weight": 1.0, "file": str(made / "squeezenet1_1.pth"), "input": "torchvision"}
    assert value("squeeze", options, output, target) == pytest.approx(expected, rel=1e-3)


def test_vgg_by_hand(made: Path) -> None:
    """Convolutions counted from the published layout, features before the activation, weights of the layers."""
    state = {name: tensor.float() for name, tensor in torch.load(made / "vgg19.pth").items()}
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def features(image: Tensor) -> dict[str, Tensor]:
        x, place, found = (image - mean) / std, 0, {}
        for block, count in enumerate((2, 2, 4, 4, 4), 1):
            for number in range(1, count + 1):
                weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
                found[f"conv{block}_{number}"] = x = functional.conv2d(x, weight, bias, padding=1)
                x, place = x.relu(), place + 2
            x, place = functional.max_pool2d(x, 2), place + 1
        return found

    output, target = pair(32, 1)
    a, b = features(output), features(target)

    def distance(layer: str) -> float:
        return float((a[layer] - b[layer]).abs().mean())

    file = str(made / "vgg19.pth")
    chosen = {"weight": 2.0, "file": file, "layers": {"conv2_1": 1.0, "conv4_4": 0.5}}
    expected = 2 * (distance("conv2_1") + 0.5 * distance("conv4_4"))
    assert value("vgg", chosen, output, target) == pytest.approx(expected, rel=1e-4)
    usual = (
        0.1 * distance("conv1_2") + 0.1 * distance("conv2_2") + sum(map(distance, ("conv3_4", "conv4_4", "conv5_4")))
    )
    assert value("vgg", {"weight": 1.0, "file": file}, output, target) == pytest.approx(usual, rel=1e-4)


def test_lpips_is_the_package(made: Path) -> None:
    lpips = pytest.importorskip("lpips")
    package = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
    trunk = {name.split(".", 1)[1]: tensor.float() for name, tensor in torch.load(made / "alexnet.pth").items()}
    package.net.load_state_dict({name: trunk[name.split(".", 1)[1]] for name in package.net.state_dict()})
    output, target = pair(64)
    with torch.no_grad():
        expected = float(package(output, target, normalize=True).mean())
        off_range = float(package(output, target).mean())
    file = str(made / "alexnet.pth")
    assert value("lpips", {"weight": 1.0, "file": file}, output, target) == pytest.approx(expected, rel=1e-4)
    assert abs(off_range / expected - 1) > 0.01  # so the range does matter here
    (hub_file := Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth").parent.mkdir(parents=True)
    hub_file.symlink_to(file)  # as torch keeps it
    assert value("lpips", 1.0, output, target) == pytest.approx(expected, rel=1e-4)


def test_dists_gets_images_in_0_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Distance(nn.Module):
        def __init__(self, pretrained: bool) -> None:
            super().__init__()
            assert not pretrained  # or it would download
            self.alpha, self.beta = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(1, 4))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            assert float(b.min()) >= 0 and float(b.max()) <= 1
            return self.alpha.sum() * (a - b).abs().mean((1, 2, 3))[:, None]

    package, archs, module = (ModuleType(f"pyiqa{name}") for name in ("", ".archs", ".archs.dists_arch"))
    module.DISTS = Distance  # type: ignore[attr-defined]
    for part in (package, archs, module):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    with pytest.raises(CheckpointError, match=r"no file .*pyiqa/DISTS_weights-f5e65c96\.pth") as caught:
        LossSet(choice(dists=1.0))
    assert "nothing is downloaded" in str(caught.value)
    own = tmp_path / "dists.pth"
    torch.save({"alpha": torch.ones(1, 4), "beta": torch.ones(1, 4)}, own)
    with pytest.raises(CheckpointError, match=r"no file .*checkpoints/vgg16-397923af\.pth"):
        LossSet(choice(dists={"weight": 1.0, "file": str(own)}))
    (trunk := Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth").parent.mkdir(parents=True)
    trunk.touch()
    target = torch.linspace(0, 0.5, 3072).view(1, 3, 32, 32)
    options = {"weight": 0.5, "file": str(own)}
    assert value("dists", options, target + 0.1, target) == pytest.approx(0.5 * 4 * 0.1, rel=1e-4)
    torch.save({"alpha": torch.ones(1, 3), "beta": torch.ones(1, 4)}, own)
    with pytest.raises(CheckpointError, match=r"alpha is \(1, 3\)"):
        LossSet(choice(dists=options))


# ---------------------------------------------------------------- what all have in common


def test_identical_images_cost_nothing(every: dict[str, Any]) -> None:
    _, target = pair(32, 1)
    losses = LossSet(choice(**every))
    for name, term in losses(target, target).items():
        assert float(term) == pytest.approx(1e-3 if name == "charbonnier" else 0, abs=1e-6), name


def test_gradients_flow_and_lead_closer(every: dict[str, Any]) -> None:
    output, target = pair(32, 1)
    output.requires_grad_()
    losses = LossSet(choice(**every))
    terms = losses(output, target)
    assert set(terms) == set(every)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        assert term.shape == () and bool(torch.isfinite(gradient).all()) and bool(gradient.any()), name
        size = 1e-3 * float(term.detach()) / float(gradient.square().sum())
        nearer = losses(output.detach() - size * gradient, target)[name]
        assert float(nearer) < float(term.detach()), name
    assert all(parameter.grad is None for parameter in losses.parameters())


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_gradients_stay_finite_where_features_are_zero(every: dict[str, Any], level: float, made: Path) -> None:
    dead = {}
    for name in ("alexnet", "squeezenet1_1"):
        state = torch.load(made / f"{name}.pth")
        for key in state:
            if key.endswith("bias"):
                state[key].fill_(-100.0)
        torch.save(state, dead.setdefault(name, made / f"dead_{name}.pth"))
    options = {
        **every,
        "squeeze": {"weight": 1.0, "file": str(dead["squeezenet1_1"]), "input": "torchvision"},
        **({"lpips": {"weight": 1.0, "file": str(dead["alexnet"])}} if "lpips" in every else {}),
    }
    output = torch.full((1, 3, 32, 32), level, requires_grad=True)
    for name, term in LossSet(choice(**options))(output, torch.full((1, 3, 32, 32), level)).items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        assert bool(torch.isfinite(term)) and bool(torch.isfinite(gradient).all()), name


def test_an_output_is_not_clamped(every: dict[str, Any]) -> None:
    _, target = pair(32, 1)
    output = (target + 1.5).requires_grad_()
    for name, term in LossSet(choice(**every))(output, target).items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        assert bool(gradient.any()), name


def test_a_ground_truth_outside_is_refused(every: dict[str, Any]) -> None:
    output, target = pair(32, 1)
    losses = LossSet(choice(**every))
    low, high = float(target.min()), float(target.max())
    full = (target - low) / (high - low)
    with pytest.raises(DataError, match=r"values from -1 to 1"):
        losses(output, full * 2 - 1)
    with pytest.raises(DataError, match=r"to 255"):
        losses(output * 255, full * 255)


def test_autocast_changes_nothing(every: dict[str, Any]) -> None:
    output, target = pair(32, 1)
    losses = LossSet(choice(**every))
    plain = losses(output, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses(output, target)
    assert all(torch.equal(term, inside[name]) and term.dtype == torch.float32 for name, term in plain.items())
    assert {term.dtype for term in losses(output.bfloat16(), target).values()} == {torch.float32}


def test_the_networks_are_frozen_and_no_part_of_what_is_trained(every: dict[str, Any]) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y

    backbone = load_backbone(Tiny())
    objective = RestoreObjective(backbone, LossSet(choice(**every))).train()
    assert not any(module.training for module in objective.losses.modules()) and objective.training
    assert set(objective.trained().state_dict()) == {"conv.weight", "conv.bias"}
    assert sum(parameter.numel() for parameter in objective.parameters()) == 3 * 3 * 9 + 3
    before = {name: tensor.clone() for name, tensor in objective.losses.state_dict().items()}
    _, target = pair(32, 1)
    optimizer = torch.optim.AdamW(objective.parameters(), 0.1)
    torch.stack(list(objective({"lq": target, "gt": target}).values())).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.losses.state_dict().items())
    assert before and backbone.module.conv.weight.grad is not None  # type: ignore[union-attr]


def test_building_losses_draws_no_chance(every: dict[str, Any]) -> None:
    torch.manual_seed(3)
    LossSet(choice(**every))
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))


def test_plain_losses_as_a_function() -> None:
    output, target = pair()
    terms = weighted_losses(output, target, {"l1": 1.0, "ssim": 0.5})
    assert float(terms["ssim"]) == pytest.approx(value("ssim", 0.5, output, target))
    with pytest.raises(RefineWrapError, match="vgg"):
        weighted_losses(output, target, {"vgg": 1.0})


# ---------------------------------------------------------------- refusals


def test_images_that_are_too_small() -> None:
    image = torch.rand(1, 3, 10, 40)
    with pytest.raises(RefineWrapError, match=r"ssim got images of 10x40") as caught:
        LossSet(choice(ssim=1.0))(image, image)
    assert "at least 11" in str(caught.value)


def test_the_smallest_images_that_the_recipe_allows(every: dict[str, Any]) -> None:
    image = torch.rand(1, 3, 32, 32)
    assert all(bool(torch.isfinite(term)) for term in LossSet(choice(**every))(image.flip(3), image).values())


@pytest.mark.parametrize(
    ("loss", "file"),
    [
        ({"vgg": 0.1}, "checkpoints/vgg19-dcbb9e9d.pth"),
        ({"vgg": {"weight": 0.1, "file": "nowhere.pth"}}, "nowhere.pth"),
        ({"lpips": 1.0}, "checkpoints/alexnet-owt-7be5be79.pth"),
        ({"lpips": {"weight": 1.0, "net": "vgg"}}, "checkpoints/vgg16-397923af.pth"),
        ({"lpips": {"weight": 1.0, "net": "squeeze"}}, "checkpoints/squeezenet1_1-b8a52dc0.pth"),
        ({"squeeze": {"weight": 1.0, "file": "nowhere.safetensors"}}, "nowhere.safetensors"),
    ],
)
def test_missing_weights_are_refused_with_their_place(loss: dict[str, Any], file: str) -> None:
    if "lpips" in loss:
        pytest.importorskip("lpips")
    with pytest.raises(CheckpointError) as caught:
        LossSet(choice(**loss))
    assert file in caught.value.came and f"losses.{next(iter(loss))}" in caught.value.came
    assert "nothing is downloaded" in str(caught.value) and "Expected: " in str(caught.value)


@pytest.mark.parametrize(("loss", "package"), [("lpips", "lpips"), ("dists", "pyiqa")])
def test_missing_packages_are_refused(loss: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RefineWrapError, match=rf"losses\.{loss} needs the package {package}") as caught:
        LossSet(choice(**{loss: 1.0}))
    assert f"pip install {package}" in str(caught.value)


def test_files_of_other_networks(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit VGG19.*missing"):
        LossSet(choice(vgg={"weight": 1.0, "file": str(made / "squeezenet1_1.pth")}))
    with pytest.raises(CheckpointError, match=r"does not fit SqueezeNet 1.1.*missing"):
        LossSet(choice(squeeze={"weight": 1.0, "file": str(made / "vgg19.pth"), "input": "caffe"}))
    with pytest.raises(CheckpointError, match=r"does not say what input") as caught:
        LossSet(choice(squeeze={"weight": 1.0, "file": str(made / "squeezenet1_1.pth")}))
    assert "losses.squeeze.input" in str(caught.value)
    (broken := tmp_path / "broken.pth").write_bytes((made / "squeezenet1_1.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"broken\.pth is no whole checkpoint"):
        LossSet(choice(vgg={"weight": 1.0, "file": str(broken)}))
    state = torch.load(made / "squeezenet1_1.pth")
    state["features.0.weight"][0, 0, 0, 0] = float("inf")
    save_file(state, tmp_path / "infinite.safetensors", {"input": "BGR, 0..255 minus the mean"})
    with pytest.raises(CheckpointError, match="not finite"):
        LossSet(choice(squeeze={"weight": 1.0, "file": str(tmp_path / "infinite.safetensors")}))
    if importlib.util.find_spec("lpips") is not None:
        with pytest.raises(CheckpointError, match=r"does not fit LPIPS with alex"):
            LossSet(choice(lpips={"weight": 1.0, "file": str(made / "squeezenet1_1.pth")}))


RECIPE = """\
version: 1
name: small
objective: restore
backbone: {arch: NAFNet, options: {width: 4, enc_blk_nums: [1], dec_blk_nums: [1]}}
data:
  train: {gt: [FOLDER]}
  degradation: {scale: 1}
  crop: CROP
train: {steps: 1, batch_size: 1, device: cpu}
output: FOLDER/run
losses:
  l1: 1.0
  LOSS
"""


def write(folder: Path, loss: str, crop: int = 64) -> Path:
    text = RECIPE.replace("FOLDER", str(folder)).replace("LOSS", loss).replace("CROP", str(crop))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_missing_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe\.yaml:11: losses\.vgg needs weights.*vgg19-dcbb9e9d\.pth"):
        finetune(Recipe.load(write(tmp_path, "vgg: 0.1")), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "crop", "line", "came", "expected"),
    [
        ("vgg: yes", 64, 13, "losses.vgg is 'yes'", "a number (its weight)"),
        ("vgg: true", 64, 13, "losses.vgg is True", "a number (its weight)"),
        ("vgg: -1", 64, 13, "losses.vgg.weight is -1", "at least 0"),
        ("vgg: {file: a.pth}", 64, 13, "losses.vgg.weight is missing", "a number"),
        ("vgg: {weight: 1, layers: {conv9_1: 1}}", 64, 13, "losses.vgg.layers is", "conv5_4"),
        ("vgg: {weight: 1, layers: {conv1_1: 0}}", 64, 13, "losses.vgg.layers is", "above 0"),
        ("vgg: {weight: 1, layers: {}}", 64, 13, "losses.vgg.layers is", "conv5_4"),
        ("squeeze: 1", 64, 13, "losses.squeeze.file is missing", "losses.squeeze.file: text"),
        ("lpips: {weight: 1, net: resnet}", 64, 13, "losses.lpips.net is 'resnet'", "alex, vgg, squeeze"),
        ("gan: {weight: 1, kind: wgan}", 64, 13, "losses.gan.kind is 'wgan'", "vanilla, lsgan, hinge"),
        ("gan: {weight: 1, learning_rate: 0}", 64, 13, "losses.gan.learning_rate is 0", "above 0"),
        ("gan: {weight: 1, begin: 0}", 64, 13, "losses.gan.begin is not a known key", None),
        ("gan: 1", 68, 8, "data.crop is 68 with losses.gan", "a multiple of 8"),
        ("dists: 1", 24, 8, "data.crop is 24 with losses.dists", "at least 32"),
        ("ssim: 1", 8, 8, "data.crop is 8 with losses.ssim", "at least 11"),
        ("colour: 1", 64, 13, "losses.colour is not a known key", "losses.color"),
    ],
)
def test_recipes_that_are_refused(
    tmp_path: Path, loss: str, crop: int, line: int, came: str, expected: str | None
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(write(tmp_path, loss, crop))
    assert f"recipe.yaml:{line}: " in caught.value.came and came in caught.value.came
    assert expected is None or expected in str(caught.value.expected)


def test_numbers_and_sections(tmp_path: Path) -> None:
    path = write(tmp_path, "vgg: 0.1")
    recipe = Recipe.load(path, ["losses.gan=0.05", "losses.squeeze={weight: 1, file: ~/squeeze.pth}"])
    assert recipe.losses.weights() == {"l1": 1.0, "vgg": 0.1, "squeeze": 1.0, "gan": 0.05}
    assert recipe.losses.squeeze is not None and not recipe.losses.squeeze.file.startswith("~")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml") == recipe
    off = Recipe.load(path, ["losses.vgg=0", "losses.gan={weight: 0}", "losses.squeeze=0", "losses.lpips=null"])
    assert off.losses.weights() == {"l1": 1.0}
    with pytest.raises(RecipeError, match="no loss besides gan"):
        Recipe.load(path, ["losses={gan: 1}"])


# ---------------------------------------------------------------- the adversary

basicsr = pytest.mark.skipif(importlib.util.find_spec("basicsr") is None, reason="BasicSR is not installed")
SIDE = 16


class Machine(SimpleNamespace):
    """What the adversary uses of accelerate's Accelerator, for one process on the CPU."""

    def __init__(self, precision: str = "no") -> None:
        super().__init__(device=torch.device("cpu"), mixed_precision=precision, num_processes=1)

    def autocast(self) -> Any:
        dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.mixed_precision]
        return torch.autocast("cpu", dtype, enabled=dtype is not None)


def adversary(seed: int = 0, precision: str = "no", **options: Any) -> Adversary:
    return Adversary(GanLoss(**{"weight": 1.0, "features": 4, **options}), Machine(precision), seed)


def images(step: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    target = torch.rand(batch, 3, SIDE, SIDE, generator=generator)
    return functional.avg_pool2d(target, 3, 1, 1), target


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@basicsr
@pytest.mark.parametrize("kind", ["vanilla", "lsgan", "hinge"])
def test_the_two_sides_of_the_game(kind: str) -> None:
    rival = adversary(kind=kind, weight=0.5)
    output, target = images(0)
    with torch.no_grad():
        real, fake = rival.network(target), rival.network(output)
    ones, zeros, cross = torch.ones_like(real), torch.zeros_like(real), functional.binary_cross_entropy_with_logits
    generator, own = {
        "vanilla": (cross(fake, ones), cross(real, ones) + cross(fake, zeros)),
        "lsgan": (functional.mse_loss(fake, ones), functional.mse_loss(real, ones) + functional.mse_loss(fake, zeros)),
        "hinge": (-fake.mean(), (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()),
    }[kind]
    assert float(rival.generator_term(output)) == pytest.approx(0.5 * float(generator), rel=1e-5)
    told = rival.step([(output, target)])
    # In its step the spectral norm is one power iteration further on.
    assert float(told["discriminator"]) == pytest.approx(float(own), rel=0.02)
    assert float(told["real"]) == pytest.approx(float(real.mean()), rel=0.1, abs=0.02)


@basicsr
def test_the_generators_term_changes_nothing_in_the_discriminator() -> None:
    rival = adversary()
    rival.step([images(0)])
    before = copied(rival.state())
    output = images(1)[0].requires_grad_()
    rival.generator_term(output).backward()
    assert output.grad is not None and bool(output.grad.any()) and bool(torch.isfinite(output.grad).all())
    assert all(parameter.grad is None for parameter in rival.network.parameters())
    assert same(before, rival.state())


@basicsr
def test_no_gradient_flows_into_what_the_discriminator_learns_from() -> None:
    rival = adversary()
    output, target = (image.requires_grad_() for image in images(0))
    rival.step([(output, target)])
    assert output.grad is None and target.grad is None


@basicsr
def test_the_discriminator_learns_to_tell() -> None:
    rival = adversary(learning_rate=2e-3)
    told = [rival.step([images(step)]) for step in range(40)]
    assert float(told[-1]["discriminator"]) < 0.8 * float(told[0]["discriminator"])
    assert float(told[-1]["real"]) > 0 > float(told[-1]["fake"])


@basicsr
def test_spectral_norms_are_settled_before_the_first_step() -> None:
    rival = adversary()
    for layer in (rival.network.conv1, rival.network.conv5, rival.network.conv8):
        largest = torch.linalg.matrix_norm(layer.weight_orig.flatten(1), 2)
        shown = layer.weight_u @ layer.weight_orig.flatten(1) @ layer.weight_v
        assert 0.9 < float(shown / largest) < 1.001


@basicsr
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_three_and_three_steps_are_six(precision: str) -> None:
    whole = adversary(precision=precision)
    for step in range(6):
        whole.step([images(step)], 1 - step / 10)
    first = adversary(precision=precision)
    for step in range(3):
        first.step([images(step)], 1 - step / 10)
    saved = copied(first.state())
    assert any(name.endswith("weight_u") for name in saved) and any("exp_avg_sq" in name for name in saved)
    assert any(name.startswith("scaler.") for name in saved) == (precision == "fp16")
    first.step([images(9)])  # what comes after has no say in what was saved
    second = adversary(seed=7, precision=precision)
    second.load(saved)
    for step in range(3, 6):
        second.step([images(step)], 1 - step / 10)
    assert same(whole.state(), second.state())
    assert float(whole.generator_term(images(8)[0])) == float(second.generator_term(images(8)[0]))


@basicsr
def test_parts_equal_the_whole() -> None:
    whole, parted = adversary(), adversary()
    for step in range(3):
        output, target = images(step, 4)
        one = whole.step([(output, target)])
        two = parted.step(list(zip(output.chunk(2), target.chunk(2), strict=True)))
        assert all(float(one[name]) == pytest.approx(float(two[name]), rel=1e-4, abs=1e-6) for name in one)
    for name, tensor in whole.network.state_dict().items():
        assert torch.allclose(tensor, parted.network.state_dict()[name], atol=2e-6), name


@basicsr
def test_the_rate_follows_the_schedule() -> None:
    rival = adversary()
    before = copied(rival.network.state_dict())
    rival.step([images(0)], 0.0)
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in rival.network.state_dict().items()
        if not name.endswith(("_u", "_v"))
    )
    rival.step([images(0)], 0.5)
    assert rival.optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-4)


@basicsr
def test_a_step_that_is_not_finite_is_left_out() -> None:
    rival = adversary()
    rival.step([images(0)])
    before = copied({name: tensor for name, tensor in rival.state().items() if not name.endswith(("_u", "_v"))})
    output, target = images(1)
    told = rival.step([(output * float("nan"), target)])
    assert not bool(torch.isfinite(told["discriminator"]))
    state = rival.state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())
    assert bool(torch.isfinite(rival.step([images(2)])["discriminator"]))


@basicsr
def test_the_generator_feels_it_from_its_start() -> None:
    rival = adversary(start=2)
    output = images(0)[0].requires_grad_()
    rival.now = 1
    early = rival.generator_term(output)
    assert float(early) == 0 and not early.requires_grad
    rival.now = 2
    assert float(rival.generator_term(output).detach()) != 0


@basicsr
def test_what_the_adversary_refuses() -> None:
    rival = adversary()
    with pytest.raises(RefineWrapError, match="multiples of 8"):
        rival.generator_term(torch.rand(1, 3, 20, 16))
    with pytest.raises(RefineWrapError, match="no images"):
        rival.step([])
    with pytest.raises(CheckpointError, match="discriminator does not fit"):
        rival.load({})
    with pytest.raises(CheckpointError, match=r"conv0\.weight is"):
        rival.load(adversary(features=8).state())
    state = copied(rival.state()) | {"optimizer.0.exp_avg": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="optimiser of another one"):
        rival.load(state)


def test_without_basicsr(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "basicsr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "basicsr", None)
    with pytest.raises(RefineWrapError, match=r"losses\.gan needs BasicSR") as caught:
        adversary()
    assert "Python below 3.13" in str(caught.value)


@basicsr
def test_building_it_leaves_chance_alone() -> None:
    torch.manual_seed(5)
    first = adversary(seed=1)
    after = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(2))
    torch.manual_seed(6)
    assert same(first.state(), adversary(seed=1).state()) and not same(first.state(), adversary(seed=2).state())


@basicsr
@pytest.mark.parametrize("kind", ["restore", "refine"])
def test_an_objective_with_an_adversary(kind: str) -> None:
    from refine_wrap import RefineWrapper

    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    losses = LossSet(choice(l1=1.0))
    objective: Any
    if kind == "restore":
        objective = RestoreObjective(load_backbone(network), losses)
    else:
        tiny = {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
        objective = RefineObjective(RefineWrapper(load_backbone(network), refiner=tiny), losses)
    keys, count = set(objective.state_dict()), len(list(objective.parameters()))
    objective.adversary = adversary()
    assert set(objective.state_dict()) == keys and len(list(objective.parameters())) == count
    output, target = images(0)
    terms = objective({"lq": output, "gt": target, "strength": torch.ones(2)})
    assert set(terms) == {"l1", "gan"}
    gradients = torch.autograd.grad(terms["gan"], list(objective.parameters()), allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    ((seen, truth),) = objective.take_seen()
    assert not seen.requires_grad and torch.equal(truth, target) and not objective.take_seen()
    objective.adversary.step([(seen, truth)])


PROCESS = """
import sys, torch
from accelerate import Accelerator
from refine_wrap.recipe import GanLoss
from refine_wrap.training.adversary import Adversary
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(100 + accelerator.process_index)
rival = Adversary(GanLoss(weight=1.0, features=4), accelerator, 0)
own = slice(2 * accelerator.process_index, 2 * accelerator.process_index + 2)
for step in range(3):
    output, target = torch.load(f"{sys.argv[1]}/{step}.pt")
    told = rival.step([(output[own], target[own])])
torch.save((rival.state(), told), f"{sys.argv[1]}/state{accelerator.process_index}.pt")
accelerator.end_training()
"""


@basicsr
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = adversary()
    for step in range(3):
        torch.save(images(step, 4), tmp_path / f"{step}.pt")
        told = one.step([images(step, 4)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)], env={**environment, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    (first, shown), (second, _) = (torch.load(tmp_path / f"state{rank}.pt") for rank in (0, 1))
    assert same(first, second)
    assert all(float(shown[name]) == pytest.approx(float(told[name]), rel=1e-4, abs=1e-6) for name in told)
    for name, tensor in one.network.state_dict().items():
        assert torch.allclose(tensor, first[f"network.{name}"], atol=2e-6), name
