"""Reading foreign HDF5 files without trusting them.

A link may lead to another file, a dataset may keep its bytes in any file of the host, a filter may load a library, and
a file of a kilobyte may declare terabytes. Only hard-linked datasets of plain numbers are read, whose declared size the
file can hold, and only those attributes that a reader asks for by name.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5t, h5z

from asmil.data.sources.base import ContentError
from asmil.data.sources.chunked_rows import check_chunk_index, read_row_chunks
from asmil.errors import DataError

__all__ = [
    "attribute",
    "attribute_number",
    "check_complete",
    "group_at",
    "is_hdf5",
    "json_dataset",
    "numeric_dataset",
    "open_hdf5",
    "plain_text",
    "read_all",
]

MAX_DATASET_BYTES = 64 << 30
MAX_TEXT_BYTES = 64 << 10  # of an attribute or a JSON text
MAX_COMPRESSION = 1100  # deflate reaches at most 1032:1
_NUMERIC_KINDS = "fiu"
_BUILT_IN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf
_FILTER_NAMES = {307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd"} | {
    32026: "blosc2"
}
_TEXT_OR_NUMBER = {h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.STRING}


def is_hdf5(path: Path) -> bool:
    """Whether the content is HDF5."""
    return bool(h5py.is_hdf5(path))


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading, without lock files, and turn what h5py raises into `DataError`.

    Raises:
        DataError: The file is truncated or damaged; raised on opening or while it is read. `MemoryError` passes: a
            sound file may be larger than the memory.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    # Damage reaches h5py as any of these: an unknown type is a TypeError, a mad extent an OverflowError.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path}: cannot be read as HDF5 ({error}); it is cut or damaged: make or copy it again"
        ) from None


def group_at(parent: h5py.Group, key: str, path: Path) -> h5py.Group | None:
    """The hard-linked group of that name; None if the name is a dataset.

    Raises:
        DataError: The name is a link to another place.
    """
    _check_link(parent, key, path)
    child = parent[key]
    return child if isinstance(child, h5py.Group) else None


def numeric_dataset(parent: h5py.Group, key: str, path: Path, *, kinds: str = _NUMERIC_KINDS) -> h5py.Dataset:
    """A dataset that is safe to read whole.

    Args:
        parent: File or group.
        key: Name in it; must exist.
        path: The file, to be named in errors.
        kinds: NumPy kinds of its numbers.

    Returns:
        The dataset, still unread. Whether it was written to its end is the business of `check_complete`.

    Raises:
        DataError: It is a link, no dataset, not numeric, kept outside the file, compressed in an unknown way, or
            declares more than the file can hold.
    """
    dataset, name = _dataset(parent, key, path), f"{path}: {_shown(parent, key)}"
    if dataset.dtype.kind not in kinds:
        raise DataError(f"{name} has dtype {dataset.dtype}, expected floats or integers")
    if dataset.shape is None:
        raise DataError(f"{name} has no shape (a null dataspace), expected numbers")
    _check_filters(dataset, name)
    _check_size(dataset, name, path.stat().st_size)
    return dataset


def _dataset(parent: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    _check_link(parent, key, path)
    dataset, name = parent[key], f"{path}: {_shown(parent, key)}"
    if not isinstance(dataset, h5py.Dataset):
        kind = "group" if isinstance(dataset, h5py.Group) else "named datatype"
        raise DataError(f"{name} is a {kind}, expected a dataset")
    if dataset.is_virtual or dataset.external:  # asked first: the shape of a virtual one would open its sources
        raise DataError(f"{name} keeps its values in other files; copy them into one file (h5repack) before converting")
    return dataset


def _shown(parent: h5py.Group, key: str) -> str:
    """The full name, without control characters."""
    return ascii(f"{parent.name.rstrip('/')}/{key}")[1:-1]


def _check_link(parent: h5py.Group, key: str, path: Path) -> None:
    link = parent.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "a link to another file"}.get(type(link), "not a name")
        raise DataError(f"{path}: {_shown(parent, key)} is {kind}; only data inside the file itself is read")


def _check_filters(dataset: h5py.Dataset, name: str) -> None:
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code = properties.get_filter(index)[0]
        if code not in _BUILT_IN_FILTERS or not h5z.filter_avail(code):
            known = f" ({_FILTER_NAMES[code]})" if code in _FILTER_NAMES else ""
            raise DataError(
                f"{name} went through HDF5 filter {code}{known}, which is not read here; write the file again with "
                "gzip or without compression"
            )


def _check_size(dataset: h5py.Dataset, name: str, file_bytes: int) -> None:
    itemsize = dataset.id.get_type().get_size()  # as stored; NumPy may lack the type and take a wider one
    declared = math.prod(dataset.shape) * itemsize
    chunk = math.prod(dataset.chunks or ()) * itemsize
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    limit = min(file_bytes * MAX_COMPRESSION if compressed else file_bytes, MAX_DATASET_BYTES)
    if declared and max(declared, chunk) > limit:
        raise DataError(
            f"{name} declares shape {list(dataset.shape)} of {dataset.dtype}, {declared} bytes in chunks of {chunk}, "
            f"but a file of {file_bytes} bytes holds at most {limit}; it is not what it claims: make it again"
        )


def check_complete(dataset: h5py.Dataset, path: Path) -> None:
    """Check that every declared value was written. Reads the chunk index, no values.

    Raises:
        DataError: Parts are missing, which HDF5 would fill with zeros.
    """
    name = f"{path}: {ascii(dataset.name)[1:-1]}"
    if dataset.chunks is None:
        declared = math.prod(dataset.shape) * dataset.id.get_type().get_size()
        stored = dataset.id.get_storage_size()
        what = f"{declared} bytes, of which the file stores {stored}"
    else:
        declared = math.prod(-(-extent // edge) for extent, edge in zip(dataset.shape, dataset.chunks, strict=True))
        stored = dataset.id.get_num_chunks()
        what = f"{declared} chunks, of which the file stores {stored}"
    if stored < declared:
        raise DataError(
            f"{name} declares shape {list(dataset.shape)} of {dataset.dtype} in {what}; it was not written to its end: "
            "make it again"
        )


def read_all(dataset: h5py.Dataset) -> np.ndarray:
    """The whole dataset in native byte order."""
    values = read_row_chunks(dataset)
    if values is None:
        if dataset.chunks is not None:
            check_chunk_index(dataset)
        values = dataset[...]
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def json_dataset(parent: h5py.Group, key: str, path: Path) -> dict[str, Any]:
    """A scalar dataset with a JSON object as its text.

    Raises:
        DataError: It is something else.
    """
    dataset, name = _dataset(parent, key, path), f"{path}: {_shown(parent, key)}"
    is_text = dataset.id.get_type().get_class() == h5t.STRING and dataset.dtype.itemsize <= MAX_TEXT_BYTES
    if dataset.shape != () or not is_text:
        raise DataError(f"{name} is {dataset.dtype} {dataset.shape}, expected one JSON text")
    text = dataset[()]
    try:
        found = json.loads(text) if len(text) <= MAX_TEXT_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{name} starts with {text[:60]!r}, expected a JSON object of at most {MAX_TEXT_BYTES} bytes")
    return found


def attribute(item: h5py.Group | h5py.Dataset, name: str, path: Path) -> int | float | str | None:
    """One scalar attribute as a plain value.

    Args:
        item: Group or dataset that carries it.
        name: Its name.
        path: The file, to be named in errors.

    Returns:
        The value; None if there is none of that name, if it is no single number or text, or if it is the text `None`,
        which some writers store for a missing value.

    Raises:
        DataError: It is too large to be what its name says.
    """
    if name not in item.attrs:
        return None
    found = item.attrs.get_id(name)
    if found.shape is None or math.prod(found.shape) != 1 or found.get_type().get_class() not in _TEXT_OR_NUMBER:
        return None
    num_bytes = found.get_type().get_size()
    value = np.asarray(item.attrs[name]).reshape(()).item() if num_bytes <= MAX_TEXT_BYTES else None
    if isinstance(value, str | bytes):
        num_bytes, value = len(value), plain_text(value)
    if num_bytes > MAX_TEXT_BYTES:
        raise DataError(f"{path}: attribute {name} has {num_bytes} bytes, expected at most {MAX_TEXT_BYTES}")
    return None if value == "None" else value


def plain_text(text: str | bytes) -> str:
    """Text that can be written again: h5py gives bytes that are no UTF-8 as lone surrogates, which cannot."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "replace")


def attribute_number(item: h5py.Group | h5py.Dataset, name: str, path: Path) -> float | None:
    """A numeric attribute, also where it was written as text; None if it is missing or the text `None`.

    Raises:
        ContentError: It is something else.
    """
    value = attribute(item, name, path)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ContentError(f"{path}: attribute {name} is {str(value)[:60]!r}, expected a number or the text None")
    return number
