"""Evaluating candidates: what is counted, what is refused, and whether somebody who cheats is seen."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_report import Browser, browser, needs_chromium
from torch import Tensor, nn

from refine_wrap import RefineWrapper, load_backbone
from refine_wrap.cli.main import app
from refine_wrap.errors import DataError, RefineWrapError
from refine_wrap.evaluation import Evaluation, Outputs, evaluate, gaming, judge_validity, places, psnr, statistics
from refine_wrap.evaluation.gate import Validity, validity_of
from refine_wrap.hub import Adapter, save_adapter
from refine_wrap.images import Picture, read_image
from refine_wrap.report import evaluation_page
from refine_wrap.scorers import load_scorer
from refine_wrap.scorers.core import Scorer

__all__ = ["browser"]  # a fixture of the other page's tests

Pixels = np.ndarray
NAMES = [f"photo{number}" for number in range(6)]


class Toy(Scorer):
    """A judge by one number of the picture."""

    worst, best = 0.0, 1.0

    def __init__(self, name: str, of: Callable[[Tensor], Tensor], weight: float = 1.0) -> None:
        super().__init__()
        self.name, self.of = name, of
        self.register_buffer("weight", torch.tensor(weight))

    def raw(self, image: Tensor) -> Tensor:
        return self.of(self.checked(image)) * self.weight


def roughness(image: Tensor) -> Tensor:
    return (image[..., 1:] - image[..., :-1]).abs().mean(dim=(1, 2, 3))


def calm(name: str = "calm", weight: float = 1.0) -> Toy:
    """Prefers the smoother picture: valid on noisy inputs."""
    return Toy(name, lambda image: 1 - roughness(image), weight)


def greedy(name: str = "greedy") -> Toy:
    """Prefers the rougher picture, as scores do that like noise: not valid on noisy inputs."""
    return Toy(name, roughness)


def photo(seed: int, height: int = 96, width: int = 112) -> Pixels:
    """A smooth picture with texture and edges, (H, W, 3) uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    values = 120 + 50 * np.sin(x[..., None] / 11 + seed + np.arange(3)) + 30 * np.cos(y[..., None] / 6 - seed)
    values[20:50, 30:70] += 35
    fine = generator.normal(0, 9, (height, width, 1))
    fine = (fine + np.roll(fine, 1, 0) + np.roll(fine, 1, 1) + np.roll(fine, (1, 1), (0, 1))) / 2
    fine[:, width // 2 :] *= 0.1  # half of it is calm, as the sky is
    return (values + fine).round().clip(0, 255).astype(np.uint8)


def noisy(pixels: Pixels, sigma: float, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    import cv2

    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma))


