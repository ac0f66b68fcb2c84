"""The comparison page: what is paired, measured, embedded and said, and how it works in a real browser."""

from __future__ import annotations

import base64
import fcntl
import html
import json
import math
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refine_wrap.errors import DataError, OutputError, RefineWrapError
from refine_wrap.evaluation import psnr, ssim
from refine_wrap.report import compare_page, gallery

Pixels = np.ndarray


def photo(height: int = 96, width: int = 128, seed: int = 0) -> Pixels:
    """Smooth colours with some edges, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(float)
    phase = seed + np.arange(3)
    values = 128 + 60 * np.sin(x[..., None] / 9 + phase) + 50 * np.cos(y[..., None] / 7 + phase)
    return values.clip(0, 255).astype(np.uint8)


def noisy(pixels: Pixels, sigma: float, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """truth, good and bad, each with a.png and b.png."""
    for seed, name in enumerate("ab"):
        truth = photo(seed=seed)
        save(tmp_path / "truth" / f"{name}.png", truth)
        save(tmp_path / "good" / f"{name}.png", noisy(truth, 5, seed))
        save(tmp_path / "bad" / f"{name}.png", noisy(truth, 25, seed))
    return tmp_path


class Page:
    """A written page, taken apart again."""

    def __init__(self, path: Path) -> None:
        self.html = path.read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.html, re.S)
        assert found
        self.data = json.loads(found[1])
        self.sources, self.items = self.data["sources"], self.data["items"]
        self.payloads = {
            key: (kind, base64.b64decode(text))
            for key, kind, text in re.findall(
                r'<script type="text/plain" id="([\w-]+)" data-mime="([\w/]+)">([\w+/=]+)</script>', self.html
            )
        }
        body = re.sub(r"<(script|style)\b.*?</\1>", "", self.html, flags=re.S)
        self.text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())

    @property
    def names(self) -> list[str]:
        return [item["name"] for item in self.items]

    def picture(self, key: str) -> Image.Image:
        return Image.open(BytesIO(self.payloads[key][1]))

    def pixels(self, key: str) -> Pixels:
        return np.asarray(self.picture(key))

    def table(self) -> list[list[str]]:
        found = re.search(r"<table>.*?</table>", self.html, re.S)
        assert found, "there is no table"
        rows = re.findall(r"<tr\b.*?</tr>", found[0], re.S)
        return [
            [
                " ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).split())
                for cell in re.findall(r"<t[hd].*?</t[hd]>", row)
            ]
            for row in rows
        ]


def build(out: Path, *args: Any, **options: Any) -> Page:
    return Page(compare_page(*args, out / "page.html", **options))


def test_pictures_are_embedded_as_they_are(folders: Path) -> None:
    page = build(folders, [folders / "bad", folders / "good"])
    assert page.names == ["a", "b"]
    assert [source["label"] for source in page.sources] == ["bad", "good"]
    for item, name in enumerate("ab"):
        for source, folder in enumerate(("bad", "good")):
            entry = page.items[item]["images"][source]
            kind, _ = page.payloads[entry["id"]]
            assert kind == "image/webp" and entry["detail"] is None
            stored = np.asarray(Image.open(folders / folder / f"{name}.png"))
            assert np.array_equal(page.pixels(entry["id"]), stored)
    assert "lossless WebP" in page.text
    assert "No reference was given" in page.text


def test_png_where_pillow_has_no_webp(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setattr(features, "check", lambda feature: False)
    page = build(folders, [folders / "bad", folders / "good"])
    assert {kind for kind, _ in page.payloads.values()} == {"image/png"}
    assert np.array_equal(page.pixels("p-0-0"), np.asarray(Image.open(folders / "bad" / "a.png")))
    assert "embedded as PNG" in page.text


@pytest.mark.parametrize(("border", "luma"), [(0, False), (4, True)])
def test_figures_and_means(folders: Path, border: int, luma: bool) -> None:
    page = build(folders, [folders / "bad", folders / "good"], reference=folders / "truth", border=border, luma=luma)

    def tensor(path: Path) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255

    expected: dict[str, list[float]] = {}
    for name in "ab":
        truth = tensor(folders / "truth" / f"{name}.png")
        expected[name] = [
            metric(tensor(folders / folder / f"{name}.png"), truth, border=border, luma=luma).item()
            for folder in ("bad", "good")
            for metric in (psnr, ssim)
        ]
    means = [sum(values) / 2 for values in zip(*expected.values(), strict=True)]
    rows = {row[0]: row[1:] for row in page.table()[2:]}
    for name, values in {"Mean of 2": means, **expected}.items():
        texts = [f"{values[0]:.2f}", f"{values[1]:.4f}", f"{values[2]:.2f} (best)", f"{values[3]:.4f} (best)"]
        assert rows[name] == texts
    colour = "Y (BT.601)" if luma else "RGB"
    assert f"PSNR, {colour}, 8-bit, border {border}; SSIM, {colour}, 8-bit, border {border}" in page.text
    assert page.items[0]["images"][1]["figures"] == f"{expected['a'][2]:.2f} dB · {expected['a'][3]:.4f}"
    assert page.items[0]["images"][2]["figures"] == ""
    # The reference was not among the folders: it is shown all the same, last and marked.
    assert page.sources[2] == {"label": "truth", "reference": True}


def test_reference_among_the_folders_is_shown_once(folders: Path) -> None:
    page = build(folders, [folders / "truth", folders / "good"], reference=folders / "bad" / ".." / "truth")
    assert page.sources == [{"label": "truth", "reference": True}, {"label": "good", "reference": False}]
    assert page.table()[0] == ["Picture", "good"]


def test_identical_pictures_do_not_hide_the_mean(folders: Path) -> None:
    shutil.copy(folders / "truth" / "a.png", folders / "good" / "a.png")
    page = build(folders, [folders / "good"], reference=folders / "truth")
    mean, a, b = page.table()[2:]
    assert a[1:] == ["∞", "1.0000"]
    assert mean[1] == b[1] and math.isfinite(float(b[1]))
    assert "good: 1 identical picture not in the mean PSNR." in page.text


def test_other_sizes_are_said_not_measured_and_resized_for_viewing(folders: Path) -> None:
    small = np.asarray(Image.fromarray(photo()).resize((32, 24), Image.Resampling.BICUBIC))
    save(folders / "small" / "ax4.png", small)
    save(folders / "small" / "b.png", photo(seed=1))
    page = build(folders, [folders / "small", folders / "good"], reference=folders / "truth")
    assert page.names == ["a", "b"]
    _, a, b = page.table()[2:]
    assert a[1:3] == ["other size", "other size"] and b[1] == "∞ (best)"
    assert "mean PSNR over 1 of 2 pictures only" in page.text
    item = page.items[0]
    assert "small is 32 × 24, resized by bicubic for viewing only" in item["notes"]
    image = item["images"][0]
    assert image["size"] == [32, 24] and image["resized"]
    shown = np.asarray(Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC))
    assert np.array_equal(page.pixels(image["id"]), shown)
    # The close-up shows its own pixels, laid over the whole frame.
    assert np.array_equal(page.pixels(image["detail"]["id"]), small)
    assert [image["detail"][key] for key in ("x", "y", "w", "h", "pw", "ph")] == [0, 0, 128, 96, 32, 24]
    assert not page.items[1]["images"][0]["resized"]


def test_a_folder_of_other_sizes_has_no_column(folders: Path) -> None:
    for name in "ab":
        save(folders / "small" / f"{name}.png", photo(24, 32))
    page = build(folders, [folders / "small", folders / "good"], reference=folders / "truth")
    assert page.table()[0] == ["Picture", "good"]
    assert "small is not measured: other size in every picture." in page.text


def test_pictures_too_small_for_ssim(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save(tmp_path / folder / "a.png", photo(10, 30, seed=len(folder)))
    save(tmp_path / "y" / "a.png", noisy(photo(10, 30), 9))
    page = build(tmp_path, [tmp_path / "x"], reference=tmp_path / "y")
    assert page.table()[-1][2] == "too small" and float(page.table()[-1][1]) > 0


def test_large_pictures_are_reduced_but_not_in_the_close_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_REGION", 150)
    truth = photo(300, 400)
    changed = truth.copy()
    changed[180:220, 300:340] = 255 - changed[180:220, 300:340]
    save(tmp_path / "x" / "a.png", truth)
    save(tmp_path / "y" / "a.png", changed)
    page = build(tmp_path, [tmp_path / "x", tmp_path / "y"], max_side=200)
    item = page.items[0]
    assert (item["width"], item["height"], item["page"]) == (400, 300, [200, 150])
    assert "shown reduced to 200 × 150, the close-up has the original pixels" in item["notes"]
    assert "1 picture shown reduced" in page.text
    for image, pixels in zip(item["images"], (truth, changed), strict=True):
        assert page.picture(image["id"]).size == (200, 150)
        detail = image["detail"]
        x, y, w, h = (int(detail[key]) for key in "xywh")
        assert (w, h) == (150, 150) == (detail["pw"], detail["ph"])
        assert np.array_equal(page.pixels(detail["id"]), pixels[y : y + h, x : x + w])
        assert item["bounds"] == [x, y, x + w, y + h]
    # As it is by default, nothing is reduced.
    assert build(tmp_path, [tmp_path / "x", tmp_path / "y"]).items[0]["page"] == [400, 300]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (97, 411), (96, 96), (40, 300), (3, 5), (1, 1)])
def test_the_crop_is_where_the_pictures_differ_most(tmp_path: Path, height: int, width: int) -> None:
    truth = photo(height, width)
    changed = truth.copy()
    top, left = height * 2 // 3, width * 3 // 4
    changed[top : top + 12, left : left + 12] ^= 255
    changed[0, 0] ^= 32  # a lesser difference elsewhere
    save(tmp_path / "x.png", truth)
    save(tmp_path / "y.png", changed)
    crop = build(tmp_path, [tmp_path / "x.png", tmp_path / "y.png"]).items[0]["crop"]
    assert crop["size"] == min(96, height, width)
    assert 0 <= crop["x"] <= width - crop["size"] and 0 <= crop["y"] <= height - crop["size"]
    if height > 1:
        # At most a quarter of the window may be cut off, since the search goes in steps of that.
        assert crop["x"] - crop["size"] / 4 <= left <= crop["x"] + crop["size"]
        assert crop["y"] - crop["size"] / 4 <= top <= crop["y"] + crop["size"]


def test_alpha_16_bit_and_grey(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    rgba = np.dstack([photo(), np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(96, 0)])
    save(tmp_path / "x" / "alpha.png", rgba)
    save(tmp_path / "y" / "alpha.png", photo())
    # Off the 8-bit levels to both sides by less than half a step, 128 of 65535.
    off = np.where(np.indices((96, 128)).sum(0) % 2, 120, -120)[..., None]
    deep = (photo(seed=2).astype(int) * 257 + off).clip(0, 65535).astype(np.uint16)
    for folder in ("x", "y"):
        assert cv2.imwrite(str(tmp_path / folder / "deep.png"), deep)
        save(tmp_path / folder / "grey.png", photo()[..., 0])
    page = build(tmp_path, [tmp_path / "x", tmp_path / "y"], reference=tmp_path / "y")
    alpha, sixteen, grey = page.items
    assert [image["alpha"] for image in alpha["images"]] == [True, False]
    assert np.array_equal(page.pixels(alpha["images"][0]["id"]), rgba)
    assert "Transparency is not measured" in page.text
    assert any("16 bits, shown in 8" in note for note in sixteen["notes"])
    assert np.array_equal(page.pixels(sixteen["images"][0]["id"]), photo(seed=2)[..., ::-1])
    assert np.array_equal(page.pixels(grey["images"][0]["id"]), photo()[..., :1].repeat(3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    alpha = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128, 1).astype(np.uint8)
    turned = save(tmp_path / "x.png", np.dstack([photo(), alpha]), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(turned))
    upright.save(tmp_path / "y.png", exif=Image.Exif())
    page = build(tmp_path, [turned, tmp_path / "y.png"], reference=tmp_path / "y.png")
    assert page.table()[-1][1] == "∞"
    assert np.array_equal(page.pixels("p-0-0"), np.asarray(upright))


def test_colour_profile_goes_along(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save(tmp_path / "x.png", photo(), icc_profile=profile)
    save(tmp_path / "y.png", photo())
    page = build(tmp_path, [tmp_path / "x.png", tmp_path / "y.png"])
    assert page.picture("p-0-0").info.get("icc_profile") == profile
    assert "icc_profile" not in page.picture("p-0-1").info


def test_unreadable_and_unpaired_files_are_named_and_counted(folders: Path) -> None:
    for folder in ("good", "truth"):
        save(folders / folder / "broken.png", photo())
        (folders / "bad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    save(folders / "good" / "sub" / "only.png", photo())
    page = build(folders, [folders / "bad", folders / "good"], reference=folders / "truth")
    assert page.names == ["a", "b"]
    assert "1 picture could not be read and was left out" in page.text
    assert "broken : bad: broken.png" in page.text and "Mean of 2" in page.text
    assert str(folders) not in page.html, "a page that is passed on must not tell where the files lie"
    assert "1 file without a partner in every folder" in page.text and "good: 1 (sub/only)" in page.text


def test_pairs_by_path_below_the_folder(tmp_path: Path) -> None:
    for folder, suffix in (("x", "png"), ("y", "jpg")):
        for name in ("one/same", "two/same", "top"):
            save(tmp_path / folder / f"{name}.{suffix}", photo(seed=len(name)))
    assert build(tmp_path, [tmp_path / "x", tmp_path / "y"]).names == ["one/same", "top", "two/same"]


def test_scale_suffix(tmp_path: Path) -> None:
    for folder, name in (("lq", "0801x4"), ("sr", "0801x4"), ("gt", "0801")):
        save(tmp_path / folder / f"{name}.png", photo())
    assert build(tmp_path, [tmp_path / "lq", tmp_path / "sr", tmp_path / "gt"]).names == ["0801"]
    # "crop" and "cropx2" are two pictures where a folder has both.
    for folder in ("m", "n"):
        for name in ("crop", "cropx2"):
            save(tmp_path / folder / f"{name}.png", photo())
    assert build(tmp_path, [tmp_path / "m", tmp_path / "n"]).names == ["crop", "cropx2"]


def test_single_files_and_a_file_with_folders(folders: Path) -> None:
    page = build(folders, [folders / "good" / "a.png", folders / "bad" / "b.png"])
    assert page.names == ["a"] and [source["label"] for source in page.sources] == ["a.png", "b.png"]
    assert build(folders, [folders / "good" / "b.png", folders / "bad"]).names == ["b"]


def test_labels(folders: Path) -> None:
    for stage in ("one", "two"):
        shutil.copytree(folders / "good", folders / stage / "out")
    page = build(folders, [folders / "one" / "out", folders / "two" / "out"])
    assert [source["label"] for source in page.sources] == [os.path.join("one", "out"), os.path.join("two", "out")]
    page = build(folders, [folders / "bad", folders / "good"], reference=folders / "truth", labels=["B", "G"])
    assert [source["label"] for source in page.sources] == ["B", "G", "Reference"]
    page = build(folders, [folders / "bad", folders / "good"], reference=folders / "truth", labels=["B", "G", "T"])
    assert [source["label"] for source in page.sources] == ["B", "G", "T"]


def test_limit_and_page_size(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"reference": folders / "truth"}
    page = build(folders, [folders / "bad"], limit=1, **options)
    assert page.names == ["a"] and len(page.table()) == 4 and "1 more in common, not used" in page.text
    monkeypatch.setattr(gallery, "PAGE_BYTES", 1000)
    page = build(folders, [folders / "bad"], **options)
    assert page.names == ["a"] and len(page.payloads) == 2
    assert [row[0] for row in page.table()[2:]] == ["Mean of 2", "a", "b"]
    assert "The last 1 picture would make the page too large" in page.text


EVIL = '<img src=x onerror=alert(1)> & "q" </script><script>document.title="broken"'


def evil_page(folder: Path) -> Path:
    """Names as hostile as a file system takes them ("/" is the one character that it does not)."""
    name = EVIL.replace("/", "\u2215")
    for where in ("x", "y"):
        save(folder / where / f"{name}.png", photo(seed=len(where)))
        save(folder / where / "plain.png", photo(seed=3))
        (folder / where / f"{name}2.png").write_bytes(b"")
    save(folder / "x" / f"{name} alone.png", photo())
    return compare_page(
        [folder / "x", folder / "y"],
        folder / "evil.html",
        reference=folder / "y",
        labels=[EVIL, "$style & <b>"],
        title=EVIL,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow these names")
def test_names_labels_and_title_are_escaped(tmp_path: Path) -> None:
    path = evil_page(tmp_path)
    page = Page(path)
    assert page.sources[0]["label"] == EVIL and page.names[0].startswith("<img")
    without_scripts = re.sub(r"<script\b.*?</script>", "", page.html, flags=re.S)
    assert "<img" not in without_scripts and "<b>bold" not in without_scripts
    # Three scripts that are ours beside the payloads: data and code; the data holds no "<" at all.
    assert len(re.findall(r"<script\b", page.html)) == len(page.payloads) + 2
    assert EVIL in page.text


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        for where in ("x", "y"):
            save(tmp_path / where / f"{name}.png", photo())
    except OSError:
        pytest.skip("this file system takes no such name")
    assert build(tmp_path, [tmp_path / "x", tmp_path / "y"]).names == ["caf\ufffd"]


def test_the_page_asks_for_nothing_outside(folders: Path) -> None:
    page = build(folders, [folders / "bad", folders / "good"])
    code = re.sub(r'<script type="text/plain".*?</script>', "", page.html, flags=re.S)
    assert set(re.findall(r"\bhttps?://[^\s\"'<>]+", code)) <= {"http://www.w3.org/2000/svg"}, (
        "an XML name, not an address"
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.html)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy[1]
    assert not re.search(r"<(link|script|img|iframe)\b[^>]+(src|href)=(?!\"data:)", code)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda root: ([],), "0 folders were given"),
        (lambda root: ([root / "good"],), "1 folder was given"),
        (lambda root: (root / "good",), "Only one folder"),
        (lambda root: ([root / "good", root / "good" / ".." / "good"],), "given twice"),
        (lambda root: ([root / "good", root / "nowhere"],), "nowhere"),
        (lambda root: ([root / "good", root / "empty"],), "empty"),
        (lambda root: ([root / "good", root / "other"],), "no picture in common"),
        (lambda root: ([root / "good", root / "broken"],), "None of the 2 pictures"),
        (lambda root: ([root / "good", root / "twice"],), "Two files stand for 'a'"),
        (lambda root: ([root / "good", root / "bad"], {"labels": ["one"]}), "1 labels were given for 2"),
        (lambda root: ([root / "good", root / "bad"], {"labels": "ab"}), "labels"),
        (lambda root: ([root / "good", root / "bad"], {"limit": 0}), "limit of 0"),
        (lambda root: ([root / "good", root / "bad"], {"max_side": 5}), "at most 5 pixels"),
        (lambda root: ([root / "good", root / "bad"], {"out": root / "page.png"}), "ends in .html"),
        (lambda root: ([root / "good", root / "bad"], {"reference": root / "nowhere"}), "nowhere"),
        (lambda root: ([root / "bad"], {"reference": root / "good", "border": -1}), "border of -1"),
        (
            lambda root: ([root / "good", root / "bad"], {"out": root / "old.html", "overwrite": False}),
            "exists already",
        ),
        (
            lambda root: ([root / "good", root / "bad"], {"out": root / "good" / "a.png" / "p.html"}),
            "cannot be written",
        ),
    ],
)
def test_refusals(folders: Path, arguments: Callable[[Path], tuple[Any, ...]], words: str) -> None:
    (folders / "empty").mkdir()
    (folders / "old.html").write_text("old")
    save(folders / "other" / "z.png", photo())
    for name in "ab":
        (folders / "broken").mkdir(exist_ok=True)
        (folders / "broken" / f"{name}.png").write_text("no image")
    save(folders / "twice" / "a.png", photo())
    save(folders / "twice" / "a.jpg", photo())
    before = sorted(folders.rglob("*"))
    given, options = (*arguments(folders), {})[:2]
    out = options.pop("out", folders / "page.html")
    with pytest.raises(RefineWrapError, match=re.escape(words)) as caught:
        compare_page(given, out, **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert sorted(folders.rglob("*")) == before, "a refusal leaves nothing behind"
    assert (folders / "old.html").read_text() == "old"


def test_written_whole_or_not_at_all(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folders / "deep" / "page.html"
    compare_page([folders / "bad", folders / "good"], out)
    first = out.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        compare_page([folders / "bad", folders / "good"], out, title="second")
    assert out.read_bytes() == first and list(out.parent.iterdir()) == [out]


def test_the_same_input_makes_the_same_page(folders: Path) -> None:
    pages = [compare_page([folders / "bad", folders / "good"], folders / f"{i}.html").read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_refusals_are_data_errors(folders: Path) -> None:
    with pytest.raises(DataError):
        compare_page([folders / "good"], folders / "page.html")


# ---------------------------------------------------------------- in a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
FLAGS += ["--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


class Browser:
    """Headless Chromium over its debugging pipe, with real key and mouse events: nothing but the binary is needed."""

    def __init__(self, profile: Path) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Well above 3 and 4, where Chromium wants them, so that neither overwrites the other.
        own = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (commands, answers)]
        assert CHROMIUM
        self._pid = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, own[0], 3),
                (os.POSIX_SPAWN_DUP2, own[1], 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for fd in (commands, answers, *own):
            os.close(fd)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self.look()

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], 60)[0], "Chromium does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def __call__(self, method: str, **params: Any) -> Any:
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def look(self, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        # By way of an empty page: to the browser, the same address with another #number is no navigation.
        for url in ("about:blank", path.as_uri()):
            self.events.clear()
            self("Page.navigate", url=url)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self.events.append(self._message())
        # The page lays itself out once more when its size is first observed.
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def js(self, expression: str) -> Any:
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, key: str, code: str | None = None, modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, modifiers=modifiers)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        self.mouse("mouseMoved", *end, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        self(
            "Input.dispatchTouchEvent",
            type=kind,
            touchPoints=[{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)],
        )

    def box(self, selector: str) -> tuple[float, float, float, float]:
        found = self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        return tuple(found)

    def troubles(self) -> list[Any]:
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        return [event for event in self.events if event["method"] in bad]

    def requests(self) -> list[str]:
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)


needs_chromium = pytest.mark.skipif(CHROMIUM is None or os.name == "nt", reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    for seed, name in enumerate("abc"):
        truth = photo(300, 400, seed)
        save(root / "truth" / f"{name}.png", truth)
        save(root / "good" / f"{name}.png", noisy(truth, 5, seed))
        bad = noisy(truth, 20, seed)
        bad[200:240, 300:340] ^= 255
        save(root / "bad" / f"{name}.png", bad)
    return compare_page([root / "bad", root / "good"], root / "page.html", reference=root / "truth")


STATE = """(() => {
  const $ = (id) => document.getElementById(id);
  const tags = [...document.querySelectorAll("select.tag")].map((s) => s.selectedOptions[0].textContent);
  return {picture: $("pick").value, mode: $("stage").dataset.mode, tags, zoom: $("zoom-level").textContent,
          split: $("handle") && Number($("handle").getAttribute("aria-valuenow")), said: $("announce").textContent,
          where: $("close-up-where").textContent,
          stage: [...document.querySelectorAll("#stage img")].map((i) => i.style.transform),
          crops: [...document.querySelectorAll("#crops img")].map((i) => i.style.transform),
          shown: [...document.querySelectorAll("#stage img")].filter((i) => i.checkVisibility()).map((i) => i.alt)};
})()"""


@needs_chromium
def test_browser_loads_without_errors_and_without_network(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    assert browser.troubles() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page_path.as_uri()]
    assert browser.js(
        "[...document.images].length > 4 && [...document.images].every((i) => i.complete && i.naturalWidth > 0)"
    )
    assert browser.js("[...document.images].every((i) => i.alt.length > 5)")
    state = browser.js(STATE)
    assert (state["picture"], state["mode"], state["tags"], state["split"]) == ("0", "slider", ["bad", "good"], 50)
    assert "where they differ most" in state["where"]


@needs_chromium
def test_browser_refuses_network_and_foreign_scripts(browser: Browser, page_path: Path, tmp_path: Path) -> None:
    content = page_path.read_text(encoding="utf-8")
    added = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "foreign"</script></body>'
    tampered = tmp_path / "tampered.html"
    tampered.write_text(content.replace("</body>", added), encoding="utf-8")
    browser.open(tampered)
    assert browser.js("document.title") == "Comparison"
    assert len(browser.troubles()) >= 2, "the browser reports what the page's policy refuses"


@needs_chromium
def test_browser_divider_by_mouse_and_keyboard(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    left, top, width, height = browser.box("#stage")
    browser.drag((left + width / 2, top + height / 2), (left + width / 4, top + height / 2))
    assert browser.js(STATE)["split"] == 25
    assert (
        browser.js("getComputedStyle(document.querySelectorAll('#stage .layer')[1]).clipPath")
        == "inset(0px 75% 0px 0px)"
    )
    # A mouse drag leaves the arrow keys to the pictures; a divider that was tabbed to takes them.
    browser.key("ArrowRight")
    assert browser.js(STATE)["picture"] == "1"
    browser.js("document.getElementById('handle').focus()")
    browser.key("ArrowRight")
    browser.key("PageUp")
    state = browser.js(STATE)
    assert (state["picture"], state["split"]) == ("1", 37)
    handle = "document.getElementById('handle').getAttribute"
    assert (
        browser.js(f"{handle}('role')") == "slider"
        and browser.js(f"{handle}('aria-label')") == "Divider between bad and good"
    )
    assert browser.js(f"{handle}('aria-valuetext')") == "37% bad, 63% good"


@needs_chromium
def test_browser_pictures_and_versions_by_keyboard(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    browser.key("ArrowRight")
    state = browser.js(STATE)
    assert state["picture"] == "1" and state["said"] == "Picture 2 of 3: b"
    assert all(alt.startswith("b, ") for alt in state["shown"]) and browser.js("location.hash") == "#2"
    for _ in range(3):
        browser.key("ArrowRight")
    assert browser.js(STATE)["picture"] == "2" and browser.js("document.getElementById('next').disabled")
    browser.key("ArrowLeft")
    assert browser.js(STATE)["picture"] == "1"
    browser.key("3", "Digit3")
    assert browser.js(STATE)["tags"] == ["bad", "truth"]
    browser.key("@", "Digit2", modifiers=8)
    assert browser.js(STATE)["tags"] == ["good", "truth"]
    browser.key("2", "Digit2")
    assert browser.js(STATE)["tags"] == ["truth", "good"], "choosing what is on the other side swaps the two"
    browser.key("9", "Digit9")
    assert browser.js(STATE)["tags"] == ["truth", "good"]
    browser.js("location.hash = '#3'")
    time.sleep(0.1)
    assert browser.js(STATE)["picture"] == "2"
    assert browser.troubles() == []


@needs_chromium
def test_browser_modes(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    browser.key(" ", "Space")
    state = browser.js(STATE)
    assert state["mode"] == "flip" and [alt.split(", ")[1] for alt in state["shown"]] == ["good"]
    browser.key(" ", "Space")
    assert [alt.split(", ")[1] for alt in browser.js(STATE)["shown"]] == ["bad"]
    browser.key("b", "KeyB")
    state = browser.js(STATE)
    assert state["mode"] == "side" and [alt.split(", ")[1] for alt in state["shown"]] == ["bad", "good", "truth"]
    browser.key("d", "KeyD")
    assert browser.js(STATE)["mode"] == "difference"
    assert browser.js("getComputedStyle(document.querySelectorAll('#stage .layer')[1]).mixBlendMode") == "difference"
    assert browser.js("getComputedStyle(document.querySelector('#stage .layers')).filter") == "brightness(8)"
    browser.js(
        "(() => { const g = document.getElementById('gain'); g.value = 0; g.dispatchEvent(new Event('input')); })()"
    )
    assert browser.js("getComputedStyle(document.querySelector('#stage .layers')).filter") == "brightness(1)"
    assert (
        browser.js("document.querySelector('[data-mode=difference]:is(button)').getAttribute('aria-pressed')") == "true"
    )
    browser.key("s", "KeyS")
    assert browser.js(STATE)["mode"] == "slider"
    assert browser.troubles() == []


@needs_chromium
def test_browser_difference_view_shows_the_difference(browser: Browser, page_path: Path) -> None:
    """Of what is drawn: black where the pictures are alike, bright where one was inverted."""
    browser.open(page_path)
    browser.key("3", "Digit3")
    browser.key("d", "KeyD")
    left, top, width, height = browser.box("#stage")
    clip = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
    shot = browser("Page.captureScreenshot", format="png", clip=clip)["data"]
    drawn = np.asarray(Image.open(BytesIO(base64.b64decode(shot))).convert("L"), float)
    scale = min(width / 400, height / 300)
    x0, y0 = (width - 400 * scale) / 2, (height - 300 * scale) / 2
    changed = drawn[int(y0 + 205 * scale) : int(y0 + 235 * scale), int(x0 + 305 * scale) : int(x0 + 335 * scale)]
    assert changed.mean() > 200 > 170 > np.median(drawn[int(y0 + 60 * scale) : int(y0 + 180 * scale)])


@needs_chromium
def test_browser_zoom_keeps_the_point_and_the_panes_together(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    browser.key("b", "KeyB")
    left, top, width, height = browser.box("#stage .pane")
    # The picture's pixel under the pointer, from what is really drawn.
    under = """((x, y) => { const b = document.querySelector("#stage img").getBoundingClientRect();
        return [(x - b.left) / b.width, (y - b.top) / b.height]; })"""
    at = left + width * 0.4, top + height * 0.6
    for _ in range(3):
        browser.mouse("mouseWheel", left + width / 2, top + height / 2, deltaX=0, deltaY=-120)
    before = browser.js(f"{under}({at[0]}, {at[1]})")
    for _ in range(2):
        browser.mouse("mouseWheel", *at, deltaX=0, deltaY=-120)
    state = browser.js(STATE)
    assert state["zoom"].endswith("%") and len(set(state["stage"])) == 1
    assert browser.js(f"{under}({at[0]}, {at[1]})") == pytest.approx(before, abs=0.01)
    browser.drag(at, (at[0] + 30, at[1] + 20))
    panned = browser.js(STATE)
    assert panned["stage"] != state["stage"] and len(set(panned["stage"])) == 1
    assert browser.js(f"{under}({at[0] + 30}, {at[1] + 20})") == pytest.approx(before, abs=0.01)
    browser.key("0", "Digit0")
    assert browser.js(STATE)["zoom"] == "Fit"
    browser.key("+", "Equal", modifiers=8)
    assert browser.js(STATE)["zoom"] != "Fit"


@needs_chromium
def test_browser_close_up_moves_together_and_comes_back(browser: Browser, page_path: Path) -> None:
    browser.open(page_path)
    home = browser.js(STATE)
    assert len(home["crops"]) == 3 and len(set(home["crops"])) == 1
    # "96 x 96 px at 264, 168": the inverted square lies inside what is shown.
    w, h, x, y = map(int, re.findall(r"(\d+) × (\d+) px at (\d+), (\d+)", home["where"])[0])
    assert x <= 300 and x + w >= 340 and y <= 200 and y + h >= 240
    browser.js("document.querySelector('#crops').scrollIntoView()")
    left, top, _, _ = browser.box("#crops .pane")
    browser.drag((left + 50, top + 50), (left + 90, top + 80))
    browser.mouse("mouseWheel", left + 50, top + 50, deltaX=0, deltaY=-120)
    moved = browser.js(STATE)
    assert moved["crops"] != home["crops"] and len(set(moved["crops"])) == 1
    assert moved["stage"] == home["stage"]
    browser.key("c", "KeyC")
    assert browser.js(STATE)["crops"] == home["crops"]
    browser.js("document.getElementById('crops').focus()")
    browser.key("ArrowRight")
    state = browser.js(STATE)
    assert state["crops"] != home["crops"] and state["picture"] == "0"


@needs_chromium
def test_browser_touch_on_a_phone(browser: Browser, page_path: Path) -> None:
    browser.look(390, 844, dark=True)
    try:
        browser("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.open(page_path)
        assert browser.js("document.documentElement.scrollWidth") <= 390
        assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 22)"
        left, top, width, height = browser.box("#stage")
        middle = top + height / 2
        browser.touch("touchStart", (left + width / 2, middle))
        browser.touch("touchMove", (left + width * 0.6, middle))
        browser.touch("touchMove", (left + width * 0.8, middle))
        browser.touch("touchEnd")
        assert browser.js(STATE)["split"] == pytest.approx(80, abs=1)
        browser.touch("touchStart", (left + 150, middle), (left + 200, middle))
        for spread in (20, 40, 60):
            browser.touch("touchMove", (left + 150 - spread, middle), (left + 200 + spread, middle))
        browser.touch("touchEnd")
        assert browser.js(STATE)["zoom"].endswith("%")
        assert browser.troubles() == []
    finally:
        browser("Emulation.setTouchEmulationEnabled", enabled=False)
        browser.look()
    browser.open(page_path)
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 244)"


@needs_chromium
def test_browser_shows_a_checkerboard_under_alpha(browser: Browser, tmp_path: Path) -> None:
    clear = np.zeros((96, 128, 4), np.uint8)
    save(tmp_path / "x.png", clear)
    save(tmp_path / "y.png", photo())
    browser.open(compare_page([tmp_path / "x.png", tmp_path / "y.png"], tmp_path / "page.html"))
    images = [
        browser.js(f"getComputedStyle(document.querySelectorAll('#crops img')[{i}]).backgroundImage") for i in (0, 1)
    ]
    assert "gradient" in images[0] and images[1] == "none"


@needs_chromium
def test_browser_takes_hostile_names_as_text(browser: Browser, tmp_path: Path) -> None:
    browser.open(evil_page(tmp_path))
    assert browser.js("document.title") == " ".join(EVIL.split())
    assert browser.js("document.querySelectorAll('[onerror], [src=x]').length") == 0
    assert browser.js(STATE)["tags"][0] == EVIL
    assert browser.troubles() == []
