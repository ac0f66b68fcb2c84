"""Pieces of a page in HTML: sections, tables that scroll, their rows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .page import count, notice


def section(title: str, html: str, notes: Sequence[str]) -> str:
    return (
        f'<section class="figures"><h2>{escape(title)}</h2>{html}'
        f'<p class="facts">{escape(" ".join(filter(None, notes)))}</p></section>'
    )


def text_table(head: Sequence[str], rows: Sequence[str], label: str) -> str:
    cells = "".join(
        f'<th scope="col"{css_class("" if i else "name")}>{escape(text)}</th>' for i, text in enumerate(head)
    )
    return scroll(f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>", label)


def text_row(cells: Sequence[str], *, void: bool = False, css: str = "", rest: tuple[str, int] | None = None) -> str:
    """The first cell is the row's head. `rest`: a text that spans the columns from the last to the end of so many."""
    first, *others = cells
    html = f'<th class="name" scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in others)
    if rest is not None:
        html += f'<td class="words" colspan="{rest[1] - len(cells)}">{escape(rest[0])}</td>'
    return f"<tr{css_class('void' if void else css)}>{html}</tr>"


def scroll(table: str, label: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def omitted(entries: Sequence[tuple[str, str]], noun: str, was: str, were: str) -> str:
    """What is missing and why, folded: `was` or `were` follows the count of the noun. Empty without entries."""
    if not entries:
        return ""
    verb = was if len(entries) == 1 else were
    summary = f'<summary class="warn">{count(len(entries), noun)} {verb}</summary>'
    lines = [f"<b>{escape(name)}</b>: {escape(why)}" for name, why in entries]
    return f'<section class="left-out">{notice(summary, lines, " open")}</section>'


def css_class(name: str) -> str:
    return f' class="{name}"' if name else ""
