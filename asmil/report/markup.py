"""Pieces of HTML. `Html` is text that is safe to place in a page; plain text becomes it only through `escape`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NewType

from asmil.report.canvas import Plot
from asmil.report.tables import Cell, format_cell, numeric_columns

__all__ = ["Html", "details", "escape", "figure", "join", "section", "table"]

Html = NewType("Html", str)
"""Markup whose text is escaped."""


def escape(text: str) -> Html:
    """Plain text as markup, for element content and quoted attributes alike."""
    return Html(html.escape(text, quote=True))


def join(parts: Iterable[Html]) -> Html:
    """Markup one after another."""
    return Html("\n".join(parts))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    row_classes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Html:
    """A table that scrolls sideways when it is wider than the page.

    Args:
        columns: The header.
        rows: Cells as for the text tables; columns of numbers are aligned to the right, and
            text keeps its line breaks.
        row_classes: CSS class of each row.
        titles: Longer form of each header, shown when pointed at.

    Returns:
        The element.
    """
    numeric = numeric_columns(rows, len(columns))
    head = "".join(
        f'<th scope="col"{_class("number" if number else "")} title="{escape(title)}">{escape(column)}</th>'
        for column, number, title in zip(columns, numeric, titles or columns, strict=True)
    )
    body = "\n".join(
        f"<tr{_class(row_class)}>{''.join(map(_cell, row, numeric))}</tr>"
        for row, row_class in zip(rows, row_classes or [""] * len(rows), strict=True)
    )
    return Html(
        f'<div class="scroll"><table class="full">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def details(summary: str, content: Html) -> Html:
    """Content that is folded away until asked for."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>")


def figure(plot: Plot, *, wide: bool = False) -> Html:
    """A drawing under its title, with its numbers folded away beneath."""
    caption = f"<span>{escape(plot.caption)}</span>" if plot.caption else ""
    drawing = plot.svg.replace("<svg ", f'<svg aria-label="{escape(plot.title)}" ', 1)
    numbers = details(
        f"Numbers ({len(plot.rows)} rows)", table(plot.columns, [[*map(_precise, row)] for row in plot.rows])
    )
    return Html(
        f"<figure{_class('wide' if wide else '')}><figcaption><b>{escape(plot.title)}</b>{caption}</figcaption>\n"
        f"{drawing}\n{numbers}</figure>"
    )


def section(identifier: str, heading: str, content: Html) -> Html:
    """A part of the page under its heading, which links can point at."""
    return Html(f'<section id="{escape(identifier)}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>')


def _precise(cell: Cell) -> Cell:
    """Numbers under a figure are for reading off and reuse, so they keep six digits."""
    return f"{cell:.6g}" if isinstance(cell, float) else cell


def _cell(cell: Cell, number: bool) -> str:
    text = escape(cell if isinstance(cell, str) else format_cell(cell))
    return f"<td{_class('number' if number else '')}>{text}</td>"


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""
