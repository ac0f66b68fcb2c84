"""What all tests share: the place of the developers' folder, a fixed seed, few threads."""

from __future__ import annotations

import os
import signal
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
