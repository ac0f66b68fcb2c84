"""LoRA on backbones: where it goes, that it alone trains, that it merges away; and wrappers absorbed into backbones."""

from __future__ import annotations

import copy
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import family_backbone
from PIL import Image
from test_training import lines, small
from torch import Tensor, nn

from refine_wrap import Backbone, RefineWrapper, load_backbone
from refine_wrap.errors import CheckpointError, DataError, OutputError, RecipeError, RefineWrapError, TrainingError
from refine_wrap.recipe import Recipe
from refine_wrap.training import absorb, explained, finetune, gain_kept
from refine_wrap.training import distil as distil_module
from refine_wrap.training import trainer as trainer_module
from refine_wrap.training.checkpoint import load_checkpoint
from refine_wrap.training.data import ImageStore
from refine_wrap.training.distil import LowQualityData
from refine_wrap.training.lora import add_lora, lora_targets, lora_weights, merged, save_lora, without_lora
from refine_wrap.training.objectives import build_objective

TINY_DNCNN = {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 8, "act_mode": "R"}  # as short as spandrel recognises it
TINY_RRDB = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 32, "scale": 4}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine smooth pictures of 44 x 44."""
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (11, 11, 3), dtype=np.uint8)
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((44, 44), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def learned(backbone: Backbone) -> None:
    """As if LoRA had been trained."""
    for parameter in lora_weights(backbone).parameters():
        nn.init.normal_(parameter, std=0.05)


def lora_recipe(photos: Path, **changes: Any) -> Recipe:
    return small(photos, trainable=["lora"], lora={"rank": 2}, **changes)


# ---------------------------------------------------------------- where it goes


class Odd(nn.Module):
    """Layers that LoRA can go on, and many that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
        self.linear = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 1)
        self.strided = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), bias=False)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mirrored(self.dilated(self.depthwise(self.first(x))))
        flat = y.flatten(2).transpose(1, 2)
        flat = self.linear(flat + self.attention(flat, flat, flat)[0])
        y = flat.transpose(1, 2).reshape(y.shape)
        return x + self.last(self.strided(self.up(self.normed(y))))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_an_undeclared_network_gets_it_on_every_layer_that_can_take_it() -> None:
    body = Backbone(Odd(), {"scale": 1, "multiple_of": 1, "minimum": 1, "channels": 3}).eval()
    assert "lora" in body.assumed and body.spec.lora == (".*",)
    assert lora_targets(body) == ["first", "linear", "strided", "last"]
    add_lora(body, rank=3)
    learned(body)
    x = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(merged(body)(x), body(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("depthwise", "grouped"),
        ("dilated", "dilation"),
        ("mirrored", "padding mode"),
        (r"attention\.out_proj", "NonDynamicallyQuantizableLinear"),
        ("normed", "computes its weight"),
        ("up", "transposed"),
        ("frist", "names no layer"),
        ("irst", "names no layer"),
        ("fir", "names no layer"),
        ("(first", "regular expression"),
    ],
)
def test_a_target_that_cannot_be_is_refused_by_name(pattern: str, says: str) -> None:
    body = Backbone(Odd(), {"scale": 1, "multiple_of": 1, "minimum": 1, "channels": 3})
    before = copy.deepcopy(body.state_dict())
    with pytest.raises(RefineWrapError, match=says) as refused:
        add_lora(body, targets=["last", pattern])
    assert repr(pattern) in str(refused.value)
    assert body.state_dict().keys() == before.keys(), "nothing is put on by halves"


def spandrel_network(name: str, **options: Any) -> Backbone:
    from refine_wrap.backbone.load import _spandrel_classes

    torch.manual_seed(0)
    return Backbone(_spandrel_classes()[name](**options)).eval()


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 4}, 15 + 6),
        ("ESRGAN", {"num_filters": 8, "num_blocks": 2, "scale": 2}, 30 + 5),
        ("RCAN", {"scale": 4, "n_resgroups": 1, "n_resblocks": 2, "n_feats": 16}, 4 + 2 + 1 + 3),
        (
            "SwinIR",
            {"img_size": 16, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 8, "upscale": 4,
             "upsampler": "nearest+conv", "resi_connection": "3conv"},
            2 * (4 + 3) + 1 + 3 + 5,
        ),
    ],
)  # fmt: skip
def test_the_other_classes_of_a_family_have_their_targets_too(name: str, options: dict[str, Any], layers: int) -> None:
    body = spandrel_network(name, **options)
    assert not body.assumed, "declared"
    names = list(body.published_state_dict())
    assert len(add_lora(body, rank=2)) == layers
    learned(body)
    x = torch.rand(1, 3, 16, 16)
    plain = merged(body)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), body(x), atol=1e-5, rtol=1e-5)
    assert list(plain.published_state_dict()) == names


