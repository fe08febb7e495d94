"""Reading `.pt` files without trusting them.

A `.pt` file is a pickle with the bytes of its tensors beside it. Its instructions are listed first, without running
them, and only those that build plain tensors, NumPy arrays and containers pass; then `torch.load(weights_only=True)`
reads it, with NumPy's own array builders allowed (TRIDENT's `.pt` files are pickled arrays, not tensors). The header of
a file is read onto torch's `meta` device, that is, without the tensors' bytes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import pickletools
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from asmil.data.sources.archives import is_zip, open_archive
from asmil.errors import DataError

__all__ = ["TORCH_SUFFIXES", "ArrayHeader", "TorchContent", "list_header", "read_torch", "torch_content"]

TORCH_SUFFIXES = (".pt", ".pth")

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ADVICE = "save the features again: torch.save(features.detach().float().cpu(), path)"
_BUILDERS = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "collections OrderedDict",
    "_codecs encode",
    "__builtin__ bytes",  # an empty NumPy array holds bytes()
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",  # NumPy 1
    "numpy._core.multiarray _reconstruct",  # NumPy 2
}
_EXPORTED = {"models/model.json", "archive_format", "serialized_exported_program.json"}
_STORAGES = {
    "torch HalfStorage": "float16",
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch BFloat16Storage": "bfloat16",
}
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_FIRST_OPS = 64
_RUNTIME_NAMES = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}

Kind = Literal["tensor", "array", "dict", "list"]


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and dtype of a tensor, or of a NumPy array in a `.pt` file."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class TorchContent:
    """What a `.pt` file holds.

    Attributes:
        kind: A tensor, a NumPy array, or a dict or list of them.
        arrays: The headers; by key for a dict, by position for a list, under the empty name for a bare one.
        others: Keys of a dict whose values are something else.
    """

    kind: Kind
    arrays: Mapping[str, ArrayHeader]
    others: tuple[str, ...] = ()


def torch_content(path: Path) -> TorchContent | None:
    """What a `.pt` file holds, without reading its tensors; None if the file was not written by `torch.save`.

    Raises:
        DataError: It could run code, is cut or damaged, or holds something else than dense arrays.
    """
    found = path.stat()
    return _content(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # each .pt format asks, and NumPy arrays are read whole to know their shape
def _content(path: Path, num_bytes: int, modified_ns: int) -> TorchContent | None:
    del modified_ns  # part of the key
    sizes = _checked_layout(path)
    if sizes is None:
        return None
    import torch

    with _torch_errors(path):
        value = _load(path, "meta")
        if isinstance(value, torch.Tensor):
            return TorchContent("tensor", {"": _tensor_header(path, value, sizes, num_bytes)})
        if isinstance(value, np.ndarray):
            return TorchContent("array", {"": _array_header(value)})
        if not isinstance(value, dict | list | tuple):
            raise DataError(f"{path}: holds a {type(value).__name__}, expected a tensor of features; {_ADVICE}")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        arrays, others = {}, []
        for key, item in items:
            if isinstance(item, torch.Tensor):
                arrays[str(key)] = _tensor_header(path, item, sizes, num_bytes)
            elif isinstance(item, np.ndarray):
                arrays[str(key)] = _array_header(item)
            else:
                others.append(str(key)[:60])
        return TorchContent("dict" if isinstance(value, dict) else "list", arrays, tuple(others))


def list_header(path: Path) -> tuple[int, ArrayHeader] | None:
    """Number of tensors in a list and the header of the first, without building thousands of them.

    It comes from the directory of the archive and the first instructions of the pickle, and holds if every tensor is
    like the first; whether that is so shows when the file is read.

    Returns:
        None if the file is something else, or does not tell in this way; `torch_content` says what it is.

    Raises:
        DataError: The archive is cut or damaged, or claims what it cannot hold.
    """
    if not is_zip(path):
        return None
    with open_archive(path) as (archive, members):
        sizes = [info.file_size for name, info in members.items() if "/data/" in name]
        pickled = next((info for name, info in members.items() if name.endswith("/data.pkl")), None)
        if pickled is None:
            return None
        with archive.open(pickled) as stream:
            header = _first_of_list(stream)
    if header is None or not sizes or set(sizes) != {math.prod(header.shape) * _ITEMSIZE[header.dtype]}:
        return None
    return len(sizes), header


def read_torch(path: Path, *keys: str) -> list[np.ndarray]:
    """Arrays of a file that `torch_content` accepted; bfloat16 becomes float32, which holds it exactly.

    Args:
        path: The file.
        keys: Names of the arrays in `TorchContent.arrays`.

    Raises:
        DataError: The file is cut or damaged; in a zip file the stored checksum of each tensor is verified.
    """
    import torch

    checksums = _storage_checksums(path)
    arrays = []
    with _torch_errors(path):
        value = _load(path, "cpu", mmap=checksums is not None)
        named = {"": value}
        if isinstance(value, dict):
            named = {str(name): item for name, item in value.items()}
        elif isinstance(value, list | tuple):
            named = {str(position): item for position, item in enumerate(value)}
        for key in keys:
            item = named[key]
            if isinstance(item, torch.Tensor):
                if checksums is not None:
                    _check_storage(path, item, checksums)
                item = (item.float() if item.dtype == torch.bfloat16 else item).detach().numpy()
            arrays.append(np.array(item))
    return arrays


def _load(path: Path, device: str, *, mmap: bool = False) -> Any:
    import torch
    from numpy._core import multiarray

    rebuild = multiarray._reconstruct
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    names += [(_empty_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")]
    kinds = [type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdFD"]
    with torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *kinds]):
        return torch.load(str(path), map_location=device, weights_only=True, mmap=mmap)


def _empty_bytes() -> bytes:
    """What a pickle gets for `bytes`: called with a number, the true one would allocate that much."""
    return b""


# --- what the file consists of, before torch sees it ---


def _checked_layout(path: Path) -> frozenset[int] | None:
    """Sizes of the tensors' bytes; empty for a file in the old layout, None for a file that is none of torch's."""
    if is_zip(path):
        return _checked_zip(path)
    with path.open("rb") as stream:
        head = stream.read(len(_LEGACY_MAGIC))
        if head == _LEGACY_MAGIC:
            for _ in range(4):  # protocol, system, content, keys of the tensors' bytes
                _check_pickle(path, stream)
            return frozenset()
    if head[:2] in _PICKLE_PROTOCOLS:
        raise DataError(
            f"{path}: a Python pickle that torch.save did not write; reading one can run any code, so it is not read: "
            f"{_ADVICE}"
        )
    return None


def _checked_zip(path: Path) -> frozenset[int] | None:
    with open_archive(path) as (archive, members):
        names = {name.partition("/")[2] or name for name in members}
        if names & _EXPORTED:
            raise DataError(f"{path}: a program saved by torch.export, not features; programs are never loaded")
        if "data.pkl" not in names:
            return None
        root = next(iter(members)).partition("/")[0]
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise DataError(f"{path}: a TorchScript program, not features; programs are never loaded")
        if any(info.compress_type or not name.startswith(f"{root}/") for name, info in members.items()):
            raise DataError(f"{path}: its members are compressed or lie apart, as torch.save never does; {_ADVICE}")
        with archive.open(members[f"{root}/data.pkl"]) as stream:
            _check_pickle(path, stream)
        return frozenset(info.file_size for name, info in members.items() if name.startswith(f"{root}/data/"))


def _check_pickle(path: Path, stream: IO[bytes]) -> None:
    """Go through the instructions of a pickle without running them."""
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _RUNTIME_NAMES:
                raise DataError(f"{path}: its pickle looks up names at run time, which torch.save never writes")
            if opcode.name in ("GLOBAL", "INST") and not _is_builder(str(argument)):
                raise DataError(
                    f"{path}: its pickle calls {str(argument)[:80].replace(' ', '.')}, which builds no dense tensor or "
                    f"array and could run code; it was not read: {_ADVICE}"
                )
    except (ValueError, IndexError, EOFError, OverflowError, AttributeError) as error:
        raise DataError(_damaged(path, error)) from None


def _first_of_list(stream: IO[bytes]) -> ArrayHeader | None:
    """The header of the first tensor of a pickled list: its storage type, and the numbers behind: offset and shape."""
    try:
        found = [(opcode.name, value) for opcode, value, _ in itertools.islice(pickletools.genops(stream), _FIRST_OPS)]
    except (ValueError, IndexError, EOFError, OverflowError, AttributeError):
        return None
    names = [name for name, _ in found]
    if names[1:2] != ["EMPTY_LIST"] or "BINPERSID" not in names:
        return None
    dtypes = [_STORAGES[value] for name, value in found if name == "GLOBAL" and value in _STORAGES]
    behind = found[names.index("BINPERSID") + 1 :]
    shape_ends = next((at for at, (name, _) in enumerate(behind) if name.startswith("TUPLE")), 0)
    numbers = [int(value or 0) for name, value in behind[:shape_ends] if name.startswith("BININT")]
    return ArrayHeader(tuple(numbers[1:]), dtypes[0]) if dtypes and len(numbers) > 1 else None


def _is_builder(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    is_storage = module in ("torch", "torch.storage", "torch.cuda") and attribute.endswith("Storage")
    return name in _BUILDERS or is_storage


# --- what torch made of it ---


def _tensor_header(path: Path, tensor: Any, sizes: frozenset[int], num_bytes: int) -> ArrayHeader:
    dtype = str(tensor.dtype).removeprefix("torch.")
    header = ArrayHeader(tuple(tensor.shape), dtype)
    stored, declared = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if declared > stored or stored > num_bytes or (sizes and stored not in sizes and declared):
        raise DataError(
            f"{path}: a tensor declares {header}, {declared} bytes, but the file does not store these; it was not "
            "written to its end, or is not what it claims: make or copy it again"
        )
    return header


def _array_header(array: np.ndarray) -> ArrayHeader:
    return ArrayHeader(array.shape, array.dtype.name)


def _storage_checksums(path: Path) -> set[int] | None:
    """The stored checksums of the members that hold tensors; None for the old layout, which has none."""
    if not is_zip(path):
        return None
    with open_archive(path) as (_, members):
        return {info.CRC for name, info in members.items() if "data/" in name}


def _check_storage(path: Path, tensor: Any, checksums: set[int]) -> None:
    import torch

    content = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    if content.size and zlib.crc32(content.data) not in checksums:
        raise DataError(
            f"{path}: the bytes of a tensor do not have the checksum stored with them; the file is damaged: copy or "
            "make it again (files written after torch.serialization.set_crc32_options(False) must be saved again)"
        )


@contextlib.contextmanager
def _torch_errors(path: Path) -> Iterator[None]:
    """Whatever torch raises as `DataError`, but for a lack of memory, and its warnings left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on damaged files torch raises nearly every built-in exception
        raise DataError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    told = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch begins with advice to trust the file
    first_line = next(iter(told.strip().splitlines()), "")[:160]
    return (
        f"{path}: cannot be read as a .pt file ({type(error).__name__}: {first_line}); it is cut or damaged, or holds "
        f"something else than dense tensors: make or copy it again, or {_ADVICE}"
    )
