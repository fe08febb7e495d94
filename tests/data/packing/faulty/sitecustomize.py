"""Faults in the processes of a conversion; Python imports this where the folder is on `PYTHONPATH`.

`PACK_FAULTS` holds JSON with any of these keys:

- `open`: what happens when a worker looks into a file, by file name
- `read`: what happens when a worker reads a slide for its shard, by slide id
- `fill`: a file that the action `fill` lets grow until the disk is full
- `once`: a folder that remembers which of these have happened; without it they happen every time
- `count`: a file that gets one byte for every file event below `store`, in the command or a worker
- `kill_at`: the command is killed before the event of this number, counted from 0
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def _crash() -> None:
    os.write(2, b"Traceback (most recent call last):\nSystemError: broken \x1b[2J library\n")
    os._exit(1)


def _raise() -> None:
    from asmil.errors import DataError

    raise DataError("its name is \x1b[2J\n\x07")


def _eat() -> None:
    held = [bytearray(64 << 20) for _ in range(64)]
    raise AssertionError(f"{len(held)} times 64 MiB were given")


def _babble() -> None:
    for descriptor in range(3, 16):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"[1, 2\n")
    signal.pause()


def _fill(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4_096))


def _happen(action: str, faults: dict[str, Any]) -> None:
    actions: dict[str, Callable[[], Any]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(3),
        "hang": signal.pause,
        "crash": _crash,
        "raise": _raise,
        "eat": _eat,
        "babble": _babble,
        "fill": lambda: _fill(faults["fill"]),
    }
    actions[action]()


def _maybe(kind: str, name: str, faults: dict[str, Any]) -> None:
    action = faults.get(kind, {}).get(name)
    if action is None:
        return
    if "once" in faults:
        try:
            os.close(os.open(f"{faults['once']}/{kind}-{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    _happen(action, faults)


def _break_readers(faults: dict[str, Any]) -> None:
    import asmil.data.sources as sources
    from asmil.data.packing import shard_job

    detect, read_slide = sources.detect, shard_job.read_slide

    def faulty_detect(path: Path, *rest: Any) -> Any:
        _maybe("open", path.name, faults)
        return detect(path, *rest)

    def faulty_read_slide(source: Any, header: Any) -> Any:
        _maybe("read", header.slide_id, faults)
        return read_slide(source, header)

    sources.detect, shard_job.read_slide = faulty_detect, faulty_read_slide


def _count_events(faults: dict[str, Any], command: int) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(faults["store"]):
            return
        counter = os.open(faults["count"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(counter, b".")
        number = os.fstat(counter).st_size - 1
        os.close(counter)
        if number == faults.get("kill_at"):
            os.kill(command, signal.SIGKILL)
            signal.pause()  # a worker waits for its own end

    sys.addaudithook(hook)


def _install() -> None:
    faults = json.loads(os.environ.get("PACK_FAULTS", "{}"))
    is_worker = "asmil.data.packing.worker" in sys.orig_argv
    if is_worker and ("read" in faults or "open" in faults):
        _break_readers(faults)
    if "count" in faults and (is_worker or "asmil.data.pack" in sys.orig_argv):
        _count_events(faults, os.getppid() if is_worker else os.getpid())


_install()
