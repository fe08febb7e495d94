"""A bar on a terminal, plain lines elsewhere, and rates that are what they say."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from asmil.data.packing.progress import HalfMinutes, Progress
from tests.data.packing.support import run, write_slides


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_bar_there_is_a_line_every_half_minute() -> None:
    said: list[str] = []
    clock = Clock()
    with Progress(4, 1_000, said.append, clock=clock) as progress:
        for step in range(1, 7):
            clock.now += 10
            if step <= 4:
                progress.add(1, 200, 5_000_000_000)
            progress.tick()
    assert said == [
        "3 of 4 slides, 0.1 slides/s, 0.50 GB/s, 20.0 s left",
        "4 of 4 slides, 0.1 slides/s, 0.33 GB/s, 15.0 s left",
    ]
    assert progress.summary() == "read 20.00 GB in 60.0 s (0.1 slides/s, 0.33 GB/s)"


def test_looking_into_many_files_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HalfMinutes, "passed", lambda _: True)
    said = run([write_slides(tmp_path / "features", ["S0", "S1"])], tmp_path / "store")
    assert "looked into 1 of 2 files" in said


def test_slides_that_are_read_again_do_not_count_twice() -> None:
    clock = Clock()
    progress = Progress(2, 20, print, clock=clock)
    clock.now += 2
    progress.add(1, 10, 8_000_000_000)
    progress.add(-1, -10, -8_000_000_000)
    assert progress.line() == "0 of 2 slides, 0.0 slides/s, 0.00 GB/s"
    progress.add(2, 20, 4_000_000_000)
    assert progress.line() == "2 of 2 slides, 1.0 slides/s, 2.00 GB/s"


@pytest.mark.parametrize(("seconds", "text"), [(99.94, "99.9 s"), (100, "2 min"), (6_000, "1 h 40 min")])
def test_durations_have_the_unit_a_person_would_use(seconds: float, text: str) -> None:
    clock = Clock()
    progress = Progress(1, 10, print, clock=clock)
    clock.now += seconds
    assert progress.summary().startswith(f"read 0.00 GB in {text} (")


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(out), "--workers", "1"]


def test_a_pipe_gets_lines_without_control_characters(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0", "S1"])
    done = subprocess.run(command(source, tmp_path / "store"), capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[-1].startswith(f"wrote {tmp_path}/store: 2 bags, 9 instances x 6 float16, dataset ")
    assert "slides/s" in lines[-1]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    source = write_slides(tmp_path / "features", ["S0", "S1"])
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    with subprocess.Popen(
        command(source, tmp_path / "store"), stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # how Linux reports that the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait(60) == 0
    os.close(ours)
    text = shown.decode()
    assert "\x1b[" in text
    assert "2/2 slides" in text
    assert "GB/s" in text
    assert f"wrote {tmp_path}/store: 2 bags" in "".join(text.split("\r\n")).replace("\n", "")
