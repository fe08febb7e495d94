"""Bytes in local files and object stores: written whole or not at all, read by range.

Nothing here knows what the bytes mean.
"""

from asmil.storage.addresses import open_fs
from asmil.storage.blocks import Block, BlockReader, FoundBlock, LocalBlocks, RangedBlocks, direct_blocks
from asmil.storage.local import OpenFile, RangeReader
from asmil.storage.location import Location, open_location
from asmil.storage.publish import (
    disk_problems,
    ensure_directory,
    file_sha256,
    publish_bytes,
    publish_json,
    publish_text,
    sync_directory,
    sync_file,
)

__all__ = [
    "Block",
    "BlockReader",
    "FoundBlock",
    "LocalBlocks",
    "Location",
    "OpenFile",
    "RangeReader",
    "RangedBlocks",
    "direct_blocks",
    "disk_problems",
    "ensure_directory",
    "file_sha256",
    "open_fs",
    "open_location",
    "publish_bytes",
    "publish_json",
    "publish_text",
    "sync_directory",
    "sync_file",
]
