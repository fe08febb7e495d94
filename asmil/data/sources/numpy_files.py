"""Reading `.npy` and `.npz` files without trusting them.

Headers are read first; an array is only read if it is numeric and its declared size is what the file holds. Nothing is
ever unpickled.
"""

from __future__ import annotations

import contextlib
import math
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from asmil.data.sources.archives import MAX_ARRAY_BYTES, is_zip, open_archive
from asmil.errors import DataError

__all__ = ["NpyHeader", "npy_header", "npz_headers", "read_npy", "read_npz"]

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
_NUMERIC_KINDS = "fiub"
_ERRORS = (  # a header is Python text to numpy, and can fail in as many ways
    ValueError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    RecursionError,
    EOFError,
    OSError,
)


@dataclass(frozen=True)
class NpyHeader:
    """What the header of an array says.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, in the byte order of the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def npy_header(path: Path) -> NpyHeader | None:
    """The header of a `.npy` file; None if the content is something else.

    Raises:
        DataError: The header is damaged, the array is not numeric, or the file does not hold what it declares.
    """
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            return None
        stream.seek(0)
        return _checked_header(stream, path.stat().st_size, str(path))


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, in native byte order.

    Raises:
        DataError: As for `npy_header`, or the file is no `.npy` file.
    """
    if npy_header(path) is None:
        raise DataError(f"{path}: not a .npy file; expected one array as numpy.save writes it")
    with _numpy_errors(str(path)):
        values: np.ndarray = np.load(path, allow_pickle=False)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def npz_headers(path: Path) -> dict[str, NpyHeader] | None:
    """Names and headers of the arrays in a `.npz` file; None if the content is something else.

    Raises:
        DataError: The archive or one of its arrays may not be read.
    """
    if not is_zip(path):
        return None
    with open_archive(path) as (archive, members):
        if not members or not all(name.endswith(_SUFFIX) for name in members):
            return None
        headers = {}
        for name, info in members.items():
            with archive.open(info) as stream:
                key = name.removesuffix(_SUFFIX)
                headers[key] = _checked_header(stream, info.file_size, f"{path}: {key}")
    return headers


def read_npz(path: Path, key: str) -> np.ndarray:
    """One array of a `.npz` file, in native byte order; zip's checksum of it is verified.

    Raises:
        DataError: As for `npz_headers`, or the content does not have the checksum that was stored with it.
    """
    with open_archive(path) as (archive, members), archive.open(members[f"{key}{_SUFFIX}"]) as stream:
        _checked_header(stream, members[f"{key}{_SUFFIX}"].file_size, f"{path}: {key}")
        stream.seek(0)
        with _numpy_errors(f"{path}: {key}"):
            values: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # at the end of the member the checksum is compared
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _checked_header(stream: IO[bytes], num_bytes: int, where: str) -> NpyHeader:
    with _numpy_errors(where):
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"NPY version {version}, expected 1.0 or 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = read(stream)
        except MemoryError as error:  # what the parser of the header raises when it is nested too deeply
            raise ValueError(f"a header nested too deeply {error}") from None
        if any(isinstance(extent, bool) for extent in shape):  # NumPy takes them for whole numbers at times
            raise ValueError(f"shape {shape}")
    if dtype.kind not in _NUMERIC_KINDS or dtype.hasobject:
        raise DataError(f"{where} has dtype {dtype}, expected numbers; objects and pickles are never read")
    if math.prod(shape) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise DataError(
            f"{where} declares shape {list(shape)} of {dtype}; at most {MAX_ARRAY_BYTES} bytes of one array are read"
        )
    declared, held = math.prod(shape) * dtype.itemsize, num_bytes - stream.tell()
    if min(shape, default=0) < 0 or declared != held:
        raise DataError(
            f"{where} declares shape {list(shape)} of {dtype}, {declared} bytes, but the file holds {held} bytes of "
            "it; it was not written to its end, or is not what it claims: make or copy it again"
        )
    return NpyHeader(tuple(shape), dtype)


@contextlib.contextmanager
def _numpy_errors(where: str) -> Iterator[None]:
    """What numpy raises on damaged files as `DataError`; a lack of memory is none of that."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2
            yield
    except _ERRORS as error:
        raise DataError(
            f"{where} cannot be read as a NumPy array ({str(error)[:200]}); it is cut or damaged: make or copy it again"
        ) from None
