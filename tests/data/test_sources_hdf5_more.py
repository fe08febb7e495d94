"""STAMP, marugoto, MMP and PathForge files: exact layouts and their quirks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from asmil.data.sources import FORMATS, ContentError, detect
from asmil.data.sources.stamp import is_historic
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_hdf5 import (
    STAMP_ATTRIBUTES,
    write_bare,
    write_marugoto,
    write_pathforge,
    write_stamp,
    write_stamp_vector,
)
from tests.data.reading import read

FEATURES_ND, COORDS_N2 = tiles(40)
HALF_ND = FEATURES_ND.astype("f2")
GRID_N2 = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2)
MICRONS_N2 = (256 * GRID_N2).astype("f4")


# --- STAMP ---


def test_stamp_current_generation(tmp_path: Path) -> None:
    write_stamp(tmp_path / "TCGA-1.h5", FEATURES_ND, MICRONS_N2)
    name, reading, (bag,) = read(tmp_path / "TCGA-1.h5")
    assert (name, bag.bag_id, bag.features_ND.dtype, reading.notes) == ("stamp-h5", "TCGA-1", np.float16, ())
    np.testing.assert_array_equal(bag.features_ND, HALF_ND)
    np.testing.assert_array_equal(bag.coords_N2, MICRONS_N2)
    facts = reading.facts
    assert (facts.encoder, facts.mpp, facts.tile_size) == ("uni2", 256 / 224, 224)
    assert (facts.coord_unit, facts.coord_origin, facts.facts) == ("um", "top_left", {"tile_size_um": 256})
    assert detect(tmp_path / "TCGA-1.h5").reason == (
        "HDF5 with feats float16 [40, 6], coords float32 [40, 2] and root attributes "
        "stamp_version, extractor, unit, tile_size_um, tile_size_px, feat_type"
    )


def test_stamp_2_0_says_tile_size_and_unit(tmp_path: Path) -> None:
    attributes = STAMP_ATTRIBUTES["2.0"] | {"tile_size": 224.0}  # in micrometres, whatever the number looks like
    write_stamp(tmp_path / "s.h5", FEATURES_ND, MICRONS_N2, attributes=attributes)
    _, reading, (bag,) = read(tmp_path / "s.h5")
    np.testing.assert_array_equal(bag.coords_N2, MICRONS_N2)
    facts = reading.facts
    assert (facts.encoder, facts.mpp, facts.tile_size, facts.coord_unit) == ("ctranspath", None, None, "um")
    assert (facts.facts, reading.notes) == ({"tile_size_um": 224}, ())


@pytest.mark.parametrize("dtype", ["i8", "f4"])
def test_older_stamp_is_known_by_its_stride_and_rescaled(tmp_path: Path, dtype: str) -> None:
    coords_N2 = (224 * GRID_N2).astype(dtype)
    write_stamp(tmp_path / "s.h5", FEATURES_ND, coords_N2, attributes=STAMP_ATTRIBUTES["older"])
    _, reading, (bag,) = read(tmp_path / "s.h5")
    np.testing.assert_allclose(bag.coords_N2, 256 * GRID_N2, rtol=1e-12)
    assert bag.coords_N2 is not None
    assert bag.coords_N2.dtype.kind == "f"
    facts = reading.facts
    assert (facts.mpp, facts.tile_size, facts.coord_unit) == (256 / 224, 224, "um")
    assert any("224 px are 256 µm, and rescaled" in note for note in reading.notes)


def test_older_stamp_with_another_stride_has_no_known_unit(tmp_path: Path) -> None:
    write_stamp(tmp_path / "s.h5", FEATURES_ND, 512 * GRID_N2, attributes=STAMP_ATTRIBUTES["older"])
    with pytest.raises(ContentError, match=r"no attribute tile_size_um, nor tile_size with unit um.*stride is 224"):
        read(tmp_path / "s.h5")
    attributes = STAMP_ATTRIBUTES["older"] | {"tile_size": 224}  # settles it
    write_stamp(tmp_path / "s.h5", FEATURES_ND, 448 * GRID_N2, attributes=attributes)
    assert read(tmp_path / "s.h5")[1].facts.coord_unit == "um"


@pytest.mark.parametrize(
    ("coords", "historic"),
    [
        ([[0, 0], [0, 224]], True),
        ([[0, 0], [448, 0], [448, 224]], True),
        ([[0, 0], [224.4, 0]], True),
        ([[0, 0], [225, 0]], False),
        ([[0, 0], [112, 224]], False),
        ([[2240, 448]], True),
        ([[2240, 449]], False),
        ([[224, 448], [224, 448]], True),
        ([[np.nan, 0], [np.nan, 1]], False),
    ],
)
def test_stride_of_224(coords: list[list[float]], historic: bool) -> None:
    assert is_historic(np.array(coords)) is historic


def test_stamp_from_a_newer_version_is_read(tmp_path: Path) -> None:
    attributes = STAMP_ATTRIBUTES["current"] | {"stamp_version": "99.0.0", "novelty": 1}
    write_stamp(tmp_path / "s.h5", FEATURES_ND, MICRONS_N2, attributes=attributes)
    assert len(read(tmp_path / "s.h5")[2]) == 1


@pytest.mark.parametrize("key", ["feats", "patch_embeddings"])
def test_stamp_without_coordinates_gets_none(tmp_path: Path, key: str) -> None:
    write_stamp(tmp_path / "s.h5", FEATURES_ND, None, attributes={}, feature_key=key)
    name, reading, (bag,) = read(tmp_path / "s.h5")
    assert (name, bag.coords_N2, reading.facts.coord_unit, reading.facts.coord_origin) == ("stamp-h5", None, None, None)
    np.testing.assert_array_equal(bag.features_ND, HALF_ND)


@pytest.mark.parametrize("shape", [(768,), (1, 768)])
@pytest.mark.parametrize("feat_type", ["slide", "patient", None])
def test_stamp_vector_is_recognised_and_refused(tmp_path: Path, shape: tuple[int, ...], feat_type: str | None) -> None:
    write_stamp_vector(tmp_path / "s.h5", np.ones(shape), feat_type=feat_type)
    assert detect(tmp_path / "s.h5").format.name == "stamp-h5"
    with pytest.raises(ContentError, match=r"feats float32 .*768\] and feat_type .*: one vector per slide or patient"):
        read(tmp_path / "s.h5")


def test_stamp_slide_of_one_tile_is_a_bag(tmp_path: Path) -> None:
    write_stamp(tmp_path / "s.h5", FEATURES_ND[:1], MICRONS_N2[:1])
    assert read(tmp_path / "s.h5")[2][0].features_ND.shape == (1, 6)


# --- marugoto ---


def _mixed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augmented copies between the tiles, not only behind them."""
    augmented_N = np.arange(80) % 2 == 1
    return np.repeat(FEATURES_ND, 2, axis=0) + augmented_N[:, None], np.repeat(512 * GRID_N2, 2, axis=0), augmented_N


