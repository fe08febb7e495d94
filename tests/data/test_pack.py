"""Foreign files in, one checked store out: values, labels, ids, refusals and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, LabelColumns
from asmil.data.pack import PackOptions, main, pack
from asmil.data.packing.matching import LabelOptions
from asmil.data.sources import ReadOptions
from asmil.data.store import BagStore
from asmil.errors import DataError
from tests.data.foreign import (
    classic_set,
    svm_lines,
    tiles,
    uci_lines,
    write_acmil,
    write_clam,
    write_clam_patches,
    write_trident,
)
from tests.data.foreign_tensor import write_eva
from tests.data.reading import read


@pytest.fixture
def trident(tmp_path: Path) -> Path:
    """A folder of three slides, one of them without tissue, and a lock file."""
    folder = tmp_path / "features_uni_v1"
    folder.mkdir()
    for name, size in (("TCGA-01.x", 5), ("TCGA-02.y", 7)):
        write_trident(folder / f"{name}.h5", *tiles(size))
    write_trident(folder / "TCGA-03.z.h5", np.empty((0, 6), "f4"), np.empty((0, 2)))
    (folder / "TCGA-01.x.h5.lock").touch()
    return folder


def packed(sources: Sequence[Path], out: Path, options: PackOptions | None = None) -> tuple[BagStore, list[str]]:
    said: list[str] = []
    pack(sources, out, options, say=said.append)
    return BagStore.open(str(out)), said


def labels_file(folder: Path, rows: Sequence[dict[str, object]], name: str = "labels.csv") -> Path:
    path = folder / name
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def frame_of(store: BagStore) -> pd.DataFrame:
    labels = store.labels()
    assert labels is not None
    return labels


# --- values ---


def test_trident_folder_becomes_a_float16_store_with_facts(trident: Path, tmp_path: Path) -> None:
    store, said = packed([trident], tmp_path / "store")
    assert store.slide_ids == ("TCGA-01.x", "TCGA-02.y")
    for slide_id, size in zip(store.slide_ids, (5, 7), strict=True):
        features_ND, coords_N2 = tiles(size)
        bag = store.read(slide_id)
        np.testing.assert_array_equal(bag.features_ND.numpy(), features_ND.astype(np.float16))
        assert bag.coords_N2 is not None
        np.testing.assert_array_equal(bag.coords_N2.numpy(), coords_N2)
    info = store.info
    assert (info.encoder, info.magnification, info.tile_size, info.coord_unit) == ("uni_v1", 20, 256, "level0_px")
    assert info.facts == {"tile_overlap_px": 0}
    assert info.provenance["no_tissue"] == ["TCGA-03.z"]
    assert (info.provenance["format"], info.provenance["num_files"], info.simulated) == ("trident-h5", 3, False)
    assert said[0] == (
        "3 files: trident-h5, because TCGA-01.x.h5 is HDF5 with features float32 [5, 6], coords int64 [5, 2] and "
        "attributes encoder, name, patch_size, patch_size_level0, savetodir, target_magnification"
    )
    assert said[1] == "left alone in the source folder: TCGA-01.x.h5.lock"
    assert "no tissue, left out: TCGA-03.z" in said
    assert any(line.startswith("no labels:") for line in said)


def test_dtype_can_be_chosen(trident: Path, tmp_path: Path) -> None:
    store, _ = packed([trident], tmp_path / "store", PackOptions(dtype="float32"))
    np.testing.assert_array_equal(store.read("TCGA-02.y").features_ND.numpy(), tiles(7)[0])


def test_single_files_keep_the_order_in_which_they_are_given(trident: Path, tmp_path: Path) -> None:
    store, _ = packed([trident / "TCGA-02.y.h5", trident / "TCGA-01.x.h5"], tmp_path / "store")
    assert store.slide_ids == ("TCGA-02.y", "TCGA-01.x")


def test_same_source_gives_the_same_dataset_id_and_another_value_another(trident: Path, tmp_path: Path) -> None:
    ids = [packed([trident], tmp_path / name)[0].info.dataset_id for name in ("one", "two")]
    assert ids[0] == ids[1]
    features_ND, coords_N2 = tiles(5)
    features_ND[3, 2] += 1
    write_trident(trident / "TCGA-01.x.h5", features_ND, coords_N2)
    assert packed([trident], tmp_path / "three")[0].info.dataset_id != ids[0]


def test_acmil_labels_become_the_label_table(tmp_path: Path) -> None:
    write_acmil(tmp_path / "feats.h5", [("a", *tiles(3), 2), ("b", *tiles(4), 0)])
    store, _ = packed([tmp_path / "feats.h5"], tmp_path / "store")
    assert frame_of(store).to_dict("list") == {"slide": ["a", "b"], "label": [2, 0]}


def test_acmil_slides_of_which_only_some_have_labels_are_refused(tmp_path: Path) -> None:
    write_acmil(tmp_path / "feats.h5", [("a", *tiles(3), 2), ("b", *tiles(4), None)])
    with pytest.raises(DataError, match=r"label 'label' is missing for 1 of 2 slides: b; give --labels TABLE"):
        packed([tmp_path / "feats.h5"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_labels_of_mixed_types_are_refused_before_the_conversion(tmp_path: Path) -> None:
    write_eva(tmp_path / "eva", {"a": tiles(3)[0], "b": tiles(4)[0]})
    manifest = tmp_path / "eva/manifest.csv"
    manifest.write_text(manifest.read_text().replace(",1,val", ",tumor,val"))
    with pytest.raises(DataError, match=r"the label table has a column of mixed types \(.*label"):
        packed([tmp_path / "eva"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_clam_folder_with_its_coordinate_folder(tmp_path: Path) -> None:
    for folder in ("h5_files", "patches"):
        (tmp_path / folder).mkdir()
    for name, size in (("s1", 5), ("s2", 40)):
        write_clam(tmp_path / f"h5_files/{name}.h5", *tiles(size))
        write_clam_patches(tmp_path / f"patches/{name}.h5", tiles(size)[1])
    store, said = packed([tmp_path / "h5_files"], tmp_path / "a", PackOptions(facts={"mpp": 0.5, "encoder": "r50"}))
    assert (store.info.mpp, store.info.tile_size, store.info.encoder) == (0.5, None, "r50")
    assert not any("do not say at what resolution" in line for line in said), "--mpp says it"
    _, said = packed([tmp_path / "h5_files"], tmp_path / "untold")
    assert sum("do not say at what resolution" in line for line in said) == 1
    options = PackOptions(read=ReadOptions(patches=tmp_path / "patches"))
    assert packed([tmp_path / "h5_files"], tmp_path / "b", options)[0].info.tile_size == 256


# --- classic sets ---


def test_svm_store_is_float32_with_numbers_as_text_ids(tmp_path: Path) -> None:
    data = classic_set()
    (tmp_path / "fox").write_text("\n".join(svm_lines(data)) + "\n")
    store, said = packed([tmp_path / "fox"], tmp_path / "store")
    assert (store.slide_ids, store.info.dtype) == (("0", "1", "2"), "float32")
    assert frame_of(store).to_dict("list") == {"slide": ["0", "1", "2"], "label": [1, 1, 0]}
    assert said[0].startswith(f"{tmp_path / 'fox'}: andrews-svm, because it is count line '6 5'")
    for slide_id, bag_ND in zip(store.slide_ids, data.bags, strict=True):
        np.testing.assert_array_equal(store.read(slide_id).features_ND.numpy(), bag_ND)


CLASSIC = ("musk1_clean1.data", "musk2_prtools.mat", "fox_100x100.svm.gz")


@pytest.mark.parametrize("file_name", CLASSIC)
def test_real_classic_set_packs_to_equal_values_and_matches_its_folds(
    shared: Path, tmp_path: Path, file_name: str
) -> None:
    path = shared / "data/classic_mil" / file_name
    store, _ = packed([path], tmp_path / "store")
    _, _, bags = read(path)
    for bag in bags:
        stored_ND = store.read(bag.bag_id).features_ND.numpy()
        np.testing.assert_array_equal(stored_ND, bag.features_ND.astype(np.float32))
    folds = json.loads((shared / f"data/classic_mil/folds/{file_name.split('_')[0]}_seed0.json").read_text())
    cohort = Cohort.open(
        DataConfig(store=str(tmp_path / "store"), labels=LabelColumns(target="label")), independent_bags=True
    )
    assert list(cohort.bag_ids) == folds["bag_order"]
    assert cohort.labels["label"].tolist() == folds["label"]


# --- label tables ---


def test_label_ids_match_exactly_first_and_then_without_the_suffix_of_a_slide_file(
    trident: Path, tmp_path: Path
) -> None:
    table = labels_file(
        tmp_path,
        [
            {"slide_id": "TCGA-02.y.svs", "case": "007", "grade": 3},
            {"slide_id": "TCGA-01.x", "case": "008", "grade": 1},
            {"slide_id": "TCGA-03.z.ome.tif", "case": "009", "grade": 2},
            {"slide_id": "TCGA-99.q.svs", "case": "010", "grade": 2},
        ],
    )
    columns = LabelColumns(id="slide_id", group="case")
    store, said = packed(
        [trident], tmp_path / "store", PackOptions(labels=LabelOptions(table, columns, allow_missing=True))
    )
    assert frame_of(store).to_dict("list") == {
        "slide_id": ["TCGA-02.y", "TCGA-01.x", "TCGA-99.q.svs"],
        "case": ["007", "008", "010"],
        "grade": [3, 1, 2],
    }
    assert any(
        "1 labels without a slide: TCGA-99.q.svs; all of them are listed in dataset.json" in line for line in said
    )


def test_suffixes_are_cut_off_whole_and_not_letter_by_letter(tmp_path: Path) -> None:
    write_trident(tmp_path / "slide_vs.h5", *tiles(3))
    table = labels_file(tmp_path, [{"slide": "slide_vs.svs", "label": 1}])
    store, _ = packed([tmp_path / "slide_vs.h5"], tmp_path / "store", PackOptions(labels=LabelOptions(table)))
    assert frame_of(store)["slide"].tolist() == ["slide_vs"]


def test_two_rows_that_name_one_slide_are_refused(trident: Path, tmp_path: Path) -> None:
    table = labels_file(tmp_path, [{"slide": "TCGA-01.x.svs", "label": 1}, {"slide": "TCGA-01.x", "label": 0}])
    with pytest.raises(DataError, match=r"'TCGA-01\.x\.svs' and 'TCGA-01\.x' both name slide 'TCGA-01\.x'"):
        packed([trident], tmp_path / "store", PackOptions(labels=LabelOptions(table)))


def test_table_that_names_no_slide_or_not_all_of_them_is_refused(trident: Path, tmp_path: Path) -> None:
    wrong = labels_file(tmp_path, [{"slide": "other", "label": 1}])
    with pytest.raises(DataError, match=r"no value of column 'slide' \(other\) is a slide of the source \(TCGA-01\.x"):
        packed([trident], tmp_path / "store", PackOptions(labels=LabelOptions(wrong)))
    table = labels_file(tmp_path, [{"slide": "TCGA-01.x", "label": 1}])
    with pytest.raises(DataError, match=r"1 slides without a label: TCGA-02\.y; .* --allow-missing"):
        packed([trident], tmp_path / "store", PackOptions(labels=LabelOptions(table)))


def test_a_table_replaces_the_labels_inside_the_source(tmp_path: Path) -> None:
    write_acmil(tmp_path / "feats.h5", [("a", *tiles(3), 2), ("b", *tiles(4), 0)])
    table = labels_file(tmp_path, [{"slide": "a", "label": 0}, {"slide": "b", "label": 0}])
    store, said = packed([tmp_path / "feats.h5"], tmp_path / "store", PackOptions(labels=LabelOptions(table)))
    assert frame_of(store)["label"].tolist() == [0, 0]
    assert f"labels are taken from {table}, not from the source (label)" in said


# --- nothing is mixed ---


@pytest.mark.parametrize(
    ("on_features", "on_coords", "message"),
    [
        ({"encoder": "conch"}, {}, r"encoder is 'conch', but .*TCGA-01\.x\.h5 says 'uni_v1'"),
        ({}, {"target_magnification": 10}, r"magnification is 10\.0, but .* says 20\.0"),
        ({}, {"patch_size": 512}, r"tile_size is 512, but .* says 256"),
        ({}, {"overlap": 64}, r"tile_overlap_px is 64, but .* says 0"),
    ],
)
def test_another_encoder_or_resolution_is_refused(
    trident: Path, tmp_path: Path, on_features: dict[str, object], on_coords: dict[str, object], message: str
) -> None:
    write_trident(trident / "TCGA-02.y.h5", *tiles(7), on_features=on_features, on_coords=on_coords)
    with pytest.raises(DataError, match=message):
        packed([trident], tmp_path / "store")


def test_a_fact_that_contradicts_the_files_is_refused_and_unknown_facts_do_not_clash(
    trident: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"encoder is 'uni_v1', but --encoder says 'conch'"):
        packed([trident], tmp_path / "store", PackOptions(facts={"encoder": "conch"}))
    write_trident(trident / "TCGA-02.y.h5", *tiles(7), on_features={"encoder": None})
    assert packed([trident], tmp_path / "store")[0].info.encoder == "uni_v1"


def test_two_formats_in_one_call_are_refused(trident: Path, tmp_path: Path) -> None:
    write_clam(trident / "clam.h5", *tiles(3))
    with pytest.raises(
        DataError, match=r"mix 2 formats: 3 x trident-h5 in .* TCGA-01\.x\.h5\); 1 x clam-h5 in .* clam\.h5\)"
    ):
        packed([trident], tmp_path / "store")


def test_a_slide_in_two_folders_is_refused(trident: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_trident(tmp_path / "again/TCGA-01.x.h5", *tiles(3))
    with pytest.raises(
        DataError, match=r"1 slides are given twice; .*: 'TCGA-01\.x' in .*features_uni_v1/TCGA-01\.x\.h5 and .*again/"
    ):
        packed([trident, tmp_path / "again"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_only_slides_without_tissue_are_refused(trident: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the sources holds a slide with tissue"):
        packed([trident / "TCGA-03.z.h5"], tmp_path / "store")


def test_an_existing_store_is_never_overwritten(trident: Path, tmp_path: Path) -> None:
    before = packed([trident], tmp_path / "store")[0].info
    with pytest.raises(DataError, match=r"expected an empty directory, found a store"):
        packed([trident / "TCGA-01.x.h5"], tmp_path / "store")
    assert BagStore.open(str(tmp_path / "store")).info == before


# --- command line ---


def test_command_line_options_reach_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clam(tmp_path / "s1.h5", *tiles(4))
    table = labels_file(tmp_path, [{"id": "s1", "case": "01", "label": 1}])
    words = f"{tmp_path}/s1.h5 --out {tmp_path}/store --labels {table} --id-column id --group-column case"
    main([*words.split(), "--dtype", "bfloat16", "--mpp", "0.5", "--magnification", "20", "--tile-size", "224"])
    store = BagStore.open(f"{tmp_path}/store")
    info = store.info
    assert (info.dtype, info.mpp, info.magnification, info.tile_size) == ("bfloat16", 0.5, 20, 224)
    assert frame_of(store).to_dict("list") == {"id": ["s1"], "case": ["01"], "label": [1]}
    assert f"wrote {tmp_path}/store: 1 bags, 4 instances x 6 bfloat16" in capsys.readouterr().out


def test_command_prints_one_line_and_ends_with_status_two_on_a_leaking_column(tmp_path: Path) -> None:
    data = classic_set(167)
    (tmp_path / "x").write_text("\n".join(uci_lines(data)) + "\n")
    command = [sys.executable, "-m", "asmil.data.pack", f"{tmp_path}/x", "--out", f"{tmp_path}/store"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/x: 167 feature columns, one more than the 166")
    assert "--drop-last-column" in done.stderr
    assert done.stderr.count("\n") == 1
    main([*command[3:], "--drop-last-column"])
    assert BagStore.open(f"{tmp_path}/store").info.num_features == 166
