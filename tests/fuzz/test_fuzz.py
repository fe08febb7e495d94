"""A small fuzz run with a fixed seed, and that the judge of such a run can find against a reader."""

from __future__ import annotations

import io
import os
import pickle
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asmil.data.packing.process import ReaderDied, ReaderLimits, Worker
from asmil.data.sources import FORMATS
from tests.data.foreign_units import WRITERS
from tests.fuzz.__main__ import MEMORY_BYTES, Readers, main
from tests.fuzz.campaign import Campaign, Case, Guard
from tests.fuzz.child import Child, ChildError
from tests.fuzz.corpus import Unit, fixtures, write_unit
from tests.fuzz.oracle import ReaderOracle, Verdict
from tests.fuzz.plain import PLAIN
from tests.fuzz.stores import StoreOracle, mutated_store, sealed, store_seed
from tests.fuzz.structure import CANARY_VARIABLE, PAYLOADS, mutate_structure

DEADLINE_S = 60.0  # other work may share the machine; a hang would take for ever


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(ReaderLimits(MEMORY_BYTES, DEADLINE_S)) as worker:
        yield worker


@pytest.fixture(scope="module")
def plain() -> Iterator[Child]:
    with Child("tests.fuzz.plain") as child:
        yield child


@pytest.fixture(scope="module")
def stores() -> Iterator[Child]:
    with Child("tests.fuzz.stores") as child:
        yield child


class Changed:
    """The true worker with its replies changed on the way."""

    def __init__(self, worker: Worker, change: Any) -> None:
        self._worker = worker
        self._change = change

    @property
    def pid(self) -> int | None:
        return self._worker.pid

    def request(self, message: dict[str, Any], deadline_s: float | None = None) -> dict[str, Any]:
        reply: dict[str, Any] = self._change(message, self._worker.request(message, deadline_s))
        return reply


def on_digest(change: Any) -> Any:
    def changed(message: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if message["task"] == "digest":
            change(reply)
        return reply

    return changed


def test_every_format_has_a_plain_reading_unless_it_is_only_refused() -> None:
    assert set(PLAIN) == {form.name for form in FORMATS} - {"lazyslide-zarr"}


def test_every_fixture_is_read_and_equals_its_plain_reading(tmp_path: Path, worker: Worker, plain: Child) -> None:
    oracle = ReaderOracle(worker, plain, DEADLINE_S)
    units = fixtures(tmp_path)
    assert len(units) == len(WRITERS)
    verdicts = {unit.name: oracle.judge(tmp_path / str(at) / unit.target) for at, unit in enumerate(units)}
    assert verdicts.pop("lazyslide-zarr") == Verdict("refused", "content")
    assert set(verdicts.values()) == {Verdict("equal")}, verdicts


def test_mutated_units_are_read_right_or_refused(tmp_path: Path, worker: Worker, plain: Child) -> None:
    readers = Readers(tmp_path / "fixtures", seed=20)
    oracle = ReaderOracle(worker, plain, DEADLINE_S, readers.warm_up)
    campaign = Campaign(tmp_path / "inputs", tmp_path / "kept", oracle.judge, Guard(tmp_path / "guard"), "{number}")
    for number in range(6 * len(readers)):
        campaign.run(readers.case(number))
    assert not campaign.failures, "\n".join(campaign.failures)
    counts = {outcome: sum(count[outcome] for count in campaign.counts.values()) for outcome in ("equal", "refused")}
    assert min(counts.values()) > campaign.num_inputs // 5, "mutations that are all harmless, or all plain to see"


def test_mutated_stores_are_read_as_written_or_refused(tmp_path: Path, stores: Child) -> None:
    (tmp_path / "original").mkdir()
    seed = store_seed(tmp_path / "original")
    oracle = StoreOracle(stores, tmp_path / "original" / "store", DEADLINE_S)
    for number in range(80):
        unit, is_sealed = mutated_store(seed, 20, number)
        verdict = oracle.judge(write_unit(unit, tmp_path / str(number)), is_sealed=is_sealed)
        assert verdict.outcome in ("equal", "refused"), (number, verdict)


def test_a_case_follows_from_seed_and_number(tmp_path: Path) -> None:
    runs = [Readers(tmp_path / name, seed) for name, seed in (("first", 3), ("again", 3), ("other", 4))]
    first, again, other = ([run.case(number).unit for number in range(2 * len(run))] for run in runs)
    assert first == again
    assert first != other


# --- the judge can find against a reader ---


@pytest.fixture
def clam(tmp_path: Path) -> Path:
    return WRITERS["clam-h5"](tmp_path)


def refused(reply: dict[str, Any], reason: str) -> None:
    reply.clear()
    reply.update(error="problem", problem={"kind": "unreadable", "reason": reason})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda reply: reply["slides"]["s"]["features"].update(xxh3="0" * 16), "plainly read"),
        (lambda reply: reply["slides"]["s"]["coords"].update(shape=[2, 40]), "plainly read"),
        (lambda reply: reply["slides"]["s"].pop("coords"), "plainly read"),
        (lambda reply: reply["slides"]["s"].pop("features"), "plainly read"),
        (lambda reply: reply.update(slides={}), "different slides"),
        (lambda reply: reply.update(slides={}, no_tissue=["s"]), "different slides"),
        (lambda reply: reply.update(extra=1), "breaks its schema"),
        (lambda reply: reply["slides"]["s"]["features"].update(xxh3="A"), "breaks its schema"),
        (lambda reply: reply.update(error="nonsense"), "breaks its schema"),
        (lambda reply: reply["nothing"], "the parent raised"),
        (lambda reply: refused(reply, "it fits two formats; this is a defect of detection"), "defect of detection"),
        (lambda reply: refused(reply, "its reader failed (NameError: name 'x' is not defined)"), "NameError"),
    ],
)
def test_a_wrong_reader_is_caught(clam: Path, worker: Worker, plain: Child, change: Any, complaint: str) -> None:
    verdict = ReaderOracle(Changed(worker, on_digest(change)), plain, DEADLINE_S).judge(clam)
    assert verdict.outcome == "failure"
    assert complaint in verdict.detail


