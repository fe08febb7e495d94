"""Split files of other tools, recognised by their columns or keys and read as text.

A reader gives ids exactly as they are written: of slides or of patients, with or without suffixes and folders.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asmil.data.labels import first_of
from asmil.data.tables.given import PARTS
from asmil.data.tables.reading import TableFile
from asmil.errors import DataError

__all__ = ["ForeignFold", "ForeignSplits", "read_splits"]

KNOWN = (
    "CLAM splits_<i>.csv and splits_<i>_bool.csv, MCAT/PORPOISE/SurvPath splits_<k>.csv, ACMIL split_<seed>.json, "
    "MMP/PANTHER folders …k=<i> of train.csv and test.csv, Patho-Bench k=all.tsv, STAMP splits.json, MIL_BASELINE "
    "folds and torchmil splits.csv"
)
MAX_JSON_BYTES = 256 << 20
_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ForeignFold:
    """One fold as its source has it: a name, and the ids of the parts train, val and test."""

    name: str
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ForeignSplits:
    """Everything that was read.

    Attributes:
        layout: The layout of all files.
        because: What it was recognised by.
        folds: In the order of the numbers in their names.
        files: Hex sha256 of each file, by name.
        notes: Findings the user should see.
    """

    layout: str
    because: str
    folds: tuple[ForeignFold, ...]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    layout: str
    because: str
    folds: tuple[ForeignFold, ...]
    paths: tuple[Path, ...]


def read_splits(paths: Sequence[Path]) -> ForeignSplits:
    """Read split files or folders of them.

    Args:
        paths: Files, or folders whose recognised files are taken.

    Raises:
        DataError: Something is missing, unknown or damaged, or the files have several layouts.
    """
    found: list[_Found] = []
    ignored: list[str] = []
    for path in paths:
        entries = _entries(path)
        taken = [(entry, _read_fold_folder(entry) if entry.is_dir() else _read(entry)) for entry in entries]
        found += [item for _, item in taken if item is not None]
        ignored += [entry.name for entry, item in taken if item is None]
        if all(item is None for _, item in taken):
            raise DataError(_why_unknown(path))
    found, notes = _one_layout(found)
    if ignored:
        notes.append(f"left alone among the splits: {first_of(ignored)}")
    folds, more = _with_tests([fold for item in found for fold in item.folds])
    files = {f"{path.parent.name}/{path.name}": _sha256(path) for item in found for path in item.paths}
    return ForeignSplits(found[0].layout, found[0].because, folds, files, (*notes, *more))


def _entries(path: Path) -> list[Path]:
    """What to look at: the path itself, or what lies in a folder that is no fold itself."""
    if not path.is_dir() or _read_fold_folder(path) is not None:
        return [path]
    return sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=_number_order)


def _number_order(path: Path) -> tuple[object, ...]:
    """Numbers in a name count as numbers: `splits_10` comes after `splits_9`."""
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", path.name))


def _why_unknown(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such split file or folder; correct --splits"
    found = "holds no split file that is known" if path.is_dir() else "is no split file that is known"
    if not path.is_dir() and not path.name.endswith(".json"):
        columns = TableFile.open(path).columns
        found += f": it has columns {first_of(columns)}"
        if set(columns) == set(PARTS):
            found += " of counts, not of ids"
    return f"{path}: {found}; known are {KNOWN}"


def _one_layout(found: list[_Found]) -> tuple[list[_Found], list[str]]:
    layouts = {item.layout for item in found}
    notes = []
    if layouts == {"CLAM splits", "CLAM boolean splits"}:
        found = [item for item in found if item.layout == "CLAM splits"]
        notes.append("the boolean split files repeat the others and are left alone")
    elif len(layouts) > 1:
        kinds = [f"{item.paths[0]} ({item.layout})" for item in found]
        raise DataError(f"the split files have several layouts: {first_of(kinds)}; give files of one")
    return found, notes


def _with_tests(folds: list[ForeignFold]) -> tuple[tuple[ForeignFold, ...], list[str]]:
    """Folds without any test part report on their validation part, which is then the test part."""
    if any(fold.parts.get("test") for fold in folds):
        return tuple(folds), []
    turned = tuple(
        ForeignFold(fold.name, {"train": fold.parts["train"], "test": fold.parts.get("val", ())}) for fold in folds
    )
    note = (
        "the splits have no test part: their val part is the one such code reports on, so it becomes the test part; "
        "validation parts are cut from the training part by protocol.inner"
    )
    return turned, [note]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- one file ---


def _read(path: Path) -> _Found | None:
    """The folds of a file; None if it is no split file."""
    if path.name.endswith(".json"):
        return _read_json(path)
    if not path.name.lower().endswith((".csv", ".tsv", ".csv.zip")):
        return None
    if not path.exists():
        return None
    columns = TableFile.open(path).texts()
    for attempt in (_bool_table, _part_columns, _torchmil, _mil_baseline, _patho_bench):
        found = attempt(path, columns)
        if found is not None:
            return found
    return None


def _fold(name: str, parts: Mapping[str, Iterable[str]]) -> ForeignFold:
    return ForeignFold(name, {part: tuple(text for text in ids if text) for part, ids in parts.items()})


def _bool_table(path: Path, columns: Columns) -> _Found | None:
    parts = {part: columns[part] for part in PARTS if part in columns}
    if "" not in columns or set(columns) != {"", *parts} or len(parts) < 2:
        return None
    flags = {text.lower() for column in parts.values() for text in column}
    if not flags or not flags <= {"true", "false"}:
        return None
    chosen = {
        part: [name for name, flag in zip(columns[""], column, strict=True) if flag.lower() == "true"]
        for part, column in parts.items()
    }
    return _Found("CLAM boolean splits", "slide ids beside true and false", (_fold(path.name, chosen),), (path,))


def _part_columns(path: Path, columns: Columns) -> _Found | None:
    parts = {part: columns[part] for part in PARTS if part in columns}
    if set(columns) - {""} != set(parts) or "train" not in parts or len(parts) < 2:
        return None
    index = columns.get("", [])
    if any(not text.isdecimal() for text in index):  # the descriptor file: classes beside counts
        return None
    layout = "CLAM splits" if "test" in parts else "MCAT/PORPOISE/SurvPath splits"
    because = f"columns {', '.join(parts)} of ids"
    return _Found(layout, because, (_fold(path.name, parts),), (path,))


def _torchmil(path: Path, columns: Columns) -> _Found | None:
    if not set(columns) >= {"bag_name", "split"}:
        return None
    parts = _by_value(path, columns["bag_name"], columns["split"])
    return _Found("torchmil splits", "columns bag_name and split", (_fold(path.name, parts),), (path,))


def _mil_baseline(path: Path, columns: Columns) -> _Found | None:
    parts = {part: columns[f"{part}_slide_path"] for part in PARTS if f"{part}_slide_path" in columns}
    if "train" not in parts or "test" not in parts:
        return None
    return _Found("MIL_BASELINE fold", "columns train_slide_path, …", (_fold(path.name, parts),), (path,))


def _patho_bench(path: Path, columns: Columns) -> _Found | None:
    numbered = sorted((int(name[5:]), name) for name in columns if re.fullmatch(r"fold_\d+", name))
    ids = next((columns[name] for name in ("slide_id", "case_id") if name in columns), None)
    if not numbered or ids is None:
        return None
    folds = tuple(_fold(f"{path.name} {name}", _by_value(path, ids, columns[name])) for _, name in numbered)
    return _Found("Patho-Bench folds", f"columns {numbered[0][1]}, …", folds, (path,))


def _by_value(path: Path, ids: Sequence[str], values: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    unknown = []
    for name, value in zip(ids, values, strict=True):
        part = _OTHER_NAMES.get(value.lower(), value.lower())
        if part in parts:
            parts[part].append(name)
        elif part:
            unknown.append(value)
    if unknown:
        found = first_of(list(dict.fromkeys(unknown)))
        raise DataError(f"{path}: parts are called train, val and test; found {found}: correct the file")
    return parts


# --- JSON and folders ---


def _read_json(path: Path) -> _Found | None:
    tree = _json_tree(path)
    if isinstance(tree, Mapping) and {"train_names", "test_names"} <= set(tree):
        parts = {part: _names(path, tree.get(f"{part}_names", [])) for part in PARTS}
        return _Found("ACMIL split", "keys train_names, …", (_fold(path.name, parts),), (path,))
    entries = tree.get("splits") if isinstance(tree, Mapping) else tree
    if not isinstance(entries, list) or not entries:
        return None
    if not all(isinstance(entry, Mapping) and {"train_patients", "test_patients"} <= set(entry) for entry in entries):
        return None
    folds = [
        _fold(f"{path.name} {number}", {part: _names(path, entry[f"{part}_patients"]) for part in ("train", "test")})
        for number, entry in enumerate(entries)
    ]
    return _Found("STAMP splits", "keys train_patients and test_patients", tuple(folds), (path,))


def _json_tree(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DataError(f"{path}: {size} bytes; a split file may have at most {MAX_JSON_BYTES}")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:200]})") from None


def _names(path: Path, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        raise DataError(f"{path}: expected lists of ids (text or whole numbers); correct the file")
    return [str(value) for value in values]


def _read_fold_folder(folder: Path) -> _Found | None:
    """A fold of MMP or PANTHER: a folder of one table of slides per part."""
    tables = {part: folder / f"{part}.csv" for part in PARTS if (folder / f"{part}.csv").is_file()}
    if not {"train", "test"} <= set(tables):
        return None
    parts = {}
    for part, path in tables.items():
        columns = TableFile.open(path).texts()
        name = next((name for name in ("slide_id", "case_id") if name in columns), None)
        if name is None:
            raise DataError(f"{path}: expected a column slide_id or case_id; it has {first_of(list(columns))}")
        parts[part] = columns[name]
    fold = _fold(folder.name, parts)
    return _Found("MMP/PANTHER fold", "a folder of train.csv and test.csv", (fold,), tuple(tables.values()))
