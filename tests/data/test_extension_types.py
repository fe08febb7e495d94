"""Arrow extension types in a store are refused before the code registered for them runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asmil.data.config import LabelColumns
from asmil.data.index import open_arrow, table_to_bytes
from asmil.data.labels import read_label_table
from asmil.data.store import BagStore
from asmil.data.verify import damages
from asmil.errors import DataError, IntegrityError
from tests.data.stores import draw_bags, write_store
from tests.faults.support import edit_manifest, rehash_shard

CALLS: list[bytes] = []


class Tempting(pa.ExtensionType):
    """A type like those of some libraries, whose metadata is unpickled when a schema is read."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.tempting")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Tempting:
        CALLS.append(serialized)
        return cls(storage)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The type is registered, as importing its library does."""
    pa.register_extension_type(Tempting(pa.int64()))
    yield
    pa.unregister_extension_type("tests.tempting")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bags = draw_bags([3, 2])
    return write_store(tmp_path / "store", bags, pd.DataFrame({"slide": list(bags), "target": [0, 1]}))


def as_extension(table: pa.Table, name: str) -> pa.Table:
    column = table.column(name).combine_chunks()
    tempting: Any = pa.ExtensionArray.from_storage(Tempting(column.type), column)
    return table.set_column(table.schema.get_field_index(name), name, tempting)


def rewrite(store: Path, name: str, column: str) -> bytes:
    content = table_to_bytes(as_extension(open_arrow((store / name).read_bytes()).read_all(), column))
    (store / name).write_bytes(content)
    edit_manifest(store, **{f"{name.removesuffix('.arrow')}_sha256": hashlib.sha256(content).hexdigest()})
    CALLS.clear()
    return content


def test_index_with_an_extension_type_is_not_read(store: Path) -> None:
    content = rewrite(store, "index.arrow", "n")
    with pytest.raises(IntegrityError, match=r"not an index of bags \(it holds Arrow extension types"):
        BagStore.open(str(store))
    assert CALLS == []
    pa.ipc.open_file(content)
    assert CALLS, "Arrow itself runs the registered code, so the test can fail"


def test_label_table_with_an_extension_type_is_not_read(store: Path) -> None:
    rewrite(store, "labels.arrow", "target")
    with pytest.raises(IntegrityError, match=r"labels\.arrow: not a table \(it holds Arrow extension types"):
        BagStore.open(str(store)).labels()
    assert CALLS == []


def test_shard_with_an_extension_type_is_a_damage(store: Path) -> None:
    path = store / "shards/part-00000.arrow"
    table = open_arrow(path.read_bytes()).read_all().append_column("x", pa.array(np.arange(5)))
    content = table_to_bytes(as_extension(table, "x"))
    path.write_bytes(content)
    rehash_shard(store)
    CALLS.clear()
    assert any("it holds Arrow extension types" in damage for damage in damages(BagStore.open(str(store))))
    assert CALLS == []


def test_a_label_file_with_an_extension_type_is_refused_before_its_code_runs(tmp_path: Path) -> None:
    table = as_extension(pa.table({"slide": ["S0"], "target": [1]}), "target")
    pq.write_table(table, tmp_path / "labels.parquet")
    CALLS.clear()
    with pytest.raises(DataError, match=r"labels\.parquet: columns of Arrow extension types are not read"):
        read_label_table(tmp_path / "labels.parquet", LabelColumns())
    assert CALLS == []
