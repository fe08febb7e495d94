"""One vector per slide, as TITAN, PRISM, CHIEF and others give it, is no bag: every tool's file of it is recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from asmil.data.sources import ContentError, ReadOptions, detect
from tests.data.foreign import tiles, write_trident
from tests.data.foreign_hdf5 import write_bare, write_pathforge, write_stamp_vector
from tests.data.foreign_tensor import write_eva, write_slide2vec, write_slideflow, write_tensor

VECTOR_D = np.linspace(-1, 1, 768, dtype="f4")
PLACES_N2 = tiles(5)[1]


def _slide2vec(folder: Path) -> Path:
    unit = write_slide2vec(folder, "s", *tiles(5), meta={"artifact_type": "slide_embeddings", "encoder_name": "prism"})
    write_tensor(unit / "s.pt", torch.from_numpy(VECTOR_D))
    return unit


def _eva(folder: Path) -> Path:
    write_eva(folder, dict.fromkeys(("a", "b"), VECTOR_D[None]))
    return folder


def _file(name: str, write: Callable[[Path], None]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return written


VECTORS: dict[str, Callable[[Path], Path]] = {
    "trident-h5": _file(
        "s.h5", lambda path: write_trident(path, VECTOR_D, PLACES_N2, on_features={"encoder": "titan"})
    ),
    "trident-pt": _file("s.pt", lambda path: write_tensor(path, VECTOR_D)),
    "stamp-h5": _file("s.h5", lambda path: write_stamp_vector(path, VECTOR_D)),
    "pathforge-h5": _file(
        "s.h5", lambda path: write_pathforge(path, PLACES_N2, {"256px_0.5mpp": {"titan": VECTOR_D[None]}})
    ),
    "mmp-h5": _file("s.h5", lambda path: write_bare(path, VECTOR_D)),
    "tensor-pt": _file("s.pt", lambda path: write_tensor(path, torch.from_numpy(VECTOR_D))),
    "mil-baseline-pt": _file("s.pt", lambda path: write_tensor(path, {"feats": torch.from_numpy(VECTOR_D)})),
    "slideflow": _file("s.pt", lambda path: write_slideflow(path, VECTOR_D, None)),
    "npy": _file("s.npy", lambda path: np.save(path, VECTOR_D)),
    "npz": _file("s.npz", lambda path: np.savez(path, features=VECTOR_D)),
    "slide2vec": _slide2vec,
    "eva": _eva,
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_a_slide_is_recognised_and_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    found = detect(VECTORS[name](tmp_path))
    assert found.format.name == name
    with pytest.raises(ContentError, match=r"vector|artifact_type is 'slide_embeddings'") as refused:
        found.format.open(found.path, ReadOptions())
    assert "tile" in str(refused.value) or "patch features" in str(refused.value)
