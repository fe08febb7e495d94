"""The classic sets as MATLAB matrices and MATLAB cells, and the labels that cells carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from asmil.data.sources.classic import MAX_TABLE_BYTES
from asmil.errors import DataError
from tests.data.foreign import ClassicSet, classic_set
from tests.data.foreign_classic import (
    flat,
    labels_of_instances,
    write_andrews_mat,
    write_cell_mat,
)
from tests.data.reading_classic import assert_holds, read_as, with_zeros

# --- C: Andrews MATLAB ---


def test_zeros_that_a_sparse_matrix_leaves_out_are_zeros(tmp_path: Path) -> None:
    data = with_zeros(classic_set())
    source, bags = read_as("andrews-mat", write_andrews_mat(tmp_path / "x", data))
    assert_holds(source, bags, data)
    assert "bag numbers from 1 became ids from 0" in source.notes
    features_ND, labels_N, _ = flat(data)
    path = write_andrews_mat(tmp_path / "y", data, features=features_ND, labels=labels_N[None])
    assert_holds(*read_as("andrews-mat", path), data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"labels": scipy.sparse.csc_matrix([[1.0, 1, 0, -1, -1, -1]])},
            r"labels holds -1, 0, 1, expected 1 and -1; a 0 is a label that was never stored",
        ),
        ({"labels": np.array([[2.0, 2, 2, 1, 1, 1]])}, r"labels holds 1, 2, expected 1 and -1: get"),
        ({"labels": np.ones((1, 5))}, r"features \(6, 5\), 5 labels and 6 bag_ids disagree"),
        ({"bag_ids": np.array([[0, 0, 1, 2, 2, 2]], np.uint8)}, r"bag 0 at instance 0; .* numbered from 1"),
        ({"bag_ids": np.array([[1, 1, 2, 4, 4, 4]], np.uint8)}, r"bag 4 at instance 3; .* without gaps"),
        ({"bag_ids": np.array([[1, 1, 1.5, 2, 2, 2]])}, r"bag numbers are not whole"),
        ({"bag_ids": np.array([[1, 1, np.nan, 2, 2, 2]])}, r"bag numbers are not whole"),
        ({"labels": np.array([[1, 1, 1, -1, 1, -1]])}, r"bag '2' has label 0 at instance 3 and 1 at instance 4"),
        ({"features": "text"}, r"features holds <U.* values, expected real numbers"),
        ({"features": np.ones((6, 2)) * 1j}, r"features holds complex128 values, expected real numbers"),
        ({"features": scipy.sparse.csc_matrix((MAX_TABLE_BYTES // 48 + 1, 6))}, r"bytes, the cap is 4294967296"),
    ],
)
def test_andrews_mat_refuses_damage(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_as("andrews-mat", write_andrews_mat(tmp_path / "x", classic_set(), **changed))


def test_sparse_indices_that_point_outside_the_matrix_are_refused(tmp_path: Path) -> None:
    matrix = scipy.sparse.csc_matrix(flat(classic_set())[0])
    matrix.indices[3] = 1_000_000
    path = tmp_path / "x"
    write_andrews_mat(path, classic_set(), features=matrix)
    with pytest.raises(DataError, match=r"sparse features is damaged \(.*\); get an undamaged copy"):
        read_as("andrews-mat", path)


# --- E: MATLAB cells ---


@pytest.mark.parametrize("negative", [0, -1])
def test_cells_with_either_coding_of_the_label(tmp_path: Path, negative: int) -> None:
    data = classic_set()
    path = write_cell_mat(tmp_path / "x", data, negative=negative)
    assert_holds(*read_as("cell-mat", path), data)


def test_label_column_of_cells_is_refused_unless_told_to_drop_it(tmp_path: Path) -> None:
    data = classic_set()
    path = write_cell_mat(tmp_path / "x", data, label_column=labels_of_instances(data))
    with pytest.raises(DataError, match=r"feature column 6 of 6 equals the label on every row; give --drop-last"):
        read_as("cell-mat", path)
    source, bags = read_as("cell-mat", path, drop_last_column=True)
    assert_holds(source, bags, data)
    assert "dropped feature column 6: it is the label" in source.notes


def elephant(width: int) -> tuple[ClassicSet, list[np.ndarray]]:
    """202 bags with a label column that contradicts two bags, as RGMIL's ELEPHANT does: one mixed, one all 0."""
    generator = np.random.default_rng(5)
    bags = tuple(generator.normal(size=(3, width)) for _ in range(202))
    data = ClassicSet(("",) * 202, (1,) * 101 + (0,) * 101, bags)
    column = labels_of_instances(data)
    column[98] = np.array([0, 1, 0])
    column[99] = np.zeros(3)
    return data, column


