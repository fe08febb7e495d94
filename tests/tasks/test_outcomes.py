"""Outcome columns named by a configuration: both polarities end as 1 = observed, and what is unclear is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from asmil.data.config import LabelColumns
from asmil.errors import ConfigError, DataError
from tasks.outcomes import OutcomeColumns


def frame(times: list[object], marks: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"months": times, "mark": marks}, index=[f"s{number}" for number in range(len(times))])


@pytest.mark.parametrize(("role", "expected"), [("event", [1, 0, 1]), ("censor", [0, 1, 0])])
def test_both_polarities_give_one_where_the_event_was_observed(role: str, expected: list[int]) -> None:
    columns = OutcomeColumns.configured(LabelColumns(time="months", **{role: "mark"}), "survival")
    assert columns.role == role
    time_B, event_B = columns.read(frame([1.5, 2, 0], [1, 0.0, 1]))
    assert (time_B.tolist(), event_B.tolist()) == ([1.5, 2, 0], expected)
    assert (str(time_B.dtype), str(event_B.dtype)) == ("float64", "int64")


def test_polarity_has_to_be_configured_and_only_one_way() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.labels\.event: required by task\.kind survival, .* data\.labels\.censor"
    ):
        OutcomeColumns.configured(LabelColumns(time="months"), "survival")
    with pytest.raises(ConfigError, match=r"data\.labels\.time"):
        OutcomeColumns.configured(LabelColumns(event="mark"), "survival")
    with pytest.raises(ValueError, match="event and censor are opposite ways to mark an outcome"):
        LabelColumns(time="months", event="mark", censor="mark")


@pytest.mark.parametrize(("role", "advice"), [("event", "use 1 where the event"), ("censor", "use 0 where the event")])
@pytest.mark.parametrize("mark", [2, -1, 0.5])
def test_marks_other_than_zero_and_one_are_refused(role: str, advice: str, mark: float) -> None:
    columns = OutcomeColumns.configured(LabelColumns(time="months", **{role: "mark"}), "survival")
    with pytest.raises(DataError, match=f"'mark' is neither 0 nor 1 for bag 's1' .*: {mark}.*{advice}"):
        columns.read(frame([1, 2], [0, mark]))


def test_negative_and_missing_times_are_refused() -> None:
    columns = OutcomeColumns.configured(LabelColumns(time="months", event="mark"), "survival")
    with pytest.raises(DataError, match="label column 'months' is negative for bag 's0'"):
        columns.read(frame([-0.5, 2], [0, 1]))
    with pytest.raises(DataError, match=r"'months'.*'s1'"):
        columns.read(frame([1.0, None], [0, 1]))
    with pytest.raises(DataError, match="'mark'"):
        columns.read(frame([1, 2], ["dead", "alive"]))
