"""Every fold, repeat and seed of an experiment, one job after another, and the figures over all of them.

What `python -m asmil.run --folds all` does. A job is one training and its predictions in a directory of its own; a job
that has predictions is not done again, so the same command goes on after an interruption. Figures over jobs are formed
when all of them are there, and not before; those of folds that an earlier command finished there are among them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asmil.engine.jobs import Job
from asmil.engine.predict import predict, resolve_device
from asmil.engine.protocols import PreparedTask
from asmil.engine.records import EpochRecord
from asmil.evaluation import (
    Comparison,
    Evaluation,
    against_baseline,
    comparison_tree,
    intervals_tree,
    load_predictions,
    mean_details,
    mean_with_intervals,
    metrics_tree,
    save_predictions,
)
from asmil.experiment import Experiment, Trained, load_model, predict_test, refit, save_model, train_once
from asmil.metrics.values import Metric
from asmil.nn.model import AnchoredModel
from asmil.storage import ensure_directory

__all__ = ["JobFigures", "Part", "evaluate_jobs", "finished_jobs", "train_jobs"]

Part = Literal["validation", "test"]
Told = Callable[[Job, EpochRecord], None]


def train_jobs(
    experiment: Experiment, jobs: Sequence[Job], out: Path, *, part: Part, on_epoch: Told, say: Callable[[str], None]
) -> None:
    """Train every job that has no predictions yet, and predict.

    Under `validation` a job trains on the first inner training part and predicts the inner validation part. Under
    `test` it trains as the epoch rule says; when all jobs of an outer fold are trained, its test part is opened once
    for all of them.

    Args:
        experiment: The opened experiment.
        jobs: The trainings.
        out: Gets a directory per job.
        part: What is predicted.
        on_epoch: Called after every epoch.
        say: Receives a line per finished job.
    """
    num_done = 0
    for place in dict.fromkeys((job.repeat, job.fold) for job in jobs):
        of_fold = [job for job in jobs if (job.repeat, job.fold) == place]
        done = finished_jobs(of_fold, out, part=part)
        missing = [job for job in of_fold if job not in done]
        if done:
            say(f"{', '.join(job.name for job in done)}: predictions are there, not done again")
        num_done += len(done)
        for job in missing:
            started = time.monotonic()
            _train(experiment, job, out, part, on_epoch)
            num_done += 1
            say(f"{num_done}/{len(jobs)} {job.name}: trained in {time.monotonic() - started:.1f} s")
        if part == "test" and missing:
            _predict_test(experiment, missing, out)
            say(f"repeat {place[0]}, fold {place[1]}: test part opened and predicted")


def finished_jobs(jobs: Sequence[Job], out: Path, *, part: Part) -> list[Job]:
    """The jobs whose predictions of a part lie in a run directory."""
    return [job for job in jobs if _predictions(out, job, part).exists()]


def _train(experiment: Experiment, job: Job, out: Path, part: Part, on_epoch: Told) -> None:
    directory = ensure_directory(_directory(out, job, part), "directory of a job")
    if part == "test" and (directory / "model.json").exists():  # trained, but not predicted yet
        return
    spec, task = experiment.spec, experiment.task
    development = experiment.plan.development(job.repeat, job.fold)
    checkpoints = ensure_directory(directory / "checkpoints", "directory of a job's checkpoints")

    def told(record: EpochRecord) -> None:
        on_epoch(job, record)

    if part == "test":
        trained = refit(
            spec, experiment.cohort, task, development, seed=job.seed, directory=checkpoints, on_epoch=told, resume=True
        )
        _save(experiment, trained, job, directory)
        return
    inner = development.inner[0]
    cohort = experiment.cohort.restrict([*inner.train, *inner.validation])
    trained = train_once(
        spec,
        cohort,
        task,
        train_ids=inner.train,
        validation_ids=inner.validation,
        seed=job.seed,
        directory=checkpoints,
        on_epoch=told,
        resume=True,
    )
    _save(experiment, trained, job, directory)
    model, prepared = trained.fitted.model, trained.prepared
    found = predict(model, prepared, cohort, inner.validation, data=spec.data, train=spec.train)
    save_predictions(_predictions(out, job, part), found)


def _save(experiment: Experiment, trained: Trained, job: Job, directory: Path) -> None:
    save_model(directory, experiment.spec, trained, job=job, cohort=experiment.cohort, split=experiment.plan.hash)


def _predict_test(experiment: Experiment, jobs: Sequence[Job], out: Path) -> None:
    """Predict the test part of one outer fold; whatever can fail without test bags comes before it is opened."""
    device = resolve_device(experiment.spec.train)
    models: list[tuple[AnchoredModel, PreparedTask]] = []
    for job in jobs:
        model, prepared = load_model(_directory(out, job, "test"))
        models.append((model.to(device), prepared))
    why = f"asmil.run --folds into {out}: {len(jobs)} trainings of this fold are done"
    found = predict_test(experiment, jobs[0].repeat, jobs[0].fold, models, why=why)
    for job, predictions in zip(jobs, found, strict=True):
        save_predictions(_predictions(out, job, "test"), predictions)


def _predictions(out: Path, job: Job, part: Part) -> Path:
    return _directory(out, job, part) / "predictions.npz"


def _directory(out: Path, job: Job, part: Part) -> Path:
    """A validation job and a test job of the same name are trained on different bags."""
    return out / part / job.name


@dataclass(frozen=True)
class JobFigures:
    """What all jobs together say.

    Attributes:
        part: The part that was predicted.
        evaluations: Per outer fold, one per seed.
        places: Repeat and fold of each outer fold.
        mean: Mean over seeds, then folds, with intervals from resampled patients.
        fold_sd: Standard deviation (ddof 0) of the folds' means over seeds.
        seed_sd: Standard deviation (ddof 1) of the seeds' means over folds; None with one seed.
        details: Means of the task's record.
        baseline: The task's own simpler method on the same bags.
    """

    part: Part
    evaluations: tuple[tuple[Evaluation, ...], ...]
    places: tuple[tuple[int, int], ...]
    mean: Mapping[str, Metric]
    fold_sd: Mapping[str, float | None]
    seed_sd: Mapping[str, float | None] | None
    details: Mapping[str, Metric]
    baseline: Comparison | None

    def to_tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "part": self.part,
            "metrics": metrics_tree(self.mean),
            "intervals": intervals_tree(self.mean),
            "sd_over_folds": dict(self.fold_sd),
            "sd_over_seeds": None if self.seed_sd is None else dict(self.seed_sd),
            "details": metrics_tree(self.details),
            "baseline": None if self.baseline is None else comparison_tree(self.baseline),
            "jobs": list(self._jobs()),
        }

    def _jobs(self) -> Iterator[dict[str, Any]]:
        for (repeat, fold), evaluations in zip(self.places, self.evaluations, strict=True):
            for one in evaluations:
                yield {
                    "repeat": repeat,
                    "fold": fold,
                    "seed": one.seed,
                    "bags": len(one.predictions.bag_ids),
                    "metrics": metrics_tree(one.prepared.evaluate(one.predictions)),
                    "details": metrics_tree(one.prepared.details(one.predictions)),
                }


def evaluate_jobs(jobs: Sequence[Job], out: Path, *, part: Part) -> JobFigures:
    """Figures over jobs that all have predictions.

    Args:
        jobs: The trainings; every outer fold with the same seeds.
        out: Their directories lie here.
        part: What was predicted. Validation parts of different folds share patients, who are then drawn with all
            their rows, as those of repeats are.
    """
    places = tuple(dict.fromkeys((job.repeat, job.fold) for job in jobs))
    folds = tuple(
        tuple(_evaluation(job, out, part) for job in jobs if (job.repeat, job.fold) == place) for place in places
    )
    pooled = part == "validation" or len({repeat for repeat, _ in places}) > 1
    measured = [[one.prepared.evaluate(one.predictions) for one in evaluations] for evaluations in folds]
    values = {name: np.array([[_value(one[name]) for one in fold] for fold in measured]) for name in measured[0][0]}
    return JobFigures(
        part=part,
        evaluations=folds,
        places=places,
        mean=mean_with_intervals(folds, pooled=pooled),
        fold_sd={name: _spread(found_FS.mean(axis=1).tolist(), 0) for name, found_FS in values.items()},
        seed_sd=None
        if len(folds[0]) == 1
        else {name: _spread(found_FS.mean(axis=0).tolist(), 1) for name, found_FS in values.items()},
        details=mean_details(folds),
        baseline=against_baseline(folds, pooled=pooled),
    )


def _evaluation(job: Job, out: Path, part: Part) -> Evaluation:
    _, prepared = load_model(_directory(out, job, part))
    return Evaluation(job.seed, prepared, load_predictions(_predictions(out, job, part)))


def _value(metric: Metric) -> float:
    return float("nan") if metric.value is None else metric.value


def _spread(values: Sequence[float], ddof: int) -> float | None:
    """Standard deviation; None where a value is missing or there are too few."""
    if len(values) <= ddof or not np.isfinite(values).all():
        return None
    return statistics.pstdev(values) if ddof == 0 else statistics.stdev(values)