def test_marugoto_augmented_rows_are_dropped(tmp_path: Path) -> None:
    write_marugoto(tmp_path / "s.h5", *_mixed())
    name, reading, (bag,) = read(tmp_path / "s.h5")
    assert (name, reading.slides[0].num_instances) == ("marugoto-h5", 40)
    np.testing.assert_array_equal(bag.features_ND, HALF_ND)
    np.testing.assert_array_equal(bag.coords_N2, 512 * GRID_N2)
    assert (reading.facts.encoder, reading.facts.coord_unit) == (
        "marugoto-extract-v0.6.0_xiyue-wang-ctranspath",
        None,
    )
    assert reading.notes == ("note: rows of augmented tiles are left out; --keep-augmented keeps them",)


def test_marugoto_augmented_rows_are_kept_on_request(tmp_path: Path) -> None:
    features_ND, coords_N2, augmented_N = _mixed()
    write_marugoto(tmp_path / "s.h5", features_ND, coords_N2, augmented_N)
    _, reading, (bag,) = read(tmp_path / "s.h5", keep_augmented=True)
    assert (reading.slides[0].num_instances, reading.notes) == (80, ())
    np.testing.assert_array_equal(bag.features_ND, features_ND.astype("f2"))
    np.testing.assert_array_equal(bag.coords_N2, coords_N2)


@pytest.mark.parametrize("keep_augmented", [False, True])
def test_marugoto_stride_of_224_is_that_of_early_stamp(tmp_path: Path, keep_augmented: bool) -> None:
    features_ND, _, augmented_N = _mixed()
    write_marugoto(tmp_path / "s.h5", features_ND, np.repeat(224 * GRID_N2, 2, axis=0), augmented_N)
    _, reading, (bag,) = read(tmp_path / "s.h5", keep_augmented=keep_augmented)
    assert bag.coords_N2 is not None
    np.testing.assert_allclose(bag.coords_N2, np.repeat(256 * GRID_N2, 1 + keep_augmented, axis=0), rtol=1e-12)
    assert (reading.facts.coord_unit, reading.facts.mpp) == ("um", 256 / 224)


