"""A search that is over without a trial having run, for the tests of what comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import TrialState, create_trial

from asmil.experiment import Experiment
from tasks.spec import load_experiment
from tests.run_support import classification
from tune.rundir import OuterFold, RunDirectory, open_study, outer_folds
from tune.study import OVERRIDES, VALIDATION, SearchStudy

METRIC = "macro_auc"


def finished_search(folder: Path, **changes: Any) -> RunDirectory:
    """A run directory in which the study of every outer fold is closed with one trial of the experiment's own values.

    Args:
        folder: Gets the experiment file, `store/` and `run/`.
        changes: Sections of the experiment, merged into a small classification.
    """
    search = {"trials": 1, "refit_seeds": 2, "params": {"train.lr": {"low": 0.001, "high": 0.1}}}
    settings = {"search": search, "train": {"epochs": 1, "stability_bags": 0}, **changes}
    tiny = classification(folder, changes=settings)
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    run.save(load_experiment(tiny.file), "tiny-demo")
    for study in studies(run, run.open()).values():
        attributes = {OVERRIDES: {}, VALIDATION: {METRIC: 0.7}}
        study.study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.7, user_attrs=attributes))
        study.close()
    return run


def studies(run: RunDirectory, experiment: Experiment) -> dict[OuterFold, SearchStudy]:
    """The studies of all outer folds."""
    return {fold: open_study(run, experiment, fold) for fold in outer_folds(experiment, None)}
