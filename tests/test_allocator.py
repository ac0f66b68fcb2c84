"""The C library keeps freed memory: large blocks are not mapped anew each time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from refine_wrap.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(64 << 20, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
once()
print(kept, once())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run(word: str, **environment: str) -> tuple[bool, int]:
    left = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, word]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=left | environment)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@glibc
def test_large_blocks_are_used_again() -> None:
    kept, faults = run("keep")
    _, before = run("leave")
    assert kept and faults < before / 10


@glibc
def test_what_the_environment_says_is_left_alone() -> None:
    assert run("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] is False
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000")[0] is False


def test_the_command_line_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from refine_wrap.cli import main

    called = []
    monkeypatch.setattr(main, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(main, "app", lambda: None)
    main.run()
    assert called == [True]