def test_a_second_lora_a_rank_of_nothing_and_a_missing_peft_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = family_backbone("DnCNN")
    with pytest.raises(RefineWrapError, match="rank"):
        add_lora(body, rank=0)
    add_lora(body)
    with pytest.raises(RefineWrapError, match="already"):
        add_lora(body)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RefineWrapError, match=r"pip install 'peft>=0\.14'"):
        add_lora(family_backbone("DnCNN"))


def test_lora_is_float32_beside_half_weights() -> None:
    body = family_backbone("SRVGG x2").bfloat16()
    add_lora(body, rank=2)
    assert {p.dtype for p in lora_weights(body).parameters()} == {torch.float32}
    body(torch.rand(1, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora_weights(body).parameters())
    assert {p.dtype for p in merged(body).parameters()} == {torch.bfloat16}


def test_alpha_scales_what_is_learned() -> None:
    x, outputs = torch.rand(1, 3, 8, 8), []
    for alpha in (None, 2.0, 4.0):
        body = family_backbone("DnCNN")
        add_lora(body, rank=2, alpha=alpha, targets=[r"model\.0"])
        torch.manual_seed(1)
        learned(body)
        plain = merged(body).published_state_dict()["model.0.weight"]
        outputs.append(plain - family_backbone("DnCNN").published_state_dict()["model.0.weight"])
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[2], 2 * outputs[0], atol=1e-6, rtol=1e-4)
    del x


def test_what_is_saved_is_what_peft_reads(tmp_path: Path) -> None:
    from peft import PeftModel

    body = family_backbone("RRDBNet x4")
    with pytest.raises(CheckpointError, match="no LoRA"):
        save_lora(body, tmp_path / "lora")
    add_lora(body, rank=2)
    learned(body)
    save_lora(body, tmp_path / "lora")
    theirs = PeftModel.from_pretrained(family_backbone("RRDBNet x4").module, tmp_path / "lora").eval()
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(theirs(x), body(x))
    with torch.no_grad():
        next(lora_weights(body).parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        save_lora(body, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainable": ["lora"], "objective": "refine"}, r"trainable is \[lora\] with objective refine"),
        ({"trainable": ["backbone"], "objective": "refine"}, r"\[refiner\]"),
        ({"trainable": ["refiner"]}, r"trainable is \[refiner\] with objective restore"),
        ({"trainable": ["backbone", "lora"]}, r"\[backbone\] or \[lora\]"),
        ({"trainable": []}, r"trainable is \[\]"),
        ({"trainable": ["head"]}, "one of backbone, lora, refiner"),
        ({"lora": {"rank": 4}}, r"lora is given.*\n.*trainable: \[lora\]"),
        ({"trainable": ["lora"], "lora": {"rank": 0}}, r"lora\.rank is 0"),
        ({"trainable": ["lora"], "lora": {"ranks": 4}}, r"lora\.rank"),
        ({"trainable": ["lora"], "lora": {"targets": []}}, r"lora\.targets is \[\]"),
    ],
)
def test_what_does_not_go_together_is_refused(photos: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        small(photos, **changes)


def test_refusals_name_the_line(photos: Path, tmp_path: Path) -> None:
    text = small(photos, trainable=["lora"]).to_yaml()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("objective: restore", "objective: refine"))
    number = next(i for i, line in enumerate(text.splitlines(), 1) if line.startswith("trainable:"))
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{number}: trainable") as refused:
        Recipe.load(path)
    assert "refine-wrap absorb" in str(refused.value)
    path.write_text(text.replace("targets: null", "targets: [cnov1]"))
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "targets:" in line)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{number}: .*'cnov1'.*\n.*conv"):
        build_objective(Recipe.load(path))


