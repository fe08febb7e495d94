"""CLAM, TRIDENT and ACMIL files: exact layouts, their quirks, and HDF5 files that must not be trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from asmil.data.sources import FORMATS, detect, find_files
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
    with pytest.raises(DataError, match=r"attribute patch_size is \{'w': 256\}, expected a number"):
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


def test_coordinate_files_are_told_apart_from_features(tmp_path: Path) -> None:
    write_clam_patches(tmp_path / "s.h5", COORDS_N2)
    with pytest.raises(DataError, match=r"root keys coords \(coordinates only: give the folder of the features\)"):
        detect(tmp_path / "s.h5")


def test_folder_lists_what_it_leaves_alone_and_keeps_cut_files(tmp_path: Path) -> None:
    folder = tmp_path / "features_uni"
    folder.mkdir()
    for name in ("b.h5", "a.h5", "no_suffix", ".tmp_a.h5", "c.h5.tmp"):
        write_clam(folder / name, FEATURES_ND, COORDS_N2)
    (folder / "a.h5.lock").touch()
    (folder / "notes.txt").write_text("x")
    (folder / "cut.h5").write_bytes((folder / "a.h5").read_bytes()[:5])
    found = find_files([folder])
    assert [path.name for path in found.files] == ["a.h5", "b.h5", "cut.h5", "no_suffix"]
    assert [path.name for path in found.ignored] == [".tmp_a.h5", "a.h5.lock", "c.h5.tmp", "notes.txt"]
    with pytest.raises(DataError, match=r"5 bytes that are not HDF5, although the name says so"):
        detect(folder / "cut.h5")
    with pytest.raises(DataError, match=rf"no HDF5 file in this folder; did you mean {folder}\?"):
        find_files([tmp_path])


# --- files that must not be trusted ---


def _external_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(str(other), "features")


def _soft_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.SoftLink("/elsewhere")


def _external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(4, 6), dtype="f4", external=[(str(other), 0, 96)])


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(40, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "features", shape=(40, 6))
    file.create_virtual_dataset("features", layout)


def _oversized(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(1 << 30, 768), dtype="f4", chunks=(32, 768))


def _half_written(file: h5py.File, other: Path) -> None:
    dataset = file.create_dataset("features", shape=(64, 6), dtype="f4", chunks=(32, 6))
    dataset[:32] = 1


def _bomb(file: h5py.File, other: Path) -> None:
    dataset = file.create_dataset("features", shape=(1 << 22, 6), dtype="f4", chunks=(4096, 6), compression="gzip")
    dataset[:4096] = 1


def _text(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", data=[b"a", b"b"])


def _null(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", data=h5py.Empty("f4"))


def _group(file: h5py.File, other: Path) -> None:
    file.create_group("features")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_external_link, r"/features is a link to another file; only data inside the file itself is read"),
        (_soft_link, r"/features is a soft link"),
        (_external_storage, r"/features keeps its values in other files"),
        (_virtual, r"/features keeps its values in other files"),
        (
            _oversized,
            r"declares shape \[1073741824, 768\] of float32, 3298534883328 bytes, but the file stores 0 bytes",
        ),
        (_half_written, r"declares shape \[64, 6\] of float32, 1536 bytes, but the file stores 768 bytes of it"),
        (_bomb, r"declares shape \[4194304, 6\] of float32, 100663296 bytes, but the file stores"),
        (_text, r"/features has dtype .*, expected floats or integers"),
        (_null, r"/features has no shape"),
        (_group, r"/features is a group, expected a dataset"),
    ],
)
def test_data_outside_the_file_or_beyond_its_size_is_refused(
    tmp_path: Path, make: Callable[[h5py.File, Path], None], message: str
) -> None:
    write_clam(tmp_path / "other.h5", FEATURES_ND, COORDS_N2)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        make(file, tmp_path / "other.h5")
        file.create_dataset("coords", data=COORDS_N2)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "s.h5")


def test_acmil_group_linked_from_another_file_is_refused(tmp_path: Path) -> None:
    write_acmil(tmp_path / "other.h5", [("a", *tiles(3), 0)])
    write_acmil(tmp_path / "x.h5", [("a", *tiles(3), 0)])
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["b"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "a")
    with pytest.raises(DataError, match=r"/b is a link to another file"):
        read(tmp_path / "x.h5")


@pytest.mark.parametrize("kept_share", [0.3, 0.7, 0.99])
def test_cut_files_are_a_data_error(tmp_path: Path, kept_share: float) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2)
    content = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5").write_bytes(content[: int(kept_share * len(content))])
    with pytest.raises(DataError, match=r"s\.h5"):
        read(tmp_path / "s.h5")


def test_compressed_features_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((4096, 6), ">f4"), compression="gzip", chunks=(4096, 6))
        file.create_dataset("coords", data=np.zeros((4096, 2), "i4"), compression="gzip")
    bag = read(tmp_path / "s.h5")[2][0]
    assert bag.features_ND.dtype == np.dtype("f4")
    assert bag.features_ND.dtype.isnative
    assert not bag.features_ND.any()
