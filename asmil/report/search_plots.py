"""Draws what every experiment has: results beside their references, the course of a search, attention stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from asmil.report.canvas import INK, MUTED, PALETTE, Plot, brief, draw, legend_above, log_scale, note_beside
from asmil.report.content import HeadlineRow, SearchSummary, Setting, StabilityCurve, TrialRow
from asmil.report.tables import Cell, format_setting

__all__ = ["draw_beside", "draw_history", "draw_importance", "draw_parameters", "draw_stability", "short_names"]

PANELS_PER_ROW = 4


def draw_beside(row: HeadlineRow) -> Plot | None:
    """A result with its interval above the values it is to be read against; None if there is nothing to compare."""
    own = row.result.value
    candidates = [("this experiment", row.result), *((r.name, r.result) for r in row.references)]
    entries = [(name, result, result.value) for name, result in candidates if result.value is not None]
    if own is None or len(entries) < 2:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(own, color=PALETTE[0], linewidth=0.8, alpha=0.5)
        for place, (_, result, value) in enumerate(entries):
            colour = MUTED if place else PALETTE[0]
            if result.interval is not None:
                axes.hlines(place, *result.interval, color=colour, linewidth=1.4 if place else 3.2, alpha=0.75)
            axes.plot(value, place, marker="D" if place else "o", color=colour, markersize=5 if place else 8)
        axes.set_yticks(range(len(entries)), [brief(name) for name, *_ in entries])
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")

    rows = tuple((name, value, *(result.interval or (None, None))) for name, result, value in entries)
    svg = draw(paint, width=6.6, height=0.5 + 0.31 * len(entries))
    return Plot(f"{row.metric} beside its references", "", svg, ("", "value", "low", "high"), rows)


def draw_history(search: SearchSummary) -> Plot:
    """The objective of each trial in order, and the best completed value so far."""
    trials = sorted(search.trials, key=lambda trial: trial.number)
    better = max if search.direction == "max" else min
    completed = [(t.number, t.value) for t in trials if t.state == "COMPLETE" and t.value is not None]
    best = list(accumulate((value for _, value in completed), better))

    def paint(axes: Axes) -> None:
        _scatter_trials(axes, [(t.number, t) for t in trials], search.best())
        if best:
            numbers = [number for number, _ in completed]
            last = max(numbers[-1], trials[-1].number)
            axes.step([*numbers, last], [*best, best[-1]], where="post", color=INK, linewidth=1.2, label="best so far")
        axes.set(xlabel="trial", ylabel=brief(search.metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes, num_columns=4)

    so_far = dict(zip((number for number, _ in completed), best, strict=True))
    rows = tuple((t.number, t.value, t.state, so_far.get(t.number)) for t in trials)
    return Plot("Objective by trial", "", draw(paint), ("trial", search.metric, "state", "best so far"), rows)


def draw_importance(search: SearchSummary) -> Plot | None:
    """The share of the objective's variance each parameter explains; None where none was computed."""
    if not search.importance:
        return None
    importance = sorted(search.importance.items(), key=lambda item: -item[1])
    names = short_names([name for name, _ in importance])

    def paint(axes: Axes) -> None:
        places = range(len(importance))
        axes.barh(places, [share for _, share in importance], color=PALETTE[0], height=0.6)
        for place, (_, share) in enumerate(importance):
            note_beside(axes, f"{share:.0%}", share, place)
        axes.set_yticks(places, [brief(names[name], 24) for name, _ in importance])
        axes.set(xlim=(0, 1.15 * max(share for _, share in importance) or 1.0), xlabel="share of the variance")
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    rows: tuple[tuple[Cell, ...], ...] = tuple(importance)
    return Plot("Parameter importance", "", draw(paint), ("parameter", "share"), rows)


