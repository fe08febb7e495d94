"""Reading a foreign file in this process, as the tests of all readers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.arrays import coord_dtype_of
from asmil.data.sources import ReadOptions, Source, detect
from asmil.errors import DataError


@dataclass(frozen=True)
class ReadBag:
    """A bag with what its source says about it."""

    bag_id: str
    features_ND: np.ndarray
    coords_N2: np.ndarray | None
    instance_labels_N: np.ndarray | None
    labels: Mapping[str, Any]


def read(path: Path, **options: Any) -> tuple[str, Source, list[ReadBag]]:
    """Detect and read a unit: its format's name, its source, and its bags, which must keep what the headers promise."""
    found = detect(path)
    source = found.format.open(path, ReadOptions(**options))
    bags = []
    for header in source.slides:
        bag = source.read(header.slide_id)
        assert bag.features_ND.shape == (header.num_instances, header.num_features)
        assert header.coords == (None if bag.coords_N2 is None else coord_dtype_of(bag.coords_N2))
        assert header.has_instance_labels == (bag.instance_labels_N is not None)
        labels = source.labels.get(header.slide_id, {})
        bags.append(ReadBag(header.slide_id, bag.features_ND, bag.coords_N2, bag.instance_labels_N, labels))
    assert set(source.labels) <= {header.slide_id for header in source.slides}
    return found.format.name, source, bags


def only_bad(path: Path, bad: str, message: str, kind: type[DataError] = DataError) -> None:
    """A bag that cannot be opened is named by its own error, and the others are read."""
    source = detect(path).format.open(path, ReadOptions())
    for header in source.slides:
        if header.slide_id != bad:
            assert source.read(header.slide_id).features_ND.shape == (header.num_instances, header.num_features)
    with pytest.raises(kind, match=message):
        source.read(bad)
