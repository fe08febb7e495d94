"""Conversions of a few small files, and processes that fail on purpose."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.pack import PackOptions, pack
from asmil.data.packing.process import ReaderLimits
from tests.data.foreign import tiles, write_trident

FAULTY = Path(__file__).parent / "faulty"
MIB_ROWS, MIB_WIDTH = 350, 1_600  # one slide of these as float16 is a little over 1 MiB, so a shard at `shard_mib=1`


def options(**changed: Any) -> PackOptions:
    """Options for small conversions: one process, a shard per MiB."""
    return PackOptions(**({"workers": 1, "shard_mib": 1} | changed))


def limits(**changed: Any) -> ReaderLimits:
    """Limits of the processes; the defaults are generous."""
    return ReaderLimits(**({"timeout_s": 60.0} | changed))


def write_slides(folder: Path, names: Sequence[str], num_rows: int = 4, width: int = 6) -> Path:
    """One TRIDENT file per name, with different values in each."""
    folder.mkdir(exist_ok=True)
    for position, name in enumerate(names):
        write_trident(folder / f"{name}.h5", *tiles(num_rows + position, width))
    return folder


def write_large_slides(folder: Path, names: Sequence[str]) -> Path:
    """Slides that fill a shard of 1 MiB each."""
    return write_slides(folder, names, MIB_ROWS, MIB_WIDTH)


def spoil(path: Path, value: float, row: int = 2) -> None:
    """Put one value into the features of a file."""
    import h5py

    with h5py.File(path, "r+") as file:
        file["features"][row, 1] = value


def run(sources: Sequence[Path], out: Path, given: PackOptions | None = None) -> list[str]:
    """Convert in this process; what was said."""
    said: list[str] = []
    pack(sources, out, given or options(), say=said.append)
    return said


def contents(store: Path) -> dict[str, str]:
    """Every file of a store, hidden ones included, with the hash of its bytes."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def set_faults(monkeypatch: pytest.MonkeyPatch, **faults: Any) -> None:
    """Let processes started from now on fail as `faulty/sitecustomize.py` says."""
    for name, value in fault_environment(**faults).items():
        monkeypatch.setenv(name, value)


def fault_environment(**faults: Any) -> Mapping[str, str]:
    """The environment in which processes fail."""
    return {"PYTHONPATH": str(FAULTY), "PACK_FAULTS": json.dumps(faults)}


def workers_of(parent: int) -> list[int]:
    """Living worker processes that a process has started; their command line ends with its id."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")[:-1]
        except OSError:
            continue  # it ended since it was listed
        if b"asmil.data.packing.worker" in words and words[-1] == str(parent).encode():
            found.append(int(path.parent.name))
    return found


def wait_until_gone(parent: int, deadline_s: float = 10.0) -> None:
    """Wait for the end of all workers of a process."""
    end = time.monotonic() + deadline_s
    while workers_of(parent):
        assert time.monotonic() < end, f"workers {workers_of(parent)} outlive their parent {parent}"
        time.sleep(0.02)


def wait_for(condition: Callable[[], bool], command: subprocess.Popen[Any]) -> None:
    """Wait until a condition holds while a command runs, which must not end before."""
    while not condition():
        assert command.poll() is None, "the command has ended"
        time.sleep(0.02)


def float16_bytes(rows: int, width: int) -> int:
    """Bytes of features and int32 coordinates of a slide in a float16 store."""
    return rows * (width * np.dtype("f2").itemsize + 2 * np.dtype("i4").itemsize)
