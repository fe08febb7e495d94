"""The command of the clinical baseline against stored figures, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asmil.clinical import clinical_folds, main
from asmil.errors import ConfigError, DataError

COHORTS = ("blca", "brca", "luad", "ucec", "gbmlgg")
COLUMNS = ("--group-column", "patient_id", "--time-column", "os_months", "--event-column", "event")


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize(("covariates", "key"), [("age", "age"), ("age,oncotree_code", "age+oncotree")])
def test_the_reference_table_of_the_published_folds(
    shared: Path, capsys: pytest.CaptureFixture[str], cohort: str, covariates: str, key: str
) -> None:
    table = shared / f"data/tcga_survival/tcga_{cohort}_patients.csv"
    main([str(table), *COLUMNS, "--covariates", covariates, "--fold-column", "fold"])
    stored = json.loads((shared / "golden/survival/tcga_sanity_baselines.json").read_text())["cohorts"][cohort]
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"mean C (\S+), SD over folds (\S+); by chance a mean varies by (\S+)", line)
    assert found, line
    assert [float(found[1]), float(found[2])] == pytest.approx(stored[key], abs=1e-3)
    assert float(found[3]) == pytest.approx(stored["null_sd_of_5fold_mean"], rel=0.1), "stored: a simulation"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    age = rng.normal(60, 10, 60)
    frame = pd.DataFrame(
        {
            "patient": [f"{number:03d}" for number in range(60)],
            "time": rng.exponential(np.exp((70 - age) / 10)).round(3) + 0.001,
            "dead": rng.integers(0, 2, 60),
            "age": age,
        }
    )
    path = tmp_path / "labels.csv"
    pd.concat([frame, frame.head(7)]).to_csv(path, index=False)
    return path


def run(table: Path, *extra: str, mark: str = "--event-column") -> None:
    main(
        [str(table), "--group-column", "patient", "--time-column", "time", mark, "dead", "--covariates", "age", *extra]
    )


def test_folds_are_drawn_by_patient_from_a_seed(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for extra in ((), (), ("--seed", "1"), ("--folds", "3")):
        run(table, *extra)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]
    assert "60 patients" in outputs[0]
    sizes = [int(line.split()[1]) for line in outputs[3].splitlines() if re.match(r"\s*[012]\s", line)]
    assert sizes == [20, 20, 20]
    mean = float(re.findall(r"mean C (\S+),", outputs[0])[0])
    assert mean > 0.6, "age was made to matter"


def test_turning_the_polarity_changes_the_figures(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(table)
    as_events = capsys.readouterr().out
    run(table, mark="--censor-column")
    assert capsys.readouterr().out.splitlines()[0] != as_events.splitlines()[0]


def edit(table: Path, row: int, column: str, value: object) -> None:
    frame = pd.read_csv(table, dtype=str)
    frame.loc[row, column] = str(value)
    frame.to_csv(table, index=False)


@pytest.mark.parametrize(("column", "value"), [("time", 99), ("dead", 3), ("age", 1)])
def test_a_patient_whose_rows_differ_is_refused(table: Path, column: str, value: object) -> None:
    edit(table, 2, column, value)
    with pytest.raises(DataError, match="1 patients have rows that differ: 002"):
        run(table)


def test_missing_columns_and_single_folds_are_named(table: Path) -> None:
    with pytest.raises(ConfigError, match="no column stage; it has patient, time, dead, age"):
        main([str(table), "--group-column", "patient", "--time-column", "time", "--event-column", "dead",
              "--covariates", "age,stage"])  # fmt: skip
    with pytest.raises(DataError, match="all 4 patients are in fold 0; two folds"):
        clinical_folds(pd.DataFrame({"age": [1, 2, 3, 4]}), np.arange(4.0), np.ones(4), ["0"] * 4)
