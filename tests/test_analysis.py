"""Degraded sets analysed: corruptions, published degradations, the classifier, what is measured, the verb."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from refine_wrap import Picture, Recipe, RefineWrapError, read_image, write_image
from refine_wrap.analysis import CLASSES, CorruptionClassifier, analyze_degradation, load_classifier, save_classifier
from refine_wrap.analysis.classifier import corruption
from refine_wrap.analysis.measures import LARGEST_ENTROPY, RINGS, colour, entropy, entropy_interval, look, spectrum
from refine_wrap.cli.main import app
from refine_wrap.degradation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from refine_wrap.degradation.published import PIPELINES, generalized_gaussian, plateau, published, sinc
from refine_wrap.degradation.synthetic import downsample
from refine_wrap.errors import CheckpointError, DataError, ImageError, RecipeError
from refine_wrap.resources import weights_dir
from refine_wrap.training import finetune
from refine_wrap.training.classify import ClassifyObjective, CorruptionData

TINY = {"channels": [8, 8, 8, 8], "stem_width": 8}
UP = sorted(set(CORRUPTIONS) - {"glass_blur", "elastic_transform", "frost"})
"""With the published constants, severities of the others trade one kind of change for another: frost darkens a bright
photo by what it adds."""


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(64, 64, 3) float32, a photo made 4 times smaller."""
    pixels = read_image(weights_dir() / "demo_photo.png").pixels[40:296, 40:296].astype(np.float32) / np.float32(255)
    return downsample(pixels, 4).clip(0, 1)


@pytest.fixture(scope="module")
def classifier() -> CorruptionClassifier:
    torch.manual_seed(0)
    return CorruptionClassifier("resnet10t", TINY).eval()


@pytest.fixture()
def clean(tmp_path: Path) -> Path:
    """Three photos of 128x112, one of them grey."""
    pixels = read_image(weights_dir() / "demo_photo.png").pixels
    for number in range(3):
        part = pixels[20 + 30 * number : 132 + 30 * number, 40:168]
        write_image(tmp_path / f"hr/{number}.png", Picture(np.ascontiguousarray(part[..., : 1 if number == 2 else 3])))
    return tmp_path / "hr"


def small(clean: Path, folder: Path, change: Any = lambda image: image) -> Path:
    """A degraded set: the clean photos made 4 times smaller, and changed."""
    for path in sorted(clean.iterdir()):
        image = np.ascontiguousarray(read_image(path).tensor()[0].permute(1, 2, 0).numpy())
        made = change(downsample(image, 4)).clip(0, 1)
        write_image(folder / path.name, Picture((made * 255 + 0.5).astype(np.uint8)))
    return folder


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["analyze-degradation", *map(str, words)])


# ---------------------------------------------------------------- corruptions


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_exactly_and_leaves_its_input_alone(photo: np.ndarray, name: str) -> None:
    before = photo.copy()
    for severity in SEVERITIES:
        one, again = (corrupt(photo, name, severity, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(one, again) and not np.array_equal(one, photo)
        assert one.shape == photo.shape and one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
        assert np.array_equal(np.round(one * 255) / np.float32(255), one), "as a file has it"
    assert np.array_equal(before, photo)


def test_chance_is_in_no_global_generator(photo: np.ndarray) -> None:
    before = np.random.get_state()[1].copy()
    for name in CORRUPTIONS:
        corrupt(photo, name, 3, np.random.default_rng(0))
    for name in PIPELINES:
        published(photo, name, 4, np.random.default_rng(0))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("name", UP)
def test_a_higher_severity_changes_more(photo: np.ndarray, name: str) -> None:
    changes = [
        np.mean([np.square(corrupt(photo, name, s, np.random.default_rng(seed)) - photo).mean() for seed in range(4)])
        for s in SEVERITIES
    ]
    assert changes == sorted(changes) and changes[-1] > 1.3 * changes[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3), (65, 33)])
