"""Which stored slide an id of a table names: exactly, or by documented fallbacks, and never by guessing."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SlideNames", "bare_name"]

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
