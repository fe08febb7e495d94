"""Split files in the layouts of their tools: recognised, matched with stored slides, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asmil.data.config import LabelColumns
from asmil.data.packing.matching import LabelMatcher, LabelOptions
from asmil.data.tables.given import GivenSplits
from asmil.errors import DataError
from tests.data.foreign_tables import (
    PATIENTS,
    SLIDES,
    acmil_split,
    clam_bool,
    clam_dataset,
    clam_descriptor,
    mil_baseline,
    mmp_fold,
    part_columns,
    patho_bench,
    patient_of,
    write_json,
)

PARTS = {"train": SLIDES[:6], "val": SLIDES[6:8], "test": SLIDES[8:]}
OF_PATIENTS = {"train": PATIENTS[:4], "val": PATIENTS[4:]}


def imported(
    folder: Path, paths: Sequence[Path], *, slides: Sequence[str] = SLIDES, with_labels: bool = True, **options: Any
) -> tuple[GivenSplits, list[str]]:
    """Import split files next to a CLAM label table of all stored slides."""
    said: list[str] = []
    table = clam_dataset(folder / "dataset.csv") if with_labels else None
    given = LabelOptions(table, LabelColumns(), splits=tuple(paths), allow_missing=True, **options)
    matcher = LabelMatcher(given, (), said.append)
    content = matcher.splits(slides, matcher.of_store(slides, {}))
    assert content is not None
    return GivenSplits.from_bytes(content, "splits"), said


def folds_of(given: GivenSplits) -> list[Mapping[str, tuple[str, ...]]]:
    return [fold.parts() for fold in given.folds]


# --- one layout after another ---


def test_clam_folder_of_ragged_columns_booleans_and_descriptors(tmp_path: Path) -> None:
    folder = tmp_path / "task_1"
    folder.mkdir()
    turned = {"train": SLIDES[4:10], "val": SLIDES[10:], "test": SLIDES[:4]}
    for number, parts in ((0, PARTS), (2, turned), (10, PARTS)):
        part_columns(folder / f"splits_{number}.csv", parts)
        clam_bool(folder / f"splits_{number}_bool.csv", parts)
        clam_descriptor(folder / f"splits_{number}_descriptor.csv")
    given, said = imported(tmp_path, [folder])
    assert given.layout == "CLAM splits"
    assert [fold.name for fold in given.folds] == ["splits_0.csv", "splits_2.csv", "splits_10.csv"]
    assert folds_of(given) == [PARTS, turned, PARTS]
    assert any("left alone among the splits: splits_0_descriptor.csv" in line for line in said)
    assert any("the boolean split files repeat the others" in line for line in said)
    assert sorted(given.files) == [f"task_1/splits_{number}.csv" for number in (0, 10, 2)]


def test_boolean_splits_of_clam_alone(tmp_path: Path) -> None:
    given, _ = imported(tmp_path, [clam_bool(tmp_path / "splits_0_bool.csv", PARTS)])
    assert folds_of(given) == [PARTS]


def test_clam_ids_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    path = part_columns(tmp_path / "splits_0.csv", {"train": ["007", "010", "1e5"], "val": ["08"], "test": ["7"]})
    given, _ = imported(tmp_path, [path], slides=("007", "08", "010", "7", "1e5"), with_labels=False)
    assert folds_of(given) == [{"train": ("007", "010", "1e5"), "val": ("08",), "test": ("7",)}]


def test_mcat_folds_of_patients_report_on_their_validation_part(tmp_path: Path) -> None:
    other = {"train": PATIENTS[2:], "val": PATIENTS[:2]}
    paths = [part_columns(tmp_path / f"splits_{k}.csv", parts) for k, parts in enumerate((OF_PATIENTS, other))]
    given, said = imported(tmp_path, paths, allow_incomplete_splits=True)
    assert given.layout == "MCAT/PORPOISE/SurvPath splits"
    assert folds_of(given)[0] == {
        "train": tuple(slide for slide in SLIDES if patient_of(slide) in PATIENTS[:4]),
        "val": (),
        "test": tuple(slide for slide in SLIDES if patient_of(slide) in PATIENTS[4:]),
    }
    assert folds_of(given)[1]["test"] == SLIDES[:4]
    assert "6 of 6 ids of the splits are patients here (100.0 %)" in said
    assert any("the splits have no test part" in line for line in said)
    assert any("test parts are disjoint: 2-fold cross-validation" in line for line in said)


def test_an_index_that_was_saved_again_is_no_part(tmp_path: Path) -> None:
    path = part_columns(tmp_path / "splits_0.csv", PARTS)
    pd.read_csv(path).to_csv(path, index=False)
    assert path.read_text().startswith("Unnamed: 0,train,val,test\n")
    assert folds_of(imported(tmp_path, [path])[0]) == [PARTS]


def test_acmil_json(tmp_path: Path) -> None:
    given, said = imported(tmp_path, [acmil_split(tmp_path / "split_7.json", PARTS)])
    assert folds_of(given) == [PARTS]
    assert "one holdout split, testing 4 of 12 labelled slides" in said


def test_mmp_folders(tmp_path: Path) -> None:
    root = tmp_path / "survival"
    for number in range(3):
        mmp_fold(root / f"BLCA_overall_survival_k={number}", PATIENTS[2 * number : 2 * number + 2])
    given, _ = imported(tmp_path, [root])
    assert [fold.name for fold in given.folds] == [f"BLCA_overall_survival_k={number}" for number in range(3)]
    assert [fold.test for fold in given.folds] == [SLIDES[:4], SLIDES[4:8], SLIDES[8:]]


def test_patho_bench_columns(tmp_path: Path) -> None:
    given, _ = imported(tmp_path, [patho_bench(tmp_path / "grade")])
    assert [fold.name for fold in given.folds] == [f"k=all.tsv fold_{fold}" for fold in range(3)]
    for number, fold in enumerate(given.folds):
        assert fold.test == tuple(slide for slide in SLIDES if int(slide[5:7]) % 3 == number)


def test_patho_bench_folder_with_its_yaml_is_read(tmp_path: Path) -> None:
    assert len(imported(tmp_path, [patho_bench(tmp_path / "grade").parent])[0].folds) == 3


def test_stamp_json_of_patients(tmp_path: Path) -> None:
    tree = [{"train_patients": PATIENTS[:4], "test_patients": PATIENTS[4:]}]
    for content in (tree, {"splits": tree}):
        given, _ = imported(tmp_path, [write_json(tmp_path / "splits.json", content)])
        assert folds_of(given) == [{"train": SLIDES[:8], "val": (), "test": SLIDES[8:]}]


def test_torchmil_csv(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    pd.DataFrame({"bag_name": SLIDES, "split": ["train"] * 8 + ["test"] * 4}).to_csv(path, index=False)
    assert folds_of(imported(tmp_path, [path])[0]) == [{"train": SLIDES[:8], "val": (), "test": SLIDES[8:]}]
    path.write_text(path.read_text().replace("test", "Validation"))
    assert folds_of(imported(tmp_path, [path])[0]) == [{"train": SLIDES[:8], "val": (), "test": SLIDES[8:]}]
    path.write_text(path.read_text().replace("Validation", "held-out"))
    with pytest.raises(DataError, match="parts are called train, val and test; found held-out"):
        imported(tmp_path, [path])


def test_mil_baseline_paths(tmp_path: Path) -> None:
    assert folds_of(imported(tmp_path, [mil_baseline(tmp_path / "fold_1.csv", PARTS)])[0]) == [PARTS]


# --- what is refused ---


def check_refused(folder: Path, parts: Mapping[str, Sequence[str]], message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message):
        imported(folder, [part_columns(folder / "splits_0.csv", parts)], **options)


def test_a_slide_in_two_parts(tmp_path: Path) -> None:
    parts = {**PARTS, "val": (*PARTS["val"], SLIDES[0])}
    check_refused(tmp_path, parts, r"splits_0\.csv: 1 slides are in two parts: TCGA-00-DX1 \(train, val\)")


def test_a_patient_in_two_parts(tmp_path: Path) -> None:
    parts = {"train": SLIDES[:5], "val": SLIDES[5:8], "test": SLIDES[8:]}
    check_refused(tmp_path, parts, r"1 patients have slides in two parts: TCGA-02 \(train, val\)")


def test_without_a_patient_column_this_is_said(tmp_path: Path) -> None:
    _, said = imported(tmp_path, [part_columns(tmp_path / "splits_0.csv", PARTS)])
    assert not any("no --group-column" in line for line in said)
    pd.DataFrame({"slide": SLIDES, "label": 0}).to_csv(tmp_path / "l.csv", index=False)
    matcher = LabelMatcher(LabelOptions(tmp_path / "l.csv", splits=(tmp_path / "splits_0.csv",)), (), said.append)
    matcher.splits(SLIDES, matcher.of_store(SLIDES, {}))
    assert any("no --group-column: nothing shows whether a patient's slides lie in two parts" in line for line in said)


def test_labelled_slides_in_no_part(tmp_path: Path) -> None:
    parts = {**PARTS, "train": SLIDES[:4]}
    check_refused(tmp_path, parts, "2 labelled slides are in no part: TCGA-02-DX1, TCGA-02-DX2 .--allow-incomplete-spl")
    given, said = imported(tmp_path, [tmp_path / "splits_0.csv"], allow_incomplete_splits=True)
    assert (folds_of(given), given.allow_incomplete) == ([parts], True)
    assert "splits_0.csv: 2 labelled slides are in no part: TCGA-02-DX1, TCGA-02-DX2" in said


def test_empty_parts_and_ids_from_elsewhere(tmp_path: Path) -> None:
    check_refused(tmp_path, {**PARTS, "test": ["other"]}, "part 'test' holds no stored slide")
    check_refused(
        tmp_path, {"train": ["x"], "val": ["y"], "test": ["z"]}, r"no id of the splits \(x, y, z\) is a stored"
    )
    parts = {**PARTS, "test": (*PARTS["test"], "gone")}
    _, said = imported(tmp_path, [part_columns(tmp_path / "splits_0.csv", parts)])
    assert "1 ids of the splits have no slide here: gone" in said


def test_all_folds_with_problems_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for number in range(3):
        parts = PARTS if number == 1 else {**PARTS, "val": SLIDES[:1]}
        part_columns(folder / f"splits_{number}.csv", parts)
    with pytest.raises(DataError) as caught:
        imported(tmp_path, [folder])
    assert "splits_0.csv: 1 slides" in str(caught.value)
    assert "splits_2.csv: 1 slides" in str(caught.value)
    assert "splits_1.csv" not in str(caught.value)


def test_ids_that_name_several_slides_or_both_a_slide_and_a_patient(tmp_path: Path) -> None:
    slides = ("a.svs", "a.tif", "b", "c")
    parts = {"train": ["a", "b"], "test": ["c"]}
    check_refused(tmp_path, parts, r"1 ids of the splits are ambiguous: a \(slides a\.svs, a\.tif\)", slides=slides,
                  with_labels=False)  # fmt: skip


def test_an_id_that_is_a_slide_and_a_patient_of_several(tmp_path: Path) -> None:
    pd.DataFrame({"slide": ["p", "p2", "q"], "case": ["p", "p", "q"]}).to_csv(tmp_path / "l.csv", index=False)
    path = part_columns(tmp_path / "splits_0.csv", {"train": ["p"], "test": ["q"]})
    options = LabelOptions(tmp_path / "l.csv", LabelColumns(group="case"), splits=(path,))
    matcher, slides = LabelMatcher(options, (), [].append), ("p", "p2", "q")
    with pytest.raises(DataError, match=r"1 ids .* are ambiguous: p \(a slide, or a patient of 2 slides\)"):
        matcher.splits(slides, matcher.of_store(slides, {}))


def test_several_layouts_and_unknown_files(tmp_path: Path) -> None:
    paths = [part_columns(tmp_path / "splits_0.csv", PARTS), acmil_split(tmp_path / "split_1.json", PARTS)]
    with pytest.raises(DataError, match=r"several layouts: .*splits_0\.csv \(CLAM splits\), .*split_1\.json \(ACMIL"):
        imported(tmp_path, paths)
    with pytest.raises(DataError, match=r"is no split file that is known: it has columns train, val, test of counts"):
        imported(tmp_path, [clam_descriptor(tmp_path / "splits_0_descriptor.csv")])
    with pytest.raises(DataError, match="no such split file or folder; correct --splits"):
        imported(tmp_path, [tmp_path / "nowhere"])
    (tmp_path / "bad.json").write_text('{"train_names": [1.5], "test_names": []}')
    with pytest.raises(DataError, match="expected lists of ids"):
        imported(tmp_path, [tmp_path / "bad.json"])
    (tmp_path / "bad.json").write_text(json.dumps(PARTS)[:-1])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        imported(tmp_path, [tmp_path / "bad.json"])
