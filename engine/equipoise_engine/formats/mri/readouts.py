"""From readouts of a scanner, in the order in which they were measured, to slices of Cartesian k-space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import Slices, check_finite
from equipoise_engine.preprocess.kspace import to_image, without_oversampling


@dataclass(frozen=True)
class Readout:
    """Where a readout lies in its file, and in k-space.

    Parameters
    ----------
    at
        Byte or index in the file.
    slice, line, partition
        Numbers that the scanner counts by.
    backwards
        Whether it was read out from the other end.
    """

    at: int
    slice: int
    line: int
    partition: int = 0
    backwards: bool = False


Load = Callable[[Readout], NDArray[np.complex64]]
"""Returns the samples of a readout `(coil, sample)`, complex64, in the order in which they were measured."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How all readouts of a scan lie in k-space.

    Parameters
    ----------
    coils, samples
        Of each readout.
    centre
        Sample at the centre of k-space, once a readout lies forward.
    columns
        Samples of a whole readout, with what it is oversampled.
    pixels
        Columns that are kept of its image; `columns` keeps all.
    rows, centre_row
        Phase-encoded lines of whole k-space, and the number of the line at its centre.
    partitions, centre_partition
        The same along the second phase encoding; 1 partition for two-dimensional scans.
    kept_partitions
        Slices that are kept of a slab, in the middle.
    used
        First sample that counts, and the one after the last, once a readout lies forward.
    """

    coils: int
    samples: int
    centre: int
    columns: int
    pixels: int
    rows: int
    centre_row: int
    partitions: int = 1
    centre_partition: int = 0
    kept_partitions: int = 1
    used: tuple[int, int] = (0, 1 << 31)

    @property
    def first(self) -> int:
        """Column of a readout's first sample."""
        return self.columns // 2 - self.centre

    def row(self, readout: Readout) -> int:
        """Return the row of k-space that a readout is."""
        return readout.line + self.rows // 2 - self.centre_row

    def depth(self, readout: Readout) -> int:
        """Return the partition of k-space that a readout lies in."""
        return readout.partition + self.partitions // 2 - self.centre_partition

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which of the columns that are kept were measured `(pixels,)`."""
        # Where the sample at a column of the image's own k-space was measured.
        own = np.rint((np.arange(self.pixels) - self.pixels // 2) * (self.columns / self.pixels)) + self.columns // 2
        start, end = self.first + self.used[0], self.first + min(self.used[1], self.samples)
        return np.asarray((own >= start) & (own < end))

    def forward(self, readout: Readout, values: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Return the samples of a readout `(coil, columns)`, laid forward into a whole one."""
        whole = np.zeros((self.coils, self.columns), dtype=np.complex64)
        start, end = self.used[0], min(self.used[1], self.samples)
        laid = values[:, ::-1] if readout.backwards else values
        whole[:, self.first + start : self.first + end] = laid[:, start:end]
        return whole

    def cropped(self, values: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Return whole readouts `(..., columns)` without what they are oversampled `(..., pixels)`."""
        if self.pixels == self.columns:
            return values
        return np.asarray(without_oversampling(values, -1, self.pixels), dtype=np.complex64)


@dataclass(frozen=True)
class Laid:
    """Slices of Cartesian k-space.

    Parameters
    ----------
    kspace
        `(slice, coil, ky, kx)`.
    sampled
        `(ky, kx)`.
    reversed_lines
        `(ky,)`, or None where no line was read backwards.
    along_readout
        Whether slices lie along the readout, ky being the first phase encoding and kx the second.
    warnings
        Sentences for the user.
    """

    kspace: Slices
    sampled: NDArray[np.bool_]
    reversed_lines: NDArray[np.bool_] | None = None
    along_readout: bool = False
    warnings: tuple[str, ...] = ()


def laid_out(path: Path, encoding: Encoding, readouts: Sequence[Readout], order: Sequence[int], load: Load) -> Laid:
    """Return the slices that readouts make up; what was measured more than once is averaged.

    A slab of partitions becomes slices across the second phase encoding, by a Fourier transform along it. Where this
    is not sampled the same everywhere, slices lie along the readout.

    Parameters
    ----------
    order
        Numbers of the slices, or slabs, from first to last.

    Raises
    ------
    BadInput
        A readout lies outside k-space, or a value is not finite.
    Unsupported
        Neither of the phase encodings nor the readouts of a three-dimensional scan are whole.
    OutOfMemory
        One slice, or one three-dimensional scan, does not fit into the memory.
    """
    _check_places(path, encoding, readouts)
    plane_bytes = 8 * encoding.coils * encoding.rows * encoding.columns
    check_memory(
        4 * plane_bytes, f"one slice of {path.name} ({encoding.coils} coils of {encoding.rows} x {encoding.columns})"
    )
    slabs = {number: [readout for readout in readouts if readout.slice == number] for number in order}
    if encoding.partitions == 1:
        laid = _flat(path, encoding, list(slabs.values()), load)
    else:
        partitions_bytes = 3 * 8 * encoding.coils * encoding.partitions * encoding.rows * encoding.pixels
        check_memory(partitions_bytes + 4 * plane_bytes, f"the three-dimensional scan of {path.name}")
        laid = _deep(path, encoding, list(slabs.values()), load)
    backwards = np.zeros(encoding.rows, dtype=bool)
    backwards[[encoding.row(readout) for readout in readouts if readout.backwards]] = True
    return replace(laid, reversed_lines=backwards if backwards.any() else None, warnings=tuple(_unlike(slabs)))


def _check_places(path: Path, encoding: Encoding, readouts: Sequence[Readout]) -> None:
    """Raise BadInput or Unsupported where a readout reaches beyond k-space."""
    for name, places, size in (
        ("line", [encoding.row(readout) for readout in readouts], encoding.rows),
        ("partition", [encoding.depth(readout) for readout in readouts], encoding.partitions),
    ):
        if min(places) < 0 or max(places) >= size:
            raise BadInput(f"{path.name}: a {name} lies beyond the {size} of k-space", "Export the raw data again.")
    if not 0 <= encoding.first <= encoding.columns - encoding.samples:
        raise Unsupported(
            f"{path.name}: readouts of {encoding.samples} samples with the centre of k-space at {encoding.centre} reach"
            f" beyond the {encoding.columns} that were to be measured"
        )


def _flat(path: Path, encoding: Encoding, slices: Sequence[Sequence[Readout]], load: Load) -> Laid:
    """Return k-space of the readouts of each slice."""
    sampled = _sampled_lines(encoding, slices)

    def load_slice(index: int) -> NDArray[np.complex64]:
        plane = _plane(path, encoding, slices[index], load)
        check_finite(plane, path, f"slice {index} (coil, ky, kx)")
        cropped = encoding.cropped(plane)
        check_finite(cropped, path, f"slice {index} without oversampling")
        return np.asarray(cropped * sampled)

    return Laid(Slices(load_slice, (len(slices), encoding.coils, encoding.rows, encoding.pixels)), sampled)


def _deep(path: Path, encoding: Encoding, slabs: Sequence[Sequence[Readout]], load: Load) -> Laid:
    """Return k-space of the readouts of each slab of partitions."""
    slab = _Slab(path, encoding, slabs, load)
    grid = np.zeros((encoding.partitions, encoding.rows), dtype=bool)
    for readout in chain.from_iterable(slabs):
        grid[encoding.depth(readout), encoding.row(readout)] = True
    depths, rows = np.asarray(grid.any(axis=1)), np.asarray(grid.any(axis=0))
    deep = np.flatnonzero(depths)
    alike = np.array_equal(grid, depths[:, None] & rows[None, :])
    if alike and deep.size == deep[-1] - deep[0] + 1:
        sampled = _sampled_lines(encoding, slabs)

        def across(index: int) -> NDArray[np.complex64]:
            return np.asarray(slab.partition(index) * sampled)

        count = len(slabs) * encoding.kept_partitions
        return Laid(Slices(across, (count, encoding.coils, encoding.rows, encoding.pixels)), sampled)
    if len(slabs) > 1 or not encoding.measured.all():
        raise Unsupported(
            f"{path.name}: a three-dimensional scan of {len(slabs)} slabs, whose {encoding.partitions} partitions were"
            " not measured alike, nor its readouts as a whole",
        )
    kept = np.ascontiguousarray(grid.T)

    def along(index: int) -> NDArray[np.complex64]:
        return np.asarray(slab.column(index) * kept)

    shape = (encoding.pixels, encoding.coils, encoding.rows, encoding.partitions)
    return Laid(Slices(along, shape), kept, along_readout=True)


def _sampled_lines(encoding: Encoding, slabs: Sequence[Sequence[Readout]]) -> NDArray[np.bool_]:
    """Return where k-space was measured by whole lines `(ky, kx)`."""
    sampled = np.zeros((encoding.rows, encoding.pixels), dtype=bool)
    sampled[[encoding.row(readout) for readout in chain.from_iterable(slabs)]] = encoding.measured
    return sampled


def _unlike(slabs: Mapping[int, Sequence[Readout]]) -> list[str]:
    """Return what the user should know where slices, by their numbers, were not measured alike."""
    steps = {number: {(readout.line, readout.partition) for readout in found} for number, found in slabs.items()}
    all_steps = set().union(*steps.values())
    lacking = sum(found != all_steps for found in steps.values())
    directions = {(readout.line, readout.backwards) for found in slabs.values() for readout in found}
    twice = len(directions) - len({line for line, _ in directions})
    warnings = []
    if lacking:
        warnings.append(f"{lacking} of {len(steps)} slices lack lines that others have; there they are zero.")
    if twice:
        warnings.append(f"{twice} lines were measured in both directions; their mean is taken as read backwards.")
    return warnings


def _plane(path: Path, encoding: Encoding, readouts: Iterable[Readout], load: Load) -> NDArray[np.complex64]:
    """Return averaged whole readouts `(coil, row, columns)`."""
    plane = np.zeros((encoding.coils, encoding.rows, encoding.columns), dtype=np.complex64)
    count = np.zeros(encoding.rows, dtype=np.float32)
    for readout in readouts:
        plane[:, encoding.row(readout)] += encoding.forward(readout, load(readout))
        count[encoding.row(readout)] += 1
    plane /= np.maximum(count, 1)[:, None]
    return plane


class _Slab:
    """Slabs of partitions, put together when one of their slices is asked for; the last one is kept."""

    def __init__(self, path: Path, encoding: Encoding, slabs: Sequence[Sequence[Readout]], load: Load) -> None:
        self._path = path
        self._encoding = encoding
        self._slabs = slabs
        self._load = load
        self._kept: tuple[int, NDArray[np.complex64]] | None = None

    def partition(self, index: int) -> NDArray[np.complex64]:
        """Return a slice across the partitions `(coil, ky, kx)`."""
        number, place = divmod(index, self._encoding.kept_partitions)
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # before the next one needs the room
            volume = self._volume(number)
            for coil in range(volume.shape[0]):
                volume[coil] = to_image(volume[coil], (0,))
            self._kept = number, volume
        first = self._encoding.partitions // 2 - self._encoding.kept_partitions // 2
        return self._kept[1][:, first + place]

    def column(self, index: int) -> NDArray[np.complex64]:
        """Return a slice along the readout `(coil, ky, kx)`, kx being the second phase encoding."""
        return np.ascontiguousarray(self._columns[..., index].transpose(0, 2, 1))

    @cached_property
    def _columns(self) -> NDArray[np.complex64]:
        volume = self._volume(0)
        for coil in range(volume.shape[0]):
            volume[coil] = to_image(volume[coil], (2,))
        return volume

    def _volume(self, number: int) -> NDArray[np.complex64]:
        """Return the k-space of a slab `(coil, partition, ky, kx)`."""
        encoding = self._encoding
        volume = np.zeros((encoding.coils, encoding.partitions, encoding.rows, encoding.pixels), dtype=np.complex64)
        found: dict[int, list[Readout]] = {}
        for readout in self._slabs[number]:
            found.setdefault(encoding.depth(readout), []).append(readout)
        for depth, readouts in found.items():
            plane = _plane(self._path, encoding, readouts, self._load)
            check_finite(plane, self._path, f"partition {depth} (coil, ky, kx)")
            volume[:, depth] = encoding.cropped(plane)
        return volume


UNCORRECTED = (
    "Lines were measured in both directions and are not corrected for their phases: expect a ghost half a field of view"
    " away."
)
"""A warning where lines of both directions have no navigators."""


def navigators(
    encoding: Encoding, readouts: Sequence[Readout], order: Sequence[int], load: Load
) -> NDArray[np.complex64] | None:
    """Return readouts along the middle of k-space `(slice, readout, coil, kx)`, alternately forward and reversed.

    Where they were not measured so, starting forward, those of either direction are averaged. None where a slice lacks
    either direction.

    Parameters
    ----------
    readouts
        In the order in which they were measured.
    order
        Numbers of the slices, from first to last.
    """
    slices = []
    for number in order:
        found = [readout for readout in readouts if readout.slice == number]
        values = np.array([encoding.cropped(encoding.forward(readout, load(readout))) for readout in found])
        backwards = np.array([readout.backwards for readout in found], dtype=bool)
        if not backwards.any() or backwards.all():
            return None
        if not np.array_equal(backwards, np.arange(backwards.size) % 2 == 1):
            values = np.stack([values[~backwards].mean(axis=0), values[backwards].mean(axis=0)])
        slices.append(values)
    fewest = min((values.shape[0] for values in slices), default=0)
    return np.stack([values[:fewest] for values in slices]).astype(np.complex64) if fewest else None


def filling_warnings(filled: int, integrated: bool) -> list[str]:
    """Return a warning where so many lines of a calibration fill in, unless they are an `integrated` part of a scan."""
    if not filled or integrated:
        return []
    return [f"{filled} reference lines fill in for lines that were left out; their contrast may differ."]


def whole_size(encoded: int, centre: int, last: int) -> int:
    """Return the size of k-space along a phase encoding: as encoded, or larger where its steps reach beyond.

    Parameters
    ----------
    centre, last
        Numbers of the step at the centre of k-space, and of the last one.
    """
    if centre <= encoded // 2 and encoded // 2 - centre + last < encoded:
        return encoded
    return max(encoded, 2 * max(centre, last + 1 - centre))


def slice_order(positions: Mapping[int, Sequence[float]]) -> tuple[list[int], float | None]:
    """Return the numbers of the slices in the order of their places, and the distance between them in mm.

    Numbers that already rise or fall with the places keep their order, and so do slices without places; the distance
    is None where it does not tell.

    Parameters
    ----------
    positions
        Middle of each slice `(3,)` in mm, by its number.
    """
    numbers = sorted(positions)
    places = np.array([positions[number] for number in numbers], dtype=np.float64)
    if len(numbers) < 2 or not np.isfinite(places).all():
        return numbers, None
    middle = places - places.mean(axis=0)
    _, spread, directions = np.linalg.svd(middle, full_matrices=False)
    # Slices that do not lie on a line are no stack.
    if spread[0] < 1e-3 or (spread.size > 1 and spread[1] > 0.05 * spread[0]):
        return numbers, None
    height = middle @ directions[0]
    height *= np.sign(directions[0][np.abs(directions[0]).argmax()])
    steps = np.diff(height)
    ordered = numbers if (steps > 0).all() or (steps < 0).all() else [numbers[i] for i in np.argsort(height)]
    # Places are told in single precision.
    distance = round(float(np.median(np.abs(np.diff(np.sort(height))))), 6)
    return ordered, distance if distance > 1e-3 else None
