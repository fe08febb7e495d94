"""A small store and a small task, to test the engine without the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from asmil.bags import BagBatch
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, LabelColumns
from asmil.data.writer import BagWriter
from asmil.engine.protocols import Figure, Monitor, Predictions, PreparedTask
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec

MONITOR = Monitor("accuracy", "max")


def toy_cohort(directory: Path, *, bags: int = 12, width: int = 6) -> Cohort:
    """Bags of normal features; the label is whether a bag holds a shifted instance."""
    rng = np.random.default_rng(0)
    labels = {}
    with BagWriter(directory, num_features=width, dtype="float32") as writer:
        for index in range(bags):
            features = rng.normal(size=(int(rng.integers(1, 9)), width)).astype(np.float32)
            features[0, 0] += 4 * (index % 2)
            writer.add(f"bag{index:02d}", features)
            labels[f"bag{index:02d}"] = index % 2
        writer.set_labels(pd.DataFrame({"slide": list(labels), "label": list(labels.values())}))
    data = DataConfig(store=str(directory), labels=LabelColumns(target="label"))
    return Cohort.open(data, independent_bags=True)


class ToyTask(PreparedTask):
    """Two-class cross-entropy."""

    head = HeadSpec(2)

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        return {"label": torch.tensor(labels["label"].to_numpy(dtype=np.int64))}

    def transform(self, batch: BagBatch) -> BagBatch:
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits_BC, target["label"], reduction="none")

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        return {"probability": logits_BC.double().softmax(dim=1)}

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        return {"label": labels["label"].to_numpy(dtype=np.int64)}

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        right = predictions.outputs["probability"].argmax(axis=1) == predictions.truth["label"]
        return {"accuracy": Metric(float(right.mean()))}

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        return self.evaluate(predictions)

    def calibrate(self, train: Predictions) -> ToyTask:
        return self

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        return ()

    def to_state(self) -> dict[str, Any]:
        return {}
