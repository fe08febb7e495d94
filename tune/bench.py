"""What the search itself costs on this machine: `python -m tune.bench`.

Runs a real search of short trials on the built-in digits and adds up, trial by trial, how long the workers spent
training between the start of the first trial and the end of the last. The rest is proposing, starting, reporting,
checkpoints and waiting.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

import tasks
from asmil.engine.records import EpochRecord
from asmil.errors import run_command
from asmil.experiment import Trained, open_experiment, train_once
from asmil.report.tables import print_table
from asmil.storage import ensure_directory
from tasks.spec import load_experiment
from tune.cluster import connect, plan_slots
from tune.rundir import RunDirectory, open_study, outer_folds
from tune.search import FoldSearch
from tune.space import SearchSpace

__all__ = ["main", "search_row"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print.

    Args:
        arguments: The words after the command; None takes them from the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tune.bench", description=__doc__)
    parser.add_argument("--trials", type=int, default=12, help="trials to run (default 12)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each trial (default 20, about 2 s)")
    parser.add_argument("--address", help="Ray cluster (default: RAY_ADDRESS, else a private one on this machine)")
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="asmil-bench-") as folder, connect(options.address):
        with contextlib.redirect_stdout(sys.stderr):
            row = search_row(Path(folder), trials=options.trials, epochs=options.epochs)
    if options.json:
        print(json.dumps([row], indent=1))
    else:
        print_table(list(row), [list(row.values())])
    return 0


def search_row(folder: Path, *, trials: int, epochs: int) -> dict[str, Any]:
    """Search on the connected cluster and account for the workers' time.

    Args:
        folder: Empty directory for the search's files.
        trials: Trials to run; none is stopped early.
        epochs: Epochs of each.

    Returns:
        `trials`, `slots` (trials at once), `seconds` from first start to last end, `trials_per_minute`,
        `mean_trial_seconds` of training, `share_outside_training` of the slots' time, and `workers` (processes used).
    """
    settings = [f"search.trials={trials}", "search.asha=null", "search.sampler=random", f"train.epochs={epochs}"]
    spec = load_experiment(Path(tasks.__path__[0]) / "smoke.yaml", assignments=settings)
    run = RunDirectory(ensure_directory(folder / "run", "run directory of the bench"))
    experiment = open_experiment(spec, run.path)
    (fold,) = outer_folds(experiment, None)
    study, slots = open_study(run, experiment, fold), plan_slots(spec.search)
    log = folder / "training.jsonl"
    FoldSearch(
        experiment, run, fold, study, SearchSpace(spec), slots, train=functools.partial(_timed_training, log=log)
    ).run()
    spans = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    began = min(trial.datetime_start.timestamp() for trial in study.study.trials if trial.datetime_start)
    ended = max(trial.datetime_complete.timestamp() for trial in study.study.trials if trial.datetime_complete)
    training = sum(span["seconds"] for span in spans)
    return {
        "trials": study.counts().finished,
        "slots": slots.concurrent,
        "seconds": round(ended - began, 2),
        "trials_per_minute": round(60 * study.counts().finished / (ended - began), 1),
        "mean_trial_seconds": round(training / len(spans), 3),
        "share_outside_training": round(1 - training / ((ended - began) * slots.concurrent), 3),
        "workers": len({span["pid"] for span in spans}),
    }


def _timed_training(*arguments: Any, on_epoch: Callable[[EpochRecord], None], log: Path, **options: Any) -> Trained:
    """`train_once`, with its seconds less those spent reporting appended to a file."""
    reporting = 0.0

    def timed(record: EpochRecord) -> None:
        nonlocal reporting
        start = time.perf_counter()
        on_epoch(record)
        reporting += time.perf_counter() - start

    start = time.perf_counter()
    trained = train_once(*arguments, on_epoch=timed, **options)
    span = {"pid": os.getpid(), "seconds": time.perf_counter() - start - reporting}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(span) + "\n")
    return trained


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
