"""Which format a unit of a source is, decided by its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asmil.data.sources.base import SourceFormat
from asmil.data.sources.formats import FORMATS
from asmil.data.sources.hdf5 import is_hdf5, open_hdf5
from asmil.data.sources.tiles import FILE_SUFFIXES
from asmil.errors import DataError

__all__ = ["Detected", "UnknownContentError", "detect", "known_layouts"]


@dataclass(frozen=True)
class Detected:
    """A unit's format and what in its content tells so."""

    path: Path
    format: SourceFormat
    reason: str


class UnknownContentError(DataError):
    """No format fits a unit. The message ends with the list of what is known.

    Args:
        found: What the unit is, in one clause that begins with its path.
    """

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}. {known_layouts()}")
        self.found = found


def known_layouts() -> str:
    """The sentence that lists every known format."""
    return "Known: " + "; ".join(form.layout for form in FORMATS)


def detect(path: Path, first: SourceFormat | None = None) -> Detected:
    """The one format whose content rule the unit meets.

    Args:
        path: A file, or the folder of a format that spreads a data set over several files.
        first: Format to try before the others. Formats exclude each other, so it changes the time only.

    Returns:
        The format and the reason.

    Raises:
        UnknownContentError: No format fits.
        DataError: The unit does not exist or may not be read.
    """
    unit = "folder" if path.is_dir() else "file"
    if unit == "file" and not path.is_file():
        raise DataError(f"{path}: no such file")
    matches: list[tuple[SourceFormat, str]] = []
    problems: list[DataError] = []
    for form in sorted((form for form in FORMATS if form.unit == unit), key=lambda form: form is not first):
        try:
            reason = form.detect(path)
        except DataError as problem:
            problems.append(problem)
            continue
        if reason is not None and form is first:
            return Detected(path, form, reason)
        if reason is not None:
            matches.append((form, reason))
    if len(matches) == 1:
        return Detected(path, *matches[0])
    if matches:
        raise DataError(f"{path}: fits {' and '.join(form.name for form, _ in matches)}; this is a defect of detection")
    if problems:
        raise problems[0]
    raise UnknownContentError(f"{path}: {_content(path)}; no known format has that")


def _content(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if is_hdf5(path):
        with open_hdf5(path) as file:
            names = sorted(file)
            shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
            hint = " (coordinates only: give the folder of the features)" if names == ["coords"] else ""
            return f"HDF5 with root keys {shown or 'none'}{hint}"
    size = path.stat().st_size
    if size == 0:
        return "empty (0 bytes), so its writing was cut off or has not begun: make or copy it again"
    if path.suffix.lower() in FILE_SUFFIXES:
        return f"{size} bytes that are not HDF5, although the name says so; the file is cut or damaged"
    return f"{size} bytes of neither HDF5 nor one of the known text layouts"
