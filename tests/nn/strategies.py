"""Random packed batches for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from asmil.bags import Bag, BagBatch

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)
seeds = st.integers(0, 2**31)


def random_batch(lengths: list[int], seed: int, *, width: int = 6, seeded: bool = False) -> BagBatch:
    """Bags of normal features with the given numbers of instances."""
    generator = torch.Generator().manual_seed(seed)
    bags = [Bag(f"bag{i}", torch.randn(n, width, generator=generator)) for i, n in enumerate(lengths)]
    return BagBatch.pack(bags, seeds=[seed + 1 + i for i in range(len(bags))] if seeded else None)


def single(batch: BagBatch, index: int) -> BagBatch:
    """One bag of a batch, as a batch of its own."""
    start, end = batch.offsets[index : index + 2].tolist()
    seeds = None if batch.seeds_B is None else [int(batch.seeds_B[index])]
    return BagBatch.pack([Bag(batch.bag_ids[index], batch.features_MD[start:end])], seeds=seeds)
