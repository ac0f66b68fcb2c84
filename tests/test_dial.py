"""The quality dial: scores as a condition, training of a head, and what the command line does with it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from refine_wrap import Picture, Recipe, RefineWrapError, RefineWrapper, load_backbone, read_image, write_image
from refine_wrap.backbone import Backbone
from refine_wrap.cli.main import app
from refine_wrap.errors import ImageError, RecipeError
from refine_wrap.hub import load_adapter, save_adapter
from refine_wrap.quality import Condition, QualityHead
from refine_wrap.quality.condition import Scale
from refine_wrap.resources import weights_dir
from refine_wrap.restore import DoNoHarm
from refine_wrap.scorers import Scorer
from refine_wrap.training import finetune
from refine_wrap.training.objectives import build_objective
from refine_wrap.training.quality import QualityObjective

NAFNET = {"width": 8, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}


# Scores as a condition


def test_a_quantile_scale_uses_the_whole_dial() -> None:
    scores = np.random.default_rng(0).beta(9, 2, 2000).tolist()  # most are good, as in FFHQ
    found = Scale.fit(scores)(scores)
    assert found.min() == 0 and found.max() == 1
    shares, _ = np.histogram(found, 10, (0, 1))
    assert abs(shares / len(scores) - 0.1).max() < 0.01, "each part of the dial has as many images"
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(scores, kind="stable"))
    lopsided, _ = np.histogram(Scale.fit(scores, "minmax")(scores), 10, (0, 1))
    assert lopsided[:3].sum() < 0.02 * len(scores)


def test_scales_by_hand() -> None:
    straight = Scale.fit([2.0, 4.0, 3.0], "minmax")
    assert straight([2.0, 2.5, 4.0, 9.0, -1.0]).tolist() == [0, 0.25, 1, 1, 0]
    steps = Scale((0.0, 1.0, 1.0, 1.0, 2.0))
    assert steps([1.0]).tolist() == [0.5], "the middle of a run of equal scores"
    assert steps([0.5, 1.5]).tolist() == [0.125, 0.875]


def test_several_scorers_count_alike() -> None:
    good = [0.1, 0.2, 0.3, 0.4, 0.5]
    other = [value * 100 for value in good]
    assert Condition.fit([good, other])([good, other]).tolist() == pytest.approx(Condition.fit([good])([good]).tolist())
    undecided = Condition.fit([[0.0, 1.0, 0.5], [1.0, 0.0, 0.6]], "minmax")([[0.0, 1.0, 0.5], [1.0, 0.0, 0.6]])
    assert undecided.tolist() == pytest.approx([0, 0, 1])
    for wrong in ([], [float("nan"), 1.0], [0.5, 0.5]):
        with pytest.raises(RefineWrapError, match="score"):
            Condition.fit([wrong])


# Training


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures with a sharp and a blurred ground truth each, and a backbone."""
    folder = tmp_path_factory.mktemp("dial")
    photo = read_image(weights_dir() / "demo_photo.png").pixels
    rng = np.random.default_rng(0)
    for number in range(4):
        sharp = photo[50 * number : 50 * number + 64, 20:84].astype(np.float32)
        padded = np.pad(sharp, ((2, 2), (2, 2), (0, 0)), mode="edge")
        blurred = np.mean([padded[y : y + 64, x : x + 64] for y in range(5) for x in range(5)], 0)
        noisy = sharp + rng.normal(0, 8, sharp.shape)
        for name, image in (("sharp", sharp), ("blurred", blurred), ("noisy", noisy)):
            pixels = np.clip(image.round(), 0, 255).astype(np.uint8)
            write_image(folder / name / f"{number}.png", Picture(pixels))
    torch.manual_seed(0)
    load_backbone("NAFNet", options=NAFNET).save_published(folder / "naf.safetensors")
    return folder


def recipe(place: Path, output: Path, **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": "quality",
        "backbone": {"weights": str(place / "naf.safetensors")},
        "quality": {"head": {"width": 8, "depth": 1}},
        "data": {
            "train": {
                "gt": [str(place / "sharp"), str(place / "blurred")],
                "lq": [str(place / "noisy"), str(place / "noisy")],
            },
            "validation": {"gt": [str(place / "sharp")], "lq": [str(place / "noisy")], "limit": 2, "crop": 64},
            "crop": 32,
        },
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "ema": 0.0},
        "output": str(output),
    }
    for key, value in more.items():
        part = values
        *sections, last = key.split("__")
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return Recipe.from_dict(values)