def test_marugoto_marks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_marugoto(tmp_path / "s.h5", FEATURES_ND, GRID_N2, np.zeros(39))
    with pytest.raises(ContentError, match=r"/augmented has shape \[39\], expected \[40\]"):
        read(tmp_path / "s.h5")
    write_marugoto(tmp_path / "s.h5", FEATURES_ND, GRID_N2, np.ones(40))
    with pytest.raises(ContentError, match="every row is marked as augmented"):
        read(tmp_path / "s.h5")


# --- MMP, PANTHER, MIL_BASELINE ---


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("has_coords", [False, True])
@pytest.mark.parametrize("num_tiles", [1, 40])
def test_bare_features_of_either_rank(tmp_path: Path, stacked: bool, has_coords: bool, num_tiles: int) -> None:
    features, coords = FEATURES_ND[:num_tiles], COORDS_N2[:num_tiles]
    write_bare(tmp_path / "s.h5", features[None] if stacked else features, coords if has_coords else None)
    name, reading, (bag,) = read(tmp_path / "s.h5")
    assert name == ("clam-h5" if has_coords and not stacked else "mmp-h5")
    np.testing.assert_array_equal(bag.features_ND, features)
    assert (bag.coords_N2 is None) is not has_coords
    if has_coords:
        np.testing.assert_array_equal(bag.coords_N2, coords)
    assert any("do not say at what resolution" in note for note in reading.notes)


def test_stacked_features_with_attributes_are_read_too(tmp_path: Path) -> None:
    write_bare(tmp_path / "s.h5", FEATURES_ND[None], COORDS_N2)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["features"].attrs["encoder"] = "uni"
    assert read(tmp_path / "s.h5")[0] == "mmp-h5"


def test_bare_features_of_another_rank_are_refused(tmp_path: Path) -> None:
    write_bare(tmp_path / "s.h5", np.ones((2, 3, 6), "f4"))
    with pytest.raises(ContentError, match=r"/features is float32 \[2, 3, 6\], expected floats of shape \[1, N, D\]"):
        read(tmp_path / "s.h5")
    write_bare(tmp_path / "s.h5", np.ones(768, "f4"), COORDS_N2)
    with pytest.raises(ContentError, match=r"features float32 \[768\]: one vector, not one row per tile"):
        read(tmp_path / "s.h5")
    write_bare(tmp_path / "s.h5", FEATURES_ND[None], COORDS_N2[:3])
    with pytest.raises(ContentError, match=r"/coords has shape \[3, 2\], expected \[40, 2\]"):
        read(tmp_path / "s.h5")


def test_a_file_with_labels_is_left_to_torchmil(tmp_path: Path) -> None:
    write_bare(tmp_path / "s.h5", FEATURES_ND, COORDS_N2)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["labels"] = np.array([1])
    accepted = {form.name for form in FORMATS if form.unit == "file" and form.detect(tmp_path / "s.h5")}
    assert not accepted & {"clam-h5", "trident-h5", "mmp-h5"}


# --- PathForge ---

ONE = {"256px_0.5mpp": {"uni": FEATURES_ND}}
THREE = {"256px_0.5mpp": {"uni": FEATURES_ND, "virchow2": 2 * FEATURES_ND}, "512px_0.25mpp": {"uni": 3 * FEATURES_ND}}


def test_pathforge_features_coordinates_and_facts(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, ONE)
    name, reading, (bag,) = read(tmp_path / "s.h5")
    assert (name, bag.bag_id) == ("pathforge-h5", "s")
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)
    np.testing.assert_array_equal(bag.coords_N2, COORDS_N2)
    facts = reading.facts
    assert (facts.encoder, facts.mpp, facts.tile_size) == ("uni", 0.5, 256)
    assert (facts.coord_unit, facts.coord_origin, facts.facts) == ("level0_px", "top_left", {})
    assert detect(tmp_path / "s.h5").reason == "HDF5 with 1 tilings in bags, the first '256px_0.5mpp' with coords"


def test_pathforge_feature_set_is_chosen_by_name(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, THREE)
    for name, factor, encoder, mpp in [
        ("256px_0.5mpp/virchow2", 2, "virchow2", 0.5),
        ("512px_0.25mpp/uni", 3, "uni", 0.25),
    ]:
        _, reading, (bag,) = read(tmp_path / "s.h5", features=name)
        np.testing.assert_array_equal(bag.features_ND, factor * FEATURES_ND)
        assert (reading.facts.encoder, reading.facts.mpp) == (encoder, mpp)


