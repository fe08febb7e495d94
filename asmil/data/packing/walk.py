"""Which files and folders of the given sources may be units: decided here by place and suffix, later by content.

Only names are looked at, and of files without a known suffix the first bytes; nothing is parsed in this process.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from asmil.data.schema import DATASET_FILE, PACK_FOLDER, SHARD_FOLDER
from asmil.data.sources import FORMATS
from asmil.errors import DataError, EnvironmentProblem

__all__ = ["SUFFIXES", "FoundUnits", "find_units"]

SUFFIXES = frozenset(
    [".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".csv", ".tsv", ".mat", ".data", ".svm", ".txt", ".gz", ".zarr"]
)
_TEMPORARY = (".lock", ".tmp", ".part")
_UNNAMED = re.compile(r"tmp[a-z0-9_]{8}")  # what Python names a temporary file; STAMP leaves these when it is ended
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HDF5_PLACES = (0, 512, 1024, 2048)


@dataclass
class FoundUnits:
    """What a search found, in source order.

    Attributes:
        units: Files and folders to look into.
        sidecars: Files whose names some format gives to companions of its units, found in folders.
        ignored: Files of searched folders that are left alone.
        given: The units that were named one by one.
    """

    units: list[Path] = field(default_factory=list)
    sidecars: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    given: set[Path] = field(default_factory=set)


def find_units(paths: Sequence[Path], is_folder_unit: Callable[[Path], bool]) -> FoundUnits:
    """Expand folders, all levels down, into what may be converted.

    A folder is first asked whether it is one unit as a whole. In others, files with a known suffix or HDF5 content
    are candidates, so that a cut file is reported and not silently missing. Hidden and temporary files are ignored.

    Args:
        paths: Files and folders.
        is_folder_unit: Whether a folder as a whole is a unit.

    Returns:
        Units in the order given, those of a folder sorted by name, its files before its subfolders.

    Raises:
        DataError: A path does not exist, a name is not UTF-8, or nothing may be a unit.
        EnvironmentProblem: A folder may not be listed.
    """
    found = FoundUnits()
    try:
        _find(paths, is_folder_unit, found)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise EnvironmentProblem(
            f"{error.filename}: cannot be searched ({reason}); make it readable for this user, or give other sources"
        ) from None
    found.units = list(dict.fromkeys(found.units))
    found.sidecars = list(dict.fromkeys(found.sidecars))
    _refuse_odd_names([*found.units, *found.sidecars])
    return found


def _find(paths: Sequence[Path], is_folder_unit: Callable[[Path], bool], found: FoundUnits) -> None:
    for path in paths:
        if path.is_dir():
            before = len(found.units) + len(found.sidecars)
            _search(path, is_folder_unit, found, set())
            if len(found.units) + len(found.sidecars) == before:
                raise DataError(f"{path}: nothing in this folder is a feature file{_inventory(path)}")
        elif path.exists():
            found.units.append(path)
            found.given.add(path)
        else:
            raise DataError(f"{path}: no such file or folder{_did_you_mean(path)}")


def _search(
    folder: Path, is_folder_unit: Callable[[Path], bool], found: FoundUnits, above: set[tuple[int, int]]
) -> None:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return  # a link back to a folder we are in
    if (folder / SHARD_FOLDER).is_dir() and ((folder / DATASET_FILE).exists() or (folder / PACK_FOLDER).exists()):
        found.ignored.append(folder)  # a bag store
        return
    if folder.suffix == ".zarr" or is_folder_unit(folder):
        found.units.append(folder)
        return
    inside = sorted(folder.iterdir())
    for path in inside:
        if path.is_file():
            _file(path, found)
    for path in inside:
        if path.is_dir() and not path.name.startswith("."):
            _search(path, is_folder_unit, found, above | {identity})


def _file(path: Path, found: FoundUnits) -> None:
    if not _is_candidate(path):
        found.ignored.append(path)
    elif any(fnmatch(path.name, pattern) for form in FORMATS for pattern in form.sidecars):
        found.sidecars.append(path)
    else:
        found.units.append(path)


def _is_candidate(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix in _TEMPORARY or _UNNAMED.fullmatch(path.name):
        return False
    return suffix in SUFFIXES or _is_hdf5(path)


def _is_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            for place in _HDF5_PLACES:
                file.seek(place)
                if file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
                    return True
    except OSError:
        return False
    return False


def _refuse_odd_names(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"{str(path)!r}: this name is not UTF-8; rename the file or folder") from None


def _inventory(folder: Path) -> str:
    counts = Counter(path.suffix or "no suffix" for path in folder.rglob("*") if path.is_file())
    if not counts:
        beside = [path.name for path in sorted(folder.parent.iterdir()) if path.is_dir() and path != folder]
        near = difflib.get_close_matches(folder.name, beside, n=1)
        return "; it is empty" + (f"; did you mean {folder.parent / near[0]}?" if near else "")
    shown = ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(5))
    return f": it holds {shown}; features are read from {', '.join(sorted(SUFFIXES))} files: give their folder"


def _did_you_mean(path: Path) -> str:
    parent = next((folder for folder in path.parents if folder.is_dir()), None)
    if parent is None:
        return ""
    wanted = path.relative_to(parent).parts[0]
    near = difflib.get_close_matches(wanted, [item.name for item in parent.iterdir()], n=1)
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} has no {wanted!r}"
