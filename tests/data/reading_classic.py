"""Reading a classic set in this process and holding it against what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.sources import FORMATS, ReadOptions, Source, SourceBag
from tests.data.foreign import ClassicSet

__all__ = ["BY_NAME", "assert_holds", "read_as", "with_zeros"]

NUMBERED = ("0", "1", "2")
BY_NAME = {form.name: form for form in FORMATS}


def read_as(name: str, path: Path, **options: Any) -> tuple[Source, list[SourceBag]]:
    """Read a unit with the one format that accepts it, which must be the named one."""
    unit = "folder" if path.is_dir() else "file"
    assert [form.name for form in FORMATS if form.unit == unit and form.detect(path) is not None] == [name]
    source = BY_NAME[name].open(path, ReadOptions(**options))
    return source, [source.read(header.slide_id) for header in source.slides]


def assert_holds(source: Source, bags: Sequence[SourceBag], data: ClassicSet, names: Sequence[str] = NUMBERED) -> None:
    """Check ids, labels and features of all bags."""
    assert [header.slide_id for header in source.slides] == list(names)
    assert [source.labels[name] for name in names] == [{"label": label} for label in data.labels]
    for header, bag, expected_ND in zip(source.slides, bags, data.bags, strict=True):
        np.testing.assert_array_equal(bag.features_ND, expected_ND)
        assert (header.num_instances, header.num_features) == expected_ND.shape
        assert header.has_instance_labels == (bag.instance_labels_N is not None)


def with_zeros(data: ClassicSet) -> ClassicSet:
    """The set with a column of zeros, which sparse layouts leave out."""
    for bag_ND in data.bags:
        bag_ND[:, 1] = 0
    return data
