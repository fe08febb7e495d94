"""Check every byte of a bag store against the hashes kept with it: `python -m asmil.data.verify STORE`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from asmil.data.index import IndexRow
from asmil.data.schema import DATASET_FILE
from asmil.data.shard_schema import schema_damages
from asmil.data.store import BagStore
from asmil.errors import IntegrityError, run_command
from asmil.storage import file_sha256

__all__ = ["damages", "main"]


def damages(store: BagStore) -> Iterator[str]:
    """Everything in an opened store that is not as it was written; opening has checked index and sizes.

    Args:
        store: The store, not restricted.

    Yields:
        One sentence per damaged shard, bag or table.
    """
    rows: dict[int, dict[str, IndexRow]] = {position: {} for position in range(len(store.info.shards))}
    for slide_id in store.slide_ids:
        row = store.index.row(slide_id)
        rows[row.shard][slide_id] = row
    for position, shard in enumerate(store.info.shards):
        assert store.local_root is not None
        found = file_sha256(store.local_root / shard.name)
        if found != shard.sha256:
            yield f"shard {shard.name} has sha256 {found[:16]}…, {DATASET_FILE} says {shard.sha256[:16]}…"
            continue
        with pa.memory_map(str(store.local_root / shard.name)) as file:
            yield from schema_damages(file.read_buffer(file.size()), shard.name, store.info, rows[position])
    checks: list[Callable[[], object]] = [partial(store.read, slide_id) for slide_id in store.slide_ids]
    for check in [*checks, store.labels, store.given_splits]:
        try:
            check()
        except IntegrityError as error:
            yield str(error)
    found = store.index.dataset_id()
    if found != store.info.dataset_id:
        yield f"the index describes data {found[:16]}…, {DATASET_FILE} says {store.info.dataset_id[:16]}…"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: Without the program name; None takes those of the process.

    Returns:
        0 if every byte is as it was written.

    Raises:
        DataError: There is no store.
        IntegrityError: Something is damaged; everything that is gets listed first.
    """
    parser = argparse.ArgumentParser(prog="python -m asmil.data.verify", description=__doc__)
    parser.add_argument("store", help="directory of the store")
    options = parser.parse_args(arguments)
    store = BagStore.open(options.store)
    num_damages = 0
    for damage in damages(store):
        num_damages += 1
        print(f"damaged: {damage}")
    if num_damages:
        raise IntegrityError(
            f"{options.store}: {num_damages} damages, listed above; restore the named files or convert again"
        )
    info = store.info
    print(
        f"{options.store}: {info.num_bags} bags, {info.num_instances} instances, {len(info.shards)} shards: "
        f"every byte as written; data id {info.dataset_id[:16]}{', simulated' if info.simulated else ''}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
