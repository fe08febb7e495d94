"""The first pass over the sources: what every unit is and what it says about itself, before features are read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from asmil.data.labels import first_of
from asmil.data.packing.messages import Opened, Problem, checked
from asmil.data.packing.pool import WorkerPool
from asmil.data.packing.process import ReaderDied, Worker
from asmil.data.packing.progress import HalfMinutes
from asmil.data.packing.shard_job import FORMAT_OF_NAME
from asmil.data.packing.walk import FoundUnits, find_units
from asmil.data.sources import known_layouts
from asmil.errors import DataError, EnvironmentProblem

__all__ = ["Scan", "Unit", "fingerprint", "refuse_unused_options", "scan_sources"]


@dataclass(frozen=True)
class Unit:
    """A unit that could be opened."""

    path: Path
    opened: Opened


@dataclass(frozen=True)
class Scan:
    """What the sources hold.

    Attributes:
        units: Units of one format, in source order.
        problems: Units that could not be opened, by path.
        ignored: Files that are left alone.
        fingerprints: Size and time of everything that is read, by path.
    """

    units: tuple[Unit, ...]
    problems: Mapping[Path, Problem]
    ignored: tuple[Path, ...]
    fingerprints: Mapping[str, str]

    @property
    def format(self) -> str:
        """Name of the format of all units."""
        return self.units[0].opened.format


def scan_sources(
    sources: Sequence[Path], read: Mapping[str, Any], pool: WorkerPool, say: Callable[[str], None]
) -> Scan:
    """Find and open the units of the sources.

    Args:
        sources: Files and folders.
        read: Options of the readers, as `sent_options` gives them.
        pool: Processes that open them.
        say: Receives a line every half minute.

    Raises:
        DataError: Nothing can be converted, the sources mix formats, or theirs has no use for an option.
    """
    pause = HalfMinutes()
    found = _find(sources, pool)
    units, problems = _open_all(found.units, read, pool, say, pause)
    names = {unit.opened.format for unit in units}
    companions = {path for path in found.sidecars if _is_companion(path, names)}
    others = [path for path in found.sidecars if path not in companions]
    more, more_problems = _open_all(others, read, pool, say, pause)
    order = {path: position for position, path in enumerate([*found.units, *others])}
    units = sorted([*units, *more], key=lambda unit: order[unit.path])
    problems |= more_problems
    if not units:
        raise DataError(_nothing_opened(problems))
    _refuse_mixture(units)
    refuse_unused_options(units[0].opened.format, read)
    foreign = _foreign(problems, units, found)
    read_paths = [*order, *companions]
    return Scan(
        units=tuple(units),
        problems={path: problems[path] for path in sorted(problems, key=order.__getitem__) if path not in foreign},
        ignored=(*found.ignored, *sorted(companions), *sorted(foreign)),
        fingerprints={str(path): fingerprint(path) for path in read_paths if path not in foreign}
        | ({read["patches"]: fingerprint(Path(read["patches"]))} if read.get("patches") else {}),
    )


def refuse_unused_options(format_name: str, read: Mapping[str, Any]) -> None:
    """Refuse options that the readers of a format would ignore.

    Args:
        format_name: The format of the sources.
        read: Options of the readers, as `sent_options` gives them.

    Raises:
        DataError: An option is given that the format does not declare.
    """
    given = [name for name, value in read.items() if value is not None and value is not False]
    unused = [name for name in given if name not in FORMAT_OF_NAME[format_name].options]
    if not unused:
        return
    clauses = []
    for name in unused:
        others = ", ".join(form.name for form in FORMAT_OF_NAME.values() if name in form.options)
        clauses.append(f"--{name.replace('_', '-')}: {format_name} files have no use for it; formats that do: {others}")
    advice = "leave it out" if len(unused) == 1 else "leave them out"
    if "drop_last_column" in unused:
        advice += ", and if the last column is a label, remove it from the files first"
    raise DataError(f"{'; '.join(clauses)}; {advice}")


def fingerprint(path: Path) -> str:
    """Size and time of a file, or of all files below a folder; `absent` if there is nothing."""
    try:
        if not path.is_dir():
            status = path.stat()
            return f"{status.st_size} bytes, mtime {status.st_mtime_ns}"
        lines = []
        for folder, _, names in os.walk(path):
            lines += [f"{folder}/{name}\t{fingerprint(Path(folder, name))}" for name in names]
        return f"{len(lines)} files, {hashlib.sha256(os.fsencode(chr(10).join(sorted(lines)))).hexdigest()[:16]}"
    except OSError:
        return "absent"


def _find(sources: Sequence[Path], pool: WorkerPool) -> FoundUnits:
    if not any(form.unit == "folder" for form in FORMAT_OF_NAME.values()):
        return find_units(sources, lambda _: False)

    def is_folder_unit(folder: Path) -> bool:
        [(_, answer)] = pool.run(lambda worker, path: _is_unit(worker, path, pool), [folder], lambda: None)
        return answer

    return find_units(sources, is_folder_unit)


def _is_unit(worker: Worker, folder: Path, pool: WorkerPool) -> bool:
    try:
        return worker.request({"task": "discover", "path": str(folder)}).get("is_unit") is not False
    except ReaderDied:
        if pool.is_closing:
            raise
        return True  # opening it will fail as well, and be reported


def _open_all(
    paths: Sequence[Path], read: Mapping[str, Any], pool: WorkerPool, say: Callable[[str], None], pause: HalfMinutes
) -> tuple[list[Unit], dict[Path, Problem]]:
    units: dict[int, Unit] = {}
    problems: dict[Path, Problem] = {}

    def tick() -> None:
        if pause.passed():
            say(f"looked into {len(units) + len(problems)} of {len(paths)} files")

    for position, result in pool.run(lambda worker, path: _open(worker, path, read, pool), paths, tick):
        if isinstance(result, Problem):
            problems[paths[position]] = result
        else:
            units[position] = Unit(paths[position], result)
    return [units[position] for position in sorted(units)], problems


def _open(worker: Worker, path: Path, read: Mapping[str, Any], pool: WorkerPool) -> Opened | Problem:
    request = {"task": "open", "path": str(path), "read": dict(read)}
    try:
        try:
            reply = worker.request(request)
        except ReaderDied as death:
            if pool.is_closing or not death.may_be_chance:
                raise
            reply = worker.request(request)
    except ReaderDied as death:
        if pool.is_closing:
            raise
        return Problem(kind="unreadable", reason=death.reason)
    if reply.get("error") == "memory":
        return Problem(kind="unreadable", reason="looking into it takes more memory than --reader-memory allows")
    if reply.get("error") == "environment":
        raise EnvironmentProblem(str(reply.get("message"))[:4000])
    if reply.get("error") == "problem":
        problem = checked(Problem, reply.get("problem"))
        if problem is not None:
            return problem.model_copy(update={"reason": problem.reason.removeprefix(f"{path}: ")})
    opened = checked(Opened, reply)
    if opened is None or opened.format not in FORMAT_OF_NAME:
        return Problem(kind="unreadable", reason="its reader process sent something that is no reply")
    return opened


def _is_companion(path: Path, formats: set[str]) -> bool:
    return any(fnmatch(path.name, pattern) for name in formats for pattern in FORMAT_OF_NAME[name].sidecars)


def _foreign(problems: Mapping[Path, Problem], units: Sequence[Unit], found: FoundUnits) -> set[Path]:
    """Unknown files of a searched folder that have another suffix than every unit, such as a table beside slides."""
    suffixes = {unit.path.suffix.lower() for unit in units}
    return {
        path
        for path, problem in problems.items()
        if problem.kind == "unknown" and path not in found.given and path.suffix.lower() not in suffixes
    }


def _nothing_opened(problems: Mapping[Path, Problem]) -> str:
    path, first = next(iter(sorted(problems.items())))
    known = f". {known_layouts()}" if first.kind == "unknown" else ""
    if len(problems) == 1:
        return f"{_with_path(path, first.reason)}{known}"
    same = Counter(problem.kind for problem in problems.values())
    others = first_of([str(item) for item in sorted(problems)][1:], limit=5)
    counts = ", ".join(f"{count} {kind}" for kind, count in same.most_common())
    shown = f"{_with_path(path, first.reason)}{known}; also {others}"
    return f"none of {len(problems)} files can be converted ({counts}): {shown}"


def _with_path(path: Path, reason: str) -> str:
    return reason if reason.startswith(str(path)) else f"{path}: {reason}"


def _refuse_mixture(units: Sequence[Unit]) -> None:
    by_format: dict[str, list[Path]] = {}
    for unit in units:
        by_format.setdefault(unit.opened.format, []).append(unit.path)
    if len(by_format) == 1:
        return
    lines = []
    for name, paths in by_format.items():
        folders = list(dict.fromkeys(str(path.parent) for path in paths))
        lines.append(f"{len(paths)} x {name} in {first_of(folders, limit=4)} (such as {paths[0].name})")
    raise DataError(
        f"the sources mix {len(by_format)} formats: {'; '.join(lines)}; a store is made from one format: give the "
        "folder of one of them, and convert the others to separate stores"
    )
