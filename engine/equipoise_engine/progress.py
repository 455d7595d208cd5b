"""The one mechanism that observes and cancels every long computation.

Each solver iterate (forward and implicit backward) and each optimiser step calls `watch(progress)`. The
callee reports; to stop the computation it raises `Cancelled`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


class Cancelled(Exception):
    """Raised by a watch to stop the computation at an iterate boundary."""


@dataclass(frozen=True)
class Progress:
    """Where a computation stands.

    Parameters
    ----------
    stage
        What is running: "solve", "backward", "train", "read", "write".
    step
        Number of finished steps, from 1.
    total
        Number of steps after which the computation stops at the latest; 0 where unknown.
    iterate
        The current image `(slice, y, x)`, float32 or complex64, where there is one.
    data_residual
        ||A x - y|| / ||y|| per slice `(slice,)`, float64, where it was measured.
    fixed_point_residual
        ||T(x) - x|| / ||T(x)|| per slice `(slice,)`, float64, where it was measured.
    terms
        Named scalars of a training step, as the loss terms.
    """

    stage: str
    step: int
    total: int = 0
    iterate: Tensor | None = None
    data_residual: Tensor | None = None
    fixed_point_residual: Tensor | None = None
    terms: tuple[tuple[str, float], ...] = ()


Watch = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """Let a computation run without observing it."""
