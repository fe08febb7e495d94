"""Memory that processes really occupy: proportional set sizes, in which a shared page counts once in all."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from asmil.errors import EnvironmentProblem

__all__ = ["PeakTreePss", "pss_bytes", "tree_pids"]

_PROC = Path("/proc")


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process: its own pages, and its share of those it shares.

    Raises:
        EnvironmentProblem: The kernel does not tell; only Linux does.
        OSError: The process is gone.
    """
    if not (_PROC / "self" / "smaps_rollup").exists():
        raise EnvironmentProblem("/proc/self/smaps_rollup is missing; memory of processes is measured on Linux only")
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0  # a zombie has no memory


def tree_pids(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name in parentheses may hold anything
        except OSError:
            continue  # it ended since it was listed
        children[int(fields[1])].append(int(path.parent.name))
    pids = [root]
    for pid in pids:
        pids += children[pid]
    return pids


class PeakTreePss:
    """Watches a process and its descendants from a thread; use as a context manager.

    Args:
        root: The process.
        interval_s: Seconds between two looks.

    Attributes:
        peak_bytes: Largest sum of proportional set sizes seen.
        looks: How often it looked.
    """

    def __init__(self, root: int, *, interval_s: float = 0.05) -> None:
        self.peak_bytes = 0
        self.looks = 0
        self._root = root
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakTreePss:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_if_alive, tree_pids(self._root))))
            self.looks += 1
            if self._stop.wait(self._interval_s):
                return


def _pss_if_alive(pid: int) -> int:
    try:
        return pss_bytes(pid)
    except OSError:
        return 0  # it ended since it was listed
