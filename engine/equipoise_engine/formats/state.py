"""What the numbers of a scan without open-beam frames mean, decided by looking at them."""

from __future__ import annotations

import numpy as np

from equipoise_engine.acquisition import DataState, Samples
from equipoise_engine.errors import BadInput


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
    if projections.dtype.kind in "iu":
        return DataState.COUNTS, (
            f"{start}; whole numbers are counts, and the brightest pixels of each slice the open beam."
        )
    views, rows, _ = projections.shape
    chosen = sorted({int(v) for v in np.linspace(0, views - 1, min(views, 12))})
    middle = slice(max(rows // 2 - 2, 0), rows // 2 + 2)
    looked_at = np.concatenate([np.asarray(projections[v, middle, :], dtype=np.float64) for v in chosen])
    finite = looked_at[np.isfinite(looked_at)]
    if finite.size == 0:
        raise BadInput(f"{where}: none of the {looked_at.size} values looked at is finite")
    low, high = (float(v) for v in np.percentile(finite, (1, 99)))
    edge = max(looked_at.shape[1] // 20, 1)
    border = float(np.nanmedian(np.concatenate([looked_at[:, :edge], looked_at[:, -edge:]], axis=1)))
    word = hint.lower()
    spread = f"values from {low:.3g} to {high:.3g}, {border:.3g} at the edges of the detector"
    if "atten" in word or "absor" in word:
        return (
            DataState.ATTENUATION,
            f"{start}; the file calls its values {hint.strip()}: taken as attenuation.",
        )
    if high > 20.0:
        return DataState.COUNTS, (
            f"{start}; {spread}: taken as counts, and the brightest pixels of each slice as the open beam."
        )
    if low > 0.0 and high < 1.5 and border > 0.5:
        return DataState.TRANSMISSION, f"{start}; {spread}: taken as transmission (1 is the open beam)."
    return DataState.ATTENUATION, f"{start}; {spread}: taken as attenuation, after the logarithm."
