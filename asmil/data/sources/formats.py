"""The list of known foreign formats. A new one is a file of its own and an entry here, which enrols it in the tests."""

from __future__ import annotations

from asmil.data.sources.acmil import AcmilHdf5
from asmil.data.sources.andrews import AndrewsSvm
from asmil.data.sources.base import SourceFormat
from asmil.data.sources.clam import ClamHdf5
from asmil.data.sources.prtools import PrtoolsMat
from asmil.data.sources.trident import TridentHdf5
from asmil.data.sources.uci import UciC45

__all__ = ["FORMATS"]

FORMATS: tuple[SourceFormat, ...] = (
    UciC45(),
    AndrewsSvm(),
    PrtoolsMat(),
    ClamHdf5(),
    TridentHdf5(),
    AcmilHdf5(),
)
