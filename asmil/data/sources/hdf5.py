"""Reading foreign HDF5 files without trusting them.

A link may lead to another file, a dataset may keep its bytes in any file of the host, and a file of a kilobyte may
declare terabytes. Only hard-linked numeric datasets whose declared size their stored bytes can hold are read.
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

from asmil.errors import DataError

__all__ = ["attribute_number", "attributes", "group_at", "is_hdf5", "numeric_dataset", "open_hdf5", "read_all"]

MAX_DATASET_BYTES = 64 << 30
MAX_COMPRESSION = 1100  # deflate reaches at most 1032:1
_NUMERIC_KINDS = "fiu"


def is_hdf5(path: Path) -> bool:
    """Whether the content is HDF5."""
    return bool(h5py.is_hdf5(path))


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading, without lock files, and turn what h5py raises into `DataError`.

    Raises:
        DataError: The file is truncated or damaged; raised on opening or while it is read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
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


def numeric_dataset(parent: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    """A dataset that is safe to read whole.

    Args:
        parent: File or group.
        key: Name in it; must exist.
        path: The file, to be named in errors.

    Returns:
        The dataset, still unread.

    Raises:
        DataError: It is a link, a group, not numeric, kept outside the file, or declares more than it stores.
    """
    _check_link(parent, key, path)
    dataset = parent[key]
    name = f"{path}: {dataset.name}"
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{name} is a group, expected a dataset")
    if dataset.dtype.kind not in _NUMERIC_KINDS:
        raise DataError(f"{name} has dtype {dataset.dtype}, expected floats or integers")
    if dataset.shape is None:
        raise DataError(f"{name} has no shape (a null dataspace), expected numbers")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{name} keeps its values in other files; copy them into one file (h5repack) before converting")
    _check_size(dataset, name, path.stat().st_size)
    return dataset


def _check_link(parent: h5py.Group, key: str, path: Path) -> None:
    link = parent.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "a link to another file"}.get(type(link), "not a name")
        raise DataError(f"{path}: {parent.name.rstrip('/')}/{key} is {kind}; only data inside the file itself is read")


def _check_size(dataset: h5py.Dataset, name: str, file_bytes: int) -> None:
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), file_bytes)
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    limit = min(stored * MAX_COMPRESSION if compressed else stored, MAX_DATASET_BYTES)
    if declared > limit:
        raise DataError(
            f"{name} declares shape {list(dataset.shape)} of {dataset.dtype}, {declared} bytes, but the file stores "
            f"{stored} bytes of it; it was not written to its end, or is not what it claims: make it again"
        )


def read_all(dataset: h5py.Dataset) -> np.ndarray:
    """The whole dataset in native byte order."""
    values: np.ndarray = dataset[...]
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Scalar attributes as plain values.

    Writers store a missing value as the text `None`, which becomes None, and nested values as JSON text, which is
    parsed. Arrays and references are left out.
    """
    found = {name: _plain(item.attrs[name]) for name in item.attrs}
    return {name: value for name, value in found.items() if value is not NotImplemented}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(()).item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, bool | int | float) else NotImplemented


def _parse_text(text: str) -> Any:
    if text == "None":
        return None
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return text
    return text


def attribute_number(found: dict[str, Any], name: str, path: Path) -> float | None:
    """A numeric attribute, also where it was written as text; None if it is missing or the text `None`.

    Raises:
        DataError: It is something else.
    """
    value = found.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: attribute {name} is {value!r}, expected a number or the text None")
    return number
