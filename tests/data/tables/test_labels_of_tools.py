"""Label tables in the layouts of their tools: recognised, joined and normalised to one outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asmil.data.config import LabelColumns
from asmil.data.tables.loading import LabelOptions, LabelTable, load_label_table
from asmil.errors import ConfigError, DataError
from tests.data.foreign_tables import (
    EVENTS,
    MONTHS,
    PATIENTS,
    SLIDES,
    clam_dataset,
    mcat_clinical,
    mil_baseline,
    mmp_fold,
    patho_bench,
    patient_of,
    stamp_tables,
    survpath_metadata,
)

EVENT_OF = dict(zip(PATIENTS, EVENTS, strict=True))
MONTHS_OF = dict(zip(PATIENTS, MONTHS, strict=True))
OF_MCAT = {"time": "survival_months", "censor": "censorship"}


def loaded(table: Path, columns: Mapping[str, str] | None = None, **options: Any) -> tuple[LabelTable, list[str]]:
    said: list[str] = []
    given = LabelOptions(table, LabelColumns(**(columns or {})), **options)
    return load_label_table(given, said.append), said


def check_outcome(table: LabelTable, unit: str, factor: float, suffix: str = "") -> None:
    """Every slide has the event and time of its patient, whatever the source called and counted them."""
    assert table.columns.id == "slide_id"
    assert table.columns.group == "case_id"
    assert (table.columns.event, table.columns.censor, table.columns.time) == ("event", None, f"time_{unit}")
    rows = table.frame.set_index("slide_id")
    assert sorted(rows.index) == sorted(slide + suffix for slide in SLIDES)
    for slide in SLIDES:
        row, patient = rows.loc[slide + suffix], patient_of(slide)
        assert row["case_id"] == patient
        assert row["event"] == EVENT_OF[patient]
        assert row[f"time_{unit}"] == pytest.approx(MONTHS_OF[patient] * factor, abs=0.5 if unit == "days" else 0)


# --- one layout after another ---


def test_clam_dataset_table(tmp_path: Path) -> None:
    path = clam_dataset(tmp_path / "tumor_subtyping.csv")
    table, said = loaded(path)
    assert table.columns == LabelColumns(id="slide_id", group="case_id", target="label")
    assert table.frame["label"].tolist() == [f"subtype_{int(slide[5:7]) % 2}" for slide in SLIDES]
    assert table.time_unit is None
    assert said == [
        f"{path}: CLAM dataset table, because it has columns case_id, slide_id, label; takes --id-column slide_id "
        "--group-column case_id --target-column label"
    ]


@pytest.mark.parametrize("name", ["tcga_blca_all_clean.csv.zip", "tcga_blca_all.csv"])
@pytest.mark.parametrize("index", [True, False])
def test_mcat_and_porpoise_clinical_table(tmp_path: Path, name: str, index: bool) -> None:
    path = mcat_clinical(tmp_path / name, index=index)
    table, said = loaded(path, OF_MCAT)
    check_outcome(table, "months", 1, ".svs")
    assert table.polarity == "event = 1 - censorship, time_months = survival_months"
    assert not [column for column in table.frame.columns if column.startswith("GENE")]
    assert "40 columns of genes (*_cnv, *_mut, *_rnaseq) are left out of the table" in said
    assert f"{path}: 'survival_months' is taken to be in months; --time-unit would say otherwise" in said


def test_survpath_metadata_has_three_endpoints(tmp_path: Path) -> None:
    path = survpath_metadata(tmp_path / "tcga_blca.csv")
    table, _ = loaded(path, OF_MCAT)
    check_outcome(table, "months", 1, ".svs")
    other, _ = loaded(path, {"time": "survival_months_pfi", "censor": "censorship_pfi"})
    assert other.frame["event"].sum() == 0
    assert other.frame["time_months"].tolist() == (table.frame["time_months"] / 2).tolist()


def test_mmp_and_panther_fold(tmp_path: Path) -> None:
    folder = mmp_fold(tmp_path / "BLCA_overall_survival_k=0", PATIENTS[:2])
    table, _ = loaded(folder, {"time": "os_survival_days", "censor": "os_censorship"})
    check_outcome(table, "days", 30.4375)
    with pytest.raises(
        DataError, match=r"--censor-column dss_censorship: 1 values are not understood: -1; use 1 where"
    ):
        loaded(folder, {"time": "dss_survival_days", "censor": "dss_censorship"})


def test_patho_bench_classes_come_from_the_task_column_of_its_yaml(tmp_path: Path) -> None:
    table, _ = loaded(patho_bench(tmp_path))
    assert table.columns == LabelColumns(id="slide_id", group="case_id", target="grade")
    assert table.frame["grade"].tolist() == [int(slide[5:7]) % 2 for slide in SLIDES]


def test_patho_bench_survival_has_event_polarity_and_its_codes_are_no_target(tmp_path: Path) -> None:
    path = patho_bench(tmp_path, survival=True)
    table, _ = loaded(path, {"time": "OS_days", "event": "OS_event"})
    check_outcome(table, "days", 30.4375)
    assert table.columns.target is None
    assert table.polarity == "event = OS_event, time_days = OS_days"


def test_stamp_joins_patients_with_slides_and_reads_words(tmp_path: Path) -> None:
    clini, slides = stamp_tables(tmp_path)
    table, said = loaded(clini, {"time": "days", "event": "status"}, slide_table=slides)
    assert (table.columns.id, table.columns.group) == ("FILENAME", "PATIENT")
    rows = table.frame.set_index("FILENAME")
    for slide in SLIDES:
        row = rows.loc[f"virchow2/{slide}.h5"]
        assert (row["PATIENT"], row["event"]) == (patient_of(slide), EVENT_OF[patient_of(slide)])
    assert f"{slides}: STAMP slide table, because it has columns PATIENT, FILENAME; takes --id-column FILENAME" in said
    with pytest.raises(ConfigError, match="STAMP clini table names no slides; give --slide-table TABLE"):
        loaded(clini, {"target": "isMSIH"})
    with pytest.raises(DataError, match="spreadsheets are not read; save the sheet as CSV"):
        loaded(clini.with_suffix(".xlsx"))


def test_stamp_patients_of_one_table_only_are_named(tmp_path: Path) -> None:
    clini, slides = stamp_tables(tmp_path)
    pd.read_csv(slides).query("PATIENT != 'TCGA-03'").to_csv(slides, index=False)
    pd.read_csv(clini).query("PATIENT != 'TCGA-05'").to_csv(clini, index=False)
    table, said = loaded(clini, {"target": "isMSIH"}, slide_table=slides)
    assert table.unused == ("TCGA-03",)
    assert f"1 patients of {slides} have no row in the labels: TCGA-05" in said
    pd.concat([pd.read_csv(clini)] * 2).to_csv(clini, index=False)
    with pytest.raises(DataError, match="5 patients have more than one row: TCGA-00, "):
        loaded(clini, {"target": "isMSIH"}, slide_table=slides)


def test_torchmil_and_mil_baseline_tables(tmp_path: Path) -> None:
    pd.DataFrame({"bag_name": SLIDES, "label": [0, 1] * 6}).to_csv(tmp_path / "bags.csv", index=False)
    assert loaded(tmp_path / "bags.csv")[0].columns.id == "bag_name"
    path = mil_baseline(tmp_path / "fold_1.csv", {"train": SLIDES[:7], "val": SLIDES[7:9], "test": SLIDES[9:]})
    frame = loaded(path)[0].frame
    assert frame["label"].tolist() == [int(slide[5:7]) % 2 for slide in SLIDES]
    assert frame["slide"].tolist() == [f"/data/uni/pt_files/{slide}.pt" for slide in SLIDES]


def test_bracs_split_column_and_ids_of_digits_stay(tmp_path: Path) -> None:
    path = tmp_path / "bracs.csv"
    path.write_text("slide,split_info,label\n007,train,1\n1e5,val,0\nNA,test,2\n")
    frame = loaded(path, {"target": "label"})[0].frame
    assert frame["slide"].tolist() == ["007", "1e5", "NA"]
    assert frame["split_info"].tolist() == ["train", "val", "test"]


def test_hundreds_of_columns_are_kept(tmp_path: Path) -> None:
    columns = {f"x{number}": [number, number + 1] for number in range(300)}
    pd.DataFrame({"slide": ["a", "b"], **columns}).to_csv(tmp_path / "t.csv", index=False)
    frame = loaded(tmp_path / "t.csv")[0].frame
    assert frame.drop(columns="slide").to_dict("list") == columns


# --- polarity, units and words ---


def test_polarity_has_to_be_named_and_the_question_shows_both_readings(tmp_path: Path) -> None:
    path = mcat_clinical(tmp_path / "t.csv")
    for columns in ({}, {"time": "survival_months"}):
        with pytest.raises(ConfigError) as caught:
            loaded(path, columns)
        message = str(caught.value)
        assert message.startswith(f"{path}: follow-up times (survival_months) do not tell who had the event: name ")
        assert (
            "Found: --event-column censorship gives 3 events among 6 patients (50.0 %), --censor-column censorship "
            "gives 3 events among 6 patients (50.0 %)"
        ) in message
        assert "mean --time-column survival_months --time-unit months --censor-column censorship" in message
        assert ("give --target-column" in message) == (not columns)
        assert "\n" not in message


def test_both_readings_are_counted_by_patient_and_words_have_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "slide,patient,months,OS_STATUS,vital_event,note_event\n"
        "a,p,1,1:DECEASED,1,x\nb,p,1,1:DECEASED,1,y\nc,q,2,0:LIVING,0,z\nd,r,3,0:LIVING,,z\ne,s,4,0:LIVING,0,z\n"
    )
    with pytest.raises(ConfigError) as caught:
        loaded(path, {"time": "months", "group": "patient"})
    assert (
        "Found: --event-column OS_STATUS gives 1 events among 4 patients (25.0 %); --event-column vital_event gives 1 "
        "events among 3 patients (33.3 %), --censor-column vital_event gives 2 events among 3 patients (66.7 %)"
    ) in str(caught.value)
    assert "note_event" not in str(caught.value)


def test_a_table_of_outcomes_is_stored_for_classification_if_a_target_is_named(tmp_path: Path) -> None:
    path = mcat_clinical(tmp_path / "t.csv")
    table, said = loaded(path, {"target": "oncotree_code"})
    assert table.time_unit is None
    assert any("seems to hold outcomes; to store one, give --time-column survival_months" in line for line in said)


def test_an_unknown_table_that_looks_like_an_outcome_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,patient,os_months,event\na,p,3.5,1\n")
    table, said = loaded(path, {"group": "patient"})
    assert (table.time_unit, table.frame["event"].tolist()) == (None, [1])
    assert said == [
        f"{path} seems to hold an outcome (times os_months; marks event); to have it checked and summarised, give "
        "--time-column and --event-column or --censor-column"
    ]
    path.write_text("slide,events_per_year,label\na,3.5,1\n")
    assert len(loaded(path)[1]) == 1
    path.write_text("slide,age_years,label\na,3.5,1\n")
    assert loaded(path)[1] == []


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        (OF_MCAT, None),
        (
            {"time": "survival_months", "event": "censorship"},
            "warning: --event-column censorship was given, but in a MCAT/PORPOISE clinical table it is --censor-column "
            "censorship: check the polarity",
        ),
    ],
)
def test_polarity_against_the_layout_is_warned_of(tmp_path: Path, columns: dict[str, str], warning: str | None) -> None:
    _, said = loaded(mcat_clinical(tmp_path / "t.csv"), columns)
    assert [line for line in said if line.startswith("warning")] == ([] if warning is None else [warning])


def test_an_event_column_whose_name_speaks_of_censoring_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,t_days,is_censored\na,1,1\nb,2,0\n")
    _, said = loaded(path, {"time": "t_days", "event": "is_censored"})
    assert any("its name speaks of censoring" in line for line in said)
    assert not any("warning" in line for line in loaded(path, {"time": "t_days", "censor": "is_censored"})[1])


@pytest.mark.parametrize(
    ("word", "event"),
    [("DECEASED", 1), ("1:DECEASED", 1), ("dead", 1), ("Alive", 0), ("0:LIVING", 0), ("TRUE", 1), ("0.0", 0)],
)
def test_words_of_an_event_column(tmp_path: Path, word: str, event: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"slide,days,status\na,1,{word}\nb,2,{word}\n")
    assert loaded(path, {"time": "days", "event": "status"})[0].frame["event"].tolist() == [event, event]


def test_words_in_a_censor_column_and_unknown_words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,days,status\na,1,dead\nb,2,Alive\nc,3,lost\n")
    with pytest.raises(
        DataError, match=r"--censor-column status: 3 values .*: dead, Alive, lost; .* for words give --ev"
    ):
        loaded(path, {"time": "days", "censor": "status"})
    with pytest.raises(DataError, match="--event-column status: 1 values are not understood: lost; use 1 where"):
        loaded(path, {"time": "days", "event": "status"})


def test_unit_is_named_or_inferred_and_a_contradiction_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,time,OS_Years,dead\na,1,0.5,1\nb,2,0.25,0\n")
    with pytest.raises(ConfigError, match="--time-column time needs --time-unit days, months or years: its name does"):
        loaded(path, {"time": "time", "event": "dead"})
    assert loaded(path, {"time": "time", "event": "dead"}, time_unit="days")[0].columns.time == "time_days"
    table, said = loaded(path, {"time": "OS_Years", "event": "dead"})
    assert (table.columns.time, table.time_unit) == ("time_years", "years")
    table, said = loaded(path, {"time": "OS_Years", "event": "dead"}, time_unit="months")
    assert table.columns.time == "time_months"
    assert "warning: --time-unit months was given, but 'OS_Years' should be in years" in said


@pytest.mark.parametrize("columns", [{"event": "dead"}, {"censor": "dead"}])
def test_status_without_time_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,dead\na,1\nb,0\n")
    with pytest.raises(ConfigError, match="'dead' marks events or censoring, but no time is named"):
        loaded(path, columns)


# --- what cannot be used ---


def test_rows_of_one_patient_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = mcat_clinical(tmp_path / "t.csv")
    frame = pd.read_csv(path, index_col=0)
    frame.loc[1, "survival_months"] += 1
    frame.loc[4, "censorship"] = 1 - frame.loc[4, "censorship"]
    frame.to_csv(path)
    with pytest.raises(DataError, match=r"the rows of 2 patients differ in .*: TCGA-00, TCGA-02; the outcome belongs"):
        loaded(path, OF_MCAT)


def test_missing_outcomes_are_left_out_by_name_and_broken_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,days,dead\na,1,1\nb,[Not Available],0\nc,3,\nd,4,0\n")
    table, said = loaded(path, {"time": "days", "event": "dead"})
    assert table.frame["slide"].tolist() == ["a", "d"]
    assert f"2 rows of {path} have no time or no status and are left out: b, c" in said
    path.write_text("slide,days,dead\na,-1,1\nb,2,0\n")
    with pytest.raises(DataError, match=r"--time-column days: 1 times are negative: a \(-1\)"):
        loaded(path, {"time": "days", "event": "dead"})
    path.write_text("slide,days,dead\na,1 week,1\nb,2,0\n")
    with pytest.raises(DataError, match="--time-column days: 1 values are not numbers: 1 week"):
        loaded(path, {"time": "days", "event": "dead"})


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,days,dead\n")
    with pytest.raises(DataError, match="a header without rows"):
        loaded(path, {"time": "days", "event": "dead"})


def test_a_column_called_event_with_other_values_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,days,event,relapse\na,1,1,0\nb,2,1,1\n")
    with pytest.raises(ConfigError, match="has a column 'event' that differs from what is made of 'relapse'"):
        loaded(path, {"time": "days", "event": "relapse"})