def sharpened(pixels: Pixels, amount: float) -> Pixels:
    """An unsharp mask."""
    wide = blurred(pixels, 1.0).astype(float)
    return (pixels + amount * (pixels - wide)).round().clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def fill(folder: Path, make: Callable[[Pixels, int], Pixels], suffix: str = ".png") -> Path:
    """A folder of pictures, each made of its ground truth and its number."""
    for number, name in enumerate(NAMES):
        save(folder / f"{name}{suffix}", make(photo(number), number))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gt, lq (noise of 20), base (noise of 12) and good (noise of 4), six pictures each. Tests add none."""
    root = tmp_path_factory.mktemp("set")
    fill(root / "gt", lambda truth, _: truth)
    fill(root / "lq", lambda truth, seed: noisy(truth, 20, seed))
    fill(root / "base", lambda truth, seed: noisy(truth, 12, 10 + seed))
    fill(root / "good", lambda truth, seed: noisy(truth, 4, 20 + seed))
    return root


def run(place: Path, *candidates: Any, **options: Any) -> Evaluation:
    given: dict[str, Any] = {"gt": place / "gt", "lq": place / "lq", "resamples": 200, **options}
    return evaluate(list(candidates) or [place / "good"], place / "base", **given)


def written(result: Evaluation, folder: Path) -> str:
    """The page's text, without its scripts, styles and tags."""
    evaluation_page(result, folder / "page.html")
    body = re.sub(r"<(script|style)\b.*?</\1>", "", (folder / "page.html").read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# ---------------------------------------------------------------- figures


def test_figures_means_and_win_rate(place: Path) -> None:
    result = run(place, judges=[calm()])
    assert [measure.name for measure in result.measures] == ["PSNR", "SSIM", "calm"]
    (good,) = result.candidates
    assert result.labels == ["base", "good"] and [image.name for image in result.images] == NAMES
    versus = good.versus["PSNR"]
    assert (versus.wins, versus.ties, versus.losses, versus.win_rate) == (6, 0, 0, 1.0)
    assert versus.verdict == "better" and versus.sign_test == pytest.approx(2 / 64)
    assert versus.difference == pytest.approx(result.mean("PSNR", 1) - result.mean("PSNR", 0))
    assert versus.difference == pytest.approx(20 * math.log10(12 / 4), abs=0.6), "noise a third as strong"
    judged = [calm().raw(torch.from_numpy(noisy(photo(i), 4, 20 + i)).permute(2, 0, 1)[None] / 255) for i in range(6)]
    assert result.figures("calm", 1) == pytest.approx([float(each) for each in judged])


def test_a_lower_number_wins_where_lower_is_better(place: Path) -> None:
    rough = Toy("rough", roughness)
    rough.worst, rough.best = 1.0, 0.0
    result = run(place, judges=[rough])
    versus = result.candidates[0].versus["rough"]
    assert versus.wins == 6 and versus.difference is not None and versus.difference < 0
    assert result.measure("rough").validity.share == 1.0  # type: ignore[union-attr]


def test_ties_are_counted_and_stated(place: Path) -> None:
    result = run(place, Outputs(place / "base", "again"))
    versus = result.candidates[0].versus["PSNR"]
    assert (versus.wins, versus.ties, versus.losses, versus.win_rate) == (0, 6, 0, 0.5)
    assert (versus.sign_test, versus.win_rate_interval, versus.verdict) == (1.0, (0.0, 1.0), "undecided")


def test_win_rate_interval_and_sign_test() -> None:
    up, down = [1.0] * 6, [0.0] * 6
    unanimous = statistics.versus(up, down, higher_is_better=True)
    assert unanimous is not None
    # Closed forms: of 6 wins in 6, Clopper and Pearson's lower end, and the two-sided sign test.
    assert unanimous.win_rate_interval == pytest.approx((0.025 ** (1 / 6), 1.0))
    assert unanimous.sign_test == pytest.approx(2 / 2**6)
    mixed = statistics.versus([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], higher_is_better=True)
    assert mixed is not None and mixed.win_rate_interval == (0.25, 1.0)
    with_tie = statistics.versus([1.0, 1.0, 5.0, 0.0], [0.0, 0.0, 5.0 * (1 + 1e-9), 1.0], higher_is_better=True)
    assert with_tie is not None and with_tie.ties == 1 and with_tie.win_rate == 0.625
    five = statistics.versus([1.0] * 6, [0.0] * 5 + [1.0], higher_is_better=True)
    assert five is not None and five.sign_test == pytest.approx(2 / 2**5), "5 of 5 and the tie is left out"
    unlikely = statistics.versus([1.0] * 14, [0.0] * 11 + [2.0] * 3, higher_is_better=True)
    assert unlikely is not None and unlikely.win_rate_interval[0] > 0.5 and unlikely.sign_test > 0.05
    assert unlikely.verdict == "undecided", "11 of 14: the bootstrap alone would say better"
    again = statistics.versus([3.0, 1.0, 2.0], [1.0, 2.0, 1.5], higher_is_better=True, seed=5)
    assert again == statistics.versus([3.0, 1.0, 2.0], [1.0, 2.0, 1.5], higher_is_better=True, seed=5)


def test_bootstrap_interval_covers_what_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for number in range(150):
        wins = (generator.random(60) < 0.7).astype(float)
        low, high = statistics.bootstrap(list(wins), number, 400)  # type: ignore[misc]
        held += low <= 0.7 <= high
    assert 0.88 <= held / 150 <= 1.0


def test_without_a_number_the_other_wins() -> None:
    """Else a candidate could leave out the images that it would lose."""
    inf = math.inf
    assert statistics.outcome("not finite", 0.1, True) == -1 and statistics.outcome(0.1, "too small", False) == 1
    assert statistics.outcome("too small", "too small", True) is None
    assert statistics.outcome(inf, 40.0, True) == 1 and statistics.outcome(inf, inf, True) == 0
    versus = statistics.versus([inf, 30.0, "none"], [20.0, 20.0, "none"], higher_is_better=True)
    assert versus is not None and (versus.wins, versus.images, versus.finite, versus.difference) == (2, 2, 1, 10.0)


# ---------------------------------------------------------------- judges


def test_a_judge_that_prefers_the_input_does_not_count(place: Path) -> None:
    result = run(place, judges=[greedy(), calm()])
    (good,) = result.candidates
    assert set(good.versus) == {"PSNR", "SSIM", "calm"} and good.not_counted == {"greedy": "not valid (0% of 6 pairs)"}
    validity = result.measure("calm").validity
    assert validity is not None and (validity.preferred, validity.pairs, validity.share) == (6, 6, 1.0)
    assert validity.data.startswith("gt and lq (6 pairs, digest ") and not validity.carried
    document = result.document()
    assert "greedy" not in document["candidates"][0]["versus"], "no win rate that could be quoted"
    by_name = {measure["name"]: measure for measure in document["measures"]}
    assert by_name["greedy"]["validity"]["share"] == 0 and by_name["greedy"]["validity"]["pairs"] == 6
    assert by_name["calm"]["validity"]["valid"] is True and by_name["calm"]["about"]["digest"] == calm().digest()


@pytest.mark.parametrize(("preferred", "valid"), [(7, True), (6, False)])
def test_the_gate_is_at_seventy_percent(preferred: int, valid: bool) -> None:
    gt = [1.0] * preferred + [0.0] * (10 - preferred)
    assert validity_of(calm(), gt, [0.5] * 10, "set").valid is valid
    # Neither equal scores nor ground truths without one are a preference.
    assert validity_of(calm(), [0.5] * 10, [0.5] * 10, "set").preferred == 0
    assert validity_of(calm(), ["not finite"] * 10, [0.5] * 10, "set").preferred == 0


def test_without_pairs_a_judge_is_unverified_or_carried(place: Path, tmp_path: Path) -> None:
    alone = {"gt": None, "lq": None}
    result = run(place, judges=[calm()], **alone)
    assert result.candidates[0].not_counted == {"calm": "unverified"} and not result.candidates[0].versus
    assert "unverified" in str(result.measure("calm").validity)
    run(place, judges=[calm(), greedy()]).save(tmp_path / "pairs.json")
    for known in (tmp_path / "pairs.json", judge_validity([calm(), greedy()], place / "gt", place / "lq")):
        result = run(place, judges=[calm(), greedy()], validity=known, **alone)
        (good,) = result.candidates
        assert good.versus["calm"].wins == 6 and good.not_counted == {"greedy": "not valid (0% of 6 pairs)"}
        validity = result.measure("calm").validity
        assert validity is not None and validity.carried and "carried from gt and lq (6 pairs" in str(validity)
    # Ground truth alone makes no pairs either; and other weights are another judge.
    assert run(place, judges=[calm()], lq=None).candidates[0].not_counted == {"calm": "unverified"}
    other = run(place, judges=[calm(weight=0.5)], validity=tmp_path / "pairs.json", **alone)
    assert other.candidates[0].not_counted == {"calm": "unverified"}


def test_carried_validity_does_not_overrule_the_pairs_there_are(place: Path) -> None:
    claimed = [Validity("greedy", greedy().digest(), 100, 100, "another set")]
    result = run(place, judges=[greedy()], validity=claimed)
    assert result.candidates[0].not_counted == {"greedy": "not valid (0% of 6 pairs)"}
    assert run(place, judges=[greedy()], validity=claimed, lq=None).candidates[0].versus["greedy"].images == 6


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"measures": 3}',
        '{"measures": [{"kind": "judge", "validity": null}]}',
        '{"measures": [{"kind": "judge", "validity": {"judge": "calm", "digest": "", "preferred": 9, "pairs": 3, "data": ""}}]}',
        '{"measures": [{"kind": "judge", "validity": {"judge": "calm", "digest": "", "preferred": 1e0, "pairs": true, "data": ""}}]}',
    ],
)
def test_damaged_validity_is_refused(place: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(DataError, match="holds no validity"):
        run(place, judges=[calm()], validity=tmp_path / "old.json", gt=None, lq=None)


class Both(Scorer):
    """An ensemble as any may be made: of scorers, inside a list."""

    name, worst, best = "both", 0.0, 1.0

    def __init__(self, *parts: Scorer) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def raw(self, image: Tensor) -> Tensor:
        return torch.stack([part.raw(image) for part in self.parts]).mean(0)


def adapter(folder: Path, *scorers: str) -> Path:
    return save_adapter(folder, Adapter("masks", {}, {"a": torch.ones(1)}, scorers=list(scorers)))


@pytest.mark.parametrize(
    ("scorers", "refused"),
    [
        (["calm"], {"calm", "both"}),
        (["CALM"], {"calm", "both"}),
        (["pyiqa:calm"], {"calm", "both"}),
        (["calm=weights/calm.safetensors"], {"calm", "both"}),
        ([f"calm@{'0' * 64}"], {"calm", "both"}),
        (["renamed@CALM"], {"calm", "both"}),
        (["calmer", "x@calm", "calm2@00000000"], set()),
        (["both"], {"both"}),
        (["ensemble(calm+other)"], {"calm", "both"}),
        (["ensemble(pyiqa:other+ensemble(x+calm))@00000000"], {"calm", "both"}),
        (["ssim"], {"SSIM"}),
        ([], set()),
    ],
)
def test_what_trained_a_model_does_not_judge_it(
    place: Path, tmp_path: Path, scorers: list[str], refused: set[str]
) -> None:
    made_by = adapter(
        tmp_path / "adapter", *(name.replace("CALM", calm().digest()[:16]) if "@" in name else name for name in scorers)
    )
    given = Outputs(place / "good", "ours", [made_by])
    judges = [calm(), Both(calm("inner") if scorers == ["both"] else calm(), calm("third", 0.5))]
    result = run(place, given, Outputs(place / "gt", "theirs"), judges=judges)
    ours, theirs = result.candidates
    assert set(ours.not_counted) == refused and not theirs.not_counted
    assert all(reason.startswith("it was trained on ") for reason in ours.not_counted.values())
    assert result.document()["candidates"][0]["trained_on"] == ours.trained_on


def test_a_shipped_scorer_that_trained_a_model_does_not_judge_it(place: Path, tmp_path: Path) -> None:
    ranker = load_scorer("shipped:ranker")
    given = Outputs(place / "good", "ours", [adapter(tmp_path / "adapter", f"ranker@{ranker.digest()}")])
    (ours,) = run(place, given, judges=[ranker, calm()]).candidates
    assert ours.not_counted == {"ranker": f"it was trained on ranker@{ranker.digest()}"}


def test_a_judge_that_trained_the_baseline_does_not_count_either(place: Path, tmp_path: Path) -> None:
    made_by = adapter(tmp_path / "adapter", "calm")
    base = Outputs(place / "base", "base", [made_by])
    options: dict[str, Any] = {"gt": place / "gt", "lq": place / "lq", "judges": [calm()]}
    (good,) = evaluate([place / "good"], base, **options).candidates
    assert good.not_counted == {"calm": "the baseline was trained on calm"}
    with pytest.raises(RefineWrapError, match="not an adapter folder"):
        run(place, Outputs(place / "good", "good", [place / "gt"]))


# ---------------------------------------------------------------- cheats


def tinted(truth: Pixels, _: int) -> Pixels:
    """An honest restoration: a little off in tone, with the ground truth's own texture."""
    return np.clip(truth.astype(int) + 3, 0, 255).astype(np.uint8)


CHEATS: dict[str, tuple[Callable[[Pixels, int], Pixels], set[str]]] = {
    "honest": (tinted, set()),
    "noise put back": (lambda truth, seed: noisy(truth, 3, seed), {"noise"}),
    "strong noise": (lambda truth, seed: noisy(truth, 10, seed), {"noise", "detail"}),
    "unsharp mask": (lambda truth, _: sharpened(truth, 1.0), {"detail"}),
    "light unsharp mask": (lambda truth, _: sharpened(truth, 0.5), {"detail"}),
    "smoothing": (lambda truth, _: blurred(truth, 1.5), {"smooth"}),
    "copy": (lambda truth, _: truth, {"copy"}),
    "copy, one pixel changed": (
        lambda truth, _: np.where(np.arange(truth.size).reshape(truth.shape) == 7, 99, truth).astype(np.uint8),
        {"copy"},
    ),
    "constant": (lambda truth, _: np.full_like(truth, 128), {"constant", "smooth"}),
    "input": (lambda truth, seed: noisy(truth, 20, seed), {"unchanged", "noise", "detail"}),
    "baseline": (lambda truth, seed: noisy(truth, 12, 10 + seed), {"baseline", "noise", "detail"}),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_are_seen(place: Path, tmp_path: Path, name: str) -> None:
    make, expected = CHEATS[name]
    result = run(place, fill(tmp_path / "cheat", make), metrics=["PSNR"])
    (cheat,) = result.candidates
    kinds = {flag.kind for flag in cheat.flags}
    # An unsharp mask lifts the noise that is in the ground truth as well.
    assert kinds == expected or (expected == {"detail"} and kinds == {"detail", "noise"})
    page = written(result, tmp_path)
    for flag in cheat.flags:
        assert flag.words in page and flag.words in json.dumps(result.document())


def test_a_cheat_on_some_images_is_counted(place: Path, tmp_path: Path) -> None:
    def some(truth: Pixels, number: int) -> Pixels:
        return truth if number == 2 else noisy(truth, 3, number) if number < 2 else tinted(truth, number)

    (cheat,) = run(place, fill(tmp_path / "some", some), metrics=["PSNR"]).candidates
    assert [(flag.kind, flag.images, flag.of) for flag in cheat.flags] == [("copy", 1, 6), ("noise", 2, 6)]
    assert "on 1 of 6 images" in cheat.flags[0].words


def test_noise_that_pleases_a_judge_gains_nothing(place: Path, tmp_path: Path) -> None:
    """The whole story: a judge that likes noise would call the cheat a winner; here it cannot, and the noise shows."""
    cheat = fill(tmp_path / "cheat", lambda truth, seed: noisy(truth, 25, seed))
    result = run(place, cheat, judges=[greedy(), calm()])
    assert result.mean("greedy", 1) > result.mean("greedy", 0)
    (candidate,) = result.candidates
    assert "greedy" in candidate.not_counted and candidate.versus["calm"].verdict == "worse"
    assert {"noise", "detail"} <= {flag.kind for flag in candidate.flags}


def test_a_constant_picture_that_a_judge_cannot_score_loses(place: Path, tmp_path: Path) -> None:
    """Its contrast is 0, and this judge divides by it."""
    fussy = Toy("fussy", lambda image: 1 - roughness(image) / (image.amax(dim=(1, 2, 3)) - image.amin(dim=(1, 2, 3))))
    constant = fill(tmp_path / "constant", lambda truth, _: np.full_like(truth, 90))
    result = run(place, constant, judges=[fussy])
    assert set(result.figures("fussy", 1)) == {"not finite"} and result.mean("fussy", 1) is None
    assert result.candidates[0].versus["fussy"].losses == 6


def test_copy_has_infinite_psnr_in_json_and_page(place: Path, tmp_path: Path) -> None:
    result = run(place, place / "gt")
    assert result.mean("PSNR", 1) == math.inf and result.candidates[0].versus["PSNR"].difference is None
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert document["images"][0]["candidates"][0]["figures"]["PSNR"] == "inf"
    assert "∞" in written(result, tmp_path)


def test_texture_measures_what_it_says() -> None:
    generator = np.random.default_rng(0)
    flat = 100 + generator.normal(0, 8, (256, 320, 1))
    eight, deep = (
        Picture(np.rint(flat * top / 255).astype(kind)) for top, kind in ((255, np.uint8), (65535, np.uint16))
    )
    for picture in (eight, deep):
        seen = gaming.texture(picture)
        assert seen.noise == pytest.approx(8, rel=0.03)
        assert seen.energy == pytest.approx(64, rel=0.05)
        # White noise has as much in every part of the spectrum: the square without the disc of radius 1/4.
        assert seen.share == pytest.approx(1 - math.pi / 16, abs=0.02)
    for frequency, share in ((0.1, 0.0), (0.4, 1.0)):
        wave = 128 + 60 * np.sin(2 * np.pi * frequency * np.arange(256))[None, :, None].repeat(200, 0)
        assert gaming.texture(Picture(np.rint(wave).astype(np.uint8))).share == pytest.approx(share, abs=0.01)
    # Edges and smooth colour are no noise.
    edges = np.zeros((128, 128, 3), np.uint8) + np.linspace(0, 90, 128).astype(np.uint8)[:, None, None]
    edges[40:80, 30:90] = 200
    assert gaming.texture(Picture(edges)).noise < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (63, 64), (65, 130), (200, 3)])
