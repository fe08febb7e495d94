"""Figures of the imported splits of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from asmil.data.tables.given import GivenSplits

__all__ = ["FoldFigures", "SplitFigures", "summarise_splits"]


@dataclass(frozen=True)
class FoldFigures:
    """Slides of the parts of one fold; `in_no_part` counts the stored slides that it leaves out."""

    name: str
    train: int
    val: int
    test: int
    in_no_part: int


@dataclass(frozen=True)
class SplitFigures:
    """Imported splits.

    Attributes:
        layout: Layout of their source.
        files: The source files.
        folds: The folds.
        repeated_holdouts: Test parts overlap, so the folds are repeats of one holdout and no cross-validation.
        tested: Stored slides that are in some test part.
        tested_more_than_once: Stored slides that are in several.
    """

    layout: str
    files: tuple[str, ...]
    folds: tuple[FoldFigures, ...]
    repeated_holdouts: bool
    tested: int
    tested_more_than_once: int


def summarise_splits(given: GivenSplits, slide_ids: Sequence[str]) -> SplitFigures:
    """Figures of imported splits.

    Args:
        given: The splits.
        slide_ids: The stored slides.
    """
    stored = set(slide_ids)
    folds = []
    for fold in given.folds:
        sizes = {part: len(stored.intersection(ids)) for part, ids in fold.parts().items()}
        assigned = stored.intersection(chain.from_iterable(fold.parts().values()))
        folds.append(FoldFigures(fold.name, sizes["train"], sizes["val"], sizes["test"], len(stored - assigned)))
    times = Counter(slide_id for fold in given.folds for slide_id in fold.test if slide_id in stored)
    return SplitFigures(
        layout=given.layout,
        files=tuple(given.files),
        folds=tuple(folds),
        repeated_holdouts=given.tests_overlap,
        tested=len(times),
        tested_more_than_once=sum(count > 1 for count in times.values()),
    )
