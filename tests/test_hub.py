"""Adapter folders, the Hub, the weights manifest, and the place of shipped data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import ROOT, Olah, StubHub, call, call_hub, free_port, why_no_olah

from refine_wrap import Recipe, __version__, hub, load_backbone, resources
from refine_wrap.errors import CheckpointError, HubError, OutputError, RecipeError, RefineWrapError
from refine_wrap.hub import Adapter, disk, load_adapter, model_card, parse_reference, remote, resolve, save_adapter
from refine_wrap.scorers.learned import LearnedScorer
from refine_wrap.supervision import FrequencyMaskGenerator
from refine_wrap.training.objectives import save_backbone

FILES = {"adapter.safetensors", "adapter.json", "README.md"}
NAFNET = {"width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
SWINIR = "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth"


def an_adapter(value: float = 1.0, **changes: Any) -> Adapter:
    wide = torch.arange(12.0).reshape(3, 4)
    fields: dict[str, Any] = {
        "kind": "refiner",
        "config": {"refiner": {"width": 8, "encoder_blocks": (1, 1)}},
        # A transposed view, two that share memory, one in half precision, one without dimensions.
        "tensors": {
            "a": wide.t(),
            "b": wide[0],
            "c": wide[0],
            "d": torch.full((4,), value).half(),
            "e": torch.tensor(value),
        },
        "backbone": {
            "source": {"weights": "hf://org/base/net.pth@v1", "sha256": "ab" * 32},
            "family": "SwinIR",
            "scale": 2,
            "structure": "12" * 32,
            "weights": "34" * 32,
        },
        "strength": 0.25,
        "recipe": {"version": 1, "name": "x", "train": {"steps": 10}},
        "scorers": ["cnniqa"],
        "metrics": [{"name": "psnr", "value": 31.25, "protocol": "RGB, 8 bit, no border", "data": "polyu"}],
        "data": [{"name": "budgie", "licence": "CC0-1.0", "images": 19}],
        "licence": "Apache-2.0",
    }
    return Adapter(**{**fields, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", an_adapter())


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((folder / "adapter.json").read_text())
    change(document)
    (folder / "adapter.json").write_text(json.dumps(document, indent=2))


# ---------------------------------------------------------------------------------------------------- save and load


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = an_adapter()
    folder = save_adapter(tmp_path / "deep" / "adapter", made)
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in folder.parent.iterdir()} == {"adapter"}
    found = load_adapter(folder)
    assert set(found.tensors) == set(made.tensors)
    for name, value in made.tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    assert found.config == {"refiner": {"width": 8, "encoder_blocks": [1, 1]}}
    for name in ("kind", "backbone", "strength", "recipe", "scorers", "metrics", "data", "licence"):
        assert getattr(found, name) == getattr(made, name), name
    assert found.version == __version__


def test_the_tensors_file_says_what_it_is(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved / "adapter.safetensors", "pt") as file:
        header = file.metadata()
    assert header == {"format": "pt", "format_version": "1", "kind": "refiner", "backbone_structure": "12" * 32}


def test_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    contents = {
        (save_adapter(tmp_path / str(number), an_adapter()) / name).read_bytes()
        for number in range(6)
        for name in ("adapter.safetensors", "adapter.json")
    }
    assert len(contents) == 2


def truncate(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def exchange(folder: Path) -> None:
    other = save_adapter(folder.parent / "other", an_adapter(2.0))
    shutil.copy(other / "adapter.safetensors", folder)


def with_tensors(folder: Path, content: bytes) -> None:
    """Other tensors, and an adapter.json that agrees with them."""
    (folder / "adapter.safetensors").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, lambda document: document["files"].update({"adapter.safetensors": entry}))


def not_finite(folder: Path) -> None:
    from safetensors.torch import save

    header = {"kind": "refiner", "backbone_structure": "12" * 32}
    with_tensors(folder, save({"a": torch.tensor([1.0, float("nan")])}, header))


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("hello")


def put(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "adapter.json").write_text(text)


def change(**keys: Any) -> Callable[[Path], Any]:
    return lambda folder: edit(folder, lambda document: document.update(keys))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "There is no folder"),
    "a file": (as_file, "is a file, not an adapter folder"),
    "an empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "is not an adapter folder"),
    "no adapter.json": (lambda f: (f / "adapter.json").unlink(), "has no adapter.json"),
    "no tensors": (lambda f: (f / "adapter.safetensors").unlink(), "has no adapter.safetensors"),
    "broken JSON": (put('{\n  "format_version": 1,\n  "kind": refiner\n}'), "adapter.json, line 3:"),
    "empty JSON": (put(""), "adapter.json, line 1:"),
    "not UTF-8": (lambda f: (f / "adapter.json").write_bytes(b'{"kind": "\xff"}'), "is no JSON"),
    "a list": (put("[]"), "has no format_version"),
    "not ours": (put('{"model_type": "bert"}'), "has no format_version"),
    "newer": (change(format_version=2, refine_wrap_version="9.1"), "has format 2 (saved by refine-wrap 9.1)"),
    "odd version": (change(format_version="1"), "has format_version '1'"),
    "unknown kind": (change(kind="sharpener"), "is of kind 'sharpener'"),
    "strength as text": (change(strength="much"), "strength is 'much'"),
    "strength out of range": (change(strength=1.5), "strength is 1.5"),
    "config as list": (change(config=[]), "config is []"),
    "metrics as text": (change(metrics=["31 dB"]), "metrics holds '31 dB'"),
    "no files": (lambda f: edit(f, lambda document: document.pop("files")), "files is None"),
    "foreign file": (
        lambda f: edit(f, lambda document: document["files"].update({"../../x": {"bytes": 1, "sha256": ""}})),
        "files is {'adapter.safetensors'",
    ),
    "truncated tensors": (truncate, "adapter.safetensors is incomplete"),
    "tensors of another save": (exchange, "adapter.safetensors is not the one that adapter.json was saved with"),
    "no safetensors": (lambda f: with_tensors(f, b"text" * 50), "is no whole safetensors file"),
    "values not finite": (not_finite, "a holds values that are not finite"),
    "other kind than the tensors": (change(kind="quality"), "speaks of kind quality"),
    "other backbone than the tensors": (
        lambda f: edit(f, lambda document: document["backbone"].update(structure="77" * 32)),
        "speaks of kind refiner, backbone 77777777; adapter.safetensors of kind refiner, backbone 12121212",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder_is_refused(saved: Path, case: str) -> None:
    spoil, sentence = BAD_FOLDERS[case]
    spoil(saved)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(saved)
    assert sentence in str(caught.value)
    assert caught.value.expected
    assert len(str(caught.value).splitlines()) <= 3


def test_newer_format_names_both_versions_and_the_upgrade(saved: Path) -> None:
    change(format_version=7, refine_wrap_version="9.1")(saved)
    with pytest.raises(
        CheckpointError, match=rf"format 7 .*9\.1[^\0]*format 1 .*{__version__}[^\0]*pip install --upgrade"
    ):
        load_adapter(saved)


def test_unknown_keys_are_named(saved: Path) -> None:
    change(colour="blue", alignment=3)(saved)
    with pytest.warns(UserWarning, match=r"alignment, colour\. .*pip install --upgrade refine-wrap"):
        load_adapter(saved)


def test_known_keys_warn_of_nothing(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(saved)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config": {"refiner": {"net": torch.nn.Identity()}}}, "adapter.config.refiner.net is a Identity"),
        ({"config": {"widths": [1, {2: 3}]}}, r"adapter.config.widths[1] has the key 2"),
        ({"recipe": {"rate": float("nan")}}, "adapter.recipe.rate is nan"),
        ({"tensors": {"a": torch.tensor(float("inf"))}}, "a holds values that are not finite"),
        ({"tensors": {}}, "The adapter holds no tensors"),
        ({"tensors": {"a": [1.0]}}, "a is a list"),
        ({"kind": "sharpener"}, "is of kind 'sharpener'"),
        ({"strength": 2.0}, "strength is 2.0"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_adapter(saved: Path, changes: dict[str, Any], sentence: str) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    for folder in (saved, saved.parent / "new"):
        with pytest.raises(CheckpointError) as caught:
            save_adapter(folder, an_adapter(**changes))
        assert sentence in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert {path.name for path in saved.parent.iterdir()} == {saved.name}


def test_a_fine_tuned_backbone_lies_beside(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(5)}, tmp_path / "tuned.safetensors")
    folder = save_adapter(tmp_path / "a", an_adapter(), backbone_file=tmp_path / "tuned.safetensors")
    assert (folder / "backbone.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()
    load_adapter(folder)
    save_adapter(folder, an_adapter(2.0))
    assert "backbone.safetensors" in json.loads((folder / "adapter.json").read_text())["files"]
    (folder / "backbone.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"backbone\.safetensors is incomplete: 5 bytes"):
        load_adapter(folder)
    (folder / "backbone.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"backbone\.safetensors is missing"):
        load_adapter(folder)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("mine")
    save_adapter(tmp_path / "run", an_adapter())
    assert (tmp_path / "run" / "log.txt").read_text() == "mine"
    assert {path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "."} == {*FILES, "log.txt"}
    assert float(load_adapter(tmp_path / "run").tensors["e"]) == 1.0


# ---------------------------------------------------------------------------------------------------------- the card


def front_matter(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    read: dict[str, Any] = yaml.safe_load(head)
    return read


def test_card(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    assert front_matter(text) == {
        "library_name": "refine-wrap",
        "pipeline_tag": "image-to-image",
        "tags": ["refine-wrap", "image-restoration", "refiner", "swinir"],
        "license": "apache-2.0",
        "base_model": "org/base",
    }
    for part in (
        "RefineWrapper.from_pretrained(",
        "| structure hash | " + "12" * 32,
        "| weights hash | " + "34" * 32,
        "| sha256 of that file | " + "ab" * 32,
        "hf://org/base/net.pth@v1",
        "| budgie | CC0-1.0 | images: 19 |",
        "```yaml\nversion: 1\nname: x\ntrain:\n  steps: 10\n```",
        "| psnr | 31.25 | RGB, 8 bit, no border | polyu |",
        "| scorer cnniqa |",
        "| backbone (SwinIR) | not recorded",
    ):
        assert part in text, part
    assert "research-only" not in text


@pytest.mark.parametrize(("kind", "name"), [("scorer", "LearnedScorer"), ("masks", "FrequencyMaskGenerator")])
def test_the_snippet_of_a_card_loads_what_has_no_backbone(tmp_path: Path, kind: str, name: str) -> None:
    made: torch.nn.Module
    if kind == "scorer":
        options = {"channels": [8, 8, 8, 8], "stem_width": 8}
        made = LearnedScorer("mine", "resnet10t", options)
        config = {"scorer": "learned", **made.config}
    else:
        made = FrequencyMaskGenerator(width=4, rings=7)
        config = made.config()
    adapter = an_adapter(kind=kind, config=config, tensors=made.state_dict(), backbone=None)
    save_adapter(tmp_path / "it", adapter)
    text = model_card(adapter, str(tmp_path / "it"))
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    assert type(found[kind]).__name__ == name
    assert "## Backbone" not in text
    assert ("pipeline_tag" in front_matter(text)) == (kind == "masks")


def test_only_a_refiner_without_enhanced_ground_truth_is_said_to_heed_its_strength_little() -> None:
    plain, enhanced = (
        model_card(an_adapter(recipe={"objective": "refine", "supervision": supervision}))
        for supervision in (None, {"sr": "shipped:sr_x2"})
    )
    assert "the strength changes little" in plain and "the strength changes little" not in enhanced
    assert "A higher strength asks for more perceptual detail" in enhanced


def test_card_of_a_local_backbone_and_restricted_data() -> None:
    adapter = an_adapter(
        backbone={"source": {"weights": "/home/alice/net.pth"}, "family": None, "scale": 1, "structure": "12" * 32},
        data=[{"name": "polyu", "licence": "research, non-commercial"}],
        licence="My own",
        recipe={"note": "```\n---\n# no heading"},
        metrics=[{"name": "a|b", "value": float("inf"), "protocol": "<!-- x"}],
    )
    text = model_card(adapter, "org/mine")
    assert "base_model" not in front_matter(text)
    assert front_matter(text)["license"] == "other"
    assert front_matter(text)["license_name"] == "My own"
    assert 'RefineWrapper.from_pretrained("org/mine", backbone=load_backbone("net.pth"))' in text
    assert "research-only" in text
    assert "| a\\|b | inf | &lt;!-- x | not stated |" in text
    assert "````yaml\n" in text
    assert "alice" not in text


def test_a_persons_readme_is_kept_and_ours_is_renewed(saved: Path) -> None:
    save_adapter(saved, an_adapter(strength=0.75))
    assert "Default strength: 0.75" in (saved / "README.md").read_text()
    (saved / "README.md").write_text("# My words\n")
    save_adapter(saved, an_adapter())
    assert (saved / "README.md").read_text() == "# My words\n"
    save_adapter(saved, an_adapter(), card="# Theirs\n")
    assert (saved / "README.md").read_text() == "# Theirs\n"


def test_no_place_of_this_machine_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "secret place" / "net.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    recipe = {
        "data": {"gt": ["/home/alice/my photos/train/", "C:\\Users\\alice\\x", "~/alice/y", "sets/train"]},
        "weights": weights,
        "note": "from /home/alice/a.png, see https://example.org/alice-free/page and 1/2",
        "overrides": ["data.gt=/home/alice/b c", "file:///home/alice/d"],
        "hub": "hf://org/name/file@main",
    }
    adapter = an_adapter(
        backbone={"source": str(weights), "family": "x", "structure": "12" * 32},
        recipe=recipe,
        data=[{"name": "/home/alice/e"}],
    )
    folder = save_adapter(tmp_path / "adapter", adapter)
    everything = b"".join(path.read_bytes() for path in folder.iterdir()).decode("utf-8", "ignore")
    for trace in ("/alice/", "\\alice", "/home", "Users", "photos", str(tmp_path), "secret place"):
        assert trace not in everything, trace
    found = load_adapter(folder)
    assert found.backbone is not None
    assert found.backbone["source"] == {"weights": "net.pth", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert found.recipe == {
        "data": {"gt": ["train", "x", "y", "sets/train"]},
        "weights": "net.pth",
        "note": "from a.png, see https://example.org/alice-free/page and 1/2",
        "overrides": ["data.gt=b c", "d"],
        "hub": "hf://org/name/file@main",
    }
    monkeypatch.chdir(tmp_path)
    near = save_adapter(tmp_path / "near", an_adapter(backbone={"source": {"weights": "secret place/net.pth"}}))
    assert load_adapter(near).backbone == {"source": found.backbone["source"]}


# ------------------------------------------------------------------------------------- full disks, several processes


def masks(mark: float, size: int = 8) -> Adapter:
    """An adapter whose parts can be told from those of another mark."""
    return Adapter("masks", {"mark": mark}, {"x": torch.full((size,), mark)})


def mark_of(folder: Path) -> float:
    """The mark of a whole adapter: equal in its config and in all of its tensor."""
    adapter = load_adapter(folder)
    assert adapter.tensors["x"].tolist() == [adapter.config["mark"]] * 8
    return float(adapter.config["mark"])


def test_full_disk_leaves_the_old_adapter(saved: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files by setrlimit")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder in (saved, saved.parent / "new" / "adapter"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot be written[^\0]*room on the disk[^\0]*free some space"):
                save_adapter(folder, masks(2.0, 100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert list((saved.parent / "new").iterdir()) == []


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "adapter"):
        with pytest.raises(OutputError):
            save_adapter(folder, an_adapter())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_save_that_dies_half_way_is_never_taken_for_an_adapter(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        if Path(target).name == "adapter.json":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OutputError):
        save_adapter(saved, an_adapter(2.0))
    with pytest.raises(CheckpointError, match=r"not the one that adapter\.json was saved with"):
        load_adapter(saved)
    assert not list(saved.glob(".*saving"))


_SAVE = """
import sys
from test_hub import masks, save_adapter
print("ready", flush=True)
sys.stdin.readline()
for _ in range(15):
    save_adapter(sys.argv[1], masks(float(sys.argv[2])))
