"""From the headers of all slides to the shards of a store: what agrees, what is left out, what goes where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asmil.data.labels import first_of
from asmil.data.packing.messages import Header, PlannedSlide, Problem
from asmil.data.packing.scan import Scan, Unit
from asmil.data.schema import (
    COORD_DTYPES,
    FEATURE_DTYPES,
    SHARD_FOLDER,
    CoordDtype,
    DatasetFacts,
    FeatureDtype,
    check_slide_id,
)
from asmil.errors import DataError

__all__ = ["Plan", "PlannedShard", "make_plan", "merge_facts", "usual_shard_bytes"]

FACT_FIELDS = ("encoder", "magnification", "mpp", "tile_size", "coord_unit", "coord_origin")


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written.

    Attributes:
        name: File name below the store.
        slides: Its slides, in order.
        nbytes: Bytes of their arrays in the store's dtypes.
        key: Hash of everything its content depends on.
    """

    name: str
    slides: tuple[PlannedSlide, ...]
    nbytes: int
    key: str

    @property
    def num_values(self) -> int:
        """Number of feature values."""
        return sum(slide.header.num_instances * slide.header.num_features for slide in self.slides)


@dataclass(frozen=True)
class Plan:
    """A store to be written.

    Attributes:
        shards: The shards to be written.
        num_features: Width D.
        dtype: Dtype of the features.
        coord_dtype: Dtype of the coordinates; None if there are none.
        has_instance_labels: Whether every slide carries a truth per instance.
        facts: What the units and the user say about the features.
        no_tissue: Slides that are left out because they hold nothing.
        problems: Slides and units that are not in the shards, by slide id or path.
        read: Options of the readers, as `sent_options` gives them.
    """

    shards: tuple[PlannedShard, ...]
    num_features: int
    dtype: FeatureDtype
    coord_dtype: CoordDtype | None
    has_instance_labels: bool
    facts: DatasetFacts
    no_tissue: tuple[str, ...]
    problems: Mapping[str, Problem]
    read: Mapping[str, Any]

    @property
    def slides(self) -> list[PlannedSlide]:
        """All planned slides, in store order."""
        return [slide for shard in self.shards for slide in shard.slides]


def make_plan(
    scan: Scan,
    *,
    dtype: FeatureDtype | None,
    given_facts: Mapping[str, Any],
    read: Mapping[str, Any],
    shard_bytes: int | None,
    skip_bad: bool,
) -> Plan:
    """Decide what goes into which shard; a pure function of what the scan found.

    Args:
        scan: The opened sources.
        dtype: Dtype of the store; None takes that of the format.
        given_facts: What the user says about the features.
        read: Options of the readers.
        shard_bytes: A shard closes after the slide that crosses this size; None takes `usual_shard_bytes`.
        skip_bad: Leave slides with bad ids out instead of refusing them.

    Raises:
        DataError: Ids that are bad or given twice, facts or widths that contradict each other, or nothing to write.
    """
    dtype = dtype or scan.units[0].opened.dtype
    problems = {str(path): problem for path, problem in scan.problems.items()}
    facts = merge_facts(scan.units, given_facts)
    slides = [
        PlannedSlide(path=str(unit.path), format=unit.opened.format, header=header)
        for unit in scan.units
        for header in unit.opened.slides
    ]
    no_tissue = tuple(slide_id for unit in scan.units for slide_id in unit.opened.no_tissue)
    slides = _usable(slides, no_tissue, problems, skip_bad=skip_bad)
    if not slides and not problems:
        first = first_of(no_tissue, limit=5)
        raise DataError(f"none of the sources holds a slide with tissue ({first}); there is nothing to convert")
    if not slides:
        path, problem = next(iter(problems.items()))
        raise DataError(f"no slide can be converted; the first of {len(problems)}: {path}: {problem.reason}")
    common = _common(slides)
    settings = [dtype, dict(read)]
    size = shard_bytes or usual_shard_bytes(sum(_stored_bytes(slide.header, dtype) for slide in slides))
    return Plan(
        shards=_shards(slides, dtype, size, settings, scan.fingerprints),
        num_features=common.num_features,
        dtype=dtype,
        coord_dtype=common.coords,
        has_instance_labels=common.has_instance_labels,
        facts=facts,
        no_tissue=no_tissue,
        problems=problems,
        read=read,
    )


