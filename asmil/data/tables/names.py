"""Which column of a table names slides, and which slide an id names: exactly or by documented rules, never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

__all__ = ["SlideNames", "bare_name", "find_id_column"]

_FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".csv")
_SLIDE_SUFFIXES = (
    ".ome.tiff", ".ome.tif", ".svs", ".tiff", ".tif", ".ndpi", ".mrxs", ".scn", ".czi", ".bif", ".vms", ".vmu",
    ".svslide", ".isyntax", ".dcm",
)  # fmt: skip


def bare_name(text: str) -> str:
    """The last part of a path without the suffix of a feature file and of a slide file, each cut off whole.

    Example:
        >>> bare_name("features/slide_vs.svs.h5")
        'slide_vs'
    """
    name = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    for suffixes in (_FEATURE_SUFFIXES, _SLIDE_SUFFIXES):
        for suffix in suffixes:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return name


class SlideNames:
    """The slides that ids may name.

    Args:
        slide_ids: The known slides.
    """

    def __init__(self, slide_ids: Iterable[str]) -> None:
        self._known = dict.fromkeys(slide_ids)
        self._by_bare_name: dict[str, list[str]] = {}
        for slide_id in self._known:
            self._by_bare_name.setdefault(bare_name(slide_id), []).append(slide_id)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._known

    def named_by(self, text: str) -> tuple[str, ...]:
        """The slides an id names: itself if it is one, else those of the same bare name; several are ambiguous.

        Example:
            >>> SlideNames(["a", "b"]).named_by("folder/a.svs")
            ('a',)
        """
        if text in self._known:
            return (text,)
        return tuple(self._by_bare_name.get(bare_name(text), ()))


def find_id_column(table: pd.DataFrame, slide_ids: Sequence[str]) -> str | None:
    """The column that holds slide ids: the one in which most of the given slides occur, the first of equals.

    Example:
        >>> find_id_column(pd.DataFrame({"patient": ["a", "a"], "slide": ["a1", "a2"]}), ["a1", "a2", "a3"])
        'slide'
    """
    wanted = set(slide_ids)
    counts = {str(name): len(wanted.intersection(table[name].astype(str))) for name in table.columns}
    best = max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and counts[best] else None
