"""The user study: a page that tells nothing, orders that are fair, results that are checked, statistics that hold."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize
from test_report import noisy, photo, save
from typer.testing import CliRunner

from refine_wrap.cli.main import app
from refine_wrap.errors import DataError, ImageError, OutputError, RefineWrapError
from refine_wrap.evaluation import Outputs
from refine_wrap.study import Settings, make, make_study, study_page, study_report
from refine_wrap.study.formats import Key
from refine_wrap.study.plan import draw_plan
from refine_wrap.study.statistics import Vote, agreement, bradley_terry, fleiss, holm, strengths

METHODS = ("swinwrap", "basenet", "oldnet")
IMAGES = ("kitten", "harbour", "sub/tower", "meadow")
QUICK = Settings(trials=6, orders=5, catches=2, crop=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(IMAGES):
        truth = photo(90, 120, seed)
        save(root / "truth" / f"{name}.png", truth)
        save(root / "input" / f"{name}.jpg", truth[::2, ::2])
        for number, method in enumerate(METHODS):
            save(root / method / f"{name}.png", noisy(truth, 6 + 6 * number, seed))
    return root


def made(folders: Path, out: Path, settings: Settings = QUICK, **options: Any) -> Key:
    return make_study([Outputs(folders / method) for method in METHODS], out, settings=settings, **options)


def page_data(out: Path) -> dict[str, Any]:
    html = (out / "raters" / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def answered(out: Path, rater: int, choose: Any, file: Path | None = None, limit: int | None = None) -> Path:
    """What rater N downloads who chooses by a function of (left method, right method, image); a damaged one is None."""
    data, key = page_data(out), Key.read(out / "key.json")
    answers = []
    for place, flip in data["orders"][(rater - 1) % len(data["orders"])][:limit]:
        trial = data["trials"][place]
        left, right = trial["files"][::-1] if flip else trial["files"]
        names = key.trials[trial["id"]].files
        choice = choose(names[left], names[right], key.trials[trial["id"]].image)
        answers.append(
            {"trial": trial["id"], "left": left, "right": right, "choice": choice, "seconds": 2.5, "at": "2026-01-01"}
        )
    document = {"format": 1, "kind": "results of a study", "study": data["study"], "rater": str(rater)}
    document |= {"trials": len(data["orders"][0]), "answers": answers}
    file = file or out / "results" / f"{rater}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def by_strength(draw: random.Random, strength: dict[str, float]) -> Any:
    def choose(left: str | None, right: str | None, image: str) -> str:
        if left is None or right is None:
            return "right" if left is None else "left"
        return "left" if draw.random() < 1 / (1 + math.exp(strength[right] - strength[left])) else "right"

    return choose


# ---------------------------------------------------------------- the raters' folder


def test_nothing_that_raters_get_tells_methods_or_images(folders: Path, tmp_path: Path) -> None:
    key = made(folders, tmp_path / "study", inputs=folders / "input", reference=folders / "truth")
    files = [path for path in (tmp_path / "study" / "raters").rglob("*") if path.is_file()]
    assert len(files) > 10
    words = [*METHODS, *(name.split("/")[-1] for name in IMAGES), "truth", str(folders)]
    for path in files:
        where = path.relative_to(tmp_path / "study").as_posix()
        content = path.read_bytes()
        for word in words:
            assert word not in where
            assert word.encode() not in content, (where, word)
        assert path.stat().st_mtime == files[0].stat().st_mtime
    # Each picture is named by a hash, of one length, and has no metadata.
    assert all(re.fullmatch(r"[0-9a-f]{16}\.webp", path.name) for path in files if path.name != "index.html")
    assert all(not Image.open(path).getexif() for path in files if path.suffix == ".webp")
    assert key.methods == list(METHODS) and set(page_data(tmp_path / "study")) == {"study", "ties", "trials", "orders"}
    assert all(set(trial) == {"id", "files", "beside"} for trial in page_data(tmp_path / "study")["trials"])


def test_the_order_in_the_source_tells_nothing(folders: Path, tmp_path: Path) -> None:
    """Which side a method is on in the page's source, and the trials' order, are as good as drawn."""
    first: Counter[str | None] = Counter()
    for seed in range(6):
        key = made(folders, tmp_path / str(seed), Settings(trials=12, orders=2, catches=0, crop=32, seed=seed))
        trials = page_data(tmp_path / str(seed))["trials"]
        assert [trial["id"] for trial in trials] == sorted(trial["id"] for trial in trials)
        first.update(key.trials[trial["id"]].files[trial["files"][0]] for trial in trials)
    assert all(12 <= first[method] <= 36 for method in METHODS), first  # 24 of 72 expected


def test_the_same_seed_makes_the_same_bytes(folders: Path, tmp_path: Path) -> None:
    def content(place: Path) -> dict[str, bytes]:
        return {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file() and path.name != ".key.lock"
        }

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made(folders, tmp_path / name, Settings(trials=6, orders=5, catches=2, crop=64, seed=seed))
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert not set(a) & {name for name in c if name.endswith(".webp")}
    assert Key.read(tmp_path / "a" / "key.json").study != Key.read(tmp_path / "c" / "key.json").study


def test_pictures_are_the_same_part_as_it_was(folders: Path, tmp_path: Path) -> None:
    key = made(folders, tmp_path / "study", inputs=folders / "input", reference=folders / "truth")
    pictures = tmp_path / "study" / "raters" / "pictures"
    data = page_data(tmp_path / "study")
    seen = 0
    for entry in data["trials"]:
        trial = key.trials[entry["id"]]
        truth = np.asarray(Image.open(folders / "truth" / f"{trial.image}.png"))
        shown = np.asarray(Image.open(pictures / entry["beside"]["reference"]))
        top, left = next(
            (y, x)
            for y, x in product(range(90 - 64 + 1), range(120 - 64 + 1))
            if np.array_equal(truth[y : y + 64, x : x + 64], shown)
        )
        for file, method in trial.files.items():
            part = np.asarray(Image.open(pictures / file))
            assert part.shape == (64, 64, 3)
            whole = np.asarray(Image.open(folders / (method or trial.methods[0]) / f"{trial.image}.png"))
            same = np.array_equal(part, whole[top : top + 64, left : left + 64])
            assert same == (method is not None)
        # The input is enlarged to the same place: it is the reference but for its resolution.
        low = np.asarray(Image.open(pictures / entry["beside"]["input"])).astype(float)
        assert low.shape == shown.shape and np.abs(low - shown).mean() < 12
        seen += trial.is_catch
    assert seen == 2


def test_a_method_may_be_called_as_what_is_beside(folders: Path, tmp_path: Path) -> None:
    methods = [Outputs(folders / "swinwrap", "input"), Outputs(folders / "basenet", "ground truth")]
    places = {"inputs": folders / "input", "reference": folders / "truth"}
    key = make_study(methods, tmp_path, settings=Settings(trials=4, catches=0, crop=None), **places)
    for entry in page_data(tmp_path)["trials"]:
        files = {method: file for file, method in key.trials[entry["id"]].files.items()}
        wanted = {"input": "swinwrap", "ground truth": "basenet"}
        for label, file in [*files.items(), ("reference", entry["beside"]["reference"])]:
            whole = Image.open(folders / wanted.get(label, "truth") / f"{key.trials[entry['id']].image}.png")
            shown = Image.open(tmp_path / "raters" / "pictures" / str(file))
            assert np.array_equal(np.asarray(shown), np.asarray(whole)), label


def test_odd_pictures(tmp_path: Path) -> None:
    """1x1, grey, alpha and 16 bits; the sizes of two images need not be the same."""
    grey = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50
    see_through = np.dstack([photo(20, 30), np.full((20, 30), 0, np.uint8)])
    for method in "ab":
        save(tmp_path / method / "dot.png", np.full((1, 1, 3), 9, np.uint8))
        save(tmp_path / method / "deep.png", grey)
        save(tmp_path / method / "clear.png", see_through)
    with pytest.warns(UserWarning, match="3 of 3 trials show two pictures that are the same"):
        key = make_study([Outputs(tmp_path / m) for m in "ab"], tmp_path / "study", settings=Settings(catches=0))
    shown = {
        trial.image: np.asarray(Image.open(tmp_path / "study" / "raters" / "pictures" / next(iter(trial.files))))
        for trial in key.trials.values()
    }
    assert shown["dot"].tolist() == [[[9, 9, 9]]]
    assert (shown["clear"] == 128).all()
    assert shown["deep"].shape == (40, 30, 3) and shown["deep"][-1, -1, 0] == round(int(grey[-1, -1]) / 257)


def test_refusals(folders: Path, tmp_path: Path) -> None:
    def refuse(text: str, *methods: Path, kind: type[RefineWrapError] = DataError, **options: Any) -> None:
        with pytest.raises(kind, match=text) as found:
            make_study([Outputs(method) for method in methods], tmp_path / "study", **options)
        assert len(str(found.value).splitlines()) <= 3
        assert not (tmp_path / "study" / "raters").exists() and not (tmp_path / "study" / "key.json").exists()
        assert not list(tmp_path.glob("study/*.tmp*"))

    one, two = folders / METHODS[0], folders / METHODS[1]
    refuse("1 method given", one)
    refuse("given twice", one, one)
    refuse("does not exist", one, folders / "nowhere")
    refuse("trials are asked for", one, two, settings=Settings(trials=5, catches=0))
    for name in IMAGES:
        save(tmp_path / "larger" / f"{name}.png", photo(90, 121))
        save(tmp_path / "flat" / f"{name}.png", np.full((90, 120, 3), 7, np.uint8))
        save(tmp_path / "flat2" / f"{name}.png", np.full((90, 120, 3), 8, np.uint8))
        save(tmp_path / "wide" / f"{name}.png", photo(20, 120))
        if name != "meadow":
            save(tmp_path / "fewer" / f"{name}.png", photo(90, 120))
    refuse("has 121x90 pixels", one, tmp_path / "larger")
    refuse("has 121x90 pixels", one, two, reference=tmp_path / "larger", settings=Settings(catches=0))
    refuse("has 120x20 pixels", one, two, inputs=tmp_path / "wide")
    refuse("has 121x90 pixels", one, two, inputs=tmp_path / "larger")
    refuse("has 60x45 pixels", one, two, reference=folders / "input")
    refuse("meadow", one, tmp_path / "fewer")
    refuse("Only 0 pictures can be damaged", tmp_path / "flat", tmp_path / "flat2")
    (tmp_path / "broken").mkdir()
    for name in IMAGES:
        (tmp_path / "broken" / name).parent.mkdir(exist_ok=True)
        content = (one / f"{name}.png").read_bytes()
        (tmp_path / "broken" / f"{name}.png").write_bytes(content[: len(content) // 2])
    refuse("broken", one, tmp_path / "broken", kind=ImageError)
    for wrong in ({"crop": 3}, {"trials": 0}, {"orders": 0}, {"catches": -1}, {"question": " "}):
        with pytest.raises(RefineWrapError):
            Settings(**wrong)


def test_a_study_that_is_there_is_kept(folders: Path, tmp_path: Path) -> None:
    made(folders, tmp_path)
    before = (tmp_path / "key.json").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        made(folders, tmp_path)
    other = Settings(trials=6, orders=5, catches=2, crop=64, seed=9)
    key = made(folders, tmp_path, other, overwrite=True)
    assert (tmp_path / "key.json").read_bytes() != before and page_data(tmp_path)["study"] == key.study
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key.json", "raters"]
    # A folder that is no study is not taken for one, and a run that fails leaves the old one.
    with pytest.raises(DataError):
        made(folders, tmp_path, Settings(trials=1000), overwrite=True)
    assert page_data(tmp_path)["study"] == key.study
    (tmp_path / "else" / "raters").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no .*key\.json"):
        made(folders, tmp_path / "else", overwrite=True)


def test_a_run_that_is_stopped_or_has_no_room_loses_nothing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = made(folders, tmp_path)
    before = (tmp_path / "key.json").read_bytes()
    other = Settings(trials=6, orders=5, catches=2, crop=64, seed=9)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, fault, kind in ((make, stopped, KeyboardInterrupt), (os, full, OutputError)):
        name = "write_manifest" if place is make else "utime"
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fault)
            with pytest.raises(kind):
                made(folders, tmp_path, other, overwrite=True)
            with pytest.raises(kind):
                made(folders, tmp_path / "fresh", other)
        assert (tmp_path / "key.json").read_bytes() == before and page_data(tmp_path)["study"] == key.study
        assert {path.name for path in tmp_path.iterdir()} == {".key.lock", "key.json", "raters", "fresh"}
        assert [path.name for path in (tmp_path / "fresh").iterdir()] == [".key.lock"]
    made(folders, tmp_path / "fresh", other)


def test_of_two_runs_at_once_one_makes_the_study(folders: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        errors = [pool.submit(made, folders, tmp_path).exception for _ in range(2)]
        found = [error() for error in errors]
    assert sorted(map(type, found), key=str) == sorted([OutputError, type(None)], key=str), found
    assert page_data(tmp_path)["study"] == Key.read(tmp_path / "key.json").study


# ---------------------------------------------------------------- orders


@pytest.mark.parametrize(
    ("methods", "images", "trials", "orders"),
    [(2, 5, 5, 4), (3, 7, 10, 9), (4, 6, 36, 5), (3, 1, 2, 3), (3, 20, 20, 24)],
)
def test_orders_are_balanced(methods: int, images: int, trials: int, orders: int) -> None:
    labels, names = [f"m{i}" for i in range(methods)], [f"i{i}" for i in range(images)]
    couples = list(combinations(labels, 2))
    catches = [(names[0], labels[0], ""), (names[-1], labels[1], "")]
    found = draw_plan(couples, names, catches, trials=trials, orders=orders, draw=random.Random(1))
    asked: Counter[int] = Counter()
    sides: dict[int, Counter[bool]] = {}
    for order in found.orders:
        numbers = [number for number, _ in order]
        assert len(set(numbers)) == len(numbers) == trials + 2
        real = [number for number in numbers if number < len(couples) * images]
        met = [
            Counter(frozenset(found.trials[number][1:]) for number in real[:part]) for part in (len(real) // 2, None)
        ]
        for counts in met:
            assert max(counts.values()) - min(counts[frozenset(couple)] for couple in couples) <= 1
        asked.update(real)
        for number, flip in order:
            sides.setdefault(number, Counter())[flip] += 1
    # Images take turns, and each trial's sides change from one rater to the next.
    for couple in couples:
        own = [asked[number] for number, trial in enumerate(found.trials) if set(trial[1:]) == set(couple)]
        assert max(own) - min(own) <= 1
    assert all(abs(count[True] - count[False]) <= 1 for count in sides.values())
    left = Counter(
        found.trials[n][2 if f else 1] for order in found.orders for n, f in order if n < len(couples) * images
    )
    total = sum(left.values()) / methods
    assert all(abs(count - total) <= methods * 2 for count in left.values())


# ---------------------------------------------------------------- statistics


def test_bradley_terry_of_two_and_of_a_published_table() -> None:
    two, separable = bradley_terry(np.array([[0.0, 7.0], [3.0, 0.0]]))
    assert two[0] - two[1] == pytest.approx(math.log(7 / 3)) and not separable
    # Baseball, American League 1987 (Agresti 1990); the estimates are those of the BradleyTerry2 package's vignette.
    wins = np.array(
        [
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ],
        float,
    )
    found, _ = bradley_terry(wins)
    assert found - found[-1] == pytest.approx([1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0], abs=1e-4)


def test_bradley_terry_is_the_maximum_of_the_likelihood() -> None:
    draw = np.random.default_rng(0)
    wins = draw.integers(0, 30, (40, 4, 4)).astype(float) * (1 - np.eye(4))
    wins[0, 0] *= 1000
    found, separable = bradley_terry(wins)
    assert not separable.any() and np.allclose(found.sum(1), 0)
    for counts, values in zip(wins, found, strict=True):

        def loss(x: Any, counts: Any = counts) -> float:
            return float((counts * np.log1p(np.exp(x[None, :] - x[:, None]))).sum())

        assert loss(values) <= minimize(loss, np.zeros(4)).fun + 1e-7


def test_a_method_that_always_wins_has_a_finite_strength_and_no_interval() -> None:
    values, separable = bradley_terry(np.array([[0.0, 10.0, 10.0], [0.0, 0.0, 6.0], [0.0, 4.0, 0.0]]))
    assert separable and np.isfinite(values).all() and values[0] > values[1] > values[2]
    # Two groups that never met are no better.
    assert bradley_terry(np.kron(np.eye(2), np.array([[0.0, 5.0], [4.0, 0.0]])))[1]
    votes = [Vote(str(r), str(i), (0, 1), 1) for r in range(4) for i in range(5)]
    found = strengths(votes, 2, resamples=50)
    assert found.separable and found.intervals is None and found.ahead == [[False, True], [False, False]]


def test_strengths_of_simulated_raters_are_recovered() -> None:
    truth = np.array([0.9, 0.1, -1.0])
    draw = np.random.default_rng(3)
    votes = [
        Vote(str(rater), str(image), (a, b), 1 if draw.random() < 1 / (1 + math.exp(truth[b] - truth[a])) else -1)
        for rater in range(30)
        for image in range(20)
        for a, b in combinations(range(3), 2)
    ]
    found = strengths(votes, 3, seed=1, resamples=400)
    assert found.values == pytest.approx(truth, abs=0.15)
    assert found.intervals and all(low < true < high for (low, high), true in zip(found.intervals, truth, strict=True))
    assert strengths(votes, 3, seed=1, resamples=400) == found
    assert found.ahead == [[False, True, True], [False, False, True], [False, False, False]]


def test_intervals_grow_where_answers_about_an_image_are_alike() -> None:
    """Twenty raters who all say the same of eight images know little about other images."""
    draw = np.random.default_rng(0)
    alike = [Vote(str(r), str(i), (0, 1), o) for i, o in enumerate((1, 1, 1, 1, 1, -1, -1, -1)) for r in range(20)]
    apart = [Vote(str(n % 20), str(n // 20), (0, 1), 1 if draw.random() < 5 / 8 else -1) for n in range(160)]
    wide, narrow = (strengths(votes, 2, resamples=400).intervals for votes in (alike, apart))
    assert wide and narrow
    assert wide[0][1] - wide[0][0] > 2 * (narrow[0][1] - narrow[0][0]) and wide[0][0] < 0


def test_holm_and_fleiss_against_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0] and holm([]) == []
    # The example of Fleiss' kappa on Wikipedia: 14 raters, 10 subjects, 5 categories.
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    counts += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    share, kappa = fleiss(np.array(counts, float))
    assert (share, kappa) == (pytest.approx(0.378, abs=5e-4), pytest.approx(0.210, abs=5e-4))


def test_agreement() -> None:
    def said(*outcomes: int) -> list[Vote]:
        return [Vote(str(n), "a", (0, 1), outcome) for n, outcome in enumerate(outcomes)]

    assert agreement(said(1)) is None
    both = agreement(said(1, 1, 1))
    assert both and (both.share, both.kappa, both.trials) == (1.0, pytest.approx(1.0), 1)
    split = agreement(said(1, -1))
    assert split and split.share == 0 and split.kappa == pytest.approx(-1.0)
    ties = agreement(said(0, 0))
    assert ties and ties.share == 1 and ties.kappa is None


# ---------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def study(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    made(folders, out, Settings(trials=12, orders=6, catches=5, crop=64, ties=True))
    return out


def test_a_clear_winner_is_named_and_careless_raters_are_left_out(study: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    strength = {"swinwrap": 2.5, "basenet": 0.0, "oldnet": -2.5}
    files = [answered(study, n, by_strength(draw, strength), tmp_path / f"{n}.json") for n in range(1, 11)]
    files.append(answered(study, 11, lambda left, right, image: "left", tmp_path / "11.json"))
    files.append(answered(study, 12, lambda left, right, image: "none", tmp_path / "12.json"))
    report = study_report(files, study / "key.json", resamples=300)
    assert report.winner == "swinwrap" and not report.reason
    assert [rank.method for rank in report.ranking] == list(strength)
    assert {rater.name: rater.left_out for rater in report.raters if int(rater.name) > 10} == {"11": True, "12": True}
    assert next(r for r in report.raters if r.name == "12").failed_share == 1.0
    assert not any(rater.left_out for rater in report.raters if int(rater.name) <= 10)
    assert report.answers == 120 and sum(p.wins + p.losses + p.ties for p in report.pairs) == 120
    for pair in report.pairs:
        assert pair.rate is not None and pair.interval[0] < pair.rate < pair.interval[1] and pair.corrected >= pair.p
    assert report.agreement and report.agreement.trials == 12
    # Who failed is left in where more failures are borne.
    assert not study_report(files, study / "key.json", max_failed=1, resamples=100).left_out
    study_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "swinwrap is preferred to each other method" in page and "left out" in page


def test_a_simulated_preference_is_counted_for_the_right_method(study: Path, tmp_path: Path) -> None:
    """Whoever is on the left: the counts are those of the simulated raters."""

    def choose(left: str | None, right: str | None, image: str) -> str:
        if None in (left, right):
            return "right" if left is None else "left"
        if {left, right} == {"basenet", "oldnet"}:
            return "none"
        return (
            "left"
            if left == ("oldnet" if image == "meadow" else "swinwrap") or (right == "basenet" and image == "meadow")
            else "right"
        )

    report = study_report([answered(study, 1, choose, tmp_path / "1.json")], study / "key.json", resamples=100)
    counts = {(p.first, p.second): (p.wins, p.losses, p.ties) for p in report.pairs}
    assert counts[("basenet", "oldnet")] == (0, 0, 4)
    assert counts[("swinwrap", "oldnet")] == (3, 1, 0)
    assert counts[("swinwrap", "basenet")][0] + counts[("swinwrap", "basenet")][1] == 4
    assert report.winner is None and "swinwrap" in report.reason


@pytest.mark.parametrize("image_effect", [0.0, 2.0])
def test_of_equal_methods_a_winner_is_seldom_named(image_effect: float, tmp_path: Path) -> None:
    """200 studies without a difference, also where all raters like the one on some images and the other on others."""
    names = ["a", "b", "c"]
    trials = {
        f"{image}-{one}{other}": {"image": str(image), "files": {f"{image}{one}": one, f"{image}{other}": other}}
        for image in range(10)
        for one, other in combinations(names, 2)
    }
    document = {"format": 1, "kind": "key of a study", "refine_wrap": "0", "study": "s", "question": "?", "ties": False}
    document |= {"seed": 0, "crop": None, "methods": names, "orders": 1, "trials": trials}
    (tmp_path / "key.json").write_text(json.dumps(document))
    draw = random.Random(5)
    won = 0
    for _ in range(200):
        liking = {(image, name): draw.gauss(0, image_effect) for image in range(10) for name in names}
        for rater in range(6):
            answers = []
            for trial, entry in trials.items():
                left, right = entry["files"]
                by = liking[int(entry["image"]), left[-1]] - liking[int(entry["image"]), right[-1]]
                choice = "left" if draw.random() < 1 / (1 + math.exp(-by)) else "right"
                answers.append({"trial": trial, "left": left, "right": right, "choice": choice, "seconds": 1, "at": ""})
            results = {"format": 1, "kind": "results of a study", "study": "s", "rater": str(rater), "trials": 30}
            (tmp_path / f"{rater}.json").write_text(json.dumps({**results, "answers": answers}))
        found = study_report([tmp_path / f"{n}.json" for n in range(6)], tmp_path / "key.json", resamples=200)
        won += found.winner is not None
    assert won <= 10


def test_results_that_do_not_fit_are_refused(study: Path, tmp_path: Path) -> None:
    def choose(left: str | None, right: str | None, image: str) -> str:
        return "right" if left is None else "left"

    good = answered(study, 1, choose, tmp_path / "good.json")
    key = study / "key.json"

    def refuse(text: str, *files: Path, key: Path = key) -> None:
        with pytest.raises(DataError, match=text) as found:
            study_report(files, key, resamples=50)
        assert len(str(found.value).splitlines()) <= 3

    def changed(**values: Any) -> Path:
        document = json.loads(good.read_text())
        answer = {name: value for name, value in values.items() if name in document["answers"][0]}
        document.update({name: value for name, value in values.items() if name not in answer})
        document["answers"][0].update(answer)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(document))
        return path

    refuse("no-such.json", tmp_path / "no-such.json")
    refuse("no .*key", good, key=tmp_path / "key.json")
    refuse("given twice", good, good)
    refuse("answered trial .* twice: in .*good.json and .*changed.json", good, changed())
    refuse("another study: elsewhere", changed(study="elsewhere"))
    refuse("has not: 'unknown'", changed(trial="unknown"))
    refuse("shows", changed(left="f.webp"))
    refuse("damaged", changed(choice="both"))
    refuse("damaged", changed(seconds=-1))
    refuse("damaged", changed(colour="red"))
    refuse("damaged", changed(format=2))
    refuse("damaged", changed(rater=""))
    refuse("no results of a study", key)
    refuse("no key of a study", good, key=good)
    refuse("hold no answer", _emptied(good, tmp_path / "empty.json"))
    (tmp_path / "cut.json").write_text(good.read_text()[:300])
    refuse("cut.json is damaged", tmp_path / "cut.json")
    (tmp_path / "nothing").mkdir()
    refuse("has no .json", tmp_path / "nothing")
    refuse("No results")
    document = json.loads(good.read_text())
    document["answers"].append(document["answers"][3])
    (tmp_path / "again.json").write_text(json.dumps(document))
    refuse("twice: in .*again.json\n", tmp_path / "again.json")
    careless = answered(study, 2, lambda left, right, image: "none", tmp_path / "careless.json")
    refuse("1 of 1 raters failed more than 20%", careless)
    with pytest.raises(RefineWrapError, match="max_failed"):
        study_report([good], key, max_failed=2)


def _emptied(good: Path, path: Path) -> Path:
    path.write_text(json.dumps({**json.loads(good.read_text()), "answers": []}))
    return path


def test_ties_are_refused_where_the_study_has_none(folders: Path, tmp_path: Path) -> None:
    made(folders, tmp_path)
    with pytest.raises(DataError, match="allows no ties"):
        study_report([answered(tmp_path, 1, lambda *_: "none")], tmp_path / "key.json")


def test_the_command_line_from_folders_to_the_report(folders: Path, tmp_path: Path) -> None:
    def call(*words: Any) -> Any:
        return CliRunner().invoke(app, ["study", *map(str, words)], env={"COLUMNS": "200"})

    out = tmp_path / "study"
    place = [f"Ours={folders / 'swinwrap'}", folders / "basenet", "-o", out, "--raters", 3, "--catch", 2, "--crop", 0]
    done = call("make", *place, "--trials", 4, "--question", "Which is <sharper> & better?", "--ties")
    assert done.exit_code == 0, done.output
    assert "key.json" in done.output and "raters 1 to 3" in done.output
    html = (out / "raters" / "index.html").read_text()
    assert "Which is &lt;sharper&gt; &amp; better?" in html and "Ours" not in html
    assert call("make", *place).exit_code == 1
    for rater in range(1, 7):
        answered(out, rater, by_strength(random.Random(rater), {"Ours": 3, "basenet": 0}))
    answered(out, 7, lambda left, right, image: "none", limit=2)
    report = ["report", out / "results", "--key", out / "key.json"]
    done = call(*report, "--json", tmp_path / "r.json", "--page", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["winner"] == "Ours" and "Ours is preferred to each other method" in done.output
    assert document["pairs"][0]["verdict"] == "Ours" and document["made_by"] == "refine-wrap study report"
    assert (tmp_path / "r.html").stat().st_size > 5000
    assert "exists already" in call(*report, "--json", tmp_path / "r.json").output
    assert "exists already" in call(*report, "--page", tmp_path / "r.html").output
    assert call(*report, "--page", tmp_path / "r.txt").exit_code == 2
    few = call("report", out / "results" / "1.json", "--key", out / "key.json")
    assert few.exit_code == 0 and "No winner: the difference is not significant" in few.output
    assert call("report", tmp_path / "none.json", "--key", out / "key.json").exit_code == 2


def test_a_report_needs_no_torch(study: Path, tmp_path: Path) -> None:
    file = answered(study, 1, lambda left, right, image: "right" if left is None else "left", tmp_path / "1.json")
    code = (
        "import sys\nfrom refine_wrap.cli.main import app\n"
        f"try:\n    app(['study', 'report', {str(file)!r}, '--key', {str(study / 'key.json')!r}, '--page', {str(tmp_path / 'p.html')!r}])\n"
        "except SystemExit as left:\n    assert not left.code\n"
        "assert not {'torch', 'cv2', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
