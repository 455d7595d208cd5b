"""Reader for arrays of NumPy: real ones are projections, complex ones k-space; in an archive, names tell the roles.

Nothing in these files is run: arrays of Python objects are refused. What can be mapped from the disk is mapped.

Sources: NumPy enhancement proposal 1, https://numpy.org/neps/nep-0001-npy-format.html; PKWARE, APPNOTE.TXT, section
4.3.7 (local headers of a ZIP archive).
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from equipoise_engine.acquisition import Acquisition, CtAcquisition, Match, MriAcquisition, Samples
from equipoise_engine.errors import BadInput, Incomplete, Unsupported
from equipoise_engine.formats.frames import Taken
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.mri.kspace import (
    Slices,
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.formats.mri.matlab_axes import MAX_COILS
from equipoise_engine.formats.mri.matlab_kspace import DENSITY_NAMES, KSPACE_NAMES, TRAJECTORY_NAMES
from equipoise_engine.formats.mri.trajectory import image_size
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.sinogram import MIN_VIEWS
from equipoise_engine.formats.stacks.stack import ROLES, Stack, scan_of_stack
from equipoise_engine.geometry import Cartesian, NonCartesian, ParallelBeam
from equipoise_engine.recipe import Known, Source

START, ZIP_START = b"\x93NUMPY", b"PK\x03\x04"
MAX_ARRAYS = 1000
MRI_ROLES = ("kspace", "trajectory", "density")
# Names in small letters and without underscores.
_NAMES: dict[str, frozenset[str]] = {
    "projections": frozenset({"projections", "projection", "proj", "projs", "data", "tomo", "images", "arr0"})
    | frozenset({"sinogram", "sinograms", "sino", "counts", "transmission", "attenuation", "absorption"}),
    "flats": frozenset({"flats", "flat", "white", "whites", "datawhite", "openbeam", "ob", "i0", "flatfield"}),
    "darks": frozenset({"darks", "dark", "datadark", "darkfield"}),
    "angles": frozenset({"angles", "angle", "theta", "thetas", "rotationangle", "anglesdeg", "anglesrad"})
    | frozenset({"anglesdegrees", "anglesradians", "thetadeg", "thetarad"}),
}
_CENTRES = frozenset({"centre", "center", "centrepx", "centerpx", "rotationcenter", "rotationcentre", "cor"})
_STATES = {
    "counts": "counts",
    "transmission": "transmission",
    "attenuation": "attenuation",
    "absorption": "attenuation",
}
_DAMAGE = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class _Array:
    """An array of a file: its name, shape and type, and what reads it."""

    name: str
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    load: Callable[[], NDArray[Any]]

    @property
    def source(self) -> Source:
        return Source(self.name, self.shape, str(self.kind))

    def __str__(self) -> str:
        return f"{self.name or 'array'} {self.shape} {self.kind}"


def is_numpy(path: Path) -> bool:
    """Whether a file is an array of NumPy, or an archive of nothing else."""
    with path.open("rb") as stream:
        start = stream.read(len(START))
    if start == START:
        return True
    if not start.startswith(ZIP_START):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _DAMAGE:
        return path.suffix.lower() == ".npz"
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_numpy(path: Path, known: Known) -> Acquisition:
    """Return the scan in a .npy or .npz file.

    Real arrays `(image, row, column)`, or one sinogram `(view, column)`, are computed tomography. Complex ones `(ky,
    kx)`, `(coil, ky, kx)` or `(slice, coil, ky, kx)` are k-space; with a trajectory `(readout, sample, 2)` along (ky,
    kx) their last two axes are readout and sample.

    Raises
    ------
    BadInput
        The file is damaged, or its arrays do not fit together.
    Incomplete
        It is not clear which array is the projections, or the k-space.
    Unsupported
        An array holds Python objects, or no numbers.
    OutOfMemory
        A compressed array is larger than the free memory.
    """
    try:
        arrays = _arrays(path)
        if any(array.kind.kind == "c" and len(array.shape) >= 2 for array in arrays):
            return _kspace(path, arrays, known)
        return _stack(path, arrays, known)
    except _DAMAGE as error:
        raise BadInput(
            f"{path.name}: the NumPy file is damaged ({str(error)[:200] or type(error).__name__})",
            "Copy or save it again.",
        ) from error


# --- arrays -----------------------------------------------------------------------------------------


def _arrays(path: Path) -> list[_Array]:
    """Return the arrays of a file; nothing but their headers is read."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(START)) == START:
            stream.seek(0)
            shape, fortran, kind = _header(stream, "the array", path)
            at = stream.tell()
            _check_size(at + _bytes(shape, kind), size, "the array", shape, kind, path)
            return [_Array("", shape, kind, lambda: _mapped(path, at, shape, fortran, kind))]
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise BadInput(f"{path.name}: {len(members)} arrays; at most {MAX_ARRAYS} are looked at")
        return [_member(archive, member, path) for member in members]


