"""What all tests share: the place of the developers' folder, a fixed seed, few threads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("REFINE_WRAP_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that: the tests of Ctrl-C need it back.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (SHARED / "weights").is_dir():
        skip = pytest.mark.skip(reason=f"needs the shared folder with real weights and photos ({SHARED} is not there)")
        for item in items:
            if "shared" in item.keywords:
                item.add_marker(skip)
    if "packaging" not in (config.getoption("markexpr") or ""):
        skip = pytest.mark.skip(reason="installs into fresh environments; run with -m packaging")
        for item in items:
            if "packaging" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


def at_once(work: Callable[[tuple[int, int]], Iterable[object]]) -> list[object]:
    """Run a folder's work in four threads, twice all of it and twice a half; what failed, and what was raised."""
    failures: list[object] = []

    def run(shard: tuple[int, int]) -> None:
        try:
            failures.extend(work(shard))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(shard,)) for shard in ((0, 1), (0, 1), (0, 2), (1, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def interrupted(command: Sequence[str], there: Path) -> tuple[int, str]:
    """Ctrl-C in a command as soon as a file is there: its exit code, and what it said."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 240
    while not there.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=240)
    return process.returncode, said
