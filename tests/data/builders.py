"""What child processes of the tests run; kept apart so that starting one imports little."""

from __future__ import annotations

from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import pytest

from asmil.data.builtin import resolve_store
from asmil.data.store import BagStore


def resolve_digits(folder: str, barrier: Barrier, results: Queue[tuple[str, int]]) -> None:
    """Resolve `builtin:digits` when all others do, and report dataset id and length of the last bag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASMIL_DATA", folder)
        barrier.wait(60)
        store = BagStore.open(resolve_store("builtin:digits"))
        results.put((store.info.dataset_id, store.read(store.slide_ids[-1]).num_instances))
