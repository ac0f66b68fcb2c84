"""Pristine-referenced sets: what is in them, that they are made the same every time, and that nothing spoils them."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import at_once
from filelock import FileLock
from PIL import Image

from refine_wrap import manifests
from refine_wrap.cli.main import app
from refine_wrap.degradation import Blur, Degradation, Noise
from refine_wrap.errors import DataError, OutputError, RecipeError, RefineWrapError
from refine_wrap.evaluation import psnr
from refine_wrap.evaluation.flawed import LEVELS, Manifest, make_flawed, verify_flawed
from refine_wrap.evaluation.flawed import make as flawed
from refine_wrap.images import Picture, read_image, write_image
from refine_wrap.recipe import load_degradation

FOLDERS = ["pristine", *(f"{kind}/level{n}" for kind in ("flawed_gt", "input") for n in (1, 2, 3))]
Files = dict[str, bytes]


def scene(seed: int, height: int = 72, width: int = 80, top: int = 255) -> np.ndarray:
    """Shades, edges and fine texture, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [0.5 + 0.3 * np.sin(x / (6 + c) + seed) * np.cos(y / 5 - c) for c in range(3)]
    image = np.stack(planes, 2) + 0.06 * np.sin(x * 1.9)[..., None] * np.cos(y * 1.3)[..., None]
    image[20:40, 30:60] = rng.uniform(0.1, 0.9, 3)
    return np.rint(np.clip(image, 0, 1) * top).astype(np.uint8 if top == 255 else np.uint16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("b.png", "a.png", "sub/c.tif")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "photos" / name, Picture(scene(seed)))
    return tmp_path / "photos"


def everything(out: Path) -> Files:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name[0] != "."}


def written(out: Path) -> dict[str, int]:
    return {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in out.rglob("*.png")}


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())  # type: ignore[no-any-return]


def decibels(out: Path, folder: str, name: str) -> float:
    return psnr(read_image(out / folder / name).tensor(), read_image(out / "pristine" / name).tensor()).item()


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        app(["make-flawed", *map(str, arguments)])
    return int(left.value.code or 0)


# ---------------------------------------------------------------- what a set is


def test_layout_and_manifest(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert make_flawed(photos, out, seed=7).done == 3
    names = {"a.png", "b.png", "sub/c.png"}
    assert set(everything(out)) == {f"{folder}/{name}" for folder in FOLDERS for name in names} | {"manifest.json"}
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (80, 72))
    document = manifest(out)
    assert (document["format"], document["seed"], document["downscale"]) == (1, 7, 1)
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert document["photos"]["sub/c"]["source"] == "sub/c.tif"
    for number, level in LEVELS.items():
        assert Degradation.model_validate(document["levels"][str(number)]["flaws"]) == level.flaws
        for photo in document["photos"].values():
            drawn = photo["images"][0]["drawn"][f"flawed_gt/level{number}"]
            for part, key in (("blur", "sigma"), ("noise", "sigma"), ("noise", "correlation"), ("jpeg", "quality")):
                low, high = getattr(getattr(level.flaws, part), key)
                values = drawn[part][key]
                assert all(low <= v <= high for v in (values if isinstance(values, list) else [values]))


def test_pristine_is_the_photo(photos: Path, tmp_path: Path) -> None:
    make_flawed(photos / "b.png", tmp_path / "set")
    assert np.array_equal(read_image(tmp_path / "set/pristine/b.png").pixels, scene(0))


def test_every_level_is_worse_than_the_one_before_and_the_input_worst(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out)
    recorded = {i["name"]: i["psnr"] for p in manifest(out)["photos"].values() for i in p["images"]}
    for name, values in recorded.items():
        truths = [decibels(out, f"flawed_gt/level{n}", name) for n in (1, 2, 3)]
        inputs = [decibels(out, f"input/level{n}", name) for n in (1, 2, 3)]
        assert list(values.values()) == pytest.approx(truths, abs=1e-3)
        assert truths[0] > truths[1] + 1 > truths[2] + 2
        assert all(low < high - 3 for low, high in zip(inputs, truths, strict=True))


def test_ranges_of_the_levels_lie_apart() -> None:
    for part, key, sign in (("blur", "sigma", 1), ("noise", "sigma", 1), ("jpeg", "quality", -1)):
        ends = [sorted(sign * v for v in getattr(getattr(level.flaws, part), key)) for level in LEVELS.values()]
        assert ends[0][1] < ends[1][0] and (ends[1][1] < ends[2][0])


