"""HDF5 files that must not be trusted, and unusual ones that are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from asmil.data.sources import ContentError
from asmil.errors import DataError
from tests.data.foreign import tiles, write_acmil, write_clam, write_trident
from tests.data.foreign_hdf5 import STAMP_ATTRIBUTES, write_stamp
from tests.data.reading import read

FEATURES_ND, COORDS_N2 = tiles(40)


def _external_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(str(other), "features")


def _soft_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.SoftLink("/elsewhere")


def _external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(4, 6), dtype="f4", external=[(str(other), 0, 96)])


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(40, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "features", shape=(40, 6))
    file.create_virtual_dataset("features", layout)


def _oversized(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(1 << 30, 768), dtype="f4", chunks=(32, 768))


def _half_written(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40, 6), dtype="f4", chunks=(32, 6))[:32] = 1


def _half_written_beside_roomy_chunks(file: h5py.File, other: Path) -> None:
    """Three chunks of 512 values hold more bytes than the 240 values declared, and yet a quarter is missing."""
    dataset = file.create_dataset("features", shape=(40, 6), dtype="f4", chunks=(32, 4))
    dataset[:32] = 1
    dataset[32:, :4] = 1


def _half_written_compressed(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40, 6), dtype="f4", chunks=(32, 6), compression="gzip")[:32] = 1


def _never_written(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40, 6), dtype="f4")
    file.create_dataset("padding", data=np.ones(10_000))


def _bomb(file: h5py.File, other: Path) -> None:
    dataset = file.create_dataset("features", shape=(1 << 22, 6), dtype="f4", chunks=(4096, 6), compression="gzip")
    dataset[:4096] = 1


def _text(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", data=[b"a", b"b"])


def _null(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", data=h5py.Empty("f4"))


def _group(file: h5py.File, other: Path) -> None:
    file.create_group("features")


def _soft_link_loop(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.SoftLink("/loop")
    file["loop"] = h5py.SoftLink("/features")


def _growing_virtual(file: h5py.File, other: Path) -> None:
    """The extent of this one is that of its source: asking for it would open the other file."""
    layout = h5py.VirtualLayout(shape=(40, 6), dtype="f4", maxshape=(None, 6))
    source = h5py.VirtualSource(str(other), "features", shape=(40, 6), maxshape=(None, 6))
    layout[0 : h5s.UNLIMITED, :] = source[0 : h5s.UNLIMITED, :]
    file.create_virtual_dataset("features", layout)


def _named_type(file: h5py.File, other: Path) -> None:
    file["features"] = np.dtype("f4")


def _compound(file: h5py.File, other: Path) -> None:
    file["features"] = np.zeros(40, dtype=[("x", "f4")])


def _texts(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", data=["a", "b"], dtype=h5py.string_dtype())


def _ragged(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40,), dtype=h5py.vlen_dtype(np.dtype("f4")))


def _references(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40,), dtype=h5py.ref_dtype)


def _region_references(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40,), dtype=h5py.regionref_dtype)


def _opaque(file: h5py.File, other: Path) -> None:
    file["features"] = np.zeros((40, 6), "V4")


def _rows_as_type(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", shape=(40,), dtype=np.dtype(("f4", (6,))))


def _complex(file: h5py.File, other: Path) -> None:
    file["features"] = np.zeros((40, 6), "c8")


def _huge_chunk(file: h5py.File, other: Path) -> None:
    """To read 40 rows, one chunk of 1.5 GiB would be unpacked."""
    chunks = (1 << 26, 6)
    file.create_dataset("features", shape=(40, 6), dtype="f4", chunks=chunks, maxshape=(None, 6), compression="gzip")


def _filtered(file: h5py.File, code: int) -> None:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((40, 6))
    properties.set_filter(code, 1, (2, 2))
    dataset = h5d.create(file.id, b"features", h5t.IEEE_F32LE, h5s.create_simple((40, 6)), properties)
    dataset.write_direct_chunk((0, 0), bytes(960))


def _blosc(file: h5py.File, other: Path) -> None:
    _filtered(file, 32001)


def _unheard_of_filter(file: h5py.File, other: Path) -> None:
    _filtered(file, 499)


def _bfloat16_bits(file: h5py.File, other: Path) -> None:
    file["features"] = (FEATURES_ND.view("u4") >> 16).astype("u2")


def _integers(file: h5py.File, other: Path) -> None:
    file["features"] = FEATURES_ND.astype("i4")


def _no_width(file: h5py.File, other: Path) -> None:
    file["features"] = np.zeros((40, 0), "f4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_external_link, r"/features is a link to another file; only data inside the file itself is read"),
        (_soft_link, r"/features is a soft link"),
        (_external_storage, r"/features keeps its values in other files"),
        (_virtual, r"/features keeps its values in other files"),
        (
            _oversized,
            r"declares shape \[1073741824, 768\] of float32, 3298534883328 bytes in chunks of 98304, but a file of \d+ "
            r"bytes holds at most \d+;",
        ),
        (_half_written, r"declares shape \[40, 6\] of float32 in 2 chunks, of which the file stores 1; it was not"),
        (_half_written_beside_roomy_chunks, r"in 4 chunks, of which the file stores 3; it was not written to its end"),
        (_half_written_compressed, r"in 2 chunks, of which the file stores 1; it was not written to its end"),
        (_never_written, r"in 960 bytes, of which the file stores 0; it was not written to its end"),
        (_bomb, r"declares shape \[4194304, 6\] of float32, 100663296 bytes in chunks of 98304, but a file of"),
        (_text, r"/features has dtype .*, expected floats or integers"),
        (_null, r"/features has no shape"),
        (_group, r"/features is a group, expected a dataset"),
        (_soft_link_loop, r"/features is a soft link"),
        (_growing_virtual, r"/features keeps its values in other files"),
        (_named_type, r"/features is a named datatype, expected a dataset"),
        (_compound, r"/features has dtype \[\('x', '<f4'\)\], expected floats or integers"),
        (_texts, r"/features has dtype object, expected floats or integers"),
        (_ragged, r"/features has dtype object, expected floats or integers"),
        (_references, r"/features has dtype object, expected floats or integers"),
        (_region_references, r"/features has dtype object, expected floats or integers"),
        (_opaque, r"/features has dtype .*V4.*, expected floats or integers"),
        (_rows_as_type, r"/features has dtype .*, expected floats or integers"),
        (_complex, r"/features has dtype complex64, expected floats or integers"),
        (_huge_chunk, r"/features declares shape .* in chunks of 1610612736, but a file of \d+ bytes holds at most"),
        (_blosc, r"/features went through HDF5 filter 32001 \(blosc\), which is not read here; write the file again"),
        (_unheard_of_filter, r"/features went through HDF5 filter 499, which is not read here"),
        (_bfloat16_bits, r"/features is uint16 \[40, 6\], expected floats .*; if these are bit patterns of bfloat16"),
        (_integers, r"/features is int32 \[40, 6\], expected floats of shape \[N, D\]$"),
        (_no_width, r"/features has shape \[40, 0\]: vectors of width 0"),
    ],
)
def test_data_outside_the_file_or_beyond_its_size_is_refused(
    tmp_path: Path, make: Callable[[h5py.File, Path], None], message: str
) -> None:
    write_clam(tmp_path / "other.h5", FEATURES_ND, COORDS_N2)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        make(file, tmp_path / "other.h5")
        file.create_dataset("coords", data=COORDS_N2)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "s.h5")


def test_acmil_group_linked_from_another_file_is_refused(tmp_path: Path) -> None:
    write_acmil(tmp_path / "other.h5", [("a", *tiles(3), 0)])
    write_acmil(tmp_path / "x.h5", [("a", *tiles(3), 0)])
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["b"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "a")
    with pytest.raises(DataError, match=r"/b is a link to another file"):
        read(tmp_path / "x.h5")


@pytest.mark.parametrize("kept_share", [0.3, 0.7, 0.99])
def test_cut_files_are_a_data_error(tmp_path: Path, kept_share: float) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2)
    content = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5").write_bytes(content[: int(kept_share * len(content))])
    with pytest.raises(DataError, match=r"s\.h5"):
        read(tmp_path / "s.h5")


def test_compressed_features_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((4096, 6), ">f4"), compression="gzip", chunks=(4096, 6))
        file.create_dataset("coords", data=np.zeros((4096, 2), "i4"), compression="gzip")
    bag = read(tmp_path / "s.h5")[2][0]
    assert bag.features_ND.dtype == np.dtype("f4")
    assert bag.features_ND.dtype.isnative
    assert not bag.features_ND.any()


def test_float_formats_numpy_lacks_are_read_by_value(tmp_path: Path) -> None:
    """bfloat16 as a float type of HDF5: sign, 8 bits of exponent, 7 of mantissa."""
    bfloat16 = h5t.IEEE_F32LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)
    bfloat16.set_precision(16)
    bfloat16.set_size(2)
    bits_ND = (FEATURES_ND.view("u4") >> 16).astype("u2")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        dataset = h5d.create(file.id, b"features", bfloat16, h5s.create_simple((40, 6)))
        dataset.write(h5s.ALL, h5s.ALL, bits_ND, mtype=bfloat16)
        file["coords"] = COORDS_N2
    features_ND = read(tmp_path / "s.h5")[2][0].features_ND
    np.testing.assert_array_equal(features_ND, (bits_ND.astype("u4") << 16).view("f4"))


def test_double_precision_and_a_committed_type_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["type"] = np.dtype("f8")
        file.create_dataset("features", data=FEATURES_ND.astype("f8"), dtype=file["type"])
        file["coords"] = COORDS_N2
    bag = read(tmp_path / "s.h5")[2][0]
    assert bag.features_ND.dtype == np.float64
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)


@pytest.mark.parametrize(
    "filters", [{"compression": "lzf", "shuffle": True}, {"compression": "gzip", "fletcher32": True}]
)
def test_filters_that_come_with_hdf5_are_read(tmp_path: Path, filters: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", data=FEATURES_ND, chunks=(32, 6), **filters)
        file["coords"] = COORDS_N2
    np.testing.assert_array_equal(read(tmp_path / "s.h5")[2][0].features_ND, FEATURES_ND)


# --- attributes ---


@pytest.mark.parametrize("value", ["x" * 100_000, np.bytes_(b"x" * 100_000)], ids=["variable", "fixed"])
def test_attribute_too_large_to_be_a_name_is_refused(tmp_path: Path, value: Any) -> None:
    with h5py.File(tmp_path / "s.h5", "w", libver="latest") as file:
        file["feats"] = FEATURES_ND
        file.attrs["extractor"] = value
    with pytest.raises(DataError, match="attribute extractor has 100000 bytes, expected at most 65536"):
        read(tmp_path / "s.h5")


def test_attributes_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    """Among them a text whose bytes are gone, which cannot be read."""
    with h5py.File(tmp_path / "s.h5", "w", libver="latest") as file:
        file["feats"] = FEATURES_ND
        file.attrs.update(STAMP_ATTRIBUTES["current"])
        file.attrs["history"] = np.zeros(1 << 20, "u1")
        file.attrs["origin"] = file["feats"].regionref[:2]
        file.attrs["broken"] = "kept in the heap " * 10
    content = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5").write_bytes(content.replace(b"GCOL", b"XXXX"))
    with h5py.File(tmp_path / "s.h5") as file, pytest.raises(OSError, match="heap"):
        file.attrs["broken"]
    with pytest.raises(DataError, match="cannot be read as HDF5"):  # the extractor lies in the same heap
        read(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        for name in ("extractor", "unit", "feat_type"):
            del file.attrs[name]
    assert len(read(tmp_path / "s.h5")[2]) == 1


@pytest.mark.parametrize(
    ("value", "encoder"),
    [
        (np.bytes_(b"uni"), "uni"),
        (np.array(["uni"], dtype=h5py.string_dtype()), "uni"),
        (np.bytes_(b"uni\xff"), "uni\ufffd"),
        (np.array(["a", "b"], dtype=h5py.string_dtype()), None),
        (h5py.Empty("S1"), None),
        (np.zeros(1, dtype=[("x", "f4")]), None),
        ("None", None),
        (7, "7"),
    ],
)
def test_attribute_values_become_plain(tmp_path: Path, value: Any, encoder: str | None) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2, on_features={"encoder": value})
    found = read(tmp_path / "s.h5")[1].facts.encoder
    assert found == encoder
    assert found is None or found.encode()


def test_text_of_invalid_utf8_can_be_written_again(tmp_path: Path) -> None:
    write_stamp(tmp_path / "s.h5", FEATURES_ND, None, attributes={"extractor": "uni?"})
    content = (tmp_path / "s.h5").read_bytes()
    assert content.count(b"uni?") == 1
    (tmp_path / "s.h5").write_bytes(content.replace(b"uni?", b"uni\xff"))
    assert read(tmp_path / "s.h5")[1].facts.encoder == "uni\ufffd"


def test_json_attribute_of_any_depth_is_only_text(tmp_path: Path) -> None:
    write_trident(tmp_path / "s.h5", FEATURES_ND, COORDS_N2, on_coords={"overlap": "[" * 60_000})
    with pytest.raises(ContentError, match=r"attribute overlap is '\[{60}', expected a number"):
        read(tmp_path / "s.h5")
