"""Files appear whole or not at all, and problems of the machine are told apart from bugs."""

from __future__ import annotations

import os
import resource

import pytest

from asmil.errors import EnvironmentProblem
from asmil.storage import ensure_directory, publish_bytes, publish_json, publish_text


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