def test_a_corruption_of_any_size(name: str, shape: tuple[int, int]) -> None:
    for value in (0.0, 1.0):
        for severity in SEVERITIES:
            made = corrupt(np.full((*shape, 3), value, np.float32), name, severity, np.random.default_rng(0))
            assert made.shape == (*shape, 3) and np.isfinite(made).all()


def test_unknown_corruptions_and_severities_are_refused(photo: np.ndarray) -> None:
    with pytest.raises(RefineWrapError, match="no corruption 'rain'"):
        corrupt(photo, "rain", 1, np.random.default_rng(0))
    with pytest.raises(RefineWrapError, match="severity is 6"):
        corrupt(photo, "fog", 6, np.random.default_rng(0))


# ---------------------------------------------------------------- published degradations


@pytest.mark.parametrize("side", [7, 13, 21])
def test_kernels_are_those_of_basicsr(side: int) -> None:
    theirs = pytest.importorskip("basicsr.data.degradations")
    for along, across, angle, beta in ((0.3, 1.2, 0.4, 0.6), (2.0, 0.9, -1.3, 3.1), (2.9, 2.9, 0.0, 1.0)):
        given = side, along, across, angle, beta
        for ours, name in ((generalized_gaussian, "bivariate_generalized_Gaussian"), (plateau, "bivariate_plateau")):
            assert np.allclose(ours(*given), getattr(theirs, name)(*given, isotropic=False), atol=1e-6)
    assert np.allclose(sinc(1.3, side), theirs.circular_lowpass_kernel(1.3, side), atol=1e-6)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_published_degradation_repeats_exactly_at_any_size(name: str) -> None:
    for height, width, scale in ((64, 48, 4), (4, 12, 4), (6, 4, 2), (3, 5, 1)):
        image = np.random.default_rng(1).random((height, width, 3), dtype=np.float32)
        seen = set()
        for seed in range(25):
            one, again = (published(image, name, scale, np.random.default_rng(seed)) for _ in range(2))
            assert one.shape == (height // scale, width // scale, 3) and one.dtype == np.uint8
            assert np.array_equal(one, again)
            seen.add(one.tobytes())
        assert len(seen) == (1 if name == "bicubic" else 25)


def test_published_degradations_refuse_what_does_not_fit(photo: np.ndarray) -> None:
    with pytest.raises(ImageError, match="no degradation 'esrgan'"):
        published(photo, "esrgan", 4, np.random.default_rng(0))
    with pytest.raises(ImageError, match="multiples of 3"):
        published(photo, "bsrgan", 3, np.random.default_rng(0))


# ---------------------------------------------------------------- measures


def test_entropy_of_known_shares() -> None:
    assert entropy([5] * 15) == pytest.approx(math.log(15)) == pytest.approx(LARGEST_ENTROPY)
    assert entropy([0, 7, 0]) == 0 and entropy([0, 0]) == 0
    assert entropy([1, 1, 2]) == pytest.approx(1.5 * math.log(2))


def test_entropy_stays_in_its_bounds_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(15))
    truth = float(-(shares * np.log(shares)).sum())
    held = 0
    for number in range(60):
        counts = rng.multinomial(2000, shares)
        assert 0 <= entropy(counts) <= LARGEST_ENTROPY
        low, high = entropy_interval(list(counts), number, 300)  # type: ignore[misc]
        held += low <= truth <= high
    assert held >= 50
    assert entropy_interval([0, 9], 0, 100) is None and entropy_interval([1], 0, 100) is None
    assert entropy_interval([3, 4], 5, 100) == entropy_interval([3, 4], 5, 100)


@pytest.mark.parametrize("size", [(128, 192), (70, 65), (40, 300)])
def test_the_spectrum_of_white_noise_is_flat_at_its_variance(size: tuple[int, int]) -> None:
    found = []
    for seed in range(8):
        grey = np.random.default_rng(seed).normal(128, 20, (*size, 1)).round().clip(0, 255).astype(np.uint8)
        found.append([10 ** (value / 10) for value in spectrum(Picture(grey)) if value is not None])
    means = np.mean(found, axis=0)[1:]  # the innermost ring lacks the mean
    assert len(means) == RINGS - 1 and np.all(np.abs(10 * np.log10(means / 400)) < 1.0)


