"""Memory that is used again: never while anything still looks at it, and not much of it."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from asmil.data.buffers import MAX_FREE, MIN_BYTES, BufferPool
from asmil.data.store import BagStore
from tests.data.stores import draw_bags, write_store


def make(pool: BufferPool, mib: float = 1) -> torch.Tensor:
    tensor, content = pool.empty((int(mib * MIN_BYTES),), torch.uint8)
    assert (content.nbytes, content.format, content.readonly) == (tensor.numel(), "B", False)
    return tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_tensors_have_the_shape_and_type_asked_for(dtype: torch.dtype) -> None:
    for rows in (0, 1, 1000):
        tensor, content = BufferPool().empty((rows, 768), dtype)
        assert (tensor.shape, tensor.dtype) == ((rows, 768), dtype)
        tensor.fill_(1)
        assert bytes(content) == (tensor.view(torch.uint8).numpy().tobytes() if rows else b"")
        assert tensor.is_contiguous()
        assert tensor.double().sum() == rows * 768


def test_memory_is_used_again_when_it_is_free() -> None:
    pool = BufferPool()
    first = make(pool, 3)
    place = first.data_ptr()
    other = make(pool, 2)
    assert other.data_ptr() != place
    del first
    again = make(pool, 2.5)
    assert again.data_ptr() == place, "the smallest that is large enough"


@pytest.mark.parametrize(
    "look",
    [
        lambda tensor: tensor[5:],
        lambda tensor: tensor.view(torch.float16),
        lambda tensor: tensor.numpy(),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: torch.utils.dlpack.to_dlpack(tensor),
    ],
)
def test_memory_is_not_used_again_while_something_looks_at_it(look: object) -> None:
    pool = BufferPool()
    tensor = make(pool)
    place = tensor.data_ptr()
    view = look(tensor)  # type: ignore[operator]
    del tensor
    gc.collect()
    assert make(pool).data_ptr() != place
    del view
    gc.collect()
    assert len(pool._free) == 2


def test_tensors_never_share_memory_whatever_the_order() -> None:
    pool, rng = BufferPool(), random.Random(0)
    held: dict[int, torch.Tensor] = {}
    for number in range(100):
        held[number] = make(pool, rng.choice([1, 1.5, 3, 4])).fill_(number % 251)
        while len(held) > rng.randint(0, 8):
            oldest = rng.choice(list(held))
            assert (held.pop(oldest)[::1024] == oldest % 251).all()


def test_threads_never_share_memory() -> None:
    pool = BufferPool()

    def use(number: int) -> bool:
        return all(bool((make(pool, 1 + number % 3).fill_(number) == number).all()) for _ in range(40))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(8), timeout=60))


def test_few_free_buffers_are_kept() -> None:
    pool = BufferPool()
    held = [make(pool) for _ in range(3 * MAX_FREE)]
    held.clear()
    assert len(pool._free) == MAX_FREE


def test_a_larger_buffer_takes_the_place_of_a_free_one() -> None:
    pool = BufferPool()
    for mib in range(1, 20):
        make(pool, mib)
        assert [len(buffer) for buffer in pool._free] == [mib * MIN_BYTES]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_writes_to_memory_of_its_own() -> None:
    tensor = make(BufferPool()).fill_(1)
    child = multiprocessing.get_context("fork").Process(target=lambda: tensor.numpy().fill(2))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert (tensor == 1).all()


def test_slides_of_a_store_are_read_into_memory_that_others_have_left(tmp_path: Path) -> None:
    bags = draw_bags([2000, 1900, 1800], num_features=512)
    store = BagStore.open(str(write_store(tmp_path / "s", bags)))
    places = set()
    for slide_id in 2 * store.slide_ids:
        bag = store.read(slide_id)
        assert torch.equal(bag.features_ND, torch.from_numpy(bags[slide_id]).half())
        places.add(bag.features_ND.data_ptr())
    assert len(places) == 2, "the one being read and the one before"
    both = [store.read(slide_id) for slide_id in store.slide_ids]
    assert all(torch.equal(bag.features_ND, torch.from_numpy(bags[bag.bag_id]).half()) for bag in both)
    assert len(pickle.dumps(store)) < 10_000