"""


def test_two_processes_saving_leave_no_mixture(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", _SAVE, str(folder), mark],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mark in ("1.0", "2.0")
    ]
    try:
        assert [process.stdout and process.stdout.readline() for process in savers] == ["ready\n", "ready\n"]
        for process in savers:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        seen = set()
        deadline = time.monotonic() + 60
        while any(process.poll() is None for process in savers) and time.monotonic() < deadline:
            if folder.exists():
                seen.add(mark_of(folder))
        assert [process.wait(10) for process in savers] == [0, 0]
    finally:
        for process in savers:
            process.kill()
            process.communicate()
    assert seen == {1.0, 2.0}
    assert mark_of(folder) in seen
    assert {path.name for path in folder.iterdir()} == {*FILES, ".adapter.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_second_save_waits_for_the_first(tmp_path: Path) -> None:
    from filelock import FileLock

    folder = save_adapter(tmp_path / "adapter", masks(1.0))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder / ".adapter.lock"):
            second = pool.submit(save_adapter, folder, masks(2.0))
            deadline = time.monotonic() + 30
            while not list(folder.glob(".*saving/adapter.json")):
                assert time.monotonic() < deadline, "nothing was prepared"
                time.sleep(0.01)
            time.sleep(0.3)
            assert not second.done()
            assert mark_of(folder) == 1.0
        second.result(30)
    assert mark_of(folder) == 2.0


def test_two_first_saves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the folder while this one prepares its own."""
    rename = os.rename

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        save_adapter(target, masks(1.0))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    save_adapter(tmp_path / "adapter", masks(2.0))
    assert mark_of(tmp_path / "adapter") == 2.0
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_lock_that_is_never_given_back_ends_in_words(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(disk, "LOCK_SECONDS", 0.1)
    with FileLock(saved / ".adapter.lock"), pytest.raises(OutputError, match="locked by another process"):
        save_adapter(saved, an_adapter(2.0))
    assert float(load_adapter(saved).tensors["e"]) == 1.0


# ---------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", None, None)),
        ("hf://org/name@v1.0", ("org/name", None, "v1.0")),
        ("hf://org/name/net.pth", ("org/name", "net.pth", None)),
        ("hf://o-r.g/na_me/a/b c.pth".replace(" ", "-"), ("o-r.g/na_me", "a/b-c.pth", None)),
        ("hf://org/name/a/net.pth@refs/pr/3", ("org/name", "a/net.pth", "refs/pr/3")),
        ("hf://org/name/net@2x.pth@main", ("org/name", "net@2x.pth", "main")),
    ],
)
def test_reference(text: str, parts: tuple[str | None, ...]) -> None:
    reference = parse_reference(text)
    assert (reference.repo, reference.path, reference.revision) == parts
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "hf://", "hf://org", "hf://org/", "hf:///name", "org/name", "https://huggingface.co/org/name"),
        *(
            "hf://org/name/",
            "hf://org/name@",
            "hf://org/name/../x",
            "hf://org/na me/x",
            "hf://org/name//x",
            "hf://-o/name/x",
        ),
        *(
            "hf://org/name.git/x",
            "hf://org/na--me/x",
            "hf://org/name/x?y=1",
            "hf://org/name/x\\y",
            "hf://org/name/x@../../y",
        ),
    ],
)
def test_malformed_reference(text: str) -> None:
    with pytest.raises(HubError, match="is not a place on the Hub"):
        parse_reference(text)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that are asked for, none of which is there."""
    asked: list[str] = []

    def note(reference: hub.Reference) -> Path:
        asked.append(str(reference))
        raise HubError("asked")

    monkeypatch.setattr(remote, "_fetch_adapter", note)
    return asked


@pytest.mark.parametrize(
    "source",
    [
        *(
            "./org/name",
            "../x",
            "/nowhere/x",
            "~/nowhere/x",
            "name",
            "a/b/c",
            "runs/x.safetensors",
            "runs/adapter.json",
        ),
        *("a\\b", "", Path("org/name")),
    ],
)
def test_what_looks_like_a_path_is_never_asked_for(
    source: Any, no_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if source == "":
        source = "missing"
    with pytest.raises(CheckpointError, match="There is no folder"):
        resolve(source)
    assert no_hub == []


def test_a_folder_comes_before_a_repository(no_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "org" / "name", an_adapter())
    assert resolve("org/name") == Path("org/name")
    assert resolve(tmp_path / "org" / "name") == tmp_path / "org" / "name"
    assert no_hub == []
    for source, revision in (
        ("hf://org/name", None),
        ("org/name-v1.5", "v2"),
        ("hf://org/name@v3", None),
        ("hf://o/n@v3", "v3"),
    ):
        with pytest.raises(HubError, match="asked"):
            resolve(source, revision)
    assert no_hub == ["hf://org/name", "hf://org/name-v1.5@v2", "hf://org/name@v3", "hf://o/n@v3"]
    for source, revision, sentence in (
        ("org/name", "v2", "is given for the local folder"),
        ("hf://org/name@v2", "v3", "Two revisions"),
        ("hf://org/name/x.pth", None, "names a file"),
    ):
        with pytest.raises(HubError, match=sentence):
            resolve(source, revision)
    with pytest.raises(CheckpointError, match=r"is a file, not an adapter folder[^\0]*give its folder"):
        resolve("org/name/adapter.json")


def test_all_files_are_of_one_commit(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit = "e" * 40
    snapshot = saved.parent / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    asked = []

    def fake(repo: str, file: str, revision: str | None = None) -> str:
        asked.append((repo, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    monkeypatch.setattr(remote, "_check_connection", lambda reference, file: None)
    assert resolve("hf://org/name@main") == snapshot
    assert asked == [
        ("org/name", "adapter.json", "main"),
        ("org/name", "adapter.safetensors", commit),
        ("org/name", "README.md", commit),
    ]


def test_without_a_network_the_failure_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own download tries for 23 s; it is not called, unless the trouble is of a kind that passes."""
    import huggingface_hub

    trouble: list[Exception] = [type("ConnectError", (Exception,), {})("no route")]
    asked: list[str] = []

    def metadata(url: str) -> None:
        raise trouble[-1]

    def download(repo: str, file: str, revision: str | None = None) -> str:
        asked.append(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
    with pytest.raises(HubError, match=r"cannot be reached, and x\.pth of org/name is not in the cache"):
        hub.fetch_file("hf://org/name/x.pth")
    assert asked == []
    trouble.append(TimeoutError("slow"))
    assert hub.fetch_file("hf://org/name/x.pth") == tmp_path / "x.pth"
    trouble.pop()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: "cached")
    assert hub.fetch_file("hf://org/name/x.pth") == tmp_path / "x.pth"
    assert asked == ["x.pth", "x.pth"]


