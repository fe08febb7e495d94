"""Cox and ranking heads, curves at any time, the record of a result, and the clinical baseline of the survival task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from sksurv.linear_model.coxph import BreslowEstimator

from asmil.config import parse_config
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Predictions
from asmil.errors import ConfigError, DataError
from asmil.metrics.clinical import fit_clinical
from asmil.metrics.survival import harrell_c
from asmil.nn.cox import cox_loss, ranking_loss
from asmil.nn.losses import incidence_loss
from tasks.curves import breslow_hazard, survival_at
from tasks.spec import load_experiment
from tasks.survival import PreparedSurvival, Survival, SurvivalConfig

COLUMNS = LabelColumns(time="os_months", event="event")
Predict = Callable[[PreparedSurvival, pd.DataFrame, object], Predictions]


def task(columns: LabelColumns = COLUMNS, **settings: Any) -> Survival:
    return parse_config(SurvivalConfig, {"kind": "survival", **settings}, "x.yaml").build(columns)


@pytest.fixture
def cohort(make_table: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    age = generator.normal(60, 10, 80)
    time = generator.exponential(20 * np.exp((60 - age) / 10)).round(1) + 0.1
    return make_table(os_months=time, event=generator.integers(0, 2, 80), age=age)


@pytest.fixture
def cox(cohort: pd.DataFrame, make_bags: type) -> PreparedSurvival:
    return task(head="cox").prepare(cohort, make_bags({}))


THETA = torch.linspace(-2, 2, 80)[torch.randperm(80, generator=torch.Generator().manual_seed(0))][:, None]


def test_the_cox_loss_of_a_step_is_the_mean_over_its_events(cohort: pd.DataFrame, cox: PreparedSurvival) -> None:
    target = cox.target(cohort)
    expected = cox_loss(THETA[:, 0], target["time"], target["event"]).sum() / cohort["event"].sum()
    assert cox.couples_bags
    assert cox.head.out_dim == 1
    torch.testing.assert_close(cox.loss(THETA, target).mean(), expected)
    flipped = {**target, "event": 1 - target["event"]}
    assert not torch.allclose(cox.loss(THETA, flipped).mean(), expected)
    assert cox.can_step(target)
    assert not cox.can_step({**target, "event": 0 * target["event"]})
    assert cox.loss(THETA, {**target, "event": 0 * target["event"]}).tolist() == [0.0] * 80


def test_tied_events_are_treated_as_asked(cohort: pd.DataFrame, make_bags: type) -> None:
    tied = cohort.assign(os_months=cohort["os_months"].round(-1) + 1)
    losses = []
    for ties in ("efron", "breslow"):
        prepared = task(head="cox", ties=ties).prepare(tied, make_bags({}))
        target = prepared.target(tied)
        losses.append(prepared.loss(THETA, target).mean())
        expected = cox_loss(THETA[:, 0], target["time"], target["event"], ties=ties).sum() / tied["event"].sum()
        torch.testing.assert_close(losses[-1], expected)
    assert losses[0] < losses[1]


def test_cox_curves_follow_breslows_hazard_of_the_training_bags(
    cohort: pd.DataFrame, cox: PreparedSurvival, predict: Predict
) -> None:
    before = predict(cox, cohort, THETA)
    assert set(before.outputs) == {"risk"}
    assert cox.details(before)["ibs"].reason == "no_curves"
    calibrated = cox.calibrate(before)
    outputs = predict(calibrated, cohort, THETA).outputs
    reference = BreslowEstimator().fit(
        THETA[:, 0].double().numpy(), cohort["event"].to_numpy(bool), cohort["os_months"].to_numpy()
    )
    curves = reference.get_survival_function(THETA[:, 0].double().numpy())
    expected = [[curve(min(edge, cohort["os_months"].max())) for edge in cox.bins.edges[1:]] for curve in curves]
    np.testing.assert_allclose(outputs["survival"], expected, atol=1e-12)
    assert (outputs["risk"] == THETA[:, 0].double().numpy()).all()
    restored = task(head="cox").restore(json.loads(json.dumps(calibrated.to_state())))
    for name, value in predict(restored, cohort, THETA).outputs.items():
        np.testing.assert_array_equal(value, outputs[name])


def test_extreme_risks_keep_their_curves_finite(cohort: pd.DataFrame, cox: PreparedSurvival, predict: Predict) -> None:
    calibrated = cox.calibrate(predict(cox, cohort, THETA))
    curves = predict(calibrated, cohort, 400 * THETA).outputs["survival"]
    assert np.isfinite(curves).all()
    assert ((curves >= 0) & (curves <= 1)).all()


def test_breslows_hazard_counts_deaths_over_risk() -> None:
    hazard = breslow_hazard(
        np.log([2.0, 1.0, 3.0]), np.array([1.0, 2.0, 2.0]), np.array([1, 1, 0]), np.array([0.5, 1.0, 9.0])
    )
    assert hazard == pytest.approx([0, 1 / 6, 1 / 6 + 1 / 4])


def test_the_ranking_term_is_added_with_its_weight(cohort: pd.DataFrame, make_bags: type) -> None:
    prepared = task(ranking={"weight": 0.3, "sigma": 0.5}, censoring="tail").prepare(cohort, make_bags({}))
    target = prepared.target(cohort)
    logits = torch.randn(80, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    arguments = logits, target["bin"], target["event"]
    ranking = ranking_loss(logits, target["bin"], target["time"], target["event"], sigma=0.5, tail=True)
    torch.testing.assert_close(
        prepared.loss(logits, target), incidence_loss(*arguments, mode="tail") + 0.3 * ranking, rtol=1e-5, atol=1e-6
    )
    assert prepared.couples_bags
    assert not task().prepare(cohort, make_bags({})).couples_bags


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "cox", "alpha": 0.3}, "alpha 0.3 belongs to head incidence or hazard"),
        ({"head": "cox", "risk": "neg_rmst"}, "risk 'neg_rmst' belongs to head incidence or hazard"),
        ({"head": "hazard", "ranking": {}}, "ranking .* belongs to head incidence"),
        ({"ties": "breslow"}, "ties 'breslow' belongs to head cox"),
        ({"risk": "horizon"}, "give both or neither"),
        ({"horizon": 12}, "give both or neither"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


@pytest.mark.parametrize("setting", ["task.head=cox", "task.ranking={weight: 0.2}"])
def test_losses_that_compare_bags_need_steps_of_sixteen(setting: str) -> None:
    path = Path(__file__).parents[2] / "tasks/tcga_survival.yaml"
    load_experiment(path, assignments=[setting, "train.bags_per_step=16"])
    with pytest.raises(ConfigError, match=r"train\.bags_per_step is 15, .* needs 16 or more"):
        load_experiment(path, assignments=[setting, "train.bags_per_step=15"])
    with pytest.raises(ConfigError, match=r"data\.group_lengths makes steps of similar bags"):
        load_experiment(path, assignments=[setting, "data.group_lengths=true"])


def test_risk_at_a_horizon_is_the_chance_to_die_by_then(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    prepared = task(risk="horizon", horizon=12).prepare(cohort, make_bags({}))
    logits = torch.randn(80, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    outputs = predict(prepared, cohort, logits).outputs
    knots = np.pad(outputs["survival"], ((0, 0), (1, 0)), constant_values=1)
    expected = [1 - np.interp(12, prepared.bins.edges, row) for row in knots]
    assert outputs["risk"] == pytest.approx(expected)
    with pytest.raises(DataError, match=r"task\.horizon is 9999, but the longest training follow-up"):
        task(risk="horizon", horizon=9999).prepare(cohort, make_bags({}))


def test_curves_at_stored_times(shared: Path) -> None:
    stored = json.loads((shared / "golden/survival/curves_small.json").read_text())
    times = json.loads((shared / "golden/survival/losses_small.json").read_text())["inputs"]["time"]
    found = survival_at(np.array(stored["S_pmf_end_of_bin"]), stored["edges"], np.array(times)[:, None])
    np.testing.assert_allclose(found[:, 0], stored["S_at_own_time_linear"], atol=1e-9)
    beyond = survival_at(np.array([[0.8, 0.3]]), (0.0, 1.0, 2.0), np.array([[2.0, 99.0]]))
    assert beyond.tolist() == [[0.3, 0.3]]


def test_the_record_of_a_result_is_complete_and_has_reasons(
    cohort: pd.DataFrame, make_bags: type, predict: Predict, make_table: Callable[..., pd.DataFrame]
) -> None:
    prepared = task(censoring="tail").prepare(cohort, make_bags({}))
    certain = torch.randn(80, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    details = prepared.details(predict(prepared, cohort, certain))
    assert {name: metric.reason for name, metric in details.items() if metric.value is None} == {}
    assert set(details) == {
        "c_index_null_sd", "uno_c", "uno_c_tau", "auc_over_time", "ibs", "d_calibration_p", "ibs_kaplan_meier",
        "times_clipped",
    }  # fmt: skip
    late = make_table(os_months=[1.0, 500.0, 600.0], event=[1, 1, 1], age=[50.0, 60.0, 70.0])
    details = prepared.details(predict(prepared, late, certain[:3]))
    assert details["times_clipped"].value == 2
    assert details["d_calibration_p"].reason == "too_few"


def test_a_model_that_knows_the_curve_has_the_smaller_brier_score(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    prepared = task(bins={"count": 6}).prepare(cohort, make_bags({}))
    own = torch.from_numpy(prepared.bins.label(cohort["os_months"].to_numpy()))
    knowing = 5.0 * torch.nn.functional.one_hot(own, 6).float()
    details = prepared.details(predict(prepared, cohort, knowing))
    assert details["ibs"].value < 0.6 * details["ibs_kaplan_meier"].value
    ignorant = prepared.details(predict(prepared, cohort, torch.zeros(80, 6)))
    assert ignorant["ibs"].value > details["ibs_kaplan_meier"].value


def test_the_baseline_is_fitted_on_patients_of_the_training_part(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    columns = LabelColumns(time="os_months", event="event", covariates=("age",))
    train, test = cohort.iloc[:50], cohort.iloc[50:]
    twice = pd.concat([train, train.set_index(train.index + "x")])
    altered = cohort.assign(age=[*train["age"], *(test["age"] * 0 + 1)])
    prepared = task(columns).prepare(twice, make_bags({}))
    assert (
        prepared.to_state()["clinical"]
        == task(columns).prepare(altered.iloc[:50], make_bags({})).to_state()["clinical"]
    )
    logits = torch.zeros(30, prepared.head.out_dim)
    predictions = predict(prepared, test, logits)
    baseline = prepared.baseline(predictions)
    assert baseline is not None
    assert baseline.name == "ridge Cox on age"
    expected = fit_clinical(train[["age"]], train["os_months"].to_numpy(), train["event"].to_numpy()).risks(test)
    c_index = harrell_c(test["os_months"].to_numpy(), test["event"].to_numpy(), expected)
    assert prepared.evaluate(baseline.predictions)["c_index"].value == c_index.value
    assert c_index.value > 0.55, "age was made to matter"
    restored = task(columns).restore(json.loads(json.dumps(prepared.to_state())))
    assert (predict(restored, test, logits).truth["clinical_risk"] == expected).all()


def test_a_baseline_that_cannot_be_fitted_is_a_warning(
    cohort: pd.DataFrame, make_bags: type, predict: Predict, caplog: pytest.LogCaptureFixture
) -> None:
    columns = LabelColumns(time="os_months", event="event", covariates=("age",))
    prepared = task(columns).prepare(cohort.assign(age=1.0), make_bags({}))
    assert any("no clinical baseline: covariates age do not vary" in message for message in caplog.messages)
    assert prepared.baseline(predict(prepared, cohort, torch.zeros(80, prepared.head.out_dim))) is None


def test_the_cox_loss_is_what_lifelines_minimizes(cohort: pd.DataFrame, cox: PreparedSurvival) -> None:
    """With theta = beta * age the loss has its minimum where an independent Cox fit has it."""
    fitted = CoxPHFitter().fit(cohort[["os_months", "event", "age"]], "os_months", "event")
    target, age = cox.target(cohort), torch.from_numpy(cohort["age"].to_numpy() - 60)
    beta = torch.tensor(float(fitted.params_["age"]), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(cox.loss((beta * age)[:, None], target).mean(), beta)
    assert abs(grad.item()) < 1e-4
