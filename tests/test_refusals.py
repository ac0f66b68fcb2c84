"""Bad recipes, bad data, bad checkpoints: what `refine-wrap finetune` says, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_training import save_image
from typer.testing import CliRunner

from refine_wrap.cli.main import app

RECIPE = """\
version: 1
name: bad
objective: restore
backbone:
  arch: NAFNet
  options: {width: 4, enc_blk_nums: [1], middle_blk_num: 1, dec_blk_nums: [1]}
data:
  train: {gt: [photos]}
  degradation: {noise: {sigma: [5, 25]}}
  crop: 16
train:
  steps: 4
  batch_size: 2
  threads: 1
losses: {l1: 1.0}
save_every: 2
"""
Spoil = Callable[[Path], None]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with photos and a recipe that trains."""
    for number in range(4):
        save_image(tmp_path / "photos" / f"{number}.png", number)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(place: Path, *arguments: str) -> list[str]:
    """The lines that a refused call says. Nothing but the run's own folder may be there after it, and no result."""
    before = {path for path in place.rglob("*") if "runs" not in path.parts}
    done = CliRunner().invoke(app, ["finetune", "recipe.yaml", "train.device=cpu", "--quiet", *arguments])
    assert done.exit_code in (1, 2), done.output
    said = [line for line in done.stderr.splitlines() if not line.startswith("Note: ")]
    assert len(said) <= 3 and said[0].startswith("Error: "), done.stderr
    assert {path for path in place.rglob("*") if "runs" not in path.parts} == before
    assert not list(place.glob("runs/*/backbone")) and not list(place.glob("runs/*/adapter"))
    return said


def replaced(old: str, new: str) -> Spoil:
    def spoil(place: Path) -> None:
        assert RECIPE.count(old) == 1
        (place / "recipe.yaml").write_text(RECIPE.replace(old, new))

    return spoil


