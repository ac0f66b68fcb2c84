"""The trainer's machinery: kept outputs of a frozen backbone, kills, processes, memory, dry runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from test_training import DropNet, final_weights, lines, photos, save_image, small
from torch import Tensor, nn
from typer.testing import CliRunner

from refine_wrap.backbone import Backbone, load_backbone
from refine_wrap.cli.main import app
from refine_wrap.errors import DataError, OutputError, RecipeError
from refine_wrap.recipe import Recipe, explain_key
from refine_wrap.training import dry_run, finetune
from refine_wrap.training import frozen as frozen_module
from refine_wrap.training.activations import checkpoint_activations
from refine_wrap.training.data import StepBatches, training_data
from refine_wrap.training.frozen import FrozenData, OutputStore, fill, frozen_data, needed
from refine_wrap.training.objectives import build_objective

__all__ = ["photos"]
pytestmark = pytest.mark.filterwarnings("ignore:The backbone has no weights")
TINY_REFINER = {
    "preset": None,
    "options": {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
}


def refining(photos: Path, **changes: Any) -> Recipe:
    common = {"objective": "refine", "refiner": TINY_REFINER, "data__variants": 2, "train__log_every": 1}
    return small(photos, **{**common, **changes})


# ---------------------------------------------------------------- the backbone's outputs, kept


def test_variants_repeat_and_strength_does_not(photos: Path) -> None:
    data = training_data(refining(photos, data__variants=3), 1)
    one, four, two = data[0, 1], data[3, 1], data[1, 1]
    assert torch.equal(one["lq"], four["lq"]) and torch.equal(one["gt"], four["gt"])
    assert not torch.equal(one["lq"], two["lq"])
    assert one["strength"] != four["strength"]


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("pairs", [False, True])
def test_kept_outputs_change_no_loss(photos: Path, keep: str, pairs: bool) -> None:
    data: dict[str, Any] = {}
    if pairs:
        for number in range(4):
            save_image(photos.parent / "lq" / f"{number}.png", 10 + number)
        train = {"gt": [str(photos)], "lq": [str(photos.parent / "lq")]}
        data = {"data__train": train, "data__degradation": None}
    plain = refining(photos, **data, output=str(photos.parent / "plain"))
    kept = refining(photos, **data, output=str(photos.parent / "kept"), backbone_cache={"keep": keep})
    for recipe in (plain, kept):
        finetune(recipe, quiet=True)
    first, second = ([line["loss"] for line in lines(recipe.folder, "train")] for recipe in (plain, kept))
    assert len(first) == 12 and first == pytest.approx(second, abs=1e-6)
    weights = final_weights(kept.folder)
    assert all(torch.allclose(value, weights[name], atol=1e-6) for name, value in final_weights(plain.folder).items())


def test_a_kept_output_is_computed_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = Backbone.forward

    def forward(self: Backbone, image: Tensor) -> Tensor:
        seen.append(len(image))
        return plain(self, image)

    shared = {"keep": "disk", "folder": str(photos.parent / "shared")}
    monkeypatch.setattr(Backbone, "forward", forward)
    finetune(refining(photos, backbone_cache=shared, output=str(photos.parent / "one")), quiet=True)
    assert sum(seen) == 4 * 2  # images times variants; twelve steps of two would be 24
    finetune(
        refining(photos, backbone_cache=shared, output=str(photos.parent / "two"), train__learning_rate=1e-4),
        quiet=True,
    )
    assert sum(seen) == 4 * 2


def names(recipe: Recipe) -> set[str]:
    objective = build_objective(recipe)
    frozen = frozen_data(recipe, objective.backbone, training_data(recipe, 1))
    return {frozen.name(0, index) for index in range(len(frozen))}


def test_whatever_an_output_follows_from_is_in_its_name(photos: Path) -> None:
    keep = {"backbone_cache": {"keep": "disk"}}
    before = names(refining(photos, **keep))
    assert names(refining(photos, **keep, train__learning_rate=1e-5, train__steps=99)) == before
    for change in (
        {"data__crop": 24},
        {"data__flips": False},
        {"data__rotations": False},
        {"data__degradation": {"noise": {"sigma": [5, 26]}}},
        {"train__seed": 1},  # also other weights: they are drawn
        {"train__precision": "bf16"},
        {"backbone__spec": {"order": "bgr"}},
        {"backbone_cache": {"keep": "disk", "dtype": "float16"}},
    ):
        assert not names(refining(photos, **{**keep, **change})) & before, change
    save_image(photos / "2.png", 77)
    assert len(names(refining(photos, **keep)) & before) == 3


def test_damaged_outputs_are_made_again_and_bad_ones_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = refining(photos, backbone_cache={"keep": "disk"})
    objective = build_objective(recipe).eval()
    frozen = frozen_data(recipe, objective.backbone, training_data(recipe, 1))
    keys = [(0, index) for index in range(4)]
    assert fill(frozen, keys, objective.frozen, batch_size=3) == 4
    assert fill(frozen, keys, objective.frozen, batch_size=3) == 0
    path = frozen.store.path(frozen.name(0, 1))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        frozen[0, 1]
    assert fill(frozen, keys, objective.frozen, batch_size=3) == 1
    assert frozen[0, 1]["restored"].shape == (3, 16, 16)
    path.unlink()
    with pytest.raises(DataError, match=r"1\.png is not finite"):
        fill(frozen, keys, lambda lq: {"restored": lq * float("nan")}, batch_size=3)
    monkeypatch.setattr(OutputStore, "free", lambda self: 1000)
    with pytest.raises(OutputError, match=r"need .* GB, .* has"):
        fill(frozen, keys, objective.frozen, batch_size=3)
    assert not path.exists()


def test_what_a_network_answers_in_channels_last_is_kept(tmp_path: Path) -> None:
    answer = torch.rand(1, 3, 5, 4).to(memory_format=torch.channels_last)
    store = OutputStore(tmp_path)
    store.put("00", {"restored": answer})
    assert not answer.is_contiguous() and torch.equal(store.get("00")["restored"], answer)


def test_ground_truth_is_kept_exactly(photos: Path) -> None:
    image = torch.randint(0, 256, (3, 8, 8)).float() / 255
    deep = torch.randint(0, 65536, (3, 8, 8)).float() / 65535
    for value, dtype in ((image, torch.uint8), (deep, torch.uint16), (torch.rand(3, 8, 8) / 3, torch.float32)):
        kept = frozen_module._as_integers(value)
        assert kept.dtype == dtype and torch.equal(frozen_module._from_integers(kept), value)


def test_what_is_needed_is_what_the_steps_draw() -> None:
    short = StepBatches(10, 2, 0, 0, 3)
    assert len(needed(short, 4)) == 6
    assert len(needed(StepBatches(10, 2, 0, 0, 500), 4)) == 40
    crossing = StepBatches(10, 4, 0, 2, 4)  # samples 8 to 15: the end of epoch 0 and the start of epoch 1
    assert sorted({variant for variant, _ in needed(crossing, 2)}) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__variants": None}, "data.variants is not given"),
        ({"objective": "restore"}, "objective refine"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(photos: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        refining(photos, **{"backbone_cache": {"keep": "disk"}, **change})


# ---------------------------------------------------------------- kills and processes

CHILD = "import sys; from refine_wrap.training import finetune; finetune(sys.argv[1], quiet=True)"


def environment() -> dict[str, str]:
    here = Path(__file__).resolve().parent
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]),
    }


def test_sigkill_at_any_moment_and_resumed_is_never_killed(photos: Path) -> None:
    """A process that is killed again and again, wherever it happens to be, ends with the same bits."""
    common = {"backbone": {"arch": "test_training:DropNet"}, "train__steps": 40, "save_every": 3, "train__log_every": 1}
    straight = small(photos, **common, output=str(photos.parent / "straight"))
    finetune(straight, quiet=True)
    recipe = small(photos, **common, output=str(photos.parent / "killed"))
    path = photos.parent / "killed.yaml"
    path.write_text(recipe.to_yaml())
    metrics = recipe.folder / "metrics.jsonl"
    killed = []
    for target in (2, 11, 23):  # not long after these steps: within a step, a checkpoint, a line
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], env=environment(), stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < until:
            if metrics.is_file() and metrics.read_text().count("\n") >= target:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        child.wait()
        killed.append(child.returncode)
    assert killed == [-signal.SIGKILL] * 3, child.stderr and child.stderr.read()
    finetune(recipe, quiet=True)
    one, two = final_weights(straight.folder, 40), final_weights(recipe.folder, 40)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert [line["loss"] for line in lines(straight.folder, "train")] == [
        line["loss"] for line in lines(recipe.folder, "train")
    ]


def test_a_run_from_before_a_key_was_there_goes_on(photos: Path) -> None:
    """What its recipe does not say stands at its default; what was changed is still refused."""
    recipe = refining(photos, train__steps=2, save_every=1, output=str(photos.parent / "older"))
    finetune(recipe, quiet=True)
    for path in (recipe.folder / "checkpoints").glob("step_*/state.json"):
        state = json.loads(path.read_text())
        del state["recipe"]["data"]["degradation"]["shrink"], state["recipe"]["strength"]
        path.write_text(json.dumps(state))
    finetune(recipe, quiet=True)
    with pytest.raises(RecipeError, match="shrink"):
        finetune(refining(photos, train__steps=2, save_every=1, output=recipe.output, data__degradation__shrink=[1, 2]))


@pytest.mark.parametrize("kind", ["plain", "cached", "gan", "head"])
def test_two_processes_equal_one(photos: Path, kind: str) -> None:
    """Two gloo processes on the CPU under torch's launcher, the same total batch: every step's loss within 1e-5."""
    common: dict[str, Any] = {"train__batch_size": 4, "train__accumulate": 2, "train__steps": 10}
    if kind == "cached":
        common["backbone_cache"] = {"keep": "disk"}
    if kind == "gan":
        pytest.importorskip("basicsr")
        common["losses"] = {"l1": 1.0, "gan": {"weight": 0.1, "features": 8}}
    if kind == "head":
        common |= {"objective": "quality", "quality": {"head": {"width": 8, "depth": 1}, "match_scores": 0.1}}
        common["backbone"] = {"weights": "shipped:demo_denoiser"}
    one = refining(photos, **common, output=str(photos.parent / "one"))
    two = refining(photos, **common, output=str(photos.parent / "two"))
    finetune(one, quiet=True)
    path = photos.parent / "two.yaml"
    path.write_text(two.to_yaml())
    script = photos.parent / "child.py"
    script.write_text(CHILD)
    # What `accelerate launch` calls for several GPUs; for several CPU processes that asks for mpirun.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two.folder / "run.json").read_text())["processes"] == 2
    first, second = ([line["loss"] for line in lines(recipe.folder, "train")] for recipe in (one, two))
    assert len(second) == 10 and first == pytest.approx(second, abs=1e-5)
    weights = final_weights(two.folder, 10)
    assert all(torch.allclose(value, weights[name], atol=1e-5) for name, value in final_weights(one.folder, 10).items())


# ---------------------------------------------------------------- memory, speed, trackers


def saved_bytes(network: nn.Module, image: Tensor) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes that the forward pass keeps for the backward pass, the output, the gradients."""
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.nbytes
        return value

    network.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = network(image)
        forward = sum(kept.values())  # before the blocks are computed again
        output.square().mean().backward()
    return forward, output.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("SwinIR x4", {"depths": [2, 2, 2, 2], "num_heads": [2, 2, 2, 2]}),
        ("HAT x4", {"depths": [1, 1, 1], "num_heads": [2, 2, 2]}),
        ("RRDBNet x4", {"num_block": 4}),
        ("NAFNet", {"enc_blk_nums": [2, 2], "middle_blk_num": 2, "dec_blk_nums": [2, 2]}),
        ("RCAN x2", {"num_group": 4}),
        ("Restormer", {"num_blocks": [2, 2, 2, 2]}),
    ],
)
def test_activation_checkpointing_saves_memory_alone(name: str, more: dict[str, Any]) -> None:
    arch, options, _ = networks.FAMILIES[name]
    networks.family_backbone(name)  # skips where the package is missing
    torch.manual_seed(0)
    network = load_backbone(arch, options={**options, **more}).module.train()
    image = torch.rand(1, 3, 32, 32)
    torch.manual_seed(1)
    before, output, gradients = saved_bytes(network, image)
    names = list(network.state_dict())
    assert checkpoint_activations(network) > 1
    torch.manual_seed(1)
    after, again, others = saved_bytes(network, image)
    assert torch.equal(output, again) and list(network.state_dict()) == names
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(gradients, others, strict=True))
    assert after < 0.6 * before, (before, after)


