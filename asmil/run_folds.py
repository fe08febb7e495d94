"""`python -m asmil.run --folds ...`: what the command says and writes when it runs several outer folds and seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asmil.config import differences
from asmil.crossval import JobFigures, Part, evaluate_jobs, finished_jobs, train_jobs
from asmil.data.sealed import read_ledger
from asmil.engine.events import EventLog, read_events, to_plain
from asmil.engine.jobs import Job, list_jobs
from asmil.engine.records import EpochRecord
from asmil.errors import ConfigError
from asmil.experiment import Experiment, versions
from asmil.metrics.values import Metric
from asmil.report.tables import Cell, format_metric, format_number, print_table
from asmil.storage import publish_json

__all__ = ["check_same_training", "chosen_folds", "run_folds", "told"]

EVENTS_FILE = "events.jsonl"


def chosen_folds(text: str, num_folds: int) -> list[int]:
    """The outer folds that `--folds` names.

    Args:
        text: `all`, or numbers from 0 with commas between.
        num_folds: Outer folds of the experiment.

    Raises:
        ConfigError: Something else, or a fold that is not there.

    Example:
        >>> chosen_folds("all", 3), chosen_folds("2,0", 3)
        ([0, 1, 2], [0, 2])
    """
    if text == "all":
        return list(range(num_folds))
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) < num_folds for word in words):
        raise ConfigError(f"--folds: got {text!r}; give all, or numbers from 0 to {num_folds - 1} with commas between")
    return sorted({int(word) for word in words})


def run_folds(experiment: Experiment, folds: Sequence[int], out: Path, source: str, *, part: Part) -> None:
    """Train and predict the jobs of some outer folds, then print and write the figures over all folds that are done.

    Args:
        experiment: The opened experiment.
        folds: Outer folds, of every repeat.
        out: Run directory; what it holds of the same jobs is kept, and other folds finished there count in the figures.
        source: The experiment file, for messages.
        part: What is predicted.

    Raises:
        ConfigError: The directory holds jobs of other settings.
    """
    started = time.monotonic()
    jobs = _jobs(experiment, folds)
    identity = {
        **experiment.spec.identity(),
        "data_id": experiment.cohort.dataset_id,
        "labels_id": experiment.cohort.labels_id,
        "split": experiment.plan.hash,
    }
    check_same_training(out / EVENTS_FILE, identity)
    log = EventLog(out / EVENTS_FILE)
    if experiment.cohort.simulated:
        print("SIMULATED DATA: the bags and labels of this store are made up; no figure below is about patients.")
    print(f"{source}: {len(jobs)} trainings ({_counted(jobs)}), {part} part -> {out}")
    log.write("start", experiment=source, identity=identity, part=part, jobs=[job.name for job in jobs])

    def on_epoch(job: Job, record: EpochRecord) -> None:
        log.write("epoch", training=job.name, **vars(record))

    train_jobs(experiment, jobs, out, part=part, on_epoch=on_epoch, say=lambda line: print(line, flush=True))
    used = _with_earlier_folds(experiment, folds, out, part)
    figures = evaluate_jobs(_jobs(experiment, used), out, part=part)
    _print(figures, complete=len(used) == experiment.plan.folds)
    tree = {**_facts(experiment, used), **figures.to_tree(), "seconds": round(time.monotonic() - started, 2)}
    publish_json(out / f"{part}.json", tree)
    print(f"{out / f'{part}.json'} written after {time.monotonic() - started:.1f} s")


def _jobs(experiment: Experiment, folds: Sequence[int]) -> list[Job]:
    spec = experiment.spec
    places = [(repeat, fold) for repeat in range(experiment.plan.repeats) for fold in folds]
    return list_jobs(places, seeds=spec.protocol.seeds, first_seed=spec.train.seed)


def _with_earlier_folds(experiment: Experiment, folds: Sequence[int], out: Path, part: Part) -> list[int]:
    """The folds of this command and those finished before, with every repeat and seed; says which they are."""
    used, earlier = set(folds), list[str]()
    for fold in range(experiment.plan.folds):
        jobs = [] if fold in used else _jobs(experiment, [fold])
        done = finished_jobs(jobs, out, part=part)
        if done and len(done) == len(jobs):
            used.add(fold)
            earlier.append(str(fold))
        elif done:
            print(f"fold {fold}: {len(done)} of its {len(jobs)} trainings are there, left out of the figures")
    if earlier:
        print(f"figures over folds {', '.join(map(str, sorted(used)))}; done before: {', '.join(earlier)}")
    return sorted(used)


def _facts(experiment: Experiment, folds: Sequence[int]) -> dict[str, Any]:
    """What the figures over some folds are of."""
    spec, plan, cohort = experiment.spec, experiment.plan, experiment.cohort
    return {
        "task": spec.task.kind,
        "config": spec.tree(),
        "folds": {"used": list(folds), "of": plan.folds, "repeats": plan.repeats, "seeds": spec.protocol.seeds},
        "simulated": cohort.simulated,
        "data_id": cohort.dataset_id,
        "labels_id": cohort.labels_id,
        "split": plan.hash,
        "spec_hash": spec.hash(),
        "ledger": read_ledger(experiment.ledger),
        "versions": versions(),
    }


def _counted(jobs: Sequence[Job]) -> str:
    counts = {
        "repeats": len({job.repeat for job in jobs}),
        "folds": len({job.fold for job in jobs}),
        "seeds": len({job.seed for job in jobs}),
    }
    return " x ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items())


def _print(figures: JobFigures, *, complete: bool) -> None:
    names = list(figures.mean)
    rows: list[Sequence[Cell]] = []
    for (repeat, fold), evaluations in zip(figures.places, figures.evaluations, strict=True):
        for one in evaluations:
            metrics = one.prepared.evaluate(one.predictions)
            rows.append((repeat, fold, one.seed, len(one.predictions.bag_ids), *(metrics[name] for name in names)))
    print_table(("repeat", "fold", "seed", "bags", *names), rows, title=f"{figures.part} part, each training by itself")
    if not complete:
        print("NOT ALL FOLDS: the figures below are of the folds above, not of the experiment.")
    for name, metric in figures.mean.items():
        spreads = [f"SD over folds {_number(figures.fold_sd[name])}"]
        if figures.seed_sd is not None:
            spreads.append(f"SD over seeds {_number(figures.seed_sd[name])}")
        print(f"{name} {format_metric(metric)}; {', '.join(spreads)}")
    if figures.baseline is not None:
        base = figures.baseline
        print(f"{base.name}, same bags: {told(base.metrics)}; difference {told(base.difference)}")
    meanings = figures.evaluations[0][0].prepared.meanings
    for name, metric in figures.details.items():
        print(f"  {meanings.get(name, name)}: {format_metric(metric)}")


def _number(value: float | None) -> str:
    return "n/a" if value is None else format_number(value)


def told(metrics: Mapping[str, Metric]) -> str:
    """Metrics on one line."""
    return ", ".join(f"{name} {format_metric(metric)}" for name, metric in metrics.items())


def check_same_training(events: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on under other settings: the record would tell of a training that never was."""
    begun = [event["identity"] for event in read_events(events) if event["event"] == "start"]
    changed = differences(begun[-1], to_plain(identity)) if begun else []
    if changed:
        raise ConfigError(
            f"--resume: {events.parent} was begun with other settings ({'; '.join(changed[:8])}); "
            "restore them, or give --out another directory"
        )
