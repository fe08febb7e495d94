"""A child process that answers one JSON line with one JSON line, for what may crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Child", "ChildError", "serve"]

_ROOT = Path(__file__).parents[2]
_START_S = 120.0


class ChildError(Exception):
    """There is no reply.

    Attributes:
        is_timeout: The child took too long; else it ended.
        signal: The signal it died with, if it did.
    """

    def __init__(self, reason: str, *, is_timeout: bool = False, signal: int | None = None) -> None:
        super().__init__(reason)
        self.is_timeout = is_timeout
        self.signal = signal


class Child:
    """A process that runs `python -m MODULE`, started on the first question and again after each death.

    Args:
        module: Calls `serve`.
        memory_bytes: Limit of its data segment.
    """

    def __init__(self, module: str, memory_bytes: int = 3 << 30) -> None:
        self._words = [sys.executable, "-m", module, str(memory_bytes)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """Send a question and wait for the answer.

        Raises:
            ChildError: There is none in time; the next question goes to a fresh process.
        """
        try:
            if self._process is None:
                self._start()
            return self._exchange(question, deadline_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
        environment |= {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self._exchange(None, _START_S)

    def _exchange(self, question: dict[str, Any] | None, deadline_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline, received = time.monotonic() + deadline_s, b""
        if question is not None:
            with contextlib.suppress(BrokenPipeError):  # its end is found below
                process.stdin.write(json.dumps(question).encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildError(f"no answer within {deadline_s:g} s", is_timeout=True)
                piece = process.stdout.read(1 << 20)
                if not piece:
                    status = process.wait()
                    name = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
                    raise ChildError(f"ended with {name}", signal=-status if status < 0 else None)
                received += piece
        answer: dict[str, Any] = json.loads(received)
        return answer


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be such a child until standard input ends; whatever `answer` raises becomes `{"error": …}`."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        replies.write('{"ready": true}\n')
        replies.flush()
        for line in sys.stdin:
            try:
                reply = json.dumps(answer(json.loads(line)))
            except Exception as error:
                reply = json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]})
            replies.write(reply + "\n")
            replies.flush()
