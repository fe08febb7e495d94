"""What formats share whose unit is a folder of many bags: a bag that cannot be opened must not hide the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from asmil.data.sources.base import ContentError, SlideHeader, SourceBag
from asmil.errors import DataError

__all__ = ["BagHeaders", "bag_headers", "first_readable", "inside"]

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class BagHeaders:
    """What is known of the bags of a folder.

    Attributes:
        slides: Headers of the bags that have instances. A bag whose files cannot be opened is among them, with one
            instance and otherwise the header of another bag: reading it raises why, so it is reported as one bag.
        no_tissue: Bags without instances.
        problems: Why a bag cannot be opened, by its id.
    """

    slides: tuple[SlideHeader, ...]
    no_tissue: tuple[str, ...]
    problems: dict[str, DataError]

    def guarded(self, read: Callable[[str], SourceBag]) -> Callable[[str], SourceBag]:
        """The same reader, raising what is in `problems`."""

        def read_or_raise(slide_id: str) -> SourceBag:
            if slide_id in self.problems:
                raise self.problems[slide_id]
            return read(slide_id)

        return read_or_raise


def bag_headers(bags: Iterable[str], header_of: Callable[[str], SlideHeader | None]) -> BagHeaders:
    """Look into every bag.

    Args:
        bags: Ids, in the order of the store.
        header_of: Opens a bag; None for one without instances.

    Raises:
        DataError: No bag can be opened.
    """
    headers: dict[str, SlideHeader | None] = {}
    problems: dict[str, DataError] = {}
    for bag in bags:
        try:
            headers[bag] = header_of(bag)
        except DataError as problem:
            headers[bag], problems[bag] = None, problem
    known = [header for header in headers.values() if header is not None]
    if problems and not known:
        raise next(iter(problems.values()))
    headers |= {bag: replace(known[0], slide_id=bag, num_instances=1) for bag in problems}
    return BagHeaders(
        slides=tuple(header for header in headers.values() if header is not None),
        no_tissue=tuple(bag for bag, header in headers.items() if header is None),
        problems=problems,
    )


def first_readable(bags: Iterable[str], look: Callable[[str], _Found]) -> _Found:
    """What `look` finds in the first bag that it can open.

    Args:
        bags: At least one id.
        look: Opens a bag.

    Raises:
        DataError: No bag can be opened; the problem of the first one.
    """
    problems: list[DataError] = []
    for bag in bags:
        try:
            return look(bag)
        except DataError as problem:
            problems.append(problem)
    raise problems[0]


def inside(folder: Path, name: str, where: str) -> Path:
    """The file that a table names by its path below a folder.

    Args:
        folder: The folder.
        name: Relative path, as written in the table.
        where: Table and row, for the message.

    Raises:
        ContentError: The path is absolute or leads out of the folder.
    """
    relative = PurePosixPath(name)
    if "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ContentError(f"{where}: {name[:200]!r} leads out of the folder; expected a path below it")
    return folder / relative
