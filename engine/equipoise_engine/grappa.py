"""Filling in regularly undersampled k-space from its neighbours in all coils.

Source: M. A. Griswold et al. 2002, doi:10.1002/mrm.10171 (GRAPPA), here in two dimensions and with one kernel for
each pattern of sources around a missing sample, which covers lattices, edges and the rim of the calibration region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import linalg

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.coils import calibration_size
from equipoise_engine.preprocess.kspace import ComplexArray

MAX_CALIBRATION = 64
"""Largest side of the calibration region that the kernels are fitted to."""
MAX_PATTERNS = 4096
"""More patterns of sources than this are no regular undersampling."""
REGULARISATION = 1e-3
"""Tikhonov weight, as a share of the mean energy of a source."""
BLOCK_VALUES = 1 << 22
"""Complex values gathered at once: bounds the memory."""


@dataclass(frozen=True)
class Lattice:
    """How far apart samples are.

    Parameters
    ----------
    rows, columns
        A box of this size, laid anywhere inside the sampled part of k-space, holds a sample.
    """

    rows: int
    columns: int


def lattice(sampled: NDArray[np.bool_]) -> Lattice:
    """Return the largest spacing of samples in `(ky, kx)`, bool; that of shifted lattices (CAIPIRINHA), too.

    Raises
    ------
    BadInput
        Nothing was sampled.
    """
    if not sampled.any():
        raise BadInput("no position of k-space was sampled")
    used_rows, used_columns = (np.asarray(sampled.any(axis=axis)) for axis in (1, 0))
    by_row = Lattice(_gap(used_rows), max(_gap(sampled[row, :]) for row in np.flatnonzero(used_rows)))
    by_column = Lattice(max(_gap(sampled[:, column]) for column in np.flatnonzero(used_columns)), _gap(used_columns))
    return min(by_row, by_column, key=lambda found: found.rows * found.columns)


def grappa(kspace: ComplexArray, sampled: NDArray[np.bool_], *, regularisation: float = REGULARISATION) -> ComplexArray:
    """Return k-space `(coil, ky, kx)` with the missing samples filled in, the measured ones untouched.

    What lies outside the sampled part, as the missing side of partial Fourier sampling or the corners of an elliptic
    one, stays zero. A lattice that ends less than its spacing before the edge of k-space is taken to go on to the edge.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex, zero frequency at index `n // 2`.
    sampled
        `(ky, kx)`, bool: a regular lattice, in one direction or two, and a fully sampled centre.
    regularisation
        Tikhonov weight of the fit, as a share of the mean energy of a source; more lowers the noise and leaves more
        aliasing.

    Returns
    -------
    filled
        Of the shape and precision of `kspace`.

    Raises
    ------
    BadInput
        There is no calibration region or it is too small for the spacing of samples, the centre holds no finite
        signal, a missing sample has no source in reach, or the pattern is not regular.
    """
    if kspace.ndim != 3 or sampled.shape != kspace.shape[1:]:
        raise BadInput(f"a mask of {sampled.shape} does not fit k-space (coil, ky, kx) of shape {kspace.shape}")
    if not regularisation >= 0:
        raise BadInput(f"a regularisation of {regularisation:g} is negative")
    result = np.where(sampled, kspace, np.zeros((), kspace.dtype))
    spacing = lattice(sampled)
    wanted = _wanted(sampled, spacing)
    if not wanted.any():
        return np.asarray(result)
    half, fit = _calibrated(kspace, sampled, spacing)
    window = (2 * half[0] + 1, 2 * half[1] + 1)
    y, x = np.nonzero(wanted)
    around = np.pad(sampled, ((half[0], half[0]), (half[1], half[1])))
    near = sliding_window_view(around, window)[y, x].reshape(y.size, -1)
    _keep_nearest(near, half, spacing)
    packed = np.packbits(near, axis=1)
    _, first, kind = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    if first.size > MAX_PATTERNS:
        raise BadInput(
            f"{first.size} different patterns of samples around missing ones, more than {MAX_PATTERNS}: this is no"
            " regular undersampling",
            "Reconstruct it with coil maps (CG-SENSE) instead.",
        )
    members = np.split(np.argsort(kind.ravel(), kind="stable"), np.cumsum(np.bincount(kind.ravel()))[:-1])
    padded = np.pad(result, ((0, 0), (half[0], half[0]), (half[1], half[1])))
    coils, stride = kspace.shape[0], padded.shape[2]
    flat = padded.reshape(coils, -1)
    steps = (np.arange(window[0])[:, None] * stride + np.arange(window[1])).ravel()
    origin = y * stride + x
    for chosen, points in zip(first, members, strict=True):
        sources = np.flatnonzero(near[chosen])
        weights = fit.weights(sources, regularisation).astype(kspace.dtype)
        block = max(BLOCK_VALUES // (coils * sources.size), 1)
        for start in range(0, points.size, block):
            part = points[start : start + block]
            gathered = flat[:, steps[sources][:, None] + origin[part]]
            result[:, y[part], x[part]] = weights @ gathered.reshape(coils * sources.size, -1)
    return np.asarray(result)


class _Fit:
    """Inner products of all positions of a kernel window over the calibration region.

    Any kernel, whatever its sources, is a part of these normal equations: the data are gone through once.

    Parameters
    ----------
    centre
        Calibration region `(coil, ky, kx)`, complex128.
    half
        Half the window's size `(ky, kx)`.
    """

    def __init__(self, centre: NDArray[np.complex128], half: tuple[int, int]) -> None:
        window = (2 * half[0] + 1, 2 * half[1] + 1)
        self._coils = centre.shape[0]
        self._area = window[0] * window[1]
        patches = sliding_window_view(centre, window, axis=(1, 2))
        matrix = patches.transpose(0, 3, 4, 1, 2).reshape(self._coils * self._area, -1)
        # (coil, position) by (coil, position)
        self._gram = matrix @ matrix.conj().T

    def weights(self, sources: NDArray[np.intp], regularisation: float) -> NDArray[np.complex128]:
        """Return the kernel `(coil, coil of source * source)` from these positions of the window to its middle."""
        offsets = np.arange(self._coils)[:, None] * self._area
        from_index = (offsets + sources).ravel()
        to_index = offsets[:, 0] + self._area // 2
        gram = self._gram[np.ix_(from_index, from_index)]
        gram[np.diag_indices_from(gram)] += max(regularisation, 1e-14) * gram.diagonal().real.mean()
        # W minimises ||W X - T||^2 + lambda ||W||^2: its conjugate transpose solves X X^H W^H = X T^H
        solved = linalg.solve(gram, self._gram[np.ix_(from_index, to_index)], assume_a="pos", overwrite_a=True)
        return np.asarray(solved.conj().T)


def _gap(used: NDArray[np.bool_]) -> int:
    """Return the largest distance of neighbours along an axis `(n,)`; 1 for less than two."""
    return int(np.diff(np.flatnonzero(used)).max(initial=1))


def _wanted(sampled: NDArray[np.bool_], spacing: Lattice) -> NDArray[np.bool_]:
    """Return which missing positions `(ky, kx)` to fill: those of the sampled part within a spacing of a sample."""
    reach = np.pad(sampled, ((spacing.rows - 1,) * 2, (spacing.columns - 1,) * 2))
    close = sliding_window_view(reach, (2 * spacing.rows - 1, 2 * spacing.columns - 1)).any(axis=(2, 3))
    lost = _inside(sampled) & ~close
    if lost.any():
        row, column = (int(index) for index in np.argwhere(lost)[0])
        raise BadInput(
            f"{int(lost.sum())} missing samples have no source in reach, the first at (ky, kx) = ({row}, {column})"
        )
    # the next samples of the lattice, beyond the edges of k-space
    rows, columns = min(spacing.rows, sampled.shape[0]), min(spacing.columns, sampled.shape[1])
    longer = np.concatenate([sampled[:rows], sampled, sampled[-rows:]], axis=0)
    wider = np.concatenate([longer[:, :columns], longer, longer[:, -columns:]], axis=1)
    return np.asarray(close & ~sampled & _inside(wider)[rows:-rows, columns:-columns])


def _inside(sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which positions `(ky, kx)` lie inside the sampled part: there are samples in all four quadrants."""
    inside = np.ones_like(sampled)
    for vertical in (1, -1):
        for across in (1, -1):
            turned = sampled[::vertical, ::across]
            reached = np.logical_or.accumulate(np.logical_or.accumulate(turned, axis=0), axis=1)
            inside &= reached[::vertical, ::across]
    return inside


