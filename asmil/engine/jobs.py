"""The list of independent trainings an experiment consists of."""

from __future__ import annotations

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


def list_jobs(*, repeats: int, folds: int, seeds: int, first_seed: int = 0, fold: int | None = None) -> list[Job]:
    """All jobs, seed fastest, then fold, then repeat.

    Args:
        repeats: Repetitions of the split.
        folds: Outer folds of each.
        seeds: Trainings per fold, with seeds first_seed, first_seed + 1, ...
        first_seed: The first of them.
        fold: Restrict to this outer fold.

    Returns:
        The jobs in a fixed order.

    Example:
        >>> [job.name for job in list_jobs(repeats=1, folds=2, seeds=1)]
        ['repeat0-fold0-seed0', 'repeat0-fold1-seed0']
    """
    chosen = range(folds) if fold is None else [fold]
    return [
        Job(repeat, index, first_seed + offset)
        for repeat in range(repeats)
        for index in chosen
        for offset in range(seeds)
    ]
