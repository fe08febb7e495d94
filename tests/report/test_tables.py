"""Numbers and tables as text."""

from __future__ import annotations

import io

import pytest

from asmil.metrics.values import Metric
from asmil.report.tables import Cell, format_metric, format_number, format_setting, format_table, print_table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.6666, "0.667"),
        (0.001, "0.001"),
        (0.00099, "0.00099"),
        (-0.5, "-0.500"),
        (54321.0, "5.43e+04"),
    ],
)
def test_numbers_keep_three_decimals_or_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (0, "0"),
        (0.9999, "0.9999"),
        (1e-5, "1e-05"),
        ("nsf", "nsf"),
    ],
)
def test_settings_read_as_in_yaml(setting: bool | int | float | str | None, text: str) -> None:
    assert format_setting(setting) == text


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric(0.5), "0.500"),
        (Metric(0.5, "collapsed"), "0.500 (collapsed)"),
        (Metric(0.7, None, (0.6, 0.8)), "0.700 [0.600, 0.800]"),
        (Metric(0.5, "collapsed", (0.5, 0.5)), "0.500 [0.500, 0.500] (collapsed)"),
        (Metric(None, "no_events"), "n/a (no_events)"),
        (Metric(None), "n/a"),
    ],
)
def test_metrics_show_interval_warning_and_reason(metric: Metric, text: str) -> None:
    assert format_metric(metric) == text


ROWS: list[tuple[Cell, ...]] = [
    (0, "a [bold]x[/bold]", 0.25, Metric(0.7, interval=(0.6, 0.8))),
    (12, "b", None, Metric(None, "no_events")),
]


def test_table_is_aligned() -> None:
    assert format_table(("trial", "name", "loss", "C"), ROWS).splitlines() == [
        "trial  name               loss                     C",
        "-----  ----------------  -----  --------------------",
        "    0  a [bold]x[/bold]  0.250  0.700 [0.600, 0.800]",
        "   12  b                   n/a       n/a (no_events)",
    ]


def test_table_without_rows_is_its_header() -> None:
    assert format_table(("trial", "C"), []) == "trial  C\n-----  -"


def test_cells_cannot_break_lines_or_send_terminal_codes() -> None:
    text = format_table(("name",), [("one\ntwo\x1b[31mred",)])
    assert text.splitlines()[2] == "one two [31mred"
    assert float("nan") != 0
    assert format_table(("x",), [(float("nan"),)]).splitlines()[2] == "n/a"


def test_plain_text_into_files() -> None:
    file = io.StringIO()
    print_table(("trial", "name", "loss", "C"), ROWS, title="Trials", file=file)
    assert file.getvalue() == "Trials\n" + format_table(("trial", "name", "loss", "C"), ROWS) + "\n"


def test_rich_table_on_a_terminal_takes_text_literally() -> None:
    file = Terminal()
    print_table(("trial", "name", "loss", "C"), ROWS, title="Trials [red]", file=file)
    text = file.getvalue()
    assert "┃" in text
    assert "Trials [red]" in text
    assert "a [bold]x[/bold]" in text
    assert "n/a (no_events)" in text
