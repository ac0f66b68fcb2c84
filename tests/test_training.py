"""Fine-tuning: data, losses, the loop, checkpoints, and what each shipped recipe makes of one step."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from refine_wrap import RefineWrapper, load_backbone
from refine_wrap.cli.main import app
from refine_wrap.degradation import Blur, Degradation, Jpeg, Noise
from refine_wrap.errors import CheckpointError, DataError, OutputError, RecipeError, RefineWrapError, TrainingError
from refine_wrap.recipe import Recipe
from refine_wrap.training import DegradedData, PairedData, finetune
from refine_wrap.training import trainer as trainer_module
from refine_wrap.training.checkpoint import Average, load_checkpoint, newest_checkpoint
from refine_wrap.training.data import ImageStore, StepBatches, loader, step_keys
from refine_wrap.training.losses import weighted_losses
from refine_wrap.training.objectives import build_objective
from refine_wrap.training.trainer import learning_rate

ROOT = Path(__file__).resolve().parent.parent
SIDE = 40


def save_image(path: Path, seed: int, height: int = SIDE, width: int = SIDE) -> Path:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    pixels = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        save_image(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


TINY_NAFNET = {"width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
TINY_REFINER = {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
TINY_RRDB = "{num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, num_grow_ch: 32, scale: %d}"


def small(photos: Path, **changes: Any) -> Recipe:
    """A recipe that trains in a second; `changes` by dotted keys with `__` for the dot."""
    values: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "objective": "restore",
        "backbone": {"arch": "NAFNet", "options": TINY_NAFNET},
        "data": {
            "train": {"gt": [str(photos)]},
            "degradation": {"noise": {"sigma": [5, 25]}},
            "crop": 16,
        },
        "train": {
            "steps": 12,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "ema": 0.9,
            "gradient_clip": 1.0,
            "device": "cpu",
            "threads": 1,
            "log_every": 4,
        },
        "save_every": 4,
        "output": str(photos.parent / "run"),
    }
    for name, value in changes.items():
        place = values
        *above, last = name.split("__")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return Recipe.from_dict(values)


def final_weights(run: Path, step: int = 12) -> dict[str, Tensor]:
    return load_checkpoint(run / "checkpoints" / f"step_{step:08d}").weights


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


class DropNet(nn.Module):
    """Draws from torch's own generator at every step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(width), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.drop(self.norm(self.first(x))))


class SometimesNaN(nn.Module):
    """Not a number at the training steps that are listed."""

    bad: Sequence[int] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 3, 1), -1

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.training:
            self.calls += 1
            y = y * float("nan") if self.calls in self.bad else y
        return y


# ---------------------------------------------------------------- losses


def test_losses_are_what_they_say() -> None:
    target = torch.full((2, 3, 64, 64), 0.5)
    output = target + 0.1
    terms = weighted_losses(output, target, {"l1": 1.0, "mse": 2.0, "charbonnier": 1.0})
    assert float(terms["l1"]) == pytest.approx(0.1, rel=1e-5)
    assert float(terms["mse"]) == pytest.approx(0.02, rel=1e-5)
    assert float(terms["charbonnier"]) == pytest.approx((0.01 + 1e-6) ** 0.5, rel=1e-5)
    noisy = target + 0.1 * torch.randn(target.shape)
    assert float(weighted_losses(noisy, target, {"fft": 1.0})["fft"]) == pytest.approx(0.0564, rel=0.03)


def test_fft_weight_means_the_same_for_every_size() -> None:
    values = []
    for side in (32, 128):
        target = torch.full((8, 3, side, side), 0.5)
        values.append(float(weighted_losses(target + 0.05 * torch.randn(target.shape), target, {"fft": 1.0})["fft"]))
    assert values[0] == pytest.approx(values[1], rel=0.05)


