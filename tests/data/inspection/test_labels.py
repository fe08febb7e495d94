"""Figures of label tables, counted by hand, and medians against scikit-survival."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sksurv.nonparametric import kaplan_meier_estimator

from asmil.data.inspection.labels import GroupFigures, summarise_labels
from asmil.errors import ConfigError

SLIDES = [f"s{number}" for number in range(8)]


def table() -> pd.DataFrame:
    """Patients p0 (three slides), p1 (two), p2 (one), two slides of nobody, and a row of a slide that is not stored."""
    patients = ["p0", "p0", "p0", "p1", "p1", "p2", None, None, "p9"]
    outcome = {"p0": (1, 5.0), "p1": (0, 9.0), "p2": (1, 2.0), None: (0, 7.0), "p9": (1, 100.0)}
    return pd.DataFrame(
        {
            "slide": [*SLIDES, "gone"],
            "patient": patients,
            "grade": [1.0, 1, 2, np.nan, 2, 2, 1, 1, 3],
            "age": [61.5, 61.5, 61.5, 70, 70, 44, 50, 51, 1],
            "event": [outcome[patient][0] for patient in patients],
            "time_months": [outcome[patient][1] for patient in patients],
        }
    )


def test_columns_groups_and_what_does_not_match() -> None:
    found = summarise_labels(table(), [*SLIDES, "new"])
    assert (found.rows, found.id_column) == (9, "slide")
    assert (found.labels_without_bag, found.bags_without_label) == (("gone",), ("new",))
    assert found.groups == GroupFigures("patient", 3, {1: 1, 2: 1, 3: 1}, 2)
    columns = {column.name: column for column in found.columns}
    assert (columns["grade"].kind, columns["grade"].counts, columns["grade"].missing) == (
        "classes",
        {"1": 4, "2": 3},
        1,
    )
    age = columns["age"]
    assert (age.kind, age.low, age.median, age.high) == ("numbers", 44, 61.5, 70)
    assert (columns["slide"].kind, columns["slide"].distinct) == ("names", 8)
    assert (columns["patient"].kind, columns["patient"].distinct, columns["patient"].missing) == ("names", 3, 2)


def test_the_outcome_counts_every_patient_once_and_slides_of_nobody_for_themselves() -> None:
    found = summarise_labels(table(), SLIDES).outcome
    assert found is not None
    time_B, event_B = np.array([5.0, 9, 2, 7, 7]), np.array([1, 0, 1, 0, 0])
    assert (found.units, found.events, found.event_rate, found.time_unit) == (5, 2, 0.4, "months")
    for value, observed_B in ((found.median_survival, event_B == 1), (found.median_follow_up, event_B == 0)):
        times, survival = kaplan_meier_estimator(observed_B, time_B)
        assert value == (times[survival <= 0.5][0] if (survival <= 0.5).any() else None)


def test_groups_of_another_name_are_told_and_a_misspelt_one_refused() -> None:
    renamed = table().rename(columns={"patient": "who"})
    assert summarise_labels(renamed, SLIDES).groups is None
    told = summarise_labels(renamed, SLIDES, group_column="who")
    assert told.groups is not None
    assert told.groups.groups == 3
    with pytest.raises(ConfigError, match="--group-column wo: the label table has no such column; it has: slide, who"):
        summarise_labels(renamed, SLIDES, group_column="wo")


def test_a_table_about_other_slides_has_no_id_column() -> None:
    found = summarise_labels(table(), ["x", "y"])
    assert (found.id_column, found.bags_without_label) == (None, ("x", "y"))


def test_words_dates_and_booleans() -> None:
    frame = pd.DataFrame(
        {
            "slide": SLIDES,
            "kind": ["a", "b"] * 4,
            "seen": [True, False] * 4,
            "day": pd.date_range("2020-01-01", periods=8),
            "note": [f"n{number}" for number in range(8)],
        }
    )
    found = {column.name: (column.kind, column.counts) for column in summarise_labels(frame, SLIDES).columns}
    assert found == {
        "slide": ("names", None),
        "kind": ("classes", {"a": 4, "b": 4}),
        "seen": ("classes", {"False": 4, "True": 4}),
        "day": ("dates", None),
        "note": ("names", None),
    }
