"""Which files of a source are to be converted, and which format each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asmil.data.sources.base import SourceFormat
from asmil.data.sources.formats import FORMATS
from asmil.data.sources.hdf5 import is_hdf5, open_hdf5
from asmil.data.sources.tiles import FILE_SUFFIXES
from asmil.errors import DataError

__all__ = ["Detected", "FoundFiles", "detect", "find_files"]


@dataclass(frozen=True)
class Detected:
    """A file's format and what in its content tells so."""

    path: Path
    format: SourceFormat
    reason: str


@dataclass(frozen=True)
class FoundFiles:
    """Files to be converted, and those of a folder that are left alone."""

    files: tuple[Path, ...]
    ignored: tuple[Path, ...]


def detect(path: Path) -> Detected:
    """The one format whose content rule the file meets.

    Args:
        path: A file.

    Returns:
        The format and the reason.

    Raises:
        DataError: No format fits, or the file may not be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    matches = [(form, reason) for form in FORMATS if form.unit == "file" and (reason := form.detect(path)) is not None]
    if len(matches) == 1:
        return Detected(path, *matches[0])
    if matches:
        raise DataError(f"{path}: fits {' and '.join(form.name for form, _ in matches)}; this is a defect of detection")
    known = "; ".join(form.layout for form in FORMATS)
    raise DataError(f"{path}: {_content(path)}; no known format has that. Known: {known}")


def _content(path: Path) -> str:
    if is_hdf5(path):
        with open_hdf5(path) as file:
            names = sorted(file)
            shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
            hint = " (coordinates only: give the folder of the features)" if names == ["coords"] else ""
            return f"HDF5 with root keys {shown or 'none'}{hint}"
    size = path.stat().st_size
    if path.suffix.lower() in FILE_SUFFIXES:
        return f"{size} bytes that are not HDF5, although the name says so; the file is cut or damaged"
    return f"{size} bytes of neither HDF5 nor one of the known text layouts"


def find_files(paths: Sequence[Path]) -> FoundFiles:
    """Expand folders into the files to convert.

    In a folder, HDF5 content or the suffix `.h5` makes a file a candidate, so that a cut file is an error and not
    silently missing. Lock files, hidden files and everything else are left alone and returned as ignored.

    Args:
        paths: Files and folders; folders are not searched below their first level.

    Returns:
        Files in the order given, those of a folder sorted by name.

    Raises:
        DataError: A path does not exist, or a folder holds no candidate.
    """
    files: list[Path] = []
    ignored: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(item for item in path.iterdir() if item.is_file())
        candidates = [item for item in inside if _is_candidate(item)]
        if not candidates:
            raise DataError(f"{path}: no HDF5 file in this folder{_folder_hint(path)}")
        files += candidates
        ignored += [item for item in inside if item not in set(candidates)]
    return FoundFiles(tuple(files), tuple(ignored))


def _is_candidate(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix.lower() == ".tmp":
        return False
    return path.suffix.lower() in FILE_SUFFIXES or is_hdf5(path)


def _folder_hint(path: Path) -> str:
    below = sorted(item.name for item in path.iterdir() if item.is_dir() and any(map(_is_candidate, item.glob("*.h5"))))
    return f"; did you mean {path / below[0]}?" if below else ""
