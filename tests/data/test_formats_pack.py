"""Every format through the command `asmil.data.pack`: what the store holds is what the tool wrote, rounded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asmil.data.pack import main
from asmil.data.sources import FORMATS
from asmil.data.store import BagStore
from asmil.errors import DataError
from tests.data.foreign_units import EXPECTED, WRITERS, format_of

DTYPES = {form.name: form.dtype for form in FORMATS}
CONVERTED = [form.name for form in FORMATS if EXPECTED[form.name].bags]  # variants differ in their readers only


@pytest.mark.parametrize("name", CONVERTED)
def test_the_store_holds_what_the_tool_wrote(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    WRITERS[name](tmp_path / "source")
    main([str(tmp_path / "source"), "--out", str(tmp_path / "store"), "--workers", "1"])
    expected = EXPECTED[name]
    store = BagStore.open(str(tmp_path / "store"))
    assert set(store.slide_ids) == expected.bags.keys()
    assert store.info.provenance["no_tissue"] == list(expected.no_tissue)
    dtype = DTYPES[format_of(name)]
    for slide_id, source in expected.bags.items():
        bag = store.read(slide_id)
        np.testing.assert_array_equal(bag.features_ND.numpy(), source.features_ND.astype(dtype))
        assert str(bag.features_ND.dtype) == f"torch.{dtype}"
        for stored, written in ((bag.coords_N2, source.coords_N2), (bag.instance_labels_N, source.instance_labels_N)):
            assert (stored is None) == (written is None)
            if stored is not None and written is not None:
                np.testing.assert_array_equal(stored.numpy(), written)
    labels = store.labels()
    kept = {} if labels is None else labels.set_index("slide").to_dict(orient="index")
    for slide_id, row in expected.labels.items():
        assert {column: kept[slide_id][column] for column in row} == row
    said = capsys.readouterr()
    assert format_of(name) in said.out + said.err


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if not expected.bags])
def test_a_unit_without_bags_is_answered_and_leaves_no_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    WRITERS[name](tmp_path / "source")
    with pytest.raises(DataError, match=r"tissue|where spatialdata is installed"):
        main([str(tmp_path / "source"), "--out", str(tmp_path / "store"), "--workers", "1"])
    assert not (tmp_path / "store" / "dataset.json").exists()


def test_a_folder_of_three_formats_is_refused_with_the_list(tmp_path: Path) -> None:
    for name in ("clam-h5", "tensor-pt", "dsmil-csv"):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True)
        WRITERS[name](folder)
    with pytest.raises(DataError) as refused:
        main([str(tmp_path / "source"), "--out", str(tmp_path / "store"), "--workers", "1"])
    for part in ("mix 3 formats", "1 x clam-h5", "1 x tensor-pt", "1 x dsmil-csv"):
        assert part in str(refused.value)


def test_a_damaged_bag_of_a_folder_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = WRITERS["torchmil"](tmp_path)
    damaged = unit / "features" / "bag_1.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    main([str(unit), "--out", str(tmp_path / "store"), "--workers", "1"])
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("bag_10", "bag_2")
    said = capsys.readouterr()
    assert f"left out: bag_1: {damaged} declares shape [4, 6]" in said.out + said.err


@pytest.mark.parametrize("name", ["npy", "clam-h5"])
def test_a_label_column_that_a_reader_would_not_drop_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    unit = WRITERS[name](tmp_path)
    words = [str(unit), "--out", str(tmp_path / "store"), "--drop-last-column", "--keep-augmented", "--workers", "1"]
    with pytest.raises(DataError) as refused:
        main(words)
    assert str(refused.value).startswith(f"--drop-last-column: {name} files have no use for it; formats that do: uci")
    assert f"; --keep-augmented: {name} files have no use for it; formats that do: marugoto-h5; " in str(refused.value)
    assert not (tmp_path / "store").exists()