def test_activation_checkpointing_is_told_when_it_does_nothing(photos: Path) -> None:
    recipe = small(photos, backbone={"arch": f"{DropNet.__module__}:DropNet"}, train__activation_checkpointing=True)
    with pytest.warns(RuntimeWarning, match="no repeated blocks"):
        finetune(recipe, quiet=True)


def test_a_compiled_run_is_the_same_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = small(photos, output=str(photos.parent / "plain"))
    compiled = small(photos, output=str(photos.parent / "compiled"), train__compile=True)
    finetune(plain, quiet=True)
    seen = []
    # The tracing is real; the code that inductor would make takes a minute to build.
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self: (
            seen.append(type(self).__name__),
            setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend="aot_eager")),
        ),
    )
    finetune(compiled, quiet=True)
    assert seen == ["NAFNet"]
    weights = final_weights(compiled.folder)
    assert all(torch.allclose(value, weights[name], atol=1e-5) for name, value in final_weights(plain.folder).items())


def test_tensorboard_gets_the_curves(photos: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    validation = {"gt": [str(photos)], "limit": 1}
    recipe = small(photos, train__trackers=["tensorboard"], data__validation=validation)
    finetune(recipe, quiet=True)
    folder = next(path.parent for path in recipe.folder.rglob("events.out.*"))
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8, 12]
    told = [line["loss"] for line in lines(recipe.folder, "train")]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(told, rel=1e-6)
    assert "validation/PSNR" in events.Tags()["scalars"]


