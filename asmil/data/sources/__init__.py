"""Readers of feature files that other tools wrote: `formats.FORMATS` is the list, `base` what each of them offers."""

from __future__ import annotations

from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, SourceFormat
from asmil.data.sources.discover import Detected, UnknownContentError, detect, known_layouts
from asmil.data.sources.formats import FORMATS

__all__ = [
    "FORMATS",
    "ContentError",
    "Detected",
    "ReadOptions",
    "SlideHeader",
    "Source",
    "SourceBag",
    "SourceFormat",
    "UnknownContentError",
    "detect",
    "known_layouts",
]