def roughness(image: torch.Tensor) -> float:
    """Mean difference of neighbours: what a blur takes away."""
    return float((image[..., 1:] - image[..., :-1]).abs().mean())


def test_the_dial_is_learned(place: Path, tmp_path: Path) -> None:
    """Ground truths that differ in blur alone: a low quality must ask for the blurred one."""
    network = "shipped:demo_denoiser"
    steps = {"train__steps": 120, "train__final_learning_rate": 1e-3}
    folder = finetune(recipe(place, tmp_path / "run", backbone__weights=network, **steps))
    adapter = load_adapter(folder)
    assert adapter.kind == "quality" and adapter.config["refiner"] is None
    assert adapter.scorers[0].startswith("ranker@")
    assert {metric["name"] for metric in adapter.metrics} >= {"PSNR", "PSNR backbone", "ranker, quality 0.1"}
    wrapper = RefineWrapper.from_pretrained(folder)
    assert wrapper.scorers == adapter.scorers
    lq = read_image(place / "noisy/1.png").tensor()
    with torch.no_grad():
        found = [roughness(wrapper(lq, quality=q)) for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert max(found[:2]) < found[2] < min(found[3:]) and found[-1] > 1.2 * found[0]


def test_a_refiner_learns_the_dial_too(place: Path, tmp_path: Path) -> None:
    small = {"preset": "ornet-lite", "options": {"width": 16}}
    steps = {"train__steps": 220, "train__final_learning_rate": 1e-3}
    parts = {"trainable": ["refiner"], "quality": {}, "refiner": small, "backbone__weights": "shipped:demo_denoiser"}
    folder = finetune(recipe(place, tmp_path / "run", **parts, **steps))
    assert load_adapter(folder).kind == "refiner"
    wrapper = RefineWrapper.from_pretrained(folder)
    assert wrapper.quality_head is None and wrapper.knows_quality
    lq = read_image(place / "noisy/1.png").tensor()
    with torch.no_grad():
        found = [roughness(wrapper(lq, quality=q)) for q in (0.0, 0.5, 1.0)]
    assert found == sorted(found) and found[-1] > 1.03 * found[0]


def test_a_head_learns_from_the_scores_of_its_ground_truths(place: Path, tmp_path: Path) -> None:
    """With `match_scores` the head gets a gradient from the scorers alone, and none where output and ground truth are one."""
    objective = build_objective(recipe(place, tmp_path, quality__match_scores=0.5))
    assert isinstance(objective, QualityObjective)
    batch = {"lq": torch.rand(2, 3, 32, 32), "gt": torch.rand(2, 3, 32, 32) / 2 + 0.25}
    batch |= {"quality": torch.tensor([0.1, 0.9]), "strength": torch.full((2,), 0.3)}
    term = objective(batch)["score ranker"]
    output, gt = (objective.scorers[0](image) for image in (objective.wrapper(batch["lq"]).clamp(0, 1), batch["gt"]))
    assert float(term) == pytest.approx(0.5 * float((output - gt).abs().mean()), rel=1e-4), "the new head does nothing"
    term.backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in objective.parameters())
    assert "score ranker" not in build_objective(recipe(place, tmp_path))(batch)
    batch["lq"][0, 0, 0, 0] = float("nan")
    assert not bool(torch.stack(list(objective(batch).values())).sum().isfinite()), "for the trainer to skip the step"


