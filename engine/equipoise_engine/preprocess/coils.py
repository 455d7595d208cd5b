"""Coil sensitivities from the fully sampled centre of k-space.

Source: Uecker et al. 2014, ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI,
doi:10.1002/mrm.24751, as implemented in sigpy.
"""

from __future__ import annotations

import numpy as np
import sigpy.mri.app
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput

MAX_CALIBRATION = 24
"""Largest side of the calibration region; more only costs time."""
MIN_CALIBRATION = 8
"""Smallest side that an ESPIRiT kernel of 6 can be fitted to."""
KERNEL = 6


def coil_maps(kspace: NDArray[np.complex64], sampled: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Return coil sensitivities `(coil, y, x)`, complex64, sum of squared magnitudes one everywhere.

    They are not cropped to the object: an equilibrium model sees noise outside the object either way, while a
    hard edge of the maps would force image values to zero where the signal is merely low (skull, air in the
    nose). One coil has the sensitivity one.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex64, zero frequency at index `n // 2`.
    sampled
        Which positions were measured, `(ky, kx)`, bool.

    Raises
    ------
    BadInput
        The fully sampled centre is smaller than 8 x 8.
    """
    coils, rows, columns = kspace.shape
    if coils == 1:
        return np.ones((1, rows, columns), dtype=np.complex64)
    height, width = calibration_size(sampled)
    if min(height, width) < MIN_CALIBRATION:
        raise BadInput(
            f"the fully sampled centre of k-space is {height} x {width}; coil sensitivities need at least"
            f" {MIN_CALIBRATION} x {MIN_CALIBRATION}",
            "Take a scan with calibration lines, or undersample less.",
        )
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    centre = np.zeros_like(kspace)
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    centre[window] = kspace[window]
    largest = float(np.abs(centre).max())
    if not np.isfinite(largest) or largest == 0.0:
        raise BadInput("the centre of k-space holds no signal, or values that are not finite")
    maps = sigpy.mri.app.EspiritCalib(
        centre / largest,
        calib_width=min(height, width),
        kernel_width=KERNEL,
        thresh=0.02,
        crop=0.0,
        max_iter=30,
        show_pbar=False,
    ).run()
    maps = np.asarray(maps, dtype=np.complex64)
    strength = np.sqrt(np.sum(np.abs(maps) ** 2, axis=0, keepdims=True))
    return np.asarray(maps / np.maximum(strength, 1e-12), dtype=np.complex64)


def calibration_size(sampled: NDArray[np.bool_]) -> tuple[int, int]:
    """Return height and width of the largest fully sampled region around zero, at most 24 each.

    Parameters
    ----------
    sampled
        `(ky, kx)`, bool.
    """
    rows, columns = sampled.shape

    def full(height: int, width: int) -> bool:
        top, left = rows // 2 - height // 2, columns // 2 - width // 2
        return bool(sampled[top : top + height, left : left + width].all())

    best = (0, 0)
    for height in range(min(MAX_CALIBRATION, rows), 0, -1):
        width = min(MAX_CALIBRATION, columns)
        while width > 0 and not full(height, width):
            width -= 1
        if min(height, width) > min(best) or (
            min(height, width) == min(best) and height * width > best[0] * best[1]
        ):
            best = (height, width)
    return best
