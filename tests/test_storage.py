"""Files appear whole or not at all, and problems of the machine are told apart from bugs."""

from __future__ import annotations

import os
import resource

import pytest
import xxhash

from asmil.errors import EnvironmentProblem
from asmil.storage import RangeReader, ensure_directory, publish_bytes, publish_json, publish_text


def test_publishing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    publish_text(path, "länger als das Neue")
    assert path.read_text(encoding="utf-8") == "länger als das Neue"
    publish_json(path, {"b": 1, "a": [0.5, None]})
    assert path.read_text() == '{\n "b": 1,\n "a": [\n  0.5,\n  null\n ]\n}\n'
    assert os.listdir(tmp_path) == ["x.json"]


def test_published_files_obey_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        publish_bytes(tmp_path / "x", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_numbers_that_json_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        publish_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_old_file(tmp_path):
    publish_bytes(tmp_path / "x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(EnvironmentProblem, match=r"/x: cannot be written \(File too large\)"):
            publish_bytes(tmp_path / "x", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_directory_is_made_and_a_file_in_its_place_is_named(tmp_path):
    assert ensure_directory(tmp_path / "a/b", "run directory").is_dir()
    assert os.listdir(tmp_path / "a/b") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="/file: cannot serve as run directory"):
        ensure_directory(tmp_path / "file", "run directory")
    with pytest.raises(EnvironmentProblem, match=r"missing/x: cannot be written \(No such file or directory\)"):
        publish_bytes(tmp_path / "missing/x", b"")


@pytest.mark.parametrize("size", [0, 1, 1000, 262_144, 262_145, 700_000])
def test_ranges_are_read_and_hashed(tmp_path, size):
    content = os.urandom(700_100)
    (tmp_path / "f").write_bytes(content)
    buffer = bytearray(size)
    done, checksum = RangeReader(tmp_path).read_into("f", 50, memoryview(buffer))
    assert done == size
    assert buffer == content[50 : 50 + size]
    assert checksum == xxhash.xxh3_64_intdigest(content[50 : 50 + size])


def test_a_range_beyond_the_end_is_short_not_wrong(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "f").write_bytes(content)
    buffer = bytearray(400_000)
    assert RangeReader(tmp_path).read_into("f", 10, memoryview(buffer))[0] == 299_990
    assert buffer[:299_990] == content[10:]
    assert RangeReader(tmp_path).read_into("f", 300_000, memoryview(buffer))[0] == 0


def test_files_are_closed_when_the_reader_goes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    before = len(os.listdir("/proc/self/fd"))
    reader = RangeReader(tmp_path)
    reader.read_into("f", 0, memoryview(bytearray(3)))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del reader
    assert len(os.listdir("/proc/self/fd")) == before
