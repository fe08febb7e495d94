"""Writers of label and split tables in the exact layouts of the tools that make them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

SLIDES = tuple(f"TCGA-{patient:02d}-DX{number}" for patient in range(6) for number in (1, 2))
"""Two slides of each of six patients `TCGA-00` to `TCGA-05`."""

PATIENTS = tuple(dict.fromkeys(slide.rpartition("-")[0] for slide in SLIDES))
MONTHS = (10.0, 20.5, 3.25, 7.0, 44.0, 31.0)
EVENTS = (1, 0, 1, 1, 0, 0)


def patient_of(slide: str) -> str:
    return slide.rpartition("-")[0]


def clam_dataset(path: Path) -> Path:
    """`case_id,slide_id,label` with labels as words."""
    rows = [{"case_id": patient_of(s), "slide_id": s, "label": f"subtype_{int(s[5:7]) % 2}"} for s in SLIDES]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def survival_rows(suffix: str = "") -> pd.DataFrame:
    """One row per slide as in MCAT: slides end in `.svs`, `censorship` 1 is not observed."""
    number = {patient: position for position, patient in enumerate(PATIENTS)}
    rows = [(patient_of(slide), slide, number[patient_of(slide)]) for slide in SLIDES]
    return pd.DataFrame(
        {
            "case_id": [case for case, _, _ in rows],
            "slide_id": [slide + suffix for _, slide, _ in rows],
            "site": "XX",
            "is_female": [position % 2 for _, _, position in rows],
            "oncotree_code": "BLCA",
            "age": [60 + position for _, _, position in rows],
            "survival_months": [MONTHS[position] for _, _, position in rows],
            "censorship": [1.0 - EVENTS[position] for _, _, position in rows],
            "train": 1.0,
        }
    )


def mcat_clinical(path: Path, *, genes: int = 40, index: bool = True) -> Path:
    """The zipped clinical table of MCAT and PORPOISE, followed by columns of genes."""
    table = survival_rows(".svs")
    kinds = ("cnv", "mut", "rnaseq")
    extra = {f"GENE{gene}_{kinds[gene % 3]}": [0.5 * gene] * len(table) for gene in range(genes)}
    text = pd.concat([table, pd.DataFrame(extra)], axis=1).to_csv(index=index)
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.name.removesuffix(".zip"), text)
    else:
        path.write_text(text)
    return path


def survpath_metadata(path: Path) -> Path:
    """Metadata of SurvPath: an index, and endpoints told apart by their suffix."""
    table = survival_rows(".svs")
    for kind in ("_dss", "_pfi"):
        table[f"survival_months{kind}"] = table["survival_months"] / 2
        table[f"censorship{kind}"] = 1.0
    table.to_csv(path)
    return path


def mmp_fold(folder: Path, test: Sequence[str]) -> Path:
    """A fold of MMP: `train.csv` and `test.csv` of slides with days and censoring columns."""
    folder.mkdir(parents=True)
    table = survival_rows()
    days = (table["survival_months"] * 30.4375).round()
    table = table[["case_id", "slide_id", "age"]].assign(
        os_survival_days=days, os_censorship=table["censorship"], dss_survival_days=days, dss_censorship=-1
    )
    in_test = table["case_id"].isin(test)
    table[~in_test].to_csv(folder / "train.csv", index=False)
    table[in_test].to_csv(folder / "test.csv", index=False)
    return folder


def patho_bench(folder: Path, *, folds: int = 3, survival: bool = False) -> Path:
    """`k=all.tsv` beside `config.yaml`; fold columns hold train and test."""
    folder.mkdir(parents=True, exist_ok=True)
    task = "OS" if survival else "grade"
    table = survival_rows()[["case_id", "slide_id"]]
    number = [int(case[5:]) for case in table["case_id"]]
    table[task] = [position % 2 for position in number]
    if survival:
        table["OS_event"] = [EVENTS[position] for position in number]
        table["OS_days"] = [round(MONTHS[position] * 30.4375) for position in number]
    for fold in range(folds):
        table[f"fold_{fold}"] = ["test" if position % folds == fold else "train" for position in number]
    table.to_csv(folder / "k=all.tsv", sep="\t", index=False)
    kind = "survival" if survival else "classification"
    (folder / "config.yaml").write_text(
        f"task_col: {task}\ntask_type: {kind}\nsample_col: case_id\nextra_cols: []\nlabel_dict:\n  0: low\n  1: high\n"
    )
    return folder / "k=all.tsv"


def stamp_tables(folder: Path) -> tuple[Path, Path]:
    """STAMP's clini table (a row per patient) and slide table (a row per feature file)."""
    clini, slides = folder / "clini.csv", folder / "slide.csv"
    pd.DataFrame(
        {
            "PATIENT": PATIENTS,
            "isMSIH": ["yes", "no"] * 3,
            "days": [round(month * 30.4375) for month in MONTHS],
            "status": ["dead" if event else "Alive" for event in EVENTS],
        }
    ).to_csv(clini, index=False)
    pd.DataFrame({"PATIENT": map(patient_of, SLIDES), "FILENAME": [f"virchow2/{s}.h5" for s in SLIDES]}).to_csv(
        slides, index=False
    )
    return clini, slides


def part_columns(path: Path, parts: Mapping[str, Sequence[str]], *, index: bool = True) -> Path:
    """`splits_<i>.csv`: ragged columns of ids beside an index without a name."""
    pd.DataFrame({name: pd.Series(list(ids), dtype=object) for name, ids in parts.items()}).to_csv(path, index=index)
    return path


def clam_bool(path: Path, parts: Mapping[str, Sequence[str]]) -> Path:
    """`splits_<i>_bool.csv`: slide ids beside booleans."""
    ids = [name for members in parts.values() for name in members]
    pd.DataFrame({part: [name in members for name in ids] for part, members in parts.items()}, index=ids).to_csv(path)
    return path


def clam_descriptor(path: Path) -> Path:
    """`splits_<i>_descriptor.csv`: counts of each class."""
    pd.DataFrame({"train": [3, 1], "val": [1, 1], "test": [1, 2]}, index=["subtype_0", "subtype_1"]).to_csv(path)
    return path


def write_json(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree))
    return path


def acmil_split(path: Path, parts: Mapping[str, Sequence[str]]) -> Path:
    """`split_<seed>.json` of ACMIL and ASMIL."""
    return write_json(path, {f"{part}_names": list(ids) for part, ids in parts.items()})


def mil_baseline(path: Path, parts: Mapping[str, Sequence[str]]) -> Path:
    """A fold of MIL_BASELINE: absolute paths and labels, ragged."""
    columns: dict[str, pd.Series] = {}
    for part, ids in parts.items():
        columns[f"{part}_slide_path"] = pd.Series([f"/data/uni/pt_files/{name}.pt" for name in ids], dtype=object)
        columns[f"{part}_label"] = pd.Series([int(name[5:7]) % 2 for name in ids])
    pd.DataFrame(columns).to_csv(path, index=False)
    return path
