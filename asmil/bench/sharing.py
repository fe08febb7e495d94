"""What processes that read the same store side by side add to the memory of the machine."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

from asmil.bench.memory import pss_bytes
from asmil.data.store import BagStore
from asmil.errors import EnvironmentProblem

__all__ = ["sharing_rows"]


def sharing_rows(uri: str, *, processes: int) -> list[dict[str, Any]]:
    """Memory that readers of one store add, each reading every bag and keeping none.

    Args:
        uri: The store.
        processes: How many read at a time.

    Returns:
        One row: `layout` `processes`, `bags`, `processes`, `added_mib_per_process` (the largest: PSS with a bag in
        hand above PSS before the first read), `added_mib_sum`, `largest_bag_mib` and `store_mib`.

    Raises:
        EnvironmentProblem: A process failed.
    """
    added = _measure(uri, processes)
    store = BagStore.open(uri)
    largest = max(_bag_bytes(store, slide_id) for slide_id in store.slide_ids)
    row = {
        "layout": "processes",
        "description": f"{processes} processes read every bag of the store; PSS added to each",
        "bags": len(store.slide_ids),
        "processes": processes,
        "added_mib_per_process": _mib(max(added)),
        "added_mib_sum": _mib(sum(added)),
        "largest_bag_mib": _mib(largest),
        "store_mib": _mib(sum(shard.bytes for shard in store.info.shards)),
    }
    return [row]


def _measure(uri: str, processes: int) -> list[int]:
    """Bytes added to each process. All start together, and none leaves before all have measured."""
    context = multiprocessing.get_context("spawn")
    links = [context.Pipe() for _ in range(processes)]
    workers = [context.Process(target=_read_all, args=(uri, theirs), daemon=True) for _, theirs in links]
    for worker, (_, theirs) in zip(workers, links, strict=True):
        worker.start()
        theirs.close()
    ours = [link for link, _ in links]
    try:
        for message in ("before", "read"):
            for link in ours:
                link.recv()
            for link in ours:
                link.send(message)
        return [link.recv() for link in ours]
    except (EOFError, OSError) as error:
        raise EnvironmentProblem(f"{uri}: a process that reads the store ended without a result; see above") from error
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _read_all(uri: str, link: Connection) -> None:
    """Read every bag, holding one at a time; report the most that a bag in hand added."""
    store = BagStore.open(uri)
    store.read(min(store.slide_ids, key=store.length))  # loads what reading needs
    _meet(link)
    before = pss_bytes(os.getpid())
    _meet(link)
    most = 0
    for slide_id in store.slide_ids:
        bag = store.read(slide_id)
        most = max(most, pss_bytes(os.getpid()) - before)
        del bag
    link.send(most)
    link.recv()  # until it is ended: leaving would hand its share of common pages to the others


def _meet(link: Connection) -> None:
    """Wait until all processes are here."""
    link.send("here")
    link.recv()


def _bag_bytes(store: BagStore, slide_id: str) -> int:
    row = store.index.row(slide_id)
    return row.feat_nbytes + row.coord_nbytes + row.label_nbytes


def _mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 1)
