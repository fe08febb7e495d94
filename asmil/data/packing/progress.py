"""How far a conversion is: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["HalfMinutes", "Progress"]


class HalfMinutes:
    """Says when half a minute has passed since the start, or since it last said so.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def passed(self) -> bool:
        """Whether one has passed."""
        if self._clock() - self._last < 30.0:
            return False
        self._last = self._clock()
        return True


class Progress:
    """Counts slides, feature values and source bytes; shows them. Use as a context manager.

    `add` may be called from any thread, the rest from one.

    Args:
        num_bags: Slides to be read.
        num_values: Feature values they hold.
        say: Receives the lines where there is no bar.
        bar: Show a bar.
        clock: Seconds since any moment.
    """

    def __init__(
        self,
        num_bags: int,
        num_values: int,
        say: Callable[[str], None],
        *,
        bar: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = (num_bags, num_values)
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._pause = HalfMinutes(clock)
        self._bags = self._values = self._bytes = 0
        self._bar = _bar(num_values) if bar else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._refresh(self._bar)
            self._bar.stop()

    def add(self, bags: int, values: int, nbytes: int) -> None:
        """Count slides that were read, or, with negative numbers, that must be read again."""
        with self._lock:
            self._bags += bags
            self._values += values
            self._bytes += nbytes

    def tick(self) -> None:
        """Show what has changed, if it is time."""
        if self._bar is not None:
            self._refresh(self._bar)
        elif self._pause.passed():
            self._say(self.line())

    def line(self) -> str:
        """Where it stands, as one line."""
        passed = max(self._clock() - self._started, 1e-9)
        share = self._values / self._total[1] if self._total[1] else 1.0
        left = f", {_duration(passed * (1 - share) / share)} left" if 0 < share < 1 else ""
        return f"{self._bags} of {self._total[0]} slides, {self.rates()}{left}"

    def rates(self) -> str:
        """Speed since the start."""
        passed = max(self._clock() - self._started, 1e-9)
        return f"{self._bags / passed:.1f} slides/s, {self._bytes / passed / 1e9:.2f} GB/s"

    def summary(self) -> str:
        """Totals, as the last clause of a conversion."""
        passed = self._clock() - self._started
        return f"read {self._bytes / 1e9:.2f} GB in {_duration(passed)} ({self.rates()})"

    def _refresh(self, bar: Bar) -> None:
        done = f"{self._bags}/{self._total[0]} slides"
        bar.update(bar.task_ids[0], completed=self._values, done=done, rates=self.rates())


def _bar(num_values: int) -> Bar:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.fields[done]}"),
        BarColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    ]
    bar = Progress(*columns)
    bar.add_task("convert", total=num_values, done="", rates="")
    return bar


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
