"""The page of a study's report: the verdict first, then the ranking, the pairs and the raters."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..folder import PathLike, atomic_path
from ..report.html import section, text_row, text_table
from ..report.page import COMPLETE, Payloads, count, page_path, render
from .report import Pair, StudyReport
from .words import PAIRS_HEAD, RANKING_HEAD, RATERS_HEAD, notes, pair_row, ranking_row, rater_row, rules, verdict


def study_page(report: StudyReport, out: PathLike, *, title: str | None = None, overwrite: bool = True) -> None:
    """Write a study's report as one self-contained HTML page.

    Args:
        report: as `study_report` gave it.
        out: the page, `.html`; missing parent folders are made.
        title: heading of the page.
        overwrite: write over an existing page.

    Raises:
        DataError: another suffix.
        OutputError: the page cannot be written.
    """
    page = page_path(out, overwrite)
    parts = {
        "facts": escape(_facts(report)),
        "summary": f'<p class="notice{"" if report.winner else " warn"}">{escape(verdict(report))}</p>',
        "table": "".join(_tables(report)),
        "left_out": "",
        "footer": escape(" ".join([*rules(report), COMPLETE])),
    }
    html = render(title or report.key.question, {"sources": [], "items": []}, Payloads(), parts)
    with atomic_path(page) as temporary:
        temporary.write_bytes(html)


def _facts(report: StudyReport) -> str:
    facts = [
        ", ".join(report.key.methods),
        count(report.images, "image"),
        count(len(report.raters) - len(report.left_out), "rater"),
        count(report.answers, "answer"),
    ]
    if report.left_out:
        facts.append(f"{count(len(report.left_out), 'rater')} left out")
    return " · ".join(facts)


def _tables(report: StudyReport) -> Sequence[str]:
    ranking = [text_row(ranking_row(rank)) for rank in report.ranking]
    pairs = [text_row(pair_row(pair), css=_css(pair)) for pair in report.pairs]
    raters = [text_row(rater_row(rater), void=rater.left_out) for rater in report.raters]
    return (
        section("Ranking", text_table(RANKING_HEAD, ranking, "Ranking"), notes(report)),
        section("Pairs of methods", text_table(PAIRS_HEAD, pairs, "Pairs of methods"), []),
        section("Raters", text_table(RATERS_HEAD, raters, "Raters"), []),
    )


def _css(pair: Pair) -> str:
    return {"undecided": "", pair.first: "better"}.get(pair.verdict, "worse")
