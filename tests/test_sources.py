"""Where images come from: folders, lists, LMDBs and tar shards give the same samples and refuse the same mistakes."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from refine_wrap.degradation import Degradation, Noise
from refine_wrap.errors import DataError, ImageError, RecipeError
from refine_wrap.images import read_image
from refine_wrap.recipe import Recipe
from refine_wrap.training import DegradedData, PairedData, sources
from refine_wrap.training.data import ImageStore, StepBatches, loader, training_data, validation_data
from refine_wrap.training.sources import digest, images, pairs

SIDE = 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(seed: int, side: int = SIDE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", side: int = SIDE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(buffer, kind)
    return buffer.getvalue()


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def file_list(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def lmdb_of(path: Path, files: Mapping[str, bytes]) -> Path:
    """As BasicSR's `make_lmdb_from_imgs` writes it."""
    lmdb = pytest.importorskip("lmdb")
    environment = lmdb.open(str(path), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for name, data in files.items():
            transaction.put(os.path.splitext(name)[0].encode(), data)
    environment.close()
    names = [f"{os.path.splitext(name)[0]}.png ({SIDE},{SIDE},3) 1" for name in files]
    file_list(path / "meta_info.txt", names)
    return path


def tar_of(path: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# Folders, unicode, spaces, several formats; the names sort differently as text and as paths ("a b" < "a/x").
PHOTOS = {
    "a b.png": encoded(0),
    "a/x.jpg": encoded(1, "JPEG"),
    "a/y.webp": encoded(2, "WEBP"),
    "b.tif": encoded(3, "TIFF"),
    "Übung 夜.png": encoded(4),
}


def places(tmp_path: Path, files: Mapping[str, bytes], name: str = "photos") -> dict[str, str]:
    """The same images as each kind of source."""
    root = folder(tmp_path / name, files)
    ordered = [path.relative_to(root).as_posix() for path in images(str(root))]  # type: ignore[union-attr]
    tricky = [f"{line} ({SIDE},{SIDE},3)" if number % 2 else line for number, line in enumerate(ordered)]
    return {
        "folder": str(root),
        "list": str(file_list(tmp_path / f"{name}.txt", ["# a list", "", *(f"{name}/{line}" for line in tricky)])),
        "lmdb": str(lmdb_of(tmp_path / f"{name}.lmdb", files)),
        "tar": str(tar_of(tmp_path / f"{name}.tar", dict(reversed(list(files.items()))))),
        "gnu tar": str(tar_of(tmp_path / f"{name} gnu.tar", files, format=tarfile.GNU_FORMAT)),
    }


def recipe(cache: float = 1.0, **train: Any) -> Recipe:
    data: dict[str, Any] = {"train": train, "crop": 16, "cache": cache}
    if "lq" not in train:
        data["degradation"] = {"noise": {"sigma": [5, 25]}}
    return Recipe.from_dict(
        {
            "version": 1,
            "name": "small",
            "objective": "restore",
            "backbone": {"arch": "NAFNet"},
            "data": {**data, "validation": {**train, "limit": 3, "crop": 16}},
            "train": {"steps": 1},
        }
    )


def equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in ("lq", "gt", "strength"))


# ---------------------------------------------------------------- the same samples


@pytest.mark.parametrize("cache", [1.0, 0.0])
def test_every_kind_gives_the_samples_of_the_folder(tmp_path: Path, cache: float) -> None:
    kinds = places(tmp_path, PHOTOS)
    wanted = training_data(recipe(gt=kinds["folder"]), 1)
    for kind, source in kinds.items():
        made = recipe(cache, gt=source)
        data, held_out = training_data(made, 1), validation_data(made, 1)
        assert len(data) == len(PHOTOS) and held_out is not None and len(held_out) == 3
        for key in [(0, 0), (0, 1), (2, 2), (1, 3), (0, 4)]:
            assert equal(data[key], wanted[key]), (kind, key)
        assert [digest(row[0]) for row in data.store.rows] == [digest(row[0]) for row in wanted.store.rows]


def test_kinds_may_be_mixed_and_what_comes_twice_counts_once(tmp_path: Path) -> None:
    kinds = places(tmp_path, PHOTOS)
    data = training_data(recipe(gt=[*kinds.values(), kinds["tar"], kinds["lmdb"]]), 1)
    # The list names the files of the folder; the others have images of their own.
    assert len(data) == 4 * len(PHOTOS)
    names = {str(row[0]) for row in data.store.rows}
    assert f"{kinds['tar']}/a/x.jpg" in names and f"{kinds['lmdb']}/a/x" in names
    assert data[0, len(data) - 1]["name"] in names


def lq_of(files: Mapping[str, bytes], side: int = SIDE // 2) -> dict[str, bytes]:
    return {os.path.splitext(name)[0] + ".png": encoded(100 + n, side=side) for n, name in enumerate(files)}


def test_pairs_of_every_two_kinds_are_those_of_the_folders(tmp_path: Path) -> None:
    gt, lq = places(tmp_path, PHOTOS, "gt"), places(tmp_path, lq_of(PHOTOS), "lq")
    wanted = [tuple(map(digest, pair)) for pair in pairs(gt["folder"], lq["folder"])]
    assert len(wanted) == len(PHOTOS)
    for gt_kind in gt.values():
        for lq_kind in lq.values():
            assert [tuple(map(digest, pair)) for pair in pairs(gt_kind, lq_kind)] == wanted, (gt_kind, lq_kind)
    data = training_data(recipe(gt=[gt["tar"], gt["lmdb"]], lq=[lq["tar"], lq["lmdb"]]), 2)
    assert isinstance(data, PairedData) and data[0, 0]["lq"].shape == (3, 8, 8)
    alone = training_data(recipe(gt=gt["folder"], lq=lq["folder"]), 2)
    assert all(equal(data[0, index], alone[0, index]) for index in range(3))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(tmp_path: Path, workers: int) -> None:
    kinds = places(tmp_path, PHOTOS)
    data = training_data(recipe(0.0, gt=[kinds["lmdb"], kinds["tar"]]), 1)
    batches = StepBatches(len(data), 5, 0, 0, 4)
    alone = list(loader(data, batches, 0))
    helped = list(loader(data, batches, workers))
    assert len(alone) == 4 and all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert all(equal(a, b) for a, b in zip(alone, loader(data, batches, 0), strict=True))  # here it goes on as before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_opens_its_own_lmdb(tmp_path: Path) -> None:
    """The library forbids the inherited one, though it mostly works."""
    item = images(str(lmdb_of(tmp_path / "x.lmdb", {"1.png": encoded(1)})))[0]
    read_image(item)
    assert len(sources._environments) >= 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if not sources._environments and np.array_equal(read_image(item).pixels, pixels(1)):
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(read_image(item).pixels, pixels(1))


def test_spawned_workers_change_nothing(tmp_path: Path) -> None:
    kinds = places(tmp_path, PHOTOS)
    data = training_data(recipe(gt=[kinds["lmdb"], kinds["tar"], kinds["list"]]), 1)
    batches = StepBatches(len(data), 5, 0, 0, 3)
    spawned = DataLoader(data, batch_sampler=batches, num_workers=2, multiprocessing_context="spawn")
    assert all(equal(a, b) for a, b in zip(loader(data, batches, 0), spawned, strict=True))


def test_threads_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = places(tmp_path, {f"{n:02d}.png": encoded(n) for n in range(8)})
    items = [*images(kinds["lmdb"]), *images(kinds["tar"])]

    def sound(offset: int) -> bool:
        order = [(offset + step) % len(items) for step in range(40)]
        return all(np.array_equal(read_image(items[place]).pixels, pixels(place % 8)) for place in order)

    sources._close_inherited()  # so that all open the LMDB at once
    quick = sources._open_lmdb
    monkeypatch.setattr(sources, "_open_lmdb", lambda path: (time.sleep(0.1), quick(path))[1])
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(sound, range(6)))


def test_items_survive_pickling_and_are_equal_after(tmp_path: Path) -> None:
    for source in places(tmp_path, PHOTOS).values():
        items = images(source)
        copies = pickle.loads(pickle.dumps(items))
        assert copies == items and len({*items, *copies}) == len(PHOTOS)
        assert np.array_equal(read_image(copies[0]).pixels, read_image(items[0]).pixels)


def test_16_bits_and_every_format_are_read_as_from_files(tmp_path: Path) -> None:
    deep = (np.arange(SIDE * SIDE, dtype=np.uint16) * 100).reshape(SIDE, SIDE)
    buffer, tiff = io.BytesIO(), io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    Image.fromarray(pixels(5)).save(tiff, "TIFF", compression="tiff_lzw")  # which tifffile leaves to others
    files = {**PHOTOS, "deep.png": buffer.getvalue(), "lzw.tif": tiff.getvalue()}
    kinds = places(tmp_path, files)
    for item, path in zip(images(kinds["tar"]), images(kinds["folder"]), strict=True):
        first, second = read_image(item), read_image(path)
        assert np.array_equal(first.pixels, second.pixels) and first.pixels.dtype == second.pixels.dtype
        assert (first.format, first.icc, first.exif) == (second.format, second.icc, second.exif)


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("0001.png", "0001.png"),
        ("0001_s001.png (480,480,3)", "0001_s001.png"),
        ("0001.png (480, 480, 3) 1", "0001.png"),
        ("0001.png 480 480", "0001.png"),
        ("0001.png 480x480", "0001.png"),
        ("0001.JPG 230400", "0001.JPG"),
        ("  my photo.png  ", "my photo.png"),
        ("my photo 2.png (480,480,3)", "my photo 2.png"),
        ("photo (1).png", "photo (1).png"),
        ("photo.png (1).png", "photo.png (1).png"),
        ("a#1.png", "a#1.png"),
        ("sub/no suffix 3", "sub/no suffix 3"),
    ],
)
def test_lines_of_lists(tmp_path: Path, line: str, name: str) -> None:
    folder(tmp_path, {name: encoded(0)})
    assert images(str(file_list(tmp_path / "list.txt", [line]))) == [tmp_path / name]


