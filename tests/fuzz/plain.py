"""Plain readings of the foreign formats with h5py, NumPy, torch and SciPy alone, to compare the readers' with.

Nothing of `asmil` is used. Each reading yields the slide id (None where the file name alone gives it), a function that
reads its arrays, and the label or a function for it (None where the format has none). What a format leaves out, these
leave out too.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xxhash

from tests.fuzz.child import serve
from tests.fuzz.plain_classic import CLASSIC

__all__ = ["PLAIN"]

Arrays = Mapping[str, np.ndarray]
Slide = tuple[str | None, Callable[[], Arrays], Any]


# --- HDF5 ---


def _whole(dataset: Any) -> np.ndarray:
    """What h5py reads, unless a chunk is shorter than it must be: then it reads what happens to lie in memory."""
    sizes = {dataset.id.get_chunk_info(number).size for number in range(dataset.id.get_num_chunks())}
    if dataset.compression is None and sizes != {math.prod(dataset.chunks) * dataset.id.get_type().get_size()}:
        raise ValueError("a chunk is not stored whole")
    values: np.ndarray = dataset[()]
    return values


def _stored(dataset: Any) -> np.ndarray:
    """The values, looked up chunk by chunk, since h5py gives zeros for those that a damaged tree does not lead to.

    Where a chunk is not found so, but the leaves of the tree list it, its bytes are taken from the place they give.
    """
    if not dataset.chunks or not dataset.size:
        return np.asarray(dataset[()])
    grid = set(itertools.product(*map(range, itertools.repeat(0), dataset.shape, dataset.chunks)))
    with contextlib.suppress(RuntimeError):
        for place in grid:
            dataset.id.read_direct_chunk(place)
        return _whole(dataset)
    values, content = np.empty(dataset.shape, dataset.dtype), Path(dataset.file.filename).read_bytes()
    for number in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(number)
        grid.remove(chunk.chunk_offset)
        block = np.frombuffer(content, dataset.dtype, math.prod(dataset.chunks), chunk.byte_offset)
        to = values[tuple(slice(at, at + edge) for at, edge in zip(chunk.chunk_offset, dataset.chunks, strict=True))]
        to[...] = block.reshape(dataset.chunks)[tuple(map(slice, to.shape))]
    if grid:
        raise ValueError("the index of the chunks is damaged")
    return values


def _two(values: np.ndarray) -> np.ndarray:
    return values.reshape(values.shape[-2:])


def _tiles(group: Any, key: str, *, with_coords: bool = True) -> Arrays:
    arrays = {"features": _two(_stored(group[key]))}
    return arrays | ({"coords": _two(_stored(group["coords"]))[:, :2]} if with_coords and "coords" in group else {})


def _features(path: Path) -> Iterator[Slide]:
    with h5py.File(path) as file:
        if file["features"].shape != (0,):
            yield None, lambda: _tiles(file, "features"), None


def _acmil(path: Path) -> Iterator[Slide]:
    with h5py.File(path) as file:
        for name in file:
            group = file[name]
            yield name, partial(_tiles, group, "feat"), partial(_attribute, group, "label")


def _attribute(group: Any, name: str) -> int | None:
    return int(group.attrs[name]) if name in group.attrs else None


def _in_um(arrays: Arrays) -> Arrays:
    return {**arrays, "coords": arrays["coords"] / 224 * 256}


def _stamp(path: Path) -> Iterator[Slide]:
    with h5py.File(path) as file:
        arrays = _tiles(file, "feats" if "feats" in file else "patch_embeddings")
        stated = "coords" not in arrays or _states_um(file.attrs)
    yield None, lambda: arrays if stated else _in_um(arrays), None


def _states_um(attributes: Any) -> bool:
    missing = (None, 0, "None", b"None")
    if attributes.get("tile_size_um") not in missing:
        return True
    return attributes.get("tile_size") not in missing and attributes.get("unit") in ("um", b"um")


def _marugoto(path: Path) -> Iterator[Slide]:
    with h5py.File(path) as file:
        kept = _stored(file["augmented"]) == 0
        arrays = {name: values[kept] for name, values in _tiles(file, "feats").items()}
    steps = [np.diff(np.unique(axis)).min() for axis in arrays.get("coords", kept).T if len(np.unique(axis)) > 1]
    is_early = "coords" in arrays and (abs(min(steps) - 224) <= 0.5 if steps else _on_grid(arrays["coords"][0]))
    yield None, lambda: _in_um(arrays) if is_early else arrays, None


def _on_grid(place: np.ndarray) -> bool:
    return bool((abs((place + 112.0) % 224 - 112) <= 0.5).all())


def _pathforge(path: Path) -> Iterator[Slide]:
    with h5py.File(path) as file:
        for tiling in file["bags"].values():
            for key in tiling.get("features", ()):
                yield None, partial(_tiling, tiling, key), None


def _tiling(group: Any, key: str) -> Arrays:
    return {"features": _stored(group["features"][key]), "coords": _stored(group["coords"])[:, :2]}


# --- torch and NumPy ---


def _torch(path: Path) -> Any:
    from numpy._core import multiarray

    build = multiarray._reconstruct
    names = [(build, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD")]
    with torch.serialization.safe_globals([*names, *kinds]):
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except RuntimeError as error:
            if "invalid header" not in str(error):
                raise
            # The copy of a member's name and sizes in front of it is damaged; the directory and the content may be
            # whole, which the readers see by its checksum. Mapped files are not checked so.
            return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
    return np.asarray(value)


def _tensor(path: Path) -> Iterator[Slide]:
    yield None, lambda: {"features": _two(_numbers(_torch(path)))}, None


def _dict(path: Path) -> Iterator[Slide]:
    value = _torch(path)
    key = next(key for key in ("feats", "features") if isinstance(value.get(key), torch.Tensor | np.ndarray))
    yield None, lambda: {"features": _two(_numbers(value[key]))}, None


def _slideflow(path: Path) -> Iterator[Slide]:
    arrays = {"features": _two(_numbers(_torch(path)))}
    index = path.with_suffix(".index.npz")
    if index.is_file():
        found = np.load(index)
        coords = found if isinstance(found, np.ndarray) else found["arr_0"] if found.files == ["arr_0"] else None
        arrays |= {} if coords is None else {"coords": coords}
    yield None, lambda: arrays, None


def _npy(path: Path) -> Iterator[Slide]:
    yield None, lambda: {"features": _two(np.load(path))}, None


def _histossl(path: Path) -> Iterator[Slide]:
    values = np.load(path)
    yield None, lambda: {"features": values[:, 3:], "coords": values[:, 1:3].astype(np.int32)}, None


def _npz(path: Path) -> Iterator[Slide]:
    with np.load(path) as file:
        known = [key for key in ("features", "feats", "embeddings") if key in file.files] or file.files
        coords = {"coords": file["coords"]} if "coords" in file.files else {}
        yield None, lambda: {"features": _two(file[known[0]]), **coords}, None


def _torchmil(path: Path) -> Iterator[Slide]:
    files = {file.stem: file for file in (path / "features").iterdir() if file.suffix in (".npy", ".h5")}
    for bag, file in sorted(files.items()):
        label = path / "labels" / file.name
        yield bag, partial(_torchmil_bag, path, file), partial(_torchmil_label, label)


def _torchmil_label(file: Path) -> Any:
    values = _part(file, "labels") if file.is_file() else np.empty(0)
    if values.size != 1:
        return None
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{values.dtype} values, not real numbers")
    return values.item()


def _part(file: Path, key: str) -> np.ndarray:
    if h5py.is_hdf5(file):
        with h5py.File(file) as opened:
            return _stored(opened[key])
    values: np.ndarray = np.load(file)
    return values


def _torchmil_bag(path: Path, file: Path) -> Arrays:
    arrays = {"features": _two(_part(file, "features"))}
    for folder, key in (("coords", "coords"), ("inst_labels", "instance_labels")):
        if (path / folder / file.name).is_file():
            arrays[key] = _part(path / folder / file.name, folder)
    truth = arrays.get("instance_labels")
    if truth is not None and truth.size != len(arrays["features"]):
        del arrays["instance_labels"]
    elif truth is not None:
        arrays["instance_labels"] = truth.reshape(-1).astype(np.int64)
    return arrays


def _eva(path: Path) -> Iterator[Slide]:
    with (path / "manifest.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row.get("wsi_id") or Path(row["embeddings"]).stem, []).append(row)
    for bag, found in groups.items():
        yield bag, partial(_eva_bag, path, found), found[0]["target"] or None


def _eva_bag(path: Path, rows: list[dict[str, str]]) -> Arrays:
    vectors = []
    for row in rows:
        value = _torch(path / row["embeddings"])
        vectors += [_numbers(part) for part in ([value] if isinstance(value, torch.Tensor) else value)]
    return {"features": np.concatenate([part.reshape(-1, part.shape[-1]) for part in vectors if part.size])}


def _slide2vec(path: Path) -> Iterator[Slide]:
    for meta in sorted(path.glob("*.meta.json")):
        sample = meta.name.removesuffix(".meta.json")
        yield sample, partial(_slide2vec_bag, path, meta, sample), None


def _slide2vec_bag(path: Path, meta: Path, sample: str) -> Arrays:
    if json.loads(meta.read_bytes())["num_tiles"] == 0:
        return {"features": np.empty((0, 1))}
    file, places = path / f"{sample}.pt", path.parent / "tiles" / f"{sample}.coordinates.npz"
    features = _numbers(_torch(file)) if file.is_file() else np.load(path / f"{sample}.npz")["features"]
    arrays = {"features": _two(features)}
    if places.is_file():
        with np.load(places) as found:
            arrays["coords"] = np.stack([found["x"], found["y"]], axis=1)
    return arrays


def _dsmil(path: Path) -> Iterator[Slide]:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in list(csv.reader(stream))[1:] if row]
    values = [[np.float32(text if text else "nan") for text in row] for row in rows]
    yield None, lambda: {"features": np.array(values, dtype=np.float32)}, None


PLAIN: dict[str, Callable[[Path], Iterator[Slide]]] = {
    "clam-h5": _features,
    "trident-h5": _features,
    "mmp-h5": _features,
    "acmil-h5": _acmil,
    "stamp-h5": _stamp,
    "marugoto-h5": _marugoto,
    "pathforge-h5": _pathforge,
    "tensor-pt": _tensor,
    "mil-baseline-pt": _dict,
    "trident-pt": _tensor,
    "slideflow": _slideflow,
    "npy": _npy,
    "npz": _npz,
    "histossl-npy": _histossl,
    "dsmil-csv": _dsmil,
    "torchmil": _torchmil,
    "eva": _eva,
    "slide2vec": _slide2vec,
    **CLASSIC,
}


def _described(values: np.ndarray) -> dict[str, Any]:
    native = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    return {"dtype": str(native.dtype), "shape": list(values.shape), "xxh3": xxhash.xxh3_64_hexdigest(native.data)}


def _slide(read: Callable[[], Arrays], label: Any) -> dict[str, Any]:
    try:
        arrays = {name: _described(values) for name, values in read().items()}
        label = label() if callable(label) else label
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    return {"arrays": arrays, "label": label}


def _walk(item: Any, depth: int = 0) -> None:
    """Read everything in an HDF5 file that can be read."""
    for name in _names(item.attrs):
        with contextlib.suppress(Exception):
            item.attrs[name]
    if isinstance(item, h5py.Dataset):
        with contextlib.suppress(Exception):
            item[()]
    elif isinstance(item, h5py.Group) and depth < 8:
        for name in _names(item):
            with contextlib.suppress(Exception):
                _walk(item[name], depth + 1)


def _names(item: Any) -> list[str]:
    try:
        return list(item)
    except Exception:
        return []


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    if question["format"] == "any":
        for path in (Path(question["path"]), *Path(question["path"]).rglob("*")):
            if path.is_file() and h5py.is_hdf5(path):
                with h5py.File(path) as file:
                    _walk(file)
        return {}
    slides: list[Any] = []
    for slide_id, read, label in PLAIN[question["format"]](Path(question["path"])):
        slides.append([slide_id, _slide(read, label)])
    return {"slides": slides}


if __name__ == "__main__":
    serve(_answer)
