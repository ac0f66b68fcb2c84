"""The package as users install it: a wheel used from another folder, an editable install, a bare checkout."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

WHAT_MUST_WORK = """
import sys
import refine_wrap
from refine_wrap import RefineWrapper
from refine_wrap.resources import adapters_dir, weights_dir, recipe_path, verify_weights
assert str(refine_wrap.__file__).startswith(sys.argv[1]), refine_wrap.__file__
assert "swinir_x4" in {p.stem for p in adapters_dir().glob("*.yaml")}, adapters_dir()
assert recipe_path("nafnet_denoise").is_file()
checks = verify_weights()
assert checks and all(check.ok for check in checks), checks
from refine_wrap.report.page import resource
assert all(resource(f"page.{kind}", f"refine_wrap.{room}") for room in ("report", "study") for kind in ("html", "css", "js"))
import torch
model = RefineWrapper.from_pretrained("shipped:demo_refiner")
assert model(torch.rand(1, 3, 17, 19)).shape == (1, 3, 17, 19)
import importlib.util
other = importlib.util.find_spec("adapters")  # in a bare checkout a mere folder, which any real package comes before
assert other is None or other.origin is None, "the name of another package on PyPI is shadowed"
print("works")
"""


def test_setup_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "refine_wrap").rglob("__init__.py")}
    assert listed == found | {"refine_wrap.adapters", "refine_wrap.weights"}


def test_shipped_weights_are_small_whole_and_have_cards() -> None:
    from refine_wrap.resources import manifest, verify_weights, weights_dir

    entries = manifest()["local"]
    assert {"demo_denoiser", "demo_refiner", "ranker", "gauge", "sr_x2", "masks", "refiner"} <= {
        entry["name"] for entry in entries
    }
    assert all(check.ok for check in verify_weights())
    assert sum(entry["bytes"] for entry in entries) < 25_000_000
    for entry in entries:
        card = (weights_dir() / entry["card"]).read_text(encoding="utf-8")
        assert "licence" in card.lower() and "CC-BY-SA-4.0" in card
    listed = {entry["file"] for entry in entries}
    assert {str(p.relative_to(weights_dir())) for p in weights_dir().rglob("*.safetensors")} == listed


def _environment(place: Path) -> Path:
    """A fresh environment that borrows the dependencies of this one, but not its refine_wrap."""
    venv.create(place, with_pip=True)
    borrowed = place / "borrowed"
    borrowed.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "refine_wrap" not in entry.name and not entry.name.endswith(".pth"):
            (borrowed / entry.name).symlink_to(entry)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return place / "bin" / "python"


def _checkout(place: Path) -> Path:
    keep = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "runs", "refine-wrap-demo", ".*_cache")
    shutil.copytree(ROOT, place, ignore=keep)
    return place


def _check(python: Path, folder: Path, expected: Path, **environment: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (folder / "check.py").write_text(WHAT_MUST_WORK)
    done = subprocess.run(
        [python, folder / "check.py", str(expected)],
        cwd=folder,
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "works" in done.stdout, done.stderr


@pytest.mark.packaging
def test_wheel_in_a_fresh_environment_from_another_folder(tmp_path: Path) -> None:
    source = _checkout(tmp_path / "source")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True)
    wheel = next(tmp_path.glob("refine_wrap-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.startswith(("adapters/", "weights/", "tests/"))]
    assert "refine_wrap/py.typed" in names
    python = _environment(tmp_path / "env")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(source)
    _check(python, elsewhere, tmp_path / "env")
    done = subprocess.run([python.parent / "refine-wrap", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refine-wrap ")


@pytest.mark.packaging
@pytest.mark.parametrize("mode", ["compat", "strict"])
def test_editable(tmp_path: Path, mode: str) -> None:
    source = _checkout(tmp_path / "source")
    python = _environment(tmp_path / "env")
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "-e", source]
    if mode == "strict":
        command += ["--config-settings", "editable_mode=strict"]
    subprocess.run(command, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _check(python, elsewhere, source)


@pytest.mark.packaging
def test_bare_checkout(tmp_path: Path) -> None:
    source = _checkout(tmp_path / "source")
    python = _environment(tmp_path / "env")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _check(python, elsewhere, source, PYTHONPATH=str(source))
