"""Enhanced ground truths as files: what is written, what is kept, and that nothing is lost, doubled or made up."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import interrupted
from PIL import Image
from safetensors.torch import save_file
from test_supervision import generator

from refine_wrap import Backbone, RefineWrapper, load_backbone, manifests, read_image, write_image
from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, DataError, ImageError, OutputError, RefineWrapError
from refine_wrap.evaluation import make_flawed
from refine_wrap.hub import Adapter, load_adapter, save_adapter
from refine_wrap.images import Picture
from refine_wrap.report import audit_page
from refine_wrap.supervision import (
    FrequencyMaskGenerator,
    Manifest,
    enhance,
    enhanced,
    frequency_mixup,
    load_mask_generator,
    save_mask_generator,
    variants,
)
from refine_wrap.supervision import change as changes
from refine_wrap.supervision import enhancer as enhancers
from refine_wrap.supervision import make as making

Files = dict[str, bytes]


def scene(seed: int, height: int = 24, width: int = 33, top: int = 255, channels: int = 3) -> np.ndarray:
    """Shades, edges and fine texture, (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    planes = [0.5 + 0.3 * np.sin(x / (4 + c) + seed) * np.cos(y / 3 - c) for c in range(channels)]
    image = np.stack(planes, 2) + 0.1 * np.sin(x * 1.9)[..., None] * np.cos(y * 1.3)[..., None]
    return np.rint(np.clip(image, 0, 1) * top).astype(np.uint8 if top == 255 else np.uint16)


@pytest.fixture(scope="module")
def masks() -> FrequencyMaskGenerator:
    """One that gives the variants a say, and another at each strength."""
    net = generator(1)
    with torch.no_grad():
        net.intro.weight[:, 6] *= 20
        net.fclayer_last.weight *= 20
        net.fclayer_last.bias.zero_()
    return net


@pytest.fixture(scope="module")
def sr() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("SRVGGNetCompact", options={"num_feat": 4, "num_conv": 1, "upscale": 2})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("b.png", "one/001.png", "two/001.png", "sub/c.tif")):
        (tmp_path / "gt" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "gt" / name, Picture(scene(seed)))
    return tmp_path / "gt"


NAMES = ["b.png", "one/001.png", "sub/c.tif", "two/001.png"]


@pytest.fixture
def run(masks: FrequencyMaskGenerator, sr: Backbone) -> Any:
    """`enhance` with the tiny networks."""

    def with_defaults(*places: object, **options: Any) -> Any:
        if "variants" not in options:
            options.setdefault("sr", sr)
        return enhance(*places, **{"masks": masks, **options})  # type: ignore[arg-type]

    return with_defaults


def everything(out: Path) -> Files:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name[0] != "."}


def written(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in everything(out) if name != "manifest.json"}


def decibels(a: Path, b: Path) -> float:
    return changes.decibels(read_image(a).tensor(), read_image(b).tensor())


@pytest.fixture
def ready(tmp_path: Path, photos: Path) -> Path:
    """Variants as files: other pictures of the same sizes, x3 as TIFF."""
    for factor, end in ((2, ".png"), (3, ".tif"), (4, ".png")):
        for number, name in enumerate(NAMES):
            path = (tmp_path / "variants" / f"x{factor}" / name).with_suffix(end)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, Picture(scene(10 * factor + number)))
    return tmp_path / "variants"


# ---------------------------------------------------------------- the pure function


def test_the_pure_function_is_masks_and_mixup_for_each_of_a_batch(masks: FrequencyMaskGenerator) -> None:
    gt, others = torch.rand(2, 3, 17, 22), torch.rand(2, 3, 3, 17, 22)
    strength = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        together = enhanced(gt, others, masks, strength)
        for row in range(2):
            own = masks(gt[row : row + 1], float(strength[row]))
            alone = frequency_mixup(torch.cat((gt[row : row + 1, None], others[row : row + 1]), 1), own)
            assert torch.allclose(together[row : row + 1], alone, atol=1e-6)
        same = enhanced(gt, gt[:, None].expand(-1, 3, -1, -1, -1), masks, strength)
    assert torch.allclose(same, gt, atol=2e-6)
    with pytest.raises(ImageError, match=r"variants of shape \(2, 2, 3, 17, 22\)"):
        enhanced(gt, others[:, :2], masks, 0.3)


