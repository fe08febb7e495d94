"""Locks that threads of a parent hold while it forks."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from asmil.storage.locks import ForkSafe


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    owner, is_held, may_end = ForkSafe(), threading.Event(), threading.Event()

    def hold() -> None:
        with owner._lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that waits for ever
        with owner._lock:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    may_end.set()
    thread.join()
    assert status == 0
