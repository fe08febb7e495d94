"""Which drivers are alive: one small file per driver, touched while its process lives."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from asmil.storage import ensure_directory, publish_json

__all__ = ["Driver", "Heartbeat"]

BEAT_S = 5.0
SILENCE_S = 60.0


@dataclass(frozen=True)
class Driver:
    """A process that searches.

    Attributes:
        host: Its machine.
        pid: Its process id there.
        silent_s: Seconds since its last sign of life, by the file system's clock.
    """

    host: str
    pid: int
    silent_s: float

    @property
    def alive(self) -> bool:
        """Whether it must be taken to be searching still; on this machine its process is asked for directly."""
        if self.host == socket.gethostname() and not _process_exists(self.pid):
            return False
        return self.silent_s < SILENCE_S


class Heartbeat:
    """Announces this process in a directory for as long as the context is open.

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
        publish_json(self._path, {"host": socket.gethostname(), "pid": os.getpid()})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def others(self) -> list[Driver]:
        """The living drivers beside this one; files of dead ones are removed."""
        self._path.touch()
        now = self._path.stat().st_mtime
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError):
                content = json.loads(path.read_text())
                driver = Driver(content["host"], content["pid"], now - path.stat().st_mtime)
                if driver.alive:
                    found.append(driver)
                else:
                    path.unlink()
        return found

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                self._path.touch()


def _process_exists(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