def test_paths_of_a_list_are_below_its_folder_or_the_root_or_absolute(tmp_path: Path) -> None:
    root = folder(tmp_path / "data" / "HR", {"1.png": encoded(1), "2.png": encoded(2)})
    lists = tmp_path / "lists"
    lists.mkdir()
    wanted = [root / "1.png", root / "2.png"]
    beside = file_list(root / "x.txt", ["1.png", "2.png", "1.png"])
    assert images(str(beside)) == wanted
    away = file_list(lists / "x.txt", ["1.png", "2.png"])
    assert images(str(away), str(root)) == wanted
    assert images(str(file_list(lists / "y.txt", [str(path) for path in wanted]))) == wanted
    with pytest.raises(DataError, match=rf"The files of .*x\.txt do not exist; line 1 means {lists}") as caught:
        images(str(away))
    assert "gt_root" in str(caught.value.next_step)
    data = training_data(recipe(gt=str(away), gt_root=str(root)), 1)
    assert len(data) == 2


def test_a_listed_file_that_is_gone_is_named_and_left_out(tmp_path: Path) -> None:
    folder(tmp_path, {"1.png": encoded(1), "2.png": encoded(2)})
    source = file_list(tmp_path / "x.txt", ["1.png", "gone.png", "2.png"])
    with pytest.warns(RuntimeWarning, match=r"1 of 3 .*gone\.png.*does not exist.*left out"):
        data = training_data(recipe(gt=str(source)), 1)
    assert len(data) == 2


