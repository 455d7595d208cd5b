"""What is done to every value by itself, or to a row of one view: scaling to air, the logarithm, beam hardening."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEAST_AIR = 1e-6
"""Smallest transmission of air that can be divided by."""


def scaled_to_air(
    values: NDArray[np.float32], columns: int, side: Literal["both", "left", "right"], *, attenuated: bool
) -> None:
    """Scale rows of views in place so that the columns at their ends transmit everything.

    With both ends, a straight line between the two is what everything is divided by. A row in which the air transmits
    nothing becomes NaN.

    Parameters
    ----------
    values
        Transmission, or attenuation of which the air is taken away, `(row, view, column)`, float32; NaN is left out.
    columns
        Number of columns at an end.
    side
        Which end.
    attenuated
        Whether values are attenuation.
    """
    ends = values[:, :, :columns], values[:, :, -columns:]
    left, right = (_mean(end) for end in ends)
    if side != "both":
        air = (left if side == "left" else right)[:, :, None]
    else:
        # the means belong to the middles of the two ends
        middle = 0.5 * (columns - 1)
        place = (np.arange(values.shape[2]) - middle) / (values.shape[2] - columns)
        share = place.astype(np.float32)
        air = left[:, :, None] * (1 - share) + right[:, :, None] * share
    if attenuated:
        values -= air
    else:
        values /= np.where(air > LEAST_AIR, air, np.nan)


def negative_log(values: NDArray[np.float32], floor: NDArray[np.float32]) -> NDArray[np.intp]:
    """Replace transmission by its negative logarithm in place; return how many values were below the floor.

    Parameters
    ----------
    values
        `(row, view, column)`, float32; NaN remains.
    floor
        Smallest transmission `(row,)`, float32.

    Returns
    -------
    clipped
        `(row, view)`.
    """
    lowest = floor[:, None, None]
    with np.errstate(invalid="ignore"):
        below = np.count_nonzero(values < lowest, axis=2)
        np.maximum(values, lowest, out=values)
        np.log(values, out=values)
    np.negative(values, out=values)
    return np.asarray(below)


def polynomial(values: NDArray[np.float32], coefficients: tuple[float, ...]) -> None:
    """Replace values p of any shape, float32, by a1 p + a2 p^2 + ... in place; what grows beyond all bounds is NaN."""
    result = np.zeros_like(values)
    with np.errstate(over="ignore", invalid="ignore"):
        for coefficient in reversed(coefficients):
            result += np.float32(coefficient)
            result *= values
    values[...] = np.where(np.isfinite(result), result, np.nan)


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over columns `(row, view)`, NaN where there is none."""
    good = ~np.isnan(values)
    number = good.sum(axis=2)
    total = np.where(good, values, 0).sum(axis=2, dtype=np.float64)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)