def test_scorers_of_one_name_both_count(place: Path, tmp_path: Path) -> None:
    """A scorer that was trained on from a shipped one keeps its name."""
    ranker = load_adapter(weights_dir() / "ranker")
    weaker = {name: value * 0.9 if value.is_floating_point() else value for name, value in ranker.tensors.items()}
    save_adapter(tmp_path / "other", replace(ranker, tensors=weaker))
    batch = {"lq": torch.rand(2, 3, 32, 32), "gt": torch.rand(2, 3, 32, 32)}
    batch |= {"quality": torch.tensor([0.1, 0.9]), "strength": torch.full((2,), 0.3)}
    terms = []
    for scorers in (["shipped:ranker"], [str(tmp_path / "other")], ["shipped:ranker", str(tmp_path / "other")]):
        options = {"quality__scorers": scorers, "quality__match_scores": 0.5}
        terms.append(float(build_objective(recipe(place, tmp_path, **options))(batch)["score ranker"]))
    assert terms[2] == pytest.approx(terms[0] + terms[1]) and terms[1] > 0


def test_threads_ask_for_their_own_quality(adapter: Path, place: Path) -> None:
    """A server restores for several people with one wrapper."""
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=str(place / "naf.safetensors"))
    image = torch.rand(1, 3, 48, 48)

    def restored(quality: float) -> torch.Tensor:
        with torch.no_grad():
            return wrapper(image, quality=quality)

    asked = [0.0, 1.0] * 20
    alone = {quality: restored(quality) for quality in (0.0, 1.0)}
    assert not torch.allclose(alone[0.0], alone[1.0], atol=1e-4)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(restored, asked))
    assert all(torch.equal(image, alone[quality]) for image, quality in zip(found, asked, strict=True))


