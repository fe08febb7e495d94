"""Drawings: every kind shows its numbers, keeps them beside it, and leaves no trace in matplotlib's settings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import asmil
from asmil.engine.protocols import Figure
from asmil.metrics.values import Metric
from asmil.report.canvas import Plot
from asmil.report.content import HeadlineRow, Reference, ReportContent, SearchSummary, StabilityCurve, TrialRow
from asmil.report.plots import FIGURE_KINDS, draw_figure
from asmil.report.search_plots import (
    draw_beside,
    draw_history,
    draw_importance,
    draw_parameters,
    draw_stability,
    short_names,
)


def texts(plot: Plot) -> list[str]:
    """What is written in a drawing."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)]


def figure_of(report: ReportContent, kind: str) -> Figure:
    return next(figure for figure in report.figures if figure.kind == kind)


def all_plots(report: ReportContent) -> list[Plot]:
    search = report.searches[0]
    others = [draw_beside(report.headline[0]), draw_history(search), draw_importance(search), draw_parameters(search)]
    return [*map(draw_figure, report.figures), *(p for p in others if p is not None), draw_stability(report.stability)]


def test_every_kind_is_in_the_sample(full_report: ReportContent) -> None:
    assert {figure.kind for figure in full_report.figures} == set(FIGURE_KINDS)


def test_equal_data_gives_equal_bytes_and_settings_stay(full_report: ReportContent) -> None:
    before = dict(matplotlib.rcParams)
    first, again = all_plots(full_report), all_plots(full_report)
    assert len(first) == 9
    assert first == again
    assert dict(matplotlib.rcParams) == before


def test_drawings_are_inline_elements_with_ids_of_their_own(full_report: ReportContent) -> None:
    seen: set[str] = set()
    for plot in all_plots(full_report):
        assert plot.svg.startswith("<svg ")
        assert plot.svg.endswith("</svg>")
        assert "http" not in plot.svg
        ids = set(re.findall(r'\bid="([^"]+)"', plot.svg))
        used = set(re.findall(r'href="#([^"]+)"', plot.svg)) | set(re.findall(r"url\(#([^)]+)\)", plot.svg))
        assert used
        assert used <= ids
        assert not ids & seen
        seen |= ids


def test_report_does_not_import_pyplot() -> None:
    code = "import sys, asmil.report.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    root = Path(asmil.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=100).returncode == 0


def test_survival_curves_show_groups_p_value_and_counts(full_report: ReportContent) -> None:
    figure = figure_of(full_report, "kaplan_meier")
    plot = draw_figure(figure)
    shown = texts(plot)
    assert {"high risk (n = 75)", "low risk (n = 75)", "at risk", "time (months)"} <= set(shown)
    assert f"log-rank p = {figure.data['log_rank_p']:.2g}" in shown
    for group in figure.data["groups"]:
        times, at_risk = np.array(group["times"]), group["at_risk"]
        at_40 = at_risk[np.flatnonzero(times >= 40)[0]]
        assert str(at_40) in shown
    assert plot.columns == ("group", "time", "survival", "at risk")
    assert len(plot.rows) == sum(len(group["times"]) for group in figure.data["groups"])
    assert plot.rows[0] == ("high risk", 0.0, 1.0, 75)


def test_counts_at_a_tick_include_those_who_leave_there() -> None:
    times, at_risk = [0.0, 20.0, 40.0, 60.0], [50, 41, 23, 9]
    group = {"name": "all", "n": 50, "times": times, "survival": [1.0, 0.8, 0.5, 0.3], "at_risk": at_risk}
    shown = texts(draw_figure(Figure("kaplan_meier", "S", {"groups": [group]})))
    counts = [int(text) for text in shown[shown.index("at risk") + 1 :] if text.isdigit()]
    ticks = np.linspace(0, 60, len(counts))
    assert len(counts) >= 4
    assert counts == [at_risk[min(k for k in range(4) if times[k] >= tick)] for tick in ticks]


def test_survival_curves_without_optional_parts() -> None:
    group = {"name": "all", "n": 3, "times": [1.0, 2.0], "survival": [0.7, 0.2]}
    plot = draw_figure(Figure("kaplan_meier", "S", {"groups": [group]}))
    assert not any(text.startswith("log-rank") or text == "at risk" for text in texts(plot))
    assert plot.rows == (("all", 1.0, 0.7, None), ("all", 2.0, 0.2, None))
    undefined = draw_figure(Figure("kaplan_meier", "S", {"groups": [group], "log_rank_p": None}))
    assert "log-rank p = n/a" in texts(undefined)


def test_roc_shows_auc_or_its_absence(full_report: ReportContent) -> None:
    plot = draw_figure(figure_of(full_report, "roc"))
    assert {"benign (AUC 0.870)", "atypical (AUC 0.667)", "malignant (AUC n/a)"} <= set(texts(plot))
    assert ("benign", 1.0, 1.0) in plot.rows


def test_confusion_shows_counts_and_no_share_of_nothing(full_report: ReportContent) -> None:
    plot = draw_figure(figure_of(full_report, "confusion"))
    shown = texts(plot)
    assert {"41", "23", "87%", "57%"} <= set(shown)
    assert shown.count("0%") == 1
    assert plot.rows[1] == ("atypical", 9, 23, 8)


def test_bars_leave_a_missing_value_blank(full_report: ReportContent) -> None:
    plot = draw_figure(figure_of(full_report, "bars"))
    assert texts(plot).count("n/a") == 1
    assert plot.rows == (("fold 0", 0.71, 0.05), ("fold 1", None, None), ("fold 2", 0.645, None))


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'pie'; known kinds: kaplan_meier, roc, confusion, bars"):
        draw_figure(Figure("pie", "x", {}))


