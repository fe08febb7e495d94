"""Rows 1 to 4, 23 and 24: shards that are cut, flipped or replaced, or are none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asmil.data.store import BagStore
from asmil.data.verify import damages
from asmil.errors import AsmilError, IntegrityError
from tests.data.stores import draw_bags, flip_bit, shard_paths, write_store
from tests.faults.support import INTEGRITY, Commands, rehash_shard, snapshot

BAGS = draw_bags([3, 2, 4])
SHARD = "shards/part-00000.arrow"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", BAGS)


def equal(store: BagStore, slide_id: str) -> bool:
    bag = store.read(slide_id)
    rows = np.arange(len(BAGS[slide_id]))
    return (
        torch.equal(bag.features_ND, torch.from_numpy(BAGS[slide_id].astype(np.float16)))
        and bag.coords_N2 is not None
        and np.array_equal(bag.coords_N2.numpy(), np.stack([rows, 2 * rows], axis=1))
    )


@pytest.mark.parametrize("keep", [lambda size: size - 1, lambda size: size // 2, lambda size: 0])
def test_row_01_a_cut_shard_is_refused_with_both_sizes(
    store: Path, commands: Commands, keep: Callable[[int], int]
) -> None:
    path = store / SHARD
    size = path.stat().st_size
    os.truncate(path, keep(size))
    before = snapshot(store)
    commands.verify(store).refused(
        INTEGRITY, f"shard {SHARD} has {keep(size)} bytes, dataset.json says {size}", "restore it from a copy"
    )
    with pytest.raises(IntegrityError, match=f"{SHARD} has {keep(size)} bytes"):
        BagStore.open(str(store))
    assert snapshot(store) == before


@pytest.mark.parametrize("slide_id", BAGS)
@pytest.mark.parametrize("column", ["features", "coords"])
def test_row_02_a_flipped_data_bit_names_bag_and_shard(
    store: Path, commands: Commands, slide_id: str, column: str
) -> None:
    opened = BagStore.open(str(store))
    row = opened.index.row(slide_id)
    offset, nbytes = (
        (row.feat_offset, row.feat_nbytes) if column == "features" else (row.coord_offset, row.coord_nbytes)
    )
    flip_bit(store / SHARD, offset + nbytes // 2, 3)
    before = snapshot(store)
    commands.verify(store).refused(
        INTEGRITY, f"shard {SHARD}, bag {slide_id!r}, {column}: checksum mismatch", "restore the named files"
    )
    with pytest.raises(IntegrityError, match=rf"{SHARD}, bag '{slide_id}', {column}: checksum mismatch"):
        opened.read(slide_id)
    assert all(equal(opened, other) for other in BAGS if other != slide_id)
    assert snapshot(store) == before


def test_row_03_no_flipped_bit_of_header_or_footer_gives_wrong_data(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"S0": BAGS["S0"]})
    [path] = shard_paths(store)
    opened = BagStore.open(str(store))
    row = opened.index.row("S0")
    blocks = [(row.feat_offset, row.feat_nbytes), (row.coord_offset, row.coord_nbytes)]
    metadata = [
        position
        for position in range(path.stat().st_size)
        if not any(offset <= position < offset + nbytes for offset, nbytes in blocks)
    ]
    assert len(metadata) > 500, "header and footer are most of so small a shard"
    assert list(damages(opened)) == []
    for position in metadata:
        for bit in range(8):
            flip_bit(path, position, bit)
            assert equal(opened, "S0")
            assert any(SHARD in damage for damage in damages(opened)), (position, bit)
            flip_bit(path, position, bit)
    assert list(damages(opened)) == []


@pytest.mark.parametrize("name", ["dataset.json", "index.arrow"])
def test_row_03_no_flipped_bit_of_the_small_files_gives_wrong_data(store: Path, name: str) -> None:
    refused, size = 0, (store / name).stat().st_size
    for position in range(size):
        for flipped in (position % 8, (position + 1) % 8):  # two of every byte
            flip_bit(store / name, position, flipped)
            try:
                opened = BagStore.open(str(store))
            except AsmilError:
                refused += 1
            else:
                assert name == "dataset.json", "some facts in it are not checked against anything"
                assert all(equal(opened, slide_id) for slide_id in BAGS), (position, flipped)
            flip_bit(store / name, position, flipped)
    assert refused > 0.8 * 2 * size


def renamed_hdf5(content: bytes, folder: Path) -> bytes:
    with h5py.File(folder / "x.h5", "w") as file:
        file["features"] = np.ones((40, 40), "f4")
    return (folder / "x.h5").read_bytes()


MAGIC = "is not a feature shard: an Arrow file begins and ends with b'ARROW1', this one begins with "


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content, folder: b"arrow1" + content[6:], f"{MAGIC}b'arrow1' and ends with b'ARROW1'"),
        (lambda content, folder: content[:-10] + b"\xff\xff\xff\x7f" + content[-6:], "has sha256"),
        (lambda content, folder: content[:-6] + b"arrow1", f"{MAGIC}b'ARROW1' and ends with b'arrow1'"),
        (lambda content, folder: bytes(range(256)) * (len(content) // 256) + bytes(len(content) % 256), MAGIC),
        (
            lambda content, folder: renamed_hdf5(content, folder)[: len(content)].ljust(len(content), b"\0"),
            f"{MAGIC}b'\\x89HDF\\r\\n'",
        ),
        (renamed_hdf5, "dataset.json says"),
    ],
)
def test_row_04_what_is_no_feature_shard_is_named_and_never_read_as_one(
    store: Path, tmp_path: Path, commands: Commands, damage: Callable[[bytes, Path], bytes], says: str
) -> None:
    content = (store / SHARD).read_bytes()
    damaged = damage(content, tmp_path)
    (store / SHARD).write_bytes(damaged)
    commands.verify(store).refused(INTEGRITY, f"shard {SHARD} ", says, "dataset.json says")
    if len(damaged) != len(content):
        return
    opened = BagStore.open(str(store))
    for slide_id in BAGS:
        with contextlib.suppress(IntegrityError):
            assert equal(opened, slide_id)


@pytest.mark.parametrize("end", [b"arrow1", b""])
def test_row_04_a_shard_that_is_none_is_named_even_where_its_hash_is_right(
    store: Path, commands: Commands, end: bytes
) -> None:
    content = (store / SHARD).read_bytes()
    (store / SHARD).write_bytes(content[:-10] + bytes(4) + (end or content[-6:]))
    rehash_shard(store)
    commands.verify(store).refused(INTEGRITY, f"shard {SHARD}: not an Arrow file that can be read (")


def test_row_23_a_shard_replaced_by_rename_does_not_disturb_readers_and_is_found_at_the_next_opening(
    store: Path, tmp_path: Path, commands: Commands
) -> None:
    other = write_store(tmp_path / "other", draw_bags([3, 2, 4], seed=1))
    longer = write_store(tmp_path / "longer", draw_bags([3, 2, 40], seed=1))
    running = BagStore.open(str(store))
    assert equal(running, "S0")
    (other / SHARD).replace(store / SHARD)
    assert all(equal(running, slide_id) for slide_id in BAGS)
    commands.verify(store).refused(INTEGRITY, f"shard {SHARD} has sha256", "dataset.json says")
    with pytest.raises(IntegrityError, match="checksum mismatch"):
        BagStore.open(str(store)).read("S0")
    (longer / SHARD).replace(store / SHARD)
    with pytest.raises(IntegrityError, match=rf"{SHARD} has \d+ bytes, dataset\.json says"):
        BagStore.open(str(store))


def test_row_24_a_shard_cut_while_it_is_read_fails_the_bags_that_are_gone_and_nothing_else(store: Path) -> None:
    opened = BagStore.open(str(store))
    assert equal(opened, "S0")
    row = opened.index.row("S1")
    os.truncate(store / SHARD, row.feat_offset + 1)
    assert equal(opened, "S0")
    for slide_id in ("S1", "S2"):
        with pytest.raises(IntegrityError, match=rf"{SHARD}, bag '{slide_id}', features: the file ends early"):
            opened.read(slide_id)
