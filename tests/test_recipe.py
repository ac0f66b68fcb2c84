"""Recipes: strict, with the line of what is wrong; the shipped ones; the JSON schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_wrap.errors import RecipeError
from refine_wrap.recipe import Recipe, recipe_schema

ADAPTERS = Path(__file__).resolve().parent.parent / "adapters"
SHIPPED = sorted(path.stem for path in ADAPTERS.glob("*.yaml"))

GOOD = """\
version: 1
name: small
objective: restore
backbone:
  arch: NAFNet
  options: {width: 8}
data:
  train:
    gt: [photos]
  degradation:
    scale: 1
    noise:
      sigma: [5, 25]
  crop: 64
train:
  steps: 100
  learning_rate: 1e-4
losses:
  l1: 1.0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(write(folder, text), overrides)
    assert len(str(caught.value).splitlines()) <= 3
    return caught.value


def test_a_good_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, GOOD))
    assert recipe.train.learning_rate == 1e-4 and recipe.train.steps == 100
    assert recipe.data.degradation is not None and recipe.data.degradation.noise is not None
    assert recipe.data.degradation.noise.sigma == [5, 25]
    assert recipe.folder == Path("runs/small")


# what is written instead of what, the line, what the message says, what it expects
BAD = [
    ("  steps: 100", "  step: 100", 16, "train.step is not a known key", "train.steps"),
    ("  learning_rate: 1e-4", "  learning_rate: fast", 17, "train.learning_rate is 'fast'", "above 0 and at most 1"),
    ("  learning_rate: 1e-4", "  learning_rate: -1e-4", 17, "train.learning_rate is -0.0001", "above 0"),
    ("  learning_rate: 1e-4", "  learning_rate: .nan", 17, "train.learning_rate is nan", "a number"),
    ("  learning_rate: 1e-4", "  learning_rate: .inf", 17, "train.learning_rate is inf", "at most 1"),
    ("  steps: 100", "  steps: 1.5", 16, "train.steps is 1.5", "a whole number, at least 1"),
    ("  steps: 100", "  steps: true", 16, "train.steps is True", "a whole number"),
    ("  steps: 100", "  steps: '100'", 16, "train.steps is '100'", "a whole number"),
    ("  steps: 100", "  steps:", 16, "train.steps is nothing (null)", "a whole number"),
    ("version: 1", "version: 2", 1, "version is 2", "1"),
    ("name: small", "name: a/b", 2, "name is 'a/b'", "matches"),
    ("objective: restore", "objective: denoise", 3, "objective is 'denoise'", "one of restore, refine"),
    ("  arch: NAFNet", "  architecture: NAFNet", 5, "backbone.architecture is not a known key", "backbone.arch"),
    ("      sigma: [5, 25]", "      sigma: [25, 5]", 13, "data.degradation.noise.sigma is [25, 5]", "low <= high"),
    ("      sigma: [5, 25]", "      sigma: [5, 2500]", 13, "noise.sigma is [5, 2500]", "200"),
    ("      sigma: [5, 25]", "      sigma: [5, 10, 25]", 13, "noise.sigma is [5, 10, 25]", "[low, high]"),
    ("      sigma: [5, 25]", "      sgima: [5, 25]", 13, "noise.sgima is not a known key", "noise.sigma"),
    ("    scale: 1", "    scale: 5", 11, "data.degradation.scale is 5", "at least 1 and at most 4"),
    ("    scale: 1", "    scale: 3", 14, "data.crop is 64", "a multiple of data.degradation.scale, 3"),
    (
        "    scale: 1",
        "    scale: 1\n    also: [{scale: 2}]",
        12,
        "a kind of degradation has scale 2, the first has 1",
        "1",
    ),
    ("    scale: 1", "    scale: 1\n    also:\n      - also: [{}]", 13, "a kind of degradation has kinds", "one list"),
    (
        "    scale: 1",
        "    scale: 1\n    also:\n      - blur: {sgima: 1}",
        13,
        "also.0.blur.sgima is not",
        "also.0.blur.sigma",
    ),
    ("  crop: 64", "  crop: 64\n  flips: no", 15, "data.flips is 'no'", "true or false"),
    ("  crop: 64", "  crop: 64\n  crop: 32", 15, "data.crop is given twice", "line 14"),
    ("  l1: 1.0", "  l1: 0", 18, "no loss has a weight above 0", "l1, charbonnier"),
    ("  l1: 1.0", "  l3: 1.0", 19, "losses.l3 is not a known key", "losses.l1"),
    ("  l1: 1.0", "  perceptual: 1.0", 19, "losses.perceptual is not a known key", "l1, charbonnier, mse, fft"),
    ("    gt: [photos]", "    gt: []", 9, "data.train.gt is []", "a list"),
    ("    gt: [photos]", "    gt:\n      - photos\n      - 7", 11, "data.train.gt.1 is 7", "text"),
    ("    gt: [photos]", "    gt: [photos]\n    lq: [a, b]", 10, "1 gt and 2 lq folders", "one lq folder for each"),
    ("    gt: [photos]", "    gt: [photos]\n    lq: [low]", 11, "both given", "one of the two"),
    ("    gt: [photos]", "    gt: [photos\n    lq: x", 10, "not YAML", None),
    ("  crop: 64", "\tcrop: 64", 14, "not YAML", None),
    ("name: small", "name: !!python/object:os.system x", 2, "name has the tag", "without a tag"),
    ("  steps: 100", "", 15, "train.steps is missing", "train.steps: a whole number"),
    ("losses:\n  l1: 1.0", "crop: 64\nlosses:\n  l1: 1.0", 18, "crop is not a known key", "data.crop"),
    ("  learning_rate: 1e-4", "  batch_size: 8\n  accumulate: 3", 18, "train.accumulate is 3", "divisor"),
]


