"""An experiment in this process: its cohort, task and splits, one training of it, and its sealed test.

What `asmil.run` and the search share. Everything that trains gets a cohort restricted to the development part of one
outer fold; only `predict_test` opens the test part, through `asmil.data.sealed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save

from asmil import __version__
from asmil.config import StrictModel, content_hash, parse_config
from asmil.data.builtin import resolve_store
from asmil.data.cohort import Cohort
from asmil.data.config import LabelColumns
from asmil.data.sealed import open_test
from asmil.data.splits import DevelopmentSplit, SplitPlan, load_or_make_splits, official_rules
from asmil.engine.fit import FitData, FitResult, fit
from asmil.engine.jobs import Job
from asmil.engine.predict import predict
from asmil.engine.protocols import Predictions, PreparedTask, Task
from asmil.engine.records import EpochRecord
from asmil.errors import ConfigError, DataError, IntegrityError
from asmil.nn.config import ModelConfig
from asmil.nn.model import AnchoredModel, build_model
from asmil.storage import ensure_directory, publish_bytes, publish_json, publish_text
from tasks.base import TaskConfig
from tasks.spec import ExperimentSpec

__all__ = [
    "EXPERIMENT_FILE",
    "Experiment",
    "Trained",
    "load_model",
    "open_experiment",
    "predict_test",
    "refit",
    "save_experiment",
    "save_model",
    "train_once",
    "versions",
]

EXPERIMENT_FILE = "experiment.yaml"
MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FORMAT = "asmil-model/1"
RESTORE = "restore the directory from a copy or train again"


@dataclass(frozen=True)
class Experiment:
    """An opened experiment.

    Attributes:
        spec: The resolved configuration.
        cohort: All bags and labels, the test part included; nothing that trains may be handed this.
        task: The task, not fitted.
        plan: The splits; it gives out development parts only.
        records: Directory of split files and the ledger: the store's own if it is local and writable, else the run's.
    """

    spec: ExperimentSpec
    cohort: Cohort
    task: Task
    plan: SplitPlan
    records: Path

    @property
    def ledger(self) -> Path:
        """The file that records every opening of the test part."""
        return self.records / "ledger.jsonl"


@dataclass(frozen=True)
class Trained:
    """A trained model with the task it was trained for."""

    fitted: FitResult
    prepared: PreparedTask


def open_experiment(spec: ExperimentSpec, out: Path) -> Experiment:
    """Open the store, check the labels, and make or find the splits.

    Args:
        spec: The resolved configuration.
        out: The run directory; takes split file and ledger when the store is remote or read-only.

    Returns:
        The experiment.

    Raises:
        DataError: Store, labels and task do not fit together.
    """
    store = resolve_store(spec.data.store)
    data = spec.data.model_copy(update={"store": store})
    cohort = Cohort.open(data, independent_bags=spec.protocol.independent_bags)
    root = cohort.store.local_root
    records = root if root is not None and os.access(root, os.W_OK) else out
    official = cohort.labels[data.labels.split] if data.labels.split else None
    with _named(data.labels.table or store):
        task = spec.task.build(data.labels)
        task.check(cohort.labels)
        strata = task.strata(cohort.labels)
        file = _split_file(records, spec, official_rules(spec.protocol, cohort, official))
        plan = load_or_make_splits(file, cohort, strata, spec.protocol, official)
    return Experiment(spec, cohort, task, plan, records)


@contextlib.contextmanager
def _named(source: str | Path) -> Iterator[None]:
    """Name the labels' file or store in front of what a task or a cut says about them, unless it says so itself."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from None


def _split_file(records: Path, spec: ExperimentSpec, official: Mapping[str, str]) -> Path:
    """One file per set of splitting rules, so that experiments with the same rules share their splits."""
    rules = spec.protocol.model_dump(
        mode="json", include={"scheme", "folds", "repeats", "test_fraction", "split_seed", "independent_bags", "inner"}
    )
    unit = {"bag": spec.data.bag, "group": spec.data.labels.group, "task": spec.task.kind}
    folder = ensure_directory(records / "splits", "directory of split files")
    return folder / f"{spec.protocol.scheme}-{content_hash({**rules, **unit, **official})}.json"


