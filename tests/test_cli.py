"""The command line as a user meets it: what it writes, what it says, its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refine_wrap import Picture, RefineWrapper, load_backbone, read_image, write_image
from refine_wrap.cli.main import app

TINY = {"preset": "ornet-lite", "width": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small x2 checkpoint that spandrel recognises, an adapter for it, and photos of several kinds."""
    place = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    body = load_backbone("SRVGGNetCompact", options={"num_feat": 8, "num_conv": 16, "upscale": 2})
    save_file(
        {name: value.contiguous() for name, value in body.published_state_dict().items()}, place / "x2.safetensors"
    )
    wrapper = RefineWrapper(load_backbone(place / "x2.safetensors"), refiner=TINY)
    with torch.no_grad():
        wrapper.refiner.ending.bias.fill_(0.01)
    wrapper.save_pretrained(place / "adapter")
    rng = np.random.default_rng(0)
    photos = place / "photos"
    for name, shape, dtype, alpha in (
        ("rgb.png", (17, 23, 3), np.uint8, False),
        ("sub/deep16.png", (9, 8, 3), np.uint16, False),
        ("grey.png", (8, 9, 1), np.uint8, False),
        ("alpha.png", (12, 12, 3), np.uint8, True),
        ("photo.jpg", (20, 20, 3), np.uint8, False),
    ):
        pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
        picture = Picture(pixels, alpha=pixels[..., 0].copy() if alpha else None)
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(photos / name, picture)
    return place


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        app([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("batch", ["1", "3"])
def test_folder_run_keeps_names_depth_grey_and_alpha(place: Path, tmp_path: Path, batch: str) -> None:
    assert (
        call(
            "restore",
            place / "photos",
            "-o",
            tmp_path / "out",
            "--adapter",
            place / "adapter",
            "--backbone",
            place / "x2.safetensors",
            "--device",
            "cpu",
            "--batch",
            batch,
        )
        == 0
    )
    for source in sorted(p for p in (place / "photos").rglob("*") if p.is_file()):
        before, after = read_image(source), read_image(tmp_path / "out" / source.relative_to(place / "photos"))
        assert (after.height, after.width) == (2 * before.height, 2 * before.width)
        assert (after.bits, after.grey, after.alpha is None) == (before.bits, before.grey, before.alpha is None), (
            source.name
        )


def test_what_exists_is_skipped_and_replaced_only_when_asked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backbone", place / "x2.safetensors")
    target = tmp_path / "rgb.png"
    assert call("restore", place / "photos" / "rgb.png", "-o", target, *options) == 0
    first = target.read_bytes()
    target.write_bytes(b"mine")
    assert call("restore", place / "photos" / "rgb.png", "-o", target, *options) == 0
    assert target.read_bytes() == b"mine" and "1 skipped" in capsys.readouterr().err
    assert call("restore", place / "photos" / "rgb.png", "-o", target, "--overwrite", *options) == 0
    assert target.read_bytes() == first


def test_tiles_and_whole_give_the_same_file(place: Path, tmp_path: Path) -> None:
    options = ("--backbone", place / "x2.safetensors", "--adapter", place / "adapter", "--ext", "png")
    assert call("restore", place / "photos" / "photo.jpg", "-o", tmp_path / "a", "--tile", "none", *options) == 0
    assert call("restore", place / "photos" / "photo.jpg", "-o", tmp_path / "b", "--tile", "16", *options) == 0
    a, b = (read_image(tmp_path / name / "photo.png").pixels.astype(int) for name in "ab")
    assert abs(a - b).max() <= 1


def test_strength_reaches_the_refiner(place: Path, tmp_path: Path) -> None:
    wrapper = RefineWrapper.from_pretrained(place / "adapter", backbone=place / "x2.safetensors")
    with torch.no_grad():
        wrapper.refiner.intro.weight.fill_(0.01)
        wrapper.refiner.ending.weight.fill_(0.01)
    wrapper.save_pretrained(tmp_path / "moved")
    common = ("--adapter", tmp_path / "moved", "--backbone", place / "x2.safetensors")
    for value in ("0", "1"):
        assert (
            call(
                "restore", place / "photos" / "rgb.png", "-o", tmp_path / f"s{value}.png", "--strength", value, *common
            )
            == 0
        )
    assert (tmp_path / "s0.png").read_bytes() != (tmp_path / "s1.png").read_bytes()


def test_one_broken_file_does_not_stop_the_others(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes((place / "photos" / "rgb.png").read_bytes()[:60])
    (tmp_path / "in" / "b.png").write_bytes((place / "photos" / "rgb.png").read_bytes())
    assert call("restore", tmp_path / "in", "-o", tmp_path / "out", "--backbone", place / "x2.safetensors") == 1
    said = capsys.readouterr().err
    assert "a.png" in said and "1 failed" in said and "Traceback" not in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]


def test_info_says_what_is_assumed_and_what_tiles_cost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", place / "adapter", "--backbone", place / "x2.safetensors", "--json", "--size", "64") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["backbone"]["family"] == "SRVGG" and about["backbone"]["assumed"] == []
    assert about["tiles"]["equal to the whole"] is True
    assert float(about["tiles"]["largest difference"].split("/")[0]) < 1
    assert call("info", "SCUNet", "--size", "64", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["tiles"]["equal to the whole"] is False and about["tiles"]["global operations"] != "none"
    assert call("info", "swinir_x4") == 0


def test_convert_infers_the_width_and_keeps_the_output(tmp_path: Path) -> None:
    from refine_wrap import ORNet

    torch.manual_seed(1)
    official = ORNet(width=6)
    for parameter in official.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, content in {
        "bare.pkl": official.state_dict(),
        "params.pth": {"params": official.state_dict()},
        "module.pkl": {"params": {f"module.{k}": v for k, v in official.state_dict().items()}},
    }.items():
        torch.save(content, tmp_path / name)
        assert call("convert", tmp_path / name, tmp_path / f"{name}-adapter") == 0
        wrapper = RefineWrapper.from_pretrained(tmp_path / f"{name}-adapter", backbone=torch.nn.Identity())
        x = torch.rand(1, 3, 20, 24)
        with torch.no_grad():
            torch.testing.assert_close(wrapper(x), official(x, 0.3))


@pytest.mark.shared
def test_convert_meets_the_official_outputs(tmp_path: Path) -> None:
    golden = load_file(SHARED / "golden" / "ornet_w8_61x45.safetensors")
    state = {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}
    torch.save({"params": state}, tmp_path / "ORNet.pkl")
    assert call("convert", tmp_path / "ORNet.pkl", tmp_path / "adapter") == 0
    wrapper = RefineWrapper.from_pretrained(tmp_path / "adapter", backbone=torch.nn.Identity())
    for strength in ("0.0", "0.3", "1.0"):
        with torch.no_grad():
            difference = (wrapper(golden["input"], float(strength)) - golden[f"output.c{strength}"]).abs().max()
        assert difference < 1e-5


def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    assert "All is well." in capsys.readouterr().out


def test_recipe_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipe", "list") == 0
    assert "swinir_x4" in capsys.readouterr().out
    assert call("recipe", "schema", "-o", tmp_path / "schema.json") == 0
    assert "properties" in json.loads((tmp_path / "schema.json").read_text())


def _refine_wrap(*arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "refine_wrap.cli.main", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def test_compare_keeps_a_page_that_exists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / name / "x.png", Picture(np.zeros((8, 8, 3), np.uint8)))
    call = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "page.html")]
    (tmp_path / "page.html").write_text("mine")
    assert CliRunner().invoke(app, call).exit_code == 1
    assert (tmp_path / "page.html").read_text() == "mine"
    assert CliRunner().invoke(app, [*call, "--overwrite"]).exit_code == 0
    assert (tmp_path / "page.html").read_text() != "mine"


def test_help_tells_the_defaults() -> None:
    """Words in square brackets would be taken for markup, and vanish."""
    result = CliRunner().invoke(app, ["restore", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "the receptive field" in result.output and "as the input" in result.output


def test_help_answers_without_torch() -> None:
    code = (
        "import sys, resource\n"
        "from refine_wrap.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as left:\n    assert not left.code\n"
        "heavy = {'torch', 'numpy', 'cv2', 'PIL', 'pydantic', 'huggingface_hub', 'spandrel', 'basicsr'} & set(sys.modules)\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('HEAVY', sorted(heavy)); print('SECONDS', usage.ru_utime + usage.ru_stime)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "restore" in done.stdout and "HEAVY []" in done.stdout
    # Time of the processor, not of the clock: the machine may be busy.
    assert float(done.stdout.split("SECONDS")[1]) < 0.5


def test_importing_the_wrapper_costs_little_over_torch() -> None:
    code = (
        "import resource\n"
        "def used():\n"
        "    u = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    return u.ru_utime + u.ru_stime\n"
        "import torch\n"
        "before = used()\n"
        "from refine_wrap import RefineWrapper, load_backbone\n"
        "print(used() - before)\n"
    )
    costs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert sorted(costs)[1] < 0.3, costs


def test_basicsr_imports_after_refine_wrap() -> None:
    if subprocess.run(
        [sys.executable, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('basicsr') is None)"]
    ).returncode:
        pytest.skip("BasicSR is not installed")
    code = "import refine_wrap, sys; assert 'torch' not in sys.modules; from basicsr.archs.swinir_arch import SwinIR; print(SwinIR.__name__)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        .stdout.strip()
        .endswith("SwinIR")
    )


def test_interrupted_run_exits_with_130_and_leaves_no_half_file(place: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    picture = Picture(np.zeros((500, 500, 3), np.uint8))
    for index in range(40):
        write_image(inputs / f"{index:02}.png", picture)
    out = tmp_path / "out"
    run = _refine_wrap("restore", inputs, "-o", out, "--backbone", place / "x2.safetensors")
    deadline = time.monotonic() + 120
    while not (out.is_dir() and list(out.glob("[0-9]*.png"))) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in said, said
    files = [p for p in out.rglob("*") if p.is_file()]
    assert 1 <= len(files) < 40
    for path in files:
        assert (read_image(path).height, read_image(path).width) == (1000, 1000)


def test_two_runs_into_one_folder_leave_whole_files(place: Path, tmp_path: Path) -> None:
    runs = [
        _refine_wrap(
            "restore", place / "photos", "-o", tmp_path / "out", "--backbone", place / "x2.safetensors", "--overwrite"
        )
        for _ in range(2)
    ]
    for run in runs:
        _, said = run.communicate(timeout=180)
        assert run.returncode == 0, said
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == sorted(str(p.relative_to(place / "photos")) for p in (place / "photos").rglob("*") if p.is_file())
    for path in found:
        read_image(tmp_path / "out" / path)


BAD_CALLS: dict[str, tuple[list[str], int, str]] = {
    "no such input": (["restore", "{}/missing.png", "-o", "{}/o.png"], 2, "no file or folder"),
    "empty folder": (["restore", "{}/empty", "-o", "{}/o"], 2, "no image"),
    "folder into a file": (["restore", "{}/in", "-o", "{}/o.png"], 2, "a folder"),
    "output is the input": (["restore", "{}/in/a.png", "-o", "{}/in/a.png", "--overwrite"], 2, "input"),
    "two inputs, one output": (["restore", "{}/twins", "-o", "{}/o", "--ext", "png"], 2, "one output"),
    "unknown ext": (["restore", "{}/in", "-o", "{}/o", "--ext", "gif"], 2, "gif"),
    "batch 0": (["restore", "{}/in", "-o", "{}/o", "--batch", "0"], 2, "at least 1"),
    "bits 12": (["restore", "{}/in", "-o", "{}/o", "--bits", "12"], 2, "8 or 16"),
    "tile zero": (["restore", "{}/in", "-o", "{}/o", "--tile", "0"], 2, "--tile"),
    "tile word": (["restore", "{}/in", "-o", "{}/o", "--tile", "big"], 2, "--tile"),
    "negative halo": (["restore", "{}/in", "-o", "{}/o", "--halo", "-1", "--backbone", "{}/x2.safetensors"], 2, "halo"),
    "strength 2": (
        ["restore", "{}/in", "-o", "{}/o", "--strength", "2", "--backbone", "{}/x2.safetensors"],
        2,
        "strength",
    ),
    "dtype word": (
        ["restore", "{}/in", "-o", "{}/o", "--dtype", "int8", "--backbone", "{}/x2.safetensors"],
        2,
        "dtype",
    ),
    "no such device": (
        ["restore", "{}/in", "-o", "{}/o", "--device", "cuda:9", "--backbone", "{}/x2.safetensors"],
        2,
        "device",
    ),
    "missing backbone": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/no.pth"], 2, "no file"),
    "unknown architecture": (["restore", "{}/in", "-o", "{}/o", "--backbone", "SwinIRR"], 2, "did you mean"),
    "truncated safetensors": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/cut.safetensors"], 2, "safetensors"),
    "truncated pth": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/cut.pth"], 2, "checkpoint"),
    "empty pth": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/empty.pth"], 2, "checkpoint"),
    "pickle with code": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/code.pth"], 2, "more than tensors"),
    "unknown keys": (
        ["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/keys.safetensors"],
        2,
        "no known architecture",
    ),
    "missing keys": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/lack.safetensors"], 2, "does not fit"),
    "NaN weights": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/nan.safetensors"], 2, "not finite"),
    "not a state dict": (["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/list.pth"], 2, "no state dict"),
    "no such adapter": (["restore", "{}/in", "-o", "{}/o", "--adapter", "{}/nothing"], 2, "no folder"),
    "a folder that is no adapter": (["restore", "{}/in", "-o", "{}/o", "--adapter", "{}/in"], 2, "not an adapter"),
    "adapter without its backbone": (["restore", "{}/in", "-o", "{}/o", "--adapter", "{}/adapter"], 2, "--backbone"),
    "adapter on another backbone": (
        ["restore", "{}/in", "-o", "{}/o", "--adapter", "{}/adapter", "--backbone", "{}/x4.safetensors"],
        2,
        "made for",
    ),
    "revision without adapter": (
        ["restore", "{}/in", "-o", "{}/o", "--backbone", "{}/x2.safetensors", "--revision", "v1"],
        2,
        "--revision",
    ),
    "unknown shipped name": (["restore", "{}/in", "-o", "{}/o", "--backbone", "shipped:nothing"], 2, "come with"),
    "malformed hub address": (["restore", "{}/in", "-o", "{}/o", "--backbone", "hf://justone"], 2, "hf://"),
    "truncated image": (
        ["restore", "{}/bad/cut.png", "-o", "{}/o.png", "--backbone", "{}/x2.safetensors"],
        1,
        "cut.png",
    ),
    "empty image": (["restore", "{}/bad/empty.png", "-o", "{}/o.png", "--backbone", "{}/x2.safetensors"], 1, "empty"),
    "text named png": (
        ["restore", "{}/bad/text.png", "-o", "{}/o.png", "--backbone", "{}/x2.safetensors"],
        1,
        "text.png",
    ),
    "alpha into jpg": (["restore", "{}/alpha.png", "-o", "{}/o.jpg", "--backbone", "{}/x2.safetensors"], 1, "alpha"),
    "output below a file": (
        ["restore", "{}/in/a.png", "-o", "{}/x2.safetensors/o.png", "--backbone", "{}/x2.safetensors"],
        1,
        "o.png",
    ),
    "full disk": (["restore", "{}/in/a.png", "-o", "/dev/full/o.png", "--backbone", "{}/x2.safetensors"], 1, "full"),
    "unknown option": (["restore", "{}/in", "-o", "{}/o", "--strenght", "1"], 2, "--strength"),
    "unknown verb": (["restor"], 2, "restore"),
    "unknown recipe": (["finetune", "swinir_x5"], 2, "swinir_x4"),
    "recipe key": (["finetune", "swinir_x4", "train.step=3"], 2, "train.steps"),
    "recipe value": (["finetune", "swinir_x4", "train.steps=many"], 2, "train.steps"),
    "recipe without photos": (
        ["finetune", "nafnet_denoise", "backbone.weights=null", "data.train.gt={}/empty", "output={}/o"],
        2,
        "empty",
    ),
    "compare one folder": (["compare", "{}/in", "-o", "{}/o.html"], 2, "two or more"),
    "compare nothing in common": (["compare", "{}/in", "{}/bad", "-o", "{}/o.html"], 2, "common"),
    "push what is no adapter": (["push", "{}/in", "org/name"], 2, "not an adapter"),
    "convert what is no ORNet": (["convert", "{}/x2.safetensors", "{}/o"], 2, "not an ORNet"),
    "info about nothing": (["info"], 2, "info"),
}


@pytest.fixture(scope="module")
def bad(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be wrong, in one folder."""
    import shutil

    bad = tmp_path_factory.mktemp("bad")
    photo = (place / "photos" / "rgb.png").read_bytes()
    for folder in ("in", "empty", "twins", "bad"):
        (bad / folder).mkdir()
    (bad / "in" / "a.png").write_bytes(photo)
    (bad / "twins" / "b.png").write_bytes(photo)
    shutil.copy(place / "photos" / "photo.jpg", bad / "twins" / "b.jpg")
    shutil.copy(place / "photos" / "alpha.png", bad / "alpha.png")
    (bad / "bad" / "cut.png").write_bytes(photo[: len(photo) // 2])
    (bad / "bad" / "empty.png").touch()
    (bad / "bad" / "text.png").write_text("this is no picture")
    whole = (place / "x2.safetensors").read_bytes()
    shutil.copy(place / "x2.safetensors", bad)
    shutil.copytree(place / "adapter", bad / "adapter")
    (bad / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    state = load_file(place / "x2.safetensors")
    torch.save(state, bad / "whole.pth")
    (bad / "cut.pth").write_bytes((bad / "whole.pth").read_bytes()[:2000])
    (bad / "empty.pth").touch()
    torch.save({"state": os.system, "x": torch.ones(1)}, bad / "code.pth")
    torch.save([1, 2], bad / "list.pth")
    save_file({"something.weight": torch.ones(3)}, bad / "keys.safetensors")
    save_file({k: v for k, v in state.items() if k != "body.2.bias"}, bad / "lack.safetensors")
    save_file(
        {k: torch.full_like(v, float("nan")) if k == "body.2.bias" else v for k, v in state.items()},
        bad / "nan.safetensors",
    )
    x4 = load_backbone("SRVGGNetCompact", options={"num_feat": 8, "num_conv": 16, "upscale": 4})
    save_file({k: v.contiguous() for k, v in x4.published_state_dict().items()}, bad / "x4.safetensors")
    return bad


@pytest.mark.parametrize("name", list(BAD_CALLS))
def test_a_bad_call_gets_its_sentence_and_leaves_nothing(
    name: str, bad: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, code, says = BAD_CALLS[name]
    monkeypatch.chdir(bad)
    before = {p: p.read_bytes() for p in bad.rglob("*") if p.is_file()}
    assert call(*(argument.replace("{}", str(bad)) for argument in arguments)) == code
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert says.lower() in said.lower(), said
    assert "Traceback" not in said
    error = [line for line in captured.err.splitlines() if line.startswith(("Error:", "Expected:", "Next:"))]
    assert len(error) <= 3
    assert {p: p.read_bytes() for p in bad.rglob("*") if p.is_file()} == before, "something was written"
