"""Turning projections so that the rotation axis lies along the columns of the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.preprocess.selection import middle_of_detector, rows_apart
from equipoise_engine.recipe import Tilt

SPLINE_ROWS = 14
"""Rows beside a point that its cubic spline depends on; the weight of the next is below 1e-8."""


@dataclass(frozen=True)
class Turn:
    """A turn of projections about a place of the detector.

    Parameters
    ----------
    angle_rad
        From the columns of the detector to the axis; above 0 where the top of the axis leans to the right in a
        projection drawn with row 0 on top and column 0 at the left.
    rows, columns
        Size of the detector.
    taller
        Distance from one row to the next, in columns.
    middle
        The row and the column that are turned about, which may lie beyond the detector; None for its middle.
    """

    angle_rad: float
    rows: int
    columns: int
    taller: float = 1.0
    middle: tuple[float, float] | None = None

    @property
    def _about(self) -> tuple[float, float]:
        return ((self.rows - 1) / 2, (self.columns - 1) / 2) if self.middle is None else self.middle

    @property
    def margin(self) -> int:
        """Rows beside the wanted ones that enter."""
        if self.angle_rad == 0:
            return 0
        sine, cosine = abs(math.sin(self.angle_rad)), math.cos(self.angle_rad)
        row, column = self._about
        right, up = max(column, self.columns - 1 - column), max(row, self.rows - 1 - row)
        reach = right * sine / self.taller + up * (1 - cosine)
        return math.ceil(reach) + SPLINE_ROWS

    def apply(self, values: NDArray[np.float32], first: int, wanted: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the wanted rows of turned projections `(wanted, view, column)`, float32, by cubic splines.

        Beyond the detector its outermost values go on.

        Parameters
        ----------
        values
            `(row, view, column)`, float32; its rows follow each other from `first` on.
        first
            Detector row of the first of them.
        wanted
            Detector rows `(wanted,)`.
        """
        sine, cosine = math.sin(self.angle_rad), math.cos(self.angle_rad)
        middle_row, middle_column = self._about
        right = np.arange(self.columns, dtype=np.float64)[None, :] - middle_column
        up = middle_row - wanted.astype(np.float64)[:, None]
        # a point on the upright axis comes from one on the leaning axis
        row = middle_row + right * sine / self.taller - up * cosine - first
        column = middle_column + right * cosine + up * self.taller * sine
        # what the mirror beyond the border of a crop holds must not enter
        place = np.stack([np.clip(row, -first, self.rows - 1 - first), np.clip(column, 0, self.columns - 1)])
        result = np.empty((wanted.size, *values.shape[1:]), dtype=np.float32)
        for view in range(values.shape[1]):
            ndimage.map_coordinates(values[:, view], place, output=result[:, view], order=3, mode="mirror")
        return result


def turn_of(scan: CtAcquisition, step: Tilt) -> Turn:
    """Return the turn of a step for a scan, whose rows may lie further apart than its columns.

    It is about the middle of the whole detector, whatever part of it is taken: so the axis stays where it is. Rows and
    columns that were cut away cannot be read: in their place the outermost ones go on, and of a crop of few rows far
    from the middle only those hold what is theirs whose rows are there.
    """
    angle_rad = math.radians(step.angle_deg)
    return Turn(angle_rad, scan.shape[1], scan.shape[2], rows_apart(scan), middle_of_detector(scan))