def test_texture_of_any_size(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    seen = gaming.texture(Picture(pixels))
    assert all(math.isfinite(value) for value in (seen.energy, seen.detail, seen.noise)) and 0 <= seen.share <= 1
    assert seen.constant == (size == (1, 1)) and seen.ratios(seen) == (1.0, 1.0)


def test_a_cheat_at_the_margin_is_seen() -> None:
    """The blocks of the spectrum cover all of a picture, whatever its size is."""
    pixels = np.full((70, 70, 3), 128, np.uint8)
    pixels[66:, ::2] = 255
    assert gaming.texture(Picture(pixels)).share > 0.3


# ---------------------------------------------------------------- pairing


def copied(source: Path, target: Path, rename: str) -> Path:
    for file in sorted(source.iterdir()):
        save(target / f"{rename.format(name=file.stem)}.png", np.asarray(Image.open(file)))
    return target


def test_names_by_pattern_in_one_folder(place: Path, tmp_path: Path) -> None:
    """As PolyU comes: X_mean and X_real in one folder; what is restored keeps the name of its input."""
    both = copied(place / "gt", tmp_path / "both", "{name}_mean")
    copied(place / "lq", both, "{name}_real")
    patterns = {"gt_pattern": "{name}_mean", "lq_pattern": "{name}_real"}
    base = Outputs(both, "noisy")
    result = evaluate([copied(place / "good", tmp_path / "good", "{name}_real")], base, gt=both, lq=both, **patterns)
    assert [image.name for image in result.images] == NAMES and result.candidates[0].versus["PSNR"].wins == 6
    assert not result.candidates[0].flags or result.candidates[0].flags[0].kind == "noise"
    truth = Outputs(both, "truth", pattern="{name}_mean")
    result = evaluate([Outputs(place / "good", pattern="{name}"), truth], base, gt=both, lq=both, **patterns)
    assert [flag.kind for flag in result.candidates[1].flags] == ["copy"]


@pytest.mark.parametrize("judged", [True, False])
def test_smaller_inputs_are_enlarged(place: Path, tmp_path: Path, judged: bool) -> None:
    fill(tmp_path / "lq", lambda truth, _: np.asarray(Image.fromarray(truth).resize((56, 48), Image.Resampling.BOX)))
    for file in (tmp_path / "lq").iterdir():
        file.rename(file.with_name(f"{file.stem}x2.png"))
    bicubic = fill(
        tmp_path / "bicubic",
        lambda truth, _: np.asarray(
            Image.fromarray(truth).resize((56, 48), Image.Resampling.BOX).resize((112, 96), Image.Resampling.BICUBIC)
        ),
    )
    sharp = Toy("sharp", roughness)
    result = run(place, bicubic, lq=tmp_path / "lq", judges=[sharp] if judged else [])
    assert "unchanged" in {flag.kind for flag in result.candidates[0].flags}
    if judged:
        assert result.measure("sharp").validity.share == 1.0  # type: ignore[union-attr]
        assert result.figures("sharp", "lq") == result.figures("sharp", 1)


def test_images_that_cannot_be_used_are_left_out_and_named(place: Path, tmp_path: Path) -> None:
    mixed = copied(place / "good", tmp_path / "mixed", "{name}")
    (mixed / "photo1.png").write_bytes((mixed / "photo1.png").read_bytes()[:300])
    save(mixed / "photo2.png", photo(2, 90, 112))
    save(tmp_path / "mixed" / "photo4.png", photo(4))
    (mixed / "photo5.png").unlink()
    (mixed / "photo5.png").symlink_to(tmp_path / "nowhere.png")
    result = run(place, mixed, Outputs(place / "gt", "truth"), judges=[calm()])
    assert [image.name for image in result.images] == ["photo0", "photo3", "photo4"]
    reasons = dict(result.left_out)
    assert set(reasons) == {"photo1", "photo2", "photo5"}
    assert "mixed: photo1.png is a damaged or truncated PNG" in reasons["photo1"]
    assert reasons["photo2"] == "mixed has 112x90 pixels, not 112x96"
    assert all(candidate.versus["PSNR"].images == 3 for candidate in result.candidates), "the same images for all"
    assert result.measure("calm").validity.pairs == 3  # type: ignore[union-attr]
    assert str(tmp_path) not in json.dumps(result.document())


def test_missing_images_are_refused_or_counted(place: Path, tmp_path: Path) -> None:
    part = copied(place / "good", tmp_path / "part", "{name}")
    (part / "photo3.png").unlink()
    with pytest.raises(DataError, match=r"1 without a part partner in .*gt: photo3\.png"):
        run(place, part)
    result = run(place, part, subset=True)
    assert len(result.images) == 5 and result.unused == 1 and not result.left_out
    save(part / "extra.png", photo(9))
    with pytest.raises(DataError, match=r"1 without a ground-truth partner in .*part: extra\.png"):
        run(place, part, subset=True)


def test_pictures_are_taken_upright(place: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = tmp_path / "turned"
    for number, name in enumerate(NAMES):
        save(turned / f"{name}.png", np.ascontiguousarray(np.rot90(photo(number))), exif=exif)
    assert [flag.kind for flag in run(place, turned).candidates[0].flags] == ["copy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gt": None, "lq": None}, "nothing to measure"),
        ({"gt": None, "metrics": ["PSNR"]}, "without ground truth"),
        ({"metrics": ["PSNR", "psnr"]}, "PSNR is given twice"),
        ({"metrics": ["PSNRR"]}, "no full-reference metric"),
        ({"judges": [calm(), calm()]}, "calm is given twice"),
        ({"ranked_by": "niqe"}, "cannot be ranked by 'niqe'"),
        ({"gt": "nowhere"}, "nowhere does not exist"),
        ({"lq_pattern": "{name"}, "cannot be used"),
        ({"lq_pattern": "{name}_real"}, "fits the pattern"),
        ({"validity": "nowhere.json", "gt": None, "judges": [calm()]}, "cannot be read"),
    ],
)
def test_wrong_calls_are_refused(place: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RefineWrapError, match=words) as caught:
        run(place, **options)
    assert len(str(caught.value).splitlines()) <= 3 and caught.value.exit_code == 2


