"""Looking into MATLAB v5 files, for the formats of the classic sets that are kept in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asmil.data.sources.classic import check_table_size
from asmil.errors import DataError

__all__ = ["MatlabVariable", "damage_as_data_error", "dense", "matlab_variables", "read_matlab"]

MAX_FILE_BYTES = 256 << 20
_MAGIC = b"MATLAB 5.0 MAT-file"
_ANSWERS = {
    b"MATLAB 7.3 MAT-file": "a MATLAB v7.3 file; only v5 files are read: load it in MATLAB and save it with -v7",
    b"Julia data file (HDF5)": "a Julia JLD file; it is not read: save its bags from Julia as a MATLAB v5 file (MAT.jl)"
    " or take another copy of the set",
    b"HDF5-based Julia Data Format": "a Julia JLD2 file; it is not read: save its bags from Julia as a MATLAB v5 file "
    "(MAT.jl) or take another copy of the set",
}


class MatlabVariable(NamedTuple):
    """A variable as the file declares it: its shape and MATLAB class (`double`, `sparse`, `cell`, `struct`, …)."""

    shape: tuple[int, ...]
    kind: str


def matlab_variables(path: Path) -> Mapping[str, MatlabVariable]:
    """The variables of a MATLAB v5 file, by name; none if the file is something else.

    Raises:
        DataError: A damaged file, or a container of the same family that is not read; the message says what to do.
    """
    import scipy.io

    with path.open("rb") as stream:
        head = stream.read(max(map(len, [_MAGIC, *_ANSWERS])))
    for magic, answer in _ANSWERS.items():
        if head.startswith(magic):
            raise DataError(f"{path}: {answer}")
    if not head.startswith(_MAGIC):
        return {}
    try:
        return {name: MatlabVariable(tuple(shape), kind) for name, shape, kind in scipy.io.whosmat(path)}
    except Exception as error:  # scipy raises many kinds on damaged files
        raise DataError(f"{path}: a damaged MATLAB v5 file ({error}); get another copy") from None


@contextlib.contextmanager
def damage_as_data_error(path: Path) -> Iterator[None]:
    """Report values of another structure than the reader goes through as a damaged file.

    Raises:
        DataError: The block met a value of another type or shape than expected.
    """
    try:
        yield
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: its variables are not built as those of this format ({error}); get an undamaged copy"
        ) from None


def read_matlab(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of some variables, which must exist, as scipy gives them.

    Raises:
        DataError: The file is damaged or implausibly large.
    """
    import scipy.io

    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; MATLAB copies of the classic sets hold a few MB")
    declared = matlab_variables(path)
    for name in names:
        if declared[name].kind not in ("sparse", "cell", "struct", "object"):
            check_table_size(path, 1, math.prod(declared[name].shape))
    try:
        values = scipy.io.loadmat(path, variable_names=names)
        return {name: values[name] for name in names}
    except Exception as error:  # scipy raises many kinds on damaged files
        raise DataError(f"{path}: cannot be read as a MATLAB v5 file ({error}); get an undamaged copy") from None


def dense(path: Path, name: str, values: Any) -> np.ndarray:
    """A numeric variable as a float64 array; the entries a sparse one does not store are 0.

    Raises:
        DataError: Not numeric, too large when written out, or a sparse matrix whose indices point outside it.
    """
    import scipy.sparse

    if scipy.sparse.issparse(values):
        check_table_size(path, *values.shape)
        try:
            values.check_format(full_check=True)  # scipy writes outside the array if an index does
        except ValueError as error:
            raise DataError(f"{path}: sparse {name} is damaged ({error}); get an undamaged copy") from None
        values = values.toarray()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} holds {array.dtype} values, expected real numbers; get an undamaged copy")
    return array.astype(np.float64)