def _sources(half: tuple[int, int], spacing: Lattice) -> int:
    """Return how many samples of a regular lattice at most a window of twice `half` and one has room for."""
    return -(-(2 * half[0] + 1) // spacing.rows) * -(-(2 * half[1] + 1) // spacing.columns)


def _keep_nearest(near: NDArray[np.bool_], half: tuple[int, int], spacing: Lattice) -> None:
    """Drop from the patterns of sources `(point, position)`, in place, all but as many as a regular lattice has.

    Next to the calibration region there are more, which gain little and would cost most of the time.
    """
    y = np.arange(-half[0], half[0] + 1)[:, None] / spacing.rows
    x = np.arange(-half[1], half[1] + 1) / spacing.columns
    order = np.argsort(np.hypot(y, x).ravel(), kind="stable")
    ranked = near[:, order]
    ranked &= np.cumsum(ranked, axis=1, dtype=np.int16) <= _sources(half, spacing)
    near[:, order] = ranked


def _calibrated(kspace: ComplexArray, sampled: NDArray[np.bool_], spacing: Lattice) -> tuple[tuple[int, int], _Fit]:
    """Return half the kernel window, as large as the calibration region allows, and the fit to that region."""
    coils, rows, columns = kspace.shape
    height, width = calibration_size(sampled, MAX_CALIBRATION)
    # two sources on either side, or two neighbours where nothing is missing; at the least one on either side
    halves = [2 * step - 1 if step > 1 else 2 for step in (spacing.rows, spacing.columns)]
    least = [step - 1 for step in (spacing.rows, spacing.columns)]
    while True:
        equations = (height - 2 * halves[0]) * (width - 2 * halves[1])
        sources = coils * _sources((halves[0], halves[1]), spacing)
        if min(height - 2 * halves[0], width - 2 * halves[1]) > 0 and equations >= sources:
            break
        axis = int(np.argmax([have - low for have, low in zip(halves, least, strict=True)]))
        if halves[axis] <= least[axis]:
            raise BadInput(
                f"the fully sampled centre of k-space is {height} x {width}; it is too small to fit kernels of"
                f" {coils} coils for samples {spacing.rows} x {spacing.columns} apart",
                "Take a scan with more calibration lines, or compress the coils.",
            )
        halves[axis] -= 1
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    centre = kspace[:, top : top + height, left : left + width].astype(np.complex128)
    if not np.isfinite(centre).all() or not centre.any():
        raise BadInput("the centre of k-space holds no signal, or values that are not finite")
    return (halves[0], halves[1]), _Fit(centre, (halves[0], halves[1]))