@pytest.mark.shared
def test_levels_on_real_photos(shared: Path, tmp_path: Path) -> None:
    """As `levels` states: near 41, 34 and 30 dB in the mean."""
    for path in sorted((shared / "data" / "train" / "cid22").glob("*.webp"))[::26][:8]:
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "photos")
    make_flawed(tmp_path / "photos", tmp_path / "set", crop=256)
    means = Manifest.read(tmp_path / "set").mean_psnr()
    for folder, low, high in (("level1", 38, 43), ("level2", 31, 36), ("level3", 26.5, 31.5)):
        assert low < means[f"flawed_gt/{folder}"] < high, means


# ---------------------------------------------------------------- the same every time


def test_two_runs_make_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_flawed(photos, tmp_path / name)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    make_flawed(photos, tmp_path / "three", seed=1)
    one, three = everything(tmp_path / "one"), everything(tmp_path / "three")
    changed = {path.split("/")[0] for path in one if one[path] != three[path]}
    assert changed == {"flawed_gt", "input", "manifest.json"}


def test_shards_other_photos_and_names_change_nothing(photos: Path, tmp_path: Path) -> None:
    make_flawed(photos, tmp_path / "whole")
    for part in (1, 0):
        make_flawed(photos, tmp_path / "parts", shard=(part, 2))
    assert everything(tmp_path / "whole") == everything(tmp_path / "parts")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(photos / "b.png", alone / "z.png")
    make_flawed(alone, tmp_path / "renamed")
    for folder in FOLDERS:
        assert (tmp_path / "renamed" / folder / "z.png").read_bytes() == (
            tmp_path / "whole" / folder / "b.png"
        ).read_bytes()


def test_levels_share_their_draws_and_crops_and_truths_do_not(tmp_path: Path) -> None:
    """Noise on a flat photo: of the input, of its ground truth, of the next crop."""
    write_image(tmp_path / "flat.png", Picture(np.full((32, 64, 3), 128, np.uint8)))
    plain = Degradation(noise=Noise(sigma=[10, 25]))  # shot noise would depend on the light
    make_flawed(tmp_path / "flat.png", tmp_path / "set", crop=32, grid=True, degradation=plain)

    def noise(folder: str, column: int) -> np.ndarray:
        return read_image(tmp_path / f"set/{folder}/flat_r0c{column}.png").pixels.astype(float).ravel()

    def alike(first: np.ndarray, second: np.ndarray) -> float:
        return abs(float(np.corrcoef(first, second)[0, 1]))

    truths = [noise(f"flawed_gt/level{n}", 0) for n in (1, 2, 3)]
    inputs = [noise(f"input/level{n}", 0) - truth for n, truth in zip((1, 2, 3), truths, strict=True)]
    assert min(alike(inputs[0], inputs[1]), alike(inputs[0], inputs[2])) > 0.95
    assert alike(inputs[0], truths[2]) < 0.15
    assert alike(inputs[0], noise("input/level1", 1) - noise("flawed_gt/level1", 1)) < 0.15
    photo = manifest(tmp_path / "set")["photos"]["flat"]["images"][0]["drawn"]
    assert photo["input/level1"] == photo["input/level3"]
    assert photo["flawed_gt/level1"]["blur"]["angle"] == photo["flawed_gt/level3"]["blur"]["angle"]
    # Where in their ranges the noise of the ground truth and of the input lie is drawn apart.
    (low, high), truth = LEVELS[1].flaws.noise.sigma, photo["flawed_gt/level1"]["noise"]["sigma"]  # type: ignore[union-attr]
    assert abs((truth - low) / (high - low) - (photo["input/level1"]["noise"]["sigma"] - 10) / 15) > 1e-3


# ---------------------------------------------------------------- going on


def test_a_second_run_writes_nothing(photos: Path, tmp_path: Path) -> None:
    make_flawed(photos, tmp_path / "set")
    before = written(tmp_path / "set")
    tally = make_flawed(photos, tmp_path / "set")
    assert (tally.done, tally.skipped, written(tmp_path / "set")) == (0, 3, before)


def test_a_second_run_mends_what_is_wrong_and_that_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out)
    good, before = everything(out), written(out)
    (out / "input/level2/a.png").write_bytes(b"half")
    (out / "pristine/sub/c.png").unlink()
    tally = make_flawed(photos, out)
    assert (tally.done, tally.skipped) == (2, 1)
    assert everything(out) == good
    changed = {path for path, when in written(out).items() if before[path] != when}
    assert changed == {"input/level2/a.png", "pristine/sub/c.png"}


