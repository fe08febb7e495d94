"""Mutations that keep a file's container intact, so that they reach the parser of what is inside."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from functools import lru_cache
from random import Random

import h5py

from tests.fuzz.mutations import mutate_bytes, mutate_text

__all__ = ["CANARY_VARIABLE", "PAYLOADS", "mutate_structure"]

CANARY_VARIABLE = "ASMIL_FUZZ_CANARY"  # names the file that a pickle which runs code would create

_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_SHAPES = "() (0,) (0,6) (6,5) (30,) (1,5,6) (-5,-6) (5,6,1) (5,7) (4,6) (True,30) (9223372036854775807,2)"
_NPY_EDITS = (
    (rb"'descr': '[^']*'", [f"'descr': '{code}'" for code in "<f8 >f4 <f2 <i4 |O <U4 |b1 <c8 |V4 <M8".split()]),
    (rb"\(\d*,[^)]*\)", [*_SHAPES.split(), "(4294967296,4294967296)"]),
    (rb"False|True", ["True", "False", "None", "0"]),
)
_COMMAND = f'touch "${CANARY_VARIABLE}"'.encode()
PAYLOADS = (
    b"cposix\nsystem\n(S'" + _COMMAND + b"'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"(S'" + _COMMAND + b"'\niposix\nsystem\n.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(_COMMAND)]) + _COMMAND + b"\x85R.",
    b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
    b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
    b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
    b"cnumpy\nndarray\n((I100000\nI100000\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I5\nI6\nt(I6\nI1\ntI00\nNtR.",
    b"(" * 3000 + b"t" * 3000 + b".",
    b"cctypes\nstring_at\n(I0\ntR.",
)
_STORAGES = "Float Double Half BFloat16 Long ComplexFloat QInt8 Bool Byte Untyped".split()
_PICKLE_CODES = b"().012IJKLMNPRSTUVX]abcdehijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95"


def mutate_structure(rng: Random, content: bytes, *, is_sound: bool) -> bytes | None:
    """One mutation inside the container of a file; None if this one has no structure that is known here.

    Args:
        rng: Draws it.
        content: The file.
        is_sound: It is a seed that nothing has changed yet. Only then is it opened as HDF5, whose library a damaged
            file can crash.
    """
    if content.startswith(b"PK\x03\x04"):
        return _in_zip(rng, content)
    if content.startswith(_NPY):
        return _in_npy(rng, content)
    if content.startswith(_HDF5) and is_sound:
        return _in_hdf5(rng, content)
    if content.startswith(b"MATLAB 5.0"):
        return _in_matlab(rng, content)
    if b"\0" not in content[:4096]:
        return mutate_text(rng, content)
    return None


def _in_zip(rng: Random, content: bytes) -> bytes | None:
    """Change one member and write the archive again with the right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # an earlier mutation broke it
    if not members:
        return None
    at = rng.randrange(len(members))
    pickled = [position for position, (info, _) in enumerate(members) if info.filename.endswith("data.pkl")]
    if pickled and rng.random() < 0.6:
        at = pickled[0]
    edit = rng.random()
    info, inner = members[at]
    if edit < 0.05 and len(members) > 1:
        del members[at]
    elif edit < 0.1:
        other = zipfile.ZipInfo(rng.choice(("x/../../../canary", "/canary", info.filename, "x/data.pkl", "a\\b")))
        members.append((other, inner))
    else:
        members[at] = (info, _member(rng, info.filename, inner))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, inner in members:
            again = zipfile.ZipInfo(info.filename)
            archive.NameToInfo.pop(again.filename, None)  # a double is meant, without its warning
            archive.writestr(again, inner, info.compress_type)
    return out.getvalue()


def _member(rng: Random, name: str, inner: bytes) -> bytes:
    if name.endswith(".npy"):
        return _in_npy(rng, inner)
    if name.endswith(".pkl"):
        return _in_pickle(rng, inner)
    return mutate_bytes(rng, inner)


