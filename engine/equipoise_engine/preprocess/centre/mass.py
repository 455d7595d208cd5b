"""The axis about which the centre of mass of the views of an object inside the field of view moves on a sinusoid.

Source: Ludwig 1966, doi:10.1002/cpa.3160190207 (moments of projections).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.fbp import directions
from equipoise_engine.preprocess.centre.estimate import TOLERATED_PX, CentreEstimate, estimate

_Reals = NDArray[np.float64]

MIN_ARC_RAD = np.deg2rad(120.0)
"""Shortest arc that tells the axis from the sinusoid."""
MIN_VIEWS = 5
"""Fewest directions that an axis is found from."""
MOST = 0.55
"""Largest confidence in a centre of mass."""
POINTS = 101
"""Positions of the curve of residuals."""


def centre_of_mass(
    sinograms: NDArray[np.float32], angle_rad: _Reals, between: tuple[float, float]
) -> CentreEstimate | None:
    """Return the axis from the centres of mass, or None where the object leaves the field of view.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    angle_rad
        `(view,)`, float64.
    between
        First and last column that the axis may lie at.
    """
    columns = sinograms.shape[2]
    edge = max(columns // 40, 2)
    if np.ptp(angle_rad) < MIN_ARC_RAD or directions(angle_rad, np.pi).angle_rad.size < MIN_VIEWS:
        return None
    mass = sinograms.sum(axis=2, dtype=np.float64)
    typical = float(np.median(mass))
    high = float(np.percentile(sinograms, 99))
    border = np.concatenate([sinograms[:, :, :edge], sinograms[:, :, -edge:]], axis=2)
    # All views of an object inside the field of view have the same mass, and nothing at the borders.
    if typical <= 0 or high <= 0 or float(np.abs(np.mean(border, axis=(0, 2))).max()) > 0.06 * high:
        return None
    # noise of single values adds up over a view
    noise = np.abs(0.5 * np.diff(np.diff(sinograms, axis=2), axis=1))
    trembling = float(np.median(noise)) / 0.6745 * np.sqrt(columns) if noise.size else 0.0
    if float(np.std(mass, axis=1).max()) > 0.03 * typical + 1.5 * trembling or float(mass.min()) <= 0:
        return None
    place = (sinograms @ np.arange(columns, dtype=np.float64)) / mass
    basis = np.stack([np.ones_like(angle_rad), np.cos(angle_rad), np.sin(angle_rad)], axis=1)
    solution, *_ = np.linalg.lstsq(basis, place.T, rcond=None)
    residual = place.T - basis @ solution
    free = max(angle_rad.size - 3, 1)
    variance = float(np.mean(residual**2)) * angle_rad.size / free
    covariance = np.linalg.inv(basis.T @ basis)
    spread = float(np.std(solution[0])) if solution.shape[1] > 1 else 0.0
    error = max(float(np.sqrt(variance * covariance[0, 0])), spread / np.sqrt(solution.shape[1]))
    centre = float(np.median(solution[0]))
    # with the axis held away from its best place, the squares of the residuals grow by this much
    positions = np.linspace(between[0], between[1], POINTS)
    added = (positions[:, None] - solution[0]) ** 2 / covariance[0, 0]
    curve = np.sqrt((np.sum(residual**2) + added.sum(axis=1)) / residual.size)
    if not between[0] <= centre <= between[1]:
        centre = float(np.clip(centre, *between))
    # beam hardening and background pull at it
    confidence = MOST / (1.0 + (error / TOLERATED_PX) ** 2)
    return estimate("centre of mass", centre, confidence, f"uncertain by {error:.2f} px", positions, curve)
