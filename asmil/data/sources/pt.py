"""Features in `.pt` files, one slide each: CLAM's tensors, MIL_BASELINE's dicts and TRIDENT's NumPy arrays.

None of them has coordinates or says how its features were made. DSMIL's training cache looks like CLAM's files, but has
the label as its last column or columns, the same 0 or 1 on every row. A last column of ones is no feature of any
encoder: it is refused, or dropped with `--drop-last-column`. A last column of zeros may be a dead feature as well as a
label, so it is only mentioned.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.matrices import as_matrix, feature_shape, slide_id_of
from asmil.data.sources.slideflow import belongs_to_slideflow
from asmil.data.sources.torch_files import TORCH_SUFFIXES, TorchContent, read_torch, torch_content
from asmil.errors import DataError

__all__ = ["MilBaselinePt", "TensorPt", "TridentPt"]

_NOTE = (
    "note: .pt files have no coordinates and do not say how their tiles were cut; give --encoder and --mpp to keep it"
)
_FEATURE_KEYS = ("feats", "features")


class TensorPt:
    """Reader of `.pt` files that are one tensor, as CLAM's `pt_files` and PANTHER's `feats_pt`."""

    name = "tensor-pt"
    layout = "CLAM .pt per slide: a tensor [N, D] or [1, N, D]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A bare tensor, without slideflow's files beside it.

        Raises:
            DataError: Also for what `torch.save` wrote and no format reads: it would else go unexplained.
        """
        content = torch_content(path)
        if content is None or belongs_to_slideflow(path):
            return None
        if content.kind == "list":
            raise DataError(
                f"{path}: a list of {len(content.arrays)} tensors, as eva writes them; give the folder with its "
                "manifest.csv, which says what they belong to"
            )
        if content.kind == "dict" and _feature_key(content) is None:
            keys = ", ".join([*content.arrays, *content.others][:6])
            raise DataError(f"{path}: a dict with keys {keys}, expected features under feats or features")
        return f"a .pt file with a tensor {content.arrays['']}" if content.kind == "tensor" else None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name."""
        return _open(path, "", options)


class MilBaselinePt:
    """Reader of MIL_BASELINE's `.pt` files that are a dict."""

    name = "mil-baseline-pt"
    layout = "MIL_BASELINE .pt per slide: a dict with feats or features [N, D] or [1, N, D]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A dict with `feats` or `features`."""
        content = torch_content(path)
        key = None if content is None else _feature_key(content)
        return None if content is None or key is None else f"a .pt file with a dict, {key} {content.arrays[key]}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name."""
        content = torch_content(path)
        key = None if content is None else _feature_key(content)
        assert content is not None, "detect() has seen it"
        assert key is not None, "detect() has seen it"
        others = sorted({*content.arrays, *content.others} - {key})
        return _open(
            path, key, options, *([f"note: not read from the .pt files: {', '.join(others)}"] if others else [])
        )


class TridentPt:
    """Reader of TRIDENT's `.pt` files: `saveas='pt'` pickles a NumPy array, which a plain `torch.load` refuses."""

    name = "trident-pt"
    layout = "TRIDENT .pt per slide: a pickled NumPy array [N, D]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A bare NumPy array."""
        content = torch_content(path)
        is_array = content is not None and content.kind == "array"
        return f"a .pt file with a pickled NumPy array {content.arrays['']}" if content and is_array else None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, or its mention in `no_tissue`."""
        return _open(path, "", options)


def _feature_key(content: TorchContent) -> str | None:
    found = [key for key in _FEATURE_KEYS if content.kind == "dict" and key in content.arrays]
    return found[0] if found else None


def _open(path: Path, key: str, options: ReadOptions, *notes: str) -> Source:
    content = torch_content(path)
    assert content is not None, "detect() has seen it"
    slide_id = slide_id_of(path, *TORCH_SUFFIXES)
    header = content.arrays[key]
    shape = feature_shape(f"{path}: {key or 'the tensor'}", header.shape, header.dtype)
    read = partial(_read, path, key, options.drop_last_column)
    if shape.num_instances == 0:
        return Source((), read, no_tissue=(slide_id,))
    width = shape.num_features - options.drop_last_column
    return Source((SlideHeader(slide_id, shape.num_instances, width),), read, notes=(_NOTE, *notes))


def _read(path: Path, key: str, drop_last_column: bool, slide_id: str) -> SourceBag:
    features_ND = as_matrix(read_torch(path, key)[0])
    if drop_last_column:
        if not _is_label(features_ND[:, -1]):
            raise ContentError(
                f"{path}: --drop-last-column was given, but the last of {features_ND.shape[1]} columns is not 0 or 1 "
                "throughout, so it is no label; leave the option out"
            )
        features_ND = features_ND[:, :-1]
    _refuse_label_columns(path, features_ND)
    return SourceBag(features_ND)


def _is_label(column_N: np.ndarray) -> bool:
    return bool((column_N == column_N[0]).all() and column_N[0] in (0, 1))


def _refuse_label_columns(path: Path, features_ND: np.ndarray) -> None:
    """Refuse a run of constant 0/1 columns at the end that holds a 1; a single row cannot tell."""
    num_rows, width = features_ND.shape
    position = width
    while num_rows > 1 and position > 0 and _is_label(features_ND[:, position - 1]):
        position -= 1
        if features_ND[0, position] == 1:
            raise ContentError(
                f"{path}: column {position + 1} of {width} is 1 on every row: DSMIL's training cache has the label "
                "there, which would leak; convert DSMIL's CSV files instead, or give --drop-last-column if the label "
                "is the last column only"
            )
