"""What a status column means must be said: the question that is asked, with what either answer would give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from asmil.data.labels import first_of
from asmil.data.tables.layouts import OutcomeHint, TableLayout
from asmil.data.tables.outcomes import OutcomeSource, TimeUnit, read_marks
from asmil.errors import ConfigError, DataError

__all__ = ["Asked", "advice_on", "polarity_warning", "question", "unit_in_name"]

_MARK_NAME = re.compile(r"event|censor|status|dead|death|deceased|alive", re.IGNORECASE)
_CENSOR_NAME = re.compile(r"censor", re.IGNORECASE)
_UNIT_WORD = re.compile(r"(?<![a-z])(day|month|year)s?(?![a-z])", re.IGNORECASE)
_UNITS: dict[str, TimeUnit] = {"day": "days", "month": "months", "year": "years"}


@dataclass(frozen=True)
class Asked:
    """The table a question is about.

    Attributes:
        source: The file, as named in messages.
        frame: Its rows.
        group: Column of patients, if it is known: each counts once.
        time: The named time column, if there is one.
        layout: The recognised layout.
    """

    source: str
    frame: pd.DataFrame
    group: str | None
    time: str | None
    layout: TableLayout | None

    @property
    def hints(self) -> list[OutcomeHint]:
        """The outcomes that the layout may mean."""
        outcomes = () if self.layout is None else self.layout.outcomes
        return [hint for hint in outcomes if self.time in (None, hint.time)]


def unit_in_name(column: str) -> TimeUnit | None:
    """The unit that the name of a time column states.

    Example:
        >>> unit_in_name("os_survival_days"), unit_in_name("daylight"), unit_in_name("days_or_months")
        ('days', None, None)
    """
    found = {_UNITS[word.lower()] for word in _UNIT_WORD.findall(column.replace("_", " "))}
    return found.pop() if len(found) == 1 else None


def question(asked: Asked) -> ConfigError:
    """What to ask if an outcome is there but no column was named as event or censoring."""
    times = [asked.time] if asked.time is not None else [hint.time for hint in asked.hints]
    found = "; ".join(_readings(asked)) or "no column whose name and values look like it"
    advice = " or ".join(hint.words() for hint in asked.hints)
    tool = "" if asked.layout is None or not advice else f". The authors of a {asked.layout.name} mean {advice}"
    other = "" if asked.time is not None else ". To store the table without an outcome, give --target-column"
    return ConfigError(
        f"{asked.source}: follow-up times ({first_of(times)}) do not tell who had the event: name --event-column (1 = "
        "event, such as death, observed) or --censor-column (1 = event not observed); the two are opposites, and the "
        f"wrong one gives plausible, inverted results. Found: {found}{tool}{other}"
    )


def advice_on(asked: Asked) -> str | None:
    """How to store an outcome that a table seems to hold; None if it does not look like one."""
    if asked.hints:
        return (
            f"{asked.source} seems to hold outcomes; to store one, give {' or '.join(h.words() for h in asked.hints)}"
        )
    times = [str(name) for name in asked.frame.columns if unit_in_name(str(name))]
    marks = [str(name) for name in asked.frame.columns if _MARK_NAME.search(str(name))]
    if not times or not marks:
        return None
    return (
        f"{asked.source} seems to hold an outcome (times {first_of(times)}; marks {first_of(marks)}); to have it "
        "checked and summarised, give --time-column and --event-column or --censor-column"
    )


def polarity_warning(mark: str, marks_censoring: bool, layout: TableLayout | None) -> str | None:
    """A sentence if name or layout of a status column say the opposite of the option it was given for."""
    hints = () if layout is None else layout.outcomes
    meant = next((hint.option for hint in hints if hint.mark == mark), None)
    given = "--censor-column" if marks_censoring else "--event-column"
    if meant is not None and layout is not None and meant != given:
        return f"warning: {given} {mark} was given, but in a {layout.name} it is {meant} {mark}: check the polarity"
    if meant is None and not marks_censoring and _CENSOR_NAME.search(mark):
        return f"warning: --event-column {mark} was given, but its name speaks of censoring: check the polarity"
    return None


def _readings(asked: Asked) -> Iterator[str]:
    """For each column that may mark the event, the events that either option would give."""
    frame = asked.frame
    if asked.group is not None and asked.group in frame.columns:
        frame = frame[~frame[asked.group].duplicated()]
    what = "rows" if frame is asked.frame else "patients"
    hinted = [hint.mark for hint in asked.hints]
    names = [name for name in map(str, frame.columns) if (name in hinted if hinted else _MARK_NAME.search(name))]
    for name in names:
        parts = [
            f"{option} {name} gives {events} events among {known} {what} ({100 * events / known:.1f} %)"
            for option, marks_censoring in (("--event-column", False), ("--censor-column", True))
            for events, known in _counted(frame[name], name, marks_censoring)
        ]
        if parts:
            yield ", ".join(parts)


def _counted(values: pd.Series, name: str, marks_censoring: bool) -> Iterator[tuple[int, int]]:
    """Events and rows with a known status; nothing if the values cannot be read so."""
    try:
        event_B = read_marks(values, OutcomeSource("", "days", name, marks_censoring), "")
    except DataError:
        return
    known_B = ~np.isnan(event_B)
    if known_B.any():
        yield int(event_B[known_B].sum()), int(known_B.sum())
