"""CLAM, TRIDENT and ACMIL files: exact layouts and their quirks."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from asmil.data.sources import FORMATS, detect
from asmil.errors import DataError
from tests.data.foreign import tiles, write_acmil, write_clam, write_clam_patches, write_trident
from tests.data.reading import read

FEATURES_ND, COORDS_N2 = tiles(40)


# --- CLAM ---


def test_clam_features_and_coordinates(tmp_path: Path) -> None:
    write_clam(tmp_path / "slide_1.h5", FEATURES_ND, COORDS_N2)
    name, reading, (bag,) = read(tmp_path / "slide_1.h5")
    assert (name, bag.bag_id) == ("clam-h5", "slide_1")
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)
    np.testing.assert_array_equal(bag.coords_N2, COORDS_N2)
    assert (reading.facts.coord_unit, reading.facts.coord_origin) == ("level0_px", "top_left")
    assert reading.facts.tile_size is None
    assert any("give --patches FOLDER" in note for note in reading.notes)


def test_clam_patch_size_comes_from_the_coordinate_file_and_is_measured_at_its_level(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    write_clam(tmp_path / "slide_1.h5", FEATURES_ND, COORDS_N2)
    write_clam_patches(tmp_path / "patches/slide_1.h5", COORDS_N2, patch_size=256, patch_level=1)
    _, reading, bags = read(tmp_path / "slide_1.h5", patches=tmp_path / "patches")
    assert (reading.facts.tile_size, reading.facts.facts) == (256, {"patch_level": 1})
    assert reading.notes == ()
    assert len(bags) == 1


def test_clam_coordinate_file_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    write_clam(tmp_path / "slide_1.h5", FEATURES_ND, COORDS_N2)
    with pytest.raises(DataError, match=r"patches/slide_1\.h5: no such file"):
        read(tmp_path / "slide_1.h5", patches=tmp_path / "patches")
    write_clam_patches(tmp_path / "patches/slide_1.h5", COORDS_N2[::-1])
    with pytest.raises(DataError, match=r"its coordinates are not those of .*slide_1\.h5"):
        read(tmp_path / "slide_1.h5", patches=tmp_path / "patches")


def test_clam_slide_without_tiles_is_listed(tmp_path: Path) -> None:
    write_clam(tmp_path / "empty.h5", FEATURES_ND[:0], COORDS_N2[:0])
    name, reading, bags = read(tmp_path / "empty.h5", patches=tmp_path)
    assert (name, reading.no_tissue, bags) == ("clam-h5", ("empty",), [])


# --- TRIDENT ---


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_trident_values_dtype_and_facts(tmp_path: Path, dtype: str) -> None:
    write_trident(tmp_path / "s.ome.h5", FEATURES_ND.astype(dtype), COORDS_N2)
    name, reading, (bag,) = read(tmp_path / "s.ome.h5")
    assert (name, bag.bag_id, bag.features_ND.dtype) == ("trident-h5", "s.ome", dtype)
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND.astype(dtype))
    np.testing.assert_array_equal(bag.coords_N2, COORDS_N2)
    facts = reading.facts
    assert (facts.encoder, facts.magnification, facts.tile_size, facts.mpp) == ("uni_v1", 20, 256, None)
    assert (facts.coord_unit, facts.coord_origin, facts.facts) == ("level0_px", "top_left", {"tile_overlap_px": 0})


@pytest.mark.parametrize("empty", [np.empty((0, 1024), "f4"), np.empty((0,), "f4")], ids=["rank2", "rank1"])
@pytest.mark.parametrize("coord_attributes", [True, False])
def test_trident_slide_without_tissue_is_listed(tmp_path: Path, empty: np.ndarray, coord_attributes: bool) -> None:
    write_trident(tmp_path / "empty.h5", empty, np.empty((0, 2)), on_features={"encoder": None})
    if not coord_attributes:
        with h5py.File(tmp_path / "empty.h5", "a") as file:
            for attribute in list(file["coords"].attrs):
                del file["coords"].attrs[attribute]
    name, reading, bags = read(tmp_path / "empty.h5")
    assert (name, reading.no_tissue, bags) == ("trident-h5", ("empty",), [])


def test_trident_slide_vector_is_recognised_by_rank_and_refused(tmp_path: Path) -> None:
    write_trident(tmp_path / "s.h5", np.ones(768, "f4"), COORDS_N2)
    with pytest.raises(DataError, match=r"rank 1 \(768 values\): a slide vector of TRIDENT, not patch features"):
        read(tmp_path / "s.h5")


def test_trident_attributes_written_as_text(tmp_path: Path) -> None:
    write_trident(
        tmp_path / "s.h5",
        FEATURES_ND,
        COORDS_N2,
        on_features={"encoder": None},
        on_coords={"patch_size": "512", "target_magnification": None, "overlap": None, "extra": '{"a": [1]}'},
    )
    facts = read(tmp_path / "s.h5")[1].facts
    assert (facts.encoder, facts.tile_size, facts.magnification, facts.facts) == (None, 512, None, {})


def test_trident_attribute_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2, on_coords={"patch_size": '{"w": 256}'})
    with pytest.raises(DataError, match=r"""attribute patch_size is '{"w": 256}', expected a number"""):
        read(tmp_path / "s.h5")


def test_coordinates_of_another_length_are_refused(tmp_path: Path) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2[:-1])
    with pytest.raises(DataError, match=r"/coords has shape \[39, 2\], expected \[40, 2\]"):
        read(tmp_path / "s.h5")


# --- ACMIL ---


def test_acmil_one_group_per_slide_with_its_label(tmp_path: Path) -> None:
    slides = [(f"normal_{i:03d}", *tiles(3 + i), i % 2) for i in range(3)]
    write_acmil(tmp_path / "patch_feats_pretrain_x.h5", slides)
    name, reading, bags = read(tmp_path / "patch_feats_pretrain_x.h5")
    assert name == "acmil-h5"
    assert (reading.facts.coord_unit, reading.facts.tile_size, reading.no_tissue) == (None, None, ())
    for bag, (slide_id, features_ND, coords_N2, label) in zip(bags, slides, strict=True):
        assert (bag.bag_id, bag.labels, bag.features_ND.dtype) == (slide_id, {"label": label}, np.float16)
        np.testing.assert_array_equal(bag.features_ND, features_ND.astype("f2"))
        np.testing.assert_array_equal(bag.coords_N2, coords_N2)


def test_acmil_group_without_instances_label_or_features(tmp_path: Path) -> None:
    write_acmil(tmp_path / "x", [("a", *tiles(3), None), ("b", np.empty((0, 6)), np.empty((0, 2), "i4"), 1)])
    _, reading, bags = read(tmp_path / "x")
    assert ([bag.labels for bag in bags], reading.no_tissue) == ([{}], ("b",))
    with h5py.File(tmp_path / "x", "a") as file:
        file.create_group("c")
    with pytest.raises(DataError, match=r"/c has no feat and coords"):
        read(tmp_path / "x")


def test_acmil_label_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    write_acmil(tmp_path / "x", [("a", *tiles(3), 0)])
    with h5py.File(tmp_path / "x", "a") as file:
        file["a"].attrs["label"] = "tumor"
    with pytest.raises(DataError, match=r"attribute label of /a is 'tumor', expected an integer"):
        read(tmp_path / "x")


# --- detection ---


def test_formats_exclude_each_other(tmp_path: Path) -> None:
    write_clam(tmp_path / "clam", FEATURES_ND, COORDS_N2)
    write_trident(tmp_path / "trident", FEATURES_ND, COORDS_N2)
    write_acmil(tmp_path / "acmil", [("features.h5", *tiles(3), 0)])
    for kind in ("clam", "trident", "acmil"):
        accepted = [form.name for form in FORMATS if form.detect(tmp_path / kind) is not None]
        assert accepted == [f"{kind}-h5"]


def test_reason_names_keys_dtypes_and_shapes(tmp_path: Path) -> None:
    write_clam(tmp_path / "s.h5", FEATURES_ND, COORDS_N2)
    assert detect(tmp_path / "s.h5").reason == (
        "HDF5 with features float32 [40, 6], coords int32 [40, 2] and no attributes"
    )


def test_cut_signature_says_what_the_name_claims(tmp_path: Path) -> None:
    write_clam(tmp_path / "cut.h5", FEATURES_ND, COORDS_N2)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "cut.h5").read_bytes()[:5])
    with pytest.raises(DataError, match=r"5 bytes that are not HDF5, although the name says so"):
        detect(tmp_path / "cut.h5")


def test_coordinate_files_are_told_apart_from_features(tmp_path: Path) -> None:
    write_clam_patches(tmp_path / "s.h5", COORDS_N2)
    with pytest.raises(DataError, match=r"a coordinate file of CLAM without features; give the folder h5_files"):
        detect(tmp_path / "s.h5")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("coords", data=COORDS_N2).attrs.update({"patch_size": 256, "patch_size_level0": 512})
    with pytest.raises(DataError, match=r"a coordinate file of TRIDENT without features; give the folder features"):
        detect(tmp_path / "t.h5")
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["coords"] = COORDS_N2
    with pytest.raises(DataError, match=r"root keys coords \(coordinates only: give the folder of the features\)"):
        detect(tmp_path / "u.h5")
