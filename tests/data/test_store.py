"""What is written is what is read, and damage never passes for data."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asmil.data.schema import DatasetFacts
from asmil.data.store import BagStore
from asmil.data.verify import main as verify
from asmil.data.writer import BagWriter
from asmil.errors import DataError, IntegrityError, run_command
from asmil.storage import LocalBlocks
from tests.data.stores import draw_bags, flip_bit, shard_paths, write_store


def bfloat16_bits(values_ND: np.ndarray) -> np.ndarray:
    """Round-to-nearest-even on the bits of finite float32 values."""
    bits_ND = values_ND.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits_ND + 0x7FFF + ((bits_ND >> 16) & 1)) >> 16).astype(np.uint16)


def expected_tensor(features_ND: np.ndarray, dtype: str) -> torch.Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(bfloat16_bits(features_ND)).view(torch.bfloat16)
    return torch.from_numpy(features_ND.astype(dtype))


@st.composite
def stores(draw):
    num_features = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    values = st.floats(-60000, 60000, width=32)
    bags = [draw(hnp.arrays(np.float32, (n, num_features), elements=values)) for n in lengths]
    has_coords, has_labels = draw(st.booleans()), draw(st.booleans())
    coord_type = draw(st.sampled_from([np.int64, np.int32, np.float32]))
    coords = [draw(hnp.arrays(coord_type, (n, 2), elements={"min_value": 0, "max_value": 1 << 20})) for n in lengths]
    labels = [draw(hnp.arrays(np.int16, n, elements={"min_value": -128, "max_value": 127})) for n in lengths]
    return bags, coords if has_coords else None, labels if has_labels else None


@settings(max_examples=60, deadline=None)
@given(stores(), st.sampled_from(["float16", "float32", "bfloat16"]), st.sampled_from([1, 2000, 1 << 29]))
def test_every_bag_reads_back_as_it_was_written(drawn, dtype, target_shard_bytes):
    bags, coords, labels = drawn
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "store"
        width = bags[0].shape[1]
        with BagWriter(directory, num_features=width, dtype=dtype, target_shard_bytes=target_shard_bytes) as writer:
            for i, features_ND in enumerate(bags):
                writer.add(
                    f"S{i}",
                    features_ND,
                    coords_N2=None if coords is None else coords[i],
                    instance_labels_N=None if labels is None else labels[i],
                )
        store = BagStore.open(str(directory))
        assert store.slide_ids == tuple(f"S{i}" for i in range(len(bags)))
        for i, features_ND in enumerate(bags):
            bag = store.read(f"S{i}")
            assert bag.bag_id == f"S{i}"
            assert bag.features_ND.dtype == getattr(torch, dtype)
            assert torch.equal(bag.features_ND, expected_tensor(features_ND, dtype))
            assert store.length(f"S{i}") == bag.num_instances == len(features_ND)
            assert bag.slide_offsets.tolist() == [0, len(features_ND)]
            assert (bag.coords_N2 is None) == (coords is None)
            assert (bag.instance_labels_N is None) == (labels is None)
            if coords is not None:
                assert np.array_equal(bag.coords_N2.numpy(), coords[i])
            if labels is not None:
                assert np.array_equal(bag.instance_labels_N.numpy(), labels[i])
        if target_shard_bytes == 1:
            assert len(store.info.shards) == len(bags)


def test_slides_are_read_into_one_allocation_in_the_order_asked_for(tmp_path):
    bags = draw_bags([2, 5, 1, 4])
    store = BagStore.open(str(write_store(tmp_path / "s", bags, dtype="float32", target_shard_bytes=200)))
    packed = store.read_slides(["S3", "S0", "S3"])
    assert np.array_equal(packed.features_MD.numpy(), np.concatenate([bags["S3"], bags["S0"], bags["S3"]]))
    assert packed.slide_offsets.tolist() == [0, 4, 6, 10]
    assert packed.coords_M2[:, 1].tolist() == [0, 2, 4, 6, 0, 2, 0, 2, 4, 6]


def test_every_flipped_bit_gives_an_error_or_the_right_data(tmp_path):
    bags = draw_bags([3, 2])
    directory = write_store(tmp_path / "s", bags)
    [path] = shard_paths(directory)
    store = BagStore.open(str(directory))
    rows = {slide_id: store.index.row(slide_id) for slide_id in bags}
    for position in range(path.stat().st_size):
        bit = position % 8
        flip_bit(path, position, bit)
        for slide_id, row in rows.items():
            inside = (
                row.feat_offset <= position < row.feat_offset + row.feat_nbytes
                or row.coord_offset <= position < row.coord_offset + row.coord_nbytes
            )
            if inside:
                with pytest.raises(IntegrityError, match=rf"part-00000\.arrow.*{slide_id}.*checksum mismatch"):
                    store.read(slide_id)
            else:
                assert torch.equal(store.read(slide_id).features_ND, expected_tensor(bags[slide_id], "float16"))
        flip_bit(path, position, bit)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_verify_finds_a_flipped_bit_anywhere_in_a_store(data):
    with tempfile.TemporaryDirectory() as folder:
        bags = draw_bags([3, 2, 4])
        labels = pd.DataFrame({"slide": list(bags), "target": [0, 1, 1]})
        directory = write_store(Path(folder) / "s", bags, labels, target_shard_bytes=500)
        files = [*shard_paths(directory), directory / "index.arrow", directory / "labels.arrow"]
        path = data.draw(st.sampled_from(files))
        position = data.draw(st.integers(0, path.stat().st_size - 1))
        assert verify([str(directory)]) == 0
        flip_bit(path, position, data.draw(st.integers(0, 7)))
        with pytest.raises(IntegrityError) as caught:
            verify([str(directory)])
        assert caught.value.exit_code == 3
        assert str(directory) in str(caught.value)


def test_verify_lists_the_damaged_shard_and_bag(tmp_path, capsys):
    directory = write_store(tmp_path / "s", draw_bags([3, 2, 4]), target_shard_bytes=1)
    row = BagStore.open(str(directory)).index.row("S1")
    flip_bit(directory / "shards/part-00001.arrow", row.feat_offset)
    with pytest.raises(IntegrityError, match="2 damages"):
        verify([str(directory)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["damaged:", "damaged:"]
    assert "part-00001.arrow has sha256" in lines[0]
    assert "bag 'S1', features: checksum mismatch" in lines[1]


def test_the_exit_status_of_verify(tmp_path, capsys):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]), facts=DatasetFacts(simulated=True))

    def status() -> object:
        with pytest.raises(SystemExit) as left:
            run_command(lambda: verify([str(directory)]))
        return left.value.code

    assert status() == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{directory}: 2 bags, 5 instances, 1 shards: every byte as written; data id ")
    assert out.endswith(", simulated\n")
    flip_bit(directory / "shards/part-00000.arrow", 0)
    assert status() == 3
    (directory / "dataset.json").unlink()
    assert status() == 2


@pytest.mark.parametrize("kept", [0, 0.5, -1])
def test_a_cut_shard_is_refused_at_open(tmp_path, kept):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]))
    [path] = shard_paths(directory)
    size = path.stat().st_size
    left = size - 1 if kept == -1 else int(size * kept)
    os.truncate(path, left)
    with pytest.raises(IntegrityError, match=rf"part-00000\.arrow has {left} bytes, dataset\.json says {size}"):
        BagStore.open(str(directory))


def test_a_shard_cut_while_open_fails_only_the_bags_that_are_gone(tmp_path):
    bags = draw_bags([3, 400])
    directory = write_store(tmp_path / "s", bags)
    [path] = shard_paths(directory)
    store = BagStore.open(str(directory))
    row = store.index.row("S1")
    os.truncate(path, row.feat_offset + 10)
    assert torch.equal(store.read("S0").features_ND, expected_tensor(bags["S0"], "float16"))
    with pytest.raises(IntegrityError, match=rf"bag 'S1'.*expected {row.feat_nbytes} bytes.*got 10"):
        store.read("S1")


def test_a_missing_shard_is_named(tmp_path):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]))
    shard_paths(directory)[0].unlink()
    with pytest.raises(IntegrityError, match=r"part-00000\.arrow is missing"):
        BagStore.open(str(directory))


def test_a_shard_replaced_by_rename_does_not_disturb_an_open_store(tmp_path):
    bags = draw_bags([3, 2])
    directory = write_store(tmp_path / "s", bags)
    [path] = shard_paths(directory)
    store = BagStore.open(str(directory))
    store.read("S0")
    other = write_store(tmp_path / "other", draw_bags([3, 2], seed=1))
    shard_paths(other)[0].replace(path)
    assert torch.equal(store.read("S1").features_ND, expected_tensor(bags["S1"], "float16"))
    with pytest.raises(IntegrityError, match="checksum mismatch"):
        BagStore.open(str(directory)).read("S1")


def test_what_is_no_store_says_why_and_how_to_make_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    half = write_store(tmp_path / "half", draw_bags([3, 2]))
    (half / "dataset.json").unlink()
    for name, reason in {
        "absent": "no such directory",
        "empty": "empty directory",
        "file": "a file, but a store is a directory",
        "half": r"dataset\.json is missing beside index\.arrow, shards, shards/part-00000\.arrow",
    }.items():
        with pytest.raises(DataError, match=reason) as caught:
            BagStore.open(str(tmp_path / name))
        assert caught.value.exit_code == 2
        assert "python -m asmil.data.pack SOURCE --out STORE" in str(caught.value)
        assert "--demo" in str(caught.value)


def edit(directory: Path, **changes: object) -> None:
    path = directory / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_features": 4}, "declares 18 bytes of feat"),
        ({"dtype": "float32"}, "declares 18 bytes of feat"),
        ({"coord_dtype": None}, "bytes of coord"),
        ({"has_instance_labels": True}, "declares 0 bytes of label"),
        ({"num_bags": 3}, "2 bags with 5 instances, expected 3 with 5"),
        ({"index_sha256": "0" * 64}, r"index\.arrow has sha256"),
        ({"shards": []}, "shards"),
        ({"num_features": "many"}, "num_features"),
        ({"shards": [{"name": "../x.arrow", "bytes": 1, "sha256": "0" * 64}]}, r"shards\.0\.name"),
    ],
)
def test_a_manifest_that_contradicts_the_index_is_refused(tmp_path, changes, message):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]))
    edit(directory, **changes)
    with pytest.raises(IntegrityError, match=message):
        BagStore.open(str(directory))


def test_an_index_that_points_outside_its_shard_is_refused(tmp_path):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]))
    store = BagStore.open(str(directory))
    store.index._rows["feat_offset"][1] = store.info.shards[0].bytes - 1
    content = store.index.to_bytes()
    (directory / "index.arrow").write_bytes(content)
    edit(directory, index_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(IntegrityError, match=r"bag 'S1' declares 12 bytes of feat at \d+"):
        BagStore.open(str(directory))


def test_a_store_of_another_version_is_not_guessed_at(tmp_path):
    directory = write_store(tmp_path / "s", draw_bags([3, 2]))
    edit(directory, format="asmil-store/2")
    with pytest.raises(DataError, match=r"'asmil-store/2'.*reads 'asmil-store/1'"):
        BagStore.open(str(directory))


def test_a_restricted_store_knows_only_its_slides(tmp_path):
    bags = draw_bags([3, 2, 4, 1])
    labels = pd.DataFrame({"slide": list(bags), "target": [0, 1, 1, 0]})
    store = BagStore.open(str(write_store(tmp_path / "s", bags, labels)))
    part = store.restrict(["S2", "S0"])
    assert part.slide_ids == ("S0", "S2")
    assert part.labels() is None
    assert torch.equal(part.read("S2").features_ND, store.read("S2").features_ND)
    for use in (part.read, part.length, lambda slide_id: part.restrict([slide_id])):
        with pytest.raises(DataError, match=r"no slide 'S1' in this restricted view.*2 slides"):
            use("S1")
    blob = pickle.dumps(part)
    assert b"S0" in blob
    assert b"S2" in blob
    assert b"S1" not in blob
    assert b"S3" not in blob


def test_a_pickled_store_is_small_and_reads_the_same(tmp_path):
    bags = draw_bags([500] * 50, num_features=16)
    store = BagStore.open(str(write_store(tmp_path / "s", bags)))
    store.read("S7")
    blob = pickle.dumps(store)
    assert len(blob) < 10_000
    assert torch.equal(pickle.loads(blob).read("S7").features_ND, store.read("S7").features_ND)


def test_threads_share_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr("asmil.storage.local.MAX_OPEN_FILES", 2)
    bags = draw_bags(list(range(1, 21)))
    store = BagStore.open(str(write_store(tmp_path / "s", bags, dtype="float32", target_shard_bytes=1)))
    assert len(store.info.shards) == 20
    with ThreadPoolExecutor(4) as pool:
        for slide_id, bag in zip([*bags] * 10, pool.map(store.read, [*bags] * 10), strict=True):
            assert np.array_equal(bag.features_ND.numpy(), bags[slide_id])


def test_addresses_of_local_and_of_remote_places(tmp_path):
    directory = write_store(tmp_path / "s", draw_bags([3]))
    store = BagStore.open(f"file://{directory}")
    assert (store.uri, store.local_root, store.slide_ids) == (str(directory), directory, ("S0",))
    with pytest.raises(DataError, match=r"memory://none: nothing at this address is called dataset\.json"):
        BagStore.open("memory://none")
    with pytest.raises(DataError, match="nope://store: not an address"):
        BagStore.open("nope://store")


def test_a_mapped_slide_is_not_copied_and_writing_to_it_changes_nothing_else(tmp_path):
    bags = draw_bags([3, 2, 4])
    directory = write_store(tmp_path / "s", bags)
    mapped = BagStore.open(str(directory), blocks=lambda location, info: LocalBlocks(directory, is_mapped=True))
    [path] = shard_paths(directory)
    before = path.read_bytes()
    first, again = mapped.read("S1"), mapped.read("S1")
    expected_ND = expected_tensor(bags["S1"], "float16")
    assert torch.equal(first.features_ND, expected_ND)
    assert torch.equal(first.coords_N2, torch.tensor([[0, 0], [1, 2]], dtype=torch.int32))
    first.features_ND.zero_()
    assert torch.equal(again.features_ND, torch.zeros_like(expected_ND)), "both look at the same memory"
    assert path.read_bytes() == before
    assert torch.equal(BagStore.open(str(directory)).read("S1").features_ND, expected_ND)
    packed = mapped.read_slides(["S0", "S2"])
    assert torch.equal(packed.features_MD, expected_tensor(np.concatenate([bags["S0"], bags["S2"]]), "float16"))
    assert torch.equal(pickle.loads(pickle.dumps(mapped)).read("S1").features_ND, expected_ND)


def test_a_mapped_slide_is_checked(tmp_path):
    directory = write_store(tmp_path / "s", draw_bags([3, 400]))
    [path] = shard_paths(directory)
    store = BagStore.open(str(directory), blocks=lambda location, info: LocalBlocks(directory, is_mapped=True))
    row = store.index.row("S0")
    flip_bit(path, row.feat_offset)
    with pytest.raises(IntegrityError, match=r"bag 'S0', features: checksum mismatch"):
        store.read("S0")
    fresh = pickle.loads(pickle.dumps(store))
    os.truncate(path, store.index.row("S1").feat_offset + 10)
    with pytest.raises(IntegrityError, match=r"bag 'S1', features: the file ends early.* got 10"):
        fresh.read("S1")
    os.truncate(path, 0)
    with pytest.raises(IntegrityError, match=r"bag 'S0': cannot be read \(the file is empty\)"):
        pickle.loads(pickle.dumps(store)).read("S0")
