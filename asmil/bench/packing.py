"""`pack`: converting TRIDENT-layout files against reading the same files with h5py alone, and the memory it takes."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from asmil.bench.layouts import draw_lengths, write_rows_h5
from asmil.bench.memory import PeakTreePss
from asmil.errors import EnvironmentProblem

__all__ = ["Cost", "pack_figures", "pack_rows", "write_source"]

PACK_WIDTH = 1_024
_BYTES_PER_INSTANCE = 4 * PACK_WIDTH + 2 * 8


class Cost(NamedTuple):
    """What one run of a program took: wall and CPU seconds, those of its child processes included."""

    wall_s: float
    cpu_s: float


def pack_rows(
    *, gib: float = 1.0, workers: int = 2, repeats: int = 3, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Convert a folder of float32 files, page cache warm, every program in a process of its own and its start counted.

    Args:
        gib: Size of the source in GiB.
        workers: Processes that convert.
        repeats: Rounds that count, in which the programs take turns; one before them warms the page cache.
        folder: Where the files are made; a temporary directory by default.

    Returns:
        Rows of `pack_figures`.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        source, out = Path(made) / "features", Path(made) / "store"
        num_bytes = write_source(source, int(gib * 2**30))
        python = [sys.executable, "-m"]
        commands = {
            "h5py_1": [*python, "asmil.bench.h5alone", str(source), "1"],
            "h5py_n": [*python, "asmil.bench.h5alone", str(source), str(workers)],
            "pack": [*python, "asmil.data.pack", str(source), "--out", str(out), "--workers", str(workers)],
        }

        def run(program: str) -> Cost:
            shutil.rmtree(out, ignore_errors=True)
            return _timed(commands[program])

        costs = _take_turns(list(commands), run, repeats)
        peaks = {}
        for program, command in commands.items():  # watching costs time, so these runs are not timed
            shutil.rmtree(out, ignore_errors=True)
            peaks[program] = _watched(command)
    return pack_figures(costs, peaks, num_bytes=num_bytes, workers=workers)


def pack_figures(
    costs: Mapping[str, Cost], peaks: Mapping[str, int], *, num_bytes: int, workers: int
) -> list[dict[str, Any]]:
    """Figures per program.

    Args:
        costs: By program: `h5py_1` (one process), `h5py_n` (as many as `pack`) and `pack`.
        peaks: Largest sum of proportional set sizes over a program and its child processes, in bytes.
        num_bytes: Size of the source's arrays.
        workers: Processes of `pack`.

    Returns:
        Rows with `program`, `workers`, `source_gib`, `wall_s`, `cpu_s`, `gb_per_s`, `ratio_vs_h5py_1` and
        `ratio_vs_h5py_n` (how many times their wall time) and `peak_mib`.
    """
    return [
        {
            "program": program,
            "workers": 1 if program == "h5py_1" else workers,
            "source_gib": round(num_bytes / 2**30, 2),
            "wall_s": round(cost.wall_s, 2),
            "cpu_s": round(cost.cpu_s, 2),
            "gb_per_s": round(num_bytes / cost.wall_s / 1e9, 3),
            "ratio_vs_h5py_1": round(cost.wall_s / costs["h5py_1"].wall_s, 2),
            "ratio_vs_h5py_n": round(cost.wall_s / costs["h5py_n"].wall_s, 2),
            "peak_mib": round(peaks[program] / 2**20),
        }
        for program, cost in costs.items()
    ]


def write_source(folder: Path, target_bytes: int) -> int:
    """Write slides as TRIDENT does: float32 features and int64 coordinates in chunks of one row, with its attributes.

    Args:
        folder: Where; made.
        target_bytes: About how much; slides are written until it is reached.

    Returns:
        Bytes of the arrays written.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    num_bytes = index = 0
    while num_bytes < target_bytes:
        left = max(1, (target_bytes - num_bytes) // _BYTES_PER_INSTANCE)
        length = min(left, draw_lengths(1, rng)[0])
        with h5py.File(folder / f"slide{index:05d}.h5", "w") as file:
            features = write_rows_h5(
                file, "features", rng.standard_normal((length, PACK_WIDTH), dtype=np.float32), chunk_rows=1
            )
            features.attrs["encoder"] = "uni_v1"
            coords = write_rows_h5(file, "coords", 512 * rng.integers(0, 200, (length, 2)), chunk_rows=1)
            for name, value in _COORD_ATTRIBUTES.items():
                coords.attrs[name] = value
            num_bytes += features.nbytes + coords.nbytes
        index += 1
    return num_bytes


_COORD_ATTRIBUTES = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
}


def _take_turns(programs: Sequence[str], run: Callable[[str], Cost], repeats: int) -> dict[str, Cost]:
    """Median cost of each program, after one round that does not count."""
    costs: dict[str, list[Cost]] = {program: [] for program in programs}
    for turn in range(repeats + 1):
        for program in programs:
            cost = run(program)
            if turn:
                costs[program].append(cost)
    return {program: Cost(*map(statistics.median, zip(*runs, strict=True))) for program, runs in costs.items()}


def _timed(command: Sequence[str]) -> Cost:
    start, cpu = time.perf_counter(), _children_cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    cost = Cost(time.perf_counter() - start, _children_cpu_s() - cpu)
    _check(command, done.returncode, done.stderr)
    return cost


def _watched(command: Sequence[str]) -> int:
    """Peak memory of a program and its child processes in bytes."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, text=True)
        with PeakTreePss(process.pid) as watch:
            status = process.wait()
        errors.seek(0)
        _check(command, status, errors.read())
    return watch.peak_bytes


def _check(command: Sequence[str], status: int, errors: str) -> None:
    if status:
        raise EnvironmentProblem(f"{' '.join(command)}: ended with status {status}: {errors[-2000:].strip()}")


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