def test_losses_are_float32_inside_autocast() -> None:
    target = torch.rand(1, 3, 8, 8)
    output = (target + 1e-4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        term = weighted_losses(output, target, {"mse": 1.0})["mse"]
    assert term.dtype == torch.float32 and float(term.detach()) == pytest.approx(1e-8, rel=0.01)
    half = weighted_losses(output.bfloat16(), target.bfloat16(), {"mse": 1.0, "fft": 1.0})
    assert {term.dtype for term in half.values()} == {torch.float32}


def test_losses_refuse_other_ranges_and_shapes() -> None:
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(DataError, match="values from -1"):
        weighted_losses(image, image * 0 - 1, {"l1": 1.0})
    with pytest.raises(RefineWrapError, match="output of"):
        weighted_losses(image[..., :4], image, {"l1": 1.0})
    with pytest.raises(RefineWrapError, match="lpips"):
        weighted_losses(image, image, {"lpips": 1.0})


# ---------------------------------------------------------------- data


def store(folder: Path, cache: float = 1.0) -> ImageStore:
    return ImageStore([(path,) for path in sorted(folder.iterdir())], int(cache * 1e9))


ALL_PARTS = Degradation(
    scale=2, blur=Blur(), noise=Noise(kind="poisson-gaussian", correlation=[0.3, 0.6]), jpeg=Jpeg(quality=[40, 90])
)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(v, second[k]) if isinstance(v, Tensor) else v == second[k] for k, v in first.items())


def test_draws_depend_on_seed_epoch_and_index_alone(photos: Path) -> None:
    first = DegradedData(store(photos), ALL_PARTS, crop=16, seed=5)
    second = DegradedData(store(photos, cache=0), ALL_PARTS, crop=16, seed=5)  # decoded anew, asked in another order
    samples = {key: first[key] for key in [(0, 0), (0, 1), (3, 1)]}
    assert all(same(samples[key], second[key]) for key in reversed(samples))
    assert not torch.equal(samples[0, 1]["gt"], samples[3, 1]["gt"])
    other = DegradedData(store(photos), ALL_PARTS, crop=16, seed=6)
    assert not same(samples[0, 0], other[0, 0])


def test_workers_change_nothing(photos: Path) -> None:
    data = DegradedData(store(photos), ALL_PARTS, crop=16)
    batches = StepBatches(len(data), 3, 0, 0, 3)
    alone, helped = (list(loader(data, batches, workers)) for workers in (0, 2))
    assert len(alone) == 3 and all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_samples_have_the_right_shapes_and_ranges(photos: Path) -> None:
    sample = DegradedData(store(photos), ALL_PARTS, crop=24, strength=(0.2, 0.4))[0, 2]
    assert sample["gt"].shape == (3, 24, 24) and sample["lq"].shape == (3, 12, 12)
    for image in (sample["lq"], sample["gt"]):
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert 0.2 <= float(sample["strength"]) <= 0.4 and sample["name"].endswith("2.png")


def test_an_epoch_takes_every_sample_once() -> None:
    keys = [key for step in range(10) for key in step_keys(6, 3, 0, step)]
    assert sorted(keys[:6]) == [(0, i) for i in range(6)] and sorted(keys[6:12]) == [(1, i) for i in range(6)]
    assert [i for _, i in keys[:6]] != [i for _, i in keys[6:12]]


def test_processes_share_the_batches_of_one() -> None:
    whole = list(StepBatches(7, 4, 0, 2, 5))
    parts = [list(StepBatches(7, 4, 0, 2, 5, rank, 2)) for rank in range(2)]
    assert whole == [a + b for a, b in zip(*parts, strict=True)]


