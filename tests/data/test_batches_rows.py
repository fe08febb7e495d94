"""Which rows of a bag a batch has: all of them, or in training a sample that keeps slides, coordinates and truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from asmil.bags import Bag, BagBatch
from asmil.data.batches import TrainLoader, evaluation_batches
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, LabelColumns
from asmil.data.sampling import bag_seed, kept_rows
from asmil.data.store import BagStore, PackedSlides
from asmil.data.writer import BagWriter

SLIDES = {"S0": 4, "S1": 9, "S2": 1, "S3": 6, "S4": 2}
PATIENTS = {"S0": "p", "S1": "q", "S2": "p", "S3": "q", "S4": "r"}
BAG_SLIDES = {"p": ["S0", "S2"], "q": ["S1", "S3"], "r": ["S4"]}


def features_of(slide_id: str) -> np.ndarray:
    """Row i of slide j is (100 j + i, -i)."""
    rows = np.arange(SLIDES[slide_id])
    return np.stack([100 * int(slide_id[1]) + rows, -rows], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Written in another order than that of the ids; coordinates overlap between slides."""
    path = tmp_path_factory.mktemp("rows") / "s"
    with BagWriter(path, num_features=2, dtype="float32") as writer:
        for slide_id in ("S3", "S0", "S4", "S2", "S1"):
            rows = np.arange(SLIDES[slide_id])
            writer.add(
                slide_id,
                features_of(slide_id),
                coords_N2=np.stack([rows, 7 * rows], axis=1),
                instance_labels_N=rows % 2,
            )
        writer.set_labels(pd.DataFrame({"slide": list(PATIENTS), "patient": list(PATIENTS.values())}))
    return path


def open_cohort(directory: Path, bag: str) -> Cohort:
    labels = LabelColumns(group="patient")
    return Cohort.open(DataConfig(store=str(directory), bag=bag, labels=labels), independent_bags=False)


def slides_of(bag_id: str) -> list[str]:
    return BAG_SLIDES.get(bag_id, [bag_id])


def loader(cohort: Cohort, *, budget: int = 1000, **options: bool | None) -> TrainLoader:
    data = DataConfig(store="unused", batch_instances=budget, prefetch_threads=0, sample_instances=4)
    return TrainLoader(cohort, cohort.bag_ids, data, bags_per_step=10, seed=3, **options)


def only_batch(train: TrainLoader, epoch: int = 0) -> BagBatch:
    (micro,) = train.epoch(epoch)
    return micro.batch


