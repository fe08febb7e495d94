"""What a search shows while it runs: a live table on a terminal, one line per finished trial elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from asmil.report.tables import format_number, format_setting
from tune.searcher import EPOCH, NUMBER, OBJECTIVE
from tune.study import OVERRIDES, REASON, SearchStudy

__all__ = ["SearchDisplay"]

RECENT = 12
REASON_WIDTH = 60
STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


class SearchDisplay(Callback):  # type: ignore[misc]  # Ray is untyped
    """Follows the trials of one study. Use as a context manager around the search.

    Args:
        study: The study; its state is told to it before Ray calls back.
        title: What is searched, for the table's head.
        metric: Name of the objective.
        budget: Finished trials at which the search ends.
        epochs: Epochs of a full trial, over all inner folds.
        on_finished: Called with the number of each trial that ended, unless it failed.
    """

    def __init__(
        self,
        study: SearchStudy,
        *,
        title: str,
        metric: str,
        budget: int,
        epochs: int,
        on_finished: Callable[[int], None],
    ) -> None:
        self._study = study
        self._title, self._metric, self._budget, self._epochs = title, metric, budget, epochs
        self._on_finished = on_finished
        self._running: dict[int, Mapping[str, Any]] = {}
        self._recent: deque[tuple[str, ...]] = deque(maxlen=RECENT)
        self._summary = self._summarize()
        self._console = Console()
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray writes its callbacks into a file that no one reads again."""
        return {}

    def __enter__(self) -> SearchDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.clear()
        if self._console.is_terminal:
            self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on after its worker was lost."""
        self._running[trial.config[NUMBER]] = {"config": trial.config}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is over."""
        self._running[trial.config[NUMBER]] = result

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, to its end or stopped early."""
        self._finish(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is given up."""
        self._finish(trial)

    def _finish(self, trial: Any) -> None:
        number = trial.config[NUMBER]
        self._running.pop(number, None)
        recorded = self._study.study.trials[number]
        state = recorded.state.name
        value = list(recorded.intermediate_values.values())[-1:] if recorded.value is None else [recorded.value]
        outcome = str(recorded.user_attrs.get(REASON, ""))[:REASON_WIDTH] if state == "FAIL" else ""
        row = (
            str(number),
            state,
            f"{max(recorded.intermediate_values, default=0)}/{self._epochs}",
            _figure(value[0]) if value else "-",
            outcome or _describe(trial.config[OVERRIDES]),
        )
        if state != "FAIL":
            self._on_finished(number)
        self._recent.append(row)
        self._summary = self._summarize()
        if not self._console.is_terminal:
            place = f"{self._title}: trial {row[0]:>3} {row[1]:<8} epoch {row[2]:>7}"
            print(f"{place}  {self._metric} {row[3]}  {self._summary}  {row[4]}", flush=True)

    def _summarize(self) -> str:
        best = self._study.best()
        value = None if best is None else best.value
        found = "none complete" if best is None or value is None else f"best {_figure(value)} in trial {best.number}"
        return f"[{self._study.counts().finished}/{self._budget}, {found}]"

    def _table(self) -> Table:
        table = Table(title=f"{self._title} {self._summary}", title_justify="left", expand=False)
        for heading in ("trial", "state", "epoch", self._metric, "settings"):
            table.add_column(heading, justify="right" if heading in ("trial", "epoch", self._metric) else "left")
        for row in self._recent:
            table.add_row(*row, style=STYLES.get(row[1]))
        for number, result in sorted(self._running.items()):
            value = result.get(OBJECTIVE)
            table.add_row(
                str(number),
                "running",
                f"{result.get(EPOCH, 0)}/{self._epochs}",
                "-" if value is None else _figure(value),
                _describe(result["config"][OVERRIDES]),
            )
        return table


def _figure(value: float) -> str:
    return format_number(value, decimals=4)


def _describe(overrides: Mapping[str, Any]) -> str:
    """The settings of a trial, each by the last part of its path."""
    return " ".join(f"{path.rpartition('.')[2]}={format_setting(value)}" for path, value in overrides.items())