def test_wrong_candidates_are_refused(place: Path, tmp_path: Path) -> None:
    for given, words in (
        ([], "No candidates"),
        (place / "good", "No candidates"),
        ([place / "good", place / "good"], "are called 'good'"),
        ([place / "gt" / "photo0.png"], "is a file"),
        ([Outputs(place / "good", "base")], "are called 'base'"),
        (["shipped:demo_refiner"], "no inputs to be run on"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(given, place / "base", gt=place / "gt")
    small = fill(tmp_path / "small", lambda truth, _: truth[:20])
    with pytest.raises(DataError, match="None of the 6 images can be used; the first, photo0: small has 112x20"):
        run(place, small)


# ---------------------------------------------------------------- which images are shown, and what is written


def test_best_median_and_worst_by_a_named_measure(place: Path, tmp_path: Path) -> None:
    steps = fill(tmp_path / "steps", lambda truth, number: noisy(truth, [9, 3, 30, 6, 16, 1][number], number))
    result = run(place, steps, judges=[calm()])
    assert result.ranked_by == "PSNR"
    assert result.candidates[0].shown == {"best": "photo5", "median": "photo0", "worst": "photo2"}
    # By a lower-is-better measure too; and the same images whatever the scale is.
    result = run(place, steps, metrics=["PSNR", "GMSD"], ranked_by="GMSD")
    assert (result.candidates[0].shown["best"], result.candidates[0].shown["worst"]) == ("photo5", "photo2")
    # A judge that does not count is chosen only where nothing else is there.
    assert run(place, steps, judges=[greedy(), calm()], metrics=[]).ranked_by == "calm"
    assert run(place, steps, judges=[greedy()], metrics=[]).ranked_by == "greedy"
    assert "in greedy (not valid (0% of 6 pairs), not counted)" in written(
        run(place, steps, judges=[greedy()], metrics=[]), tmp_path
    )


def test_the_document_says_how_and_of_what_but_not_where(place: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(place, tmp_path / "moved" / "set"))
    for number, root in enumerate((place, elsewhere)):
        run(root, judges=[calm()]).save(tmp_path / f"{number}.json")
    first, second = ((tmp_path / f"{number}.json").read_bytes() for number in range(2))
    assert first == second and str(place).encode() not in first
    document = json.loads(first)
    image = document["images"][3]
    assert image["gt"]["sha256"] == hashlib.sha256((place / "gt" / "photo3.png").read_bytes()).hexdigest()
    assert image["candidates"][0]["sha256"] == hashlib.sha256((place / "good" / "photo3.png").read_bytes()).hexdigest()
    assert [measure["protocol"] for measure in document["measures"][:2]] == [
        "PSNR, RGB, 8-bit, border 0",
        "SSIM, RGB, 8-bit, border 0",
    ]
    assert document["settings"]["seed"] == 0 and document["versions"]["torch"] == torch.__version__
    assert document["data"]["images"] == 6 and document["data"]["gt"]["folder"] == "gt"
    digests = {document["data"][side]["digest"] for side in ("gt", "lq", "baseline")}
    assert len(digests) == 3
    luma = run(place, luma=True, border=4, metrics=["PSNR", "GMSD"]).measures
    assert [measure.protocol for measure in luma] == [
        "PSNR, Y (BT.601), 8-bit, border 4",
        "GMSD, grey (BT.601), 8-bit, border 4",
    ]


def test_few_pictures_are_in_memory_at_a_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Picture]] = []
    most = 0

    def counted(path: Path) -> Picture:
        nonlocal most
        picture = read_image(path)
        alive.append(weakref.ref(picture))
        most = max(most, sum(one() is not None for one in alive))
        return picture

    monkeypatch.setattr(places, "read_image", counted)
    outputs = [Outputs(place / "good", f"candidate {number}") for number in range(4)]
    run(place, *outputs, judges=[calm()])
    assert len(alive) == 6 * 7 and most <= 4


