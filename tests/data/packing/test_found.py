"""Which files of the sources are converted, which are left alone, and what a mixture is answered with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from asmil.data.packing.scan import fingerprint
from asmil.data.packing.walk import FoundUnits, find_units
from asmil.data.store import BagStore
from asmil.errors import DataError, EnvironmentProblem
from tests.data.foreign import classic_set, svm_lines, tiles, write_acmil, write_clam, write_trident
from tests.data.packing.support import options, run, write_slides


def found_below(*paths: Path) -> FoundUnits:
    return find_units(paths, lambda _: False)


# --- what is found ---


def test_folders_are_searched_all_levels_down_files_before_subfolders(tmp_path: Path) -> None:
    names = ["b.h5", "a.h5", "z/inner/d.h5", "c/e.hdf5", "c/f.pt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = found_below(tmp_path)
    assert found.units == [tmp_path / name for name in ["a.h5", "b.h5", "c/e.hdf5", "c/f.pt", "z/inner/d.h5"]]
    assert (found.ignored, found.given) == ([], set())


def test_slides_of_nested_folders_become_one_store(tmp_path: Path) -> None:
    write_slides(tmp_path / "features", ["S1"])
    write_slides(tmp_path / "features/site_b", ["S0"])
    run([tmp_path / "features"], tmp_path / "store")
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("S1", "S0")


def test_hidden_and_temporary_files_and_stores_are_left_alone_and_said(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0"])
    for name in (".hidden.h5", "S0.h5.lock", "S1.h5.tmp", "S2.h5.part"):
        (source / name).write_bytes(b"x")
    (source / ".git").mkdir()
    write_slides(source / ".git", ["S8"])
    run([source], source / "store")
    said = run([source], tmp_path / "again")
    assert "left alone in the source folder: .hidden.h5, S0.h5.lock, S1.h5.tmp, S2.h5.part, store" in said
    assert BagStore.open(str(tmp_path / "again")).slide_ids == ("S0",)


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0"])
    (source / "loop").symlink_to(source)
    run([source], tmp_path / "store")
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("S0",)


def test_hdf5_is_found_by_content_under_any_suffix(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0"])
    (source / "S0.h5").rename(source / "S0.features")
    (source / "readme.md").write_text("about")
    said = run([source], tmp_path / "store")
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("S0.features",)
    assert "left alone in the source folder: readme.md" in said


def test_a_table_beside_the_slides_is_left_alone_but_a_damaged_slide_is_reported(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0", "S1"])
    (source / "labels.csv").write_text("slide,label\nS0,1\n")
    (source / "S1.h5").write_bytes(b"")
    said = run([source], tmp_path / "store")
    assert "left alone in the source folder: labels.csv" in said
    info = BagStore.open(str(tmp_path / "store")).info
    assert list(info.provenance["left_out"]) == [str(source / "S1.h5")]
    assert "empty (0 bytes)" in info.provenance["left_out"][str(source / "S1.h5")]


def test_files_named_one_by_one_are_reported_when_they_are_unknown(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0"])
    (source / "labels.csv").write_text("slide,label\nS0,1\n")
    run([source / "S0.h5", source / "labels.csv"], tmp_path / "store")
    assert list(BagStore.open(str(tmp_path / "store")).info.provenance["left_out"]) == [str(source / "labels.csv")]


# --- what is refused ---


def test_a_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    write_slides(tmp_path / "features", ["S0"])
    with pytest.raises(DataError, match=r"feature: no such file or folder; did you mean .*/features\?$"):
        run([tmp_path / "feature"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_without_feature_files_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.svs", "b.svs", "c.json"):
        (tmp_path / "images" / name).write_text("x")
    with pytest.raises(DataError, match=r"nothing in this folder is a feature file: it holds 2 x \.svs, 1 x \.json; "):
        run([tmp_path / "images"], tmp_path / "store")
    (tmp_path / "features").mkdir()
    with pytest.raises(DataError, match=r"nothing in this folder is a feature file; it is empty$"):
        run([tmp_path / "features"], tmp_path / "store")


def test_a_folder_that_may_not_be_listed_is_a_problem_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(EnvironmentProblem, match=r"closed: cannot be searched \(Permission denied\); make it readable"):
        found_below(tmp_path / "closed")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/S\xff.h5", "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match="this name is not UTF-8; rename the file or folder"):
        found_below(tmp_path)


def test_three_formats_in_one_folder_are_refused_with_the_whole_list(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "all", ["T0", "T1"])
    (source / "clam").mkdir()
    write_clam(source / "clam/C0.h5", *tiles(3))
    write_acmil(source / "acmil.h5", [("A0", *tiles(3), 1)])
    with pytest.raises(DataError) as refused:
        run([source], tmp_path / "store")
    assert str(refused.value) == (
        f"the sources mix 3 formats: 2 x trident-h5 in {source} (such as T0.h5); 1 x acmil-h5 in {source} (such as "
        f"acmil.h5); 1 x clam-h5 in {source}/clam (such as C0.h5); a store is made from one format: give the folder "
        "of one of them, and convert the others to separate stores"
    )
    assert not (tmp_path / "store").exists()


def test_other_columns_are_refused_with_one_example_of_each(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0", "S1"])
    write_trident(source / "S2.h5", *tiles(4, 9))
    with pytest.raises(DataError, match=r"2 with 6 features, int32 .*slide S0\); 1 with 9 features, .*slide S2\)"):
        run([source], tmp_path / "store")


# --- companions ---


def test_the_table_that_belongs_to_a_format_is_no_unit(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/fox.svm").write_text("\n".join(svm_lines(classic_set())))
    found = found_below(tmp_path / "set")
    assert found.units == [tmp_path / "set/fox.svm"]
    (tmp_path / "set/bags.index.npz").write_bytes(b"x")
    found = found_below(tmp_path / "set")
    assert (found.units, found.sidecars) == ([tmp_path / "set/fox.svm"], [tmp_path / "set/bags.index.npz"])


def test_companions_are_left_alone_and_the_same_names_without_their_format_are_not(tmp_path: Path) -> None:
    import torch

    source = tmp_path / "slideflow"
    source.mkdir()
    features_ND, coords_N2 = tiles(4)
    torch.save(torch.from_numpy(features_ND), source / "S0.pt")
    np.savez(source / "S0.index.npz", coords_N2)
    said = run([source], tmp_path / "store", options(dtype="float32"))
    store = BagStore.open(str(tmp_path / "store"))
    assert store.slide_ids == ("S0",)
    np.testing.assert_array_equal(store.read("S0").features_ND.numpy(), features_ND)
    assert store.info.provenance["left_out"] == {}
    assert any("S0.index.npz" in line for line in said)


# --- fingerprints ---


def test_a_fingerprint_sees_size_and_time_of_everything_below(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"1")
    os.utime(folder / "x", ns=(5, 5))
    before = fingerprint(tmp_path / "a")
    assert fingerprint(folder / "x") == "1 bytes, mtime 5"
    assert fingerprint(tmp_path / "absent") == "absent"
    os.utime(folder / "x", ns=(5, 6))
    after = fingerprint(tmp_path / "a")
    (folder / "y").touch()
    assert len({before, after, fingerprint(tmp_path / "a")}) == 3


def test_an_id_too_long_for_a_reply_is_refused_as_an_id(tmp_path: Path) -> None:
    name = "x" * 5000
    (tmp_path / "clean.data").write_text(f"{name},{name}_1+1,1,2,3,1.\nb,b_1+1,4,5,6,0.\n")
    with pytest.raises(DataError, match=r"1 bad slide ids: 'x{100,}'; allowed are 1 to 128"):
        run([tmp_path / "clean.data"], tmp_path / "store")
