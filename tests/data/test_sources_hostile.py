"""Files that must not be trusted, under the names of every reader that opens pickles or archives.

A pickle under the name of an array, an archive that could leave its place or fill the disk, a shape that no memory
holds: each is refused before anything is unpickled, unpacked or allocated, whichever reader meets it.
"""

from __future__ import annotations

import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asmil.data.sources import ReadOptions, detect
from asmil.data.sources.archives import MAX_ARRAY_BYTES, open_archive
from asmil.data.sources.numpy_files import npy_header, npz_headers
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_units import WRITERS

FEATURES_ND, _ = tiles(40)
SUFFIXES = (".pt", ".npy", ".npz", ".mat")


def everything_of(unit: Path) -> str:
    """Detect, open and read a unit to the end; what its errors say."""
    said = []
    try:
        source = detect(unit).format.open(unit, ReadOptions())
    except DataError as problem:
        return str(problem)
    for header in source.slides:
        try:
            source.read(header.slide_id)
        except DataError as problem:
            said.append(str(problem))
    return "\n".join(said)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def _raw(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def _torch(path: Path, payload: Payload) -> None:
    torch.save([FEATURES_ND, payload], path)


def _torch_old(path: Path, payload: Payload) -> None:
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def _npy(path: Path, payload: Payload) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([[payload]], dtype=object), allow_pickle=True)


def _npz(path: Path, payload: Payload) -> None:
    with path.open("wb") as stream:
        np.savez(stream, features=np.array([payload], dtype=object), x=FEATURES_ND)


@pytest.mark.parametrize("write", [_raw, _torch, _torch_old, _npy, _npz])
@pytest.mark.parametrize("name", [name for name in WRITERS if "h5" not in name])
def test_a_payload_never_runs(tmp_path: Path, name: str, write: Callable[[Path, Payload], None]) -> None:
    folder = tmp_path / "unit"
    folder.mkdir()
    unit = WRITERS[name](folder)
    payload = Payload(tmp_path / "marker")
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        content = path.read_bytes()
        write(path, payload)
        assert str(path.stem) in everything_of(unit)
        path.write_bytes(content)
    assert not payload.marker.exists()


def test_a_payload_that_passes_the_first_check_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmil.data.sources.torch_files._check_pickle", lambda *_: None)
    payload = Payload(tmp_path / "marker")
    for write in (_torch, _torch_old):
        write(tmp_path / "s.pt", payload)
        assert "cannot be read as a .pt file" in everything_of(tmp_path / "s.pt")
    assert not payload.marker.exists()


def test_the_payload_works(tmp_path: Path) -> None:
    _raw(tmp_path / "x", Payload(tmp_path / "marker"))
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "marker").exists()


# --- archives ---


