"""The list of known foreign formats. A new one is a file of its own and an entry here, which enrols it in the tests."""

from __future__ import annotations

from asmil.data.sources.acmil import AcmilHdf5
from asmil.data.sources.andrews import AndrewsSvm
from asmil.data.sources.andrews_mat import AndrewsMat
from asmil.data.sources.base import SourceFormat
from asmil.data.sources.cell_mat import CellMat
from asmil.data.sources.clam import ClamHdf5
from asmil.data.sources.classic_csv import ClassicCsv
from asmil.data.sources.comma_sparse import CommaSparse
from asmil.data.sources.dsmil import DsmilCsv
from asmil.data.sources.eva import EvaEmbeddings
from asmil.data.sources.histossl import HistoSslNpy
from asmil.data.sources.lazyslide import LazySlideZarr
from asmil.data.sources.marugoto import MarugotoHdf5
from asmil.data.sources.mmp import MmpHdf5
from asmil.data.sources.npy import NumpyArchive, NumpyArray
from asmil.data.sources.npy_triple import NpyTriple
from asmil.data.sources.pathforge import PathForgeHdf5
from asmil.data.sources.prtools import PrtoolsMat
from asmil.data.sources.pt import MilBaselinePt, TensorPt, TridentPt
from asmil.data.sources.slide2vec import Slide2vecTiles
from asmil.data.sources.slideflow import SlideflowBags
from asmil.data.sources.stamp import StampHdf5
from asmil.data.sources.torchmil import TorchmilFolders
from asmil.data.sources.trident import TridentHdf5
from asmil.data.sources.uci import UciC45

__all__ = ["FORMATS"]

FORMATS: tuple[SourceFormat, ...] = (
    UciC45(),
    AndrewsSvm(),
    PrtoolsMat(),
    AndrewsMat(),
    CellMat(),
    ClassicCsv(),
    CommaSparse(),
    NpyTriple(),
    ClamHdf5(),
    TridentHdf5(),
    AcmilHdf5(),
    StampHdf5(),
    MarugotoHdf5(),
    MmpHdf5(),
    PathForgeHdf5(),
    TensorPt(),
    MilBaselinePt(),
    TridentPt(),
    SlideflowBags(),
    TorchmilFolders(),
    EvaEmbeddings(),
    Slide2vecTiles(),
    HistoSslNpy(),
    DsmilCsv(),
    NumpyArray(),
    NumpyArchive(),
    LazySlideZarr(),
)
