"""`python -m asmil.compare`: what is refused, what is compared over which unit, and a comparison from the files up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from asmil.compare import main
from asmil.compare_figures import compare_runs, null_spread, overlap_ratio, spreads_over_seeds
from asmil.compare_runs import FinishedRun, trainings_of_all
from asmil.data.config import LabelColumns, ProtocolConfig
from asmil.engine.jobs import Job
from asmil.engine.protocols import Predictions
from asmil.errors import ConfigError, DataError
from asmil.evaluation import Evaluation, load_predictions, save_predictions
from asmil.metrics.delong import auc_covariance
from asmil.metrics.survival import null_c_spread
from tasks.classification import ClassificationConfig
from tests.row_bootstrap import row_bootstrap
from tests.run_support import classification, refusal

FOLDS, SEEDS, BAGS = 3, 4, 20


def class_run(name: str, strength: float, *, monitor: str = "macro_auc", **changes: Any) -> FinishedRun:
    """Twenty bags per fold of two classes, whose scores are drawn anew for every training."""
    task = ClassificationConfig(classes=("a", "b")).build(LabelColumns(target="label"))
    prepared = task.restore(
        {"config": {"kind": "classification", "monitor": monitor}, "classes": ["a", "b"], "class_weights": None,
         "temperature": None, "threshold": None}
    )  # fmt: skip
    trainings = {}
    for job in [Job(0, fold, seed) for fold in range(FOLDS) for seed in range(SEEDS)]:
        rng = np.random.default_rng([ord(name[0]), job.fold, job.seed])
        label_B = np.arange(BAGS) % 2
        score_B = rng.normal(size=BAGS) + strength * label_B
        positive_B = 1 / (1 + np.exp(-score_B))
        ids = tuple(f"fold{job.fold}-bag{bag}" for bag in range(BAGS))
        outputs = {"probabilities": np.stack([1 - positive_B, positive_B], axis=1)}
        trainings[job] = Evaluation(job.seed, prepared, Predictions(ids, ids, outputs, {"label": label_B}))
    facts = {"task": "classification", "data id": "d", "split": "s", "labels id": "l"} | changes.pop("facts", {})
    return FinishedRun(name, Path(name), facts, False, ProtocolConfig(folds=FOLDS), trainings, (), **changes)


def jobs_of(run: FinishedRun) -> list[Job]:
    return list(run.trainings)


def values(run: FinishedRun, metric: str) -> np.ndarray:
    """[folds, seeds]"""
    found = [one.prepared.evaluate(one.predictions)[metric].value for one in run.trainings.values()]
    return np.array(found).reshape(FOLDS, SEEDS)


@pytest.fixture(scope="module")
def runs() -> tuple[FinishedRun, FinishedRun]:
    return class_run("first", 1.5), class_run("second", 0.5)


def test_every_unit_compares_the_mean_that_is_reported(runs: tuple[FinishedRun, FinishedRun]) -> None:
    found = compare_runs(*runs, jobs_of(runs[0]), "test", resamples=500)
    for metric in ("accuracy", "macro_f1", "macro_auc", "balanced_accuracy"):
        means = [values(run, metric).mean() for run in runs]
        for unit, number in ((found.patients, FOLDS * BAGS), (found.folds, FOLDS), (found.seeds, SEEDS)):
            assert (unit[metric].first, unit[metric].second) == pytest.approx(means)
            assert unit[metric].num_units == number
            assert unit[metric].metric == metric


def test_folds_are_paired_with_the_corrected_t_and_seeds_with_the_plain_one(
    runs: tuple[FinishedRun, FinishedRun],
) -> None:
    found = compare_runs(*runs, jobs_of(runs[0]), "test", resamples=500)
    difference_FS = values(runs[0], "macro_auc") - values(runs[1], "macro_auc")
    over_folds = difference_FS.mean(axis=1)
    statistic = over_folds.mean() / np.sqrt((1 / FOLDS + 1 / 2) * over_folds.var(ddof=1))
    assert found.folds["macro_auc"].p_value == pytest.approx(2 * stats.t.sf(abs(statistic), FOLDS - 1))
    expected = stats.ttest_1samp(difference_FS.mean(axis=0), 0)
    assert found.seeds["macro_auc"].p_value == pytest.approx(expected.pvalue)


def test_delong_takes_the_mean_over_seeds_and_ranks_no_two_folds_together(
    runs: tuple[FinishedRun, FinishedRun],
) -> None:
    found = compare_runs(*runs, jobs_of(runs[0]), "test", resamples=500).patients["macro_auc"]
    variance = 0.0
    contrast_M = np.repeat([1 / SEEDS, -1 / SEEDS], SEEDS)
    for fold in range(FOLDS):
        scores_MB = np.stack(
            [run.trainings[Job(0, fold, seed)].predictions.outputs["probabilities"][:, 1]
             for run in runs for seed in range(SEEDS)]
        )  # fmt: skip
        variance += contrast_M @ auc_covariance(scores_MB, np.arange(BAGS) % 2)[1] @ contrast_M / FOLDS**2
    assert found.value is not None
    assert found.interval == pytest.approx(
        (found.value - 1.959963985 * variance**0.5, found.value + 1.959963985 * variance**0.5)
    )
    assert "DeLong" in found.method


def test_a_metric_without_a_fast_form_is_measured_on_drawn_bags() -> None:
    name = "macro_f1+macro_auc"
    pair = [class_run(run, strength, monitor=name) for run, strength in (("first", 1.5), ("second", 0.5))]
    jobs = [Job(0, fold, 0) for fold in range(FOLDS)]
    found = compare_runs(*pair, jobs, "test", resamples=500).patients[name]

    def difference(rows: np.ndarray) -> float:
        parts = []
        for fold, job in enumerate(jobs):
            drawn = rows[rows // BAGS == fold] % BAGS
            for sign, run in zip((1, -1), pair, strict=True):
                one = run.trainings[job]
                scores_BC, label_B = one.predictions.outputs["probabilities"][drawn], np.arange(BAGS)[drawn] % 2
                ids = tuple(map(str, drawn))
                part = Predictions(ids, ids, {"probabilities": scores_BC}, {"label": label_B})
                parts.append(sign * one.prepared.evaluate(part)[name].value / FOLDS)
        return sum(parts)

    everyone = np.arange(FOLDS * BAGS)
    assert found.value == pytest.approx(difference(everyone))
    folds = (everyone // BAGS).tolist()
    expected = row_bootstrap(difference, everyone.tolist(), strata=folds, resamples=500)
    assert found.interval == pytest.approx(expected, abs=0.15 * np.ptp(expected))


def test_the_permutation_swaps_a_patient_under_all_seeds_at_once() -> None:
    first, second = class_run("first", 2.0), class_run("second", 0.0)
    jobs = [Job(0, 0, seed) for seed in range(SEEDS)]
    few = 6

    def cut(run: FinishedRun) -> FinishedRun:
        kept = {}
        for job in jobs:
            old = run.trainings[job].predictions
            new = Predictions(
                old.bag_ids[:few], old.groups[:few], {"probabilities": old.outputs["probabilities"][:few]},
                {"label": old.truth["label"][:few]},
            )  # fmt: skip
            kept[job] = Evaluation(job.seed, run.trainings[job].prepared, new)
        return FinishedRun(run.name, run.path, run.facts, False, run.protocol, kept, ())

    pair = [cut(run) for run in (first, second)]
    found = compare_runs(*pair, jobs, "test", resamples=500).patients["accuracy"]
    right_SB = [
        np.stack([one.predictions.outputs["probabilities"].argmax(1) == one.predictions.truth["label"]
                  for one in run.trainings.values()]) for run in pair
    ]  # fmt: skip
    gain_B = (right_SB[0].astype(float) - right_SB[1]).mean(axis=0)
    signs = np.array(np.meshgrid(*[[-1, 1]] * few)).reshape(few, -1)
    sums = np.abs(gain_B @ signs)
    assert found.p_value == pytest.approx(np.mean(sums >= abs(gain_B.sum()) - 1e-9))
    assert "exact" in found.method


def test_a_fold_without_a_value_is_left_out_of_all_three(runs: tuple[FinishedRun, FinishedRun]) -> None:
    pair = [class_run("first", 1.5), class_run("second", 0.5)]
    for run in pair:
        for seed in range(SEEDS):
            run.trainings[Job(0, 1, seed)].predictions.truth["label"][:] = 0
    found = compare_runs(*pair, jobs_of(pair[0]), "test", resamples=500)
    expected = values(runs[0], "macro_auc")[[0, 2]].mean()
    for unit in (found.patients, found.folds, found.seeds):
        assert unit["macro_auc"].first == pytest.approx(expected)
    assert found.patients["macro_auc"].reason == "one_class"
    assert found.patients["macro_auc"].num_units == 2 * BAGS
    assert found.folds["macro_auc"].left_out == 1


def test_spread_over_seeds_is_that_of_the_means_over_folds(runs: tuple[FinishedRun, FinishedRun]) -> None:
    found = spreads_over_seeds(runs[0], jobs_of(runs[0]))["accuracy"]
    assert found.sd == pytest.approx(values(runs[0], "accuracy").mean(axis=0).std(ddof=1))


@pytest.mark.parametrize(
    ("protocol", "part", "expected"),
    [
        ({"folds": 5}, "test", 1 / 4),
        ({"scheme": "holdout", "test_fraction": 0.2, "repeats": 4}, "test", 0.25),
        ({"scheme": "given"}, "test", 1 / 2),
        ({"folds": 5, "epoch_rule": "best_validation", "inner": {"holdout": 0.5}}, "test", 0.5),
        ({"folds": 5, "inner": {"holdout": 0.2}}, "validation", 0.25),
        ({"folds": 5, "inner": {"folds": 3}}, "validation", 0.5),
    ],
)
def test_the_ratio_of_test_to_training_patients(protocol: dict[str, Any], part: Any, expected: float) -> None:
    run = class_run("first", 1.0)
    run = FinishedRun(run.name, run.path, run.facts, False, ProtocolConfig(**protocol), run.trainings, ())
    assert overlap_ratio(run, jobs_of(run), part) == pytest.approx(expected)


@pytest.mark.parametrize("field", ["task", "data id", "split", "labels id"])
def test_other_data_labels_or_splits_are_refused(runs: tuple[FinishedRun, FinishedRun], field: str) -> None:
    other = class_run("other", 1.0, facts={field: "another"})
    with pytest.raises(DataError, match=rf"{field} is '\w+' in first \(first\) and 'another' in other"):
        trainings_of_all([runs[0], other], common=False)


def changed(run: FinishedRun, job: Job, change: Callable[[Predictions], Predictions]) -> FinishedRun:
    old = run.trainings[job]
    trainings = {**run.trainings, job: Evaluation(old.seed, old.prepared, change(old.predictions))}
    return FinishedRun(run.name, run.path, run.facts, run.simulated, run.protocol, trainings, run.missing)


def test_other_bags_and_other_truth_are_refused(runs: tuple[FinishedRun, FinishedRun]) -> None:
    def renamed(old: Predictions) -> Predictions:
        return Predictions(("x", *old.bag_ids[1:]), old.groups, old.outputs, old.truth)

    def relabelled(old: Predictions) -> Predictions:
        return Predictions(old.bag_ids, old.groups, old.outputs, {"label": np.r_[1, old.truth["label"][1:]]})

    with pytest.raises(DataError, match=r"bag_ids differ in repeat0-fold1-seed2 of first and second \(first: 'fold1"):
        trainings_of_all([runs[0], changed(runs[1], Job(0, 1, 2), renamed)], common=False)
    with pytest.raises(DataError, match=r"label differs in repeat0-fold1-seed2 .*bag 'fold1-bag0', 0 and 1"):
        trainings_of_all([runs[0], changed(runs[1], Job(0, 1, 2), relabelled)], common=False)


def without(run: FinishedRun, jobs: Sequence[Job]) -> FinishedRun:
    kept = {job: one for job, one in run.trainings.items() if job not in jobs}
    return FinishedRun(run.name, run.path, run.facts, run.simulated, run.protocol, kept, tuple(jobs))


def test_missing_trainings_are_named_or_left_out_loudly(runs: tuple[FinishedRun, FinishedRun]) -> None:
    gone = without(runs[1], [Job(0, 2, 3)])
    with pytest.raises(DataError, match="second lacks repeat0-fold2-seed3; finish them with --resume, or give --comm"):
        trainings_of_all([runs[0], gone], common=False)
    jobs, left_out = trainings_of_all([runs[0], gone], common=True)
    assert {job.seed for job in jobs} == {0, 1, 2}
    assert len(jobs) == 9
    assert left_out == [f"{name}: repeat0-fold0-seed3, repeat0-fold1-seed3, repeat0-fold2-seed3" for name in
                        ("first", "second")]  # fmt: skip
    half = [Job(0, 0, seed) for seed in range(SEEDS)]
    rest = [job for job in jobs_of(runs[0]) if job not in half]
    with pytest.raises(DataError, match="no seed in common"):
        trainings_of_all([without(runs[0], half), without(runs[1], rest)], common=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs of one experiment on the same folds, their names as they are printed."""
    folder = tmp_path_factory.mktemp("compare")
    tiny = classification(folder, simulated=True, changes={"train.epochs": 1})
    options = ("--folds", "all", "--seeds", 2, "--test")
    return {
        "with": tiny.run(*options, "--out", folder / "with"),
        "without": tiny.run(*options, "--set", "model.anchor=null", "--out", folder / "without"),
        "faster": tiny.run(*options, "--set", "train.lr=0.1", "--out", folder / "faster"),
    }


