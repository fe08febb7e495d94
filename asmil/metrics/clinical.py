"""The clinical baseline: a ridge Cox model of a few covariates that every hospital has, fitted on the training part.

A survival model of slides is worth its cost where it beats this. Nothing here reads slides.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from asmil.errors import DataError
from asmil.missing import is_missing

__all__ = ["ClinicalModel", "Covariate", "fit_clinical"]

RARE = 15
"""A level of a categorical covariate with fewer training patients belongs to the reference level."""


@dataclass(frozen=True)
class Covariate:
    """A column of the design matrix, as fitted on the training part.

    Attributes:
        name: Column of the label table.
        level: The column is 1 where the covariate has this value, else 0; None takes the covariate as a number.
        median: What a missing number is taken as; 0 for a level.
        mean: Training mean, subtracted.
        scale: Training standard deviation (ddof 0), divided by.
    """

    name: str
    level: str | None
    median: float
    mean: float
    scale: float

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """The standardized column, float64 [B]; rare, new and missing levels are the reference, 0 in every column.

        Raises:
            DataError: The covariate is not a column of the table.
        """
        if self.name not in table.columns:
            raise DataError(
                f"no column {self.name!r} among {', '.join(map(str, table.columns))}; the clinical baseline needs it"
            )
        return (_raw(table[self.name], self.level, self.median) - self.mean) / self.scale


@dataclass(frozen=True)
class ClinicalModel:
    """A fitted Cox model of standardized covariates.

    Attributes:
        covariates: Columns of the design matrix.
        coefficients: Change of the log hazard per standard deviation, one per column.
    """

    covariates: tuple[Covariate, ...]
    coefficients: tuple[float, ...]

    @property
    def describe(self) -> str:
        """What it is, for tables: `ridge Cox on age, stage`."""
        return f"ridge Cox on {', '.join(dict.fromkeys(covariate.name for covariate in self.covariates))}"

    def risks(self, table: pd.DataFrame) -> np.ndarray:
        """Log relative hazards of patients of any part, float64 [B].

        Raises:
            DataError: A covariate is not a column of the table.
        """
        design_BP = np.stack([covariate.encode(table) for covariate in self.covariates], axis=1)
        risk_B: np.ndarray = design_BP @ np.asarray(self.coefficients)
        return risk_B

    def to_state(self) -> dict[str, Any]:
        """The model as JSON-serialisable data."""
        return {"covariates": [asdict(one) for one in self.covariates], "coefficients": list(self.coefficients)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClinicalModel:
        """The model whose `to_state` gave `state`."""
        return cls(tuple(Covariate(**one) for one in state["covariates"]), tuple(state["coefficients"]))


def fit_clinical(train: pd.DataFrame, time_B: np.ndarray, event_B: np.ndarray, *, alpha: float = 1.0) -> ClinicalModel:
    """Fit a ridge Cox model (Breslow's risk sets).

    Numbers are taken as they are, text as 0/1 columns of the levels that are not rare; everything is standardized.
    Columns that do not vary over the training part are left out.

    Args:
        train: Covariates of the training patients, one row each.
        time_B: Their follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        alpha: The sum of squared coefficients times half of this is subtracted from the log partial likelihood.

    Returns:
        The model.

    Raises:
        DataError: No covariates, no events, a covariate without values, or a fit that does not converge.
    """
    if not len(train.columns):
        raise DataError("a clinical baseline needs covariates; name columns of the label table")
    if not np.asarray(event_B).any():
        raise DataError(f"no events among {len(train)} training patients; a clinical baseline cannot be fitted")
    names = ", ".join(map(str, train.columns))
    covariates = [one for name in train.columns for one in _fitted(train[name]) if one.scale > 0]
    if not covariates:
        raise DataError(
            f"covariates {names} do not vary over the {len(train)} training patients; name others for the clinical "
            "baseline"
        )
    design_BP = np.stack([covariate.encode(train) for covariate in covariates], axis=1)
    return ClinicalModel(tuple(covariates), tuple(_coefficients(design_BP, time_B, event_B, alpha, names)))


def _coefficients(
    design_BP: np.ndarray, time_B: np.ndarray, event_B: np.ndarray, alpha: float, names: str
) -> Sequence[float]:
    model = CoxPHSurvivalAnalysis(alpha=alpha)
    outcomes = Surv.from_arrays(np.asarray(event_B).astype(bool), np.asarray(time_B, dtype=np.float64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(design_BP, outcomes)
    if caught or not np.isfinite(model.coef_).all():
        reason = str(caught[0].message) if caught else "a coefficient is not finite"
        raise DataError(f"the clinical baseline on {names} cannot be fitted ({reason}); name other covariates")
    coefficients: list[float] = model.coef_.tolist()
    return coefficients


def _fitted(values: pd.Series) -> list[Covariate]:
    """The columns of one covariate."""
    name, present = str(values.name), _cleaned(values).dropna()
    if present.empty:
        raise DataError(f"covariate {name!r} has no value in the training part ({len(values)} patients)")
    if not pd.api.types.is_numeric_dtype(present.dtype):
        counts = present.astype(str).value_counts()
        _refuse_strays(name, present)
        return [_standardized(values, name, str(level), 0.0) for level in sorted(counts.index[counts >= RARE])]
    numbers = present.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(f"covariate {name!r} holds an infinite value; correct the label table")
    return [_standardized(values, name, None, float(numbers.median()))]


def _cleaned(values: pd.Series) -> pd.Series:
    """The values with words for missing ones taken away, as numbers if all that are left are."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values
    known = values.where(~values.map(is_missing).astype(bool), None)
    numbers = pd.to_numeric(known, errors="coerce")
    return numbers if (numbers.isna() == known.isna()).all() else known


def _refuse_strays(name: str, present: pd.Series) -> None:
    """Numbers among which a few words stand are numbers; as levels they would all be rare."""
    is_number = pd.to_numeric(present, errors="coerce").notna()
    if is_number.mean() > 0.5:
        strays = sorted(set(present[~is_number].astype(str)))
        raise DataError(
            f"covariate {name!r} holds numbers but also {', '.join(map(repr, strays[:5]))}; correct the label table or "
            "leave these cells empty"
        )


def _standardized(values: pd.Series, name: str, level: str | None, median: float) -> Covariate:
    raw_B = _raw(values, level, median)
    return Covariate(name, level, median, float(raw_B.mean()), float(raw_B.std()))


def _raw(values: pd.Series, level: str | None, median: float) -> np.ndarray:
    values = _cleaned(values)
    if level is not None:
        return np.asarray([not pd.isna(value) and str(value) == level for value in values], dtype=np.float64)
    return np.asarray(values.astype(np.float64).fillna(median), dtype=np.float64)
