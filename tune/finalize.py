"""After a search: refit the best configurations, open the sealed test part once, write result and report.

Started by `tune.search` as a process of its own, or by hand with `python -m tune.finalize RUN_DIR`. It refuses while a
study is still open. The same configuration as plain softmax attention, without anchor and token drop, is refitted
beside the best one, so that the report shows what they contribute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import ray

from asmil.data.sealed import open_test
from asmil.engine.jobs import Job
from asmil.engine.predict import predict, resolve_device
from asmil.errors import ConfigError, TrainingError, run_command
from asmil.experiment import Experiment, load_model, open_experiment, refit, save_model
from asmil.storage import ensure_directory
from tasks.spec import ExperimentSpec
from tune.cluster import connect, plan_slots
from tune.outcome import Evaluation, FoldOutcome, write_outcome
from tune.rundir import OuterFold, RunDirectory, open_study, outer_folds
from tune.study import OVERRIDES, SearchStudy

__all__ = ["main"]

BEST = "best"
WITHOUT_ANCHOR = "without_anchor"


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
    started = time.monotonic()
    with connect(options.address):
        refits = [one for fold, study in studies.items() for one in _plan_refits(experiment, fold, study, out)]
        _run_refits(refits, experiment.spec, run.path)
    outcomes = [_test(experiment, fold, study, refits, run.path) for fold, study in studies.items()]
    write_outcome(out, experiment, outcomes, title=run.path.parent.name, refit_seconds=time.monotonic() - started)
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
        job: The training.
        tree: The configuration as plain data.
        directory: Where the model goes.
    """

    variant: str
    fold: OuterFold
    job: Job
    tree: Mapping[str, Any]
    directory: Path


def _plan_refits(experiment: Experiment, fold: OuterFold, study: SearchStudy, out: Path) -> list[_Refit]:
    """The trainings of one outer fold: every configuration with every refit seed."""
    spec, best = experiment.spec, study.best()
    assert best is not None, "a study without a complete trial cannot be closed"
    chosen = spec.override(best.user_attrs[OVERRIDES], f"trial {best.number} of {fold.name}")
    specs = {BEST: chosen}
    if chosen.model.anchor is not None:
        specs[WITHOUT_ANCHOR] = _without_anchor(chosen)
    return [
        _Refit(variant, fold, job, one.tree(), (out / "models" / variant / job.name).absolute())
        for variant, one in specs.items()
        for seed in range(spec.search.refit_seeds)
        for job in [Job(fold.repeat, fold.fold, spec.train.seed + seed)]
    ]


def _without_anchor(spec: ExperimentSpec) -> ExperimentSpec:
    """The plain attention model: no anchor, and where the aggregator has them, softmax and no token drop."""
    plain = {"normalizer": "softmax", "drop_rate": 0.0}
    present = {
        f"model.aggregator.{name}": value for name, value in plain.items() if hasattr(spec.model.aggregator, name)
    }
    return spec.override({"model.anchor": None, **present}, "the configuration without anchor")


def _run_refits(refits: Sequence[_Refit], spec: ExperimentSpec, run: Path) -> None:
    """Train in parallel on the cluster; a training whose worker dies goes on from its checkpoint."""
    slots = plan_slots(spec.search)
    on_cpu = slots.gpus == 0 and spec.train.device == "auto"
    remote = ray.remote(_train).options(
        num_cpus=slots.cpus, num_gpus=slots.gpus, max_retries=spec.search.max_failures, retry_exceptions=False
    )
    pending = {remote.remote(one, run.absolute(), on_cpu=on_cpu): one for one in refits}
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


def _train(one: _Refit, run: Path, *, on_cpu: bool) -> float:
    """Train one model and save it; runs in a Ray worker and returns the seconds it took."""
    started = time.monotonic()
    if (one.directory / "model.json").exists():
        return 0.0
    spec = ExperimentSpec.model_validate(one.tree)
    spec = spec.override({"train.device": "cpu"}, "refit") if on_cpu else spec
    experiment = open_experiment(spec, run)
    checkpoints = ensure_directory(one.directory / "checkpoints", "directory of the refit's checkpoints")
    trained = refit(experiment, one.job, directory=checkpoints, resume=True)
    curve = [
        [record.epoch, record.stability.jsd]
        for record in trained.fitted.history
        if record.stability is not None and record.stability.jsd is not None
    ]
    facts = {
        "job": vars(one.job),
        "data_id": experiment.cohort.dataset_id,
        "split": experiment.plan.hash,
        "simulated": experiment.cohort.simulated,
        "attention_jsd": curve,
    }
    save_model(one.directory, spec, trained, num_features=experiment.cohort.num_features, facts=facts)
    shutil.rmtree(checkpoints)
    return time.monotonic() - started


def _test(
    experiment: Experiment, fold: OuterFold, study: SearchStudy, refits: Sequence[_Refit], run: Path
) -> FoldOutcome:
    """Open the test part of an outer fold, once, and evaluate all of its models on it."""
    test_ids = open_test(
        experiment.plan,
        fold.repeat,
        fold.fold,
        ledger=experiment.ledger,
        why=f"tune.finalize of {run}: study {fold.name} closed",
    )
    restricted = replace(experiment, cohort=experiment.cohort.restrict(test_ids))
    evaluations = {
        variant: tuple(
            _evaluate(restricted, one, test_ids) for one in refits if (one.fold, one.variant) == (fold, variant)
        )
        for variant in dict.fromkeys(one.variant for one in refits if one.fold == fold)
    }
    return FoldOutcome(fold, study, evaluations[BEST], evaluations.get(WITHOUT_ANCHOR, ()))


def _evaluate(experiment: Experiment, one: _Refit, test_ids: Sequence[str]) -> Evaluation:
    model, prepared = load_model(one.directory)
    facts = json.loads((one.directory / "model.json").read_text(encoding="utf-8"))
    spec = experiment.spec
    model.to(resolve_device(spec.train))
    predictions = predict(model, prepared, experiment.cohort, test_ids, data=spec.data, train=spec.train)
    return Evaluation(one.job.seed, prepared, predictions, tuple((epoch, jsd) for epoch, jsd in facts["attention_jsd"]))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
