"""Writers of small files in the exact layouts of foreign tools, for the tests of the readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy.io.matlab import MatlabObject

CLAM_CHUNK_ROWS = 32


@dataclass(frozen=True)
class ClassicSet:
    """A tiny classic set: bags in file order with names, labels and integer-valued features."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    bags: tuple[np.ndarray, ...]


def classic_set(num_features: int = 5, seed: int = 0) -> ClassicSet:
    """Three bags of 2, 1 and 3 instances, positives first."""
    generator = np.random.default_rng(seed)
    bags = tuple(generator.integers(-200, 200, size=(size, num_features)).astype(float) for size in (2, 1, 3))
    return ClassicSet(("MUSK-188", "MUSK-190", "NON-MUSK-j81"), (1, 1, 0), bags)


def uci_lines(data: ClassicSet, *, final_dot: bool = True) -> list[str]:
    """Lines of a UCI C4.5 file: molecule, conformation, features, class."""
    lines = []
    for name, label, bag_ND in zip(data.names, data.labels, data.bags, strict=True):
        for row, features_D in enumerate(bag_ND, start=1):
            values = ",".join(f"{value:g}" for value in features_D)
            lines.append(f"{name},{name.split('-')[-1]}_1+{row},{values},{label}{'.' if final_dot else ''}")
    return lines


def svm_lines(data: ClassicSet, *, count_line: bool = True, sparse: bool = False) -> list[str]:
    """Lines of an Andrews file: counts, then instance:bag:label and index:value pairs from 1."""
    lines = []
    for bag, (label, bag_ND) in enumerate(zip(data.labels, data.bags, strict=True)):
        for features_D in bag_ND:
            pairs = [f"{index}:{value:g}" for index, value in enumerate(features_D, start=1) if value or not sparse]
            lines.append(" ".join([f"{len(lines)}:{bag}:{1 if label else -1}", *pairs]))
    return [f"{len(lines)} {data.bags[0].shape[1]}", *lines] if count_line else lines


def write_prtools(
    path: Path, data: ClassicSet, *, numbered: bool, title: str = "a set", as_object: bool = True, **changed: Any
) -> None:
    """A PRTools dataset: int16 data, nlab 2 = positive, padded names or uint8 numbers from 1 as milbag."""
    sizes = [len(bag_ND) for bag_ND in data.bags]
    width = max(map(len, data.names)) + 2
    milbag = np.repeat([name.ljust(width) for name in data.names], sizes)
    if numbered:
        milbag = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.uint8), sizes)[:, None]
    ident = np.empty((1, 1), dtype=[("ident", object), ("milbag", object)])
    ident[0, 0] = (np.arange(1, sum(sizes) + 1)[:, None], changed.get("milbag", milbag))
    names = np.empty((1, 2), dtype=object)
    names[0] = [np.array(changed.get("classes", ["negative", "positive"])), np.array([[0.5, 0.5]])]
    fields: dict[str, Any] = {
        "data": np.concatenate(data.bags).astype(np.int16),
        "lablist": names,
        "nlab": changed.get("nlab", np.repeat(np.array(data.labels, dtype=np.uint8) + 1, sizes)[:, None]),
        "prior": np.array([[0.5, 0.5]]),
        "ident": ident,
        "name": title,
    }
    for left_out in changed.get("without", ()):
        del fields[left_out]
    struct = np.empty((1, 1), dtype=[(name, object) for name in fields])
    struct[0, 0] = tuple(fields.values())
    scipy.io.savemat(path, {"x": MatlabObject(struct, "dataset") if as_object else struct})


def write_clam(path: Path, features_ND: np.ndarray, coords_N2: np.ndarray) -> None:
    """CLAM's feature file: 32-row chunks, growable, float32 and int32, no attributes."""
    with h5py.File(path, "w") as file:
        for key, values in (("features", features_ND.astype("f4")), ("coords", coords_N2.astype("i4"))):
            chunks = (CLAM_CHUNK_ROWS, values.shape[1])
            file.create_dataset(key, data=values, maxshape=(None, values.shape[1]), chunks=chunks)


def write_clam_patches(path: Path, coords_N2: np.ndarray, *, patch_size: int = 256, patch_level: int = 1) -> None:
    """CLAM's coordinate file: attributes on coords, patch_size measured at patch_level."""
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=coords_N2.astype("i4"))
        coords.attrs["patch_size"] = patch_size
        coords.attrs["patch_level"] = patch_level
        coords.attrs["downsample"] = (4.0, 4.0)
        coords.attrs["downsampled_level_dim"] = (12_500, 10_000)
        coords.attrs["level_dim"] = (12_500, 10_000)
        coords.attrs["name"] = path.stem
        coords.attrs["save_path"] = "/data/out/patches"


def write_trident(
    path: Path,
    features: np.ndarray,
    coords_N2: np.ndarray,
    *,
    on_features: Mapping[str, Any] | None = None,
    on_coords: Mapping[str, Any] | None = None,
) -> None:
    """TRIDENT's file: one-row chunks, int64 coordinates, attributes on both; None is written as the text `None`."""
    attributes = {
        "features": {"name": path.stem, "savetodir": "/data/out", "encoder": "uni_v1"} | dict(on_features or {}),
        "coords": {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": path.stem,
            "savetodir": "/data/out",
            "level0_width": 60_000,
            "level0_height": 60_000,
        }
        | dict(on_coords or {}),
    }
    with h5py.File(path, "w") as file:
        for key, values in (("features", features), ("coords", coords_N2.astype("i8"))):
            dataset = file.create_dataset(
                key, data=values, maxshape=(None, *values.shape[1:]), chunks=(1, *values.shape[1:])
            )
            for name, value in attributes[key].items():
                dataset.attrs[name] = "None" if value is None else value


def write_acmil(path: Path, slides: Sequence[tuple[str, np.ndarray, np.ndarray, int | None]]) -> None:
    """ACMIL's one file: a group per slide with contiguous feat and coords, and the label on the group."""
    with h5py.File(path, "w") as file:
        for slide_id, features_ND, coords_N2, label in slides:
            group = file.create_group(slide_id)
            group.create_dataset("feat", data=features_ND.astype("f2"))
            group.create_dataset("coords", data=coords_N2)
            if label is not None:
                group.attrs["label"] = label


def tiles(num_tiles: int, num_features: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 features and level-0 coordinates of one slide."""
    generator = np.random.default_rng((seed, num_tiles))
    features_ND = generator.standard_normal((num_tiles, num_features)).astype(np.float32)
    return features_ND, 512 * generator.integers(0, 100, size=(num_tiles, 2))
