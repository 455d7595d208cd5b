"""Readouts that were sampled while their gradient changed: where their samples lie, and how they come onto a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_RAMP_SAMPLES = 4096
"""Longest readout of a changing gradient that is put on a grid."""


@dataclass(frozen=True, kw_only=True)
class Trapezoid:
    """A gradient that rises, stays and falls, and when it was sampled.

    Parameters
    ----------
    up, flat, down
        Times of the gradient, in any unit.
    delay, duration
        From its beginning to the first sample, and of all samples, in the same unit.
    sine
        Whether its ramps are a quarter of a sine each.
    """

    up: float
    flat: float
    down: float
    delay: float
    duration: float
    sine: bool = False

    def positions(self, samples: int) -> NDArray[np.float64] | None:
        """Return where samples lie `(sample,)`, in cycles per pixel of all their pixels.

        The middle of the samples lies at 0; None where the times make no readout.
        """
        possible = min(self.up, self.flat, self.down, self.delay) >= 0 and 0 < self.duration < np.inf
        if not 1 < samples <= MAX_RAMP_SAMPLES or not possible:
            return None
        time = self.delay + self.duration / samples * (np.arange(samples) + 0.5)
        rise = np.clip(time / max(self.up, 1e-9), 0.0, 1.0)
        fall = np.clip((self.up + self.flat + self.down - time) / max(self.down, 1e-9), 0.0, 1.0)
        gradient = np.minimum(rise, fall)
        if self.sine:
            gradient = np.sin(np.pi / 2 * gradient)
        gradient = np.maximum(gradient, 1e-4)
        # From one sample to the next, half of the gradient of either counts.
        reached = np.concatenate([[0.0], np.cumsum((gradient[1:] + gradient[:-1]) / 2)]) / gradient.sum()
        middle = samples // 2
        reached -= reached[middle] if samples % 2 else (reached[middle - 1] + reached[middle]) / 2
        return reached if np.isfinite(reached).all() else None


def gridding(positions: NDArray[np.float64], columns: int, pixels: int) -> NDArray[np.complex64]:
    """Return the matrix `(columns, sample)` that takes samples at uneven positions to evenly spaced ones.

    The regularised pseudo-inverse of their Fourier transform, after Rosenfeld 1998, doi:10.1002/mrm.1910400105. Where
    samples lie too far apart for all columns, the signal is looked for in the middle pixels.

    Parameters
    ----------
    positions
        `(sample,)` in cycles per pixel, from -0.5 to 0.5; of the even ones, column j lies at
        (j - (columns - 1) / 2) / columns.
    pixels
        Of the image, in whose middle the object lies.
    """
    place = np.arange(columns) - columns // 2
    even = (np.arange(columns) - (columns - 1) / 2) / columns
    encode = np.exp(-2j * np.pi * positions[:, None] * place[None, :]) / np.sqrt(columns)
    penalty = np.where(np.abs(place) <= pixels / 2, 1e-4, 3e-2)
    image = np.linalg.solve(encode.conj().T @ encode + np.diag(penalty), encode.conj().T)
    back = np.exp(-2j * np.pi * even[:, None] * place[None, :]) / np.sqrt(columns)
    return np.asarray(back @ image, dtype=np.complex64)


@dataclass(frozen=True)
class Grid:
    """What puts samples of a changing gradient on a grid.

    Parameters
    ----------
    matrix
        `(columns, sample)`, of `gridding`.
    positions
        Of the samples along the readout `(sample,)`, cycles per mm.
    """

    matrix: NDArray[np.complex64]
    positions: NDArray[np.float64]

    def straight(self, samples: NDArray[np.complex64], off_centre_mm: float, backwards: bool) -> NDArray[np.complex64]:
        """Return evenly spaced samples `(coil, columns)`, in the order in which they were measured.

        The receiver follows an image off the centre as if the gradient were constant; its phase is changed to what the
        gradient was. That of a line that is read backwards has the other sign.
        """
        if off_centre_mm:
            off_centre_mm = -off_centre_mm if backwards else off_centre_mm
            count = self.positions.size
            step = float(np.diff(self.positions).max())
            even = step * (np.arange(count) - (count - 1) / 2)
            samples = samples * np.exp(2j * np.pi * off_centre_mm * (even - self.positions)).astype(np.complex64)
        return np.asarray(samples @ self.matrix.T, dtype=np.complex64)
