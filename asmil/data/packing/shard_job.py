"""Writing one shard inside a worker process; reading slides and naming problems, which its other requests do too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.arrays import clip_features, stored_coords, stored_features, stored_instance_labels
from asmil.data.packing.messages import ConvertRequest, PlannedSlide, Problem
from asmil.data.schema import shard_schema
from asmil.data.shards import ShardFile
from asmil.data.sources import FORMATS, ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnknownContentError
from asmil.errors import DataError

__all__ = ["FORMAT_OF_NAME", "ShardJob", "arrays_of", "problem_of", "read_options", "read_slide", "sent_options"]

FORMAT_OF_NAME = {form.name: form for form in FORMATS}


def sent_options(options: ReadOptions) -> dict[str, Any]:
    """Reader options as JSON values."""
    return asdict(options) | {"patches": None if options.patches is None else str(options.patches)}


def read_options(sent: dict[str, Any]) -> ReadOptions:
    """The inverse of `sent_options`."""
    options = ReadOptions(**sent)
    return options if options.patches is None else replace(options, patches=Path(options.patches))


class ShardJob:
    """One shard on its way to the disk.

    Args:
        order: What to write.
        tell: Receives a message after every slide that was read.
    """

    def __init__(self, order: ConvertRequest, tell: Callable[[dict[str, Any]], None]) -> None:
        self._order = order
        self._tell = tell
        self._problems: dict[str, Problem] = {}
        self._clipped: dict[str, int] = {}
        self._opened: tuple[str, Source] | None = None
        schema = shard_schema(order.num_features, order.dtype, order.coord_dtype, order.has_instance_labels)
        self._shard = ShardFile(Path(order.store), order.name, 0, schema)

    def run(self) -> dict[str, Any]:
        """Write every slide that can be, and publish the file unless a slide must be corrected first."""
        try:
            for slide in self._order.slides:
                if slide.header.slide_id not in self._order.skip:
                    self._tell({"slide": slide.header.slide_id, "nbytes": self._store(slide)})
            if self._is_refused or not self._shard.slide_ids:
                self._shard.discard()
                return self._result(None, {})
            info, rows = self._shard.publish()
            return self._result(info.model_dump(), {slide_id: list(row) for slide_id, row in rows.items()})
        except BaseException:
            self._shard.discard()
            raise

    @property
    def _is_refused(self) -> bool:
        return not self._order.skip_bad and any(problem.kind == "content" for problem in self._problems.values())

    def _result(self, info: dict[str, Any] | None, rows: dict[str, list[int]]) -> dict[str, Any]:
        problems = {slide_id: problem.model_dump() for slide_id, problem in self._problems.items()}
        return {"info": info, "rows": rows, "problems": problems, "clipped": self._clipped}

    def _store(self, slide: PlannedSlide) -> int:
        """Read, check and write one slide.

        Returns:
            Bytes it has in its source's dtypes; 0 if it was left out.
        """
        slide_id = slide.header.slide_id
        try:
            bag = read_slide(self._source(slide), SlideHeader(**slide.header.model_dump()))
            nbytes = sum(array.nbytes for array in arrays_of(bag).values())
        except Exception as error:  # as in `answer`
            self._problems[slide_id] = problem_of(error)
            return 0
        try:
            columns = self._columns(slide_id, bag)
        except MemoryError as error:
            self._problems[slide_id] = problem_of(error)
            return nbytes
        except DataError as error:
            reason = str(error).removeprefix(f"slide {slide_id!r}: ")
            self._problems[slide_id] = Problem(kind="content", reason=reason)
            return nbytes
        if not self._is_refused:
            self._shard.append(slide_id, columns)
        return nbytes

    def _source(self, slide: PlannedSlide) -> Source:
        """The opened unit of a slide; the last one is kept, since the slides of a unit follow each other."""
        if self._opened is None or self._opened[0] != slide.path:
            source = FORMAT_OF_NAME[slide.format].open(Path(slide.path), read_options(self._order.read))
            self._opened = (slide.path, source)
        return self._opened[1]

    def _columns(self, slide_id: str, bag: SourceBag) -> dict[str, np.ndarray]:
        features_ND, num_clipped = bag.features_ND, 0
        if self._order.clip:
            features_ND, num_clipped = clip_features(features_ND, self._order.dtype)
        num_instances = len(features_ND)
        columns = {"features": stored_features(slide_id, features_ND, self._order.num_features, self._order.dtype)}
        if bag.coords_N2 is not None and self._order.coord_dtype is not None:
            columns["coords"] = stored_coords(slide_id, bag.coords_N2, num_instances, self._order.coord_dtype)
        if bag.instance_labels_N is not None:
            columns["instance_label"] = stored_instance_labels(slide_id, bag.instance_labels_N, num_instances)
        if num_clipped:
            self._clipped[slide_id] = num_clipped
        return columns


def read_slide(source: Source, header: SlideHeader) -> SourceBag:
    """Read a slide and hold it against its header.

    Raises:
        DataError: It is not what the header promised, or what the reader raises.
    """
    bag = source.read(header.slide_id)
    found = (*bag.features_ND.shape, bag.coords_N2 is not None, bag.instance_labels_N is not None)
    expected = (header.num_instances, header.num_features, header.coords is not None, header.has_instance_labels)
    if found != expected:
        raise DataError(f"its features, coordinates or instance labels are {found}, the plan expects {expected}")
    return bag


def arrays_of(bag: SourceBag) -> dict[str, np.ndarray]:
    """The arrays a bag has, by name."""
    arrays = {"features": bag.features_ND, "coords": bag.coords_N2, "instance_labels": bag.instance_labels_N}
    return {name: array for name, array in arrays.items() if array is not None}


def problem_of(error: Exception) -> Problem:
    """What a reader's exception says about the slide or unit it read."""
    if isinstance(error, UnknownContentError):
        return Problem(kind="unknown", reason=error.found)
    if isinstance(error, MemoryError):
        return Problem(kind="unreadable", reason="reading it takes more memory than --reader-memory allows")
    if isinstance(error, DataError):
        return Problem(kind="content" if isinstance(error, ContentError) else "unreadable", reason=str(error)[:4000])
    text = f"its reader failed ({type(error).__name__}: {error})"[:4000]
    return Problem(kind="unreadable", reason=f"{text}; make or copy it again")