class Mirrored(torch.nn.Module):
    """Each image and its mirror image, in one batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((channels, 8), (8, channels)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.last(self.first(torch.cat([x, x.flip(-1)])))
        one, other = both.chunk(2)
        return (one + other.flip(-1)) / 2


@pytest.mark.parametrize("channels", [1, 3])
def test_more_maps_than_images_take_one_quality_alone(channels: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone(Mirrored(channels), spec={"tap": "first", "channels": channels, "scale": 1})
    wrapper = RefineWrapper(backbone, refiner=None, quality_head={"width": 8, "depth": 1})
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(wrapper(images), backbone(images))
    with torch.no_grad():
        for parameter in wrapper.trainable_parameters():
            parameter.normal_(std=0.3)
        alone = torch.cat([wrapper(image, quality=0.3) for image in images.split(1)])
        torch.testing.assert_close(wrapper(images, quality=0.3), alone)
        assert not torch.allclose(alone, backbone(images), atol=1e-3)
        with pytest.raises(RefineWrapError, match="one quality for all"):
            wrapper(images, quality=torch.tensor([0.1, 0.9]))


def test_a_head_remembers_its_own_tap(tmp_path: Path) -> None:
    """Two adapters around one backbone, each with its own."""
    body = Backbone(Mirrored(3), spec={"tap": "first"})
    first = RefineWrapper(body, refiner=None, quality_head={"width": 8, "depth": 1})
    body.spec = replace(body.spec, tap="last")
    second = RefineWrapper(body, refiner=None, quality_head={"width": 8, "depth": 1})
    taps = [load_adapter(w.save_pretrained(tmp_path / n)).config["tap"] for w, n in ((first, "a"), (second, "b"))]
    assert taps == ["first", "last"]


def test_samples_carry_their_ground_truths_quality(place: Path, tmp_path: Path) -> None:
    objective = build_objective(recipe(place, tmp_path))
    assert isinstance(objective, QualityObjective)
    data, _ = objective.data(recipe(place, tmp_path))
    qualities = {sample["name"]: float(sample["quality"]) for sample in (data[i] for i in range(len(data)))}
    for number in range(4):
        assert qualities[str(place / f"sharp/{number}.png")] > qualities[str(place / f"blurred/{number}.png")]
    assert min(qualities.values()) == 0 and max(qualities.values()) == 1
    assert {n for n, p in objective.named_parameters()} == {
        f"wrapper.quality_head.{n}" for n, _ in objective.part.named_parameters()
    }


def test_scores_are_kept_between_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    objective = build_objective(recipe(place, tmp_path))
    assert isinstance(objective, QualityObjective)
    calls: list[int] = []
    monkeypatch.setattr(type(objective.scorers[0]), "raw", lambda self, image: calls.append(1) or image.mean((1, 2, 3)))
    first = objective.data(recipe(place, tmp_path))[0][0]["quality"]
    assert len(calls) == 8 and not (tmp_path / "run").exists()
    assert objective.data(recipe(place, tmp_path))[0][0]["quality"] == first and len(calls) == 8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quality": None}, "quality is not given"),
        ({"backbone": None}, "backbone is not given"),
        ({"trainable": ["lora"]}, "quality_head"),
        ({"objective": "restore"}, "quality is given with objective restore"),
        ({"quality__default": 1.5}, "default"),
        ({"quality__scorers": []}, "scorers"),
        ({"quality__hed": {}}, "head"),
    ],
)
def test_recipes_that_cannot_be(place: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(place, tmp_path, **changes)


def test_what_shows_only_when_it_is_built(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RefineWrapError, match="multiple of 4"):
        build_objective(recipe(place, tmp_path, quality__head={"width": 3}))
    with pytest.raises(RefineWrapError, match=r"nothing\.safetensors"):
        build_objective(recipe(place, tmp_path, quality__scorers=["nothing.safetensors"]))
    brisk = recipe(place, tmp_path, quality__match_scores=0.1, quality__scorers=[f"niqe={tmp_path / 'niqe.npz'}"])
    rng = np.random.default_rng(0)
    moments = {"mu_pris_param": rng.random((1, 36)), "cov_pris_param": np.eye(36)}
    np.savez(tmp_path / "niqe.npz", **moments, gaussian_window=np.full((7, 7), 1 / 49))
    with pytest.raises(RefineWrapError, match="niqe is not differentiable"):
        build_objective(brisk)
    for side in ("sharp", "noisy"):
        write_image(tmp_path / side / "0.png", read_image(place / side / "0.png"))
    one = recipe(place, tmp_path, data__train={"gt": [str(tmp_path / "sharp")], "lq": [str(tmp_path / "noisy")]})
    with pytest.raises(RefineWrapError, match="All 1 images have the score"):
        build_objective(one).data(one)


def test_the_shipped_recipe_can_train_a_refiner() -> None:
    assert Recipe.load("quality", ["trainable=[refiner]"]).trainable == ["refiner"]


def test_the_shipped_recipe_trains_from_the_command_line(place: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.train.gt=[{place / 'sharp'}, {place / 'blurred'}]",
        f"data.train.lq=[{place / 'noisy'}, {place / 'noisy'}]",
        f"backbone.weights={place / 'naf.safetensors'}",
        *("quality.head={width: 8, depth: 1}", "data.crop=32", "train.steps=2", "train.batch_size=2"),
        *("train.device=cpu", f"output={tmp_path / 'run'}"),
    ]
    done = CliRunner().invoke(app, ["finetune", "quality", *overrides, "--quiet"])
    assert done.exit_code == 0, done.output
    assert load_adapter(done.stdout.splitlines()[-1]).kind == "quality"


# The command line


@pytest.fixture(scope="module")
def adapter(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head and a refiner that both do something."""
    wrapper = RefineWrapper(
        load_backbone(place / "naf.safetensors"),
        refiner={"preset": "ornet-lite", "width": 4},
        quality_head={"width": 8, "depth": 1},
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapper.trainable_parameters():
            parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    return wrapper.save_pretrained(folder, scorers=["ranker@0123456789abcdef"])


def restore(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["restore", *map(str, arguments)])


def test_quality_on_the_command_line(place: Path, adapter: Path, tmp_path: Path) -> None:
    common = [place / "noisy/0.png", "-a", adapter, "-b", place / "naf.safetensors", "--device", "cpu"]
    for quality in (0.1, 1.0):
        result = restore(*common, "-o", tmp_path / f"{quality}.png", "--quality", quality)
        assert result.exit_code == 0, result.output
    low, high = (read_image(tmp_path / f"{quality}.png").pixels for quality in (0.1, 1.0))
    assert not np.array_equal(low, high)
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors")
    expected = wrapper.restore(read_image(place / "noisy/0.png"), quality=0.1)
    assert np.array_equal(low, expected.pixels)
    for wrong in (-0.1, 1.5, "nan"):
        result = restore(*common, "-o", tmp_path / "wrong.png", "--quality", wrong)
        assert result.exit_code == 2 and "quality is" in result.output and not (tmp_path / "wrong.png").exists()
    bare = restore(place / "noisy/0.png", "-b", place / "naf.safetensors", "-o", tmp_path / "b.png", "--quality", 0.5)
    assert bare.exit_code == 2 and "no quality head" in bare.output


def test_a_sheet_over_both_dials(place: Path, adapter: Path, tmp_path: Path) -> None:
    common = [place / "noisy", "-a", adapter, "-b", place / "naf.safetensors", "--device", "cpu", "--sweep"]
    result = restore(*common, "-o", tmp_path / "sheets")
    assert result.exit_code == 0, result.output
    sheet = read_image(tmp_path / "sheets/0.png").pixels
    cell = 64 + 16 + 4, sheet.shape[1] // 4
    assert sheet.shape == (cell[0] * 7, cell[1] * 4, 3), "the backbone's row and one a quality, a column a strength"
    assert cell[1] > 64 + 4, "as wide as the longest label"
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors")
    photo = read_image(place / "noisy/0.png")
    shown = sheet[cell[0] * 3 + 16 :][:64, cell[1] * 2 :][:, :64]
    assert np.array_equal(shown, wrapper.restore(photo, quality=0.5, strength=0.6).pixels)
    with wrapper.disabled():
        assert np.array_equal(sheet[16:][:64, :64], wrapper.restore(photo).pixels)
    assert restore(*common, "-o", tmp_path / "x", "--quality", 0.5).exit_code == 2
    naked = restore(place / "noisy/0.png", "-b", place / "naf.safetensors", "-o", tmp_path / "n.png", "--sweep")
    assert naked.exit_code != 0 and "neither a quality head nor a refiner" in naked.output
    assert not (tmp_path / "n.png").exists()


def test_an_image_that_cannot_be_read_has_no_quality(place: Path, tmp_path: Path) -> None:
    for side in ("sharp", "blurred", "noisy"):
        for number in range(4):
            write_image(tmp_path / side / f"{number}.png", read_image(place / side / f"{number}.png"))
    damaged = tmp_path / "sharp/2.png"
    damaged.write_bytes(damaged.read_bytes()[:-3000])  # its header is sound
    run = recipe(
        place,
        tmp_path / "run",
        data__cache=0,
        data__train={"gt": [str(tmp_path / "sharp"), str(tmp_path / "blurred")], "lq": [str(tmp_path / "noisy")] * 2},
    )
    with pytest.warns(RuntimeWarning, match="left out"):
        finetune(run)


class Brightness(Scorer):
    """Prefers what is brighter, or with `low` what is darker on a scale whose lower end is better."""

    name, worst, best, differentiable = "brightness", 0.0, 1.0, True

    def __init__(self, low: bool = False) -> None:
        super().__init__()
        if low:
            self.worst, self.best = 1.0, 0.0

    def raw(self, image: torch.Tensor) -> torch.Tensor:
        return self.checked(image).mean((1, 2, 3))


class Shifted(torch.nn.Module):
    """A refiner that adds its shift."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: torch.Tensor, strength: Any, quality: Any) -> torch.Tensor:
        return image + self.by


@pytest.mark.parametrize("by", [0.1, -0.1])
@pytest.mark.parametrize("low", [False, True])
def test_what_is_worse_is_not_kept(by: float, low: bool) -> None:
    wrapper = RefineWrapper(torch.nn.Identity(), refiner=Shifted(by))
    guard = DoNoHarm(Brightness(low))
    image = torch.full((2, 3, 8, 8), 0.5)
    harm = (by < 0) != low
    expected = image if harm else image + by
    torch.testing.assert_close(wrapper.restore(image, guard=guard), expected)
    assert (guard.seen, guard.kept) == (2, 2 * harm)
    guard.judge.raw = lambda image: torch.full((len(image),), float("nan"))
    assert torch.equal(wrapper.restore(image, guard=guard), image), "a judge that knows nothing vouches for nothing"
    guard.judge = Brightness(low)
    picture = Picture(np.full((8, 8, 3), 100, np.uint8))
    assert np.array_equal(wrapper.restore(picture, guard=guard).pixels, picture.pixels) == harm


def test_the_guard_on_the_command_line(place: Path, adapter: Path, tmp_path: Path) -> None:
    common = [place / "noisy", "-a", adapter, "-b", place / "naf.safetensors", "--device", "cpu"]
    result = restore(*common, "-o", tmp_path / "out", "--do-no-harm", "shipped:gauge")
    assert result.exit_code == 0, result.output
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors")
    judge = DoNoHarm("shipped:gauge").judge
    kept = 0
    for number in range(4):
        photo = read_image(place / f"noisy/{number}.png")
        ours = wrapper.restore(photo)
        with wrapper.disabled():
            bare = wrapper.restore(photo)
        worse = float(judge(ours.tensor())) < float(judge(bare.tensor()))
        kept += worse
        assert np.array_equal(read_image(tmp_path / f"out/{number}.png").pixels, (bare if worse else ours).pixels)
    assert f"{kept} of 4 kept as the backbone made them, by gauge" in result.output
    result = restore(*common, "-o", tmp_path / "no", "--do-no-harm", "shipped:ranker")
    assert result.exit_code == 2 and "ranker cannot judge this adapter" in result.output
    assert not (tmp_path / "no").exists()


def test_a_sheet_leaves_the_tiles_as_they_are(place: Path, adapter: Path, tmp_path: Path) -> None:
    """It restores with the bare backbone first, whose receptive field is smaller."""
    from refine_wrap.report.sweep import sweep_sheet
    from refine_wrap.restore import trace

    fresh, swept = (RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors") for _ in range(2))
    sweep_sheet(swept, place / "noisy/0.png", qualities=[0.5], strengths=[0.5]).save(tmp_path / "sheet.png")
    assert (
        trace(swept).receptive_radius
        == trace(fresh).receptive_radius
        > trace(RefineWrapper(fresh.backbone, refiner=None)).receptive_radius
    )


def test_info_tells_the_tap_and_the_cost(place: Path, adapter: Path) -> None:
    arguments = ["info", str(adapter), "-b", str(place / "naf.safetensors"), "--json", "--size", "32", "--no-measure"]
    result = CliRunner().invoke(app, arguments)
    about = json.loads(result.stdout)
    assert about["kind"] == "adapter (quality)" and about["backbone"]["tap"]
    assert about["wrapped: macs"]["quality_head"] > 0


# What would go wrong silently


class Checkpointed(torch.nn.Module):
    """A network whose middle is computed again in backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.middle, self.last = (torch.nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        y = checkpoint(lambda z: torch.relu(self.middle(z)), self.first(x), use_reentrant=self.reentrant)
        return x + self.last(y)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tap_inside_a_checkpointed_region_is_refused(reentrant: bool) -> None:
    def wrapper(tap: str) -> RefineWrapper:
        body = Backbone(Checkpointed(reentrant), spec={"tap": tap})
        return RefineWrapper(body, refiner=None, quality_head={"width": 4, "depth": 1}).train()

    image = torch.rand(1, 3, 16, 16)
    outside = wrapper("first")
    outside(image, quality=0.5).mean().backward()
    assert outside.quality_head is not None and outside.quality_head.gate.linear.weight.grad is not None
    inside = wrapper("middle")
    with pytest.raises(RefineWrapError, match="Conv2d is inside a checkpointed region"):
        inside(image, quality=0.5).mean().backward()
    with torch.no_grad():
        inside(image, quality=0.5)
    inside.eval()(image, quality=0.5)


def test_networks_that_a_head_would_not_steer_are_refused() -> None:
    network = torch.nn.Sequential(*(torch.nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 3))))
    head = QualityHead(8, width=4, depth=1)
    for made, tap, words in (
        (torch.jit.trace(network, torch.rand(1, 3, 8, 8)), "0", "traced or scripted"),
        (torch.compile(network), "_orig_mod.0", "compiled already"),
    ):
        body = Backbone(made, replace(Backbone(network).spec, tap=tap))
        with pytest.raises(RefineWrapError, match=words):
            RefineWrapper(body, refiner=None, quality_head=head)


