"""How far the rotation axis leans from the detector's columns, from where it stands in rows above each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.centre.opposite import opposite_views

BANDS = 10
"""Parts of the detector, above each other, whose axes are found."""
BAND_ROWS = 4
"""Rows of a part that are looked at."""
MIN_ROWS = 8
"""Fewest detector rows that tell a tilt."""
MIN_BANDS = 4
"""Fewest parts whose axis must be found."""
MIN_CONFIDENCE = 0.3
"""Confidence from which the axis of a part counts."""


def tilt_of(scan: CtAcquisition) -> tuple[float, float]:
    """Return the angle from the detector's columns to the rotation axis, and its standard error, in degrees.

    It is above 0 where the axis stands at higher columns in row 0 than in the last row, as `recipe.Tilt` takes it.

    Raises
    ------
    BadInput
        The beam diverges, there are fewer than 8 rows, or the axis is found in too few of them.
    """
    rows, columns = scan.shape[1], scan.shape[2]
    name = scan.path.name
    if not isinstance(scan.geometry, ParallelBeam):
        raise BadInput(f"{name}: the tilt of the axis is found for parallel beams only", "Give it.")
    if rows < MIN_ROWS:
        raise BadInput(f"{name}: {rows} detector rows do not tell a tilt; {MIN_ROWS} are the fewest", "Give it.")
    edges = np.linspace(0, rows, min(BANDS, rows // 2) + 1).astype(int)
    places, centres, weights = [], [], []
    for first, last in pairwise(edges):
        step = -(-(last - first) // BAND_ROWS)
        looked = range(int(first), int(last), int(step))
        sinograms = attenuation(scan, slice(looked.start, looked.stop, looked.step))
        found = opposite_views(sinograms, scan.geometry.angle_rad, (0.15 * columns, 0.85 * columns))
        if found is not None and found.confidence >= MIN_CONFIDENCE:
            places.append(float(np.mean(looked)))
            centres.append(found.centre_px)
            weights.append(found.confidence)
    place, centre, weight = np.array(places), np.array(centres), np.array(weights)
    while place.size >= MIN_BANDS:
        slope, start = np.polyfit(place, centre, 1, w=weight)
        away = np.abs(centre - start - slope * place)
        # a part without much in it may find anything
        if away.max() <= max(1.0, 4.0 * float(np.median(away))):
            break
        kept = away < away.max()
        place, centre, weight = place[kept], centre[kept], weight[kept]
    if place.size < MIN_BANDS:
        raise BadInput(
            f"{name}: the axis is found in {place.size} of {edges.size - 1} parts of the detector; {MIN_BANDS} are the"
            " fewest that tell a tilt",
            "Give the tilt, or leave it out.",
        )
    spread = np.sqrt(np.sum((centre - start - slope * place) ** 2) / max(place.size - 2, 1))
    error = spread / np.sqrt(np.sum((place - place.mean()) ** 2))
    return float(-np.degrees(np.arctan(slope))), float(np.degrees(error))
