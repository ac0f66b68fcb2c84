"""The page of enhanced ground truths: what was changed in which band, by how much, and what to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean, median

import torch

from ..errors import DataError, RefineWrapError
from ..evaluation.gate import trainer
from ..folder import PathLike, atomic_path
from ..images import read_image, upright
from ..resources import file_digest
from ..scorers import Scorer, load_scorer
from ..scorers.cache import ScoreCache
from ..scorers.files import score_files
from ..supervision.change import SIZES, Change
from ..supervision.manifest import EnhancedPicture, Manifest
from .bands import drawing, in_figures, legend, number
from .gallery import Gallery
from .html import css_class, omitted, scroll, section, text_row, text_table
from .page import COMPLETE, count, page_path, render

SHOWN = 24
"""Pictures of which the page holds the pixels, unless told otherwise."""
_FIGURES = 500
"""Pictures whose bands are drawn; the page has the numbers of all."""
_NAMED = 20


def audit_page(
    gt: PathLike,
    out: PathLike,
    page: PathLike,
    *,
    scorers: Sequence[str | Scorer] = (),
    cache: ScoreCache | None = None,
    left_out: Sequence[tuple[str, str]] = (),
    limit: int = SHOWN,
    title: str | None = None,
    overwrite: bool = True,
    device: str | torch.device = "cpu",
) -> None:
    """Write a self-contained HTML page about all pictures of a folder that `enhance` made.

    Flagged pictures come first, then those that changed most; of the first `limit` the page shows the pixels.

    Args:
        gt: the folder of ground truths, or the one.
        out: the folder of enhanced ones.
        page: `.html`; missing parent folders are made.
        scorers: no-reference scorers, whose scores before and after are on the page.
        cache: where scores are kept, see `score_files`.
        left_out: pictures that are not there, and why.
        limit: as above.
        title: heading of the page.
        overwrite: write over an existing page.
        device: where scorers run.

    Raises:
        DataError: `out` has no manifest, or the page has another suffix.
        OutputError: the page cannot be written.
        RefineWrapError: a scorer cannot be had.
    """
    path = page_path(page, overwrite)
    manifest = Manifest.read(out)
    audit = _Audit(Path(gt), Path(out), manifest, Gallery(["ground truth", "enhanced"], None), list(left_out))
    audit.show(limit)
    if manifest.pictures:
        audit.score([load_scorer(scorer, device=device) for scorer in scorers], cache, device)
    parts = {
        "facts": escape(_facts(audit)),
        "summary": _warning(audit) + _bands(audit) + _scores(audit) + _heading(audit),
        "table": _pictures(audit),
        "left_out": omitted(audit.left_out, "picture", "is left out", "are left out"),
        "footer": escape(" ".join([_footer(audit), *audit.gallery.footer(), COMPLETE])),
    }
    html = render(title or "Enhanced ground truth", audit.gallery.data(), audit.gallery.payloads, parts)
    with atomic_path(path) as temporary:
        temporary.write_bytes(html)


@dataclass
class _Audit:
    gt: Path
    out: Path
    manifest: Manifest
    gallery: Gallery
    left_out: list[tuple[str, str]]
    items: dict[str, int] = field(default_factory=dict)
    """Place of a picture among those that are shown."""
    scores: dict[str, tuple[dict[str, float], dict[str, float]]] = field(default_factory=dict)
    """Of a picture, by scorer: of the ground truth, and of the enhanced one."""
    trained_on: dict[str, bool] = field(default_factory=dict)
    """Of each scorer, whether the mask generator was trained on it."""
    unscored: str = ""
    """Why a picture could not be scored: the first such reason."""

    @property
    def ordered(self) -> list[tuple[str, EnhancedPicture]]:
        def key(named: tuple[str, EnhancedPicture]) -> tuple[bool, float, str]:
            name, picture = named
            return not picture.flagged, math.inf if picture.change.psnr is None else picture.change.psnr, name

        return sorted(self.manifest.pictures.items(), key=key)

    def source(self, picture: EnhancedPicture) -> Path:
        return self.gt / picture.source if self.gt.is_dir() else self.gt

    def show(self, limit: int) -> None:
        """Put the first pictures on the page; one that is not there as it was is left out, with the reason."""
        for name, picture in self.ordered:
            if len(self.items) >= limit or self.gallery.full:
                return
            files = [(self.source(picture), picture.sha256), (self.out / name, picture.output)]
            try:
                for file, digest in files:
                    if not file.is_file() or file_digest(file) != digest:
                        raise DataError(f"{file} is missing, or not as it was when the other was made of it")
                pictures = [upright(read_image(file)) for file, _ in files]
            except (RefineWrapError, OSError) as error:
                text = str(error)
                for file, _ in files:
                    text = text.replace(str(file), file.name)
                self.left_out.append((name, text))
                continue
            lines = ["", _in_words(picture.change)]
            self.items[name] = self.gallery.add(name, pictures, lines)

    def score(self, scorers: list[Scorer], cache: ScoreCache | None, device: str | torch.device) -> None:
        if not scorers:
            return
        self.trained_on = {each.name: trainer(each, self.manifest.scorers) is not None for each in scorers}
        # One call for both sides each: the names in a table are below the deepest folder that holds all files.
        sides = [
            {name: self.source(picture) for name, picture in self.manifest.pictures.items()},
            {name: self.out / name for name in self.manifest.pictures},
        ]
        found = []
        for side in sides:
            there = {name: path for name, path in side.items() if path.is_file()}
            if not there:
                return
            table = score_files(list(there.values()), scorers, cache=cache, device=device)
            base = os.path.commonpath([os.path.abspath(path.parent) for path in there.values()])
            by_name = {image.file: image.scores for image in table.images}
            self.unscored = self.unscored or next((reason for _, reason in table.failed), "")
            below = {
                name: Path(os.path.relpath(os.path.abspath(path), base)).as_posix() for name, path in there.items()
            }
            found.append({name: by_name[file] for name, file in below.items() if file in by_name})
        self.scores = {name: (found[0][name], found[1][name]) for name in found[0] if name in found[1]}


# ---------------------------------------------------------------- text


def _in_words(change: Change) -> str:
    return f"{_decibels(change.psnr)} · fidelity {_decibels(change.fidelity)}"


def _decibels(value: float | None) -> str:
    return "unchanged" if value is None else f"{value:.2f} dB"


def _facts(audit: _Audit) -> str:
    manifest, settings = audit.manifest, audit.manifest.settings
    pictures = manifest.pictures.values()
    flagged, limited = sum(each.flagged for each in pictures), sum(each.change.limited for each in pictures)
    facts = [
        count(len(manifest.pictures), "picture"),
        f"strength {settings.strength:g}",
        f"masks {manifest.masks}",
        f"variants {', '.join(f'x{factor}' for factor in settings.factors)} "
        + ("that were there" if manifest.sr is None else f"by {manifest.sr}"),
    ]
    if settings.max_change is not None:
        facts.append(f"no value changed by more than {settings.max_change:g} of the range")
    if settings.min_psnr is not None:
        facts.append(f"PSNR at least {settings.min_psnr:g} dB")
    facts += [f"{flagged} flagged", f"{limited} limited"]
    if audit.left_out:
        facts.append(f"{len(audit.left_out)} left out")
    return " · ".join(facts)


def _warning(audit: _Audit) -> str:
    names = [name for name, picture in audit.ordered if picture.flagged]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    text = (
        f"{count(len(names), 'picture')} below a fidelity of {audit.manifest.min_fidelity:g} dB, look for what was "
        f"invented: {', '.join(names[:_NAMED])}{more}"
    )
    return f'<ul class="notice warn flags"><li>{escape(text)}</li></ul>'


def _images(audit: _Audit) -> list[str]:
    return ["ground truth", *(f"x{factor}" for factor in audit.manifest.settings.factors)]


def _bands(audit: _Audit) -> str:
    """Over all pictures: of each band, where it comes from, how strong it became and how much of it is different."""
    changes = [picture.change for picture in audit.manifest.pictures.values()]
    if not changes:
        return ""
    images = _images(audit)
    weights = [
        [fmean(change.weights[image][band] for change in changes) for band in range(len(SIZES))]
        for image in range(len(images))
    ]
    gains = [_median([change.gain[band] for change in changes]) for band in range(len(SIZES))]
    differences = [_median([change.change[band] for change in changes]) for band in range(len(SIZES))]
    rows = [
        text_row([size, *(f"{own[band]:.0%}" for own in weights), number(gains[band]), number(differences[band])])
        for band, size in enumerate(SIZES)
    ]
    head = ["Detail of", *images, "Strength (1: as it was)", "Difference"]
    notes = [
        "Where each band comes from: mean weight of each image over all pictures.",
        "Strength and difference of the detail, as multiples of the ground truth's own: medians.",
        "Fidelity is PSNR with both pictures at a quarter of their sides: sharpening and cleaning hardly show there, "
        "what is drawn anew, moved or coloured does.",
    ]
    drawn = f'<p class="facts">{drawing(weights, gains, images)} {legend(images)}</p>'
    return section("What changed, by the size of the detail", drawn + text_table(head, rows, "Bands"), notes)


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def _scores(audit: _Audit) -> str:
    if not audit.trained_on:
        return ""
    rows = []
    for name, trained_on in audit.trained_on.items():
        pairs = [(before[name], after[name]) for before, after in audit.scores.values()]
        better = sum(after > before for before, after in pairs)
        mean = [f"{fmean(side):.4f}" for side in zip(*pairs, strict=True)] if pairs else ["none", "none"]
        note = "the mask generator was trained on it: it says nothing" if trained_on else ""
        rows.append(text_row([name, *mean, f"{better} of {len(pairs)}", note], css="void" if trained_on else ""))
    head = ("Scorer", "Mean before", "Mean after", "Higher after", "")
    notes = [
        "Scores without a reference, in [0, 1], higher is better. They also rise with noise and halos: "
        "refine-wrap evaluate tells whether a scorer is valid here."
    ]
    missing = len(audit.manifest.pictures) - len(audit.scores)
    if missing:
        notes.append(
            f"{count(missing, 'picture')} could not be scored{f', first: {why}' if (why := audit.unscored) else ''}."
        )
    return section("Scores", text_table(head, rows, "Scores"), notes)


def _heading(audit: _Audit) -> str:
    if not audit.items:
        return ""
    all_of_them = len(audit.items) == len(audit.manifest.pictures)
    text = "All pictures" if all_of_them else f"{count(len(audit.items), 'picture')} of {len(audit.manifest.pictures)}"
    return f'<h2>Pictures</h2><p class="facts">{text}, those that are flagged or changed most first.</p>'


def _pictures(audit: _Audit) -> str:
    ordered = audit.ordered
    if not ordered:
        return ""
    images = _images(audit)
    columns = [
        "PSNR",
        "Fidelity",
        "Largest change",
        "Bands",
        *(f"{name}, before and after" for name in audit.trained_on),
    ]
    head = '<th class="name" scope="col">Picture</th>'
    head += "".join(f'<th scope="col">{escape(text)}</th>' for text in [*columns, "Remarks"])
    body = ""
    for place, (name, picture) in enumerate(ordered):
        change, item = picture.change, audit.items.get(name)
        linked = escape(name) if item is None else f'<a href="#{item + 1}">{escape(name)}</a>'
        cells = [_decibels(change.psnr), _decibels(change.fidelity), f"{change.largest:.1%}"]
        html = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        drawn = drawing(change.weights, change.gain, images) if place < _FIGURES else escape(in_figures(change.gain))
        html += f"<td>{drawn}</td>"
        for scorer in audit.trained_on:
            found = audit.scores.get(name)
            html += "<td>" + (f"{found[0][scorer]:.4f} → {found[1][scorer]:.4f}" if found else "none") + "</td>"
        remarks = ["flagged"] * picture.flagged + ["limited"] * change.limited
        html += f"<td{css_class('warn' if picture.flagged else '')}>{', '.join(remarks)}</td>"
        attributes = "" if item is None else f' data-item="{item}"'
        body += f'<tr{attributes}><th class="name" scope="row">{linked}</th>{html}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    notes = [
        "Bands, from large to small detail: above, the share of each image; below, the strength of the detail, "
        "upwards stronger and downwards weaker than in the ground truth, at most twice and half."
    ]
    return section("Each picture", scroll(table, "Figures of each picture"), notes)


def _footer(audit: _Audit) -> str:
    made = ", ".join(f"{name} {version}" for name, version in audit.manifest.made_with.items())
    return f"Made with {made}."
