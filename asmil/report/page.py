"""Writes a report as one HTML file that needs nothing else: no scripts, no fonts, no images from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asmil.metrics.values import Metric
from asmil.report.canvas import Plot
from asmil.report.content import HeadlineRow, ReportContent, SearchSummary, TrialRow
from asmil.report.markup import Html, details, escape, figure, join, section, table
from asmil.report.plots import draw_figure
from asmil.report.search_plots import (
    draw_beside,
    draw_history,
    draw_importance,
    draw_parameters,
    draw_stability,
    short_names,
)
from asmil.report.stylesheet import CSS
from asmil.report.tables import Cell, format_metric, format_number, format_setting
from asmil.storage import publish_text

__all__ = ["render_report", "write_report"]

LEADERBOARD_ROWS = 10


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report; a reader sees the old file or the new one, never a part.

    Args:
        path: The `.html` file.
        content: What it says.

    Raises:
        EnvironmentProblem: The file cannot be written.
    """
    publish_text(path, render_report(content))


def render_report(content: ReportContent) -> str:
    """The whole page as text. Equal content gives equal text."""
    sections = [
        (identifier, heading, body)
        for identifier, heading, body in (
            ("results", "Results", _results(content.headline, content.further)),
            ("protocol", "How the numbers were made", _protocol(content.protocol)),
            ("figures", "Predictions on held-out bags", _figures([draw_figure(f) for f in content.figures])),
            ("search", "Search", join(_search(s, titled=len(content.searches) > 1) for s in content.searches)),
            ("stability", "Attention stability", _stability(content)),
            ("ledger", "Openings of the test split", _ledger(content.ledger)),
            ("configuration", "Configuration", _configuration(content.configuration)),
        )
        if body
    ]
    links = "".join(f'<a href="#{identifier}">{escape(heading)}</a>' for identifier, heading, _ in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"{_header(content)}\n<nav><div>{links}</div></nav>\n<main>\n"
        f"{join(section(*parts) for parts in sections)}\n</main>\n"
        f"<footer><p>Written by ASMIL. This file is self-contained; every figure carries its numbers.</p></footer>\n"
        f"</body>\n</html>\n"
    )


