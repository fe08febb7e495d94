"""Rows 14 to 17 and 20: files that claim, link, embed or unpack more than they hold, beside one good slide."""

from __future__ import annotations

import gzip
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asmil.data.store import BagStore
from tests.data.foreign import tiles, write_clam
from tests.data.foreign_hdf5 import write_bare
from tests.data.packing.support import set_faults
from tests.faults.support import INPUT, Commands, Payload, snapshot

FEATURES_ND, COORDS_N2 = tiles(40)
MIB = 1 << 20


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    return folder


def assert_left_out(commands: Commands, slides: Path, reasons: dict[str, str], *words: object) -> None:
    """Check that all files but the good one are left out for these reasons, and refused with --strict."""
    store, before = slides.parent / "store", snapshot(slides.parent)
    command = [slides, "--out", store, "--workers", 1, "--reader-timeout", 60, *words]
    refused = commands.pack(*command, "--strict")
    refused.refused(INPUT, "--strict was given", *_named(reasons))
    assert snapshot(slides.parent) == before
    commands.pack(*command).succeeded("left out: ", *_named(reasons))
    opened = BagStore.open(str(store))
    assert opened.slide_ids == ("good",)
    np.testing.assert_array_equal(opened.read("good").features_ND.numpy(), FEATURES_ND.astype("f2"))
    left_out = opened.info.provenance["left_out"]
    assert {Path(name).name for name in left_out} == reasons.keys()
    kept = {name: content for name, content in snapshot(slides.parent).items() if not name.startswith(str(store))}
    assert kept == before


