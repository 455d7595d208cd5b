"""From readouts of a scanner, in the order in which they were measured, to slices of Cartesian k-space."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import Slices, check_finite
from equipoise_engine.preprocess.kspace import to_image, without_oversampling
from equipoise_engine.recipe import Source

MAX_RAMP_SAMPLES = 4096
"""Longest readout of a changing gradient that is put on a grid."""
MAX_SOURCES = 64
"""Parts of a scan that are named for a choice of others."""
_PART = re.compile(r"([a-z][a-z ]*?)\s*(\d{1,9})")
_PLURALS = {"echo": "echoes", "index a": "indices a"}


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
    reversed_lines: NDArray[np.bool_] | None
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
    rows, columns = encoding.rows, encoding.columns
    shift = rows // 2 - encoding.centre_row
    lines = np.array([readout.line for readout in readouts]) + shift
    depths = np.array([readout.partition for readout in readouts])
    depths += encoding.partitions // 2 - encoding.centre_partition
    for places, size, name in ((lines, rows, "line"), (depths, encoding.partitions, "partition")):
        if places.min() < 0 or places.max() >= size:
            raise BadInput(f"{path.name}: a {name} lies beyond the {size} of k-space", "Export the raw data again.")
    if not 0 <= encoding.first <= columns - encoding.samples:
        raise Unsupported(
            f"{path.name}: readouts of {encoding.samples} samples with the centre of k-space at {encoding.centre} reach"
            f" beyond the {columns} that were to be measured"
        )
    slabs = {number: [readout for readout in readouts if readout.slice == number] for number in order}
    plane_bytes = 8 * encoding.coils * rows * columns
    check_memory(4 * plane_bytes, f"one slice of {path.name} ({encoding.coils} coils of {rows} x {columns})")
    backwards = np.zeros(rows, dtype=bool)
    backwards[[readout.line + shift for readout in readouts if readout.backwards]] = True
    reversed_lines = backwards if backwards.any() else None
    sampled = np.zeros((rows, encoding.pixels), dtype=bool)
    sampled[np.unique(lines)] = encoding.measured
    warnings = tuple(_unlike(slabs))
    if encoding.partitions == 1:

        def load_slice(index: int) -> NDArray[np.complex64]:
            plane = _plane(path, encoding, slabs[order[index]], load)
            check_finite(plane, path, f"slice {index} (coil, ky, kx)")
            cropped = encoding.cropped(plane)
            check_finite(cropped, path, f"slice {index} without oversampling")
            return np.asarray(cropped * sampled)

        shape = (len(order), encoding.coils, rows, encoding.pixels)
        return Laid(Slices(load_slice, shape), sampled, reversed_lines, warnings=warnings)
    check_memory(
        3 * 8 * encoding.coils * encoding.partitions * rows * encoding.pixels + 4 * plane_bytes,
        f"the three-dimensional scan of {path.name}",
    )
    grid = np.zeros((encoding.partitions, rows), dtype=bool)
    grid[depths, lines] = True
    slab = _Slab(path, encoding, [slabs[number] for number in order], load)
    depth_measured, line_measured = np.asarray(grid.any(axis=1)), np.asarray(grid.any(axis=0))
    deep = np.flatnonzero(depth_measured)
    alike = np.array_equal(grid, depth_measured[:, None] & line_measured[None, :])
    if alike and deep.size == deep[-1] - deep[0] + 1:

        def across(index: int) -> NDArray[np.complex64]:
            return np.asarray(slab.partition(index) * sampled)

        shape = (len(order) * encoding.kept_partitions, encoding.coils, rows, encoding.pixels)
        return Laid(Slices(across, shape), sampled, reversed_lines, warnings=warnings)
    if len(order) > 1 or not encoding.measured.all():
        raise Unsupported(
            f"{path.name}: a three-dimensional scan of {len(order)} slabs, whose {encoding.partitions} partitions were"
            " not measured alike, nor its readouts as a whole",
        )
    kept = np.ascontiguousarray(grid.T)

    def along(index: int) -> NDArray[np.complex64]:
        return np.asarray(slab.column(index) * kept)

    shape = (encoding.pixels, encoding.coils, rows, encoding.partitions)
    return Laid(Slices(along, shape), kept, reversed_lines, along_readout=True, warnings=warnings)


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
    shift = encoding.rows // 2 - encoding.centre_row
    for readout in readouts:
        plane[:, readout.line + shift] += encoding.forward(readout, load(readout))
        count[readout.line + shift] += 1
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
        shift = encoding.partitions // 2 - encoding.centre_partition
        found: dict[int, list[Readout]] = {}
        for readout in self._slabs[number]:
            found.setdefault(readout.partition + shift, []).append(readout)
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


def ramp_positions(
    samples: int, *, up: float, flat: float, down: float, delay: float, duration: float, sine: bool = False
) -> NDArray[np.float64] | None:
    """Return where samples on a changing gradient lie `(sample,)`, in cycles per pixel of all their pixels.

    Parameters
    ----------
    up, flat, down
        Times of a trapezoidal gradient, in any unit.
    delay, duration
        From its beginning to the first sample, and of all samples, in the same unit.
    sine
        Whether its ramps are a quarter of a sine each.

    Returns
    -------
    positions
        The middle of the samples lies at 0; None where the times make no readout.
    """
    if not 1 < samples <= MAX_RAMP_SAMPLES or min(up, flat, down, delay) < 0 or not 0 < duration < np.inf:
        return None
    time = delay + duration / samples * (np.arange(samples) + 0.5)
    rise = np.clip(time / max(up, 1e-9), 0.0, 1.0)
    fall = np.clip((up + flat + down - time) / max(down, 1e-9), 0.0, 1.0)
    gradient = np.minimum(rise, fall)
    if sine:
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


def chosen_part(source: str, counters: Mapping[str, Iterable[int]], path: Path) -> dict[str, int]:
    """Return which value of each counter is read: the first, or what a source like "repetition 2, echo 1" says.

    Parameters
    ----------
    counters
        The values that each counter takes, from 0; a source counts from 1.

    Raises
    ------
    BadInput
        The scan has no such part.
    """
    values = {name: sorted(set(found)) for name, found in counters.items()}
    chosen = {name: found[0] for name, found in values.items() if found}
    for part in filter(None, (text.strip() for text in source.lower().split(","))):
        told = _PART.fullmatch(part)
        name, number = (told[1], int(told[2]) - 1) if told is not None else (part, -1)
        if number not in values.get(name, []):
            there = ", ".join(f"{name} {n + 1}" for name, n in _choices(values))[:200] or "one only"
            raise BadInput(f"{path.name}: the scan has no part {part!r}", f"Its parts are: {there}.")
        chosen[name] = number
    return chosen


def noise_wanted(told: Mapping[str, str], path: Path) -> bool:
    """Return whether the noise of a scan is to be read: unless the user tells that there is none.

    Raises BadInput where a source is told: readouts of noise are marked in the file.
    """
    source = told.get("noise")
    if source:
        raise BadInput(
            f"{path.name}: {source!r} cannot be told as the noise: its readouts are marked in the file",
            "Leave it out, or tell an empty source where there is none.",
        )
    return source is None


def parts(counters: Mapping[str, Iterable[int]], shape: tuple[int, ...]) -> tuple[Source, ...]:
    """Return the parts of a scan that may be read in place of the first."""
    values = {name: sorted(set(found)) for name, found in counters.items()}
    return tuple(Source(f"{name} {n + 1}", shape, "k-space") for name, n in _choices(values)[:MAX_SOURCES])


def part_warnings(counters: Mapping[str, Iterable[int]], chosen: Mapping[str, int]) -> list[str]:
    """Return how many parts the scan has besides the one that is read."""
    warnings = []
    for name, found in counters.items():
        values = sorted(set(found))
        if len(values) > 1:
            which = "the first" if chosen[name] == values[0] else f"number {chosen[name] + 1}"
            several = _PLURALS.get(name, name + ("es" if name.endswith("s") else "s"))
            warnings.append(f"The scan has {len(values)} {several}; {which} is read.")
    return warnings


def filling_warnings(filled: int, integrated: bool) -> list[str]:
    """Return a warning where so many lines of a calibration fill in, unless they are an `integrated` part of a scan."""
    if not filled or integrated:
        return []
    return [f"{filled} reference lines fill in for lines that were left out; their contrast may differ."]


def _choices(values: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    return [(name, number) for name, found in values.items() if len(found) > 1 for number in found]
