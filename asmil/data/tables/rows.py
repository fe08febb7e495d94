"""Which slide each row of a label table is about, and one row for each: for tables that are packed, read or joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from asmil.data.labels import first_of
from asmil.data.tables.names import SlideNames
from asmil.errors import DataError

__all__ = ["SlideRows", "rows_of_slides", "slides_named"]


@dataclass(frozen=True)
class SlideRows:
    """The rows of a label table, at most one of each slide.

    Attributes:
        frame: The rows in their order, index from 0; the id column holds known slide ids where the ids name some, and
            the ids as written elsewhere.
        shortened: Slides whose id was found only without folder and suffix.
        repeated: How many rows were left out because an earlier row is the same in all columns.
    """

    frame: pd.DataFrame
    shortened: tuple[str, ...]
    repeated: int

    def notes(self) -> Iterator[str]:
        """What was done with the rows, one line each; nothing if all ids are exact and no row is repeated."""
        if self.repeated:
            yield f"{self.repeated} rows repeat an earlier row word for word; kept once"
        if self.shortened:
            yield (
                f"{len(self.shortened)} slides have a row that names them with a folder or suffix, such as "
                f"{self.shortened[0]}"
            )


def slides_named(label_ids: Iterable[str], known: SlideNames, source: str) -> list[str | None]:
    """The slide that each id names, exactly or else without folder and suffix; None where it names no known one.

    Raises:
        DataError: Ids that several slides could have.
    """
    label_ids = list(label_ids)
    found = {name: known.named_by(name) for name in dict.fromkeys(label_ids)}
    unclear = [f"{name!r} ({', '.join(slides)})" for name, slides in found.items() if slides[1:]]
    if unclear:
        raise DataError(f"{source}: {len(unclear)} ids could name several slides: {first_of(unclear)}; write them out")
    return [next(iter(found[name]), None) for name in label_ids]


def rows_of_slides(table: pd.DataFrame, id_column: str, known: SlideNames, source: str) -> SlideRows:
    """Give each row the id of the slide it is about; a row that repeats another word for word is left out.

    Args:
        table: Label table whose ids are text.
        id_column: Its column of slide ids.
        known: The slides.
        source: The table, as named in errors.

    Raises:
        DataError: Ids that several slides could have, or several rows of one slide that are not the same.
    """
    repeated_R = table.astype(str).duplicated()
    kept = table[~repeated_R].reset_index(drop=True)
    label_ids = list(kept[id_column])
    slides = slides_named(label_ids, known, source)
    ids = [name if slide is None else slide for name, slide in zip(label_ids, slides, strict=True)]
    _refuse_several(kept, label_ids, ids, source)
    shortened = tuple(slide for slide, name in zip(slides, label_ids, strict=True) if slide not in (None, name))
    frame = kept.assign(**{id_column: pd.Series(ids, dtype=object)})
    return SlideRows(frame, tuple(slide for slide in shortened if slide is not None), int(repeated_R.sum()))


def _refuse_several(rows: pd.DataFrame, label_ids: list[str], ids: list[str], source: str) -> None:
    positions: dict[str, list[int]] = {}
    for position, slide_id in enumerate(ids):
        positions.setdefault(slide_id, []).append(position)
    several = []
    for slide_id, of_slide in positions.items():
        names = list(dict.fromkeys(label_ids[position] for position in of_slide))
        if names[1:]:
            several.append(f"{' and '.join(map(repr, names))} both name slide {slide_id!r}")
        elif of_slide[1:]:
            several.append(f"{slide_id!r} ({_difference(rows.iloc[of_slide])})")
    if several:
        raise DataError(
            f"{source}: {len(several)} slides have more than one row, and the rows differ: {first_of(several)}; keep "
            "one each"
        )


def _difference(rows: pd.DataFrame) -> str:
    """The columns in which rows of one slide differ, each with its values."""
    values = {str(name): list(dict.fromkeys(rows[name].astype(str))) for name in rows.columns}
    return first_of([f"{name}: {' and '.join(texts)}" for name, texts in values.items() if texts[1:]], limit=3)
