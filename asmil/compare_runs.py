"""Finished run directories as `asmil.compare` reads them, and whether two of them can be compared at all.

A run of `asmil.run` keeps predictions in `PART/JOB/predictions.npz`, with `--fold` those of the test part in `refit/`;
a search keeps those of its refits in `models/VARIANT/JOB/test.npz`; all lie beside the model they come from. What is
computed from them is not this file's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asmil.crossval import Part
from asmil.data.config import ProtocolConfig
from asmil.engine.events import read_events
from asmil.engine.jobs import Job
from asmil.engine.protocols import Predictions
from asmil.errors import ConfigError, DataError, IntegrityError
from asmil.evaluation import Evaluation, load_predictions
from asmil.experiment import EXPERIMENT_FILE, load_model
from asmil.run_folds import EVENTS_FILE
from tasks.spec import load_experiment

__all__ = ["FinishedRun", "read_run", "trainings_of_all"]

JOB_NAME = re.compile(r"repeat(\d+)-fold(\d+)-seed(\d+)")
FITTED_TRUTH = "clinical_risk"
"""What a task stores beside the truth but fits itself: it may differ between runs."""


@dataclass(frozen=True)
class FinishedRun:
    """What one run says about one part of the split.

    Attributes:
        name: What to call it.
        path: Its directory.
        facts: What must be equal in runs that are compared, by the words of messages; None where it is not recorded.
        simulated: Whether the data were made up.
        protocol: How bags were split.
        trainings: Its predictions.
        missing: Trainings that were begun or asked for and have no predictions.
    """

    name: str
    path: Path
    facts: Mapping[str, str | None]
    simulated: bool
    protocol: ProtocolConfig
    trainings: Mapping[Job, Evaluation]
    missing: tuple[Job, ...]


def read_run(path: Path, name: str, part: Part) -> FinishedRun:
    """Read the predictions of a run.

    Args:
        path: The directory of a run of `asmil.run`, of a search (its best configurations are taken), or
            `models/VARIANT` below a search.
        name: What to call it.
        part: Whose predictions.

    Returns:
        The run; some of its trainings may be missing.

    Raises:
        ConfigError: There are no predictions of that part.
        DataError: Its trainings are of different data or splits.
        IntegrityError: A file is damaged.
    """
    root, found, file_name = _layout(path, part)
    done = {job: found[job] for job in sorted(found, key=_order) if (found[job] / file_name).exists()}
    if not done:
        raise ConfigError(f"{path}: none of its {len(found)} trainings has predictions; let the run finish first")
    records = {job: _record(folder) for job, folder in done.items()}
    facts = _facts(path, records)
    expected, labels = _announced(root / EVENTS_FILE, part)
    missing = sorted(({*found} | expected) - {*done}, key=_order)
    trainings = {}
    for job, folder in done.items():
        _, prepared = load_model(folder)
        trainings[job] = Evaluation(job.seed, prepared, load_predictions(folder / file_name))
    return FinishedRun(
        name=name,
        path=path,
        facts={**facts, "labels id": labels or _result(root).get("labels_id")},
        simulated=any(bool(record["simulated"]) for record in records.values()),
        protocol=load_experiment(root / EXPERIMENT_FILE).protocol,
        trainings=trainings,
        missing=tuple(missing),
    )


def trainings_of_all(runs: Sequence[FinishedRun], *, common: bool) -> tuple[list[Job], list[str]]:
    """The trainings on which runs are compared, after checking that they can be.

    Args:
        runs: The runs, the reference first.
        common: Compare the folds and seeds that all of them have, where some miss any.

    Returns:
        The trainings, all seeds on every outer fold, and what was left out, a line per run.

    Raises:
        DataError: Data, labels, split, task, bags or truth differ, or trainings are missing in some run.
    """
    for run in runs[1:]:
        _require_same_facts(runs[0], run)
    everything = set().union(*(set(run.trainings) | set(run.missing) for run in runs))
    gaps = {run.name: sorted(everything - set(run.trainings), key=_order) for run in runs}
    gaps = {name: jobs for name, jobs in gaps.items() if jobs}
    if gaps and not common:
        listed = "; ".join(f"{name} lacks {_some(jobs)}" for name, jobs in gaps.items())
        raise DataError(
            f"the runs do not have the same trainings: {listed}; finish them with --resume, or give --common to "
            f"compare the folds and seeds that all of them have"
        )
    shared = set.intersection(*(set(run.trainings) for run in runs))
    places = sorted({(job.repeat, job.fold) for job in shared})
    seeds = sorted(
        set.intersection(*({job.seed for job in shared if (job.repeat, job.fold) == place} for place in places))
        if places
        else ()
    )
    if not seeds:
        raise DataError(
            f"{', '.join(run.name for run in runs)} have no seed in common on every fold they share; train them with "
            f"the same seeds"
        )
    chosen = [Job(*place, seed) for place in places for seed in seeds]
    for job in chosen:
        for run in runs:
            _require_same_bags(runs[0], run, job)
    left_out = [f"{run.name}: {_some(rest)}" for run in runs if (rest := sorted(everything - set(chosen), key=_order))]
    return chosen, left_out


def _layout(path: Path, part: Part) -> tuple[Path, dict[Job, Path], str]:
    """The run directory, the folder of each training, and the name of the predictions in it."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give the directories that runs were written to (--out)")
    if (path / part).is_dir():
        return path, _folders(path / part), "predictions.npz"
    if part == "test":
        if (path / "refit" / "predictions.npz").exists():
            single = path / "refit"
            return path, {Job(**_model_tree(single)["job"]): single}, "predictions.npz"
        if (path / "models" / "best").is_dir():
            return path, _folders(path / "models" / "best"), "test.npz"
        if path.parent.name == "models" and (path.parent.parent / EXPERIMENT_FILE).is_file():
            return path.parent.parent, _folders(path), "test.npz"
    option = " --test" if part == "test" else ""
    raise ConfigError(
        f"{path}: holds no {part} predictions; expected a directory of python -m asmil.run X.yaml --folds all{option}, "
        f"or, for the test part, of a search that python -m tune.finalize ended"
    )