# ------------------------------------------------------------------------------------------- a real Hub, and no network


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


@pytest.fixture(scope="module")
def olah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Olah]:
    reason = why_no_olah()
    if reason:
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("olah")
    server = Olah(root)
    first, second = save_adapter(root / "one", an_adapter(1.0)), save_adapter(root / "two", an_adapter(2.0))
    server.commit("org/adapter", {**files_of(first), "big.bin": b"0" * 1000, "sub/net.pth": b"network"}, tag="v1")
    server.commit("org/adapter", files_of(second))
    server.commit("org/no-card", {name: content for name, content in files_of(first).items() if name != "README.md"})
    mixed = {**files_of(first), "adapter.safetensors": files_of(second)["adapter.safetensors"]}
    server.commit("org/mixed", mixed)
    cut = {**files_of(first), "adapter.safetensors": files_of(first)["adapter.safetensors"][:-40]}
    server.commit("org/cut", cut)
    server.commit("org/other", {"config.json": b"{}"})
    try:
        server.start()
        yield server
    finally:
        server.stop()


def refused(result: dict[str, Any], *words: str, kind: str = "HubError", code: int = 2) -> None:
    """The result of a call is a refusal of this kind, in at most three lines, with these words."""
    assert "kinds" in result, result
    assert kind in result["kinds"], result
    assert result["exit_code"] == code
    assert len(result["text"].splitlines()) <= 3
    for word in words:
        assert word in result["text"], (word, result["text"])


