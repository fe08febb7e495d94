"""Numbers and tables as text: how every figure is rounded, and tables for terminals and logs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asmil.metrics.values import Metric

__all__ = [
    "Cell",
    "format_cell",
    "format_metric",
    "format_number",
    "format_setting",
    "format_table",
    "numeric_columns",
    "print_table",
]

Cell = str | bool | int | float | Metric | None
"""What a table may hold."""

_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?")


def format_number(value: float, decimals: int = 3) -> str:
    """A measured number with fixed decimals; very small and very large ones in scientific notation.

    Example:
        >>> format_number(0.61334), format_number(7.1e-6), format_number(-12345.0)
        ('0.613', '7.1e-06', '-1.23e+04')
    """
    if value == 0 or 10.0**-decimals <= abs(value) < 1000:
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals}g}"


def format_setting(value: bool | int | float | str | None) -> str:
    """A hyperparameter as it would stand in a YAML file, floats rounded to five digits.

    Example:
        >>> format_setting(0.99931234), format_setting(2e-4), format_setting(True), format_setting(8)
        ('0.99931', '0.0002', 'true', '8')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def format_metric(metric: Metric) -> str:
    """A metric with its 95 % interval and its warning, or why there is none.

    Example:
        >>> format_metric(Metric(0.7128, interval=(0.65, 0.774))), format_metric(Metric(None, "no_events"))
        ('0.713 [0.650, 0.774]', 'n/a (no_events)')
    """
    if metric.value is None:
        return f"n/a ({metric.reason})" if metric.reason else "n/a"
    text = format_number(metric.value)
    if metric.interval is not None:
        text += f" [{format_number(metric.interval[0])}, {format_number(metric.interval[1])}]"
    return f"{text} ({metric.reason})" if metric.reason else text


def format_cell(cell: Cell) -> str:
    """A table cell as one line of printable text; None and non-finite numbers are `n/a`."""
    if isinstance(cell, Metric):
        return format_metric(cell)
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "n/a"
    if isinstance(cell, float):
        return format_number(cell)
    if isinstance(cell, bool | int):
        return format_setting(cell)
    return "".join(character if character.isprintable() else " " for character in cell)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """An aligned plain-text table: a header, a rule, one line per row.

    Args:
        columns: The header.
        rows: Cells, as many per row as there are columns; columns of numbers are aligned to the right.

    Returns:
        The lines, without a final line break.

    Example:
        >>> print(format_table(("fold", "C-index"), [(0, 0.61), (1, Metric(None, "no_events"))]))
        fold          C-index
        ----  ---------------
           0            0.610
           1  n/a (no_events)
    """
    texts = [[format_cell(cell) for cell in row] for row in rows]
    right = numeric_columns(rows, len(columns))
    widths = [max(len(line[k]) for line in [list(map(format_cell, columns)), *texts]) for k in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(aligned).rstrip()

    header = line([format_cell(column) for column in columns])
    return "\n".join([header, "  ".join("-" * width for width in widths), *map(line, texts)])


def numeric_columns(rows: Sequence[Sequence[Cell]], num_columns: int) -> list[bool]:
    """Which columns hold numbers only (as numbers or text), apart from `n/a` and empty cells.

    Example:
        >>> numeric_columns([(1, "0.5", "a"), (None, "n/a (no_events)", "1")], 3)
        [True, True, False]
    """
    return [bool(rows) and all(_is_numeric(row[k]) for row in rows) for k in range(num_columns)]


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str | None = None, file: TextIO | None = None
) -> None:
    """Print a table: drawn by rich on a terminal, plain text into files, pipes and logs.

    Args:
        columns: The header.
        rows: Cells, as for `format_table`.
        title: A line above the table.
        file: Where to print; standard output without it.
    """
    file = sys.stdout if file is None else file
    if not file.isatty():
        print(*([title] if title else []), format_table(columns, rows), sep="\n", file=file)
        return
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    for column, to_right in zip(columns, numeric_columns(rows, len(columns)), strict=True):
        table.add_column(Text(format_cell(column)), justify="right" if to_right else "left")
    for row in rows:
        table.add_row(*(Text(format_cell(cell)) for cell in row))
    Console(file=file).print(table)


def _is_numeric(cell: Cell) -> bool:
    return not isinstance(cell, str) or cell == "" or cell.startswith("n/a") or _NUMBER.fullmatch(cell) is not None