def _folders(parent: Path) -> dict[Job, Path]:
    found = {folder: JOB_NAME.fullmatch(folder.name) for folder in parent.iterdir()}
    return {Job(*map(int, match.groups())): folder for folder, match in found.items() if match}


def _order(job: Job) -> tuple[int, int, int]:
    return job.repeat, job.fold, job.seed


def _record(folder: Path) -> dict[str, object]:
    """What `model.json` says of the data of a training."""
    tree = _model_tree(folder)
    return {
        "task": tree["task"]["kind"],
        "data id": tree["data_id"],
        "split": tree["split"],
        "simulated": tree["simulated"],
    }


def _model_tree(folder: Path) -> dict[str, Any]:
    """`model.json` of a training, of which everything asked for here is there."""
    file = folder / "model.json"
    try:
        tree: dict[str, Any] = json.loads(file.read_bytes())
        lacking = {"data_id", "split", "simulated", "job"} - set(tree)
        if lacking or "kind" not in tree["task"] or set(tree["job"]) != {"repeat", "fold", "seed"}:
            raise ValueError(f"lacks {', '.join(sorted(lacking)) or 'task or job'}")
        return tree
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{file}: missing or damaged ({type(error).__name__}: {error}); restore it, or train again"
        ) from None


def _facts(path: Path, records: Mapping[Job, Mapping[str, object]]) -> dict[str, str | None]:
    """What all trainings of a run have in common."""
    facts: dict[str, str | None] = {}
    for field in ("task", "data id", "split"):
        values = {str(record[field]): job for job, record in records.items()}
        if len(values) > 1:
            (one, first), (other, second) = list(values.items())[:2]
            raise DataError(
                f"{path}: {field} is {one!r} in {first.name} and {other!r} in {second.name}; these trainings are not "
                f"one experiment, run them again into a directory of their own"
            )
        facts[field] = next(iter(values))
    return facts


def _announced(events: Path, part: Part) -> tuple[set[Job], str | None]:
    """The trainings of a part that `asmil.run` was ever asked for, and the labels it found."""
    jobs: set[Job] = set()
    labels = None
    for event in read_events(events):
        if event["event"] != "start":
            continue
        labels = event["identity"].get("labels_id", labels)
        if event.get("part") == part:
            jobs |= {Job(*map(int, match.groups())) for name in event["jobs"] if (match := JOB_NAME.fullmatch(name))}
    return jobs, labels


def _result(root: Path) -> dict[str, str]:
    try:
        tree = json.loads((root / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _require_same_facts(reference: FinishedRun, run: FinishedRun) -> None:
    for field, expected in reference.facts.items():
        found = run.facts[field]
        if found != expected and None not in (found, expected):
            raise DataError(
                f"{field} is {expected!r} in {reference.name} ({reference.path}) and {found!r} in {run.name} "
                f"({run.path}); a paired comparison needs runs on the same bags, labels and split"
            )


def _require_same_bags(reference: FinishedRun, run: FinishedRun, job: Job) -> None:
    """Refuse other bags, patients, classes or truth; the first seed of a fold stands for the others of its run."""
    ours, theirs = reference.trainings[job], run.trainings[job]
    where = f"{job.name} of {reference.name} and {run.name}"
    for field in ("bag_ids", "groups"):
        one, other = (getattr(found.predictions, field) for found in (ours, theirs))
        if one != other:
            difference = next(((a, b) for a, b in zip(one, other, strict=False) if a != b), (len(one), len(other)))
            raise DataError(f"{field} differ in {where} (first: {difference[0]!r} and {difference[1]!r}); {_AGAIN}")
    classes = [found.prepared.to_state().get("classes") for found in (ours, theirs)]
    if classes[0] != classes[1]:
        raise DataError(f"classes differ in {where}: {classes[0]} and {classes[1]}; {_AGAIN}")
    _require_same_truth(ours.predictions, theirs.predictions, where)


def _require_same_truth(ours: Predictions, theirs: Predictions, where: str) -> None:
    names = [{name for name in found.truth if not name.endswith(FITTED_TRUTH)} for found in (ours, theirs)]
    if names[0] != names[1]:
        raise DataError(f"truth differs in {where}: fields {sorted(names[0])} and {sorted(names[1])}; {_AGAIN}")
    for name in sorted(names[0]):
        one, other = ours.truth[name], theirs.truth[name]
        different = ~((one == other) | ((one != one) & (other != other)))
        if different.any():
            row = int(np.flatnonzero(different.reshape(len(one), -1).any(axis=1))[0])
            raise DataError(
                f"{name} differs in {where} (first: bag {ours.bag_ids[row]!r}, {one[row]} and {other[row]}); {_AGAIN}"
            )


_AGAIN = "a paired comparison needs the same truth of the same bags, run one of them again"


def _some(jobs: Sequence[Job]) -> str:
    shown = ", ".join(job.name for job in jobs[:3])
    return shown if len(jobs) <= 3 else f"{shown} and {len(jobs) - 3} more"