def train_once(
    spec: ExperimentSpec,
    cohort: Cohort,
    task: Task,
    *,
    train_ids: Sequence[str],
    validation_ids: Sequence[str],
    seed: int,
    directory: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: bool = False,
) -> Trained:
    """Fit the task and the model on a training part.

    Args:
        spec: The resolved configuration.
        cohort: Bags and labels; need not hold more than the two parts.
        task: The task, not fitted.
        train_ids: Training bags.
        validation_ids: Validation bags; empty for a refit.
        seed: Seed of weights, order, drops and dropout.
        directory: Where checkpoints go; None keeps none.
        on_epoch: Called after every epoch.
        resume: Go on from the directory's checkpoint.

    Returns:
        The trained model.
    """
    visible = cohort.restrict([*train_ids, *validation_ids])
    with _named(cohort.store.uri):
        prepared = task.prepare(visible.frame(train_ids), visible.restrict(train_ids))
    model = build_model(spec.model, visible.num_features, prepared.head, seed=seed)
    fitted = fit(
        model,
        prepared,
        FitData(visible, tuple(train_ids), tuple(validation_ids), spec.data),
        spec.train.model_copy(update={"seed": seed}),
        monitor=task.monitor,
        epoch_rule=spec.protocol.epoch_rule if validation_ids else "last",
        directory=directory,
        on_epoch=on_epoch,
        resume=resume,
    )
    return Trained(fitted, prepared)


def refit(
    spec: ExperimentSpec,
    cohort: Cohort,
    task: Task,
    development: DevelopmentSplit,
    *,
    seed: int,
    directory: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: bool = False,
) -> Trained:
    """Train on an outer training part as the epoch rule says, ready for the test part.

    `last` trains on all of it; `best_validation` keeps the first inner validation part out to choose the epoch, and so
    does a task that needs it, to fit a threshold or temperature on. Cuts are then fitted on the training bags.

    Args:
        spec: The resolved configuration.
        cohort: Bags and labels; need not hold more than the outer training part.
        task: The task, not fitted.
        development: The outer training part.
        seed: Seed of the training.
        directory: Where checkpoints go.
        on_epoch: Called after every epoch.
        resume: Go on from the directory's checkpoint.

    Returns:
        The trained model with its calibrated task.
    """
    train_ids, validation_ids = development.bag_ids, tuple[str, ...]()
    if spec.protocol.epoch_rule == "best_validation" or task.needs_validation:
        train_ids, validation_ids = development.inner[0].train, development.inner[0].validation
    cohort = cohort.restrict(development.bag_ids)
    trained = train_once(
        spec,
        cohort,
        task,
        train_ids=train_ids,
        validation_ids=validation_ids,
        seed=seed,
        directory=directory,
        on_epoch=on_epoch,
        resume=resume,
    )
    model = trained.fitted.model
    on_train = predict(model, trained.prepared, cohort, train_ids, data=spec.data, train=spec.train)
    prepared = trained.prepared.calibrate(on_train)
    if task.needs_validation:
        on_validation = predict(model, prepared, cohort, validation_ids, data=spec.data, train=spec.train)
        prepared = prepared.calibrate_on_validation(on_validation)
    return Trained(trained.fitted, prepared)


def predict_test(
    experiment: Experiment,
    repeat: int,
    fold: int,
    models: Sequence[tuple[AnchoredModel, PreparedTask]],
    *,
    why: str,
) -> list[Predictions]:
    """Open the sealed test part of an outer fold, once, and predict it with refitted models.

    Args:
        experiment: The opened experiment.
        repeat: Repetition of the split.
        fold: Outer fold.
        models: Models, on the device they are to run on, and their calibrated tasks.
        why: The reason, for the ledger.

    Returns:
        Predictions of each model.
    """
    test_ids = open_test(experiment.plan, repeat, fold, ledger=experiment.ledger, why=why)
    cohort, spec = experiment.cohort.restrict(test_ids), experiment.spec
    return [predict(model, prepared, cohort, test_ids, data=spec.data, train=spec.train) for model, prepared in models]


