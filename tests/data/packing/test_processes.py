"""Worker processes that die, hang, take too much memory or talk nonsense cost at most the slide they were reading."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asmil.data.packing import process
from asmil.data.packing.process import ReaderDied, Worker
from asmil.data.store import BagStore
from asmil.errors import DataError, EnvironmentProblem
from tests.data.packing.support import (
    contents,
    fault_environment,
    limits,
    options,
    run,
    set_faults,
    wait_for,
    wait_until_gone,
    workers_of,
    write_large_slides,
    write_slides,
)

NAMES = ["S0", "S1", "S2", "S3"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_slides(tmp_path / "features", NAMES)


def left_out(store: Path) -> dict[str, str]:
    found: dict[str, str] = BagStore.open(str(store)).info.provenance["left_out"]
    return found


# --- while a shard is written ---


@pytest.mark.parametrize("action", ["kill", "exit"])
def test_a_worker_that_dies_once_is_replaced_and_the_store_is_as_ever(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    run([source], tmp_path / "plain")
    (tmp_path / "once").mkdir()
    set_faults(monkeypatch, read={"S2": action}, once=str(tmp_path / "once"))
    run([source], tmp_path / "store")
    assert (tmp_path / "once/read-S2").exists()
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


@pytest.mark.parametrize(
    ("action", "reason", "changed"),
    [
        ("kill", "its reader process died with signal 9 (SIGKILL)", {}),
        ("exit", "its reader process ended with status 3", {}),
        ("hang", "its reader process took longer than 3 s (--reader-timeout)", {"timeout_s": 3.0}),
        ("crash", "its reader process ended with status 1 (SystemError: broken \\x1b[2J library)", {}),
        ("eat", "reading it takes more memory than --reader-memory allows", {"memory_bytes": 256 << 20}),
        ("babble", "its reader process sent something that is no reply", {}),
    ],
)
def test_a_slide_at_which_the_worker_always_fails_is_left_out_and_the_others_are_as_ever(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    reason: str,
    changed: dict[str, float],
) -> None:
    set_faults(monkeypatch, read={"S2": action})
    said = run([source], tmp_path / "store", options(limits=limits(**changed)))
    assert left_out(tmp_path / "store") == {"S2": reason}
    assert f"left out: S2: {reason}" in said
    assert f"1 left out: S2; the reasons are in {tmp_path}/store/dataset.json" in said
    monkeypatch.undo()
    (source / "S2.h5").unlink()
    run([source], tmp_path / "without")
    for name in ("index.arrow", "shards/part-00000.arrow"):
        assert contents(tmp_path / "store")[name] == contents(tmp_path / "without")[name]


def test_two_slides_that_kill_are_both_left_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_faults(monkeypatch, read={"S0": "kill", "S3": "kill"})
    run([source], tmp_path / "store")
    assert sorted(left_out(tmp_path / "store")) == ["S0", "S3"]
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("S1", "S2")


def test_nothing_is_left_when_every_slide_kills(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_faults(monkeypatch, read=dict.fromkeys(NAMES, "kill"))
    with pytest.raises(DataError, match=r"4 slides or files cannot be converted; there is nothing else to convert"):
        run([source], tmp_path / "store")


# --- while a unit is looked into ---


@pytest.mark.parametrize(
    ("action", "reason", "changed"),
    [
        ("kill", "its reader process died with signal 9 (SIGKILL)", {}),
        ("hang", "its reader process took longer than 3 s (--reader-timeout)", {"timeout_s": 3.0}),
        ("eat", "looking into it takes more memory than --reader-memory allows", {"memory_bytes": 256 << 20}),
        ("babble", "its reader process sent something that is no reply", {}),
    ],
)
def test_a_file_that_cannot_be_looked_into_is_left_out(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    reason: str,
    changed: dict[str, float],
) -> None:
    set_faults(monkeypatch, open={"S1.h5": action})
    run([source], tmp_path / "store", options(limits=limits(**changed)))
    assert left_out(tmp_path / "store") == {str(source / "S1.h5"): reason}
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("S0", "S2", "S3")


def test_a_worker_that_dies_once_while_it_looks_is_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "once").mkdir()
    set_faults(monkeypatch, open={"S1.h5": "kill"}, once=str(tmp_path / "once"))
    run([source], tmp_path / "store")
    assert (tmp_path / "once/open-S1.h5").exists()
    assert left_out(tmp_path / "store") == {}


# --- processes that belong to someone ---


def test_workers_die_with_the_command(source: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(tmp_path / "store"), "--workers", "2"]
    (tmp_path / "once").mkdir()
    faults = fault_environment(open={"S0.h5": "hang", "S1.h5": "hang"}, once=str(tmp_path / "once"))
    with subprocess.Popen(
        words, env={**os.environ, **faults}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        wait_for(lambda: len(list((tmp_path / "once").iterdir())) == 2, command)  # both hang, blind to their input
        assert len(workers_of(command.pid)) == 2
        command.send_signal(signal.SIGKILL)
        assert command.wait(10) == -signal.SIGKILL
        wait_until_gone(command.pid)


def test_ctrl_c_ends_the_workers_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(tmp_path / "store")]
    faults = fault_environment(read={"S3": "hang"})
    with subprocess.Popen(
        words, env={**os.environ, **faults}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        wait_for((tmp_path / "store/.pack/problems.json").exists, command)
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=20)
        assert (command.returncode, errors) == (130, "interrupted\n")
        wait_until_gone(command.pid)
    assert not (tmp_path / "store").exists()


def test_ctrl_c_keeps_finished_shards_and_no_half_ones(tmp_path: Path) -> None:
    source, out = write_large_slides(tmp_path / "features", ["S0", "S1"]), tmp_path / "store"
    (tmp_path / "once").mkdir()
    words = [sys.executable, "-m", "asmil.data.pack", str(source), "--out", str(out)]
    faults = fault_environment(read={"S1": "hang"}, once=str(tmp_path / "once"))
    with subprocess.Popen(
        [*words, "--workers", "1", "--shard-mib", "1"],
        env={**os.environ, **faults},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        wait_for((tmp_path / "once/read-S1").exists, command)
        wait_for((out / ".pack/part-00000.json").exists, command)
        assert (out / "shards/.part-00001.arrow.tmp").exists()
        command.send_signal(signal.SIGINT)
        said, errors = command.communicate(timeout=20)
        assert (command.returncode, errors) == (130, "interrupted\n")
    assert said.endswith("1 finished shards are kept; give --resume with the same command to go on\n")
    assert [path.name for path in (out / "shards").iterdir()] == ["part-00000.arrow"]
    run([source], tmp_path / "plain")
    run([source], out, options(resume=True))
    assert contents(out) == contents(tmp_path / "plain")


def test_a_worker_is_limited_and_alone(source: Path) -> None:
    with Worker(limits(memory_bytes=1 << 30)) as worker:
        worker.start()
        assert worker.pid is not None
        text = Path(f"/proc/{worker.pid}/limits").read_text()
        rows = {line[:26].strip(): line[26:].split() for line in text.splitlines()[1:]}
        used = int(Path(f"/proc/{worker.pid}/status").read_text().split("VmData:")[1].split()[0]) << 10
        assert (1 << 30) <= int(rows["Max data size"][0]) <= (1 << 30) + used
        assert rows["Max core file size"][0] == "0"
        assert os.getsid(worker.pid) == worker.pid


@pytest.mark.parametrize("num_letters", [10, 1 << 20])  # a request that a pipe holds, and one that it does not
def test_a_worker_that_does_not_listen_is_given_up(source: Path, num_letters: int) -> None:
    with Worker(limits(timeout_s=0.5)) as worker:
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(ReaderDied, match=r"took longer than 0\.5 s") as death:
            worker.request({"task": "open", "path": str(source / "S0.h5"), "read": {}, "more": "x" * num_letters})
        assert death.value.is_timeout
        assert worker.pid is None


def test_an_ended_worker_starts_no_other_process(source: Path) -> None:
    worker = Worker()
    worker.end()
    with pytest.raises(ReaderDied):
        worker.request({"task": "open", "path": str(source / "S0.h5"), "read": {}})
    assert worker.pid is None


def test_workers_that_cannot_start_are_a_problem_of_the_machine(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/xxhash.py").write_text("raise ImportError('no xxhash here')\n")
    (tmp_path / "broken/sitecustomize.py").write_text(f"import sys; sys.path.insert(0, {str(tmp_path / 'broken')!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(EnvironmentProblem, match=r"cannot start: ImportError: no xxhash here; check the installation"):
        run([source], tmp_path / "store")
    (tmp_path / "broken/sitecustomize.py").write_text("import signal; signal.pause()\n")
    monkeypatch.setattr(process, "_START_S", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"cannot start: not ready after 0\.5 s; check the installation"):
        run([source], tmp_path / "store")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(EnvironmentProblem, match=r"cannot start worker processes \(.*no-python"):
        run([source], tmp_path / "store")


def test_what_a_reader_prints_disturbs_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'asmil.data.packing.worker' in sys.orig_argv:\n"
        "    import asmil.data.sources as sources\n"
        "    detect = sources.detect\n"
        "    def loud(*arguments):\n"
        "        for descriptor in (1, 2):\n"
        '            os.write(descriptor, b\'{"error": "environment", "message": "never"}\\n\' * 20_000)\n'
        "        return detect(*arguments)\n"
        "    sources.detect = loud\n"
    )
    run([source], tmp_path / "plain")
    monkeypatch.setenv("PYTHONPATH", str(noisy))
    run([source], tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


def test_control_characters_of_a_file_reach_no_terminal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_faults(monkeypatch, open={"S1.h5": "raise"}, read={"S2": "raise"})
    said = run([source], tmp_path / "store")
    assert f"left out: {source}/S1.h5: its name is \\x1b[2J\\n\\x07" in said
    assert "left out: S2: its name is \\x1b[2J\\n\\x07" in said
    assert all(line.isprintable() for line in said)


_PROBLEM = {"kind": "unreadable", "reason": "it is damaged"}


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: {"info": None, "rows": {}},
        lambda reply: {"rows": {"S0": reply["rows"]["S0"]}},
        lambda reply: {"rows": {}, "problems": dict.fromkeys(NAMES, _PROBLEM)},
        lambda reply: {"info": None},
        lambda reply: {"problems": {"S1": _PROBLEM}},
        lambda reply: {"info": None, "rows": {}, "problems": {"S1": _PROBLEM}},
        lambda reply: {"rows": reply["rows"] | {"S9": reply["rows"]["S0"]}},
    ],
    ids=["nothing", "one row", "no rows", "no file", "twice", "one problem", "another slide"],
)
def test_a_reply_must_say_of_every_slide_once_what_became_of_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    request = Worker.request

    def changed(worker: Worker, message: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        reply = request(worker, message, *arguments)
        return reply | change(reply) if message["task"] == "convert" else reply

    monkeypatch.setattr(Worker, "request", changed)
    with pytest.raises(
        EnvironmentProblem, match=r"part-00000\.arrow: its writer does not say of each of 4 slides, once"
    ):
        run([source], tmp_path / "store")


def test_a_worker_knows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["AWS_PROFILE", "GOOGLE_CLOUD_PROJECT", "AZURE_CLIENT_ID", "HF_TOKEN", "MY_SECRET_1", "pgpassword"]
    secrets += ["SSH_PASSWD", "WANDB_API_KEY", "VAULT_CREDENTIALS"]
    for name in [*secrets, "ASMIL_TEST_KEPT"]:
        monkeypatch.setenv(name, "x")
    with Worker() as worker:
        worker.start()
        content = Path(f"/proc/{worker.pid}/environ").read_bytes()
    names = {entry.partition(b"=")[0].decode() for entry in content.split(b"\0")}
    assert names.isdisjoint(secrets)
    assert names >= {"ASMIL_TEST_KEPT", "PATH", "PYTHONPATH", "HDF5_PLUGIN_PRELOAD"}


def test_nothing_that_a_worker_says_is_taken_on_trust() -> None:
    from asmil.data.packing.messages import Opened, ShardResult, checked

    good = {
        "info": {"name": "shards/part-00000.arrow", "bytes": 8, "sha256": "0" * 64},
        "rows": {"S0": list(range(11))},
        "problems": {},
        "clipped": {},
    }
    assert checked(ShardResult, good) is not None
    for changed in (
        {"rows": {"S0": list(range(10))}},
        {"rows": {"S0": [-1, *range(10)]}},
        {"info": {"name": "../etc/passwd", "bytes": 8, "sha256": "0" * 64}},
        {"problems": {"S0": {"kind": "fine", "reason": ""}}},
        {"more": 1},
    ):
        assert checked(ShardResult, json.loads(json.dumps(good | changed))) is None
    assert checked(Opened, {"format": "x" * 5_000}) is None
