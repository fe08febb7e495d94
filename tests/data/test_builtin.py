"""Built-in data sets: what they contain, that they are the same everywhere, and how they come into place."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sksurv.metrics import concordance_index_censored

from asmil.data import builtin
from asmil.data.builtin import resolve_store
from asmil.data.digits import write_digits
from asmil.data.simulated import harrell_c, write_cohort
from asmil.data.store import BagStore
from asmil.errors import ConfigError, DataError, EnvironmentProblem
from tests.data.builders import resolve_digits


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def digits(data_folder: Path) -> BagStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASMIL_DATA", str(data_folder))
        return BagStore.open(resolve_store("builtin:digits"))


@pytest.fixture(scope="module")
def cohort(data_folder: Path) -> BagStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASMIL_DATA", str(data_folder))
        return BagStore.open(resolve_store("builtin:cohort"))


def frame_of(store: BagStore) -> pd.DataFrame:
    labels = store.labels()
    assert labels is not None
    return labels


# --- digits ---


def test_digits_has_the_promised_bags(digits: BagStore) -> None:
    labels = frame_of(digits)
    assert list(labels.columns) == ["slide", "label", "split"]
    assert labels.groupby(["split", "label"]).size().to_dict() == {
        ("test", 0): 100,
        ("test", 1): 100,
        ("train", 0): 250,
        ("train", 1): 250,
    }
    sizes = np.array([digits.length(slide_id) for slide_id in digits.slide_ids])
    assert sizes.mean() == pytest.approx(10, abs=0.4)
    assert sizes.std() == pytest.approx(2, abs=0.4)
    assert (digits.info.dtype, digits.info.num_features, digits.info.simulated) == ("float32", 64, False)


def test_digits_labels_follow_from_the_instances_and_splits_share_no_image(digits: BagStore) -> None:
    images: dict[str, set[bytes]] = {"train": set(), "test": set()}
    for row in frame_of(digits).itertuples():
        bag = digits.read(row.slide)
        assert bag.instance_labels_N is not None
        assert int(bag.instance_labels_N.any()) == row.label
        pixels_ND = bag.features_ND.numpy()
        assert (pixels_ND.min(), pixels_ND.max()) == (0, 1)
        images[row.split] |= {image.tobytes() for image in pixels_ND}
    assert len(images["train"]) > 1000
    assert len(images["test"]) > 400
    assert not images["train"] & images["test"]


def test_digits_instances_marked_nine_look_like_nines(digits: BagStore) -> None:
    from sklearn.datasets import load_digits

    pixels_ND, digits_N = load_digits(return_X_y=True)
    nines = {image.tobytes() for image in (pixels_ND[digits_N == 9] / 16).astype(np.float32)}
    for slide_id in digits.slide_ids[::25]:
        bag = digits.read(slide_id)
        assert bag.instance_labels_N is not None
        is_nine = [image.tobytes() in nines for image in bag.features_ND.numpy()]
        assert bag.instance_labels_N.tolist() == is_nine


def test_digits_are_the_same_every_time(digits: BagStore, tmp_path: Path) -> None:
    write_digits(tmp_path / "again")
    assert BagStore.open(str(tmp_path / "again")).info.dataset_id == digits.info.dataset_id


# --- the simulated cohort ---


def test_cohort_is_marked_simulated_and_has_the_promised_shape(cohort: BagStore) -> None:
    info, labels = cohort.info, frame_of(cohort)
    patients = labels.groupby("patient").first()
    assert info.simulated
    assert (info.encoder, info.dtype, info.num_features) == ("simulated", "float16", 512)
    assert list(labels.columns) == ["slide", "patient", "os_months", "event", "age", "stage", "oracle_risk"]
    assert tuple(labels["slide"]) == cohort.slide_ids
    assert 0.36 * len(patients) >= 150
    assert (labels.groupby("patient").size() > 1).sum() > 40
    assert labels.groupby("patient")[["os_months", "event", "age", "oracle_risk"]].nunique().max().max() == 1
    assert patients["event"].mean() == pytest.approx(0.45, abs=0.03)
    assert 10 < patients["os_months"].median() < 25
    assert sum(shard.bytes for shard in info.shards) < 90e6
    lengths = np.array([cohort.length(slide_id) for slide_id in cohort.slide_ids])
    assert np.median(lengths) == pytest.approx(120, rel=0.1)
    assert np.log(lengths).std() == pytest.approx(0.5, abs=0.07)


def test_cohort_facts_hold_the_c_index_of_the_latent_risk(cohort: BagStore) -> None:
    patients = frame_of(cohort).groupby("patient").first()
    expected = concordance_index_censored(
        patients["event"].astype(bool), patients["os_months"], patients["oracle_risk"]
    )[0]
    assert cohort.info.facts["oracle_c_index"] == pytest.approx(expected, abs=1e-4)
    assert 0.75 < expected < 0.85


def test_share_of_aggressive_tiles_is_nearly_as_good_as_the_latent_risk(cohort: BagStore) -> None:
    labels = frame_of(cohort)
    shares = []
    for slide_id in labels["slide"]:
        truth = cohort.read(slide_id).instance_labels_N
        assert truth is not None
        shares.append(truth.float().mean().item())
    by_patient = labels.assign(share=shares).groupby("patient")
    patients = by_patient.first().assign(share=by_patient["share"].mean())
    columns = patients["os_months"], patients["event"]
    oracle = cohort.info.facts["oracle_c_index"]
    assert harrell_c(*columns, patients["share"]) > 0.5 + 0.9 * (oracle - 0.5)
    assert 0.55 < harrell_c(*columns, patients["age"]) < 0.65


def test_aggressive_tiles_can_be_told_from_the_others_and_lie_on_the_grid(cohort: BagStore) -> None:
    bags = [cohort.read(slide_id) for slide_id in cohort.slide_ids[:120]]
    features_MD = np.concatenate([bag.features_ND.numpy() for bag in bags]).astype(np.float64)
    truth_M = np.concatenate([bag.instance_labels_N.numpy() for bag in bags if bag.instance_labels_N is not None])
    half = len(truth_M) // 2
    targets = truth_M[:half] - truth_M[:half].mean()
    center_D = features_MD[:half].mean(axis=0)
    weights_D = np.linalg.lstsq(features_MD[:half] - center_D, targets, rcond=1e-6)[0]
    scores_M = (features_MD[half:] - center_D) @ weights_D
    positive, negative = scores_M[truth_M[half:] == 1], scores_M[truth_M[half:] == 0]
    assert (positive[:, None] > negative[None, :]).mean() > 0.95
    for bag in bags:
        assert bag.coords_N2 is not None
        coords_N2 = bag.coords_N2.numpy()
        assert len(np.unique(coords_N2, axis=0)) == len(coords_N2)
        assert not (coords_N2 % 512).any()


def test_cohort_is_the_same_every_time(cohort: BagStore, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again")
    assert BagStore.open(str(tmp_path / "again")).info.dataset_id == cohort.info.dataset_id


@pytest.mark.parametrize("seed", range(5))
def test_harrell_c_equals_the_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    time = pd.Series(generator.integers(1, 30, size=60).astype(float))
    event = pd.Series(generator.integers(0, 2, size=60))
    risk = pd.Series(generator.integers(0, 10, size=60).astype(float))
    time += np.arange(60) * 1e-3  # the reference treats tied times in its own way
    expected = concordance_index_censored(event.astype(bool), time, risk)[0]
    assert harrell_c(time, event, risk) == pytest.approx(expected, abs=1e-12)


# --- coming into place ---


def test_anything_else_is_returned_unchanged(tmp_path: Path) -> None:
    for store in ("data/tcga_blca", "s3://bucket/x", str(tmp_path)):
        assert resolve_store(store) == store


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'digit'; did you mean builtin:digits\? .* builtin:cohort, builtin:digits"):
        resolve_store("builtin:digit")


def test_second_use_finds_the_store_and_first_use_logs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ASMIL_DATA", str(tmp_path))
    with caplog.at_level(logging.INFO, logger="asmil"):
        path = resolve_store("builtin:digits")
        inode = Path(path).stat().st_ino
        assert resolve_store("builtin:digits") == path == str(tmp_path / "builtin/digits-v1")
    assert Path(path).stat().st_ino == inode
    assert [record.message.split(" in ")[0] for record in caplog.records] == [f"builtin:digits: built at {path}"]
    assert [item.name for item in (tmp_path / "builtin").iterdir()] == ["digits-v1"]


def test_default_folder_is_data_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASMIL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_store("builtin:digits") == "data/builtin/digits-v1"
    assert BagStore.open("data/builtin/digits-v1").info.num_bags == 700


def test_place_taken_by_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMIL_DATA", str(tmp_path))
    (tmp_path / "builtin/digits-v1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"digits-v1: exists but is no store \(dataset\.json is missing\); delete it"):
        resolve_store("builtin:digits")
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASMIL_DATA", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match=r"file/builtin: cannot serve as the folder of built-in data sets"):
        resolve_store("builtin:digits")


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path) -> None:
        directory.mkdir()
        (directory / "part").touch()
        raise DataError("out of digits")

    monkeypatch.setenv("ASMIL_DATA", str(tmp_path))
    monkeypatch.setattr(builtin, "BUILTIN", {"digits": fail})
    with pytest.raises(DataError, match="out of digits"):
        resolve_store("builtin:digits")
    assert list((tmp_path / "builtin").iterdir()) == []


def test_the_slower_of_two_builders_takes_the_store_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "builtin/digits-v1"

    def be_overtaken(directory: Path) -> None:
        write_digits(directory)
        write_digits(place)

    monkeypatch.setenv("ASMIL_DATA", str(tmp_path))
    monkeypatch.setattr(builtin, "BUILTIN", {"digits": be_overtaken})
    with caplog.at_level(logging.INFO, logger="asmil"):
        assert resolve_store("builtin:digits") == str(place)
    assert "built by another process meanwhile" in caplog.text
    assert list((tmp_path / "builtin").iterdir()) == [place]


def test_builders_at_the_same_time_end_with_one_good_store(tmp_path: Path, digits: BagStore) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=resolve_digits, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    expected = (digits.info.dataset_id, digits.length(digits.slide_ids[-1]))
    assert found == [expected] * 2
    assert [item.name for item in (tmp_path / "builtin").iterdir()] == ["digits-v1"]
