"""The table of figures on a page: plain HTML, so that it is there without JavaScript too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..evaluation import Protocol
from .page import count

Figure = float | str | None
"""A number, or why there is none; None where there is nothing to measure (the reference itself)."""


@dataclass
class Row:
    """One picture of the table."""

    name: str
    figures: list[list[Figure]]
    """[source][protocol]"""
    item: int | None = None
    """Its place among the pictures that are on the page, if it is there."""


def in_words(protocols: Sequence[Protocol], figures: Sequence[Figure]) -> str:
    """The numbers of one picture in a line, e.g. "31.20 dB · 0.9123"; empty where there are none."""
    return " · ".join(
        _text(protocol, value) + (" dB" if protocol.metric == "PSNR" else "")
        for protocol, value in zip(protocols, figures, strict=True)
        if isinstance(value, float)
    )


def table(
    rows: Sequence[Row], labels: Sequence[str], reference: int | None, protocols: Sequence[Protocol], remark: str = ""
) -> str:
    """Each picture's figures against the reference, their means, and the protocol, as HTML."""
    if reference is None:
        return _section(_facts(["No reference was given, so PSNR and SSIM are not measured."]))
    notes = [f"Against {labels[reference]}. {'; '.join(map(str, protocols))}. Higher is better.", remark]
    shown = []
    for source, label in enumerate(labels):
        values = [value for row in rows for value in row.figures[source]]
        if any(isinstance(value, float) for value in values):
            shown.append(source)
        elif source != reference:
            reasons = sorted({value for value in values if isinstance(value, str)})
            notes.append(f"{label} is not measured: {', '.join(reasons)} in every picture.")
    if not shown:
        return _section(_facts(notes))
    means = []
    for source, label in enumerate(labels):
        columns = [[row.figures[source][metric] for row in rows] for metric in range(len(protocols))]
        means.append([_mean(column) for column in columns])
        if source in shown:
            notes += _mean_notes(label, protocols, columns)
    body = _row(f"Mean of {len(rows)}", means, shown, protocols, ' class="mean"')
    for row in rows:
        name = escape(row.name)
        linked = name if row.item is None else f'<a href="#{row.item + 1}">{name}</a>'
        attributes = "" if row.item is None else f' data-item="{row.item}"'
        body += _row(linked, row.figures, shown, protocols, attributes)
    head = _head([labels[source] for source in shown], protocols)
    return _section(
        '<h2 class="quiet">Figures</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="PSNR and SSIM of each picture">'
        f"<table>{head}<tbody>{body}</tbody></table></div>{_facts(notes)}"
    )


def _section(html: str) -> str:
    return f'<section class="figures">{html}</section>'


def _facts(notes: Sequence[str]) -> str:
    return f'<p class="facts">{escape(" ".join(filter(None, notes)))}</p>'


def _head(labels: Sequence[str], protocols: Sequence[Protocol]) -> str:
    groups = "".join(f'<th scope="colgroup" colspan="{len(protocols)}">{escape(label)}</th>' for label in labels)
    units = {"PSNR": "PSNR (dB)"}
    metrics = "".join(f'<th scope="col">{units.get(protocol.metric, protocol.metric)}</th>' for protocol in protocols)
    first = '<th class="name" rowspan="2" scope="col">Picture</th>'
    return f"<thead><tr>{first}{groups}</tr><tr>{metrics * len(labels)}</tr></thead>"


def _row(
    head: str, figures: Sequence[Sequence[Figure]], shown: Sequence[int], protocols: Sequence[Protocol], attributes: str
) -> str:
    best = [_best([figures[source][metric] for source in shown]) for metric in range(len(protocols))]
    cells = "".join(
        _cell(protocol, figures[source][metric], best[metric])
        for source in shown
        for metric, protocol in enumerate(protocols)
    )
    return f'<tr{attributes}><th class="name" scope="row">{head}</th>{cells}</tr>'


def _cell(protocol: Protocol, value: Figure, best: float | None) -> str:
    text = escape(_text(protocol, value))
    if not isinstance(value, float):
        return f'<td class="missing">{text}</td>'
    return f'<td class="best">{text}<span class="quiet"> (best)</span></td>' if value == best else f"<td>{text}</td>"


def _text(protocol: Protocol, value: Figure) -> str:
    if not isinstance(value, float):
        return value or ""
    return "∞" if math.isinf(value) else f"{value:.2f}" if protocol.metric == "PSNR" else f"{value:.4f}"


def _best(values: Sequence[Figure]) -> float | None:
    """The highest, if there is something to choose from."""
    numbers = {value for value in values if isinstance(value, float)}
    return max(numbers) if len(numbers) > 1 else None


def _finite(values: Sequence[Figure]) -> list[float]:
    return [value for value in values if isinstance(value, float) and math.isfinite(value)]


def _mean(values: Sequence[Figure]) -> Figure:
    """Over the finite ones: one identical picture would make the mean PSNR infinite and hide the rest."""
    finite = _finite(values)
    if finite:
        return sum(finite) / len(finite)
    return math.inf if math.inf in values else "none"


def _mean_notes(label: str, protocols: Sequence[Protocol], columns: Sequence[Sequence[Figure]]) -> list[str]:
    """What a reader must know before comparing this mean with another."""
    notes = []
    for protocol, values in zip(protocols, columns, strict=True):
        identical = sum(value == math.inf for value in values)
        absent = sum(isinstance(value, str) for value in values)
        if identical and _finite(values):
            notes.append(f"{label}: {count(identical, 'identical picture')} not in the mean {protocol.metric}.")
        if absent:
            notes.append(f"{label}: mean {protocol.metric} over {len(values) - absent} of {len(values)} pictures only.")
    return notes
