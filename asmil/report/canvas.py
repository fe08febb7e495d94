"""The look of all plots, and their way from matplotlib into a page: inline SVG whose text stays text."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from asmil.report.tables import Cell

__all__ = ["INK", "MUTED", "PALETTE", "Plot", "brief", "draw", "legend_above", "log_scale", "note_beside"]

INK, MUTED = "#1b2733", "#66727f"
PALETTE = ("#0b6aa2", "#d1601f", "#1d8f6d", "#9a5aa8", "#c29a1b", "#5b6b7b")
"""Series colours, in order of use; told apart by readers with colour-vision deficiencies."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asmil",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8b96a1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e9edf1",
    "grid.linewidth": 0.8,
    "savefig.transparent": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_TAG = re.compile(r"<[^<>]*>")
_NAMESPACE = re.compile(r'\s+xmlns(?::\w+)?="[^"]*"')
_IDENTIFIER = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Plot:
    """A drawn figure with the numbers it shows.

    Attributes:
        title: What it shows.
        caption: How to read it; may be empty.
        svg: An `<svg>` element without outside references.
        columns: Header of the numbers.
        rows: The numbers.
    """

    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def draw(
    paint: Callable[..., None],
    *,
    width: float = 5.2,
    height: float = 3.3,
    height_ratios: tuple[float, ...] = (1.0,),
    num_columns: int = 1,
) -> str:
    """Let `paint` fill the axes of a new canvas and return them as an `<svg>` element.

    Text is taken literally (no math mode) and takes the page's typeface. Equal drawings give equal bytes.

    Args:
        paint: Called with one `Axes` per panel, row by row.
        width: Inches; a column of the page is 5.2 wide, the whole page 10.8.
        height: Inches.
        height_ratios: Relative heights of the rows of panels.
        num_columns: Panels per row.

    Returns:
        The element; its ids are unique to the drawing.
    """
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        panels = canvas.subplots(
            len(height_ratios), num_columns, squeeze=False, gridspec_kw={"height_ratios": height_ratios}
        )
        axes: list[Axes] = panels.ravel().tolist()
        paint(*axes)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(buffer.getvalue())


def brief(text: str, limit: int = 40) -> str:
    """A label that fits its place; the numbers under the figure have the whole of it.

    Example:
        >>> brief("age only", 40), brief("random risk", 8)
        ('age only', 'random …')
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def legend_above(axes: Axes, num_columns: int) -> None:
    """Put the legend above the axes, where it hides nothing; without labelled series there is none."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=num_columns, borderaxespad=0.2, columnspacing=1.4)


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, its numbers written plainly."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def note_beside(axes: Axes, text: str, x: float, y: float, colour: str = INK) -> None:
    """Write a small text to the right of a point."""
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def _inline(document: str) -> str:
    """The `<svg>` element of an SVG file, without prolog, metadata, style and namespaces, its ids made unique."""
    element = document[document.index("<svg") :].strip()
    element = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", element, flags=re.DOTALL)
    prefix = "p" + hashlib.sha256(element.encode()).hexdigest()[:10] + "-"
    tagged = _TAG.sub(lambda tag: _IDENTIFIER.sub(rf"\g<1>{prefix}", _NAMESPACE.sub("", tag.group())), element)
    return tagged.replace("<svg ", '<svg role="img" ', 1)
