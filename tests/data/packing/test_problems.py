"""What cannot be read is left out and listed; what its producer must correct is collected and refused together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from asmil.data.store import BagStore
from asmil.errors import DataError, EnvironmentProblem
from tests.data.foreign import tiles, write_trident
from tests.data.packing.support import (
    contents,
    limits,
    options,
    run,
    set_faults,
    spoil,
    write_large_slides,
    write_slides,
)

NAMES = ["S0", "S1", "S2"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_slides(tmp_path / "features", NAMES)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_coordinates(path: Path) -> None:
    """Keep one coordinate less than there are features."""
    with h5py.File(path, "r+") as file:
        file["coords"].resize(len(file["features"]) - 1, axis=0)


# --- unreadable ---


def test_an_unreadable_file_is_left_out_and_the_command_succeeds(source: Path, tmp_path: Path) -> None:
    cut(source / "S1.h5")
    out = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"left out: {source}/S1.h5: cannot be read as HDF5" in done.stdout
    assert f"1 left out: {source}/S1.h5; the reasons are in {out}/dataset.json" in done.stdout
    store = BagStore.open(str(out))
    assert store.slide_ids == ("S0", "S2")
    assert list(store.info.provenance["left_out"]) == [f"{source}/S1.h5"]
    assert "make or copy it again" in store.info.provenance["left_out"][f"{source}/S1.h5"]


def test_strict_refuses_what_would_be_left_out_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    cut(source / "S1.h5")
    with pytest.raises(DataError, match=r"S1\.h5: cannot be read as HDF5 .*; --strict was given$"):
        run([source], tmp_path / "store", options(strict=True))
    assert not (tmp_path / "store").exists()


def test_a_folder_of_unreadable_files_names_the_first_and_counts_the_others(source: Path, tmp_path: Path) -> None:
    for name in NAMES:
        cut(source / f"{name}.h5")
    with pytest.raises(DataError, match=r"^none of 3 files can be converted \(3 unreadable\): .*S0\.h5.*; also "):
        run([source], tmp_path / "store")


def test_of_many_problems_the_first_twenty_are_said_and_all_are_kept(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["good", *(f"bad{i:02d}" for i in range(25))])
    for path in source.glob("bad*.h5"):
        path.write_bytes(path.read_bytes()[:700])
    said = run([source], tmp_path / "store")
    assert sum(line.startswith("left out: ") for line in said) == 20
    assert "more are listed at the end" in said
    assert any(line.startswith("25 left out: ") and "and 5 more" in line for line in said)
    assert len(BagStore.open(str(tmp_path / "store")).info.provenance["left_out"]) == 25


# --- to be corrected ---


def test_values_that_cannot_be_stored_are_collected_from_all_shards_and_refused_together(tmp_path: Path) -> None:
    source = write_large_slides(tmp_path / "features", ["S0", "S1", "S2", "S3"])
    spoil(source / "S1.h5", np.nan)
    spoil(source / "S3.h5", 1e6, row=5)
    with pytest.raises(DataError) as refused:
        run([source], tmp_path / "store")
    first, *lines = str(refused.value).split("\n  ")
    assert first == "2 slides or files cannot be converted; correct them, or leave them out with --skip-bad:"
    assert lines[0].startswith("S1: 1 feature values are NaN or infinite and 0 exceed the float16 range of ±65504, ")
    assert lines[0].endswith("first in row 2; extract the slide again")
    assert lines[1].startswith("S3: 0 feature values are NaN or infinite and 1 exceed the float16 range of ±65504, ")
    assert lines[1].endswith("first in row 5; use a wider dtype, or clip them (--dtype, --clip)")
    with pytest.raises(DataError):
        BagStore.open(str(tmp_path / "store"))


def test_what_the_scan_finds_is_refused_before_features_are_read(source: Path, tmp_path: Path) -> None:
    drop_coordinates(source / "S1.h5")
    write_trident(source / "bad id.h5", *tiles(3))
    with pytest.raises(DataError, match=r"1 bad slide ids: 'bad id'; allowed are .* leave them out with --skip-bad"):
        run([source], tmp_path / "store")
    (source / "bad id.h5").unlink()
    with pytest.raises(DataError, match=r"S1\.h5: /coords has shape \[4, 2\], expected \[5, 2\].*; correct it, or"):
        run([source], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_skip_bad_leaves_out_and_lists_everything(source: Path, tmp_path: Path) -> None:
    spoil(source / "S0.h5", np.inf)
    drop_coordinates(source / "S1.h5")
    write_trident(source / "bad id.h5", *tiles(3))
    said = run([source], tmp_path / "store", options(skip_bad=True))
    store = BagStore.open(str(tmp_path / "store"))
    assert store.slide_ids == ("S2",)
    assert sorted(store.info.provenance["left_out"]) == [str(source / "S1.h5"), "S0", "bad id"]
    assert sum(line.startswith("left out: ") for line in said) == 3


def test_clip_counts_by_slide_and_still_refuses_nan(source: Path, tmp_path: Path) -> None:
    spoil(source / "S0.h5", 1e6)
    spoil(source / "S0.h5", -1e6, row=3)
    spoil(source / "S2.h5", 7e4)
    said = run([source], tmp_path / "store", options(clip=True))
    store = BagStore.open(str(tmp_path / "store"))
    assert store.info.provenance["clipped"] == {"S0": 2, "S2": 1}
    assert "clipped: 2 values of S0, 1 values of S2" in said
    features_ND = store.read("S0").features_ND
    assert (features_ND[2, 1].item(), features_ND[3, 1].item()) == (65504.0, -65504.0)
    spoil(source / "S1.h5", np.nan)
    with pytest.raises(DataError, match=r"S1: 1 feature values are NaN or infinite and 0 exceed"):
        run([source], tmp_path / "again", options(clip=True))


def test_float32_keeps_what_overflows_float16(source: Path, tmp_path: Path) -> None:
    spoil(source / "S0.h5", 1e6)
    run([source], tmp_path / "store", options(dtype="float32"))
    assert BagStore.open(str(tmp_path / "store")).read("S0").features_ND[2, 1].item() == 1e6


# --- corrected ---


def test_resume_after_a_correction_converts_only_what_changed(tmp_path: Path) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1", "S2", "S3"]), tmp_path / "store"
    run([source], tmp_path / "reference")
    spoil(source / "S1.h5", np.nan)
    with pytest.raises(DataError, match=r"S1: 1 feature values"):
        run([source], out)
    kept = {path.name: path.stat().st_ino for path in out.glob("shards/*.arrow")}
    assert sorted(kept) == ["part-00000.arrow", "part-00002.arrow", "part-00003.arrow"]
    write_trident(source / "S1.h5", *tiles(351, 1_600))
    said = run([source], out, options(resume=True))
    assert f"corrected since: {source}/S1.h5" in said
    assert "3 of 4 shards were finished before and are kept" in said
    assert {name: (out / "shards" / name).stat().st_ino for name in kept} == kept
    assert contents(out) == contents(tmp_path / "reference")


def test_a_file_that_was_left_out_and_then_replaced_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1", "S2"]), tmp_path / "store"
    run([source], tmp_path / "reference")
    spoil(source / "S2.h5", np.nan)
    set_faults(monkeypatch, read={"S1": "exit"})
    with pytest.raises(DataError, match=r"S2: 1 feature values"):
        run([source], out)
    monkeypatch.undo()
    assert json.loads((out / ".pack/part-00001.json").read_text())["result"]["info"] is None
    for position in (1, 2):
        write_trident(source / f"S{position}.h5", *tiles(350 + position, 1_600))
    said = run([source], out, options(resume=True))
    assert f"corrected since: {source}/S1.h5, {source}/S2.h5" in said
    assert "1 of 3 shards were finished before and are kept" in said
    assert contents(out) == contents(tmp_path / "reference")


@pytest.mark.parametrize("has_more_memory", [False, True])
def test_a_slide_that_was_left_out_is_tried_again_under_other_limits_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_more_memory: bool
) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1", "S2"]), tmp_path / "store"
    spoil(source / "S2.h5", np.nan)
    set_faults(monkeypatch, read={"S1": "exit"})
    with pytest.raises(DataError, match=r"S2: 1 feature values"):
        run([source], out, options(limits=limits()))
    monkeypatch.undo()
    write_trident(source / "S2.h5", *tiles(352, 1_600))
    given = limits(memory_bytes=9 << 30) if has_more_memory else limits()
    run([source], out, options(resume=True, limits=given))
    store = BagStore.open(str(out))
    assert store.slide_ids == (("S0", "S1", "S2") if has_more_memory else ("S0", "S2"))
    assert list(store.info.provenance["left_out"]) == ([] if has_more_memory else ["S1"])


def test_a_problem_of_an_earlier_run_may_still_be_corrected_after_a_try_that_read_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1"]), tmp_path / "store"
    run([source], tmp_path / "reference")
    spoil(source / "S1.h5", np.nan)
    with pytest.raises(DataError, match=r"S1: 1 feature values"):
        run([source], out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=0))
    with pytest.raises(EnvironmentProblem, match="0 bytes are free"):
        run([source], out, options(resume=True))
    monkeypatch.undo()
    write_trident(source / "S1.h5", *tiles(351, 1_600))
    run([source], out, options(resume=True))
    assert contents(out) == contents(tmp_path / "reference")


def test_resume_may_decide_otherwise_about_problems(tmp_path: Path) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1", "S2"]), tmp_path / "store"
    spoil(source / "S1.h5", 1e6)
    for given in (options(skip_bad=True), options(clip=True)):
        run([source], tmp_path / f"direct{given.clip}", given)
        with pytest.raises(DataError, match=r"S1: 0 feature values are NaN or infinite and 1 exceed"):
            run([source], out)
        said = run([source], out, replace(given, resume=True))
        assert "2 of 3 shards were finished before and are kept" in said
        assert contents(out) == contents(tmp_path / f"direct{given.clip}")
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_a_file_that_changes_while_it_is_converted_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asmil.data.packing import run as conversion

    write_shards = conversion.write_shards

    def change_then_write(*arguments: object) -> object:
        write_trident(source / "S1.h5", *tiles(5, seed=9))
        return write_shards(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "write_shards", change_then_write)
    with pytest.raises(DataError, match=r"1 sources changed while they were converted: .*S1\.h5; wait until"):
        run([source], tmp_path / "store")
    monkeypatch.undo()
    run([source], tmp_path / "store")
    features_ND = BagStore.open(str(tmp_path / "store")).read("S1").features_ND.numpy()
    np.testing.assert_array_equal(features_ND, tiles(5, seed=9)[0].astype("f2"))


def test_the_reasons_are_in_the_manifest_as_text(source: Path, tmp_path: Path) -> None:
    (source / "S1.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)))
    run([source], tmp_path / "store")
    manifest = json.loads((tmp_path / "store/dataset.json").read_text())
    assert all(reason.isprintable() for reason in manifest["provenance"]["left_out"].values())