def test_from_a_real_hub_and_then_without_it(olah: Olah, tmp_path: Path) -> None:
    home = tmp_path / "home"
    results = call_hub(
        olah.endpoint,
        home,
        [
            call("resolve", "org/adapter"),
            call("resolve", "org/adapter", "v1"),
            call("resolve", "hf://org/no-card"),
            call("fetch_file", "hf://org/adapter/sub/net.pth@v1"),
            call("resolve", "org/adapter", "v9"),
            call("resolve", "org/nothing"),
            call("resolve", "org/other"),
            call("fetch_file", "hf://org/adapter/none.pth"),
            call("resolve", "org/mixed"),
            call("resolve", "org/cut"),
        ],
    )
    newest, oldest, bare = (Path(result["value"]) for result in results[:3])
    assert float(load_adapter(newest).tensors["e"]) == 2.0
    assert float(load_adapter(oldest).tensors["e"]) == 1.0
    assert {path.name for path in newest.iterdir()} == FILES
    assert {path.name for path in bare.iterdir()} == FILES - {"README.md"}
    assert home in newest.parents
    assert Path(results[3]["value"]).read_bytes() == b"network"
    refused(results[4], "org/adapter has no revision 'v9'")
    refused(results[5], "There is no repository org/nothing", olah.endpoint)
    refused(results[6], "org/other has no file adapter.json at its default branch", "is it an adapter's repository?")
    refused(results[7], "org/adapter has no file none.pth")
    refused(results[8], "adapter.safetensors of org/mixed came incomplete or changed", "--force-download")
    refused(results[9], "adapter.safetensors is incomplete", "hf download org/cut adapter.safetensors --force-download")

    calls = [
        call("resolve", "org/adapter"),
        call("resolve", "org/adapter", "v1"),
        call("fetch_file", "hf://org/adapter/sub/net.pth@v1"),
        call("resolve", "hf://org/no-card"),
        call("resolve", "org/elsewhere", "v1"),
        call("fetch_file", "hf://org/adapter/big.bin@v1"),
        call("push_folder", str(newest), "org/new"),
    ]
    nowhere = f"http://127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        runs = (
            pool.submit(call_hub, olah.endpoint, home, calls, HF_HUB_OFFLINE="1"),
            pool.submit(call_hub, nowhere, home, calls),
        )
        offline, unreachable = (run.result() for run in runs)
    for again in (offline, unreachable):  # both work from the cache
        assert [result.get("value") for result in again[:4]] == [results[place]["value"] for place in (0, 1, 3, 2)]
    refused(
        offline[4],
        "adapter.json of org/elsewhere (at revision 'v1') is not in the cache, and HF_HUB_OFFLINE",
        "where there is a network: hf download org/elsewhere adapter.json --revision v1",
    )
    refused(offline[5], "big.bin of org/adapter (at revision 'v1')", "hf download org/adapter big.bin --revision v1")
    refused(offline[6], "Nothing was pushed to org/new", "HF_HUB_OFFLINE")
    refused(unreachable[4], f"{nowhere} cannot be reached", "hf download org/elsewhere adapter.json --revision v1")
    refused(unreachable[5], f"{nowhere} cannot be reached", "big.bin of org/adapter")
    refused(unreachable[6], "Nothing was pushed to org/new", f"{nowhere} cannot be reached")


