"""folder.py: files are found, paired and planned without guessing, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_wrap import folder
from refine_wrap.errors import DataError, ImageError, OutputError
from refine_wrap.folder import atomic_path, list_images, pair_by_name, plan_outputs, shard
from refine_wrap.pipeline import process

ROOT = Path(__file__).resolve().parents[1]


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return [root / name for name in names]


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


def run(code: str, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# ---------------------------------------------------------------- listing


def test_list_takes_images_of_any_case_and_nothing_else(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpeg", "sub/c.TIF", "sub/deep/d.webp", "notes.txt", ".hidden.png", ".git/e.png", "png")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "sub/c.TIF", "sub/deep/d.webp"]
    assert [path.name for path in list_images(tmp_path, recursive=False)] == ["a.jpeg", "b.PNG"]
    assert [path.name for path in list_images(tmp_path, skip=tmp_path / "sub")] == ["a.jpeg", "b.PNG"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_links_end(tmp_path):
    touch(tmp_path, "a/x.png", "elsewhere/y.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(tmp_path / "a").as_posix() for path in list_images(tmp_path / "a")]
    assert {"x.png", "gone.png", "self.png"} <= set(found)
    assert sum(name.endswith("y.png") for name in found) == 1
    assert sum(name.endswith("x.png") for name in found) == 1


def test_list_refuses(tmp_path):
    touch(tmp_path, "sub/a.png", "empty/notes.txt")
    for root, words in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no images")):
        with pytest.raises(DataError, match=words):
            list_images(root)
    with pytest.raises(DataError, match="subfolders were not searched"):
        list_images(tmp_path, recursive=False)


@given(count=st.integers(1, 9), items=st.lists(st.integers(), max_size=40))
def test_shards_are_a_partition(count, items):
    parts = [shard(items, index, count) for index in range(count)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 0), (2, 2), (-1, 2), (0, -1)])
def test_shard_refuses(index, count):
    with pytest.raises(DataError, match=f"shard {index} of {count}"):
        shard([1, 2], index, count)


# ---------------------------------------------------------------- pairing


def pairs(*args, **options) -> list[tuple[str, str]]:
    return [(gt.name, lq.name) for gt, lq in pair_by_name(*args, **options)]


def test_pairs_by_path_below_the_root(tmp_path):
    touch(tmp_path / "gt", "a/1.png", "b/1.png", "c.TIFF")
    touch(tmp_path / "lq", "a/1.JPG", "b/1.png", "c.png")
    found = pair_by_name(tmp_path / "gt", tmp_path / "lq")
    assert [(gt.parent.name, lq.parent.name) for gt, lq in found] == [("a", "a"), ("b", "b"), ("gt", "lq")]
    assert found[0][1].name == "1.JPG"


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_scale_suffix_of_basicsr(tmp_path, scale):
    touch(tmp_path / "gt", "0801.png", "0802.png", "box2.png")
    touch(tmp_path / "lq", f"0801x{scale}.png", f"0802x{scale}.png", f"box2x{scale}.png")
    assert pairs(tmp_path / "gt", tmp_path / "lq")[2] == ("box2.png", f"box2x{scale}.png")


def test_a_name_that_ends_like_a_scale_is_a_name(tmp_path):
    touch(tmp_path / "gt", "box2.png", "bo.png")
    touch(tmp_path / "lq", "box2.png", "bo.png")
    assert pairs(tmp_path / "gt", tmp_path / "lq") == [("bo.png", "bo.png"), ("box2.png", "box2.png")]


def test_polyu_in_one_folder(tmp_path):
    touch(tmp_path, "X_mean.JPG", "X_real.JPG", "Y_mean.JPG", "Y_real.JPG", "overview.png")
    options = {"gt_pattern": "{name}_mean", "lq_pattern": "{name}_real"}
    assert pairs(tmp_path, tmp_path, **options) == [("X_mean.JPG", "X_real.JPG"), ("Y_mean.JPG", "Y_real.JPG")]
    assert pairs(tmp_path, tmp_path / ".." / tmp_path.name, **options)[0] == ("X_mean.JPG", "X_real.JPG")
    with pytest.raises(DataError, match="same folder"):
        pair_by_name(tmp_path, tmp_path)
    (tmp_path / "Y_real.JPG").unlink()
    with pytest.raises(DataError, match=r"1 without a low-quality partner in .*: Y_mean.JPG"):
        pair_by_name(tmp_path, tmp_path, **options)


def test_one_pattern_may_hold_the_other(tmp_path):
    touch(tmp_path, "a.png", "a_lq.png", "b.png", "b_lq.png")
    expected = [("a.png", "a_lq.png"), ("b.png", "b_lq.png")]
    assert pairs(tmp_path, tmp_path, gt_pattern="{name}", lq_pattern="{name}_lq") == expected
    assert pairs(tmp_path, tmp_path, lq_pattern="{name}_lq") == expected
    turned = pairs(tmp_path, tmp_path, gt_pattern="{name}_lq")
    assert turned == [(lq, gt) for gt, lq in expected]


def test_pattern_in_subfolders(tmp_path):
    touch(tmp_path, "s1/GT_010.PNG", "s1/NOISY_010.PNG", "s2/GT_010.PNG", "s2/NOISY_010.PNG")
    found = pair_by_name(tmp_path, tmp_path, gt_pattern="GT_{name}", lq_pattern="NOISY_{name}")
    assert [(gt.parent, lq.parent) for gt, lq in found] == [(tmp_path / s, tmp_path / s) for s in ("s1", "s2")]


def test_unpaired_are_named_up_to_five(tmp_path):
    touch(tmp_path / "gt", "both.png", *(f"g{i}.png" for i in range(7)))
    touch(tmp_path / "lq", "both.png", "sub/l1.png", "both2.png")
    with pytest.raises(DataError) as caught:
        pair_by_name(tmp_path / "gt", tmp_path / "lq")
    text = str(caught.value)
    assert "7 without a low-quality partner" in text and "g0.png, g1.png, g2.png, g3.png, g4.png and 2 more" in text
    assert "2 without a ground-truth partner" in text and "both2.png, sub/l1.png" in text
    assert "g5" not in text and text.count("\n") <= 2


def test_two_files_of_one_name(tmp_path):
    touch(tmp_path / "gt", "a.png", "b.png")
    touch(tmp_path / "lq", "a.png", "a.jpg", "b.png")
    for one, two in (("gt", "lq"), ("lq", "gt")):
        with pytest.raises(DataError, match="two files stand for 'a'"):
            pair_by_name(tmp_path / one, tmp_path / two)
    (tmp_path / "lq" / "a.jpg").rename(tmp_path / "lq" / "ax2.png")
    with pytest.raises(DataError, match="two files stand for 'a'"):
        pair_by_name(tmp_path / "gt", tmp_path / "lq")


@pytest.mark.parametrize("pattern", ["", "mean", "{name}{name}", "{name}/x", "{other}"])
def test_patterns_that_mean_nothing(tmp_path, pattern):
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match="cannot be used"):
        pair_by_name(tmp_path, tmp_path, gt_pattern=pattern)


def test_pairing_refuses_files_and_empty_patterns(tmp_path):
    touch(tmp_path, "gt/a.png", "lq/a.png")
    with pytest.raises(DataError, match="is a file"):
        pair_by_name(tmp_path / "gt" / "a.png", tmp_path / "lq")
    with pytest.raises(DataError, match="fits the pattern"):
        pair_by_name(tmp_path / "gt", tmp_path / "lq", lq_pattern="{name}_real")
    with pytest.raises(DataError, match="does not exist"):
        pair_by_name(tmp_path / "gt", tmp_path / "none")


# ---------------------------------------------------------------- planning


def test_outputs_mirror_the_inputs(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    inputs = touch(root, "a.JPG", "sub/b.png", "sub/c.d.png")
    plan = plan_outputs(inputs, root, out)
    assert [dst.relative_to(out).as_posix() for _, dst in plan] == ["a.JPG", "sub/b.png", "sub/c.d.png"]
    plan = plan_outputs(inputs, root, out, ext="webp", suffix="_x4")
    assert [dst.relative_to(out).as_posix() for _, dst in plan] == ["a_x4.webp", "sub/b_x4.webp", "sub/c.d_x4.webp"]
    assert [src for src, _ in plan] == inputs and not out.exists()


def test_one_file_to_a_folder_or_a_name(tmp_path):
    (source,) = touch(tmp_path, "a.png")
    assert plan_outputs([source], source, tmp_path / "out") == [(source, tmp_path / "out" / "a.png")]
    assert plan_outputs([source], source, tmp_path / "b.jpg") == [(source, tmp_path / "b.jpg")]
    (tmp_path / "d.png").mkdir()
    assert plan_outputs([source], source, tmp_path / "d.png", "tif") == [(source, tmp_path / "d.png" / "a.tif")]


def test_plans_that_would_lose_a_file(tmp_path):
    a_png, a_jpg = touch(tmp_path, "in/a.png", "in/a.jpg")
    with pytest.raises(DataError, match="would both write"):
        plan_outputs([a_png, a_jpg], tmp_path / "in", tmp_path / "out", ext=".png")
    with pytest.raises(DataError, match="overwrite itself"):
        plan_outputs([a_png], tmp_path / "in", tmp_path / "in")
    with pytest.raises(DataError, match="overwrite another input"):
        plan_outputs([a_jpg, a_png], tmp_path / "in", tmp_path / "in", ext="png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match="overwrite itself"):
        plan_outputs([a_png], tmp_path / "in", tmp_path / "link")
    with pytest.raises(DataError, match="overwrite itself"):
        plan_outputs([a_png], a_png, tmp_path / "out" / ".." / "in" / "a.png")
    with pytest.raises(DataError, match="'gif' is unknown"):
        plan_outputs([a_png], tmp_path / "in", tmp_path / "out", ext="gif")
    with pytest.raises(DataError, match="does not lie in"):
        plan_outputs([tmp_path / "other.png"], tmp_path / "in", tmp_path / "out")


# ---------------------------------------------------------------- atomic writes


def test_atomic_path_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "x.png"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".png" and temporary.name.startswith(".")
        assert not temporary.exists()
        temporary.write_bytes(b"whole")
        assert not target.exists()
        assert names(tmp_path) == [f"new/{temporary.name}"]
    assert names(tmp_path) == ["new/x.png"] and target.read_bytes() == b"whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, ImageError])
def test_atomic_path_leaves_nothing_and_keeps_the_old(tmp_path, error):
    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error("stop")
    assert names(tmp_path) == ["x.png"] and target.read_bytes() == b"old"


def test_atomic_path_writes_through_a_link_and_takes_long_names(tmp_path):
    touch(tmp_path, "real/x.png")
    (tmp_path / "x.png").symlink_to("real/x.png")
    with atomic_path(tmp_path / "x.png") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "x.png").is_symlink() and (tmp_path / "real/x.png").read_bytes() == b"new"
    with atomic_path(tmp_path / ("ä" * 125 + ".png")) as temporary:
        temporary.write_bytes(b"new")
    with pytest.raises(OutputError, match="too long"), atomic_path(tmp_path / ("a" * 300 + ".png")) as temporary:
        temporary.write_bytes(b"new")


def test_atomic_path_refuses_before_the_work(tmp_path):
    touch(tmp_path, "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target in (
        tmp_path / "file" / "x",
        tmp_path / "folder",
        tmp_path / "pipe",
        Path("/dev/full"),
        Path("/proc/a/b"),
    ):
        with pytest.raises(OutputError, match="cannot be written") as caught, atomic_path(target):
            pytest.fail("the work began")
        assert str(target) in str(caught.value) and caught.value.exit_code == 1
    assert Path("/dev/full").is_char_device()


def test_no_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    code = """
import os, sys
from refine_wrap.errors import OutputError
from refine_wrap.folder import atomic_path
import refine_wrap.folder, secrets
if os.geteuid() == 0:  # root may write anywhere: go on as nobody
    os.setuid(65534)
