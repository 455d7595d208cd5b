"""The axis about which lines agree that are measured from both of their ends, as in a full turn or a fan beam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from equipoise_engine.fbp import directions
from equipoise_engine.geometry import ConeBeam, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.preprocess.centre.estimate import CentreEstimate, binned, estimate, joined, lowest

_Reals = NDArray[np.float64]

MAX_VIEWS = 96
"""Views whose lines are looked up in others."""
COARSE_COLUMNS = 256
"""Columns that the first look goes by; of wider detectors some are put together."""
COARSE_ROWS = 6
"""Slices that the first look goes by."""
SMOOTHING = 2.0
"""Width of the derivative along columns."""
MIN_VIEWS = 5
"""Fewest directions that an axis is found from."""
MIN_PLACES = 16
"""Fewest lines that must be measured twice."""

_FanAngles = Callable[[_Reals], _Reals]
"""From columns off the axis to angles of their rays to the ray through it."""


def lines_measured_twice(
    sinograms: NDArray[np.float32], geometry: CtGeometry, between: tuple[float, float]
) -> CentreEstimate | None:
    """Return the axis about which lines measured from both ends agree best, or None where there are hardly any.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    geometry
        Angles and lengths; its centre is not looked at.
    between
        First and last column that the axis may lie at.
    """
    columns, angle_rad = sinograms.shape[2], geometry.angle_rad
    if angle_rad.size < MIN_VIEWS:
        return None
    factor = -(-columns // COARSE_COLUMNS)
    # Edges are compared, not the smooth bulk, which would pull the optimum to the middle of the detector.
    coarse_edges = gaussian_filter1d(binned(sinograms, factor), SMOOTHING, axis=2, order=1, mode="nearest")
    sinograms = gaussian_filter1d(sinograms, SMOOTHING, axis=2, order=1, mode="nearest")
    few = sinograms[:: -(-sinograms.shape[0] // COARSE_ROWS)]
    small, fan_angles = coarse_edges[:: -(-sinograms.shape[0] // COARSE_ROWS)], _fan_angles(geometry, factor)
    step = 1.0
    looked = np.arange(between[0], between[1] + 0.5 * step * factor, step * factor)
    middles = (looked - (factor - 1) / 2) / factor
    misfit = np.array([_misfit(small, angle_rad, fan_angles, float(centre)) for centre in middles])
    if not np.isfinite(misfit).any():
        return None
    coarse, usual = (looked, misfit), float(np.nanmedian(misfit))
    near, reach = float(looked[int(np.nanargmin(misfit))]), 1.5 * step * factor
    # a last look at whole columns, in steps of a quarter
    fan_angles = _fan_angles(geometry, 1)
    while reach > 4.0:
        around = np.arange(near - reach, near + reach + 0.5, 2.0)
        values = np.array([_misfit(few, angle_rad, fan_angles, float(centre)) for centre in around])
        if not np.isfinite(values).any():
            return None
        near, reach = float(around[int(np.nanargmin(values))]), 3.0
    around = near + np.arange(-3.0, 3.01, 0.25)
    around = around[(around >= between[0]) & (around <= between[1])]
    sharp = np.array([_misfit(sinograms, angle_rad, fan_angles, float(centre)) for centre in around])
    if not np.isfinite(sharp).any():
        return None
    centre, least = lowest(around, sharp), float(np.nanmin(sharp))
    confidence = 1.5 * (1 - least / max(usual, 1e-30))
    reason = f"misfit {least:.2g}, elsewhere {usual:.2g}"
    return estimate("lines measured twice", centre, confidence, reason, *joined(coarse, (around, sharp)))


def _fan_angles(geometry: CtGeometry, factor: int) -> _FanAngles:
    """Return what gives the angles of rays from columns off the axis, of which each is `factor` columns wide."""
    if isinstance(geometry, ParallelBeam):
        return lambda offset: np.zeros_like(offset)
    scale = factor * geometry.pixel_mm / geometry.source_detector_mm
    curved = isinstance(geometry, FanBeam) and geometry.detector == "curved"
    assert isinstance(geometry, FanBeam | ConeBeam)
    return lambda offset: offset * scale if curved else np.asarray(np.arctan(offset * scale))


def _misfit(sinograms: NDArray[np.float32], angle_rad: _Reals, fan_angles: _FanAngles, centre: float) -> float:
    """Return how far rays differ from those along the same line the other way, NaN where there are hardly any.

    The ray at the fan angle g of the view at angle b runs along the one at -g of the view at b + pi - 2 g.
    """
    columns = sinograms.shape[2]
    order = np.argsort(np.mod(angle_rad, 2 * np.pi), kind="stable")
    angles = np.mod(angle_rad, 2 * np.pi)[order]
    around = np.append(angles, angles[0] + 2 * np.pi)
    usual = directions(angle_rad, 2 * np.pi).usual
    views = np.unique(np.linspace(0, angles.size - 1, min(angles.size, MAX_VIEWS)).astype(int))
    fan = fan_angles(np.arange(columns, dtype=np.float64) - centre)
    wanted = np.mod(angles[views][:, None] + np.pi - 2 * fan[None, :], 2 * np.pi)
    wanted = np.where(wanted < angles[0], wanted + 2 * np.pi, wanted)
    after = np.clip(np.searchsorted(around, wanted, side="right"), 1, angles.size)
    gap = around[after] - around[after - 1]
    mirrored = np.broadcast_to(2 * centre - np.arange(columns), wanted.shape)
    usable = (gap < 2.5 * usual) & (mirrored >= 0) & (mirrored <= columns - 1)
    if usable.sum() < max(0.3 * columns, MIN_PLACES):
        return float("nan")
    share = np.where(gap > 0, (wanted - around[after - 1]) / np.maximum(gap, 1e-12), 0.0)
    place = np.stack([(after - 1 + share)[usable], mirrored[usable]])
    difference = size = whole = 0.0
    for one in sinograms[:, order, :]:
        turned = np.concatenate([one, one[:1]])
        opposite = map_coordinates(turned, place, order=1)
        own = one[views][usable]
        # mirrored edges fall where the others rise
        difference += float(np.sum((own + opposite) ** 2))
        size += float(np.sum(own**2) + np.sum(opposite**2))
        whole += 2.0 * float(np.sum(one[views] ** 2))
    # empty borders agree everywhere: they tell nothing
    floor = 0.02 * whole + 1e-30
    return (difference + floor) / (size + floor)
