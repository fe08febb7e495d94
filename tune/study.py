"""The record of a search: one Optuna study per outer fold, in a journal file that outlives every driver.

The study is the truth about a search. It knows which experiment it belongs to, which trials ended how, whether it is
closed, and what was best; Ray's own files are only checkpoints and logs. Nothing here knows Ray.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from asmil.config import differences
from asmil.errors import ConfigError

__all__ = [
    "CLOSED",
    "CONTINUES",
    "OVERRIDES",
    "REASON",
    "VALIDATION",
    "Counts",
    "Identity",
    "Importance",
    "SearchStudy",
    "any_closed",
    "open_storage",
]

CONTINUES = "continues"
REASON = "reason"
VALIDATION = "validation"
OVERRIDES = "overrides"
IDENTITY = "identity"
CLOSED = "closed"
MIN_COMPLETE_FOR_IMPORTANCE = 5


@dataclass(frozen=True)
class Identity:
    """What a study was made for; two studies are comparable only if these are equal.

    Attributes:
        settings: Every setting of the experiment that can change a number, as plain data.
        dataset_id: Content identity of the store.
        splits: Hash of the split plan.
        labels: Identity of the labels.
    """

    settings: Mapping[str, Any]
    dataset_id: str
    splits: str
    labels: str

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """Dotted settings that differ from a stored identity, as `path: stored -> ours`."""
        return [line.removeprefix("settings.") for line in differences(other, asdict(self))]


@dataclass(frozen=True)
class Counts:
    """Trials of a study by how they ended.

    Attributes:
        complete: Trained to the end.
        pruned: Stopped early.
        fail: Failed.
        continued: Lost with their driver and continued by a later trial.
        running: Under way.
    """

    complete: int = 0
    pruned: int = 0
    fail: int = 0
    continued: int = 0
    running: int = 0

    @property
    def finished(self) -> int:
        """Trials that count towards the budget."""
        return self.complete + self.pruned


@dataclass(frozen=True)
class Importance:
    """Share of the objective's variation that each parameter explains, or why that cannot be said.

    Attributes:
        values: Parameter to share, largest first; they add up to 1.
        reason: `few_trials` or `no_spread` where there are no values.
    """

    values: Mapping[str, float] | None
    reason: str | None = None


def open_storage(path: Path) -> optuna.storages.BaseStorage:
    """The journal file at `path`; several processes may have it open."""
    return JournalStorage(JournalFileBackend(str(path)))


def any_closed(storage: optuna.storages.BaseStorage) -> bool:
    """Whether a study in this storage is over for good."""
    return any(CLOSED in summary.user_attrs for summary in optuna.get_all_study_summaries(storage))


class SearchStudy:
    """One study: created on first use, continued afterwards.

    Args:
        storage: Where it is recorded.
        name: Its name there; one per outer fold.
        direction: Whether more or less of the objective is better.
        identity: The experiment it must belong to.

    Raises:
        ConfigError: The stored study belongs to another experiment; the message lists the differences.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, direction: Literal["max", "min"], identity: Identity
    ) -> None:
        self.storage = storage
        self.name = name
        self.direction = direction
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if direction == "max" else "minimize",
            load_if_exists=True,
        )
        stored = self.study.user_attrs.get(IDENTITY)
        if stored is None:
            self.study.set_user_attr(IDENTITY, asdict(identity))
        elif differences := identity.difference(stored):
            raise ConfigError(
                f"study {name}: belongs to another experiment ({'; '.join(differences[:8])}); restore these settings, "
                "give another --out, or start anew with --fresh"
            )
        self._failed_before = frozenset(number for number, _ in self.failures())

    def enqueue_defaults(self, params: Mapping[str, Any]) -> None:
        """Have the experiment's own values tried first, once in the life of the study."""
        self.study.enqueue_trial(dict(params), skip_if_exists=True)

    def recover(self) -> list[int]:
        """Take up the trials a dead driver left RUNNING; call it only while no other driver is alive.

        Each becomes FAIL and is proposed again with the same parameters and `continues` naming it, so that the new
        trial can start from its last checkpoint.

        Returns:
            Numbers of the trials taken up.
        """
        stale = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in stale:
            self.study.enqueue_trial(trial.params, user_attrs={CONTINUES: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
        return [trial.number for trial in stale]

    def counts(self) -> Counts:
        """Trials by state; those waiting to be proposed are not counted."""
        continued = self.continued()
        trials = self.study.get_trials(deepcopy=False)
        by_state = Counter(trial.state for trial in trials if trial.number not in continued)
        return Counts(
            complete=by_state[TrialState.COMPLETE],
            pruned=by_state[TrialState.PRUNED],
            fail=by_state[TrialState.FAIL],
            continued=len(continued),
            running=by_state[TrialState.RUNNING],
        )

    def gave_up(self, budget: int) -> bool:
        """Whether so many trials failed since this driver opened the study that going on is pointless."""
        failed = [number for number, _ in self.failures() if number not in self._failed_before]
        return len(failed) > max(4, budget // 4)

    def continued(self) -> frozenset[int]:
        """Numbers of the trials that were lost with their driver and that a later trial continues."""
        each = (trial.user_attrs.get(CONTINUES) for trial in self.study.get_trials(deepcopy=False))
        return frozenset(number for number in each if number is not None)

    def predecessors(self, trial: optuna.trial.BaseTrial) -> list[int]:
        """Numbers of the trials this one continues, directly or through others, the latest first."""
        trials = self.study.get_trials(deepcopy=False)
        found: list[int] = []
        earlier = trial.user_attrs.get(CONTINUES)
        while earlier is not None:
            found.append(earlier)
            earlier = trials[earlier].user_attrs.get(CONTINUES)
        return found

    def failures(self) -> list[tuple[int, str]]:
        """Number and reason of the failed trials that no later trial continues."""
        continued = self.continued()
        return [
            (trial.number, str(trial.user_attrs.get(REASON, "driver_lost")))
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if trial.number not in continued
        ]

    def best(self) -> FrozenTrial | None:
        """The best COMPLETE trial; one stopped early is never compared with it."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self.direction == "max" else -1
        return max(complete, key=lambda trial: (sign * _objective(trial), -trial.number), default=None)

    def importance(self) -> Importance:
        """Which parameters mattered, by PED-ANOVA over the COMPLETE trials."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < MIN_COMPLETE_FOR_IMPORTANCE:
            return Importance(None, "few_trials")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PED-ANOVA warns, and divides 0 by 0, when all objectives are equal
            try:
                values = optuna.importance.get_param_importances(self.study)
            except (UserWarning, RuntimeWarning):
                return Importance(None, "no_spread")
        if not values or not all(math.isfinite(value) for value in values.values()) or not any(values.values()):
            return Importance(None, "no_spread")
        return Importance(values)

    @property
    def closed(self) -> bool:
        """Whether the search is over for good; only then may its test part be opened."""
        return CLOSED in self.study.user_attrs

    def close(self) -> None:
        """End the search for good.

        Raises:
            ConfigError: Trials are still RUNNING, or none is COMPLETE.
        """
        counts = self.counts()
        if counts.running or not counts.complete:
            raise ConfigError(
                f"study {self.name}: cannot be closed with {counts.running} trials running and {counts.complete} "
                "complete; run the search to its end first"
            )
        self.study.set_user_attr(CLOSED, {"time": round(time.time(), 3), **asdict(counts)})


def _objective(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a COMPLETE trial has a value"
    return trial.value
