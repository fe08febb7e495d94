"""Which drivers are alive: killed, held up, silent, damaged, and taken for dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tune import heartbeat
from tune.heartbeat import Heartbeat

DRIVER = """
import sys, time
from pathlib import Path
from tune.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1])):
    print("beating", flush=True)
    time.sleep(60)
"""


def silence(announced: Path, *, seconds: float) -> None:
    """Make the last sign of life this old."""
    then = time.time() - seconds
    os.utime(announced, (then, then))


def test_a_killed_driver_is_not_taken_for_alive(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process, Heartbeat(tmp_path) as own:
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n"
        assert [driver.pid for driver in own.others()] == [process.pid]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert own.others() == []  # dead though not yet waited for
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_is_held_up_on_this_machine_is_alive_however_long_it_is_silent(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n"
        process.send_signal(signal.SIGSTOP)
        (announced,) = tmp_path.iterdir()
        silence(announced, seconds=3600)
        with Heartbeat(tmp_path) as own:
            assert [driver.pid for driver in own.others()] == [process.pid]
        process.kill()


def test_a_process_that_got_the_number_of_a_dead_driver_is_not_taken_for_it(tmp_path: Path) -> None:
    content = {"host": socket.gethostname(), "pid": os.getppid(), "started": "1"}
    (tmp_path / "dead.json").write_text(json.dumps(content))
    with Heartbeat(tmp_path) as own:
        assert own.others() == []


@pytest.mark.parametrize("content", ["", "[]", '{"host": "elsewhere"}'])
def test_a_damaged_announcement_is_that_of_a_dead_driver(tmp_path: Path, content: str) -> None:
    (tmp_path / "damaged.json").write_text(content)
    with Heartbeat(tmp_path) as own:
        assert own.others() == []
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_was_taken_for_dead_stops_and_does_not_announce_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    interrupted = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        with Heartbeat(tmp_path):
            next(tmp_path.iterdir()).unlink()
            assert interrupted.wait(20)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_of_another_machine_is_dead_after_a_minute_of_silence(tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere-1-abcd.json"
    foreign.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": ""}))
    with Heartbeat(tmp_path) as own:
        assert [driver.host for driver in own.others()] == ["elsewhere"]
        silence(foreign, seconds=61)
        assert own.others() == []
        assert not foreign.exists()
