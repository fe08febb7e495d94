"""Row 18: checkpoints that are hostile, damaged or gone: the run goes on from the one before and ends the same."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from asmil.engine.checkpoint import CHECKPOINT
from tests.faults.support import INTEGRITY, Commands, Payload
from tests.run_support import Tiny, classification, history_of

PREVIOUS = "checkpoint.previous.pt"
MARKER = "marker"


def payload(path: Path, state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({**state, "x": Payload(path.with_name(MARKER))}, buffer)
    return buffer.getvalue()


def sealed(content: bytes) -> bytes:
    """The content as our own writer would seal it."""
    return b"ASMILCK1" + xxhash.xxh3_64_digest(content) + content


def sealed_payload(path: Path) -> None:
    path.write_bytes(sealed(payload(path, {"epoch": 3})))


def bare_payload(path: Path) -> None:
    path.write_bytes(payload(path, {"epoch": 3}))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sealed_noise(path: Path) -> None:
    path.write_bytes(sealed(bytes(range(256))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    """A run of three epochs with its last two checkpoints."""
    tiny = classification(tmp_path_factory.mktemp("run"), changes={"train.checkpoint_seconds": 0})
    return tiny, tiny.run()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (sealed_payload, "though its checksum is right; nothing in it was run"),
        (sealed_noise, "cannot be read as a checkpoint"),
        (bare_payload, "checksum does not match"),
        (flipped, "checksum does not match"),
        (cut, "checksum does not match"),
        (empty, "0 bytes whose checksum does not match"),
        (Path.unlink, None),
    ],
)
def test_row_18_a_run_goes_on_from_the_checkpoint_before_a_bad_one(
    finished: tuple[Tiny, Path],
    tmp_path: Path,
    commands: Commands,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    reason: str | None,
) -> None:
    tiny, whole = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "result.json").unlink()
    reserve = (out / PREVIOUS).read_bytes()
    damage(out / CHECKPOINT)
    commands.run(tiny.file, "--out", out, "--resume").succeeded("validation (epoch 3): ")
    assert history_of(out) == history_of(whole)
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    assert not (out / MARKER).exists()
    if reason is not None:
        assert (out / PREVIOUS).read_bytes() == reserve, "the damaged file never takes the place of the good one"
    told = [record.message for record in caplog.records if str(out / CHECKPOINT) in record.message]
    assert len(told) == (reason is not None)
    assert all(str(reason) in message for message in told)


@pytest.mark.parametrize("damage", [sealed_payload, flipped])
def test_row_18_without_a_good_checkpoint_the_run_is_refused(
    finished: tuple[Tiny, Path], tmp_path: Path, commands: Commands, damage: Callable[[Path], None]
) -> None:
    tiny, whole = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in (CHECKPOINT, PREVIOUS):
        damage(out / name)
    commands.run(tiny.file, "--out", out, "--resume").refused(
        INTEGRITY, str(out / CHECKPOINT), str(out / PREVIOUS), "no intact checkpoint is left", "without --resume"
    )
    assert not (out / MARKER).exists()


def test_row_18_the_payload_works(tmp_path: Path) -> None:
    torch.load(io.BytesIO(payload(tmp_path / CHECKPOINT, {})), weights_only=False)
    assert (tmp_path / MARKER).exists(), "so that the tests above can fail"
