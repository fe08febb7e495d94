"""slide2vec's folder of tile embeddings: features, sidecars, coordinates in a folder beside, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asmil.data.sources import ContentError, detect
from tests.data.foreign import tiles
from tests.data.foreign_tensor import write_slide2vec, write_tensor
from tests.data.reading import only_bad, read

SLIDES = {"a": tiles(4), "b": tiles(3)}
FEATURES = {name: features_ND for name, (features_ND, _) in SLIDES.items()}


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_features_coordinates_and_facts(tmp_path: Path, suffix: str) -> None:
    for sample, (features_ND, coords_N2) in SLIDES.items():
        folder = write_slide2vec(tmp_path, sample, features_ND, coords_N2, suffix=suffix)
    name, source, bags = read(folder)
    assert (name, [bag.bag_id for bag in bags], source.notes) == ("slide2vec", ["a", "b"], ())
    for bag in bags:
        np.testing.assert_array_equal(bag.features_ND, FEATURES[bag.bag_id].astype("f2"))
        np.testing.assert_array_equal(bag.coords_N2, SLIDES[bag.bag_id][1])
    facts = source.facts
    assert (facts.encoder, facts.mpp, facts.tile_size) == ("virchow2", 0.5, 224)
    assert (facts.coord_unit, facts.coord_origin) == ("level0_px", "top_left")


def test_slide_without_tiles_has_a_sidecar_only(tmp_path: Path) -> None:
    folder = write_slide2vec(tmp_path, "a", *SLIDES["a"])
    write_slide2vec(tmp_path, "empty", np.empty((0, 6), "f4"), None)
    _, source, bags = read(folder)
    assert (source.no_tissue, [bag.bag_id for bag in bags]) == (("empty",), ["a"])


def test_folder_of_one_class(tmp_path: Path) -> None:
    for part in ("tile_embeddings", "tiles"):
        write_slide2vec(tmp_path, "a", *SLIDES["a"])
        inner = tmp_path / part / "tumor"
        inner.mkdir()
        for file in [*(tmp_path / part).glob("a.*")]:
            file.rename(inner / file.name)
    for file in (tmp_path / "tile_embeddings").glob("a.*"):
        file.unlink()
    (bag,) = read(tmp_path / "tile_embeddings" / "tumor")[2]
    np.testing.assert_array_equal(bag.coords_N2, SLIDES["a"][1])


def test_without_coordinates(tmp_path: Path) -> None:
    folder = write_slide2vec(tmp_path, "a", SLIDES["a"][0], None)
    _, source, (bag,) = read(folder)
    assert (bag.coords_N2, source.facts.coord_unit) == (None, None)
    assert source.notes == ("note: no a.coordinates.npz in a folder tiles beside; stored without coordinates",)


@pytest.mark.parametrize(
    "kind", ["slide_embeddings", "patient_embeddings", "hierarchical_embeddings", "image_embeddings"]
)
def test_embeddings_of_anything_but_tiles_are_refused(tmp_path: Path, kind: str) -> None:
    folder = write_slide2vec(tmp_path, "a", *SLIDES["a"], meta={"artifact_type": kind})
    write_tensor(folder / "a.pt", torch.ones(1280))
    assert detect(folder).format.name == "slide2vec"
    with pytest.raises(ContentError, match=f"artifact_type is '{kind}', not tile_embeddings; multiple-instance"):
        read(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_tiles": 5}, r"features have shape \[4, 6\], but a.meta.json says \[5, 6\]"),
        ({"feature_dim": 7}, r"features have shape \[4, 6\], but a.meta.json says \[4, 7\]"),
        ({"requested_spacing_um": "fine"}, "requested_spacing_um is 'fine', expected a number above 0"),
        ({"encoder_name": ["uni"]}, r"encoder_name is \['uni'\], expected a name"),
    ],
)
def test_sidecar_that_does_not_fit(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = write_slide2vec(tmp_path, "a", *SLIDES["a"], meta=changed)
    with pytest.raises(ContentError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "changed", [{"encoder_name": "uni"}, {"requested_spacing_um": 0.25}, {"requested_tile_size_px": 256}]
)
def test_slides_of_different_kinds_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_slide2vec(tmp_path, "a", *SLIDES["a"])
    folder = write_slide2vec(tmp_path, "b", *SLIDES["b"], meta=changed)
    with pytest.raises(ContentError, match="its slides differ in encoder, spacing"):
        read(folder)


def test_coordinates_of_another_run_are_refused(tmp_path: Path) -> None:
    write_slide2vec(tmp_path, "a", *SLIDES["a"], suffix=".npz")
    folder = write_slide2vec(tmp_path, "b", *SLIDES["b"], suffix=".npz")
    x_N, y_N = SLIDES["b"][1].T
    np.savez(tmp_path / "tiles" / "b.coordinates.npz", x=x_N[:2], y=y_N)
    only_bad(folder, "b", r"x is int64 \[2\], expected 3 whole numbers", ContentError)
    np.savez(tmp_path / "tiles" / "b.coordinates.npz", x=x_N, y=y_N, tile_index=np.array([0, 2, 1]))
    only_bad(folder, "b", "its tile_index is not that of", ContentError)


@pytest.mark.parametrize("name", ["b.pt", "b.meta.json", "../tiles/b.coordinates.npz"])
def test_damaged_file_is_one_bag(tmp_path: Path, name: str) -> None:
    write_slide2vec(tmp_path, "a", *SLIDES["a"])
    folder = write_slide2vec(tmp_path, "b", *SLIDES["b"])
    (folder / name).write_bytes((folder / name).read_bytes()[:-30])
    only_bad(folder, "b", "it is cut or damaged")


def test_sidecar_without_features_is_refused(tmp_path: Path) -> None:
    write_slide2vec(tmp_path, "a", *SLIDES["a"])
    folder = write_slide2vec(tmp_path, "b", *SLIDES["b"])
    (folder / "b.pt").unlink()
    only_bad(folder, "b", "neither .pt nor .npz beside b.meta.json", ContentError)