def test_blur_falls_off_and_tiny_images_have_no_low_frequencies(photo: np.ndarray) -> None:
    soft = corrupt(photo, "defocus_blur", 5, np.random.default_rng(0))
    own, other = (spectrum(Picture((image * 255).astype(np.uint8))) for image in (photo, soft))
    assert other[-1] < own[-1] - 6 and abs(other[0] - own[0]) < 1  # type: ignore[operator]
    tiny = spectrum(Picture(np.full((1, 1, 3), 9, np.uint8)))
    assert len(tiny) == RINGS and tiny[1:] == [None] * (RINGS - 1) and math.isfinite(tiny[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [3, 10, 25])
def test_noise_is_as_strong_as_it_was_made(classifier: CorruptionClassifier, sigma: float) -> None:
    y, x = np.mgrid[:160, :160]
    smooth = 128 + 40 * np.sin(x / 25) + 30 * np.cos(y / 18)
    noisy = smooth + np.random.default_rng(0).normal(0, sigma, (160, 160))
    picture = Picture(noisy.round().clip(0, 255).astype(np.uint8)[..., None])
    assert look(picture, None, classifier).noise == pytest.approx(sigma, rel=0.08)


def test_colour_difference_of_a_known_shift_and_of_noise() -> None:
    grey = Picture(np.full((40, 50, 3), 128, np.uint8))
    other = Picture(np.full((40, 50, 3), 153, np.uint8))
    found = colour(other, grey)
    # L* of sRGB 128 and 153 is 53.59 and 63.22; for greys CIEDE2000 is their difference over S_L at the middle.
    middle = (53.585 + 63.223) / 2 - 50
    expected = (63.223 - 53.585) / (1 + 0.015 * middle**2 / math.sqrt(20 + middle**2))
    figures = [found.mean, found.median, found.percentile_95, found.cast]
    assert figures == pytest.approx([expected] * 4, abs=0.01)
    noise = np.random.default_rng(0).normal(128, 15, (40, 50, 3)).round().clip(0, 255).astype(np.uint8)
    noisy = colour(Picture(noise), grey)
    assert noisy.mean > 5 and noisy.cast < 0.3 * noisy.mean, "noise is no cast"
    assert colour(grey, grey).mean == 0


# ---------------------------------------------------------------- the classifier


def test_shares_of_any_size_sum_to_one(classifier: CorruptionClassifier) -> None:
    for height, width in ((1, 1), (33, 64), (97, 250)):
        shares = classifier.classify(torch.rand(2, 3, height, width))
        assert shares.shape == (2, len(CLASSES)) and torch.allclose(shares.sum(1), torch.ones(2), atol=1e-5)
    never_clean = torch.zeros(1, len(CLASSES))
    never_clean[0, CLASSES.index("clean")], never_clean[0, 4] = 0.9, 0.1
    assert int(corruption(never_clean)) == 4
    with pytest.raises(ImageError):
        classifier.classify(torch.rand(3, 8, 8))


def test_a_classifier_is_saved_and_loaded(classifier: CorruptionClassifier, tmp_path: Path) -> None:
    metrics = [{"name": "accuracy", "value": 0.5, "protocol": "p", "data": "d"}]
    loaded = load_classifier(save_classifier(tmp_path / "one", classifier, metrics=metrics, licence="CC0-1.0"))
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(loaded.classify(image), classifier.classify(image), atol=2e-3), "half precision"
    assert loaded.metrics == metrics and not loaded.training
    assert "load_classifier" in (tmp_path / "one/README.md").read_text()
    with pytest.raises(CheckpointError, match="of kind refiner"):
        load_classifier("shipped:demo_refiner")
    with pytest.raises(RefineWrapError, match="timm cannot build"):
        CorruptionClassifier("no_such_net")


def recipe(photos: Path, **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "objective": "classify",
        "classifier": {"options": TINY},
        "data": {"train": {"gt": [str(photos)]}, "validation": {"gt": [str(photos)], "limit": 1}, "crop": 128},
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "ema": 0.0},
        "output": str(photos.parent / "run"),
    }
    for key, value in more.items():
        part, _, name = key.rpartition("__")
        (values[part] if part else values)[name] = value
    return Recipe.from_dict(values)


