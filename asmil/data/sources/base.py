"""What every reader of a foreign feature format offers, and the records it hands to `asmil.data.pack`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype

__all__ = ["ReadOptions", "Reading", "SourceBag", "SourceFormat"]


@dataclass(frozen=True)
class SourceBag:
    """One bag as its source holds it.

    Attributes:
        bag_id: Slide or bag id.
        features_ND: Numeric features, row by row, in the dtype of the source.
        coords_N2: Coordinates of the instances, where the source has them.
        labels: Label columns the source carries, by name.
    """

    bag_id: str
    features_ND: np.ndarray
    coords_N2: np.ndarray | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadOptions:
    """What a user tells the readers beyond the path.

    Attributes:
        drop_last_column: The last feature column is the label: drop it.
        patches: CLAM's folder of coordinate files, which alone know patch size and level.
    """

    drop_last_column: bool = False
    patches: Path | None = None


@dataclass(frozen=True)
class Reading:
    """The content of one source file.

    Attributes:
        bags: Bags in file order; lazy where they are large, and readable once.
        facts: What the file says about its features.
        no_tissue: Slides for which the file holds no instance, on purpose; they are listed and left out of the store.
        notes: Findings the user should see, one line each.
    """

    bags: Iterable[SourceBag]
    facts: DatasetFacts = field(default_factory=DatasetFacts)
    no_tissue: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class SourceFormat(Protocol):
    """A foreign format. Stateless: one instance serves any number of files.

    Attributes:
        name: Short name, as printed and stored in the provenance.
        layout: What a file of this format looks like, for the message that lists the known formats.
        dtype: Dtype a store of it gets unless the user says otherwise.
    """

    name: str
    layout: str
    dtype: FeatureDtype

    def detect(self, path: Path) -> str | None:
        """Decide by content, never by file name.

        Returns:
            What was found that makes the file one of this format; None if it is not.

        Raises:
            DataError: The file has this format's keys but may not be read (external links, impossible sizes).
        """
        ...

    def read(self, path: Path, options: ReadOptions) -> Reading:
        """Read a file that `detect` accepted.

        Raises:
            DataError: The content breaks a rule of the format; raised here or while the bags are consumed.
        """
        ...
