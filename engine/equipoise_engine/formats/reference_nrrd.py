"""Reader for image volumes in NRRD files, also with the values in a file beside the header.

Volumes whose space is that of a patient are turned as `upright` has it; others stay as they lie, the axis that runs
fastest to the right and the next one downwards.

Source: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.upright import LPS_OF_RAS, upright, usable
from equipoise_engine.volume import Volume

START = b"NRRD000"
MAX_HEADER_BYTES = 1 << 20
MAX_INFLATION = 1032
"""Bytes that one byte of gzip data can become."""
_KINDS = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_TYPES = {name: code for code, names in _KINDS.items() for name in names}
_SPACES = {
    "left-posterior-superior": np.eye(3),
    "lps": np.eye(3),
    "right-anterior-superior": LPS_OF_RAS,
    "ras": LPS_OF_RAS,
    "left-anterior-superior": np.diag([1.0, -1.0, 1.0]),
    "las": np.diag([1.0, -1.0, 1.0]),
}
_MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "µm": 1e-3, "microns": 1e-3, "nm": 1e-6}
_COLOURS = ("color", "rgb", "hsv", "xyz")


@dataclass(frozen=True)
class _Axes:
    """The axes of a volume, the fastest first.

    Parameters
    ----------
    sizes
        Numbers of elements.
    spatial
        Which of them lie in space.
    steps
        Step along each spatial axis `(axis, space)`, in units of the file; None where it is not said.
    spacings
        Size of an element along each axis; NaN where it is not said.
    """

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    steps: NDArray[np.float64] | None
    spacings: tuple[float, ...]


def is_nrrd(path: Path) -> bool:
    """Whether a file begins as NRRD files do."""
    with path.open("rb") as stream:
        return stream.read(len(START)) == START


def read_nrrd(path: Path) -> Volume:
    """Return the image volume in a NRRD file; of several values per element the first.

    Raises
    ------
    BadInput
        The file is damaged or cut short, or its values lie outside its folder.
    Unsupported
        Its values are no numbers, or coded in a way that is not read.
    OutOfMemory
        The volume is larger than the free memory.
    """
    fields, at = _fields(path)
    kind = _kind(fields, path)
    axes = _axes(fields, path)
    values = _values(fields, at, kind, math.prod(axes.sizes), path).reshape(axes.sizes[::-1])
    notes = []
    count = len(axes.sizes)
    # axes of the array are those of the file in reversed order
    for axis in range(count):
        if axis not in axes.spatial and axes.sizes[axis] > 1:
            notes.append(f"the first of {axes.sizes[axis]} values along axis {axis} was taken")
    values = values[tuple(slice(None) if count - 1 - n in axes.spatial else 0 for n in range(count))]
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    unit_mm = _unit(fields)
    spacings = np.abs([axes.spacings[axis] for axis in axes.spatial][::-1])
    known = bool(np.isfinite(spacings).all() and (spacings > 0).all())
    sizes = (1.0,) * (3 - spacings.size) + tuple(float(size) * unit_mm for size in spacings)
    voxel = (sizes[0], sizes[1], sizes[2]) if known else (1.0, 1.0, 1.0)
    space = fields.get("space", "").lower()
    if axes.steps is not None and axes.steps.shape == (3, 3) and usable(axes.steps):
        voxel = tuple(unit_mm * float(step) for step in np.linalg.norm(axes.steps, axis=1)[::-1])  # type: ignore[assignment]
        known = True
        if space in _SPACES:
            values, voxel = upright(values, unit_mm * (axes.steps @ _SPACES[space])[::-1])
    if not all(0 < size < math.inf for size in voxel):
        voxel, known = (1.0, 1.0, 1.0), False
    provenance: dict[str, Any] = {"method": "reference", "reference": path.name, "format": "NRRD", "unit": "a.u."}
    if notes:
        provenance["notes"] = notes
    return Volume(np.ascontiguousarray(values, dtype=np.float32), voxel, "", known, provenance)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of the header in lower case, and where the values begin."""
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER_BYTES)
    found = re.search(rb"\r?\n\r?\n", start)
    text = start[: found.start()] if found else start
    if not found and (len(start) == MAX_HEADER_BYTES or b"data file" not in text.replace(b"datafile", b"data file")):
        raise BadInput(f"{path.name}: the header of the NRRD file does not end", "Copy or download it again.")
    fields = {}
    for line in text.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields, found.end() if found else len(start)


