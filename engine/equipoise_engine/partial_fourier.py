"""Filling in one side of k-space from the other: the image of a scanner is real but for a smooth phase.

Sources: D. C. Noll, D. G. Nishimura, A. Macovski 1991, doi:10.1109/42.79473 (homodyne detection); E. M. Haacke,
E. D. Lindskog, W. Lin 1991, doi:10.1016/0022-2364(91)90253-P (projection onto convex sets).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import ComplexArray, to_image, to_kspace

MIN_MISSING = 3
"""Fewest missing lines that make one side of k-space shorter."""
MIN_SYMMETRIC = 5
"""Fewest lines on both sides of zero together from which the phase can be estimated."""


@dataclass(frozen=True)
class PartialFourier:
    """Which side of k-space is missing.

    Parameters
    ----------
    axis
        -2 where lines of ky are missing, -1 where columns of kx are.
    first, last
        First and last sampled index along that axis.
    symmetric
        First and last index of the part around zero that was sampled on both sides.
    lines
        Size of the axis.
    """

    axis: int
    first: int
    last: int
    symmetric: tuple[int, int]
    lines: int

    @property
    def share(self) -> float:
        """Share of the extent to be filled that was sampled, from 0.5 to 1."""
        sampled = self.last - self.first + 1
        return sampled / (sampled + len(self.missing))

    @property
    def missing(self) -> range:
        """Indices whose mirror images were sampled, while they were not.

        The outermost line of an even size mirrors itself: nothing tells what it was. It is left at zero, which was
        closer, in all but two of 18 cases measured, than what the projections made of it, mostly more than twice.
        """
        mirrored_first, mirrored_last = 2 * (self.lines // 2) - self.last, 2 * (self.lines // 2) - self.first
        if mirrored_first < self.first:
            return range(max(mirrored_first, 0), self.first)
        return range(self.last + 1, min(mirrored_last, self.lines - 1) + 1)


def partial_fourier(sampled: NDArray[np.bool_]) -> PartialFourier:
    """Return along which axis, and on which side, k-space was left out.

    Parameters
    ----------
    sampled
        `(ky, kx)`, bool, zero frequency at index `n // 2`. Lines beyond the reach of both sides (zero filling to a
        larger matrix) may be missing, too.

    Raises
    ------
    BadInput
        The sampled part is no rectangle without gaps, it is symmetric about zero or lopsided along both axes, or
        fewer than five lines around zero were sampled on both sides.
    """
    if sampled.ndim != 2 or not sampled.any():
        raise BadInput(f"a mask of shape {sampled.shape} with {int(sampled.sum())} sampled positions is no k-space")
    found = []
    filled = 1
    for axis in (-2, -1):
        used = np.flatnonzero(sampled.any(axis=-3 - axis))
        first, last, lines = int(used[0]), int(used[-1]), sampled.shape[axis]
        filled *= last - first + 1
        zero = lines // 2
        half = min(zero - first, last - zero)
        part = PartialFourier(axis, first, last, (zero - half, zero + half), lines)
        # an even number of lines about zero has one without a mirror image
        if len(part.missing) >= MIN_MISSING:
            found.append(part)
    if filled != int(sampled.sum()):
        raise BadInput(
            f"the sampled part of k-space has gaps: {int(sampled.sum())} of {filled} positions were measured",
            "Fill them in by parallel imaging first.",
        )
    if not found:
        raise BadInput("k-space was sampled on both sides of zero alike: there is no side to fill in")
    if len(found) > 1:
        raise BadInput("k-space is lopsided along both axes; one side can be filled in along one axis only")
    width = found[0].symmetric[1] - found[0].symmetric[0] + 1
    if width < MIN_SYMMETRIC:
        raise BadInput(
            f"{max(width, 0)} lines around zero were sampled on both sides; the phase needs at least {MIN_SYMMETRIC}"
        )
    return found[0]


def is_partial_fourier(sampled: NDArray[np.bool_]) -> bool:
    """Whether one side of k-space was left out along one axis, and nothing else; see `partial_fourier`."""
    try:
        partial_fourier(sampled)
    except BadInput:
        return False
    return True


def homodyne(kspace: ComplexArray, sampled: NDArray[np.bool_]) -> ComplexArray:
    """Return images of the coils `(coil, y, x)`, complex, with both sides of k-space in effect.

    Lines whose mirror image is missing count twice, with a linear ramp through the symmetric part; what is real
    after the smooth phase is taken out is the object. The phase is put back, so that coils can be combined. A phase
    that bends within the resolution of the symmetric part shades the image; the projections take that better.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex, zero frequency at index `n // 2`.
    sampled
        `(ky, kx)`, bool.

    Raises
    ------
    BadInput
        As for `partial_fourier`, or the mask does not fit.

    Source: D. C. Noll, D. G. Nishimura, A. Macovski 1991, doi:10.1109/42.79473.
    """
    part = _checked(kspace, sampled)
    hybrid = to_image(kspace * sampled, (-3 - part.axis,))
    phase = _phase(hybrid, part)
    image = to_image(hybrid * _along(_ramp(part), part.axis).astype(hybrid.real.dtype), (part.axis,))
    return np.asarray((image * phase.conj()).real * phase)


def projection_onto_convex_sets(
    kspace: ComplexArray, sampled: NDArray[np.bool_], *, iterations: int = 10, tolerance: float = 1e-4
) -> ComplexArray:
    """Return k-space with the missing side filled in `(coil, ky, kx)`, measured samples untouched.

    In turn the image is given the smooth phase of the symmetric part, and k-space its measured samples.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex, zero frequency at index `n // 2`.
    sampled
        `(ky, kx)`, bool.
    iterations
        Largest number of turns; beyond some ten the image hardly changes but for its noise.
    tolerance
        Ends once a turn changes the filled lines by less than this share of the measured k-space's norm.

    Raises
    ------
    BadInput
        As for `partial_fourier`, the mask does not fit, or `iterations` is below one.

    Source: E. M. Haacke, E. D. Lindskog, W. Lin 1991, doi:10.1016/0022-2364(91)90253-P.
    """
    part = _checked(kspace, sampled)
    if iterations < 1:
        raise BadInput(f"{iterations} iterations are below one")
    axis, other = part.axis, -3 - part.axis
    # the fully sampled axis stays in image space throughout, and the partial one starts at zero frequency
    hybrid = to_image(kspace * sampled, (other,))
    phase = fft.ifftshift(_phase(hybrid, part), axis)
    values = fft.ifftshift(hybrid, axis)
    lines = (np.asarray(part.missing) - part.lines // 2) % part.lines
    index = (..., lines, slice(None)) if axis == -2 else (..., lines)
    size = float(np.linalg.norm(hybrid))
    for _ in range(iterations):
        image = fft.ifft(values, axis=axis, norm="ortho", workers=-1)
        estimate = fft.fft(np.abs(image) * phase, axis=axis, norm="ortho", overwrite_x=True, workers=-1)[index]
        change = float(np.linalg.norm(estimate - values[index]))
        values[index] = estimate
        if change <= tolerance * size:
            break
    filled = to_kspace(fft.fftshift(values, axis), (other,))
    return np.asarray(np.where(sampled, kspace, filled))


def _checked(kspace: ComplexArray, sampled: NDArray[np.bool_]) -> PartialFourier:
    if kspace.ndim != 3 or sampled.shape != kspace.shape[1:]:
        raise BadInput(f"a mask of {sampled.shape} does not fit k-space (coil, ky, kx) of shape {kspace.shape}")
    return partial_fourier(sampled)


def _along(weights: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return weights[:, None] if axis == -2 else weights


def _ramp(part: PartialFourier) -> NDArray[np.float64]:
    """Return the weights `(line,)` of homodyne detection: those of a line and of its mirror image add up to two."""
    zero, half = part.lines // 2, part.symmetric[1] - part.lines // 2
    distance = np.arange(part.lines) - zero
    towards = distance if part.missing.start < zero else -distance
    weights = np.clip(1 + towards / (half + 1), 0.0, 2.0)
    # the outermost line of an even size mirrors itself
    if part.lines % 2 == 0:
        weights[0] = 1.0
    return weights


def _phase(hybrid: ComplexArray, part: PartialFourier) -> ComplexArray:
    """Return the smooth phase factor `(coil, y, x)` of the symmetric part, tapered against ringing."""
    zero, half = part.lines // 2, part.symmetric[1] - part.lines // 2
    distance = (np.arange(part.lines) - zero) / (half + 1)
    taper = np.where(np.abs(distance) < 1, np.cos(0.5 * np.pi * distance) ** 2, 0.0)
    low = to_image(hybrid * _along(taper, part.axis).astype(hybrid.real.dtype), (part.axis,))
    size = np.abs(low)
    return np.asarray(np.divide(low, size, out=np.ones_like(low), where=size > 0))
