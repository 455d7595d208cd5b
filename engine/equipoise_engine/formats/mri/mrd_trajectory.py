"""ISMRMRD readouts that tell where they lie in k-space: spokes, spirals, and stacks of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Incomplete, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import check_finite, sampling_warnings
from equipoise_engine.formats.mri.mrd_header import FIELD_KNOWN, WEIGHTS_KNOWN, encoded_space, user_number
from equipoise_engine.formats.mri.mrd_part import Part
from equipoise_engine.formats.mri.readouts import slice_order
from equipoise_engine.geometry import NonCartesian
from equipoise_engine.preprocess.kspace import to_image

MAX_PIXELS = 16384
"""Most rows or columns of an image."""
_ALIKE = 1e-3
"""Share of the extent of k-space by which positions may differ and still be the same."""


def along_trajectory(part: Part, chosen_slice: int | None, matrix: tuple[int, int] | None) -> MriAcquisition:
    """Return the scan of imaging readouts that tell where they lie in k-space.

    Parameters
    ----------
    chosen_slice
        Number of the only slice to read; None reads all whose readouts lie alike.
    matrix
        Rows and columns of the image that the user tells.

    Raises
    ------
    BadInput
        Positions are not finite, or of an unknown unit.
    Incomplete
        The header tells no matrix, and the user none either.
    Unsupported
        The trajectory is three-dimensional.
    """
    check_memory(3 * 8 * part.coils * part.samples * part.imaging.size, f"the readouts of {part.path.name}")
    space = encoded_space(part.root, "reconSpace", part.number) or encoded_space(part.root, "encodedSpace", part.number)
    slabs, distance, notes = _slabs(part, chosen_slice, flat=space is not None and space[1][2] <= 1)
    kspace, positions = np.concatenate([slab.values for slab in slabs]), slabs[0].positions
    scaled = _scaled(part, positions, matrix)
    field, (rows, columns) = scaled.field, scaled.matrix
    depth = space[0][2] if space is not None and np.isfinite(space[0][2]) and space[0][2] > 0 else 1.0
    return MriAcquisition(
        path=part.path,
        format="ISMRMRD",
        kspace=kspace,
        geometry=NonCartesian(
            trajectory=scaled.points,
            matrix=scaled.matrix,
            field_of_view_mm=field,
            density=slabs[0].density,
            slice_mm=distance or depth / max(kspace.shape[0] // len(slabs), 1),
            calibrated=user_number(part.root, FIELD_KNOWN) != 0,
        ),
        matched=(
            Match("k-space", "data", kspace.shape, "(slice, coil, readout, sample), as the trajectory"),
            Match("trajectory", "traj", positions.shape, scaled.reason),
            Match("field of view", "xml", (), f"{field[0]:g} x {field[1]:g} mm, {rows} x {columns} pixels"),
            *part.noise_facts,
            *part.not_used(),
        ),
        warnings=(*notes, *sampling_warnings(np.ones((1, 1), dtype=np.bool_), part.coils)),
        noise=part.noise,
    )


@dataclass(frozen=True)
class _Slab:
    """The readouts of a slice, or of a slab of partitions.

    Parameters
    ----------
    positions
        `(readout, sample, 2)` as (kx, ky).
    density
        Weights of the samples `(readout, sample)`, where the file holds them.
    values
        `(slice, coil, readout, sample)`.
    """

    positions: NDArray[np.float64]
    density: NDArray[np.float64] | None
    values: NDArray[np.complex64]


def _slabs(part: Part, chosen_slice: int | None, *, flat: bool) -> tuple[list[_Slab], float | None, list[str]]:
    """Return the slabs whose readouts lie as those of the first, the distance between them in mm, and what is left.

    Parameters
    ----------
    flat
        Whether the image has one slice.
    """
    numbers = part.heads["idx"]["slice"][part.imaging]
    wanted = np.unique(numbers) if chosen_slice is None else [chosen_slice]
    members = {int(n): part.imaging[numbers == n] for n in wanted}
    if not all(found.size for found in members.values()):
        raise BadInput(f"{part.path.name}: no readouts belong to slice {wanted[0] + 1} of this part of the scan")
    places = {n: tuple(float(x) for x in part.heads["position"][found[0]]) for n, found in members.items()}
    order, distance = slice_order(places)
    slabs: list[_Slab] = []
    for n in order:
        slab = _slab(part, members[n], flat)
        first = slabs[0].positions if slabs else slab.positions
        if first.shape != slab.positions.shape or np.abs(first - slab.positions).max() > _ALIKE * np.abs(first).max():
            note = (
                f"The scan has {len(order)} slices along different trajectories; the first is read. Choose another as"
                ' the source of the k-space: "slice 2".'
            )
            return slabs[:1], distance, [note]
        slabs.append(slab)
    return slabs, distance, []


def _slab(part: Part, found: NDArray[np.int64], flat: bool) -> _Slab:
    """Return the readouts of a slice or a slab.

    Of a `flat` scan, whose image has one slice, a third coordinate that changes along readouts holds weights of the
    samples, as Gadgetron writes them; files of this program say so.
    """
    heads, path = part.heads, part.path
    positions, values = _samples(part, found)
    plane = positions[..., :2]
    partition = heads["idx"]["kspace_encode_step_2"][found].astype(np.int64)
    if positions.shape[2] == 3:
        reach = max(float(np.abs(positions).max()), 1e-12)
        depth = positions[..., 2]
        changes = np.ptp(depth, axis=1).max() > _ALIKE * reach
        weights = changes and flat and depth.min() >= 0 and not partition.any()
        if weights or user_number(part.root, WEIGHTS_KNOWN) == 1:
            return _Slab(plane, depth, values[None])
        if changes:
            raise Unsupported(
                f"{path.name}: a three-dimensional trajectory; spokes, spirals and stacks of them are read"
            )
        levels = np.unique(np.round(depth[:, 0] / (_ALIKE * reach)))
        if levels.size > 1:
            partition = np.searchsorted(levels, np.round(depth[:, 0] / (_ALIKE * reach)))
    kinds = np.unique(partition)
    if kinds.size == 1:
        return _Slab(plane, None, values[None])
    members = [np.flatnonzero(partition == kind) for kind in kinds]
    # Of a stack, all partitions must lie alike for a Fourier transform across them.
    if len({member.size for member in members}) > 1 or any(
        np.abs(plane[member] - plane[members[0]]).max() > _ALIKE * np.abs(plane).max() for member in members
    ):
        raise Unsupported(f"{path.name}: a stack of {kinds.size} partitions that do not lie alike")
    volume = np.stack([values[:, member] for member in members])
    return _Slab(plane[members[0]], None, np.asarray(to_image(volume, (0,)), dtype=np.complex64))


def _samples(part: Part, found: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.complex64]]:
    """Return positions `(readout, sample, dimension)` and values `(coil, readout, sample)` of samples that count."""
    heads, path = part.heads, part.path
    before, after = int(heads["discard_pre"][found[0]]), int(heads["discard_post"][found[0]])
    used = slice(before, part.samples - after) if before + after < part.samples else slice(None)
    dimensions = int(heads["trajectory_dimensions"][found[0]])
    if dimensions not in (2, 3) or (heads["trajectory_dimensions"][found] != dimensions).any():
        raise Unsupported(f"{path.name}: positions of {dimensions} dimensions; two or three are read")
    positions = np.stack([part.acquisitions.trajectory(int(at))[used] for at in found]).astype(np.float64)
    if not np.isfinite(positions).all():
        raise BadInput(f"{path.name}: the trajectory holds positions that are not finite", "Export the file again.")
    values = np.stack([part.acquisitions.samples(int(at))[:, used] for at in found], axis=1)
    check_finite(values, path, "the readouts (coil, readout, sample)")
    return positions, values


@dataclass(frozen=True)
class _Scaled:
    """A trajectory in the units of its image.

    Parameters
    ----------
    points
        `(readout, sample, 2)` as (ky, kx), cycles per field of view.
    matrix, field
        Rows and columns of the image, and its extent `(y, x)` in mm.
    reason
        How the positions were read.
    """

    points: NDArray[np.float64]
    matrix: tuple[int, int]
    field: tuple[float, float]
    reason: str


def _scaled(part: Part, positions: NDArray[np.float64], told: tuple[int, int] | None) -> _Scaled:
    """Return positions `(readout, sample, 2)` as (kx, ky) in the units of the image, whose matrix may be told."""
    encoded = encoded_space(part.root, "encodedSpace", part.number)
    shown = encoded_space(part.root, "reconSpace", part.number) or encoded
    if encoded is None or shown is None or min(encoded[1][:2]) < 1 or min(shown[1][:2]) < 1:
        if told is None:
            raise Incomplete(
                f"{part.path.name}: the header tells no size of the image",
                "Tell the rows and columns of the image.",
                missing=("matrix",),
            )
        encoded = shown = ([float(told[1]), float(told[0]), 1.0], [told[1], told[0], 1])
    extent, matrix = encoded
    # Spokes and interleaves are counted by the matrix along y of some files: the readout's holds for both axes.
    pixel_x = extent[0] / matrix[0]
    pixel_y = extent[1] / matrix[1] if 0.5 < extent[1] / matrix[1] / pixel_x < 2 else pixel_x
    reach = float(np.abs(positions).max())
    unit, most = _unit(part.path, reach, matrix[0], pixel_x)
    per_mm = positions[..., ::-1] * (0.5 / most) / np.array([pixel_y, pixel_x])
    if told is not None:
        size, field = told, (told[0] * pixel_y, told[1] * pixel_x)
    else:
        field = (shown[0][1], shown[0][0])
        size = _covered(part.path, (shown[1][1], shown[1][0]), np.abs(per_mm).max(axis=(0, 1)) * np.array(field))
    return _Scaled(per_mm * np.array(field), size, field, f"(kx, ky) in {unit}, up to {reach:.4g}")


def _unit(path: Path, reach: float, columns: int, pixel_mm: float) -> tuple[str, float]:
    """Return the unit of positions that reach so far, and how far those at the edge of k-space do in it."""
    units = {
        "cycles per pixel": 0.5,
        "cycles per field of view": columns / 2,
        "cycles per metre": 500.0 / pixel_mm,
        "radians per metre": 1000.0 * np.pi / pixel_mm,
        "radians per pixel": np.pi,
    }
    fitting = [name for name, most in units.items() if 0.6 < reach / most < 1.13]
    unit = min(fitting, key=lambda name: abs(reach / units[name] - 1)) if fitting else ""
    if not unit and 0.05 < reach < 0.53:
        unit = "cycles per pixel"
    if not unit:
        raise BadInput(
            f"{path.name}: the trajectory reaches {reach:.4g}, which is no unit that is known: cycles per pixel reach"
            f" 0.5, per field of view {columns / 2:g}, per metre {500 / pixel_mm:.4g}",
            "Write the positions in cycles per pixel.",
        )
    return unit, units[unit]


def _covered(path: Path, shown: tuple[int, int], furthest: NDArray[np.float64]) -> tuple[int, int]:
    """Return the pixels of an image as fine as its samples tell, where they reach beyond those that are asked for."""
    rows, columns = (
        size if most <= size / 2 + 1 else 2 * int(np.ceil(most)) for size, most in zip(shown, furthest, strict=True)
    )
    if max(rows, columns) > MAX_PIXELS:
        raise BadInput(f"{path.name}: an image of {rows} x {columns} pixels; at most {MAX_PIXELS} are made")
    return rows, columns
