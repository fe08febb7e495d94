"""Readers of feature files that other tools wrote: `formats.FORMATS` is the list, `base` what each of them offers."""

from __future__ import annotations

from asmil.data.sources.base import ReadOptions, SlideHeader, Source, SourceBag, SourceFormat
from asmil.data.sources.discover import Detected, FoundFiles, detect, find_files
from asmil.data.sources.formats import FORMATS

__all__ = [
    "FORMATS",
    "Detected",
    "FoundFiles",
    "ReadOptions",
    "SlideHeader",
    "Source",
    "SourceBag",
    "SourceFormat",
    "detect",
    "find_files",
]
