"""Finding the rotation axis of a parallel-beam scan from its views.

Two independent properties of the data are used. A view repeats, mirrored about the axis, half a turn later;
this holds for truncated objects too. And the centre of mass of the views of an object that lies wholly inside
the field of view moves on a sinusoid around the axis.

Sources: Padfield 2012, doi:10.1109/TIP.2011.2181402, eq. 20 (normalised correlation over the overlap); Ludwig
1966, doi:10.1002/cpa.3160190207 (moments of projections).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.attenuation import attenuation

MAX_ROWS = 24
"""Rows that are looked at, spread over the detector."""
MAX_PAIRS = 48
"""Opposite pairs of views that are looked at."""
MIN_OVERLAP = 0.3
"""Smallest overlap of a view and its mirrored opposite, as a share of the detector."""
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
        "opposite views" or "centre of mass".
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
    rows = np.unique(np.linspace(0, scan.slices - 1, min(scan.slices, MAX_ROWS)).astype(int))
    step = max(int(rows[1] - rows[0]), 1) if rows.size > 1 else 1
    start = int(rows[0]) if rows.size > 1 else 0
    return centre_of(attenuation(scan, slice(start, None, step)), scan.geometry.angle_rad, name=scan.path.name)


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
    if np.ptp(angle_rad) < np.deg2rad(120.0):
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