def test_result_beside_references_needs_both() -> None:
    reference = Reference("age only", Metric(0.61, interval=(0.58, 0.65)))
    plot = draw_beside(HeadlineRow("C", Metric(0.7), (reference, Reference("unknown", Metric(None, "not_found")))))
    assert plot is not None
    assert plot.rows == (("this experiment", 0.7, None, None), ("age only", 0.61, 0.58, 0.65))
    assert "age only" in texts(plot)
    assert draw_beside(HeadlineRow("C", Metric(0.7))) is None
    assert draw_beside(HeadlineRow("C", Metric(None, "no_events"), (reference,))) is None


TRIALS = (
    TrialRow(0, "COMPLETE", 0.6, {"a.x": 0.1}),
    TrialRow(3, "COMPLETE", 0.65, {"a.x": 0.3}),
    TrialRow(1, "PRUNED", 0.9, {"a.x": 0.2}),
    TrialRow(2, "FAIL", None, {"a.x": 0.4}),
    TrialRow(4, "COMPLETE", 0.62, {"a.x": 0.5, "b.y": "nsf"}),
)


@pytest.mark.parametrize(
    ("direction", "order", "best_so_far"),
    [("max", [3, 4, 0, 1, 2], [0.6, None, None, 0.65, 0.65]), ("min", [0, 4, 3, 1, 2], [0.6, None, None, 0.6, 0.6])],
)
def test_a_stopped_trial_is_never_best(direction: Any, order: list[int], best_so_far: list[float | None]) -> None:
    search = SearchSummary("s", "C", direction, TRIALS)
    assert [trial.number for trial in search.ranked()] == order
    assert search.best() is next(trial for trial in TRIALS if trial.number == order[0])
    rows = draw_history(search).rows
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4]
    assert [row[3] for row in rows] == best_so_far


def test_search_without_a_completed_trial() -> None:
    for trials in ((), TRIALS[2:3], TRIALS[3:4]):
        search = SearchSummary("s", "C", "max", trials)
        assert search.best() is None
        assert len(draw_history(search).rows) == len(trials)
        assert "best so far" not in texts(draw_history(search))
    assert draw_parameters(SearchSummary("s", "C", "max", ())) is None
    assert draw_importance(search) is None


def test_parameter_panels_follow_importance_and_scale(full_report: ReportContent) -> None:
    search = full_report.searches[0]
    plot = draw_parameters(search)
    assert plot is not None
    shown = texts(plot)
    titles = ["kl_weight", "drop_rate", "1 - ema_factor", "tokens"]
    assert [text for text in shown if text in titles] == titles
    assert plot.columns[3:] == tuple(search.parameters())
    assert {"2", "4", "8", "16"} <= set(shown)
    assert "0.0001" in shown


def test_parameters_of_text_and_missing_settings_are_choices() -> None:
    plot = draw_parameters(SearchSummary("s", "C", "max", TRIALS, {"a.x": "log"}))
    assert plot is not None
    assert {"x", "y", "nsf"} <= set(texts(plot))
    assert plot.rows[0] == (0, "COMPLETE", 0.6, "0.1", "")


def test_importance_is_sorted(full_report: ReportContent) -> None:
    search = replace(full_report.searches[0], importance={"a.low": 0.25, "b.high": 0.75})
    plot = draw_importance(search)
    assert plot is not None
    assert plot.rows == (("b.high", 0.75), ("a.low", 0.25))
    assert {"75%", "25%", "high", "low"} <= set(texts(plot))


def test_stability_counts_seeds_and_keeps_every_value() -> None:
    curves = (
        StabilityCurve(True, 0, (1, 2), (0.2, 0.1)),
        StabilityCurve(True, 1, (1, 2, 3), (0.3, 0.1, 0.0)),
        StabilityCurve(False, 0, (1, 2), (0.5, 0.5)),
    )
    plot = draw_stability(curves)
    assert {"with anchor (2 seeds)", "without anchor (1 seed)"} <= set(texts(plot))
    assert len(plot.rows) == 7
    assert plot.rows[4] == ("with", 1, 3, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: draw_figure(Figure("bars", "t", {"labels": [name], "values": [1.0]})),
        lambda name: draw_figure(Figure("confusion", "t", {"labels": [name, "b"], "counts": [[1, 0], [0, 1]]})),
        lambda name: draw_beside(HeadlineRow("C", Metric(0.5), (Reference(name, Metric(0.4)),))),
        lambda name: draw_importance(SearchSummary("s", "C", "max", (), {}, {name: 1.0})),
    ],
)
def test_long_labels_are_cut_in_the_drawing_and_whole_in_the_numbers(make: Callable[[str], Plot]) -> None:
    name = "a very long label " * 20
    plot = make(name)
    assert any(text.endswith("…") for text in texts(plot))
    assert any(name in row for row in plot.rows)


def test_labels_are_not_read_as_formulas() -> None:
    plot = draw_figure(Figure("bars", "t", {"labels": [r"$\alpha_{x$ & <b>"], "values": [1.0]}))
    assert r"$\alpha_{x$ & <b>" in texts(plot)


def test_short_names_tell_parameters_apart() -> None:
    assert short_names(["a.b.x", "a.c.x", "x", "y"]) == {"a.b.x": "b.x", "a.c.x": "c.x", "x": "x", "y": "y"}
