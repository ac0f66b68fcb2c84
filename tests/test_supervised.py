"""Training with enhanced supervision: variants of samples, the masks objective, refiners on enhanced ground truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from refine_wrap import Picture, Recipe, RefineWrapper, load_backbone, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, DataError, RecipeError, RefineWrapError
from refine_wrap.hub import load_adapter
from refine_wrap.resources import weights_dir
from refine_wrap.supervision import FrequencyMaskGenerator, enhanced, load_mask_generator, save_mask_generator
from refine_wrap.supervision.variants import resized, variants
from refine_wrap.training import finetune
from refine_wrap.training.objectives import build_objective
from refine_wrap.training.supervised import SOUND, EnhancedObjective, MasksObjective
from refine_wrap.training.variants import MadeVariants

SR = {"arch": "SRVGGNetCompact", "options": {"num_feat": 4, "num_conv": 1, "upscale": 2}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a super-resolver, a mask generator, a backbone."""
    folder = tmp_path_factory.mktemp("supervised")
    pixels = read_image(weights_dir() / "demo_photo.png").pixels
    for number in range(3):
        write_image(folder / f"photos/{number}.png", Picture(pixels[60 * number : 60 * number + 70, 20:110].copy()))
    torch.manual_seed(0)
    load_backbone("SRVGGNetCompact", options=SR["options"]).save_published(folder / "sr.safetensors")
    options = {"width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
    load_backbone("NAFNet", options=options).save_published(folder / "naf.safetensors")
    generator = FrequencyMaskGenerator(width=4, rings=5)
    save_mask_generator(folder / "masks", generator, scorers=["gauge@0123456789abcdef"])
    return folder


def recipe(place: Path, output: Path, objective: str = "masks", **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": objective,
        "supervision": {"sr": str(place / "sr.safetensors")},
        "data": {
            "train": {"gt": [str(place / "photos")]},
            "validation": {"gt": [str(place / "photos")], "limit": 1, "crop": 64},
            "degradation": {"noise": {"sigma": [5, 10]}},
            "crop": 32,
        },
        "train": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1, "ema": 0.0},
        "output": str(output),
    }
    if objective == "masks":
        values["masks"] = {"options": {"width": 4, "rings": 5}}
    else:
        values["backbone"] = {"weights": str(place / "naf.safetensors")}
        values["supervision"]["masks"] = str(place / "masks")
    for key, value in more.items():
        part, _, name = key.rpartition("__")
        (values.setdefault(part, {}) if part else values)[name] = value
    return Recipe.from_dict(values)


def test_variants_are_what_their_words_say(place: Path) -> None:
    network = load_backbone(place / "sr.safetensors")
    image = torch.rand(1, 3, 24, 36)
    two, three, four = variants(network)
    with torch.no_grad():
        assert torch.equal(two(image), resized(network(image).clamp(0, 1), 24, 36))
        assert torch.equal(three(image), resized(network(resized(image, 36, 54)).clamp(0, 1), 24, 36))
        assert torch.equal(four(image), resized(network(resized(image, 48, 72)).clamp(0, 1), 24, 36))
    for made in (two, three, four):
        assert made.spec.scale == 1 and made(torch.rand(2, 3, 1, 17)).shape == (2, 3, 1, 17)


def test_a_super_resolver_larger_than_the_variants_sees_the_ground_truth_smaller(place: Path) -> None:
    torch.manual_seed(0)
    network = load_backbone("SRVGGNetCompact", options={"num_feat": 4, "num_conv": 1, "upscale": 4})
    image = torch.rand(1, 3, 48, 24)
    with torch.no_grad():
        two = variants(network)[0](image)
        assert torch.equal(two, resized(network(resized(image, 24, 12)).clamp(0, 1), 48, 24))
    with pytest.raises(RefineWrapError, match="enlarges 4 times"):
        variants(network, (2, 3))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_variants_in_tiles_are_those_of_the_whole(place: Path, factor: int) -> None:
    made = variants(load_backbone(place / "sr.safetensors"), (factor,))[0]
    wrapper = RefineWrapper(made)
    image = torch.rand(1, 3, 200, 150)
    with wrapper.disabled():
        whole = wrapper.restore(image, tile=None)
        tiled = wrapper.restore(image, tile=48)
    assert torch.allclose(whole, made(image).clamp(0, 1), atol=1e-6) and (whole - tiled).abs().max() < 1 / 255


