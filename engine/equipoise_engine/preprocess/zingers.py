"""Specks that stray photons leave in single views."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from equipoise_engine.preprocess.defects import noise_of

LEAST_SPREAD = 1e-3
"""Smallest standard deviation of noise: as a share of counts or transmission, or of attenuation itself."""
MANY = 0.01
"""Share of values above which the medians of all are quicker than those of some."""


def without_zingers(
    values: NDArray[np.float32], threshold: float, size: int, *, attenuated: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return views without specks `(row, view, column)`, float32, and which values were replaced.

    A speck is brighter than the median around it in its view, and than the same element in the views beside, by
    `threshold` standard deviations of the noise of its row. The edges of an object are sharp too, but stand in the
    views beside as well.

    Parameters
    ----------
    values
        `(row, view, column)`, float32, rows and views in order; those beside the wanted ones help to judge them.
    threshold
        Standard deviations.
    size
        Side of the median across rows and columns; odd.
    attenuated
        Whether values are attenuation: bright is then low.
    """
    sign = np.float32(-1 if attenuated else 1)
    least = np.float32(LEAST_SPREAD) * (1 if attenuated else np.median(np.abs(values), axis=2))
    limit = (threshold * np.maximum(noise_of(values), least)).astype(np.float32)[:, :, None]
    specks = np.ones(values.shape, dtype=np.bool_)
    if values.shape[1] > 1:
        bright = sign * values
        beside = np.full_like(bright, -np.inf)
        beside[:, 1:] = bright[:, :-1]
        np.maximum(beside[:, :-1], bright[:, 1:], out=beside[:, :-1])
        specks = bright - beside > limit
    # few are left now, and medians are dear
    place = np.nonzero(specks)
    median = _medians(values, place, size)
    specks[place] = sign * (values[place] - median) > np.broadcast_to(limit, values.shape)[place]
    result = values.copy()
    result[place] = np.where(specks[place], median, values[place])
    return result, specks


def _medians(values: NDArray[np.float32], place: tuple[NDArray[np.intp], ...], size: int) -> NDArray[np.float32]:
    """Return the medians `(place,)` around some places, across rows and columns; beyond the border its values go on."""
    rows, views, columns = place
    if rows.size > MANY * values.size:
        return np.asarray(ndimage.median_filter(values, size=(size, 1, size), mode="nearest")[place])
    reach = np.arange(size) - size // 2
    around = np.empty((size, size, rows.size), dtype=np.float32)
    for i, down in enumerate(reach):
        for j, right in enumerate(reach):
            row = np.clip(rows + down, 0, values.shape[0] - 1)
            around[i, j] = values[row, views, np.clip(columns + right, 0, values.shape[2] - 1)]
    return np.asarray(np.median(around.reshape(size * size, -1), axis=0))
