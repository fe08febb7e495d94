"""One file per slide in NumPy or CSV: plain .npy and .npz, HistoSSLscaling's array, DSMIL's table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.arrays import stored_features
from asmil.data.sources import ContentError, UnknownContentError, detect
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_arrays import write_dsmil, write_histossl
from tests.data.foreign_classic import write_lines
from tests.data.reading import read

FEATURES_ND, COORDS_N2 = tiles(40)


# --- .npy ---


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_order_and_byte_order(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "TCGA-1.x.npy", np.asarray(FEATURES_ND, dtype, order))
    name, source, (bag,) = read(tmp_path / "TCGA-1.x.npy")
    assert (name, bag.bag_id, bag.coords_N2) == ("npy", "TCGA-1.x", None)
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND.astype(dtype))
    assert bag.features_ND.dtype == np.dtype(dtype).newbyteorder("=")
    assert any("give --encoder and --mpp" in note for note in source.notes)


def test_npy_with_a_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", FEATURES_ND[None])
    np.testing.assert_array_equal(read(tmp_path / "s.npy")[2][0].features_ND, FEATURES_ND)


@pytest.mark.parametrize("shape", [(0,), (0, 6)])
def test_npy_without_rows_is_a_slide_without_tissue(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "s.npy", np.empty(shape, "f4"))
    _, source, bags = read(tmp_path / "s.npy")
    assert (source.no_tissue, bags) == (("s",), [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(768, "f4"), r"rank 1 \(768 values\): one vector for the whole slide, not patch features"),
        (np.ones((5, 6), "i8"), r"dtype int64, expected features as float16"),
        (np.ones((5, 6), bool), r"dtype bool, expected features"),
        (np.ones((2, 5, 6), "f4"), r"shape \[2, 5, 6\], expected one row per tile"),
        (np.ones((5, 0), "f4"), r"shape \[5, 0\], expected one row per tile"),
    ],
)
def test_npy_that_is_no_feature_matrix_is_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "s.npy", values)
    with pytest.raises(ContentError, match=message):
        read(tmp_path / "s.npy")


def test_features_of_a_whole_classic_set_are_no_slide(tmp_path: Path) -> None:
    for part in ("features", "bag_ids"):
        np.save(tmp_path / f"MUSK1_{part}.npy", FEATURES_ND)
    with pytest.raises(ContentError, match=r"MUSK1_bag_ids.npy beside it .* give the folder instead"):
        read(tmp_path / "MUSK1_features.npy")


# --- .npz ---


@pytest.mark.parametrize("key", ["features", "feats", "embeddings", "arr_0", "anything"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_under_a_known_name_or_as_the_only_array(tmp_path: Path, key: str, save: Callable[..., None]) -> None:
    save(tmp_path / "s.npz", **{key: FEATURES_ND})
    name, _, (bag,) = read(tmp_path / "s.npz")
    assert (name, bag.bag_id, bag.coords_N2) == ("npz", "s", None)
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)


def test_npz_with_coordinates_and_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", feats=FEATURES_ND, coords=COORDS_N2, scores=np.ones(40))
    _, source, (bag,) = read(tmp_path / "s.npz")
    np.testing.assert_array_equal(bag.coords_N2, COORDS_N2)
    assert source.facts.coord_unit is None
    assert "note: not read from the .npz files: scores" in source.notes


def test_npz_with_several_feature_sets_is_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", features=FEATURES_ND, embeddings=2 * FEATURES_ND)
    with pytest.raises(ContentError, match="holds 2 feature sets: features, embeddings; say which with --features"):
        read(tmp_path / "s.npz")
    with pytest.raises(ContentError, match="holds no features 'feats'; it has features, embeddings"):
        read(tmp_path / "s.npz", features="feats")
    np.testing.assert_array_equal(read(tmp_path / "s.npz", features="embeddings")[2][0].features_ND, 2 * FEATURES_ND)


@pytest.mark.parametrize("content", [{"coords": COORDS_N2}, {"a": FEATURES_ND, "b": COORDS_N2}])
def test_npz_without_features_is_unknown(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "s.npz", **content)
    with pytest.raises(UnknownContentError):
        detect(tmp_path / "s.npz")


def test_npz_coordinates_of_another_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", features=FEATURES_ND, coords=COORDS_N2[:39])
    with pytest.raises(ContentError, match=r"coords is int64 \[39, 2\], expected numbers of shape \[40, 2\]"):
        read(tmp_path / "s.npz")


def test_npz_slide_vector_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", features=np.ones(768, "f4"))
    with pytest.raises(ContentError, match="one vector for the whole slide"):
        read(tmp_path / "s.npz")


# --- HistoSSLscaling ---

ADDRESSES_N3 = np.column_stack([np.repeat([15, 16], 20), np.arange(40) % 7, np.arange(40) // 7])


def test_histossl_columns_are_split_into_addresses_and_features(tmp_path: Path) -> None:
    write_histossl(tmp_path / "TCGA-1.x" / "features.npy", FEATURES_ND, ADDRESSES_N3)
    name, source, (bag,) = read(tmp_path / "TCGA-1.x" / "features.npy")
    assert (name, bag.bag_id) == ("histossl-npy", "TCGA-1.x")
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)
    np.testing.assert_array_equal(bag.coords_N2, ADDRESSES_N3[:, 1:])
    assert (source.facts.coord_unit, source.facts.coord_origin) == ("deepzoom_tiles", "top_left")
    assert source.notes == (
        "note: coordinates count tiles at deep-zoom level 15, 16; the store does not keep the level",
    )


def test_histossl_file_that_is_a_link_is_named_after_the_folder_of_the_link(tmp_path: Path) -> None:
    write_histossl(tmp_path / "blobs" / "8f3a.npy", FEATURES_ND, ADDRESSES_N3)
    (tmp_path / "snapshots/TCGA-1.x").mkdir(parents=True)
    link = tmp_path / "snapshots/TCGA-1.x/features.npy"
    link.symlink_to("../../blobs/8f3a.npy")
    assert read(link)[2][0].bag_id == "TCGA-1.x"


def test_histossl_file_of_another_name_gives_the_id(tmp_path: Path) -> None:
    write_histossl(tmp_path / "TCGA-2.npy", FEATURES_ND, ADDRESSES_N3)
    assert read(tmp_path / "TCGA-2.npy")[2][0].bag_id == "TCGA-2"


@pytest.mark.parametrize(
    "change",
    [
        lambda at_N3: at_N3 + np.array([0, 0.5, 0]),
        lambda at_N3: at_N3 - [0, 1, 0],
        lambda at_N3: at_N3 * [0, 1, 1],
        lambda at_N3: at_N3 * [3, 1, 1],
        lambda at_N3: at_N3 * [1, 0, 1],
        lambda at_N3: np.where(at_N3 == 15, np.nan, at_N3),
        lambda at_N3: at_N3 + np.array([0, 1 << 31, 0]),
        lambda at_N3: np.where(np.arange(40)[:, None] == 39, 0.5, at_N3),
        lambda at_N3: np.column_stack([10 + np.arange(40) % 5, at_N3[:, 1:]]),
    ],
    ids=[
        "halves",
        "negative",
        "level 0",
        "level above 31",
        "addresses twice",
        "nan",
        "beyond int32",
        "last row",
        "five levels",
    ],
)
def test_columns_that_are_no_tile_addresses_are_features(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    write_histossl(tmp_path / "s.npy", FEATURES_ND, change(ADDRESSES_N3))
    name, _, (bag,) = read(tmp_path / "s.npy")
    assert (name, bag.features_ND.shape) == ("npy", (40, 9))


# --- DSMIL ---


def test_dsmil_table_is_read_by_its_decimals(tmp_path: Path) -> None:
    write_dsmil(tmp_path / "TCGA-1.x.csv", FEATURES_ND)
    assert (tmp_path / "TCGA-1.x.csv").read_text().startswith("0,1,2,3,4,5\n")
    name, _, (bag,) = read(tmp_path / "TCGA-1.x.csv")
    assert (name, bag.bag_id, bag.features_ND.dtype, bag.coords_N2) == ("dsmil-csv", "TCGA-1.x", np.float32, None)
    np.testing.assert_array_equal(bag.features_ND, np.round(FEATURES_ND.astype("f8"), 4).astype("f4"))


def test_dsmil_table_larger_than_a_block_of_the_parser(tmp_path: Path) -> None:
    write_dsmil(tmp_path / "s.csv", FEATURES_ND)
    header, *rows = (tmp_path / "s.csv").read_text().splitlines()
    write_lines(tmp_path / "s.csv", [header, *rows * 3000])
    assert (tmp_path / "s.csv").stat().st_size > 5 << 20
    (bag,) = read(tmp_path / "s.csv")[2]
    np.testing.assert_array_equal(
        bag.features_ND, np.tile(np.round(FEATURES_ND.astype("f8"), 4), (3000, 1)).astype("f4")
    )


def test_dsmil_nan_is_refused_by_its_row(tmp_path: Path) -> None:
    features_ND = FEATURES_ND.copy()
    features_ND[[0, 7], [1, 2]] = np.nan
    write_dsmil(tmp_path / "s.csv", features_ND)
    (bag,) = read(tmp_path / "s.csv")[2]
    np.testing.assert_array_equal(np.isnan(bag.features_ND), np.isnan(features_ND))
    with pytest.raises(DataError, match=r"2 feature values are NaN or infinite .* first in row 0"):
        stored_features("s", bag.features_ND, 6, "float16")


@pytest.mark.parametrize("line", ["0.1,0.2,0.3", "0.1,0.2,0.3,0.4,0.5,0.6,0.7", "0.1,0.2,0.3,0.4,0.5,x"])
def test_dsmil_row_that_is_cut_or_no_number_is_refused(tmp_path: Path, line: str) -> None:
    write_lines(tmp_path / "s.csv", ["0,1,2,3,4,5", "1,2,3,4,5,6", line])
    with pytest.raises(DataError, match=r"not a table of 6 numbers a row"):
        read(tmp_path / "s.csv")


def test_dsmil_last_line_without_end_is_refused(tmp_path: Path) -> None:
    write_dsmil(tmp_path / "s.csv", FEATURES_ND)
    (tmp_path / "s.csv").write_bytes((tmp_path / "s.csv").read_bytes()[:-2])
    with pytest.raises(DataError, match="its last line has no end, so the table is cut"):
        read(tmp_path / "s.csv")


def test_dsmil_table_without_rows_is_a_slide_without_tissue(tmp_path: Path) -> None:
    write_lines(tmp_path / "s.csv", ["0,1,2,3"])
    assert read(tmp_path / "s.csv")[1].no_tissue == ("s",)


@pytest.mark.parametrize(
    "lines",
    [
        ["0,1", "datasets/x/slide_1.csv,1"],
        ["0,label", "datasets/x/slide_1.csv,1"],
        ["0,1,2", "a,b,c"],
        ["1,2,3", "0.1,0.2,0.3"],
        ["slide_id,label,split", "s1,1,train"],
        ["0,1,2,3", "0.1,0.2,0.3"],
    ],
)
def test_other_tables_are_not_taken_for_dsmil_features(tmp_path: Path, lines: list[str]) -> None:
    write_lines(tmp_path / "s.csv", lines)
    with pytest.raises(UnknownContentError):
        detect(tmp_path / "s.csv")
