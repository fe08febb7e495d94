"""Memory that slides are read into, used again when nothing refers to it any more.

Fresh memory costs a page fault every 4 KiB, several times what reading costs. The C library's allocator reuses memory
too, but leaves holes behind buffers of unequal sizes, which doubles what a process takes. Huge pages, where the system
has them, make filling and hashing a few percent cheaper.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmil.storage.locks import ForkSafe

__all__ = ["BufferPool"]

MIN_BYTES = 1 << 20
_ITEMS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
}
MAX_FREE = 4


class BufferPool(ForkSafe):
    """Makes tensors without content, large ones from memory that earlier ones have left.

    The memory of a tensor comes back when the last tensor that looks at it is gone. A few free buffers are kept, so
    there are hardly more than were in use at the same time. Safe to use from several threads; pickles empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self._free: deque[mmap.mmap] = deque(maxlen=MAX_FREE)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, memoryview]:
        """A tensor without content, and its memory as writable bytes.

        Args:
            shape: Of the tensor.
            dtype: Of the tensor.
        """
        item = _ITEMS[dtype]
        num_bytes = math.prod(shape) * item.itemsize
        if num_bytes < MIN_BYTES:
            array = np.empty(shape, item)
            content = array.data.cast("B") if num_bytes else memoryview(b"")
        else:
            buffer = self._take(num_bytes)
            array = np.ndarray(shape, item, buffer)
            # Torch holds this very array while a tensor needs it. What is called then takes no lock, for it may come
            # in the middle of anything.
            weakref.finalize(array, self._free.append, buffer).atexit = False
            content = memoryview(buffer)[:num_bytes]
        tensor = torch.from_numpy(array)
        return tensor if dtype is not torch.bfloat16 else tensor.view(dtype), content

    def _take(self, num_bytes: int) -> mmap.mmap:
        with self._lock:
            free = [self._free.popleft() for _ in range(len(self._free))]
            if len(free) > 1:
                free.sort(key=len)
            fitting = next((buffer for buffer in free if len(buffer) >= num_bytes), None)
            if fitting is not None:
                free.remove(fitting)
            elif free:
                free.pop()  # the largest gives way to a larger one
            self._free.extendleft(free)
        if fitting is not None:
            return fitting
        buffer = mmap.mmap(-1, -(-num_bytes // MIN_BYTES) * MIN_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):  # not every system has huge pages
            buffer.madvise(mmap.MADV_HUGEPAGE)
        return buffer