# ------------------------------------------------------------------------------------------ a Hub that misbehaves


@pytest.fixture
def stub() -> Iterator[StubHub]:
    server = StubHub()
    yield server
    server.stop()


def test_each_failure_of_a_hub_has_its_sentence(stub: StubHub, saved: Path, tmp_path: Path) -> None:
    moods = ("gated", "forbidden", "unauthorised", "ill", "foreign", "cut", "short")
    for mood in moods:
        stub.files[f"org/{mood}"] = {**files_of(saved), "net.pth": b"network" * 100}
        stub.moods[f"org/{mood}"] = mood
    changed = bytearray(files_of(saved)["adapter.safetensors"])
    changed[-1] ^= 1  # adapter.json arrives whole, the tensors with one bit flipped
    stub.files["org/changed"] = {**files_of(saved), "adapter.safetensors": bytes(changed)}
    wrong = b"not these weights"
    stub.files["deepinv/swinir"] = {SWINIR: wrong}
    listed = f"hf://deepinv/swinir/{SWINIR}"
    calls = [call("fetch_file", f"hf://org/{mood}/net.pth") for mood in moods[:7]]
    calls += [call("resolve", "org/gated"), call("resolve", "org/short"), call("fetch_file", listed)]
    calls += [call("fetch_file", f"{listed}@other"), call("resolve", "org/nothing"), call("resolve", "org/changed")]
    results = call_hub(stub.endpoint, tmp_path / "home", calls)
    refused(results[0], "org/gated is gated", "net.pth", "hf auth login", f"{stub.endpoint}/org/gated")
    refused(results[1], "refuses net.pth of org/forbidden (HTTP 403)")
    refused(results[2], "refuses net.pth of org/unauthorised (HTTP 401)")
    refused(results[3], "answers HTTP 500 for net.pth of org/ill")
    refused(results[4], "does not answer as a Hub does", "HF_ENDPOINT")
    refused(results[5], "net.pth of org/cut came incomplete", "hf download org/cut net.pth --force-download")
    refused(results[6], "net.pth of org/short came incomplete")
    refused(results[7], "org/gated is gated", "adapter.json")
    refused(results[8], "adapter.json of org/short came incomplete")
    refused(results[9], f"{SWINIR} of deepinv/swinir came incomplete or changed", "17,147,989")
    assert Path(results[10]["value"]).read_bytes() == wrong
    refused(results[11], "There is no repository org/nothing")
    refused(results[12], "adapter.safetensors of org/changed came incomplete or changed", "sha256")
    assert not list((tmp_path / "home").rglob("*.incomplete"))