@pytest.mark.filterwarnings("ignore:.*smaller than the crop")
def test_training_draws_from_the_sample_alone_and_writes_a_classifier(clean: Path) -> None:
    chosen = recipe(clean)
    (train, held_out), (again, _) = (ClassifyObjective.of(chosen).data(chosen) for _ in range(2))
    assert isinstance(train, CorruptionData) and isinstance(held_out, CorruptionData)
    one, same, other = train[3, 1], again[3, 1], train[4, 1]
    assert torch.equal(one["image"], same["image"]) and one["label"] == same["label"]
    assert one["image"].shape == (3, 32, 32) and not torch.equal(one["image"], other["image"])
    labels = {int(train[epoch, 0]["label"]) for epoch in range(80)}
    assert len(labels) >= 14, "all classes are drawn"
    versions = [(label, severity) for label, severity, _ in held_out.versions(0)]
    assert len(versions) == len(set(versions)) == 1 + 15 * 5
    folder = finetune(chosen, quiet=True)
    loaded = load_classifier(folder)
    names = {metric["name"] for metric in loaded.metrics}
    assert {"accuracy", "accuracy, severity 5", "accuracy, fog", "clean taken for clean"} <= names


def test_a_classifier_learns(clean: Path) -> None:
    """Two corruptions that are easy to tell apart, in a few steps."""
    torch.manual_seed(0)
    objective = ClassifyObjective.of(recipe(clean))
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-2)
    image = downsample(read_image(clean / "0.png").pixels[:112, :112].astype(np.float32) / 255, 2).clip(0, 1)
    names = ("impulse_noise", "contrast")
    for step in range(40):
        made = [corrupt(image, name, 4, np.random.default_rng((step, k))) for k in range(4) for name in names]
        batch = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
        labels = torch.tensor([CLASSES.index(name) for name in names] * 4)
        loss = objective({"image": batch, "label": labels})["classes"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3


def test_recipes_refuse_what_a_classifier_does_not_take(clean: Path) -> None:
    with pytest.raises(RecipeError, match="ground truths alone"):
        recipe(clean, data__degradation={"scale": 4})
    with pytest.raises(RecipeError, match="classifier is not given"):
        recipe(clean, classifier=None)
    with pytest.raises(RecipeError, match=r"data\.crop is 130"):
        ClassifyObjective.of(recipe(clean, data__crop=130))


def test_the_shipped_classifier_is_as_accurate_as_its_card_says(photo: np.ndarray) -> None:
    """On one photo: a coarse check of the weights, the constants and the way in."""
    loaded = load_classifier("shipped:corruptions")
    stated = next(metric["value"] for metric in loaded.metrics if metric["name"] == "accuracy")
    images, labels = [], []
    for label, name in enumerate(CORRUPTIONS):
        for severity in SEVERITIES:
            rng = np.random.default_rng((label, severity))
            images.append(torch.from_numpy(corrupt(photo, name, severity, rng)).permute(2, 0, 1))
            labels.append(label)
    right = (corruption(loaded.classify(torch.stack(images))) == torch.tensor(labels)).float().mean()
    assert stated > 0.5 and float(right) == pytest.approx(stated, abs=0.2)


# ---------------------------------------------------------------- sets


def test_sets_beside_published_degradations(clean: Path, tmp_path: Path, classifier: CorruptionClassifier) -> None:
    sets = {"same": small(clean, tmp_path / "same"), "brighter": small(clean, tmp_path / "up", lambda i: i + 0.1)}
    given: dict[str, Any] = {"clean": clean, "compare": ["bsrgan", "realesrgan"], "classifier": classifier}
    result = analyze_degradation(sets, **given, resamples=100)
    assert [each.label for each in result.sets] == ["bicubic", "bsrgan", "realesrgan", "same", "brighter"]
    bicubic, bsrgan, realesrgan, same, brighter = result.sets
    assert all(list(each.looks) == ["0", "1", "2"] for each in result.sets)
    assert bicubic.mean("colour.mean") == same.mean("colour.mean") == 0 and same.above(bicubic) == [0.0] * RINGS
    assert (
        brighter.mean("colour.mean") > 3 and abs(brighter.mean("colour.cast") / brighter.mean("colour.mean") - 1) < 0.15
    )  # type: ignore[operator]
    assert bsrgan.mean("colour.mean") > 1 and realesrgan.mean("colour.mean") > 1  # type: ignore[operator]
    for each in result.sets:
        assert sum(each.counts) == 3 and sum(each.shares.values()) == pytest.approx(1)
        assert 0 <= each.entropy <= LARGEST_ENTROPY
    again = analyze_degradation({}, **given, resamples=100)
    assert again.document()["sets"][1] == result.document()["sets"][1], "whatever else is there"
    other = analyze_degradation({}, **given, resamples=100, seed=1)
    assert other.document()["sets"][1] != result.document()["sets"][1]


def test_without_clean_images_sets_stand_alone(clean: Path, tmp_path: Path, classifier: CorruptionClassifier) -> None:
    rgba = np.dstack([np.full((9, 11, 3), 90, np.uint8), np.arange(99, dtype=np.uint8).reshape(9, 11)])
    (tmp_path / "odd").mkdir()
    Image.fromarray(rgba).save(tmp_path / "odd/alpha.png")
    deep = np.random.default_rng(0).integers(0, 65536, (30, 20, 3), dtype=np.uint16)
    write_image(tmp_path / "odd/deep.tif", Picture(deep))
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "odd/one.png")
    result = analyze_degradation({"odd": tmp_path / "odd", "hr": clean}, classifier=classifier, resamples=50)
    assert [len(each.looks) for each in result.sets] == [3, 3] and not result.left_out
    assert result.clean is None and result.sets[0].mean("colour.cast") is None
    assert result.document()["sets"][0]["delta_e"] is None