try:
    with atomic_path(sys.argv[1]): print("began")
except OutputError as error:
    print(error)
"""
    for parent in (tmp_path, *tmp_path.parents):  # up to pytest's own, which is closed to others
        parent.chmod(0o755)
        if parent.name.startswith("pytest-of-") or len(parent.parts) < 4:
            break
    target = tmp_path / "locked" / "x.png"
    child = run(code, tmp_path, str(target))
    output = child.communicate()[0]
    assert "x.png cannot be written: permission denied" in output and "began" not in output


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="nothing was written"), atomic_path(tmp_path / "x.png"):
        pass
    assert names(tmp_path) == []


def test_errors_of_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.png"):
        (tmp_path / "input.png").read_bytes()
    with pytest.raises(OSError, match="other") as caught, atomic_path(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, "other", "/elsewhere/cache.bin")
    assert not isinstance(caught.value, OutputError)


def test_full_device(tmp_path):
    """/dev/full is a real file whose every write fails with ENOSPC."""
    with pytest.raises(OutputError, match=r"x\.png cannot be written: the disk is full\nNext: free some space"):  # noqa: SIM117
        with atomic_path(tmp_path / "x.png") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x")
    assert names(tmp_path) == []


def test_full_disk(tmp_path):
    """A real file system of 256 KiB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root to mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        jobs = [(tmp_path / f"{i}.in", disk / f"{i}.png") for i in range(3)]
        sizes = {"0.in": 100_000, "1.in": 400_000, "2.in": 100_000}
        tally = process(jobs, lambda src: b"x" * sizes[src.name], same, lambda data, dst: dst.write_bytes(data))
        assert tally.done == 2 and len(tally.failed) == 1
        assert tally.failed[0][0].name == "1.in"
        assert f"{disk / '1.png'} cannot be written: the disk is full" in tally.failed[0][1]
        assert names(disk) == ["0.png", "2.png"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_other_write_errors_have_a_sentence(tmp_path, number):
    with (
        pytest.raises(OutputError, match=r"x\.png cannot be written") as caught,
        atomic_path(tmp_path / "x.png") as temporary,
    ):
        raise OSError(number, os.strerror(number), str(temporary))
    assert caught.value.next_step and temporary.name not in str(caught.value)


def test_two_processes_write_one_path(tmp_path):
    code = """
import sys
from refine_wrap.folder import atomic_path
for i in range(150):
    with atomic_path("x.bin") as temporary:
        with open(temporary, "wb", buffering=0) as file:
            for _ in range(8):
                file.write(sys.argv[1].encode() * 500)
"""
    writers = [run(code, tmp_path, letter) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            data = (tmp_path / "x.bin").read_bytes()
        except FileNotFoundError:
            continue
        assert len(data) == 4000 and len(set(data)) == 1
        seen.add(data[:1])
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read()
    assert seen and names(tmp_path) == ["x.bin"]


# ---------------------------------------------------------------- running


def same(items):
    return items


def test_process_does_skips_and_goes_on(tmp_path):
    sources = touch(tmp_path, "a", "b", "c")
    jobs = [(source, tmp_path / "out" / f"{source.name}.png") for source in sources]
    touch(tmp_path, "out/a.png")
    told = []

    def read(src):
        return src.name.encode()

    def write(data, dst):
        dst.write_bytes(b"half")
        if data == b"b":
            raise ImageError(f"{dst} has a fault", "none")
        dst.write_bytes(data)

    def on_done(src, dst, outcome, message):
        told.append((src.name, outcome, message))

    tally = process(jobs, read, same, write, on_done=on_done)
    assert (tally.done, tally.skipped, tally.exit_code) == (1, 1, 1)
    message = f"{jobs[1][1]} has a fault\nExpected: none"
    assert tally.failed == [(sources[1], message)]
    assert told == [("a", "skipped", None), ("b", "failed", message), ("c", "done", None)]
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    assert (tmp_path / "out/a.png").read_bytes() == b"x"
    tally = process(jobs[::2], read, same, write, overwrite=True)
    assert (tally.done, tally.skipped, tally.failed, tally.exit_code) == (2, 0, [], 0)
    assert (tmp_path / "out/a.png").read_bytes() == b"a"


@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_process_ends_on_other_errors_and_leaves_nothing(tmp_path, stage):
    def fault(*_):
        raise RuntimeError("a fault in the program")

    def write(_, dst):
        dst.write_bytes(b"half")
        fault()

    stages = {"read": same, "work": same, "write": write}
    stages |= {stage: write if stage == "write" else fault}
    with pytest.raises(RuntimeError, match="a fault"):
        process([(tmp_path / "a", tmp_path / "a.png")], *stages.values())
    assert names(tmp_path) == []


@pytest.mark.parametrize("stage", ["read", "work", "open"])
def test_what_fails_at_any_stage_is_told_and_the_rest_goes_on(tmp_path, stage):
    def failing(at):
        def run(item):
            if stage == at and item in (Path("b"), [Path("b")]):
                raise ImageError("b has a fault", "none")
            return item

        return run

    if stage == "open":
        (tmp_path / "b.png").mkdir()
    jobs = [(Path(name), tmp_path / f"{name}.png") for name in "abc"]
    tally = process(jobs, failing("read"), failing("work"), lambda item, dst: dst.write_text(item.name))
    assert tally.done == 2 and [src for src, _ in tally.failed] == [Path("b")]
    assert ("has a fault" in tally.failed[0][1]) == (stage != "open")
    assert [name for name in names(tmp_path) if name != "b.png"] == ["a.png", "c.png"]


def test_reading_and_writing_go_on_beside_the_work(tmp_path):
    read, written = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]
    number = {Path(str(i)): i for i in range(4)}
    beside = []

    def reading(src):
        read[number[src]].set()
        return number[src]

    def work(items):
        (i,) = items
        ahead = i == 3 or read[i + 1].wait(20)
        beside.append(ahead and (i == 0 or written[i - 1].wait(20)))
        return items

    def write(i, dst):
        dst.write_text(str(i))
        written[i].set()

    tally = process([(src, tmp_path / f"{i}.png") for src, i in number.items()], reading, work, write)
    assert beside == [True] * 4 and tally.done == 4
    assert [(tmp_path / f"{i}.png").read_text() for i in range(4)] == list("0123")


def test_batches_follow_each_other_and_are_alike(tmp_path):
    seen, told = [], []
    jobs = [
        (tmp_path / name, tmp_path / "out" / f"{i}.png") for i, name in enumerate(["aa", "ab", "ac", "b", "ad", "ae"])
    ]
    touch(tmp_path, "out/4.png")

    def work(items):
        seen.append(items)
        if "ab" in items:
            raise ImageError("ab has a fault", "none")
        return items

    tally = process(
        jobs,
        lambda src: src.name,
        work,
        lambda item, dst: dst.write_text(item),
        batch=2,
        alike=lambda item: item[0],
        on_done=lambda src, dst, outcome, message: told.append((src.name, outcome)),
    )
    # One of a batch that fails does not take the others with it.
    assert seen == [["aa", "ab"], ["aa"], ["ab"], ["ac"], ["b"], ["ae"]]
    outcomes = ["done", "failed", "done", "done", "skipped", "done"]
    assert told == [(src.name, outcome) for (src, _), outcome in zip(jobs, outcomes, strict=True)]
    assert (tally.done, tally.skipped, len(tally.failed)) == (4, 1, 1)
    assert names(tmp_path / "out") == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def test_ctrl_c_in_the_middle(tmp_path):
    code = """
import time
from pathlib import Path
from refine_wrap.pipeline import process
def work(items):
    if items == ["1"]:
        while not Path("out/0.png").exists(): time.sleep(0.01)
        print("working", flush=True); time.sleep(60)
    return items
process([(Path(str(i)), Path("out") / f"{i}.png") for i in range(3)], str, work, lambda i, dst: dst.write_text(i))
"""
    child = run(code, tmp_path)
    assert child.stdout.readline() == "working\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    assert "KeyboardInterrupt" in child.stderr.read()
    assert names(tmp_path / "out") == ["0.png"]
    assert (tmp_path / "out/0.png").read_text() == "0"


def test_a_temporary_file_of_a_killed_run_is_no_input(tmp_path):
    code = """
import time
from refine_wrap.folder import atomic_path
with atomic_path("x.png") as temporary:
    temporary.write_bytes(b"half"); print("writing", flush=True); time.sleep(60)
"""
    child = run(code, tmp_path)
    child.stdout.readline()
    child.kill()
    child.wait()
    assert len(names(tmp_path)) == 1
    with pytest.raises(DataError, match="holds no images"):
        list_images(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40), unique=True))
def test_any_name_can_be_planned_and_written(stems):
    with tempfile.TemporaryDirectory() as base:
        root = Path(base)
        jobs = (
            plan_outputs([root / "in" / f"f{stem}.png" for stem in stems], root / "in", root / "out") if stems else []
        )
        for src, _ in jobs:
            touch(src.parent, src.name)
        if jobs:
            jobs = plan_outputs(list_images(root / "in"), root / "in", root / "out", ext="jpg")
        tally = process(jobs, lambda src: src.name.encode(), same, lambda data, dst: dst.write_bytes(data))
        assert tally.done == len(stems)
        for src, dst in jobs:
            assert dst.read_bytes() == src.name.encode()


def test_folder_is_light():
    code = "import sys, refine_wrap.folder; print([m for m in ('torch', 'numpy', 'PIL', 'cv2') if m in sys.modules])"
    assert run(code, ROOT).communicate()[0].strip() == "[]"
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"} == folder.IMAGE_SUFFIXES
