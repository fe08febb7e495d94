"""`read`: CPU time of reading random bags from the store, with bare `preadv`, and from the files of other tools.

Also how many requests the store takes when it is remote, and what several processes that read it add to the memory of
the machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asmil.bench.layouts import DESCRIPTIONS, STORE_FOLDER, Reader, draw_lengths, open_readers, write_layouts
from asmil.bench.remote import remote_rows
from asmil.bench.sharing import sharing_rows

__all__ = ["cell_seconds", "layout_rows", "read_rows"]

READ_WIDTH = 768


def read_rows(
    *, bags: int = 200, foreign: int = 24, repeats: int = 9, processes: int = 4, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Reading random bags, page cache warm.

    Args:
        bags: Bags of log-normal length (600 to 19,850 instances, about 5,500 on average), D = 768.
        foreign: How many of them are written in the float32 layouts of other tools as well.
        repeats: Passes over all bags in random order, of which the median counts.
        processes: How many processes read the store side by side when memory is measured.
        folder: Where the files are made; a temporary directory by default.

    Returns:
        Rows of `layout_rows`, then those of `remote_rows` and `sharing_rows`.
    """
    foreign = min(foreign, bags)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        rng = np.random.default_rng(0)
        write_layouts(Path(made), draw_lengths(bags, rng), READ_WIDTH, rng, num_foreign=foreign)
        with open_readers(Path(made), foreign) as readers:
            cells = cell_seconds(readers, repeats=repeats, rng=rng)
        store = Path(made) / STORE_FOLDER
        return [*layout_rows(cells), *remote_rows(store), *sharing_rows(str(store), processes=processes)]


def cell_seconds(
    readers: Mapping[str, Reader],
    *,
    repeats: int,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, float]]:
    """Median seconds per layout and bag.

    The layouts take turns pass by pass, not bag by bag: the second reader of the same bytes would find them in the
    processor's cache.

    Args:
        readers: By layout.
        repeats: Passes that count; one before them warms the page cache.
        rng: Draws the order of the bags, anew for every pass.
        clock: What is counted; CPU time of this process.
    """
    seconds: dict[str, dict[str, list[float]]] = {
        layout: {bag: [] for bag in reader.bags} for layout, reader in readers.items()
    }
    for turn in range(repeats + 1):
        for layout, reader in readers.items():
            for bag in rng.permutation(reader.bags).tolist():
                start = clock()
                reader.read(bag)
                if turn:
                    seconds[layout][bag].append(clock() - start)
    return {
        layout: {bag: statistics.median(values) for bag, values in cells.items()} for layout, cells in seconds.items()
    }


def layout_rows(cells: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Figures per layout; ratios count only the bags that both layouts have.

    Args:
        cells: Seconds by layout and bag.

    Returns:
        Rows with `layout`, `description`, `bags`, `d`, `cpu_ms_per_bag`, `ratio_vs_store` and `ratio_vs_preadv` (how
        many times the CPU of the store's read, and of a bare `preadv`, of the same bags).
    """
    return [
        {
            "layout": layout,
            "description": DESCRIPTIONS[layout],
            "bags": len(own),
            "d": READ_WIDTH,
            "cpu_ms_per_bag": round(statistics.mean(own.values()) * 1e3, 3),
            "ratio_vs_store": round(_ratio(own, cells["store"]), 2),
            "ratio_vs_preadv": round(_ratio(own, cells["preadv"]), 2),
        }
        for layout, own in cells.items()
    ]


def _ratio(own: Mapping[str, float], other: Mapping[str, float]) -> float:
    return sum(own.values()) / sum(other[bag] for bag in own)