def _header(stream: IO[bytes], what: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the first axis runs fastest, and type of the array that begins here."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, kind = npy.read_array_header_1_0(stream)
    elif version in ((2, 0), (3, 0)):
        shape, fortran, kind = npy.read_array_header_2_0(stream)
    else:
        raise Unsupported(f"{path.name}: {what} is of version {version} of the format")
    if kind.hasobject:
        raise Unsupported(
            f"{path.name}: {what} holds Python objects, which are never loaded", "Save arrays of numbers."
        )
    return tuple(int(n) for n in shape), bool(fortran), kind


def _bytes(shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    return math.prod(shape) * kind.itemsize


def _check_size(needed: int, stored: int, what: str, shape: tuple[int, ...], kind: np.dtype[Any], path: Path) -> None:
    if needed > stored:
        raise BadInput(
            f"{path.name}: {what} of shape {shape} and type {kind} takes {needed} bytes, but {stored} are there",
            "The file is cut short or damaged; copy or save it again.",
        )


def _mapped(path: Path, at: int, shape: tuple[int, ...], fortran: bool, kind: np.dtype[Any]) -> NDArray[Any]:
    if math.prod(shape) == 0:
        raise BadInput(f"{path.name}: an array of shape {shape} is empty")
    return np.memmap(path, dtype=kind, mode="r", offset=at, shape=shape or (1,), order="F" if fortran else "C")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> _Array:
    """Return an array of an archive; it is mapped where it is stored as it is, else read whole."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        shape, fortran, kind = _header(stream, name, path)
        begin = stream.tell()
    _check_size(begin + _bytes(shape, kind), member.file_size, name, shape, kind, path)

    def mapped() -> NDArray[Any]:
        with path.open("rb") as stream:
            stream.seek(member.header_offset)
            lengths = struct.unpack("<26x2H", stream.read(30))
        at = member.header_offset + 30 + sum(lengths) + begin
        _check_size(at + _bytes(shape, kind), path.stat().st_size, name, shape, kind, path)
        return _mapped(path, at, shape, fortran, kind)

    def unpacked() -> NDArray[Any]:
        check_memory(2 * _bytes(shape, kind), f"{name} of {path.name}, which is compressed,")
        with zipfile.ZipFile(path) as file, file.open(member) as stream:
            stream.read(begin)
            raw = stream.read(_bytes(shape, kind))
        _check_size(_bytes(shape, kind), len(raw), name, shape, kind, path)
        return np.frombuffer(raw, dtype=kind).reshape(shape, order="F" if fortran else "C")

    plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    return _Array(name, shape, kind, mapped if plain else unpacked)


def _named(arrays: list[_Array], names: frozenset[str]) -> _Array | None:
    return next((array for array in arrays if array.name.lower().replace("_", "") in names), None)


def _told(arrays: list[_Array], source: str, path: Path) -> _Array | None:
    """Return the array that a role names: one of the file, or one beside it; None where it is neither."""
    inside = next((array for array in arrays if source in (array.name, f"{array.name}.npy")), None)
    if inside is not None or not source.lower().endswith(".npy"):
        return inside
    file = path.parent / source
    if not file.is_file():
        raise BadInput(f"{path.name}: there is no {source!r} in it or beside it", "Check the name.")
    return _arrays(file)[0]


def _unclear(path: Path, arrays: list[_Array], what: str, role: str) -> Incomplete:
    said = ", ".join(str(array) for array in arrays[:8]) + (", ..." if len(arrays) > 8 else "")
    return Incomplete(
        f"{path.name}: it is not clear which array is the {what}: {said or 'it holds none'}",
        f"Tell which of them has the role {role}.",
        missing=(role,),
        sources=tuple(array.source for array in arrays),
    )


# --- computed tomography ----------------------------------------------------------------------------


def _stack(path: Path, arrays: list[_Array], known: Known) -> CtAcquisition:
    roles = told_roles(known, path, ROLES)
    followed: set[str] = set()
    found: dict[str, _Array] = {}
    frames: dict[str, slice | None] = {}
    for role, names in _NAMES.items():
        source, frames[role] = parsed(roles.get(role, ""))
        array = _told(arrays, source, path) if source else None
        if array is not None:
            followed.add(role)
        elif role not in roles or (role == "projections" and not source):
            array = arrays[0] if role == "projections" and len(arrays) == 1 else _named(arrays, names)
            frames[role] = None
        if array is not None:
            found[role] = array
    if "projections" not in found and not parsed(roles.get("projections", ""))[0]:
        others = [a for a in arrays if len(a.shape) in (2, 3) and a not in found.values() and a.kind.kind in "iuf"]
        if len(others) == 1:
            found["projections"] = others[0]
    if "projections" not in found:
        raise _unclear(path, arrays, "projections", "projections")
    chosen = found["projections"]
    images = _images(path, chosen, frames["projections"])
    count, rows, columns = images.shape
    if known.transposed:
        rows, columns = columns, rows
    if min(columns, max(count, rows)) < MIN_VIEWS:
        raise BadInput(
            f"{path.name}: {chosen} is too small for a scan of at least {MIN_VIEWS} views and columns",
            "Check which array holds the projections.",
        )
    matched = []
    fields: dict[str, Samples | None] = {}
    for role, array in found.items():
        told = role in followed
        if role in ("flats", "darks"):
            fields[role] = _images(path, array, frames[role])
        if role != "projections":
            matched.append(Match(role, array.name, array.shape, GIVEN if told else "as its name says"))
        elif array.name:
            matched.append(Match(role, array.name, array.shape, GIVEN if told else "as its name says, or by itself"))
    angles, units = None, ""
    if "angles" in found and known.angles is None:
        angles, units = _angles(path, found["angles"], frames["angles"])
    centre = _centre(path, arrays)
    left = tuple(role for role in known.roles if role.role not in followed)
    return scan_of_stack(
        Stack(
            path=path,
            format="NumPy array",
            images=images,
            flats=fields.get("flats"),
            darks=fields.get("darks"),
            angle_deg=angles,
            angle_units=units,
            geometry=lambda angle_rad: ParallelBeam(angle_rad, centre_px=centre),
            state=_STATES.get(chosen.name.lower(), ""),
            matched=tuple(matched),
            beside=_beside(path),
            sources=tuple(array.source for array in arrays) if arrays[0].name else (),
        ),
        msgspec.structs.replace(known, roles=left),
    )


def _images(path: Path, array: _Array, frames: slice | None) -> Samples:
    """Return an array as images `(image, row, column)`."""
    if len(array.shape) not in (2, 3) or array.kind.kind not in "iufb" or 0 in array.shape:
        raise BadInput(
            f"{path.name}: {array} cannot be images; real numbers (image, row, column) or (view, column) are needed",
            "Tell which array has which role.",
        )
    values = array.load()
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    if values.ndim == 2:
        values = values[None]
    if frames is None:
        return values
    indices = np.arange(values.shape[0], dtype=np.int64)[frames]
    if indices.size == 0:
        raise BadInput(f"{path.name}: no frame is taken of the {values.shape[0]} of {array.name}")
    return Taken(values, indices)


def _beside(path: Path) -> Callable[[str], Samples]:
    """Return what opens arrays and images beside a file."""

    def opened(source: str) -> Samples:
        array = _told([], source, path)
        return images_beside(path)(source) if array is None else _images(path, array, None)

    return opened


def _angles(path: Path, array: _Array, frames: slice | None) -> tuple[NDArray[np.float64], str]:
    """Return angles as they are stored, and their unit where the name says."""
    if array.kind.kind not in "iuf" or max(array.shape, default=0) != math.prod(array.shape):
        raise BadInput(f"{path.name}: {array} cannot be angles; one real number for each view is needed")
    angles = np.asarray(array.load(), dtype=np.float64).reshape(-1)
    word = array.name.lower()
    return angles if frames is None else angles[frames], "rad" if "rad" in word else "deg" if "deg" in word else ""


def _centre(path: Path, arrays: list[_Array]) -> float | None:
    array = _named(arrays, _CENTRES)
    if array is None:
        return None
    if math.prod(array.shape) != 1 or array.kind.kind not in "iuf":
        raise BadInput(f"{path.name}: {array} cannot be the rotation centre, which is one column")
    value = float(np.asarray(array.load()).reshape(-1)[0])
    if not math.isfinite(value):
        raise BadInput(f"{path.name}: the rotation centre {array.name} is {value}")
    return value


# --- magnetic resonance imaging ---------------------------------------------------------------------


def _kspace(path: Path, arrays: list[_Array], known: Known) -> MriAcquisition:
    roles = told_roles(known, path, MRI_ROLES)

    def of(role: str, names: frozenset[str]) -> _Array | None:
        if role not in roles:
            return _named(arrays, names)
        source = roles[role]
        array = _told(arrays, source, path) if source else None
        if source and array is None:
            raise BadInput(f"{path.name}: there is no array {source!r} that could be {role}", "Check the name.")
        return array

    trajectory, density = of("trajectory", TRAJECTORY_NAMES), of("density", DENSITY_NAMES)
    data = of("kspace", KSPACE_NAMES | {"arr0"})
    if data is None or data.kind.kind != "c":
        others = [a for a in arrays if a.kind.kind == "c" and len(a.shape) >= 2 and a not in (trajectory, density)]
        if "kspace" in roles or len(others) != 1:
            raise _unclear(path, arrays, "k-space", "kspace")
        data = others[0]
    matched = Match("k-space", data.name or "the array", data.shape, GIVEN if "kspace" in roles else "complex")
    sources = tuple(array.source for array in arrays) if arrays[0].name else ()
    if 0 in data.shape:
        raise BadInput(f"{path.name}: {data} is empty")
    if trajectory is not None:
        return _along(path, data, trajectory, density, known, matched, sources)
    values, order = _planes(path, data)
    coils, rows, columns = (int(n) for n in values.shape[1:])

    def load(index: int) -> NDArray[np.complex64]:
        return np.ascontiguousarray(values[index], dtype=np.complex64)

    check_memory(2 * 8 * coils * rows * columns, f"one slice of {path.name}")
    kspace = Slices(load, (int(values.shape[0]), coils, rows, columns))
    sampled = measured_positions(kspace, path)
    middle = kspace[kspace.shape[0] // 2]
    return MriAcquisition(
        path=path,
        format="NumPy k-space",
        kspace=kspace,
        geometry=Cartesian(
            sampled=sampled, field_of_view_mm=(float(rows), float(columns)), phase_axis=line_axis(sampled, 0)
        ),
        matched=(Match(matched.role, matched.source, matched.shape, f"{matched.reason}, taken as {order}"),),
        warnings=(*sampling_warnings(sampled, coils), *centre_warnings(middle)),
        sources=sources,
    )


def _planes(path: Path, data: _Array) -> tuple[NDArray[Any], str]:
    """Return k-space `(slice, coil, ky, kx)`, and how its axes were understood."""
    values = data.load()
    if values.ndim == 2:
        values, order = values[None, None], "(ky, kx), one coil"
    elif values.ndim == 3 and values.shape[2] < values.shape[0] and values.shape[2] <= MAX_COILS:
        values, order = values.transpose(2, 0, 1)[None], "(ky, kx, coil), as the last axis is shorter than the first"
    elif values.ndim == 3:
        values, order = values[None], "(coil, ky, kx)"
    else:
        order = "(slice, coil, ky, kx)"
    if values.ndim != 4 or values.shape[1] > MAX_COILS:
        raise BadInput(
            f"{path.name}: k-space {data} cannot be (slice, coil, ky, kx) with at most {MAX_COILS} coils",
            "Order the axes as (slice, coil, ky, kx).",
        )
    return values, order


def _along(
    path: Path,
    data: _Array,
    trajectory: _Array,
    density: _Array | None,
    known: Known,
    matched: Match,
    sources: tuple[Source, ...],
) -> MriAcquisition:
    """Return k-space that lies along a trajectory."""
    points = _points(path, trajectory)
    readouts, samples = points.shape[:2]
    if len(trajectory.shape) - (trajectory.kind.kind != "c") == 1:
        shape = (*data.shape[:-1], 1, data.shape[-1])  # one readout
    else:
        shape = data.shape
    if not 2 <= len(shape) <= 4 or shape[-2:] != (readouts, samples):
        raise BadInput(
            f"{path.name}: k-space {data} does not fit the trajectory {trajectory}: {readouts} readouts of {samples}"
            " samples",
            "Order the axes as (slice, coil, readout, sample).",
        )
    check_memory(2 * 8 * math.prod(shape), f"{data.name} of {path.name}")
    kspace = np.ascontiguousarray(data.load(), dtype=np.complex64).reshape((1,) * (4 - len(shape)) + shape)
    if kspace.shape[1] > MAX_COILS:
        raise BadInput(f"{path.name}: {kspace.shape[1]} coils; at most {MAX_COILS} are read")
    check_finite(kspace, path, f"{data.name} (slice, coil, readout, sample)")
    points, size, why = _cycles_per_pixel(path, points, trajectory)
    notes = []
    if known.matrix is not None:
        chosen = known.matrix
    else:
        if not size:
            size, reason = image_size(points)
            notes.append(f"The file gives no size of the image; {size} x {size} was taken, as {reason}.")
        chosen = (size, size)
    weights = None
    matches = [matched, Match("trajectory", trajectory.name, trajectory.shape, f"(ky, kx) in {why}")]
    if density is not None:
        weights = np.asarray(density.load())
        fits = weights.dtype.kind in "iuf" and weights.size == readouts * samples
        if not fits or not np.isfinite(weights).all() or weights.min() < 0:
            raise BadInput(
                f"{path.name}: {density} must hold finite weights, none below zero, as many as there are samples",
                "Leave it out; the density is then computed.",
            )
        weights = np.ascontiguousarray(weights, dtype=np.float64).reshape(readouts, samples)
        matches.append(Match("density compensation", density.name, density.shape, "as the trajectory"))
    return MriAcquisition(
        path=path,
        format="NumPy k-space along a trajectory",
        kspace=kspace,
        geometry=NonCartesian(
            trajectory=points * np.asarray(chosen, dtype=np.float64),
            matrix=chosen,
            field_of_view_mm=(float(chosen[0]), float(chosen[1])),
            density=weights,
        ),
        matched=tuple(matches),
        warnings=(*notes, *sampling_warnings(np.ones((1, 1), dtype=np.bool_), int(kspace.shape[1]))),
        guessed=("matrix",) if notes else (),
        sources=sources,
    )


def _points(path: Path, trajectory: _Array) -> NDArray[np.float64]:
    """Return positions `(readout, sample, 2)` along (ky, kx) as they are stored."""
    values = trajectory.load()
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3) or values.shape[-1] != 2 or 0 in values.shape:
        raise BadInput(
            f"{path.name}: {trajectory} cannot be a trajectory; (readout, sample, 2) along (ky, kx) is needed",
            "Order its axes so; of three dimensions, take one plane.",
        )
    points = np.asarray(values, dtype=np.float64)
    if not np.isfinite(points).all():
        raise BadInput(f"{path.name}: {trajectory} holds positions that are not finite", "Save the trajectory again.")
    return points[None] if points.ndim == 2 else points


def _cycles_per_pixel(
    path: Path, points: NDArray[np.float64], trajectory: _Array
) -> tuple[NDArray[np.float64], int, str]:
    """Return positions in cycles per pixel, the size of the image where they tell it else 0, and their unit."""
    reach = float(np.abs(points).max())
    if reach < 0.05:
        raise BadInput(
            f"{path.name}: {trajectory} reaches {reach:.4g}; positions in cycles per pixel reach up to 0.5",
            "Divide the positions by twice the largest one.",
        )
    if reach < 0.51:
        return points, 0, f"cycles per pixel, up to {reach:.3g}"
    if reach < 1.02 * np.pi:
        return points / (2 * np.pi), 0, f"radians per pixel, up to {reach:.3g}"
    size = max(2 * math.ceil(reach - 0.01), 16)
    if size > 16384:
        raise BadInput(f"{path.name}: {trajectory} reaches {reach:.4g}; images have at most 16384 pixels")
    return points / size, size, f"cycles per field of view, up to {reach:.4g}"
