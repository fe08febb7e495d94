"""Locks that a forked process never inherits in a locked state."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["ForkSafe"]


class ForkSafe:
    """Something with a lock, `_lock`, that is new in a forked child: the thread that held it does not exist there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _OWNERS.add(self)


_OWNERS: weakref.WeakSet[ForkSafe] = weakref.WeakSet()


def _renew_all() -> None:
    for owner in list(_OWNERS):
        owner._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_all)
