"""What the numbers of a scan without open-beam frames mean, decided by looking at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import DataState, Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.frames import Scaled

MAX_VIEWS = 12
"""Views that are looked at."""
LARGEST_LINE_INTEGRAL = 20.0
"""No real line integral of attenuation is larger; larger numbers are counts or were stretched."""
DIM = 0.25
"""Where air lies between the smallest and the largest values, at most, for the object to be brighter than it."""
BRIGHT = 0.6
"""The same, at least, for an object that fills the detector to be darker in the middle, as in transmission."""
STEADY = 0.15
"""Share of the range of all values that the air at the edges may vary by."""
FULL_SCALES = (255, 4095, 16383, 65535)
"""Largest numbers of 8, 12, 14 and 16 bits."""


@dataclass(frozen=True)
class _Seen:
    """What a few views show."""

    low: float
    high: float
    border: float
    steady: bool
    """Whether both edges of the detector stay near one value, as air does."""

    @property
    def share(self) -> float:
        """Where the edges lie between the smallest and the largest values, from 0 to 1."""
        return (self.border - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    @property
    def bright_object(self) -> bool:
        """Whether the edges look like air, and the object is brighter."""
        return self.steady and self.share < DIM

    @property
    def spread(self) -> str:
        return f"values from {self.low:.4g} to {self.high:.4g}, {self.border:.4g} at the edges of the detector"


def state_without_flats(projections: Samples, hint: str, *, where: str) -> tuple[DataState, str]:
    """Return what the numbers are taken for, and a warning that says why.

    Parameters
    ----------
    projections
        `(view, row, column)`.
    hint
        What the file says about them: description and units.
    where
        File and dataset, for messages.

    Raises
    ------
    BadInput
        None of the values looked at is finite.
    """
    start = f"{where} has no open-beam frames"
    word = hint.lower()
    if "atten" in word or "absor" in word:
        return (
            DataState.ATTENUATION,
            f"{start}; the file calls its values {hint.strip()}: taken as attenuation.",
        )
    seen = _look(projections, where)
    if projections.dtype.kind in "iu" or seen.high > LARGEST_LINE_INTEGRAL:
        if seen.bright_object:
            return DataState.ATTENUATION, (
                f"{start}; {seen.spread}: the object is brighter than air, so its values were taken as attenuation,"
                " stretched over the range of these numbers."
            )
        return DataState.COUNTS, (
            f"{start}; {seen.spread}: taken as counts, or transmission stretched over the range of these numbers; the"
            " brightest pixels of each slice are the open beam."
        )
    if seen.low > 0.0 and seen.high < 1.5 and (seen.border > 0.5 or seen.share > BRIGHT):
        return DataState.TRANSMISSION, f"{start}; {seen.spread}: taken as transmission (1 is the open beam)."
    return DataState.ATTENUATION, f"{start}; {seen.spread}: taken as attenuation, after the logarithm."


def unstretched(projections: Samples, state: DataState, *, where: str) -> tuple[Samples, str]:
    """Return projections with numbers that their state can have, and a sentence for the user, empty without a change.

    Transmission in whole numbers is divided by their full scale. Attenuation in whole numbers loses the value of the
    air at its edges, and is divided by their full scale; its unit is not known then.

    Parameters
    ----------
    projections
        `(view, row, column)`.
    where
        File and dataset, for messages.

    Raises
    ------
    BadInput
        None of the values looked at is finite.
    """
    if projections.dtype.kind not in "iu" or state is DataState.COUNTS:
        return projections, ""
    seen = _look(projections, where)
    largest = int(np.iinfo(projections.dtype).max)
    scale = next((n for n in FULL_SCALES if max(seen.high, 1.0) <= n), largest)
    if state is DataState.TRANSMISSION:
        return Scaled(projections, 0.0, float(scale)), f"{where}: {scale} was taken as full transmission."
    zero = seen.border if seen.bright_object else 0.0
    return Scaled(projections, zero, float(scale)), (
        f"{where}: whole numbers from {zero:g} were taken as attenuation from zero; what one step of them is worth is"
        " not known, so values of the images are relative."
    )


def _look(projections: Samples, where: str) -> _Seen:
    views, rows, _ = projections.shape
    chosen = sorted({int(v) for v in np.linspace(0, views - 1, min(views, MAX_VIEWS))})
    middle = slice(max(rows // 2 - 2, 0), rows // 2 + 2)
    looked_at = np.concatenate([np.asarray(projections[v, middle, :], dtype=np.float64) for v in chosen])
    finite = looked_at[np.isfinite(looked_at)]
    if finite.size == 0:
        raise BadInput(f"{where}: none of the {looked_at.size} values looked at is finite")
    low, high = (float(v) for v in np.percentile(finite, (1, 99)))
    edge = max(looked_at.shape[1] // 20, 1)
    left, right = looked_at[:, :edge], looked_at[:, -edge:]
    border = _median(np.concatenate([left, right], axis=1))
    # each edge of each view by itself: single pixels may be noisy
    ends = np.array([_median(row) for side in (left, right) for row in side])
    ends = ends[np.isfinite(ends)]
    steady = ends.size > 0 and float(np.ptp(np.percentile(ends, (5, 95)))) <= STEADY * (high - low)
    return _Seen(low, high, border, bool(steady))


def _median(values: NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")
