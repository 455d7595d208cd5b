"""ISMRMRD readouts that tell where they lie in k-space: spokes, spirals, and stacks of them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Incomplete, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import check_finite
from equipoise_engine.formats.mri.mrd_acquisitions import Acquisitions
from equipoise_engine.formats.mri.mrd_header import FIELD_KNOWN, encoded_space, user_number
from equipoise_engine.formats.mri.readouts import slice_order
from equipoise_engine.geometry import NonCartesian
from equipoise_engine.preprocess.kspace import to_image
from equipoise_engine.recipe import Known

_ALIKE = 1e-3
"""Share of the extent of k-space by which positions may differ and still be the same."""


def along_trajectory(
    path: Path,
    acquisitions: Acquisitions,
    imaging: NDArray[np.int64],
    root: ElementTree.Element,
    number: int,
    known: Known,
    chosen_slice: int | None,
) -> MriAcquisition:
    """Return the scan of imaging readouts that tell where they lie in k-space.

    Parameters
    ----------
    imaging
        Indices of the readouts, in the order in which they were measured.
    number
        Which of the encodings of the header is theirs.
    chosen_slice
        Number of the only slice to read; None reads all whose readouts lie alike.

    Raises
    ------
    BadInput
        Positions are not finite, or of an unknown unit.
    Incomplete
        The header tells no matrix, and the user none either.
    Unsupported
        The trajectory is three-dimensional.
    """
    heads, index = acquisitions.heads, acquisitions.heads["idx"]
    coils, samples = int(heads["active_channels"][imaging[0]]), int(heads["number_of_samples"][imaging[0]])
    check_memory(3 * 8 * coils * samples * imaging.size, f"the readouts of {path.name}")
    numbers = [chosen_slice] if chosen_slice is not None else sorted({int(n) for n in index["slice"][imaging]})
    places = {n: tuple(float(x) for x in heads["position"][imaging[index["slice"][imaging] == n][0]]) for n in numbers}
    order, distance = slice_order(places)
    space = encoded_space(root, "reconSpace", number) or encoded_space(root, "encodedSpace", number)
    flat = space is not None and space[1][2] <= 1
    notes: list[str] = []
    first, density, stack = None, None, []
    for n in order:
        found = imaging[index["slice"][imaging] == n]
        positions, weights, values = _slab(path, acquisitions, found, flat)
        if first is None:
            first, density = positions, weights
        elif first.shape != positions.shape or np.abs(first - positions).max() > _ALIKE * np.abs(first).max():
            notes.append(
                f"The scan has {len(order)} slices along different trajectories; the first is read. Choose another as"
                ' the source of the k-space: "slice 2".'
            )
            break
        stack.append(values)
    assert first is not None
    kspace = np.concatenate(stack)
    points, matrix, field, reason, calibrated = _scaled(path, first, root, number, known)
    depth = space[0][2] if space is not None and np.isfinite(space[0][2]) and space[0][2] > 0 else 1.0
    return MriAcquisition(
        path=path,
        format="ISMRMRD",
        kspace=kspace,
        geometry=NonCartesian(
            trajectory=points,
            matrix=matrix,
            field_of_view_mm=field,
            density=density,
            slice_mm=distance or depth / max(kspace.shape[0] // len(stack), 1),
            calibrated=calibrated,
        ),
        matched=(
            Match("k-space", "data", kspace.shape, "(slice, coil, readout, sample), as the trajectory"),
            Match("trajectory", "traj", first.shape, reason),
            Match("field of view", "xml", (), f"{field[0]:g} x {field[1]:g} mm, {matrix[0]} x {matrix[1]} pixels"),
        ),
        warnings=tuple(notes),
    )


def _slab(
    path: Path, acquisitions: Acquisitions, found: NDArray[np.int64], flat: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.complex64]]:
    """Return positions `(readout, sample, 2)` as (kx, ky), weights, and values `(slice, coil, readout, sample)`.

    Of a `flat` scan, whose image has one slice, a third coordinate that changes along readouts holds weights of the
    samples `(readout, sample)`, as Gadgetron writes them.
    """
    heads = acquisitions.heads
    before, after = int(heads["discard_pre"][found[0]]), int(heads["discard_post"][found[0]])
    samples = int(heads["number_of_samples"][found[0]])
    used = slice(before, samples - after) if before + after < samples else slice(None)
    dimensions = int(heads["trajectory_dimensions"][found[0]])
    if dimensions not in (2, 3) or (heads["trajectory_dimensions"][found] != dimensions).any():
        raise Unsupported(f"{path.name}: positions of {dimensions} dimensions; two or three are read")
    positions = np.stack([acquisitions.trajectory(int(at))[used] for at in found]).astype(np.float64)
    if not np.isfinite(positions).all():
        raise BadInput(f"{path.name}: the trajectory holds positions that are not finite", "Export the file again.")
    values = np.stack([acquisitions.samples(int(at))[:, used] for at in found], axis=1)
    check_finite(values, path, "the readouts (coil, readout, sample)")
    plane = positions[..., :2]
    partition = heads["idx"]["kspace_encode_step_2"][found].astype(np.int64)
    if dimensions == 3:
        reach = max(float(np.abs(positions).max()), 1e-12)
        depth = positions[..., 2]
        changes = np.ptp(depth, axis=1).max() > _ALIKE * reach
        if changes and flat and depth.min() >= 0 and not partition.any():
            return plane, depth, values[None]
        if changes:
            raise Unsupported(
                f"{path.name}: a three-dimensional trajectory; spokes, spirals and stacks of them are read"
            )
        levels = np.unique(np.round(depth[:, 0] / (_ALIKE * reach)))
        if levels.size > 1:
            partition = np.searchsorted(levels, np.round(depth[:, 0] / (_ALIKE * reach)))
    kinds = np.unique(partition)
    if kinds.size == 1:
        return plane, None, values[None]
    members = [np.flatnonzero(partition == kind) for kind in kinds]
    # Of a stack, all partitions must lie alike for a Fourier transform across them.
    if len({member.size for member in members}) > 1 or any(
        np.abs(plane[member] - plane[members[0]]).max() > _ALIKE * np.abs(plane).max() for member in members
    ):
        raise Unsupported(f"{path.name}: a stack of {kinds.size} partitions that do not lie alike")
    volume = np.stack([values[:, member] for member in members])
    return plane[members[0]], None, np.asarray(to_image(volume, (0,)), dtype=np.complex64)


def _scaled(
    path: Path, positions: NDArray[np.float64], root: ElementTree.Element, number: int, known: Known
) -> tuple[NDArray[np.float64], tuple[int, int], tuple[float, float], str, bool]:
    """Return positions (ky, kx) in cycles per field of view, matrix and extent of the image, and how they were read."""
    encoded = encoded_space(root, "encodedSpace", number)
    shown = encoded_space(root, "reconSpace", number) or encoded
    if encoded is None or shown is None or min(encoded[1][:2]) < 1 or min(shown[1][:2]) < 1:
        if known.matrix is None:
            raise Incomplete(
                f"{path.name}: the header tells no size of the image",
                "Tell the rows and columns of the image.",
                missing=("matrix",),
            )
        encoded = shown = ([float(known.matrix[1]), float(known.matrix[0]), 1.0], [known.matrix[1], known.matrix[0], 1])
    (extent, matrix), reach = encoded, float(np.abs(positions).max())
    # Spokes and interleaves are counted by the matrix along y of some files: the readout's holds for both axes.
    pixel_x = extent[0] / matrix[0]
    pixel_y = extent[1] / matrix[1] if 0.5 < extent[1] / matrix[1] / pixel_x < 2 else pixel_x
    units = {
        "cycles per pixel": 0.5,
        "cycles per field of view": matrix[0] / 2,
        "cycles per metre": 500.0 / pixel_x,
        "radians per metre": 1000.0 * np.pi / pixel_x,
        "radians per pixel": np.pi,
    }
    fitting = [name for name, most in units.items() if 0.6 < reach / most < 1.13]
    unit = min(fitting, key=lambda name: abs(reach / units[name] - 1)) if fitting else ""
    if not unit and 0.05 < reach < 0.53:
        unit = "cycles per pixel"
    if not unit:
        raise BadInput(
            f"{path.name}: the trajectory reaches {reach:.4g}, which is no unit that is known: cycles per pixel reach"
            f" 0.5, per field of view {matrix[0] / 2:g}, per metre {500 / pixel_x:.4g}",
            "Write the positions in cycles per pixel.",
        )
    per_mm = positions[..., ::-1] * (0.5 / units[unit]) / np.array([pixel_y, pixel_x])
    calibrated = user_number(root, FIELD_KNOWN) != 0
    if known.matrix is not None:
        rows, columns = known.matrix
        field = (rows * pixel_y, columns * pixel_x)
    else:
        field = (shown[0][1], shown[0][0])
        furthest = np.abs(per_mm).max(axis=(0, 1)) * np.array(field)
        # As fine as the samples tell, where they reach beyond the pixels that the header asks for.
        rows, columns = (
            size if most <= size / 2 + 1 else 2 * int(np.ceil(most))
            for size, most in zip((shown[1][1], shown[1][0]), furthest, strict=True)
        )
        if max(rows, columns) > 16384:
            raise BadInput(f"{path.name}: an image of {rows} x {columns} pixels; at most 16384 are made")
    reason = f"(kx, ky) in {unit}, up to {reach:.4g}"
    return per_mm * np.array(field), (rows, columns), field, reason, calibrated