def test_pathforge_feature_set_that_is_not_named_or_not_there(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, THREE)
    listed = "256px_0.5mpp/uni, 256px_0.5mpp/virchow2, 512px_0.25mpp/uni"
    with pytest.raises(ContentError, match=f"holds 3 feature sets: {listed}; say which with --features NAME"):
        read(tmp_path / "s.h5")
    with pytest.raises(ContentError, match=f"holds no features '512px_0.25mpp/virchow2'; it has {listed}"):
        read(tmp_path / "s.h5", features="512px_0.25mpp/virchow2")
    write_pathforge(tmp_path / "t.h5", COORDS_N2, {"256px_0.5mpp": {}})
    with pytest.raises(DataError, match="tiles without features; extract features with PathForge"):
        read(tmp_path / "t.h5")


def test_pathforge_specification_is_more_exact_than_the_name(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, {"256px_0.333333mpp": ONE["256px_0.5mpp"]}, spec={"tile_mpp": 1 / 3})
    assert read(tmp_path / "s.h5")[1].facts.mpp == 1 / 3
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["bags/256px_0.333333mpp/tiling_spec"], file["meta"]
    facts = read(tmp_path / "s.h5")[1].facts
    assert (facts.mpp, facts.tile_size) == (0.333333, 256)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec": {"coord_space": "level1"}}, "coord_space is 'level0_pixel' and 'level1', expected level0"),
        ({"meta": {"coord_space": "um"}}, "coord_space is 'level0' and 'um', expected level0"),
        ({"spec": {"coord_space": ["level0"]}}, "coord_space is 'level0_pixel' and 'not a name', expected level0"),
        ({"spec": {"tile_mpp": "fine"}}, "tile_mpp of the tiling is 'fine', expected a positive number"),
        ({"spec": {"tile_px": 0}}, "tile_px of the tiling is '0', expected a positive number"),
        ({"status": "writing"}, "has status 'writing': it was not written to its end"),
    ],
)
def test_pathforge_statements_that_cannot_be_followed(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, ONE, **changed)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "s.h5")


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 60_000, '{"a": "' + "x" * 70_000 + '"}'])
def test_pathforge_specification_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, ONE)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["bags/256px_0.5mpp/tiling_spec"][()] = text
    with pytest.raises(DataError, match=r"/bags/256px_0.5mpp/tiling_spec starts with .*, expected a JSON object of at"):
        read(tmp_path / "s.h5")


def test_pathforge_specification_that_is_no_text(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, ONE)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["bags/256px_0.5mpp/tiling_spec"]
        file["bags/256px_0.5mpp/tiling_spec"] = np.zeros(3)
    with pytest.raises(DataError, match=r"tiling_spec is float64 \(3,\), expected one JSON text"):
        read(tmp_path / "s.h5")


def test_pathforge_vector_of_a_slide_is_refused(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, {"256px_0.5mpp": {"titan": FEATURES_ND[:1]}})
    with pytest.raises(ContentError, match="titan has one row for 40 tiles: a vector of the slide, not of tiles"):
        read(tmp_path / "s.h5")


def test_pathforge_rows_and_columns_must_fit(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2, {"256px_0.5mpp": {"uni": FEATURES_ND[:39]}})
    with pytest.raises(ContentError, match=r"coords has shape \[40, 5\], expected \[39, 5\] for 39 rows"):
        read(tmp_path / "s.h5")


def test_pathforge_slide_without_tiles_is_listed(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "s.h5", COORDS_N2[:0], {"256px_0.5mpp": {"uni": FEATURES_ND[:0]}})
    name, reading, bags = read(tmp_path / "s.h5")
    assert (name, reading.no_tissue, bags) == ("pathforge-h5", ("s",), [])


def test_pathforge_links_are_not_followed(tmp_path: Path) -> None:
    write_pathforge(tmp_path / "other.h5", COORDS_N2, ONE)
    write_pathforge(tmp_path / "s.h5", COORDS_N2, {"256px_0.5mpp": {}})
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["bags/256px_0.5mpp/features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "bags/256px_0.5mpp/features")
    with pytest.raises(DataError, match=r"/bags/256px_0.5mpp/features is a link to another file"):
        read(tmp_path / "s.h5")
