"""Finding the rotation axis of a scan from its views.

Two independent properties of the data of a parallel beam are used. A view repeats, mirrored about the axis, half a turn
later; this holds for truncated objects too. And the centre of mass of the views of an object that lies wholly inside
the field of view moves on a sinusoid around the axis. In a full turn, and in a fan beam, lines are measured twice, once
from each end.

Sources: Padfield 2012, doi:10.1109/TIP.2011.2181402, eq. 20 (normalised correlation over the overlap); Ludwig 1966,
doi:10.1002/cpa.3160190207 (moments of projections).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import map_coordinates

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import directions
from equipoise_engine.geometry import ConeBeam, FanBeam
from equipoise_engine.preprocess.attenuation import attenuation

MAX_ROWS = 24
"""Rows that are looked at, spread over the detector."""
MAX_PAIRS = 48
"""Opposite pairs of views that are looked at."""
MIN_OVERLAP = 0.3
"""Smallest overlap of a view and its mirrored opposite, as a share of the detector."""
MIN_VIEWS = 5
"""Fewest directions that an axis is found from."""
GAPS = 3
"""For scans that stop short of half a turn: how many distances from it are used to extrapolate to zero."""


@dataclass(frozen=True)
class CentreEstimate:
    """Where the rotation axis was found.

    Parameters
    ----------
    centre_px
        Detector column of the axis; 0 is the middle of the first column.
    method
        "opposite views", "lines measured twice" or "centre of mass".
    confidence
        From 0 to 1; below 0.5 the user should check it.
    text
        What was found and how sure it is, for the user.
    """

    centre_px: float
    method: str
    confidence: float
    text: str


def find_centre(scan: CtAcquisition) -> CentreEstimate:
    """Return the detector column of the rotation axis, found from the measurement.

    Raises
    ------
    BadInput
        The views neither contain opposite pairs nor show the whole object.
    """
    geometry, count = scan.geometry, scan.shape[1]
    if isinstance(geometry, ConeBeam):
        # away from the plane of the source no line is measured twice
        middle = min(max(round(geometry.middle_px), 0), count - 1)
        return fan_centre_of(attenuation(scan, slice(middle, middle + 1)), geometry, name=scan.path.name)
    rows = np.unique(np.linspace(0, count - 1, min(count, MAX_ROWS)).astype(int))
    step = max(int(rows[1] - rows[0]), 1) if rows.size > 1 else 1
    start = int(rows[0]) if rows.size > 1 else 0
    sinograms = attenuation(scan, slice(start, None, step))
    if isinstance(geometry, FanBeam):
        return fan_centre_of(sinograms, geometry, name=scan.path.name)
    return centre_of(sinograms, geometry.angle_rad, name=scan.path.name)


def centre_of(
    sinograms: NDArray[np.float32], angle_rad: NDArray[np.float64], *, name: str = "the scan"
) -> CentreEstimate:
    """Return the axis of sinograms of attenuation.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    angle_rad
        `(view,)`, float64.
    name
        What to call the scan in messages.

    Raises
    ------
    BadInput
        The views neither contain opposite pairs nor show the whole object.
    """
    mirrored = _from_opposite_views(sinograms, angle_rad)
    if mirrored is None and np.ptp(angle_rad) > 1.5 * np.pi:
        # no view lies half a turn from another, but between two that do
        twice = _from_conjugates(sinograms, angle_rad, _no_fan)
        if twice is not None:
            return twice
    massed = _from_centre_of_mass(sinograms, angle_rad)
    columns = sinograms.shape[2]
    if mirrored is None and massed is None:
        raise BadInput(
            f"{name}: the rotation axis cannot be found: the views span"
            f" {np.rad2deg(np.ptp(angle_rad)):.0f} degrees and do not show the whole object",
            "Give the rotation centre.",
        )
    if mirrored is None:
        assert massed is not None
        centre, error = massed
        confidence = 0.6 if error < 0.25 else 0.3
        text = f"rotation centre {centre:.2f} px from the centre of mass (uncertain by {error:.2f} px)"
        return _estimate(centre, "centre of mass", confidence, text, columns)
    centre, likeness, rival = mirrored
    clear = float(np.clip(2.0 * (likeness - rival) / max(likeness, 1e-6), 0.0, 1.0))
    confidence = clear * float(np.clip(1.5 * likeness, 0.0, 1.0))
    text = f"rotation centre {centre:.2f} px from opposite views (likeness {likeness:.2f}, next {rival:.2f})"
    if massed is not None:
        # The centre of mass is pulled by beam hardening and background, so it only bears witness.
        other, error = massed
        text += f"; the centre of mass gives {other:.2f} px"
        if confidence < 0.3 and error < 0.25:
            return _estimate(other, "centre of mass", 0.5, text.replace("rotation", "unclear rotation", 1), columns)
        confidence = max(confidence, 0.9) if abs(other - centre) < 1.5 else 0.8 * confidence
    return _estimate(centre, "opposite views", confidence, text, columns)


def fan_centre_of(
    sinograms: NDArray[np.float32], geometry: FanBeam | ConeBeam, *, name: str = "the scan"
) -> CentreEstimate:
    """Return the axis of fan-beam sinograms, from the lines that are measured from both of their ends.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    geometry
        Angles and lengths; its centre is not looked at.
    name
        What to call the scan in messages.

    Raises
    ------
    BadInput
        Hardly any line is measured twice.
    """

    def fan_angles(offset: NDArray[np.float64]) -> NDArray[np.float64]:
        tangent = offset * geometry.pixel_mm / geometry.source_detector_mm
        curved = isinstance(geometry, FanBeam) and geometry.detector == "curved"
        return tangent if curved else np.asarray(np.arctan(tangent))

    found = _from_conjugates(sinograms, geometry.angle_rad, fan_angles)
    if found is None:
        raise BadInput(
            f"{name}: the rotation axis cannot be found: hardly any line is measured from both of its ends",
            "Give the rotation centre.",
        )
    return found


_FanAngles = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From columns off the axis to angles of their rays to the ray through it."""


