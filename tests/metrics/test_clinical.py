"""The clinical baseline against stored figures on real outcomes, and its encoding by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asmil.errors import DataError
from asmil.metrics.clinical import RARE, ClinicalModel, fit_clinical
from asmil.metrics.survival import harrell_c

COLUMNS = {"age": "age", "oncotree": "oncotree_code"}


@pytest.mark.parametrize("cohort", ["blca", "brca", "luad", "ucec", "gbmlgg"])
def test_stored_figures_of_the_published_folds(shared: Path, cohort: str) -> None:
    stored = json.loads((shared / "golden/survival/tcga_sanity_baselines.json").read_text())["cohorts"][cohort]
    table = pd.read_csv(shared / f"data/tcga_survival/tcga_{cohort}_patients.csv")
    checked = 0
    for key in ("age", "oncotree", "age+oncotree"):
        if key not in stored:
            continue
        covariates = table[[COLUMNS[name] for name in key.split("+")]]
        found = []
        for fold in range(5):
            train, test = (table["fold"] != fold).to_numpy(), (table["fold"] == fold).to_numpy()
            model = fit_clinical(
                covariates[train], table["os_months"][train].to_numpy(), table["event"][train].to_numpy()
            )
            outcome = table["os_months"][test].to_numpy(), table["event"][test].to_numpy()
            found.append(harrell_c(*outcome, model.risks(covariates[test])).value)
        assert [np.mean(found), np.std(found)] == pytest.approx(stored[key], abs=1e-3), key
        checked += 1
    assert checked >= 2


@pytest.fixture
def table() -> pd.DataFrame:
    codes = ["A"] * RARE + ["B"] * (RARE - 1) + ["C"] * (RARE + 1)
    ages = np.arange(len(codes), dtype=float)
    ages[3] = np.nan
    return pd.DataFrame({"age": ages, "code": codes})


def names(model: ClinicalModel) -> list[str]:
    return [one.name if one.level is None else f"{one.name}={one.level}" for one in model.covariates]


def design(model: ClinicalModel, table: pd.DataFrame) -> np.ndarray:
    return np.stack([one.encode(table) for one in model.covariates], axis=1)


def fitted(table: pd.DataFrame, alpha: float = 1.0) -> tuple[ClinicalModel, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    time, event = rng.permutation(len(table)).astype(float) + 1, rng.integers(0, 2, len(table))
    return fit_clinical(table, time, event, alpha=alpha), time, event


def test_numbers_take_the_median_and_levels_that_are_not_rare_a_column(table: pd.DataFrame) -> None:
    model, _, _ = fitted(table)
    assert names(model) == ["age", "code=A", "code=C"]
    assert model.describe == "ridge Cox on age, code"
    age = table["age"].fillna(table["age"].median()).to_numpy()
    is_a, is_c = (table["code"] == "A").to_numpy(float), (table["code"] == "C").to_numpy(float)
    expected = [(column - column.mean()) / column.std() for column in (age, is_a, is_c)]
    np.testing.assert_allclose(design(model, table), np.stack(expected, axis=1), atol=1e-12)


def test_other_parts_are_encoded_as_the_training_part(table: pd.DataFrame) -> None:
    model, _, _ = fitted(table)
    age = table["age"].fillna(table["age"].median())
    encoded = design(model, pd.DataFrame({"age": [np.nan, 5.0], "code": [None, "new"]}))
    assert encoded[:, 0] == pytest.approx((np.array([table["age"].median(), 5.0]) - age.mean()) / age.std(ddof=0))
    assert (encoded[:, 1:] == design(model, table[table["code"] == "B"])[0, 1:]).all()
    with pytest.raises(DataError, match="no column 'code' among age"):
        model.risks(table[["age"]])


def test_the_coefficients_satisfy_the_penalized_score_equation(table: pd.DataFrame) -> None:
    """At the optimum the gradient of the log partial likelihood (no ties here) equals alpha times the coefficients."""
    model, time, event = fitted(table, alpha=2.0)
    columns, beta = design(model, table), np.array(model.coefficients)
    weight = np.exp(columns @ beta)
    score = sum(
        columns[row] - (weight[time >= time[row]] @ columns[time >= time[row]]) / weight[time >= time[row]].sum()
        for row in np.flatnonzero(event)
    )
    np.testing.assert_allclose(score, 2.0 * beta, atol=1e-5)
    np.testing.assert_allclose(model.risks(table), columns @ beta, atol=1e-9)


def test_a_covariate_that_does_not_vary_is_left_out(table: pd.DataFrame) -> None:
    assert names(fitted(table.assign(sex="F", one=1))[0]) == ["age", "code=A", "code=C"]


def test_words_for_missing_values_do_not_turn_numbers_into_levels(table: pd.DataFrame) -> None:
    worded = table.assign(age=table["age"].astype(object).where(table["age"].notna(), "[Not Available]"))
    expected, time, event = fitted(table)
    model = fit_clinical(worded, time, event)
    assert names(model) == names(expected)
    assert model.coefficients == pytest.approx(expected.coefficients)
    np.testing.assert_allclose(model.risks(worded), expected.risks(table), atol=1e-12)


def test_numbers_with_a_stray_word_are_refused(table: pd.DataFrame) -> None:
    stray = table.assign(age=[*table["age"].astype(object)[:-1], "old"])
    with pytest.raises(DataError, match="covariate 'age' holds numbers but also 'old'"):
        fitted(stray)


def test_a_model_survives_json(table: pd.DataFrame) -> None:
    model, _, _ = fitted(table)
    again = ClinicalModel.from_state(json.loads(json.dumps(model.to_state())))
    assert again == model
    assert (again.risks(table) == model.risks(table)).all()


@pytest.mark.parametrize(
    ("covariates", "event", "message"),
    [
        (pd.DataFrame(index=range(4)), [1, 1, 0, 0], "needs covariates"),
        (pd.DataFrame({"age": [1.0, 2.0, 3.0, 4.0]}), [0, 0, 0, 0], "no events among 4 training patients"),
        (pd.DataFrame({"age": [np.nan] * 4}), [1, 1, 0, 0], "'age' has no value in the training part"),
        (pd.DataFrame({"age": [1.0] * 4, "code": list("abcd")}), [1, 1, 0, 0], "age, code do not vary"),
        (pd.DataFrame({"age": [1.0, np.inf, 2.0, 3.0]}), [1, 1, 0, 0], "infinite"),
    ],
)
def test_what_cannot_be_fitted_says_why(covariates: pd.DataFrame, event: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_clinical(covariates, np.array([1.0, 2.0, 3.0, 4.0]), np.array(event))