@pytest.mark.parametrize(("width", "why"), [(230, ", one more than the 230 of the published sets; "), (7, ", and ")])
def test_label_column_that_contradicts_two_bags_is_still_caught(tmp_path: Path, width: int, why: str) -> None:
    data, column = elephant(width)
    path = write_cell_mat(tmp_path / "elephant.mat", data, label_column=column, negative=-1)
    sentence = r"the last column is the bag's label in 200 of 202 bags \(not in 98, 99\): give --drop-last-column"
    with pytest.raises(DataError, match=rf"{width + 1} feature columns{why}{sentence}"):
        read_as("cell-mat", path)
    source, bags = read_as("cell-mat", path, drop_last_column=True)
    assert_holds(source, bags, data, [str(bag) for bag in range(202)])
    dropped = f"dropped feature column {width + 1}: it is the label, except in bags 98, 99, whose own label counts"
    assert dropped in source.notes


def test_label_column_of_another_coding_or_with_few_rows_is_told_as_well(tmp_path: Path) -> None:
    data = classic_set()
    signed = [np.where(labels, 3.5, -1) for labels in labels_of_instances(data)]
    source, bags = read_as("cell-mat", write_cell_mat(tmp_path / "x", data, label_column=signed), drop_last_column=True)
    assert_holds(source, bags, data)


def test_a_genuine_feature_of_two_values_is_no_label_column(tmp_path: Path) -> None:
    data, column = elephant(6)
    generator = np.random.default_rng(1)
    binary = [np.where(generator.random(len(labels)) < 0.2, 1 - labels, labels) for labels in column]
    path = write_cell_mat(tmp_path / "x", data, label_column=binary)
    assert read_as("cell-mat", path)[1][0].features_ND.shape == (3, 7)
    with pytest.raises(DataError, match=r"the last of 7 feature columns is not the label"):
        read_as("cell-mat", path, drop_last_column=True)


def test_instance_labels_in_a_third_column_are_kept(tmp_path: Path) -> None:
    data = classic_set()
    truth = ([0, 1], [1], [0, 0, 0])
    source, bags = read_as("cell-mat", write_cell_mat(tmp_path / "x", data, instance_labels=truth))
    assert_holds(source, bags, data)
    for bag, labels in zip(bags, truth, strict=True):
        assert bag.instance_labels_N is not None
        assert bag.instance_labels_N.tolist() == labels
    assert "labels per instance taken from column 3" in source.notes


def test_instance_labels_that_repeat_the_bag_label_are_no_truth(tmp_path: Path) -> None:
    data = classic_set()
    source, bags = read_as("cell-mat", write_cell_mat(tmp_path / "x", data, instance_labels=([1, 1], [1], [0, 0, 0])))
    assert_holds(source, bags, data)
    assert all(bag.instance_labels_N is None for bag in bags)
    assert any(note.startswith("column 3 repeats the bag's label on every instance") for note in source.notes)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (([0, 0], [1], [0, 0, 0]), r"bag 0 has label 1, but its instance labels \(column 3\) say 0"),
        (([1, 0], [1], [0, 1, 0]), r"bag 2 has label 0, but its instance labels \(column 3\) say 1"),
        (([1, 0], [1], [0, 0]), r"data\{3,3\} has 2 instance labels, bag 2 has 3 instances"),
        (([1, 2], [1], [0, 0, 0]), r"column 3 of data holds 0, 1, 2, expected 1 and 0 or 1 and -1"),
    ],
)
def test_instance_labels_that_contradict_their_bag_are_refused(
    tmp_path: Path, truth: tuple[list[int], ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_as("cell-mat", write_cell_mat(tmp_path / "x", classic_set(), instance_labels=truth))


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, 0, np.ones((1, 4)), r"data\{2,1\} \(bag 1\) has 4 columns, bag 0 has 5"),
        (1, 0, np.ones((0, 5)), r"data\{2,1\} \(bag 1\) has shape \[0, 5\], expected instances x features"),
        (1, 0, "text", r"data\{2,1\} holds <U4 values, expected real numbers"),
        (2, 1, np.array([[1, 0]]), r"data\{3,2\} \(label of bag 2\) holds 2 values, expected one"),
        (2, 1, np.array([[2]]), r"column 2 of data holds 1, 2, expected 1 and 0 or 1 and -1: get"),
        (2, 1, np.array([[np.nan]]), r"column 2 of data holds 1, nan"),
    ],
)
def test_cells_refuse_damage(tmp_path: Path, row: int, column: int, value: object, message: str) -> None:
    write_cell_mat(tmp_path / "x", classic_set())
    cell = scipy.io.loadmat(tmp_path / "x")["data"]
    cell[row, column] = value
    scipy.io.savemat(tmp_path / "x", {"data": cell})
    with pytest.raises(DataError, match=message):
        read_as("cell-mat", tmp_path / "x")


def test_cells_that_mix_two_codings_of_the_label_are_refused(tmp_path: Path) -> None:
    data = replace(classic_set(), labels=(1, 0, 0))
    write_cell_mat(tmp_path / "x", data)
    cell = scipy.io.loadmat(tmp_path / "x")["data"]
    cell[2, 1] = np.array([[-1]])
    scipy.io.savemat(tmp_path / "x", {"data": cell})
    with pytest.raises(DataError, match=r"column 2 of data holds -1, 0, 1, expected 1 and 0 or 1 and -1"):
        read_as("cell-mat", tmp_path / "x")
