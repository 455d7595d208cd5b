"""Images that are read one by one when they are asked for, and views of them in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.indexing import full_key

LARGE = 1 << 26
"""Bytes from which on it is asked whether values fit into the memory."""


class _Lazy:
    """An array of three axes whose values are made when they are asked for."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._dtype

    def __len__(self) -> int:
        return self._shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any, /) -> Any:
        raise NotImplementedError


class Frames(_Lazy):
    """Images that are read one by one when they are asked for.

    Parameters
    ----------
    load
        Returns the image `(row, column)` of its index.
    shape
        `(image, row, column)`.
    dtype
        Type of the values.
    """

    def __init__(self, load: Callable[[int], NDArray[Any]], shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self._load = load

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        keys = full_key(key, 3, "images")
        chosen = np.arange(self._shape[0])[keys[0]]
        inner = tuple(keys[1:])
        if chosen.ndim == 0:
            return np.asarray(self._load(int(chosen))[inner], dtype=self._dtype)
        # a view of one value tells the shape of what is cut out of an image without reading it
        cut = np.broadcast_to(np.zeros((), self._dtype), self._shape[1:])[inner].shape
        needed = int(chosen.size * np.prod(cut, dtype=np.float64)) * self._dtype.itemsize
        if needed > LARGE:
            check_memory(needed, f"values of {chosen.size} images")
        values = np.empty((chosen.size, *cut), dtype=self._dtype)
        for position, index in enumerate(chosen):
            values[position] = self._load(int(index))[inner]
        return values


class Taken(_Lazy):
    """Some of the frames of an array, in an order of its own.

    Parameters
    ----------
    samples
        `(frame, row, column)`.
    frames
        Which of its frames, `(frame,)`, int64.
    """

    def __init__(self, samples: Samples, frames: NDArray[np.int64]) -> None:
        _, rows, columns = (int(n) for n in samples.shape)
        super().__init__((int(frames.size), rows, columns), samples.dtype)
        self._samples = samples
        self._frames = frames

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        keys = full_key(key, 3, "frames")
        chosen = self._frames[keys[0]]
        first: Any = int(chosen) if np.ndim(chosen) == 0 else chosen
        if np.ndim(chosen) == 1 and chosen.size:
            # neighbouring frames are read in one go
            if (np.diff(chosen) == 1).all():
                first = slice(int(chosen[0]), int(chosen[-1]) + 1)
        elif np.ndim(chosen) == 1:
            first = slice(0, 0)
        return self._samples[(first, *keys[1:])]


class Turned(_Lazy):
    """Sinograms as projections: an array whose first two axes are exchanged.

    Parameters
    ----------
    samples
        `(row, view, column)`.
    """

    def __init__(self, samples: Samples) -> None:
        rows, views, columns = (int(n) for n in samples.shape)
        super().__init__((views, rows, columns), samples.dtype)
        self._samples = samples

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        views, rows, columns = full_key(key, 3, "frames")
        row: Any = slice(rows, int(rows) + 1 or None) if isinstance(rows, (int, np.integer)) else rows
        chosen = np.arange(self._shape[0])[views]
        if chosen.size == 0:
            reached, within = slice(0, 0), np.zeros(chosen.shape, dtype=np.int64)
        else:
            # what lies between is read as well: files are read by runs, not by lists
            first = int(chosen.min())
            reached, within = slice(first, int(chosen.max()) + 1), chosen - first
        values = np.asarray(self._samples[(row, reached, columns)]).swapaxes(0, 1)
        values = values[int(within)] if np.ndim(within) == 0 else values[within]
        if row is not rows:
            values = values.take(0, axis=0 if np.ndim(within) == 0 else 1)
        return values


class Transposed(_Lazy):
    """Images whose rows and columns are swapped.

    Parameters
    ----------
    samples
        `(image, column, row)`.
    """

    def __init__(self, samples: Samples) -> None:
        images, columns, rows = (int(n) for n in samples.shape)
        super().__init__((images, rows, columns), samples.dtype)
        self._samples = samples

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        image, row, column = full_key(key, 3, "images")
        values = np.asarray(self._samples[(image, column, row)])
        both = not isinstance(row, (int, np.integer)) and not isinstance(column, (int, np.integer))
        return values.swapaxes(-1, -2) if both else values


class Scaled(_Lazy):
    """Values that stand for others: `(value - offset) / unit`, as float32.

    Parameters
    ----------
    samples
        `(frame, row, column)`.
    offset, unit
        Stored values of zero, and of one above it.
    """

    def __init__(self, samples: Samples, offset: float, unit: float) -> None:
        frames, rows, columns = (int(n) for n in samples.shape)
        super().__init__((frames, rows, columns), np.dtype(np.float32))
        self._samples = samples
        self._offset = np.float32(offset)
        self._unit = np.float32(unit)

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values of integers, slices, an ellipsis, or an index array on the first axis."""
        values = np.asarray(self._samples[key], dtype=np.float32)
        return np.asarray((values - self._offset) / self._unit)