def test_a_slide_that_is_silently_left_out_is_caught(clam: Path, worker: Worker, plain: Child) -> None:
    def without(message: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        return reply | {"slides": {} if message["task"] == "digest" else []}

    verdict = ReaderOracle(Changed(worker, without), plain, DEADLINE_S).judge(clam)
    assert verdict == Verdict(
        "failure", "clam-h5: slide '' is there in the plain reading and was neither read nor refused"
    )


def test_a_wrong_label_is_caught(tmp_path: Path, worker: Worker, plain: Child) -> None:
    def swapped(message: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if message["task"] == "open":
            reply["labels"]["0"]["label"] = 1 - reply["labels"]["0"]["label"]
        return reply

    verdict = ReaderOracle(Changed(worker, swapped), plain, DEADLINE_S).judge(WRITERS["cell-mat"](tmp_path))
    assert verdict == Verdict("failure", "cell-mat: slide '0' has label 0, plainly read 1")


def test_a_hanging_reader_is_caught_and_one_that_dies_is_survived(tmp_path: Path, clam: Path, plain: Child) -> None:
    class Stopped(Worker):
        sent = signal.SIGSTOP

        def request(self, *words: Any) -> dict[str, Any]:
            self.start()
            assert self.pid is not None
            os.kill(self.pid, self.sent)
            return super().request(*words)

    with Stopped() as worker:
        verdict = ReaderOracle(worker, plain, 0.25).judge(clam)
        assert verdict == Verdict("failure", "hangs: no reply within 1 s")
        worker.sent = signal.SIGKILL
        verdict = ReaderOracle(worker, plain, DEADLINE_S).judge(clam)
        assert verdict == Verdict("died", "its reader process died with signal 9 (SIGKILL)")


def test_a_parent_that_waits_too_long_is_caught(clam: Path, plain: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        pid = 1

        def request(self, message: dict[str, Any], deadline_s: float | None = None) -> dict[str, Any]:
            clock[0] += 100.0
            raise ReaderDied("its reader process took longer than 1 s (--reader-timeout)", is_timeout=True)

    clock = [0.0]
    monkeypatch.setattr("tests.fuzz.oracle.time.monotonic", lambda: clock[0])
    assert ReaderOracle(Late(), plain, 1.0).judge(clam) == Verdict("failure", "the parent waited beyond the deadline")


def test_files_outside_the_input_are_watched(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "guard")

    def judge(path: Path) -> Verdict:
        actions[0](path)
        return Verdict("refused")

    campaign = Campaign(tmp_path / "inputs", tmp_path / "kept", judge, guard, "again {number}")
    case = Case(7, "row", Unit("x", "unit", {"unit": b"content"}))
    actions: list[Any] = [lambda path: None]
    assert campaign.run(case).outcome == "refused"
    actions = [lambda path: (path.parent / "unpacked").touch()]
    assert campaign.run(case) == Verdict("failure", "it left unpacked beside the input")
    actions = [lambda path: guard.marker.touch()]
    assert campaign.run(case).detail == "files outside the input were touched: created-by-a-pickle"
    assert (tmp_path / "kept" / "case-7" / "input" / "unit").read_bytes() == b"content"
    assert "again 7" in campaign.failures[0]


def test_a_pickle_that_runs_code_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payloads do what they are there for, when something runs them."""
    monkeypatch.setenv(CANARY_VARIABLE, str(tmp_path / "ran"))
    for payload in (PAYLOADS[0], PAYLOADS[2], PAYLOADS[3]):
        pickle.loads(payload)
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()


def test_archives_are_changed_inside_with_the_right_checksums(tmp_path: Path) -> None:
    [unit] = fixtures(tmp_path, "npz")
    [content] = unit.files.values()
    rng = Random(0)
    changed = [mutate_structure(rng, content, is_sound=True) for _ in range(100)]
    assert sum(members(each or b"") != members(content) for each in changed) > 75


def members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


# --- stores ---


def test_another_store_in_its_place_is_caught(tmp_path: Path, stores: Child) -> None:
    (tmp_path / "original").mkdir()
    seed = store_seed(tmp_path / "original")
    original = tmp_path / "original" / "store"
    oracle = StoreOracle(stores, original, DEADLINE_S)
    assert oracle.judge(original, is_sealed=False) == Verdict("equal")
    shard = f"{seed.target}/shards/part-00000.arrow"
    swapped = {**seed.files, shard: seed.files[shard].replace(b"ARROW1", b"ARROW2")}
    path = write_unit(Unit("store", seed.target, sealed(swapped, seed.target)), tmp_path / "shard")
    assert oracle.judge(path, is_sealed=False) == Verdict("equal")
    splits = f"{seed.target}/splits.json"
    swapped = {**seed.files, splits: seed.files[splits].replace(b"S2", b"S1")}
    path = write_unit(Unit("store", seed.target, sealed(swapped, seed.target)), tmp_path / "splits")
    assert oracle.judge(path, is_sealed=False) == Verdict("failure", "splits are not those that were written")
    assert oracle.judge(path, is_sealed=True) == Verdict("equal")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("bytes", "0" * 16, "other bytes"),
        ("shapes", {"features": ["torch.float16", [1, 9]]}, "other shapes or dtypes"),
    ],
)
def test_a_wrong_bag_is_caught(tmp_path: Path, stores: Child, key: str, value: Any, complaint: str) -> None:
    class Wrong(Child):
        def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
            found = stores.ask(question, deadline_s)
            if is_wrong:
                found["bags"]["S1"][key] = value
            return found

    is_wrong = False
    store_seed(tmp_path)
    oracle = StoreOracle(Wrong("none"), tmp_path / "store", DEADLINE_S)
    is_wrong = True
    verdict = oracle.judge(tmp_path / "store", is_sealed=False)
    assert verdict.outcome == "failure"
    assert complaint in verdict.detail


def test_a_store_reader_that_hangs_or_dies_is_a_failure(tmp_path: Path) -> None:
    store_seed(tmp_path)
    with Child("tests.fuzz.stores") as child:
        oracle = StoreOracle(child, tmp_path / "store", DEADLINE_S)
        assert child._process is not None
        child._process.send_signal(signal.SIGSEGV)
        verdict = oracle.judge(tmp_path / "store", is_sealed=True)
        assert verdict == Verdict("failure", "the reader of the store ended with signal SIGSEGV")
        assert oracle.judge(tmp_path / "store", is_sealed=True) == Verdict("equal")
        child._process.send_signal(signal.SIGSTOP)
        with pytest.raises(ChildError, match=r"no answer within 0\.1 s"):
            child.ask({"path": str(tmp_path / "store")}, 0.1)
        assert child._process is None


def test_the_command_reports_and_ends_with_status_one_on_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--only", "npy", "--inputs", "5", "--keep", str(tmp_path)]
    monkeypatch.setattr(ReaderOracle, "judge", lambda self, path: Verdict("refused", "as it should be"))
    assert main(words) == 0
    out = capsys.readouterr().out
    assert ["npy", "5", "0", "5", "0", "0", "0"] in [line.split() for line in out.splitlines()]
    assert "0 failures" in out
    monkeypatch.setattr(ReaderOracle, "judge", lambda self, path: Verdict("failure", "wrong"))
    assert main([*words, "--case", "3"]) == 1
    out = capsys.readouterr().out
    assert "python -m tests.fuzz --seed 0 --only 'npy' --case 3" in out