@pytest.mark.parametrize("wrong", ["off", "", 0, 1.5, ["width"]])
def test_what_is_no_head(wrong: Any) -> None:
    with pytest.raises(RefineWrapError, match="quality_head is"):
        RefineWrapper(torch.nn.Conv2d(3, 3, 3, padding=1), quality_head=wrong)


def test_dials_that_nothing_has_are_refused(place: Path, adapter: Path, tmp_path: Path) -> None:
    image = torch.rand(1, 3, 16, 16)
    alone = RefineWrapper(load_backbone(place / "naf.safetensors"), refiner=None)
    for strength in (0.5, float("nan"), torch.tensor([0.5])):
        with pytest.raises(RefineWrapError, match="no refiner"):
            alone(image, strength)
        with pytest.raises(RefineWrapError, match="no refiner"):
            alone.restore(image, strength=strength)
    with pytest.raises(RefineWrapError, match="nothing that a judge could keep out"):
        alone.restore(image, guard=DoNoHarm(Brightness()))
    bare = restore(place / "noisy/0.png", "-b", place / "naf.safetensors", "-o", tmp_path / "b.png", "--strength", 0.5)
    assert bare.exit_code == 2 and "no refiner" in bare.output
    common = [place / "noisy/0.png", "-a", adapter, "-b", place / "naf.safetensors", "-o", tmp_path / "s.png"]
    assert "a sheet has 8 bits" in restore(*common, "--sweep", "--bits", 16).output


