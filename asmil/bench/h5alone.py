"""Reads every data set of HDF5 files with h5py and drops it: what `bench pack` compares the conversion with.

A program of its own (`python -m asmil.bench.h5alone FOLDER PROCESSES`), so that its start counts as `pack`'s does.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import h5py

__all__ = ["main", "read_file"]


def read_file(path: Path) -> int:
    """Read all data sets of a file, whole.

    Returns:
        Bytes read.
    """
    with h5py.File(path, "r") as file:
        return sum(dataset[:].nbytes for dataset in file.values())


def main(folder: Path, processes: int) -> int:
    """Read all files of a folder, with several processes if asked for.

    Returns:
        Bytes read.
    """
    paths = sorted(folder.glob("*.h5"))
    if processes == 1:
        return sum(map(read_file, paths))
    with multiprocessing.get_context("fork").Pool(processes) as pool:  # nothing else runs here that a fork could hurt
        return sum(pool.imap_unordered(read_file, paths))


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2])))