def usual_shard_bytes(store_bytes: int) -> int:
    """A sixteenth of the store, so that several processes have work on a small one, but 64 to 512 MiB.

    Example:
        >>> [usual_shard_bytes(gib << 30) >> 20 for gib in (0, 1, 4, 8, 500)]
        [64, 64, 256, 512, 512]
    """
    return min(max(store_bytes // 16, 64 << 20), 512 << 20)


def merge_facts(units: Sequence[Unit], given: Mapping[str, Any]) -> DatasetFacts:
    """The facts of all units; a value that is known twice must be the same.

    Raises:
        DataError: Two units, or a unit and the user, contradict each other.
    """
    merged: dict[str, tuple[Any, str]] = {
        name: (value, f"--{name.replace('_', '-')}") for name, value in given.items() if value is not None
    }
    for unit in units:
        facts = unit.opened.facts
        stated = {name: getattr(facts, name) for name in FACT_FIELDS} | facts.facts
        for name, value in stated.items():
            if value is None:
                continue
            known, source = merged.setdefault(name, (value, str(unit.path)))
            if known != value:
                raise DataError(
                    f"{unit.path}: {name} is {value!r}, but {source} says {known!r}; a store holds features of one "
                    "encoder at one resolution: convert them to separate stores"
                )
    values = {name: value for name, (value, _) in merged.items()}
    extra = {name: value for name, value in values.items() if name not in FACT_FIELDS}
    return DatasetFacts(**{name: value for name, value in values.items() if name in FACT_FIELDS}, facts=extra)


def _usable(
    slides: Sequence[PlannedSlide], no_tissue: Sequence[str], problems: dict[str, Problem], *, skip_bad: bool
) -> list[PlannedSlide]:
    """The slides that can be stored by their ids and widths; zero widths are added to the problems."""
    _refuse_repeated(slides)
    bad = {slide.header.slide_id: problem for slide in slides if (problem := _id_problem(slide.header)) is not None}
    bad_without_tissue = [slide_id for slide_id in no_tissue if _breaks_rule(slide_id)]
    if (bad or bad_without_tissue) and not skip_bad:
        ids = first_of([repr(slide_id[:160]) for slide_id in [*bad, *bad_without_tissue]], limit=50)
        raise DataError(
            f"{len(bad) + len(bad_without_tissue)} bad slide ids: {ids}; allowed are 1 to 128 ASCII letters, digits "
            "and . _ + -, the first a letter or digit: rename the slides in the source and in the label table, or "
            "leave them out with --skip-bad"
        )
    for slide in slides:
        if slide.header.num_features == 0:
            bad[slide.header.slide_id] = Problem(kind="content", reason="its features have 0 columns; extract it again")
    problems |= bad
    return [slide for slide in slides if slide.header.slide_id not in bad]


def _id_problem(header: Header) -> Problem | None:
    return Problem(kind="content", reason="its id breaks the rule for ids") if _breaks_rule(header.slide_id) else None


def _breaks_rule(slide_id: str) -> bool:
    try:
        check_slide_id(slide_id)
    except DataError:
        return True
    return False


def _refuse_repeated(slides: Sequence[PlannedSlide]) -> None:
    first: dict[str, str] = {}
    repeated = []
    for slide in slides:
        slide_id = slide.header.slide_id
        if slide_id in first:
            repeated.append(f"{slide_id!r} in {first[slide_id]} and {slide.path}")
        first.setdefault(slide_id, slide.path)
    if repeated:
        raise DataError(
            f"{len(repeated)} slides are given twice; slide ids must be unique in a store: {first_of(repeated)}; give "
            "only one of the files, or convert them to separate stores"
        )


def _common(slides: Sequence[PlannedSlide]) -> Header:
    """The header whose width, coordinates and labels all slides share."""
    groups: dict[tuple[int, CoordDtype | None, bool], list[PlannedSlide]] = {}
    for slide in slides:
        header = slide.header
        groups.setdefault((header.num_features, header.coords, header.has_instance_labels), []).append(slide)
    if len(groups) == 1:
        return slides[0].header
    lines = [
        f"{len(members)} with {width} features, {f'{coords} coordinates' if coords else 'no coordinates'}"
        f"{', instance labels' if labels else ''} (such as {members[0].path}, slide {members[0].header.slide_id})"
        for (width, coords, labels), members in groups.items()
    ]
    raise DataError(
        f"the slides of a store must have the same columns, but there are {'; '.join(lines)}; convert them to separate "
        "stores"
    )


def _shards(
    slides: Sequence[PlannedSlide],
    dtype: FeatureDtype,
    shard_bytes: int,
    settings: Sequence[Any],
    fingerprints: Mapping[str, str],
) -> tuple[PlannedShard, ...]:
    shards: list[PlannedShard] = []
    members: list[PlannedSlide] = []
    nbytes = 0
    for position, slide in enumerate(slides):
        members.append(slide)
        nbytes += _stored_bytes(slide.header, dtype)
        if nbytes >= shard_bytes or position == len(slides) - 1:
            content = [[*settings], [[item.model_dump(), fingerprints.get(item.path)] for item in members]]
            key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            name = f"{SHARD_FOLDER}/part-{len(shards):05d}.arrow"
            shards.append(PlannedShard(name, tuple(members), nbytes, key))
            members, nbytes = [], 0
    return tuple(shards)


def _stored_bytes(header: Header, dtype: FeatureDtype) -> int:
    row = header.num_features * FEATURE_DTYPES[dtype].numpy.itemsize + int(header.has_instance_labels)
    row += 2 * COORD_DTYPES[header.coords].numpy.itemsize if header.coords is not None else 0
    return header.num_instances * row
