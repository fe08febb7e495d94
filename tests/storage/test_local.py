"""Byte ranges of local files: read into the caller's memory or viewed through a private map."""

from __future__ import annotations

import os

import pytest
import xxhash

from asmil.storage import RangeReader


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20, (1 << 20) + 1, 2_500_000])
def test_ranges_are_read_and_hashed(tmp_path, size):
    content = os.urandom(2_500_100)
    (tmp_path / "f").write_bytes(content)
    buffer = bytearray(size)
    done, checksum = RangeReader(tmp_path).read_into("f", 50, memoryview(buffer))
    assert done == size
    assert buffer == content[50 : 50 + size]
    assert checksum == xxhash.xxh3_64_intdigest(content[50 : 50 + size])


def test_a_range_beyond_the_end_is_short_not_wrong(tmp_path):
    content = os.urandom(1_300_000)
    (tmp_path / "f").write_bytes(content)
    buffer = bytearray(1_400_000)
    assert RangeReader(tmp_path).read_into("f", 10, memoryview(buffer))[0] == 1_299_990
    assert buffer[:1_299_990] == content[10:]
    assert RangeReader(tmp_path).read_into("f", 1_300_000, memoryview(buffer))[0] == 0


def test_files_are_closed_when_the_reader_goes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    before = len(os.listdir("/proc/self/fd"))
    reader = RangeReader(tmp_path)
    reader.read_into("f", 0, memoryview(bytearray(3)))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_view_is_private_and_ends_with_the_file(tmp_path):
    content = os.urandom(10_000)
    (tmp_path / "f").write_bytes(content)
    reader = RangeReader(tmp_path)
    view = reader.view("f", 100, 50)
    assert view.tobytes() == content[100:150]
    view[:] = 0
    assert reader.view("f", 90, 70).tobytes() == content[90:100] + bytes(50) + content[150:160]
    assert (tmp_path / "f").read_bytes() == content
    assert reader.view("f", 9_990, 50).tobytes() == content[9_990:]
    assert len(reader.view("f", 10_001, 50)) == 0
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="the file is empty"):
        reader.view("empty", 0, 1)


def test_views_outlive_their_reader(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1000)
    view = RangeReader(tmp_path).view("f", 3, 3)
    (tmp_path / "f").unlink()
    assert view.tobytes() == b"abc"
