"""Training scorers: ladders in order, kept ladders, the objective, what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from refine_wrap import Picture, Recipe, RefineWrapError, load_backbone, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.degradation.ladders import DISTORTIONS, LUMA, between, ladder, rounded
from refine_wrap.errors import RecipeError
from refine_wrap.hub import load_adapter
from refine_wrap.resources import weights_dir
from refine_wrap.scorers import load_scorer
from refine_wrap.scorers.learned import LearnedScorer, tiles
from refine_wrap.training import finetune
from refine_wrap.training.score import ScoreData, ScoreObjective, by_target, in_order, ordered

TINY = {"channels": [8, 8, 8, 8], "stem_width": 8}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return read_image(weights_dir() / "demo_photo.png").pixels[40:168, 40:168].astype(np.float32) / np.float32(255)


@pytest.fixture()
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    folder = tmp_path / "photos"
    for number in range(3):
        write_image(folder / f"{number}.png", Picture(np.roll((photo * 255).astype(np.uint8), 17 * number, axis=1)))
    return folder


def recipe(photos: Path, **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": "score",
        "scorer": {
            "trunk": "resnet10t",
            "options": TINY,
            "steps": 3,
            "distortions": {"gaussian_blur": 1, "jpeg": 1},
            "ladders": 1,
        },
        "data": {"train": {"gt": [str(photos)]}, "validation": {"gt": [str(photos)], "limit": 1}, "crop": 64},
        "train": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1, "ema": 0.0},
        "output": str(photos.parent / "run"),
    }
    for key, value in more.items():
        part, _, name = key.rpartition("__")
        (values[part] if part else values)[name] = value
    return Recipe.from_dict(values)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_ladder_gets_worse_and_repeats_exactly(photo: np.ndarray, name: str) -> None:
    before = photo.copy()
    strengths = (0.1, 0.4, 0.7, 1.0)
    steps, again = (ladder(photo, name, strengths, np.random.default_rng(5)) for _ in range(2))
    errors = [float(np.mean((step - photo) ** 2)) for step in steps]
    assert errors == sorted(errors) and errors[0] < 0.5 * errors[-1] and errors[0] > 0
    for step, same in zip(steps, again, strict=True):
        assert step.shape == photo.shape and step.dtype == np.float32 and np.array_equal(step, same)
        assert step.min() >= 0 and step.max() <= 1 and np.array_equal(np.round(step * 255) / np.float32(255), step)
    assert np.array_equal(before, photo)


@pytest.mark.parametrize("brightness", [0.03, 0.3, 1.0])
def test_camera_noise_is_as_strong_as_asked_however_dark_the_photo_is(photo: np.ndarray, brightness: float) -> None:
    image = rounded(0.04 + 0.9 * photo * np.float32(brightness))
    strengths = (0.4, 0.7, 1.0)
    for seed in range(4):
        noisy = ladder(image, "camera_noise", strengths, np.random.default_rng(seed))
        noise = [(step - image) @ LUMA * 255 for step in noisy]
        for strength, found in zip(strengths, noise, strict=True):
            # The file takes some of the noise away, black cuts some off, and it adds traces of its own.
            assert 0.55 < np.sqrt((found**2).mean()) / between(1.0, 30.0, strength) < 1.3
        assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] > 0.4  # one pattern on every step


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("image", [np.zeros((1, 1, 3)), np.ones((3, 40, 3)), np.full((16, 16, 3), 0.5)])
def test_a_ladder_of_a_plain_or_tiny_picture_is_one_too(name: str, image: np.ndarray) -> None:
    for step in ladder(image.astype(np.float32), name, [0.0, 1.0], np.random.default_rng(0)):
        assert step.shape == image.shape and np.isfinite(step).all()


def test_crops_as_of_a_camera_have_no_grain_of_their_own(photos: Path) -> None:
    grain = np.random.default_rng(0).normal(128, 40, (320, 320, 3)).clip(0, 255).astype(np.uint8)
    for number in range(3):
        write_image(photos / f"{number}.png", Picture(grain), overwrite=True)
    run = recipe(photos)
    data, _ = ScoreObjective.of(run).data(run)
    assert isinstance(data, ScoreData)

    crops = [data.photo_crop(0, np.random.default_rng(seed), soft=True) for seed in range(8)]
    assert np.mean([np.diff(crop, axis=1).std() for crop in crops]) < 0.4 * np.diff(grain / 255, axis=1).std()


def test_a_photo_smaller_than_the_crop_is_mirrored_not_enlarged(photos: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for number in range(3):
        write_image(photos / f"{number}.png", Picture(pixels), overwrite=True)
    data = ScoreObjective.of(recipe(photos)).data(recipe(photos))[0]
    assert isinstance(data, ScoreData)
    crop = (data.photo_crop(0, np.random.default_rng(0)) * 255).round().astype(np.uint8)
    there = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    assert crop.shape == (64, 64, 3) and {tuple(pixel) for pixel in crop.reshape(-1, 3).tolist()} <= there


def test_an_unknown_distortion_is_refused(photo: np.ndarray) -> None:
    with pytest.raises(RefineWrapError, match="no distortion 'fog'"):
        ladder(photo, "fog", [0.5], np.random.default_rng(0))


def test_in_the_second_half_a_score_does_not_depend_on_the_batch(photos: Path) -> None:
    run = recipe(photos, train__steps=4)
    objective = ScoreObjective.of(run)
    data = objective.data(run)[0]
    batch = torch.utils.data.default_collate([data[index] for index in range(2)])
    means = []
    for _ in range(4):
        objective.train()
        with torch.no_grad():
            losses = objective(batch)
        means.append(objective.norms[0].running_mean.clone())
    assert not torch.equal(means[0], means[1]) and torch.equal(means[1], means[2]) and torch.equal(means[2], means[3])
    objective.eval()
    with torch.no_grad():
        again = objective(batch)
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {name: float(loss) for name, loss in again.items()}, rel=1e-4
    )


def test_the_losses_want_the_right_order() -> None:
    good, bad = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    better = torch.ones(3, 3, dtype=torch.bool).triu(1)
    assert in_order(good, better) < in_order(torch.zeros(3), better) < in_order(bad, better)
    assert in_order(bad, torch.zeros(3, 3, dtype=torch.bool)) == 0
    target = torch.tensor([0.9, 0.5, 0.1])
    assert by_target(good, target, better) < by_target(bad, target, better)
    # Pairs whose targets are equal say nothing, nor do those that are not asked for.
    assert by_target(bad, torch.full((3,), 0.5), better) == 0 == by_target(bad, target, ~better)


def test_which_pictures_are_known_to_be_better() -> None:
    # One crop with two ladders of two steps, and one picture of another crop.
    crop, ladder, step = torch.tensor([0, 0, 0, 0, 0, 1]), torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([0, 1, 2] * 2)
    step[3:] = torch.tensor([1, 2, 0])
    shares = torch.tensor([[0.9, 0.9], [0.8, 0.8], [0.2, 0.6], [0.5, 0.7], [0.1, 0.5], [0.55, 0.35]])
    steps, ladders, photos = (
        set(map(tuple, found.nonzero().tolist())) for found in ordered(crop, ladder, step, shares)
    )
    assert steps == {(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (3, 4)}
    # 1 against 3 and 4; 3 against 2; 2 against 4 where both metrics agree.
    assert ladders == {(1, 3), (1, 4), (3, 2), (2, 4)}
    assert photos == {(0, 5)} and ordered(crop, ladder, step, shares)[2].sum() == 1


def test_a_scorer_learns_and_loads(photos: Path) -> None:
    run = recipe(photos, train__steps=40, train__batch_size=4, train__learning_rate=3e-3)
    result = finetune(run, quiet=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"]["ladder"] for line in lines if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    adapter = load_adapter(result)
    assert adapter.kind == "scorer" and adapter.backbone is None and adapter.config["scorer"] == "learned"
    srcc = {metric["name"]: metric["value"] for metric in adapter.metrics}
    assert srcc["SRCC gaussian_blur"] > 0.8 and set(srcc) == {"SRCC all", *(f"SRCC {name}" for name in DISTORTIONS)}


def test_kept_ladders_change_nothing(photos: Path) -> None:
    scores = []
    for name in ("kept", "again"):
        run = recipe(photos, data__variants=1, output=str(photos.parent / name), train__steps=4)
        finetune(run, quiet=True)
        scores.append(load_adapter(run.folder / "scorer").tensors)
    kept = list((photos.parent / "kept" / "ladders").rglob("*.safetensors"))
    assert 0 < len(kept) <= 3
    plain = ScoreObjective.of(run).data(run)[0]
    plain.kept = None  # type: ignore[attr-defined]
    for index in range(3):
        from_disk = ScoreObjective.of(run).data(run)[0][(5, index)]["images"]
        assert torch.equal(plain[(5, index)]["images"], from_disk)
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


def test_a_network_makes_ladders(photos: Path) -> None:
    run = recipe(photos, scorer__networks=["shipped:demo_denoiser"], scorer__network_share=1.0)
    images = ScoreObjective.of(run).data(run)[0][(0, 0)]["images"]
    errors = [(image - images[0]).square().mean() for image in images[1:]]
    assert images.shape == (4, 3, 64, 64) and errors == sorted(errors) and errors[0] > 0


def test_distortions_come_as_often_as_asked(photos: Path) -> None:
    run = recipe(photos, scorer__distortions={"gaussian_blur": 3, "jpeg": 1}, scorer__ladders=1)
    data = ScoreObjective.of(run).data(run)[0]
    rng = np.random.default_rng(0)
    names = [data.drawn(rng)[0] for _ in range(400)]  # type: ignore[attr-defined]
    assert 0.68 < names.count("gaussian_blur") / len(names) < 0.82
    run = recipe(photos, scorer__distortions={"gaussian_blur": 3, "jpeg": 1}, scorer__ladders=2)
    data = ScoreObjective.of(run).data(run)[0]
    assert all(set(data.drawn(rng)) == {"gaussian_blur", "jpeg"} for _ in range(20))  # type: ignore[attr-defined]


def test_other_weights_of_one_name_make_other_ladders(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "network.safetensors"
    run = recipe(photos, scorer__networks=[str(weights)], data__variants=1)
    keys = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        options = {"width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
        load_backbone("NAFNet", options=options).save_published(weights)
        keys.append(ScoreObjective.of(run).data(run)[0]._key(0, 0, 0))  # type: ignore[attr-defined]
    assert keys[0] != keys[1] and keys[1] == keys[2]


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"scorer__distortions": {"fog": 1}}, "distortions"),
        ({"scorer__distortions": {}}, "distortions"),
        ({"scorer__distortions": {"jpeg": 0}}, "distortions"),
        ({"backbone": {"arch": "NAFNet"}}, "backbone is given"),
        ({"objective": "restore"}, "backbone is not given"),
        ({"data__degradation": {"noise": {}}}, "makes its own pictures"),
        ({"scorer__steps": 1}, "steps"),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(photos: Path, change: dict[str, Any], came: str) -> None:
    with pytest.raises(RecipeError, match=came):
        recipe(photos, **change)


def test_an_unknown_trunk_is_refused(photos: Path) -> None:
    with pytest.raises(RefineWrapError, match="timm cannot build resnet9999"):
        finetune(recipe(photos, scorer__trunk="resnet9999"), quiet=True)


def test_tiles_cover_an_image_once() -> None:
    image = torch.arange(3 * 70 * 131, dtype=torch.float64).view(1, 3, 70, 131)
    parts = list(tiles(image, 64))
    assert sum(part[0, 0].numel() for part in parts) == 70 * 131
    assert sum(part.sum() for part in parts) == image.sum()
    assert max(max(part.shape[-2:]) for part in parts) <= 64


def test_a_large_image_scores_as_the_weighted_mean_of_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scorer = LearnedScorer("tiny", "resnet10t", TINY)
    image = torch.rand(1, 3, 64, 128)
    maps = torch.cat([scorer._map(part) for part in image.chunk(2, dim=-1)], -1)
    weights = torch.nn.functional.softplus(maps[:, 1])
    monkeypatch.setattr("refine_wrap.scorers.learned.TILE", 64)
    assert torch.allclose(scorer.logits(image), (maps[:, 0] * weights).sum((1, 2)) / weights.sum((1, 2)), atol=1e-6)
    assert float(weights.detach().std()) > 0


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 31), (96, 97)])
def test_any_size_and_batches(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scorer = LearnedScorer("tiny", "resnet10t", TINY).requires_grad_(False)
    images = torch.rand(2, 3, *size, requires_grad=True)
    scores = scorer(images)
    assert scores.shape == (2,) and bool(((scores > 0) & (scores < 1)).all())
    assert torch.allclose(scores, torch.cat([scorer(image[None]) for image in images]), atol=1e-6)
    scores.sum().backward()
    assert images.grad is not None and bool(images.grad.abs().sum() > 0)


@pytest.mark.parametrize("name", ["ranker", "gauge"])
def test_a_shipped_recipe_trains_from_the_command_line(photos: Path, name: str) -> None:
    words = [f"data.train.gt={photos}", f"data.validation.gt={photos}", "data.validation.limit=1", "scorer.shrink=1"]
    words += ["train.steps=20", "train.batch_size=1", "data.variants=1", "train.log_every=1", "data.crop=64"]
    trunk = {
        "ranker": "scorer.options={channels: [8, 8, 8, 8], stem_width: 8}",
        "gauge": "scorer.options={growth_rate: 4, block_config: [1, 1, 1, 1]}",
    }
    output = photos.parent / "run"
    result = CliRunner().invoke(app, ["finetune", name, *words, trunk[name], f"output={output}"])
    assert result.exit_code == 0, result.output
    adapter = load_adapter(output / "scorer")
    assert adapter.recipe is not None and adapter.recipe["train"]["steps"] == 20
    scores = load_scorer(output / "scorer")(torch.rand(2, 3, 40, 40))
    assert scores.shape == (2,) and bool(torch.isfinite(scores).all())
