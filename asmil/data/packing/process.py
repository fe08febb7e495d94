"""A worker process as its parent sees it: started, asked, watched and, if need be, ended and replaced."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

import asmil
from asmil.data.packing.messages import one_line
from asmil.errors import EnvironmentProblem

__all__ = ["ReaderDied", "ReaderLimits", "Worker"]

_MAX_LINE_BYTES = 256 << 20
_KEPT_ERROR_BYTES = 4000
_SHOWN_LETTERS = 300
_PIECE_BYTES = 1 << 20
_START_S = 120.0
_DEATH_S = 10.0
_NO_REPLY = "its reader process sent something that is no reply"
_SECRETS = ("AWS_*", "AZURE_*", "GOOGLE_*", "*TOKEN*", "*SECRET*", "*PASSW*", "*CREDENTIAL*", "*KEY*")
_END = b"\n(end)\n"  # marks that standard error was closed


@dataclass(frozen=True)
class ReaderLimits:
    """What a worker process may take.

    Attributes:
        memory_bytes: Memory beyond what it has after its start.
        timeout_s: Seconds for one slide, or for looking into one unit.
    """

    memory_bytes: int = 8 << 30
    timeout_s: float = 600.0


class ReaderDied(Exception):
    """The process ended, was ended for taking too long, or spoke nonsense.

    Attributes:
        reason: A clause with the process as its subject.
        may_be_chance: The process was ended by something that need not happen again.
        is_timeout: It took too long.
    """

    def __init__(self, reason: str, *, may_be_chance: bool = False, is_timeout: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_be_chance = may_be_chance
        self.is_timeout = is_timeout


class Worker:
    """One limited process, started on the first request and again after each death.

    Use as a context manager, or call `stop`. It belongs to one thread, which must outlive it, because the process dies
    with the thread that started it; only `end` may be called from others.

    Args:
        limits: What the process may take.
    """

    def __init__(self, limits: ReaderLimits | None = None) -> None:
        self.limits = limits or ReaderLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ended = False
        self._errors = b""
        self._received = bytearray()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id; None while there is no process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if there is none, and wait until it is ready.

        Raises:
            ReaderDied: It was ended meanwhile, or `end` was called before.
            EnvironmentProblem: It cannot start.
        """
        if self._process is not None:
            return
        words = [str(self.limits.memory_bytes), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asmil.data.packing.worker", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            reason = f"cannot start worker processes ({error}); give fewer --workers, or free memory and processes"
            raise EnvironmentProblem(reason) from None
        self._errors, self._received = b"", bytearray()
        process = self._process
        if self._is_ended:  # `end` may have run while there was no process yet
            process.kill()
        try:
            self._next_message(process, _START_S)
        except ReaderDied as death:
            status = process.poll()
            lines = self._last_errors(process) if status else []
            self.stop()
            if not (status and status > 0) and not death.is_timeout:
                raise
            cause = f"not ready after {_START_S:g} s" if death.is_timeout else lines[-1] if lines else death
            raise EnvironmentProblem(f"worker processes cannot start: {cause}; check the installation") from None

    def request(
        self,
        message: dict[str, Any],
        deadline_s: float | None = None,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Ask and wait for the reply.

        Args:
            message: The request; `task` is one of `discover`, `open`, `convert`, `digest`.
            deadline_s: Seconds until the reply, or until the next progress message; None takes the limit.
            on_progress: Receives what the process reports meanwhile.

        Returns:
            The reply: unchecked JSON from a process that may have been taken over by what it read.

        Raises:
            ReaderDied: There is no reply; the next request starts a fresh process.
            EnvironmentProblem: The process cannot start.
        """
        self.start()
        process = self._process
        assert process is not None
        limit_s = self.limits.timeout_s if deadline_s is None else deadline_s
        try:
            self._send(process, json.dumps(message).encode() + b"\n", limit_s)
            while True:
                reply = self._next_message(process, limit_s)
                if "progress" not in reply:
                    return reply
                if on_progress is None or not isinstance(reply["progress"], dict):
                    raise ReaderDied(_NO_REPLY)
                on_progress(reply["progress"])
        except BaseException:
            self.stop()
            raise

    def end(self) -> None:
        """End the process for good, from any thread; a request that waits for it, and any later one, dies."""
        self._is_ended = True
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()

    def _death(self, process: subprocess.Popen[bytes]) -> ReaderDied:
        """What ended a process that has closed its side."""
        try:
            status = process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return ReaderDied("its reader process closed its output")
        if status >= 0:
            said = self._last_errors(process)[-1:]
            words = f" ({one_line(said[0])[:_SHOWN_LETTERS]})" if said else ""
            return ReaderDied(f"its reader process ended with status {status}{words}", may_be_chance=True)
        try:
            name = f" ({signal.Signals(-status).name})"
        except ValueError:
            name = ""
        return ReaderDied(f"its reader process died with signal {-status}{name}", may_be_chance=True)

    def _last_errors(self, process: subprocess.Popen[bytes]) -> list[str]:
        """The last lines that an ended process wrote to standard error."""
        assert process.stderr is not None
        if not self._errors.endswith(_END):
            os.set_blocking(process.stderr.fileno(), False)  # a process of its own may hold the other end
            self._errors += process.stderr.read(_PIECE_BYTES) or b""
        return self._errors.removesuffix(_END).decode("utf-8", "replace").strip().splitlines()

    def _send(self, process: subprocess.Popen[bytes], content: bytes, limit_s: float) -> None:
        """Write a request, which a process that does not listen must not hold up for ever."""
        assert process.stdin is not None
        descriptor, deadline = process.stdin.fileno(), time.monotonic() + limit_s
        os.set_blocking(descriptor, False)
        rest = memoryview(content)
        while rest:
            with selectors.DefaultSelector() as selector:
                selector.register(descriptor, selectors.EVENT_WRITE)
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _took_too_long(limit_s)
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BrokenPipeError:
                raise self._death(process) from None

    def _next_message(self, process: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._received:
            if not self._receive(process, deadline):
                raise _took_too_long(limit_s)
            if len(self._received) > _MAX_LINE_BYTES:
                raise ReaderDied(f"its reader process sent more than {_MAX_LINE_BYTES} bytes in one reply")
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ReaderDied(_NO_REPLY)
        return message

    def _receive(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Take what is there; of standard error only the end is kept, for a message.

        Returns:
            Whether anything came before the deadline.

        Raises:
            ReaderDied: The process has closed its side.
        """
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not self._errors.endswith(_END):
                selector.register(process.stderr, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if process.stderr in ready:
            self._errors = (self._errors + (process.stderr.read(_PIECE_BYTES) or _END))[-_KEPT_ERROR_BYTES:]
        if process.stdout in ready:
            piece = process.stdout.read(_PIECE_BYTES)
            if not piece:
                raise self._death(process)
            self._received += piece
        return bool(ready)


def _environment() -> dict[str, str]:
    """The environment of this process without credentials, which a file that takes over the reader must not find."""
    package = str(Path(asmil.__file__).parents[1])
    dropped = {name for name in os.environ if any(fnmatchcase(name.upper(), pattern) for pattern in _SECRETS)}
    dropped.add("PYTHONFAULTHANDLER")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HDF5_PLUGIN_PRELOAD": "::",  # a file cannot make HDF5 load a filter from the disk
    }


def _took_too_long(limit_s: float) -> ReaderDied:
    return ReaderDied(f"its reader process took longer than {limit_s:g} s (--reader-timeout)", is_timeout=True)
