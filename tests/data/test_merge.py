"""Joining stores keeps every byte and every label, and refuses what does not belong together."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.data.merge import main, merge
from asmil.data.schema import DatasetFacts
from asmil.data.store import BagStore
from asmil.data.tables.given import GivenFold, GivenSplits
from asmil.data.verify import damages
from asmil.data.writer import BagWriter
from asmil.errors import DataError, EnvironmentProblem, IntegrityError
from tests.data.stores import draw_bags, flip_bit, shard_paths, write_store

FACTS = DatasetFacts(encoder="uni_v1", mpp=0.5, magnification=20, tile_size=256, coord_unit="level0_px")


def named(prefix: str, lengths: Sequence[int], *, num_features: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    bags = draw_bags(lengths, num_features, seed)
    return {f"{prefix}{name}": features_ND for name, features_ND in bags.items()}


def two_stores(tmp_path: Path, **second: Any) -> list[str]:
    """Stores `a` and `b`; what is given changes the second."""
    facts = FACTS.model_copy(update=second.pop("facts", {}))
    first_labels, second_labels = second.pop("labels", (None, None))
    write_store(tmp_path / "a", named("a", [3, 5]), facts=FACTS, labels=first_labels)
    bags = named("b", [2, 4], num_features=second.pop("num_features", 3), seed=1)
    write_store(tmp_path / "b", bags, facts=facts, labels=second_labels, **second)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def said(uris: Sequence[str], out: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    merge(uris, out, say=lines.append, **options)
    return lines


# ---- bytes -----------------------------------------------------------------------------------------------------------


def bits_of(dtype: str) -> st.SearchStrategy[int]:
    """Bit patterns of finite values: subnormals, -0.0 and the largest among them."""
    widest = {"float16": 0x7BFF, "bfloat16": 0x7F7F, "float32": 0x7F7F_FFFF}[dtype]
    sign = {"float16": 0x8000, "bfloat16": 0x8000, "float32": 0x8000_0000}[dtype]
    magnitude = st.integers(0, widest) | st.sampled_from([0, 1, widest])
    return st.builds(lambda value, is_negative: value | (sign if is_negative else 0), magnitude, st.booleans())


@st.composite
def stored_bags(draw: st.DrawFn) -> tuple[str, list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]]:
    dtype = draw(st.sampled_from(["float16", "float32", "bfloat16"]))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    coords = draw(st.sampled_from(["<i4", "<f4", None]))
    has_labels = draw(st.booleans())
    bags = []
    for length in lengths:
        bits = draw(st.lists(bits_of(dtype), min_size=2 * length, max_size=2 * length))
        raw = np.array(bits, dtype="<u4" if dtype == "float32" else "<u2").reshape(length, 2)
        features_ND = raw if dtype == "bfloat16" else raw.view({"float16": "<f2", "float32": "<f4"}[dtype])
        places = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2 * length, max_size=2 * length))
        truths = draw(st.lists(st.integers(-128, 127), min_size=length, max_size=length))
        coords_N2 = None if coords is None else np.array(places).reshape(length, 2).astype(coords)
        bags.append((features_ND, coords_N2, np.array(truths, dtype=np.int8) if has_labels else None))
    return dtype, bags


def write(directory: Path, dtype: Any, bags: Mapping[str, Any]) -> str:
    with BagWriter(directory, num_features=2, dtype=dtype, target_shard_bytes=64) as writer:
        for slide_id, (features_ND, coords_N2, truths_N) in bags.items():
            writer.add(slide_id, features_ND, coords_N2=coords_N2, instance_labels_N=truths_N)
    return str(directory)


@settings(max_examples=40, deadline=None)
@given(stored=stored_bags(), data=st.data())
def test_parts_joined_are_the_store_written_at_once(
    stored: tuple[str, list[Any]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtype, bags = stored
    folder = tmp_path_factory.mktemp("merge")
    by_id = {f"S{number}": bag for number, bag in enumerate(bags)}
    cuts = sorted(data.draw(st.sets(st.integers(1, len(bags) - 1), max_size=3))) if len(bags) > 1 else []
    ids = list(by_id)
    pieces = [ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    uris = [
        write(folder / f"part{number}", dtype, {slide_id: by_id[slide_id] for slide_id in piece})
        for number, piece in enumerate(pieces)
    ]
    whole = BagStore.open(write(folder / "whole", dtype, by_id))
    info = merge(uris, folder / "joined", target_shard_bytes=64, say=lambda line: None)
    joined = BagStore.open(str(folder / "joined"))
    assert info == joined.info
    assert joined.slide_ids == whole.slide_ids
    assert info.dataset_id == whole.info.dataset_id
    assert info.shards == whole.info.shards  # names, sizes and hashes: the same files
    assert (folder / "joined" / "index.arrow").read_bytes() == (folder / "whole" / "index.arrow").read_bytes()
    assert not list(damages(joined))


def test_bags_lie_in_the_order_of_the_stores_given(tmp_path: Path) -> None:
    first, second = two_stores(tmp_path)
    merge([second, first], tmp_path / "out", say=lambda line: None)
    store = BagStore.open(str(tmp_path / "out"))
    assert store.slide_ids == ("bS0", "bS1", "aS0", "aS1")
    for uri in (first, second):
        part = BagStore.open(uri)
        for slide_id in part.slide_ids:
            assert torch.equal(store.read(slide_id).features_ND, part.read(slide_id).features_ND)
            assert torch.equal(store.read(slide_id).coords_N2, part.read(slide_id).coords_N2)


def test_a_damaged_bag_stops_the_copy_and_leaves_nothing(tmp_path: Path) -> None:
    uris = two_stores(tmp_path)
    store = BagStore.open(uris[1])
    flip_bit(shard_paths(tmp_path / "b")[0], store.index.row("bS1").feat_offset + 3)
    with pytest.raises(IntegrityError, match=r"bag 'bS1', features: checksum mismatch"):
        merge(uris, tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = two_stores(tmp_path)
    sync = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match="free space"):
        merge(uris, tmp_path / "out", target_shard_bytes=1, say=lambda line: None)
    assert len(calls) == 3
    assert not (tmp_path / "out").exists()


def test_an_existing_store_is_never_written_over(tmp_path: Path) -> None:
    uris = two_stores(tmp_path)
    with pytest.raises(DataError, match="expected an empty directory, found a store"):
        merge(uris, tmp_path / "a", say=lambda line: None)
    assert not list(damages(BagStore.open(uris[0])))


# ---- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"num_features": 4}, "num_features is 4, but {a} says 3"),
        ({"dtype": "float32"}, "dtype is 'float32', but {a} says 'float16'"),
        ({"facts": {"encoder": "conch"}}, "encoder is 'conch', but {a} says 'uni_v1'"),
        ({"facts": {"mpp": 0.25}}, "mpp is 0.25, but {a} says 0.5"),
        ({"facts": {"magnification": 40.0}}, "magnification is 40.0, but {a} says 20.0"),
        ({"facts": {"tile_size": 224}}, "tile_size is 224, but {a} says 256"),
        ({"facts": {"coord_unit": "um"}}, "coord_unit is 'um', but {a} says 'level0_px'"),
    ],
)
def test_contradictions_name_field_and_both_stores(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    uris = two_stores(tmp_path, **second)
    with pytest.raises(DataError) as caught:
        merge(uris, tmp_path / "out", assume_same=True, say=lambda line: None)
    assert str(caught.value).startswith(f"{uris[1]}: {message.format(a=uris[0])}")
    assert not (tmp_path / "out").exists()


def test_coordinates_in_one_store_only_are_a_contradiction(tmp_path: Path) -> None:
    uris = two_stores(tmp_path)
    with BagWriter(tmp_path / "c", num_features=3, facts=FACTS) as writer:
        writer.add("c", np.ones((2, 3), dtype=np.float32))
    with pytest.raises(DataError, match=r"coord_dtype is None, but .* says 'int32'"):
        merge([uris[0], str(tmp_path / "c")], tmp_path / "out", assume_same=True, say=lambda line: None)
    with BagWriter(tmp_path / "d", num_features=3, facts=FACTS) as writer:
        pairs = np.ones((2, 2), dtype=np.int32)
        writer.add("d", np.ones((2, 3), dtype=np.float32), coords_N2=pairs, instance_labels_N=np.array([0, 1]))
    with pytest.raises(DataError, match=r"has_instance_labels is True, but .* says False"):
        merge([uris[0], str(tmp_path / "d")], tmp_path / "out", say=lambda line: None)


@pytest.mark.parametrize("known_first", [True, False])
def test_what_is_unknown_in_one_store_is_refused_unless_assumed(tmp_path: Path, known_first: bool) -> None:
    uris = two_stores(tmp_path, facts={"encoder": None, "coord_origin": None})
    ordered = uris if known_first else uris[::-1]
    with pytest.raises(DataError) as caught:
        merge(ordered, tmp_path / "out", say=lambda line: None)
    assert str(caught.value).startswith(f"{uris[1]}: encoder is unknown, but {uris[0]} says 'uni_v1'")
    assert "--assume-same" in str(caught.value)
    info = merge(ordered, tmp_path / "out", assume_same=True, say=lambda line: None)
    assert (info.encoder, info.coord_origin) == ("uni_v1", None)


def test_facts_are_kept_where_they_agree_and_parts_keep_theirs(tmp_path: Path) -> None:
    write_store(tmp_path / "a", named("a", [2]), facts=DatasetFacts(facts={"x": 1, "y": 2}, provenance={"from": "A"}))
    other = DatasetFacts(facts={"x": 1, "y": 3, "z": 4}, provenance={"from": "B"}, simulated=True)
    write_store(tmp_path / "b", named("b", [2], seed=1), facts=other)
    uris = [str(tmp_path / "a"), str(tmp_path / "b")]
    lines = said(uris, tmp_path / "out")
    info = BagStore.open(str(tmp_path / "out")).info
    assert info.facts == {"x": 1}
    assert "facts that differ between the stores are kept only in the provenance: y, z" in lines
    assert info.simulated
    assert f"warning: the new store counts as simulated because some stores are: {uris[1]}" in lines
    assert lines[-1].endswith("simulated")
    first, second = info.provenance["parts"]
    assert (first["store"], first["provenance"], first["facts"]) == (uris[0], {"from": "A"}, {"x": 1, "y": 2})
    assert (second["num_bags"], second["simulated"]) == (1, True)
    assert [part["dataset_id"] for part in (first, second)] == [BagStore.open(uri).info.dataset_id for uri in uris]


# ---- ids and duplicates ----------------------------------------------------------------------------------------------


def test_ids_in_two_stores_are_refused_and_counted(tmp_path: Path) -> None:
    write_store(tmp_path / "a", draw_bags([1] * 14))
    write_store(tmp_path / "b", draw_bags([1] * 12))
    with pytest.raises(DataError, match="12 slide ids are in two stores") as caught:
        merge([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", say=lambda line: None)
    assert "S0, S1, S2, S3, S4, S5, S6, S7, S8, S9 and 2 more" in str(caught.value)
    with pytest.raises(DataError, match="14 slide ids are in two stores"):
        merge([str(tmp_path / "a")] * 2, tmp_path / "out", say=lambda line: None)


def test_one_slide_under_two_ids_is_reported(tmp_path: Path) -> None:
    bags = draw_bags([4, 5, 4])
    write_store(tmp_path / "a", {"first": bags["S0"], "other": bags["S1"]})
    write_store(tmp_path / "b", {"again": bags["S0"], "third": bags["S2"]})
    lines = said([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out")
    assert [line for line in lines if "same features" in line] == [
        "warning: the same features under 2 ids: first, again"
    ]


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_label_tables_are_joined_in_order(tmp_path: Path) -> None:
    first = pd.DataFrame({"slide": ["aS0", "aS1"], "age": [61, 70], "stage": ["I", None], "left": [True, False]})
    second = pd.DataFrame({"left": [True, True], "slide": ["bS0", "bS1"], "age": [50.5, None], "stage": [None, None]})
    merge(two_stores(tmp_path, labels=(first, second)), tmp_path / "out", say=lambda line: None)
    labels = BagStore.open(str(tmp_path / "out")).labels()
    expected = pd.DataFrame(
        {
            "slide": ["aS0", "aS1", "bS0", "bS1"],
            "age": [61, 70, 50.5, None],
            "stage": ["I", None, None, None],
            "left": [True, False, True, True],
        }
    )
    pd.testing.assert_frame_equal(labels, expected, check_dtype=False)


def test_categories_are_text(tmp_path: Path) -> None:
    first = pd.DataFrame({"slide": ["aS0"], "grade": pd.Categorical(["x"])})
    second = pd.DataFrame({"slide": ["bS0"], "grade": ["y"]})
    merge(two_stores(tmp_path, labels=(first, second)), tmp_path / "out", say=lambda line: None)
    assert list(BagStore.open(str(tmp_path / "out")).labels()["grade"]) == ["x", "y"]


def test_one_common_table_is_kept_once(tmp_path: Path) -> None:
    common = pd.DataFrame(
        {"slide": ["aS0", "aS1", "bS0", "bS1", "gone"], "y": [0, 1, 0, 1, 1], "t": [1.5, None] + 3 * [2]}
    )
    lines = said(two_stores(tmp_path, labels=(common, common)), tmp_path / "out")
    assert "5 label rows say again what another row says of the same slide; kept once" in lines
    without = "1 labels without a slide in any of the stores: gone; kept, and training needs data.allow_missing: true"
    assert without in lines
    pd.testing.assert_frame_equal(BagStore.open(str(tmp_path / "out")).labels(), common)


def test_repeated_rows_of_one_table_are_kept_once(tmp_path: Path) -> None:
    table = pd.DataFrame({"slide": ["aS0", "aS0"], "y": [1, 1]})
    write_store(tmp_path / "a", named("a", [3]), labels=table)
    merge([str(tmp_path / "a")], tmp_path / "out", say=lambda line: None)
    pd.testing.assert_frame_equal(BagStore.open(str(tmp_path / "out")).labels(), table[:1])


def test_rows_of_slides_of_another_store_give_way_to_its_rows_under_any_name(tmp_path: Path) -> None:
    """Two stores packed from one table: in each the rows of the other store's slides still have the file's ids."""
    y = [0, 1, 0, 1, 1]
    first = pd.DataFrame({"slide": ["aS0", "aS1", "x/bS0.svs", "bS1.svs", "gone.svs"], "y": y})
    second = pd.DataFrame({"slide": ["x/aS0.svs", "aS1.svs", "bS0", "bS1", "gone.svs"], "y": y})
    uris = two_stores(tmp_path, labels=(first, second))
    for number, ordered in enumerate((uris, uris[::-1])):
        lines = said(ordered, tmp_path / f"out{number}")
        joined = BagStore.open(str(tmp_path / f"out{number}")).labels()
        assert joined is not None
        expected = pd.DataFrame({"slide": ["aS0", "aS1", "bS0", "bS1", "gone.svs"], "y": y})
        pd.testing.assert_frame_equal(joined, expected)
        assert any(line.startswith("5 label rows say again") for line in lines)
        assert any(line.startswith("1 labels without a slide in any of the stores: gone.svs;") for line in lines)


def test_a_slide_takes_its_row_from_another_store_if_its_own_has_none(tmp_path: Path) -> None:
    first = pd.DataFrame({"slide": ["aS0", "aS1", "bS1.svs"], "y": [0, 1, 1]})
    second = pd.DataFrame({"slide": ["bS0"], "y": [0]})
    merge(two_stores(tmp_path, labels=(first, second)), tmp_path / "out", say=lambda line: None)
    joined = BagStore.open(str(tmp_path / "out")).labels()
    assert joined is not None
    assert joined.to_numpy().tolist() == [["aS0", 0], ["aS1", 1], ["bS1", 1], ["bS0", 0]]


def test_other_columns_that_name_the_slide_are_no_contradiction(tmp_path: Path) -> None:
    first = pd.DataFrame({"case": ["aS0", "bS0"], "slide": ["aS0", "bS0.svs"], "y": [0, 1]})
    second = pd.DataFrame({"case": ["aS0", "bS0"], "slide": ["aS0.svs", "bS0"], "y": [0, 1]})
    merge(two_stores(tmp_path, labels=(first, second)), tmp_path / "out", say=lambda line: None)
    joined = BagStore.open(str(tmp_path / "out")).labels()
    assert joined is not None
    assert joined.to_numpy().tolist() == [["aS0", "aS0", 0], ["bS0", "bS0", 1]]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"slide": ["aS0"], "y": [1]}, {"slide": ["bS0"]}, r"/a has columns that .*/b does not have: y"),
        ({"slide": ["aS0"]}, {"slide": ["bS0"], "z": [1]}, r"/b has columns that .*/a does not have: z"),
        (
            {"slide": ["aS0"], "y": [1]},
            {"slide": ["bS0"], "y": ["1"]},
            r"/b: label column 'y' is string, but in .*/a it is int64",
        ),
        (
            {"slide": ["aS0"], "y": [1]},
            {"slide": ["bS0"], "y": [True]},
            r"/b: label column 'y' is bool, but in .*/a it is int64",
        ),
        ({"slide": ["aS0"]}, None, r"/b: there is no label table, but .*/a has one"),
        (None, {"slide": ["bS0"]}, r"/a: there is no label table, but .*/b has one"),
        (
            {"slide": ["aS0", "bS0"], "y": [1, 0]},
            {"slide": ["bS0", "bS1"], "y": [1, 0]},
            r"/a: 1 slides have label rows that differ: bS0 \(y: 1 in .*/b, 0 in .*/a\); correct",
        ),
        (
            {"slide": ["aS0", "bS0.svs"], "y": [1, 0]},
            {"slide": ["bS0", "bS1"], "y": [1, 0]},
            r"/a: 1 slides have label rows that differ: bS0 \(y: 1 in .*/b, 0 in .*/a\); correct",
        ),
        (
            {"slide": ["aS0", "gone"], "y": [1, 0]},
            {"slide": ["bS0", "gone"], "y": [1, 1]},
            r"/b: 1 slides have label rows that differ: gone \(y: 0 in .*/a, 1 in .*/b\); correct",
        ),
    ],
)
def test_label_tables_that_do_not_fit_are_refused(
    tmp_path: Path, first: dict[str, Any] | None, second: dict[str, Any] | None, message: str
) -> None:
    tables = tuple(None if columns is None else pd.DataFrame(columns) for columns in (first, second))
    with pytest.raises(DataError, match=message):
        merge(two_stores(tmp_path, labels=tables), tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_imported_splits_stay_with_one_store_and_are_dropped_by_name_with_several(tmp_path: Path) -> None:
    for name in "st":
        with BagWriter(tmp_path / name, num_features=3) as writer:
            for slide_id, features_ND in named(name, [2, 2]).items():
                writer.add(slide_id, features_ND)
            if name == "s":
                fold = GivenFold(name="0", train=("sS0",), test=("sS1",))
                content = GivenSplits(layout="x", files={}, folds=(fold,)).to_bytes()
                writer.set_splits(content)
    lines = said([str(tmp_path / "s"), str(tmp_path / "t")], tmp_path / "both")
    assert f"imported splits are dropped, they do not cover the new store: {tmp_path / 's'}" in lines
    assert BagStore.open(str(tmp_path / "both")).given_splits() is None
    assert not any("imported splits" in line for line in said([str(tmp_path / "s")], tmp_path / "one"))
    assert BagStore.open(str(tmp_path / "one")).given_splits() == content


# ---- command line ----------------------------------------------------------------------------------------------------


def test_the_command_joins_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uris = two_stores(tmp_path, facts={"mpp": None})
    with pytest.raises(DataError, match="mpp is unknown"):
        main([*uris, "--out", str(tmp_path / "out")])
    main([*uris, "--out", str(tmp_path / "out"), "--assume-same"])
    assert f"wrote {tmp_path / 'out'}: 4 bags, 14 instances x 3 float16, dataset " in capsys.readouterr().out