# ---------------------------------------------------------------- the page


def test_page_greys_what_does_not_count(place: Path, tmp_path: Path) -> None:
    result = run(place, judges=[greedy(), calm()])
    text = written(result, tmp_path)
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    (row,) = re.findall(
        r'<tr class="void"><th class="name" scope="row">greedy ↑</th>.*?</tr>', source[: source.index("<h2>Judges")]
    )
    assert "not counted: not valid (0% of 6 pairs)" in row and "%" not in row.replace("0% of 6 pairs", "")
    assert source.count('<th scope="col" class="void">greedy') == 2, "its columns of baseline and candidate"
    assert len(re.findall('<td class="void">', source)) == 2 * 6
    for words in (
        "good against base",
        "100% [54%, 100%]",
        "6/0/0",
        "0.031",
        "prefers the ground truth to the input on 6 of 6 (100%), gt and lq (6 pairs, digest ",
        "Best, median and worst image of each candidate, by its gain over the baseline in PSNR.",
        "High-frequency energy / GT",
    ):
        assert words in text, "readable without JavaScript"
    data = json.loads(re.search(r'id="data">(.*?)</script>', source, re.S)[1])  # type: ignore[index]
    assert [entry["label"] for entry in data["sources"]] == ["base", "good", "input", "ground truth"]
    assert [item["image"] for item in data["items"]] == list(dict.fromkeys(result.candidates[0].shown.values()))
    assert "best" in data["items"][0]["name"] and " dB" in data["items"][0]["images"][1]["figures"]
    assert "prefers-color-scheme: dark" in source and "http" not in re.sub(
        r"http-equiv|http://www.w3.org/2000/svg", "", source
    )


