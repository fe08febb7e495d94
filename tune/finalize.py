"""After a search: refit the best configurations, open the sealed test part once, write report and result.

Started by `tune.search` as a process of its own, or by hand with `python -m tune.finalize RUN_DIR`. It refuses while a
study is still open. The best settings with softmax attention, without anchor and token drop, are refitted beside them
and not tuned again; the report shows the difference. Models and test predictions are kept as they appear, so the same
command goes on after an interruption and opens no test part whose predictions it has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
import torch

from asmil.data.cohort import Cohort
from asmil.data.splits import DevelopmentSplit
from asmil.engine.jobs import Job, list_jobs
from asmil.engine.predict import resolve_device
from asmil.errors import ConfigError, TrainingError, run_command
from asmil.evaluation import Evaluation, load_predictions, save_predictions
from asmil.experiment import Experiment, load_model, predict_test, refit, save_model
from asmil.storage import ensure_directory
from tasks.spec import ExperimentSpec
from tune.cluster import connect, plan_slots
from tune.evaluation import FoldOutcome
from tune.outcome import write_outcome
from tune.rundir import OuterFold, RunDirectory, open_study, outer_folds
from tune.study import OVERRIDES, SearchStudy

__all__ = ["main"]

BEST = "best"
WITHOUT_ANCHOR = "without_anchor"
MODEL_FILE = "model.json"
TEST_FILE = "test.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, refit, test and report.

    Args:
        arguments: The words after the command; None takes them from the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = RunDirectory(options.run_directory)
    experiment = run.open()
    out = run.outcome(options.fold)
    if (out / "result.json").exists():
        raise ConfigError(f"{out / 'result.json'}: the test part was evaluated already; search anew with --fresh")
    studies = {fold: open_study(run, experiment, fold) for fold in outer_folds(experiment, options.fold)}
    for fold, study in studies.items():
        if not study.closed:
            raise ConfigError(
                f"study {fold.name} in {run.path}: still open with {study.counts().finished} of "
                f"{experiment.spec.search.trials} trials; finish it with python -m tune.search first"
            )
    device = resolve_device(experiment.spec.train)
    started = time.monotonic()
    refits = [one for fold, study in studies.items() for one in _plan_refits(experiment, fold, study, run)]
    with connect(options.address):
        _run_refits(refits, experiment)
    seconds = time.monotonic() - started
    _predict(experiment, refits, run, device)
    outcomes = [_outcome(fold, study, [one for one in refits if one.fold == fold]) for fold, study in studies.items()]
    ensure_directory(out, "directory of result and report")
    for line in write_outcome(out, experiment, outcomes, title=run.name, refit_seconds=seconds):
        print(line)
    print(f"report: {out / 'report.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tune.finalize", description=__doc__)
    parser.add_argument("run_directory", type=Path, help="run directory of a finished search")
    parser.add_argument("--fold", type=int, help="the outer fold, if only one was searched")
    parser.add_argument("--address", help="Ray cluster (default: RAY_ADDRESS, else a private one on this machine)")
    return parser


@dataclass(frozen=True)
class _Refit:
    """One training to be done after the search.

    Attributes:
        variant: `best` or `without_anchor`.
        fold: The outer fold.
        development: Its training part.
        job: The training.
        tree: The configuration as plain data.
        directory: Where the model and its test predictions go.
    """

    variant: str
    fold: OuterFold
    development: DevelopmentSplit
    job: Job
    tree: Mapping[str, Any]
    directory: Path


def _plan_refits(experiment: Experiment, fold: OuterFold, study: SearchStudy, run: RunDirectory) -> list[_Refit]:
    """The trainings of one outer fold: every configuration with every refit seed."""
    spec, best = experiment.spec, study.best()
    assert best is not None, "a study without a complete trial cannot be closed"
    chosen = spec.override(best.user_attrs[OVERRIDES], f"trial {best.number} of {fold.name}")
    development = experiment.plan.development(fold.repeat, fold.fold)
    jobs = list_jobs([(fold.repeat, fold.fold)], seeds=spec.search.refit_seeds, first_seed=spec.train.seed)
    specs = {BEST: chosen}
    if chosen.model.anchor is not None:
        specs[WITHOUT_ANCHOR] = _without_anchor(chosen)
    return [
        _Refit(variant, fold, development, job, one.tree(), run.model(variant, job).absolute())
        for variant, one in specs.items()
        for job in jobs
    ]


def _without_anchor(spec: ExperimentSpec) -> ExperimentSpec:
    """The plain attention model: no anchor, and where the aggregator has them, softmax and no token drop."""
    plain = {"normalizer": "softmax", "drop_rate": 0.0}
    present = {
        f"model.aggregator.{name}": value for name, value in plain.items() if hasattr(spec.model.aggregator, name)
    }
    return spec.override({"model.anchor": None, **present}, "the configuration without anchor")


def _run_refits(refits: Sequence[_Refit], experiment: Experiment) -> None:
    """Train in parallel on the cluster; a training whose worker dies goes on from its checkpoint."""
    spec = experiment.spec
    slots = plan_slots(spec.search)
    on_cpu = slots.gpus == 0 and spec.train.device == "auto"
    remote = ray.remote(_train).options(
        num_cpus=slots.cpus, num_gpus=slots.gpus, max_retries=spec.search.max_failures, retry_exceptions=False
    )
    parts = {one.fold: ray.put(experiment.cohort.restrict(one.development.bag_ids)) for one in refits}
    split = experiment.plan.hash
    pending = {remote.remote(one, parts[one.fold], split=split, on_cpu=on_cpu): one for one in refits}
    print(f"refitting {len(refits)} models ({', '.join(dict.fromkeys(one.variant for one in refits))})", flush=True)
    done = 0
    while pending:
        (finished,), _ = ray.wait(list(pending), num_returns=1)
        one = pending.pop(finished)
        try:
            seconds = ray.get(finished)
        except ray.exceptions.RayError as error:
            cause = (
                getattr(error, "cause", None) or error
            )  # a task's own exception, without Ray's copy of its traceback
            raise TrainingError(f"refit {one.variant} {one.job.name} failed: {cause}") from error
        done += 1
        print(f"refit {done}/{len(refits)}: {one.variant} {one.job.name} in {seconds:.1f} s", flush=True)


def _train(one: _Refit, cohort: Cohort, *, split: str, on_cpu: bool) -> float:
    """Train one model and save it; runs in a Ray worker, which holds no test bag, and returns the seconds it took."""
    started = time.monotonic()
    if (one.directory / MODEL_FILE).exists():
        return 0.0
    spec = ExperimentSpec.model_validate(one.tree)
    spec = spec.override({"train.device": "cpu"}, "refit") if on_cpu else spec
    task = spec.task.build(spec.data.labels)
    checkpoints = ensure_directory(one.directory / "checkpoints", "directory of the refit's checkpoints")
    trained = refit(spec, cohort, task, one.development, seed=one.job.seed, directory=checkpoints, resume=True)
    curve = [
        [record.epoch, record.stability.jsd]
        for record in trained.fitted.history
        if record.stability is not None and record.stability.jsd is not None
    ]
    save_model(one.directory, spec, trained, job=one.job, cohort=cohort, split=split, facts={"attention_jsd": curve})
    shutil.rmtree(checkpoints)
    return time.monotonic() - started


def _predict(experiment: Experiment, refits: Sequence[_Refit], run: RunDirectory, device: torch.device) -> None:
    """Predict test parts that have no predictions yet; what can fail without test bags comes before they are opened."""
    missing = [one for one in refits if not (one.directory / TEST_FILE).exists()]
    models = [load_model(one.directory) for one in missing]
    for model, _ in models:
        model.to(device)
    for fold in dict.fromkeys(one.fold for one in missing):
        why = f"tune.finalize of {run.path}: study {fold.name} closed"
        chosen = [index for index, one in enumerate(missing) if one.fold == fold]
        found = predict_test(experiment, fold.repeat, fold.fold, [models[index] for index in chosen], why=why)
        for index, predictions in zip(chosen, found, strict=True):
            save_predictions(missing[index].directory / TEST_FILE, predictions)


def _outcome(fold: OuterFold, study: SearchStudy, refits: Sequence[_Refit]) -> FoldOutcome:
    best = tuple(_evaluation(one) for one in refits if one.variant == BEST)
    return FoldOutcome(fold, study, best, tuple(_evaluation(one) for one in refits if one.variant == WITHOUT_ANCHOR))


def _evaluation(one: _Refit) -> Evaluation:
    _, prepared = load_model(one.directory)
    curve = json.loads((one.directory / MODEL_FILE).read_text(encoding="utf-8"))["attention_jsd"]
    predictions = load_predictions(one.directory / TEST_FILE)
    return Evaluation(one.job.seed, prepared, predictions, tuple((epoch, jsd) for epoch, jsd in curve))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