def test_a_list_selects_from_the_folder_of_its_partner(tmp_path: Path) -> None:
    """BasicSR's meta_info_file: names of ground truth; the low-quality folder may hold more."""
    gt = folder(tmp_path / "HR", {f"{n}.png": encoded(n) for n in range(4)})
    lq = folder(tmp_path / "LR", {f"{n}x2.png": encoded(n, side=SIDE // 2) for n in range(4)})
    meta = file_list(tmp_path / "meta.txt", ["2.png (24,24,3)", "0.png (24,24,3)"])
    found = pairs(str(meta), str(lq), gt_root=str(gt))
    assert found == [(gt / "0.png", lq / "0x2.png"), (gt / "2.png", lq / "2x2.png")]
    assert pairs(str(meta), str(lq), gt_root=str(gt), lq_pattern="{name}x2") == found
    (lq / "0x2.png").unlink()
    with pytest.raises(DataError, match=r"1 without a low-quality partner in .*meta\.txt: 0\.png"):
        pairs(str(meta), str(lq), gt_root=str(gt))


def test_two_lists_pair_below_their_common_folders(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.png"]
    folder(tmp_path / "HR", {name: encoded(1) for name in names})
    folder(tmp_path / "LR", {name: encoded(1) for name in names})
    gt = file_list(tmp_path / "gt.txt", [f"HR/{name}" for name in names])
    lq = file_list(tmp_path / "lq.txt", [f"LR/{name}" for name in reversed(names)])
    assert pairs(str(gt), str(lq)) == [(tmp_path / "HR" / name, tmp_path / "LR" / name) for name in names]
    short = file_list(tmp_path / "short.txt", ["LR/a/1.png", "LR/c/1.png"])
    with pytest.raises(DataError, match=r"1 without a low-quality partner in .*gt\.txt: b/1\.png; 1 without .*: c/1"):
        pairs(str(gt), str(short))
    with pytest.raises(DataError, match="the same list"):
        pairs(str(gt), str(gt))


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "names no images"), (b"# only this\n", "no images"), (b"\xff\xfe\xfa", "UTF-8")]
)
def test_lists_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        images(str(tmp_path / "x.txt"))
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        images(str(tmp_path / "none.txt"))


def test_roots_are_for_lists_only() -> None:
    with pytest.raises(RecipeError, match=r"data\.train\.gt_root is given and data\.train\.gt names no list"):
        recipe(gt="photos", gt_root="x")
    with pytest.raises(RecipeError, match=r"lq_root is given"):
        recipe(gt="a.txt", lq="photos", gt_root="x", lq_root="y")
    assert recipe(gt="a.txt", lq="b.TXT", gt_root="x", lq_root="y").data.train.lq_root == "y"


# ---------------------------------------------------------------- LMDB


def test_basicsr_reads_the_same_keys(tmp_path: Path) -> None:
    """Made by BasicSR's own writer, from files, and read here."""
    pytest.importorskip("lmdb")
    from refine_wrap import compat

    compat.install()
    util = pytest.importorskip("basicsr.utils.lmdb_util")
    root = folder(tmp_path / "photos", {f"{n}.png": encoded(n) for n in range(3)})
    names = sorted(path.name for path in root.iterdir())
    util.make_lmdb_from_imgs(str(root), str(tmp_path / "x.lmdb"), names, [name[:-4] for name in names])
    items = images(str(tmp_path / "x.lmdb"))
    assert [str(item) for item in items] == [f"{tmp_path}/x.lmdb/{n}" for n in range(3)]
    assert all(np.array_equal(read_image(item).pixels, pixels(n)) for n, item in enumerate(items))


def test_without_the_package_the_refusal_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lmdb_of(tmp_path / "x.lmdb", {"1.png": encoded(1)})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match="the package lmdb is not installed") as caught:
        images(str(source))
    assert caught.value.next_step == "pip install lmdb"