def _no_fan(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.zeros_like(offset)


def _from_conjugates(
    sinograms: NDArray[np.float32], angle_rad: NDArray[np.float64], fan_angles: _FanAngles
) -> CentreEstimate | None:
    """Return the axis about which lines measured from both ends agree best, or None where there are hardly any."""
    columns = sinograms.shape[2]
    if angle_rad.size < MIN_VIEWS:
        return None
    coarse = np.arange(0.2 * columns, 0.8 * columns, 2.0)
    misfit = np.array([_misfit_of_conjugates(sinograms, angle_rad, fan_angles, float(centre)) for centre in coarse])
    if not np.isfinite(misfit).any():
        return None
    near = float(coarse[int(np.nanargmin(misfit))])
    fine = near + np.arange(-3.0, 3.01, 0.25)
    sharp = np.array([_misfit_of_conjugates(sinograms, angle_rad, fan_angles, float(centre)) for centre in fine])
    best = int(np.nanargmin(sharp))
    shift = 0.0
    if 0 < best < fine.size - 1:
        left, low, right = sharp[best - 1 : best + 2]
        bend = left - 2 * low + right
        shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    centre, least, usual = float(fine[best] + 0.25 * shift), float(sharp[best]), float(np.nanmedian(misfit))
    confidence = float(np.clip(1.5 * (1 - least / max(usual, 1e-30)), 0.0, 1.0))
    text = f"rotation centre {centre:.2f} px from lines measured twice (misfit {least:.2g}, elsewhere {usual:.2g})"
    return _estimate(centre, "lines measured twice", confidence, text, columns)


def _misfit_of_conjugates(
    sinograms: NDArray[np.float32], angle_rad: NDArray[np.float64], fan_angles: _FanAngles, centre: float
) -> float:
    """Return how far rays differ from those along the same line the other way, NaN where there are hardly any.

    The ray at the fan angle g of the view at angle b runs along the one at -g of the view at b + pi - 2 g.
    """
    columns = sinograms.shape[2]
    order = np.argsort(np.mod(angle_rad, 2 * np.pi), kind="stable")
    angles = np.mod(angle_rad, 2 * np.pi)[order]
    around = np.append(angles, angles[0] + 2 * np.pi)
    usual = directions(angle_rad, 2 * np.pi).usual
    views = np.unique(np.linspace(0, angles.size - 1, min(angles.size, 2 * MAX_PAIRS)).astype(int))
    fan = fan_angles(np.arange(columns, dtype=np.float64) - centre)
    wanted = np.mod(angles[views][:, None] + np.pi - 2 * fan[None, :], 2 * np.pi)
    wanted = np.where(wanted < angles[0], wanted + 2 * np.pi, wanted)
    after = np.clip(np.searchsorted(around, wanted, side="right"), 1, angles.size)
    gap = around[after] - around[after - 1]
    mirrored = np.broadcast_to(2 * centre - np.arange(columns), wanted.shape)
    usable = (gap < 2.5 * usual) & (mirrored >= 0) & (mirrored <= columns - 1)
    if usable.sum() < max(MIN_OVERLAP * columns, 16):
        return float("nan")
    share = np.where(gap > 0, (wanted - around[after - 1]) / np.maximum(gap, 1e-12), 0.0)
    place = np.stack([(after - 1 + share)[usable], mirrored[usable]])
    difference = size = 0.0
    for one in sinograms[:, order, :]:
        turned = np.concatenate([one, one[:1]])
        opposite = map_coordinates(turned, place, order=1)
        own = one[views][usable]
        difference += float(np.sum((own - opposite) ** 2))
        size += float(np.sum(own**2) + np.sum(opposite**2))
    return difference / max(size, 1e-30)


def _estimate(centre: float, method: str, confidence: float, text: str, columns: int) -> CentreEstimate:
    if not 0.2 * columns < centre < 0.8 * columns:
        confidence = min(confidence, 0.3)
        text += f"; it is near the edge of the detector of {columns} columns"
    if confidence < 0.5:
        text += "; low confidence: check it, or give the centre"
    return CentreEstimate(float(centre), method, round(float(confidence), 3), text)


def _from_opposite_views(
    sinograms: NDArray[np.float32], angle_rad: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    """Return the axis, the likeness there, and the best one away from it; None without opposite views."""
    order = np.argsort(angle_rad, kind="stable")
    angles = angle_rad[order]
    step = float(np.median(np.diff(angles)))
    if step <= 0:
        return None
    # Edges are compared, not the smooth bulk, which would pull the optimum to the middle of the detector.
    edges = np.gradient(sinograms[:, order, :], axis=2)
    gaps = angles[None, :] - angles[:, None] - np.pi
    exact = np.argwhere(np.abs(gaps) < 0.26 * step)
    if len(exact):
        chosen = exact[np.unique(np.linspace(0, len(exact) - 1, min(len(exact), MAX_PAIRS)).astype(int))]
        return _peak(_likeness(edges, chosen))
    # The scan stops one step or more short of half a turn: extrapolate over the remaining gap.
    distances: list[float] = []
    results: list[tuple[float, float, float]] = []
    for number in range(1, GAPS + 1):
        found = np.argwhere(np.abs(np.abs(gaps) - number * step) < 0.3 * step)
        if len(found):
            chosen = found[np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_PAIRS)).astype(int))]
            distances.append(float(np.mean(np.abs(gaps[chosen[:, 0], chosen[:, 1]]))))
            results.append(_peak(_likeness(edges, chosen)))
    if not results or distances[0] > np.deg2rad(8.0):
        return None
    centres = [result[0] for result in results]
    if len(centres) < 2 or np.ptp(centres) > 3.0:
        return results[0]
    _, intercept = np.polyfit(distances, centres, 1)
    nearest = results[0]
    correction = np.clip(float(intercept) - nearest[0], -2.0, 2.0)
    return nearest[0] + float(correction), nearest[1], nearest[2]


