"""The page of an analysis of degraded sets: diversity, colours, noise, spectra, and samples side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ..analysis import Analysis
from ..analysis.measures import LARGEST_ENTROPY, RINGS
from ..analysis.result import Set
from ..analysis.words import DIVERSITY_HEAD, LOOK_HEAD, diversity_lines, look_lines
from ..degradation.corruptions import CORRUPTIONS
from ..errors import RefineWrapError
from ..folder import PathLike, atomic_path
from ..images import Picture
from .curves import bar, curves, key
from .gallery import Gallery, view
from .html import omitted, scroll, section, text_row, text_table
from .page import COMPLETE, count, inline, page_path, render

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 8
"""Images of each set that the page shows, unless told otherwise."""
_SIDE = 192
"""Longest side of a sample: of a larger image, its middle."""


def degradation_page(
    analysis: Analysis, out: PathLike, *, samples: int = SHOWN, title: str | None = None, overwrite: bool = True
) -> None:
    """Write an analysis as one self-contained HTML page. The samples are read, or made, again.

    Args:
        analysis: as `analyze_degradation` gave it.
        out: the page, `.html`; missing parent folders are made.
        samples: how many images of each set are shown, spread evenly.
        title: heading of the page.
        overwrite: write over an existing page.

    Raises:
        DataError: another suffix.
        OutputError: the page cannot be written.
        RefineWrapError: a picture cannot be read any more.
    """
    page = page_path(out, overwrite)
    if samples < 0:
        raise RefineWrapError(f"{samples} samples are to be shown", "0 or more")
    empty = Gallery([], None)
    parts = {
        "facts": escape(_facts(analysis)),
        "summary": _diversity(analysis) + _looks(analysis) + _spectra(analysis) + _samples(analysis, samples),
        "table": _classifier(analysis),
        "left_out": omitted(analysis.left_out, "image", "was left out", "were left out"),
        "footer": escape(_footer(analysis)),
    }
    html = render(title or "Degraded images", empty.data(), empty.payloads, parts)
    with atomic_path(page) as temporary:
        temporary.write_bytes(html)


def _facts(analysis: Analysis) -> str:
    sizes = {len(each.looks) for each in analysis.sets}
    facts = [
        count(sizes.pop(), "image") + " of each set" if len(sizes) == 1 else count(sum(sizes), "image"),
        f"{count(len(analysis.sets), 'set')}: {', '.join(each.label for each in analysis.sets)}",
    ]
    if analysis.left_out:
        facts.append(f"{len(analysis.left_out)} left out")
    return " · ".join(facts)


def _diversity(analysis: Analysis) -> str:
    rows = [text_row(cells) for cells in diversity_lines(analysis)]
    notes = [
        f"H: {analysis.settings['entropy']}, natural logarithm, at most ln 15 = {LARGEST_ENTROPY:.3f}; the more kinds "
        "of corruption a set shows, the higher. It is low by chance where a set has few images.",
        "An image that looks clean is counted among the 15 too, as what it looks most like: where many look clean, H "
        "says little.",
    ]
    head = section("Diversity", text_table(DIVERSITY_HEAD, rows, "Diversity"), notes)
    body = ""
    for name in CORRUPTIONS:
        cells = "".join(
            f"<td>{bar(each.shares[name], place)}{each.shares[name]:.0%}</td>"
            for place, each in enumerate(analysis.sets)
        )
        body += f'<tr><th class="name" scope="row">{escape(name.replace("_", " "))}</th>{cells}</tr>'
    return head + section("What images look most like", _by_set("Corruption", analysis.sets, body), [])


def _by_set(first: str, sets: Sequence[Set], body: str) -> str:
    """A table with a column for each set."""
    columns = "".join(f'<th scope="col">{escape(each.label)}</th>' for each in sets)
    head = f'<thead><tr><th class="name" scope="col">{escape(first)}</th>{columns}</tr></thead>'
    return scroll(f"<table>{head}<tbody>{body}</tbody></table>", first)


def _looks(analysis: Analysis) -> str:
    settings = analysis.settings
    rows = [text_row(cells) for cells in look_lines(analysis)]
    notes = [
        f"Colour difference: {settings['delta_e']}, against {settings['clean']}; means over the images.",
        f"Noise: {settings['noise']}. Detail: {settings['detail']}. Medians over the images.",
    ]
    return section("Colour, noise and detail", text_table(LOOK_HEAD, rows, "Colour, noise and detail"), notes)


def _spectra(analysis: Analysis) -> str:
    labels = [each.label for each in analysis.sets]
    drawn = curves([each.spectrum for each in analysis.sets], "Spectra")
    html = f'<p class="facts">{key(labels)}</p>{drawn}'
    clean = analysis.clean
    if clean is not None and len(analysis.sets) > 1:
        head = ["Above " + clean.label, *(f"{(ring + 0.5) * 0.5 / RINGS:.2f}" for ring in range(RINGS))]
        rows = [
            text_row([each.label, *("none" if dB is None else f"{dB:+.1f}" for dB in each.above(clean))])
            for each in analysis.sets[1:]
        ]
        html += text_table(head, rows, "Spectra against the clean one, in dB")
    notes = [f"Means of {analysis.settings['spectrum']}. White noise is flat, blur falls off to the right."]
    return section("Spectra", html, notes)


def _samples(analysis: Analysis, samples: int) -> str:
    """Rows of the same image in each set; without clean images, each set's own."""
    places = analysis.places
    named = [list(each.looks) for each in analysis.sets]
    shown = min(samples, *(len(names) for names in named))
    if not shown:
        return ""
    body = ""
    for number in range(shown):
        chosen = [names[number * len(names) // shown] for names in named]
        labels = [each.label for each in analysis.sets]
        if places.clean:
            pictures = places.read(chosen[0], labels)
        else:
            pictures = {label: places.read(name, [label])[label] for label, name in zip(labels, chosen, strict=True)}
        cells = ""
        for label, name in zip(labels, chosen, strict=True):
            image = _middle(pictures[label])
            size = f'width="{image.width}" height="{image.height}"'
            cells += f'<td><img src="{inline(image)}" {size} alt="{escape(f"{label}: {name}")}"></td>'
        first = chosen[0] if places.clean else str(number + 1)
        body += f'<tr><th class="name" scope="row">{escape(first)}</th>{cells}</tr>'
    table = _by_set("Image", analysis.sets, body)
    return section("Samples", f'<div class="samples">{table}</div>', ["Pixel by pixel; of larger images, the middle."])


def _middle(picture: Picture) -> Image:
    """As a browser shows it, at most `_SIDE` a side."""
    height, width = min(picture.height, _SIDE), min(picture.width, _SIDE)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return view(Picture(picture.pixels[top : top + height, left : left + width]))


def _classifier(analysis: Analysis) -> str:
    metrics = [each for each in analysis.classifier["metrics"] if " taken for " not in each["name"]]
    rows = [text_row([each["name"].replace("_", " "), f"{each['value']:.1%}"]) for each in metrics]
    about = f"{analysis.classifier['name']}, weights {analysis.classifier['digest'][:8]}"
    if not rows:
        return section("The classifier", "", [f"{about}: its card tells no accuracy."])
    notes = [f"{about}, on photos that it did not see ({metrics[0].get('data', '')}), as its card tells."]
    return section("The classifier", text_table(["", "Held-out photos"], rows, "Accuracy of the classifier"), notes)


def _footer(analysis: Analysis) -> str:
    settings = analysis.settings
    made = ", ".join(f"{name} {version}" for name, version in analysis.versions.items())
    drawn = f"Interval: {settings['interval']}, {settings['resamples']} resamples, seed {settings['seed']}."
    return " ".join([drawn, f"Made with {made}.", COMPLETE])
