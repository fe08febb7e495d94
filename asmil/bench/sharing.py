"""What processes that read the same store side by side add to the memory of the machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from asmil.bench.memory import pss_bytes
from asmil.data.cache import blocks_for
from asmil.data.config import DataConfig
from asmil.data.store import BagStore
from asmil.errors import EnvironmentProblem

__all__ = ["sharing_rows"]


def sharing_rows(uri: str, *, processes: int) -> list[dict[str, Any]]:
    """Memory that readers of one store add when each has read every bag and holds the largest.

    Args:
        uri: The store, on a local disk.
        processes: How many read at a time.

    Returns:
        A row for each way to read, `layout` `processes, pread` and `processes, map`: `bags`, `processes`,
        `added_mib_per_process` (PSS above the one before the first read: the largest), `added_mib_sum`,
        `largest_bag_mib` and `store_mib`.

    Raises:
        EnvironmentProblem: A process failed.
    """
    return [_row(uri, read, _measure(DataConfig(store=uri, read=read), processes)) for read in ("pread", "map")]


def _row(uri: str, read: str, added: Sequence[int]) -> dict[str, Any]:
    store = BagStore.open(uri)
    largest = max(_bag_bytes(store, slide_id) for slide_id in store.slide_ids)
    return {
        "layout": f"processes, {read}",
        "description": f"{len(added)} processes have read every bag and hold the largest; PSS added to each",
        "bags": len(store.slide_ids),
        "processes": len(added),
        "added_mib_per_process": _mib(max(added)),
        "added_mib_sum": _mib(sum(added)),
        "largest_bag_mib": _mib(largest),
        "store_mib": _mib(sum(shard.bytes for shard in store.info.shards)),
    }


def _measure(data: DataConfig, processes: int) -> list[int]:
    """Bytes added to each process. All start together, and none leaves before all have measured."""
    context = multiprocessing.get_context("spawn")
    links = [context.Pipe() for _ in range(processes)]
    workers = [context.Process(target=_read_all, args=(data, theirs), daemon=True) for _, theirs in links]
    for worker, (_, theirs) in zip(workers, links, strict=True):
        worker.start()
        theirs.close()
    ours = [link for link, _ in links]
    try:
        for message in ("measure", "read", "measure"):
            for link in ours:
                link.recv()
            for link in ours:
                link.send(message)
        return [link.recv() for link in ours]
    except (EOFError, OSError) as error:
        raise EnvironmentProblem(
            f"{data.store}: a process that reads the store ended without a result; see above"
        ) from error
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _read_all(data: DataConfig, link: Connection) -> None:
    """Read every bag, holding one at a time, and report what is added when all processes hold the largest."""
    store = BagStore.open(data.store, blocks=partial(blocks_for, data))
    by_length = sorted(store.slide_ids, key=store.length)
    store.read(by_length[0])  # loads what reading needs
    _meet(link)
    before = pss_bytes(os.getpid())
    _meet(link)
    for slide_id in by_length[:-1]:
        store.read(slide_id)
    held = store.read(by_length[-1])
    _meet(link)
    link.send(pss_bytes(os.getpid()) - before)
    link.recv()  # until it is ended: leaving would hand its share of common pages to the others
    del held


def _meet(link: Connection) -> None:
    """Wait until all processes are here."""
    link.send("here")
    link.recv()


def _bag_bytes(store: BagStore, slide_id: str) -> int:
    row = store.index.row(slide_id)
    return row.feat_nbytes + row.coord_nbytes + row.label_nbytes


def _mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 1)
