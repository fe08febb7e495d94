"""Which drivers are alive: one small file per driver, touched while its process lives."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from asmil.storage import ensure_directory, publish_json

__all__ = ["Driver", "Heartbeat"]

logger = logging.getLogger(__name__)

BEAT_S = 5.0
SILENCE_S = 60.0


@dataclass(frozen=True)
class Driver:
    """A process that searches.

    Attributes:
        host: Its machine.
        pid: Its process id there.
        started: When it was started, as that machine tells it; empty if unknown.
        silent_s: Seconds since its last sign of life, by the file system's clock.
    """

    host: str
    pid: int
    started: str
    silent_s: float

    @property
    def alive(self) -> bool:
        """Whether it must be taken to be searching still: by its process on this machine, elsewhere by its silence."""
        if self.host != socket.gethostname():
            return self.silent_s < SILENCE_S
        started = _start_of(self.pid)
        return started is not None and started == self.started


class Heartbeat:
    """Announces this process in a directory for as long as the context is open.

    If another driver takes this one for dead, it removes the announcement; this process then interrupts itself.
    Ages are differences of modification times of two files in that directory, so the clocks of the machines that share
    it do not matter.

    Args:
        directory: Where the drivers of one run announce themselves; it is made if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        ensure_directory(self._directory, "announcing the search driver")
        pid = os.getpid()
        publish_json(self._path, {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid)})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def others(self) -> list[Driver]:
        """The living drivers beside this one; files of dead ones, and unreadable ones, are removed."""
        os.utime(self._path)
        now = self._path.stat().st_mtime
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError):
                driver = _read(path, now)
                if driver is not None and driver.alive:
                    found.append(driver)
                else:
                    path.unlink()
        return found

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                logger.error("%s is gone: another driver took this one for dead and goes on with its study", self._path)
                os.kill(os.getpid(), signal.SIGINT)
                return
            except OSError as error:
                logger.warning("%s: no sign of life could be left (%s)", self._path, error)


def _read(path: Path, now: float) -> Driver | None:
    """The driver of a file; None if the file is damaged."""
    try:
        content = json.loads(path.read_text())
        return Driver(content["host"], content["pid"], content["started"], now - path.stat().st_mtime)
    except (ValueError, KeyError, TypeError):
        return None


def _start_of(pid: int) -> str | None:
    """When a living process was started, in ticks since boot; empty if this system does not say, None if it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists and is another user's
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in "ZX" else fields[18]
