"""Reconstructors: paper 3's sizes, any image, published checkpoints, and a training that writes at exact steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refine_wrap import Picture, Recipe, RefineWrapError, read_image, write_image
from refine_wrap.errors import CheckpointError, ImageError, RecipeError
from refine_wrap.hub import load_adapter
from refine_wrap.reconstruction import (
    VQVAE,
    VQVAE2,
    Reconstructor,
    load_reconstructor,
    save_reconstructor,
    vqvae2_from_published,
)
from refine_wrap.reconstruction.load import RECONSTRUCTORS, build_reconstructor
from refine_wrap.resources import weights_dir
from refine_wrap.training import finetune
from refine_wrap.training.objectives import build_objective
from refine_wrap.training.reconstruction import MadeSmaller

SMALL: dict[str, Any] = {"channels": 16, "res_blocks": 1, "res_channels": 4, "width": 8, "codes": 32}
BOOKS = ("embedding.weight", "counts", "sums")


def small(kind: str) -> Reconstructor:
    torch.manual_seed(0)
    return build_reconstructor(kind, **SMALL).eval()


def test_the_published_size() -> None:
    """1,388,867 parameters beside the codebooks, 64 tensors, 3.77 G multiply-adds at 256 pixels."""
    network = VQVAE2().eval()
    state = network.state_dict()
    assert len(state) == 64
    assert sum(value.numel() for name, value in state.items() if not name.endswith(BOOKS)) == 1_388_867
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 256, 256))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions / 2 == pytest.approx(3.77e9, rel=0.002)


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (64, 64), (50, 33)])
def test_any_size(kind: str, size: tuple[int, int]) -> None:
    made = small(kind).reconstruct(torch.rand(2, 3, *size))
    assert made.shape == (2, 3, *size) and float(made.min()) >= 0 and float(made.max()) <= 1


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_padding_is_of_no_account_where_there_is_none(kind: str) -> None:
    network, image = small(kind), torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        plain = ((network(image * 2 - 1).output + 1) / 2).clamp(0, 1)
        wrong = network(image).output.clamp(0, 1)
    assert torch.equal(network.reconstruct(image), plain)
    assert torch.equal(network.reconstruct(image, half_range=True), wrong), "as the author's script generates"
    assert not torch.equal(plain, wrong)
    alone = torch.cat([network.reconstruct(one) for one in torch.cat((image, image.flip(3))).split(1)])
    assert torch.allclose(network.reconstruct(torch.cat((image, image.flip(3)))), alone, atol=1e-5)


def test_what_is_no_image_is_refused() -> None:
    for wrong in (torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ImageError):
            small("vqvae2").reconstruct(wrong)


@pytest.mark.parametrize("options", [{"channels": 3}, {"codes": 0}, {"res_blocks": -1}, {"decay": 1.0}, {"chanels": 8}])
def test_networks_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(RefineWrapError):
        build_reconstructor("vqvae2", **options)
    with pytest.raises(RefineWrapError, match="There is no reconstructor 'vae3'"):
        build_reconstructor("vae3")


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
    network = VQVAE2(**{**SMALL, "res_blocks": 2}).eval()
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


def test_on_disk(tmp_path: Path) -> None:
    network = small("vqvae")
    save_reconstructor(tmp_path / "made", network)
    loaded = load_reconstructor(tmp_path / "made")
    image = torch.rand(1, 3, 20, 20)
    assert isinstance(loaded, VQVAE) and torch.equal(loaded.reconstruct(image), network.reconstruct(image))
    with pytest.raises(CheckpointError, match="of kind reconstructor"):
        load_reconstructor("shipped:ranker")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photo = read_image(weights_dir() / "demo_photo.png").pixels
    for number in range(4):
        write_image(tmp_path / f"photos/{number}.png", Picture(photo[40 * number : 40 * number + 128, :128]))
    return tmp_path / "photos"


def recipe(photos: Path, output: Path, **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": "reconstruct",
        "reconstructor": {"kind": "vqvae2", "options": {**SMALL, "restart_after": 5}, "downscale": 2},
        "data": {"train": {"gt": [str(photos)]}, "crop": 64},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 3e-3, "schedule": "constant", "ema": 0.0},
        "losses": {"mse": 4.0},
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
    ],
)
def test_recipes_that_cannot_be(photos: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(photos, tmp_path, **changes)


def test_what_shows_only_when_it_is_built(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a multiple of 16"):
        build_objective(recipe(photos, tmp_path, data__crop=40))
    with pytest.raises(RefineWrapError, match="cannot be built"):
        build_objective(recipe(photos, tmp_path, reconstructor__options={"depth": 3}))


def test_it_learns_on_clean_low_resolution_images() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((3, 33, 50), dtype=np.float32))
    small = MadeSmaller(4)({"gt": image}, ())["gt"]
    assert small.shape == (3, 8, 12) and float(small.min()) >= 0 and float(small.max()) <= 1
    assert float(small.std()) < 0.3 * float(image.std()), "antialiased"
    assert torch.equal(MadeSmaller(1)({"gt": image}, ())["gt"], image)


def test_the_shipped_recipe_builds(photos: Path, tmp_path: Path) -> None:
    """As it is, on few photos, for two steps; its network is the published one."""
    words = [f"data.train.gt={photos}", "train.batch_size=2", "data.samples_per_image=1", "data.crop=128"]
    made = Recipe.load(
        "undertrain_vqvae2", [*words, "save_at_epochs=[1]", "train.steps=2", f"output={tmp_path / 'run'}"]
    )
    finetune(made, quiet=True)
    assert isinstance(load_reconstructor(tmp_path / "run/at/step_2/reconstructor"), VQVAE2)