def test_what_cannot_be_used_is_left_out_everywhere(
    clean: Path, tmp_path: Path, classifier: CorruptionClassifier
) -> None:
    folder = small(clean, tmp_path / "lr")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    write_image(folder / "1.png", Picture(np.zeros((28, 31, 3), np.uint8)), overwrite=True)
    seen: list[tuple[int, int, str, str | None]] = []
    result = analyze_degradation(
        {"lr": folder}, clean=clean, classifier=classifier, resamples=50, notify=lambda *each: seen.append(each)
    )
    assert [list(each.looks) for each in result.sets] == [["2"], ["2"]]
    assert [name for name, _ in result.left_out] == ["0", "1"] and "32x28" not in result.left_out[0][1]
    assert "damaged" in result.left_out[0][1] and "31x28" in result.left_out[1][1]
    assert str(tmp_path) not in json.dumps(result.document())
    assert [each[:2] for each in seen] == [(1, 3), (2, 3), (3, 3)] and seen[2][3] is None


def test_limits_spread(clean: Path, classifier: CorruptionClassifier) -> None:
    result = analyze_degradation({"hr": clean}, classifier=classifier, limit=2, resamples=50)
    assert list(result.sets[0].looks) == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": {}}, "nothing to analyse"),
        ({"sets": {"a": "EMPTY"}}, "holds no images"),
        ({"sets": {"a": "nowhere"}}, "does not exist"),
        ({"sets": {"a": "LR"}, "compare": ["bsrgan"]}, "nothing to degrade"),
        ({"sets": {}, "clean": "HR", "compare": ["esrgan"]}, "no degradation 'esrgan'"),
        ({"sets": {"bicubic": "LR"}, "clean": "HR"}, "is called 'bicubic'"),
        ({"sets": {"a": "FEW"}, "clean": "HR"}, "without a degraded partner"),
        ({"sets": {"a": "LR"}, "clean": "HR", "scale": 2}, "No image of bicubic can be used"),
        ({"sets": {"a": "LR"}, "scale": 0}, "The scale is 0"),
        ({"sets": {"a": "LR"}, "limit": 0}, "limit of 0"),
        ({"sets": {"a": "LR"}, "seed": -1}, "seed is -1"),
    ],
)
def test_refusals(
    clean: Path, tmp_path: Path, classifier: CorruptionClassifier, options: dict[str, Any], message: str
) -> None:
    places = {"HR": clean, "LR": small(clean, tmp_path / "lr"), "EMPTY": tmp_path / "empty", "FEW": tmp_path / "few"}
    places["EMPTY"].mkdir()
    shutil.copytree(places["LR"], places["FEW"])
    (places["FEW"] / "1.png").unlink()
    given = {key: places.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
    given["sets"] = {label: places.get(folder, folder) for label, folder in given["sets"].items()}
    with pytest.raises(RefineWrapError, match=message) as caught:
        analyze_degradation(given.pop("sets"), **given, classifier=classifier)
    assert len(str(caught.value).splitlines()) <= 3


def test_two_files_of_one_name_are_refused(clean: Path, classifier: CorruptionClassifier) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(clean / "0.jpg")
    with pytest.raises(DataError, match="two files stand for '0'"):
        analyze_degradation({"hr": clean}, classifier=classifier)


# ---------------------------------------------------------------- the verb and the page


def test_the_verb_writes_a_page_and_its_json(clean: Path, tmp_path: Path, classifier: CorruptionClassifier) -> None:
    folder = small(clean, tmp_path / "a<b")
    known = save_classifier(tmp_path / "known", classifier, metrics=[{"name": "accuracy", "value": 0.75}])
    words = (
        f"ours={folder}",
        "--clean",
        clean,
        "--compare",
        "bsrgan",
        "--classifier",
        known,
        "-o",
        tmp_path / "p.html",
    )
    done = run(*words, "--samples", 2)
    assert done.exit_code == 0, done.output
    assert "75.0% right" in done.output and "realesrgan" not in done.output
    document = json.loads((tmp_path / "p.json").read_text())
    assert [each["label"] for each in document["sets"]] == ["bicubic", "bsrgan", "ours"]
    assert document["classifier"]["name"] == "known" and str(tmp_path) not in json.dumps(document)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * 3 and page.count('<path class="c') == 3
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is loaded"
    body = " ".join(
        html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S))).split()
    )
    for text in ("Diversity", "jpeg compression", "ours", "Spectra", "Samples", "75.0%"):
        assert text in body
    before = (tmp_path / "p.json").read_bytes()
    kept = run(*words)
    assert kept.exit_code == 1 and "exists already" in kept.output and (tmp_path / "p.json").read_bytes() == before
    assert run(*words, "--overwrite", "-q").exit_code == 0


def test_the_verb_says_what_was_left_out_and_what_is_wrong(
    clean: Path, tmp_path: Path, classifier: CorruptionClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(clean, tmp_path / "lr")
    (folder / "0.png").write_text("no picture")
    known = save_classifier(tmp_path / "known", classifier)
    done = run(folder, "--classifier", known, "-o", tmp_path / "p.html")
    assert done.exit_code == 1 and "Left out: 0" in done.output and "its card tells no accuracy" in done.output
    assert "was left out" in (tmp_path / "p.html").read_text(encoding="utf-8")
    twice = run(f"a={folder}", f"a={clean}", "--classifier", known, "-o", tmp_path / "q.html")
    assert twice.exit_code == 2 and "Two sets are called 'a'" in twice.output
    assert run(folder, "-o", tmp_path / "q.txt").exit_code == 2
    assert run("-o", tmp_path / "q.html", "--classifier", known).exit_code == 2

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refine_wrap.analysis.run.look", interrupted)
    stopped = run(folder, "--classifier", known, "-o", tmp_path / "q.html")
    assert stopped.exit_code == 130 and not list(tmp_path.glob("*q.*")) and not list(tmp_path.glob(".*q*"))
