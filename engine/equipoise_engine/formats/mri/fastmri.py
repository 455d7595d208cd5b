"""Reader for fastMRI-style HDF5 files: fully or partly sampled Cartesian k-space.

Source: Zbontar et al. 2018, fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv 1811.08839.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition, Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.hdf5 import Stored, check_dataset, check_memory, find, read_text, text_of
from equipoise_engine.formats.mri.kspace import Slices, measured_positions, sampling_warnings
from equipoise_engine.formats.mri.mrd_header import encoded_space, header_root, limits_of
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.preprocess.kspace import embedded, without_oversampling
from equipoise_engine.recipe import Known


def is_fastmri(file: h5py.File) -> bool:
    """Whether a file has a link called `kspace` at its top."""
    return "kspace" in set(file)


def read_fastmri(file: h5py.File, path: Path, known: Known) -> MriAcquisition:
    """Return the scan in an open fastMRI-style file; k-space is read slice by slice when needed.

    Raises
    ------
    BadInput
        k-space or mask is damaged, holds no measured value, or they do not fit together.
    """
    told_roles(known, path, ())
    found = find(file, "kspace", path)
    if found is None:
        raise BadInput(f"{path.name}: kspace is missing")
    data = check_dataset(found, path, kinds="c", axes=(3, 4))
    warnings: list[str] = []
    stored_shape = tuple(int(n) for n in data.shape)
    single = np.dtype(np.complex64)
    if data.ndim == 4:
        kspace = Stored(data, path, dtype=single)
        reason = "complex, four axes: (slice, coil, ky, kx)"
    elif _reference_slices(file, path) == 1 and stored_shape[0] > 1:
        kspace = Stored(data, path, dtype=single, add_axis=0)
        reason = "complex, three axes, and the reference image has one slice: (coil, ky, kx)"
    else:
        kspace = Stored(data, path, dtype=single, add_axis=1)
        reason = "complex, three axes: one coil, (slice, ky, kx)"
    _, coils, rows, columns = kspace.shape
    check_memory(coils * rows * columns * 8 * 4, f"one slice of {path.name} ({coils} coils of {rows} x {columns})")
    matched = [Match("k-space", "kspace", stored_shape, reason)]

    measured = measured_positions(kspace, path)
    mask = _mask(file, path, (rows, columns))
    if mask is None:
        sampled = measured
    else:
        dataset, given, axis = mask
        outside = int(np.count_nonzero(measured & ~given))
        if outside:
            warnings.append(f"{outside} k-space positions outside the mask hold values; they are left out.")
        sampled = measured & given
        matched.append(Match("sampling mask", "mask", tuple(int(n) for n in dataset.shape), f"lies along {axis}"))
    if not sampled.any():
        raise BadInput(f"{path.name}: no k-space position was measured: all values are zero")
    warnings += sampling_warnings(sampled, coils)
    header = _header(file, path, (rows, columns), known.keep_oversampling)
    laid: Samples = kspace
    if header is not None:
        matched.append(header.match)
        if (rows, columns) != header.encoded or header.pixels != header.encoded[header.readout]:
            laid, sampled, header = _laid_out(kspace, sampled, header)
            matched.append(_layout(header, (rows, columns)))
    field = header.field if header is not None else (float(rows), float(columns))
    return MriAcquisition(
        path=path,
        format="fastMRI-style HDF5",
        kspace=laid,
        geometry=Cartesian(
            sampled=sampled,
            field_of_view_mm=field,
            slice_mm=1.0 if header is None else header.slice_mm,
            calibrated=header is not None,
        ),
        matched=tuple(matched),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the header says about a slice.

    Parameters
    ----------
    encoded
        Size of the encoded k-space `(ky, kx)`.
    centre
        Index of zero frequency in the stored k-space `(ky, kx)`.
    readout
        Axis of the readout, 0 or 1.
    pixels
        Pixels along the readout that the image keeps.
    field
        Extent of the image `(y, x)`, mm.
    encoded_mm
        Extent along the readout with all its pixels.
    slice_mm
        Distance between slices.
    match
        Where it was found.
    incomplete
        Whether readouts are partly measured, so that all pixels along them are kept.
    """

    encoded: tuple[int, int]
    centre: tuple[int, int]
    readout: int
    pixels: int
    field: tuple[float, float]
    encoded_mm: float
    slice_mm: float
    match: Match
    incomplete: bool = False


def _laid_out(
    kspace: Samples, sampled: NDArray[np.bool_], header: _Header
) -> tuple[Slices, NDArray[np.bool_], _Header]:
    """Return k-space in the encoded matrix, where it was sampled, and the header as it then is.

    What the readout was oversampled is taken off, unless the readouts are partly measured (an asymmetric echo): their
    missing part would look measured.
    """
    axis = header.readout - 2
    _, mask = embedded(np.zeros(sampled.shape, np.complex64), header.encoded, header.centre, sampled=sampled)
    crops = header.pixels != header.encoded[header.readout]
    if crops and bool((mask.any(axis=axis) & ~mask.all(axis=axis)).any()):
        field = [*header.field]
        field[header.readout] = header.encoded_mm
        header = replace(header, pixels=header.encoded[header.readout], field=(field[0], field[1]), incomplete=True)
        crops = False
    if crops:
        shape = [*header.encoded]
        shape[header.readout] = header.pixels
        mask = np.broadcast_to(mask.any(axis=axis, keepdims=True), shape).copy()

    def load(index: int) -> NDArray[np.complex64]:
        plane, _ = embedded(np.asarray(kspace[index]), header.encoded, header.centre)
        if crops:
            plane = without_oversampling(plane, axis, header.pixels)
        return np.ascontiguousarray(plane * mask, dtype=np.complex64)

    return Slices(load, (kspace.shape[0], kspace.shape[1], *mask.shape)), mask, header


