"""Evaluation: a trained model's predictions for a list of bags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from asmil.data.batches import evaluation_batches
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.engine.config import TrainConfig
from asmil.engine.protocols import Predictions, PreparedTask
from asmil.errors import EnvironmentProblem, TrainingError
from asmil.nn.model import AnchoredModel, ModelOutput

__all__ = ["autocast", "outputs_of", "predict", "resolve_device"]


def resolve_device(config: TrainConfig) -> torch.device:
    """The device a configuration asks for; `auto` is the GPU if there is one.

    Raises:
        EnvironmentProblem: A device this machine does not have.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise EnvironmentProblem(f"train.device: {config.device!r} is not usable here ({reason}); try auto") from None
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentProblem(f"train.device: {config.device!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision as configured: bfloat16 where asked for, or by `auto` where the device is built for it."""
    wanted = config.precision == "bfloat16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def outputs_of(
    model: AnchoredModel,
    prepared: PreparedTask,
    cohort: Cohort,
    bag_ids: Sequence[str],
    *,
    data: DataConfig,
    train: TrainConfig,
) -> Iterator[ModelOutput]:
    """Evaluation-mode outputs of bags, batch by batch, in the given order.

    Raises:
        TrainingError: Outputs are not finite: the training diverged.
    """
    device = next(model.parameters()).device
    model.eval()
    for batch in evaluation_batches(cohort, bag_ids, data, pin_memory=device.type == "cuda"):
        with torch.inference_mode(), autocast(train, device):
            output = model(prepared.transform(batch.to(device)))
        if not output.logits_BC.isfinite().all():
            raise TrainingError(
                f"the model's outputs are not finite for bags {', '.join(batch.bag_ids[:3])} and maybe others: "
                f"the training diverged; lower train.lr (now {train.lr}) or set train.precision: float32"
            )
        yield output


def predict(
    model: AnchoredModel,
    prepared: PreparedTask,
    cohort: Cohort,
    bag_ids: Sequence[str],
    *,
    data: DataConfig,
    train: TrainConfig,
) -> Predictions:
    """Predict bags and put their truth beside it.

    Args:
        model: The trained model; left in evaluation mode.
        prepared: The task as fitted for it.
        cohort: Where the bags and their labels are.
        bag_ids: At least one bag.
        data: Batch size and prefetching.
        train: Precision.

    Returns:
        Predictions in the order of `bag_ids`; no bag is skipped or cut.

    Raises:
        TrainingError: Outputs are not finite.
    """
    parts: list[dict[str, Tensor]] = []
    for output in outputs_of(model, prepared, cohort, bag_ids, data=data, train=train):
        with torch.inference_mode():
            parts.append(prepared.predict(output.logits_BC.float().cpu()))
    frame = cohort.frame(bag_ids)
    return Predictions(
        bag_ids=tuple(bag_ids),
        groups=tuple(cohort.groups(bag_ids)),
        outputs={name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]},
        truth=prepared.truth(frame),
    )
