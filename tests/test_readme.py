"""The README's snippets and the examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet(index: int, tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (tmp_path / "snippet.py").write_text(SNIPPETS[index])
    done = _run(["snippet.py"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_command_names_verbs_and_options_that_exist() -> None:
    import typer

    from refine_wrap.cli.main import app

    command = typer.main.get_command(app)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    calls = [line for line in lines if line.startswith("refine-wrap ")]
    assert calls
    for line in calls:
        words = line.split("#")[0].split()[1:]
        verb = command.commands[words[0]]  # type: ignore[attr-defined]
        if hasattr(verb, "commands"):
            verb = verb.commands[words[1]]
        options = {name for parameter in verb.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) < 45
    done = _run([str(path)], tmp_path)
    assert done.returncode == 0, done.stderr


def test_demo_runs_offline(tmp_path: Path) -> None:
    done = _run(["-m", "refine_wrap.cli.main", "demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "refine-wrap-demo" / "compare.html"
    assert page.stat().st_size > 10_000
    psnr = {
        line.split()[1]: float(line.split()[2]) for line in done.stdout.splitlines() if line[:2] in {"1 ", "2 ", "3 "}
    }
    assert psnr["restored"] > psnr["noisy"] + 3
    assert psnr["refined"] >= psnr["restored"]