def break_lmdb(path: Path, how: str) -> None:
    whole = (path / "data.mdb").read_bytes()
    if how == "cut":
        (path / "data.mdb").write_bytes(whole[: len(whole) // 2])
    elif how == "noise":
        (path / "data.mdb").write_bytes(b"x" * 20000)
    elif how == "empty":
        (path / "data.mdb").write_bytes(b"")
    elif how == "twice":
        (path / "meta_info.txt").write_text("1.png (24,24,3) 1\n1.png (24,24,3) 1\n")
    elif how == "no names":
        (path / "meta_info.txt").write_text("\n")
    elif how == "gone":
        shutil.rmtree(path)
    elif how == "file":
        shutil.rmtree(path)
        path.write_text("")
    else:
        (path / how).unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "is truncated"),
        ("noise", "cannot be opened"),
        ("empty", "cannot be opened"),
        ("twice", r"meta_info\.txt:2: the key '1' comes twice"),
        ("no names", "names no images"),
        ("data.mdb", r"it has no data\.mdb"),
        ("meta_info.txt", r"it has no meta_info\.txt"),
        ("gone", "does not exist"),
        ("file", "is no folder"),
    ],
)
def test_broken_lmdbs_are_refused(tmp_path: Path, how: str, words: str) -> None:
    source = lmdb_of(tmp_path / "x.lmdb", {f"{n}.png": encoded(n, side=64) for n in range(4)})
    break_lmdb(source, how)
    with pytest.raises(DataError, match=words):
        images(str(source))


