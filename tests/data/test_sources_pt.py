"""`.pt` files of CLAM, MIL_BASELINE, TRIDENT and DSMIL's cache: values, quirks, and files that must not be trusted."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asmil.data.sources import detect
from asmil.data.sources.base import ContentError, ReadOptions
from asmil.errors import DataError
from tests.data.foreign import tiles
from tests.data.foreign_tensor import write_tensor
from tests.data.reading import read

FEATURES_ND, _ = tiles(40)
TENSOR_ND = torch.from_numpy(FEATURES_ND)


def read_one(path: Path, value: Any, **options: Any) -> tuple[str, np.ndarray]:
    write_tensor(path, value)
    name, _, (bag,) = read(path, **options)
    assert (bag.bag_id, bag.coords_N2) == (path.stem, None)
    return name, bag.features_ND


# --- layouts ---


def test_clam_tensor(tmp_path: Path) -> None:
    write_tensor(tmp_path / "slide_1.ome.pt", TENSOR_ND)
    name, source, (bag,) = read(tmp_path / "slide_1.ome.pt")
    assert (name, bag.bag_id, bag.coords_N2, bag.features_ND.dtype) == ("tensor-pt", "slide_1.ome", None, np.float32)
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND)
    assert bag.features_ND.flags.owndata
    assert detect(tmp_path / "slide_1.ome.pt").reason == "a .pt file with a tensor float32 [40, 6]"
    assert any("no coordinates" in note for note in source.notes)


@pytest.mark.parametrize("key", ["feats", "features"])
@pytest.mark.parametrize("batch_axis", [False, True])
def test_mil_baseline_dict(tmp_path: Path, key: str, batch_axis: bool) -> None:
    value = TENSOR_ND[None] if batch_axis else TENSOR_ND
    name, features_ND = read_one(tmp_path / "s.pt", {key: value})
    assert name == "mil-baseline-pt"
    np.testing.assert_array_equal(features_ND, FEATURES_ND)


def test_what_else_a_dict_holds_is_mentioned(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", {"features": TENSOR_ND, "coords": torch.ones(40, 2), "label": 1})
    assert any("not read from the .pt files: coords, label" in note for note in read(tmp_path / "s.pt")[1].notes)


def test_tensor_with_batch_axis_and_strides(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_one(tmp_path / "a.pt", TENSOR_ND[None])[1], FEATURES_ND)
    np.testing.assert_array_equal(
        read_one(tmp_path / "b.pt", TENSOR_ND[5:20:3].T.contiguous().T)[1], FEATURES_ND[5:20:3]
    )
    np.testing.assert_array_equal(read_one(tmp_path / "c.pt", torch.nn.Parameter(TENSOR_ND))[1], FEATURES_ND)


def test_files_of_torch_before_1_6(tmp_path: Path) -> None:
    for position, value in enumerate([TENSOR_ND, {"feats": TENSOR_ND}, FEATURES_ND]):
        torch.save(value, tmp_path / f"{position}.pt", _use_new_zipfile_serialization=False)
        np.testing.assert_array_equal(read(tmp_path / f"{position}.pt")[2][0].features_ND, FEATURES_ND)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_dtypes_are_kept_and_bfloat16_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    value = TENSOR_ND.to(dtype)
    _, features_ND = read_one(tmp_path / "s.pt", value)
    expected = np.float32 if dtype == torch.bfloat16 else value.numpy().dtype
    assert features_ND.dtype == expected
    np.testing.assert_array_equal(features_ND.astype("f8"), value.double().numpy())
    assert str(dtype).removeprefix("torch.") in detect(tmp_path / "s.pt").reason


def test_tensor_saved_on_a_gpu_is_read_on_the_cpu(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    text = [b"X" + len(word).to_bytes(4, "little") + word for word in (b"cpu", b"cuda:0")]
    rewrite(tmp_path / "s.pt", "data.pkl", lambda content: content.replace(*text))
    np.testing.assert_array_equal(read(tmp_path / "s.pt")[2][0].features_ND, FEATURES_ND)


# --- TRIDENT's pickled arrays ---


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"], ids=["numpy 1", "numpy 2"])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4"])
def test_trident_array_of_either_numpy(tmp_path: Path, core: bytes, dtype: str) -> None:
    write_tensor(tmp_path / "s.pt", FEATURES_ND.astype(dtype))
    rewrite(tmp_path / "s.pt", "data.pkl", lambda content: content.replace(b"numpy._core", core))
    name, _, (bag,) = read(tmp_path / "s.pt")
    assert (name, bag.features_ND.dtype.isnative) == ("trident-pt", True)
    np.testing.assert_array_equal(bag.features_ND, FEATURES_ND.astype(dtype))


@pytest.mark.parametrize(
    "empty",
    [
        np.empty((0, 1024), "f4"),
        np.empty((0,), "f4"),
        torch.empty(0, 1024),
        torch.empty(0),
        {"feats": torch.empty(0, 8)},
    ],
)
def test_slides_without_tissue_are_listed(tmp_path: Path, empty: Any) -> None:
    write_tensor(tmp_path / "empty.pt", empty)
    _, source, bags = read(tmp_path / "empty.pt")
    assert (source.no_tissue, bags) == (("empty",), [])


# --- DSMIL's training cache ---


def with_columns(*values: float) -> torch.Tensor:
    return torch.cat([TENSOR_ND, torch.tensor(values).expand(40, len(values))], dim=1)


def test_label_column_of_dsmil_cache_is_refused_or_dropped(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", with_columns(1))
    with pytest.raises(ContentError, match=r"column 7 of 7 is 1 on every row: DSMIL's training cache"):
        read(tmp_path / "s.pt")
    for value in (0, 1):
        _, features_ND = read_one(tmp_path / "s.pt", with_columns(value), drop_last_column=True)
        np.testing.assert_array_equal(features_ND, FEATURES_ND)


def test_several_label_columns_are_refused_even_if_one_is_dropped(tmp_path: Path) -> None:
    for columns in ((1, 0), (0, 1, 0)):
        write_tensor(tmp_path / "s.pt", with_columns(*columns))
        for drop in (False, True):
            with pytest.raises(ContentError, match=r"is 1 on every row"):
                read(tmp_path / "s.pt", drop_last_column=drop)


def test_a_column_of_zeros_alone_is_no_proof(tmp_path: Path) -> None:
    assert read_one(tmp_path / "s.pt", with_columns(0))[1].shape == (40, 7)
    assert read_one(tmp_path / "one_row.pt", with_columns(1)[:1])[1].shape == (1, 7)


def test_last_column_that_is_no_label_is_not_dropped(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    with pytest.raises(ContentError, match=r"the last of 6 columns is not 0 or 1 throughout"):
        read(tmp_path / "s.pt", drop_last_column=True)


# --- recognised and refused ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(768), r"rank 1 \(768 values\): one vector for the whole slide"),
        (np.ones(768, "f4"), r"rank 1 \(768 values\): one vector for the whole slide"),
        ({"feats": torch.ones(768)}, r"feats has rank 1 \(768 values\)"),
        (torch.ones(2, 3, 4), r"shape \[2, 3, 4\], expected one row per tile"),
        (torch.ones(3, 4, dtype=torch.int64), r"dtype int64, expected features as float16"),
        (torch.ones(3, 4, dtype=torch.complex64), r"dtype complex64, expected features as float16"),
        (np.ones((3, 4), "i4"), r"dtype int32, expected features as float16"),
        ([torch.ones(4), torch.ones(4)], r"a list of 2 tensors, as eva writes them; give the folder"),
        ({"model": {"w": torch.ones(2)}, "epoch": 3}, r"a dict with keys model, epoch, expected features under feats"),
        ("text", r"holds a str, expected a tensor"),
        (torch.ones(3, 4).to_sparse(), r"calls torch._utils._rebuild_sparse_tensor, which builds no dense tensor"),
        (np.array([[{}, []]], dtype=object), r"s\.pt: cannot be read as a \.pt file \(UnpicklingError: Can only build"),
        (torch.nn.Linear(2, 2), r"calls torch\.nn\.modules\.linear\.Linear, which builds no dense tensor"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path: Path, value: Any, message: str) -> None:
    write_tensor(tmp_path / "s.pt", value)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "s.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_programs_and_quantised_tensors_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "script.pt"))
    write_tensor(tmp_path / "quantised.pt", torch.quantize_per_tensor(TENSOR_ND, 0.1, 0, torch.qint8))
    for name, message in (("script", "a TorchScript program"), ("quantised", r"calls torch\._utils\._rebuild_qtensor")):
        with pytest.raises(DataError, match=message):
            read(tmp_path / f"{name}.pt")


@pytest.mark.parametrize("member", ["e/models/model.json", "e/archive_format", "serialized_exported_program.json"])
def test_exported_programs_are_refused(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr(member, "{}")
    with pytest.raises(DataError, match=r"saved by torch\.export, not features; programs are never loaded"):
        read(tmp_path / "program.pt")


# --- files that must not be trusted ---


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("layout", ["zip", "old", "raw", "in_tensor_keys"])
def test_payload_never_runs(tmp_path: Path, layout: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "s.pt"
    payload = {"feats": TENSOR_ND, "x": Payload(marker)}
    if layout == "raw":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=layout == "zip")
    if layout == "in_tensor_keys":  # the fifth pickle of the old layout
        torch.save(TENSOR_ND, path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        keys = content.rindex(b"\x80\x02]")
        path.write_bytes(content[:keys] + pickle.dumps(Payload(marker), protocol=2) + content[keys:])
    with pytest.raises(DataError, match=r"could run code|run any code"):
        read(path)
    assert not marker.exists()
    if layout in ("zip", "old"):
        torch.load(path, weights_only=False)
        assert marker.exists(), "the payload works, so the test can fail"


def test_payload_found_at_run_time_is_refused(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    evil = pickle.dumps(Payload(tmp_path / "marker"), protocol=4)
    rewrite(tmp_path / "s.pt", "data.pkl", lambda _: evil)
    with pytest.raises(DataError, match="looks up names at run time"):
        read(tmp_path / "s.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [TENSOR_ND, FEATURES_ND], ids=["tensor", "array"])
def test_cut_files_are_a_data_error(tmp_path: Path, zipped: bool, value: Any) -> None:
    torch.save(value, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pt").read_bytes()
    for kept in range(0, len(content), 37):
        (tmp_path / "s.pt").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"s\.pt") as caught:
            read(tmp_path / "s.pt")
        assert "Invalid argument" not in str(caught.value)
        assert "trust the source" not in str(caught.value)


def test_flipped_tensor_byte_is_noticed(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    content = bytearray((tmp_path / "s.pt").read_bytes())
    content[content.index(FEATURES_ND.tobytes()) + 100] ^= 1
    (tmp_path / "s.pt").write_bytes(content)
    with pytest.raises(DataError, match="do not have the checksum stored with them"):
        read(tmp_path / "s.pt")


def _declare_more(content: bytes) -> bytes:
    return content.replace(b"K\x28K\x06", b"J\x00\x00\x00\x10K\x06")  # shape [40, 6] becomes [2 ** 28, 6]


def test_sizes_beyond_the_file_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", torch.ones(1, 1).expand(1 << 20, 1 << 20))
    with pytest.raises(DataError, match=r"declares float32 \[1048576, 1048576\], 4398046511104 bytes, but the file"):
        read(tmp_path / "s.pt")
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    rewrite(tmp_path / "s.pt", "data.pkl", _declare_more)
    with pytest.raises(DataError, match=r"s\.pt"):
        read(tmp_path / "s.pt")


def test_storage_that_claims_the_size_of_the_file_is_refused(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    rewrite(tmp_path / "s.pt", "data.pkl", lambda content: content.replace(b"K\xf0t", b"M\x00\x01t"))  # 240 to 256
    with pytest.raises(DataError, match=r"but the file does not store these"):
        read(tmp_path / "s.pt")


def test_compressed_or_foreign_members_are_refused(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    rewrite(tmp_path / "s.pt", "data.pkl", lambda content: content, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="compressed or lie apart"):
        read(tmp_path / "s.pt")
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    with zipfile.ZipFile(tmp_path / "s.pt", "a") as archive:
        archive.writestr("other/data.pkl", b"")
    with pytest.raises(DataError, match="compressed or lie apart"):
        read(tmp_path / "s.pt")


def rewrite(
    path: Path, member: str, change: Callable[[bytes], bytes], *, compression: int = zipfile.ZIP_STORED
) -> None:
    """Change one member of a zip archive, and write all of them anew."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith(f"/{member}") else content)


def test_options_of_other_formats_change_nothing(tmp_path: Path) -> None:
    write_tensor(tmp_path / "s.pt", TENSOR_ND)
    source = detect(tmp_path / "s.pt").format.open(tmp_path / "s.pt", ReadOptions(keep_augmented=True))
    np.testing.assert_array_equal(source.read("s").features_ND, FEATURES_ND)