def save_model(
    directory: Path,
    spec: ExperimentSpec,
    trained: Trained,
    *,
    job: Job,
    cohort: Cohort,
    split: str,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Export a trained model: weights of the online model (never the anchor), fitted task and configuration.

    Args:
        directory: Gets `model.safetensors` and `model.json`.
        spec: The resolved configuration.
        trained: The model.
        job: Which training it comes from.
        cohort: The bags it was trained on; others may be in it.
        split: Hash of the split.
        facts: Further facts for the JSON.
    """
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in trained.fitted.model.aggregator.state_dict().items()
    }
    content = save(weights)
    publish_bytes(directory / WEIGHTS_FILE, content)
    publish_json(
        directory / MODEL_FILE,
        {
            "format": MODEL_FORMAT,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "model": spec.model.model_dump(mode="json"),
            "task": spec.task.model_dump(mode="json"),
            "labels": spec.data.labels.model_dump(mode="json"),
            "fitted": trained.prepared.to_state(),
            "num_features": cohort.num_features,
            "epoch": trained.fitted.epoch,
            "job": vars(job),
            "data_id": cohort.dataset_id,
            "split": split,
            "simulated": cohort.simulated,
            **(facts or {}),
        },
    )


def load_model(directory: Path) -> tuple[AnchoredModel, PreparedTask]:
    """Load what `save_model` wrote, for inference.

    Args:
        directory: Holds `model.safetensors` and `model.json`.

    Returns:
        The model in evaluation mode, without an anchor, and its fitted task.

    Raises:
        DataError: There is no exported model, or one of another format.
        IntegrityError: A file is damaged, or the two do not belong together.
    """
    file = directory / MODEL_FILE
    try:
        tree, content = json.loads(file.read_bytes()), (directory / WEIGHTS_FILE).read_bytes()
        if tree["format"] != MODEL_FORMAT:
            raise DataError(f"{file}: format {tree['format']!r}, this version reads {MODEL_FORMAT!r}; train it again")
        if hashlib.sha256(content).hexdigest() != tree["weights_sha256"]:
            raise IntegrityError(f"{directory / WEIGHTS_FILE}: not the weights of {MODEL_FILE}; {RESTORE}")
        return _rebuild(tree, content, str(file))
    except OSError as error:
        raise DataError(f"{directory}: no exported model ({error}); train one with python -m asmil.run") from None
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:240]
        raise IntegrityError(f"{file}: damaged or edited ({type(error).__name__}: {reason}); {RESTORE}") from None


def _rebuild(tree: Mapping[str, Any], weights: bytes, source: str) -> tuple[AnchoredModel, PreparedTask]:
    task = parse_config(TaskSection, {"task": tree["task"], "labels": tree["labels"]}, source)
    prepared = task.task.build(task.labels).restore(tree["fitted"])
    config = parse_config(ModelConfig, {**tree["model"], "anchor": None}, source)
    model = build_model(config, tree["num_features"], prepared.head, seed=0)
    model.aggregator.load_state_dict(load(weights))
    return model.eval(), prepared


class TaskSection(StrictModel):
    """The part of an exported model that rebuilds its task."""

    task: TaskConfig
    labels: LabelColumns


def save_experiment(directory: Path, spec: ExperimentSpec) -> None:
    """Write the resolved configuration as `experiment.yaml`; running that file repeats the experiment."""
    publish_text(directory / EXPERIMENT_FILE, yaml.safe_dump(spec.tree(), sort_keys=False))


def versions() -> dict[str, str]:
    """Versions of what a number can depend on."""
    packages = ("torch", "numpy", "scikit-learn", "scikit-survival", "lifelines", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"asmil": __version__, "python": platform.python_version(), **found, "device": _device_name()}


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