def test_an_lmdb_needs_no_lock_file(tmp_path: Path) -> None:
    source = lmdb_of(tmp_path / "x.lmdb", {"1.png": encoded(1)})
    (source / "lock.mdb").unlink(missing_ok=True)
    read_image(images(str(source))[0])
    assert sorted(path.name for path in source.iterdir()) == ["data.mdb", "meta_info.txt"]


@pytest.mark.parametrize("cache", [1.0, 0.0])
def test_a_record_that_is_missing_is_named(tmp_path: Path, cache: float) -> None:
    source = lmdb_of(tmp_path / "x.lmdb", {"1.png": encoded(1), "2.png": encoded(2)})
    with open(source / "meta_info.txt", "a") as file:
        file.write("sub/3.png (24,24,3) 1\n")
    with pytest.warns(RuntimeWarning, match=r"1 of 3 .*x\.lmdb/sub/3 .*not in the database"):
        assert len(training_data(recipe(cache, gt=str(source)), 1)) == 2


# ---------------------------------------------------------------- tar shards


def test_shards_by_braces_and_stars(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        tar_of(tmp_path / f"s-{number:03d}.tar", {"key.png": encoded(number)})
    base = str(tmp_path / "s-")
    assert [str(item) for item in images(base + "{000..002}.tar")] == [f"{base}00{n}.tar/key.png" for n in range(3)]
    assert len(images(base + "*.tar")) == 4 and len(images(base + "{000,010}.tar")) == 2
    assert len(images(base + "0{0,1}{0..0}.tar")) == 2 and len(images(base + "{000,00?}.tar")) == 3
    with pytest.raises(DataError, match=r"s-003\.tar, .*s-007\.tar and 2 more do not exist"):
        images(base + "{000..009}.tar")
    with pytest.raises(DataError, match="does not exist"):
        images(str(tmp_path / "none*.tar"))
    with pytest.raises(DataError, match="counts from 5 to 2"):
        images(base + "{5..2}.tar")
    literal = tar_of(tmp_path / "odd[1]{0..1}.tar", {"key.png": encoded(0)})
    assert len(images(str(literal))) == 1


def test_pairs_in_one_shard(tmp_path: Path) -> None:
    for shard in ("a", "b"):  # keys begin anew in each shard
        files = {}
        for number in range(3):
            files[f"{number}.gt.png"] = encoded(number + 10 * (shard == "b"))
            files[f"{number}.lq.jpg"] = encoded(number, "JPEG", SIDE // 2)
            files[f"{number}.json"] = b"{}"
        tar_of(tmp_path / f"{shard}.tar", files)
    source = str(tmp_path / "*.tar")
    found = pairs(source, source)
    names = [f"{tmp_path}/{shard}.tar/{number}" for shard in "ab" for number in range(3)]
    assert [(str(gt), str(lq)) for gt, lq in found] == [(f"{name}.gt.png", f"{name}.lq.jpg") for name in names]
    assert [str(item) for item in images(source)] == [f"{name}.gt.png" for name in names]  # not the low quality
    assert pairs(source, str(tmp_path / "{a,b}.tar")) == found
    data = training_data(recipe(gt=source, lq=source), 2)
    assert len(data) == 6 and data[0, 4]["name"].endswith("b.tar/1.gt.png")


def test_pairs_in_two_shards_and_by_patterns(tmp_path: Path) -> None:
    gt = tar_of(tmp_path / "gt.tar", {"./d/1.png": encoded(1), "d/2.png": encoded(2)})
    lq = tar_of(tmp_path / "lq.tar", {"d/2x2.png": encoded(2, side=12), "d/1.lq.png": encoded(1, side=12)})
    with pytest.raises(DataError, match=r"1 images of the field lq.* and 1 of no field"):
        pairs(str(gt), str(lq))
    tar_of(tmp_path / "lq.tar", {"d/2x2.png": encoded(2, side=12), "d/1.png": encoded(1, side=12)})
    names = [(str(a).rsplit("/", 1)[1], str(b).rsplit("/", 1)[1]) for a, b in pairs(str(gt), str(lq))]
    assert names == [("1.png", "1.png"), ("2.png", "2x2.png")]
    both = str(tar_of(tmp_path / "both.tar", {"1.hr.png": encoded(1), "1.lr.png": encoded(1), "2.hr.png": encoded(2)}))
    with pytest.raises(DataError, match=r"fields are hr \(2\), lr \(1\)"):
        pairs(both, both)
    with pytest.raises(DataError, match=r"1 without a low-quality partner in .*both\.tar: .*2\.hr\.png"):
        pairs(both, both, gt_pattern="{name}.hr", lq_pattern="{name}.lr")
    with pytest.raises(DataError, match="both ground truth and low quality"):
        pairs(str(gt), str(gt))


def test_up_to_five_without_partners_are_named(tmp_path: Path) -> None:
    gt = tar_of(tmp_path / "gt.tar", {f"{n}.png": encoded(0) for n in range(9)})
    lq = tar_of(tmp_path / "lq.tar", {"8.png": encoded(0), "z.png": encoded(0)})
    with pytest.raises(DataError) as caught:
        pairs(str(gt), str(lq))
    assert f"8 without a low-quality partner in {gt}: 0.png, 1.png, 2.png, 3.png, 4.png and 3 more" in caught.value.came
    assert f"1 without a ground-truth partner in {lq}: z.png" in caught.value.came


def test_keys_that_come_twice_are_refused(tmp_path: Path) -> None:
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as archive:
        for seed in range(2):
            member = tarfile.TarInfo("k.png")
            member.size = len(encoded(seed))
            archive.addfile(member, io.BytesIO(encoded(seed)))
    with pytest.raises(DataError, match=r"twice\.tar holds k\.png 2 times"):
        images(str(twice))
    a, b = (tar_of(tmp_path / f"{n}.tar", {"k.png": encoded(0)}) for n in "ab")
    lq = tar_of(tmp_path / "lq", {"k.png": encoded(0)}).rename(tmp_path / "lq.tar")
    with pytest.raises(DataError, match=rf"two files stand for 'k': {a}/k\.png and {b}/k\.png"):
        pairs(str(tmp_path / "{a,b}.tar"), str(lq))
    formats = tar_of(tmp_path / "formats.tar", {"k.png": encoded(0), "k.jpg": encoded(0, "JPEG")})
    with pytest.raises(DataError, match="two files stand for 'k'"):
        pairs(str(formats), str(lq))


def test_names_that_would_leave_the_folder_are_only_names(tmp_path: Path) -> None:
    names = ["../../outside.png", "/etc/absolute.png", "C:\\x.png", ".hidden.png", "__MACOSX/._k.png", "k.png"]
    shard = tar_of(tmp_path / "x.tar", {name: encoded(0) for name in names})
    before = sorted(tmp_path.rglob("*"))
    items = images(str(shard))
    assert [str(item)[len(str(shard)) :] for item in items] == [
        "/../../outside.png",
        "/C:\\x.png",
        "/etc/absolute.png",
        "/k.png",
    ]
    assert all(np.array_equal(read_image(item).pixels, pixels(0)) for item in items)
    assert sorted(tmp_path.rglob("*")) == before


def test_dots_in_names_are_fields(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "x.tar", {"a.png": encoded(0), "b.1.png": encoded(1), "a.seg.png": encoded(2)})
    with pytest.warns(RuntimeWarning, match=r"2 members .*left out.*a\.seg\.png"):
        assert [str(item) for item in images(str(shard))] == [f"{shard}/a.png"]


def cut(path: Path, keep: Callable[[int], int]) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: keep(len(whole))])