def test_gradients_reach_the_generator_and_the_pictures(masks: FrequencyMaskGenerator) -> None:
    gt, others = (torch.rand(*shape, requires_grad=True) for shape in ((1, 3, 8, 9), (1, 3, 3, 8, 9)))
    enhanced(gt, others, masks, torch.tensor([0.5])).square().sum().backward()
    found = [gt.grad, others.grad, masks.fclayer_last.weight.grad]
    assert all(each is not None and float(each.abs().sum()) > 0 for each in found)
    masks.zero_grad()


# ---------------------------------------------------------------- what is written


def test_every_file_is_the_pure_function_of_its_own_picture(
    photos: Path, tmp_path: Path, run: Any, masks: FrequencyMaskGenerator, sr: Backbone
) -> None:
    tally = run(photos, tmp_path / "out", strength=0.6)
    assert (tally.done, tally.failed, tally.exit_code) == (4, [], 0)
    assert set(everything(tmp_path / "out")) == {*NAMES, "manifest.json"}
    makers = variants(sr)
    for name in NAMES:
        gt = read_image(photos / name).tensor()
        with torch.no_grad():
            others = torch.stack([maker(gt).clamp(0, 1) for maker in makers], 1)
            expected = enhanced(gt, others, masks, 0.6).clamp(0, 1)
        assert (read_image(tmp_path / "out" / name).tensor() - expected).abs().max() < 0.51 / 255


def test_the_manifest_says_what_happened(photos: Path, tmp_path: Path, run: Any) -> None:
    run(photos, tmp_path / "out")
    text = (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in text and len(max(text.splitlines(), key=len)) < 200
    found = Manifest.read(tmp_path / "out")
    assert list(found.pictures) == NAMES and found.settings.factors == [2, 3, 4]
    for name, picture in found.pictures.items():
        gt, made = (read_image(place / name).tensor() for place in (photos, tmp_path / "out"))
        assert picture.change.psnr == pytest.approx(decibels(photos / name, tmp_path / "out" / name), abs=1e-3)
        assert picture.change.largest == pytest.approx(float((gt - made).abs().max()), abs=1e-5)
        assert np.allclose(np.sum(picture.change.weights, 0), 1, atol=1e-3)
        assert picture.flagged == (picture.change.fidelity is not None and picture.change.fidelity < 33)
    again = json.loads(text)
    again["pictures"]["b.png"]["change"]["blur"] = 1
    (tmp_path / "out/manifest.json").write_text(json.dumps(again))
    with pytest.raises(DataError, match="is damaged"):
        run(photos, tmp_path / "out")


def test_a_name_that_looks_like_a_list_of_numbers_is_kept(tmp_path: Path, run: Any) -> None:
    name = "take [ 1, 2 ].png"
    write_image(tmp_path / "gt" / name, Picture(scene(3, 9, 9)))
    for _ in range(2):
        run(tmp_path / "gt", tmp_path / "out")
    assert list(Manifest.read(tmp_path / "out").pictures) == [name]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (19, 5)])
def test_any_size(size: tuple[int, int], tmp_path: Path, run: Any) -> None:
    write_image(tmp_path / "gt.png", Picture(scene(3, *size)))
    assert run(tmp_path / "gt.png", tmp_path / "out").done == 1
    assert read_image(tmp_path / "out/gt.png").pixels.shape == (*size, 3)


def test_depth_grey_alpha_icc_exif_and_format_are_kept(tmp_path: Path, run: Any) -> None:
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = np.zeros((24, 33), np.uint8)
    alpha[6:, 8:] = 200
    (tmp_path / "gt").mkdir()
    pictures = {
        "deep.png": Picture(scene(1, top=65535), icc=icc, exif=block),
        "grey.png": Picture(scene(2, channels=1)),
        "clear.webp": Picture(scene(3), alpha=alpha),
        "deep.tif": Picture(scene(4, top=65535, channels=1)),
        "photo.JPG": Picture(scene(5), exif=block),
    }
    for name, picture in pictures.items():
        write_image(tmp_path / "gt" / name, picture)
    with pytest.warns(UserWarning, match="1 of 5 enhanced pictures are JPEG"):
        assert run(tmp_path / "gt", tmp_path / "out").done == 5
    for name, picture in pictures.items():
        made = read_image(tmp_path / "out" / name)
        before = read_image(tmp_path / "gt" / name)
        assert (made.bits, made.grey, made.format) == (picture.bits, picture.grey, before.format)
        assert (made.icc, made.exif) == (before.icc, before.exif)
        assert made.pixels.shape == before.pixels.shape and not np.array_equal(made.pixels, before.pixels)
    kept = read_image(tmp_path / "out/clear.webp").alpha
    assert kept is not None and np.array_equal(kept, alpha)
    assert len(np.unique(read_image(tmp_path / "out/deep.png").pixels % 257)) > 100