def _named(reasons: dict[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def test_row_14_a_dataset_that_claims_terabytes_is_refused_before_anything_is_allocated(
    slides: Path, commands: Commands
) -> None:
    write_clam(slides / "good.h5", FEATURES_ND, COORDS_N2)
    for name, options in {"chunked": {"chunks": (32, 768)}, "compact": {}, "packed": {"compression": "gzip"}}.items():
        with h5py.File(slides / f"{name}.h5", "w") as file:
            file.create_dataset("features", shape=(1 << 30, 768), dtype="f4", **options)
            file["coords"] = COORDS_N2
        assert (slides / f"{name}.h5").stat().st_size < 6000
    claim = "/features declares shape [1073741824, 768] of float32, 3298534883328 bytes in chunks of "
    assert_left_out(
        commands, slides, {f"{name}.h5": claim for name in ("chunked", "compact", "packed")}, "--reader-memory", 0.25
    )


def test_row_15_storage_and_links_outside_the_file_are_refused_and_their_target_is_never_opened(
    slides: Path, commands: Commands
) -> None:
    """The target is a pipe that nobody writes to: opening it would wait until the reader's time is over."""
    target = slides.parent / "target"
    os.mkfifo(target)
    write_clam(slides / "good.h5", FEATURES_ND, COORDS_N2)
    makers: dict[str, Callable[[h5py.File], object]] = {
        "storage": lambda file: file.create_dataset("features", (4, 6), "f4", external=[(str(target), 0, 96)]),
        "external": lambda file: file.__setitem__("features", h5py.ExternalLink(str(target), "features")),
        "virtual": lambda file: file.create_virtual_dataset("features", virtual_layout(target)),
        "soft": lambda file: file.__setitem__("features", h5py.SoftLink("/coords")),
        "loop": lambda file: file.update({"features": h5py.SoftLink("/loop"), "loop": h5py.SoftLink("/features")}),
    }
    for name, make in makers.items():
        with h5py.File(slides / f"{name}.h5", "w") as file:
            make(file)
            file["coords"] = COORDS_N2[:4]
    elsewhere = "/features keeps its values in other files"
    soft = "/features is a soft link; only data inside the file itself is read"
    assert_left_out(
        commands,
        slides,
        {
            "storage.h5": elsewhere,
            "external.h5": "/features is a link to another file; only data inside the file itself is read",
            "virtual.h5": elsewhere,
            "soft.h5": soft,
            "loop.h5": soft,
        },
        "--reader-timeout",
        5,
    )


def virtual_layout(target: Path) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=(4, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(target), "features", shape=(4, 6))
    return layout


WIDTH = 37  # unlike any other number in so small a file


def mutants(content: bytes, number: int) -> list[bytes]:
    """Copies with one to eight changed bytes, every fourth one also cut; their width stays that of the good slide."""
    rng = np.random.default_rng(20)
    width = WIDTH.to_bytes(8, "little")
    fixed = {start + i for start in range(len(content)) if content.startswith(width, start) for i in range(8)}
    free = np.array(sorted(set(range(len(content))) - fixed))
    found = []
    for index in range(number):
        mutant = bytearray(content)
        for position in rng.choice(free, size=rng.integers(1, 9), replace=False):
            mutant[position] ^= int(rng.integers(1, 256))
        found.append(bytes(mutant[: rng.integers(len(mutant))] if index % 4 == 3 else mutant))
    return found


def test_row_16_damaged_files_harm_neither_the_conversion_nor_the_slides_around_them(
    slides: Path, tmp_path: Path, commands: Commands
) -> None:
    features_ND = np.random.default_rng(0).standard_normal((10, WIDTH)).astype("f4")
    for name in ("a-good", "z-good"):
        write_bare(slides / f"{name}.h5", features_ND)
    content = (slides / "a-good.h5").read_bytes()
    names = {f"m{index:03d}" for index in range(200)}
    for name, mutant in zip(sorted(names), mutants(content, len(names)), strict=True):
        (slides / f"{name}.h5").write_bytes(mutant)
    outcome = commands.pack(slides, "--out", tmp_path / "store", "--workers", 1, "--skip-bad", "--reader-memory", 0.5)
    outcome.succeeded("left out: ")
    store = BagStore.open(str(tmp_path / "store"))
    left_out = {Path(name).stem for name in store.info.provenance["left_out"]}
    assert left_out.isdisjoint(store.slide_ids)
    assert left_out | set(store.slide_ids) == names | {"a-good", "z-good"}
    assert len(left_out) > 50
    for name in ("a-good", "z-good"):
        np.testing.assert_array_equal(store.read(name).features_ND.numpy(), features_ND.astype("f2"))


def test_row_16_a_slide_beyond_the_memory_limit_is_left_out(slides: Path, commands: Commands) -> None:
    """128 MiB of zeros are packed into a small file, which may well unpack to that."""
    write_clam(slides / "good.h5", FEATURES_ND, COORDS_N2)
    with h5py.File(slides / "large.h5", "w") as file:
        for name, width, dtype in (("features", 6, "f4"), ("coords", 2, "i4")):
            chunks = (1 << 20, width)
            file.create_dataset(name, data=np.zeros((1 << 22, width), dtype), chunks=chunks, compression="gzip")
    words = ["--workers", 1, "--reader-memory", 1 / 16, "--out"]
    reason = "large: reading it takes more memory than --reader-memory allows"
    alone = commands.pack(slides / "large.h5", *words, slides.parent / "alone")
    alone.refused(INPUT, reason, "there is nothing else to convert")
    assert not (slides.parent / "alone").exists()
    commands.pack(slides, *words, slides.parent / "store").succeeded(f"left out: {reason}")
    assert BagStore.open(str(slides.parent / "store")).slide_ids == ("good",)


def test_row_16_a_slide_that_ends_the_reader_process_is_left_out(
    slides: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "good", "z"):
        write_clam(slides / f"{name}.h5", FEATURES_ND, COORDS_N2)
    set_faults(monkeypatch, read={"a": "kill"}, open={"z.h5": "kill"})
    outcome = commands.pack(slides, "--out", slides.parent / "store", "--workers", 1)
    died = "its reader process died with signal 9 (SIGKILL)"
    outcome.succeeded(f"left out: a: {died}", f"left out: {slides}/z.h5: {died}")
    assert BagStore.open(str(slides.parent / "store")).slide_ids == ("good",)


class Anything:
    """What somebody may save in place of a tensor."""


def test_row_17_a_payload_a_cut_file_and_an_object_are_refused_and_nothing_runs(
    slides: Path, tmp_path: Path, commands: Commands
) -> None:
    marker, tensor_ND = tmp_path / "marker", torch.from_numpy(FEATURES_ND)
    torch.save(tensor_ND, slides / "good.pt")
    torch.save({"features": tensor_ND, "x": Payload(marker)}, slides / "payload.pt")
    torch.save([tensor_ND, Payload(marker)], slides / "old.pt", _use_new_zipfile_serialization=False)
    (slides / "pickle.pt").write_bytes(pickle.dumps(Payload(marker)))
    torch.save(Anything(), slides / "object.pt")
    torch.save("no tensor", slides / "text.pt")
    whole = (slides / "good.pt").read_bytes()
    (slides / "cut.pt").write_bytes(whole[: len(whole) // 2])
    calls = "its pickle calls "
    assert_left_out(
        commands,
        slides,
        {
            "payload.pt": calls,
            "old.pt": calls,
            "pickle.pt": "a Python pickle that torch.save did not write; reading one can run any code",
            "object.pt": f"{calls}{__name__}.Anything",
            "text.pt": "holds a str, expected a tensor of features",
            "cut.pt": "cannot be read as a zip archive, which .npz and .pt files are",
        },
    )
    assert not marker.exists()
    torch.load(slides / "payload.pt", weights_only=False)
    assert marker.exists(), "the payload works, so the test can fail"
    outcome = commands.pack(slides / "cut.pt", "--out", tmp_path / "alone", "--workers", 1)
    outcome.refused(INPUT, f"{slides}/cut.pt: cannot be read", "it is cut or damaged: make or copy it again")
    assert "Invalid argument" not in outcome.message


def torch_archive(
    path: Path, name: str, content: bytes = b"x", *, compression: int = zipfile.ZIP_STORED, attributes: int = 0
) -> None:
    """A file of `torch.save` with one more member, as an attacker could add it."""
    torch.save(torch.from_numpy(FEATURES_ND), path)
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr = compression, attributes
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, content)


def test_row_20_archives_that_leave_their_place_or_explode_are_refused_before_they_are_unpacked(
    slides: Path, commands: Commands
) -> None:
    torch.save(torch.from_numpy(FEATURES_ND), slides / "good.pt")
    torch_archive(slides / "up.pt", "up/data/../../../up")
    torch_archive(slides / "absolute.pt", f"{slides.parent}/absolute")
    torch_archive(slides / "link.pt", "link/data/1", b"/etc/passwd", attributes=(stat.S_IFLNK | 0o777) << 16)
    torch_archive(slides / "bomb.pt", "bomb/data/1", bytes(64 * MIB), compression=zipfile.ZIP_DEFLATED)
    member = "archive member "
    assert_left_out(
        commands,
        slides,
        {
            "up.pt": f"{member}'up/data/../../../up' leads out of the archive; nothing was unpacked",
            "absolute.pt": f"{member}'{slides.parent}/absolute' has an absolute or malformed name",
            "link.pt": f"{member}'link/data/1' is a link; nothing was unpacked",
            "bomb.pt": f"{member}'bomb/data/1' declares {64 * MIB} bytes unpacked from ",
        },
        "--reader-memory",
        0.25,
    )


def test_row_20_packed_text_that_explodes_is_refused(tmp_path: Path, commands: Commands) -> None:
    line, path = b"a,a_1+1,1,2,3,0.\n", tmp_path / "set.data.gz"
    path.write_bytes(gzip.compress(line + b"\n" * (16 * MIB)))
    outcome = commands.pack(path, "--out", tmp_path / "store", "--workers", 1)
    allowed = 1000 * path.stat().st_size
    outcome.refused(INPUT, f"{path}: more than {allowed} bytes of text in a file of {path.stat().st_size}")
    table = tmp_path / "labels.csv.zip"
    with zipfile.ZipFile(table, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.csv", b"slide,label\n" + bytes(64 * MIB))
    write_clam(tmp_path / "s.h5", FEATURES_ND, COORDS_N2)
    outcome = commands.pack(tmp_path / "s.h5", "--out", tmp_path / "store", "--workers", 1, "--labels", table)
    outcome.refused(INPUT, f"{table}: labels.csv declares {64 * MIB + 12} bytes, packed into ", "at most 1000 times")
    assert not (tmp_path / "store").exists()
