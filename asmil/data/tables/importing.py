"""From the ids of foreign splits to parts of stored slides, refused unless they are disjoint, whole and complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from asmil.data.labels import first_of
from asmil.data.tables.foreign_splits import ForeignSplits
from asmil.data.tables.given import PARTS, GivenFold, GivenSplits
from asmil.data.tables.names import SlideNames
from asmil.errors import DataError

__all__ = ["StoredSlides", "import_splits"]


@dataclass(frozen=True)
class StoredSlides:
    """What splits may speak of.

    Attributes:
        slide_ids: The stored slides, in store order.
        groups: Patient of each labelled slide; None where it has none. Without labels, all stored slides.
        no_tissue: Slides that are not stored because they hold nothing.
    """

    slide_ids: Sequence[str]
    groups: Mapping[str, str | None]
    no_tissue: Collection[str] = ()


def import_splits(
    foreign: ForeignSplits, slides: StoredSlides, *, allow_incomplete: bool, say: Callable[[str], None]
) -> GivenSplits:
    """Match foreign splits with the stored slides and check them.

    Args:
        foreign: What was read.
        slides: What is stored and labelled.
        allow_incomplete: Labelled slides may be in no part of a fold.
        say: Receives every finding, one line each.

    Raises:
        DataError: Ids are ambiguous or none is known, parts overlap or are empty, a patient is in two parts, or
            labelled slides are in none.
    """
    say(f"splits: {len(foreign.folds)} folds of {foreign.layout}, because of {foreign.because}")
    for note in foreign.notes:
        say(note)
    meaning = _meaning_of_ids(foreign, slides, say)
    order = {slide_id: position for position, slide_id in enumerate(slides.slide_ids)}
    folds, problems = [], []
    for fold in foreign.folds:
        parts = {
            part: sorted({slide_id for name in names for slide_id in meaning[name]}, key=order.__getitem__)
            for part, names in fold.parts.items()
        }
        problems += [f"{fold.name}: {problem}" for problem in _problems(parts, slides, allow_incomplete)]
        missing = _missing(parts, slides)
        if missing and allow_incomplete:
            say(f"{fold.name}: {len(missing)} labelled slides are in no part: {first_of(missing)}")
        if not problems:
            folds.append(GivenFold(name=fold.name, **{part: tuple(ids) for part, ids in parts.items()}))
    if problems:
        raise DataError(f"the splits cannot be used: {'; '.join(problems[:10])}; correct the split files")
    given = GivenSplits(
        layout=foreign.layout, files=dict(foreign.files), allow_incomplete=allow_incomplete, folds=tuple(folds)
    )
    say(_kind_of_folds(given, slides))
    return given


def _meaning_of_ids(
    foreign: ForeignSplits, slides: StoredSlides, say: Callable[[str], None]
) -> dict[str, tuple[str, ...]]:
    """The stored slides that each id of the splits stands for: one slide, or those of a patient."""
    names = list(dict.fromkeys(name for fold in foreign.folds for ids in fold.parts.values() for name in ids))
    known = SlideNames((*slides.slide_ids, *slides.no_tissue))
    as_slides = {name: known.named_by(name) for name in names if known.named_by(name)}
    patients: dict[str, list[str]] = {}
    for slide_id, group in slides.groups.items():
        if group is not None:
            patients.setdefault(group, []).append(slide_id)
    as_patients = {name: tuple(patients[name]) for name in names if name in patients}
    if not as_slides and not as_patients:
        raise DataError(
            f"no id of the splits ({first_of(names, limit=3)}) is a stored slide "
            f"({first_of(slides.slide_ids, limit=3)}) or a patient of the label table; check --group-column, or give "
            "the splits of this data set"
        )
    by_patient = len(as_patients) > len(as_slides)
    found = as_patients if by_patient else as_slides
    _refuse_ambiguity(found, as_patients, by_patient, equally_many=len(as_patients) == len(as_slides))
    what = "patients" if by_patient else "slides"
    say(f"{len(found)} of {len(names)} ids of the splits are {what} here ({100 * len(found) / len(names):.1f} %)")
    unknown = [name for name in names if name not in found]
    if unknown:
        say(f"{len(unknown)} ids of the splits have no {what[:-1]} here: {first_of(unknown)}")
    stored = set(slides.slide_ids)
    return {name: tuple(slide_id for slide_id in found.get(name, ()) if slide_id in stored) for name in names}


def _refuse_ambiguity(
    found: Mapping[str, tuple[str, ...]],
    as_patients: Mapping[str, tuple[str, ...]],
    by_patient: bool,
    *,
    equally_many: bool,
) -> None:
    ambiguous = [f"{name} (slides {', '.join(ids)})" for name, ids in found.items() if len(ids) > 1 and not by_patient]
    if equally_many:
        both = [name for name, ids in found.items() if set(as_patients.get(name, ids)) != set(ids)]
        ambiguous += [f"{name} (a slide, or a patient of {len(as_patients[name])} slides)" for name in both]
    if ambiguous:
        raise DataError(
            f"{len(ambiguous)} ids of the splits are ambiguous: {first_of(ambiguous)}; write slide ids in full"
        )


def _problems(parts: Mapping[str, Sequence[str]], slides: StoredSlides, allow_incomplete: bool) -> Iterator[str]:
    for part in ("train", "test"):
        if not parts.get(part):
            yield f"part {part!r} holds no stored slide"
    shared = _in_two_parts({slide_id: slide_id for slide_id in slides.slide_ids}, parts)
    if shared:
        yield f"{len(shared)} slides are in two parts: {first_of(shared)}"
    torn = _in_two_parts(slides.groups, parts)
    if torn and not shared:
        yield f"{len(torn)} patients have slides in two parts: {first_of(torn)}"
    missing = _missing(parts, slides)
    if missing and not allow_incomplete:
        yield (
            f"{len(missing)} labelled slides are in no part: {first_of(missing)} (--allow-incomplete-splits leaves "
            "them out)"
        )


def _in_two_parts(owner: Mapping[str, str | None], parts: Mapping[str, Sequence[str]]) -> list[str]:
    found: dict[str, set[str]] = {}
    for part, slide_ids in parts.items():
        for slide_id in slide_ids:
            if (name := owner.get(slide_id)) is not None:
                found.setdefault(name, set()).add(part)
    return [f"{name} ({', '.join(p for p in PARTS if p in where)})" for name, where in found.items() if len(where) > 1]


def _missing(parts: Mapping[str, Sequence[str]], slides: StoredSlides) -> list[str]:
    assigned = set(chain.from_iterable(parts.values()))
    return [slide_id for slide_id in slides.groups if slide_id not in assigned]


def _kind_of_folds(given: GivenSplits, slides: StoredSlides) -> str:
    tested = {slide_id for fold in given.folds for slide_id in fold.test}
    share = f"{len(tested & set(slides.groups))} of {len(slides.groups)} labelled slides"
    if len(given.folds) == 1:
        return f"one holdout split, testing {share}"
    if given.tests_overlap:
        return f"test parts overlap: {len(given.folds)} repeated holdouts (repeats of one fold), testing {share}"
    return f"test parts are disjoint: {len(given.folds)}-fold cross-validation, testing {share} once"
