"""The classic sets as plain CSV, sparse text and NumPy files; leaks of such copies."""

from __future__ import annotations

import contextlib
import gzip
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from asmil.data.sources import ReadOptions, detect
from asmil.errors import DataError
from tests.data.foreign import ClassicSet, classic_set, svm_lines, write_prtools
from tests.data.foreign_classic import (
    WRITERS,
    comma_lines,
    csv_lines,
    labels_of_instances,
    write_andrews_mat,
    write_cell_mat,
    write_lines,
    write_npy_triple,
)
from tests.data.reading_classic import BY_NAME, assert_holds, read_as, with_zeros

# --- F: CSV without header ---


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_csv_without_header(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = classic_set()
    (tmp_path / "x").write_bytes(pack("".join(f"{line}\n" for line in csv_lines(data)).encode()))
    assert_holds(*read_as("classic-csv", tmp_path / "x"), data)


@pytest.mark.parametrize("name", ["uci-c45", "andrews-svm", "classic-csv", "comma-sparse"])
def test_a_last_line_without_end_may_have_lost_digits(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="its last line has no end, so the copy may be cut"):
        read_as(name, path)


def test_text_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    line = csv_lines(classic_set())[0].encode()
    (tmp_path / "x").write_bytes(gzip.compress(line + b"\n" * (1 << 25)))
    size = (tmp_path / "x").stat().st_size
    assert size * 1000 < 1 << 25
    with pytest.raises(DataError, match=rf"more than {max(1000 * size, 1 << 20)} bytes of text in a file of {size}"):
        read_as("classic-csv", tmp_path / "x")


@pytest.mark.parametrize(
    "lines",
    [
        ["0,1,2,3,4", "0.1,0.2,0.3,0.4,0.5"],
        ["0,1,2,3,4", "1,1,0.3,0.4,0.5"],
        ["label,bag,a,b", "1,1,0.5,0.25"],
        ["1,2,0.5,0.25", "1,3,0.5,0.5"],
        ["2,1,0.5,0.25"],
        ["1,1"],
    ],
)
def test_other_tables_of_numbers_are_not_taken_for_it(tmp_path: Path, lines: list[str]) -> None:
    assert BY_NAME["classic-csv"].detect(write_lines(tmp_path / "x", lines)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:3], lines[3][:-4].rpartition(",")[0], *lines[4:]], r"line 4: \d fields, expected 7"),
        (lambda lines: [*lines[:5], lines[5] + "x"], r"line 6: '.*x' is not a finite number"),
        (lambda lines: [*lines[:5], lines[5] + "e999"], r"line 6: '.*e999' is not a finite number"),
        (lambda lines: [*lines[:2], *lines[3:]], r"bag 3 at instance 2; bags must be numbered from 1 without gaps"),
        (lambda lines: [*lines[:5], "1" + lines[5][1:]], r"bag '2' has label 0 at instance 3 and 1 at instance 5"),
    ],
)
def test_csv_refuses_damage(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_as("classic-csv", write_lines(tmp_path / "x", change(csv_lines(classic_set()))))


# --- G: comma text of the fuzzy k-NN toolbox ---


@pytest.mark.parametrize(("sparse", "name"), [(False, "uci-c45"), (True, "comma-sparse")])
def test_comma_text_dense_and_sparse(tmp_path: Path, sparse: bool, name: str) -> None:
    data = with_zeros(classic_set())
    source, bags = read_as(name, write_lines(tmp_path / "x", comma_lines(data, sparse=sparse)))
    assert_holds(source, bags, data, ("fox_data_1", "fox_data_2", "fox_data_3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Bag_3+3,fox_data_3,0,5", r"line 6: .* is not 'instance,bag,label,<index>:<value>"),
        ("Bag_3+3,fox_data_3,2,1:5", r"line 6: .* is not 'instance,bag,label,<index>:<value>"),
        ("Bag_3+3,fox_data_3,0,1:5,1:6", r"line 6: feature index 1 occurs twice"),
        ("Bag_3+3,fox_data_3,0,0:5", r"line 6: feature index 0, expected 1 to 5"),
        ("Bag_3+3,fox_data_3,0,1:inf", r"line 6: 'inf' is not a finite number"),
        ("Bag_3+3,fox_data_3,0,999999999999:1", r"6 instances of 999999999999 features .* the cap is 4294967296"),
    ],
)
def test_sparse_comma_text_refuses_damage(tmp_path: Path, line: str, message: str) -> None:
    lines = [*comma_lines(classic_set(), sparse=True)[:-1], line]
    with pytest.raises(DataError, match=message):
        read_as("comma-sparse", write_lines(tmp_path / "x", lines))


def test_svm_that_declares_an_implausible_width_is_refused(tmp_path: Path) -> None:
    lines = svm_lines(classic_set(), count_line=False)
    with pytest.raises(DataError, match=r"6 instances of 999999999999 features .* the cap is 4294967296"):
        read_as("andrews-svm", write_lines(tmp_path / "x", [lines[0] + " 999999999999:1", *lines[1:]]))


