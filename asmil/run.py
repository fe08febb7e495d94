"""One training run in this process: `python -m asmil.run tasks/x.yaml`. No Ray, so `breakpoint()` works anywhere.

Prints and stores validation figures only. `--test` also trains as the protocol's epoch rule says, opens the sealed test
part and writes that into the ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from asmil.crossval import Part
from asmil.data.sealed import read_ledger
from asmil.data.splits import InnerSplit
from asmil.engine.events import EventLog
from asmil.engine.jobs import Job, list_jobs
from asmil.engine.predict import predict, resolve_device
from asmil.engine.protocols import Predictions
from asmil.engine.records import EpochRecord
from asmil.errors import AsmilError, ConfigError, run_command
from asmil.evaluation import (
    Evaluation,
    against_baseline,
    comparison_tree,
    intervals_tree,
    metrics_tree,
    save_predictions,
)
from asmil.experiment import (
    EXPERIMENT_FILE,
    Experiment,
    Trained,
    open_experiment,
    predict_test,
    refit,
    save_experiment,
    save_model,
    train_once,
    versions,
)
from asmil.logs import show_log
from asmil.report.tables import format_metric
from asmil.run_folds import EVENTS_FILE, check_same_training, chosen_folds, run_folds, told
from asmil.storage import disk_problems, ensure_directory, publish_json
from tasks.spec import ExperimentSpec, load_experiment

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run.

    Args:
        arguments: The words after the command; None takes them from the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    show_log()
    _check_limit(options)
    spec = load_experiment(
        options.experiment, assignments=_assignments(options), variant=options.variant, demo=options.demo
    )
    resolve_device(spec.train)
    out = _run_directory(options)
    try:
        carry_out = _prepared(open_experiment(spec, out), out, options)
    except AsmilError:
        with contextlib.suppress(OSError):
            out.rmdir()  # nothing was written into it
        raise
    save_experiment(out, spec)
    try:
        carry_out()
    except KeyboardInterrupt:
        print(f"the same command with --out {out} --resume goes on from here", file=sys.stderr)
        raise
    return 0


def _prepared(experiment: Experiment, out: Path, options: argparse.Namespace) -> Callable[[], None]:
    """What is to be done, with everything checked that can be checked before."""
    if options.folds is None:
        run = _Run(experiment, _job(experiment, options), out, resume=options.resume, limit=options.limit)
        return partial(run.carry_out, options.experiment, test=options.test)
    folds = chosen_folds(options.folds, experiment.plan.folds)
    part: Part = "test" if options.test else "validation"
    return partial(run_folds, experiment, folds, out, options.experiment, part=part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asmil.run", description=__doc__)
    parser.add_argument("experiment", help="experiment file, for example tasks/digits.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting")
    parser.add_argument("--variant", help="apply a named entry of the file's variants: section")
    parser.add_argument("--demo", action="store_true", help="apply the file's demo: section (simulated data)")
    folds = parser.add_mutually_exclusive_group()
    folds.add_argument("--fold", type=int, default=0, help="outer fold (default 0)")
    folds.add_argument("--folds", metavar="all|K,...", help="several outer folds, and the figures over them")
    parser.add_argument("--seeds", type=int, help="trainings per fold: shorthand for --set protocol.seeds=N")
    parser.add_argument("--repeats", type=int, help="shorthand for --set protocol.repeats=N")
    parser.add_argument("--epochs", type=int, help="shorthand for --set train.epochs=N")
    parser.add_argument("--limit", type=int, help="train and validate on at most N bags each, to debug")
    parser.add_argument("--device", help="shorthand for --set train.device=NAME")
    parser.add_argument("--out", type=Path, help="run directory (default: a new one below runs/)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--test", action="store_true", help="open the sealed test part; recorded in the ledger")
    return parser


def _assignments(options: argparse.Namespace) -> list[str]:
    short = {
        "train.epochs": options.epochs,
        "train.device": options.device,
        "protocol.seeds": options.seeds,
        "protocol.repeats": options.repeats,
    }
    return [*options.set, *(f"{path}={value}" for path, value in short.items() if value is not None)]


def _check_limit(options: argparse.Namespace) -> None:
    if options.limit is None:
        return
    if options.limit < 1:
        raise ConfigError(f"--limit: got {options.limit}; it should be the number of bags of each part, 1 or more")
    if options.folds is not None:
        raise ConfigError("--limit and --folds: a figure on part of the bags is no result; leave one of them out")
    if options.test:
        raise ConfigError("--limit and --test: a figure on part of the bags is no test figure; leave one of them out")


def _run_directory(options: argparse.Namespace) -> Path:
    """The directory to write to: `--out`, which must be new or hold the run to resume, or a new one below `runs/`."""
    out: Path | None = options.out
    if options.resume and (out is None or not (out / EXPERIMENT_FILE).is_file()):
        raise ConfigError(
            f"--resume: needs --out with the directory of an earlier run, got {out}; leave --resume out to begin one"
        )
    if out is None:
        name = "-".join([Path(options.experiment).stem, *filter(None, [options.variant, options.demo and "demo"])])
        return _new_directory(Path("runs") / name)
    ensure_directory(out, "run directory")
    if not options.resume and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty; give another directory, or --resume to go on with its run")
    return out


def _new_directory(base: Path) -> Path:
    """The next unused `run-NNN`, made by this process and no other."""
    ensure_directory(base, "folder of runs")
    taken = [int(path.name[4:]) for path in base.glob("run-*") if path.name[4:].isdigit()]
    for number in itertools.count(max(taken, default=0) + 1):
        out = base / f"run-{number:03d}"
        with disk_problems(out, "serve as run directory"), contextlib.suppress(FileExistsError):
            out.mkdir()
            break
    return out


def _job(experiment: Experiment, options: argparse.Namespace) -> Job:
    folds = experiment.plan.folds
    if not 0 <= options.fold < folds:
        raise ConfigError(f"--fold: got {options.fold}; this experiment has {folds} folds, 0 to {folds - 1}")
    (job,) = list_jobs([(0, options.fold)], seeds=1, first_seed=experiment.spec.train.seed)
    return job


class _Run:
    """One run: where it writes and what it has told the user."""

    def __init__(self, experiment: Experiment, job: Job, out: Path, *, resume: bool, limit: int | None) -> None:
        self.experiment, self.job, self.out = experiment, job, out
        self.resume, self.limit = resume, limit
        self.development = experiment.plan.development(job.repeat, job.fold)
        if resume:
            check_same_training(out / EVENTS_FILE, self.identity())
        self.log = EventLog(out / EVENTS_FILE)

    @property
    def spec(self) -> ExperimentSpec:
        return self.experiment.spec

    def identity(self) -> dict[str, Any]:
        """What a training that is resumed must have in common with what was begun."""
        return {
            **self.spec.identity(),
            "data_id": self.experiment.cohort.dataset_id,
            "labels_id": self.experiment.cohort.labels_id,
            "split": self.experiment.plan.hash,
            "job": vars(self.job),
            "limit": self.limit,
        }

    def carry_out(self, source: str, *, test: bool) -> None:
        """Train, measure and write the result."""
        started = time.monotonic()
        self.announce(source)
        result = self.validation()
        if test:
            result |= self.test()
        self.finish(result, seconds=time.monotonic() - started)

    def announce(self, source: str) -> None:
        cohort = self.experiment.cohort
        if cohort.simulated:
            print("SIMULATED DATA: the bags and labels of this store are made up; no figure below is about patients.")
        inner = self._inner()
        print(
            f"{source}: fold {self.job.fold}, seed {self.job.seed}, {len(inner.train)} training and "
            f"{len(inner.validation)} validation bags, {cohort.num_features} features -> {self.out}"
        )
        self.log.write(
            "start",
            experiment=source,
            spec=self.spec.tree(),
            spec_hash=self.spec.hash(),
            identity=self.identity(),
            simulated=cohort.simulated,
            versions=versions(),
        )

    def _inner(self) -> InnerSplit:
        inner = self.development.inner[0]
        if self.limit is None:
            return inner
        strata = dict(
            zip(self.experiment.cohort.bag_ids, self.experiment.task.strata(self.experiment.cohort.labels), strict=True)
        )
        return InnerSplit(
            _first_of_each(inner.train, strata, self.limit), _first_of_each(inner.validation, strata, self.limit)
        )

    def validation(self) -> dict[str, Any]:
        """Train on the first inner training part; figures on its validation part."""
        inner, spec = self._inner(), self.spec
        cohort = self.experiment.cohort.restrict([*inner.train, *inner.validation])
        trained = train_once(
            spec,
            cohort,
            self.experiment.task,
            train_ids=inner.train,
            validation_ids=inner.validation,
            seed=self.job.seed,
            directory=self.out,
            on_epoch=partial(self._on_epoch, "validation"),
            resume=self.resume,
        )
        predictions = predict(
            trained.fitted.model, trained.prepared, cohort, inner.validation, data=spec.data, train=spec.train
        )
        self._save(trained, self.out)
        return {"epoch": trained.fitted.epoch, "validation": self._measure("validation", trained, predictions)}

    def test(self) -> dict[str, Any]:
        """Train as the epoch rule says and open the test part."""
        directory = self.out / "refit"
        ensure_directory(directory, "directory of the refit")
        print(f"refit for the test part ({self.spec.protocol.epoch_rule} epoch):")
        on_epoch = partial(self._on_epoch, "refit")
        experiment, job = self.experiment, self.job
        trained = refit(
            self.spec,
            experiment.cohort,
            experiment.task,
            self.development,
            seed=job.seed,
            directory=directory,
            on_epoch=on_epoch,
            resume=self.resume,
        )
        self._save(trained, directory)
        model = (trained.fitted.model, trained.prepared)
        why = f"asmil.run --test into {self.out}"
        (predictions,) = predict_test(experiment, job.repeat, job.fold, [model], why=why)
        save_predictions(directory / "predictions.npz", predictions)
        return {"test": self._measure("test", trained, predictions)}

    def _measure(self, part: str, trained: Trained, predictions: Predictions) -> dict[str, Any]:
        """Metrics of a part of the split, the headline ones with intervals; prints them."""
        prepared = trained.prepared
        intervals, details = prepared.intervals(predictions), prepared.details(predictions)
        metrics = {**prepared.evaluate(predictions), **intervals}
        print(f"{part} (epoch {trained.fitted.epoch}): {told(metrics)}")
        baseline = against_baseline([[Evaluation(self.job.seed, prepared, predictions)]], pooled=False)
        if baseline is not None:
            print(f"  {baseline.name}, same bags: {told(baseline.metrics)}; difference {told(baseline.difference)}")
        for name, metric in details.items():
            print(f"  {prepared.meanings.get(name, name)}: {format_metric(metric)}")
        return {
            "metrics": metrics_tree({**metrics, **details}),
            "intervals": intervals_tree(intervals),
            "baseline": None if baseline is None else comparison_tree(baseline),
        }

    def finish(self, result: dict[str, Any], *, seconds: float) -> None:
        """Write `result.json`."""
        parts = {part: result.get(part) for part in ("validation", "test")}
        cohort = self.experiment.cohort
        tree = {
            "task": self.spec.task.kind,
            "config": self.spec.tree(),
            "metrics": {part: found and found["metrics"] for part, found in parts.items()},
            "intervals": {part: found and found["intervals"] for part, found in parts.items()},
            "baseline": {part: found and found["baseline"] for part, found in parts.items()},
            "seconds": round(seconds, 2),
            "epoch": result["epoch"],
            "job": vars(self.job),
            "limit": self.limit,
            "simulated": cohort.simulated,
            "data_id": cohort.dataset_id,
            "labels_id": cohort.labels_id,
            "split": self.experiment.plan.hash,
            "spec_hash": self.spec.hash(),
            "ledger": read_ledger(self.experiment.ledger),
            "versions": versions(),
        }
        publish_json(self.out / "result.json", tree)
        self.log.write("end", metrics=tree["metrics"], seconds=tree["seconds"])
        print(f"{self.out / 'result.json'} written after {seconds:.1f} s")

    def _save(self, trained: Trained, directory: Path) -> None:
        experiment = self.experiment
        save_model(directory, self.spec, trained, job=self.job, cohort=experiment.cohort, split=experiment.plan.hash)

    def _on_epoch(self, training: str, record: EpochRecord) -> None:
        self.log.write("epoch", training=training, **vars(record))
        print(progress_line(record, self.spec.train.epochs, self.experiment.task.monitor.metric), flush=True)


def progress_line(record: EpochRecord, epochs: int, monitored: str) -> str:
    """One line on an epoch: loss, divergence, monitored metric, attention stability, speed."""
    parts = [f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}", f"loss {record.loss:.4f}"]
    if record.kl is not None:
        parts.append(f"KL {record.kl:.4f}")
    if monitored in record.metrics:
        parts.append(f"{monitored} {format_metric(record.metrics[monitored])}")
    if record.stability is not None and record.stability.jsd is not None:
        parts.append(f"attention JSD {record.stability.jsd:.2e}")
    parts += [f"{name} {value:.4f}" for name, value in record.scalars.items()]
    return "  ".join([*parts, f"{record.bags_per_second:.1f} bags/s"])


def _first_of_each(bag_ids: Sequence[str], strata: Mapping[str, Any], limit: int) -> tuple[str, ...]:
    """At most `limit` bags, taken from the strata in turn so that each stays represented."""
    queues: dict[Any, list[str]] = {}
    for bag_id in bag_ids:
        queues.setdefault(strata[bag_id], []).append(bag_id)
    ranked = sorted((rank, bag_id) for queue in queues.values() for rank, bag_id in enumerate(queue))
    chosen = {bag_id for _, bag_id in ranked[:limit]}
    return tuple(bag_id for bag_id in bag_ids if bag_id in chosen)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
