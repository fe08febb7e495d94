"""slideflow's bags: the tensor, the two meanings of `.index.npz`, and the folder's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.sources.base import ContentError
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_tensor import BAGS_CONFIG, write_slideflow
from tests.data.reading import read

FEATURES_ND, LOCATIONS_N2 = tiles(40)


def test_bag_with_tile_centres_and_facts(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "TCGA-1.ome.pt", FEATURES_ND, LOCATIONS_N2)
    name, source, (bag,) = read(tmp_path / "TCGA-1.ome.pt")
    assert (name, bag.bag_id, source.notes) == ("slideflow", "TCGA-1.ome", ())
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)
    np.testing.assert_array_equal(bag.coords_N2, LOCATIONS_N2)
    facts = source.facts
    assert (facts.coord_unit, facts.coord_origin) == ("level0_px", "center")
    assert (facts.encoder, facts.tile_size, facts.mpp, facts.magnification) == ("RetCCLFeatures", 299, 302 / 299, None)
    assert facts.facts == {"stain_normalizer": "macenko"}


def test_index_where_zip_is_not_allowed(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, None)
    np.save(tmp_path / "s.index.npy", LOCATIONS_N2)
    _, _, (bag,) = read(tmp_path / "s.pt")
    np.testing.assert_array_equal(bag.coords_N2, LOCATIONS_N2)


def test_tile_width_given_as_magnification(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, LOCATIONS_N2, {**BAGS_CONFIG, "tile_um": "20x", "normalizer": None})
    facts = read(tmp_path / "s.pt")[1].facts
    assert (facts.mpp, facts.magnification, facts.facts) == (None, 20.0, {})


def test_configuration_without_index_and_index_without_configuration(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, None)
    name, source, (bag,) = read(tmp_path / "s.pt")
    assert (name, bag.coords_N2, source.facts.coord_unit) == ("slideflow", None, None)
    assert any("without coordinates" in note for note in source.notes)
    (tmp_path / "bags_config.json").unlink()
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, LOCATIONS_N2, None)
    name, source, (bag,) = read(tmp_path / "s.pt")
    assert (name, source.facts.encoder) == ("slideflow", None)
    np.testing.assert_array_equal(bag.coords_N2, LOCATIONS_N2)


@pytest.mark.parametrize("locations", [True, False])
def test_index_of_a_tfrecord_is_not_taken_for_coordinates(tmp_path: Path, locations: bool) -> None:
    """Beside a TFRecord `arr_0` holds byte offsets; the coordinates, if any, are under `locations`."""
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, None, None)
    offsets_N2 = np.stack([np.arange(40) * 5000, np.full(40, 5000)], axis=1)
    extra = {"locations": LOCATIONS_N2} if locations else {}
    np.savez(tmp_path / "s.index.npz", offsets_N2, **extra)
    if not locations:
        (tmp_path / "s.tfrecords").touch()
    name, _, (bag,) = read(tmp_path / "s.pt")
    assert (name, bag.coords_N2) == ("tensor-pt", None)


def test_empty_bag_is_listed(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", np.empty((0, 6), "f4"), np.empty((0, 2), "i8"))
    _, source, bags = read(tmp_path / "s.pt")
    assert (source.no_tissue, bags) == (("s",), [])


def test_index_of_another_length_is_refused(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, LOCATIONS_N2[:-1])
    with pytest.raises(ContentError, match=r"arr_0 is int64 \[39, 2\], expected numbers of shape \[40, 2\]"):
        read(tmp_path / "s.pt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_features": 7}, r"num_features is 7, but the bags beside it have 6 features"),
        ({"tile_px": "big"}, r"tile_px is 'big', expected a number above 0"),
        ({"tile_um": -1}, r"tile_um is -1, expected a number above 0"),
    ],
)
def test_configuration_that_cannot_be_right_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, LOCATIONS_N2, {**BAGS_CONFIG, **changed})
    with pytest.raises(ContentError, match=message):
        read(tmp_path / "s.pt")


def test_damaged_or_oversized_configuration_is_refused(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "s.pt", FEATURES_ND, None)
    config = tmp_path / "bags_config.json"
    for content, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (" " * (5 << 20), "more than 4194304 byte"),
    ):
        config.write_text(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path / "s.pt")
    config.write_text(json.dumps({"name": "not slideflow's"}))
    assert read(tmp_path / "s.pt")[0] == "tensor-pt"
