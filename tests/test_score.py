"""`score` over files: what a table says, what is kept between runs, and runs that end before they are done.

Run as a program, this file is `refine-wrap` with the toy scorers below: what other processes are started with.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refine_wrap import Picture, RefineWrapError, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.errors import DataError, ImageError
from refine_wrap.scorers import cache as cache_file
from refine_wrap.scorers import files
from refine_wrap.scorers.cache import ScoreCache
from refine_wrap.scorers.core import Scorer
from refine_wrap.scorers.files import score_files
from refine_wrap.scorers.load import shipped_scorers
from refine_wrap.scorers.table import ScoredImage, ScoreTable, text_histogram


class Mean(Scorer):
    """The mean, and how often it was asked for. Best is dark, so that the two scales run against each other."""

    name = "mean"
    worst, best = 1.0, 0.0
    smallest = 4

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.asked = 0

    def raw(self, image: Tensor) -> Tensor:
        image = self.checked(image)
        self.asked += image.shape[0]
        return image.mean((1, 2, 3)) * self.weight


class Red(Mean):
    """Of the first channel; nothing for a black picture."""

    name = "red"
    worst, best = 0.0, 1.0
    smallest = 1

    def raw(self, image: Tensor) -> Tensor:
        super().raw(image)
        red = image[:, 0].mean((1, 2))
        return red / (red > 0)


class Neighbours(Mean):
    """Slow, far more dependent on what is in the batch than rounding makes a network, and not for dark pictures."""

    name = "neighbours"

    def raw(self, image: Tensor) -> Tensor:
        time.sleep(0.03)
        own = super().raw(image)
        if (own < 0.1).any():
            raise ImageError(f"image {int((own < 0.1).nonzero()[0])} of the batch is dark")
        return 0.9 * own + 0.1 * own.mean() + 0.001 * torch.arange(own.numel())


TOYS = {toy.name: toy for toy in (Mean, Red, Neighbours)}


def toy_or_real(source: Any, *, device: Any = "cpu") -> Scorer:
    if isinstance(source, Scorer):
        return source
    if source in TOYS:
        return TOYS[source]().to(device)
    from refine_wrap.scorers.load import load_scorer

    return load_scorer(source, device=device)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Toys by name, and a cache folder of this test's own."""
    monkeypatch.setattr(files, "load_scorer", toy_or_real)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def paint(path: Path, seed: int, shape: tuple[int, ...] = (8, 9, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    write_image(path, Picture(rng.integers(0, 40 + 5 * seed, shape).astype(np.uint8)))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos of two sizes, one of them twice, in two folders."""
    for number, name in enumerate(("b", "a", "sub/a", "sub/c")):
        paint(tmp_path / "photos" / f"{name}.png", number)
    paint(tmp_path / "photos" / "wide.png", 7, (8, 20, 3))
    (tmp_path / "photos" / "sub" / "twin.PNG").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    return tmp_path / "photos"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        app(["score", *map(str, arguments), "--device", "cpu"])
    return int(left.value.code or 0)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "score", *map(str, arguments), "--device", "cpu"],
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def kept(place: Path) -> int:
    """How many scores lie in a cache file, all of its lines whole."""
    lines = [line for line in place.read_bytes().split(b"\n") if line] if place.exists() else []
    return sum(len(json.loads(line[9:])[-1]) for line in lines)


# ---------------------------------------------------------------- the table


def test_a_row_holds_the_scorers_own_numbers(photos: Path) -> None:
    table = score_files(photos, ["mean", "red"])
    assert [image.file for image in table.images] == [
        "a.png",
        "b.png",
        "sub/a.png",
        "sub/c.png",
        "sub/twin.PNG",
        "wide.png",
    ]
    for image in table.images:
        picture = read_image(photos / image.file)
        assert (image.width, image.height) == (picture.width, picture.height)
        for scorer in (Mean(), Red()):
            assert image.raw[scorer.name] == pytest.approx(scorer.raw(picture.tensor()).item(), abs=1e-6)
            assert image.scores[scorer.name] == pytest.approx(scorer(picture.tensor()).item(), abs=1e-6)


def test_csv_and_json_say_the_same_wherever_the_folder_lies(photos: Path, tmp_path: Path) -> None:
    for name in ("t.csv", "t.json"):
        assert call(photos, "-s", "mean", "-s", "red", "-o", tmp_path / name) == 0
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads((tmp_path / "t.json").read_text())
    assert list(rows[0]) == ["file", "width", "height", "mean", "mean_raw", "red", "red_raw"]
    for row, image in zip(rows, document["images"], strict=True):
        assert (row["file"], int(row["width"]), int(row["height"])) == (image["file"], image["width"], image["height"])
        for name in ("mean", "red"):
            assert [float(row[name]), float(row[f"{name}_raw"])] == list(image["scores"][name].values())
    assert [about["digest"] for about in document["scorers"]] == [Mean().digest(), Red().digest()]
    (photos / "broken.png").write_bytes(b"")
    call(photos, "-s", "mean", "-s", "red", "-o", tmp_path / "here.json")
    (tmp_path / "else").mkdir()
    photos.rename(tmp_path / "else" / "where")
    call(tmp_path / "else" / "where", "-s", "mean", "-s", "red", "-o", tmp_path / "there.json", "--no-cache")
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_statistics_and_histogram_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.0, 1.0), (0.412, 0.55), (0.9, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)):
        values = rng.uniform(low, high, 101)
        table = ScoreTable([{"name": "x"}], [ScoredImage("", 1, 1, {"x": 9 * v}, {"x": v}) for v in values])
        found = table.summary()["x"]["raw"]
        assert list(found) == ["n", "mean", "sd", "min", "q1", "median", "q3", "max"]
        expected = [101, values.mean(), values.std(ddof=1), *np.quantile(values, (0, 0.25, 0.5, 0.75, 1))]
        assert list(found.values()) == pytest.approx([expected[0], *(9 * value for value in expected[1:])])
        edges, counts = table.histogram()["x"].values()
        assert len(edges) == len(counts) + 1 <= 21 and 0 <= edges[0] <= low and high <= edges[-1] <= 1
        assert counts[0] and counts[-1] and counts == np.histogram(values, edges)[0].tolist()
    empty = ScoreTable([{"name": "x"}])
    assert empty.summary()["x"]["raw"]["n"] == 0 and json.loads(empty.json())["summary"]["x"]["raw"]["mean"] is None
    assert "nothing" in text_histogram(empty.histogram()["x"])


def test_the_histogram_is_shown_as_text_and_the_csv_can_be_piped(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(photos, "--scorer", "mean", "--histogram") == 0
    out, err = capsys.readouterr()
    assert len(list(csv.DictReader(out.splitlines()))) == 6
    bars = [line.split() for line in err.splitlines() if " to " in line]
    assert sum(int(bar[3]) for bar in bars) == 6
    longest = max(bars, key=lambda bar: int(bar[3]))
    assert longest[4] == "#" * 50 and all(len(bar) == 4 for bar in bars if bar[3] == "0")
    assert call(photos, "--scorer", "mean", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_names_are_below_what_all_sources_share(photos: Path) -> None:
    def names(*sources: Path, **options: bool) -> list[str]:
        return [image.file for image in score_files(sources, "mean", **options).images]

    assert names(photos / "wide.png") == ["wide.png"]
    assert names(photos / "sub" / "a.png", photos / "b.png") == ["b.png", "sub/a.png"]
    assert names(photos, recursive=False) == ["a.png", "b.png", "wide.png"]
    assert names(photos, photos / "sub", photos / "sub" / ".." / "b.png") == names(photos)
    assert names(photos / "sub", photos) == names(photos)


# ---------------------------------------------------------------- which pixels count


def test_depth_grey_alpha_and_orientation(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_image(tmp_path / "plain.png", Picture(pixels))
    write_image(tmp_path / "deep.png", Picture(pixels.astype(np.uint16) * 257))
    write_image(tmp_path / "clear.png", Picture(pixels, np.zeros((9, 7), np.uint8)))
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees
    write_image(tmp_path / "turned.png", Picture(pixels, exif=exif.tobytes()))
    table = score_files(tmp_path, ["mean", "red"])
    assert not table.failed and table.computed == 8
    for image in table.images:
        assert image.raw == pytest.approx(table.images[0].raw, abs=1e-6), image.file
        assert (image.width, image.height) == ((9, 7) if image.file == "turned.png" else (7, 9))
    write_image(tmp_path / "grey" / "g.png", Picture(pixels[..., :1].copy()))
    grey = score_files(tmp_path / "grey", ["mean", "red"]).images[0]
    assert grey.raw["mean"] == pytest.approx(grey.raw["red"]) == pytest.approx(table.images[0].raw["red"])
    # The 16 bits are used, and not 8 of them.
    write_image(tmp_path / "step" / "s.png", Picture(np.full((4, 4, 3), 1000, np.uint16)))
    assert score_files(tmp_path / "step", "mean").images[0].raw["mean"] == pytest.approx(1000 / 65535)


# ---------------------------------------------------------------- what is kept


def test_a_picture_is_scored_once_whatever_its_name_and_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(files, "read_image", lambda path: (read.append(path), read_image(path))[1])
    scorer = Mean()
    first = score_files(photos, scorer, cache=ScoreCache(tmp_path / "kept"))
    assert scorer.asked == first.computed == len(read) == 5  # six files, two of one content
    (tmp_path / "other").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        (tmp_path / "other" / f"{number}.jpg").write_bytes(path.read_bytes())
    again = score_files(tmp_path / "other", scorer, cache=ScoreCache(tmp_path / "kept" / "scores.jsonl"))
    assert scorer.asked == len(read) == 5 and again.computed == 0 and len(again.images) == 5
    assert {i.raw["mean"] for i in again.images} == {i.raw["mean"] for i in first.images}
    assert score_files(photos, scorer).computed == 5  # nothing is kept where no cache is named


def test_other_weights_another_name_or_protocol_are_scored_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(scorer: Scorer) -> int:
        return score_files(photos, scorer, cache=ScoreCache(tmp_path)).computed

    assert [computed(Mean()), computed(Mean())] == [5, 0]
    assert [computed(Mean(weight=0.5)), computed(Mean(weight=0.5))] == [5, 0]
    named = Mean()
    named.name = "twin"
    assert [computed(named), computed(Mean())] == [5, 0]
    monkeypatch.setattr(cache_file, "PROTOCOL", 99)
    assert [computed(Mean()), computed(Mean())] == [5, 0]


def test_what_one_scorer_knows_the_other_does_not(photos: Path, tmp_path: Path) -> None:
    mean, red = Mean(), Red()
    score_files(photos / "sub", mean, cache=ScoreCache(tmp_path))
    both = score_files(photos, [mean, red], cache=ScoreCache(tmp_path))
    assert (mean.asked, red.asked) == (5, 5)
    assert [image.raw for image in both.images] == [image.raw for image in score_files(photos, [Mean(), Red()]).images]


def test_the_users_cache_folder_is_used_unless_told_otherwise(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "xdg" / "refine-wrap" / "scores.jsonl"
    assert call(photos, "-s", "mean", "--no-cache") == 0 and not place.exists()
    assert call(photos, "-s", "mean", "--cache", tmp_path / "mine.jsonl") == 0
    assert not place.exists() and kept(tmp_path / "mine.jsonl") == 5
    assert call(photos, "-s", "mean") == 0 and kept(place) == 5


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2 + 20],
    "a digit": lambda whole: whole.replace(b"0.", b"1.", 1),
    "a hole": lambda whole: whole[:200] + bytes(150) + whole[350:],
    "garbage": lambda whole: bytes(range(256)) * 8,
    "a word": lambda whole: b"word",
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_damaged_cache_is_set_aside_and_its_whole_lines_are_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BATCH", 2)
    for number in range(12):
        paint(tmp_path / "photos" / f"{number:02}.png", number)
    place = tmp_path / "scores.jsonl"
    right = score_files(tmp_path / "photos", "mean", cache=ScoreCache(place))
    whole = place.read_bytes()
    place.write_bytes(DAMAGE[kind](whole))
    with pytest.warns(UserWarning, match=r"damaged.*scores\.jsonl\.damaged"):
        found = score_files(tmp_path / "photos", "mean", cache=ScoreCache(place))
    assert found.csv() == right.csv()
    lines = sum(line in whole.split(b"\n") for line in DAMAGE[kind](whole).split(b"\n") if line)
    assert found.computed == 12 - 2 * lines and (lines == 0) == (kind in ("garbage", "a word"))
    assert (tmp_path / "scores.jsonl.damaged").read_bytes() == DAMAGE[kind](whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score_files(tmp_path / "photos", "mean", cache=ScoreCache(place)).computed == 0


def test_a_line_that_another_process_is_writing_is_no_damage(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "scores.jsonl"
    score_files(photos, "mean", cache=ScoreCache(place))
    whole = place.read_bytes()
    place.write_bytes(whole[:-20])
    monkeypatch.setattr(time, "sleep", lambda seconds: place.write_bytes(whole))  # the other process goes on meanwhile
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score_files(photos, "mean", cache=ScoreCache(place)).computed == 0


def test_where_nothing_can_be_kept_the_run_goes_on_and_says_so_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(photos, "-s", "mean", "-s", "red", "--cache", photos / "a.png" / "folder") == 0
    said = capsys.readouterr()
    assert said.err.count("cannot be kept") == 1 and len(said.out.splitlines()) == 7
    run = start(photos, "-s", "mean", "-s", "red", "--cache", tmp_path, BYTES_A_FILE="300")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0 and out == said.out
    assert err.count("cannot be kept") == 1 and "Traceback" not in err


# ---------------------------------------------------------------- runs that end early


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Sixty photos of three sizes that change now and then, among them twins, and broken ones."""
    for number in range(60):
        paint(tmp_path / "many" / f"{number:02}.png", number % 45, (8, 8 + number // 7 % 3, 3))
    for number in (5, 20, 21):
        (tmp_path / "many" / f"{number:02}.png").write_bytes(b"no picture")
    return tmp_path / "many"


@pytest.mark.parametrize("after", [1, 40])
def test_killed_and_started_again_it_is_as_if_nothing_had_happened(
    after: int, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = score_files(many, ["neighbours", "mean"])
    table.save(tmp_path / "whole.json")
    place = tmp_path / "scores.jsonl"
    options = (many, "-s", "neighbours", "-s", "mean", "-o", tmp_path / "t.json", "--cache", place)
    run = start(*options)
    deadline = time.monotonic() + 120
    while kept(place) < after and time.monotonic() < deadline:
        time.sleep(0.002)
    run.kill()
    run.communicate()
    before = kept(place)
    assert after <= before < table.computed and not (tmp_path / "t.json").exists(), "killed too late"
    assert call(*options) == 1
    assert f"({table.computed - before} scores computed)" in capsys.readouterr().err
    assert (tmp_path / "t.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert kept(place) == table.computed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many", "scores.jsonl", "t.json", "whole.json"]


def test_ctrl_c_says_that_the_scores_are_kept(many: Path, tmp_path: Path) -> None:
    place = tmp_path / "scores.jsonl"
    run = start(many, "-s", "neighbours", "-o", tmp_path / "t.csv", "--cache", place)
    deadline = time.monotonic() + 120
    while kept(place) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in said, said
    assert f"kept in {place}" in said and "of 60" in said and not (tmp_path / "t.csv").exists()
    before = kept(place)
    assert 5 <= before < score_files(many, Neighbours(), cache=ScoreCache(place)).computed + before


def test_two_processes_share_one_cache(many: Path, tmp_path: Path) -> None:
    place = tmp_path / "scores.jsonl"
    runs = [start(many, "-s", "neighbours", "-o", tmp_path / f"{n}.csv", "--cache", place) for n in range(2)]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 1 and "Note" not in said, said
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score_files(many, "neighbours", cache=ScoreCache(place)).computed == 0


# ---------------------------------------------------------------- pictures that cannot be scored


def test_what_cannot_be_scored_is_named_left_out_and_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "wide.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "sub" / "cut too.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    paint(photos / "small.png", 3, (3, 3, 3))
    paint(photos / "small too.png", 3, (3, 3, 3))
    write_image(photos / "black.png", Picture(np.zeros((8, 9, 3), np.uint8)))
    assert call(photos, "-s", "red", "-o", tmp_path / "t.json") == 1
    (tmp_path / "t.json").write_text("kept")
    assert call(photos, "-s", "red", "-o", tmp_path / "t.json") == 1
    assert "exists" in capsys.readouterr().err and (tmp_path / "t.json").read_text() == "kept"
    for _ in range(2):  # the second time much is known already
        assert call(photos, "-s", "red", "-s", "mean", "-o", tmp_path / "t.json", "--overwrite") == 1
        said = capsys.readouterr().err
        document = json.loads((tmp_path / "t.json").read_text())
        failed = {one["file"]: one["reason"] for one in document["failed"]}
        assert list(failed) == sorted(failed) and set(failed) == {
            *("black.png", "cut.png", "empty.jpg", "gone.png", "pipe.png"),
            *("small too.png", "small.png", "sub/cut too.png"),
        }
        assert "truncated" in failed["sub/cut too.png"] and "mean cannot score an image of 3x3" in failed["small.png"]
        assert failed["black.png"].startswith("black.png: red gives nan")
        assert "8 left out" in said and all(f"Left out: {name}" in said for name in failed)
        assert len(document["images"]) == document["summary"]["red"]["raw"]["n"] == 6
    assert "(0 scores computed" in said  # no try again: of what is refused, the other scorer's score is known


def test_one_of_a_batch_is_refused_alone(tmp_path: Path) -> None:
    for number in range(6):
        paint(tmp_path / f"{number}.png", 5 * (number != 3))  # the fourth is dark
    table = score_files(tmp_path, "neighbours")
    assert [file for file, _ in table.failed] == ["3.png"] and len(table.images) == 5
    assert "image 0 of the batch" in table.failed[0][1]


def test_nothing_but_broken_files_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    assert call(tmp_path / "in", "-s", "mean", "-o", tmp_path / "t.csv", "--histogram") == 1
    assert (tmp_path / "t.csv").read_text() == "file,width,height,mean,mean_raw\n"


def test_memory_that_runs_out_is_that_pictures_fault(photos: Path, tmp_path: Path) -> None:
    class Hungry(Mean):
        def raw(self, image: Tensor) -> Tensor:
            if image.shape[-1] == 20:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().raw(image)

    for _ in range(2):  # on another machine, or later, there may be more
        table = score_files(photos, Hungry(), cache=ScoreCache(tmp_path))
        assert table.failed == [("wide.png", "wide.png: Memory runs out when it is scored")] and len(table.images) == 5
    assert table.computed == 1  # tried again


def test_a_file_that_changes_while_it_is_read_is_not_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(path: Path) -> Picture:
        picture = read_image(path)
        if path.name == "b.png":
            path.write_bytes((photos / "wide.png").read_bytes())
        return picture

    monkeypatch.setattr(files, "read_image", changing)
    table = score_files(photos, "mean")
    assert [file for file, _ in table.failed] == ["b.png"] and "changed" in table.failed[0][1]


BAD_CALLS: dict[str, tuple[list[str], int, str]] = {
    "no such file": (["{}/nothing.png", "-s", "mean"], 2, "does not exist"),
    "no such file beside a good one": (["{}/in", "{}/nothing.png", "-s", "mean"], 2, "does not exist"),
    "no images": (["{}/empty", "-s", "mean"], 2, "no image"),
    "unknown scorer": (["{}/in", "-s", "nicke"], 2, "nicke"),
    "a scorer twice": (["{}/in", "-s", "mean", "-s", "mean"], 2, "two scorers"),
    "a table of no known kind": (["{}/in", "-s", "mean", "-o", "{}/t.xlsx"], 2, ".csv"),
    "cache and no cache": (["{}/in", "-s", "mean", "--cache", "{}/c", "--no-cache"], 2, "--no-cache"),
    "a photo as the cache": (["{}/in", "-s", "mean", "--cache", "{}/in/a.png"], 2, ".jsonl"),
    "no such device": (["{}/in", "-s", "mean", "--device", "cuda:9"], 2, "device"),
    "table below a file": (["{}/in", "-s", "mean", "-o", "{}/in/a.png/t.csv"], 1, "t.csv"),
}


def test_the_shipped_scorers_are_taken_unless_one_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        app(["score", str(photos), "--no-cache", "-o", str(tmp_path / "scores.csv")])
    assert left.value.code == 0
    head = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert all(name.removeprefix("shipped:") in head for name in shipped_scorers()) and "ranker" in head


@pytest.mark.parametrize("name", list(BAD_CALLS))
def test_a_bad_call_gets_its_sentence_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, says = BAD_CALLS[name]
    paint(tmp_path / "in" / "a.png", 0)
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.rglob("*"))
    filled = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    with pytest.raises(SystemExit) as left:
        app(["score", *filled])
    said = capsys.readouterr().err
    assert left.value.code == code and says.lower() in said.lower() and "Traceback" not in said, said
    assert set(tmp_path.rglob("*")) == before, "something was written"


def test_a_library_call_is_refused_likewise(photos: Path) -> None:
    with pytest.raises(DataError):
        score_files([], "mean")
    with pytest.raises(RefineWrapError, match="No scorer"):
        score_files(photos, [])
    with pytest.raises(RefineWrapError, match=r"\.csv or \.json"):
        score_files(photos, "mean").save(photos / "t.txt")


# ---------------------------------------------------------------- speed and memory


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Which pictures are decoded and held."""
    held: dict[str, Any] = {}

    def reading(path: Path) -> Picture:
        picture = read_image(path)
        held[path.name] = weakref.ref(picture)
        return picture

    monkeypatch.setattr(files, "read_image", reading)
    yield held


def test_the_next_picture_is_read_while_one_is_scored_unless_that_is_large(
    tmp_path: Path, alive: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BATCH_PIXELS", 1)
    for number in range(4):
        paint(tmp_path / f"{number}.png", number)
    ahead: list[int] = []
    wait = 5.0

    class Watching(Mean):
        def raw(self, image: Tensor) -> Tensor:
            deadline = time.monotonic() + wait
            while len(alive) < len(ahead) + 2 and len(ahead) < 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            ahead.append(sum(picture() is not None for picture in alive.values()))
            return super().raw(image)

    score_files(tmp_path, Watching())
    assert ahead == [1, 1, 1, 0]
    # Only the tensor of the one that is scored is there, and no picture.
    wait = 0.1
    alive.clear()
    ahead.clear()
    monkeypatch.setattr(files, "AHEAD_BYTES", 8 * 9 * 3 - 1)
    score_files(tmp_path, Watching())
    assert ahead == [0, 0, 0, 0]


def test_small_pictures_of_one_size_go_together_and_large_ones_alone(tmp_path: Path) -> None:
    sizes: list[tuple[int, ...]] = []

    class Noting(Mean):
        def raw(self, image: Tensor) -> Tensor:
            sizes.append(tuple(image.shape))
            return super().raw(image)

    for number in range(35):
        paint(tmp_path / f"a{number:02}.png", number)
    for number in range(2):
        paint(tmp_path / f"b{number}.png", number, (8, 10, 3))
        paint(tmp_path / f"c{number}.png", number, (400, 400, 3))
    score_files(tmp_path, Noting())
    assert sizes == [(32, 3, 8, 9), (3, 3, 8, 9), (2, 3, 8, 10), (1, 3, 400, 400), (1, 3, 400, 400)]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nfrom refine_wrap.cli.main import app\n"
        "try:\n    app(['score', '--help'])\nexcept SystemExit as left:\n    assert not left.code\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--histogram" in done.stdout, done.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    if limit := os.environ.get("BYTES_A_FILE"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    files.load_scorer = toy_or_real
    app(sys.argv[1:])
