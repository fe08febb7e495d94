"""Chunks of whole rows, read past HDF5, give what HDF5 gives; every other layout is left to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asmil.data.sources import chunked_rows
from asmil.data.sources.chunked_rows import read_row_chunks
from asmil.data.sources.hdf5 import open_hdf5, read_all
from asmil.errors import DataError
from tests.data.foreign import tiles, write_clam, write_trident

DTYPES = ["<f4", "<f2", "<f8", ">f4", "<i8", ">i4", "u1"]


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Random bits as numbers, with the odd NaN among floats."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    width=st.sampled_from([(), (1,), (5,), (2, 3)]),
    chunk_rows=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    between=st.booleans(),
    latest=st.booleans(),
)
def test_every_layout_of_whole_rows_gives_what_hdf5_gives(
    tmp_path: Path,
    pieces: list[int],
    width: tuple[int, ...],
    chunk_rows: int,
    dtype: str,
    between: bool,
    latest: bool,
) -> None:
    path = tmp_path / "x.h5"
    values = draw((sum(pieces), *width), dtype)
    with h5py.File(path, "w", libver="latest" if latest else "earliest") as file:
        dataset = file.create_dataset(
            "features", (0, *width), dtype, maxshape=(None, *width), chunks=(chunk_rows, *width)
        )
        start = 0
        for position, rows in enumerate(pieces):  # other data between the appended rows tears the chunks apart
            dataset.resize(start + rows, axis=0)
            dataset[start : start + rows] = values[start : start + rows]
            start += rows
            if between:
                file[f"other{position}"] = np.arange(7)
    with h5py.File(path, "r") as file:
        found = read_row_chunks(file["features"])
        assert found is not None
        assert (found.dtype, found.shape) == (np.dtype(dtype), values.shape)
        assert found.tobytes() == file["features"][...].tobytes() == values.tobytes()


@pytest.mark.parametrize("write", [write_clam, write_trident])
def test_clam_and_trident_are_read_this_way_and_neighbours_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    features_ND, coords_N2 = tiles(70)
    write(tmp_path / "x.h5", features_ND, coords_N2)
    fill, reads = chunked_rows._fill, []

    def counted(descriptor: int, part: memoryview, offset: int) -> None:
        reads.append(offset)
        fill(descriptor, part, offset)

    monkeypatch.setattr(chunked_rows, "_fill", counted)
    with open_hdf5(tmp_path / "x.h5") as file:
        for key, expected in (("features", features_ND), ("coords", coords_N2)):
            found = read_row_chunks(file[key])
            assert found is not None
            np.testing.assert_array_equal(found, expected)
    assert len(reads) < 10  # of 140 chunks, if they hold one row each


@pytest.mark.parametrize(
    "layout",
    [
        {},  # contiguous
        {"chunks": (4, 3)},  # columns are cut
        {"chunks": (4, 6), "compression": "gzip"},
        {"chunks": (4, 6), "fletcher32": True},
        {"chunks": (4, 6), "shuffle": True},
    ],
)
def test_other_layouts_are_left_to_hdf5(tmp_path: Path, layout: dict[str, Any]) -> None:
    values = draw((10, 6), "<f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("features", data=values, **layout)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert read_row_chunks(file["features"]) is None
        assert read_all(file["features"]).tobytes() == values.tobytes()


def test_files_with_a_user_block_missing_chunks_or_no_rows_are_left_to_hdf5(tmp_path: Path) -> None:
    values = draw((6, 2), "<f4")
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=512) as file:
        file.create_dataset("features", data=values, chunks=(1, 2))
    with h5py.File(tmp_path / "holes.h5", "w") as file:
        dataset = file.create_dataset("features", (6, 2), "<f4", chunks=(1, 2), fillvalue=3)
        dataset[:4] = values[:4]
        file.create_dataset("empty", (0, 2), "<f4", maxshape=(None, 2), chunks=(1, 2))
    with h5py.File(tmp_path / "block.h5", "r") as file:
        assert read_row_chunks(file["features"]) is None
        assert read_all(file["features"]).tobytes() == values.tobytes()
    with h5py.File(tmp_path / "holes.h5", "r") as file:
        assert read_row_chunks(file["features"]) is None
        assert read_row_chunks(file["empty"]) is None
        assert file["features"][4:].tolist() == [[3, 3], [3, 3]]
    with pytest.raises(DataError, match="chunk storage is not allocated"), open_hdf5(tmp_path / "holes.h5") as file:
        read_all(file["features"])


def test_a_chunk_beyond_the_end_of_the_file_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trident(tmp_path / "x.h5", *tiles(3))
    size = (tmp_path / "x.h5").stat().st_size
    monkeypatch.setattr(chunked_rows, "_chunk_offsets", lambda *_: np.array([0, size - 8, size + 8]))
    with (
        pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5 \(a chunk lies beyond the end of the file\)"),
        open_hdf5(tmp_path / "x.h5") as file,
    ):
        read_all(file["features"])


def leaf_keys(content: bytes) -> list[int]:
    """Where the keys of the chunk index lie: stored size (4 bytes), filter mask (4), place of the chunk (8 each)."""
    node = content.index(b"TREE\x01\x00")  # of chunks, and a leaf
    num_entries = int.from_bytes(content[node + 6 : node + 8], "little")
    key_bytes = 8 + 8 * 3  # two dimensions and that of the element
    return [node + 24 + entry * (key_bytes + 8) for entry in range(num_entries)]


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("column", [0, 1])
def test_a_chunk_that_its_index_does_not_lead_to_is_never_read_as_zeros(
    tmp_path: Path, compression: str | None, column: int
) -> None:
    features_ND = tiles(4)[0]
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features_ND, chunks=(1, 6), compression=compression)
    content = bytearray(path.read_bytes())
    place = leaf_keys(bytes(content))[2] + 8 + 8 * column
    content[place : place + 8] = (6 << 32).to_bytes(8, "little")
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert file["features"].id.get_num_chunks() == 4
        assert not file["features"][2].any(), "h5py itself gives zeros, and no error"
    with pytest.raises(DataError, match="cannot be read as HDF5"), open_hdf5(path) as file:
        read_all(file["features"])


def test_a_chunk_that_its_index_calls_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=tiles(4)[0], chunks=(1, 6))
    content = bytearray(path.read_bytes())
    assert content[leaf_keys(bytes(content))[2]] == 24
    content[leaf_keys(bytes(content))[2]] = 8
    path.write_bytes(content)
    with pytest.raises(DataError, match="a chunk of 24 bytes is not stored whole"), open_hdf5(path) as file:
        read_all(file["features"])
