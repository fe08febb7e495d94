"""The clinical baseline: a ridge Cox model of a few covariates that every hospital has, fitted on the training part.

A survival model of slides is worth its cost where it beats this. Nothing here reads slides.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from asmil.errors import DataError

__all__ = ["ClinicalModel", "CovariateCoder"]

RARE = 15
"""A level of a categorical covariate with fewer training patients belongs to the reference level."""


@dataclass(frozen=True)
class _Numbers:
    """A numeric covariate; what is missing takes the training median."""

    name: str
    median: float

    def columns(self, values: pd.Series) -> list[np.ndarray]:
        """One column."""
        return [values.astype(np.float64).fillna(self.median).to_numpy()]


@dataclass(frozen=True)
class _Levels:
    """A categorical covariate; rare, new and missing levels are the reference."""

    name: str
    levels: tuple[str, ...]

    def columns(self, values: pd.Series) -> list[np.ndarray]:
        """One 0/1 column per level."""
        return [(values.astype(object) == level).to_numpy(dtype=np.float64) for level in self.levels]


class CovariateCoder:
    """Turns covariates into standardized columns, as fitted on the training part.

    Numbers are taken as they are, text as 0/1 columns of the levels that are not rare. Everything is then standardized
    with the mean and standard deviation (ddof 0) of the training part.

    Args:
        train: Covariates of the training patients, one row each.

    Attributes:
        names: Name of each column, such as `age` or `grade=G3`.

    Raises:
        DataError: A covariate has no value in the training part, or none of them varies there.
    """

    def __init__(self, train: pd.DataFrame) -> None:
        self._parts = [_fitted(train[name]) for name in train.columns]
        raw_BP = self._raw(train)
        self._mean_P, self._scale_P = raw_BP.mean(axis=0), raw_BP.std(axis=0)
        self._kept_P = self._scale_P > 0
        if not self._kept_P.any():
            raise DataError(
                f"covariates {', '.join(train.columns)} do not vary over the {len(train)} training patients; name "
                "others for the clinical baseline"
            )
        names = [
            part.name if isinstance(part, _Numbers) else f"{part.name}={level}"
            for part in self._parts
            for level in (part.levels if isinstance(part, _Levels) else ("",))
        ]
        self.names = tuple(np.asarray(names)[self._kept_P].tolist())

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """Float64 [B, P] for patients of any part.

        Raises:
            DataError: A column is not there.
        """
        columns_BP = (self._raw(table) - self._mean_P)[:, self._kept_P]
        encoded_BP: np.ndarray = columns_BP / self._scale_P[self._kept_P]
        return encoded_BP

    def _raw(self, table: pd.DataFrame) -> np.ndarray:
        missing = [part.name for part in self._parts if part.name not in table.columns]
        if missing:
            raise DataError(
                f"no column {', '.join(missing)} among the covariates {', '.join(map(str, table.columns))}; give the "
                "columns that the baseline was fitted on"
            )
        columns = [column for part in self._parts for column in part.columns(table[part.name])]
        return np.stack(columns, axis=1) if columns else np.empty((len(table), 0))


class ClinicalModel:
    """A Cox model of encoded covariates with a ridge penalty (Breslow's risk sets).

    Args:
        train: Covariates of the training patients.
        time_B: Their follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        alpha: Penalty, half the sum of squared coefficients times this, against the summed log partial likelihood.

    Attributes:
        coefficients: By column name: change of the log hazard per standard deviation.

    Raises:
        DataError: No covariates, no events, a covariate without values, or a fit that does not converge.
    """

    def __init__(self, train: pd.DataFrame, time_B: np.ndarray, event_B: np.ndarray, *, alpha: float = 1.0) -> None:
        if not len(train.columns):
            raise DataError("a clinical baseline needs covariates; name columns of the label table")
        events_B = np.asarray(event_B).astype(bool)
        if not events_B.any():
            raise DataError(f"no events among {len(train)} training patients; a clinical baseline cannot be fitted")
        self._coder = CovariateCoder(train)
        self._model = CoxPHSurvivalAnalysis(alpha=alpha)
        outcomes = Surv.from_arrays(events_B, np.asarray(time_B, dtype=np.float64))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._model.fit(self._coder.encode(train), outcomes)
        if caught or not np.isfinite(self._model.coef_).all():
            reason = str(caught[0].message) if caught else "a coefficient is not finite"
            raise DataError(f"the clinical baseline on {', '.join(train.columns)} cannot be fitted ({reason})")
        self.coefficients = dict(zip(self._coder.names, self._model.coef_.tolist(), strict=True))

    def risks(self, table: pd.DataFrame) -> np.ndarray:
        """Log relative hazards of patients of any part, float64 [B]."""
        risk_B: np.ndarray = self._model.predict(self._coder.encode(table))
        return risk_B


def _fitted(values: pd.Series) -> _Numbers | _Levels:
    present = values.dropna()
    if present.empty:
        raise DataError(f"covariate {values.name!r} has no value in the training part ({len(values)} patients)")
    if pd.api.types.is_numeric_dtype(present.dtype):
        numbers = present.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise DataError(f"covariate {values.name!r} holds an infinite value; correct the label table")
        return _Numbers(str(values.name), float(numbers.median()))
    counts = present.astype(object).value_counts()
    return _Levels(str(values.name), tuple(sorted(str(level) for level in counts.index[counts >= RARE])))