def _layout(header: _Header, stored: tuple[int, int]) -> Match:
    rows, columns = header.encoded
    told = []
    if stored != header.encoded:
        told.append(f"{stored[0]} x {stored[1]} samples laid into the encoded {rows} x {columns}")
    if header.pixels != header.encoded[header.readout]:
        told.append(f"of {header.encoded[header.readout]} pixels along the readout the middle {header.pixels} kept")
    if header.incomplete:
        told.append("the readouts are partly measured, so all their oversampled pixels are kept")
    return Match("matrix", "ismrmrd_header", header.encoded, "; ".join(told))


def _reference_slices(file: h5py.File, path: Path) -> int:
    """Return the number of slices of the reference image, 0 where there is none."""
    for name in ("reconstruction_rss", "reconstruction_esc"):
        item = find(file, name, path)
        if isinstance(item, h5py.Dataset) and item.ndim == 3:
            return int(item.shape[0])
    return 0


def _mask(file: h5py.File, path: Path, plane: tuple[int, int]) -> tuple[h5py.Dataset, NDArray[np.bool_], str] | None:
    """Return the mask's dataset, the mask on `(ky, kx)`, and the axis that it lies along, in words."""
    item = find(file, "mask", path)
    if item is None:
        return None
    dataset = check_dataset(item, path, kinds="iufb", axes=(1, 2))
    values = np.asarray(Stored(dataset, path)[...]) != 0
    rows, columns = plane
    if values.ndim == 2 and values.shape == plane:
        return dataset, values, "both axes, (ky, kx)"
    if values.ndim == 1 and values.size == columns:
        return dataset, np.broadcast_to(values[None, :], plane).copy(), "kx, as in fastMRI"
    if values.ndim == 1 and values.size == rows:
        return dataset, np.broadcast_to(values[:, None], plane).copy(), "ky, the only axis of its length"
    raise BadInput(
        f"{path.name}: mask has shape {values.shape}, which fits neither axis of k-space (ky, kx) = {plane}",
        "Correct the mask, or remove it: positions that are zero count as not measured.",
    )


def _header(file: h5py.File, path: Path, plane: tuple[int, int], keep_oversampling: bool) -> _Header | None:
    """Return what the header says, or None where there is none that does."""
    item = find(file, "ismrmrd_header", path)
    if isinstance(item, h5py.Dataset) and item.size == 1:
        text = read_text(item, path)
    elif "ismrmrd_header" in file.attrs:
        text = text_of(file.attrs["ismrmrd_header"])
    else:
        return None
    root = header_root(text)
    space = None if root is None else encoded_space(root, "encodedSpace")
    if root is None or space is None:
        return None
    extent, matrix = space
    # The readout, x in the header, lies along ky in fastMRI files, unless the matrix fits only the other way.
    turned = matrix[0] == plane[1] and matrix[0] != plane[0]
    readout = 1 if turned else 0
    field = [extent[1], extent[0]] if turned else [extent[0], extent[1]]
    encoded = (matrix[1], matrix[0]) if turned else (matrix[0], matrix[1])
    # a header that does not fit the readout tells nothing about the matrix
    if encoded[readout] != plane[readout] or encoded[1 - readout] < plane[1 - readout]:
        encoded = plane
    centre = [plane[0] // 2, plane[1] // 2]
    if encoded != plane:
        limits = limits_of(root, "kspace_encoding_step_1")
        centre[1 - readout] = limits[2] if limits is not None else centre[1 - readout]
        if not 0 <= centre[1 - readout] < plane[1 - readout]:
            encoded, centre = plane, [plane[0] // 2, plane[1] // 2]
    pixels = encoded[readout]
    kept = encoded_space(root, "reconSpace")
    if kept is not None and not keep_oversampling and 0 < kept[0][0] < 0.95 * extent[0]:
        pixels = max(1, round(pixels * kept[0][0] / extent[0]))
        field[readout] = kept[0][0]
    thick = extent[2] / max(matrix[2], 1) if np.isfinite(extent[2]) and extent[2] > 0 else 1.0
    reason = f"encoded field of view {extent[0]:g} x {extent[1]:g} mm; readout along {'kx' if turned else 'ky'}"
    match = Match("field of view", "ismrmrd_header", (), reason)
    return _Header(
        encoded=encoded,
        centre=(centre[0], centre[1]),
        readout=readout,
        pixels=pixels,
        field=(field[0], field[1]),
        encoded_mm=extent[0],
        slice_mm=thick,
        match=match,
    )
