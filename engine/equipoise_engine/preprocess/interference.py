"""Taking outside interference out of k-space, as reference coils that see no signal measured it at the same time.

What a receive coil picks up of an outside source is what the reference coils pick up, through a short filter along the
readout that differs from coil to coil and changes slowly. It is fitted by least squares to the samples themselves, for
a few lines at a time. The object's own signal, which the references do not see, must not be fitted: samples that the
filter cannot explain weigh less (Cauchy's weights), so that few lines serve for a fit even in the middle of k-space.

Sources: S. A. Srinivas et al. 2022 (EDITER), doi:10.1002/mrm.28992; P. W. Holland and R. E. Welsch 1977,
doi:10.1080/03610927708827533 (reweighted least squares).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import ComplexArray

REWEIGHTINGS = 3
"""Fits after the first, each with weights by what the one before left over; more change nothing that can be seen."""
WEIGHT_WIDTH = 3.0
"""Mean squares of the remaining noise at which a sample weighs half."""
SAMPLES_PER_UNKNOWN = 2
"""Fewest samples of the lines of a fit for each value of the filters: with less, they fit noise and signal."""
SMALLEST_SHARE = 1e-12
"""Eigenvalues below this share of the largest are left out of a fit: references that are copies of each other."""


def without_interference(
    kspace: ComplexArray, references: ComplexArray, sampled: NDArray[np.bool_], *, window: int, kernel: int
) -> NDArray[np.complex64]:
    """Return k-space `(coil, line, readout)`, complex64, less what the reference coils predict of it.

    Parameters
    ----------
    kspace
        `(coil, line, readout)`, complex; zero where nothing was measured.
    references
        What coils without signal measured at the same time `(detector, line, readout)`, complex.
    sampled
        Which positions were measured `(line, readout)`, bool; the others stay as they are.
    window
        About how many measured lines share one fit.
    kernel
        Samples of the references along the readout that predict one, odd.

    Raises
    ------
    BadInput
        The shapes do not fit, the kernel is even, or the lines of a fit have too few samples.
    """
    coils, lines, readout = kspace.shape
    if references.ndim != 3 or references.shape[1:] != (lines, readout) or sampled.shape != (lines, readout):
        raise BadInput(f"references of shape {references.shape} do not fit k-space of shape {kspace.shape}")
    if kernel < 1 or kernel % 2 == 0 or kernel > readout:
        raise BadInput(f"a kernel of {kernel} samples must be odd and at most the {readout} samples of a line")
    if window < 1:
        raise BadInput(f"{window} lines cannot share a fit; give 1 or more")
    result = np.array(kspace, dtype=np.complex64)
    measured = np.flatnonzero(sampled.any(axis=1))
    if measured.size == 0:
        return result
    half, unknowns = kernel // 2, references.shape[0] * kernel
    padded = np.pad(references.astype(np.complex128), ((0, 0), (0, 0), (half, half)))
    # equal groups: a last one of few lines would be fitted badly
    for group in np.array_split(measured, math.ceil(measured.size / window)):
        samples = int(np.count_nonzero(sampled[group]))
        if samples < SAMPLES_PER_UNKNOWN * unknowns:
            raise BadInput(
                f"{group.size} lines have {samples} samples for {unknowns} unknowns of the interference; at least"
                f" {SAMPLES_PER_UNKNOWN * unknowns} are needed",
                "Let more lines share a prediction, or take a smaller kernel.",
            )
        for coil in range(coils):
            left = _unexplained(kspace[coil], padded, sampled, group, kernel)
            for line, remaining in zip(group, left, strict=True):
                result[coil, line, sampled[line]] = remaining
    return result


def _unexplained(
    kspace: ComplexArray,
    padded: NDArray[np.complex128],
    sampled: NDArray[np.bool_],
    group: NDArray[np.intp],
    kernel: int,
) -> list[NDArray[np.complex128]]:
    """Return what the references do not explain of the measured samples of each line of a group, for one coil."""
    values = [kspace[line, sampled[line]].astype(np.complex128) for line in group]
    weights = [np.ones(line.size) for line in values]
    left = values
    for _ in range(1 + REWEIGHTINGS):
        gram: NDArray[np.complex128] | float = 0.0
        right: NDArray[np.complex128] | float = 0.0
        # line by line: all neighbours of all samples at once would take the memory of many scans
        for seen, line, weight in zip(_neighbours(padded, sampled, group, kernel), values, weights, strict=True):
            weighted = (seen * weight[:, None]).conj().T
            gram, right = gram + weighted @ seen, right + weighted @ line
        filters = np.linalg.lstsq(np.asarray(gram), np.asarray(right), rcond=SMALLEST_SHARE)[0]
        left = [
            line - seen @ filters
            for seen, line in zip(_neighbours(padded, sampled, group, kernel), values, strict=True)
        ]
        powers = [np.abs(line) ** 2 for line in left]
        # the median of the squared magnitude of complex noise is its mean times ln 2
        noise = float(np.median(np.concatenate(powers))) / math.log(2)
        if noise == 0.0:
            break
        weights = [1.0 / (1.0 + power / (WEIGHT_WIDTH * noise)) for power in powers]
    return left


def _neighbours(
    padded: NDArray[np.complex128], sampled: NDArray[np.bool_], group: NDArray[np.intp], kernel: int
) -> Iterator[NDArray[np.complex128]]:
    """Yield, for each line of a group, the references around its measured samples `(sample, detector * kernel)`."""
    for line in group:
        around = sliding_window_view(padded[:, line], kernel, axis=-1)[:, sampled[line]]
        yield np.ascontiguousarray(around.transpose(1, 0, 2)).reshape(around.shape[1], -1)
