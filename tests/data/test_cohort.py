"""Bags meet their labels one to one, patients stay whole, and a restricted view knows nothing else."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from asmil.bags import BagBatch
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, LabelColumns
from asmil.data.schema import DatasetFacts
from asmil.errors import ConfigError, DataError
from tests.data.stores import draw_bags, write_store


def open_cohort(directory: Path, *, independent_bags: bool = False, bag: str = "slide", **columns: object) -> Cohort:
    allow_missing = bool(columns.pop("allow_missing", False))
    data = DataConfig(
        store=str(directory), labels=LabelColumns(**columns), bag=bag, allow_missing=allow_missing
    )  # fmt: skip
    return Cohort.open(data, independent_bags=independent_bags)


def three_patients() -> pd.DataFrame:
    """S0 and S3 of patient p, S1 and S4 of q, S2 of r; rows out of store order."""
    return pd.DataFrame(
        {
            "slide": ["S4", "S0", "S3", "S1", "S2"],
            "patient": ["q", "p", "p", "q", "r"],
            "time": [2.0, 1.0, 1.0, 2.0, np.nan],
            "scanner": ["a", "b", "c", "a", "a"],
        }
    )


@pytest.fixture
def bags() -> dict[str, np.ndarray]:
    return draw_bags([2, 5, 1, 4, 3])


@pytest.fixture
def directory(tmp_path, bags) -> Path:
    return write_store(tmp_path / "s", bags, three_patients(), dtype="float32", target_shard_bytes=600)


def test_slide_bags_are_joined_in_store_order(directory, bags):
    cohort = open_cohort(directory, group="patient", time="time")
    assert cohort.bag_ids == ("S0", "S1", "S2", "S3", "S4")
    assert cohort.groups(["S3", "S1"]) == ("p", "q")
    assert list(cohort.labels.columns) == ["slide", "patient", "time", "scanner", "group"]
    assert cohort.frame(["S4", "S0"])["time"].tolist() == [2.0, 1.0]
    assert [cohort.length(bag_id) for bag_id in cohort.bag_ids] == [2, 5, 1, 4, 3]
    assert np.array_equal(cohort.read("S3").features_ND.numpy(), bags["S3"])
    assert (cohort.num_features, cohort.simulated) == (3, False)
    assert cohort.dataset_id == cohort.store.info.dataset_id


def test_patient_bags_hold_their_slides_in_id_order(directory, bags):
    cohort = open_cohort(directory, group="patient", time="time", bag="patient")
    assert cohort.bag_ids == ("p", "q", "r")
    assert cohort.groups(["q"]) == ("q",)
    assert cohort.length("q") == 8
    bag = cohort.read("q")
    assert bag.bag_id == "q"
    assert np.array_equal(bag.features_ND.numpy(), np.concatenate([bags["S1"], bags["S4"]]))
    assert bag.slide_offsets.tolist() == [0, 5, 8]
    assert bag.coords_N2[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert cohort.labels["time"].tolist()[:2] == [1.0, 2.0]
    assert list(cohort.labels.columns) == ["patient", "time", "group"], "slide and scanner differ within p"


def test_a_batch_read_at_once_equals_packed_bags(directory):
    for bag in ("slide", "patient"):
        cohort = open_cohort(directory, group="patient", bag=bag)
        bag_ids = cohort.bag_ids[::-1]
        found = cohort.read_batch(bag_ids, seeds=range(len(bag_ids)))
        expected = BagBatch.pack([cohort.read(bag_id) for bag_id in bag_ids], seeds=range(len(bag_ids)))
        assert found.bag_ids == expected.bag_ids
        for name in ("features_MD", "offsets", "coords_M2", "slide_offsets", "seeds_B"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_conflicting_labels_within_a_patient_are_refused(tmp_path, bags):
    labels = three_patients()
    labels.loc[labels["slide"] == "S4", "time"] = 7.0
    directory = write_store(tmp_path / "t", bags, labels)
    with pytest.raises(DataError, match=r"column 'time' differs .* 1 patients: q;"):
        open_cohort(directory, group="patient", time="time", bag="patient")
    assert open_cohort(directory, group="patient", time="time").length("S4") == 3
    labels.loc[labels["slide"] == "S0", "time"] = np.nan
    directory = write_store(tmp_path / "u", bags, labels)
    with pytest.raises(DataError, match="2 patients: p, q;"):
        open_cohort(directory, group="patient", time="time", bag="patient")


def test_patient_bags_need_a_group_column(directory):
    with pytest.raises(ConfigError, match=r"data\.bag: 'patient' needs data\.labels\.group"):
        open_cohort(directory, bag="patient")


def test_bags_without_a_group_need_permission(tmp_path, bags, directory):
    with pytest.raises(DataError, match=r"5 bags have no group: S0, S1, S2, S3, S4; .*independent_bags"):
        open_cohort(directory)
    assert open_cohort(directory, independent_bags=True).groups(["S3", "S0"]) == ("S3", "S0")
    labels = three_patients()
    labels.loc[[0, 3], "patient"] = [None, ""]
    some = write_store(tmp_path / "t", bags, labels)
    with pytest.raises(DataError, match="2 bags have no group: S1, S4;"):
        open_cohort(some, group="patient")
    assert open_cohort(some, group="patient", independent_bags=True).groups(["S0", "S1", "S4"]) == ("p", "S1", "S4")


def test_labels_and_bags_must_match_one_to_one(tmp_path, bags, caplog):
    labels = pd.concat(
        [three_patients().iloc[2:], pd.DataFrame({"slide": [f"X{i}" for i in range(12)], "patient": "x"})]
    )
    directory = write_store(tmp_path / "t", bags, labels)
    first_ten = ", ".join(f"X{i}" for i in range(10))
    message = f"12 labels without a bag: {first_ten} and 2 more; 2 bags without a label: S0, S4;"
    with pytest.raises(DataError, match=message):
        open_cohort(directory, group="patient")
    with caplog.at_level(logging.WARNING):
        cohort = open_cohort(directory, group="patient", allow_missing=True)
    assert cohort.bag_ids == ("S1", "S2", "S3")
    assert "X11; 2 bags without a label: S0, S4; left out" in caplog.text


def test_ids_of_a_table_are_matched_without_folder_and_suffix(tmp_path, bags, directory, caplog):
    table = three_patients()
    exact = open_cohort(directory, group="patient")
    table["slide"] = ["x/S4.svs", "S0.svs", "S3", "S1.ome.tiff", "S2.h5"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    pd.concat([table, table]).to_csv(tmp_path / "twice.csv", index=False)
    for name in ("labels.csv", "twice.csv"):
        with caplog.at_level(logging.INFO):
            cohort = open_cohort(directory, table=str(tmp_path / name), group="patient")
        pd.testing.assert_frame_equal(cohort.labels, exact.labels)
    assert f"{tmp_path / 'labels.csv'}: 4 slides have a row that names them with a folder or suffix" in caplog.text
    assert f"{tmp_path / 'twice.csv'}: 5 rows repeat an earlier row word for word; kept once" in caplog.text


def test_ids_that_several_slides_could_have_are_refused(tmp_path):
    features = list(draw_bags([1, 1, 1]).values())
    directory = write_store(tmp_path / "s", dict(zip(["b.svs", "b.tif", "c"], features, strict=True)))
    for ids, message in (
        (["b", "c", "b.tif"], r"1 ids could name several slides: 'b' \(b.svs, b.tif\); write them out"),
        (["b.svs", "b.tif", "c", "c.svs"], "'c' and 'c.svs' both name slide 'c'"),
    ):
        pd.DataFrame({"slide": ids}).to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(DataError, match=message):
            open_cohort(directory, table=str(tmp_path / "labels.csv"), independent_bags=True)
    pd.DataFrame({"slide": ["c.svs", "b.tif", "b.svs"]}).to_csv(tmp_path / "labels.csv", index=False)
    cohort = open_cohort(directory, table=str(tmp_path / "labels.csv"), independent_bags=True)
    assert cohort.bag_ids == ("b.svs", "b.tif", "c")


def test_rows_of_slides_without_tissue_are_left_out(tmp_path, bags):
    facts = DatasetFacts(provenance={"no_tissue": ["S0.tif", "empty"]})
    directory = write_store(tmp_path / "s", bags, facts=facts)
    more = pd.DataFrame({"slide": ["S0.tif", "empty.svs"], "patient": ["p", "z"]})
    pd.concat([three_patients(), more]).to_csv(tmp_path / "labels.csv", index=False)
    cohort = open_cohort(directory, table=str(tmp_path / "labels.csv"), group="patient")
    assert cohort.labels["slide"].tolist() == ["S0", "S1", "S2", "S3", "S4"]


def test_repeated_and_foreign_labels_are_refused(tmp_path, bags):
    again = three_patients().iloc[:2].assign(scanner="z", time=9.0)
    twice = write_store(tmp_path / "t", bags, pd.concat([three_patients(), again]))
    differing = r"'S4' \(time: 2.0 and 9.0, scanner: a and z\), 'S0' \(time: 1.0 and 9.0, scanner: b and z\); keep"
    with pytest.raises(DataError, match=f"2 slides have more than one row, and the rows differ: {differing}"):
        open_cohort(twice, group="patient")
    foreign = write_store(tmp_path / "u", bags, pd.DataFrame({"slide": ["a"], "patient": ["b"]}))
    with pytest.raises(DataError, match="no label belongs to a bag"):
        open_cohort(foreign, group="patient", allow_missing=True)
    unlabelled = write_store(tmp_path / "v", bags)
    with pytest.raises(DataError, match=r"no label table; name a file in data\.labels\.table"):
        open_cohort(unlabelled, group="patient")


def test_missing_columns_are_named_with_the_nearest(directory):
    with pytest.raises(ConfigError, match=r"data\.labels\.group: .* no column 'patients'; did you mean 'patient'\?"):
        open_cohort(directory, group="patients")
    with pytest.raises(ConfigError, match=r"data\.labels\.covariates: .* 'zzz'; it has: slide, patient, time, scanner"):
        open_cohort(directory, group="patient", covariates=("time", "zzz"))


def test_a_column_named_group_must_be_the_group(tmp_path, bags):
    directory = write_store(tmp_path / "t", bags, three_patients().rename(columns={"scanner": "group"}))
    with pytest.raises(ConfigError, match="column 'group' that is not declared"):
        open_cohort(directory, group="patient")
    assert open_cohort(directory, group="group").groups(["S0", "S1"]) == ("b", "a")


IDS = ["007", "1e5", "NA", "0x10", "true"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_ids_in_files_are_kept_letter_by_letter(tmp_path, suffix):
    directory = write_store(tmp_path / "s", {slide_id: np.ones((1, 2), np.float32) for slide_id in IDS})
    table = pd.DataFrame(
        {"slide": IDS, "patient": IDS[::-1], "age": [61, 62, 63, 64, 65], "grade": ["I", "", "II", "I", "I"]}
    )
    path = tmp_path / f"labels{suffix}"
    if suffix == ".parquet":
        table.astype({"patient": "category", "grade": "category", "age": "Int64"}).to_parquet(path)
    else:
        table.to_csv(path, sep={".csv": ",", ".tsv": "\t"}[suffix], index=False, encoding="utf-8-sig")
    cohort = open_cohort(directory, table=str(path), group="patient")
    assert cohort.bag_ids == tuple(IDS)
    assert cohort.groups(IDS) == tuple(IDS[::-1])
    assert cohort.labels["age"].tolist() == [61, 62, 63, 64, 65]
    assert [dtype.kind for dtype in cohort.labels.dtypes] == ["O", "O", "i", "O", "O"]


def test_whole_numbers_become_text_and_fractions_are_refused(tmp_path):
    directory = write_store(tmp_path / "s", {name: np.ones((1, 2), np.float32) for name in ("11", "12")})
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"slide": [11, 12], "patient": [5, 6]}).to_parquet(path)
    assert open_cohort(directory, table=str(path), group="patient").groups(["12"]) == ("6",)
    pd.DataFrame({"slide": [11, 12], "patient": [5, None]}).to_parquet(path)
    with pytest.raises(DataError, match="column 'patient': ids must be text or whole numbers, got float"):
        open_cohort(directory, table=str(path), group="patient", independent_bags=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.xlsx", "", "save the sheet as CSV"),
        ("labels.txt", "", "read from .csv, .tsv, .csv.zip, .parquet; got '.txt'"),
        ("absent.csv", None, "no such label table"),
        ("empty.csv", "", "the first line names no columns"),
        ("bad.parquet", "no parquet", "cannot be read as a table"),
        ("noid.csv", "slide,patient\n,p\nS0,p\n", "1 rows have no id: row 0"),
    ],
)
def test_unusable_label_files_are_named(tmp_path, directory, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        open_cohort(directory, table=str(tmp_path / name), group="patient")


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_a_restricted_cohort_carries_nothing_of_other_bags(tmp_path, bag):
    slide_ids = [f"slide-{i:02d}" for i in range(20)]
    table = pd.DataFrame(
        {
            "slide": slide_ids,
            "patient": [f"patient-{i // 2:02d}" for i in range(20)],
            "target": [f"label-{i // 2:02d}" for i in range(20)],
            "time": [1000.5 + i // 2 for i in range(20)],
        }
    )
    path = tmp_path / "labels.parquet"
    table.astype({"patient": "category", "target": "category"}).to_parquet(path)
    directory = write_store(tmp_path / "s", {slide_id: np.ones((1, 2), np.float32) for slide_id in slide_ids}, table)
    cohort = open_cohort(directory, table=str(path), group="patient", target="target", time="time", bag=bag)
    kept = [bag_id for bag_id in cohort.bag_ids if cohort.groups([bag_id])[0] in ("patient-03", "patient-07")]
    part = cohort.restrict(kept[::-1])
    assert part.bag_ids == tuple(kept)
    blob = pickle.dumps(part)
    for patient in range(10):
        is_kept = patient in (3, 7)
        texts = [
            f"patient-{patient:02d}",
            f"label-{patient:02d}",
            f"slide-{2 * patient:02d}",
            f"slide-{2 * patient + 1:02d}",
        ]
        assert [text.encode() in blob for text in texts] == [is_kept] * 4
        assert (np.float64(1000.5 + patient).tobytes() in blob) == is_kept
    back = pickle.loads(blob)
    assert torch.equal(back.read(kept[0]).features_ND, cohort.read(kept[0]).features_ND)
    pd.testing.assert_frame_equal(back.frame(kept), cohort.frame(kept))
    other = next(bag_id for bag_id in cohort.bag_ids if bag_id not in kept)
    for use in (back.read, back.length, lambda bag_id: back.frame([bag_id]), lambda bag_id: back.restrict([bag_id])):
        with pytest.raises(DataError, match=f"no bag '{other}' in this cohort of {len(kept)} bags"):
            use(other)
    with pytest.raises(DataError, match="no slide 'slide-00'"):
        back.store.read("slide-00")
