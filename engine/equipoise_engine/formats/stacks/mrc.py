"""Reader for MRC files: tilt series with their angles in the file or in a text file beside it, and volumes.

The tilt axis is taken to lie along the columns of the images, as in series that were aligned.

Source: A. Cheng et al. 2015, MRC2014: Extensions to the MRC format header, doi:10.1016/j.jsb.2015.04.002;
https://www.ccpem.ac.uk/mrc_format/mrc2014.php; extended headers of SerialEM and FEI:
https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

import re
import struct
import warnings
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput, Incomplete, Unsupported
from equipoise_engine.formats.angles import angles_of_text
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.stack import ROLES, Stack, scan_of_stack
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.recipe import Known, Source
from equipoise_engine.volume import Volume

HEADER_BYTES = 1024
MAX_MDOC_BYTES = 1 << 24
ANGSTROM_MM = 1e-7
_TILT_FLAG = 1
_MDOC_ANGLE = re.compile(r"^\s*TiltAngle\s*=\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*$", re.MULTILINE)


def is_mrc(path: Path) -> bool:
    """Whether a file carries the mark of MRC files."""
    with path.open("rb") as stream:
        return stream.read(HEADER_BYTES)[208:211] == b"MAP"


def read_mrc(path: Path, known: Known) -> CtAcquisition:
    """Return the tilt series in an MRC file, mapped from the disk.

    Raises
    ------
    BadInput
        The file is cut short or damaged, or its parts do not fit together.
    Incomplete
        No angles are known: it may be a reconstruction as well.
    Unsupported
        Its values are complex, or packed.
    """
    images, extended, header = _opened(path)
    count = images.shape[0]
    angles, matched = None, [Match("projections", "the images", (), f"{count} in the file")]
    if known.angles is None and "angles" not in told_roles(known, path, ROLES):
        angles, match = _angles(path, count, extended, header)
        matched.append(match)
    size = header["voxel_mm"]
    return scan_of_stack(
        Stack(
            path=path,
            format="MRC tilt series",
            images=images,
            angle_deg=angles,
            geometry=lambda angle_rad: ParallelBeam(angle_rad, size or 1.0, calibrated=size > 0),
            layout="projections",
            matched=tuple(matched),
            beside=images_beside(path),
        ),
        known,
    )


def is_mrc_volume(path: Path) -> bool:
    """Whether a file is marked as a volume, by a space group, and has no angles of a tilt series."""
    if not is_mrc(path):
        return False
    try:
        images, extended, header = _opened(path)
        if header["space_group"] < 1:
            return False
        _angles(path, images.shape[0], extended, header)
    except Incomplete:
        return True
    except (BadInput, Unsupported):
        return False
    return False


def read_mrc_volume(path: Path) -> Volume:
    """Return the volume in an MRC file `(slice, y, x)`; its first row is the lowest, as the format has it.

    Raises
    ------
    BadInput
        The file is cut short or damaged.
    Unsupported
        Its values are complex, or packed.
    OutOfMemory
        The volume is larger than the free memory.
    """
    images, _, header = _opened(path)
    check_memory(8 * images.size, f"the volume {images.shape} of {path.name}")
    size = header["voxel_mm"]
    return Volume(
        np.ascontiguousarray(images[:, ::-1], dtype=np.float32),
        (size or 1.0,) * 3,
        "",
        size > 0,
        {"method": "reference", "reference": path.name, "format": "MRC", "unit": "a.u."},
    )


def _opened(path: Path) -> tuple[NDArray[Any], bytes, dict[str, Any]]:
    """Return the images `(image, row, column)`, the extended header, and what is needed of the header."""
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    try:
        with warnings.catch_warnings():
            # bytes after the images do no harm
            warnings.simplefilter("ignore")
            with mrcfile.mmap(path, mode="r", permissive=False) as file:
                shape = tuple(int(n) for n in file.data.shape)
                kind = file.data.dtype
                extended = bytes(file.extended_header.tobytes())
                voxel = float(file.voxel_size.x)
                feis = file.indexed_extended_header if bytes(file.header.exttyp) in (b"FEI1", b"FEI2") else None
                tilts = None if feis is None else np.array(feis["Alpha tilt"], dtype=np.float64)
                order = "<" if file.header.mode.dtype.byteorder in ("<", "=") else ">"
                named = bytes(file.header.exttyp)
                group = int(file.header.ispg)
    except (ValueError, OSError, OverflowError, MemoryError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadInput(
            f"{path.name}: the MRC file of {path.stat().st_size} bytes is damaged or cut short ({str(error)[:200]})",
            "Copy it again.",
        ) from error
    if kind.kind not in "iuf":
        raise Unsupported(f"{path.name}: an MRC file of {kind} values; tilt series of real numbers are read")
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or 0 in shape:
        raise BadInput(f"{path.name}: an MRC file of shape {shape}; images (image, row, column) are needed")
    images = np.memmap(path, dtype=kind, mode="r", offset=HEADER_BYTES + len(extended), shape=shape)
    voxel_mm = voxel * ANGSTROM_MM if np.isfinite(voxel) and voxel > 0 else 0.0
    each, flags = struct.unpack(f"{order}hh", start[128:132])
    header = {"voxel_mm": voxel_mm, "fei": tilts, "order": order, "type": named, "bytes": each, "flags": flags}
    header["space_group"] = group
    return images, extended, header


def _angles(path: Path, count: int, extended: bytes, header: dict[str, Any]) -> tuple[NDArray[np.float64], Match]:
    """Return the angles of a file beside the images, else of their extended header, in degrees."""
    reasons = []
    for suffix in (".tlt", ".rawtlt"):
        file = path.with_suffix(suffix)
        if file.is_file():
            angles = angles_of_text(file)
            if angles.size == count:
                return angles, Match("angles", file.name, (count,), "the file of tilts beside the images")
            reasons.append(f"{file.name} has {angles.size}")
    for file in (path.with_name(path.name + ".mdoc"), path.with_suffix(".mdoc")):
        if file.is_file() and file.stat().st_size <= MAX_MDOC_BYTES:
            text = file.read_bytes().decode("utf-8", "replace")
            angles = np.array([float(said) for said in _MDOC_ANGLE.findall(text)], dtype=np.float64)
            if angles.size == count:
                return angles, Match("angles", file.name, (count,), "TiltAngle of each image")
            reasons.append(f"{file.name} has {angles.size}")
            break
    found = header["fei"] if header["fei"] is not None else _of_serialem(extended, header, count)
    if found is not None and found.size == count and np.isfinite(found).all() and np.ptp(found) > 0:
        return found, Match("angles", "extended header", (count,), "tilt of each image")
    said = f" ({', '.join(reasons)})" if reasons else ""
    raise Incomplete(
        f"{path.name}: an MRC file of {count} images without angles{said}; it does not say whether these are a tilt"
        " series or slices of a volume",
        "If it is a tilt series, give its angles, or put them into a file of the same name that ends in .tlt; a"
        " volume to compare with is opened as a reference.",
        missing=("angles",),
        sources=(Source(f"#0:{count}"),),
    )


def _of_serialem(extended: bytes, header: dict[str, Any], count: int) -> NDArray[np.float64] | None:
    """Return tilts of an extended header in which each image has some 16-bit numbers, the first of them its tilt."""
    each, flags = int(header["bytes"]), int(header["flags"])
    other = header["type"] not in (b"SERI", b"\0\0\0\0", b"    ")
    if other or not flags & _TILT_FLAG or not 2 <= each <= 1024 or len(extended) < count * each:
        return None
    words = np.frombuffer(extended, dtype=np.uint8, count=count * each).reshape(count, each)[:, :2]
    return np.ascontiguousarray(words).view(f"{header['order']}i2")[:, 0].astype(np.float64) / 100.0