def test_ctrl_c_loses_nothing_that_is_done(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_flawed(photos, out, on_done=stop)
    assert list(manifest(out)["photos"]) == ["a"] and not verify_flawed(out).problems
    tally = make_flawed(photos, out)
    assert (tally.done, tally.skipped) == (2, 1)
    make_flawed(photos, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_a_killed_run_is_gone_on_with(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without an entry, as a run leaves them that could not write its manifest any more."""
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(flawed.ManifestFile, "flush", lambda self: None)
        make_flawed(photos, out)
    assert not manifest(out)["photos"]
    before = written(out)
    assert len(verify_flawed(out).problems) == 21
    assert make_flawed(photos, out).done == 3
    assert written(out) == before and not verify_flawed(out).problems


def test_a_full_disk_loses_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    room = [10]

    def scarce(path: Path, mode: str) -> Any:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(flawed, "open", scarce, raising=False)
        tally = make_flawed(photos, out)
    assert (tally.done, len(tally.failed)) == (1, 2) and "disk is full" in tally.failed[0][1]
    assert list(manifest(out)["photos"]) == ["a"]
    assert not list(out.rglob("*.tmp*"))
    make_flawed(photos, out)
    make_flawed(photos, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_two_runs_at_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert at_once(lambda shard: make_flawed(photos, out, shard=shard).failed) == []
    make_flawed(photos, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_a_run_keeps_what_another_has_made_meanwhile(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out, shard=(0, 2), on_done=lambda *_: make_flawed(photos, out, shard=(1, 2)))  # type: ignore[arg-type,return-value]
    make_flawed(photos, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_one_process_at_a_time_writes_the_manifest(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flawed(photos / "b.png", tmp_path / "set")
    monkeypatch.setattr(manifests, "LOCK_SECONDS", 0.2)
    with FileLock(tmp_path / "set/.manifest.lock"), pytest.raises(OutputError, match="locked by another process"):
        make_flawed(photos, tmp_path / "set")


def test_another_photo_under_the_same_name_is_left_out(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out)
    good = everything(out)
    write_image(photos / "a.png", Picture(scene(9)), overwrite=True)
    tally = make_flawed(photos, out)
    assert (tally.skipped, len(tally.failed)) == (2, 1) and "is not the photo" in tally.failed[0][1]
    assert everything(out) == good


def test_bytes_that_other_versions_make_do_not_pass_for_the_set(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out)
    text = (out / "manifest.json").read_text()
    digest = manifest(out)["photos"]["a"]["images"][0]["sha256"]["input/level3"]
    (out / "manifest.json").write_text(text.replace(digest, "0" * 64))
    before = written(out)
    tally = make_flawed(photos, out)
    assert len(tally.failed) == 1 and "other bytes than before" in tally.failed[0][1]
    assert f"numpy {np.__version__}" in tally.failed[0][1] and written(out) == before


# ---------------------------------------------------------------- verification


def test_verify_finds_every_change(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out)
    assert call("--verify", "-o", out) == 0
    assert "21 files in the manifest, 0 problems" in capsys.readouterr().out
    path = out / "flawed_gt/level3/sub/c.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (out / "input/level1/b.png").unlink()
    (out / "pristine/d.png").write_bytes(b"")
    assert verify_flawed(out).problems == [
        ("flawed_gt/level3/sub/c.png", "changed"),
        ("input/level1/b.png", "missing"),
        ("pristine/d.png", "not in the manifest"),
    ]
    assert call("--verify", "-o", out) == 1
    assert "input/level1/b.png: missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', "\x00"])
def test_a_damaged_manifest_is_named(text: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "manifest.json").write_text(text)
    for attempt in (lambda: verify_flawed(out), lambda: make_flawed(photos, out)):
        with pytest.raises(DataError, match="is damaged or of another version"):
            attempt()
    assert (out / "manifest.json").read_text() == text


# ---------------------------------------------------------------- photos


def test_deep_grey_and_opaque_photos(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    deep = scene(1, top=65535)
    write_image(folder / "deep.png", Picture(deep))
    write_image(folder / "grey.png", Picture(scene(2)[..., :1]))
    write_image(folder / "opaque.png", Picture(scene(3), alpha=np.full((72, 80), 255, np.uint8)))
    assert make_flawed(folder, tmp_path / "set").done == 3
    kept = read_image(tmp_path / "set/pristine/deep.png")
    assert kept.bits == 16 and np.array_equal(kept.pixels, deep)
    assert read_image(tmp_path / "set/flawed_gt/level1/deep.png").bits == 8
    assert decibels(tmp_path / "set", "flawed_gt/level1", "deep.png") > 30
    grey = read_image(tmp_path / "set/pristine/grey.png").pixels
    assert np.array_equal(grey, np.repeat(scene(2)[..., :1], 3, 2))
    assert read_image(tmp_path / "set/pristine/opaque.png").alpha is None


def test_a_photo_is_turned_upright_and_keeps_its_colours(tmp_path: Path) -> None:
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(tmp_path / "turned.png", Picture(scene(1), icc=icc, exif=exif.tobytes().removeprefix(b"Exif\0\0")))
    make_flawed(tmp_path / "turned.png", tmp_path / "set")
    made = read_image(tmp_path / "set/pristine/turned.png")
    assert np.array_equal(made.pixels, np.rot90(scene(1), -1)) and made.exif is None
    for folder in FOLDERS:
        assert read_image(tmp_path / "set" / folder / "turned.png").icc == icc


def test_crops(photos: Path, tmp_path: Path) -> None:
    make_flawed(photos / "b.png", tmp_path / "centre", crop=32)
    assert np.array_equal(read_image(tmp_path / "centre/pristine/b.png").pixels, scene(0)[20:52, 24:56])
    make_flawed(photos / "b.png", tmp_path / "grid", crop=32, grid=True)
    names = {f"b_r{row}c{column}.png" for row in (0, 1) for column in (0, 1)}
    for folder in FOLDERS:
        assert {p.name for p in (tmp_path / "grid" / folder).iterdir()} == names
    assert np.array_equal(read_image(tmp_path / "grid/pristine/b_r1c0.png").pixels, scene(0)[36:68, 8:40])
    assert manifest(tmp_path / "grid")["photos"]["b"]["images"][2]["region"] == [36, 8, 32, 32]


def test_downscale_cleans_the_photo(tmp_path: Path) -> None:
    clean = scene(0, 64, 64)
    noisy = np.repeat(np.repeat(clean, 4, 0), 4, 1) + np.random.default_rng(0).normal(0, 12, (256, 256, 3))
    write_image(tmp_path / "noisy.png", Picture(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)))
    make_flawed(tmp_path / "noisy.png", tmp_path / "set", downscale=4)
    made = read_image(tmp_path / "set/pristine/noisy.png").pixels
    assert made.shape == (64, 64, 3)
    # Inside the shades, away from edges: 12 / 4 of the noise is left, a little more by the bicubic kernel.
    assert (made.astype(float) - clean)[44:60, 4:26].std() < 5
    make_flawed(tmp_path / "noisy.png", tmp_path / "crop", downscale=4, crop=16)
    assert read_image(tmp_path / "crop/pristine/noisy.png").pixels.shape == (16, 16, 3)


def test_sides_are_cut_to_the_scale(photos: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "odd.png", Picture(scene(0, 71, 79)))
    make_flawed(tmp_path / "odd.png", tmp_path / "set", degradation=Degradation(scale=3))
    assert np.array_equal(read_image(tmp_path / "set/pristine/odd.png").pixels, scene(0, 71, 79)[1:70, :78])
    assert read_image(tmp_path / "set/flawed_gt/level2/odd.png").pixels.shape == (69, 78, 3)
    assert read_image(tmp_path / "set/input/level2/odd.png").pixels.shape == (23, 26, 3)


def test_a_note_on_jpeg_photos(photos: Path, tmp_path: Path) -> None:
    write_image(photos / "d.jpg", Picture(scene(4)))
    with pytest.warns(UserWarning, match="1 of 4 photos are JPEG"):
        make_flawed(photos, tmp_path / "set")


# ---------------------------------------------------------------- the command


def test_unusable_photos_are_named_left_out_and_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "torn.png").write_bytes((photos / "a.png").read_bytes()[:900])
    write_image(photos / "tiny.png", Picture(scene(0, 30, 64)))
    alpha = np.full((72, 80), 255, np.uint8)
    alpha[0, 0] = 254
    write_image(photos / "clear.png", Picture(scene(0), alpha=alpha))
    assert call(photos, "-o", tmp_path / "set", "--crop", 32) == 1
    said = capsys.readouterr().err
    for words in (
        "torn.png is a damaged",
        "tiny.png has 64x30 pixels",
        "clear.png is transparent",
        "3 made, 0 skipped",
    ):
        assert words in said
    assert "3 left out" in said and "flawed_gt/level1" in said
    assert len(verify_flawed(tmp_path / "set").problems) == 0
    assert call(photos, "-o", tmp_path / "set", "--crop", 32, "-q") == 1


def test_the_command_takes_recipes_and_overrides(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    options = ("-d", "demo_denoiser", "-d", "noise.sigma=[2, 4]", "-d", "jpeg=null", "--crop", 16, "--seed", 3, "-q")
    assert call(photos, "-o", out, *options, "--shard", "0/2") == 0
    assert call(photos, "-o", out, *options, "--shard", "1/2") == 0
    found = Manifest.read(out)
    assert found.degradation.noise is not None and found.degradation.noise.sigma == [2, 4]
    assert found.degradation.noise.kind == "poisson-gaussian" and found.degradation.jpeg is None
    assert sorted(found.photos) == ["a", "b", "sub/c"]


def test_degradations_by_words(tmp_path: Path) -> None:
    assert load_degradation(["scale=4"]) == Degradation(scale=4)
    assert load_degradation(["edsr_x4", "blur.motion=[4, 8]"]) == Degradation(scale=4, blur=Blur(motion=[4, 8]))
    (tmp_path / "own.json").write_text('{"noise": {"sigma": [5, 25]}}')
    (tmp_path / "own.yaml").write_text("scale: 2\nnoise:\n  sigma: [25, 5]\n")
    assert load_degradation([str(tmp_path / "own.json")]) == Degradation(noise=Noise(sigma=[5, 25]))
    for words, expected in (
        (["noise.sigm=3"], "data.degradation.noise.sigma"),
        (["scale=9"], "at most 4"),
        ([str(tmp_path / "own.yaml")], r"own.yaml:3: data.degradation.noise.sigma is \[25, 5\]"),
        (["nafnet_deblur"], "has no data.degradation"),
        (["nowhere"], "no recipe named"),
        (["demo_denoiser", "edsr_x4"], "one file or recipe"),
    ):
        with pytest.raises(RecipeError, match=expected):
            load_degradation(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["PHOTOS"], "--out FOLDER"),
        (["-o", "OUT"], "No photos are named"),
        (["NOWHERE", "-o", "OUT"], "does not exist"),
        (["PHOTOS", "-o", "PHOTOS"], "the same folder"),
        (["PHOTOS", "-o", "OUT", "-d", "scale=3", "--crop", "32"], "a multiple of the degradation's scale, 3"),
        (["PHOTOS", "-o", "OUT", "-d", "scale=1"], "does nothing"),
        (["PHOTOS", "-o", "OUT", "--grid"], "without a crop"),
        (["PHOTOS", "-o", "OUT", "--crop", "0"], "The crop is 0"),
        (["PHOTOS", "-o", "OUT", "--downscale", "0"], "from 1 to 16"),
        (["PHOTOS", "-o", "OUT", "--seed", "-1"], "0 or more"),
        (["PHOTOS", "-o", "OUT", "--shard", "2/2"], "0 <= index < count"),
        (["PHOTOS", "-o", "OUT", "--shard", "half"], "such as 0/4"),
        (["--verify", "-o", "OUT"], "There is no"),
        (["PHOTOS", "--verify", "-o", "OUT"], "--verify is given with photos"),
        (["--verify"], "--out FOLDER"),
    ],
)
def test_refusals(
    arguments: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"PHOTOS": photos, "OUT": tmp_path / "set", "NOWHERE": tmp_path / "nowhere"}
    assert call(*(places.get(word, word) for word in arguments)) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) <= 3
    assert not (tmp_path / "set").exists() and set(everything(photos)) == {"a.png", "b.png", "sub/c.tif"}


def test_a_set_keeps_its_settings(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_flawed(photos, out, crop=16)
    good = everything(out)
    for options, words in (
        ({"crop": 32}, "crop 16, not 32"),
        ({"crop": 16, "seed": 1}, "seed 0, not 1"),
        ({"crop": 16, "grid": True}, "grid False, not True"),
        ({"crop": 16, "downscale": 2}, "downscale 1, not 2"),
        ({"crop": 16, "degradation": Degradation(noise=Noise())}, "made with other degradation"),
    ):
        with pytest.raises(DataError, match=words):
            make_flawed(photos, out, **options)  # type: ignore[arg-type]
    assert everything(out) == good


def test_folders_that_are_no_set_are_not_written_to(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/input").mkdir(parents=True)
    with pytest.raises(DataError, match="that says what it is"):
        make_flawed(photos, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        make_flawed(photos, tmp_path / "file")


def test_two_photos_of_one_name_are_refused(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a.png", photos / "a.webp")
    with pytest.raises(RefineWrapError, match="would both write"):
        make_flawed(photos, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_set_inside_the_photos_is_no_photo(photos: Path) -> None:
    for expected in ((3, 0), (0, 3)):
        tally = make_flawed(photos, photos / "set", crop=16)
        assert (tally.done, tally.skipped) == expected
