"""Reader for image volumes in NIfTI files of version 1 and 2, also compressed or in two files.

Volumes are turned as `upright` has it, by the directions that the file gives. Where it gives none, the first axis runs
to the left, the second to the front and the third to the head, as in the older format that NIfTI continues.

Sources: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and .../nifti2/nifti2.h.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.upright import LPS_OF_RAS, upright, usable
from equipoise_engine.volume import Volume

_GZIP = b"\x1f\x8b"
_SIZES = {348: 1, 540: 2}
MAX_INFLATION = 1032
"""Bytes that one byte of a gzip file can become."""
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    32: "c8",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    1792: "c16",
}
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 1e-3}


@dataclass(frozen=True)
class _Header:
    """What the header says.

    Parameters
    ----------
    shape
        Sizes of the axes, the fastest first.
    steps
        Size of an element along these axes, as stored.
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
    values = _values(path, header, math.prod(shape)).reshape(shape[::-1])
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
    order = "<" if int.from_bytes(start[:4], "little") in _SIZES else ">"
    version = _SIZES.get(int(struct.unpack_from(f"{order}i", start)[0]) if len(start) >= 348 else 0, 0)
    if version == 0 or len(start) < (348, 540)[version - 1]:
        raise BadInput(f"{path.name}: the header of the NIfTI file is cut short", "Copy or download it again.")

    def numbers(code: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + code, start, at)

    if version == 1:
        dims, kind, steps = numbers("8h", 40), numbers("h", 70)[0], numbers("8f", 76)
        offset, slope, intercept = numbers("3f", 108)
        units, (qform, sform), quaternion = start[123], numbers("2h", 252), numbers("3f", 256)
        rows, magic = numbers("12f", 280), start[344:347]
    else:
        dims, kind, steps = numbers("8q", 16), numbers("h", 12)[0], numbers("8d", 104)
        (offset,), (slope, intercept) = numbers("q", 168), numbers("2d", 176)
        units, (qform, sform), quaternion = numbers("i", 500)[0], numbers("2i", 344), numbers("3d", 352)
        rows, magic = numbers("12d", 400), start[4:7]
    axes = dims[0]
    if not 1 <= axes <= 7 or any(n < 1 for n in dims[1 : axes + 1]):
        raise BadInput(
            f"{path.name}: the NIfTI header gives the sizes {list(dims)}; 1 to 7 axes are needed", "Export it again."
        )
    if kind not in _TYPES:
        raise Unsupported(f"{path.name}: values of NIfTI type {kind} are not read; numbers are")
    if not (math.isfinite(offset) and 0 <= offset < 1 << 62):
        raise BadInput(f"{path.name}: the NIfTI header places its values at {offset}", "Export it again.")
    scaled = math.isfinite(slope) and math.isfinite(intercept) and slope != 0
    affine = None
    if sform > 0:
        affine = np.asarray(rows, dtype=np.float64).reshape(3, 4)[:, :3].T
    elif qform > 0:
        affine = _turned(quaternion, steps)
    if affine is not None and not usable(affine):
        affine = None
    return _Header(
        shape=tuple(int(n) for n in dims[1 : axes + 1]),
        kind=np.dtype(_TYPES[kind]).newbyteorder("<" if order == "<" else ">"),
        offset=int(offset),
        slope=float(slope) if scaled else 1.0,
        intercept=float(intercept) if scaled else 0.0,
        steps=tuple(abs(float(step)) for step in steps[1 : axes + 1]),
        affine=affine,
        unit_mm=_MILLIMETRES.get(units & 7, 1.0),
        one_file=magic in (b"n+1", b"n+2"),
    )


def _turned(quaternion: tuple[float, ...], steps: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the steps along three axes `(axis, 3)` after a rotation, of which three parts of four are given."""
    b, c, d = (float(part) for part in quaternion)
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d))) if all(map(math.isfinite, (b, c, d))) else math.nan
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    sizes = np.asarray(steps[1:4], dtype=np.float64) * [1.0, 1.0, -1.0 if steps[0] < 0 else 1.0]
    return np.asarray((rotation * sizes).T)


def _values(path: Path, header: _Header, count: int) -> NDArray[Any]:
    """Return the stored values of the first volume, as one row."""
    data = path if header.one_file else _beside(path)
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
    if not compressed:
        return np.memmap(data, dtype=header.kind, mode="r", offset=header.offset, shape=(count,))
    try:
        with gzip.open(data) as stream:
            stream.seek(header.offset)
            values = stream.read(needed)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{data.name}: the compressed NIfTI file is damaged ({error})", "Copy or download it again."
        ) from error
    if len(values) < needed:
        raise BadInput(
            f"{data.name}: the volume {header.shape[:3]} of {header.kind.name} takes {needed} bytes, but {len(values)}"
            " are stored",
            "The file is cut short; copy or download it again.",
        )
    return np.frombuffer(values, dtype=header.kind)


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