def pairs(folder: Path, scale: int, sizes: list[tuple[int, int]]) -> list[tuple[Path, ...]]:
    """Ground truth that is the low quality with its pixels repeated: any misalignment shows."""
    rows: list[tuple[Path, ...]] = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        gt, lq = folder / "gt" / f"{number}.png", folder / "lq" / f"{number}.png"
        for path, image in ((gt, pixels.repeat(scale, 0).repeat(scale, 1)), (lq, pixels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        rows.append((gt, lq))
    return rows


@pytest.mark.filterwarnings("ignore:.*smaller than the crop")
def test_pairs_stay_aligned_flipped_turned_and_mirrored(tmp_path: Path) -> None:
    data = PairedData(ImageStore(pairs(tmp_path, 3, [(20, 31), (5, 9)]), 10**9), scale=3, crop=36, samples_per_image=8)
    seen = set()
    for index in range(len(data)):
        sample = data[0, index]
        assert sample["gt"].shape == (3, 36, 36)
        assert torch.equal(sample["gt"], sample["lq"].repeat_interleave(3, 1).repeat_interleave(3, 2))
        seen.add(sample["lq"].numpy().tobytes())
    assert len(seen) >= 10  # crops and orientations differ; the small image has only its orientations


def test_small_images_are_named(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"1 of 2 images are smaller.*1\.png"):
        PairedData(ImageStore(pairs(tmp_path, 2, [(30, 30), (6, 30)]), 10**9), scale=2, crop=32)


def test_degraded_and_ground_truth_are_aligned(tmp_path: Path) -> None:
    """Bicubic only: the low quality of a crop is near the mean of each block of its ground truth."""
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([x * 3, y * 3, 255 - x - y], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    data = DegradedData(store(tmp_path), Degradation(scale=4), crop=16, samples_per_image=12)
    for index in range(12):
        sample = data[0, index]
        blocks = torch.nn.functional.avg_pool2d(sample["gt"][None], 4)[0]
        assert (blocks - sample["lq"]).abs().max() < 1.5 / 255


@pytest.mark.parametrize("scale", [1, 2])
def test_jpeg_blocks_begin_at_the_corner_of_every_crop(tmp_path: Path, scale: int) -> None:
    """As in a file, wherever in the photo the crop lies: the steps between blocks show where they begin."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    colours.resize((160, 160), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    rough = Degradation(scale=scale, blur=Blur(sigma=[0.7, 0.7]), jpeg=Jpeg(quality=[5, 5]))
    data = DegradedData(store(tmp_path), rough, crop=64 * scale, samples_per_image=20, rotations=False, flips=False)
    corners = set()
    for index in range(20):
        sample = data[index]
        corners.add(tuple((sample["place"][:2] % (16 * scale)).tolist()))
        for axis in (1, 2):
            steps = sample["lq"].diff(dim=axis).abs().mean([dim for dim in (0, 1, 2) if dim != axis])
            between = steps[7::8].mean()
            assert between > 2 * steps[[n for n in range(len(steps)) if n % 8 != 7]].mean()
    assert len(corners) > 10


def test_validation_draws_are_fixed_and_central(photos: Path) -> None:
    data = DegradedData(store(photos), Degradation(noise=Noise()), crop=16, fixed=True)
    with Image.open(photos / "0.png") as image:
        middle = np.asarray(image)[12:28, 12:28]
    gt = (data[0]["gt"] * 255).round().byte().numpy().transpose(1, 2, 0)
    assert np.array_equal(gt, middle)
    assert same(data[0], data[0])
    large = DegradedData(store(photos), Degradation(), crop=400, fixed=True)
    assert large[0]["gt"].shape == (3, SIDE, SIDE)


def test_grey_16_bit_images_are_used_in_full(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    gt = DegradedData(store(tmp_path), Degradation(), crop=32, flips=False, rotations=False)[0]["gt"]
    assert gt.shape == (3, 32, 32) and torch.equal(gt[0], gt[2])
    assert torch.allclose(gt[0], torch.from_numpy(values / 65535).float(), atol=1e-6)


def test_unreadable_files_are_named_and_left_out(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"not an image")
    with pytest.warns(RuntimeWarning, match=r"1 of 4 .*0\.png.*left out"):
        data = DegradedData(store(photos), Degradation(), crop=16)
    assert len(data) == 3 and {data[0, i]["name"][-5:] for i in range(3)} == {"1.png", "2.png", "3.png"}
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"2 of 4 .*0\.png, .*2\.png"):
        store(photos)


def test_a_file_that_fails_only_when_decoded_is_replaced_by_the_next(photos: Path) -> None:
    whole = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(whole[: len(whole) - 40])  # the header is sound
    data = DegradedData(store(photos, cache=0), Degradation(), crop=16)
    assert len(data) == 4
    with pytest.warns(RuntimeWarning, match=r"1\.png"):
        sample = data[0, 1]
    assert sample["name"].endswith("2.png")


def test_a_single_broken_file_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1"):
        store(tmp_path)


def test_the_cache_keeps_to_its_limit(photos: Path) -> None:
    size = SIDE * SIDE * 3
    kept = ImageStore([(path,) for path in sorted(photos.iterdir())], 2 * size + 10)
    assert kept.used == 2 * size and len(kept.kept) == 2 and len(kept.sizes) == 4


def test_pairs_of_another_scale_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 pairs are not of scale 2: .*gt.0\.png \(60x60\).*lq.0\.png \(20x20\)"):
        PairedData(ImageStore(pairs(tmp_path, 3, [(20, 20)]), 10**9), scale=2, crop=16)


def test_unpaired_folders_are_refused(tmp_path: Path) -> None:
    rows = pairs(tmp_path, 1, [(32, 32), (32, 32)])
    rows[1][1].unlink()
    folders = {"gt": [str(tmp_path / "gt")], "lq": [str(tmp_path / "lq")]}
    recipe = small(tmp_path / "gt", data__degradation=None, data__train=folders)
    with pytest.raises(DataError, match=r"1 without a low-quality partner.*1\.png"):
        finetune(recipe, quiet=True)
    assert not recipe.folder.exists()


# ---------------------------------------------------------------- the loop


def test_training_helps_and_writes_what_it_promises(photos: Path) -> None:
    recipe = small(
        photos, train__steps=60, train__learning_rate=5e-3, train__batch_size=4, train__log_every=10, validate_every=30,
        save_every=20, data__validation={"gt": [str(photos)], "limit": 2, "pictures": 1},
    )  # fmt: skip
    result = finetune(recipe, quiet=True)
    run = recipe.folder
    assert result == run / "backbone"
    steps = lines(run, "train")
    assert [line["step"] for line in steps] == [10, 20, 30, 40, 50, 60]
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert {"loss", "losses", "learning_rate", "seconds_per_step", "data_wait_share", "skipped"} <= set(steps[0])
    first, last = ({m["name"]: m["value"] for m in line["metrics"]} for line in lines(run, "validation"))
    assert last["PSNR"] > first["PSNR"] and last["PSNR input"] == first["PSNR input"]
    assert len(list((run / "pictures" / "step_00000060").glob("*.png"))) == 1
    with Image.open(next((run / "pictures" / "step_00000060").glob("*.png"))) as picture:
        assert picture.size == (3 * SIDE, SIDE)  # low quality, output, ground truth
    assert Recipe.load(run / "recipe.yaml") == recipe
    about = json.loads((run / "run.json").read_text())
    assert about["seed"] == 0 and about["versions"]["torch"] == torch.__version__ and about["training_images"] == 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000040", "step_00000060"]


def test_the_result_is_the_average_and_load_backbone_reads_it(photos: Path) -> None:
    recipe = small(photos)
    result = finetune(recipe, quiet=True)
    backbone = load_backbone(result / "small.safetensors")
    saved = load_checkpoint(recipe.folder / "checkpoints" / "step_00000012")
    ours = backbone.published_state_dict()
    assert all(torch.equal(ours[name], value) for name, value in saved.average.items())
    assert any(not torch.equal(value, saved.average[name]) for name, value in saved.weights.items())
    about = json.loads((result / "backbone.json").read_text())
    assert str(photos.parent) not in json.dumps(about)  # nothing of this machine
    assert about["weights"] == backbone.weights_hash() and about["arch"] == "NAFNet" and about["options"] == TINY_NAFNET


def test_a_network_that_nobody_recognises_is_rebuilt_from_its_file(photos: Path) -> None:
    recipe = small(photos, backbone={"arch": f"{__name__}:DropNet", "options": {"width": 5}}, train__steps=2)
    backbone = load_backbone(finetune(recipe, quiet=True) / "small.safetensors")
    assert isinstance(backbone.module, DropNet) and backbone.module.first.out_channels == 5


def test_refine_trains_the_refiner_alone(photos: Path) -> None:
    started = (
        finetune(small(photos, train__steps=2, output=str(photos.parent / "first")), quiet=True) / "small.safetensors"
    )
    recipe = small(
        photos, objective="refine", backbone={"weights": str(started)}, train__steps=8,
        refiner={"preset": None, "options": TINY_REFINER},
        strength={"train": [0.0, 1.0], "default": 0.6}, data__sources=[{"name": "Squares", "licence": "CC0-1.0"}],
        data__validation={"gt": [str(photos)], "limit": 2}, licence="MIT",
    )  # fmt: skip
    adapter = finetune(recipe, quiet=True)
    backbone = load_backbone(started)
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=backbone)
    assert wrapper.strength == 0.6
    image = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert not torch.equal(wrapper(image), backbone(image))  # it learned something
        with wrapper.disabled():
            assert torch.equal(wrapper(image), load_backbone(started)(image))  # the backbone did not
    saved = json.loads((adapter / "adapter.json").read_text())
    names = {metric["name"] for metric in saved["metrics"]}
    assert {"PSNR", "SSIM", "PSNR backbone", "SSIM backbone"} <= names
    assert all(metric["protocol"] and metric["data"] for metric in saved["metrics"])
    assert saved["recipe"]["name"] == "small" and saved["data"] == [{"name": "Squares", "licence": "CC0-1.0"}]


def test_refine_draws_the_strength_of_every_sample(photos: Path) -> None:
    objective = build_objective(small(photos, objective="refine", refiner={"preset": None, "options": TINY_REFINER}))
    seen = []
    objective.trained().register_forward_hook(lambda module, given, result: seen.append(given[1]))
    strengths = torch.tensor([0.1, 0.9])
    objective({"lq": torch.rand(2, 3, 16, 16), "gt": torch.rand(2, 3, 16, 16), "strength": strengths})
    assert torch.equal(seen[0], strengths)
    trained = {id(parameter) for parameter in objective.parameters()}
    assert trained == {id(parameter) for parameter in objective.trained().parameters()}


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_a_plain_network_without_weights_starts_with_a_signal(photos: Path, activation: str) -> None:
    options = {"num_feat": 16, "num_conv": 16, "upscale": 2, "act_type": activation}
    recipe = small(photos, backbone={"arch": "SRVGGNetCompact", "options": options}, data__degradation={"scale": 2})

    @torch.no_grad()
    def detail(backbone: Any) -> float:
        """How much of an image, and not of the biases alone, is in what is added to the interpolation."""
        image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        first, second = backbone(image) - nn.functional.interpolate(image, scale_factor=2)
        return float((first - second).std())

    started = build_objective(recipe)
    # torch's own first weights leave nothing of the image in the last of 16 layers: they do not begin to learn.
    assert detail(load_backbone("SRVGGNetCompact", options=options)) < 1e-6 < 1e-3 < detail(started.backbone) < 0.1
    again = build_objective(recipe).trained().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in started.trained().state_dict().items())


def test_weights_that_are_given_are_not_started_anew(photos: Path, tmp_path: Path) -> None:
    options = {"num_feat": 4, "num_conv": 2, "upscale": 2}
    body = load_backbone("SRVGGNetCompact", options=options)
    file = body.save_published(tmp_path / "body.safetensors")
    recipe = small(photos, backbone={"weights": str(file)}, data__degradation={"scale": 2})
    assert build_objective(recipe).backbone.weights_hash() == body.weights_hash()


def test_a_validation_that_never_moves_is_told(photos: Path) -> None:
    still = {"train__learning_rate": 1e-30, "train__final_learning_rate": 0.0, "validate_every": 4}
    data = {"data__validation": {"gt": [str(photos)], "crop": 16, "limit": 1}}
    with pytest.warns(RuntimeWarning, match="to the last digit"):
        finetune(small(photos, **still, **data), quiet=True)


@pytest.mark.parametrize("objective", ["restore", "refine", "gan"])
def test_seven_and_five_steps_are_twelve(photos: Path, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with a network that draws for itself and has norm statistics; EMA and warm-up take part."""
    backbone = {"arch": f"{__name__}:DropNet"}
    common: dict[str, Any] = {"backbone": backbone, "refiner": {"preset": None, "options": TINY_REFINER}}
    if objective == "gan":
        pytest.importorskip("basicsr")
        common["losses"] = {"l1": 1.0, "gan": {"weight": 0.1, "features": 8}}
    common["objective"] = "restore" if objective == "gan" else objective
    warnings.simplefilter("ignore", RuntimeWarning)
    straight = small(photos, **common, output=str(photos.parent / "straight"))
    finetune(straight, quiet=True)
    halting = small(photos, **common, output=str(photos.parent / "halting"))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            finetune(halting, quiet=True)
    assert (halting.folder / "checkpoints" / "step_00000007").is_dir()
    torch.manual_seed(99)  # another state of chance must not matter
    finetune(halting, quiet=True)
    one, two = (load_checkpoint(r.folder / "checkpoints" / "step_00000012") for r in (straight, halting))
    assert one.weights and all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert one.average and all(torch.equal(value, two.average[name]) for name, value in one.average.items())
    assert bool(one.adversary) == (objective == "gan")
    assert all(torch.equal(value, two.adversary[name]) for name, value in one.adversary.items())
    assert [line["step"] for line in lines(halting.folder, "train")] == [4, 8, 12]


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C in the middle of a step."""
    plain, calls = trainer_module._split, []

    def split(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    patch.setattr(trainer_module, "_split", split)


def test_a_killed_run_loses_only_the_steps_since_its_checkpoint(photos: Path) -> None:
    recipe = small(photos)
    finetune(recipe, quiet=True)
    whole = final_weights(recipe.folder)
    shutil.rmtree(recipe.folder / "checkpoints" / "step_00000012")  # as if killed before it
    (recipe.folder / "metrics.jsonl").open("a").write('{"kind": "train", "st')
    finetune(recipe, quiet=True)
    assert all(torch.equal(value, whole[name]) for name, value in final_weights(recipe.folder).items())
    assert [line["step"] for line in lines(recipe.folder, "train")] == [4, 8, 12]


@pytest.mark.parametrize("damage", ["truncated", "changed", "no state"])
def test_a_broken_newest_checkpoint_falls_back(photos: Path, damage: str) -> None:
    recipe = small(photos)
    finetune(recipe, quiet=True)
    newest = recipe.folder / "checkpoints" / "step_00000012"
    path = newest / ("state.json" if damage == "no state" else "weights.safetensors")
    content = path.read_bytes()
    if damage == "no state":
        path.unlink()
    else:
        path.write_bytes(content[:100] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(RuntimeWarning, match="step_00000012"):
        found = newest_checkpoint(newest.parent)
    assert found is not None and found.step == 8


def test_only_broken_checkpoints_are_refused(photos: Path) -> None:
    recipe = small(photos)
    finetune(recipe, quiet=True)
    for path in (recipe.folder / "checkpoints").iterdir():
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="No checkpoint"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finetune(recipe, quiet=True)


def test_a_full_disk_leaves_the_checkpoint_before(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(photos)
    import refine_wrap.training.checkpoint as checkpoint

    plain, calls = checkpoint._sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) > 5:  # the first checkpoint has five files
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path)

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OutputError, match="step_00000008 cannot be written: the disk is full"):
        finetune(recipe, quiet=True)
    assert [path.name for path in (recipe.folder / "checkpoints").iterdir()] == ["step_00000004"]
    assert newest_checkpoint(recipe.folder / "checkpoints") is not None


def test_resuming_with_another_recipe_is_refused(photos: Path) -> None:
    finetune(small(photos), quiet=True)
    with pytest.raises(RecipeError, match=r"train\.learning_rate \(0\.001 then, 0\.01 now\)"):
        finetune(small(photos, train__learning_rate=1e-2), quiet=True)
    with pytest.raises(OutputError, match="holds a run"):
        finetune(small(photos), quiet=True, resume="never")
    finetune(small(photos, train__log_every=2, save_every=3), quiet=True)  # these may change


def test_a_step_that_is_not_finite_is_skipped(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SometimesNaN, "bad", [0, 1, 2, 3, 5])  # four in a row, then one
    recipe = small(photos, backbone={"arch": f"{__name__}:SometimesNaN"})
    finetune(recipe, quiet=True)
    assert [line["skipped"] for line in lines(recipe.folder, "train")] == [4, 1, 0]
    assert all(bool(torch.isfinite(value).all()) for value in final_weights(recipe.folder).values())


def test_five_in_a_row_stop_and_name_the_files(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SometimesNaN, "bad", range(6, 12))
    recipe = small(photos, backbone={"arch": f"{__name__}:SometimesNaN"})
    with pytest.raises(TrainingError, match=r"5 steps in a row, up to step 11.*\.png") as caught:
        finetune(recipe, quiet=True)
    assert caught.value.exit_code == 1 and "checkpoints" in str(caught.value)
    assert newest_checkpoint(recipe.folder / "checkpoints").step == 8  # type: ignore[union-attr]


def test_a_nan_image_is_skipped_not_learned(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DegradedData.make

    def make(self: DegradedData, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        sample = plain(self, row, rng)
        return sample | {"gt": sample["gt"] * float("nan")} if row == 0 else sample

    monkeypatch.setattr(DegradedData, "make", make)
    recipe = small(photos, train__batch_size=1)
    finetune(recipe, quiet=True)
    assert sum(line["skipped"] for line in lines(recipe.folder, "train")) == 3  # every fourth sample of twelve
    assert all(bool(torch.isfinite(value).all()) for value in final_weights(recipe.folder).values())


def test_accumulated_parts_equal_the_whole(photos: Path) -> None:
    one = small(photos, train__batch_size=4, train__steps=3, output=str(photos.parent / "one"))
    four = small(photos, train__batch_size=4, train__steps=3, train__accumulate=4, output=str(photos.parent / "four"))
    for recipe in (one, four):
        finetune(recipe, quiet=True)
    first, second = (final_weights(recipe.folder, 3) for recipe in (one, four))
    assert all(torch.allclose(value, second[name], atol=2e-5) for name, value in first.items())
    assert lines(one.folder, "train")[0]["loss"] == pytest.approx(lines(four.folder, "train")[0]["loss"], rel=1e-4)


def test_bf16_and_channels_last(photos: Path) -> None:
    recipe = small(photos, train__precision="bf16", train__channels_last=True, train__steps=2)
    finetune(recipe, quiet=True)
    weights = final_weights(recipe.folder, 2)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in weights.values())


def test_the_average_follows_and_gives_the_weights_back() -> None:
    layer = nn.Conv2d(1, 1, 1)
    average = Average(layer, 0.5)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    before = average.values["weight"].clone()
    average.update()
    decay = 2 / 11  # (1 + n) / (10 + n) at n = 1
    assert torch.allclose(average.values["weight"], decay * before + (1 - decay))
    with average.applied():
        assert torch.equal(layer.weight, average.values["weight"])
    assert float(layer.weight) == 1.0


def test_learning_rates() -> None:
    def rates(**options: Any) -> list[float]:
        values = {"steps": 10, "learning_rate": 1.0, "final_learning_rate": 0.0, **options}
        train = Recipe.load("demo_denoiser").train.model_copy(update={"warmup_steps": 0, **values})
        return [learning_rate(step, train) for step in range(10)]

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="constant", warmup_steps=3)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(schedule="multistep", milestones=[0.5, 0.8], gamma=0.1) == pytest.approx(
        [1.0] * 5 + [0.1] * 3 + [0.01] * 2
    )
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5) and 0 < cosine[9] < 0.03
    assert rates(schedule="constant", warmup_steps=500)[5] == 1.0  # at most half of the run


@pytest.mark.parametrize(
    ("override", "line", "message"),
    [
        (f"backbone={{arch: RRDBNet, options: {TINY_RRDB % 2}}}",
         8, r"scale is 1, the backbone's scale is 2"),
        ("train.precision=fp16", None, "train.precision is fp16 on a CPU"),
        ("train.batch_size=6", None, "divisor"),
        ("backbone.options={breadth: 4}", None, "cannot be built"),
        ("backbone.arch=NAFNot", None, "NAFNet"),
        ("data.train.gt=[nowhere]", None, "nowhere does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    photos: Path, override: str, line: int | None, message: str
) -> None:
    path = photos.parent / "recipe.yaml"
    path.write_text(
        "version: 1\nname: small\nobjective: restore\n"
        "backbone: {arch: NAFNet, options: {width: 4, enc_blk_nums: [1], dec_blk_nums: [1]}}\ndata:\n"
        f"  train: {{gt: [{photos}]}}\n  degradation:\n    scale: 1\n  crop: 16\n"
        f"train: {{steps: 1, batch_size: 4, accumulate: 4, device: cpu}}\noutput: {photos.parent / 'run'}\n"
    )
    with pytest.raises(RefineWrapError, match=message) as caught:
        finetune(Recipe.load(path, [override]), quiet=True)
    if line is not None:
        assert f"recipe.yaml:{line}: " in str(caught.value)
    assert not (photos.parent / "run").exists()


def test_an_output_that_cannot_be_written(photos: Path) -> None:
    (photos.parent / "run").write_text("in the way")
    with pytest.raises(OutputError):
        finetune(small(photos), quiet=True)


def test_two_runs_in_one_folder(photos: Path) -> None:
    from refine_wrap.manifests import locked

    recipe = small(photos)
    with locked(recipe.folder / "run.json"):
        with pytest.raises(OutputError, match=r"run\.json is locked by another process"):
            finetune(recipe, quiet=True)
        assert not (recipe.folder / "metrics.jsonl").exists()
    finetune(recipe, quiet=True)


# ---------------------------------------------------------------- Ctrl-C from outside

SCRIPT = """
import sys
from refine_wrap.recipe import Recipe
from refine_wrap.training import finetune
finetune(Recipe.load(sys.argv[1]))
"""


def test_ctrl_c_saves(photos: Path) -> None:
    recipe = small(photos, train__steps=100000, train__log_every=1, train__workers=1, save_every=50000)
    path = photos.parent / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        metrics = recipe.folder / "metrics.jsonl"
        end = time.monotonic() + 120
        while not (metrics.is_file() and metrics.read_text().count("\n") > 3) and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and process.returncode not in (0, 1), said[-2000:]
    saved = newest_checkpoint(recipe.folder / "checkpoints")
    assert saved is not None and saved.step >= 3
    assert saved.step == lines(recipe.folder, "train")[-1]["step"]


# ---------------------------------------------------------------- the shipped recipes

WINDOWED = "upscale: 4, img_size: 16, window_size: 8, depths: [1], num_heads: [2], embed_dim: 8, mlp_ratio: 2"
NAFNET = "{width: 4, enc_blk_nums: [1, 1], middle_blk_num: 1, dec_blk_nums: [1, 1]}"
TINY = {
    "swinir_x4": f"backbone.options={{{WINDOWED}, upsampler: pixelshuffle}}",
    "hat_x4": f"backbone.options={{{WINDOWED}, upsampler: pixelshuffle, compress_ratio: 2, squeeze_factor: 4, "
    "overlap_ratio: 0.5}",
    "nafnet_denoise": f"backbone.options={NAFNET}",
    "nafnet_deblur": f"backbone.options={NAFNET}",
    "esrgan_x4": f"backbone.options={TINY_RRDB % 4}",
    "undertrained_x4": f"backbone.options={TINY_RRDB % 4}",
    "edsr_x4": "backbone.options={num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 4}",
    "sr_x2": "backbone.options={num_feat: 4, num_conv: 1, upscale: 2}",
    "custom_template": f"backbone.arch={__name__}:DropNet",
    "demo_denoiser": "backbone.options.width=4",
    "demo_refiner": f"backbone={{arch: NAFNet, options: {NAFNET}}}",
}
SHIPPED = sorted(path.stem for path in (ROOT / "adapters").glob("*.yaml"))


@pytest.mark.parametrize("objective", ["refine", "restore"])
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.filterwarnings("ignore:.*(has no weights|smaller than the crop)")
def test_a_shipped_recipe_trains_from_the_command_line(name: str, objective: str, photos: Path) -> None:
    if name == "edsr_x4" and importlib.util.find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    own = Recipe.load(name)
    if own.objective not in ("refine", "restore") or own.supervision is not None:
        pytest.skip("in test_scorer_training, test_supervised, test_dial and test_quality")
    if objective == "refine" and own.objective == "restore":
        pytest.skip("made for restore")
    folders = [f"data.train.gt={photos}", f"data.validation.gt={photos}", "data.validation.limit=1"]
    if own.data.train.lq is not None:
        shutil.copytree(photos, photos.parent / "low")
        low = photos.parent / "low"
        folders += [f"data.train.lq={low}", f"data.validation.lq={low}"]
    overrides = [
        *folders, TINY[name], "backbone.weights=null", f"objective={objective}", "data.crop=32", "train.steps=20",
        "train.batch_size=1", "train.workers=0", "train.threads=1", "train.device=cpu",
        f"output={photos.parent / 'run'}",
        f"refiner={{preset: null, options: {json.dumps(TINY_REFINER)}}}",
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["finetune", name, *overrides, "--quiet"])
    assert done.exit_code == 0, done.output
    result = Path(done.stdout.splitlines()[-1])
    last = lines(photos.parent / "run", "train")[-1]
    assert last["step"] == 20 and last["skipped"] == 0
    if objective == "restore":
        assert load_backbone(result / f"{own.name}.safetensors").spec.scale == {"x4": 4, "x2": 2}.get(name[-2:], 1)
    else:
        assert (result / "adapter.safetensors").is_file()
