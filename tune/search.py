"""Hyperparameter search: `python -m tune.search tasks/x.yaml`, the same command on a laptop and on a cluster.

For each outer fold one study: Optuna proposes, Ray Tune runs trials, ASHA stops the poor ones early, and each is scored
on the inner validation part of the fold. Nothing here can open a test part. When all studies are over they are closed
and `python -m tune.finalize` refits and tests the best configurations in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from asmil.errors import ConfigError, EnvironmentProblem, TrainingError, run_command
from asmil.experiment import Experiment, Trained, open_experiment, train_once
from asmil.logs import show_log
from asmil.storage import ensure_directory
from tasks.spec import ExperimentSpec, load_experiment
from tune.cluster import Slots, connect, plan_slots
from tune.heartbeat import Heartbeat
from tune.progress import SearchDisplay
from tune.rundir import OuterFold, RunDirectory, default_directory, experiment_name, open_study, outer_folds
from tune.searcher import NUMBER, OBJECTIVE, StudySearch
from tune.space import SearchSpace
from tune.study import SearchStudy, any_closed, open_storage
from tune.trial import RUNG, TrialPayload, discard_checkpoints, run_trial, rungs, trial_directory

__all__ = ["FoldSearch", "Search", "main"]

INTERRUPTED = 130
CHECKPOINTS_KEPT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and search.

    Args:
        arguments: The words after the command; None takes them from the process.

    Returns:
        The exit status; 130 after an interruption that the same command continues.
    """
    options = _parser().parse_args(arguments)
    show_log()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    spec = _load(options)
    run = RunDirectory(_directory(options, spec))
    search = Search(spec, run, options.experiment, options.fold, labels=_labels(options))
    if search.already_over():
        return 0
    try:
        with search.claimed(), connect(options.address):
            status = search.finalize() if search.run() else INTERRUPTED
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        print(_restart_hint(run), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tune.search", description=__doc__)
    parser.add_argument("experiment", help="experiment file, for example tasks/tcga_survival.yaml")
    parser.add_argument(
        "--trials", type=int, help="finished trials per outer fold; more than before continues a search"
    )
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting")
    parser.add_argument("--variant", help="apply a named entry of the file's variants: section")
    parser.add_argument("--demo", action="store_true", help="apply the file's demo: section (simulated data)")
    parser.add_argument("--fold", type=int, help="search this outer fold only")
    parser.add_argument("--address", help="Ray cluster (default: RAY_ADDRESS, else a private one on this machine)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of continuing an unfinished search")
    parser.add_argument("--out", type=Path, help="run directory (default: by experiment below runs/)")
    return parser


def _load(options: argparse.Namespace) -> ExperimentSpec:
    budget = [] if options.trials is None else [f"search.trials={options.trials}"]
    return load_experiment(
        options.experiment, assignments=[*options.set, *budget], variant=options.variant, demo=options.demo
    )


def _directory(options: argparse.Namespace, spec: ExperimentSpec) -> Path:
    if options.out is None:
        return default_directory(Path(options.experiment).stem, spec, fresh=options.fresh, labels=_labels(options))
    out: Path = options.out
    if options.fresh and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--fresh: {out} is not empty and nothing is ever deleted; give another --out")
    return out


def _labels(options: argparse.Namespace) -> list[str]:
    """What tells the experiment from others of its file."""
    return [*filter(None, [options.variant, options.demo and "demo"])]


def _restart_hint(run: RunDirectory) -> str:
    return (
        f"interrupted; everything finished so far is kept in {run.path}. The same command goes on with it "
        "(trials under way continue from their last checkpoint), --fresh starts anew."
    )


class Search:
    """The search of all requested outer folds."""

    def __init__(
        self, spec: ExperimentSpec, run: RunDirectory, source: str, fold: int | None, *, labels: Sequence[str] = ()
    ) -> None:
        self.spec, self.run_directory, self.source, self.fold = spec, run, source, fold
        self.name = experiment_name(Path(source).stem, labels)
        self.space = SearchSpace(spec)
        ensure_directory(run.path, "run directory")
        self.experiment = open_experiment(spec, run.path)
        self.folds = outer_folds(self.experiment, fold)
        self.studies = {fold: open_study(run, self.experiment, fold) for fold in self.folds}

    def already_over(self) -> bool:
        """Whether result and report are there; prints where.

        Raises:
            ConfigError: The search was closed with fewer trials than are asked for now.
        """
        for fold, study in self.studies.items():
            if study.closed and study.counts().finished < self.spec.search.trials:
                raise ConfigError(
                    f"study {fold.name} in {self.run_directory.path}: closed with {study.counts().finished} trials, so "
                    f"it cannot grow to {self.spec.search.trials}: its test part may have been seen; use --fresh"
                )
        out = self.run_directory.outcome(self.fold)
        over = (out / "result.json").exists() and all(study.closed for study in self.studies.values())
        if over:
            print(f"this search is over: {out / 'report.html'}; --fresh searches anew")
        return over

    def run(self) -> bool:
        """Search every fold that is not closed; False after an interruption."""
        self._announce()
        slots = plan_slots(self.spec.search)
        for fold, study in self.studies.items():
            if study.closed:
                continue
            if not FoldSearch(self.experiment, self.run_directory, fold, study, self.space, slots).run():
                return False
            study.close()
        return True

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other drivers away from these studies while the body runs, and record the experiment.

        Once a study is closed the record stays as it is: budgets and devices may differ in a later command.

        Raises:
            EnvironmentProblem: Another driver is alive.
        """
        with contextlib.ExitStack() as claims:
            for fold in self.folds:
                heartbeat = claims.enter_context(Heartbeat(self.run_directory.drivers(fold)))
                if others := heartbeat.others():
                    raise EnvironmentProblem(
                        f"study {fold.name} in {self.run_directory.path}: process {others[0].pid} on {others[0].host} "
                        "is at it now; stop that one first, or search elsewhere with --fresh"
                    )
            if not any_closed(open_storage(self.run_directory.journal)):
                self.run_directory.save(self.spec, self.name)
            yield

    def finalize(self) -> int:
        """Refit and test in a process of its own, on the same cluster; its exit status."""
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "tune.finalize", str(self.run_directory.path), "--address", address]
        command += [] if self.fold is None else ["--fold", str(self.fold)]
        return subprocess.run(command, check=False).returncode

    def _announce(self) -> None:
        spec, cohort = self.spec, self.experiment.cohort
        if cohort.simulated:
            print("SIMULATED DATA: the bags and labels of this store are made up; no figure below is about patients.")
        print(
            f"{self.source}: {len(cohort.bag_ids)} bags, {len(self.folds)} outer fold(s), {spec.search.trials} trials "
            f"each over {len(spec.search.params)} parameters -> {self.run_directory.path}",
            flush=True,
        )


@dataclass(frozen=True)
class FoldSearch:
    """The search of one outer fold.

    Attributes:
        experiment: The opened experiment.
        run_directory: Where its files are.
        fold: The outer fold.
        study: The fold's study.
        space: What may be proposed.
        slots: How trials share the cluster.
        train: Trains one inner fold.
    """

    experiment: Experiment
    run_directory: RunDirectory
    fold: OuterFold
    study: SearchStudy
    space: SearchSpace
    slots: Slots
    train: Callable[..., Trained] = train_once

    def run(self) -> bool:
        """Run trials until the budget is spent; False after an interruption.

        Raises:
            TrainingError: Too many trials failed.
        """
        search = self.experiment.spec.search
        self.study.enqueue_defaults(self.space.defaults())
        if taken_up := self.study.recover():
            print(f"{self.fold.name}: taking up trials {', '.join(map(str, taken_up))} of a driver that is gone")
        if self.study.counts().finished < search.trials:
            with self._display() as display, _interrupt_handler_kept():
                self._tuner(display).fit()
        finished = self.study.counts().finished >= search.trials
        if not finished and self.study.gave_up(search.trials):
            reasons = "; ".join(f"trial {number}: {reason}" for number, reason in self.study.failures()[-3:])
            raise TrainingError(
                f"{self.fold.name}: {len(self.study.failures())} trials failed and the search gave up ({reasons}); "
                f"logs are in {self.trials}; debug with python -m asmil.run; the same command goes on"
            )
        return finished

    @property
    def trials(self) -> Path:
        """Parent of the trials' directories."""
        return self.run_directory.trials / self.fold.name

    def _display(self) -> SearchDisplay:
        return SearchDisplay(
            self.study,
            title=self.fold.name,
            metric=self.experiment.task.monitor.metric,
            budget=self.experiment.spec.search.trials,
            epochs=self._rungs(),
            on_finished=lambda number: discard_checkpoints(trial_directory(self.trials, number)),
        )

    def _rungs(self) -> int:
        development = self.experiment.plan.development(self.fold.repeat, self.fold.fold)
        return rungs(self.experiment.spec.train.epochs, len(development.inner))

    def payload(self) -> TrialPayload:
        """What the workers are sent: the outer training part and nothing of the test part."""
        spec = self.experiment.spec
        development = self.experiment.plan.development(self.fold.repeat, self.fold.fold)
        on_cpu = self.slots.gpus == 0 and spec.train.device == "auto"
        return TrialPayload(
            tree=spec.tree(),
            cohort=self.experiment.cohort.restrict(development.bag_ids),
            split=development,
            device="cpu" if on_cpu else spec.train.device,
            trials=self.trials.absolute(),
            train=self.train,
        )

    def _tuner(self, display: SearchDisplay) -> ray_tune.Tuner:
        search = self.experiment.spec.search
        searcher = StudySearch(self.study, self.space, sampler=search.sampler, seed=search.seed, budget=search.trials)
        trainable = ray_tune.with_parameters(run_trial, payload=self.payload())
        return ray_tune.Tuner(
            ray_tune.with_resources(trainable, {"cpu": self.slots.cpus, "gpu": self.slots.gpus}),
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher,
                scheduler=self._scheduler(),
                num_samples=-1,
                max_concurrent_trials=self.slots.concurrent,
                reuse_actors=True,
                trial_dirname_creator=_directory_name,
            ),
            run_config=ray_tune.RunConfig(
                name=self.fold.name,
                storage_path=str(self.run_directory.trials.absolute()),
                failure_config=ray_tune.FailureConfig(max_failures=search.max_failures),
                checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
                callbacks=[display],
                verbose=0,
            ),
        )

    def _scheduler(self) -> AsyncHyperBandScheduler | None:
        asha, last = self.experiment.spec.search.asha, self._rungs()
        if asha is None or asha.grace_epochs >= last:
            return None
        return AsyncHyperBandScheduler(
            time_attr=RUNG,
            metric=OBJECTIVE,
            mode=self.study.direction,
            max_t=last + 1,  # Ray kills a trial that reaches max_t; ours return by themselves
            grace_period=asha.grace_epochs,
            reduction_factor=asha.reduction,
        )


@contextlib.contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Put the handler of Ctrl-C back after the body: Ray Tune leaves its own, which would swallow the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _directory_name(trial: Any) -> str:
    return trial_directory(Path(), trial.config[NUMBER]).name


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
