"""Imported splits as a store keeps them: parts of slide ids, checked when they are made and when they are used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from asmil.config import StrictModel
from asmil.data.labels import first_of
from asmil.errors import DataError, IntegrityError

__all__ = ["PARTS", "BagParts", "GivenFold", "GivenSplits"]

PARTS = ("train", "val", "test")
MAX_BYTES = 256 << 20


class GivenFold(StrictModel):
    """One fold: its name in the source, and the stored slides of its parts; `val` may be empty."""

    name: str
    train: tuple[str, ...] = Field(min_length=1)
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = Field(min_length=1)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


class BagParts(NamedTuple):
    """What an imported fold means for the bags of a cohort, in its order.

    Attributes:
        test: The test part.
        validation: The validation part; empty if the import has none.
        left_out: Bags that are in no part, so neither trained on nor tested.
    """

    test: tuple[str, ...]
    validation: tuple[str, ...]
    left_out: tuple[str, ...]


class GivenSplits(StrictModel):
    """The file of imported splits.

    Attributes:
        layout: Layout of the source.
        files: Hex sha256 of each source file, by name.
        allow_incomplete: Labelled slides may be in no part of a fold.
        folds: The folds, in the order of their files or columns.
    """

    format: Literal["asmil-given-splits/1"] = "asmil-given-splits/1"
    layout: str
    files: dict[str, str]
    allow_incomplete: bool = False
    folds: tuple[GivenFold, ...] = Field(min_length=1)

    @property
    def tests_overlap(self) -> bool:
        """Whether a slide is tested more than once: repeated holdouts rather than cross-validation."""
        tested = list(chain.from_iterable(fold.test for fold in self.folds))
        return len(set(tested)) < len(tested)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return (json.dumps(self.model_dump(mode="json"), ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> GivenSplits:
        """Read the content of the file.

        Args:
            content: All of its bytes.
            source: The file, as named in errors.

        Raises:
            IntegrityError: It is not such a file.
        """
        try:
            if len(content) > MAX_BYTES:
                raise ValueError(f"{len(content)} bytes, expected at most {MAX_BYTES}")
            return cls.model_validate_json(content)
        except (ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:240]
            raise IntegrityError(f"{source}: not a file of imported splits ({reason}); convert again") from None

    def bag_parts(self, number: int, slides: Mapping[str, Collection[str]], source: str) -> BagParts:
        """The parts of one fold in bags.

        Args:
            number: Which fold.
            slides: The stored slides of each bag of the cohort.
            source: The store, as named in errors.

        Raises:
            DataError: The slides of a bag lie in several parts, a bag is in none though the import is complete, or
                no bag of the cohort is in the training or test part.
        """
        fold = self.folds[number]
        where = f"{source}: imported fold {number} ({fold.name})"
        part_of = {slide_id: part for part, slide_ids in fold.parts().items() for slide_id in slide_ids}
        found = {bag_id: {part_of.get(slide_id, "") for slide_id in members} for bag_id, members in slides.items()}
        torn = [f"{bag_id} ({', '.join(sorted(parts - {''}))})" for bag_id, parts in found.items() if len(parts) > 1]
        if torn:
            raise DataError(
                f"{where}: the slides of {len(torn)} bags lie in more than one part, or only some of them in one: "
                f"{first_of(torn)}; use data.bag: slide, or correct the split files and convert again"
            )
        by_part = {
            part: tuple(bag_id for bag_id, parts in found.items() if parts == {part}) for part in (*PARTS, "")
        }  # fmt: skip
        if by_part[""] and not self.allow_incomplete:
            raise DataError(
                f"{where}: {len(by_part[''])} labelled bags are in no part: {first_of(by_part[''])}; remove their "
                "labels, or convert again with complete splits or with --allow-incomplete-splits"
            )
        for part in ("train", "test"):
            if not by_part[part]:
                raise DataError(f"{where}: no labelled bag is in its part {part!r}; correct the labels or the splits")
        return BagParts(by_part["test"], by_part["val"], by_part[""])