def draw_parameters(search: SearchSummary) -> Plot | None:
    """The objective against each searched parameter, one panel each; None without parameters."""
    names = search.parameters()
    if not names:
        return None
    num_columns = min(PANELS_PER_ROW, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    titles = short_names(names)

    def paint(*panels: Axes) -> None:
        for place, axes in enumerate(panels):
            if place >= len(names):
                axes.axis("off")
                continue
            _paint_parameter(axes, names[place], titles[names[place]], search)
            if place % num_columns == 0:
                axes.set_ylabel(brief(search.metric, 28))

    caption = "Filled dots are complete trials, rings were stopped early, the star is the best."
    svg = draw(paint, width=10.8, height=0.4 + 2.1 * num_rows, height_ratios=(1.0,) * num_rows, num_columns=num_columns)
    rows = tuple(
        (t.number, t.state, t.value, *(format_setting(t.params[name]) if name in t.params else "" for name in names))
        for t in sorted(search.trials, key=lambda trial: trial.number)
    )
    return Plot(
        "Searched parameters against the objective", caption, svg, ("trial", "state", search.metric, *names), rows
    )


def draw_stability(curves: Sequence[StabilityCurve]) -> Plot:
    """Attention movement between consecutive epochs, one thin line per seed and their mean, with and without anchor."""

    def paint(axes: Axes) -> None:
        for anchored, colour in ((False, PALETTE[1]), (True, PALETTE[0])):
            chosen = [curve for curve in curves if curve.anchored is anchored]
            for curve in chosen:
                axes.plot(curve.epochs, curve.jsd, color=colour, linewidth=0.8, alpha=0.4)
            if chosen:
                label = f"{'with' if anchored else 'without'} anchor ({len(chosen)} seed{'s'[: len(chosen) > 1]})"
                axes.plot(*_mean_curve(chosen), color=colour, linewidth=2.4, label=label)
        values = [value for curve in curves for value in curve.jsd]
        if values and min(values) > 0 and max(values) > 50 * min(values):
            log_scale(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel="epoch", ylabel="Jensen-Shannon divergence (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes, num_columns=2)

    caption = (
        "Measured on the same training bags: 0 means unchanged, ln 2 ≈ 0.693 means that the "
        "attention moved to other instances altogether. Thin lines are single seeds, thick lines their mean."
    )
    rows = tuple(
        ("with" if curve.anchored else "without", curve.seed, epoch, value)
        for curve in curves
        for epoch, value in zip(curve.epochs, curve.jsd, strict=True)
    )
    svg = draw(paint, width=10.8, height=3.6)
    return Plot(
        "Movement of attention between consecutive epochs",
        caption,
        svg,
        ("anchor", "seed", "epoch", "divergence"),
        rows,
    )


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each dotted path by its last segments, as many as tell it from the others.

    Example:
        >>> short_names(["model.anchor.kl_weight", "model.head.dim", "model.aggregator.dim"])
        {'model.anchor.kl_weight': 'kl_weight', 'model.head.dim': 'head.dim', 'model.aggregator.dim': 'aggregator.dim'}
    """

    def tail(path: str, length: int) -> str:
        return ".".join(path.split(".")[-length:])

    return {
        path: next(
            tail(path, length)
            for length in range(1, path.count(".") + 2)
            if length > path.count(".") or sum(tail(other, length) == tail(path, length) for other in paths) == 1
        )
        for path in paths
    }


def _paint_parameter(axes: Axes, name: str, title: str, search: SearchSummary) -> None:
    trials = [t for t in search.trials if name in t.params]
    scale = search.scales.get(name, "linear")
    axes.set_title(brief(f"1 - {title}" if scale == "complement_log" else title, 30), loc="left", color=INK)
    if scale == "choice" or not all(_is_number(t.params[name]) for t in trials):
        settings = sorted((t.params[name] for t in trials), key=_choice_order)
        choices = list(dict.fromkeys(map(format_setting, settings)))
        _scatter_trials(axes, [(choices.index(format_setting(t.params[name])), t) for t in trials], search.best())
        axes.set_xticks(range(len(choices)), [brief(choice, 10) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return
    values = [(float(t.params[name] or 0), t) for t in trials]
    if scale == "complement_log":
        values = [(1 - value, t) for value, t in values]
    _scatter_trials(axes, values, search.best())
    if scale != "linear":
        log_scale(axes, "x")


def _is_number(setting: Setting) -> bool:
    return isinstance(setting, int | float) and not isinstance(setting, bool)


def _choice_order(setting: Setting) -> tuple[bool, float, str]:
    if isinstance(setting, int | float):
        return False, float(setting), ""
    return True, 0.0, str(setting)


def _scatter_trials(axes: Axes, trials: Sequence[tuple[float, TrialRow]], best: TrialRow | None) -> None:
    """Completed trials as filled dots, stopped ones as rings, the best one marked; those without a value left out."""
    valued = [(x, t.value, t) for x, t in trials if t.value is not None]
    stopped = [(x, value) for x, value, t in valued if t.state != "COMPLETE"]
    if stopped:
        axes.scatter(*_columns(stopped), s=20, facecolors="none", edgecolors="#9aa5b0", zorder=3, label="stopped early")
    completed = [(x, value) for x, value, t in valued if t.state == "COMPLETE"]
    if completed:
        axes.scatter(*_columns(completed), s=20, color=PALETTE[0], alpha=0.8, linewidths=0, zorder=3, label="complete")
    marked = [(x, value) for x, value, t in valued if t is best]
    if marked:
        axes.scatter(*_columns(marked), s=70, marker="*", color=PALETTE[1], zorder=4, label="best")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean_curve(curves: Sequence[StabilityCurve]) -> tuple[list[int], list[float]]:
    values: dict[int, list[float]] = {}
    for curve in curves:
        for epoch, value in zip(curve.epochs, curve.jsd, strict=True):
            values.setdefault(epoch, []).append(value)
    epochs = sorted(epoch for epoch, found in values.items() if len(found) == len(curves))
    return epochs, [float(np.mean(values[epoch])) for epoch in epochs]
