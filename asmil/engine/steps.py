"""The gradient of one optimizer step, computed in micro-batches.

The loss of a step is the mean over its bags of the task's loss, that of branches and penalties, and the anchor's
divergence. Where the task's loss of a bag depends on the other bags (Cox, ranking), the logits of all are computed
first without a graph, the loss gives their gradient, and each micro-batch is run again to carry it into the weights.
Bags have random streams of their own, so the second run repeats the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asmil.bags import BagBatch
from asmil.engine.config import TrainConfig
from asmil.engine.predict import autocast
from asmil.engine.protocols import PreparedTask
from asmil.errors import TrainingError
from asmil.nn.aggregators.base import Branch
from asmil.nn.model import AnchoredModel, ModelOutput

__all__ = ["StepLoss"]


class StepLoss:
    """Accumulates gradients in the parameters of a model.

    Args:
        model: The model, on its device.
        prepared: The task.
        target: Its targets of all training bags, on the device.
        position: Row of each bag in them.
        config: Precision.
    """

    def __init__(
        self,
        model: AnchoredModel,
        prepared: PreparedTask,
        target: Mapping[str, Tensor],
        position: Mapping[str, int],
        config: TrainConfig,
    ) -> None:
        self._model, self._prepared, self._config = model, prepared, config
        self._target, self._position = target, position
        self._device = next(model.parameters()).device

    def backward(self, batches: Sequence[BagBatch], bags_in_step: int) -> Tensor:
        """Add the gradient of some bags of a step.

        Args:
            batches: Micro-batches on any device; all of the step if the task couples bags.
            bags_in_step: What the sum over bags is divided by.

        Returns:
            Float64 [3] on the device: sums over these bags of the whole loss, the task's loss and the divergence.
        """
        if self._prepared.couples_bags and len(batches) > 1:
            return self._backward_coupled(batches, bags_in_step)
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for batch in batches:
            output, kl_B, target = self._forward(batch)
            task_B = self._prepared.loss(output.logits_BC.float(), target)
            loss_B = task_B + self._extra_losses(output, kl_B, target)
            torch.autograd.backward(loss_B.sum() / bags_in_step)
            sums += _sums(loss_B, task_B, kl_B)
        return sums

    def _backward_coupled(self, batches: Sequence[BagBatch], bags_in_step: int) -> Tensor:
        with torch.no_grad(), autocast(self._config, self._device):
            logits = [self._model(self._placed(batch)).logits_BC.float() for batch in batches]
        logits_BC = torch.cat(logits).requires_grad_()
        task_B = self._prepared.loss(logits_BC, self._targets([bag for batch in batches for bag in batch.bag_ids]))
        (grad_BC,) = torch.autograd.grad(task_B.sum() / bags_in_step, logits_BC)
        grads = torch.split(grad_BC, [batch.num_bags for batch in batches])
        sums = _sums(task_B, task_B, None)
        for batch, part_BC in zip(batches, grads, strict=True):
            output, kl_B, target = self._forward(batch)
            if output.readout.branches:
                raise TrainingError(
                    "this aggregator trains branches, which a loss over whole steps (Cox, ranking) cannot train in "
                    "micro-batches; raise data.batch_instances above the instances of a step, or choose another head"
                )
            extra_B = self._extra_losses(output, kl_B, target)
            torch.autograd.backward((output.logits_BC.float() * part_BC).sum() + extra_B.sum() / bags_in_step)
            sums += _sums(extra_B, torch.zeros_like(extra_B), kl_B)
        return sums

    def _forward(self, bags: BagBatch) -> tuple[ModelOutput, Tensor | None, dict[str, Tensor]]:
        batch = self._placed(bags)
        with autocast(self._config, self._device):
            output = self._model(batch)
            kl_B = self._model.anchor_loss(output, batch)
        return output, kl_B, self._targets(batch.bag_ids)

    def _placed(self, bags: BagBatch) -> BagBatch:
        return self._prepared.transform(bags.to(self._device))

    def _targets(self, bag_ids: Sequence[str]) -> dict[str, Tensor]:
        rows = [self._position[bag_id] for bag_id in bag_ids]
        return {name: value[rows] for name, value in self._target.items()}

    def _extra_losses(self, output: ModelOutput, kl_B: Tensor | None, target: Mapping[str, Tensor]) -> Tensor:
        """What is added to the task's loss of each bag."""
        extra_B = output.logits_BC.new_zeros(len(output.logits_BC), dtype=torch.float32)
        for branch in output.readout.branches:
            extra_B = extra_B + self._branch_loss(branch, target, len(output.logits_BC))
        for penalty_B in output.readout.penalties.values():
            extra_B = extra_B + penalty_B
        if kl_B is not None:
            assert self._model.anchor is not None
            extra_B = extra_B + self._model.anchor.config.kl_weight * kl_B
        return extra_B

    def _branch_loss(self, branch: Branch, target: Mapping[str, Tensor], bags: int) -> Tensor:
        index_X = branch.bag_index_X.to(self._device)
        loss_X = self._prepared.loss(branch.logits_XC.float(), {k: v[index_X] for k, v in target.items()})
        counts_B = torch.bincount(index_X, minlength=bags).clamp_min(1)
        return branch.weight * loss_X.new_zeros(bags).index_add(0, index_X, loss_X) / counts_B


def _sums(loss_B: Tensor, task_B: Tensor, kl_B: Tensor | None) -> Tensor:
    with torch.no_grad():
        kl = torch.zeros((), device=loss_B.device) if kl_B is None else kl_B.sum()
        return torch.stack([loss_B.sum(), task_B.sum(), kl]).double()
