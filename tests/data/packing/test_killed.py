"""The whole command is killed (SIGKILL) at seeded file events; nothing half is a store, and --resume finishes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asmil.data.store import BagStore
from asmil.errors import DataError
from tests.data.foreign import tiles, write_trident
from tests.data.packing.support import contents, fault_environment, options, run, wait_until_gone, write_large_slides

NUM_POINTS = 20
SHARDS = ["S0", "S1", "S2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides that fill a shard each, a small one and a damaged one that is left out."""
    folder = write_large_slides(tmp_path_factory.mktemp("killed") / "features", SHARDS)
    write_trident(folder / "S3.h5", *tiles(5, 1_600))
    (folder / "S9.h5").write_bytes((folder / "S0.h5").read_bytes()[:5_000])
    return folder


@pytest.fixture(scope="module")
def reference(source: Path) -> dict[str, str]:
    """What a conversion that nothing interrupts makes."""
    out = source.parent / "reference"
    run([source], out)
    return contents(out)


def status_of_command(source: Path, out: Path, **faults: object) -> int:
    """Run the command, counting its file events below the store, and wait for its end and that of its workers."""
    words = [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(out), "--workers", "1"]
    faults |= {"store": str(out), "count": str(out.parent / "events")}
    with subprocess.Popen(
        [*words, "--shard-mib", "1"],
        env={**os.environ, **fault_environment(**faults)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        try:
            status = command.wait(60)
            wait_until_gone(command.pid)
            return status
        finally:
            command.kill()


@pytest.fixture(scope="module")
def num_events(source: Path, reference: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> int:
    """File events of the whole command."""
    folder = tmp_path_factory.mktemp("events")
    assert status_of_command(source, folder / "store") == 0
    assert contents(folder / "store") == reference
    return (folder / "events").stat().st_size


@pytest.mark.parametrize("part", range(NUM_POINTS))
def test_killed_at_any_event_it_is_no_store_or_all_of_it_and_resume_finishes(
    source: Path, reference: dict[str, str], num_events: int, tmp_path: Path, part: int
) -> None:
    assert num_events > 2 * NUM_POINTS
    point = random.Random(part).choice(range(part * num_events // NUM_POINTS, (part + 1) * num_events // NUM_POINTS))
    out = tmp_path / "store"
    assert status_of_command(source, out, kill_at=point) == -signal.SIGKILL, point
    state = _state_after_a_kill(out, reference)
    assert state != "complete" or part == NUM_POINTS - 1
    run([source], out, replace(options(), resume=True))
    assert contents(out) == reference, (point, state)


@pytest.mark.parametrize(
    ("events_left", "expected"), [(1, "complete"), (None, "nothing finished")], ids=["last", "first"]
)
def test_killed_before_the_last_event_the_store_is_complete_and_before_the_first_there_is_nothing(
    source: Path, reference: dict[str, str], num_events: int, tmp_path: Path, events_left: int | None, expected: str
) -> None:
    out = tmp_path / "store"
    kill_at = 0 if events_left is None else num_events - events_left
    assert status_of_command(source, out, kill_at=kill_at) == -signal.SIGKILL
    assert _state_after_a_kill(out, reference) == expected
    said = run([source], out, replace(options(), resume=True))
    is_complete = said[0].startswith(f"{out}: this store is complete; there is nothing to resume. ")
    assert (is_complete, len(said) == 1) == ((True, True) if expected == "complete" else (False, False))
    assert contents(out) == reference


def _state_after_a_kill(out: Path, reference: dict[str, str]) -> str:
    """How far it was; checks that a reader accepts the whole store or nothing."""
    if (out / "dataset.json").exists():
        store = BagStore.open(str(out))
        found = contents(out)
        assert {name: found[name] for name in reference} == reference
        assert store.slide_ids == (*SHARDS, "S3")
        return "complete"
    with pytest.raises(DataError, match=r"no such directory|an empty directory|finish it with --resume, or delete"):
        BagStore.open(str(out))
    for path in out.glob("shards/part-*.arrow"):  # a shard has its name only when all of it is there
        assert contents(out)[f"shards/{path.name}"] == reference[f"shards/{path.name}"]
    finished = sorted(path.name for path in out.glob(".pack/part-*.json"))
    if not finished:
        return "nothing finished"
    assert all(json.loads((out / ".pack" / name).read_text())["result"]["rows"] for name in finished)
    return "all shards finished" if len(finished) == 4 else "some shards finished"
