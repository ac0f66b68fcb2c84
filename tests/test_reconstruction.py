"""Reconstructors: published checkpoints, and a training that writes at exact steps, for every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reconstructors import CODED, SMALL, need, small
from typer.testing import CliRunner

from refine_wrap import Picture, Recipe, RefineWrapError, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, RecipeError
from refine_wrap.hub import load_adapter
from refine_wrap.reconstruction import VQVAE2, Reconstructor, load_reconstructor, vqvae2_from_published
from refine_wrap.reconstruction.load import RECONSTRUCTORS
from refine_wrap.resources import weights_dir
from refine_wrap.training import finetune
from refine_wrap.training import trainer as trainer_module
from refine_wrap.training.checkpoint import load_checkpoint
from refine_wrap.training.objectives import build_objective
from refine_wrap.training.reconstruction import MadeSmaller


def published(network: VQVAE2) -> dict[str, torch.Tensor]:
    """The state dict by the names, and with the transposed codebooks, of vq-vae-2-pytorch."""
    names = {"embedding.weight": "embed", "counts": "cluster_size", "sums": "embed_avg"}
    state = {}
    for name, value in network.state_dict().items():
        for own, other in names.items():
            if name.startswith("quantize_") and name.endswith(f".{own}"):
                name, value = name[: -len(own)] + other, value.mT.contiguous() if value.ndim == 2 else value
        state[name] = value
    return state


def test_published_checkpoints_load(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = VQVAE2(**{**CODED, "res_blocks": 2}).eval()
    torch.save({f"module.{name}": value for name, value in published(network).items()}, tmp_path / "vqvae_008.pt")
    loaded = vqvae2_from_published(tmp_path / "vqvae_008.pt")
    image = torch.rand(1, 3, 24, 24)
    assert torch.equal(loaded.reconstruct(image), network.reconstruct(image))
    assert loaded.config() == network.config()
    state = published(network)
    for name in ("quantize_t.embed", "dec.blocks.0.bias"):
        torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "less.pt")
        with pytest.raises(CheckpointError):
            vqvae2_from_published(tmp_path / "less.pt")


def test_an_adapter_of_another_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of kind reconstructor"):
        load_reconstructor("shipped:ranker")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photo = read_image(weights_dir() / "demo_photo.png").pixels
    for number in range(4):
        write_image(tmp_path / f"photos/{number}.png", Picture(photo[40 * number : 40 * number + 128, :128]))
    return tmp_path / "photos"


def recipe(photos: Path, output: Path, kind: str = "vqvae2", **more: Any) -> Recipe:
    need(kind)
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": "reconstruct",
        "reconstructor": {"kind": kind, "options": dict(SMALL[kind]), "downscale": 2},
        "data": {"train": {"gt": [str(photos)]}, "crop": 32},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 3e-3, "schedule": "constant", "ema": 0.0},
        "losses": {} if kind == "ddim" else {"mse": 4.0},
        "save_every": 2,
        "output": str(output),
    }
    for key, value in more.items():
        *sections, last = key.split("__")
        part = values
        for section in sections:
            part = part[section]
        part[last] = value
    return Recipe.from_dict(values)


def test_it_learns(photos: Path, tmp_path: Path) -> None:
    folder = finetune(recipe(photos, tmp_path / "run", train__steps=150), quiet=True)
    image = read_image(photos / "0.png").tensor()
    network = load_reconstructor(folder)
    errors = [float((each.reconstruct(image) - image).square().mean()) for each in (small("vqvae2"), network)]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_the_loss_falls(kind: str, photos: Path, tmp_path: Path) -> None:
    """On the same images, with the same chance, it is lower after some steps; the image comes nearer."""
    made = recipe(photos, tmp_path / "run", kind, train__steps=60, train__batch_size=4)
    objective = build_objective(made)
    batch = {"gt": torch.stack([objective.data(made)[0][place]["gt"] for place in range(4)])}

    def loss(network: Reconstructor) -> float:
        torch.manual_seed(0)
        objective.network = network.train()
        return sum(float(value.detach()) for value in objective(batch).values())

    before = loss(objective.network)
    assert loss(load_reconstructor(finetune(made, quiet=True))) < 0.8 * before


class InterruptedHereError(Exception):
    pass


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"train__steps": 4, "train__ema": 0.9}
    if kind.startswith("vqvae"):
        more["reconstructor__options"] = {**CODED, "restart_after": 1}
    whole, parted = (recipe(photos, tmp_path / name, kind, **more) for name in ("whole", "parted"))
    finetune(whole, quiet=True)
    save = trainer_module.save_checkpoint

    def save_then_die(*arguments: Any) -> None:
        save(*arguments)
        raise InterruptedHereError

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_checkpoint", save_then_die)
        with pytest.raises(InterruptedHereError):
            finetune(parted, quiet=True)
    torch.rand(7)  # chance that is not the run's
    finetune(parted, quiet=True)
    one, two = (load_checkpoint(each.folder / "checkpoints/step_00000004") for each in (whole, parted))
    assert one.weights and all(torch.equal(two.weights[name], value) for name, value in one.weights.items())
    assert all(torch.equal(two.average[name], value) for name, value in one.average.items())
    first, second = (load_adapter(each.folder / "reconstructor") for each in (whole, parted))
    assert all(torch.equal(second.tensors[name], value) for name, value in first.tensors.items())


def test_the_result_is_written_at_exact_steps(photos: Path, tmp_path: Path) -> None:
    """A result at step 2 is what a run of two steps makes; four photos in batches of two are two steps an epoch."""
    two = load_adapter(finetune(recipe(photos, tmp_path / "two", train__steps=2), quiet=True))
    finetune(recipe(photos, tmp_path / "six", save_at=[5], save_at_epochs=[1, 2]), quiet=True)
    written = sorted(path.name for path in (tmp_path / "six/at").iterdir())
    assert written == ["step_2", "step_4", "step_5"]
    found = load_adapter(tmp_path / "six/at/step_2/reconstructor")
    assert all(torch.equal(value, found.tensors[name]) for name, value in two.tensors.items())
    assert {metric["name"]: metric["value"] for metric in found.metrics} == {"images seen": 4}
    later = load_adapter(tmp_path / "six/at/step_5/reconstructor")
    assert any(not torch.equal(value, later.tensors[name]) for name, value in found.tensors.items())
    again = recipe(photos, tmp_path / "six", train__steps=6, save_at=[6])
    with pytest.raises(RecipeError, match="names step 8"):
        finetune(recipe(photos, tmp_path / "late", save_at_epochs=[1, 4]), quiet=True)
    assert finetune(again, quiet=True).is_dir(), "what is written between may change when a run is resumed"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reconstructor": None}, "reconstructor is not given"),
        ({"data__degradation": {"noise": {}}}, "ground truths alone"),
        ({"reconstructor__kind": "vqvae3"}, "kind"),
        ({"trainable": ["backbone"]}, r"\[reconstructor\]"),
        ({"objective": "score"}, "scorer is not given"),
        ({"losses": {}}, "no loss has a weight above 0"),
        ({"reconstructor__kind": "ddim"}, "losses compare images, and ddim learns from its own loss alone"),
    ],
)
def test_recipes_that_cannot_be(photos: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(photos, tmp_path, **changes)


def test_what_shows_only_when_it_is_built(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a multiple of 16"):
        build_objective(recipe(photos, tmp_path, data__crop=40))
    for kind in ("vae", "mae"):
        with pytest.raises(RecipeError, match=r"data.crop is 64\nExpected: 32: reconstructor.downscale"):
            build_objective(recipe(photos, tmp_path, kind, data__crop=64))
    with pytest.raises(RefineWrapError, match="cannot be built"):
        build_objective(recipe(photos, tmp_path, reconstructor__options={"depth": 3}))


def test_it_learns_on_clean_low_resolution_images() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((3, 33, 50), dtype=np.float32))
    small = MadeSmaller(4)({"gt": image}, ())["gt"]
    assert small.shape == (3, 8, 12) and float(small.min()) >= 0 and float(small.max()) <= 1
    assert float(small.std()) < 0.3 * float(image.std()), "antialiased"
    assert torch.equal(MadeSmaller(1)({"gt": image}, ())["gt"], image)


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_a_shipped_recipe_trains_from_the_command_line(kind: str, photos: Path, tmp_path: Path) -> None:
    """As it is, on few photos, for two steps; the passes after which it is written are paper 3's."""
    need(kind)
    name, run = f"undertrain_{kind}", tmp_path / "run"
    shipped = Recipe.load(name)
    assert shipped.save_at_epochs == [4, 8, 16, 32, 64] and shipped.reconstructor is not None
    side = 128 if kind.startswith("vqvae") else 256
    words = [f"data.train.gt={photos}", "train.batch_size=2", "data.samples_per_image=1", f"data.crop={side}"]
    words += ["save_at_epochs=[1]", "train.steps=2", f"output={run}"]
    done = CliRunner().invoke(app, ["finetune", name, *words, "--quiet"])
    assert done.exit_code == 0, done.output
    network = load_reconstructor(run / "at/step_2/reconstructor")
    assert network.kind == kind and network.config().items() >= shipped.reconstructor.options.items()
    if kind != "ddim":  # its hundred steps take long
        assert network.reconstruct(torch.rand(1, 3, 70, 65)).shape == (1, 3, 70, 65)
