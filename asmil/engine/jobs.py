"""The list of independent trainings an experiment consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Job", "list_jobs"]


@dataclass(frozen=True)
class Job:
    """One training: a seed on one fold of one repeat.

    Attributes:
        repeat: Repetition of the split, from 0.
        fold: Outer fold, from 0.
        seed: Seed of the training.
    """

    repeat: int
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Directory name of the job."""
        return f"repeat{self.repeat}-fold{self.fold}-seed{self.seed}"


def list_jobs(folds: Sequence[tuple[int, int]], *, seeds: int, first_seed: int = 0) -> list[Job]:
    """The trainings of some outer folds, seed fastest.

    Args:
        folds: Repeat and outer fold of each.
        seeds: Trainings per fold, with seeds first_seed, first_seed + 1, ...
        first_seed: The first of them.

    Returns:
        The jobs in a fixed order.

    Example:
        >>> [job.name for job in list_jobs([(0, 0), (0, 1)], seeds=1)]
        ['repeat0-fold0-seed0', 'repeat0-fold1-seed0']
    """
    return [Job(repeat, fold, first_seed + offset) for repeat, fold in folds for offset in range(seeds)]
