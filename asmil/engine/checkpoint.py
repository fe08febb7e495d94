"""Checkpoints: one file, written atomically, checked when read, with the one before it kept in reserve."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch
import xxhash

from asmil.errors import IntegrityError
from asmil.storage import publish_bytes

__all__ = ["CHECKPOINT", "load_checkpoint", "save_checkpoint"]

CHECKPOINT = "checkpoint.pt"
DAMAGED = "checkpoint.damaged.pt"
_MAGIC = b"ASMILCK1"
_DIGEST_BYTES = 8

logger = logging.getLogger(__name__)


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint; the previous one becomes the reserve.

    Args:
        directory: The run directory.
        state: Tensors, numbers, texts and containers of them; nothing that needs pickle to be trusted.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = directory / CHECKPOINT
    if path.exists():
        os.replace(path, _reserve(path))
    publish_bytes(path, _MAGIC + xxhash.xxh3_64_digest(content) + content)
    return path


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest good checkpoint of a directory, or None if there is none at all.

    A damaged file is named in the log and its reserve is taken; the damaged one is put aside, so that the next
    checkpoint does not push it into the reserve's place.

    Raises:
        IntegrityError: There are checkpoints, but none is intact.
    """
    path = directory / CHECKPOINT
    problems = []
    for candidate in (path, _reserve(path)):
        if not candidate.exists():
            continue
        try:
            state = _read(candidate)
        except IntegrityError as error:
            logger.warning("%s", error)
            problems.append(str(error))
            continue
        if problems:
            with contextlib.suppress(OSError):
                path.replace(path.with_name(DAMAGED))
        return state
    if problems:
        raise IntegrityError("; ".join(problems) + ": no intact checkpoint is left; start again without --resume")
    return None


def _reserve(path: Path) -> Path:
    return path.with_name("checkpoint.previous.pt")


def _read(path: Path) -> dict[str, Any]:
    blob = path.read_bytes()
    start = len(_MAGIC) + _DIGEST_BYTES
    if blob[: len(_MAGIC)] != _MAGIC or xxhash.xxh3_64_digest(blob[start:]) != blob[len(_MAGIC) : start]:
        raise IntegrityError(f"{path}: {len(blob)} bytes whose checksum does not match what was written")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(blob[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is no checkpoint makes torch raise nearly every built-in exception
        reason = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())[:160]
        raise IntegrityError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason}), though its checksum is right; "
            "nothing in it was run"
        ) from None
    return state