def test_another_format_and_its_collisions(photos: Path, tmp_path: Path, run: Any) -> None:
    assert run(photos, tmp_path / "out", ext="png").done == 4
    assert (tmp_path / "out/sub/c.png").is_file()
    write_image(photos / "b.tif", Picture(scene(9)))
    with pytest.raises(DataError, match="would both write"):
        run(photos, tmp_path / "other", ext="png")
    assert run(photos, tmp_path / "other").done == 5


def test_strength_changes_the_result(photos: Path, tmp_path: Path, run: Any) -> None:
    for strength in (0.0, 1.0):
        run(photos / "b.png", tmp_path / f"at{strength}", strength=strength)
    assert not np.array_equal(read_image(tmp_path / "at0.0/b.png").pixels, read_image(tmp_path / "at1.0/b.png").pixels)


def test_a_large_picture_has_the_mean_coefficients_of_its_tiles(
    masks: FrequencyMaskGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(1, 3, 40, 30)
    seen: list[torch.Size] = []
    whole = masks.coefficients(image, 0.3)
    monkeypatch.setattr(enhancers, "WHOLE", 400)

    class Spy(FrequencyMaskGenerator):
        def coefficients(self, image: torch.Tensor, strength: Any = 0.3) -> torch.Tensor:
            seen.append(image.shape[-2:])
            return super().coefficients(image, strength)

    spy = Spy(width=4, rings=7)
    spy.load_state_dict(masks.state_dict())
    with torch.no_grad():
        mean = enhancers.coefficients(spy.eval(), image, 0.3)
        parts = [part for rows in image.split(24, -2) for part in rows.split(16, -1)]
        expected = sum(part[0, 0].numel() / 1200 * masks.coefficients(part, 0.3) for part in parts)
    # Of 20 pixels or so, in whole blocks of JPEG.
    assert seen == [(24, 16), (24, 14), (16, 16), (16, 14)]
    assert torch.allclose(mean, expected, atol=1e-6) and not torch.allclose(mean, whole)


# ---------------------------------------------------------------- limits and figures


def test_no_value_changes_by_more_than_the_limit(photos: Path, tmp_path: Path, run: Any) -> None:
    free = run(photos, tmp_path / "free")
    assert free.limited == 0
    tally = run(photos, tmp_path / "held", max_change=0.01)
    assert tally.limited == 4
    for name in NAMES:
        before = read_image(photos / name).pixels.astype(int)
        assert np.abs(read_image(tmp_path / "free" / name).pixels - before).max() > 4
        assert np.abs(read_image(tmp_path / "held" / name).pixels - before).max() == 2  # 2.55 of 255


@pytest.mark.parametrize("bound", [38.0, 45.0, 60.0])
def test_each_picture_keeps_its_psnr(photos: Path, tmp_path: Path, run: Any, bound: float) -> None:
    run(photos, tmp_path / "free", strength=1.0)
    assert run(photos, tmp_path / "held", strength=1.0, min_psnr=bound).limited == 4
    for name in NAMES:
        assert decibels(tmp_path / "free" / name, photos / name) < bound
        found = decibels(tmp_path / "held" / name, photos / name)
        assert found >= bound and (bound == 60 or found < bound + 0.6)  # no more than needed
        gt, free, held = (read_image(place / name).tensor() for place in (photos, tmp_path / "free", tmp_path / "held"))
        if bound == 38:  # the same change, smaller
            assert float(((free - gt) * (held - gt)).sum() / (free - gt).norm() / (held - gt).norm()) > 0.97


def test_the_flag_finds_what_was_invented_and_not_what_was_sharpened() -> None:
    gt = torch.from_numpy(scene(0, 64, 64).astype(np.float32) / 255).permute(2, 0, 1)[None]
    weights = torch.full((4, 6), 0.25)
    blurred = torch.nn.functional.avg_pool2d(gt, 3, 1, 1, count_include_pad=False)
    sharper = (gt + 0.5 * (gt - blurred)).clamp(0, 1)
    drawn = gt.clone()
    drawn[..., 20:32, 20:32] = 0.9
    tinted = (gt + torch.tensor([0.05, 0, -0.05])[:, None, None]).clamp(0, 1)
    found = [
        changes.measured(image, gt, weights, False).fidelity or 99 for image in (sharper, drawn, gt.roll(1, -1), tinted)
    ]
    assert found[0] > 45 and max(found[1:]) < making.MIN_FIDELITY
    # Detail of 2 to 4 pixels is stronger than before, and that of more than 32 as it was.
    sharp = changes.measured(sharper, gt, weights, False)
    assert sharp.gain[4] is not None and sharp.gain[4] > 1.2 and sharp.gain[0] == pytest.approx(1, abs=0.02)
    same = changes.measured(gt, gt, weights, False)
    assert (same.psnr, same.largest, same.change[4]) == (None, 0, 0)


def test_the_weights_of_bands_are_those_of_the_masks() -> None:
    torch.manual_seed(0)
    net = FrequencyMaskGenerator(width=2, rings=9)
    rings = torch.randn(1, 4, 9).mul(2).softmax(1)
    weights = changes.band_weights(net, rings)
    masks = net.masks(rings, 400, 400)[0]
    y, x = (torch.fft.fftshift(torch.fft.fftfreq(400)).abs() * 2 for _ in range(2))
    radius = torch.hypot(y[:, None], x[None])
    for band in range(6):
        inside = (radius > changes.BANDS[band]) & (radius <= changes.BANDS[band + 1])
        assert torch.allclose(weights[:, band], masks[:, inside].mean(1), atol=5e-3)


def test_the_bound_of_the_flag_may_change_alone(photos: Path, tmp_path: Path, run: Any) -> None:
    assert run(photos, tmp_path / "out", min_fidelity=0).flagged == []
    before = written(tmp_path / "out")
    tally = run(photos, tmp_path / "out", min_fidelity=120)
    assert (tally.skipped, tally.flagged, written(tmp_path / "out")) == (4, NAMES, before)
    assert all(picture.flagged for picture in Manifest.read(tmp_path / "out").pictures.values())


# ---------------------------------------------------------------- going on


def test_a_second_run_writes_nothing_and_mends_what_is_wrong(photos: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    run(photos, out)
    good, before = everything(out), written(out)
    tally = run(photos, out)
    assert (tally.done, tally.skipped, written(out)) == (0, 4, before)
    (out / "one/001.png").write_bytes(b"half")
    (out / "sub/c.tif").unlink()
    tally = run(photos, out)
    assert (tally.done, tally.skipped, everything(out)) == (2, 2, good)
    changed = {name for name, when in written(out).items() if before[name] != when}
    assert changed == {"one/001.png", "sub/c.tif"}


def test_other_settings_are_refused_unless_told(
    photos: Path, tmp_path: Path, run: Any, masks: FrequencyMaskGenerator, ready: Path
) -> None:
    out = tmp_path / "out"
    run(photos, out)
    good = everything(out)
    other, centred = generator(7), FrequencyMaskGenerator(**{**masks.config(), "centred": True})
    centred.load_state_dict(masks.state_dict())
    torch.manual_seed(5)
    network = load_backbone("SRVGGNetCompact", options={"num_feat": 4, "num_conv": 1, "upscale": 2})
    for options, message in (
        ({"strength": 0.5}, r"strength 0\.3, not 0\.5"),
        ({"masks": other}, "another mask generator"),
        ({"masks": centred}, "another mask generator"),
        ({"sr": network}, "another super-resolver"),
        ({"variants": ready}, "another super-resolver, or none"),
        ({"max_change": 0.1}, "max_change None, not 0.1"),
        ({"min_psnr": 30}, "min_psnr"),
        ({"ext": "png"}, "ext"),
    ):
        with pytest.raises(DataError, match=message):
            run(photos, out, **options)
    assert everything(out) == good
    assert run(photos, out, strength=0.9, overwrite=True).done == 4
    run(photos, tmp_path / "anew", strength=0.9)
    assert everything(out) == everything(tmp_path / "anew") and everything(out) != good


def test_overwriting_shards_keep_what_the_other_made(photos: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    run(photos, out)
    for number in (0, 1):
        run(photos, out, strength=0.9, overwrite=True, shard=(number, 2))
    run(photos, tmp_path / "anew", strength=0.9)
    assert everything(out) == everything(tmp_path / "anew")


def test_another_picture_of_a_name_is_not_taken_for_it(photos: Path, tmp_path: Path, run: Any, ready: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, variants=ready)
    good = everything(out)
    write_image(ready / "x3/one/001.tif", Picture(scene(77)), overwrite=True)
    write_image(photos / "b.png", Picture(scene(78)), overwrite=True)
    tally = run(photos, out, variants=ready)
    assert (tally.done, tally.skipped, everything(out)) == (0, 2, good)
    reasons = {path.relative_to(photos).as_posix(): reason for path, reason in tally.failed}
    assert "another picture" in reasons["b.png"] and "other variants" in reasons["one/001.png"]
    assert run(photos, out, variants=ready, overwrite=True).done == 4


def test_files_of_nobody_known_are_left_alone(photos: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"no .*manifest\.json that says what it is"):
        run(photos, tmp_path / "out")
    assert everything(tmp_path / "out") == {"b.png": b"mine"}
    assert run(photos, tmp_path / "out", overwrite=True).done == 4
    with pytest.raises(DataError, match="would overwrite itself"):
        run(photos, photos)


def test_ctrl_c_loses_nothing_that_is_done(photos: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, out, on_done=stop)
    assert list(Manifest.read(out).pictures) == ["b.png"] and set(written(out)) == {"b.png"}
    tally = run(photos, out)
    assert (tally.done, tally.skipped) == (3, 1)
    run(photos, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from refine_wrap.supervision import enhance, enhancer
real = enhancer.mix
def mix(images, masks):
    if len(os.listdir(sys.argv[2])) > 3:  # manifest, lock and two pictures or folders: in the middle of the third
        os.kill(os.getpid(), signal.SIGKILL)
    return real(images, masks)
enhancer.mix = mix
enhance(sys.argv[1], sys.argv[2], masks=sys.argv[3], sr=sys.argv[4])
"""


def test_a_killed_process_is_gone_on_with(
    photos: Path, tmp_path: Path, run: Any, masks: FrequencyMaskGenerator, sr: Backbone
) -> None:
    out = tmp_path / "out"
    save_mask_generator(tmp_path / "masks", masks)
    sr.save_published(tmp_path / "sr.safetensors")
    arguments = [
        sys.executable,
        "-c",
        KILLED,
        *map(str, (photos, out, tmp_path / "masks", tmp_path / "sr.safetensors")),
    ]
    assert subprocess.run(arguments, check=False, timeout=300).returncode == -signal.SIGKILL
    there = written(out)
    assert 0 < len(there) < 4
    for name in there:
        read_image(out / name)
    networks = {"masks": tmp_path / "masks", "sr": tmp_path / "sr.safetensors"}
    assert run(photos, out, **networks).done > 0
    run(photos, tmp_path / "whole", **networks)
    assert everything(out) == everything(tmp_path / "whole")


def test_shards_at_once_lose_and_double_nothing(
    photos: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "FLUSH_SECONDS", 0.0)
    (photos / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    done: list[str] = []
    failures: list[object] = []

    def part(number: int) -> None:
        try:
            tally = run(photos, out, shard=(number, 2), on_done=lambda s, t, o, m: done.append(f"{o} {t.name}"))
            failures.extend(tally.failed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=part, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["done 001.png", "done 001.png", "done b.png", "done c.tif", "failed bad.png"]
    assert len(failures) == 1
    tally = run(photos, tmp_path / "whole")
    assert (tally.done, len(tally.failed), tally.exit_code) == (4, 1, 1)
    assert everything(out) == everything(tmp_path / "whole")


def test_a_full_disk_ends_the_run(photos: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    real, room = making.write_image, [1]

    def scarce(path: Path, *arguments: Any, **options: Any) -> None:
        room[0] -= 1
        if room[0] < 0:
            monkeypatch.setattr("refine_wrap.images.write._encode", full)
        real(path, *arguments, **options)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(making, "write_image", scarce)
        with pytest.raises(OutputError, match=r"001\.png cannot be written: the disk is full"):
            run(photos, out)
    monkeypatch.undo()
    assert list(Manifest.read(out).pictures) == ["b.png"] and set(written(out)) == {"b.png"}
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]
    assert run(photos, out).done == 3


# ---------------------------------------------------------------- ready variants


def test_ready_variants_are_mixed_in(photos: Path, tmp_path: Path, run: Any, ready: Path, masks: Any) -> None:
    assert run(photos, tmp_path / "out", variants=ready).done == 4
    gt = read_image(photos / "one/001.png").tensor()
    files = [ready / f"x2/{NAMES[1]}", ready / "x3/one/001.tif", ready / f"x4/{NAMES[1]}"]
    with torch.no_grad():
        expected = enhanced(gt, torch.stack([read_image(file).tensor() for file in files], 1), masks, 0.3).clamp(0, 1)
    assert (read_image(tmp_path / "out/one/001.png").tensor() - expected).abs().max() < 0.51 / 255
    assert Manifest.read(tmp_path / "out").sr is None


def test_a_wrong_variant_fails_its_picture_alone(photos: Path, tmp_path: Path, run: Any, ready: Path) -> None:
    (ready / "x4/one/001.png").unlink()
    write_image(ready / "x2/b.png", Picture(scene(0, 24, 34)), overwrite=True)
    (ready / "x3/two/001.tif").write_bytes(b"II*\0")
    tally = run(photos, tmp_path / "out", variants=ready)
    reasons = {path.relative_to(photos).as_posix(): reason for path, reason in tally.failed}
    assert (tally.done, set(reasons)) == (1, {"b.png", "one/001.png", "two/001.png"})
    assert "34x24 pixels" in reasons["b.png"] and "33x24, as the ground truth b.png" in reasons["b.png"]
    assert "No files in" in reasons["one/001.png"] and "x4" in reasons["one/001.png"]
    assert "damaged" in reasons["two/001.png"]
    assert set(everything(tmp_path / "out")) == {"sub/c.tif", "manifest.json"}


def test_ground_truths_that_differ_in_the_suffix_have_their_own_variants(
    photos: Path, tmp_path: Path, run: Any, ready: Path
) -> None:
    write_image(photos / "b.tif", Picture(scene(5)))
    tally = run(photos, tmp_path / "out", variants=ready)
    # x3 holds b.tif and the others b.png: nobody can tell whose they are.
    assert [path.name for path, _ in tally.failed] == ["b.png", "b.tif"]


def test_other_folders_of_variants_are_refused(photos: Path, tmp_path: Path, run: Any, ready: Path) -> None:
    shutil.rmtree(ready / "x4")
    with pytest.raises(DataError, match=r"holds the variants x2, x3\b"):
        run(photos, tmp_path / "out", variants=ready)
    assert run(photos, tmp_path / "out", variants=ready, masks=generator(images=3)).done == 4
    with pytest.raises(RefineWrapError, match="given together"):
        run(photos, tmp_path / "out", variants=ready, sr="x.pth")


# ---------------------------------------------------------------- mask generators on disk


def test_a_mask_generator_comes_back_from_disk(tmp_path: Path) -> None:
    net = generator(3, images=3, centred=True)
    recipe = {"objective": "masks", "supervision": {"factors": [2, 4]}}
    save_mask_generator(tmp_path / "masks", net, scorers=["niqe"], recipe=recipe, licence="CC0-1.0")
    assert load_adapter(tmp_path / "masks").kind == "masks"
    assert "load_mask_generator(" in (tmp_path / "masks/README.md").read_text()
    found = load_mask_generator(tmp_path / "masks")
    assert (found.config(), found.scorers, found.factors) == (net.config(), ("niqe",), (2, 4))
    image = torch.rand(1, 3, 20, 14)
    with torch.no_grad():
        assert torch.equal(found(image), net(image)) and not found.training
    assert net.factors == (2, 3)


def test_a_published_mask_generator_is_read(tmp_path: Path) -> None:
    net = generator(4)
    save_file(net.state_dict(), tmp_path / "cfmg.safetensors")
    torch.save({"params": net.state_dict()}, tmp_path / "cfmg.pkl")
    for name in ("cfmg.safetensors", "cfmg.pkl"):
        found = load_mask_generator(tmp_path / name)
        assert torch.equal(found.intro.weight, net.intro.weight) and found.factors == (2, 3, 4)


def test_what_is_no_mask_generator_is_refused(tmp_path: Path) -> None:
    net = generator(0)
    tensors = dict(net.state_dict())
    save_adapter(tmp_path / "scorer", Adapter(kind="scorer", config={}, tensors=tensors))
    save_adapter(tmp_path / "other", Adapter(kind="masks", config={"wide": 4}, tensors=tensors))
    save_adapter(tmp_path / "shape", Adapter(kind="masks", config={**net.config(), "width": 8}, tensors=tensors))
    for source, message in (
        (tmp_path / "scorer", "of kind scorer"),
        (tmp_path / "other", "no mask generator can be built"),
        (tmp_path / "shape", "does not fit its mask generator"),
        (tmp_path / "scorer/adapter.safetensors", "is a file, not an adapter folder"),
        ("shipped:nothing", "No weights named 'nothing'"),
        (tmp_path / "none.pth", "There is no file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_mask_generator(source)


# ---------------------------------------------------------------- the page


def text_of(page: Path) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(), flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_has_every_picture_and_no_machine_path(photos: Path, tmp_path: Path, run: Any) -> None:
    from refine_wrap.scorers import Scorer

    class Contrast(Scorer):
        name, worst, best = "contrast", 0.0, 1.0

        def raw(self, image: torch.Tensor) -> torch.Tensor:
            return self.checked(image).std((1, 2, 3))

    out = tmp_path / "out"
    run(photos, out, min_fidelity=120, max_change=0.01)
    audit_page(photos, out, tmp_path / "page.html", scorers=[Contrast()], left_out=[("bad.png", "no picture")], limit=2)
    html, text = (tmp_path / "page.html").read_text(), text_of(tmp_path / "page.html")
    assert str(tmp_path) not in html and "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    manifest = Manifest.read(out)
    for name, picture in manifest.pictures.items():
        row = re.search(rf"<tr[^>]*><th[^>]*>(?:<a[^>]*>)?{re.escape(name)}<.*?</tr>", html)
        assert row and f"{picture.change.psnr:.2f} dB" in row[0] and '<svg class="bands"' in row[0]
        before, after = (float(read_image(place / name).tensor().std()) for place in (photos, out))
        assert f"{before:.4f} → {after:.4f}" in row[0] and "flagged, limited" in row[0]
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', html)[0])
    least = sorted(NAMES, key=lambda name: manifest.pictures[name].change.psnr or 99)[:2]
    assert [item["name"] for item in shown["items"]] == least
    assert [source["label"] for source in shown["sources"]] == ["ground truth", "enhanced"]
    assert "bad.png : no picture" in text and "4 pictures below a fidelity of 120 dB" in text
    assert "2 to 4 px" in text and "4 flagged · 4 limited" in text


def test_scorers_that_the_masks_were_trained_on_say_nothing(photos: Path, tmp_path: Path, run: Any) -> None:
    from refine_wrap.scorers import Scorer

    class Flat(Scorer):
        name, worst, best = "flat", 0.0, 1.0

        def raw(self, image: torch.Tensor) -> torch.Tensor:
            return self.checked(image).mean((1, 2, 3))

    net = generator(2)
    net.scorers = ("flat",)
    run(photos, tmp_path / "out", masks=net)
    assert Manifest.read(tmp_path / "out").scorers == ["flat"]
    audit_page(photos, tmp_path / "out", tmp_path / "page.html", scorers=[Flat()])
    assert "was trained on it: it says nothing" in text_of(tmp_path / "page.html")


def test_a_picture_that_changed_since_is_not_shown_as_what_it_was(photos: Path, tmp_path: Path, run: Any) -> None:
    run(photos, tmp_path / "out")
    write_image(photos / "b.png", Picture(scene(50)), overwrite=True)
    audit_page(photos, tmp_path / "out", tmp_path / "page.html")
    html, text = (tmp_path / "page.html").read_text(), text_of(tmp_path / "page.html")
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', html)[0])
    assert len(shown["items"]) == 3 and "b.png : b.png is missing, or not as it was" in text


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(tmp_path: Path, masks: FrequencyMaskGenerator, sr: Backbone, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_mask_generator(tmp_path / "masks", masks)
    sr.save_published(tmp_path / "sr.safetensors")

    def command(*arguments: object, sr: bool = True) -> int:
        networks = ["--masks", tmp_path / "masks", "--device", "cpu"]
        networks += ["--sr", tmp_path / "sr.safetensors"] if sr else []
        with pytest.raises(SystemExit) as left:
            app(["enhance", *map(str, (*arguments, *networks))])
        return int(left.value.code or 0)

    return command


def test_the_command(photos: Path, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "one/bad.png").write_bytes(b"no picture")
    out, page = tmp_path / "out", tmp_path / "audit.html"
    assert call(photos, "-o", out, "--audit", page, "--min-fidelity", 120, "--max-change", 0.02) == 1
    said = capsys.readouterr()
    assert f"{photos / 'one/bad.png'}: " in said.err and "4 enhanced, 0 skipped" in said.err and "1 failed" in said.err
    assert "4 flagged" in said.err and "4 held back by a limit" in said.err
    assert said.out.splitlines() == [*(str(out / name) for name in NAMES), str(page)]
    assert "one/bad.png : one/bad.png is not an image" in text_of(page) and str(tmp_path) not in page.read_text()
    (photos / "one/bad.png").unlink()
    assert call(photos, "-o", out, "--audit", page, "--max-change", 0.02, "--quiet") == 0
    assert capsys.readouterr().out.splitlines() == [str(page)]


def test_wrong_calls(photos: Path, tmp_path: Path, call: Any, ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        ((photos / "none", "-o", out), "does not exist"),
        ((photos, "-o", tmp_path / "out.png"), "a file by its name"),
        ((photos, "-o", out, "--strength", 2), "strength is 2.0"),
        ((photos, "-o", out, "--max-change", 20), "max_change is 20.0"),
        ((photos, "-o", out, "--min-psnr", -1), "min_psnr is -1.0"),
        ((photos, "-o", out, "--shard", "2"), "--shard is '2'"),
        ((photos, "-o", out, "--tile", "big"), "--tile is 'big'"),
        ((photos, "-o", out, "--audit", "page.txt"), "cannot be called 'page.txt'"),
        ((photos, "-o", out, "--scorer", "niqe"), "--scorer is given without --audit"),
        ((photos, "-o", out, "--variants", ready), "given together"),
    ):
        assert call(*arguments) == 2, message
        said = capsys.readouterr().err
        assert message in said and len(said.strip().splitlines()) <= 3, said
    assert not out.exists()
    assert call(photos, "-o", out, "--variants", ready, sr=False) == 0


def test_ctrl_c_of_the_command(photos: Path, tmp_path: Path, call: Any) -> None:
    """A whole process, interrupted while it works: exit code 130, and what is done stays."""
    call(photos / "b.png", "-o", tmp_path / "warm")  # writes what the process below loads
    big = tmp_path / "big"
    big.mkdir()
    for number in range(60):
        write_image(big / f"{number:02}.png", Picture(scene(number, 128, 128)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "refine_wrap.cli.main", "enhance", str(big), "-o", str(out)]
    command += ["--masks", str(tmp_path / "masks"), "--sr", str(tmp_path / "sr.safetensors"), "--device", "cpu"]
    code, said = interrupted(command, out / "01.png")
    assert code == 130 and "Interrupted." in said and "Traceback" not in said
    known = Manifest.read(out).pictures
    assert set(known) == set(written(out)) and 1 < len(known) < 60


# ---------------------------------------------------------------- what comes with the package


def test_nothing_has_to_be_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks and super-resolver come with the package: two folders are enough, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as left:
        app(["enhance", str(photos), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"])
    assert not left.value.code
    manifest = Manifest.read(tmp_path / "out")
    assert sorted(manifest.pictures) == NAMES and manifest.scorers == []
    assert any((tmp_path / "out" / name).read_bytes() != (photos / name).read_bytes() for name in NAMES)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_shipped_refiner_goes_behind_any_network(scale: int) -> None:
    network = load_backbone("SRVGGNetCompact", options={"num_feat": 4, "num_conv": 1, "upscale": scale})
    model = RefineWrapper.from_pretrained("shipped:refiner", backbone=network)
    image = torch.rand(1, 3, 20, 17)
    alone, refined = network(image), model(image)
    assert refined.shape == alone.shape and not torch.equal(refined, alone) and bool(refined.isfinite().all())


@pytest.mark.shared
def test_the_shipped_masks_undo_flaws_and_leave_sharp_photos_alone(tmp_path: Path, shared: Path) -> None:
    """On photos that nothing was trained on, at each level of flaws nearer to the pristine photo than before."""
    place = tmp_path / "set"
    make_flawed(shared / "data/photos", place, crop=192, downscale=2)
    gain = {}
    for level in ("level1", "level2", "level3"):
        gts = place / "flawed_gt" / level
        enhance(gts, tmp_path / level)
        pairs = [(place / "pristine" / path.name, path, tmp_path / level / path.name) for path in gts.iterdir()]
        gain[level] = [decibels(best, made) - decibels(best, flawed) for best, flawed, made in pairs]
        assert len(pairs) == 4
    assert all(sum(gains) > 0 for gains in gain.values()), gain
    assert sum(gain["level1"]) < sum(gain["level3"]), gain
    # What the refiner learned of them it does without variants.
    refiner = RefineWrapper.from_pretrained("shipped:refiner", backbone=torch.nn.Identity())
    for path in (place / "flawed_gt/level3").iterdir():
        refiner.restore(path, tmp_path / "refined" / path.name)
    best = place / "pristine"
    gains = [
        decibels(best / p.name, tmp_path / "refined" / p.name) - decibels(best / p.name, p)
        for p in (place / "flawed_gt/level3").iterdir()
    ]
    assert min(gains) > 0, gains
    enhance(place / "pristine", tmp_path / "same")
    assert min(decibels(p, tmp_path / "same" / p.name) for p in (place / "pristine").iterdir()) > 38