def _header(content: ReportContent) -> Html:
    notices = join(Html(f'<div class="notice" role="note">{escape(notice)}</div>') for notice in content.notices)
    facts = join(Html(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>") for k, v in content.facts)
    listed = f'<dl class="facts">{facts}</dl>' if facts else ""
    return Html(
        f'<header>\n<p class="eyebrow">ASMIL report</p>\n<h1>{escape(content.title)}</h1>\n{notices}{listed}\n</header>'
    )


def _results(headline: Sequence[HeadlineRow], further: Sequence[tuple[str, Metric]]) -> Html:
    if not headline:
        return _further(further)
    first = headline[0]
    compared = [plot for row in headline[1:] if (plot := draw_beside(row)) is not None]
    others = Html(f'<div class="figures">{join(map(figure, compared))}</div>') if compared else Html("")
    rows: list[Sequence[Cell]] = [
        (
            row.metric,
            format_metric(row.result),
            "\n".join(f"{r.name} {format_metric(r.result)}" for r in row.references),
            row.note or "",
        )
        for row in headline
    ]
    listed = table(("metric", "value [95 % interval]", "beside it", "note"), rows)
    return join((_hero(first), others, listed, _further(further)))


def _further(figures: Sequence[tuple[str, Metric]]) -> Html:
    rows: list[Sequence[Cell]] = [(name, format_metric(metric)) for name, metric in figures]
    return table(("further figures on the same bags", "value"), rows) if rows else Html("")


def _hero(row: HeadlineRow) -> Html:
    result = row.result
    if result.value is None:
        value = Html(f'<p class="value absent">{escape(format_metric(result))}</p>')
    else:
        value = Html(f'<p class="value">{escape(format_number(result.value))}</p>')
        if result.interval is not None:
            low, high = map(format_number, result.interval)
            value = Html(f'{value}<p class="interval">95 % interval {escape(low)} to {escape(high)}</p>')
        if result.reason:
            value = Html(f'{value}<p class="warning">{escape(result.reason)}</p>')
    note = f'<p class="note">{escape(row.note)}</p>' if row.note else ""
    plot = draw_beside(row)
    drawn = figure(plot) if plot else ""
    return Html(f'<div class="hero"><div><p class="label">{escape(row.metric)}</p>{value}{note}</div>{drawn}</div>')


def _protocol(lines: Sequence[str]) -> Html:
    items = join(Html(f"<li>{escape(line)}</li>") for line in lines)
    return Html(f'<ul class="protocol">{items}</ul>') if items else items


def _figures(plots: Sequence[Plot]) -> Html:
    return Html(f'<div class="figures">{join(map(figure, plots))}</div>') if plots else Html("")


def _search(search: SearchSummary, *, titled: bool) -> Html:
    heading = Html(f"<h3>{escape(search.name)}</h3>") if titled else Html("")
    plots = [draw_history(search)]
    importance = draw_importance(search)
    if importance is not None:
        plots.append(importance)
    drawings = [figure(plot) for plot in plots]
    parameters = draw_parameters(search)
    if parameters is not None:
        drawings.append(figure(parameters, wide=True))
    return join(
        (
            heading,
            Html(f"<p>{escape(_search_summary(search))}</p>"),
            Html(f'<div class="figures">{join(drawings)}</div>'),
            Html("<h3>Leaderboard</h3>"),
            _leaderboard(search),
        )
    )


def _search_summary(search: SearchSummary) -> str:
    states = Counter(_state(trial) for trial in search.trials)
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    goal = "maximized" if search.direction == "max" else "minimized"
    best = search.best()
    found = "no trial has completed" if best is None else f"trial {best.number} is best"
    return f"{len(search.trials)} trials ({counted}); {search.metric} was {goal} on validation bags; {found}."


def _state(trial: TrialRow) -> str:
    return {"PRUNED": "stopped early", "FAIL": "failed"}.get(trial.state, trial.state.lower())


def _leaderboard(search: SearchSummary) -> Html:
    names, ranked, best = search.parameters(), search.ranked(), search.best()
    shorter = short_names(names)
    columns = ("trial", search.metric, *(shorter[name] for name in names), "epochs", "state")
    titles = ("trial", search.metric, *names, "epochs", "state")

    def rows_of(trials: Sequence[TrialRow]) -> Html:
        classes = ["best" if t is best else "" if t.state == "COMPLETE" else "unfinished" for t in trials]
        rows = [_leaderboard_row(trial, names) for trial in trials]
        return table(columns, rows, row_classes=classes, titles=titles)

    top, rest = ranked[:LEADERBOARD_ROWS], ranked[LEADERBOARD_ROWS:]
    return join((rows_of(top), *([details(f"The other {len(rest)} trials", rows_of(rest))] if rest else [])))


def _leaderboard_row(trial: TrialRow, names: Sequence[str]) -> tuple[Cell, ...]:
    missing = f"n/a ({trial.note})" if trial.note else "n/a"
    value = missing if trial.value is None else format_number(trial.value, decimals=4)
    settings = (format_setting(trial.params[name]) if name in trial.params else "" for name in names)
    epochs = "" if trial.epochs is None else str(trial.epochs)
    return (trial.number, value, *settings, epochs, _state(trial))


def _stability(content: ReportContent) -> Html:
    return figure(draw_stability(content.stability), wide=True) if content.stability else Html("")


def _ledger(entries: Sequence[Mapping[str, Any]] | None) -> Html:
    if entries is None:
        return Html("")
    if not entries:
        return Html("<p>The test split has not been opened.</p>")
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = [[str(entry.get(column, "")) for column in columns] for entry in entries]
    return join((Html(f"<p>Every opening is on record; {len(entries)} so far.</p>"), table(columns, rows)))


def _configuration(text: str | None) -> Html:
    return Html("") if text is None else details("The resolved experiment, as YAML", Html(f"<pre>{escape(text)}</pre>"))
