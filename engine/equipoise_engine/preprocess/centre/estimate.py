"""What one method says about the rotation centre, and the curve that it goes by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Reals = NDArray[np.float64]

MAX_POINTS = 400
"""Positions of a curve that are kept for people to look at."""

TOLERATED_PX = 0.4
"""Standard error at which confidence is halved."""


@dataclass(frozen=True)
class CentreEstimate:
    """The rotation centre after one method.

    Parameters
    ----------
    method
        "opposite views", "lines measured twice", "centre of mass", "double wedge" or "sharpness".
    centre_px
        Detector column of the axis; 0 is the middle of the first column.
    confidence
        From 0 to 1; below 0.5 the user should check it.
    at_edge
        Whether the best value lies at the edge of what was looked at: the axis may then lie beyond.
    text
        What was found and how sure it is, for the user.
    positions_px, metric
        Where the method looked, and what it found there; lower is better.
    """

    method: str
    centre_px: float
    confidence: float
    at_edge: bool
    text: str
    positions_px: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()


def estimate(
    method: str, centre_px: float, confidence: float, reason: str, positions: _Reals, metric: _Reals
) -> CentreEstimate:
    """Return an estimate with the curve `metric (position,)` at `positions`, ascending; `reason` ends its sentence."""
    usable = np.isfinite(metric)
    positions, metric = positions[usable], metric[usable]
    best = int(np.argmin(metric))
    at_edge = best in (0, metric.size - 1)
    text = f"{centre_px:.2f} px from {method} ({reason})"
    if at_edge:
        confidence = min(confidence, 0.2)
        text += f"; the best value lies at the edge of {positions[0]:.0f} to {positions[-1]:.0f} px"
    chosen = np.unique(np.append(np.linspace(0, metric.size - 1, min(metric.size, MAX_POINTS)).round(), best))
    kept = chosen.astype(np.int64)
    return CentreEstimate(
        method,
        float(centre_px),
        round(float(np.clip(confidence, 0.0, 1.0)), 3),
        at_edge,
        text,
        tuple(float(position) for position in positions[kept]),
        tuple(float(value) for value in metric[kept]),
    )


def lowest(positions: _Reals, metric: _Reals) -> float:
    """Return the position of the lowest value of a curve at even steps, refined with a parabola through three."""
    best = int(np.nanargmin(metric))
    if not 0 < best < metric.size - 1:
        return float(positions[best])
    left, low, right = metric[best - 1 : best + 2]
    bend = left - 2 * low + right
    shift = 0.5 * (left - right) / bend if np.isfinite(bend) and bend > 0 else 0.0
    return float(positions[best] + shift * (positions[best + 1] - positions[best]))


def joined(coarse: tuple[_Reals, _Reals], fine: tuple[_Reals, _Reals]) -> tuple[_Reals, _Reals]:
    """Return two curves as one, positions ascending; the fine one stands where it was computed."""
    outside = (coarse[0] < fine[0][0]) | (coarse[0] > fine[0][-1])
    positions = np.concatenate([coarse[0][outside], fine[0]])
    order = np.argsort(positions, kind="stable")
    return positions[order], np.concatenate([coarse[1][outside], fine[1]])[order]


def clearness(metric: _Reals) -> float:
    """Return from 0 to 1 how far the lowest value of a curve stands out below its usual values and below its rivals.

    A rival is the lowest value beyond the slope down to the best one.
    """
    values = metric[np.isfinite(metric)]
    if values.size < 5:
        return 0.0
    best = int(np.argmin(values))
    low, usual = float(values[best]), float(np.median(values))
    if usual <= low:
        return 0.0
    # follow the slopes up on both sides to where half of the depth is climbed
    half = 0.5 * (low + usual)
    left, right = best, best
    while left > 0 and values[left] < half:
        left -= 1
    while right < values.size - 1 and values[right] < half:
        right += 1
    rivals = np.concatenate([values[:left], values[right + 1 :]])
    rival = float(rivals.min()) if rivals.size else usual
    return float(np.clip((min(rival, usual) - low) / (usual - low), 0.0, 1.0))


def binned(sinograms: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return sinograms `(slice, view, column)` with the means of `factor` columns each; what remains is dropped."""
    if factor == 1:
        return sinograms
    columns = sinograms.shape[2] // factor
    parts = sinograms[:, :, : columns * factor].reshape(*sinograms.shape[:2], columns, factor)
    return np.asarray(parts.mean(axis=3), dtype=np.float32)


def steadiness(centres: _Reals) -> tuple[float, float]:
    """Return the standard error of an axis, and what it does to confidence, from 0 to 1.

    `centres (part,)` are what parts of the data give by themselves; their noise is taken as independent.
    """
    if centres.size < 2:
        return 0.0, 1.0
    # few parts may agree by chance
    error = float(np.std(centres, ddof=1) / np.sqrt(centres.size)) * centres.size / (centres.size - 1)
    return error, 1.0 / (1.0 + (error / TOLERATED_PX) ** 2)
