"""The raters' page of a study in a real browser, from the first answer to the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from test_report import Browser, browser, needs_chromium, noisy, photo, save

from refine_wrap.evaluation import Outputs
from refine_wrap.study import Settings, make_study, study_report
from refine_wrap.study.formats import Key, Results

__all__ = ["browser"]  # a fixture of the other page's tests
pytestmark = needs_chromium

STATE = """(() => {
  const $ = (id) => document.getElementById(id), there = (id) => $(id).checkVisibility();
  const file = (id) => there(id) ? $(id).querySelector("img").getAttribute("src").split("/").pop() : null;
  const images = [...document.querySelectorAll("#trial img")].filter((i) => i.checkVisibility());
  return {progress: $("progress").textContent, left: file("left"), right: file("right"), start: there("start"),
          end: there("end"), neither: there("neither"), trouble: there("trouble"), unkept: there("unkept"),
          ready: $("trial").ariaBusy === "false", loaded: images.every((i) => i.complete && i.naturalWidth > 0),
          sizes: images.map((i) => [i.clientWidth, i.clientHeight]), alts: images.map((i) => i.alt)};
})()"""


def build(root: Path, seed: int, *, ties: bool = True, beside: bool = False) -> Path:
    """A study of its own for each seed: the browser keeps answers by study."""
    for number, name in enumerate(("dune", "pier", "fern")):
        truth = photo(80, 100, number)
        save(root / "truth" / f"{name}.png", truth)
        save(root / "low" / f"{name}.png", truth[::2, ::2])
        for sigma, method in ((5, "fine"), (15, "rough")):
            save(root / method / f"{name}.png", noisy(truth, sigma, number))
    settings = Settings(question="Which is better?", trials=3, orders=4, catches=2, crop=64, ties=ties, seed=seed)
    places = {"inputs": root / "low", "reference": root / "truth"} if beside else {}
    make_study([Outputs(root / "fine"), Outputs(root / "rough")], root / "study", settings=settings, **places)
    return root / "study"


def state(browser: Browser) -> dict[str, Any]:
    """The page's state, as soon as it is not loading."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = browser.js(STATE)
        if found["start"] or found["end"] or found["trouble"] or found["ready"]:
            return found
        time.sleep(0.02)
    raise AssertionError(f"the page is still loading: {found}")


def begin(browser: Browser, study: Path, rater: str) -> dict[str, Any]:
    browser.open(study / "raters" / "index.html")
    assert state(browser)["start"]
    browser("Input.insertText", text=rater)
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    return state(browser)


