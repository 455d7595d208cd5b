"""What a trajectory through k-space tells of the image: its size, from where its samples lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZES = (32, 64, 128, 256, 512, 1024)
"""Sizes of an image that are tried for readouts that curve."""
FILLED = 0.7
"""Share of the cells of k-space that samples must lie in, for a matrix to be covered by them."""


def image_size(points: NDArray[np.float64]) -> tuple[int, str]:
    """Return the size of an image that a trajectory `(readout, sample, 2)` in cycles per pixel covers, and why."""
    steps = np.diff(points, axis=1)
    lengths = np.linalg.norm(steps, axis=-1)
    whole = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1)
    if lengths.size and np.median(lengths) > 0 and np.allclose(whole, lengths.sum(axis=1), rtol=1e-3):
        size = int(np.clip(2 * round(0.5 / float(np.median(lengths))), SIZES[0], 4 * SIZES[-1]))
        return size, "the straight readouts are sampled finely enough for it"
    fitting = [n for n in SIZES if _filled(points, n) >= FILLED]
    size = max(fitting, default=SIZES[0])
    return size, f"{100 * _filled(points, size):.0f} % of so many cells of k-space hold a sample"


def _filled(points: NDArray[np.float64], size: int) -> float:
    """Return the share of the cells of a round k-space of so many rows and columns that hold a sample."""
    cells = np.clip(np.floor((points.reshape(-1, 2) + 0.5) * size).astype(np.int64), 0, size - 1)
    held = np.zeros((size, size), dtype=bool)
    held[cells[:, 0], cells[:, 1]] = True
    middle = (np.arange(size) + 0.5) / size - 0.5
    inside = middle[:, None] ** 2 + middle[None, :] ** 2 < (0.5 - 1.0 / size) ** 2
    return float(held[inside].mean())
