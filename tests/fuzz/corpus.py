"""The seeds and the mutated units: every case follows from a seed and its number, so that it can be made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.data.foreign_units import WRITERS, format_of
from tests.fuzz.mutations import MAX_BYTES, mutate_bytes, span
from tests.fuzz.structure import mutate_structure

__all__ = ["Unit", "fixtures", "mutated", "read_unit", "write_unit"]


@dataclass(frozen=True)
class Unit:
    """A source unit in memory.

    Attributes:
        name: Name of its writer, `<format>` or `<format>, <variant>`.
        target: The unit itself, below the folder it is written to; empty if that folder is the unit.
        files: Content of every file by its path below that folder, the unit's and those beside it.
    """

    name: str
    target: str
    files: Mapping[str, bytes]

    @property
    def format(self) -> str:
        """The format its writer is for."""
        return format_of(self.name)


def read_unit(name: str, root: Path, target: Path) -> Unit:
    """A unit from the disk, with all that lies below its root."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(root)): _timeless(path.read_bytes()) for path in paths}
    return Unit(name, str(target.relative_to(root)), files)


def _timeless(content: bytes) -> bytes:
    """The content without the date in the comment of a MATLAB file, which would make every case another one."""
    comment, found, _ = content[:116].partition(b"Created on: ")
    return (comment + found).ljust(116) + content[116:] if found and content.startswith(b"MATLAB") else content


def write_unit(unit: Unit, root: Path) -> Path:
    """Write a unit into an empty or new folder.

    Returns:
        The path that a reader is given.
    """
    for name, content in unit.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root / unit.target


def fixtures(
    folder: Path, only: str | None = None, writers: Mapping[str, Callable[[Path], Path]] = WRITERS
) -> Sequence[Unit]:
    """The fixture of every format and variant, in the order of their names.

    Args:
        folder: Empty folder to write them to.
        only: A format; None takes all.
        writers: Writer of each fixture.
    """
    units = []
    for position, (name, write) in enumerate(sorted(writers.items())):
        if only is None or only in (name, format_of(name)):
            root = folder / str(position)
            root.mkdir()
            units.append(read_unit(name, root, write(root)))
    return units


def mutated(unit: Unit, others: Sequence[Unit], seed: int, number: int) -> Unit:
    """The unit of one case: one of its files changed by one to four mutations.

    Args:
        unit: The fixture.
        others: Fixtures whose content may be mixed in.
        seed: Seed of the run.
        number: Number of the case.
    """
    rng = Random(f"{seed}:{number}")
    files = dict(unit.files)
    name = rng.choice(sorted(files))
    other = rng.choice(sorted((other := rng.choice(others)).files)), other
    foreign = other[1].files[other[0]]
    kind = rng.random()
    content, is_sound = files[name], True
    if kind < 0.02:
        content = foreign
    elif kind < 0.05:
        content, is_sound = _spliced(rng, content, foreign), False
    elif kind < 0.06 and len(files) > 1:
        del files[name]
        return Unit(unit.name, unit.target, files)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)) if kind >= 0.02 else rng.choice((0, 1))):
        structured = mutate_structure(rng, content, is_sound=is_sound) if rng.random() < 0.6 else None
        content, is_sound = mutate_bytes(rng, content) if structured is None else structured, False
    files[name] = content[:MAX_BYTES]
    return Unit(unit.name, unit.target, files)


def _spliced(rng: Random, content: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    start, stop = span(rng, len(other))
    return content[:at] + rng.choice((other[start:], other[start:stop], other[at:])) + content[at + stop - start :]
