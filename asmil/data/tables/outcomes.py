"""Survival outcomes on their way into a store: always `event` (1 = observed) and a time whose column names its unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from asmil.data.labels import first_of
from asmil.errors import ConfigError, DataError
from asmil.missing import MISSING_WORDS

__all__ = [
    "EVENT",
    "OutcomeSource",
    "TimeUnit",
    "add_outcome",
    "medians",
    "outcome_lines",
    "read_marks",
]

TimeUnit = Literal["days", "months", "years"]
EVENT = "event"

_YES = frozenset({"1", "1.0", "true", "yes"})
_NO = frozenset({"0", "0.0", "false", "no"})
_SEEN = frozenset({"dead", "deceased", "died", "1:deceased", "event", "uncensored"})
_UNSEEN = frozenset({"alive", "living", "0:living", "no event", "censored"})
_LONGEST = {"months": 600.0, "years": 60.0, "days": 50_000.0}  # about 50 years and more: surely another unit
_FINER = {"months": "days", "years": "months", "days": "another unit"}


@dataclass(frozen=True)
class OutcomeSource:
    """Where the outcome of a table is.

    Attributes:
        time: Column of the follow-up time.
        unit: Its unit.
        mark: Column that marks events or censoring.
        marks_censoring: 1 in `mark` means not observed.
    """

    time: str
    unit: TimeUnit
    mark: str
    marks_censoring: bool

    @property
    def time_name(self) -> str:
        """The column of the store that holds the time; its name gives the unit."""
        return f"time_{self.unit}"


def add_outcome(
    frame: pd.DataFrame, outcome: OutcomeSource, ids: Sequence[str], source: str
) -> tuple[pd.DataFrame, list[str]]:
    """Add `event` and `time_<unit>`; rows without an outcome are left out and named.

    Args:
        frame: The label table.
        outcome: Its columns.
        ids: What to call each row in messages.
        source: The file, as named in errors.

    Returns:
        The table with the two columns, and the ids of the rows that were left out.

    Raises:
        ConfigError: A column of the table has the name of an added one and other values.
        DataError: Marks or times that cannot be read, negative times, or no outcome at all.
    """
    event_B = read_marks(frame[outcome.mark], outcome, source)
    time_B = _times(frame[outcome.time], ids, outcome, source)
    known_B = ~(np.isnan(event_B) | np.isnan(time_B))
    if not known_B.any():
        raise DataError(f"{source}: no row has both {outcome.time!r} and {outcome.mark!r}; name other columns")
    added = {EVENT: (event_B, outcome.mark), outcome.time_name: (time_B, outcome.time)}
    for name, (values_B, origin) in added.items():
        if name in frame.columns and name != origin:
            same = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) == values_B
            if not same[known_B].all():
                raise ConfigError(
                    f"{source}: has a column {name!r} that differs from what is made of {origin!r}; the store keeps "
                    f"the outcome under that name: rename or remove the column {name!r}"
                )
    kept = frame[known_B].copy()
    kept[EVENT] = event_B[known_B].astype(np.int64)
    kept[outcome.time_name] = time_B[known_B]
    return kept, [name for name, known in zip(ids, known_B, strict=True) if not known]


def outcome_lines(time_B: np.ndarray, event_B: np.ndarray, unit: TimeUnit, units_of: str) -> Iterator[str]:
    """The summary of an outcome, and warnings about implausible ones.

    Args:
        time_B: Times, one per patient.
        event_B: 1 where the event was observed.
        unit: Unit of the times.
        units_of: What was counted, such as `437 slides of 373 patients`.
    """
    rate = float(event_B.mean())
    follow_up, survival = medians(time_B, event_B)
    yield (
        f"outcome: {units_of}, {int(event_B.sum())} events ({100 * rate:.1f} %), median follow-up "
        f"{_shown(follow_up, unit)} (reverse Kaplan-Meier), median survival {_shown(survival, unit)} (Kaplan-Meier)"
    )
    if rate > 0.95 or rate < 0.02:
        yield (
            f"warning: {100 * rate:.1f} % have an event, which is rare: check whether the column marks events or "
            "censoring"
        )
    if (time_B == 0).any():
        yield f"warning: {int((time_B == 0).sum())} times are 0; training refuses them unless task.zero_time: shift"
    if time_B.max() > _LONGEST[unit]:
        yield f"warning: the longest time is {time_B.max():g} {unit}: is it in {_FINER[unit]}? correct --time-unit"


def medians(time_B: np.ndarray, event_B: np.ndarray) -> tuple[float | None, float | None]:
    """Median follow-up (reverse Kaplan-Meier) and median survival (Kaplan-Meier); None where it is not reached.

    Both are plain Kaplan-Meier estimates; the follow-up's takes censoring as the event.

    Args:
        time_B: Times.
        event_B: 1 where the event was observed.
    """
    times, row_B = np.unique(time_B, return_inverse=True)
    count = np.bincount(row_B)
    at_risk = count[::-1].cumsum()[::-1]
    events = np.bincount(row_B, weights=event_B)
    return _half(times, 1 - (count - events) / at_risk), _half(times, 1 - events / at_risk)


def _half(times: np.ndarray, factors: np.ndarray) -> float | None:
    below = np.cumprod(factors) <= 0.5 + 1e-12
    return float(times[below.argmax()]) if below.any() else None


def _shown(value: float | None, unit: str) -> str:
    return "null (not reached)" if value is None else f"{value:.2f} {unit}"


def read_marks(values: pd.Series, outcome: OutcomeSource, source: str) -> np.ndarray:
    """1 where the event was observed, 0 where not, NaN where it is not known.

    Numbers mean what the polarity says. Words such as dead, Alive or `1:DECEASED` say it themselves, so they are
    understood in an event column only.

    Args:
        values: The column of marks.
        outcome: Its polarity.
        source: The file, as named in errors.

    Raises:
        DataError: Some values are not understood.
    """
    meaning: dict[str, float] = dict.fromkeys(MISSING_WORDS, np.nan)
    meaning |= dict.fromkeys(_YES, 0.0 if outcome.marks_censoring else 1.0)
    meaning |= dict.fromkeys(_NO, 1.0 if outcome.marks_censoring else 0.0)
    if not outcome.marks_censoring:
        meaning |= dict.fromkeys(_SEEN, 1.0) | dict.fromkeys(_UNSEEN, 0.0)
    texts = [_as_word(value) for value in values]
    unknown = list(dict.fromkeys(str(value) for value, word in zip(values, texts, strict=True) if word not in meaning))
    if unknown:
        option = "--censor-column" if outcome.marks_censoring else "--event-column"
        hint = "use 1 where the event was observed and 0 where not, or words such as dead and alive"
        if outcome.marks_censoring:
            hint = "use 1 where the event was not observed and 0 where it was; for words give --event-column"
        raise DataError(
            f"{source}: {option} {outcome.mark}: {len(unknown)} values are not understood: {first_of(unknown)}; {hint}"
        )
    return np.array([meaning[word] for word in texts], dtype=np.float64)


def _as_word(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value).strip().lower()


def _times(values: pd.Series, ids: Sequence[str], outcome: OutcomeSource, source: str) -> np.ndarray:
    where = f"{source}: --time-column {outcome.time}"
    missing_B = np.array([_as_word(value) in MISSING_WORDS for value in values], dtype=bool)
    time_B = pd.to_numeric(values.where(~missing_B), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    broken_B = ~np.isfinite(time_B) & ~missing_B
    if broken_B.any():
        found = list(dict.fromkeys(str(value) for value in values[broken_B]))
        raise DataError(f"{where}: {len(found)} values are not numbers: {first_of(found)}; correct the table")
    negative_B = time_B < 0
    if negative_B.any():
        found = [f"{name} ({time:g})" for name, time in zip(np.array(ids)[negative_B], time_B[negative_B], strict=True)]
        raise DataError(f"{where}: {len(found)} times are negative: {first_of(found)}; correct or remove these rows")
    return time_B
