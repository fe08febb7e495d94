"""How many CPU threads a training uses.

A step on small bags is many small operations; sharing each among threads costs more than it saves, and on a machine
whose cores are busy it costs far more (MUSK1 on two busy cores: 140 bags/s with one thread, 4 to 40 with two).
"""

from __future__ import annotations

import functools

import torch

__all__ = ["use_threads"]

VALUES_WORTH_SHARING = 1e6


def use_threads(values_per_step: float) -> int:
    """Use one thread for small steps, and all that the process was given for large ones.

    Args:
        values_per_step: Feature values of a mean optimizer step: instances x D.

    Returns:
        The number of threads now in use; never more than `OMP_NUM_THREADS` or Ray allowed at the start.
    """
    threads = _given() if values_per_step >= VALUES_WORTH_SHARING else 1
    torch.set_num_threads(threads)
    return threads


@functools.cache
def _given() -> int:
    return torch.get_num_threads()
