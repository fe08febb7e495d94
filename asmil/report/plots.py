"""Draws the figures a task hands over as data: survival curves, ROC curves, confusion matrices, bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from asmil.engine.protocols import Figure
from asmil.report.canvas import INK, MUTED, PALETTE, Plot, brief, draw, legend_above, note_beside
from asmil.report.tables import Cell, format_number

__all__ = ["FIGURE_KINDS", "draw_figure"]


def draw_figure(figure: Figure) -> Plot:
    """Draw a figure by its kind.

    The keys of its data, by kind:

    * `kaplan_meier`: `groups`, each with `name`, `n`, `times`, `survival` (from each time on) and optionally
      `at_risk` (followed up just before each time); optionally `log_rank_p` (a number or None) and `time_unit`.
    * `roc`: `curves`, each with `name`, `fpr`, `tpr` and `auc` (a number or None).
    * `confusion`: `labels` and `counts`, one row per true class.
    * `bars`: `labels`, `values` (None is left blank) and optionally `errors` (half widths).

    Args:
        figure: The figure as data.

    Returns:
        The drawing and its numbers.

    Raises:
        ValueError: The kind is none of these.
    """
    if figure.kind not in FIGURE_KINDS:
        raise ValueError(f"figure {figure.title!r} has kind {figure.kind!r}; known kinds: {', '.join(FIGURE_KINDS)}")
    return FIGURE_KINDS[figure.kind](figure.title, figure.data)


def _kaplan_meier(title: str, data: Mapping[str, Any]) -> Plot:
    groups = data["groups"]
    num_counted = sum(map(_is_counted, groups))
    unit = data.get("time_unit")

    def curves(axes: Axes) -> None:
        for group, colour in zip(groups, _colours(len(groups)), strict=True):
            times, survival = [0.0, *group["times"]], [1.0, *group["survival"]]
            axes.step(times, survival, where="post", color=colour, label=f"{brief(group['name'])} (n = {group['n']})")
        axes.set(ylim=(0, 1.02), ylabel="survival probability", xlabel=f"time ({unit})" if unit else "time")
        axes.set_xlim(left=0)
        legend_above(axes, num_columns=2)
        if "log_rank_p" in data:
            axes.text(0.02, 0.05, f"log-rank p = {_p_value(data['log_rank_p'])}", transform=axes.transAxes, color=INK)

    def curves_over_counts(axes: Axes, table: Axes) -> None:
        curves(axes)
        _write_counts(table, axes, groups)

    svg = (
        draw(curves_over_counts, height=3.4 + 0.2 * num_counted, height_ratios=(1.0, 0.075 * (num_counted + 1)))
        if num_counted
        else draw(curves)
    )
    rows: list[tuple[Cell, ...]] = [
        (group["name"], float(time), float(survival), at_risk)
        for group in groups
        for time, survival, at_risk in zip(
            group["times"], group["survival"], group.get("at_risk") or [None] * len(group["times"]), strict=True
        )
    ]
    return Plot(title, "", svg, ("group", "time", "survival", "at risk"), tuple(rows))


def _write_counts(table: Axes, curves: Axes, groups: Sequence[Mapping[str, Any]]) -> None:
    """The numbers at risk under the ticks of the survival curves, in the curves' colours."""
    low, high = curves.get_xlim()
    ticks = [tick for tick in curves.get_xticks() if low <= tick <= high]
    colours = [colour for group, colour in zip(groups, _colours(len(groups)), strict=True) if _is_counted(group)]
    table.set(xlim=(low, high), ylim=(len(colours) - 0.4, -1.0))
    table.axis("off")
    table.text(low, -0.75, "at risk", color=MUTED, fontsize=8, va="center")
    for line, group in enumerate(filter(_is_counted, groups)):
        times, at_risk = np.asarray(group["times"], dtype=float), [*group["at_risk"], 0]
        for tick in ticks:
            count = at_risk[int(np.searchsorted(times, tick, side="left"))]
            table.text(tick, line, str(count), color=colours[line], fontsize=8, ha="center", va="center")


