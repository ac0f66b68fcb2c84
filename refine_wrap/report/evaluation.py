"""The page of an evaluation: what counts and what does not, the figures, and the pictures behind them."""

from __future__ import annotations

from html import escape

from ..evaluation import Evaluation
from ..evaluation.result import Image, Measure
from ..evaluation.words import (
    HEAD,
    KEY,
    TEXTURE_HEAD,
    flag_lines,
    judge_lines,
    lines,
    mean_notes,
    texture_lines,
)
from ..folder import PathLike, atomic_path
from ..images import Picture
from .gallery import Gallery
from .html import css_class, omitted, scroll, section, text_row, text_table
from .page import COMPLETE, count, page_path, render


def evaluation_page(evaluation: Evaluation, out: PathLike, *, title: str | None = None, overwrite: bool = True) -> None:
    """Write an evaluation as one self-contained HTML page.

    The pictures are those of each candidate's best, median and worst image, read again from where they lie. What does
    not count is greyed, with the reason, and has no win rate.

    Args:
        evaluation: as `evaluate` gave it.
        out: the page, `.html`; missing parent folders are made.
        title: heading of the page.
        overwrite: write over an existing page.

    Raises:
        DataError: another suffix.
        OutputError: the page cannot be written.
        RefineWrapError: a picture cannot be read any more.
    """
    page = page_path(out, overwrite)
    gallery = _gallery(evaluation)
    parts = {
        "facts": escape(_facts(evaluation)),
        "summary": _summary(evaluation),
        "table": _images(evaluation, {item["image"]: number for number, item in enumerate(gallery.items)}),
        "left_out": omitted(evaluation.left_out, "image", "was left out everywhere", "were left out everywhere"),
        "footer": escape(_footer(evaluation, gallery)),
    }
    html = render(title or "Evaluation", gallery.data(), gallery.payloads, parts)
    with atomic_path(page) as temporary:
        temporary.write_bytes(html)


# ---------------------------------------------------------------- pictures


def _gallery(evaluation: Evaluation) -> Gallery:
    places = evaluation.places
    # Baseline and candidate first: these two are what the viewer opens with.
    sides = [*places.outputs, *([places.lq] if places.lq else []), *([places.gt] if places.gt else [])]
    labels = [place.label for place in sides]
    gallery = Gallery(labels, len(labels) - 1 if places.gt else None)
    for name, roles in _chosen(evaluation).items():
        if gallery.full:
            break
        image = next(image for image in evaluation.images if image.name == name)
        figures = [_in_words(evaluation, image, number) for number in range(len(image.outputs))]
        figures += [""] * (len(sides) - len(figures))
        pictures: list[Picture] = [place.read(name) for place in sides]
        number = gallery.add(f"{name}: {', '.join(roles)}", pictures, figures)
        gallery.items[number]["image"] = name
    return gallery


def _chosen(evaluation: Evaluation) -> dict[str, list[str]]:
    """Images to show, and what each stands for."""
    found: dict[str, list[str]] = {}
    several = len(evaluation.candidates) > 1
    for candidate in evaluation.candidates:
        for role, name in candidate.shown.items():
            found.setdefault(name, []).append(f"{role} of {candidate.label}" if several else role)
    return found


def _in_words(evaluation: Evaluation, image: Image, place: int) -> str:
    """The figures under a picture: the metrics', or what images are ranked by."""
    shown = [measure for measure in evaluation.measures if measure.kind == "metric"]
    return " · ".join(
        measure.in_words(image.outputs[place].figures[measure.name]) + (f" {measure.unit}" if measure.unit else "")
        for measure in shown or [evaluation.measure(evaluation.ranked_by)]
    )


# ---------------------------------------------------------------- text


def _facts(evaluation: Evaluation) -> str:
    facts = [
        count(len(evaluation.images), "image"),
        f"baseline {evaluation.baseline}",
        f"{count(len(evaluation.candidates), 'candidate')}: {', '.join(evaluation.labels[1:])}",
    ]
    if evaluation.left_out:
        facts.append(f"{len(evaluation.left_out)} left out")
    if evaluation.unused:
        facts.append(f"{evaluation.unused} not in every folder, not used")
    return " · ".join(facts)


