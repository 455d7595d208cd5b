"""Projection angles: units, and what a scan's set of angles cannot be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput


def to_radians(
    values: NDArray[np.float64], units: str, *, where: str
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """Return angles in radians, how they were understood, and warnings.

    Parameters
    ----------
    values
        Angles as stored, `(view,)`, float64.
    units
        Units as stored; empty where the file does not say.
    where
        File and dataset, for messages.

    Raises
    ------
    BadInput
        An angle is not finite, all are equal, or the units are unknown.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise BadInput(
            f"{where}: {bad.size} of {values.size} angles are not finite;"
            f" the first is index {bad[0]} ({values[bad[0]]})",
            "Correct the angles in the file.",
        )
    span = float(np.ptp(values)) if values.size else 0.0
    if span == 0.0:
        raise BadInput(
            f"{where}: all {values.size} angles are {values[:1]}, a span of zero",
            "A reconstruction needs projections from several angles; check which dataset holds them.",
        )
    word = units.lower()
    warnings: list[str] = []
    if word.startswith("rad"):
        radians, reading = values, "radians, as its units say"
    elif word.startswith(("mrad", "millirad")):
        radians, reading = values * 1e-3, "milliradians, as its units say"
    elif word.startswith("deg") or word in ("°", "d"):
        radians, reading = np.deg2rad(values), "degrees, as its units say"
    elif word:
        raise BadInput(
            f"{where}: angles in unknown units {units!r}; degrees and radians are read",
            "Correct the units attribute in the file.",
        )
    elif values.size >= 20 and _near_half_turns(span * values.size / (values.size - 1)):
        radians, reading = (
            values,
            f"radians: no units, but the span of {span:.4g} is a half or full turn in radians",
        )
        warnings.append(
            f"The angles carry no units; their span of {span:.4g} is a half or full turn in radians,"
            " so radians were taken."
        )
    else:
        radians, reading = np.deg2rad(values), "degrees: no units given, and degrees are usual"
    reach = float(np.ptp(radians))
    if reach < np.deg2rad(150.0):
        warnings.append(
            f"The angles span {np.rad2deg(reach):.1f} degrees only; below 180 degrees,"
            " edges along the missing directions cannot be recovered."
        )
    return np.ascontiguousarray(radians, dtype=np.float64), reading, tuple(warnings)


def _near_half_turns(span: float) -> bool:
    """Whether a span, with one step added, is one or two half turns in radians."""
    return any(abs(span / (n * np.pi) - 1.0) < 0.02 for n in (1, 2))


def repeated_views(angle_rad: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a warning where the last view repeats the first, directly or mirrored.

    Parameters
    ----------
    angle_rad
        `(view,)`, float64.
    """
    if angle_rad.size < 3:
        return ()
    reach = abs(float(angle_rad[-1] - angle_rad[0]))
    step = float(np.median(np.abs(np.diff(angle_rad))))
    for turns, kind in ((1, "mirrored"), (2, "as it is")):
        if step > 0 and abs(reach - turns * np.pi) < 0.05 * step:
            return (
                f"The last view, {np.rad2deg(reach):.1f} degrees after the first, repeats it {kind};"
                " it counts double unless the views are weighted.",
            )
    return ()
