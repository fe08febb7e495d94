"""Reading label columns: what is one class, and what is refused with the bags named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from asmil.errors import ConfigError, DataError
from tasks.labels import class_indices, class_list, class_names, configured, label_column, numbers


def frame(values: object, name: str = "label") -> pd.DataFrame:
    column = pd.Series(values)
    return pd.DataFrame({name: column.to_numpy()}, index=pd.Index([f"bag-{k}" for k in range(len(column))]))


@pytest.mark.parametrize(
    "values",
    [[1, 0], [1.0, 0.0], ["1", "0"], [True, False], np.array([1, 0], dtype=np.int8), [" 1", "0 "], [np.bool_(1), 0]],
)
def test_whole_numbers_in_any_dress_are_the_same_classes(values: object) -> None:
    assert class_names(frame(values), "label") == ["1", "0"]


def test_merged_labels_and_others_as_they_are() -> None:
    assert class_names(frame(["N", "PB", "IC"]), "label", {"N": "benign", "PB": "benign"}) == ["benign", "benign", "IC"]
    assert class_names(frame([0, 3]), "label", {"0": "low"}) == ["low", "3"]


@pytest.mark.parametrize("broken", [None, float("nan"), "", "  ", 0.5, float("inf")])
def test_what_is_no_class_is_refused_with_its_bag(broken: object) -> None:
    with pytest.raises(DataError, match=r"'label' holds no class for bag 'bag-1' \(first: "):
        class_names(frame(np.array(["a", broken, "b"], dtype=object)), "label")


def test_numbers_are_ordered_as_numbers_and_come_first() -> None:
    assert class_list(["b", "2", "10", "a", "-1", "2"]) == ("-1", "2", "10", "a", "b")


def test_an_unknown_class_is_refused_with_its_bags_and_the_known_ones() -> None:
    table = frame(["a", "x", "y", "x"])
    with pytest.raises(DataError, match=r"class 'x', 'y' of 3 bags \('bag-1', 'bag-2', 'bag-3'\) is not one of 'a'"):
        class_indices(table, class_names(table, "label"), ("a",))
    assert class_indices(table, class_names(table, "label"), ("y", "x", "a")).tolist() == [2, 1, 0, 1]


def test_many_bags_are_named_by_the_first_five() -> None:
    with pytest.raises(DataError, match=r"for 7 bags \('bag-0', .*'bag-4', \.\.\.\)"):
        class_names(frame([None] * 7), "label")


def test_numbers_refuse_text_and_gaps() -> None:
    assert numbers(frame(["3", 4.5, 2]), "label", "time").tolist() == [3.0, 4.5, 2.0]
    assert numbers(frame(pd.array([1, 2], dtype="Int64")), "label", "time").tolist() == [1.0, 2.0]
    for broken in (None, "dead", float("inf")):
        with pytest.raises(DataError, match="'label' holds no finite number for bag 'bag-0'"):
            numbers(frame(np.array([broken, 1], dtype=object)), "label", "time")


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"data\.labels\.time: the label table has no column 'os_month'; did you mean"):
        label_column(frame([1], name="os_months"), "os_month", "time")
    with pytest.raises(DataError, match="it has: label"):
        label_column(frame([1]), "zzz", "time")
    with pytest.raises(ConfigError, match=r"data\.labels\.event: required by task\.kind survival"):
        configured(None, "event", "survival")