def _kind(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    said = fields.get("type", "")
    if said.lower() not in _TYPES:
        raise Unsupported(f"{path.name}: values of NRRD type {said[:40]!r} are not read; numbers are")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    return np.dtype(order + _TYPES[said.lower()])


def _axes(fields: dict[str, str], path: Path) -> _Axes:
    words = fields.get("sizes", "").split()
    if not 2 <= len(words) <= 16 or not all(word.isdecimal() and int(word[:18]) > 0 for word in words):
        raise BadInput(
            f"{path.name}: the sizes of the NRRD file read {fields.get('sizes', '')[:60]!r}; two or more whole numbers"
            " above zero are needed",
            "Export it again.",
        )
    sizes = tuple(int(word[:18]) for word in words)
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()]
    if any(colour in kind for kind in kinds for colour in _COLOURS):
        raise Unsupported(f"{path.name}: a colour image; grey ones are read")
    spacings = tuple(_float(word) for word in fields.get("spacings", "").split())
    if len(spacings) != len(sizes):
        spacings = (math.nan,) * len(sizes)
    parts = re.findall(r"none|\([^)]*\)", fields.get("space directions", "").lower())
    vectors = [None if part == "none" else [_float(word) for word in part.strip("()").split(",")] for part in parts]
    spatial = tuple(axis for axis, vector in enumerate(vectors) if vector is not None)
    if len(vectors) == len(sizes) and len({len(v) for v in vectors if v is not None}) == 1 and len(spatial) in (2, 3):
        steps = np.asarray([vector for vector in vectors if vector is not None], dtype=np.float64)
        return _Axes(sizes, spatial, steps, spacings)
    if len(sizes) <= 3:
        return _Axes(sizes, tuple(range(len(sizes))), None, spacings)
    domain = tuple(axis for axis, kind in enumerate(kinds) if kind in ("domain", "space"))
    if len(kinds) != len(sizes) or len(domain) not in (2, 3):
        raise BadInput(
            f"{path.name}: {len(sizes)} axes, and the NRRD file does not say which of them lie in space",
            "Export it with space directions, or with three axes.",
        )
    return _Axes(sizes, domain, None, spacings)


def _float(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _unit(fields: dict[str, str]) -> float:
    """Return the unit of lengths in mm; files that name none mean mm."""
    words = re.findall(r'"([^"]*)"', fields.get("space units", "") or fields.get("units", ""))
    return next((_MILLIMETRES[word.lower()] for word in words if word.lower() in _MILLIMETRES), 1.0)


def _values(fields: dict[str, str], at: int, kind: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    """Return the stored values as one row."""
    named = fields.get("data file", fields.get("datafile", ""))
    data = _beside(path, named) if named else path
    at = 0 if named else at
    coding = fields.get("encoding", "raw").lower()
    if coding not in ("raw", "gzip", "gz"):
        raise Unsupported(
            f"{path.name}: NRRD values in encoding {coding[:20]!r} are not read", "Export it as raw or gzip."
        )
    size, needed = data.stat().st_size, count * kind.itemsize
    most = size - at if coding == "raw" else (size - at) * MAX_INFLATION
    if needed > most:
        raise _short(data, needed, most)
    check_memory(3 * needed + 4 * count, f"the volume of {path.name}")
    lines, skip = (int(_skipped(fields, name)) for name in ("line skip", "byte skip"))
    with data.open("rb") as stream:
        stream.seek(at)
        for _ in range(min(lines, 1 << 16)):
            stream.readline(MAX_HEADER_BYTES)
        if coding == "raw":
            if skip < 0:
                stream.seek(size - needed)  # the values are what stands at the end
            else:
                stream.seek(skip, 1)
            begin = stream.tell()
            if begin + needed > size:
                raise _short(data, needed, max(size - begin, 0))
            return np.memmap(data, dtype=kind, mode="r", offset=begin, shape=(count,))
        values = _inflated(stream, max(skip, 0) + needed, data)[max(skip, 0) :]
    if len(values) < needed:
        raise _short(data, needed, len(values))
    return np.frombuffer(values, dtype=kind)


def _skipped(fields: dict[str, str], name: str) -> float:
    value = _float(fields.get(name, fields.get(name.replace(" ", ""), "0")))
    return value if math.isfinite(value) and abs(value) < 1 << 40 else 0


def _inflated(stream: BinaryIO, count: int, path: Path) -> bytes:
    """Return at most `count` bytes of what follows, gzip data."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    parts, missing = [], count
    try:
        while missing > 0 and not inflate.eof and (block := inflate.unconsumed_tail or stream.read(1 << 20)):
            parts.append(inflate.decompress(block, missing))
            missing -= len(parts[-1])
    except zlib.error as error:
        raise BadInput(f"{path.name}: the compressed values are damaged ({error})", "Copy it again.") from error
    return b"".join(parts)


def _short(path: Path, needed: int, there: int) -> BadInput:
    return BadInput(
        f"{path.name}: the volume takes {needed} bytes, but at most {there} are stored",
        "The file is cut short; copy or download it again.",
    )


def _beside(path: Path, named: str) -> Path:
    """Return the file of the values, which must lie in the folder of the header or below."""
    if named.upper().startswith("LIST") or "%" in named:
        raise Unsupported(f"{path.name}: its values lie in several files, which is not read", "Export it as one file.")
    folder = path.resolve().parent
    try:
        data = (folder / named).resolve()
        inside, there = data.is_relative_to(folder), data.is_file()
    except (OSError, RuntimeError, ValueError):
        inside, there = True, False
    if not inside:
        raise BadInput(
            f"{path.name}: its values are stored in {named}, outside its folder: not followed",
            f"Copy {Path(named).name} beside {path.name} and name it so in the header.",
        )
    if not there:
        raise BadInput(
            f"{path.name}: its values are stored in {named[:100]}, which is missing", "Copy both files of the pair."
        )
    return data
