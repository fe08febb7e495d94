"""Row 25: an object store that is busy, broken, slow or closed, as a user of the commands meets it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.data.stores import draw_bags, write_store
from tests.faults.support import ENVIRONMENT, INPUT, INTEGRITY, Commands, snapshot
from tests.run_support import classification
from tests.storage.object_server import ObjectServer

SHARD = "shards/part-00000.arrow"
SCHEMES = pytest.mark.parametrize("scheme", ["s3", "http"])


@pytest.fixture
def uri(object_server: ObjectServer, scheme: str) -> str:
    """A store on the server."""
    write_store(object_server.folder / "bucket/store", draw_bags([3, 2, 40]))
    return object_server.address(scheme, "bucket/store")


@SCHEMES
@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "short"])
@pytest.mark.parametrize("file", ["dataset.json", "index.arrow", SHARD])
def test_row_25_what_passes_is_waited_for(
    object_server: ObjectServer, uri: str, commands: Commands, pauses: list[float], fault: int | str, file: str
) -> None:
    object_server.fail(f"GET .*{file}$", [fault] * (4 if fault == "reset" else 2))
    commands.verify(uri).succeeded("every byte as written")
    assert 1 <= len(pauses) <= 4


@SCHEMES
@pytest.mark.parametrize("fault", [500, 503, "reset", "short"])
@pytest.mark.parametrize("file", ["dataset.json", "index.arrow", SHARD])
def test_row_25_what_stays_ends_after_bounded_attempts(
    object_server: ObjectServer, uri: str, commands: Commands, pauses: list[float], fault: int | str, file: str
) -> None:
    object_server.fail(f"GET .*{file}$", itertools.repeat(fault))
    commands.verify(uri).refused(
        ENVIRONMENT, f"{uri}/{file}: cannot be read, 5 attempts failed", "check the network and the server"
    )
    assert len(pauses) == 4
    assert sum(pauses) <= 0.5 + 1 + 2 + 4


@SCHEMES
@pytest.mark.parametrize("file", ["dataset.json", "index.arrow", SHARD])
def test_row_25_forbidden_is_final_and_names_what_to_check(
    object_server: ObjectServer, uri: str, commands: Commands, pauses: list[float], file: str
) -> None:
    object_server.fail(f"GET .*{file}$", itertools.repeat(403))
    commands.verify(uri).refused(
        ENVIRONMENT, f"{uri}/{file}: access denied", "check the address", "AWS_ACCESS_KEY_ID", "environment"
    )
    assert (pauses, object_server.count("GET", file)) == ([], 1)


@SCHEMES
@pytest.mark.parametrize(
    ("file", "status", "says"),
    [
        ("dataset.json", INPUT, ["nothing at this address is called dataset.json", "check bucket and prefix"]),
        ("index.arrow", INTEGRITY, ["index.arrow cannot be read", "no such object", "convert again"]),
        (SHARD, INTEGRITY, [f"shard {SHARD}", "restore"]),
    ],
)
def test_row_25_missing_is_final_and_says_what(
    object_server: ObjectServer,
    uri: str,
    commands: Commands,
    pauses: list[float],
    file: str,
    status: int,
    says: list[str],
) -> None:
    (object_server.folder / "bucket/store" / file).unlink()
    commands.verify(uri).refused(status, uri, *says)
    assert pauses == []


def test_row_25_a_store_that_dies_during_training_ends_the_run_with_its_name(
    object_server: ObjectServer, tmp_path: Path, commands: Commands, pauses: list[float]
) -> None:
    tiny = classification(tmp_path)
    store = object_server.folder / "bucket/store"
    tiny.store.rename(store)
    before = snapshot(store)
    object_server.fail("GET .*part-", itertools.chain([None] * 5, itertools.repeat(503)))
    outcome = commands.run(tiny.file, "--set", "data.store=s3://bucket/store", "--epochs", 1, "--out", tmp_path / "out")
    outcome.refused(ENVIRONMENT, f"s3://bucket/store/{SHARD}: cannot be read, 5 attempts failed", "start again")
    assert snapshot(store) == before
    object_server.behave()
    outcome = commands.run(
        tiny.file, "--set", "data.store=s3://bucket/store", "--epochs", 1, "--out", tmp_path / "out", "--resume"
    )
    outcome.succeeded()