@pytest.mark.parametrize(("old", "new", "line", "came", "expected"), BAD, ids=[f"{b[2]} {b[1].strip()}" for b in BAD])
def test_a_bad_recipe_names_the_line(
    tmp_path: Path, old: str, new: str, line: int, came: str | None, expected: str | None
) -> None:
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    if came is None:
        Recipe.load(write(tmp_path, text))
        return
    error = refused(tmp_path, text)
    assert f"recipe.yaml:{line}: " in error.came and came in error.came
    if expected is not None:
        assert expected in str(error.expected)


def test_several_errors_name_all_lines(tmp_path: Path) -> None:
    error = refused(tmp_path, GOOD.replace("steps: 100", "steps: 0").replace("crop: 64", "crop: 4"))
    assert "recipe.yaml:14: data.crop is 4" in error.came
    assert "recipe.yaml:16" in str(error.next_step)


@pytest.mark.parametrize("word", ["no", "off", "n", "yes", "on"])
def test_words_for_booleans_get_a_hint(tmp_path: Path, word: str) -> None:
    error = refused(tmp_path, GOOD.replace("  crop: 64", f"  crop: 64\n  flips: {word}"))
    assert error.next_step == f"write {'true' if word in ('yes', 'on') else 'false'}"


def test_words_are_words_and_numbers_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 would read False, 8, 90 and a date."""
    text = GOOD.replace("name: small", "name: 'no'\ndescription: 2020-01-01").replace(
        "{width: 8}", "{a: 010, b: 1:30, c: 1E3, d: off}"
    )
    recipe = Recipe.load(write(tmp_path, text))
    assert recipe.name == "no" and recipe.description == "2020-01-01"
    assert recipe.backbone.options == {"a": 10, "b": "1:30", "c": 1000.0, "d": "off"}


@pytest.mark.parametrize(
    ("content", "line"), [("", 1), ("- a\n- b\n", 1), ("just words", 1), ("a: 1\n---\nb: 2\n", 2), ("a: *nowhere\n", 1)]
)
def test_what_is_no_recipe(tmp_path: Path, content: str, line: int) -> None:
    assert f"recipe.yaml:{line}" in refused(tmp_path, content).came


def test_aliases_that_never_end_are_refused(tmp_path: Path) -> None:
    assert "nested" in refused(tmp_path, "a: &a [*a]\n").came
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{n}: &{n} [{','.join(['*' + m] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "too large" in refused(tmp_path, laughs).came


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80\x81")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(path)


# ---------------------------------------------------------------- overrides


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = Recipe.load(
        path,
        [
            "train.steps=7",
            "train.learning_rate=3e-5",
            "data.train.gt=[a, b]",
            "data.flips=false",
            "data.degradation.noise.sigma=9",
            "data.degradation.jpeg.quality=[50, 60]",
            "backbone.options={width: 16}",
            "train.gradient_clip=null",
            "name=x",
        ],
    )
    assert recipe.train.steps == 7 and recipe.train.learning_rate == 3e-5 and recipe.data.train.gt == ["a", "b"]
    assert recipe.data.flips is False and recipe.backbone.options == {"width": 16} and recipe.name == "x"
    assert recipe.data.degradation is not None and recipe.data.degradation.noise is not None
    assert recipe.data.degradation.noise.sigma == [9, 9]
    assert recipe.data.degradation.jpeg is not None and recipe.data.degradation.jpeg.quality == [50, 60]


def test_a_degradation_by_the_name_of_its_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    wanted = Recipe.load("low_light").data.degradation
    recipe = Recipe.load(path, ["data.degradation=low_light"])
    assert wanted is not None and recipe.data.degradation == wanted
    assert Recipe.from_dict(recipe.to_dict()) == recipe and recipe.to_dict()["data"]["degradation"]["light"]
    for wrong in ("nothing_like_it", "quality"):
        with pytest.raises(RecipeError, match=wrong):
            Recipe.load(path, [f"data.degradation={wrong}"])


@pytest.mark.parametrize("name", ["swinir_x4", "hat_x4", "edsr_x4", "esrgan_x4"])
@pytest.mark.parametrize(
    "how", [[], ["objective=restore"], ["objective=restore", "trainable=[lora]"]], ids=["refiner", "full", "lora"]
)
def test_super_resolvers_take_the_undertrained_degradation(name: str, how: list[str]) -> None:
    recipe = Recipe.load(name, ["data.degradation=undertrained_x4", *how])
    assert recipe.data.degradation is not None and recipe.data.degradation.reconstruct is not None
    assert recipe.data.degradation.checkpoints() == ["shipped:vqvae2"] and recipe.data.degradation.also


@pytest.mark.parametrize(
    ("override", "came", "expected"),
    [
        ("train.step=3", "override train.step=3: train.step is not a known key", "train.steps"),
        ("train.steps=many", "override train.steps=many: train.steps is 'many'", "a whole number"),
        ("train.steps", "The override 'train.steps'", "key=value"),
        ("=3", "The override '=3'", "key=value"),
        ("train..steps=3", "The override", "key=value"),
        ("train.steps.more=3", "train.steps is 100, which has no keys", None),
        ("data.crop=[", "not YAML", None),
        ("data.degradation.scale=3", "data.crop is 64", "a multiple of"),
        ("data={}", "override data={}: data.train is missing", None),
        ("trian.steps=3", "trian is not a known key", "train"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, came: str, expected: str | None) -> None:
    error = refused(tmp_path, GOOD, override)
    assert came in error.came
    assert expected is None or expected in str(error.expected)


def test_an_override_given_twice_is_refused(tmp_path: Path) -> None:
    """A shell makes two of `data.train.gt={a,b}`; the last one alone would count."""
    path = write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"data\.train\.gt is given twice") as caught:
        Recipe.load(path, ["data.train.gt=a", "data.train.gt=b"])
    assert "quotes" in str(caught.value)
    assert Recipe.load(path, ["train.steps=7", "train.steps=7"]).train.steps == 7


def test_an_override_repairs_the_file(tmp_path: Path) -> None:
    assert Recipe.load(write(tmp_path, GOOD.replace("steps: 100", "steps: 0")), ["train.steps=5"]).train.steps == 5


# ---------------------------------------------------------------- paths, copies, schema


def test_home_is_expanded_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    recipe = Recipe.load(
        write(tmp_path, GOOD), ["data.train.gt=[~/a, b]", "output=~/run", "backbone.weights=hf://o/n/f.pth"]
    )
    assert recipe.data.train.gt == [str(tmp_path / "a"), "b"] and recipe.folder == tmp_path / "run"
    assert recipe.backbone.weights == "hf://o/n/f.pth"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name or name == "custom_template"
    again = Recipe.load(write(tmp_path, recipe.to_yaml()))
    assert again == recipe and Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_shipped_ones_are_all_there() -> None:
    wanted = {"swinir_x4", "hat_x4", "nafnet_denoise", "nafnet_deblur", "esrgan_x4", "edsr_x4", "custom_template"}
    assert wanted <= set(SHIPPED)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 10**8),
    rate=st.floats(1e-12, 1.0),
    crop=st.integers(8, 2048),
    low=st.floats(0, 100),
    width=st.floats(0, 100),
    clip=st.one_of(st.none(), st.floats(1e-6, 1e6)),
)
def test_any_valid_values_survive_a_round_trip(
    steps: int,
    rate: float,
    crop: int,
    low: float,
    width: float,
    clip: float | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values = yaml.safe_load(GOOD.replace("1e-4", "0.1"))
    values["train"] |= {"steps": steps, "learning_rate": rate, "gradient_clip": clip}
    values["data"]["crop"] = crop
    values["data"]["degradation"]["noise"]["sigma"] = [low, low + width]
    recipe = Recipe.from_dict(values)
    assert Recipe.load(write(tmp_path_factory.getbasetemp(), recipe.to_yaml())) == recipe


def test_the_schema_file_is_in_step() -> None:
    """After a change of the models: write `recipe_schema()` to adapters/recipe.schema.json again."""
    assert json.loads((ADAPTERS / "recipe.schema.json").read_text(encoding="utf-8")) == recipe_schema()


def test_every_key_is_described() -> None:
    schema = recipe_schema()
    for part in (schema, *schema["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            # Where the words are those of the section itself, pydantic gives them once.
            section = schema["$defs"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
            assert field.get("description") or section.get("description"), f"{part['title']}.{name}"


def test_loading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from refine_wrap.recipe import Recipe; Recipe.load('demo_denoiser'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, cwd=ADAPTERS.parent, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
