"""Reader for image volumes in NIfTI files of version 1 and 2, also compressed or in two files.

Volumes are turned as `upright` has it, by the directions that the file gives. Where it gives none, the first axis runs
to the left, the second to the front and the third to the head, as in the older format that NIfTI continues.

The header and the values are read by nibabel, of which nothing looks for what may follow the header.

Sources: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and .../nifti2/nifti2.h.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.references.upright import LPS_OF_RAS, upright, usable
from equipoise_engine.volume import Volume

_GZIP = b"\x1f\x8b"
_CLASSES: dict[int, type[nibabel.Nifti1Header]] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
MAX_INFLATION = 1032
"""Bytes that one byte of a gzip file can become."""
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 1e-3}
_ROUNDING = np.float64(-1e-5)
"""How far beyond 1 the parts of a unit quaternion may add up, as many files keep them in single precision."""
_NEVER = 1000
"""A level that no fault of a header reaches."""
_SILENT = logging.Logger("nibabel.silent")
"""Takes what nibabel says of a header that it mends; its own one writes to stderr."""
_SILENT.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class _Header:
    """What the header says.

    Parameters
    ----------
    shape
        Sizes of the axes, the fastest first.
    steps
        Size of an element along these axes.
    affine
        Steps along the first three axes, `(axis, 3)`, as stored, along right, anterior and head; None where not said.
    """

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    steps: tuple[float, ...]
    affine: NDArray[np.float64] | None
    unit_mm: float
    one_file: bool


def is_nifti(path: Path) -> bool:
    """Whether a file begins as NIfTI files do, or is compressed and begins so."""
    start = _start(path, 348)
    if len(start) < 348:
        return False
    size = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return (348 in size and start[344:347] in (b"n+1", b"ni1")) or (540 in size and start[4:7] in (b"n+2", b"ni2"))


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        start = stream.read(count)
    if not start.startswith(_GZIP):
        return start
    try:
        with gzip.open(path) as stream:
            return stream.read(count)
    except (OSError, EOFError, zlib.error):
        return b""


def read_nifti(path: Path) -> Volume:
    """Return the image volume in a NIfTI file, the first of several; of complex values the magnitude.

    Raises
    ------
    BadInput
        The file is damaged or cut short, or its values are missing.
    Unsupported
        Its values are no numbers, as colours.
    OutOfMemory
        The volume is larger than the free memory.
    """
    header = _header(path)
    shape = (*header.shape, 1, 1)[:3]
    values = _values(path, header, shape).T
    notes = []
    others = math.prod(header.shape[3:])
    if others > 1:
        notes.append(f"the first of {others} volumes was taken")
    sizes = np.asarray([*header.steps, 1.0, 1.0, 1.0][:3])
    calibrated = bool(np.isfinite(sizes[: min(len(header.shape), 3)]).all() and (sizes[:2] > 0).all())
    sizes = np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0)
    directions = np.diag(sizes) @ np.diag([-1.0, 1.0, 1.0]) if header.affine is None else header.affine
    if header.affine is None:
        notes.append("the file does not say how its axes lie")
    # rows of it belong to the axes of the array, of which the last runs fastest
    turned, voxel = upright(values, header.unit_mm * (directions @ LPS_OF_RAS)[::-1])
    calibrated = calibrated and all(0 < size < math.inf for size in voxel)
    real = np.abs(turned) if turned.dtype.kind == "c" else turned
    data = real.astype(np.float32)
    if header.slope != 1.0 or header.intercept != 0.0:
        # in place: the volume may be as large as the memory allows
        data *= np.float32(header.slope)
        data += np.float32(header.intercept)
    provenance: dict[str, Any] = {"method": "reference", "reference": path.name, "format": "NIfTI", "unit": "a.u."}
    if notes:
        provenance["notes"] = notes
    return Volume(np.ascontiguousarray(data), voxel if calibrated else (1.0, 1.0, 1.0), "", calibrated, provenance)


def _header(path: Path) -> _Header:
    start = _start(path, 540)
    order, size = "<", int.from_bytes(start[:4], "little")
    if size not in _CLASSES:
        order, size = ">", int.from_bytes(start[:4], "big")
    if size not in _CLASSES or len(start) < size:
        raise BadInput(f"{path.name}: the header of the NIfTI file is cut short", "Copy or download it again.")
    # the header alone: what follows it may be about the patient, and its notes are never looked at
    header = _CLASSES[size](start[:size], endianness=order, check=False)
    dims, offset = [int(count) for count in header["dim"]], float(header["vox_offset"])
    if not 1 <= dims[0] <= 7 or any(count < 1 for count in dims[1 : dims[0] + 1]):
        raise BadInput(
            f"{path.name}: the NIfTI header gives the sizes {dims}; 1 to 7 axes are needed", "Export it again."
        )
    if not (math.isfinite(offset) and 0 <= offset < 1 << 62):
        raise BadInput(f"{path.name}: the NIfTI header places its values at {offset}", "Export it again.")
    # before they are mended: a size of zero is an unknown one
    steps = tuple(abs(float(step)) for step in header.get_zooms())
    header.check_fix(logger=_SILENT, error_level=_NEVER)
    code = int(header["datatype"])
    try:
        kind = header.get_data_dtype()
    except KeyError:
        kind = np.dtype("V")
    if kind.kind not in "iufc":
        raise Unsupported(f"{path.name}: values of NIfTI type {code} are not read; numbers are")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        slope = intercept = None
    one_file = header["magic"].item()[:3] == header.single_magic
    return _Header(
        shape=tuple(dims[1 : dims[0] + 1]),
        kind=kind,
        # in one file nothing lies before the end of the header, although 0 is written for not said
        offset=max(header.get_data_offset(), header.single_vox_offset if one_file else 0),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        steps=steps,
        affine=_directions(header),
        unit_mm=_MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0),
        one_file=one_file,
    )


def _directions(header: nibabel.Nifti1Header) -> NDArray[np.float64] | None:
    """Return the steps along three axes `(axis, 3)`, by the matrix or else by the quaternion; None without either."""
    header.quaternion_threshold = _ROUNDING
    try:
        matrix, _code = header.get_sform(coded=True)
        if matrix is None:
            matrix, _code = header.get_qform(coded=True)
    except (HeaderDataError, ValueError):
        return None
    if matrix is None:
        return None
    steps = np.asarray(matrix[:3, :3].T, dtype=np.float64)
    return steps if usable(steps) else None


def _values(path: Path, header: _Header, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the stored values of the first volume, the fastest axis first."""
    data = path if header.one_file else _beside(path)
    count = math.prod(shape)
    needed = count * header.kind.itemsize
    size = data.stat().st_size
    with data.open("rb") as stream:
        compressed = stream.read(2) == _GZIP
    most = size * MAX_INFLATION if compressed else size
    if header.offset + needed > most:
        raise BadInput(
            f"{data.name}: the volume {header.shape[:3]} of {header.kind.name} takes {needed} bytes from"
            f" {header.offset} on, but the file has {'at most ' if compressed else ''}{most}",
            "The file is cut short; copy or download it again.",
        )
    check_memory(3 * needed + 4 * count, f"the volume {header.shape[:3]} of {path.name}")
    try:
        with gzip.open(data) if compressed else data.open("rb") as values:
            return array_from_file(shape, header.kind, values, header.offset, mmap="r")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(
            f"{data.name}: the {'compressed ' if compressed else ''}NIfTI file is damaged, or it ends before the"
            f" {needed} bytes of its volume",
            "Copy or download it again.",
        ) from error


def _beside(path: Path) -> Path:
    """Return the file of the values that belongs to a header."""
    stem = path.name.removesuffix(".gz").removesuffix(".hdr")
    for name in (f"{stem}.img", f"{stem}.img.gz"):
        if (path.parent / name).is_file():
            return path.parent / name
    raise BadInput(
        f"{path.name}: the values of this NIfTI header are kept in {stem}.img, which is missing",
        f"Copy {stem}.img beside {path.name} and open it again.",
    )
