"""Rows 8 to 10: values, lengths and coordinates that a conversion must not let through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from asmil.data.store import BagStore
from tests.data.foreign import tiles, write_clam, write_trident
from tests.faults.support import INPUT, Commands, snapshot
from tests.run_support import CLASSIFICATION, NUM_FEATURES, class_table, history_of, write_experiment

FEATURES_ND, COORDS_N2 = tiles(5)
RANGE = 65504.0  # of float16


def with_values(values: Mapping[tuple[int, int], float]) -> np.ndarray:
    features_ND = FEATURES_ND.copy()
    for place, value in values.items():
        features_ND[place] = value
    return features_ND


BAD = {
    "nan": ({(2, 0): np.nan, (4, 1): np.nan}, "2 feature values are NaN or infinite and 0 exceed", "first in row 2"),
    "inf": ({(3, 5): -np.inf}, "1 feature values are NaN or infinite and 0 exceed", "first in row 3"),
    "big": ({(1, 0): 1e5, (4, 0): -7e4}, "0 feature values are NaN or infinite and 2 exceed", "first in row 1"),
}


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_clam(folder / "good.h5", FEATURES_ND, COORDS_N2)
    for name, (values, *_) in BAD.items():
        write_clam(folder / f"{name}.h5", with_values(values), COORDS_N2)
    return folder


def test_row_08_nan_infinity_and_overflow_name_slide_count_and_first_row(
    slides: Path, tmp_path: Path, commands: Commands
) -> None:
    before = snapshot(tmp_path)
    outcome = commands.pack(slides, "--out", tmp_path / "store", "--workers", 1)
    outcome.refused(INPUT, "3 slides or files cannot be converted", "leave them out with --skip-bad")
    for name, (_, count, row) in BAD.items():
        outcome.refused(INPUT, f"{name}: {count} the float16 range of ±65504, {row}; ")
    assert snapshot(tmp_path) == before


def test_row_08_overflow_is_clipped_on_request_only_and_counted(
    slides: Path, tmp_path: Path, commands: Commands
) -> None:
    words = [slides, "--out", tmp_path / "store", "--workers", 1, "--clip"]
    outcome = commands.pack(*words)
    outcome.refused(INPUT, "2 slides or files cannot be converted", "nan: 2 feature values", "inf: 1 feature values")
    commands.pack(*words, "--skip-bad").succeeded("clipped: 2 values of big", "left out: inf, nan")
    store = BagStore.open(str(tmp_path / "store"))
    assert store.slide_ids == ("big", "good")
    assert store.info.provenance["clipped"] == {"big": 2}
    assert store.info.provenance["left_out"].keys() == {"nan", "inf"}
    expected_ND = with_values({(1, 0): RANGE, (4, 0): -RANGE}).astype("f2")
    np.testing.assert_array_equal(store.read("big").features_ND.numpy(), expected_ND)


def test_row_09_a_slide_without_instances_is_listed_as_left_out(tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_trident(folder / "empty.h5", FEATURES_ND[:0], COORDS_N2[:0])
    alone = commands.pack(folder, "--out", tmp_path / "store", "--workers", 1)
    alone.refused(INPUT, "none of the sources holds a slide with tissue (empty)", "nothing to convert")
    assert not (tmp_path / "store").exists()
    write_trident(folder / "one.h5", FEATURES_ND[:1], COORDS_N2[:1])
    commands.pack(folder, "--out", tmp_path / "store", "--workers", 1).succeeded("no tissue, left out: empty")
    info = json.loads((tmp_path / "store" / "dataset.json").read_text())
    assert info["provenance"]["no_tissue"] == ["empty"]
    assert (info["num_bags"], info["num_instances"]) == (1, 1)


def test_row_09_bags_of_one_instance_train(tmp_path: Path, commands: Commands) -> None:
    rng = np.random.default_rng(0)
    bags = {f"s{index:02d}": rng.normal(size=(1, NUM_FEATURES)).astype("f4") for index in range(24)}
    tiny = write_experiment(tmp_path, CLASSIFICATION, bags, class_table(bags))
    commands.run(tiny.file, "--epochs", 1, "--out", tmp_path / "out").succeeded("validation (epoch 1): ")
    assert np.isfinite(history_of(tmp_path / "out")[1]["loss"])


@pytest.mark.parametrize("num_coords", [4, 6])
def test_row_10_another_number_of_coordinates_than_features_names_both(
    tmp_path: Path, commands: Commands, num_coords: int
) -> None:
    path = tmp_path / "slide_1.h5"
    write_clam(path, FEATURES_ND, np.zeros((num_coords, 2), int))
    before = snapshot(tmp_path)
    commands.pack(path, "--out", tmp_path / "store", "--workers", 1).refused(
        INPUT,
        f"{path}: /coords has shape [{num_coords}, 2], expected [5, 2] for 5 rows of features",
        "coordinates and features do not belong together",
    )
    assert snapshot(tmp_path) == before
