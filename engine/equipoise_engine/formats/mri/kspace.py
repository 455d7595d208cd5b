"""What every reader of k-space needs: slices made when they are asked for, and which positions were measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.indexing import full_key


class Slices:
    """k-space whose slices are put together when they are asked for.

    Parameters
    ----------
    load
        Returns one slice `(coil, ky, kx)`, complex64, of its index.
    shape
        `(slice, coil, ky, kx)`.
    """

    def __init__(self, load: Callable[[int], NDArray[np.complex64]], shape: tuple[int, int, int, int]) -> None:
        self._load = load
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.complex64)

    def __len__(self) -> int:
        return self._shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        keys = full_key(key, len(self._shape), "k-space")
        chosen = np.arange(self._shape[0])[keys[0]]
        if chosen.ndim == 0:
            return self._load(int(chosen))[tuple(keys[1:])]
        values = np.empty((chosen.size, *self._shape[1:]), dtype=np.complex64)
        for position, index in enumerate(chosen):
            values[position] = self._load(int(index))
        return values[(slice(None), *keys[1:])]


def measured_positions(kspace: Samples, path: Path) -> NDArray[np.bool_]:
    """Return where any coil of the first, middle or last slice is not zero, `(ky, kx)`.

    Raises
    ------
    BadInput
        A value of these slices is not finite, or all are zero.
    """
    slices, _, rows, columns = kspace.shape
    measured = np.zeros((rows, columns), dtype=bool)
    for index in sorted({0, slices // 2, slices - 1}):
        values = np.asarray(kspace[index])
        check_finite(values, path, f"slice {index} (coil, ky, kx)")
        measured |= (values != 0).any(axis=0)
    if not measured.any():
        raise BadInput(f"{path.name}: no k-space position was measured: all values are zero")
    return measured


def check_finite(values: NDArray[Any], path: Path, what: str) -> None:
    """Raise BadInput where a value of a part of k-space, named `what`, is not finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(values))
    if not finite.all():
        first = tuple(int(n) for n in np.argwhere(np.logical_not(finite))[0])
        raise BadInput(
            f"{path.name}: {int(values.size - finite.sum())} of {values.size} k-space values of {what} are not finite;"
            f" the first is at {first}",
            "Export the raw data again.",
        )


def line_axis(sampled: NDArray[np.bool_], usual: int) -> int:
    """Return the axis of `sampled (ky, kx)` along which whole lines were left out; `usual` where neither tells."""
    rows, columns = np.asarray(sampled.any(axis=1)), np.asarray(sampled.any(axis=0))
    if not np.array_equal(rows[:, None] & columns[None, :], sampled) or rows.mean() == columns.mean():
        return usual
    return 0 if rows.mean() < columns.mean() else 1


def sampling_warnings(sampled: NDArray[np.bool_], coils: int) -> list[str]:
    """Return what the user should know about the positions measured `(ky, kx)` by so many coils."""
    warnings = []
    share = float(sampled.mean())
    if share < 0.999:
        warnings.append(f"{100 * share:.1f} % of the k-space positions were measured; the others are zero.")
    if coils == 1:
        warnings.append("There is one receive coil: missing lines cannot be made up for by coil sensitivities.")
    return warnings


def centre_warnings(plane: NDArray[np.complex64]) -> list[str]:
    """Return a warning where the most signal of a slice `(coil, ky, kx)` lies far from the centre of k-space."""
    with np.errstate(over="ignore"):  # damaged files hold values of any size
        energy = np.linalg.norm(plane, axis=0)
    peak = [int(n) for n in np.unravel_index(int(energy.argmax()), energy.shape)]
    if all(abs(at - n // 2) <= max(n // 8, 1) for at, n in zip(peak, energy.shape, strict=True)):
        return []
    return [
        f"The most signal lies at (ky, kx) = {tuple(peak)}, far from the centre of k-space"
        f" {tuple(n // 2 for n in energy.shape)}: the file may hold an image, or k-space that is not centred."
    ]
