"""The pack bench writes what TRIDENT writes, divides the right figures, and sees the memory of child processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from asmil.bench import h5alone, packing
from asmil.bench.memory import PeakTreePss, pss_bytes, tree_pids
from asmil.bench.packing import PACK_WIDTH, Cost, pack_figures, write_source
from asmil.data.sources import detect
from asmil.errors import EnvironmentProblem


def test_ratios_are_wall_time_over_that_of_reading_alone() -> None:
    costs = {"h5py_1": Cost(4.0, 4.2), "h5py_n": Cost(2.5, 4.4), "pack": Cost(3.0, 6.0)}
    peaks = {"h5py_1": 100 << 20, "h5py_n": 150 << 20, "pack": 700 << 20}
    rows = {row["program"]: row for row in pack_figures(costs, peaks, num_bytes=6_000_000_000, workers=2)}
    pack = rows["pack"]
    assert (pack["ratio_vs_h5py_1"], pack["ratio_vs_h5py_n"]) == (0.75, 1.2)
    assert (pack["gb_per_s"], rows["h5py_n"]["gb_per_s"]) == (2.0, 2.4)
    assert (pack["peak_mib"], pack["cpu_s"], pack["source_gib"]) == (700, 6.0, 5.59)
    assert [row["workers"] for row in rows.values()] == [1, 2, 2]
    assert rows["h5py_1"]["ratio_vs_h5py_1"] == rows["h5py_n"]["ratio_vs_h5py_n"] == 1.0


def test_the_first_round_does_not_count_and_programs_take_turns() -> None:
    seen: list[str] = []
    walls = {"a": iter([99.0, 1.0, 5.0, 2.0]), "b": iter([99.0, 3.0, 4.0, 9.0])}

    def run(program: str) -> Cost:
        seen.append(program)
        return Cost(next(walls[program]), 1.0)

    assert packing._take_turns(["a", "b"], run, repeats=3) == {"a": Cost(2.0, 1.0), "b": Cost(4.0, 1.0)}
    assert seen == ["a", "b"] * 4


def test_the_source_is_what_trident_writes(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    num_bytes = write_source(folder, 3 << 20)
    assert 3 << 20 <= num_bytes < (3 << 20) + 4 * PACK_WIDTH + 16
    paths = sorted(folder.iterdir())
    assert {detect(path).format.name for path in paths} == {"trident-h5"}
    assert sum(map(h5alone.read_file, paths)) == num_bytes
    assert h5alone.main(folder, 1) == h5alone.main(folder, 2) == num_bytes
    with h5py.File(paths[0]) as file:
        assert (file["features"].chunks, file["features"].dtype) == ((1, PACK_WIDTH), np.float32)
        assert file["coords"].chunks == (1, 2)


_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True); held = bytearray(64 << 20); "
    "held[::4096] = b'1' * len(held[::4096]); print('ready', flush=True); input()"], stdin=subprocess.PIPE)
child.wait()
"""


def test_the_peak_counts_the_memory_of_child_processes() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == b"ready\n"
        pids = tree_pids(process.pid)
        assert len(pids) == 2
        with PeakTreePss(process.pid, interval_s=0.001) as watch:
            pass
        assert watch.looks >= 1
        assert watch.peak_bytes > 64 << 20 > pss_bytes(process.pid)
        assert watch.peak_bytes == pytest.approx(sum(map(pss_bytes, pids)), rel=0.05)
    finally:
        for pid in reversed(tree_pids(process.pid)):
            subprocess.run(["kill", str(pid)], check=False)
        process.communicate()


def test_processes_that_have_ended_count_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with PeakTreePss(process.pid) as watch:
        pass
    assert watch.peak_bytes == 0


def test_a_program_that_fails_is_reported_with_its_message() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no room left')"]
    for measure in (packing._timed, packing._watched):
        with pytest.raises(EnvironmentProblem, match="status 1: no room left"):
            measure(command)
    cost = packing._timed([sys.executable, "-c", "sum(range(2_000_000))"])
    assert 0 < cost.cpu_s <= cost.wall_s * 2
