"""What clinical covariates alone predict, fold by fold: `python -m asmil.clinical TABLE --time-column os_months ...`.

Any survival model of slides should be read beside these numbers. The table alone is needed, no store: each fold is
predicted by a ridge Cox model fitted on the other folds. A column can give the folds (a published split); else they
are drawn by patient, stratified by event.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from asmil.data.config import LabelColumns
from asmil.data.cuts import group_strata, stratified_folds
from asmil.data.labels import first_of, read_label_table
from asmil.errors import ConfigError, DataError, run_command
from asmil.metrics.clinical import fit_clinical
from asmil.metrics.survival import harrell_c, null_c_spread
from asmil.metrics.trainings import mean_null_c_spread
from asmil.metrics.values import Metric
from asmil.report.tables import Cell, format_number, print_table
from tasks.outcomes import OutcomeColumns

__all__ = ["ClinicalFold", "clinical_folds", "main"]


@dataclass(frozen=True)
class ClinicalFold:
    """The baseline on one held-out fold.

    Attributes:
        name: The fold.
        patients: Patients held out.
        events: How many of them were seen to die.
        c_index: Harrell's C of the baseline.
        null_sd: Standard deviation of C for risks that know nothing; None without comparable pairs.
    """

    name: str
    patients: int
    events: int
    c_index: Metric
    null_sd: float | None


def clinical_folds(
    covariates: pd.DataFrame, time_B: np.ndarray, event_B: np.ndarray, fold_B: Sequence[str]
) -> list[ClinicalFold]:
    """Predict each fold from the others.

    Args:
        covariates: One row per patient.
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        fold_B: The fold in which each patient is held out.

    Returns:
        One result per fold, in order of their names.

    Raises:
        DataError: One fold only, or the baseline cannot be fitted.
    """
    folds = np.asarray(fold_B, dtype=str)
    names = sorted(set(folds.tolist()))
    if len(names) < 2:
        raise DataError(f"all {len(folds)} patients are in fold {first_of(names)}; two folds or more are needed")
    results = []
    for name in names:
        test_B = folds == name
        model = fit_clinical(covariates[~test_B], time_B[~test_B], event_B[~test_B])
        time, event = time_B[test_B], event_B[test_B]
        c_index = harrell_c(time, event, model.risks(covariates[test_B]))
        results.append(ClinicalFold(name, int(test_B.sum()), int(event.sum()), c_index, null_c_spread(time, event)))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program name; those of the process without it.
    """
    options = _parser().parse_args(arguments)
    columns = LabelColumns(
        id=options.group_column, time=options.time_column, event=options.event_column, censor=options.censor_column
    )
    labels = _patients(read_label_table(options.table, columns), options)
    time_B, event_B = OutcomeColumns.configured(columns, "survival").read(labels)
    folds = clinical_folds(labels[options.covariates], time_B, event_B, _folds(labels, event_B, options))
    rows: list[Sequence[Cell]] = [(fold.name, fold.patients, fold.events, fold.c_index, fold.null_sd) for fold in folds]
    print(f"{options.table}: {len(labels)} patients, {int(event_B.sum())} events; ridge Cox on {_named(options)}")
    print_table(("fold", "patients", "events", "C-index", "SD of C by chance"), rows)
    print(_summary(folds))


def _summary(folds: Sequence[ClinicalFold]) -> str:
    values = [fold.c_index.value for fold in folds if fold.c_index.value is not None]
    if not values:
        return "no fold has a C-index"
    spread = mean_null_c_spread([fold.null_sd for fold in folds])
    parts = [f"mean C {np.mean(values):.4f}, SD over folds {np.std(values):.4f}"]
    if len(values) < len(folds):
        parts.append(f"{len(folds) - len(values)} of {len(folds)} folds left out, they have no comparable pairs")
    if spread is not None:
        parts.append(f"by chance a mean varies by {format_number(spread)}")
    return "; ".join(parts)


def _named(options: argparse.Namespace) -> str:
    return ", ".join(options.covariates)


def _patients(labels: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """One row per patient, the named columns only."""
    fold = [options.fold_column] if options.fold_column else []
    mark = options.event_column or options.censor_column
    wanted = [options.group_column, options.time_column, mark, *options.covariates, *fold]
    missing = [name for name in wanted if name not in labels.columns]
    if missing:
        raise ConfigError(
            f"{options.table}: no column {first_of(missing)}; it has {', '.join(map(str, labels.columns))}"
        )
    rows = labels[list(dict.fromkeys(wanted))].drop_duplicates()
    twice = rows.loc[rows[options.group_column].duplicated(), options.group_column].tolist()
    if twice:
        raise DataError(
            f"{options.table}: {len(twice)} patients have rows that differ: {first_of(twice)}; outcome, covariates and "
            "fold belong to the patient: correct the table"
        )
    return rows.set_index(options.group_column)


def _folds(labels: pd.DataFrame, event_B: np.ndarray, options: argparse.Namespace) -> list[str]:
    """The fold in which each patient is held out."""
    if options.fold_column:
        return [str(value) for value in labels[options.fold_column]]
    patients = [str(patient) for patient in labels.index]
    strata = group_strata(patients, event_B.tolist())
    cut = stratified_folds(strata, options.folds, seed=options.seed, what=f"{options.table}: cut of the patients")
    fold_of = {patient: str(number) for number, members in enumerate(cut) for patient in members}
    return [fold_of[patient] for patient in patients]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asmil.clinical", description=__doc__)
    parser.add_argument("table", type=Path, metavar="TABLE", help="label table, one row per patient or slide")
    parser.add_argument("--group-column", required=True, metavar="NAME", help="patient")
    parser.add_argument("--time-column", required=True, metavar="NAME", help="follow-up time")
    polarity = parser.add_mutually_exclusive_group(required=True)
    polarity.add_argument("--event-column", metavar="NAME", help="1 where the event was observed")
    polarity.add_argument("--censor-column", metavar="NAME", help="1 where the event was not observed")
    parser.add_argument("--covariates", required=True, type=_words, metavar="NAME,...", help="e.g. age,stage")
    parser.add_argument("--fold-column", metavar="NAME", help="fold in which a patient is held out")
    parser.add_argument("--folds", type=int, default=5, help="folds to draw without --fold-column (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (%(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main)