# --- H: three NumPy files ---


def test_of_several_sets_in_a_folder_the_user_names_one(tmp_path: Path) -> None:
    other = classic_set(seed=1)
    folder = write_npy_triple(write_npy_triple(tmp_path / "sets", "FOX", classic_set()), "MUSK1", other)
    with pytest.raises(DataError, match=r"holds the sets FOX, MUSK1; .* name it with --features SET"):
        read_as("npy-triple", folder)
    with pytest.raises(DataError, match=r"'TIGER' is none of the sets FOX, MUSK1"):
        read_as("npy-triple", folder, features="TIGER")
    assert_holds(*read_as("npy-triple", folder, features="MUSK1"), other)


def test_features_left_out_of_a_copy_are_named(tmp_path: Path) -> None:
    folder = write_npy_triple(tmp_path / "x", "MUSK2", classic_set())
    (folder / "MUSK2_features.npy").unlink()
    with pytest.raises(DataError, match=r"MUSK2_features\.npy is not; copy it too"):
        BY_NAME["npy-triple"].detect(folder)
    (folder / "MUSK2_labels.npy").unlink()
    assert BY_NAME["npy-triple"].detect(folder) is None


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("labels", np.array([1.0, 1, 0, -1, -1, -1]), r"labels holds -1, 0, 1, expected 1 and -1; a 0 is"),
        ("labels", np.ones(5), r"features \(6, 5\), 5 labels and 6 bag_ids disagree"),
        ("bag_ids", np.array([1, 1, 3, 4, 4, 4]), r"bag 3 at instance 2; bags must be numbered from 1"),
        ("bag_ids", np.array(["a"] * 6), r"X_bag_ids\.npy has dtype <U1, expected numbers"),
        (
            "features",
            np.array([[None]]),
            r"X_features\.npy has dtype object, expected numbers; objects and pickles are",
        ),
    ],
)
def test_npy_triple_refuses_damage(tmp_path: Path, part: str, values: np.ndarray, message: str) -> None:
    folder = write_npy_triple(tmp_path / "x", "X", classic_set())
    np.save(folder / f"X_{part}.npy", values)
    with pytest.raises(DataError, match=message):
        read_as("npy-triple", folder)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("as_array", [False, True])
def test_a_pickle_in_place_of_an_array_is_refused_and_not_run(tmp_path: Path, as_array: bool) -> None:
    folder = write_npy_triple(tmp_path / "x", "X", classic_set())
    payload = Payload(tmp_path / "marker")
    if as_array:
        np.save(folder / "X_features.npy", np.array([[payload]], dtype=object), allow_pickle=True)
    else:
        (folder / "X_features.npy").write_bytes(pickle.dumps(payload))
    with pytest.raises(DataError, match=r"X_features\.npy(: not a \.npy file| has dtype object)"):
        read_as("npy-triple", folder)
    assert not payload.marker.exists()


def test_npy_that_declares_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    folder = write_npy_triple(tmp_path / "x", "X", classic_set())
    path = folder / "X_features.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        DataError, match=r"X_features\.npy declares shape \[6, 5\] of float64, 240 bytes, but the file holds 232"
    ):
        read_as("npy-triple", folder)


# --- containers that are recognised and answered ---


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", r"a MATLAB v7\.3 file; .* save it with -v7"),
        (b"Julia data file (HDF5), version 0.1.1", r"a Julia JLD file; .* MATLAB v5"),
        (b"HDF5-based Julia Data Format, version 0.1.1", r"a Julia JLD2 file; .* MATLAB v5"),
    ],
)
def test_hdf5_containers_of_matlab_and_julia_are_answered(tmp_path: Path, head: bytes, message: str) -> None:
    path = tmp_path / "musk1.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["X"] = np.ones((2, 3))
    with path.open("r+b") as stream:
        stream.write(head)
    with pytest.raises(DataError, match=message):
        detect(path)