# ---------------------------------------------------------------------------------------------------------- push


def test_push_sends_the_adapters_files_and_nothing_else(stub: StubHub, saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (saved / "optimizer.bin").write_bytes(b"private")
    (saved / ".adapter.lock").touch()
    save_file({"w": torch.ones(5)}, tmp_path / "tuned.safetensors")
    tuned = tmp_path / "tuned"
    save_adapter(tuned, an_adapter(), backbone_file=tmp_path / "tuned.safetensors", card="# Mine\n")
    stub.rights = {"a401": 401, "a403": 403, "a404": 404}
    options = {"private": True, "revision": "trial", "message": "A message"}
    calls = [call("push_folder", str(saved), "org/new"), call("push_folder", str(saved), "org/new", **options)]
    calls += [call("push_folder", str(tuned), "org/tuned")]
    calls += [call("push_folder", str(saved), f"{org}/new") for org in stub.rights]
    results = call_hub(stub.endpoint, tmp_path / "home", calls, HF_TOKEN="hf_token")
    address = f"{stub.endpoint}/org/new"
    assert [result.get("value") for result in results[:2]] == [address, f"{address}/tree/trial"], results
    card = model_card(load_adapter(saved), "org/new").encode()
    assert b'from_pretrained("org/new")' in card
    want = {name: (saved / name).read_bytes() for name in ("adapter.safetensors", "adapter.json")} | {"README.md": card}
    assert stub.commits[:2] == [want, want]
    assert stub.messages[:2] == [f"Add a refiner adapter (refine-wrap {__version__})", "A message"]
    assert [created.get("visibility", created.get("private")) for created in stub.created] in (
        [None, "private", None],
        [None, True, None],
    )
    assert ("POST", "/api/models/org/new/branch/trial") in stub.requests
    assert [path for _, path in stub.requests if "/commit/" in path] == [
        "/api/models/org/new/commit/main",
        "/api/models/org/new/commit/trial",
        "/api/models/org/tuned/commit/main",
    ]
    assert "Bearer hf_token" in stub.tokens
    # A person's card goes as it is, and a fine-tuned backbone goes along.
    assert set(stub.commits[2]) == {*FILES, "backbone.safetensors"}
    assert stub.commits[2]["README.md"] == b"# Mine\n"
    assert stub.commits[2]["backbone.safetensors"] == (tmp_path / "tuned.safetensors").read_bytes()
    for result, words in zip(results[3:], ("not logged in", "may not write", "no such organisation"), strict=True):
        refused(result, "Nothing was pushed to a40", words)
    assert len(stub.commits) == 3


def test_push_sends_a_trained_backbone(stub: StubHub, tmp_path: Path) -> None:
    body = load_backbone("NAFNet", options=NAFNET)
    recipe = Recipe.load("nafnet_denoise", ["name=mine", "licence=CC0-1.0"])
    folder = save_backbone(body, tmp_path, recipe, [{"name": "PSNR", "value": 30.0, "protocol": "p", "data": "d"}])
    (folder / "lora").mkdir()
    results = call_hub(stub.endpoint, tmp_path / "home", [call("push_folder", str(folder), "org/mine")], HF_TOKEN="t")
    assert results[0].get("value") == f"{stub.endpoint}/org/mine", results
    sent = stub.commits[0]
    assert set(sent) == {"mine.safetensors", "backbone.json", "README.md"}
    assert sent["mine.safetensors"] == (folder / "mine.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert 'load_backbone("hf://org/mine/mine.safetensors")' in card and "license: cc0-1.0" in card and "PSNR" in card
    assert stub.messages == [f"Add a trained backbone (refine-wrap {__version__})"]
    (folder / "backbone.json").write_text((folder / "backbone.json").read_text().replace(body.weights_hash(), "0" * 64))
    with pytest.raises(CheckpointError, match="other weights"):
        hub.push_folder(folder, "org/mine")
    (folder / "backbone.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        hub.push_folder(folder, "org/mine")


def test_push_of_a_broken_folder_asks_nobody(stub: StubHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="is not the name of a repository"):
        hub.push_folder(saved, "no-organisation")
    truncate(saved)
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with pytest.raises(CheckpointError, match="incomplete"):
        hub.push_folder(saved, "org/new")


# ---------------------------------------------------------------------------------------------- manifest and resources


def test_manifest_is_sound() -> None:
    listed = resources.manifest()
    assert {entry["repo"] for entry in listed["backbones"]} >= {"Acly/hat", "nyanko7/nafnet-models", "deepinv/swinir"}
    keys = {"name", "repo", "file", "revision", "bytes", "sha256", "licence", "verified", "note"}
    for entry in listed["backbones"]:
        assert set(entry) == keys, entry["name"]
        assert parse_reference(f"hf://{entry['repo']}/{entry['file']}").path == entry["file"]
        assert isinstance(entry["verified"], bool)
        assert entry["sha256"] is None or (len(entry["sha256"]) == 64 and int(entry["sha256"], 16))
    for entry in listed["local"]:
        assert {"name", "file", "bytes", "sha256", "licence", "card"} <= set(entry), entry["name"]
        assert (resources.weights_dir() / entry["card"]).is_file()
    names = [entry["name"] for part in listed.values() for entry in part]
    assert len(names) == len(set(names))
    assert [check for check in resources.verify_weights() if not check.ok] == []


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped weights with one file in it."""
    content = b"tensors" * 10
    entry = {"name": "tiny", "file": "tiny.safetensors", "bytes": 70, "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "tiny.safetensors").write_bytes(content)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "backbones": [], "local": [entry]}))
    monkeypatch.setattr(resources, "weights_dir", lambda: tmp_path)
    return tmp_path


def test_shipped_weights_are_verified(shipped: Path) -> None:
    path = shipped / "tiny.safetensors"
    assert resources.shipped_weights("tiny") == path
    assert [(check.name, check.ok) for check in resources.verify_weights()] == [("tiny", True)]
    with pytest.raises(CheckpointError, match=r"No weights named 'tinny'[^\0]*did you mean shipped:tiny\?"):
        resources.shipped_weights("tinny")
    for content, sentence in ((b"tensors" * 9, "incomplete"), (b"tensorz" * 10, "other contents"), (None, "no file")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(CheckpointError, match=sentence):
            resources.shipped_weights("tiny")
        (check,) = resources.verify_weights()
        assert not check.ok
        assert sentence in check.message


def test_damaged_manifest_says_what_to_do(shipped: Path) -> None:
    (shipped / "manifest.json").write_text('{"backbones": [')
    resources._manifest.cache_clear()
    with pytest.raises(RefineWrapError, match=r"manifest\.json is damaged[^\0]*force-reinstall"):
        resources.manifest()


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "adapters"
    place.mkdir()
    for name in ("nafnet_denoise.yaml", "nafnet_deblur.yaml", "swinir_x4.yaml", "recipe.schema.json"):
        (place / name).touch()
    monkeypatch.setattr(resources, "adapters_dir", lambda: place)
    monkeypatch.chdir(tmp_path)
    return place


def test_recipe_by_name_and_by_path(recipes: Path) -> None:
    assert resources.recipe_names() == ["nafnet_deblur", "nafnet_denoise", "swinir_x4"]
    assert resources.recipe_path("swinir_x4") == recipes / "swinir_x4.yaml"
    assert resources.recipe_path("swinir_x4.yaml") == recipes / "swinir_x4.yaml"
    (recipes.parent / "swinir_x4.yaml").touch()
    assert resources.recipe_path("swinir_x4.yaml") == Path("swinir_x4.yaml")
    assert resources.recipe_path("adapters/swinir_x4.yaml") == Path("adapters/swinir_x4.yaml")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nafnet_denoize", r"There is no recipe named 'nafnet_denoize'[^\0]*did you mean nafnet_denoise"),
        ("SwinIR_x4", r"did you mean swinir_x4"),
        ("qqqq", r"one of nafnet_deblur, nafnet_denoise, swinir_x4"),
        ("./swinir_x3.yaml", r"There is no recipe file ./swinir_x3.yaml[^\0]*did you mean swinir_x4"),
        ("mine.yml", r"There is no recipe file mine.yml"),
        ("./adapters", r"is a folder"),
    ],
)
def test_unknown_recipe(recipes: Path, name: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        resources.recipe_path(name)


@pytest.mark.parametrize("layout", ["installed", "checkout", "site-packages", "editable"])
def test_data_is_found_in_every_layout(layout: str, tmp_path: Path) -> None:
    """Inside the package, beside it in a checkout, through an import hook; never in somebody else's `adapters`."""
    package = tmp_path / "lib" / "refine_wrap"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("resources.py", "errors.py"):
        shutil.copy(ROOT / "refine_wrap" / name, package)
    place = {"installed": package, "editable": tmp_path / "src"}.get(layout, package.parent)
    for name, file in (("adapters", "x.yaml"), ("weights", "manifest.json")):
        (place / name).mkdir(parents=True)
        (place / name / file).write_text("{}")
    if layout == "checkout":
        (package.parent / "setup.cfg").touch()
    if layout == "editable":
        (package / "__init__.py").write_text(f"__path__ = [*__path__, {str(place)!r}]\n")
    code = "from refine_wrap.resources import *; print(adapters_dir()); print(weights_dir())"
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    if layout == "site-packages":
        assert "This installation has no adapters/*.yaml" in done.stderr
    else:
        assert [Path(line) for line in done.stdout.split()] == [place / "adapters", place / "weights"], done.stderr
