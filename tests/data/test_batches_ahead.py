"""Reading ahead: how much at once, in which order, and that nothing is kept or left running."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.bags import BagBatch
from asmil.data import batches
from asmil.data.batches import TrainLoader, evaluation_batches
from asmil.data.config import DataConfig

MIB = 1 << 20
PATIENCE_S = 20


class FakeCohort:
    """Bags of zeros whose reading can be held up; an instance counts as half a MiB.

    Args:
        lengths: Instances of bags 0, 1, …
        on_read: Called with the ids, in the reading thread.
    """

    instance_bytes = MIB // 2

    def __init__(self, lengths: Sequence[int], on_read: Callable[[Sequence[str]], None] = lambda bag_ids: None) -> None:
        self.lengths = {str(number): length for number, length in enumerate(lengths)}
        self.on_read = on_read

    def length(self, bag_id: str) -> int:
        return self.lengths[bag_id]

    def read_batch(self, bag_ids: Sequence[str], **options: Any) -> BagBatch:
        self.on_read(bag_ids)
        offsets = torch.tensor(np.cumsum([0, *(self.lengths[bag_id] for bag_id in bag_ids)]))
        return BagBatch(tuple(bag_ids), torch.zeros(int(offsets[-1]), 1), offsets)


def one_by_one(cohort: FakeCohort, *, threads: int, mib: int = 1024):
    """Batches of one bag each, in the order of their numbers."""
    data = DataConfig(store="unused", batch_instances=1, prefetch_threads=threads, prefetch_mib=mib)
    return evaluation_batches(cohort, list(cohort.lengths), data)


class Recorder(ThreadPoolExecutor):
    """Notes what has been asked for; that is done in the thread that takes the batches, so it is exact."""

    asked: list[tuple[str, ...]]

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        self.asked.append(arguments[0])
        return super().submit(function, *arguments, **options)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=14), st.integers(1, 12), st.sampled_from([1, 2, 4, 9]))
def test_as_much_is_read_ahead_as_threads_and_memory_allow(lengths, mib, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "asked", [], raising=False)
        patch.setattr(batches, "ThreadPoolExecutor", Recorder)
        for taken, batch in enumerate(one_by_one(FakeCohort(lengths), threads=threads, mib=mib), start=1):
            assert batch.bag_ids == (str(taken - 1),)
            ahead = len(Recorder.asked) - taken
            held = sum(lengths[taken : taken + ahead])
            assert ahead <= max(2, threads)
            assert held <= 2 * mib or ahead == 1
            room = ahead < max(2, threads) and taken + ahead < len(lengths)
            if room:
                assert ahead >= 1
                assert held + lengths[taken + ahead] > 2 * mib, "the next batch would have fitted"
        assert Recorder.asked == [(str(number),) for number in range(len(lengths))]


def test_sub_sampled_batches_count_as_the_memory_that_reading_them_takes(monkeypatch):
    """Bags of 10 instances cut to 2: two copies of 2 and a whole bag are 14 half MiB, so 15 MiB hold two."""
    monkeypatch.setattr(Recorder, "asked", [], raising=False)
    monkeypatch.setattr(batches, "ThreadPoolExecutor", Recorder)
    for mib, expected in ((13, 1), (14, 2), (20, 2), (21, 3)):
        Recorder.asked.clear()
        data = DataConfig(store="unused", batch_instances=2, sample_instances=2, prefetch_threads=8, prefetch_mib=mib)
        epoch = TrainLoader(FakeCohort([10] * 9), list("012345678"), data, bags_per_step=3, seed=0).epoch(0)
        next(epoch)
        assert len(Recorder.asked) - 1 == expected
        epoch.close()


def test_without_threads_nothing_is_read_before_it_is_asked_for():
    asked: list[str] = []
    epoch = one_by_one(FakeCohort([1] * 5, asked.extend), threads=0)
    assert asked == []
    for number, _ in enumerate(epoch):
        assert asked == [str(each) for each in range(number + 1)]


@pytest.mark.parametrize("threads", [1, 3])
def test_that_many_batches_are_read_at_the_same_time(threads):
    together = threading.Barrier(threads)
    lock, reading, most = threading.Lock(), 0, 0

    def on_read(bag_ids: Sequence[str]) -> None:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
        together.wait(PATIENCE_S)
        with lock:
            reading -= 1

    assert len(list(one_by_one(FakeCohort([1] * 6, on_read), threads=threads))) == 6
    assert most == threads


def test_a_later_failure_waits_for_its_turn():
    failed = threading.Event()

    def on_read(bag_ids: Sequence[str]) -> None:
        if bag_ids[0] == "1":
            failed.set()
            raise ValueError("batch 1")
        assert failed.wait(PATIENCE_S)

    epoch = one_by_one(FakeCohort([1] * 4, on_read), threads=3)
    assert next(epoch).bag_ids == ("0",)
    with pytest.raises(ValueError, match="batch 1"):
        next(epoch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asmil-read")]
    assert list(epoch) == []


@pytest.mark.parametrize("threads", [0, 1])
def test_a_batch_is_freed_when_its_user_drops_it(threads):
    """With one thread the first read is wholly over when the second one begins."""
    second_began = threading.Event()

    def on_read(bag_ids: Sequence[str]) -> None:
        if bag_ids[0] == "1":
            second_began.set()

    epoch = one_by_one(FakeCohort([1] * 3, on_read), threads=threads)
    batch = next(epoch)
    assert threads == 0 or second_began.wait(PATIENCE_S)
    features = weakref.ref(batch.features_MD)
    del batch
    assert features() is None
    epoch.close()
