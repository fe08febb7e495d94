"""The formats of the classic sets: exact layouts, their known variants, and damaged or leaking copies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asmil.data.sources import detect
from asmil.errors import DataError
from tests.data.foreign import ClassicSet, classic_set, svm_lines, uci_lines, write_prtools
from tests.data.reading import ReadBag, read

NUMBERED = ("0", "1", "2")


def write_text(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    path.write_bytes((end.join(lines) + end).encode())
    return path


def assert_holds(bags: Sequence[ReadBag], data: ClassicSet, names: Sequence[str]) -> None:
    assert [bag.bag_id for bag in bags] == list(names)
    assert [bag.labels for bag in bags] == [{"label": label} for label in data.labels]
    for bag, expected_ND in zip(bags, data.bags, strict=True):
        np.testing.assert_array_equal(bag.features_ND, expected_ND)


# --- A: UCI C4.5 ---


@pytest.mark.parametrize("final_dot", [True, False])
@pytest.mark.parametrize("blank_first_line", [True, False])
def test_uci_with_and_without_final_dot_and_blank_first_line(
    tmp_path: Path, final_dot: bool, blank_first_line: bool
) -> None:
    data = classic_set()
    lines = [""] * blank_first_line + uci_lines(data, final_dot=final_dot)
    name, _, bags = read(write_text(tmp_path / "any.name", lines))
    assert name == "uci-c45"
    assert_holds(bags, data, data.names)


def test_uci_gzipped_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    data = classic_set()
    path = tmp_path / "clean1.data"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in uci_lines(data)).encode()))
    assert_holds(read(path)[2], data, data.names)


def test_uci_class_last_header_with_integer_coded_names(tmp_path: Path) -> None:
    data = classic_set()
    lines = ["classLast,7,2,comma"]
    for bag, (label, bag_ND) in enumerate(zip(data.labels, data.bags, strict=True)):
        lines += [
            f"{bag},{len(lines) - 1 + i},{','.join(f'{v:g}' for v in row)},{label}" for i, row in enumerate(bag_ND)
        ]
    name, _, bags = read(write_text(tmp_path / "x", lines))
    assert name == "uci-c45"
    assert_holds(bags, data, NUMBERED)
    lines[0] = "classLast,168,2,comma"
    with pytest.raises(DataError, match=r"declares 168 attributes and a class, the next line has 8 fields"):
        read(write_text(tmp_path / "y", lines))


def test_uci_with_conformation_molecule_and_label_in_front(tmp_path: Path) -> None:
    data = classic_set()
    lines = []
    for line in uci_lines(data, final_dot=False):
        molecule, conformation, *features, label = line.split(",")
        lines.append(",".join([conformation, molecule, label, *features]))
    name, _, bags = read(write_text(tmp_path / "x", lines))
    assert name == "uci-c45"
    assert_holds(bags, data, data.names)


def test_uci_refuses_a_name_that_contradicts_the_class(tmp_path: Path) -> None:
    lines = uci_lines(replace(classic_set(), labels=(1, 0, 0)))
    with pytest.raises(DataError, match=r"line 3: molecule 'MUSK-190' has class 0, but its name says 1"):
        read(write_text(tmp_path / "x", lines))


def test_uci_refuses_cut_lines_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    lines = uci_lines(classic_set())
    with pytest.raises(DataError, match=r"line 4: 5 fields, expected 8"):
        read(write_text(tmp_path / "x", [*lines[:3], ",".join(lines[3].split(",")[:5]), *lines[4:]]))
    with pytest.raises(DataError, match=r"line 2: .*'abc'"):
        read(write_text(tmp_path / "y", [lines[0], lines[1].replace(lines[1].split(",")[3], "abc"), *lines[2:]]))


# --- B: Andrews .svm ---


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("sparse", [False, True])
def test_svm_with_either_line_end_and_sparse_lines_placed_by_index(tmp_path: Path, end: str, sparse: bool) -> None:
    data = classic_set()
    for bag_ND in data.bags:
        bag_ND[:, 1] = 0
        bag_ND[-1, -1] = 0
    lines = svm_lines(data, sparse=sparse)
    assert (" 2:0" in lines[1]) is not sparse
    name, reading, bags = read(write_text(tmp_path / "x", lines, end))
    assert name == "andrews-svm"
    assert_holds(bags, data, NUMBERED)
    assert not any("count line" in note for note in reading.notes)


def test_svm_values_go_by_index_whatever_their_order(tmp_path: Path) -> None:
    lines = ["2 4", "0:0:1 4:7 1:5", "1:1:-1 2:3"]
    bags = read(write_text(tmp_path / "x", lines))[2]
    np.testing.assert_array_equal(bags[0].features_ND, [[5, 0, 0, 7]])
    np.testing.assert_array_equal(bags[1].features_ND, [[0, 3, 0, 0]])


def test_svm_without_count_line_keeps_its_first_instance(tmp_path: Path) -> None:
    data = classic_set()
    _, reading, bags = read(write_text(tmp_path / "x", svm_lines(data, count_line=False)))
    assert_holds(bags, data, NUMBERED)
    assert "no count line: the width 5 is the largest index that occurs" in reading.notes


def test_svm_gzipped(tmp_path: Path) -> None:
    data = classic_set()
    path = tmp_path / "fox"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in svm_lines(data)).encode()))
    assert_holds(read(path)[2], data, NUMBERED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"declares 6 instances, 5 follow"),
        (lambda lines: [*lines[:2], *lines[3:]], r"line 3: instance 2, expected 1"),
        (
            lambda lines: [line.replace(":2:-1", ":3:-1") for line in lines],
            r"bag 3 at instance 3; bags must be numbered",
        ),
        (lambda lines: [line.replace(":0:1", ":1:1") for line in lines], r"bag 1 at instance 0; bags must be numbered"),
        (lambda lines: [*lines[:-1], lines[-1].replace("5:2:-1", "5:0:-1")], r"bag 0 at instance 5"),
        (lambda lines: [line.replace("0:0:1", "0:0:2") for line in lines], r"no known format"),
        (lambda lines: [*lines[:-1], lines[-1].replace("5:2:-1", "5:2:1")], r"has label 0 at instance 3 and 1 at"),
        (lambda lines: [line.replace(" 5:", " 6:") for line in lines], r"line 2: feature index 6, expected 1 to 5"),
        (lambda lines: [line.replace(" 5:", " 0:") for line in lines], r"line 2: feature index 0, expected 1 to 5"),
        (lambda lines: [line.replace(" 5:", " 4:") for line in lines], r"line 2: feature index 4 occurs twice"),
        (lambda lines: [*lines[:-1], lines[-1].split(" 5:")[0] + " 5:nan"], r"line 7: 'nan' is not a finite number"),
        (lambda lines: [*lines[:-1], lines[-1] + " 5"], r"line 7: .* is not '<instance>:<bag>:<label>"),
    ],
)
def test_svm_refuses_damage(tmp_path: Path, change: object, message: str) -> None:
    lines = change(svm_lines(classic_set()))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read(write_text(tmp_path / "x", lines))


# --- D: PRTools .mat ---


@pytest.mark.parametrize("as_object", [True, False])
def test_prtools_padded_names_and_nlab_two_is_positive(tmp_path: Path, as_object: bool) -> None:
    data = classic_set()
    write_prtools(tmp_path / "x", data, numbered=False, as_object=as_object)
    name, _, bags = read(tmp_path / "x")
    assert name == "prtools-mat"
    assert_holds(bags, data, data.names)


def test_prtools_class_names_decide_what_is_positive(tmp_path: Path) -> None:
    data = classic_set()
    write_prtools(tmp_path / "x", data, numbered=False, classes=["positive", "negative"])
    swapped = replace(data, labels=tuple(1 - label for label in data.labels))
    assert_holds(read(tmp_path / "x")[2], swapped, data.names)
    write_prtools(tmp_path / "y", data, numbered=False, classes=["a", "b"])
    with pytest.raises(DataError, match=r"names the classes \['a', 'b'\], expected negative and positive"):
        read(tmp_path / "y")


def test_prtools_numbers_from_one_become_ids_from_zero(tmp_path: Path) -> None:
    data = classic_set()
    write_prtools(tmp_path / "x", data, numbered=True)
    _, reading, bags = read(tmp_path / "x")
    assert_holds(bags, data, NUMBERED)
    assert "bag numbers from 1 became ids from 0" in reading.notes


def test_prtools_names_what_the_file_calls_itself(tmp_path: Path) -> None:
    write_prtools(tmp_path / "musk1.mat", classic_set(), numbered=False, title="Musk 2")
    assert "the file calls itself 'Musk 2'" in read(tmp_path / "musk1.mat")[1].notes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"nlab": np.array([[2], [2], [2], [1], [2], [1]], dtype=np.uint8)},
            r"'NON-MUSK-j81' has label 0 at instance 3",
        ),
        ({"nlab": np.array([[2], [2], [2], [0], [1], [1]], dtype=np.uint8)}, r"x\.nlab holds \[0, 1, 2\]"),
        ({"nlab": np.array([[2], [2], [2]], dtype=np.uint8)}, r"disagree on the number of instances"),
        ({"milbag": np.array(["A ", "A ", "B ", "A ", "C ", "C "])}, r"bag 'A' appears again at instance 3"),
        ({"milbag": np.array([[1], [1], [3], [4], [4], [4]], dtype=np.uint8)}, r"bag 3 at instance 2; .* from 1"),
        ({"without": ["nlab"]}, r"struct x has no field nlab"),
    ],
)
def test_prtools_refuses_damage(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    write_prtools(tmp_path / "x", classic_set(), numbered=False, **changed)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x")


def test_damaged_matlab_file_is_a_data_error(tmp_path: Path) -> None:
    write_prtools(tmp_path / "x", classic_set(), numbered=False)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"MATLAB v5"):
        read(tmp_path / "x")


# --- checks common to the classic sets ---


def test_rows_of_a_bag_must_be_contiguous(tmp_path: Path) -> None:
    lines = uci_lines(classic_set())
    with pytest.raises(DataError, match=r"bag 'MUSK-188' appears again at instance 2 after another bag"):
        read(write_text(tmp_path / "x", [lines[0], lines[2], lines[1], *lines[3:]]))


def test_label_must_be_constant_within_a_bag(tmp_path: Path) -> None:
    lines = [line.replace("NON-MUSK-j81", "J81") for line in uci_lines(classic_set())]
    with pytest.raises(DataError, match=r"bag 'J81' has label 0 at instance 3 and 1 at instance 4"):
        read(write_text(tmp_path / "x", [*lines[:4], lines[4][:-2] + "1.", lines[5]]))


def with_label_column(data: ClassicSet, position: int) -> ClassicSet:
    bags = [np.insert(bag, position, label, axis=1) for label, bag in zip(data.labels, data.bags, strict=True)]
    return replace(data, bags=tuple(bags))


def test_label_as_last_column_is_refused_unless_told_to_drop_it(tmp_path: Path) -> None:
    data = classic_set()
    path = write_text(tmp_path / "x", svm_lines(with_label_column(data, 5)))
    with pytest.raises(
        DataError, match=r"feature column 6 of 6 equals the label on every row; give --drop-last-column"
    ):
        read(path)
    _, reading, bags = read(path, drop_last_column=True)
    assert_holds(bags, data, NUMBERED)
    assert "dropped feature column 6: it is the label" in reading.notes


def test_label_in_another_column_is_refused_even_when_told_to_drop_the_last(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x", svm_lines(with_label_column(with_label_column(classic_set(), 2), 6)))
    with pytest.raises(DataError, match=r"feature column 3 .* remove it from the file"):
        read(path, drop_last_column=True)


@pytest.mark.parametrize("published_width", [166, 230])
def test_one_column_too_many_is_refused_although_some_labels_disagree(tmp_path: Path, published_width: int) -> None:
    data = with_label_column(classic_set(published_width), published_width)
    data.bags[2][1, -1] = 1  # two ELEPHANT bags of such copies disagree with their bag label
    path = write_text(tmp_path / "x", uci_lines(data))
    with pytest.raises(DataError, match=rf"{published_width + 1} feature columns, one more than the {published_width}"):
        read(path)
    assert read(path, drop_last_column=True)[2][0].features_ND.shape == (2, published_width)


def test_dropping_a_column_that_is_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the last of 5 feature columns is not the label"):
        read(write_text(tmp_path / "x", uci_lines(classic_set())), drop_last_column=True)


def test_unknown_content_lists_the_known_formats(tmp_path: Path) -> None:
    (tmp_path / "x.svm").write_text("hello\n")
    with pytest.raises(DataError, match=r"no known format has that\. Known: UCI C4\.5 .*ACMIL"):
        detect(tmp_path / "x.svm")
    with pytest.raises(DataError, match=r"no such file"):
        detect(tmp_path / "absent")


# --- the real files ---

REAL = {
    "musk1_clean1.data": ("uci-c45", "MUSK1", 92, 47, 476, 166),
    "musk2_prtools.mat": ("prtools-mat", "MUSK2", 102, 39, 6598, 166),
    "musk2_uci_layout.derived.data.gz": ("uci-c45", "MUSK2", 102, 39, 6598, 166),
    "fox_100x100.svm.gz": ("andrews-svm", "FOX", 200, 100, 1320, 230),
    "tiger_100x100.svm.gz": ("andrews-svm", "TIGER", 200, 100, 1220, 230),
    "elephant_100x100.svm.gz": ("andrews-svm", "ELEPHANT", 200, 100, 1391, 230),
}


@pytest.mark.parametrize("file_name", REAL)
def test_real_sets_have_their_published_counts_and_the_order_of_the_fold_files(shared: Path, file_name: str) -> None:
    name, known, num_bags, num_positive, num_instances, num_features = REAL[file_name]
    found, reading, bags = read(shared / "data/classic_mil" / file_name)
    assert found == name
    assert any(note.startswith(f"content is {known}:") for note in reading.notes)
    assert (len(bags), sum(bag.labels["label"] for bag in bags)) == (num_bags, num_positive)
    assert np.concatenate([bag.features_ND for bag in bags]).shape == (num_instances, num_features)
    folds = json.loads((shared / f"data/classic_mil/folds/{known.lower()}_seed0.json").read_text())
    assert [bag.bag_id for bag in bags] == folds["bag_order"]
    assert [bag.labels["label"] for bag in bags] == folds["label"]


def test_both_copies_of_musk2_agree_in_every_value(shared: Path) -> None:
    copies = [read(shared / "data/classic_mil" / name)[2] for name, row in REAL.items() if row[1] == "MUSK2"]
    for one, other in zip(*copies, strict=True):
        np.testing.assert_array_equal(one.features_ND, other.features_ND)


def test_known_set_with_an_instance_lost_is_refused(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data/classic_mil/musk1_clean1.data").read_text().splitlines()
    with pytest.raises(DataError, match=r"are 47/475, expected MUSK1 47/476; the copy lost or changed rows"):
        read(write_text(tmp_path / "x", lines[1:]))


def test_musk2_under_the_name_of_musk1_is_called_musk2(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "musk1.mat"
    path.write_bytes((shared / "data/classic_mil/musk2_prtools.mat").read_bytes())
    assert any(note.startswith("content is MUSK2: 102 bags (39 positive)") for note in read(path)[1].notes)
