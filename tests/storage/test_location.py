"""Files read by name from a disk, an object store and an fsspec address: the same bytes, the same refusals."""

from __future__ import annotations

import itertools
import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from asmil.errors import EnvironmentProblem, IntegrityError
from asmil.storage import Location, open_location
from asmil.storage.location import RemoteLocation
from tests.storage.object_server import ObjectServer

CONTENT = os.urandom(100_000)
SCHEMES = ["s3", "http"]


def read(location: Location, name: str, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    num_read = location.read_into(name, offset, memoryview(buffer))
    return bytes(buffer[:num_read])


@pytest.fixture(params=["path", "file", "memory", "s3", "http"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder with `small` and `parts/a`, `parts/b`."""
    kind = request.param
    files = {"small": b"text", "parts/a": CONTENT, "parts/b": b"b", "parts/inner/c": b"c"}
    if kind == "memory":
        root = f"/{uuid.uuid4().hex}"
        for name, content in files.items():
            fsspec.filesystem("memory").pipe_file(f"{root}/{name}", content)
        return open_location(f"memory:/{root}")
    server = request.getfixturevalue("object_server") if kind in SCHEMES else None
    root = server.folder / "bucket/folder" if server else tmp_path
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    address = server.address(kind, "bucket/folder") if server else {"path": "", "file": "file://"}[kind] + str(root)
    return open_location(address)


def test_files_and_ranges_are_read(place: Location) -> None:
    assert place.read_file("small", max_bytes=4) == b"text"
    assert read(place, "parts/a", 10, 500) == CONTENT[10:510]
    assert read(place, "parts/a", 99_000, 1000) == CONTENT[99_000:]


def test_a_range_that_goes_beyond_the_end_is_short(place: Location, pauses: list[float]) -> None:
    assert read(place, "parts/a", 99_990, 100) == CONTENT[99_990:]
    assert read(place, "parts/a", 100_000, 10) == b""


def test_what_is_too_large_to_be_that_file_is_not_read(place: Location) -> None:
    with pytest.raises(IntegrityError, match=r"small: \d+ bytes, but this file can have 3 at most"):
        place.read_file("small", max_bytes=3)


def test_what_is_missing_is_said_to_be(place: Location, pauses: list[float]) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        place.read_file("none", max_bytes=10)
    with pytest.raises(FileNotFoundError, match="none"):
        read(place, "parts/none", 0, 10)
    assert pauses == []


def test_sizes_of_the_files_directly_in_a_folder(place: Location) -> None:
    sizes = place.sizes("parts")
    assert sizes is None if place.uri.startswith("http") else sizes == {"parts/a": 100_000, "parts/b": 1}
    assert place.sizes("none") == (None if place.uri.startswith("http") else {})


def test_a_pickled_place_reads_the_same(place: Location) -> None:
    read(place, "parts/a", 0, 10)
    blob = pickle.dumps(place)
    assert len(blob) < 1000
    assert read(pickle.loads(blob), "parts/a", 5, 10) == CONTENT[5:15]


def test_a_local_folder_that_may_not_be_listed_tells_no_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    assert open_location(str(tmp_path)).sizes("parts") is None


@pytest.fixture(params=SCHEMES)
def remote(request: pytest.FixtureRequest, object_server: ObjectServer) -> RemoteLocation:
    """A remote folder with one file, `a`, on the server."""
    (object_server.folder / "bucket/a").write_bytes(CONTENT)
    location = open_location(object_server.address(request.param, "bucket"))
    assert isinstance(location, RemoteLocation)
    return location


def read_some(location: Location) -> bytes:
    return read(location, "a", 100, 50_000)


def read_all(location: Location) -> bytes:
    return location.read_file("a", max_bytes=200_000)[100:50_100]


READS = pytest.mark.parametrize("read_it", [read_some, read_all])
Read = Callable[[Location], bytes]


@READS
@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "short"])
def test_a_failure_that_passes_is_waited_for(
    object_server: ObjectServer, remote: RemoteLocation, pauses: list[float], fault: int | str, read_it: Read
) -> None:
    num_faults = 4 if fault == "reset" else 2  # clients send a request again at once where a connection broke
    object_server.fail("GET .*a$", [fault] * num_faults)
    assert read_it(remote) == CONTENT[100:50_100]
    assert 1 <= len(pauses) <= num_faults
    assert 0.25 <= pauses[0] <= 0.5


@READS
@pytest.mark.parametrize("fault", [500, 503, "reset", "short"])
def test_a_failure_that_stays_ends_after_five_attempts(
    object_server: ObjectServer, remote: RemoteLocation, pauses: list[float], fault: int | str, read_it: Read
) -> None:
    object_server.fail("GET .*a$", itertools.repeat(fault))
    with pytest.raises(EnvironmentProblem, match=f"^{remote.uri}/a: cannot be read, 5 attempts failed, .*start again$"):
        read_it(remote)
    assert len(pauses) == 4
    for pause, longest in zip(pauses, [0.5, 1, 2, 4], strict=True):
        assert longest / 2 <= pause <= longest


@READS
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (403, EnvironmentProblem, r"/a: access denied .*check the address.*AWS_ACCESS_KEY_ID"),
        (401, EnvironmentProblem, r"/a: access denied"),
        (404, FileNotFoundError, r"/a: no such object"),
        (400, EnvironmentProblem, r"/a: the server refuses the request"),
    ],
)
def test_a_refusal_is_final(
    object_server: ObjectServer,
    remote: RemoteLocation,
    pauses: list[float],
    status: int,
    kind: type[Exception],
    message: str,
    read_it: Read,
) -> None:
    object_server.fail("GET .*a$", itertools.repeat(status))
    with pytest.raises(kind, match=message):
        read_it(remote)
    assert (pauses, object_server.count("GET")) == ([], 1)


@pytest.mark.parametrize(("scheme", "stall_s"), [("http", 0.2), ("s3", 1.0)])
def test_a_server_that_stalls_is_asked_again(
    object_server: ObjectServer,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    stall_s: float,
) -> None:
    """Takes seven seconds for S3, whose client averages the speed over six before it counts."""
    monkeypatch.setattr("asmil.storage.addresses.STALL_TIMEOUT_S", stall_s)
    (object_server.folder / "bucket/a").write_bytes(CONTENT)
    location = open_location(object_server.address(scheme, "bucket"))
    object_server.fail("GET .*a$", ["stall"])
    assert read_some(location) == CONTENT[100:50_100]
    assert (len(pauses), object_server.count("GET")) == (1, 2)


def test_a_server_that_stalls_for_ever_is_given_up(
    object_server: ObjectServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asmil.storage.addresses.STALL_TIMEOUT_S", 0.1)
    (object_server.folder / "bucket/a").write_bytes(CONTENT)
    object_server.fail("GET .*a$", itertools.repeat("stall"))
    with pytest.raises(EnvironmentProblem, match=r"/a: cannot be read, 5 attempts failed, .*Timeout"):
        read_some(open_location(object_server.address("http", "bucket")))
    assert len(pauses) == 4


def test_a_server_without_ranges_is_named(
    object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    (object_server.folder / "bucket/a").write_bytes(CONTENT)
    monkeypatch.setattr(object_server, "knows_ranges", False)
    location = open_location(object_server.address("http", "bucket"))
    with pytest.raises(EnvironmentProblem, match=r"asked for 50000 bytes at 100, got 100000: .*does not serve ranges"):
        read_some(location)
    assert (pauses, object_server.count("GET")) == ([], 1)


def test_listing_that_is_denied_gives_no_sizes_and_listing_that_fails_is_repeated(
    object_server: ObjectServer, pauses: list[float]
) -> None:
    (object_server.folder / "bucket/parts").mkdir()
    (object_server.folder / "bucket/parts/a").write_bytes(b"abc")
    location = open_location("s3://bucket")
    object_server.fail("list-type", [503])
    assert location.sizes("parts") == {"parts/a": 3}
    assert len(pauses) == 1
    object_server.fail("list-type", [403])
    assert location.sizes("parts") is None
    assert len(pauses) == 1


def test_googles_own_repetitions_count(object_server: ObjectServer, pauses: list[float]) -> None:
    (object_server.folder / "bucket/a").write_bytes(CONTENT)
    location = open_location("gs://bucket")
    object_server.fail("GET .*/a", [403])
    with pytest.raises(EnvironmentProblem, match=r"^gs://bucket/a: access denied \(Forbidden"):
        read_some(location)
    assert (pauses, object_server.count("GET")) == ([], 1)
    object_server.fail("GET .*/a", [503])
    assert read_some(location) == CONTENT[100:50_100]
    assert (pauses, object_server.count("GET")) == ([], 3)


def test_an_endpoint_where_nothing_listens_is_named(
    object_server: ObjectServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"s3://bucket/a: cannot be read, 5 attempts .*127\.0\.0\.1:9"):
        open_location("s3://bucket").read_file("a", max_bytes=10)
    with pytest.raises(EnvironmentProblem, match=r"ftp://127\.0\.0\.1:9/x: cannot be opened \(.*refused"):
        open_location("ftp://127.0.0.1:9/x")
