"""The same bags as a store and as the files of other tools, and readers of each: what `bench read` compares."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from asmil.data.store import BagStore
from asmil.data.writer import BagWriter

__all__ = ["DESCRIPTIONS", "STORE_FOLDER", "Reader", "draw_lengths", "open_readers", "write_layouts", "write_rows_h5"]

STORE_FOLDER = "store"
DESCRIPTIONS = {
    "store": "store: Arrow shards, float16, one batch per bag; checksum verified",
    "preadv": "bare preadv of the same bytes into two buffers; no checksum",
    "h5_1_row_chunks": "TRIDENT, newer CLAM: .h5, float32, chunks of 1 row",
    "h5_32_row_chunks": "CLAM: .h5, float32, chunks of 32 rows",
    "pt": ".pt tensor, float32",
}


class Reader(NamedTuple):
    """How one layout is read, and the bags that exist in it."""

    read: Callable[[str], object]
    bags: tuple[str, ...]


def draw_lengths(num_bags: int, rng: np.random.Generator) -> list[int]:
    """Log-normal bag lengths between 600 and 19,850, about 5,500 on average."""
    lengths = np.clip(rng.lognormal(math.log(4_100), 0.77, num_bags), 600, 19_850)
    return [int(length) for length in lengths]


def write_layouts(
    folder: Path, lengths: Sequence[int], num_features: int, rng: np.random.Generator, *, num_foreign: int
) -> None:
    """Write all bags as a store, and the first ones as files of the other layouts too.

    Args:
        folder: Where.
        lengths: Instances of each bag.
        num_features: Width D.
        rng: Draws the features.
        num_foreign: How many bags the float32 layouts get; all of them would take four times the store's space.
    """
    with BagWriter(folder / STORE_FOLDER, num_features=num_features) as writer:
        for index, length in enumerate(lengths):
            slide = f"slide{index:04d}"
            features_ND = rng.standard_normal((length, num_features), dtype=np.float32)
            writer.add(slide, features_ND, coords_N2=np.zeros((length, 2), dtype=np.int32))
            if index < num_foreign:
                for rows in (1, 32):
                    with h5py.File(folder / f"{slide}.{rows}.h5", "w") as file:
                        write_rows_h5(file, "features", features_ND, rows)
                torch.save(torch.from_numpy(features_ND), folder / f"{slide}.pt")


def write_rows_h5(file: h5py.File, name: str, values: np.ndarray, chunk_rows: int) -> h5py.Dataset:
    """A data set as CLAM and TRIDENT make it: growable, in chunks of a few rows."""
    width = values.shape[1:]
    return file.create_dataset(name, data=values, maxshape=(None, *width), chunks=(chunk_rows, *width))


@contextlib.contextmanager
def open_readers(folder: Path, num_foreign: int) -> Iterator[Mapping[str, Reader]]:
    """The readers of what `write_layouts` wrote, by layout."""
    store = BagStore.open(str(folder / STORE_FOLDER))
    bags = store.slide_ids
    some = bags[:num_foreign]

    def h5(rows: int) -> Callable[[str], object]:
        def read(slide: str) -> Tensor:
            with h5py.File(folder / f"{slide}.{rows}.h5", "r") as file:
                return torch.from_numpy(file["features"][:])

        return read

    with contextlib.ExitStack() as open_files:
        files = [
            open_files.enter_context((folder / STORE_FOLDER / shard.name).open("rb")) for shard in store.info.shards
        ]
        yield {
            "store": Reader(store.read, bags),
            "preadv": Reader(_bare_preadv(store, [file.fileno() for file in files]), bags),
            "h5_1_row_chunks": Reader(h5(1), some),
            "h5_32_row_chunks": Reader(h5(32), some),
            "pt": Reader(lambda slide: torch.load(folder / f"{slide}.pt", weights_only=True), some),
        }


def _bare_preadv(store: BagStore, descriptors: Sequence[int]) -> Callable[[str], object]:
    rows = {slide: store.index.row(slide) for slide in store.slide_ids}
    buffer = memoryview(bytearray(max(row.feat_nbytes for row in rows.values())))
    coords = memoryview(bytearray(max(row.coord_nbytes for row in rows.values())))

    def read(slide: str) -> int:
        row = rows[slide]
        num_read = os.preadv(descriptors[row.shard], [buffer[: row.feat_nbytes]], row.feat_offset)
        return num_read + os.preadv(descriptors[row.shard], [coords[: row.coord_nbytes]], row.coord_offset)

    return read
