"""Phase retrieval from projections at a single distance, of an object of one material.

Source: D. Paganin et al. 2002, doi:10.1046/j.1365-2818.2002.01010.x, eq. 10: behind the object, transmission T obeys
(1 - a Laplace) exp(-mu t) = T with a = distance * delta / mu = (delta / beta) * wavelength * distance / (4 pi).
The Laplace operator is that of differences between pixels, D. Paganin et al. 2020, doi:10.1088/2040-8986/abbab9, whose
inverse falls off faster and blurs less than that of the continuous one cut off at the highest frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.selection import rows_apart
from equipoise_engine.recipe import PhaseRetrieval

KEV_MM = 1.239841984e-6
"""Photon energy times wavelength."""
DECAYS = 10.0
"""Rows are looked at until the kernel of the filter has fallen by exp(-10)."""


@dataclass(frozen=True)
class Smoothing:
    """The filter (1 - a Laplace)^-1.

    Parameters
    ----------
    along_px, across_px
        Its length sqrt(a), in elements: from one row to the next, and from one column to the next.
    """

    along_px: float
    across_px: float

    @property
    def margin(self) -> int:
        """Rows beside the wanted ones that enter."""
        if self.along_px == 0:
            return 0
        # the kernel of differences falls by this exponent from one row to the next
        exponent = 2 * math.asinh(0.5 / self.along_px)
        return math.ceil(DECAYS / exponent) + 1

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return filtered transmission, float32, of `values (row, view, column)`, continued as in a mirror.

        The cosine transform is the Fourier transform of the mirrored image; it needs no padding however wide the
        kernel, and no value from beyond the detector.
        """
        rows, _, columns = values.shape
        along = (2 * self.along_px * np.sin(0.5 * math.pi / rows * np.arange(rows))) ** 2
        across = (2 * self.across_px * np.sin(0.5 * math.pi / columns * np.arange(columns))) ** 2
        spectrum = fft.dctn(values, type=2, norm="ortho", axes=(0, 2), workers=-1)
        spectrum /= (1.0 + along[:, None, None] + across[None, None, :]).astype(np.float32)
        return np.asarray(fft.idctn(spectrum, type=2, norm="ortho", axes=(0, 2), workers=-1, overwrite_x=True))


def smoothing(scan: CtAcquisition, step: PhaseRetrieval) -> Smoothing:
    """Return the filter of a step for a scan.

    In a diverging beam the object is seen enlarged, and the distance counts for as much less.

    Raises
    ------
    BadInput
        The size of a pixel is not known, or the filter would be longer than the detector is wide.
    """
    geometry = scan.geometry
    # the step tells of an element of the file, the scan of those that were put together
    pixel_mm = step.pixel_mm * scan.recipe.selection.bin or geometry.image_pixel_mm
    distance_mm = step.distance_mm
    if isinstance(geometry, ParallelBeam):
        if not step.pixel_mm and not geometry.calibrated:
            raise BadInput(
                f"{scan.path.name}: phase retrieval needs the size of a pixel, which the scan does not tell",
                "Give the pixel size of the scan or of the step, in mm.",
            )
    else:
        distance_mm /= geometry.magnification
    wavelength_mm = KEV_MM / step.energy_kev
    length_mm = math.sqrt(step.delta_beta * wavelength_mm * distance_mm / (4 * math.pi))
    if not length_mm <= pixel_mm * scan.shape[2]:
        raise BadInput(
            f"{scan.path.name}: phase retrieval would smooth over {length_mm / pixel_mm:.4g} elements of {pixel_mm:g}"
            f" mm, more than the {scan.shape[2]} columns there are",
            "Check δ/β, the energy (keV), the distance (mm) and the pixel size (mm).",
        )
    return Smoothing(along_px=length_mm / (pixel_mm * rows_apart(scan)), across_px=length_mm / pixel_mm)