def test_finished_runs_are_compared_from_their_files(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main([*map(str, finished.values()), "--json", str(tmp_path / "c.json"), "--resamples", "300"])
    told = capsys.readouterr().out
    assert told.startswith("SIMULATED DATA")
    assert "test part, 3 outer folds with 2 seeds each" in told
    assert "with (first) minus without (second)" in told
    tree = json.loads((tmp_path / "c.json").read_text())
    reported = json.loads((finished["faster"] / "test.json").read_text())["metrics"]
    assert list(tree["comparisons"]) == ["without", "faster"]
    for unit in ("patients", "folds", "seeds"):
        found = {name: pair[unit]["accuracy"] for name, pair in tree["comparisons"].items()}
        assert found["faster"]["second"] == pytest.approx(reported["accuracy"])
        p_values = [one["p_value"] for one in found.values() if one["p_value"] is not None]
        smallest = min(found.values(), key=lambda one: 2 if one["p_value"] is None else one["p_value"])
        if p_values:
            assert smallest["p_holm"] == pytest.approx(min(1.0, smallest["p_value"] * len(p_values)))
    assert len(tree["trainings"]) == 6
    assert tree["simulated"] is True
    assert tree["runs"]["with"]["labels id"]
    assert tree["null_c_spread"] is None


def test_an_interrupted_run_says_which_training_it_lacks(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(finished["without"], tmp_path / "broken")
    shutil.rmtree(broken / "test" / "repeat0-fold1-seed8")
    words = [str(finished["with"]), str(broken)]
    refused = refusal(lambda: main(words), capsys)
    assert refused.code == 2
    assert "broken lacks repeat0-fold1-seed8" in refused.message
    both = shutil.copytree(broken, tmp_path / "both")
    refused = refusal(lambda: main([str(both), str(broken)]), capsys)
    assert "both lacks repeat0-fold1-seed8; broken lacks repeat0-fold1-seed8" in refused.message
    main([*words, "--common", "--resamples", "200"])
    told = capsys.readouterr().out
    assert "NOT ALL TRAININGS" in told
    assert "3 outer folds with 1 seed each" in told


def test_a_search_is_read_as_its_refits(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = tmp_path / "search"
    for variant, source in (("best", "with"), ("without_anchor", "without")):
        for job in (finished[source] / "test").iterdir():
            folder = shutil.copytree(job, search / "models" / variant / job.name)
            (folder / "predictions.npz").rename(folder / "test.npz")
    shutil.copy(finished["with"] / "experiment.yaml", search)
    outputs = []
    for words in ([search, search / "models/without_anchor"], [finished["with"], finished["without"]]):
        capsys.readouterr()
        main([*map(str, words), "--names", "a,b", "--resamples", "200"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_runs_of_one_fold_are_compared_over_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = classification(tmp_path, changes={"train.epochs": 1})
    one, other = (tiny.run("--fold", 1, "--test", "--set", f"train.lr={lr}") for lr in (0.01, 0.1))
    capsys.readouterr()
    main([str(one), str(other), "--json", str(tmp_path / "c.json"), "--resamples", "200"])
    tree = json.loads((tmp_path / "c.json").read_text())
    assert tree["trainings"] == ["repeat0-fold1-seed7"]
    pair = tree["comparisons"][other.name]
    assert (pair["folds"], pair["seeds"]) == ({}, {})
    reported = json.loads((other / "result.json").read_text())["metrics"]["test"]
    assert pair["patients"]["accuracy"]["second"] == pytest.approx(reported["accuracy"])


def test_what_cannot_be_compared_is_refused_in_one_paragraph(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = str(finished["with"]), str(finished["without"])
    for words, message in (
        ([one], "RUN: got 1; give two run directories"),
        ([one, one], "the same run twice"),
        ([one, other, "--names", "a"], "--names: got 'a'; give 2 different names"),
        ([one, other, "--names", "a,a"], "give 2 different names"),
        ([one, other, "--resamples", "20"], "--resamples: got 20; 200 or more"),
        ([one, str(tmp_path / "none")], "no such directory"),
        ([one, str(tmp_path)], "holds no test predictions"),
        ([one, other, "--part", "validation"], "holds no validation predictions"),
    ):
        refused = refusal(lambda words=words: main(words), capsys)
        assert refused.code == ConfigError.exit_code
        assert message in refused.message


def test_survival_runs_carry_the_spread_of_a_random_score() -> None:
    run = class_run("first", 1.0)
    rng = np.random.default_rng(0)
    outcomes = {fold: (rng.exponential(size=BAGS), rng.integers(0, 2, BAGS)) for fold in range(FOLDS)}
    trainings = {}
    for job, one in run.trainings.items():
        time_B, event_B = outcomes[job.fold]
        predictions = Predictions(
            one.predictions.bag_ids, one.predictions.groups, {"risk": rng.normal(size=BAGS)},
            {"time": time_B, "event": event_B},
        )  # fmt: skip
        trainings[job] = Evaluation(job.seed, one.prepared, predictions)
    survival = FinishedRun("s", Path("s"), run.facts, False, run.protocol, trainings, ())
    expected = np.sqrt(sum(null_c_spread(*pair) ** 2 for pair in outcomes.values())) / FOLDS
    assert null_spread(survival, jobs_of(survival)) == pytest.approx(expected)
    assert null_spread(run, jobs_of(run)) is None


def test_damaged_predictions_are_an_integrity_error(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(finished["without"], tmp_path / "broken")
    file = broken / "test" / "repeat0-fold0-seed7" / "predictions.npz"
    save_predictions(file, load_predictions(file))
    file.write_bytes(file.read_bytes()[:200])
    refused = refusal(lambda: main([str(finished["with"]), str(broken)]), capsys)
    assert refused.code == 3
    assert "damaged predictions" in refused.message