def _likeness(edges: NDArray[np.floating], pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the normalised correlation of views with their mirrored opposites per lag, `(2 column - 1,)`."""
    columns = edges.shape[2]
    size = int(fft.next_fast_len(2 * columns, real=True))
    views = edges[:, pairs[:, 0], :].astype(np.float64)
    opposite = -edges[:, pairs[:, 1], ::-1].astype(np.float64)

    def correlate(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        product = fft.rfft(a, size, axis=-1) * np.conj(fft.rfft(b, size, axis=-1))
        lags = fft.irfft(product.sum(axis=(0, 1)), size)
        return np.concatenate([lags[size - columns + 1 :], lags[:columns]])

    ones = np.ones((1, 1, columns))
    joint = correlate(views, opposite)
    energy_a = correlate((views**2).sum(axis=(0, 1), keepdims=True), ones)
    energy_b = correlate(ones, (opposite**2).sum(axis=(0, 1), keepdims=True))
    overlap = columns - np.abs(np.arange(-columns + 1, columns))
    # Empty borders are alike too: an overlap counts for as much as there is to see in it.
    whole = np.sqrt(np.sum(views**2) * np.sum(opposite**2))
    likeness = joint / (np.sqrt(np.maximum(energy_a * energy_b, 0.0)) + 0.02 * whole + 1e-30)
    # Short overlaps are alike by chance.
    likeness[overlap < MIN_OVERLAP * columns] = -1.0
    return np.asarray(likeness, dtype=np.float64)


def _peak(likeness: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the axis at the best lag, refined with a parabola, the likeness there and the best elsewhere."""
    columns = (likeness.size + 1) // 2
    best = int(np.argmax(likeness))
    shift = 0.0
    if 0 < best < likeness.size - 1 and likeness[best - 1] > -1.0 and likeness[best + 1] > -1.0:
        left, top, right = likeness[best - 1 : best + 2]
        bend = left - 2 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    lag = best + shift - (columns - 1)
    width = max(columns // 20, 3)
    elsewhere = np.concatenate([likeness[: max(best - width, 0)], likeness[best + width + 1 :]])
    rival = float(elsewhere.max()) if elsewhere.size else -1.0
    return (columns - 1 + lag) / 2.0, float(likeness[best]), max(rival, 0.0)


def _from_centre_of_mass(sinograms: NDArray[np.float32], angle_rad: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the axis and its standard error, or None where the object leaves the field of view."""
    columns = sinograms.shape[2]
    edge = max(columns // 40, 2)
    if np.ptp(angle_rad) < np.deg2rad(120.0) or directions(angle_rad, np.pi).angle_rad.size < MIN_VIEWS:
        return None
    mass = sinograms.sum(axis=2, dtype=np.float64)
    typical = float(np.median(mass))
    high = float(np.percentile(sinograms, 99))
    border = np.concatenate([sinograms[:, :, :edge], sinograms[:, :, -edge:]], axis=2)
    # All views of an object inside the field of view have the same mass, and nothing at the borders.
    if typical <= 0 or high <= 0 or float(np.abs(np.mean(border, axis=(0, 2))).max()) > 0.06 * high:
        return None
    if float(np.std(mass, axis=1).max()) > 0.03 * typical:
        return None
    position = (sinograms @ np.arange(columns, dtype=np.float64)) / mass
    basis = np.stack([np.ones_like(angle_rad), np.cos(angle_rad), np.sin(angle_rad)], axis=1)
    solution, *_ = np.linalg.lstsq(basis, position.T, rcond=None)
    residual = position.T - basis @ solution
    variance = float(np.mean(residual**2)) * angle_rad.size / max(angle_rad.size - 3, 1)
    covariance = np.linalg.inv(basis.T @ basis)
    error = float(np.sqrt(variance * covariance[0, 0]))
    spread = float(np.std(solution[0])) if solution.shape[1] > 1 else 0.0
    return float(np.median(solution[0])), max(error, spread / np.sqrt(solution.shape[1]))
