"""Stripes along the views of a sinogram, which elements of wrong gain leave, and which make rings in the image."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pywt
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput

Method = Literal["sorting", "filtering", "fitting", "all", "wavelet-fourier", "normalisation"]

LEAST_VIEWS = 8
LEAST_COLUMNS = 16
"""Smallest sinogram in which stripes can be told from the object."""
WAVELET = "db9"
SMOOTH_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))
"""Standard deviation of a Gaussian over its full width at half maximum."""
LARGE = 2.5
"""How much wider the median is that broad stripes are found with ("all")."""


def without_rings(sinogram: NDArray[np.float32], method: Method, size: int, strength: float) -> NDArray[np.float32]:
    """Return a sinogram without its stripes `(view, column)`, float32.

    Parameters
    ----------
    sinogram
        Attenuation `(view, column)`, float32, finite.
    method
        "sorting", "filtering", "fitting" and "all": algorithms 3, 2, 1 and 6 + 5 + 3 of Vo et al. 2018,
        doi:10.1364/OE.26.028396; "wavelet-fourier": Münch et al. 2009, doi:10.1364/OE.17.008567; "normalisation":
        the mean over views is smoothed, M. Rivers 1998.
    size
        Of the median or the smoothing across columns, in elements: an even number counts as the next odd one. Of
        "wavelet-fourier", the width of the broadest stripe.
    strength
        "filtering" and "wavelet-fourier": width of the filter along views, in steps of frequency; "all": ratio to the
        noise from which a column is a stripe. The others have none.

    Raises
    ------
    BadInput
        There are too few views or columns.
    """
    # it brings a pool of processes and a reader of files with it, half a second that no other step needs
    from algotom.prep import removal

    views, columns = sinogram.shape
    if views < LEAST_VIEWS or columns < LEAST_COLUMNS:
        raise BadInput(
            f"{views} views of {columns} columns are too few to tell rings from the object; at least {LEAST_VIEWS} of"
            f" {LEAST_COLUMNS} are needed",
            "Leave out the step 'rings'.",
        )
    # a window wider than the detector sees nothing more
    odd = min(size, columns - 1) | 1
    match method:
        case "sorting":
            result = removal.remove_stripe_based_sorting(sinogram, odd)
        case "filtering":
            result = removal.remove_stripe_based_filtering(sinogram, strength, odd)
        case "fitting":
            # the correction is a ratio, which has no meaning where there is nothing but air; far from zero it becomes
            # the difference that a wrong gain makes in attenuation
            offset = 1e3 * max(float(np.abs(sinogram).max()), 1e-3)
            width = max(columns / (2 * math.pi * SMOOTH_PER_FWHM * odd), 1.0)
            result = removal.remove_stripe_based_fitting(sinogram.astype(np.float64) + offset, 2, width) - offset
        case "all":
            result = _all(sinogram, odd, strength)
        case "wavelet-fourier":
            padded = min(n + 2 * min(150, int(0.1 * min(views, columns))) for n in (views, columns))
            deepest = pywt.dwt_max_level(padded, WAVELET)
            if deepest < 1:
                raise BadInput(
                    f"{views} views of {columns} columns are too few for wavelets of {pywt.Wavelet(WAVELET).dec_len}"
                    " values",
                    "Take another method to remove rings.",
                )
            level = min(max(math.ceil(math.log2(odd)), 1), deepest, _deepest_there(padded))
            result = removal.remove_stripe_based_wavelet_fft(sinogram, level, strength, WAVELET)
        case "normalisation":
            result = removal.remove_stripe_based_normalization(sinogram, SMOOTH_PER_FWHM * odd, sort=False)
    return np.ascontiguousarray(result, dtype=np.float32)


def _all(sinogram: NDArray[np.float32], size: int, ratio: float) -> NDArray[np.floating]:
    from algotom.prep import removal  # as above

    # ratios of columns are looked at, which mean nothing in air, where attenuation is zero
    offset = max(float(np.abs(sinogram).max()), 1e-3)
    lifted = sinogram + np.float32(offset)
    large = min(int(LARGE * size), sinogram.shape[1] - 1) | 1
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            clean = removal.remove_all_stripe(lifted, ratio, large, size)
    except ValueError:
        clean = np.full_like(lifted, np.nan)
    if not np.isfinite(clean).all():
        # without noise no column can be told to be an outlier
        clean = removal.remove_stripe_based_sorting(lifted, size)
    return np.asarray(clean - offset)


def _deepest_there(padded: int) -> int:
    """Return the number of levels after which the library wants 16 values to be left."""
    return max(int(math.log2(padded / 16)), 1)
