"""Reader for fastMRI-style HDF5 files: fully or partly sampled Cartesian k-space.

Source: Zbontar et al. 2018, fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv 1811.08839.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition, Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.hdf5 import Stored, check_dataset, check_memory, find, read_text, text_of
from equipoise_engine.geometry import Cartesian

MAX_HEADER_BYTES = 4 << 20


def is_fastmri(file: h5py.File) -> bool:
    """Whether a file has a link called `kspace` at its top."""
    return "kspace" in set(file)


def read_fastmri(file: h5py.File, path: Path) -> MriAcquisition:
    """Return the scan in an open fastMRI-style file; k-space is read slice by slice when needed.

    Raises
    ------
    BadInput
        k-space or mask is damaged, holds no measured value, or they do not fit together.
    """
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

    measured = _measured(kspace, path)
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
    share = float(sampled.mean())
    if share < 0.999:
        warnings.append(f"{100 * share:.1f} % of the k-space positions were measured; the others are zero.")
    if coils == 1:
        warnings.append("There is one receive coil: missing lines cannot be made up for by coil sensitivities.")
    field, slice_mm, header = _header(file, path, (rows, columns))
    if header is not None:
        matched.append(header)
    return MriAcquisition(
        path=path,
        format="fastMRI-style HDF5",
        kspace=kspace,
        geometry=Cartesian(
            sampled=sampled,
            field_of_view_mm=field if field is not None else (float(rows), float(columns)),
            slice_mm=slice_mm,
            calibrated=field is not None,
        ),
        matched=tuple(matched),
        warnings=tuple(warnings),
    )


def _reference_slices(file: h5py.File, path: Path) -> int:
    """Return the number of slices of the reference image, 0 where there is none."""
    for name in ("reconstruction_rss", "reconstruction_esc"):
        item = find(file, name, path)
        if isinstance(item, h5py.Dataset) and item.ndim == 3:
            return int(item.shape[0])
    return 0


def _measured(kspace: Samples, path: Path) -> NDArray[np.bool_]:
    """Return where any coil of the first, middle or last slice is not zero, `(ky, kx)`."""
    slices, _, rows, columns = kspace.shape
    measured = np.zeros((rows, columns), dtype=bool)
    for index in sorted({0, slices // 2, slices - 1}):
        values = np.asarray(kspace[index])
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            first = (index, *(int(n) for n in bad[0]))
            raise BadInput(
                f"{path.name}: {len(bad)} of {values.size} k-space values of slice {index} are not finite;"
                f" the first is at (slice, coil, ky, kx) = {first}",
                "Export the raw data again.",
            )
        measured |= (values != 0).any(axis=0)
    return measured


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


def _header(
    file: h5py.File, path: Path, plane: tuple[int, int]
) -> tuple[tuple[float, float] | None, float, Match | None]:
    """Return field of view `(y, x)` in mm, slice distance in mm, and where it was found."""
    item = find(file, "ismrmrd_header", path)
    if isinstance(item, h5py.Dataset) and item.size == 1:
        text = read_text(item, path)
    elif "ismrmrd_header" in file.attrs:
        text = text_of(file.attrs["ismrmrd_header"])
    else:
        return None, 1.0, None
    if len(text) > MAX_HEADER_BYTES or "<!DOCTYPE" in text:
        return None, 1.0, None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None, 1.0, None
    space = root.find(".//{*}encoding/{*}encodedSpace")
    if space is None:
        return None, 1.0, None
    try:
        extent = [float(space.findtext(f"{{*}}fieldOfView_mm/{{*}}{axis}", "nan")) for axis in "xyz"]
        matrix = [int(space.findtext(f"{{*}}matrixSize/{{*}}{axis}", "0")) for axis in "xyz"]
    except ValueError:
        return None, 1.0, None
    if not all(np.isfinite(extent[:2])) or min(extent[:2]) <= 0:
        return None, 1.0, None
    # The readout, x in the header, lies along ky in fastMRI files, unless the matrix fits only the other way.
    turned = matrix[0] == plane[1] and matrix[0] != plane[0]
    field = (extent[1], extent[0]) if turned else (extent[0], extent[1])
    thick = extent[2] / max(matrix[2], 1) if np.isfinite(extent[2]) and extent[2] > 0 else 1.0
    reason = f"encoded field of view {extent[0]:g} x {extent[1]:g} mm; readout along {'kx' if turned else 'ky'}"
    return field, thick, Match("field of view", "ismrmrd_header", (), reason)
