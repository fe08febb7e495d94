"""Rows 21 and 22: a conversion that is killed or runs out of disk, and a checkpoint that finds the disk full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from asmil.data.store import BagStore
from asmil.engine.checkpoint import CHECKPOINT
from tests.data.packing.support import (
    MIB_ROWS,
    MIB_WIDTH,
    contents,
    fault_environment,
    float16_bytes,
    wait_until_gone,
    write_large_slides,
)
from tests.faults.support import ENVIRONMENT, INPUT, Commands, snapshot
from tests.run_support import classification, history_of

SLIDES = ("S0", "S1")
OPTIONS = ("--workers", 1, "--shard-mib", 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two slides that fill a shard each."""
    return write_large_slides(tmp_path / "features", SLIDES)


def started(source: Path, out: Path, *options: object, **faults: object) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with faults."""
    words = [sys.executable, "-m", "asmil.data.pack", source, "--out", out, *options]
    return subprocess.Popen(
        list(map(str, words)),
        env={**os.environ, **fault_environment(**faults)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def counted(source: Path, out: Path, **faults: object) -> int:
    """Run the command, counting its file events below the store; its status."""
    process = started(source, out, *OPTIONS, store=str(out), count=str(out.parent / "events"), **faults)
    status = process.wait(60)
    wait_until_gone(process.pid)
    return status


def test_row_21_a_killed_conversion_is_no_store_and_resume_makes_the_same_bytes(
    source: Path, tmp_path: Path, commands: Commands
) -> None:
    whole = tmp_path / "whole" / "store"
    whole.parent.mkdir()
    assert counted(source, whole) == 0
    num_events, reference = (whole.parent / "events").stat().st_size, contents(whole)
    assert list(reference) == ["dataset.json", "index.arrow", "shards/part-00000.arrow", "shards/part-00001.arrow"]
    for point in [num_events * part // 6 for part in (1, 2, 3, 4)]:
        out = tmp_path / str(point) / "store"
        out.parent.mkdir()
        assert counted(source, out, kill_at=point) == -signal.SIGKILL, point
        commands.verify(out).refused(INPUT, str(out), "python -m asmil.data.pack")
        for path in out.glob("shards/part-*"):
            assert contents(out)[f"shards/{path.name}"] == reference[f"shards/{path.name}"]
        commands.pack(source, "--out", out, *OPTIONS, "--resume").succeeded(f"wrote {out}: 2 bags")
        assert contents(out) == reference, point


def test_row_21_a_shard_that_is_half_written_has_no_name_yet(source: Path, tmp_path: Path, commands: Commands) -> None:
    """The command is killed while one of two slides of a shard lies in the file."""
    out, options = tmp_path / "store", ["--workers", 1]
    process = started(source, out, *options, read={"S1": "hang"})
    deadline = time.monotonic() + 60
    while max((path.stat().st_size for path in out.glob("shards/*")), default=0) < 1 << 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        os.sched_yield()
    process.kill()
    process.wait(60)
    wait_until_gone(process.pid)
    assert [path.name for path in out.glob("shards/*")] == [".part-00000.arrow.tmp"]
    commands.verify(out).refused(INPUT, f"{out}: not a store", "python -m asmil.data.pack")
    commands.pack(source, "--out", out, *options).refused(INPUT, "found an unfinished conversion", "give --resume")
    commands.pack(source, "--out", out, *options, "--resume").succeeded(f"wrote {out}: 2 bags")
    assert list(contents(out)) == ["dataset.json", "index.arrow", "shards/part-00000.arrow"]


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file of this process, and of those it starts, may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_row_22_a_conversion_that_cannot_write_leaves_what_was_there_and_no_temporary_file(
    source: Path, tmp_path: Path, commands: Commands
) -> None:
    store = tmp_path / "store"
    before = snapshot(tmp_path)
    with largest_file(1 << 19):
        outcome = commands.pack(source, "--out", store, *OPTIONS)
    needed = float16_bytes(MIB_ROWS, MIB_WIDTH)
    outcome.refused(
        ENVIRONMENT, f"{store}/shards/.part-00000.arrow.tmp: cannot take {needed} more bytes (", "free space or choose"
    )
    assert snapshot(tmp_path) == before
    first = float16_bytes(MIB_ROWS, MIB_WIDTH) + 4096
    with largest_file(first):
        outcome = commands.pack(source, "--out", store, *OPTIONS)
    outcome.refused(ENVIRONMENT, f"{store}/shards/.part-00001.arrow.tmp", "1 finished shards are kept; give --resume")
    assert {path.name for path in (store / "shards").iterdir()} == {"part-00000.arrow"}
    commands.pack(source, "--out", store, *OPTIONS, "--resume").succeeded("1 of 2 shards were finished before")
    assert BagStore.open(str(store)).slide_ids == SLIDES
    commands.verify(store).succeeded("every byte as written")


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


def test_row_22_a_conversion_names_the_bytes_it_needs_and_those_that_are_free(
    source: Path, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path)
    needed = sum(float16_bytes(MIB_ROWS + position, MIB_WIDTH) for position in range(len(SLIDES)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, needed - 1))
    commands.pack(source, "--out", tmp_path / "store", *OPTIONS).refused(
        ENVIRONMENT,
        f"{tmp_path}/store: the store takes {needed} more bytes, {needed - 1} bytes are free",
        "free space or choose another place",
    )
    assert snapshot(tmp_path) == before


def full_at(number: int, name: str) -> Callable[[int], None]:
    """An `os.fsync` that finds the disk full the n-th time a file of this name is flushed."""
    fsync, seen = os.fsync, []

    def faulty(descriptor: int) -> None:
        if f"/.{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            seen.append(descriptor)
            if len(seen) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return faulty


def test_row_22_a_checkpoint_on_a_full_disk_keeps_the_one_before_and_resume_goes_on_from_it(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = classification(tmp_path, changes={"train.checkpoint_seconds": 0})
    whole, out = tiny.run(), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at(3, CHECKPOINT))
        commands.run(tiny.file, "--out", out).refused(
            ENVIRONMENT, f"{out}/{CHECKPOINT}: cannot be written (No space left on device, ", " bytes free)"
        )
    assert [path.name for path in out.glob("checkpoint*")] == ["checkpoint.previous.pt"]
    assert not list(out.glob(".*"))
    assert not (out / "result.json").exists()
    commands.run(tiny.file, "--out", out, "--resume").succeeded("validation (epoch 3): ")
    assert history_of(out) == history_of(whole)
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
