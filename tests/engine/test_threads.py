"""Small steps get one thread, large ones what the process was given, also after a small one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from asmil.engine import threads


@pytest.fixture
def given_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    threads._given.cache_clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    yield
    monkeypatch.undo()
    threads._given.cache_clear()
    torch.set_num_threads(before)


def test_threads_follow_the_size_of_a_step(given_three: None) -> None:
    assert [threads.use_threads(values) for values in (2e6, 1e3, 2e6)] == [3, 1, 3]