@pytest.mark.parametrize("name", ["prtools-mat", "andrews-mat", "cell-mat"])
def test_cut_matlab_files_are_data_errors(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path)
    whole = path.read_bytes()
    expected, expected_bags = read_as(name, path)
    for length in range(130, len(whole), max(len(whole) // 40, 1)):
        path.write_bytes(whole[:length])
        for form in (BY_NAME[other] for other in ("prtools-mat", "andrews-mat", "cell-mat")):
            with contextlib.suppress(DataError):
                if form.detect(path) is None:
                    continue
                source, bags = read_as(name, path)  # what was cut off is no data, such as a comment
                assert (source.slides, source.labels) == (expected.slides, expected.labels)
                for bag, whole_bag in zip(bags, expected_bags, strict=True):
                    np.testing.assert_array_equal(bag.features_ND, whole_bag.features_ND)


# --- statistics of the whole set in the features ---


LEAKED = "this copy was scaled with statistics of the whole set"


def scaled(data: ClassicSet, scale: Callable[[np.ndarray], np.ndarray]) -> ClassicSet:
    sizes = np.cumsum([len(bag_ND) for bag_ND in data.bags])[:-1]
    return replace(data, bags=tuple(np.split(scale(np.concatenate(data.bags)), sizes)))


@pytest.mark.parametrize("ddof", [0, 1])
def test_standardisation_over_all_instances_is_told(tmp_path: Path, ddof: int) -> None:
    data = scaled(classic_set(), lambda all_ND: (all_ND - all_ND.mean(axis=0)) / all_ND.std(axis=0, ddof=ddof))
    source, _ = read_as("andrews-mat", write_andrews_mat(tmp_path / "x", data))
    (note,) = [note for note in source.notes if LEAKED in note]
    assert note.startswith("every column has mean 0 and standard deviation 1 over all instances")


def test_one_min_and_max_over_all_values_is_told(tmp_path: Path) -> None:
    data = scaled(classic_set(), lambda all_ND: (all_ND - all_ND.min()) / (all_ND.max() - all_ND.min()))
    path = write_cell_mat(tmp_path / "x", data, label_column=labels_of_instances(data))
    source, _ = read_as("cell-mat", path, drop_last_column=True)
    (note,) = [note for note in source.notes if LEAKED in note]
    assert note.startswith("the smallest and largest of all values are exactly 0 and 1")


def test_raw_and_binary_features_are_not_called_scaled(tmp_path: Path) -> None:
    binary = scaled(classic_set(), lambda all_ND: (all_ND > 0).astype(float))
    nearly = scaled(classic_set(), lambda all_ND: (all_ND - all_ND.mean(axis=0)) / (1.01 * all_ND.std(axis=0)))
    for position, data in enumerate((classic_set(), binary, nearly)):
        source, _ = read_as("andrews-mat", write_andrews_mat(tmp_path / str(position), data))
        assert not any(LEAKED in note for note in source.notes)


# --- the real sets in every layout ---


def real_set(shared: Path, file_name: str) -> ClassicSet:
    found = detect(shared / "data/classic_mil" / file_name)
    source = found.format.open(found.path, ReadOptions())
    assert not any(LEAKED in note for note in source.notes)
    names = tuple(header.slide_id for header in source.slides)
    labels = tuple(int(source.labels[name]["label"]) for name in names)
    return ClassicSet(names, labels, tuple(source.read(name).features_ND for name in names))


@pytest.mark.parametrize(
    ("file_name", "known"), [("musk1_clean1.data", "MUSK1"), ("elephant_100x100.svm.gz", "ELEPHANT")]
)
def test_real_sets_come_back_equal_from_every_layout(shared: Path, tmp_path: Path, file_name: str, known: str) -> None:
    data = real_set(shared, file_name)
    negative = 0 if known == "MUSK1" else -1
    column = labels_of_instances(data)
    layouts: list[tuple[str, Path, dict[str, Any]]] = [
        ("andrews-mat", write_andrews_mat(tmp_path / "c.mat", data), {}),
        ("cell-mat", write_cell_mat(tmp_path / "e.mat", data, negative=negative), {}),
        (
            "cell-mat",
            write_cell_mat(tmp_path / "rgmil.mat", data, negative=negative, label_column=column),
            {"drop_last_column": True},
        ),
        ("classic-csv", write_lines(tmp_path / "f.csv", csv_lines(data)), {}),
        ("comma-sparse", write_lines(tmp_path / "g.data", comma_lines(data, sparse=True)), {}),
        ("npy-triple", write_npy_triple(tmp_path / "h", known, data), {}),
    ]
    if known == "MUSK1":
        write_prtools(tmp_path / "d.mat", data, numbered=True)
        layouts.append(("prtools-mat", tmp_path / "d.mat", {}))
    for name, path, options in layouts:
        source, bags = read_as(name, path, **options)
        ids = [header.slide_id for header in source.slides]
        assert_holds(source, bags, data, ids)
        assert any(note.startswith(f"content is {known}:") for note in source.notes)
        assert ids == [f"fox_data_{bag + 1}" if name == "comma-sparse" else str(bag) for bag in range(len(ids))]


def test_real_elephant_with_a_label_column_that_contradicts_two_bags(shared: Path, tmp_path: Path) -> None:
    data = real_set(shared, "elephant_100x100.svm.gz")
    column = labels_of_instances(data)
    column[98][::2] = 0
    column[99][:] = 0
    path = write_cell_mat(tmp_path / "elephant.mat", data, negative=-1, label_column=column)
    with pytest.raises(
        DataError, match=r"231 feature columns, .* in 198 of 200 bags \(not in 98, 99\): give --drop-last"
    ):
        read_as("cell-mat", path)
    source, bags = read_as("cell-mat", path, drop_last_column=True)
    assert_holds(source, bags, data, [str(bag) for bag in range(200)])