def test_names_cannot_break_the_page(place: Path, tmp_path: Path) -> None:
    evil = '<img src=x onerror=alert(1)> & "q" [bold]'
    save(tmp_path / "gt" / f"{evil}.png", photo(0))
    save(tmp_path / "base" / f"{evil}.png", noisy(photo(0), 9))
    save(tmp_path / evil / f"{evil}.png", noisy(photo(0), 3))
    result = evaluate([tmp_path / evil], tmp_path / "base", gt=tmp_path / "gt")
    assert f"{evil} against base" in written(result, tmp_path)
    assert "<img" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@needs_chromium
def test_page_in_a_browser(browser: Browser, place: Path, tmp_path: Path) -> None:
    evaluation_page(run(place, judges=[greedy()]), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.troubles() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
    assert browser.js("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert browser.js("[...document.querySelectorAll('select.tag')].map((s) => s.selectedOptions[0].textContent)") == [
        "base",
        "good",
    ]
    grey, black = (
        browser.js(f"getComputedStyle(document.querySelector('{of}')).color")
        for of in ("tr.void > td", "tr.better > td")
    )
    assert grey != black
    browser.key("ArrowRight")
    assert browser.js("document.getElementById('pick').value") == "1"
    browser.look(dark=True)
    light = black
    assert browser.js("getComputedStyle(document.querySelector('tr.better > td')).color") != light
    browser.look()


# ---------------------------------------------------------------- adapters that are run, and the command line


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained on calm, and its backbone of x2."""
    root = tmp_path_factory.mktemp("wrapped")
    torch.manual_seed(0)
    body = load_backbone("SRVGGNetCompact", options={"num_feat": 8, "num_conv": 16, "upscale": 2})
    save_file(
        {name: value.contiguous() for name, value in body.published_state_dict().items()}, root / "x2.safetensors"
    )
    wrapper = RefineWrapper(load_backbone(root / "x2.safetensors"), refiner={"preset": "ornet-lite", "width": 4})
    wrapper.save_pretrained(root / "adapter", scorers=["calm"])
    return root


def test_an_adapter_is_run_on_the_inputs(place: Path, wrapped: Path, tmp_path: Path) -> None:
    small = fill(tmp_path / "small", lambda truth, _: truth[::2, ::2])
    adapted = Outputs(wrapped / "adapter", backbone=wrapped / "x2.safetensors")
    result = run(place, adapted, lq=small, judges=[calm()])
    (candidate,) = result.candidates
    wrapper = RefineWrapper.from_pretrained(wrapped / "adapter", backbone=wrapped / "x2.safetensors")
    restored = wrapper.restore(small / "photo2.png").tensor()
    truth = read_image(place / "gt" / "photo2.png").tensor()
    assert result.figures("PSNR", 1)[2] == pytest.approx(float(psnr(restored, truth)[0]))
    assert candidate.not_counted == {"calm": "it was trained on calm"}, "its own card is asked unasked"
    assert result.images[0].outputs[1].sha256 is None
    assert written(result, tmp_path)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        app([str(a) for a in arguments])
    return int(left.value.code or 0)


def test_command_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toys = {"calm": calm(), "greedy": greedy()}
    monkeypatch.setattr("refine_wrap.scorers.load_scorer", lambda source, device: toys.get(source, source))
    made_by = adapter(tmp_path / "adapter", "greedy")
    where = ["--baseline", place / "base", "--gt", place / "gt", "--lq", place / "lq"]
    page = tmp_path / "deep" / "result.html"
    judges = ["-j", "calm", "-j", "greedy"]
    assert (
        call("evaluate", f"ours={place / 'good'}", place / "gt", *where, *judges, "-a", f"ours={made_by}", "-o", page)
        == 0
    )
    said = capsys.readouterr().out
    for words in (
        "ours against base",
        "gt against base",
        "not counted: it was trained on greedy",
        "copy of the ground truth",
        "! gt is",
    ):
        assert words in said
    assert "100% [54%, 100%]" in said and str(page) in said
    document = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert [each["label"] for each in document["candidates"]] == ["ours", "gt"]
    assert sorted(path.name for path in page.parent.iterdir()) == ["result.html", "result.json"]
    # What is there is kept; and carried validity comes from it.
    before = page.read_bytes()
    assert call("evaluate", place / "good", *where, "-o", page) == 1
    assert page.read_bytes() == before and "exists already" in capsys.readouterr().err
    base = ["--baseline", place / "base"]
    known = ["--validity", page.with_suffix(".json")]
    assert call("evaluate", place / "good", *base, "-j", "calm", *known, "-o", tmp_path / "b.html") == 0
    assert "carried from gt and lq (6 pairs" in capsys.readouterr().out
    pairs = ["--validity-pairs", place / "gt", place / "lq"]
    assert call("evaluate", place / "good", *base, "-j", "calm", *pairs, "-o", tmp_path / "c.html") == 0
    assert "carried from gt and lq (6 pairs" in capsys.readouterr().out
    assert call("evaluate", place / "good", *base, "-j", "calm", *pairs, *known, "-o", tmp_path / "d.html") == 2
    assert call("evaluate", place / "good", *where, "-a", f"theirs={made_by}", "-o", tmp_path / "d.html") == 2
    assert call("evaluate", place / "good", *where, "-o", tmp_path / "d.png") == 2
    assert call("evaluate", tmp_path / "nowhere", *where, "-o", tmp_path / "d.html") == 2
    assert not (tmp_path / "d.html").exists()


def test_command_line_with_a_broken_image(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = copied(place / "good", tmp_path / "mixed", "{name}")
    (mixed / "photo1.png").write_bytes(b"no picture")
    where = ["--baseline", place / "base", "--gt", place / "gt", "-m", "PSNR", "-o", tmp_path / "page.html"]
    assert call("evaluate", mixed, *where) == 1
    said = capsys.readouterr()
    assert "Left out: photo1: mixed: photo1.png" in said.err and "5 images, 1 left out" in said.out
    assert "photo1.png" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_interrupted_nothing_is_half_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    where = ["--baseline", place / "base", "--gt", place / "gt", "-m", "PSNR", "-o", tmp_path / "page.html"]
    for moment in ("refine_wrap.evaluation.bench.Bench.look", "refine_wrap.report.evaluation.render"):
        with monkeypatch.context() as patch:
            patch.setattr(moment, stop)
            assert call("evaluate", place / "good", *where) == 130
        assert not list(tmp_path.iterdir())


def test_help_needs_no_torch() -> None:
    code = "import sys; from refine_wrap.cli.main import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
