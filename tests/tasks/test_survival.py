"""The survival task: label checks, what is fitted, scores, risk groups and state."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from asmil.config import parse_config
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Predictions
from asmil.errors import ConfigError, DataError
from asmil.metrics.survival import harrell_c, log_rank
from asmil.nn.losses import hazard_loss, incidence_loss
from tasks.survival import PreparedSurvival, Survival, SurvivalConfig

COLUMNS = LabelColumns(time="os_months", event="event")
Predict = Callable[[PreparedSurvival, pd.DataFrame, object], Predictions]


def task(**settings: Any) -> Survival:
    return SurvivalConfig.model_validate({"kind": "survival", **settings}).build(COLUMNS)


@pytest.fixture
def outcomes(make_table: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    def build(time: Sequence[object], event: Sequence[object], **columns: Sequence[object]) -> pd.DataFrame:
        return make_table(os_months=time, event=event, **columns)

    return build


@pytest.fixture
def cohort(outcomes: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    return outcomes(generator.exponential(20, 60).round(1) + 0.1, generator.integers(0, 2, 60))


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([3.0, -1.0], [1, 0], "'os_months' is negative for bag 'b1'"),
        ([3.0, float("nan")], [1, 0], "'os_months' holds no finite number for bag 'b1'"),
        ([3.0, float("inf")], [1, 0], "'os_months' holds no finite number for bag 'b1'"),
        ([0.0, 2.0], [1, 0], r"'os_months' is 0 for bag 'b0'; .* task.zero_time: shift"),
        ([3.0, 2.0], [1, 2], r"'event' is neither 0 nor 1 for bag 'b1' \(first: 2\)"),
        ([3.0, 2.0], [0.5, 1], "'event' is neither 0 nor 1 for bag 'b0'"),
        ([3.0, 2.0], ["dead", "alive"], "'event' holds no finite number for 2 bags"),
        ([3.0, 2.0], [1, None], "'event' holds no finite number for bag 'b1'"),
    ],
)
def test_wrong_outcomes_are_refused_with_their_bags(
    outcomes: Callable[..., pd.DataFrame], time: list[float], event: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task().check(outcomes(time, event))


@pytest.mark.parametrize(("column", "unit"), [("time_days", "months"), ("os_months", "days"), ("Years", "months")])
def test_a_time_column_whose_name_tells_another_unit_is_refused(column: str, unit: str) -> None:
    columns = LabelColumns(time=column, event="event")
    with pytest.raises(ConfigError, match=rf"column '{column}' is in \w+ by its name, but task\.time_unit is '{unit}'"):
        SurvivalConfig(time_unit=unit).build(columns)
    SurvivalConfig(time_unit=unit).build(LabelColumns(time="time", event="event"))


def test_contradictory_bags_of_a_patient_are_refused(outcomes: Callable[..., pd.DataFrame]) -> None:
    agreeing = outcomes([3.0, 3.0, 5.0], [1, 1, 0], group=["p", "p", "q"])
    task().check(agreeing)
    for time, event in (([3.0, 4.0, 5.0], [1, 1, 0]), ([3.0, 3.0, 5.0], [1, 0, 0])):
        with pytest.raises(DataError, match=r"1 groups have bags with different .* 'p'"):
            task().check(outcomes(time, event, group=["p", "p", "q"]))


def test_columns_that_are_not_named_or_not_there() -> None:
    with pytest.raises(ConfigError, match=r"data\.labels\.event: required"):
        SurvivalConfig().build(LabelColumns(time="os_months"))
    with pytest.raises(DataError, match="has no column 'event'"):
        task().check(pd.DataFrame({"os_months": [1.0]}, index=["b0"]))


@pytest.mark.parametrize(("events", "warned"), [([1, 0, 0, 0], False), ([0, 1, 1, 1], True), ([1, 1, 1, 0], True)])
def test_a_mirrored_event_rate_is_warned_about(
    outcomes: Callable[..., pd.DataFrame], caplog: pytest.LogCaptureFixture, events: list[int], warned: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="tasks.survival"):
        task(expected_event_rate=0.3).check(outcomes([1.0, 2.0, 3.0, 4.0], events))
    assert f"4 bags, {sum(events)} events" in caplog.messages[0]
    assert any("censoring flag" in message for message in caplog.messages) is warned


def test_strata_are_the_events(cohort: pd.DataFrame) -> None:
    assert list(task().strata(cohort)) == cohort["event"].tolist()


def test_no_events_in_the_training_fold(outcomes: Callable[..., pd.DataFrame], make_bags: type) -> None:
    with pytest.raises(DataError, match="no events in the training fold"):
        task().prepare(outcomes([1.0, 2.0], [0, 0]), make_bags({}))


def test_times_of_zero_are_shifted_by_what_training_saw(
    outcomes: Callable[..., pd.DataFrame], make_bags: type, caplog: pytest.LogCaptureFixture
) -> None:
    train = outcomes([0.0, 3.0, 8.0, 9.0], [1, 1, 1, 1])
    shifting = task(zero_time="shift")
    shifting.check(train)
    with caplog.at_level(logging.WARNING, logger="tasks.survival"):
        prepared = shifting.prepare(train, make_bags({}))
    assert "1 follow-up times of 0 are taken as 1.5" in caplog.messages
    test = outcomes([0.0, 0.4], [1, 0])
    assert prepared.truth(test)["time"].tolist() == [1.5, 0.4]
    assert prepared.target(test)["bin"].tolist() == [0, 0]


def test_fitting_sees_the_training_rows_alone(cohort: pd.DataFrame, make_bags: type) -> None:
    train, altered = cohort.iloc[:40], cohort.copy()
    altered.loc[altered.index[40:], "os_months"] *= 100
    bags = make_bags({})
    states = []
    for labels in (cohort, altered):
        survival = task()
        survival.check(labels)
        states.append(survival.prepare(train, bags).to_state())
    assert states[0] == states[1]
    assert bags.read_ids == []


@pytest.mark.parametrize("mode", ["end_clamp", "end_drop", "tail", "start"])
def test_the_configured_loss_on_the_fitted_bins(cohort: pd.DataFrame, make_bags: type, mode: str) -> None:
    prepared = task(censoring=mode, alpha=0.2).prepare(cohort, make_bags({}))
    target = prepared.target(cohort)
    logits = torch.randn(60, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    expected = incidence_loss(logits, target["bin"], torch.tensor(cohort["event"].to_numpy()), mode=mode, alpha=0.2)
    torch.testing.assert_close(prepared.loss(logits, target), expected)
    assert target["bin"].tolist() == prepared.bins.label(cohort["os_months"].to_numpy()).tolist()
    flipped = {**target, "event": 1 - target["event"]}
    assert not torch.allclose(prepared.loss(logits, flipped).mean(), expected.mean())


def test_a_hazard_head_has_its_own_loss_and_no_censoring_modes(cohort: pd.DataFrame, make_bags: type) -> None:
    prepared = task(head="hazard", alpha=0.2).prepare(cohort, make_bags({}))
    target = prepared.target(cohort)
    logits = torch.randn(60, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        prepared.loss(logits, target), hazard_loss(logits, target["bin"], target["event"], alpha=0.2)
    )
    with pytest.raises(ConfigError, match="'tail' belongs to head incidence"):
        parse_config(SurvivalConfig, {"kind": "survival", "head": "hazard", "censoring": "tail"}, "x.yaml")


def test_only_a_tail_leaves_anyone_alive_past_the_last_bin(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    for mode, alive in (("end_drop", 0.0), ("tail", 0.5)):
        prepared = task(censoring=mode, bins={"count": 4}).prepare(cohort, make_bags({}))
        flat = torch.full((60, 4), -np.log(4))
        assert predict(prepared, cohort, flat).outputs["survival"][:, -1] == pytest.approx(alive)


@pytest.mark.parametrize("risk", ["neg_sum_S", "neg_rmst", "vlsa_mean_time"])
@pytest.mark.parametrize("head", ["incidence", "hazard"])
def test_early_deaths_have_the_larger_risk(
    outcomes: Callable[..., pd.DataFrame], make_bags: type, predict: Predict, head: str, risk: str
) -> None:
    labels = outcomes([1.0, 5.0, 9.0, 13.0, 17.0], [1, 1, 1, 1, 0])
    prepared = task(head=head, risk=risk, bins={"count": 4}).prepare(labels, make_bags({}))
    labels_B = prepared.bins.label(labels["os_months"].to_numpy())
    certain = 12 * torch.eye(4)[labels_B] - 6 * (torch.arange(4) < torch.tensor(labels_B)[:, None]).float()
    predictions = predict(prepared, labels, certain)
    assert predictions.outputs["survival"].shape == (5, 4)
    assert prepared.evaluate(predictions)["c_index"].value == pytest.approx(9.5 / 10)  # the last two share a bin
    assert np.corrcoef(predictions.outputs["risk"], labels["os_months"])[0, 1] < -0.9


def test_c_index_is_harrells_on_continuous_times(cohort: pd.DataFrame, make_bags: type, predict: Predict) -> None:
    prepared = task().prepare(cohort, make_bags({}))
    logits = torch.randn(60, prepared.head.out_dim, generator=torch.Generator().manual_seed(1))
    predictions = predict(prepared, cohort, logits)
    risk = -(1 - logits.double().softmax(1).cumsum(1)).sum(1).numpy()
    expected = harrell_c(cohort["os_months"].to_numpy(), cohort["event"].to_numpy(), risk)
    assert prepared.evaluate(predictions)["c_index"].value == pytest.approx(expected.value, abs=1e-12)
    intervals = prepared.intervals(predictions)
    low, high = intervals["c_index"].interval
    assert low < expected.value < high
    assert high - low == pytest.approx(3.92 * prepared.details(predictions)["c_index_null_sd"].value, rel=0.4)


def test_impossible_folds_give_a_reason_instead_of_a_number(
    cohort: pd.DataFrame, outcomes: Callable[..., pd.DataFrame], make_bags: type, predict: Predict
) -> None:
    prepared = task().prepare(cohort, make_bags({}))
    censored = predict(prepared, outcomes([1.0, 2.0], [0, 0]), torch.randn(2, prepared.head.out_dim))
    assert prepared.evaluate(censored)["c_index"].reason == "no_events"
    intervals = prepared.intervals(censored)
    assert intervals["c_index"].value is None
    assert intervals["c_index"].interval is None
    details = prepared.details(censored)
    assert details["c_index_null_sd"].reason == "no_comparable_pairs"
    assert details["uno_c"].reason == details["auc_over_time"].reason == "no_events"
    collapsed = predict(prepared, outcomes([1.0, 2.0], [1, 0]), torch.zeros(2, prepared.head.out_dim))
    assert prepared.evaluate(collapsed)["c_index"].reason == "collapsed"


def test_a_diverged_model_is_an_error_that_names_the_patients(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    prepared = task().prepare(cohort, make_bags({}))
    logits = torch.zeros(60, prepared.head.out_dim)
    logits[7, 0] = float("nan")
    with pytest.raises(DataError, match=r"not finite for 1 of 60 bags \(b7\)"):
        prepared.evaluate(predict(prepared, cohort, logits))


def test_risk_groups_are_cut_at_the_median_of_the_training_bags(
    cohort: pd.DataFrame, make_bags: type, predict: Predict
) -> None:
    fitted = task().prepare(cohort, make_bags({}))
    generator = torch.Generator().manual_seed(2)
    folds = []
    for _ in range(2):
        logits = torch.randn(60, fitted.head.out_dim, generator=generator)
        before = predict(fitted, cohort, logits)
        assert "high_risk" not in before.outputs
        assert fitted.figures([before]) == ()
        calibrated = fitted.calibrate(before)
        assert calibrated.fitted.risk_cut == np.median(before.outputs["risk"])
        after = predict(calibrated, cohort, logits)
        assert after.outputs["high_risk"].sum() == 30
        assert (after.outputs["risk"][after.outputs["high_risk"] == 1] > calibrated.fitted.risk_cut).all()
        folds.append(after)
    (figure,) = calibrated.figures(folds)
    json.dumps(figure.data, allow_nan=False)
    low, high = figure.data["groups"]
    assert (figure.kind, low["name"], high["name"], low["n"], high["n"]) == (
        "kaplan_meier", "low risk", "high risk", 60, 60,
    )  # fmt: skip
    assert low["at_risk"][0] == 60
    assert figure.data["time_unit"] == "months"
    time, event = np.tile(cohort["os_months"], 2), np.tile(cohort["event"], 2)
    group = np.concatenate([fold.outputs["high_risk"] for fold in folds])
    expected = log_rank(time, event, group, strata_B=np.repeat([0, 1], 60))
    assert figure.data["log_rank_p"] == pytest.approx(expected.value)


@pytest.mark.parametrize("settings", [{}, {"head": "hazard", "risk": "neg_rmst"}, {"censoring": "tail"}])
def test_the_state_holds_everything_that_gives_outputs_their_meaning(
    cohort: pd.DataFrame, make_bags: type, predict: Predict, settings: dict[str, Any]
) -> None:
    prepared = task(**settings).prepare(cohort, make_bags({}))
    logits = torch.randn(60, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    prepared = prepared.calibrate(predict(prepared, cohort, logits))
    state = json.loads(json.dumps(prepared.to_state(), allow_nan=False))
    assert state["config"]["time_unit"] == "months"
    assert state["event_polarity"].startswith("1 = event")
    restored = task(risk="vlsa_mean_time", bins={"count": 3}).restore(state)
    assert restored.head == prepared.head
    assert restored.to_state() == prepared.to_state()
    for name, value in predict(prepared, cohort, logits).outputs.items():
        np.testing.assert_array_equal(predict(restored, cohort, logits).outputs[name], value)


def test_a_stored_fold_from_table_to_targets(shared: Path, make_bags: type) -> None:
    patients = pd.read_csv(shared / "data/tcga_survival/tcga_ucec_patients.csv", index_col="patient_id")
    survival = task(expected_event_rate=0.156)
    survival.check(patients)
    prepared = survival.prepare(patients[patients["fold"] != 0], make_bags({}))
    stored = json.loads((shared / "golden/survival/tcga_bins.json").read_text())["cohorts"]["ucec"][0]
    assert prepared.head.out_dim == stored["K"]
    target = prepared.target(patients[patients["fold"] == 0])
    assert target["bin"].bincount(minlength=stored["K"]).tolist() == stored["test_counts"]


def test_a_censoring_column_is_the_event_column_turned_around(cohort: pd.DataFrame, make_bags: type) -> None:
    columns = LabelColumns(time="os_months", censor="censorship")
    turned = cohort.drop(columns="event").assign(censorship=1 - cohort["event"])
    config = SurvivalConfig(expected_event_rate=0.5)
    by_event, by_censor = config.build(COLUMNS), config.build(columns)
    by_censor.check(turned)
    assert list(by_censor.strata(turned)) == cohort["event"].tolist()
    prepared = by_censor.prepare(turned, make_bags({}))
    assert prepared.to_state() == by_event.prepare(cohort, make_bags({})).to_state()
    restored = by_censor.restore(prepared.to_state())
    assert restored.truth(turned)["event"].tolist() == cohort["event"].tolist()


def test_a_censoring_column_has_messages_of_its_own(
    outcomes: Callable[..., pd.DataFrame], caplog: pytest.LogCaptureFixture
) -> None:
    survival = SurvivalConfig(expected_event_rate=0.2).build(LabelColumns(time="os_months", censor="event"))
    with pytest.raises(DataError, match=r"neither 0 nor 1 .* use 0 where the event was observed and 1 where the"):
        survival.check(outcomes([1.0, 2.0], [0, 2]))
    survival.check(outcomes([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 1]))
    assert any("have event = 0" in line and "an event flag" in line for line in caplog.messages)
    with pytest.raises(ConfigError, match=r"data\.labels\.event: required .* data\.labels\.censor"):
        SurvivalConfig().build(LabelColumns(time="os_months"))
    with pytest.raises(ValueError, match="set one of them to null"):
        LabelColumns(time="t", event="e", censor="c")
