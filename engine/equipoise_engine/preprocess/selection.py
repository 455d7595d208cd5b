"""The part of a scan that is taken: some views, rows and columns, detector elements put together.

Nothing is read until it is looked at, and then only what was selected. A place on the detector keeps its meaning: the
rotation axis, and the plane of the source of a cone beam, are counted in what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Acquisition, CtAcquisition, Match, MriAcquisition, Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, CtGeometry
from equipoise_engine.recipe import Selection, Span

FEWEST_COLUMNS = 2
"""Fewest columns that make a detector."""
BLOCK_BYTES = 2**26
"""Bytes that are read at a time where elements are put together; one index of the first axis at least."""


def selected(scan: Acquisition, selection: Selection) -> Acquisition:
    """Return the selected part of a scan; the scan itself where that is all of it.

    Elements that are put together become their mean. Whether the object outreaches the detector is to be judged anew.
    Of a part of a part, the recipe says what it is of the files.

    Raises
    ------
    BadInput
        A range leaves the scan, nothing would be left, the rotation axis is cut away, or the scan has no such axis.
    """
    if selection == Selection():
        return scan
    if isinstance(scan, MriAcquisition):
        return _selected_slices(scan, selection)
    views, rows, columns = scan.shape
    if selection.columns.step != 1:
        raise BadInput(
            f"{scan.path.name}: every {selection.columns.step}-th column cannot be taken alone",
            "Put columns together instead.",
        )
    name = scan.path.name
    taken = (
        _range(selection.views, views, "view", name),
        _range(selection.rows, rows, "row", name),
        _range(selection.columns, columns, "column", name),
    )
    along = _row_bin(selection, len(taken[1]))
    if len(taken[2]) // selection.bin < FEWEST_COLUMNS:
        raise BadInput(
            f"{name}: {len(taken[2])} columns put together by {selection.bin} leave {len(taken[2]) // selection.bin};"
            f" {FEWEST_COLUMNS} are the fewest",
            "Put fewer together, or take more columns.",
        )
    together = (1, along, selection.bin)

    def cut(frames: Samples | None, kept: range | None = None) -> Samples | None:
        if frames is None:
            return None
        every = range(int(frames.shape[0]))
        return _Cut(frames, (every if kept is None else kept, *taken[1:]), together)

    projections = _Cut(scan.projections, taken, together)
    return replace(
        scan,
        projections=projections,
        flats=cut(scan.flats),
        darks=cut(scan.darks),
        monitor=None if scan.monitor is None else scan.monitor[_slice(taken[0])],
        geometry=_geometry(scan, selection, along),
        matched=(*scan.matched, Match("selection", "the recipe", projections.shape, _said(scan, taken, together))),
        recipe=msgspec.structs.replace(scan.recipe, selection=_of_files(scan, selection)),
        full_shape=scan.full_shape or scan.shape,
        rows_together=scan.rows_together * along,
    )


def _of_files(scan: Acquisition, selection: Selection) -> Selection:
    """Return what a selection from a scan that may be a part takes of its files."""
    before = scan.recipe.selection
    if before == Selection():
        return selection
    along = scan.rows_together if isinstance(scan, CtAcquisition) else 1
    if along > 1 and selection.rows.step > 1:
        raise BadInput(f"{scan.path.name}: of rows that were put together every {selection.rows.step}-th was asked for")
    return Selection(
        views=_within(before.views, selection.views, 1),
        rows=_within(before.rows, selection.rows, along),
        columns=_within(before.columns, selection.columns, before.bin),
        bin=before.bin * selection.bin,
    )


def _within(outer: Span, inner: Span, together: int) -> Span:
    """Return the span that one takes of another, whose indices were put together by so many."""
    first = outer.first + outer.step * together * inner.first
    last = outer.last if inner.last is None else outer.first + outer.step * (together * inner.last - 1) + 1
    return Span(first=first, last=last, step=outer.step * inner.step)


def file_column(selection: Selection, centre_px: float) -> float:
    """Return the column of the file, fractions allowed, that a column of the selected scan is."""
    return selection.columns.first + selection.bin * centre_px + (selection.bin - 1) / 2


def selected_column(selection: Selection, centre_px: float) -> float:
    """Return the column of the selected scan, fractions allowed, that a column of the file is."""
    return _counted(centre_px, selection.columns, selection.bin)


def _counted(place: float, span: Span, together: int) -> float:
    """Return where a place lies among what is left of its axis."""
    return ((place - span.first) / span.step - (together - 1) / 2) / together


def _range(span: Span, count: int, what: str, name: str) -> range:
    last = count if span.last is None else span.last
    if last > count or span.first >= last:
        raise BadInput(
            f"{name}: {what}s {span.first} to {last} cannot be taken: the scan has {count}, counted from 0, and the"
            " first must lie before the last",
            f"Take {what}s between 0 and {count}.",
        )
    return range(span.first, last, span.step)


def rows_apart(scan: CtAcquisition) -> float:
    """Return the distance from one detector row of a selected scan to the next, in its columns."""
    if isinstance(scan.geometry, ConeBeam):
        return scan.geometry.row_mm / scan.geometry.pixel_mm
    return scan.recipe.selection.rows.step * scan.rows_together / scan.recipe.selection.bin


def middle_of_detector(scan: CtAcquisition) -> tuple[float, float]:
    """Return where the middle of the whole detector lies in a selected scan, as row and column; maybe beyond it."""
    selection, (_, rows, columns) = scan.recipe.selection, scan.full_shape or scan.shape
    row = _counted((rows - 1) / 2, selection.rows, scan.rows_together)
    return row, selected_column(selection, (columns - 1) / 2)


def _row_bin(selection: Selection, rows: int) -> int:
    """Return how many rows are put together: as many as columns, where there are so many."""
    return selection.bin if rows > 1 and rows >= selection.bin else 1


def _geometry(scan: CtAcquisition, selection: Selection, along: int) -> CtGeometry:
    geometry = replace(scan.geometry, angle_rad=scan.geometry.angle_rad[_slice(_views(scan, selection))])
    geometry = replace(geometry, pixel_mm=geometry.pixel_mm * selection.bin)
    if geometry.centre_px is not None:
        first, last = selection.columns.first, selection.columns.last or scan.shape[2]
        if not first - 0.5 <= geometry.centre_px <= last - 0.5:
            raise BadInput(
                f"{scan.path.name}: the rotation axis at column {geometry.centre_px:g} lies outside the columns"
                f" {first} to {last} that are taken",
                "Take columns on both sides of the axis.",
            )
        geometry = replace(geometry, centre_px=selected_column(selection, geometry.centre_px))
    if isinstance(geometry, ConeBeam):
        middle = _counted(geometry.middle_px, selection.rows, along)
        geometry = replace(geometry, middle_px=middle, row_mm=geometry.row_mm * selection.rows.step * along)
    return geometry


def _views(scan: CtAcquisition, selection: Selection) -> range:
    return _range(selection.views, scan.shape[0], "view", scan.path.name)


def _said(scan: CtAcquisition, taken: tuple[range, ...], together: tuple[int, ...]) -> str:
    said = []
    for name, kept, count, number in zip(("views", "rows", "columns"), taken, scan.shape, together, strict=True):
        if kept != range(count):
            every = "" if kept.step == 1 else f", every {kept.step}."
            said.append(f"{name} {kept.start} to {kept[-1]} of {count}{every}")
        if number > 1:
            rest = len(kept) % number
            left = f" ({rest} at the end left out)" if rest else ""
            said.append(f"{number} {name} put together{left}")
    return "; ".join(said)


def _selected_slices(scan: MriAcquisition, selection: Selection) -> MriAcquisition:
    name = scan.path.name
    if selection.views != Span() or selection.columns != Span() or selection.bin != 1:
        raise BadInput(f"{name}: of an MRI scan only slices can be selected", "Leave out views, columns and bin.")
    slices = _range(selection.rows, int(scan.kspace.shape[0]), "slice", name)

    def cut(data: Samples) -> _Cut:
        whole = tuple(range(int(count)) for count in data.shape[1:])
        return _Cut(data, (slices, *whole), (1,) * len(data.shape))

    said = f"slices {slices.start} to {slices[-1]} of {scan.shape[0]}"
    said += "" if slices.step == 1 else f", every {slices.step}."
    return replace(
        scan,
        kspace=cut(scan.kspace),
        navigators=None if scan.navigators is None else cut(scan.navigators),
        interference=None if scan.interference is None else cut(scan.interference),
        geometry=replace(scan.geometry, slice_mm=scan.geometry.slice_mm * slices.step),
        matched=(*scan.matched, Match("selection", "the recipe", (len(slices), *scan.shape[1:]), said)),
        recipe=msgspec.structs.replace(scan.recipe, selection=_of_files(scan, selection)),
        full_shape=scan.full_shape or scan.shape,
    )


@dataclass(frozen=True)
class _Cut:
    """A part of an array, with neighbours put together, that is read when it is sliced.

    Parameters
    ----------
    source
        What it is a part of.
    taken
        Which indices of each axis are taken.
    together
        How many of those become one mean, along each axis; 1 along the first. A remainder is left out.
    """

    source: Samples
    taken: tuple[range, ...]
    together: tuple[int, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return tuple(len(kept) // number for kept, number in zip(self.taken, self.together, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: means are float32."""
        return self.source.dtype if max(self.together) == 1 else np.dtype(np.float32)

    def __getitem__(self, key: Any, /) -> Any:
        """Return the values at integers and slices, of which one may be an array of indices."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if any(one is Ellipsis for one in keys):
            at = next(i for i, one in enumerate(keys) if one is Ellipsis)
            keys[at : at + 1] = [slice(None)] * (len(self.shape) - len(keys) + 1)
        keys += [slice(None)] * (len(self.shape) - len(keys))
        if len(keys) > len(self.shape):
            raise IndexError(f"{len(keys)} indices for an array of {len(self.shape)} axes")
        wanted = [_indices(one, size) for one, size in zip(keys, self.shape, strict=True)]
        values = self._values(wanted)
        # axes that were asked for at one index go
        return values[tuple(0 if isinstance(one, int | np.integer) else slice(None) for one in keys)]

    def _values(self, wanted: list[NDArray[np.intp]]) -> NDArray[Any]:
        """Return the values at every combination of indices."""
        if max(self.together) == 1:
            own = [np.asarray(kept)[some] for kept, some in zip(self.taken, wanted, strict=True)]
            return _gathered(self.source, own)
        own = [
            np.asarray(kept)[(some[:, None] * number + np.arange(number)).reshape(-1)]
            for kept, some, number in zip(self.taken, wanted, self.together, strict=True)
        ]
        result = np.empty([some.size for some in wanted], dtype=np.float32)
        bytes_each = max(1, int(np.prod([some.size for some in own[1:]]))) * (self.source.dtype.itemsize + 8)
        step = max(1, BLOCK_BYTES // bytes_each)
        for first in range(0, own[0].size, step):
            block = _gathered(self.source, [own[0][first : first + step], *own[1:]])
            result[first : first + step] = _means(block, self.together)
        return result


def _indices(key: Any, size: int) -> NDArray[np.intp]:
    if isinstance(key, int | np.integer):
        if not -size <= key < size:
            raise IndexError(f"index {key} for an axis of {size}")
        return np.array([int(key) % size])
    return np.asarray(np.arange(size)[key], dtype=np.intp)


def _gathered(source: Samples, indices: list[NDArray[np.intp]]) -> NDArray[Any]:
    """Return the values of an array at every combination of indices, reading slices where they are even."""
    empty = any(some.size == 0 for some in indices)
    if empty:
        return np.empty([some.size for some in indices], dtype=source.dtype)
    # an array of indices is read piece by piece: not every source takes one, and none takes two
    for axis, some in enumerate(indices):
        if _even(some) is None:
            pieces = [_gathered(source, [*indices[:axis], piece, *indices[axis + 1 :]]) for piece in _even_pieces(some)]
            return np.concatenate(pieces, axis=axis)
    slices, turned = [], []
    for some in indices:
        part = _even(some)
        assert part is not None
        slices.append(part[0])
        turned.append(slice(None, None, -1) if part[1] else slice(None))
    return np.asarray(source[tuple(slices)])[tuple(turned)]


def _even(some: NDArray[np.intp]) -> tuple[slice, bool] | None:
    """Return indices as a rising slice, and whether it is to be turned round; None where they are not even."""
    if some.size == 1:
        return slice(int(some[0]), int(some[0]) + 1), False
    step = int(some[1] - some[0])
    if step == 0 or np.any(np.diff(some) != step):
        return None
    low, high = int(min(some[0], some[-1])), int(max(some[0], some[-1]))
    return slice(low, high + 1, abs(step)), step < 0


def _even_pieces(some: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return indices in pieces of which each is one index or follows on by one."""
    return np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)


def _slice(kept: range) -> slice:
    return slice(kept.start, kept.stop, kept.step)


def _means(block: NDArray[Any], together: tuple[int, ...]) -> NDArray[np.float32]:
    """Return means over neighbours, of the values that are finite."""
    split: list[int] = []
    for size, number in zip(block.shape, together, strict=True):
        split += [size // number, number]
    axes = tuple(range(1, len(split), 2))
    parts = block.reshape(split)
    means = parts.mean(axis=axes, dtype=np.float64)
    if not np.isfinite(means).all():
        good = np.isfinite(parts)
        count = good.sum(axis=axes)
        total = np.where(good, parts, 0).sum(axis=axes, dtype=np.float64)
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.asarray(means, dtype=np.float32)
