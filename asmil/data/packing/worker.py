"""The process that opens foreign files: `python -m asmil.data.packing.worker MEMORY PARENT`.

It takes one JSON request per line and answers with one JSON line, after any number of progress lines. Its memory is
limited, it leaves no core file, it dies with its parent, and readers see neither end of the conversation: whatever
they or a C library print goes to standard error.

Nothing here may import torch, pandas or scipy; readers import them where they need them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from asmil.data.packing.messages import MAX_NAME, ConvertRequest, Problem
from asmil.data.packing.shard_job import ShardJob, arrays_of, problem_of, read_options, read_slide
from asmil.data.sources import Detected, Source, SourceBag, SourceFormat, UnknownContentError, detect
from asmil.errors import DataError, EnvironmentProblem, IntegrityError

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class _Worker:
    """Answers requests; keeps the last format, which the next file probably has as well."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._last_format: SourceFormat | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request, errors included."""
        tasks = {"discover": self.discover, "open": self.open, "convert": self.convert, "digest": self.digest}
        try:
            return tasks[request["task"]](request)
        except MemoryError:
            return {"error": "memory", "message": "out of memory"}
        except EnvironmentProblem as problem:
            return {"error": "environment", "message": str(problem)}
        except IntegrityError as problem:
            return {"error": "integrity", "message": str(problem)}
        except Exception as error:  # whatever a foreign file makes a reader raise is a finding about that file
            return {"error": "problem", "problem": problem_of(error).model_dump()}

    def discover(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whether a folder as a whole is a unit; one that may not be read counts, so that it is reported."""
        try:
            return {"is_unit": detect(Path(request["path"])).reason is not None}
        except UnknownContentError:
            return {"is_unit": False}
        except DataError:
            return {"is_unit": True}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Detect a unit and look into it."""
        found, source = self._open(request)
        return {
            "format": found.format.name,
            "reason": found.reason,
            "dtype": found.format.dtype,
            "slides": [asdict(header) | {"slide_id": _printable(header.slide_id)} for header in source.slides],
            "facts": source.facts.model_dump(mode="json"),
            "no_tissue": [_printable(slide_id) for slide_id in source.no_tissue],
            "labels": {_printable(slide_id): columns for slide_id, columns in source.labels.items()},
            "notes": source.notes,
        }

    def _open(self, request: dict[str, Any]) -> tuple[Detected, Source]:
        path = Path(request["path"])
        detected = detect(path, self._last_format)
        self._last_format = detected.format
        source = detected.format.open(path, read_options(request["read"]))
        return detected, source

    def digest(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read everything in a unit; checksums, or the problem, per slide."""
        found, source = self._open(request)
        slides: dict[str, Any] = {}
        for header in source.slides:
            try:
                slides[header.slide_id] = _digest(read_slide(source, header))
            except Exception as error:  # as in `answer`
                slides[header.slide_id] = {"problem": problem_of(error).model_dump()}
        return {"format": found.format.name, "reason": found.reason, "slides": slides, "no_tissue": source.no_tissue}

    def convert(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write one shard."""
        order = ConvertRequest.model_validate(request["order"])
        return ShardJob(order, self._tell).run()


def _printable(slide_id: str) -> str:
    """An id as text that a reply can hold: names of files need not be UTF-8, nor names in them short.

    Such an id is refused later.
    """
    return slide_id.encode("utf-8", "backslashreplace").decode()[:MAX_NAME]


def _digest(bag: SourceBag) -> dict[str, Any]:
    return {
        name: {
            "dtype": str(array.dtype),
            "shape": array.shape,
            "xxh3": xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data),
        }
        for name, array in arrays_of(bag).items()
    }


def _limit(memory: int, parent: int) -> None:
    """Limit this process; it dies with its parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us on Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        status = Path("/proc/self/status").read_text()
        used = int(status.split("VmData:")[1].split()[0]) << 10
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = used + memory if hard == resource.RLIM_INFINITY else min(used + memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    if os.getppid() != parent:
        sys.exit("the parent is gone")


@contextlib.contextmanager
def _conversation() -> Iterator[tuple[Any, Any]]:
    """Both ends of the conversation, moved to places where no reader looks."""
    with (
        os.fdopen(os.dup(0), "r", encoding="utf-8") as requests,
        os.fdopen(os.dup(1), "w", encoding="utf-8") as replies,
    ):
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        yield requests, replies


def main() -> None:
    """Serve requests until standard input ends."""
    memory, parent = (int(word) for word in sys.argv[1:])
    _limit(memory, parent)
    with _conversation() as (requests, replies):

        def tell(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message, allow_nan=False) + "\n")
            replies.flush()

        tell({"ready": True})
        worker = _Worker(lambda message: tell({"progress": message}))
        for line in requests:
            reply = worker.answer(json.loads(line))
            try:
                tell(reply)
            except ValueError:  # NaN or infinity among the labels or facts
                reason = "its labels or facts hold NaN or infinite numbers; correct them, or leave them out"
                tell({"error": "problem", "problem": Problem(kind="content", reason=reason).model_dump()})


if __name__ == "__main__":
    main()