def press(browser: Browser, selector: str) -> None:
    left, top, width, height = browser.box(selector)
    place = (left + width / 2, top + height / 2)
    browser.mouse("mousePressed", *place, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseReleased", *place, button="left", clickCount=1)


def download(browser: Browser, selector: str, folder: Path) -> Path:
    folder.mkdir()
    browser("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    press(browser, selector)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = list(folder.glob("*.json"))
        if found and found[0].stat().st_size:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"nothing was downloaded: {list(folder.iterdir())}")


def test_a_rater_answers_closes_the_page_goes_on_and_is_reported(browser: Browser, tmp_path: Path) -> None:
    study = build(tmp_path, 0)
    key = Key.read(study / "key.json")
    shown = []
    seen = begin(browser, study, "3")
    assert seen["progress"] == "Pair 1 of 5" and seen["loaded"] and seen["neither"]
    shown.append((seen["left"], seen["right"], "left"))
    browser.key("ArrowLeft")
    seen = state(browser)
    assert seen["progress"] == "Pair 2 of 5"
    shown.append((seen["left"], seen["right"], "right"))
    press(browser, "#right")
    # What was answered is kept, and the same pair comes, when the page is opened again.
    third = state(browser)
    assert third["progress"] == "Pair 3 of 5"
    part = Results.read(download(browser, "#download", tmp_path / "part"), key)
    assert (part.rater, len(part.answers), part.trials) == ("3", 2, 5)
    assert [url for url in browser.requests() if not url.startswith(("data:", "file:", "blob:"))] == []
    browser.open(study / "raters" / "index.html")
    again = state(browser)
    assert again == third
    # Back, and another answer to the second pair.
    browser.key("Backspace")
    assert state(browser)["progress"] == "Pair 2 of 5" and state(browser)["left"] == shown[1][0]
    browser.key("ArrowLeft")
    shown[1] = (*shown[1][:2], "left")
    seen = state(browser)
    shown.append((seen["left"], seen["right"], "none"))
    browser.key(" ", "Space")
    seen = state(browser)
    shown.append((seen["left"], seen["right"], "none"))
    browser.key("ArrowDown")
    seen = state(browser)
    shown.append((seen["left"], seen["right"], "right"))
    browser.key("ArrowRight")
    assert state(browser)["end"]
    browser.key("ArrowRight")
    file = download(browser, "#save", tmp_path / "all")
    assert file.name == f"results-{key.study[:8]}-3.json"
    results = Results.read(file, key)
    assert [(a.left, a.right, a.choice) for a in results.answers] == shown
    assert all(0 < answer.seconds < 60 and answer.at.startswith("20") for answer in results.answers)
    report = study_report([file], study / "key.json", max_failed=1, resamples=50)
    assert report.raters[0].answers == 3 and report.raters[0].catches == 2 and report.winner is None
    assert browser.troubles() == []
    # Another rater on the same machine meets another order; who comes back goes on.
    press(browser, "#other")
    assert state(browser)["start"]
    other = begin(browser, study, "4")
    assert other["progress"] == "Pair 1 of 5"
    press(browser, "#left")
    state(browser)
    browser.js(
        "localStorage.removeItem(`refine-wrap study ${JSON.parse(document.getElementById('data').textContent).study}`)"
    )
    assert begin(browser, study, "3")["end"]


def test_pictures_are_of_one_size_and_say_nothing(browser: Browser, tmp_path: Path) -> None:
    study = build(tmp_path, 1, ties=False, beside=True)
    seen = begin(browser, study, "Ann")
    assert seen["alts"] == ["Input", "Left picture", "Right picture", "Reference"] and not seen["neither"]
    assert len({tuple(size) for size in seen["sizes"]}) == 1
    wide = browser.js("document.documentElement.scrollWidth <= innerWidth")
    left = [browser.box(f"#{side}")[0] for side in ("input", "left", "right", "reference")]
    assert wide and left == sorted(left)
    # Where ties are not allowed, the keys do nothing.
    for key in ("ArrowDown", " ", "x"):
        browser.key(key)
    assert state(browser)["progress"] == "Pair 1 of 5"
    # A phone: the two beside each other, the rest below; touch answers.
    browser.look(390, 800)
    browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    boxes = {side: browser.box(f"#{side}") for side in ("left", "right", "input")}
    assert boxes["left"][1] == boxes["right"][1] < boxes["input"][1] and boxes["left"][0] < boxes["right"][0]
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert len({tuple(size) for size in state(browser)["sizes"]}) == 1
    x, y = boxes["right"][0] + 20, boxes["right"][1] + 20
    browser.touch("touchStart", (x, y))
    browser.touch("touchEnd")
    until = time.monotonic() + 10
    while state(browser)["progress"] != "Pair 2 of 5" and time.monotonic() < until:
        time.sleep(0.02)
    assert state(browser)["progress"] == "Pair 2 of 5"
    light = browser.js("getComputedStyle(document.body).backgroundColor")
    browser.look(dark=True)
    assert browser.js("getComputedStyle(document.body).backgroundColor") != light
    browser.look()
    assert browser.troubles() == []


def test_held_keys_and_missing_pictures_answer_nothing(browser: Browser, tmp_path: Path) -> None:
    study = build(tmp_path, 2)
    begin(browser, study, "1")
    for _ in range(4):
        browser("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft", autoRepeat=True)
    assert state(browser)["progress"] == "Pair 1 of 5"
    for path in (study / "raters" / "pictures").iterdir():
        path.rename(path.with_suffix(".gone"))
    browser("Network.clearBrowserCache")
    browser.open(study / "raters" / "index.html")
    seen = state(browser)
    assert seen["trouble"] and "unpack the whole folder" in browser.js("document.getElementById('trouble').textContent")
    browser.key("ArrowLeft")
    assert state(browser)["progress"] == "Pair 1 of 5"


def test_answers_that_were_damaged_in_the_browser_are_said(browser: Browser, tmp_path: Path) -> None:
    study = build(tmp_path, 3)
    begin(browser, study, "1")
    browser.key("ArrowLeft")
    state(browser)
    browser.js("Object.keys(localStorage).filter((k) => k.endsWith(' 1')).forEach((k) => localStorage[k] = '[{]')")
    browser.open(study / "raters" / "index.html")
    seen = state(browser)
    assert seen["trouble"] and seen["progress"] == "Pair 1 of 5"
    assert "damaged" in browser.js("document.getElementById('trouble').textContent")
