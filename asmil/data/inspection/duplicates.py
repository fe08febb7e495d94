"""Bags under different ids whose features are the same: one slide stored twice can leak from training into test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from asmil.data.store import BagStore

__all__ = ["same_features"]


def same_features(stores: Sequence[BagStore]) -> list[tuple[str, ...]]:
    """Slides whose features are equal byte for byte, as far as length and the checksum in the index tell.

    Args:
        stores: Stores of one width and dtype, with distinct slide ids; nothing of them is read.

    Returns:
        Groups of at least two slide ids, in stored order.
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for store in stores:
        for slide_id in store.slide_ids:
            row = store.index.row(slide_id)
            groups[row.n, row.xxh3_feat].append(slide_id)
    return [tuple(slide_ids) for slide_ids in groups.values() if len(slide_ids) > 1]