def array_bytes(values: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def archive(path: Path, *infos: zipfile.ZipInfo, content: bytes = array_bytes(FEATURES_ND)) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for info in infos:
            file.writestr(info, content)


def member(name: str, *, mode: int = 0, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = compression
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("../features.npy"), "'../features.npy' leads out of the archive"),
        (member("a/../../features.npy"), "leads out of the archive"),
        (member("/etc/features.npy"), "has an absolute or malformed name"),
        (member("C:/features.npy"), "has an absolute or malformed name"),
        (member("a\\features.npy"), "has an absolute or malformed name"),
        (member("features.npy", mode=stat.S_IFLNK | 0o777), "is a link"),
        (member("features.npy", compression=zipfile.ZIP_BZIP2), "is compressed by method 12"),
        (member("features.npy", compression=zipfile.ZIP_LZMA), "is compressed by method 14"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_members_that_could_leave_the_archive_are_refused(
    tmp_path: Path, info: zipfile.ZipInfo, message: str, suffix: str
) -> None:
    archive(tmp_path / f"s{suffix}", info)
    with pytest.raises(
        DataError, match=rf"s\{suffix}: archive member .*{message.replace('.', '[.]')}.*nothing was unp"
    ):
        detect(tmp_path / f"s{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"s{suffix}"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "s.npz", member("features.npy"), member("features.npy"))
    with pytest.raises(DataError, match="is there twice, so it depends on the reader which one counts"):
        detect(tmp_path / "s.npz")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "s.npz", member("features.npy"))
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"archive member 'features\.npy' is encrypted; nothing was unpacked"):
        detect(tmp_path / "s.npz")


@pytest.mark.parametrize("name", ["npz", "slide2vec, .npz", "slideflow"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = WRITERS[name](tmp_path)
    bomb = array_bytes(np.zeros((1 << 20, 6), "f4"))
    for path in sorted(tmp_path.rglob("*.npz")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("features.npy" if "index" not in path.name else "arr_0.npy", bomb)
    plain_open = zipfile.ZipFile.open

    def not_the_bomb(file: zipfile.ZipFile, *args: Any, **keywords: Any) -> Any:
        assert not str(file.filename).endswith(".npz"), "the archive was unpacked"
        return plain_open(file, *args, **keywords)

    monkeypatch.setattr(zipfile.ZipFile, "open", not_the_bomb)
    assert "more than 1000:1" in everything_of(unit)


def test_data_that_compress_well_are_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "s.npz", features=np.zeros((20_000, 6), "f4"))
    assert detect(tmp_path / "s.npz").format.name == "npz"


def test_members_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    archive(tmp_path / "s.npz", member("features.npy"))
    content = bytearray((tmp_path / "s.npz").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 20, 1 << 30)
    struct.pack_into("<I", content, entry + 24, 1 << 30)
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"its members declare 1073741824 bytes.*nothing was unpacked"):
        detect(tmp_path / "s.npz")


def test_members_beyond_the_cap_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "s.npz", member("a.npy"), member("b.npy"))
    monkeypatch.setattr("asmil.data.sources.archives.MAX_ARRAY_BYTES", 1500)
    with (
        pytest.raises(DataError, match="at most 1500 are unpacked; nothing was unpacked"),
        open_archive(tmp_path / "s.npz"),
    ):
        pass


# --- shapes ---


def header_only(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 40, 1 << 40), (10, 6), (-1, 6), (1 << 62, 4)])
def test_shapes_the_file_does_not_hold_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "s.npy").write_bytes(header_only(shape) + bytes(24))
    archive(tmp_path / "s.npz", member("features.npy"), content=header_only(shape) + bytes(24))
    for look in (lambda: npy_header(tmp_path / "s.npy"), lambda: npz_headers(tmp_path / "s.npz")):
        with pytest.raises(DataError, match=r"declares shape|cannot be read as a NumPy array"):
            look()


def test_a_sparse_file_beyond_the_cap_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    header = header_only((MAX_ARRAY_BYTES // 16, 8))
    (tmp_path / "s.npy").write_bytes(header)
    os.truncate(tmp_path / "s.npy", len(header) + 2 * MAX_ARRAY_BYTES)
    with pytest.raises(DataError, match=f"at most {MAX_ARRAY_BYTES} bytes of one array are read"):
        detect(tmp_path / "s.npy")


@pytest.mark.parametrize(
    ("descr", "message"),
    [(repr(descr), "expected numbers; objects and pickles are never read") for descr in ("|O", "<U8", "|V8", "<M8[s]")]
    + [(repr("<c8"), "has dtype complex64, expected numbers"), ("[('a', '<f4')]", "expected numbers; objects and")]
    + [(text, "cannot be read as a NumPy array") for text in ("lambda: 0", "__import__('os').system('x')")],
)
def test_dtypes_that_are_no_numbers_are_refused(tmp_path: Path, descr: str, message: str) -> None:
    content = header_only((4, 6), "X").replace(b"'X'", descr.encode())
    content = content[:8] + struct.pack("<H", len(content) - 10) + content[10:]
    (tmp_path / "s.npy").write_bytes(content + bytes(1024))
    with pytest.raises(DataError, match=message):
        npy_header(tmp_path / "s.npy")


@pytest.mark.parametrize(
    "text", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,+, }", b"{'descr': (((", b"[" * 99]
)
def test_headers_that_are_no_python_text_are_refused(tmp_path: Path, text: bytes) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
    (tmp_path / "s.npy").write_bytes(content + bytes(96))
    with pytest.raises(DataError, match=r"s\.npy cannot be read as a NumPy array"):
        npy_header(tmp_path / "s.npy")