def _is_counted(group: Mapping[str, Any]) -> bool:
    return group.get("at_risk") is not None


def _roc(title: str, data: Mapping[str, Any]) -> Plot:
    curves = data["curves"]

    def paint(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for curve, colour in zip(curves, _colours(len(curves)), strict=True):
            auc = "n/a" if curve["auc"] is None else format_number(curve["auc"])
            axes.plot(curve["fpr"], curve["tpr"], color=colour, label=f"{brief(curve['name'], 24)} (AUC {auc})")
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="false-positive rate", ylabel="true-positive rate")
        axes.set_aspect("equal")
        axes.legend(loc="lower right")

    rows = [
        (curve["name"], float(x), float(y)) for curve in curves for x, y in zip(curve["fpr"], curve["tpr"], strict=True)
    ]
    svg = draw(paint, width=4.2, height=3.8)
    return Plot(title, "", svg, ("curve", "false-positive rate", "true-positive rate"), tuple(rows))


def _confusion(title: str, data: Mapping[str, Any]) -> Plot:
    labels, counts_TP = [str(label) for label in data["labels"]], np.asarray(data["counts"])
    share_TP = counts_TP / np.maximum(counts_TP.sum(axis=1, keepdims=True), 1)

    def paint(axes: Axes) -> None:
        edges = np.arange(len(labels) + 1) - 0.5
        axes.pcolormesh(edges, edges, share_TP, cmap="Blues", vmin=0, vmax=1.25, edgecolors="white", linewidth=1.5)
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(range(len(labels)), [brief(label, 14) for label in labels])
        axes.set_yticks(range(len(labels)), [brief(label, 18) for label in labels])
        axes.set(xlabel="predicted", ylabel="true")
        for (true, predicted), count in np.ndenumerate(counts_TP):
            share = share_TP[true, predicted]
            colour = "white" if share > 0.6 else INK
            text = f"{count}\n{share:.0%}" if counts_TP[true].any() else str(count)
            axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=8.5)

    size = 1.6 + 0.72 * len(labels)
    rows: tuple[tuple[Cell, ...], ...] = tuple((labels[k], *map(int, counts_TP[k])) for k in range(len(labels)))
    svg = draw(paint, width=max(3.6, 1.25 * size), height=max(2.8, size))
    caption = "Bags of each true class (rows) by predicted class; percentages are of the row."
    return Plot(title, caption, svg, ("true \\ predicted", *labels), rows)


def _bars(title: str, data: Mapping[str, Any]) -> Plot:
    labels, values = [str(label) for label in data["labels"]], data["values"]
    errors = data.get("errors") or [None] * len(values)

    def paint(axes: Axes) -> None:
        places = range(len(labels))
        axes.barh(places, [value or 0.0 for value in values], color=PALETTE[0], height=0.62)
        for place, value, error in zip(places, values, errors, strict=True):
            if value is None:
                note_beside(axes, "n/a", 0, place, MUTED)
            elif error is not None:
                axes.errorbar(value, place, xerr=error, color=INK, linewidth=1.0, capsize=2.5)
        axes.set_yticks(places, [brief(label) for label in labels])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    rows: tuple[tuple[Cell, ...], ...] = tuple((labels[k], values[k], errors[k]) for k in range(len(labels)))
    return Plot(title, "", draw(paint, height=0.9 + 0.3 * len(labels)), ("", "value", "±"), rows)


def _colours(count: int) -> list[str]:
    return [PALETTE[k % len(PALETTE)] for k in range(count)]


def _p_value(p: float | None) -> str:
    return "n/a" if p is None else f"{p:.2g}"


FIGURE_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Plot]] = {
    "kaplan_meier": _kaplan_meier,
    "roc": _roc,
    "confusion": _confusion,
    "bars": _bars,
}
"""How each kind of figure is drawn."""