def test_the_defaults_are_said_and_the_same(photos: Path) -> None:
    assert small(photos).trainable is None
    for recipe in (small(photos), small(photos, trainable=["backbone"])):
        objective = build_objective(recipe)
        assert objective.trained() is objective.backbone.module
    assert build_objective(small(photos, objective="refine", trainable=["refiner"])).result == "adapter"


# ---------------------------------------------------------------- training


class Normed(nn.Module):
    """With norm statistics and dropout, which LoRA must leave as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.drop(self.norm(self.first(x))))


def test_only_lora_is_trained_checkpointed_and_averaged(photos: Path) -> None:
    recipe = lora_recipe(
        photos, backbone={"arch": f"{__name__}:Normed"}, validate_every=12, train__learning_rate=1e-2,
        data__validation={"gt": [str(photos)], "limit": 2, "pictures": 0},
    )  # fmt: skip
    before = build_objective(recipe).backbone
    state = copy.deepcopy(before.module.state_dict())
    names = {f"{layer}.lora_{part}.weight" for layer in ("first", "last") for part in "AB"}
    result = finetune(recipe, quiet=True)
    saved = load_checkpoint(recipe.folder / "checkpoints" / "step_00000012")
    assert set(saved.weights) == set(saved.average) == names
    assert all(bool(saved.weights[name].any()) for name in names), "B has moved away from zero"

    # The result is the plain network: the averaged LoRA in its weights, its norm statistics as they were.
    plain = load_backbone(result / "small.safetensors")
    ours = plain.published_state_dict()
    assert type(plain.module) is Normed
    for layer in ("first", "last"):
        a, b = (saved.average[f"{layer}.lora_{part}.weight"] for part in "AB")
        change = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
        torch.testing.assert_close(ours[f"{layer}.weight"], state[f"{layer}.base_layer.weight"] + change)
        assert torch.equal(ours[f"{layer}.bias"], state[f"{layer}.base_layer.bias"])
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight"):
        assert torch.equal(ours[f"norm.{name}"], state[f"norm.{name}"])

    # The small folder holds the same, and the metrics have the backbone before.
    from peft import PeftModel

    bare = Normed().eval()
    bare.load_state_dict({name.replace(".base_layer", ""): v for name, v in state.items() if ".lora_" not in name})
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        untrained = bare(x)
        again = PeftModel.from_pretrained(bare, result / "lora").eval()(x)
        torch.testing.assert_close(again, plain(x), atol=1e-5, rtol=0)
        assert not torch.allclose(again, untrained, atol=1e-3)
    metrics = {m["name"]: m["value"] for m in lines(recipe.folder, "validation")[-1]["metrics"]}
    assert {"PSNR", "PSNR backbone", "PSNR input"} <= set(metrics) and metrics["PSNR"] != metrics["PSNR backbone"]
    assert str(photos.parent) not in (result / "lora" / "adapter_config.json").read_text()


def test_gradients_reach_lora_alone_and_the_baseline_is_the_backbone(photos: Path) -> None:
    objective = build_objective(lora_recipe(photos, backbone={"arch": f"{__name__}:Normed"}))
    bare = copy.deepcopy(objective.backbone)
    objective.train()
    assert not any(module.training for module in objective.backbone.modules()), "dropout and statistics rest"
    view = objective.trained()
    learned(objective.backbone)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in view.parameters()}
    batch = {"lq": torch.rand(2, 3, 16, 16), "gt": torch.rand(2, 3, 16, 16), "strength": torch.rand(2)}
    sum(objective(batch).values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in objective.trained().parameters())
    assert all(p.grad is None for p in objective.backbone.parameters() if not p.requires_grad)
    with torch.no_grad(), without_lora(bare):
        assert torch.equal(objective.baseline(batch["lq"]), bare(batch["lq"]))
    assert not torch.equal(objective.predict(batch["lq"]), objective.baseline(batch["lq"]))
    assert all(p.requires_grad for p in objective.trained().parameters())


class InterruptedHereError(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = (lora_recipe(photos, output=str(photos.parent / name)) for name in ("whole", "parted"))
    finetune(whole, quiet=True)
    save = trainer_module.save_checkpoint

    def save_then_die(*arguments: Any) -> None:
        save(*arguments)
        raise InterruptedHereError

    monkeypatch.setattr(trainer_module, "save_checkpoint", save_then_die)
    with pytest.raises(InterruptedHereError):
        finetune(parted, quiet=True)
    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    finetune(parted, quiet=True)
    one, two = (load_checkpoint(r.folder / "checkpoints" / "step_00000012") for r in (whole, parted))
    assert one.weights and all(torch.equal(two.weights[name], value) for name, value in one.weights.items())
    assert all(torch.equal(two.average[name], value) for name, value in one.average.items())
    first, second = (load_backbone(r.folder / "backbone" / "small.safetensors") for r in (whole, parted))
    assert first.weights_hash() == second.weights_hash()


# ---------------------------------------------------------------- absorb


class Develop(nn.Module):
    """A refiner that is plain to see: more contrast, a tint, some sharpening, all in proportion to the strength."""

    def __init__(self) -> None:
        super().__init__()
        self.tint = nn.Parameter(torch.tensor([0.1, 0.0, -0.1]))

    def forward(self, image: Tensor, strength: Any, quality: Any = None) -> Tensor:
        sharp = image - F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
        change = 0.4 * (image - 0.5) + 0.5 * sharp + self.tint[:, None, None]
        return image + torch.as_tensor(strength, dtype=image.dtype).reshape(-1, 1, 1, 1) * change


def wrapped(arch: str, options: dict[str, Any], strength: float = 1.0) -> RefineWrapper:
    torch.manual_seed(0)
    return RefineWrapper(load_backbone(arch, options=options), refiner=Develop(), strength=strength).eval()


def frozen_state(wrapper: RefineWrapper) -> dict[str, Any]:
    return {
        "values": {name: value.clone() for name, value in wrapper.state_dict().items()},
        "grads": {name: p.requires_grad for name, p in wrapper.named_parameters()},
        "modes": [m.training for m in wrapper.modules()],
        "kinds": [type(m) for m in wrapper.modules()],
    }


# 0.53 and 0.99 were measured; without any training both are 0.
@pytest.mark.parametrize(
    ("arch", "options", "steps", "crop", "bound"),
    [("DnCNN", TINY_DNCNN, 200, 12, 0.4), ("RRDBNet", TINY_RRDB, 60, 8, 0.9)],
    ids=["DnCNN", "RRDB"],
)
def test_a_wrapper_is_absorbed_and_others_load_the_result(
    photos: Path, tmp_path: Path, arch: str, options: dict[str, Any], steps: int, crop: int, bound: float
) -> None:
    import spandrel

    from refine_wrap.tiling import trace_layers

    torch.set_num_threads(1)
    wrapper = wrapped(arch, options)
    wrapper.refiner.train()
    before = frozen_state(wrapper)
    plain = absorb(wrapper, photos, steps=steps, rank=8, crop=crop, batch_size=2, learning_rate=1e-2, quiet=True)
    after = frozen_state(wrapper)
    assert all(torch.equal(after["values"].pop(n), value) for n, value in before.pop("values").items())
    assert after.pop("values") == {} and after == before, "the wrapper is as it was"

    about = plain.source["absorbed"]
    assert (
        about["explained"] > bound and about["held_out"] == 2 and about["steps"] == steps and about["strength"] == 1.0
    )
    body = wrapper.backbone
    assert type(plain.module) is type(body.module) and not plain.training
    assert plain.structure_hash() == body.structure_hash() and plain.weights_hash() != body.weights_hash()
    macs = [trace_layers(b, 32, 32, device="cpu", dtype=torch.float32).macs for b in (plain, body)]
    assert macs[0] == macs[1]

    x = torch.rand(1, 3, 20, 20)
    for suffix in (".pth", ".safetensors"):
        file = plain.save_published(tmp_path / f"absorbed{suffix}")
        theirs = spandrel.ModelLoader().load_from_file(file)
        with torch.no_grad():
            expected = plain(x)
            torch.testing.assert_close(theirs.model.eval()(x), expected, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(load_backbone(file)(x), expected, atol=1e-6, rtol=1e-5)
    state = torch.load(tmp_path / "absorbed.pth", weights_only=True)
    assert list(state) == ["params_ema"] and list(state["params_ema"]) == list(body.published_state_dict())
    if arch == "RRDBNet":
        archs = pytest.importorskip("basicsr.archs.rrdbnet_arch")
        network = archs.RRDBNet(**options)
        network.load_state_dict(state["params_ema"], strict=True)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), expected, atol=1e-6, rtol=1e-5)


def test_the_strength_is_the_one_that_was_asked_for(photos: Path) -> None:
    wrapper = wrapped("DnCNN", TINY_DNCNN, strength=0.3)
    images = [torch.rand(3, 16, 16) * 0.5]
    options: dict[str, Any] = {
        "steps": 60,
        "rank": 4,
        "crop": 16,
        "batch_size": 2,
        "learning_rate": 5e-3,
        "quiet": True,
    }
    weak, strong = absorb(wrapper, photos, **options), absorb(wrapper, photos, strength=1.0, **options)
    assert (weak.source["absorbed"]["strength"], strong.source["absorbed"]["strength"]) == (0.3, 1.0)
    assert explained(wrapper, weak, images) > explained(wrapper, strong, images)
    assert explained(wrapper, strong, images, strength=1.0) > explained(wrapper, weak, images, strength=1.0)


def test_figures_are_what_they_say() -> None:
    wrapper = wrapped("DnCNN", TINY_DNCNN)
    images = [torch.rand(3, 12, 12), torch.rand(3, 9, 14)]
    assert explained(wrapper, wrapper.backbone, images) == 0.0

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return wrapper(x, 0.5)

    half = Backbone(Half(), {"scale": 1, "multiple_of": 1, "minimum": 1, "channels": 3})
    assert explained(wrapper, half, images) == pytest.approx(0.75, abs=1e-5), (
        "half of the way leaves a quarter of the square"
    )
    samples = [{"lq": image, "gt": wrapper(image[None], 0.9)[0].detach()} for image in images]
    kept = gain_kept(wrapper, half, samples)
    assert kept["backbone"] < kept["absorbed"] < kept["wrapped"]
    assert kept["kept"] == pytest.approx((kept["absorbed"] - kept["backbone"]) / (kept["wrapped"] - kept["backbone"]))
    nothing = [{"lq": image, "gt": wrapper.backbone(image[None])[0].detach() + 1e-3} for image in images]
    assert gain_kept(wrapper, half, nothing)["kept"] is None, "where the wrapper gains nothing there is no share of it"
    with pytest.raises(DataError):
        gain_kept(wrapper, half, [])


def test_it_goes_on_exactly_after_ctrl_c(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = wrapped("DnCNN", TINY_DNCNN)
    options: dict[str, Any] = {"steps": 10, "rank": 2, "crop": 16, "batch_size": 2, "quiet": True}
    whole = absorb(wrapper, photos, run=tmp_path / "a" / "new folder", log_every=2, **options)
    rate = distil_module.learning_rate

    def stop_at_four(step: int, schedule: Any) -> float:
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return rate(step, schedule)

    monkeypatch.setattr(distil_module, "learning_rate", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        absorb(wrapper, photos, run=tmp_path / "run", **options)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000005").step == 5
    monkeypatch.setattr(distil_module, "learning_rate", rate)
    with pytest.raises(RefineWrapError, match="learning_rate"):
        absorb(wrapper, photos, run=tmp_path / "run", learning_rate=1e-4, **options)
    parted = absorb(wrapper, photos, run=tmp_path / "run", **options)
    ours = parted.published_state_dict()
    assert all(torch.equal(ours[name], value) for name, value in whole.published_state_dict().items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 10


def test_losses_that_are_not_finite_stop_it_with_the_files_named(photos: Path) -> None:
    class Breaks(Develop):
        calls = 0

        def forward(self, image: Tensor, strength: Any, quality: Any = None) -> Tensor:
            Breaks.calls += 1
            return super().forward(image, strength) * (float("nan") if Breaks.calls > 6 else 1.0)

    wrapper = wrapped("DnCNN", TINY_DNCNN)
    wrapper.refiner = Breaks()
    with pytest.raises(TrainingError, match=r"not finite in 5 steps.*\.png"):
        absorb(wrapper, photos, steps=30, rank=2, crop=16, batch_size=2, quiet=True)


def test_what_cannot_be_absorbed_is_refused(photos: Path, tmp_path: Path) -> None:
    untrained = RefineWrapper(load_backbone("DnCNN", options=TINY_DNCNN)).eval()
    options: dict[str, Any] = {"steps": 2, "crop": 16, "batch_size": 2, "quiet": True}
    with pytest.raises(RefineWrapError, match="nothing to absorb"):
        absorb(untrained, photos, **options)
    with pytest.raises(RefineWrapError, match="nothing to absorb"):
        explained(untrained, untrained.backbone, [torch.rand(3, 8, 8)])
    wrapper = wrapped("DnCNN", TINY_DNCNN)
    with pytest.raises(DataError, match="held out"):
        absorb(wrapper, [photos / "0.png"], **options)
    with pytest.raises(DataError):
        absorb(wrapper, tmp_path / "nowhere", **options)
    with pytest.raises(OutputError, match=r"0\.png"):
        absorb(wrapper, photos, run=photos / "0.png", **options)
    with pytest.raises(RefineWrapError, match="steps is 0"):
        absorb(wrapper, photos, **{**options, "steps": 0})
    with pytest.raises(RefineWrapError, match="quality"):
        absorb(wrapper, photos, quality=0.5, **options)
    plain = wrapper.backbone
    with pytest.raises(CheckpointError, match=r"\.pth or \.safetensors"):
        plain.save_published(tmp_path / "weights.bin")
    with torch.no_grad():
        next(plain.parameters()).fill_(float("inf"))
    with pytest.raises(CheckpointError, match="not finite"):
        plain.save_published(tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def test_files_and_data_sets_are_held_apart(photos: Path) -> None:
    wrapper = wrapped("DnCNN", TINY_DNCNN)
    options: dict[str, Any] = {"steps": 1, "rank": 1, "batch_size": 2, "quiet": True}
    files = sorted(photos.iterdir())
    data = LowQualityData(ImageStore([(file,) for file in files[1:]], 10**8), crop=16)
    assert torch.equal(data[0, 3]["lq"], data[0, 3]["gt"]) and data[0, 3]["lq"].shape == (3, 16, 16)
    assert "explained" not in absorb(wrapper, data, **options).source["absorbed"]
    assert absorb(wrapper, data, held_out=files[:1], **options).source["absorbed"]["held_out"] == 1
    train, measured = distil_module._data(photos, None, 16, 0)
    names = [{row[0] for row in part.store.rows} for part in (train, measured)]
    assert names[1] == {files[0], files[8]} and names[0] == set(files) - names[1]


def test_the_command_line(photos: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from refine_wrap.cli.main import app

    body = load_backbone("RRDBNet", options=TINY_RRDB)
    body.save_published(tmp_path / "body.safetensors")
    wrapper = RefineWrapper(body, refiner={"preset": "ornet-lite", "width": 4})
    nn.init.normal_(wrapper.refiner.ending.weight, std=0.1)
    wrapper.save_pretrained(tmp_path / "adapter")

    def call(*more: str, out: str = "out.pth") -> Any:
        given = [
            "absorb",
            tmp_path / "adapter",
            "-d",
            photos,
            "-o",
            tmp_path / out,
            "-b",
            tmp_path / "body.safetensors",
        ]
        return CliRunner().invoke(app, [*map(str, given), "--steps", "2", "--rank", "2", "--crop", "8", "-q", *more])

    assert call(out="out.bin").exit_code == 2
    done = call()
    assert done.exit_code == 0, done.output
    assert "held-out" in done.output
    assert load_backbone(tmp_path / "out.pth").structure_hash() == body.structure_hash()
    again = call()
    assert again.exit_code == 1 and "--overwrite" in again.output
    assert call("--overwrite", "--strength", "2").exit_code == 2
    assert call("--overwrite").exit_code == 0