def test_a_tracker_that_is_not_installed_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = small(photos, train__trackers=["wandb"])
    with pytest.raises(RecipeError, match="wandb, which is not installed"):
        finetune(recipe, quiet=True)
    assert not recipe.folder.exists()


# ---------------------------------------------------------------- before a run


@pytest.mark.parametrize("keep", ["none", "disk"])
def test_a_dry_run_tells_and_writes_nothing(photos: Path, keep: str) -> None:
    validation = {"gt": [str(photos)], "limit": 2}
    recipe = refining(photos, backbone_cache={"keep": keep}, data__validation=validation)
    before = sorted(photos.parent.rglob("*"))
    report = dry_run(recipe)
    assert sorted(photos.parent.rglob("*")) == before
    parameters = report["parameters"]
    objective = build_objective(recipe)
    refiner = sum(p.numel() for p in objective.trained().parameters())
    backbone = sum(p.numel() for p in objective.backbone.parameters())
    assert parameters == {"trained": refiner, "all": refiner + backbone, "share": refiner / (refiner + backbone)}
    assert report["seconds_per_step"] > 0 and report["hours"] * 3600 >= 12 * report["seconds_per_step"]
    # Weights, their average, and two moments of each parameter, in float32.
    assert report["checkpoint_mib"] * 2**20 == pytest.approx(16 * refiner, rel=0.05)
    assert report["peak_memory_mib"] > 50 and set(report["losses"]) == {"l1"}
    if keep == "disk":
        assert report["cached_outputs"] == 8
        assert report["cached_mib"] * 2**20 == 8 * (3 * 16 * 16 * 4 + 3 * 16 * 16 + 4 * 8)  # and the crop's place


