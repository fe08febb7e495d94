"""Formats whose unit is a folder of many bags: torchmil, eva, and LazySlide's zarr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from asmil.data.sources import ContentError, ReadOptions, detect
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_arrays import BAGS, write_lazyslide, write_torchmil
from tests.data.foreign_tensor import write_eva, write_tensor
from tests.data.reading import ReadBag, only_bad, read

SLIDES = {"a": tiles(4), "b": tiles(3)}
FEATURES = {name: features_ND for name, (features_ND, _) in SLIDES.items()}


def by_id(path: Path, **options: Any) -> dict[str, ReadBag]:
    return {bag.bag_id: bag for bag in read(path, **options)[2]}


# --- torchmil ---


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_torchmil_parts_are_read_as_what_they_are(tmp_path: Path, suffix: str) -> None:
    write_torchmil(tmp_path, BAGS, suffix=suffix, splits={"bag_1": "train", "bag_2": "test", "bag_10": "train"})
    assert not h5py.is_hdf5(tmp_path / "inst_labels" / f"bag_1{suffix}")  # also under the name of an HDF5 file
    name, source, bags = read(tmp_path)
    assert (name, [bag.bag_id for bag in bags]) == ("torchmil", ["bag_1", "bag_10", "bag_2"])
    for bag in bags:
        features_ND, coords_N2 = BAGS[bag.bag_id]
        np.testing.assert_array_equal(bag.features_ND, features_ND)
        np.testing.assert_array_equal(bag.coords_N2, coords_N2)
        np.testing.assert_array_equal(bag.instance_labels_N, np.arange(len(features_ND)) % 2)
    assert [bag.labels["split"] for bag in bags] == ["train", "train", "test"]
    assert (source.facts.coord_unit, source.notes) == (None, ())


def test_torchmil_hosted_sets_with_several_feature_sets(tmp_path: Path) -> None:
    write_torchmil(tmp_path / "patches_512", BAGS)
    inner = tmp_path / "patches_512"
    (inner / "features").rename(tmp_path / "uni")
    (inner / "inst_labels").rename(inner / "patch_labels")
    for name in ("features_uni", "features_resnet50"):
        (inner / "features" / name).mkdir(parents=True)
        for bag, (features_ND, _) in BAGS.items():
            np.save(inner / "features" / name / f"{bag}.npy", features_ND * (1 if name == "features_uni" else 2))
    with pytest.raises(ContentError, match="holds 2 feature sets: resnet50, uni; say which with --features NAME"):
        read(inner)
    with pytest.raises(ContentError, match="holds no features 'chief'; it has resnet50, uni"):
        read(inner, features="chief")
    for name, factor in (("uni", 1), ("features_resnet50", 2)):
        bags = by_id(inner, features=name)
        np.testing.assert_array_equal(bags["bag_1"].features_ND, factor * BAGS["bag_1"][0])
        assert bags["bag_1"].instance_labels_N is not None


def test_torchmil_splits_of_the_folder_above_are_taken_if_they_are_torchmils(tmp_path: Path) -> None:
    inner = tmp_path / "patches_512"
    write_torchmil(inner, BAGS, splits=dict.fromkeys(BAGS, "test"))
    (inner / "splits.csv").rename(tmp_path / "splits.csv")
    assert by_id(inner)["bag_1"].labels == {"label": 0, "split": "test"}
    (tmp_path / "splits.csv").write_text(",train,val,test\n0,bag_1,bag_2,bag_10\n")
    assert by_id(inner)["bag_1"].labels == {"label": 0}


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (np.array(1), {"label": 1}),
        (np.array([[2.0]]), {"label": 2}),
        (np.array([0.5]), {"label": 0.5}),
        (np.array([1, 0, 3]), {"label_0": 1, "label_1": 0, "label_2": 3}),
    ],
)
def test_torchmil_labels_of_any_shape(tmp_path: Path, value: np.ndarray, labels: dict[str, Any]) -> None:
    write_torchmil(tmp_path, BAGS)
    np.save(tmp_path / "labels" / "bag_1.npy", value)
    assert by_id(tmp_path)["bag_1"].labels == labels


def test_torchmil_without_coordinates_and_instance_labels(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS)
    for part in ("coords", "inst_labels"):
        (tmp_path / part).rename(tmp_path / f"{part}_away")
    bag = by_id(tmp_path)["bag_2"]
    assert (bag.coords_N2, bag.instance_labels_N) == (None, None)


def test_torchmil_instance_labels_of_several_values_are_not_kept(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS)
    for bag, (features_ND, _) in BAGS.items():
        np.save(tmp_path / "inst_labels" / f"{bag}.npy", np.ones((len(features_ND), 3)))
    _, source, bags = read(tmp_path)
    assert all(bag.instance_labels_N is None for bag in bags)
    assert source.notes == ("note: instance labels with [3] values each are not kept; one number each is",)


def test_torchmil_bag_without_rows_is_listed(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS)
    np.save(tmp_path / "features" / "bag_2.npy", np.empty((0, 6), "f4"))
    _, source, bags = read(tmp_path)
    assert (source.no_tissue, len(bags), set(source.labels)) == (("bag_2",), 2, {"bag_1", "bag_10"})


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("coords", np.zeros((3, 2)), r"coords/bag_1: coords is float64 \[3, 2\], expected numbers of shape \[4, 2\]"),
        ("inst_labels", np.zeros(3), r"instance labels have shape \[3\], expected one for each of 4 rows"),
        ("inst_labels", np.full(4, 0.5), r"instance labels are not whole numbers"),
        ("labels", np.zeros(65), r"labels have shape \[65\], expected 1 to 64 numbers"),
        ("features", np.ones(6, "f4"), r"rank 1 \(6 values\): one vector for the whole slide"),
    ],
)
def test_torchmil_parts_that_do_not_fit_are_refused(
    tmp_path: Path, part: str, values: np.ndarray, message: str
) -> None:
    write_torchmil(tmp_path, BAGS)
    np.save(tmp_path / part / "bag_1.npy", values)
    only_bad(tmp_path, "bag_1", message, ContentError)


def test_torchmil_bag_in_both_kinds_of_file_is_refused(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS)
    np.save(tmp_path / "features" / "x.npy", BAGS["bag_1"][0])
    (tmp_path / "features" / "x.npy").rename(tmp_path / "features" / "bag_1.h5")
    only_bad(tmp_path, "bag_1", r"bag_1.npy and .*bag_1.h5 are the same bag")


@pytest.mark.parametrize("chunks", [None, (1, 6)])
def test_torchmil_hdf5_that_was_not_written_to_its_end_is_refused(
    tmp_path: Path, chunks: tuple[int, int] | None
) -> None:
    write_torchmil(tmp_path, BAGS, suffix=".h5")
    with h5py.File(tmp_path / "features" / "bag_2.h5", "w") as file:
        file.create_dataset("features", (3, 6), "f4", chunks=chunks)
    with (tmp_path / "features" / "bag_2.h5").open("ab") as stream:
        stream.write(bytes(100))
    only_bad(tmp_path, "bag_2", "it was not written to its end", DataError)


def test_torchmil_hdf5_without_the_key_is_refused(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS, suffix=".h5")
    with h5py.File(tmp_path / "features" / "bag_2.h5", "a") as file:
        file.move("features", "feats")
    only_bad(tmp_path, "bag_2", "bag_2.h5: no dataset features; it has feats", ContentError)


@pytest.mark.parametrize("part", ["features", "labels", "coords", "inst_labels"])
def test_torchmil_damaged_file_is_one_bag(tmp_path: Path, part: str) -> None:
    write_torchmil(tmp_path, BAGS)
    path = tmp_path / part / "bag_1.npy"
    path.write_bytes(path.read_bytes()[:-1])
    only_bad(tmp_path, "bag_1", "it was not written to its end")


def test_torchmil_splits_that_contradict_each_other_or_are_incomplete(tmp_path: Path) -> None:
    write_torchmil(tmp_path, BAGS, splits={"bag_1": "train", "bag_2": "test"})
    _, source, bags = read(tmp_path)
    assert all("split" not in bag.labels for bag in bags)
    assert any("has no row for 1 bags, such as 'bag_10'; its splits are not kept" in note for note in source.notes)
    rows = [{"bag_name": "bag_1", "split": split} for split in ("train", "test")]
    pd.DataFrame(rows).to_csv(tmp_path / "splits.csv", index=False)
    with pytest.raises(ContentError, match="bag 'bag_1' is in both 'train' and 'test'"):
        read(tmp_path)
    (tmp_path / "splits.csv").write_text("bag,part\nbag_1,train\n")
    with pytest.raises(DataError, match=r"splits.csv: no column bag_name and split; it has bag, part"):
        read(tmp_path)


# --- eva ---


@pytest.mark.parametrize("stacked", [False, True])
def test_eva_lists_and_tensors(tmp_path: Path, stacked: bool) -> None:
    write_eva(tmp_path, FEATURES, stacked=stacked)
    name, source, bags = read(tmp_path)
    assert (name, [bag.bag_id for bag in bags]) == ("eva", ["a", "b"])
    for bag in bags:
        np.testing.assert_array_equal(bag.features_ND, FEATURES[bag.bag_id])
    assert [bag.labels for bag in bags] == [{"label": 0, "split": "train"}, {"label": 1, "split": "val"}]
    assert detect(tmp_path).reason == "a folder with manifest.csv: origin, embeddings, target, split"
    assert source.notes == (
        "note: eva does not say how its tiles were cut; to keep that with the store, give --encoder and --mpp",
    )


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("rows_per_file", [1, 2])
def test_eva_files_of_one_slide_are_joined_in_the_order_of_the_manifest(
    tmp_path: Path, rows_per_file: int, stacked: bool
) -> None:
    write_eva(tmp_path, FEATURES, stacked=stacked, rows_per_file=rows_per_file)
    for name, bag in by_id(tmp_path).items():
        np.testing.assert_array_equal(bag.features_ND, FEATURES[name])


def test_eva_vectors_with_a_leading_axis(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES)
    write_tensor(
        tmp_path / "images" / "a.pt", [torch.from_numpy(FEATURES["a"][:1]), torch.from_numpy(FEATURES["a"][1:])]
    )
    np.testing.assert_array_equal(by_id(tmp_path)["a"].features_ND, FEATURES["a"])


def test_eva_vectors_are_counted_without_being_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_eva(tmp_path, FEATURES)
    monkeypatch.setattr(torch, "load", None)
    source = detect(tmp_path).format.open(tmp_path, ReadOptions())
    assert {header.slide_id: (header.num_instances, header.num_features) for header in source.slides} == {
        name: features_ND.shape for name, features_ND in FEATURES.items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_eva_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    write_eva(tmp_path, FEATURES)
    rows_ND = torch.from_numpy(FEATURES["a"]).to(dtype)
    write_tensor(tmp_path / "images" / "a.pt", [row_D.clone() for row_D in rows_ND])
    np.testing.assert_array_equal(by_id(tmp_path)["a"].features_ND, rows_ND.double().numpy())


def test_eva_vectors_that_share_their_bytes(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES)
    write_tensor(tmp_path / "images" / "a.pt", list(torch.from_numpy(FEATURES["a"])))
    np.testing.assert_array_equal(by_id(tmp_path)["a"].features_ND, FEATURES["a"])


def test_eva_places_are_not_guessed(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES, coords={name: coords_N2 for name, (_, coords_N2) in SLIDES.items()})
    _, source, bags = read(tmp_path)
    assert all(bag.coords_N2 is None for bag in bags)
    assert any("coords_*.csv are not read: eva saves later vectors in front" in note for note in source.notes)


def test_eva_slide_without_vectors_is_listed(tmp_path: Path) -> None:
    write_eva(tmp_path, {**FEATURES, "c": np.empty((0, 6), "f4")})
    assert read(tmp_path)[1].no_tissue == ("c",)


def test_eva_embeddings_of_single_images_are_refused(tmp_path: Path) -> None:
    write_eva(tmp_path, {name: features_ND[:1] for name, features_ND in FEATURES.items()})
    with pytest.raises(ContentError, match=r"each of the 2 entries of manifest.csv holds one vector: embeddings of"):
        read(tmp_path)


def manifest(folder: Path, *rows: str, header: str = "origin,embeddings,target,split") -> None:
    (folder / "manifest.csv").write_text("".join(f"{line}\n" for line in (header, *rows)))


@pytest.mark.parametrize("name", ["../a.pt", "/etc/passwd", "images/../../a.pt"])
def test_eva_manifest_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    write_eva(folder, FEATURES)
    write_tensor(tmp_path / "a.pt", torch.ones(3, 6))
    manifest(folder, f"a.tif,{name},0,train")
    with pytest.raises(ContentError, match=r"manifest\.csv: .* out of the folder"):
        read(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.tif,images/a.pt,0,train", "b.tif,x/a.pt,0,train"], "images/a.pt and x/a.pt would both be bag 'a'; add"),
        (["a.tif,images/a.pt,images/a-mask.pt,train"], "target 'images/a-mask.pt' is a mask"),
        (["a.tif,images/a.pt,0"], "row 2: not the 4 fields of its header"),
        ([], "manifest.csv: no rows; eva was cut off"),
        (["a.tif,images/none.pt,0,train"], "images/none.pt: manifest.csv names this file, but it does not exist"),
    ],
)
def test_eva_manifest_that_cannot_be_followed(tmp_path: Path, rows: list[str], message: str) -> None:
    write_eva(tmp_path, FEATURES)
    manifest(tmp_path, *rows)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(("column", "other"), [("target", "1,train"), ("split", "0,test")])
def test_eva_rows_of_a_slide_that_disagree(tmp_path: Path, column: str, other: str) -> None:
    write_eva(tmp_path, FEATURES)
    rows = ["a.tif,images/a.pt,0,train,s", f"b.tif,images/b.pt,{other},s"]
    manifest(tmp_path, *rows, header="origin,embeddings,target,split,wsi_id")
    with pytest.raises(ContentError, match=f"bag 's' has {column} .* and .*; expected the same in all of its rows"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(6), torch.ones(5)], "holds vectors of different widths"),
        ([torch.ones(6, 2, 2)], r"shape \[6, 2, 2\], expected one row per tile"),
        ({"a": torch.ones(3, 6)}, "no tensor or list of tensors as eva writes them"),
        (torch.ones(3, 6, dtype=torch.int64), "dtype int64, expected features"),
    ],
)
def test_eva_file_of_another_kind_is_one_bag(tmp_path: Path, value: Any, message: str) -> None:
    write_eva(tmp_path, FEATURES)
    write_tensor(tmp_path / "images" / "b.pt", value)
    only_bad(tmp_path, "b", message)


def test_eva_files_of_one_slide_with_different_widths(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES, rows_per_file=2)
    write_tensor(tmp_path / "images" / "a_2.pt", torch.ones(2, 5))
    only_bad(tmp_path, "a", r"bag 'a': its vectors have widths \[5, 6\], expected one width", ContentError)


def test_eva_manifest_that_ends_inside_a_line_is_refused(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES)
    content = (tmp_path / "manifest.csv").read_bytes()
    (tmp_path / "manifest.csv").write_bytes(content[:-4])  # the split "val" would be "v"
    with pytest.raises(DataError, match=r"manifest\.csv: its last line has no end, so the table may be cut"):
        read(tmp_path)


def test_eva_list_without_its_manifest_says_what_is_missing(tmp_path: Path) -> None:
    write_eva(tmp_path, FEATURES)
    with pytest.raises(
        DataError, match=r"a list of 4 tensors, as eva writes them; give the folder with its manifest\.csv"
    ):
        detect(tmp_path / "images" / "a.pt")


# --- LazySlide ---


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("part", [".", "tables/uni_tiles"])
def test_lazyslide_folder_is_answered_with_the_export(tmp_path: Path, zarr_format: int, part: str) -> None:
    write_lazyslide(tmp_path / "s.zarr", zarr_format=zarr_format)
    unit = tmp_path / "s.zarr" / part
    assert detect(unit).format.name == "lazyslide-zarr"
    with pytest.raises(ContentError, match=r"zarr folder as LazySlide writes it.*numpy.savez\('SLIDE.npz', features="):
        detect(unit).format.open(unit, ReadOptions())


def test_other_zarr_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    with pytest.raises(DataError, match="no known format has that"):
        detect(tmp_path)
