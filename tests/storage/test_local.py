"""Byte ranges of local files: read into the caller's memory or viewed through a private map."""

from __future__ import annotations

import os

import pytest
import xxhash

from asmil.storage import RangeReader


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
