"""What every reader of a foreign feature format offers, and the records it hands to `asmil.data.pack`.

Readers run in limited child processes, because foreign files are not trusted: nothing here or in a reader may import
torch, pandas or scipy at the top of a file (import them in the function that needs them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from asmil.data.schema import CoordDtype, DatasetFacts, FeatureDtype
from asmil.errors import DataError

__all__ = [
    "ContentError",
    "LabelValue",
    "ReadOptions",
    "SlideHeader",
    "Source",
    "SourceBag",
    "SourceFormat",
    "UnitKind",
]

LabelValue = int | float | str
UnitKind = Literal["file", "folder"]


class ContentError(DataError):
    """A unit is intact but its content cannot be right, such as coordinates that are fewer than the features.

    Whoever made the file has to correct it: a conversion ends with an error that lists all of these. Any other
    `DataError` of a reader means a unit that cannot be read: it is left out and listed.
    """


@dataclass(frozen=True)
class SlideHeader:
    """What is known of a slide (or bag) before its features are read; the shards are planned from it.

    Attributes:
        slide_id: Slide or bag id.
        num_instances: Rows N that `Source.read` will give, at least 1.
        num_features: Width D.
        coords: Dtype in which its coordinates will be stored (`arrays.coord_dtype_of`); None if it has none.
        has_instance_labels: Whether it carries a truth per instance.
    """

    slide_id: str
    num_instances: int
    num_features: int
    coords: CoordDtype | None = None
    has_instance_labels: bool = False


@dataclass(frozen=True)
class SourceBag:
    """The arrays of one slide (or bag) as its source holds them.

    Attributes:
        features_ND: Features, row by row, in the floating dtype of the source.
        coords_N2: Coordinates of the instances, where the source has them.
        instance_labels_N: Truth per instance, where the source has it.
    """

    features_ND: np.ndarray
    coords_N2: np.ndarray | None = None
    instance_labels_N: np.ndarray | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a user tells the readers beyond the path.

    Attributes:
        drop_last_column: The last feature column is the label: drop it.
        patches: CLAM's folder of coordinate files, which alone know patch size and level.
        keep_augmented: Keep the augmented rows of a marugoto file.
        features: Which of several feature sets of a file to read, by its name in the file.
    """

    drop_last_column: bool = False
    patches: Path | None = None
    keep_augmented: bool = False
    features: str | None = None


@dataclass(frozen=True)
class Source:
    """The content of one source unit: a file, or a folder of a format that spreads a data set over several files.

    Attributes:
        slides: Its slides that have instances, in the order of the unit.
        read: Reads the slide of that id. May be called in any order and more than once; raises `DataError` if the
            content breaks a rule of the format.
        facts: What the unit says about its features.
        no_tissue: Slides for which the unit holds no instance, on purpose; they are listed and left out of the store.
        labels: Label columns the unit carries, by slide id and column.
        notes: Findings the user should see, one line each.
    """

    slides: tuple[SlideHeader, ...]
    read: Callable[[str], SourceBag]
    facts: DatasetFacts = field(default_factory=DatasetFacts)
    no_tissue: tuple[str, ...] = ()
    labels: Mapping[str, Mapping[str, LabelValue]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SourceFormat(Protocol):
    """A foreign format. Stateless: one instance serves any number of units.

    Attributes:
        name: Short name, as printed and stored in the provenance.
        layout: What a unit of this format looks like, for the message that lists the known formats.
        dtype: Dtype a store of it gets unless the user says otherwise.
        unit: Whether `detect` and `open` are given a file or a folder.
        sidecars: Name patterns (`fnmatch`) of files that lie among the units and belong to them, so are no units.
        options: Fields of `ReadOptions` that `open` looks at; a conversion refuses any other that is given.
    """

    name: str
    layout: str
    dtype: FeatureDtype
    unit: UnitKind
    sidecars: tuple[str, ...]
    options: frozenset[str]

    def detect(self, path: Path) -> str | None:
        """Decide by content (keys, dtypes, rank), never by file name. Formats exclude each other.

        Returns:
            What was found that makes the unit one of this format; None if it is not.

        Raises:
            DataError: The unit has this format's keys but may not be read (external links, impossible sizes).
        """
        ...

    def open(self, path: Path, options: ReadOptions) -> Source:
        """Look into a unit that `detect` accepted, without reading features where that can be avoided.

        Raises:
            DataError: The content breaks a rule of the format.
        """
        ...