def test_each_image_of_a_batch_is_restored_at_its_own_dials(place: Path, adapter: Path) -> None:
    wrapper = RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors")
    images = torch.rand(2, 3, 24, 20)
    strengths, qualities = torch.tensor([0.2, 0.8]), torch.tensor([0.1, 1.0])
    made = wrapper.restore(images, strength=strengths, quality=qualities)
    for each, image, strength, quality in zip(made, images, (0.2, 0.8), (0.1, 1.0), strict=True):
        torch.testing.assert_close(each, wrapper.restore(image[None], strength=strength, quality=quality)[0])
    assert not torch.equal(made, wrapper.restore(images))
    for wrong in (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.5])):
        with pytest.raises(ImageError, match="quality"):
            wrapper.restore(images, quality=wrong)
    with pytest.raises(ImageError, match="quality has shape"):
        wrapper.restore(Picture(np.zeros((8, 8, 3), np.uint8)), quality=qualities)


def test_labels_of_small_photos_fit_on_their_sheet(place: Path, adapter: Path, tmp_path: Path) -> None:
    from refine_wrap.report.sweep import sweep_sheet

    wrapper = RefineWrapper.from_pretrained(adapter, backbone=place / "naf.safetensors")
    small = Picture(np.full((6, 5, 3), 90, np.uint8))
    for name, values in (("short", [0.5]), ("long", [0.25])):
        sweep_sheet(wrapper, small, qualities=values, strengths=values).save(tmp_path / f"{name}.png")
    short, long = (read_image(tmp_path / f"{name}.png").pixels for name in ("short", "long"))
    assert long.shape[1] > short.shape[1] > 60, "a cell is as wide as its label"


def test_the_scores_are_written_down_and_the_condition_stays_with_the_head(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run")
    folder = finetune(run)
    rows = [line.split("\t") for line in (run.folder / "qualities.tsv").read_text().splitlines()]
    assert rows[0][:2] == ["image", "quality"] and rows[0][2].startswith("ranker@") and len(rows) == 9
    wrapper = RefineWrapper.from_pretrained(folder, backbone=place / "naf.safetensors")
    assert wrapper.condition is not None
    condition = Condition.from_dict(wrapper.condition)
    scores = [[float(row[2]) for row in rows[1:]]]
    assert condition(scores).tolist() == pytest.approx([float(row[1]) for row in rows[1:]], abs=0.02)
    assert condition.scorers == (rows[0][2],)
    wrapper.save_pretrained(tmp_path / "again")
    assert load_adapter(tmp_path / "again").config["condition"] == wrapper.condition
    for wrong in ({}, {**wrapper.condition, "whole": [1, 0]}, {**wrapper.condition, "scales": 3}):
        with pytest.raises(RefineWrapError, match="condition is damaged"):
            Condition.from_dict(wrong)
