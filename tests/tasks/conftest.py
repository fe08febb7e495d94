"""Label tables, bags and predictions for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from asmil.bags import Bag
from asmil.engine.protocols import Predictions, PreparedTask


class Bags:
    """Reads bags from memory and remembers which were read."""

    def __init__(self, features: Mapping[str, object]) -> None:
        self.features = features
        self.read_ids: list[str] = []

    def read(self, bag_id: str) -> Bag:
        self.read_ids.append(bag_id)
        return Bag(bag_id, torch.as_tensor(np.asarray(self.features[bag_id], dtype=np.float32)))


def table(**columns: Sequence[object]) -> pd.DataFrame:
    """A label frame with bags b0, b1, ... and each bag a group of its own unless `group` is given."""
    count = len(next(iter(columns.values())))
    index = pd.Index([f"b{row}" for row in range(count)])
    return pd.DataFrame({"group": [f"p{row}" for row in range(count)], **columns}, index=index)


def predicted(prepared: PreparedTask, labels: pd.DataFrame, logits_BC: object) -> Predictions:
    """What the engine hands to a task for these logits."""
    outputs = prepared.predict(torch.as_tensor(logits_BC))
    return Predictions(
        bag_ids=tuple(labels.index),
        groups=tuple(labels["group"]),
        outputs={name: value.numpy() for name, value in outputs.items()},
        truth=prepared.truth(labels),
    )


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pd.DataFrame]:
    return table


@pytest.fixture(scope="session")
def make_bags() -> type[Bags]:
    return Bags


@pytest.fixture(scope="session")
def predict() -> Callable[[PreparedTask, pd.DataFrame, object], Predictions]:
    return predicted
