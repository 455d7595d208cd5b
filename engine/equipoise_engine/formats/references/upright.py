"""Turning volumes with directions of their own the way that images of patients are displayed."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0])
"""From mm along right, anterior and head to mm along left, posterior and head, which is also the way back."""
Sizes = tuple[float, float, float]


def upright(values: NDArray[Any], directions: NDArray[np.float64]) -> tuple[NDArray[Any], Sizes]:
    """Return a volume as `(slice, y, x)` with slices towards the head, y down to the back and x to the left, and sizes.

    This is how DICOM images of the axial plane are displayed. Axes are exchanged and reversed, never mixed: an oblique
    volume keeps its own planes, those nearest to these.

    Parameters
    ----------
    values
        A volume of three axes.
    directions
        Step along each axis of `values`, `(axis, 3)`, mm along left, posterior and head.
    """
    sizes = np.linalg.norm(directions, axis=1)
    shares = np.abs(directions / sizes[:, None])
    # which axis of the values becomes slice, y and x
    order = max(permutations(range(3)), key=lambda axes: sum(shares[axis, 2 - n] for n, axis in enumerate(axes)))
    backwards = tuple(slice(None, None, -1 if directions[axis, 2 - n] < 0 else 1) for n, axis in enumerate(order))
    turned = values.transpose(order)[backwards]
    return turned, (float(sizes[order[0]]), float(sizes[order[1]]), float(sizes[order[2]]))


def usable(directions: NDArray[np.float64]) -> bool:
    """Whether steps `(axis, 3)` span a volume."""
    if not np.isfinite(directions).all():
        return False
    sizes = np.linalg.norm(directions, axis=1)
    if not (sizes > 0).all() or not np.isfinite(sizes).all():
        return False
    return abs(float(np.linalg.det(directions / sizes[:, None]))) > 1e-3
