"""A disk that is full, before or while shards are written: status 4, bytes needed and free, nothing old is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from asmil.data.store import BagStore
from asmil.errors import EnvironmentProblem
from tests.data.packing.support import (
    FAULTY,
    MIB_ROWS,
    MIB_WIDTH,
    contents,
    float16_bytes,
    options,
    run,
    write_large_slides,
)

NAMES = ["S0", "S1", "S2"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_large_slides(tmp_path / "features", NAMES)


def test_space_is_asked_for_before_the_conversion(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    needed = sum(float16_bytes(MIB_ROWS + position, MIB_WIDTH) for position in range(len(NAMES)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000_000, 0, needed - 1))
    with pytest.raises(EnvironmentProblem, match=rf"takes {needed} more bytes, {needed - 1} bytes are free") as refused:
        run([source], tmp_path / "store")
    assert refused.value.exit_code == 4
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000_000, 0, needed))
    run([source], tmp_path / "store")


SCRIPT = """
set -u
mount -t tmpfs -o size=12m tmpfs "$DISK"
echo old > "$DISK/old"
pack() { "$PYTHON" -m asmil.data.pack "$SOURCE" --out "$DISK/store" --workers 1 --shard-mib 1 "$@"; }
pack > "$SEEN/first.out" 2> "$SEEN/first.err"
echo $? > "$SEEN/first.status"
(cd "$DISK" && find . -type f | sort) > "$SEEN/files"
rm -f "$DISK/filler"
PACK_FAULTS='{}' pack --resume > "$SEEN/second.out" 2> "$SEEN/second.err"
echo $? > "$SEEN/second.status"
cp -r "$DISK/." "$SEEN/disk"
"""


def can_mount() -> bool:
    """Whether this user may mount a file system in a name space of its own."""
    try:
        words = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_disk_that_fills_up_meanwhile_keeps_what_is_done_and_resume_finishes(source: Path, tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mounting a small file system needs user name spaces")
    disk, seen = tmp_path / "disk", tmp_path / "seen"
    disk.mkdir()
    seen.mkdir()
    faults = {"read": {"S1": "fill"}, "fill": str(disk / "filler")}
    names = {"DISK": disk, "SEEN": seen, "SOURCE": source, "PYTHON": sys.executable, "PYTHONPATH": FAULTY}
    environment = {name: str(value) for name, value in names.items()} | {"PACK_FAULTS": json.dumps(faults)}
    words = ["unshare", "--map-root-user", "--mount", "bash", "-c", SCRIPT]
    subprocess.run(words, env={**os.environ, **environment}, check=True)

    def text(name: str) -> str:
        return (seen / name).read_text()

    assert text("first.status") == "4\n", text("first.err")
    needed = float16_bytes(MIB_ROWS + 1, MIB_WIDTH)
    assert text("first.err").startswith(f"error: {disk}/store/shards/.part-00001.arrow.tmp: cannot take {needed} more")
    assert "(No space left on device, 0 bytes free); free space or choose another place" in text("first.err")
    assert "1 finished shards are kept; give --resume with the same command" in text("first.out")
    kept = ["./filler", "./old", "./store/.pack/part-00000.json", "./store/.pack/plan.json"]
    assert text("files").split() == [*kept, "./store/.pack/problems.json", "./store/shards/part-00000.arrow"]
    assert (text("second.status"), text("second.err")) == ("0\n", "")
    assert text("disk/old") == "old\n"
    run([source], tmp_path / "reference", options())
    assert contents(seen / "disk/store") == contents(tmp_path / "reference")
    assert BagStore.open(str(seen / "disk/store")).slide_ids == tuple(NAMES)
