"""Check every byte of a bag store against the hashes kept with it: `python -m asmil.data.verify STORE`.

Shards of remote stores are fetched one after another into the temporary directory, which needs room for one.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from asmil.data.index import IndexRow
from asmil.data.schema import DATASET_FILE, ShardInfo
from asmil.data.shard_schema import schema_damages
from asmil.data.store import BagStore
from asmil.errors import IntegrityError, run_command
from asmil.storage import LocalBlocks, Location, disk_problems, file_sha256

__all__ = ["damages", "main"]

_MAGIC = b"ARROW1"
_FETCH_BYTES = 16 << 20


def damages(store: BagStore) -> Iterator[str]:
    """Everything in an opened store that is not as it was written; opening has checked index and sizes.

    Args:
        store: The store, not restricted.

    Yields:
        One sentence per damaged shard, bag or table.

    Raises:
        EnvironmentProblem: A remote store does not answer, or there is no room for a shard.
    """
    rows: dict[int, dict[str, IndexRow]] = {position: {} for position in range(len(store.info.shards))}
    for slide_id in store.slide_ids:
        row = store.index.row(slide_id)
        rows[row.shard][slide_id] = row
    for position, shard in enumerate(store.info.shards):
        try:
            with _local_root(store.location, shard) as root:
                yield from _shard_damages(root, shard, store, rows[position])
        except IntegrityError as error:
            yield str(error)
    yield from _failures([store.labels, store.given_splits])
    found = store.index.dataset_id()
    if found != store.info.dataset_id:
        yield f"the index describes data {found[:16]}…, {DATASET_FILE} says {store.info.dataset_id[:16]}…"


def _shard_damages(root: Path, shard: ShardInfo, store: BagStore, rows: Mapping[str, IndexRow]) -> Iterator[str]:
    """What is wrong with a shard that lies below a local directory, as file and with every bag in it."""
    path = root / shard.name
    found = file_sha256(path)
    if found == shard.sha256:
        with pa.memory_map(str(path)) as file:
            yield from schema_damages(file.read_buffer(file.size()), shard.name, store.info, rows)
    else:
        yield f"shard {shard.name} has sha256 {found[:16]}…, {DATASET_FILE} says {shard.sha256[:16]}…"
        yield from _magic_damages(path, shard.name)
    local = store.with_blocks(LocalBlocks(root))
    yield from _failures([partial(local.read, slide_id) for slide_id in rows])


def _magic_damages(path: Path, name: str) -> Iterator[str]:
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        tail = file.read()
    if (head, tail) != (_MAGIC, _MAGIC):
        yield (
            f"shard {name} is not a feature shard: an Arrow file begins and ends with {_MAGIC!r}, this one begins "
            f"with {head!r} and ends with {tail!r}"
        )


def _failures(checks: Sequence[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except IntegrityError as error:
            yield str(error)


@contextlib.contextmanager
def _local_root(location: Location, shard: ShardInfo) -> Iterator[Path]:
    """A directory below which a shard lies under its name: the store's own, or a temporary one it is fetched into.

    Raises:
        IntegrityError: The remote shard is missing or cut.
    """
    if location.local_root is not None:
        yield location.local_root
        return
    with tempfile.TemporaryDirectory(prefix="asmil-verify-") as folder:
        _fetch(location, shard, Path(folder) / shard.name)
        yield Path(folder)


def _fetch(location: Location, shard: ShardInfo, path: Path) -> None:
    buffer = memoryview(bytearray(min(_FETCH_BYTES, shard.bytes)))
    with disk_problems(path, f"take {shard.bytes} bytes of shard {shard.name}"):
        path.parent.mkdir(parents=True)
        file = path.open("wb")
    with file:
        for start in range(0, shard.bytes, _FETCH_BYTES):
            piece = buffer[: shard.bytes - start]
            try:
                num_read = location.read_into(shard.name, start, piece)
            except FileNotFoundError as error:
                raise IntegrityError(f"shard {shard.name} cannot be read ({error})") from None
            if num_read != len(piece):
                raise IntegrityError(
                    f"shard {shard.name} has {start + num_read} bytes, {DATASET_FILE} says {shard.bytes}"
                )
            with disk_problems(path, f"take {shard.bytes} bytes of shard {shard.name}"):
                file.write(piece)
                file.flush()


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
    parser.add_argument("store", help="directory or address of the store")
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
