"""What the `task` sections of all kinds have in common."""

from __future__ import annotations

from abc import abstractmethod

from asmil.config import StrictModel
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Task

__all__ = ["TaskSettings"]


class TaskSettings(StrictModel):
    """The `task` section of an experiment."""

    @property
    def min_bags_per_step(self) -> int:
        """Bags that an optimizer step needs; more than one where the loss compares them."""
        return 1

    @abstractmethod
    def build(self, columns: LabelColumns) -> Task:
        """The task on these label columns."""
