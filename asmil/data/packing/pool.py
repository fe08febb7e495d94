"""Several worker processes at once: one thread each, results as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

from asmil.data.packing.process import ReaderLimits, Worker

__all__ = ["WorkerPool"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_TICK_S = 0.5


class WorkerPool:
    """Threads that each own a worker process. Use as a context manager; leaving it ends every process.

    Args:
        size: Number of processes at most; they start when there is work for them.
        limits: What each process may take.
    """

    def __init__(self, size: int, limits: ReaderLimits) -> None:
        self._limits = limits
        self._own = threading.local()
        self._workers: list[Worker] = []
        self._is_closing = False
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="pack")

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closing = True
        for worker in list(self._workers):
            worker.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.pid for worker in list(self._workers) if worker.pid is not None]

    @property
    def is_closing(self) -> bool:
        """Whether the processes are being ended; a job that sees its process die then should give up."""
        return self._is_closing

    def run(
        self, job: Callable[[Worker, _Item], _Result], items: Sequence[_Item], tick: Callable[[], None]
    ) -> Iterator[tuple[int, _Result]]:
        """Do a job on every item.

        Args:
            job: Called in a thread of the pool, with its worker.
            items: The items, taken in order.
            tick: Called in the calling thread a few times per second.

        Yields:
            Position of an item and its result, in the order in which they are finished. An exception of a job is
            raised here; jobs that have not begun are then dropped.
        """
        positions: dict[Future[_Result], int] = {
            self._threads.submit(self._do, job, item): position for position, item in enumerate(items)
        }
        waiting = set(positions)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TICK_S, return_when=FIRST_COMPLETED)
                tick()
                for future in sorted(done, key=positions.__getitem__):
                    yield positions[future], future.result()
        finally:
            for future in waiting:
                future.cancel()

    def _do(self, job: Callable[[Worker, _Item], _Result], item: _Item) -> _Result:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = Worker(self._limits)
            self._workers.append(worker)
        if self._is_closing:  # looked at after the worker is in the list, so that `__exit__` misses neither
            worker.end()
        return job(worker, item)
