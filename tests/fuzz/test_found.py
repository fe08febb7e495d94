"""What fuzz runs have found, in its smallest form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from asmil.data.sources import ReadOptions
from asmil.data.sources.npy import NumpyArray
from asmil.data.store import BagStore
from asmil.data.writer import BagWriter
from asmil.errors import DataError, IntegrityError
from tests.fuzz.corpus import read_unit, write_unit
from tests.fuzz.stores import sealed


def test_labels_whose_texts_lie_beyond_their_buffer_are_refused_before_they_are_converted(tmp_path: Path) -> None:
    """Arrow believes the offsets of texts unless it is told to check them, and pandas dies of wrong ones."""
    labels = pd.DataFrame({"slide_id": ["S0"], "site": ["Basel"]})
    with BagWriter(tmp_path / "store", num_features=2) as writer:
        writer.add("S0", np.ones((1, 2), "f4"))
        writer.set_labels(labels)
        writer.set_splits(b"{}")
    unit = read_unit("store", tmp_path, tmp_path / "store")
    content = bytearray(unit.files["store/labels.arrow"])
    offset = content.rindex(b"\0\0\0\0\5\0\0\0", 0, content.index(b"Basel")) + 4
    content[offset : offset + 4] = (1 << 20).to_bytes(4, "little")
    assert pa.ipc.open_file(pa.py_buffer(bytes(content))).read_all().num_rows == 1, "Arrow itself notices nothing"
    files = sealed({**unit.files, "store/labels.arrow": bytes(content)}, "store")
    store = BagStore.open(str(write_unit(type(unit)("store", "store", files), tmp_path / "damaged")))
    with pytest.raises(IntegrityError, match=r"labels\.arrow: not a table"):
        store.labels()


def test_a_header_with_truth_values_as_its_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npy"
    np.save(path, np.ones((1, 30), "f4"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(1, 30), }   ", b"(True, 30), }"))
    assert len(path.read_bytes()) == len(content)
    with pytest.raises(DataError, match=r"cannot be read as a NumPy array \(shape \(True, 30\)\)"):
        NumpyArray().detect(path)
    path.write_bytes(content)
    assert NumpyArray().open(path, ReadOptions()).slides[0].num_instances == 1