@pytest.mark.parametrize("bag", ["slide", "patient"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_sampled_batch_has_the_drawn_rows_of_each_bag(directory, bag, epoch):
    cohort = open_cohort(directory, bag)
    batch = only_batch(loader(cohort), epoch)
    assert sorted(batch.bag_ids) == sorted(cohort.bag_ids)
    bounds = batch.offsets.tolist()
    slide_starts = [0]
    for bag_id, start, stop in zip(batch.bag_ids, bounds, bounds[1:], strict=False):
        whole = np.concatenate([features_of(slide_id) for slide_id in slides_of(bag_id)])
        tiles = np.concatenate([np.arange(SLIDES[slide_id]) for slide_id in slides_of(bag_id)])
        rows = kept_rows(len(whole), 4, seed=3, epoch=epoch, bag_id=bag_id)
        rows = np.arange(len(whole)) if rows is None else rows
        assert np.array_equal(batch.features_MD[start:stop].numpy(), whole[rows])
        assert np.array_equal(batch.coords_M2[start:stop].numpy(), np.stack([tiles, 7 * tiles], axis=1)[rows])
        for slide_id in slides_of(bag_id):
            slide_starts.append(slide_starts[-1] + int((whole[rows][:, 0] // 100 == int(slide_id[1])).sum()))
    assert batch.slide_offsets.tolist() == slide_starts
    assert batch.seeds_B.tolist() == [bag_seed(3, epoch, bag_id) for bag_id in batch.bag_ids]


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_rows_between_two_slide_offsets_are_of_one_slide(directory, bag):
    """What a neighbourhood is looked up in; the slide is read off the features, which name it."""
    cohort = open_cohort(directory, bag)
    for sample in (None, 3):
        data = DataConfig(store="unused", prefetch_threads=0, sample_instances=sample)
        batch = only_batch(TrainLoader(cohort, cohort.bag_ids, data, bags_per_step=10, seed=0))
        slides = [slide_id for bag_id in batch.bag_ids for slide_id in slides_of(bag_id)]
        assert len(batch.slide_offsets) == len(slides) + 1
        assert set(batch.offsets.tolist()) <= set(batch.slide_offsets.tolist())
        for slide_id, start, stop in zip(slides, batch.slide_offsets, batch.slide_offsets[1:], strict=False):
            found = batch.features_MD[start:stop, 0] // 100
            assert (found == int(slide_id[1])).all()


def test_a_sampled_batch_equals_its_bags_one_by_one(directory):
    cohort = open_cohort(directory, "patient")
    whole = only_batch(loader(cohort))
    parts = [micro.batch for micro in loader(cohort, budget=1).epoch(0)]
    assert [part.bag_ids for part in parts] == [(bag_id,) for bag_id in whole.bag_ids]
    assert torch.equal(torch.cat([part.features_MD for part in parts]), whole.features_MD)
    assert torch.equal(torch.cat([part.coords_M2 for part in parts]), whole.coords_M2)
    assert torch.equal(torch.cat([part.seeds_B for part in parts]), whole.seeds_B)
    diffs = [part.slide_offsets.diff() for part in parts]
    assert torch.equal(torch.cat(diffs), whole.slide_offsets.diff())


def test_the_budget_counts_sampled_lengths(directory):
    """Sampled to 4 the patients have 4, 4 and 2 rows."""
    cohort = open_cohort(directory, "patient")
    sizes = {
        budget: [micro.batch.num_bags for micro in loader(cohort, budget=budget).epoch(0)] for budget in (10, 9, 3)
    }
    assert sizes[10] == [3]
    assert sum(sizes[9]) == 3
    assert len(sizes[9]) == 2
    assert sizes[3] == [1, 1, 1]


def test_another_epoch_samples_other_rows_and_evaluation_none(directory):
    cohort = open_cohort(directory, "patient")
    train = loader(cohort)
    rows = {}
    for epoch in (0, 1):
        batch = only_batch(train, epoch)
        position = batch.bag_ids.index("q")
        rows[epoch] = batch.features_MD[batch.offsets[position] : batch.offsets[position + 1]]
    assert rows[0].shape == rows[1].shape == (4, 2)
    assert not torch.equal(rows[0], rows[1])
    data = DataConfig(store="unused", batch_instances=1, sample_instances=4, prefetch_threads=0)
    batches = list(evaluation_batches(cohort, ["q", "p"], data))
    assert [batch.features_MD[:, 0].tolist() for batch in batches] == [
        [*(100.0 + row for row in range(9)), *(300.0 + row for row in range(6))], [0, 1, 2, 3, 200],
    ]  # fmt: skip


def test_taking_rows_keeps_truth_and_slides_even_those_left_empty():
    bag = Bag(
        "b",
        torch.arange(12.0).reshape(6, 2),
        coords_N2=torch.arange(12).reshape(6, 2),
        slide_offsets=torch.tensor([0, 2, 3, 6]),
        instance_labels_N=torch.tensor([0, 1, 0, 1, 0, 1], dtype=torch.int8),
    )
    taken = bag.take(torch.tensor([1, 3, 5]))
    assert taken.bag_id == "b"
    assert taken.features_ND.tolist() == [[2, 3], [6, 7], [10, 11]]
    assert taken.coords_N2.tolist() == [[2, 3], [6, 7], [10, 11]]
    assert taken.slide_offsets.tolist() == [0, 1, 1, 3]
    assert taken.instance_labels_N.tolist() == [1, 1, 1]
    bare = Bag("c", torch.zeros(3, 1)).take(torch.tensor([0, 2]))
    assert (bare.num_instances, bare.coords_N2, bare.slide_offsets, bare.instance_labels_N) == (2, None, None, None)


def test_an_instance_counts_as_the_bytes_it_is_stored_in(directory, tmp_path):
    """Two float32, two int32 coordinates and a truth; or four float16 alone."""
    assert open_cohort(directory, "slide").instance_bytes == 2 * 4 + 2 * 4 + 1
    with BagWriter(tmp_path / "s", num_features=4) as writer:
        writer.add("a", np.zeros((3, 4), dtype=np.float32))
    store = BagStore.open(str(tmp_path / "s"))
    assert Cohort(store, pd.DataFrame(index=["a"]), {"a": ("a",)}).instance_bytes == 4 * 2


@pytest.fixture
def pinned(monkeypatch) -> list[bool]:
    """Whether each read of the store was to be pinned; pins nothing, as that needs a GPU."""
    asked: list[bool] = []
    read_slides = BagStore.read_slides

    def note(self: BagStore, slide_ids: list[str], *, pin_memory: bool = False) -> PackedSlides:
        asked.append(pin_memory)
        return read_slides(self, slide_ids)

    monkeypatch.setattr(BagStore, "read_slides", note)
    return asked


@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_are_read_straight_into_pinned_memory(directory, pinned, pin_memory):
    cohort = open_cohort(directory, "slide")
    data = DataConfig(store="unused", prefetch_threads=0)
    list(TrainLoader(cohort, cohort.bag_ids, data, bags_per_step=2, seed=0, pin_memory=pin_memory).epoch(0))
    assert pinned == [pin_memory] * 3
    list(evaluation_batches(cohort, cohort.bag_ids, data, pin_memory=pin_memory))
    assert pinned == [pin_memory] * 4
    cohort.read("S0")
    assert not pinned[-1]


def test_sampled_batches_are_packed_into_pinned_memory(directory, pinned, monkeypatch):
    """Whole bags are passing through, so only what is kept of them is pinned: features and coordinates."""
    cohort = open_cohort(directory, "slide")
    shapes: list[tuple[int, ...]] = []

    def empty(shape: tuple[int, ...], *, pin_memory: bool = False, **options: torch.dtype) -> torch.Tensor:
        if pin_memory:
            shapes.append(shape)
        return allocate(shape, **options)

    expected = only_batch(loader(cohort))
    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    batch = only_batch(loader(cohort, pin_memory=True))
    assert not any(pinned)
    assert shapes[-2:] == [(4 + 4 + 1 + 4 + 2, 2)] * 2
    assert torch.equal(batch.features_MD, expected.features_MD)
    assert torch.equal(batch.coords_M2, expected.coords_M2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("budget", [1, 1000])
def test_pinned_batches_reach_a_gpu_unchanged(directory, budget):
    cohort = open_cohort(directory, "patient")
    for found, expected in zip(
        loader(cohort, budget=budget, pin_memory=True).epoch(0), loader(cohort, budget=budget).epoch(0), strict=True
    ):
        assert found.batch.features_MD.is_pinned()
        assert found.batch.coords_M2.is_pinned()
        moved = found.batch.to("cuda")
        assert torch.equal(moved.features_MD.cpu(), expected.batch.features_MD)
        assert torch.equal(moved.coords_M2.cpu(), expected.batch.coords_M2)