def _summary(evaluation: Evaluation) -> str:
    sections = [_candidate(evaluation, place) for place in range(1, len(evaluation.labels))]
    judges = judge_lines(evaluation)
    if judges:
        rows = [
            text_row(cells[:-1], void=measure.gate is not None, rest=(cells[-1], len(cells)))
            for measure, cells in judges
        ]
        head = ("Judge", "Mean of ground truth", "Mean of input", "Validity")
        note = "A judge counts where it prefers the ground truth to the input on at least 70% of the pairs."
        sections.append(section("Judges", text_table(head, rows, "Judges"), [note]))
    rows = [text_row(cells) for cells in texture_lines(evaluation)]
    settings = evaluation.settings
    notes = [f"High frequency: {settings['high_frequency']}. Noise: {settings['noise']}. Medians over the images."]
    sections.append(section("Texture", text_table(TEXTURE_HEAD, rows, "Texture"), notes))
    if evaluation.candidates[0].shown:
        gated = evaluation.measure(evaluation.ranked_by).gate
        by = f"{evaluation.ranked_by}{f' ({gated}, not counted)' if gated else ''}"
        text = f"Best, median and worst image of each candidate, by its gain over the baseline in {by}."
        sections.append(f'<h2>Pictures</h2><p class="facts">{escape(text)}</p>')
    return "".join(sections)


def _candidate(evaluation: Evaluation, place: int) -> str:
    candidate = evaluation.candidates[place - 1]
    rows = []
    for line in lines(evaluation, place):
        if line.reason is None:
            rows.append(text_row((*line.cells, line.verdict), css=line.verdict))
        else:
            rows.append(text_row(line.cells, void=True, rest=(f"not counted: {line.reason}", len(HEAD) + 1)))
    flagged = "".join(f"<li>{escape(text)}</li>" for text in flag_lines(candidate))
    warning = f'<ul class="notice warn flags">{flagged}</ul>' if flagged else ""
    notes = [KEY, *mean_notes(evaluation, place)]
    if candidate.trained_on:
        notes.append(f"Trained on {', '.join(candidate.trained_on)}.")
    title = f"{candidate.label} against {evaluation.baseline}"
    return section(title, warning + text_table((*HEAD, "Verdict"), rows, title), notes)


def _images(evaluation: Evaluation, items: dict[str, int]) -> str:
    """Each image's figures; a column that counts for no candidate, or not for its own, is greyed."""
    measures = evaluation.measures
    voids = [[_void(evaluation, measure, place) for measure in measures] for place in range(len(evaluation.labels))]
    groups = "".join(
        f'<th scope="colgroup" colspan="{len(measures)}">{escape(label)}</th>' for label in evaluation.labels
    )
    columns = "".join(
        f'<th scope="col"{css_class("void" * void)}>{escape(_column(measure))}{_NOT_COUNTED if void else ""}</th>'
        for own in voids
        for measure, void in zip(measures, own, strict=True)
    )
    first = '<th class="name" rowspan="2" scope="col">Image</th>'
    body = ""
    for image in evaluation.images:
        name, item = escape(image.name), items.get(image.name)
        linked = name if item is None else f'<a href="#{item + 1}">{name}</a>'
        cells = "".join(
            f"<td{css_class('void' if void else '')}>{escape(measure.in_words(seen.figures[measure.name]))}</td>"
            for seen, own in zip(image.outputs, voids, strict=True)
            for measure, void in zip(measures, own, strict=True)
        )
        attributes = "" if item is None else f' data-item="{item}"'
        body += f'<tr{attributes}><th class="name" scope="row">{linked}</th>{cells}</tr>'
    table = f"<table><thead><tr>{first}{groups}</tr><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    protocols = "; ".join(measure.protocol for measure in measures)
    return section("Each image", scroll(table, "Figures of each image"), [f"{protocols}."])


def _void(evaluation: Evaluation, measure: Measure, place: int) -> bool:
    if place == 0:
        return all(measure.name in candidate.not_counted for candidate in evaluation.candidates)
    return measure.name in evaluation.candidates[place - 1].not_counted


_NOT_COUNTED = '<span class="quiet"> (not counted)</span>'


def _column(measure: Measure) -> str:
    return f"{measure.name} ({measure.unit})" if measure.unit else measure.name


def _footer(evaluation: Evaluation, gallery: Gallery) -> str:
    settings = evaluation.settings
    made = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    rules = f"Win rate: {settings['win_rate']}. Interval: {settings['interval']}. Test: {settings['test']}."
    bootstrap = f"Bootstrap: {settings['resamples']} resamples, seed {settings['seed']}."
    return " ".join([rules, bootstrap, f"Made with {made}.", *gallery.footer(), COMPLETE])