def test_kept_variants_are_those_that_are_made(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run", data__variants=1)
    data, _ = build_objective(run).data(run)
    first, again = data[(0, 1)]["variants"], data[(7, 1)]["variants"]
    assert first.shape == (3, 3, 32, 32) and torch.equal(first, again)
    kept = list((tmp_path / "run/variants").rglob("*.safetensors"))
    assert len(kept) == 1
    made = MadeVariants(load_backbone(place / "sr.safetensors"), (2, 3, 4), "lq")(data[(0, 1)], [])["variants"]
    assert (made - first).abs().max() <= 0.5 / 65535 + 1e-7


def test_what_masks_gain_counts_as_a_share_of_the_flaw(place: Path, tmp_path: Path) -> None:
    objective = build_objective(recipe(place, tmp_path / "run", masks__pristine=2.0)).eval()
    torch.manual_seed(1)
    pristine = torch.rand(1, 3, 32, 32) * 0.5 + 0.25

    def term(flaw: float) -> float:
        flawed = pristine + flaw * torch.randn(1, 3, 32, 32)
        variants = (0.5 * (pristine + flawed))[:, None].expand(1, 3, 3, 32, 32)
        batch = {"gt": pristine, "lq": flawed, "variants": variants, "strength": torch.ones(1)}
        return float(objective(batch)["pristine"])

    # The variants have half of the flaw: what is mixed has between a quarter and all of its squared error.
    assert all(0.25 < math.exp(term(flaw)) < 1 for flaw in (0.05, 0.2))
    assert abs(term(0.05) - term(0.2)) < 0.2
    assert abs(term(1e-4)) < 0.02  # there is nothing to gain


def test_masks_of_flawed_ground_truths_learn_the_better_photo(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run", train__steps=40, train__batch_size=4, train__learning_rate=3e-3)
    result = finetune(run, quiet=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"] for line in lines if line["kind"] == "train"]
    assert set(losses[0]) == {"fidelity", "pristine"}
    totals = [sum(each.values()) for each in losses]
    assert np.mean(totals[-8:]) < np.mean(totals[:8])
    adapter = load_adapter(result)
    assert adapter.kind == "masks" and adapter.scorers == [] and adapter.strength == 0.3
    assert {"PSNR to the pristine photo, strength 0.3", "PSNR to the ground truth, average"} <= {
        metric["name"] for metric in adapter.metrics
    }
    assert load_mask_generator(result).config()["rings"] == 5


def test_at_strength_0_only_fidelity_counts_and_at_1_only_quality(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run")
    objective = build_objective(run)
    assert isinstance(objective, MasksObjective)
    objective.eval()
    data = objective.data(run)[0]
    batch = {name: value[None] for name, value in data[(0, 0)].items() if isinstance(value, torch.Tensor)}
    low, high, middle = (objective({**batch, "strength": torch.tensor([s])}) for s in (0.0, 1.0, 0.5))
    assert low["pristine"] == 0 < low["fidelity"] and high["fidelity"] == 0 != high["pristine"]
    mixed = enhanced(batch["lq"], batch["variants"], objective.generator, 0.5)
    own, left = (4 * (image - batch["gt"]).square().mean() for image in (batch["lq"], mixed))
    moved = 4 * (mixed - batch["lq"]).square().mean()
    assert torch.isclose(middle["fidelity"], 0.75 * moved / (own + SOUND))
    gain = torch.log((left + SOUND) / (own + SOUND))
    assert torch.isclose(middle["pristine"], 0.25 * gain)
    # Both weigh as much as 1 together.
    objective.choice = objective.choice.model_copy(update={"pristine": 100})
    strong = objective({**batch, "strength": torch.tensor([0.5])})
    assert torch.isclose(strong["fidelity"], 0.75 / 25.75 * moved / (own + SOUND))
    assert torch.isclose(strong["pristine"], 25 / 25.75 * gain)
    # Where no better photo is looked at, fidelity is the paper's own.
    objective.choice = objective.choice.model_copy(update={"pristine": 0})
    assert torch.isclose(objective({**batch, "strength": torch.tensor([0.5])})["fidelity"], 0.75 * moved)


def test_logit_decay_pulls_the_images_together(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run", masks__logit_decay=0.5)
    objective = build_objective(run).eval()
    assert isinstance(objective, MasksObjective)
    data = objective.data(run)[0]
    batch = {name: value[None] for name, value in data[(0, 0)].items() if isinstance(value, torch.Tensor)}
    term = objective({**batch, "strength": torch.tensor([0.5])})["logits"]
    logits = objective.generator.coefficients(batch["lq"], 0.5).log()
    assert torch.isclose(term, 0.5 * (logits - logits.mean(1, keepdim=True)).square().mean()) and term > 0
    with torch.no_grad():
        for parameter in (objective.generator.fclayer_last.weight, objective.generator.fclayer_last.bias):
            parameter.zero_()
    assert objective({**batch, "strength": torch.tensor([0.5])})["logits"] < 1e-12


def test_scorers_train_masks_and_are_recorded(place: Path, tmp_path: Path) -> None:
    from refine_wrap.hub import Adapter, save_adapter
    from refine_wrap.scorers.learned import LearnedScorer

    torch.manual_seed(1)
    scorer = LearnedScorer("taste", "resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8})
    config = {"scorer": "learned", **scorer.config}
    save_adapter(tmp_path / "taste", Adapter(kind="scorer", config=config, tensors=dict(scorer.state_dict())))
    run = recipe(place, tmp_path / "run", masks__scorers=[str(tmp_path / "taste")], data__degradation=None)
    objective = build_objective(run)
    data = objective.data(run)[0]
    batch = {name: value[None] for name, value in data[(0, 0)].items() if isinstance(value, torch.Tensor)}
    losses = objective({**batch, "strength": torch.tensor([1.0])})
    assert set(losses) == {"fidelity", "taste"} and 0 < losses["taste"] <= 0.1
    losses["taste"].backward()
    assert sum(float(p.grad.abs().sum()) for p in objective.parameters() if p.grad is not None) > 0
    adapter = load_adapter(finetune(run, quiet=True))
    assert len(adapter.scorers) == 1 and adapter.scorers[0].startswith("taste@")


@pytest.mark.parametrize("name", ["masks", "refiner"])
def test_a_shipped_recipe_trains_from_the_command_line(place: Path, tmp_path: Path, name: str) -> None:
    photos = place / "photos"
    words = [f"data.train.gt={photos}", f"data.validation.gt={photos}", "data.validation.limit=1", "data.crop=32"]
    words += [f"supervision.sr={place / 'sr.safetensors'}", "train.steps=4", "train.batch_size=1"]
    if name == "masks":
        words.append("masks.options={width: 4, rings: 5}")
    else:
        words.append(f"supervision.masks={place / 'masks'}")
    result = CliRunner().invoke(app, ["finetune", name, *words, f"output={tmp_path / 'run'}"])
    assert result.exit_code == 0, result.output
    if name == "masks":
        assert load_mask_generator(tmp_path / "run/masks").config()["width"] == 4
    else:
        assert load_adapter(tmp_path / "run/adapter").backbone is None


@pytest.mark.parametrize("shown", ["backbone", "ground_truth", "both"])
@pytest.mark.parametrize("keep", ["none", "memory"])
def test_a_refiner_learns_enhanced_ground_truth(place: Path, tmp_path: Path, shown: str, keep: str) -> None:
    run = recipe(
        place,
        tmp_path / "run",
        "refine",
        supervision__input=shown,
        supervision__fidelity={"mse": 0.5},
        data__variants=1,
        backbone_cache={"keep": keep},
    )
    result = finetune(run, quiet=True)
    adapter = load_adapter(result)
    assert adapter.kind == "refiner" and adapter.scorers == ["gauge@0123456789abcdef"]
    line = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line["losses"]) == {"l1", "fidelity mse"}


@pytest.mark.parametrize("degradation", [None, {"noise": {"sigma": [5, 10]}}])
def test_a_refiner_of_ground_truths_alone_goes_behind_any_network(
    place: Path, tmp_path: Path, degradation: dict[str, Any] | None
) -> None:
    run = recipe(
        place,
        tmp_path / "run",
        "refine",
        backbone=None,
        supervision__input="ground_truth",
        data__degradation=degradation,
    )
    objective = build_objective(run)
    assert isinstance(objective, EnhancedObjective)
    sample = objective.data(run)[0][(0, 0)]
    shown = sample["gt" if degradation is None else "lq"]
    batch = {name: sample[name][None] for name in ("lq", "gt", "variants") if name in sample}
    target = enhanced(shown[None], batch["variants"], objective.generator, torch.tensor([0.9])).clamp(0, 1)
    losses = objective({**batch, "strength": torch.tensor([0.9])})
    assert torch.isclose(losses["l1"], (shown - target).abs().mean())  # untrained it gives what it is shown

    made = finetune(run, quiet=True)
    found = load_adapter(made)
    names = {entry["name"] for entry in found.metrics}
    assert found.backbone is None and names == {"PSNR", "SSIM"} | (
        {"PSNR input", "SSIM input"} if degradation else set()
    )
    assert "goes with any restoration network" in (made / "README.md").read_text()
    with pytest.raises(CheckpointError, match="names none"):
        RefineWrapper.from_pretrained(made)
    for backbone in (place / "naf.safetensors", place / "sr.safetensors"):
        model = RefineWrapper.from_pretrained(made, backbone=backbone)
        low = torch.rand(1, 3, 16, 16)
        refined = model.refiner(model.backbone(low), 0.3)
        assert torch.equal(model(low), refined) and not torch.equal(refined, model.backbone(low))


def test_the_refiner_is_shown_and_compared_with_the_right_pictures(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run", "refine", supervision__input="both", supervision__fidelity={"l1": 1.0})
    objective = build_objective(run)
    assert isinstance(objective, EnhancedObjective)
    data = objective.data(run)[0]
    samples = [data[(0, 0)], data[(0, 1)]]
    batch = {name: torch.stack([one[name] for one in samples]) for name in ("lq", "gt", "variants")}
    strength = torch.tensor([0.2, 0.9])
    losses = objective({**batch, "strength": strength})
    # Untrained, the refiner gives what it is shown: the restored image, and the ground truth.
    restored, gt = objective.wrapper.backbone(batch["lq"]), batch["gt"]
    target = enhanced(gt, batch["variants"], objective.generator, strength).clamp(0, 1)
    assert not torch.allclose(target, enhanced(gt, batch["variants"], objective.generator, 0.2).clamp(0, 1), atol=1e-6)
    near = ((restored - target).abs().mean() + (gt - target).abs().mean()) / 2
    assert torch.isclose(losses["l1"], near) and torch.isclose(losses["fidelity l1"], (restored - gt).abs().mean() / 2)
    assert all(not p.requires_grad for p in objective.generator.parameters())


def test_ready_variants_lie_where_the_crop_lies(place: Path, tmp_path: Path) -> None:
    for factor in (2, 3, 4):
        for path in sorted((place / "photos").iterdir()):
            pixels = read_image(path).pixels // factor
            write_image(tmp_path / f"ready/x{factor}" / f"{path.stem}.png", Picture(pixels))
    ready = {"supervision__sr": None, "supervision__variants": str(tmp_path / "ready"), "data__degradation": None}
    run = recipe(place, tmp_path / "run", **ready)
    data = build_objective(run).data(run)[0]
    for key in [(epoch, index) for epoch in range(6) for index in range(3)]:
        sample = data[key]
        whole = (sample["gt"] * 255).round()
        for number, factor in enumerate((2, 3, 4)):
            assert torch.equal((sample["variants"][number] * 255).round(), (whole / factor).floor())
    run = recipe(place, tmp_path / "refine", "refine", **{**ready, "data__degradation": {"scale": 1, "noise": {}}},
                 supervision__masks=str(place / "masks"), data__variants=1, backbone_cache={"keep": "memory"})  # fmt: skip
    finetune(run, quiet=True)
    (tmp_path / "ready/x3/1.png").unlink()
    with pytest.raises(DataError, match="lacks 1 variants: x3/1"):
        build_objective(run).data(run)
    write_image(tmp_path / "ready/x3/1.png", Picture(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(DataError, match="9x9 pixels, its ground truth 90x70"):
        build_objective(run).data(run)


ALONE: dict[str, Any] = {"objective": "refine", "backbone": None}
SHOWN_TRUTHS: dict[str, Any] = {**ALONE, "supervision__input": "ground_truth"}


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"supervision__sr": None}, "are not given"),
        ({"supervision__variants": "x"}, "both given"),
        ({"supervision": None}, "supervision is not given"),
        ({"masks": None}, "masks is not given"),
        ({"backbone": {"arch": "NAFNet"}}, "backbone is given"),
        ({"data__degradation": {"scale": 2}}, "scale is 2"),
        ({"masks__options": {"wdith": 3}}, "cannot be built"),
        ({"objective": "restore", "backbone": {"arch": "NAFNet"}, "masks": None}, "supervision is given"),
        ({"supervision__fidelity": {"l1": 0}}, "no loss has a weight"),
        (ALONE, "input is backbone, and there is no backbone"),
        ({**ALONE, "supervision": None}, "backbone is not given"),
        ({**SHOWN_TRUTHS, "data__degradation": {"scale": 2}}, "scale is 2"),
        (
            {**SHOWN_TRUTHS, "data__degradation": None, "data__train": {"gt": ["a"], "lq": ["b"]}},
            "looks at ground truths alone",
        ),
        ({**SHOWN_TRUTHS, "backbone_cache": {"keep": "memory"}}, "and no backbone"),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(
    place: Path, tmp_path: Path, change: dict[str, Any], came: str
) -> None:
    with pytest.raises(RefineWrapError, match=came):
        build_objective(recipe(place, tmp_path / "run", **change))


def test_the_generator_must_mix_as_many_images(place: Path, tmp_path: Path) -> None:
    run = recipe(place, tmp_path / "run", "refine", supervision__factors=[2, 4])
    with pytest.raises(RefineWrapError, match="mixes 4 images, and there are 2 variants"):
        build_objective(run)
    with pytest.raises(RecipeError, match="input"):
        recipe(place, tmp_path / "run", "refine", supervision__input="lq")
