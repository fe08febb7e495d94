"""Comparisons of two models against scipy, closed forms and simulation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from asmil.errors import DataError
from asmil.metrics.classification import classification_metrics
from asmil.metrics.compare import ClassPredictions, RiskPredictions, compare_c, compare_classes
from asmil.metrics.delong import compare_auc_per_class
from asmil.metrics.differences import Difference, holm, with_holm
from asmil.metrics.resampling import paired_permutation
from asmil.metrics.survival import harrell_c, null_c_spread
from asmil.metrics.trainings import compare_folds, compare_seeds, mean_null_c_spread, seed_spread
from asmil.metrics.weighted import confusion_statistics
from tests.row_bootstrap import row_bootstrap

FIRST = [0.61, 0.70, 0.66, 0.58, 0.73]
SECOND = [0.55, 0.71, 0.60, 0.57, 0.65]


def _classes(seed: int, strength: float, *, num_classes: int = 3) -> ClassPredictions:
    labels_B = np.arange(90) // 2 % num_classes
    scores_BC = np.random.default_rng(seed).normal(size=(90, num_classes)) + strength * np.eye(num_classes)[labels_B]
    return ClassPredictions(
        bag_ids=[f"bag{b}" for b in range(90)],
        groups=[f"patient{b // 2}" for b in range(90)],
        labels_B=labels_B,
        probabilities_SBC=np.exp(scores_BC) / np.exp(scores_BC).sum(axis=1, keepdims=True),
        class_names=[f"c{c}" for c in range(num_classes)],
    )


def _risks(seed: int, noise: float, *, outcome_seed: int = 0) -> RiskPredictions:
    outcomes = np.random.default_rng(outcome_seed)
    hazard_B = outcomes.normal(size=120)
    time_B, censored_B = outcomes.exponential(np.exp(-hazard_B)), outcomes.exponential(2.0, size=120)
    return RiskPredictions(
        bag_ids=[f"bag{b}" for b in range(120)],
        groups=[f"patient{b}" for b in range(120)],
        folds=[b % 3 for b in range(120)],
        time_B=np.minimum(time_B, censored_B),
        event_B=(time_B <= censored_B).astype(int),
        risk_SB=hazard_B + noise * np.random.default_rng(seed).normal(size=120),
    )


def test_classifiers_are_compared_in_every_metric() -> None:
    first, second = _classes(1, 2.0), _classes(2, 0.8)
    found = compare_classes(first, second, resamples=2000)
    assert list(found) == [
        "accuracy", "macro_f1", "balanced_accuracy", "macro_auc", "auc[c0]", "auc[c1]", "auc[c2]",
    ]  # fmt: skip
    ours, theirs = (classification_metrics(m.probabilities_SBC, m.labels_B, m.class_names) for m in (first, second))
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auc"):
        assert found[name].value == pytest.approx(ours[name].value - theirs[name].value)

        def difference(rows: np.ndarray, name: str = name) -> float:
            one, other = (
                classification_metrics(m.probabilities_SBC[rows], m.labels_B[rows], m.class_names)[name].value
                for m in (first, second)
            )
            return one - other

        expected = row_bootstrap(difference, first.groups, resamples=300)
        assert found[name].interval == pytest.approx(expected, abs=0.12 * np.ptp(expected)), name
        assert found[name].p_value is not None
        assert found[name].p_value < 0.01
        assert (found[name].unit, found[name].num_units) == ("patients", 45)
    by_class = compare_auc_per_class(
        first.probabilities_SBC, second.probabilities_SBC, first.labels_B, first.class_names, groups=first.groups
    )
    assert [found[name] for name in by_class] == list(by_class.values())
    swapped = paired_permutation(
        confusion_statistics(first.labels_B, 3)["macro_f1"],
        first.probabilities_SBC.argmax(axis=1), second.probabilities_SBC.argmax(axis=1), first.groups,
        permutations=2000,
    )  # fmt: skip
    assert found["macro_f1"].p_value == swapped.p_value
    assert "permutation" in found["macro_f1"].method
    assert "clustered" in found["auc[c0]"].method


def test_two_classes_have_one_delong_area() -> None:
    found = compare_classes(_classes(1, 1.0, num_classes=2), _classes(2, 1.0, num_classes=2), resamples=500)
    assert list(found) == ["accuracy", "macro_f1", "balanced_accuracy", "auc"]


def test_a_model_does_not_differ_from_itself() -> None:
    model = _classes(1, 1.0)
    for name, difference in compare_classes(model, model, resamples=500).items():
        assert (difference.value, difference.p_value, difference.reason) == (0.0, 1.0, "identical"), name
        assert difference.interval is None
    risks = _risks(1, 1.0)
    found = compare_c(risks, risks, resamples=500)
    assert (found.value, found.p_value, found.reason) == (0.0, 1.0, "identical")


def test_what_cannot_be_compared_says_so() -> None:
    first, second = _classes(1, 1.0), _classes(2, 1.0)
    one_class = np.zeros(90, dtype=int)
    found = compare_classes(
        dataclasses.replace(first, labels_B=one_class), dataclasses.replace(second, labels_B=one_class), resamples=500
    )
    assert found["accuracy"].interval is not None
    for name in ("macro_f1", "balanced_accuracy", "macro_auc", "auc[c0]"):
        assert (found[name].value, found[name].p_value, found[name].reason) == (None, None, "one_class"), name
    two_of_three = first.labels_B % 2
    found = compare_classes(
        dataclasses.replace(first, labels_B=two_of_three), dataclasses.replace(second, labels_B=two_of_three),
        resamples=500,
    )  # fmt: skip
    assert (found["macro_f1"].reason, found["macro_auc"].reason) == ("absent_class", "absent_class")
    assert found["auc[c1]"].p_value is not None


def test_models_must_have_seen_the_same_bags() -> None:
    first, second = _classes(1, 1.0), _classes(2, 1.0)
    labels_B = second.labels_B.copy()
    labels_B[7] = (labels_B[7] + 1) % 3
    with pytest.raises(DataError, match=r"labels_B differ in 1 of 90 places \(first: row 7"):
        compare_classes(first, dataclasses.replace(second, labels_B=labels_B))
    with pytest.raises(DataError, match="90 and 89 bag_ids"):
        compare_classes(first, dataclasses.replace(second, bag_ids=second.bag_ids[:-1]))
    risks = _risks(1, 1.0)
    with pytest.raises(DataError, match="folds differ"):
        compare_c(risks, dataclasses.replace(risks, folds=[0] * 120))


def test_difference_of_c_is_the_mean_over_folds_resampled_within_them() -> None:
    first, second = _risks(1, 0.5), _risks(2, 2.0)
    folds = np.array(first.folds)

    def mean_c(model: RiskPredictions, rows: np.ndarray) -> float:
        parts = [rows[folds[rows] == fold] for fold in range(3)]
        return float(np.mean([harrell_c(model.time_B[p], model.event_B[p], model.risk_SB[p]).value for p in parts]))

    found = compare_c(first, second, resamples=4000)
    everyone = np.arange(120)
    assert (found.first, found.second) == pytest.approx((mean_c(first, everyone), mean_c(second, everyone)))
    expected = row_bootstrap(
        lambda rows: mean_c(first, rows) - mean_c(second, rows), first.groups, strata=first.folds, resamples=200
    )
    assert found.interval == pytest.approx(expected, abs=0.15 * np.ptp(expected))
    assert found.p_value == pytest.approx(2 / 4001, abs=0.01)
    assert (found.num_units, found.reason) == (120, None)


def test_patients_are_drawn_within_their_fold_so_nobody_may_be_in_two() -> None:
    first, second = _risks(1, 0.5), _risks(2, 1.0)
    groups = ["patient1", *first.groups[1:]]
    with pytest.raises(DataError, match="group 'patient1' lies in strata 0 and 1"):
        compare_c(dataclasses.replace(first, groups=groups), dataclasses.replace(second, groups=groups))


def test_a_fold_without_events_is_left_out_and_named() -> None:
    first, second = _risks(1, 0.5), _risks(2, 1.0)
    events_B = np.where(np.arange(120) % 3 == 1, 0, first.event_B)
    first, second = (dataclasses.replace(model, event_B=events_B) for model in (first, second))
    found = compare_c(first, second, resamples=500)
    assert (found.num_units, found.reason) == (80, "no_events")
    assert found.interval is not None
    nobody = [dataclasses.replace(model, event_B=np.zeros(120)) for model in (first, second)]
    found = compare_c(*nobody, resamples=500)
    assert (found.value, found.num_units, found.reason) == (None, 0, "no_events")
    constant = dataclasses.replace(second, event_B=events_B, risk_SB=np.zeros(120), folds=[1] * 120)
    assert compare_c(dataclasses.replace(first, folds=[1] * 120), constant, resamples=500).reason == "collapsed"


def test_bootstrap_of_c_holds_its_size() -> None:
    trials, rejected = 150, 0
    for trial in range(trials):
        first, second = (_risks(1000 + 2 * trial + model, 1.0, outcome_seed=trial) for model in range(2))
        p_value = compare_c(first, second, resamples=300, seed=trial).p_value
        rejected += p_value is not None and p_value < 0.05
    assert rejected / trials == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_folds_without_overlap_give_the_paired_t_test() -> None:
    expected = stats.ttest_rel(FIRST, SECOND)
    plain = compare_folds(FIRST, SECOND, test_per_train=1e-12)
    assert plain.p_value == pytest.approx(expected.pvalue)
    assert plain.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert plain.p_exact == pytest.approx(stats.wilcoxon(FIRST, SECOND, method="exact").pvalue)


def test_overlap_of_training_sets_widens_by_nadeau_and_bengios_factor() -> None:
    plain, corrected = (compare_folds(FIRST, SECOND, test_per_train=ratio) for ratio in (1e-12, 1 / 4))
    assert np.ptp(corrected.interval) / np.ptp(plain.interval) == pytest.approx(math.sqrt((1 / 5 + 1 / 4) / (1 / 5)))
    statistic = stats.ttest_rel(FIRST, SECOND).statistic / math.sqrt(1 + 5 / 4)
    assert corrected.p_value == pytest.approx(2 * stats.t.sf(statistic, 4))
    assert (corrected.unit, corrected.num_units) == ("folds", 5)


def test_signed_ranks_see_ranks_not_sizes() -> None:
    first, second = [0.51, 0.52, 0.53, 0.54, 0.5], [0.5, 0.5, 0.5, 0.5, 0.7]
    found = compare_folds(first, second, test_per_train=0.25)
    expected = stats.wilcoxon(np.subtract(first, second), method="exact").pvalue
    assert found.p_exact == pytest.approx(expected)
    assert expected < 1


def test_signed_ranks_of_five_folds_cannot_reach_five_percent() -> None:
    assert compare_folds([0.9, 0.8, 0.85, 0.95, 0.7], [0.1, 0.2, 0.3, 0.25, 0.5], test_per_train=0.25).p_exact == 1 / 16


def test_seeds_are_paired_by_seed() -> None:
    first = dict(zip((3, 1, 2, 5, 4), FIRST, strict=True)) | {9: 0.9, 10: None}
    second = dict(zip((3, 1, 2, 5, 4), SECOND, strict=True)) | {10: 0.8}
    found = compare_seeds(dict(sorted(first.items())), second, metric="macro_f1")
    expected = stats.ttest_rel(FIRST, SECOND)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    exact = stats.permutation_test(
        (np.subtract(FIRST, SECOND),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_exact == pytest.approx(exact.pvalue)
    assert (found.metric, found.unit, found.num_units, found.left_out) == ("macro_f1", "seeds", 5, 2)


def test_paired_t_over_seeds_holds_its_size() -> None:
    generator = np.random.default_rng(4)
    trials = 1000
    draws = generator.normal(size=(trials, 2, 10)) + generator.normal(size=(trials, 1, 10))
    p_values = [compare_seeds(*(dict(enumerate(d.tolist())) for d in pair), metric="f1").p_value for pair in draws]
    rejected = np.mean([p is not None and p < 0.05 for p in p_values])
    assert rejected == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_few_or_equal_folds_and_seeds_get_a_reason_not_a_number() -> None:
    two = compare_folds([0.6, 0.7, None], [0.5, 0.65, 0.6], test_per_train=0.25)
    assert (two.num_units, two.left_out, two.interval, two.p_value) == (2, 1, None, None)
    assert (two.reason, two.value) == ("too_few_folds", pytest.approx(0.075))
    none = compare_seeds({0: 0.5}, {1: 0.6}, metric="f1")
    assert (none.value, none.num_units, none.left_out, none.reason) == (None, 0, 2, "too_few_seeds")
    same = compare_folds(FIRST, FIRST, test_per_train=0.25)
    assert (same.p_value, same.reason, same.interval) == (1.0, "identical", None)
    shifted = compare_folds(FIRST, [value - 0.01 for value in FIRST], test_per_train=0.25)
    assert (shifted.p_value, shifted.reason, shifted.interval) == (None, "no_spread", None)
    with pytest.raises(DataError, match="the same folds of both models"):
        compare_folds(FIRST, FIRST[:-1], test_per_train=0.25)
    with pytest.raises(DataError, match="expected a positive number"):
        compare_folds(FIRST, SECOND, test_per_train=0)


def test_seed_spread_is_a_result_of_its_own() -> None:
    spread = seed_spread([0.7, 0.8, None, 0.75])
    assert (spread.mean, spread.sd) == pytest.approx((0.75, 0.05))
    assert (spread.lowest, spread.highest, spread.num_seeds, spread.left_out) == (0.7, 0.8, 3, 1)
    assert (seed_spread([0.7]).sd, seed_spread([0.7]).reason) == (None, "one_seed")
    assert (seed_spread([None]).mean, seed_spread([None]).reason) == (None, "no_seeds")


def test_holm_is_stepwise_monotone_and_skips_what_claims_nothing() -> None:
    # R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, max(0.04, 0.06).
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "none": None, "d": 0.005})
    assert list(found) == ["a", "b", "c", "none", "d"]
    assert found.pop("none") is None
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(DataError, match="p-value of 'a' is 2"):
        holm({"a": 2})


def test_holm_bounds_the_chance_of_any_false_claim() -> None:
    generator = np.random.default_rng(5)
    trials = 2000
    corrected = [holm({str(k): p for k, p in enumerate(generator.random(6).tolist())}) for _ in range(trials)]
    wrong = np.mean([min(p for p in found.values() if p is not None) < 0.05 for found in corrected])
    assert wrong == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_corrected_p_values_land_in_the_differences() -> None:
    models = {
        name: Difference("f1", 0.8, 0.7, 0.1, "t", "seeds", 5, p_value=p) for name, p in (("x", 0.02), ("y", 0.03))
    }
    assert [difference.p_holm for difference in with_holm(models).values()] == pytest.approx([0.04, 0.04])
    assert with_holm(models)["x"].p_value == 0.02


def test_null_spread_of_the_mean_c_is_that_of_random_scores() -> None:
    model = _risks(0, 1.0)
    parts = [np.arange(120) % 3 == fold for fold in range(3)]
    outcomes = [(model.time_B[rows], model.event_B[rows]) for rows in parts]
    generator = np.random.default_rng(6)
    drawn = [np.mean([harrell_c(*pair, generator.normal(size=40)).value for pair in outcomes]) for _ in range(600)]
    spreads = [null_c_spread(*outcome) for outcome in outcomes]
    spread = mean_null_c_spread([*spreads, None])
    assert spread == pytest.approx(np.std(drawn), rel=3 / math.sqrt(2 * 600))
    assert mean_null_c_spread(spreads[:1]) == pytest.approx(spreads[0])
    assert mean_null_c_spread([None]) is None
