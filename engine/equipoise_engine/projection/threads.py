"""How many threads the compiled kernels take."""

from __future__ import annotations

import numba
import torch


def match_threads() -> None:
    """Let numba take as many threads as torch.

    When it starts, it sets the number for torch as well; sums then round differently after the first projection than
    before it, and a training that is resumed would not repeat bit for bit.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