def _in_pickle(rng: Random, content: bytes) -> bytes:
    edit = rng.random()
    if edit < 0.1:
        return rng.choice(PAYLOADS)
    if edit < 0.2:  # before the first instruction of a pickle of protocol 2
        return content[:2] + rng.choice(PAYLOADS)[:-1] + b"0" + content[2:]
    if edit < 0.45 and content:
        at = rng.randrange(len(content))
        return content[:at] + bytes([rng.choice(_PICKLE_CODES)]) + content[at + 1 :]
    if edit < 0.6:  # small integers: shapes, strides, offsets, counts
        numbers = [match.start() + 1 for match in re.finditer(rb"K.", content, re.DOTALL)]
        if numbers:
            at = rng.choice(numbers)
            return content[:at] + bytes([rng.choice((0, 1, 2, 5, 6, 30, 127, 255))]) + content[at + 1 :]
    if edit < 0.7:
        names = [
            b"FloatStorage",
            b"DoubleStorage",
            b"HalfStorage",
            b"BFloat16Storage",
            b"LongStorage",
            b"ComplexFloatStorage",
        ]
        names += [b"QInt8Storage", b"BoolStorage", b"ByteStorage", b"UntypedStorage"]
        return re.sub(rb"\w+Storage", rng.choice(names), content)
    return mutate_bytes(rng, content)


def _in_npy(rng: Random, content: bytes) -> bytes:
    """Change a field of the header, whose length stays, or the numbers behind it."""
    if len(content) < 12 or rng.random() < 0.2:
        return mutate_bytes(rng, content)
    start = 10
    length = int.from_bytes(content[8:10], "little")
    header, rest = content[start : start + length], content[start + length :]
    if rng.random() < 0.3:
        return content[: start + length] + mutate_bytes(rng, rest)
    if rng.random() < 0.3:
        changed = mutate_text(rng, header.rstrip())
    else:
        pattern, values = rng.choice(_NPY_EDITS)
        value = rng.choice(values).encode()
        changed = re.sub(pattern, lambda _: value, header.rstrip(), count=1)
    padded = changed.ljust(length - 1) + b"\n"
    if len(padded) > 60_000:
        return mutate_bytes(rng, content)
    return content[:8] + len(padded).to_bytes(2, "little") + padded + rest


def _in_hdf5(rng: Random, content: bytes) -> bytes:
    """Change bytes of the metadata only, or of the stored values only."""
    blocks = _hdf5_values(content)
    if not blocks:
        return mutate_bytes(rng, content)
    if rng.random() < 0.25:
        start, size = rng.choice(blocks)
        return _replace(rng, content, start, start + size)
    edges = [0, *(edge for start, size in blocks for edge in (start, start + size)), len(content)]
    between = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]
    return _replace(rng, content, *rng.choices(between, [stop - start for start, stop in between])[0])


def _replace(rng: Random, content: bytes, start: int, stop: int) -> bytes:
    """Mutate a window of a range in place, so that all other offsets stay right."""
    length = min(rng.choice((8, 32, 128, stop - start)), stop - start)
    at = rng.randrange(start, stop - length + 1)
    changed = mutate_bytes(rng, content[at : at + length])[:length]
    return content[:at] + changed.ljust(length, b"\0") + content[at + length :]


@lru_cache(maxsize=256)
def _hdf5_values(content: bytes) -> tuple[tuple[int, int], ...]:
    """Offset and size of the stored values of an HDF5 file; none if h5py cannot open it."""
    found: list[tuple[int, int]] = []

    def add(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks is not None:
            for index in range(item.id.get_num_chunks()):
                chunk = item.id.get_chunk_info(index)
                found.append((chunk.byte_offset, chunk.size))
        elif isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            found.append((item.id.get_offset(), item.id.get_storage_size()))

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(add)
    return tuple(sorted(block for block in found if block[1]))


def _in_matlab(rng: Random, content: bytes) -> bytes:
    """Change a MATLAB file inside one compressed variable, or one tag of eight bytes."""
    tag = int.from_bytes(content[128:132], "little")
    size = int.from_bytes(content[132:136], "little")
    if tag == 15 and rng.random() < 0.7:
        try:
            inner = zlib.decompress(content[136 : 136 + size])
        except zlib.error:
            return mutate_bytes(rng, content)
        packed = zlib.compress(_replace(rng, inner, 0, len(inner)))
        return content[:132] + len(packed).to_bytes(4, "little") + packed + content[136 + size :]
    if len(content) <= 136:
        return mutate_bytes(rng, content)
    return content[:128] + _replace(rng, content[128:], 0, len(content) - 128)