def test_a_truncated_shard_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", {f"{n}.png": encoded(n) for n in range(3)}).read_bytes()
    end = len(whole.rstrip(b"\0"))
    shard = tmp_path / "cut.tar"
    for length in [0, 1, 511, 512, 700, end // 3, end // 2, end - 600, end - 1, -(-end // 512) * 512]:
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar is damaged or truncated"):
            images(str(shard))
    shard.write_bytes(whole)
    assert len(images(str(shard))) == 3


def test_a_shard_with_a_broken_header_is_refused(tmp_path: Path) -> None:
    """tarfile alone would take it for the end, and the rest would be gone in silence."""
    shard = tar_of(tmp_path / "x.tar", {f"{n}.png": encoded(n) for n in range(3)})
    data = bytearray(shard.read_bytes())
    second = data.index(b"1.png\0")
    data[second + 150] ^= 0xFF  # its checksum
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.tar is damaged or truncated: no header at byte {second:,}"):
        images(str(shard))
    one, two = (tar_of(tmp_path / f"{n}.tar", {f"{n}.png": encoded(n)}).read_bytes() for n in (1, 2))
    shard.write_bytes(one + two)
    with pytest.raises(DataError, match="goes on behind its end mark"):
        images(str(shard))


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_refused_with_the_reason(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"x.tar.{packing}"
    with tarfile.open(path, f"w:{packing}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("k.png"))
    shutil.copy(path, tmp_path / "y.tar")
    for name in (path, tmp_path / "y.tar"):
        with pytest.raises(DataError, match=r"is compressed with .*cannot be reached one by one"):
            images(str(name))


def test_links_and_no_images_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", {"k.png": encoded(0)})
    (root / "l.png").symlink_to("k.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root, "photos")
    with pytest.raises(DataError, match=r"photos/l\.png is a link") as caught:
        images(str(tmp_path / "x.tar"))
    assert "--dereference" in str(caught.value.next_step)
    with pytest.raises(DataError, match="holds no images"):
        images(str(tar_of(tmp_path / "none.tar", {"a.txt": b"x"})))
    (tmp_path / "text.tar").write_text("hello" * 500)
    with pytest.raises(DataError, match="is damaged"):
        images(str(tmp_path / "text.tar"))


def test_a_shard_that_changes_during_the_run_is_not_read(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "x.tar", {"k.png": encoded(0), "l.png": encoded(1)})
    item = images(str(shard))[1]
    tar_of(shard, {"k.png": encoded(0, side=30), "l.png": encoded(1)})
    with pytest.raises(ImageError, match=r"x\.tar/l\.png cannot be read: .* has changed"):
        read_image(item)


def test_the_index_of_a_large_shard_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tar_of(tmp_path / "x.tar", {f"{n}é.png": encoded(n) for n in range(3)})
    wanted = images(str(shard))
    assert not (tmp_path / "cache").exists()  # small shards leave nothing behind
    monkeypatch.setattr(sources, "INDEXED_FROM", 1)
    assert images(str(shard)) == wanted
    kept = next((tmp_path / "cache" / "refine-wrap" / "tar-index").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_index", lambda shard: pytest.fail("the headers are read again"))
        assert images(str(shard)) == wanted
    for damage in (b"", b"{}", b"[1]", b'{"version": 1', kept.read_bytes().replace(b".png", b".png\xff")):
        kept.write_bytes(damage)
        assert images(str(shard)) == wanted
    assert json.loads(kept.read_text())["shard"] == str(shard)
    tar_of(shard, {"other.png": encoded(7)})
    assert [str(item) for item in images(str(shard))] == [f"{shard}/other.png"]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    assert len(images(str(shard))) == 1


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("kind", ["folder", "list", "lmdb", "tar"])
@pytest.mark.parametrize("cache", [1 << 30, 0])
def test_broken_images_are_named_counted_and_left_out(tmp_path: Path, kind: str, cache: int) -> None:
    files = {f"{n:03d}.png": encoded(n, side=8) for n in range(250)}
    files["007.png"] = b"no image at all"
    files["010.png"] = b""
    source = places(tmp_path, files)[kind]
    named = str(images(source)[7])
    rows = [(item,) for item in images(source)]
    with pytest.warns(RuntimeWarning) as caught:
        data = DegradedData(ImageStore(rows, cache), Degradation(noise=Noise()), crop=8)
    text = str(caught[0].message)
    assert text.startswith(f"2 of 250 training images cannot be read: {named}, ") and "left out" in text
    assert len(data) == 248
    files["200.png"] = files["001.png"][:20]
    other = tmp_path / "other"
    other.mkdir()
    rows = [(item,) for item in images(places(other, files)[kind])]
    with pytest.raises(DataError, match="3 of 250 training images"):
        ImageStore(rows, cache)


@pytest.mark.parametrize("kind", ["lmdb", "tar"])
def test_an_image_that_fails_only_when_decoded_is_replaced_by_the_next(tmp_path: Path, kind: str) -> None:
    files = {f"{n}.png": encoded(n) for n in range(4)}
    files["1.png"] = files["1.png"][:-40]  # the header is sound
    source = places(tmp_path, files)[kind]
    rows = [(item,) for item in images(source)]
    data = DegradedData(ImageStore(rows, 0), Degradation(), crop=16)
    assert len(data) == 4
    with pytest.warns(RuntimeWarning, match=r"1 of 4 .*/1"):
        assert data[0, 1]["name"] == str(rows[2][0])


def test_the_errors_of_the_readers_name_the_member(tmp_path: Path) -> None:
    damaged = bytearray(encoded(0))
    damaged[len(damaged) // 2] ^= 0x55
    shard = tar_of(tmp_path / "x.tar", {"a.png": bytes(damaged), "b.png": b"GIF89a", "c.png": b""})
    words = [
        "is a damaged or truncated PNG file",
        "is not an image of a known kind: it is a GIF",
        r"is empty \(0 bytes\)",
    ]
    for item, text in zip(images(str(shard)), words, strict=True):
        with pytest.raises(ImageError, match=rf"x\.tar/{Path(str(item)).name} {text}"):
            read_image(item)


def test_headers_alone_are_read_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = places(tmp_path, PHOTOS)
    rows = [(item,) for kind in ("tar", "lmdb") for item in images(kinds[kind])]
    monkeypatch.setattr(ImageStore, "_try", staticmethod(lambda item: pytest.fail(f"{item} is decoded")))
    store = ImageStore(rows, 0)
    assert set(store.sizes.values()) == {(SIDE, SIDE)} and len(store.sizes) == 2 * len(PHOTOS)


def test_digests_are_of_the_bytes_as_stored(tmp_path: Path) -> None:
    import hashlib

    for source in places(tmp_path, {"k.png": encoded(3)}).values():
        assert digest(images(source)[0]) == hashlib.sha256(encoded(3)).hexdigest()


def test_samples_are_float_tensors_in_range(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = training_data(recipe(gt=places(tmp_path, PHOTOS)["tar"]), 1)
    sample = data[3, 2]
    for name in ("lq", "gt"):
        image: Tensor = sample[name]
        assert image.dtype == torch.float32 and image.shape == (3, 16, 16) and 0 <= image.min() <= image.max() <= 1