def test_the_command_line_dry_run_and_explain(photos: Path) -> None:
    recipe = small(photos)
    path = photos.parent / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    run = CliRunner()
    told = run.invoke(app, ["finetune", str(path), "train.steps=20", "--dry-run"])
    assert told.exit_code == 0 and "about" in told.output and "20 steps" in told.output, told.output
    as_json = run.invoke(app, ["finetune", str(path), "--dry-run", "--json"])
    assert json.loads(as_json.output)["steps"] == 12
    assert not recipe.folder.exists()
    told = run.invoke(app, ["finetune", str(path), "train.ema=0.5", "--explain", "train.ema"])
    assert told.exit_code == 0 and "here: 0.5" in told.output
    assert run.invoke(app, ["finetune", "--explain", "train.emma"]).exit_code == 2
    assert run.invoke(app, ["finetune"]).exit_code == 2


def test_every_key_is_explained(photos: Path) -> None:
    from refine_wrap.recipe.words import all_keys

    recipe = small(photos)
    for key in all_keys():
        text = explain_key(".".join(map(str, key)), recipe)
        assert len(text.splitlines()[1].strip()) > 10, key


def test_a_run_can_be_repeated_from_its_folder(photos: Path) -> None:
    recipe = small(photos)
    finetune(recipe, quiet=True)
    again = Recipe.load(recipe.folder / "recipe.yaml", [f"output={photos.parent / 'again'}"])
    finetune(again, quiet=True)
    weights = final_weights(again.folder)
    assert all(torch.equal(value, weights[name]) for name, value in final_weights(recipe.folder).items())
    about = json.loads((recipe.folder / "run.json").read_text())
    assert about["seed"] == 0 and about["versions"]["torch"] == torch.__version__ and about["folder"] == os.getcwd()


def test_frozen_data_reads_in_workers(photos: Path) -> None:
    kept = refining(photos, backbone_cache={"keep": "disk"}, train__workers=2, output=str(photos.parent / "kept"))
    plain = refining(photos, output=str(photos.parent / "plain"))
    for recipe in (kept, plain):
        finetune(recipe, quiet=True)
    assert [line["loss"] for line in lines(kept.folder, "train")] == pytest.approx(
        [line["loss"] for line in lines(plain.folder, "train")], abs=1e-6
    )
    assert isinstance(frozen_data(kept, build_objective(kept).backbone, training_data(kept, 1)), FrozenData)
