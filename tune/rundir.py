"""Where a search keeps its things: one directory per experiment, found again by the same command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asmil.engine.jobs import Job
from asmil.errors import ConfigError
from asmil.experiment import Experiment, open_experiment, save_experiment
from asmil.storage import publish_text
from tasks.spec import ExperimentSpec, load_experiment
from tune.study import Identity, SearchStudy, open_storage

__all__ = ["OuterFold", "RunDirectory", "default_directory", "experiment_name", "open_study", "outer_folds"]


NAME_FILE = "name.txt"


@dataclass(frozen=True)
class OuterFold:
    """One outer fold of one repeat; under nested search it has a study of its own."""

    repeat: int
    fold: int

    @property
    def name(self) -> str:
        """Name of its study and directories."""
        return f"repeat{self.repeat}-fold{self.fold}"


@dataclass(frozen=True)
class RunDirectory:
    """The files of a search.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment."""
        return self.path / "experiment.yaml"

    @property
    def journal(self) -> Path:
        """The studies of all outer folds."""
        return self.path / "studies.journal"

    @property
    def trials(self) -> Path:
        """Parent of the trials' directories: trials/<study>/<trial number>."""
        return self.path / "trials"

    @property
    def name(self) -> str:
        """What the experiment is called, wherever its directory is."""
        return (self.path / NAME_FILE).read_text(encoding="utf-8").strip()

    def save(self, spec: ExperimentSpec, name: str) -> None:
        """Write down which experiment this is: its name and its resolved configuration."""
        publish_text(self.path / NAME_FILE, f"{name}\n")
        save_experiment(self.path, spec)

    def model(self, variant: str, job: Job) -> Path:
        """Where a refitted model and its test predictions go, the same whichever folds are asked for."""
        return self.path / "models" / variant / job.name

    def drivers(self, fold: OuterFold) -> Path:
        """Where the drivers of a study announce themselves."""
        return self.path / "drivers" / fold.name

    def outcome(self, fold: int | None) -> Path:
        """Where result and report go: a directory of its own if only one outer fold is searched."""
        return self.path if fold is None else self.path / f"fold{fold}"

    def open(self) -> Experiment:
        """The experiment this directory belongs to.

        Raises:
            ConfigError: It belongs to none.
        """
        if not self.experiment.exists():
            raise ConfigError(f"{self.path}: no experiment.yaml in it, so no search was started here")
        return open_experiment(load_experiment(self.experiment), self.path)


def experiment_name(stem: str, labels: Sequence[str]) -> str:
    """What an experiment is called: the name of its file, and what tells it from others of that file."""
    return "-".join([stem, *labels])


def default_directory(stem: str, spec: ExperimentSpec, *, fresh: bool, labels: Sequence[str]) -> Path:
    """The directory of this experiment below `runs/`: the latest one there is, or a new one.

    Args:
        stem: Name of the experiment file.
        spec: The resolved experiment.
        fresh: Take a new directory even if there is one.
        labels: What else tells the reader which experiment it is: variant, demo.
    """
    base = Path("runs") / experiment_name(stem, labels) / f"search-{spec.hash()[:8]}"
    candidates = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000))]
    unused = next(index for index, path in enumerate(candidates) if not path.exists())
    return candidates[unused if fresh else max(unused - 1, 0)]


def outer_folds(experiment: Experiment, fold: int | None) -> list[OuterFold]:
    """The outer folds to search: one of each repeat, or all.

    Raises:
        ConfigError: There is no such fold.
    """
    plan = experiment.plan
    if fold is not None and not 0 <= fold < plan.folds:
        raise ConfigError(f"--fold {fold}: this experiment has folds 0 to {plan.folds - 1}")
    chosen = range(plan.folds) if fold is None else [fold]
    return [OuterFold(repeat, index) for repeat in range(plan.repeats) for index in chosen]


def open_study(run: RunDirectory, experiment: Experiment, fold: OuterFold) -> SearchStudy:
    """The study of an outer fold, created on first use.

    Raises:
        ConfigError: The stored study belongs to another experiment; the message lists the differences.
    """
    cohort = experiment.cohort
    identity = Identity(experiment.spec.identity(), cohort.dataset_id, experiment.plan.hash, cohort.labels_id)
    return SearchStudy(open_storage(run.journal), fold.name, experiment.task.monitor.direction, identity)