BAD_RECIPES = {
    "misspelt key": (replaced("  steps: 4", "  stepz: 4"), "recipe.yaml:12: train.stepz", "train.steps"),
    "misspelt section": (replaced("losses:", "loses:"), "recipe.yaml:15: loses", "losses"),
    "key in the wrong section": (replaced("  steps: 4", "  crop: 4"), "recipe.yaml:12: train.crop", "data.crop"),
    "no steps": (replaced("  steps: 4\n", ""), "recipe.yaml:11: train.steps is missing", "whole number"),
    "text for a number": (replaced("steps: 4", "steps: four"), "recipe.yaml:12: train.steps is 'four'", "whole number"),
    "a negative number": (replaced("batch_size: 2", "batch_size: -2"), "recipe.yaml:13:", "at least 1"),
    "unknown objective": (replaced("objective: restore", "objective: refind"), "recipe.yaml:3:", "refine"),
    "unknown loss": (replaced("{l1: 1.0}", "{l3: 1.0}"), "recipe.yaml:15: losses.l3", "losses.l1"),
    "no loss at all": (replaced("{l1: 1.0}", "{l1: 0}"), "recipe.yaml:15: no loss", "at least one"),
    "not YAML": (replaced("losses: {l1: 1.0}", "losses: {l1: 1.0"), "recipe.yaml:1", "key: value"),
    "a key twice": (replaced("  threads: 1", "  threads: 1\n  threads: 2"), "recipe.yaml:15:", "the first is on line 14"),
    "version of the future": (replaced("version: 1", "version: 2"), "recipe.yaml:1: version is 2", "1"),
    "unknown architecture": (replaced("arch: NAFNet", "arch: NAFNett"), "recipe.yaml:4: ", "a checkpoint file, or one of"),
    "unknown option": (replaced("{width: 4,", "{widht: 4,"), "recipe.yaml:4: NAFNet cannot", "width"),
    "a scale that is not the backbone's": (
        replaced("{noise: {sigma: [5, 25]}}", "{scale: 2}"),
        "recipe.yaml:9: data.degradation.scale is 2",
        "data.degradation.scale: 1",
    ),
    "a crop that does not divide": (
        replaced("  degradation: {noise: {sigma: [5, 25]}}\n  crop: 16", "  degradation: {scale: 4}\n  crop: 18"),
        "recipe.yaml:10: data.crop is 18",
        "multiple of data.degradation.scale, 4",
    ),
    "a cache without variants": (
        replaced("objective: restore", "objective: refine\nbackbone_cache: {keep: disk}"),
        "recipe.yaml:4: backbone_cache.keep is disk",
        "data.variants",
    ),
    "fp16 on a CPU": (replaced("  threads: 1", "  precision: fp16"), "recipe.yaml:14: train.precision", "bf16"),
    "wandb that is not there": (replaced("  threads: 1", "  trackers: [wandb]"), "recipe.yaml:14: ", "pip install"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipes(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "wandb" in name:
        monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    spoil, came, expected = BAD_RECIPES[name]
    spoil(place)
    said = refused(place)
    assert came in said[0], said
    assert any(line.startswith("Expected: ") and expected in line for line in said), said
    assert said[-1].startswith("Next: "), said
    assert not (place / "runs").exists()


def truncate(*paths: str) -> Spoil:
    def spoil(place: Path) -> None:
        for path in paths:
            content = (place / path).read_bytes()
            (place / path).write_bytes(content[: len(content) // 2])

    return spoil


def emptied_file(path: Path) -> None:
    path.write_bytes(b"")


def as_floats(place: Path) -> None:
    for path in (place / "photos").iterdir():
        Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(path.with_suffix(".tiff"))
        path.unlink()


def emptied(place: Path) -> None:
    shutil.rmtree(place / "photos")
    (place / "photos").mkdir()


def all_text(place: Path) -> None:
    for path in (place / "photos").iterdir():
        path.write_text("not a picture")


def pairs(place: Path, *, missing: bool = False, size: int = 40) -> None:
    for number in range(3 if missing else 4):
        save_image(place / "low" / f"{number}.png", number, size, size)
    text = RECIPE.replace("{gt: [photos]}", "{gt: [photos], lq: [low]}")
    (place / "recipe.yaml").write_text(text.replace("  degradation: {noise: {sigma: [5, 25]}}\n", ""))


BAD_DATA: dict[str, tuple[Spoil, str]] = {
    "no such folder": (replaced("[photos]", "[fotos]"), "fotos"),
    "an empty folder": (emptied, "photos"),
    "text files that are named .png": (all_text, "0.png"),
    "half of the files truncated": (lambda place: truncate("photos/1.png", "photos/2.png")(place), "1.png"),
    "an empty file beside a truncated one": (
        lambda place: truncate("photos/1.png")(place) or emptied_file(place / "photos/0.png"),
        "0.png",
    ),
    "a pair without a partner": (lambda place: pairs(place, missing=True), "3.png"),
    "pairs of another size": (lambda place: pairs(place, size=20), "0.png"),
    "float pictures": (as_floats, "0.tiff"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(place: Path, name: str) -> None:
    spoil, named = BAD_DATA[name]
    spoil(place)
    said = refused(place)
    assert "recipe.yaml:8: " in said[0] and named in said[0], said
    assert said[-1].startswith(("Next: ", "Expected: ")), said
    assert not (place / "runs").exists()


def weights(place: Path) -> Path:
    """The weights of a run of the good recipe."""
    done = CliRunner().invoke(app, ["finetune", "recipe.yaml", "train.device=cpu", "output=first", "--quiet"])
    assert done.exit_code == 0, done.output
    return place / "first" / "backbone" / "bad.safetensors"


def saved(place: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> str:
    """Weights of the good recipe's backbone, changed, as an override."""
    state = {key: value.clone() for key, value in load_file(weights(place)).items()}
    save_file(change(state), place / "changed.safetensors")
    return "backbone.weights=changed.safetensors"


def no_key(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state.pop("intro.weight")
    return state


def wrong_shape(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "intro.bias": torch.zeros(5)}


def not_finite(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state["intro.bias"][0] = float("nan")
    return state


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "weights that are not there": (lambda place: "backbone.weights=none.safetensors", "none.safetensors"),
    "text named .pth": (
        lambda place: str((place / "x.pth").write_text("hello") and "backbone.weights=x.pth"),
        "x.pth",
    ),
    "truncated weights": (
        lambda place: (
            truncate(os.path.relpath(weights(place), place))(place) or "backbone.weights=first/backbone/bad.safetensors"
        ),
        "bad.safetensors",
    ),
    "a missing key": (lambda place: saved(place, no_key), "intro.weight"),
    "another shape": (lambda place: saved(place, wrong_shape), "intro.bias"),
    "weights that are not finite": (lambda place: saved(place, not_finite), "intro.bias"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_weights(place: Path, name: str) -> None:
    make, named = BAD_CHECKPOINTS[name]
    override = make(place)
    said = refused(place, override)
    assert said[0].startswith(f"Error: override {override}: ") and named in " ".join(said[:2]), said
    assert said[-1].startswith(("Next: ", "Expected: ")), said
    assert not (place / "runs").exists()


def test_a_run_of_another_recipe_is_not_resumed(place: Path) -> None:
    weights(place)
    said = refused(place, "output=first", "train.learning_rate=1e-3")
    assert "train.learning_rate" in said[0] and "override" in said[0] and said[-1].startswith("Next: set output=")


def test_broken_checkpoints_of_a_run(place: Path) -> None:
    weights(place)
    shutil.rmtree(place / "first/backbone")
    for state in (place / "first" / "checkpoints").glob("*/state.json"):
        state.write_text(json.dumps({"step": 2}))
    said = refused(place, "output=first")
    assert "No checkpoint in first" in said[0] and said[-1].startswith("Next: ")


def test_a_checkpoint_that_is_no_folder(place: Path) -> None:
    said = refused(place, "--resume", "nowhere/step_00000002")
    assert "nowhere/step_00000002" in said[0] and len(said) > 1
