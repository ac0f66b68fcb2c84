"""What lies beside the code: shipped recipes (`adapters/`), shipped weights and their manifest (`weights/`).

Both are folders of data without Python. Installed they lie inside the package (`refine_wrap/adapters`,
`refine_wrap/weights`), in a checkout beside it. Nothing here imports torch or touches the network.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import CheckpointError, RecipeError, RefineWrapError

RECIPE_SUFFIXES = (".yaml", ".yml")


def adapters_dir() -> Path:
    """The folder of shipped recipes.

    Raises:
        RefineWrapError: the installation is incomplete.
    """
    return _data_dir("adapters", "*.yaml")


def weights_dir() -> Path:
    """The folder of shipped weights, with `manifest.json`.

    Raises:
        RefineWrapError: the installation is incomplete.
    """
    return _data_dir("weights", "manifest.json")


def _data_dir(name: str, must_hold: str) -> Path:
    for place in _places(name):
        # An empty folder can be left over from an uninstalled version: what must lie there decides.
        if place.is_dir() and any(place.glob(must_hold)):
            return place
    raise RefineWrapError(
        f"This installation has no {name}/{must_hold}",
        f"the package's data in {Path(__file__).resolve().parent / name}",
        "pip install --force-reinstall refine-wrap",
    )


def _places(name: str) -> Iterator[Path]:
    package = Path(__file__).resolve().parent
    # A folder inside the package, or one that an editable installation maps there through an import hook.
    spec = importlib.util.find_spec(f"{__package__}.{name}")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place)
    # Only a checkout has setup.cfg beside the package. In site-packages, `adapters` is somebody else's.
    if (package.parent / "setup.cfg").is_file():
        yield package.parent / name


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in adapters_dir().iterdir() if path.suffix in RECIPE_SUFFIXES)


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe, given by its path or by the name of a shipped one (`nafnet_denoise`).

    Raises:
        RecipeError: there is no such file, or no shipped recipe of that name; the nearest ones are named.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and (isinstance(name_or_path, Path) or any(sign in text for sign in "/\\")):
        raise RecipeError(f"The recipe {text} is a folder", "a YAML file, or the name of a shipped recipe")
    names = recipe_names()
    bare = path.stem if path.suffix in RECIPE_SUFFIXES else text
    looks_like_path = isinstance(name_or_path, Path) or any(sign in text for sign in "/\\~")
    if not looks_like_path and bare in names:
        files = [adapters_dir() / f"{bare}{end}" for end in RECIPE_SUFFIXES]
        return next(file for file in files if file.is_file())
    near = difflib.get_close_matches(bare.rsplit("/", 1)[-1].lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`refine-wrap recipe list` names them"
    if looks_like_path or path.suffix in RECIPE_SUFFIXES:
        raise RecipeError(f"There is no recipe file {text}", "a YAML file, or one of " + ", ".join(names), hint)
    raise RecipeError(f"There is no recipe named {text!r}", "one of " + ", ".join(names), hint)


def manifest() -> dict[str, list[dict[str, Any]]]:
    """`weights/manifest.json`: `{"backbones": [...], "local": [...]}`.

    `backbones` are published weights on the Hub: name, repo, file, revision, bytes, sha256, licence (each None where it
    is not known), verified (whether bytes and sha256 were checked against the file itself) and note. `local` are the
    files that come with the package: name, file, bytes, sha256, licence, card.

    Raises:
        RefineWrapError: the file is missing or damaged.
    """
    return _manifest(weights_dir())


@lru_cache(maxsize=4)
def _manifest(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / "manifest.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {"backbones": list(document["backbones"]), "local": list(document["local"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefineWrapError(
            f"{path} is damaged ({error})", "the manifest of this version", "pip install --force-reinstall refine-wrap"
        ) from None


def known_backbone(repo: str, file: str) -> dict[str, Any] | None:
    """The manifest's entry of a published file on the Hub, None if it is not listed."""
    return next((entry for entry in manifest()["backbones"] if (entry["repo"], entry["file"]) == (repo, file)), None)


def shipped_weights(name: str) -> Path:
    """The file of weights that come with the package, by its name in the manifest (`shipped:NAME`), verified.

    Raises:
        CheckpointError: there is none of that name, or the file is missing or damaged.
    """
    entries = {str(entry["name"]): entry for entry in manifest()["local"]}
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=2, cutoff=0.5)
        raise CheckpointError(
            f"No weights named {name!r} come with this package",
            "one of " + ", ".join(sorted(entries)) if entries else "a checkpoint's path; this version ships none",
            f"did you mean {' or '.join('shipped:' + word for word in near)}?" if near else None,
        )
    path = weights_dir() / entries[name]["file"]
    verify_file(path, entries[name])
    return path


def verify_file(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Check a file against the `bytes` and `sha256` of a manifest entry; what the entry leaves open is not checked.

    Raises:
        CheckpointError: the file is missing, has another size or other bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}", f"{entry.get('file', path.name)} as listed in the manifest")
    size, wanted = path.stat().st_size, entry.get("bytes")
    if wanted is not None and size != wanted:
        state = "incomplete" if size < wanted else "another file"
        raise CheckpointError(f"{path} is {state}: {size:,} bytes", f"{wanted:,} bytes", "download or install it again")
    digest = entry.get("sha256")
    if digest and (found := file_digest(path)) != digest:
        raise CheckpointError(f"{path} has other contents: sha256 {found}", str(digest), "download or install it again")


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class WeightCheck:
    """What `verify_weights` found out about one shipped file."""

    name: str
    path: Path
    ok: bool
    message: str
    """"" if it is whole."""


def versions(*packages: str) -> dict[str, str]:
    """What a result depends on: this package, Python, and those of `packages` that are installed."""
    import platform
    import sys
    from importlib import metadata

    from . import __version__

    found = {"refine-wrap": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            # What is loaded knows its build, such as torch's "+cu126"; what is installed does not.
            found[name] = str(getattr(sys.modules.get(name), "__version__", None) or metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def verify_weights() -> list[WeightCheck]:
    """Check every file that comes with the package against the manifest, without any network (for `doctor`)."""
    checks = []
    for entry in manifest()["local"]:
        path = weights_dir() / entry["file"]
        try:
            verify_file(path, entry)
            checks.append(WeightCheck(entry["name"], path, True, ""))
        except CheckpointError as error:
            checks.append(WeightCheck(entry["name"], path, False, error.came))
    return checks
