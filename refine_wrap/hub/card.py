"""The model card of an adapter: Markdown with the Hub's YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import HubError
from ..resources import known_backbone
from .adapter import FORMAT_VERSION, KINDS, WRAPPED, Adapter, as_document
from .reference import Reference, parse_reference

CARD_MARK = "<!-- card written by refine-wrap: it is written anew on each save; take this line out to keep your own -->"

_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail"),
}
ALONE = {
    "masks": ("refine_wrap.supervision", "load_mask_generator"),
    "scorer": ("refine_wrap.scorers", "load_scorer"),
    "codebook": ("refine_wrap.quality", "load_autoencoder"),
    "reconstructor": ("refine_wrap.reconstruction", "load_reconstructor"),
    "classifier": ("refine_wrap.analysis", "load_classifier"),
}
"""What has nothing to do with a backbone, and what loads it."""
_RESTRICTED = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)


def model_card(adapter: Adapter, name: str = "FOLDER_OR_ORG/NAME") -> str:
    """The card of an adapter, Markdown with the Hub's YAML front matter, from nothing but what the adapter records.

    Args:
        adapter: absolute paths in it are cut to their last part.
        name: how the loading example calls it: the Hub repository, if that is known.
    """
    record = as_document(adapter)
    title = name.rsplit("/", 1)[-1] if name != "FOLDER_OR_ORG/NAME" else f"{adapter.kind} adapter"
    parts = [
        f"# {title}",
        CARD_MARK,
        _what_it_is(record),
        "## Use\n\n" + _fenced(_snippet(record, name), "python"),
        *([] if adapter.kind in ALONE else ["## Backbone\n\n" + _about_backbone(record)]),
        "## Training data\n\n" + _about_data(record),
        "## Recipe\n\n" + (_fenced(_yaml(record["recipe"]), "yaml") if record["recipe"] else "None was recorded."),
        "## Metrics\n\n" + _about_metrics(record),
        "## Limits\n\n" + _limits(record),
        "## Licences\n\n" + _about_licences(record),
        f"Saved by refine-wrap {adapter.version or __version__}, format {FORMAT_VERSION}.",
    ]
    return _front_matter(record) + "\n" + "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    head: dict[str, Any] = {"library_name": "refine-wrap"}
    family = (record["backbone"] or {}).get("family")
    if record["kind"] == "scorer":  # the Hub has no task for it
        head["tags"] = ["refine-wrap", "image-quality-assessment", "scorer"]
    elif record["kind"] == "classifier":
        head["pipeline_tag"] = "image-classification"
        head["tags"] = ["refine-wrap", "classifier"]
    else:
        head["pipeline_tag"] = "image-to-image"
        head["tags"] = ["refine-wrap", "image-restoration", record["kind"], *([str(family).lower()] if family else [])]
    if record["licence"]:
        known = record["licence"].lower() in _HUB_LICENCES
        head["license"] = record["licence"].lower() if known else "other"
        if not known:
            head["license_name"] = record["licence"]
    reference = _hub_reference(record["backbone"])
    if reference:
        head["base_model"] = reference.repo
    return f"---\n{_yaml(head)}---\n"


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def _fenced(text: str, language: str) -> str:
    # A fence longer than any in the text: nothing inside can end the block.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _source(backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    source = (backbone or {}).get("source")
    return dict(source) if isinstance(source, Mapping) else {}


def _hub_reference(backbone: Mapping[str, Any] | None) -> Reference | None:
    weights = _source(backbone).get("weights")
    if isinstance(weights, str) and weights.startswith("hf://"):
        try:
            return parse_reference(weights)
        except HubError:
            return None  # a card is written for any record; loading it is what refuses a bad address
    return None


def _what_it_is(record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    text = f"This is {KINDS[record['kind']]}, made with refine-wrap."
    if backbone:
        family, scale = backbone.get("family") or "custom", backbone.get("scale", "?")
        made = "from" if record["kind"] == "backbone" else "for"
        text += f" It was made {made} a {family} backbone (scale x{scale})"
        if record["kind"] != "backbone":
            text += ", which is not part of it: the backbone's own weights stay as published"
        text += "."
    if record["kind"] in WRAPPED and record["config"].get("refiner"):
        text += f" Default strength: {record['strength']}."
    if "quality" in record["config"]:
        text += f" Default quality: {record['config']['quality']}."
    return text


def _snippet(record: Mapping[str, Any], name: str) -> str:
    if record["kind"] in ALONE:
        module, load = ALONE[record["kind"]]
        return f'from {module} import {load}\n\n{record["kind"]} = {load}("{name}")'
    if record["kind"] == "backbone" and "file" in record["config"]:
        loaded = f'RefineWrapper(load_backbone("hf://{name}/{record["config"]["file"]}"), refiner=None)'
        head = "from refine_wrap import RefineWrapper, load_backbone"
        return f'{head}\n\nmodel = {loaded}\nmodel.restore("photo.jpg", "restored.png")'
    if record["kind"] not in WRAPPED:
        return f'from refine_wrap.hub import load_adapter, resolve\n\nadapter = load_adapter(resolve("{name}"))'
    weights = str(_source(record["backbone"]).get("weights", ""))
    if weights.startswith(("hf://", "shipped:")):
        call, names = f'RefineWrapper.from_pretrained("{name}")', "RefineWrapper"
    else:
        local = weights or "YOUR_BACKBONE.safetensors"
        call = f'RefineWrapper.from_pretrained("{name}", backbone=load_backbone("{local}"))'
        names = "RefineWrapper, load_backbone"
    return f'from refine_wrap import {names}\n\nmodel = {call}\nmodel.restore("photo.jpg", "restored.png")'


def _about_backbone(record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    if not backbone and record["kind"] == "refiner":
        return "It goes with any restoration network: it sees nothing but the restored image."
    if not backbone:
        return "It belongs to no backbone."
    source = _source(backbone)
    rows = [
        ("family", backbone.get("family")),
        ("scale", backbone.get("scale")),
        ("architecture", source.get("arch")),
        ("weights from", source.get("weights") or source.get("file") or source.get("path")),
        ("sha256 of that file", source.get("sha256")),
        ("structure hash", backbone.get("structure")),
        ("weights hash", backbone.get("weights")),
    ]
    table = _table(("", ""), [(key, value) for key, value in rows if value is not None])
    if record["kind"] == "backbone":
        return table
    return table + "\n\nOnto a backbone of another structure it does not load; onto other weights only when asked to."


def _about_data(record: Mapping[str, Any]) -> str:
    if not record["data"]:
        return "None was recorded."
    rows = []
    for item in record["data"]:
        more = "; ".join(f"{key}: {value}" for key, value in item.items() if key not in ("name", "licence"))
        rows.append((item.get("name"), item.get("licence") or "not stated", more))
    return _table(("data", "licence", "more"), rows)


def _about_metrics(record: Mapping[str, Any]) -> str:
    if not record["metrics"]:
        return "None were recorded."
    keys = ("name", "value", "protocol", "data")
    rows = [tuple(_rounded(item.get(key, "not stated")) for key in keys) for item in record["metrics"]]
    return _table(("metric", "value", "protocol", "data"), rows) + "\n\nA figure holds for its protocol only."


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _limits(record: Mapping[str, Any]) -> str:
    recipe = record["recipe"] or {}
    if record["kind"] == "scorer":
        lines = ["It was trained for the distortions of its recipe; on others its order may be wrong."]
    elif record["kind"] == "classifier":
        lines = ["It takes every image for one of its classes, whatever has happened to it."]
    else:
        lines = ["It was trained for the degradations of its recipe; on others it may add detail that was never there."]
    if recipe.get("objective") == "refine" and not recipe.get("supervision"):
        lines.append("It was trained toward the ground truth at every strength: the strength changes little.")
    elif record["kind"] == "refiner":
        lines.append("A higher strength asks for more perceptual detail at the cost of fidelity; 0 keeps fidelity.")
    if record["scorers"]:
        names = ", ".join(record["scorers"])
        lines.append(f"It was trained on these scorers, whose scores therefore say nothing about it: {names}.")
    if not record["metrics"]:
        lines.append("Nothing was measured when it was saved.")
    if any(_RESTRICTED.search(str(item.get("licence") or "")) for item in record["data"]):
        lines.append("Trained on data for research or non-commercial use: treat these weights as research-only.")
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _about_licences(record: Mapping[str, Any]) -> str:
    this = "this backbone" if record["kind"] == "backbone" else "this adapter"
    rows: list[tuple[Any, ...]] = [(this, record["licence"] or "not stated")]
    backbone = record["backbone"]
    if backbone and record["kind"] != "backbone":
        reference = _hub_reference(backbone)
        listed = known_backbone(reference.repo, reference.path) if reference and reference.path else None
        licence = _source(backbone).get("licence") or (listed or {}).get("licence")
        rows.append(
            (f"backbone ({backbone.get('family') or 'custom'})", licence or "not recorded: see where it comes from")
        )
    rows += [(f"data {item.get('name')}", item.get("licence") or "not stated") for item in record["data"]]
    rows += [(f"scorer {name}", "the scorer's own: see where it comes from") for name in record["scorers"]]
    return _table(("part", "licence"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def is_our_card(path: Path) -> bool:
    """Whether a card may be replaced: it is ours, or there is none."""
    return not path.is_file() or CARD_MARK.encode() in path.read_bytes()
