"""The bridge between Ray Tune and an Optuna study: who proposes, and how the end of a trial is recorded.

Ray's own `OptunaSearch` records a trial that the scheduler stopped as COMPLETE and leaves one with a non-finite value
RUNNING for ever; early values would then be compared with full-budget ones. `StudySearch` records COMPLETE only for a
trial that reported `finished`, PRUNED for a stopped one and FAIL for everything else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune.space import SearchSpace
from tune.study import CONTINUES, OVERRIDES, REASON, VALIDATION, SearchStudy

__all__ = ["EPOCH", "FINISHED", "NUMBER", "OBJECTIVE", "KeyedSampler", "StudySearch"]

OBJECTIVE = "objective"
EPOCH = "epoch"
FINISHED = "finished"
NUMBER = "number"


class StudySearch(OptunaSearch):  # type: ignore[misc]  # Ray is untyped
    """Proposes trials until the study holds its budget of finished ones, and records how each one ended.

    A trial's configuration is `{"number": Optuna's number, "overrides": dotted settings, "continues": numbers of the
    trials it continues, the latest first}` beside the raw parameters. Only the driver's thread may call it.

    Args:
        study: Where trials are recorded.
        space: What may be proposed.
        sampler: `tpe` or `random`.
        seed: Seed of the sampler.
        budget: Finished trials (COMPLETE or PRUNED) at which the search ends.
    """

    def __init__(self, study: SearchStudy, space: SearchSpace, *, sampler: str, seed: int, budget: int) -> None:
        self._book = study
        self._searched = space
        self._budget = budget
        self._recorded: set[tuple[str, int]] = set()
        super().__init__(
            space=self._propose,
            metric=OBJECTIVE,
            mode=study.direction,
            sampler=KeyedSampler(sampler, key=f"{study.name}:{seed}"),
            storage=study.storage,
            study_name=study.name,
        )

    def _propose(self, trial: optuna.Trial) -> dict[str, Any]:
        overrides = self._searched.suggest(trial)
        trial.set_user_attr(OVERRIDES, overrides)
        return {NUMBER: trial.number, OVERRIDES: overrides, CONTINUES: self._book.predecessors(trial)}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration; None while the trials under way may still fill the budget."""
        counts = self._book.counts()
        if counts.finished >= self._budget or self._book.gave_up(self._budget):
            return str(Searcher.FINISHED)
        if counts.finished + counts.running >= self._budget:
            return None
        proposal: dict[str, Any] = super().suggest(trial_id)
        return proposal

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record the objective of an epoch, once, if it is a number."""
        value, epoch = result.get(OBJECTIVE), result.get(EPOCH)
        if epoch is not None and _is_number(value) and (trial_id, epoch) not in self._recorded:
            self._recorded.add((trial_id, epoch))
            self._ot_trials[trial_id].report(value, step=epoch)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record how the trial ended."""
        last = result or {}
        trial = self._ot_trials[trial_id]
        if error or not _is_number(last.get(OBJECTIVE)):
            trial.set_user_attr(REASON, last.get(REASON) or ("worker_lost_or_raised" if error else "no_objective"))
            self._ot_study.tell(trial, state=TrialState.FAIL)
            return
        self.on_trial_result(trial_id, last)
        if last.get(FINISHED):
            trial.set_user_attr(VALIDATION, _below(last, VALIDATION))
            self._ot_study.tell(trial, last[OBJECTIVE])
        else:
            self._ot_study.tell(trial, state=TrialState.PRUNED)


class KeyedSampler(BaseSampler):
    """Gives every draw a random stream keyed by study, trial number and parameter.

    What is proposed then depends on the trials in the study and on nothing a restarted driver would have lost. Under
    `tpe` those still running count too (constant liar).

    Args:
        kind: `tpe` or `random`.
        key: Identity of the study and the seed.
    """

    def __init__(self, kind: str, *, key: str) -> None:
        self._make = _SAMPLERS[kind]
        self._key = key

    def _sampler(self, trial: FrozenTrial, name: str) -> BaseSampler:
        digest = hashlib.sha256(f"{self._key}:{trial.number}:{name}".encode()).digest()
        return self._make(int.from_bytes(digest[:4], "big"))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """The parameters drawn jointly."""
        return self._sampler(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """Draw them."""
        return self._sampler(trial, "").sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """Draw a parameter by itself."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": optuna.samplers.RandomSampler}


def _below(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping called `name` in a result that Ray has flattened."""
    return {key.removeprefix(f"{name}/"): value for key, value in flat.items() if key.startswith(f"{name}/")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
