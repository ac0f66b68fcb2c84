"""Paper 3's degradation: what a reconstructor does to pictures, its cures, and the sets that are made by it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import at_once, interrupted
from PIL import Image
from skimage.color import rgb2lab
from typer.testing import CliRunner

from refine_wrap import Recipe, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.degradation import Blur, Degradation, Jpeg, Noise, Reconstruct, degrade, load_networks
from refine_wrap.degradation import reconstruct as part
from refine_wrap.degradation.colour import LOW, matched
from refine_wrap.degradation.rounding import as_float, to_8bit
from refine_wrap.degradation.synthetic import downsample
from refine_wrap.errors import CheckpointError, DataError, ImageError, OutputError, RecipeError, RefineWrapError
from refine_wrap.evaluation import full_reference, make_flawed
from refine_wrap.hub import Adapter, save_adapter
from refine_wrap.images import Picture
from refine_wrap.recipe import load_degradation
from refine_wrap.reconstruction import (
    VQVAE2,
    Manifest,
    Reconstruction,
    Reconstructor,
    degrade_folder,
    load_reconstructor,
    save_reconstructor,
)
from refine_wrap.reconstruction import make as making
from refine_wrap.resources import weights_dir
from refine_wrap.training import DegradedData, finetune
from refine_wrap.training.data import ImageStore, loader

SMALL: dict[str, Any] = {"channels": 8, "res_blocks": 1, "res_channels": 4, "width": 4, "codes": 16}


def scene(seed: int, height: int = 64, width: int = 92, top: int = 255, channels: int = 3) -> np.ndarray:
    """Shades, edges and fine texture, (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    planes = [0.5 + 0.3 * np.sin(x / (9 + c) + seed) * np.cos(y / 7 - c) for c in range(channels)]
    image = np.stack(planes, 2) + 0.1 * np.sin(x * 1.9)[..., None] * np.cos(y * 1.3)[..., None]
    return np.rint(np.clip(image, 0, 1) * top).astype(np.uint8 if top == 255 else np.uint16)


class Tinted(Reconstructor):
    """Paints everything in one colour, as strongly as there is."""

    kind, stride = "tinted", 8

    def __init__(self, colour: tuple[float, float, float]) -> None:
        super().__init__()
        self.colour = torch.tensor(colour).view(1, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> Reconstruction:
        return Reconstruction((image * 0.2 + self.colour * 2 - 1).clamp(-1, 1), torch.zeros(()))


class Same(Tinted):
    """Paints what it is shown."""

    def forward(self, image: torch.Tensor) -> Reconstruction:
        return Reconstruction(image, torch.zeros(()))


RED = {"red": Tinted((1.0, 0.0, 0.3)).eval()}


def painted(image: np.ndarray, networks: Any = RED, seed: int = 0, drawn: Any = None, **options: Any) -> np.ndarray:
    settings = Degradation(scale=options.pop("scale", 1), reconstruct=Reconstruct(checkpoints=[*networks], **options))
    return degrade(image, settings, np.random.default_rng(seed), drawn, networks)


def difference(made: np.ndarray, clean: np.ndarray) -> float:
    """Mean CIEDE2000 of two 8-bit pictures."""
    a, b = (torch.from_numpy(as_float(each)).permute(2, 0, 1)[None] for each in (made, clean))
    return float(full_reference("CIEDE2000")(a, b))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two reconstructors that were never trained."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_reconstructor(folder / f"seed{seed}" / "reconstructor", VQVAE2(**SMALL))
    return [str(folder / f"seed{seed}" / "reconstructor") for seed in (0, 1)]


@pytest.fixture
def settings(checkpoints: list[str]) -> Degradation:
    return Degradation(scale=4, reconstruct=Reconstruct(checkpoints=checkpoints, strength=[0.3, 1.0]))


NAMES = ["a.png", "b.png", "one/001.png", "two/001.png"]
"""Of sides that are no multiples of 8, nor all of the scale."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate(zip(("a.png", "b.jpg", "one/001.png", "two/001.tif"), SIZES, strict=True)):
        (tmp_path / "hr" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "hr" / name, Picture(scene(seed, *size)))
    return tmp_path / "hr"


SIZES = [(64, 92), (50, 33), (30, 41), (67, 67)]


def written(out: Path) -> dict[str, bytes]:
    """All that lies there but the lock."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".manifest.lock"
    }


# ---------------------------------------------------------------- the part


def test_strength_is_how_much_is_taken() -> None:
    image = as_float(scene(0))
    clean = to_8bit(image)
    assert np.array_equal(painted(image, strength=0), clean)
    full = painted(image, strength=1, match="none").astype(float)
    half = painted(image, strength=0.5, match="none").astype(float)
    assert np.abs(full - clean).mean() > 50
    assert np.abs(half - (full + clean) / 2).max() <= 1


def test_a_network_that_changes_nothing_changes_nothing() -> None:
    """Turned, mirrored, moved and put back, whatever the size; in LAB and back; low frequencies out and in."""
    for size in ((64, 92), (7, 13), (1, 1), (1, 9)):
        image = as_float(scene(1, *size))
        for match in ("none", "lab", "low-frequency"):
            for seed in range(6):
                made = painted(image, {"same": Same((0, 0, 0))}, seed, match=match)
                assert np.abs(made.astype(int) - to_8bit(image)).max() <= (1 if match == "lab" else 0)


def test_the_clean_version_is_that_of_the_house() -> None:
    """At strength 0 it is the plain bicubic one, also where the sides are no multiples of 8."""
    image = as_float(scene(2, 60, 100))
    made = painted(image, strength=0, scale=4)
    assert np.array_equal(made, to_8bit(downsample(image, 4))) and made.shape == (15, 25, 3)


@pytest.mark.parametrize("match", ["none", "lab", "low-frequency"])
@pytest.mark.parametrize("bound", [0.3, 2.0, 10.0])
def test_the_guard_holds_whatever_a_network_does(match: str, bound: float) -> None:
    image = as_float(scene(3, 40, 56))
    for seed, networks in enumerate([RED, {"white": Tinted((1, 1, 1))}, {"black": Tinted((-1, -1, -1))}]):
        drawn: dict[str, Any] = {}
        made = painted(image, networks, seed, drawn, match=match, max_delta_e=bound)
        told, real = drawn["reconstruct"], difference(made, to_8bit(image))
        assert real <= bound
        assert told["delta_e"][1] == pytest.approx(real, abs=1e-9)
        if told["used"] < told["strength"]:
            assert told["delta_e"][0] > bound and told["delta_e"][1] > 0.8 * bound, "no more is taken back than needed"
        if match == "none":
            assert told["delta_e"][0] > 10, "the network is bad enough to try the guard"


def test_the_guard_leaves_alone_what_is_within() -> None:
    image = as_float(scene(3, 40, 56))
    assert np.array_equal(painted(image, strength=0.02), painted(image, strength=0.02, max_delta_e=50.0))


def test_matching_in_lab_brings_mean_and_deviation_back() -> None:
    image = as_float(scene(4)) * 0.6 + 0.2
    cast = np.clip(image * [1.1, 0.8, 0.6] + [0.05, 0.1, 0.0], 0, 1).astype(np.float32)
    right, wrong, made = (rgb2lab(each) for each in (image, cast, matched(cast, image, "lab")))
    assert np.abs(wrong.mean((0, 1)) - right.mean((0, 1))).max() > 3
    assert np.abs(made.mean((0, 1)) - right.mean((0, 1))).max() < 0.2
    assert np.abs(made.std((0, 1)) / right.std((0, 1)) - 1).max() < 0.05


def test_low_frequencies_come_from_the_clean_picture() -> None:
    import cv2

    image = as_float(scene(5, 96, 96)) * 0.6 + 0.2
    cast = np.clip(image + np.array([0.15, -0.1, 0.05], np.float32), 0, 1)
    made = matched(cast, image, "low-frequency")
    assert np.abs(made - image).max() < 1e-3, "a cast over all is gone"
    texture = (0.05 * np.sin(np.arange(96) * 2.5))[None, :, None].astype(np.float32)
    made = matched(cast + texture, image, "low-frequency")
    kept = made - image
    assert np.corrcoef(kept[..., 0].ravel(), np.broadcast_to(texture, kept.shape)[..., 0].ravel())[0, 1] > 0.95
    assert np.abs(cv2.GaussianBlur(kept, (0, 0), LOW)).max() < 0.01


def test_colours_beyond_srgb_are_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    vivid = (rng.random((32, 32, 3)) > 0.5).astype(np.float32)
    made = matched(rng.random((32, 32, 3), np.float32), vivid, "lab")
    assert np.isfinite(made).all() and made.min() >= 0 and made.max() <= 1 and not len(recwarn)


def test_no_two_draws_are_alike(checkpoints: list[str]) -> None:
    """The causes that the paper names: one seed decides, and one thing always gets one degradation."""
    image, networks = as_float(scene(6)), load_networks(Degradation(reconstruct=Reconstruct(checkpoints=checkpoints)))
    drawn: list[dict[str, Any]] = [{} for _ in range(24)]
    made = [painted(image, networks, seed, told, strength=[0.5, 1]) for seed, told in enumerate(drawn)]
    assert len({one.tobytes() for one in made}) == 24
    assert {told["reconstruct"]["checkpoint"] for told in drawn} == {0, 1}
    assert len({told["reconstruct"]["strength"] for told in drawn}) == 24
    # One network at one strength: what is left is how the picture is shown to it.
    alone = {"one": networks[checkpoints[0]]}
    assert len({painted(image, alone, seed).tobytes() for seed in range(24)}) > 20
    assert len({painted(image, alone, seed, vary=False).tobytes() for seed in range(24)}) == 1


def test_a_checkpoint_that_is_named_twice_is_taken_twice_as_often() -> None:
    taken = []
    for seed in range(300):
        drawn: dict[str, Any] = {}
        settings = Reconstruct(checkpoints=["red", "red", "same"])
        networks = {**RED, "same": Same((0, 0, 0))}
        part.painted_again(np.zeros((1, 1, 3), np.float32), settings, networks, np.random.default_rng(seed), drawn)
        taken.append(drawn["checkpoint"])
    assert 70 < taken.count(2) < 130


def test_half_range_is_the_author_s_way(checkpoints: list[str]) -> None:
    image = as_float(scene(7, 32, 32))
    network = load_reconstructor(checkpoints[0])
    made = painted(image, {"it": network}, half_range=True, vary=False, match="none")
    planes = torch.from_numpy(image.transpose(2, 0, 1))[None]
    right = network.reconstruct(planes, half_range=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(made - to_8bit(right).astype(int)).max() <= 1
    assert not np.array_equal(made, painted(image, {"it": network}, vary=False, match="none"))


def test_large_pictures_go_through_in_tiles(monkeypatch: pytest.MonkeyPatch, checkpoints: list[str]) -> None:
    image, networks = as_float(scene(8, 300, 260)), {"it": load_reconstructor(checkpoints[0])}
    whole = painted(image, networks)
    monkeypatch.setattr(part, "TILE", 128)
    monkeypatch.setattr(part, "HALO", 96)
    seen: list[tuple[int, ...]] = []
    real = networks["it"].reconstruct
    monkeypatch.setattr(networks["it"], "reconstruct", lambda x, **o: (seen.append(x.shape[-2:]), real(x, **o))[1])
    tiled = painted(image, networks)
    assert len(seen) == 9 and max(max(each) for each in seen) <= 128 + 2 * 96
    assert (tiled == whole).mean() > 0.99


def test_a_network_that_is_not_finite_is_refused() -> None:
    class Broken(Same):
        def forward(self, image: torch.Tensor) -> Reconstruction:
            return Reconstruction(image * float("nan"), torch.zeros(()))

    with pytest.raises(ImageError, match="not finite"):
        painted(as_float(scene(0)), {"broken": Broken((0, 0, 0))})


# ---------------------------------------------------------------- in a degradation


def test_order_two(checkpoints: list[str]) -> None:
    """Painted before noise and JPEG, after them, and both; each round as if it were alone."""
    image = as_float(scene(9))
    painting = Reconstruct(checkpoints=checkpoints)
    noisy = {"noise": Noise(sigma=[5, 5]), "jpeg": Jpeg(quality=[60, 60])}
    kinds = {
        "before": Degradation(scale=2, blur=Blur(), reconstruct=painting, **noisy),
        "after": Degradation(scale=2, blur=Blur(), **noisy, then=[Degradation(reconstruct=painting)]),
        "both": Degradation(scale=2, blur=Blur(), **noisy, then=[Degradation(reconstruct=painting, **noisy)]),
    }
    drawn: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    made = {name: degrade(image, kind, np.random.default_rng(1), drawn[name]) for name, kind in kinds.items()}
    assert len({each.tobytes() for each in made.values()}) == 3
    assert {"blur", "reconstruct", "noise", "jpeg"} == set(drawn["before"])
    assert set(drawn["after"]) == {"blur", "noise", "jpeg", "then"} and set(drawn["after"]["then"][0]) == {
        "reconstruct"
    }
    assert set(drawn["both"]["then"][0]) == {"reconstruct", "noise", "jpeg"}
    plain = degrade(image, Degradation(scale=2, blur=Blur(), **noisy), np.random.default_rng(1))
    undone = kinds["after"].model_copy(
        update={"then": [Degradation(reconstruct=Reconstruct(checkpoints=checkpoints, strength=0))]}
    )
    assert np.array_equal(degrade(image, undone, np.random.default_rng(1)), plain), "the first round is as it was"


def test_a_share_and_other_kinds(checkpoints: list[str]) -> None:
    image = as_float(scene(10, 16, 16))
    some = Degradation(scale=2, reconstruct=Reconstruct(checkpoints=checkpoints, probability=0.5))
    mixed = Degradation(scale=2, also=[Degradation(scale=2, reconstruct=Reconstruct(checkpoints=checkpoints))])
    noisy = Degradation(scale=2, noise=Noise())
    never = noisy.model_copy(update={"reconstruct": Reconstruct(checkpoints=checkpoints, probability=0.0)})
    plain, same = (degrade(image, each, np.random.default_rng(0)) for each in (noisy, never))
    assert np.array_equal(plain, same), "what others draw stays"
    clean = degrade(image, Degradation(scale=2), np.random.default_rng(0))
    networks = load_networks(some)
    for settings in (some, mixed):
        made = [degrade(image, settings, np.random.default_rng(seed), None, networks) for seed in range(40)]
        assert 10 < sum(np.array_equal(each, clean) for each in made) < 30


def test_what_a_degradation_says_of_itself(checkpoints: list[str]) -> None:
    painting = Reconstruct(checkpoints=checkpoints)
    assert not Degradation(reconstruct=painting).does_nothing()
    assert not Degradation(then=[Degradation(jpeg=Jpeg())]).does_nothing()
    assert Degradation(then=[Degradation()]).does_nothing()
    assert Degradation(scale=4, reconstruct=painting).grid() == 64
    assert Degradation(scale=4, reconstruct=painting).margin() == 128
    assert Degradation(scale=2, then=[Degradation(blur=Blur(sigma=[3, 3]))]).margin() == 22
    nested = Degradation(also=[Degradation(then=[Degradation(also=[Degradation(reconstruct=painting)])])])
    assert nested.checkpoints() == checkpoints


@pytest.mark.parametrize(
    ("words", "came"),
    [
        (["reconstruct.checkpoints=[]"], "checkpoints is []"),
        (["reconstruct.checkpoints=x"], "checkpoints is 'x'"),
        (["reconstruct.strength=1"], "checkpoints is missing"),
        (["reconstruct={checkpoints: [x], strength: .nan}"], "strength is nan"),
        (["reconstruct={checkpoints: [x], strength: [0.5, 1.5]}"], "strength is [0.5, 1.5]"),
        (["reconstruct={checkpoints: [x], max_delta_e: 0}"], "max_delta_e is 0"),
        (["reconstruct={checkpoints: [x], max_delta_e: -1}"], "max_delta_e is -1"),
        (["reconstruct={checkpoints: [x], max_delta_e: .nan}"], "max_delta_e is nan"),
        (["reconstruct={checkpoints: [x], match: colours}"], "match is 'colours'"),
        (["reconstruct={checkpoints: [x], streng: 1}"], "streng is not a known key"),
        (["then=[{scale: 2}]"], "a later round of degradation has scale 2"),
        (["then=[{then: [{grey: 1}]}]"], "a later round of degradation has its own"),
    ],
)
def test_words_that_are_refused(words: list[str], came: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_degradation(words)
    assert came in caught.value.came


# ---------------------------------------------------------------- a folder


def test_pairs_names_sizes_and_manifest(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    out = tmp_path / "lr"
    tally = degrade_folder(photos, out, settings, seed=3)
    assert (tally.done, tally.skipped, tally.failed) == (4, 0, [])
    assert sorted(written(out)) == sorted([*NAMES, "manifest.json"])
    manifest = Manifest.read(out)
    assert [painter.name for painter in manifest.reconstructors.values()] == [
        "seed0/reconstructor",
        "seed1/reconstructor",
    ]
    assert str(tmp_path) not in (out / "manifest.json").read_text(), "no places on this machine"
    for name, size in zip(NAMES, SIZES, strict=True):
        picture, entry = read_image(out / name), manifest.pictures[name]
        assert picture.pixels.shape == (size[0] // 4, size[1] // 4, 3) and picture.bits == 8
        assert entry.size == [size[0] // 4 * 4, size[1] // 4 * 4]
        told = entry.drawn["reconstruct"]
        assert 0.3 <= told["strength"] <= 1 and told["used"] == told["strength"] and told["checkpoint"] in (0, 1)
        clean = to_8bit(
            downsample(as_float(read_image(photos / entry.source).pixels)[: entry.size[0], : entry.size[1]], 4)
        )
        assert told["delta_e"][1] == pytest.approx(difference(picture.pixels, clean), abs=1e-9)
    assert manifest.settings.seed == 3


def test_the_same_bytes_again(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    for name in ("one", "two"):
        degrade_folder(photos, tmp_path / name, settings)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    degrade_folder(photos, tmp_path / "other", settings, seed=1)
    assert not set(written(tmp_path / "one").values()) & set(written(tmp_path / "other").values())


def test_threads_change_nothing(
    photos: Path, tmp_path: Path, settings: Degradation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SMALL", 0)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            degrade_folder(photos, tmp_path / str(threads), settings)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert written(tmp_path / "1") == written(tmp_path / "2")


def test_in_other_processes(photos: Path, tmp_path: Path, checkpoints: list[str]) -> None:
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "refine_wrap.cli.main", "degrade", str(photos), "-o", str(tmp_path / threads)]
        command += ["-r", ",".join(checkpoints), "--max-delta-e", "4", "-q"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert written(tmp_path / "1") == written(tmp_path / "2")


def test_shards_other_pictures_and_places_change_nothing(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    degrade_folder(photos, tmp_path / "whole", settings)
    for index in (2, 0, 1):
        degrade_folder(photos, tmp_path / "shards", settings, shard=(index, 3))
    assert written(tmp_path / "shards") == written(tmp_path / "whole")
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    (moved / "a.png").unlink()
    degrade_folder(moved, tmp_path / "fewer", settings)
    for name in NAMES[1:]:
        assert (tmp_path / "fewer" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_copies_of_one_picture_differ(tmp_path: Path, settings: Degradation) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "hr" / name, Picture(scene(0)))
    degrade_folder(tmp_path / "hr", tmp_path / "lr", settings)
    assert (tmp_path / "lr/a.png").read_bytes() != (tmp_path / "lr/b.png").read_bytes()


def test_checkpoints_may_move(photos: Path, tmp_path: Path, checkpoints: list[str], settings: Degradation) -> None:
    degrade_folder(photos, tmp_path / "lr", settings)
    before = written(tmp_path / "lr")
    moved = [str(shutil.copytree(name, tmp_path / f"moved{number}")) for number, name in enumerate(checkpoints)]
    elsewhere = Degradation(scale=4, reconstruct=Reconstruct(checkpoints=moved, strength=[0.3, 1.0]))
    assert degrade_folder(photos, tmp_path / "lr", elsewhere).skipped == 4
    assert written(tmp_path / "lr") == before


def test_the_guard_holds_for_every_file(photos: Path, tmp_path: Path) -> None:
    """A checkpoint that paints all of it red."""
    network = VQVAE2(**SMALL)
    with torch.no_grad():
        last = network.dec.blocks[-1]
        last.bias.copy_(torch.tensor([3.0, -3.0, -3.0]))  # type: ignore[union-attr,operator]
    save_reconstructor(tmp_path / "red", network)
    for match in ("none", "lab", "low-frequency"):
        painting = Reconstruct(checkpoints=[str(tmp_path / "red")], match=match, max_delta_e=1.5)  # type: ignore[arg-type]
        out = tmp_path / match
        assert degrade_folder(photos, out, Degradation(scale=4, reconstruct=painting)).held_back == 4
        assert degrade_folder(photos, out, Degradation(scale=4, reconstruct=painting)).held_back == 4, "skipped, too"
        degrade_folder(photos, tmp_path / "clean", Degradation(scale=4))
        for name, entry in Manifest.read(out).pictures.items():
            real = difference(read_image(out / name).pixels, read_image(tmp_path / "clean" / name).pixels)
            assert real <= 1.5, (match, name)
            told = entry.drawn["reconstruct"]
            assert told["delta_e"][1] == pytest.approx(real, abs=1e-9)
            assert match != "none" or (told["delta_e"][0] > 20 and 0 < told["used"] < 0.2)


def test_a_second_run_writes_nothing_and_mends_what_is_wrong(
    photos: Path, tmp_path: Path, settings: Degradation
) -> None:
    out = tmp_path / "lr"
    degrade_folder(photos, out, settings)
    before, times = written(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert degrade_folder(photos, out, settings).skipped == 4
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "a.png").unlink()
    (out / "b.png").write_bytes(before["b.png"][:-30])
    tally = degrade_folder(photos, out, settings)
    assert (tally.done, tally.skipped) == (2, 2) and written(out) == before


def test_ctrl_c_loses_nothing_that_is_done(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        degrade_folder(photos, tmp_path / "lr", settings, on_done=stop)
    assert list(Manifest.read(tmp_path / "lr").pictures) == ["a.png"] and torch.get_num_threads() == threads
    tally = degrade_folder(photos, tmp_path / "lr", settings)
    assert (tally.done, tally.skipped) == (3, 1)
    degrade_folder(photos, tmp_path / "whole", settings)
    assert written(tmp_path / "lr") == written(tmp_path / "whole")


def test_a_killed_run_is_gone_on_with(
    photos: Path, tmp_path: Path, settings: Degradation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without an entry, as a run leaves them that could not write its manifest any more."""
    with monkeypatch.context() as patch:
        patch.setattr(making.ManifestFile, "flush", lambda self: None)
        degrade_folder(photos, tmp_path / "lr", settings)
    assert not Manifest.read(tmp_path / "lr").pictures
    degrade_folder(photos, tmp_path / "lr", settings)
    degrade_folder(photos, tmp_path / "whole", settings)
    assert written(tmp_path / "lr") == written(tmp_path / "whole")


def test_a_full_disk_ends_the_run_and_loses_nothing(
    photos: Path, tmp_path: Path, settings: Degradation, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, room = tmp_path / "lr", [1]

    def scarce(path: Path, mode: str) -> Any:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(making, "open", scarce, raising=False)
        with pytest.raises(OutputError, match=r"b\.png cannot be written: the disk is full"):
            degrade_folder(photos, out, settings)
    assert list(Manifest.read(out).pictures) == ["a.png"] and not [
        path for path in out.rglob("*") if ".tmp" in path.name
    ]
    assert degrade_folder(photos, out, settings).done == 3


def test_several_processes_at_once(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    out = tmp_path / "lr"
    assert at_once(lambda shard: degrade_folder(photos, out, settings, shard=shard).failed) == []
    degrade_folder(photos, tmp_path / "whole", settings)
    assert written(out) == written(tmp_path / "whole")


def test_grey_deep_and_opaque_pictures(tmp_path: Path, settings: Degradation) -> None:
    hr = tmp_path / "hr"
    deep, alpha = scene(1, top=65535), np.full((64, 92), 255, np.uint8)
    write_image(hr / "grey.png", Picture(scene(0, channels=1)))
    write_image(hr / "deep.png", Picture(deep))
    write_image(hr / "opaque.png", Picture(scene(2), alpha))
    write_image(hr / "tiny.png", Picture(scene(3, 4, 5)))
    assert degrade_folder(hr, tmp_path / "lr", settings).done == 4
    for name in ("grey", "deep", "opaque", "tiny"):
        made = read_image(tmp_path / f"lr/{name}.png")
        assert made.bits == 8 and made.pixels.shape[2] == 3 and made.alpha is None
    assert read_image(tmp_path / "lr/tiny.png").pixels.shape == (1, 1, 3)


def test_a_turned_picture_stays_turned_in_both(tmp_path: Path, settings: Degradation) -> None:
    """The pixels stay as stored and the orientation is kept, so that every reader takes both alike."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "hr").mkdir()
    Image.fromarray(scene(0)).save(tmp_path / "hr/a.jpg", exif=exif, quality=95)
    degrade_folder(tmp_path / "hr", tmp_path / "lr", settings)
    made = Image.open(tmp_path / "lr/a.png")
    assert made.size == (23, 16) and made.getexif()[0x0112] == 6


def test_unusable_pictures_are_named_and_left_out(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:-60])
    write_image(photos / "small.png", Picture(scene(0, 3, 40)))
    write_image(photos / "clear.png", Picture(scene(0), np.zeros((64, 92), np.uint8)))
    tally = degrade_folder(photos, tmp_path / "lr", settings)
    assert tally.done == 4 and tally.exit_code == 1
    reasons = {path.name: reason for path, reason in tally.failed}
    assert set(reasons) == {"cut.png", "small.png", "clear.png"}
    assert "at least 4x4" in reasons["small.png"] and "transparent" in reasons["clear.png"]
    assert sorted(Manifest.read(tmp_path / "lr").pictures) == sorted(NAMES)


def test_a_folder_keeps_its_settings(
    photos: Path, tmp_path: Path, checkpoints: list[str], settings: Degradation
) -> None:
    out = tmp_path / "lr"
    degrade_folder(photos, out, settings)
    before = written(out)
    one = Degradation(scale=4, reconstruct=Reconstruct(checkpoints=checkpoints[:1], strength=[0.3, 1.0]))
    loud = Degradation(scale=4, reconstruct=Reconstruct(checkpoints=checkpoints))
    for other, options, came in (
        (settings, {"seed": 1}, "seed 0, not 1"),
        (one, {}, "other reconstructors: seed0/reconstructor"),
        (loud, {}, "another degradation"),
    ):
        with pytest.raises(DataError, match=came):
            degrade_folder(photos, out, other, **options)  # type: ignore[arg-type]
    assert written(out) == before
    assert degrade_folder(photos, out, loud, overwrite=True).done == 4
    degrade_folder(photos, tmp_path / "fresh", loud)
    assert written(out) == written(tmp_path / "fresh")


def test_what_is_not_ours_is_not_written_to(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    out = tmp_path / "lr"
    write_image(out / "a.png", Picture(scene(5)))
    with pytest.raises(DataError, match=r"no .*manifest\.json that says what it is"):
        degrade_folder(photos, out, settings)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="damaged, or not of degraded pictures"):
        degrade_folder(photos, out, settings)
    with pytest.raises(DataError, match="would overwrite itself"):
        degrade_folder(photos / "a.png", photos, settings)


def test_another_picture_and_other_versions_are_told(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    out = tmp_path / "lr"
    degrade_folder(photos, out, settings)
    write_image(photos / "a.png", Picture(scene(9)), overwrite=True)
    text = json.loads((out / "manifest.json").read_text())
    text["pictures"]["b.png"]["output"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(text))
    tally = degrade_folder(photos, out, settings)
    reasons = {path.name: reason for path, reason in tally.failed}
    assert "made of another picture" in reasons["a.png"] and "made with: refine-wrap" in reasons["b.jpg"]
    assert degrade_folder(photos, out, settings, overwrite=True).done == 4


def test_two_pictures_of_one_name_are_refused(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    write_image(photos / "a.jpg", Picture(scene(1)))
    with pytest.raises(DataError, match="would both write"):
        degrade_folder(photos, tmp_path / "lr", settings)
    assert not (tmp_path / "lr").exists()


def test_reconstructors_that_cannot_be_had(photos: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "mask", Adapter(kind="masks", config={}, tensors={"a": torch.zeros(1)}))
    (tmp_path / "empty").mkdir()
    for name, came in ((str(tmp_path / "mask"), "is of kind masks"), (str(tmp_path / "empty"), "adapter folder")):
        settings = Degradation(scale=4, reconstruct=Reconstruct(checkpoints=[name]))
        with pytest.raises(CheckpointError, match=came):
            degrade_folder(photos, tmp_path / "lr", settings)
    assert not (tmp_path / "lr").exists()


def test_calls_that_make_no_sense(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    for options, came in (({"seed": -1}, "seed is -1"), ({"shard": (2, 2)}, "shard 2 of 2")):
        with pytest.raises(RefineWrapError, match=came):
            degrade_folder(photos, tmp_path / "lr", settings, **options)  # type: ignore[arg-type]
    with pytest.raises(RefineWrapError, match="does nothing"):
        degrade_folder(photos, tmp_path / "lr", Degradation())
    with pytest.raises(RefineWrapError, match="is a file by its name"):
        degrade_folder(photos, tmp_path / "lr.png", settings)


# ---------------------------------------------------------------- the command


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        app(["degrade", *map(str, arguments)])
    return int(left.value.code or 0)


def test_the_command(photos: Path, tmp_path: Path, checkpoints: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    both = ["-r", ",".join(checkpoints)]
    assert call(photos, "-o", tmp_path / "a", *both, "--strength", "0.5,1", "--match", "lab") == 0
    said = capsys.readouterr()
    assert "4 made, 0 skipped (they are right), 0 failed" in said.err and len(said.out.splitlines()) == 4
    apart = [word for name in checkpoints for word in ("--reconstructor", name)]
    words = ["-d", "reconstruct.strength=[0.5, 1]", "-d", "reconstruct.match=lab"]
    assert call(photos, "-o", tmp_path / "b", *apart, *words, "-q") == 0
    assert not capsys.readouterr().err
    assert written(tmp_path / "a") == written(tmp_path / "b")
    mixed = [*both, "--scale", "2", "-d", "noise.sigma=[1,5]", "-d", "jpeg.quality=[60,90]", "--half-range"]
    assert call(photos, "-o", tmp_path / "c", *mixed, "--max-delta-e", "0.00001") == 0
    assert "0 failed, 4 held back by the bound" in capsys.readouterr().err
    found = Manifest.read(tmp_path / "c").settings.degradation
    assert found.scale == 2 and found.jpeg and found.noise and found.reconstruct
    assert found.reconstruct.half_range and found.reconstruct.max_delta_e == 1e-5
    (tmp_path / "mix.yaml").write_text(
        f"noise: {{}}\nthen: [{{reconstruct: {{checkpoints: {json.dumps(checkpoints)}}}}}]"
    )
    assert call(photos, "-o", tmp_path / "d", "-d", tmp_path / "mix.yaml") == 0
    assert Manifest.read(tmp_path / "d").settings.degradation.scale == 4


@pytest.mark.parametrize(
    ("words", "came"),
    [
        (["--strength", "nan"], "strength is 'nan'"),
        (["--strength", "0.2,0.1"], "strength is [0.2, 0.1]"),
        (["--max-delta-e", "0"], "max_delta_e is 0"),
        (["--max-delta-e", "nan"], "max_delta_e is"),
        (["--match", "best"], "match is 'best'"),
        (["--scale", "9"], "scale is 9"),
        (["--shard", "1"], "--shard is '1'"),
        (["-d", "nothing=1"], "not a known key"),
        (["-r", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_calls_that_are_refused(
    words: list[str],
    came: str,
    photos: Path,
    tmp_path: Path,
    checkpoints: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(photos, "-o", tmp_path / "lr", "-r", checkpoints[0], *words) == 2
    said = capsys.readouterr().err
    assert came in said and len(said.strip().splitlines()) <= 3, said
    assert not (tmp_path / "lr").exists()


def test_ctrl_c_of_the_command(tmp_path: Path, checkpoints: list[str]) -> None:
    """A whole process, interrupted while it works: exit code 130, and what is done stays."""
    for number in range(300):
        write_image(tmp_path / f"hr/{number:03}.png", Picture(scene(number, 96, 96)))
    out = tmp_path / "lr"
    command = [sys.executable, "-m", "refine_wrap.cli.main", "degrade", str(tmp_path / "hr"), "-o", str(out)]
    command += ["-r", checkpoints[0]]
    code, said = interrupted(command, out / "001.png")
    assert code == 130 and "Interrupted." in said and "Traceback" not in said
    known = Manifest.read(out).pictures
    assert set(written(out)) - {"manifest.json"} - set(known) <= {f"{len(known):03}.png"} and 1 < len(known) < 300


# ---------------------------------------------------------------- in training, and in test sets


def test_on_the_fly_is_what_the_maker_writes(photos: Path, tmp_path: Path, settings: Degradation) -> None:
    """One generator, whole pictures: the same pixels."""
    data = DegradedData(ImageStore([(photos / "a.png",)], 0), settings, crop=None, flips=False, rotations=False, seed=5)
    rng = np.random.default_rng((5, 0, 0, 0))
    data.place(64, 92, (64, 92), rng)  # what is drawn before
    made = degrade(as_float(scene(0)), settings, rng)
    assert np.array_equal(to_8bit(data[0, 0]["lq"].permute(1, 2, 0).numpy()), made)


def test_samples_depend_on_their_key_alone(photos: Path, settings: Degradation) -> None:
    data = DegradedData(ImageStore([(photos / name,) for name in ("a.png", "two/001.tif")], 10**8), settings, crop=32)
    keys = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    alone = [data[key] for batch in keys for key in batch]
    assert alone[0]["lq"].shape == (3, 8, 8)
    for workers in (0, 2):
        batches = list(loader(data, keys, workers))
        assert torch.equal(torch.cat([batch["lq"] for batch in batches]), torch.stack([one["lq"] for one in alone]))
    assert not torch.equal(alone[0]["lq"], alone[2]["lq"])
    sent = pickle.loads(pickle.dumps(data))  # as to a worker that is spawned
    assert torch.equal(sent[1, 1]["lq"], alone[3]["lq"])


@pytest.mark.parametrize("scale", [1, 2])
def test_a_training_on_degraded_pictures(scale: int, photos: Path, tmp_path: Path, checkpoints: list[str]) -> None:
    recipe = {
        "version": 1,
        "name": "blind",
        "objective": "restore",
        "backbone": {
            "arch": "SRVGGNetCompact",
            "options": {"num_feat": 4, "num_conv": 1, "upscale": scale},
        },
        "data": {
            "train": {"gt": [str(photos)]},
            "crop": 16,
            "degradation": {
                "scale": scale,
                "reconstruct": {"checkpoints": checkpoints, "strength": [0.5, 1.0], "max_delta_e": 8.0},
                "jpeg": {},
            },
        },
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.001, "workers": 0},
        "output": str(tmp_path / "run"),
    }
    finetune(Recipe.from_dict(recipe))
    assert (tmp_path / "run/backbone.safetensors").exists() or list((tmp_path / "run").glob("*"))
    recipe["data"]["degradation"]["reconstruct"]["checkpoints"] = [str(tmp_path / "nowhere")]  # type: ignore[index]
    recipe["output"] = str(tmp_path / "other")
    with pytest.raises(CheckpointError, match="nowhere"):
        finetune(Recipe.from_dict(recipe))


def test_inputs_of_a_test_set(tmp_path: Path, checkpoints: list[str]) -> None:
    write_image(tmp_path / "pristine/a.png", Picture(scene(0)))
    settings = Degradation(scale=2, reconstruct=Reconstruct(checkpoints=checkpoints))
    for name in ("one", "two"):
        assert make_flawed(tmp_path / "pristine", tmp_path / name, degradation=settings).done == 1
    assert written(tmp_path / "one") == written(tmp_path / "two")
    text = json.loads((tmp_path / "one/manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(text["degradation"]) and checkpoints[0] not in json.dumps(text)
    assert "reconstruct" in text["photos"]["a"]["images"][0]["drawn"]["input/level1"]


def test_the_shipped_reconstructor_degrades_at_once(tmp_path: Path) -> None:
    """Its card: 24 dB and a cast of 7 CIEDE2000 on photos, which the guard bounds."""
    network = load_reconstructor("shipped:vqvae2")
    assert isinstance(network, VQVAE2)
    assert sum(p.numel() for n, p in network.named_parameters() if not n.endswith("embedding.weight")) == 1_388_867
    photo = read_image(weights_dir() / "demo_photo.png")
    small = downsample(as_float(photo.pixels[: photo.height // 4 * 4, : photo.width // 4 * 4]), 4).clip(0, 1)
    clean = torch.from_numpy(small.transpose(2, 0, 1).copy())[None]
    assert 18 < float(full_reference("PSNR")(network.reconstruct(clean), clean)) < 30
    write_image(tmp_path / "hr/photo.png", photo)
    done = CliRunner().invoke(app, ["degrade", str(tmp_path / "hr"), "-o", str(tmp_path / "lr"), "--max-delta-e", "3"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "lr/manifest.json").read_text())
    (about,) = manifest["reconstructors"].values()
    (made,) = manifest["pictures"].values()
    assert about["name"] == "shipped:vqvae2" and made["drawn"]["reconstruct"]["delta_e"][1] <= 3
    lr = read_image(tmp_path / "lr/photo.png")
    assert (lr.height, lr.width) == (photo.height // 4, photo.width // 4)
    assert np.abs(lr.pixels.astype(float) / 255 - small).max() > 0.02, "it does something"
