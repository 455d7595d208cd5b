"""Reader for image volumes in NRRD files, also with the values in a file beside the header.

Volumes whose space is that of a patient are turned as `upright` has it; others stay as they lie, the axis that runs
fastest to the right and the next one downwards.

The header is read by pynrrd. The values are not: whatever the header says, it inflates all that follows, so that a file
of 1 MB takes gigabytes, and it refuses values with anything behind them.

Source: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np
from nrrd.errors import NRRDError
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.references.upright import LPS_OF_RAS, upright, usable
from equipoise_engine.volume import Volume

START = b"NRRD000"
MAX_HEADER_BYTES = 1 << 20
MAX_INFLATION = 1032
"""Bytes that one byte of gzip data can become."""
_FIELDS = {
    **{
        name: name
        for name in (
            "type",
            "dimension",
            "sizes",
            "endian",
            "encoding",
            "data file",
            "line skip",
            "byte skip",
            "kinds",
            "spacings",
            "units",
            "space",
            "space units",
            "space directions",
        )
    },
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
}
"""The fields that are looked at, and what each is called here; others may be about the patient."""
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
    space = str(fields.get("space", "")).lower()
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


def _fields(path: Path) -> tuple[dict[str, Any], int]:
    """Return the fields of the header as pynrrd gives them, and where the values begin."""
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER_BYTES)
    found = re.search(rb"\r?\n\r?\n", start)
    text = start[: found.start()] if found else start
    if not found and (len(start) == MAX_HEADER_BYTES or b"data file" not in text.replace(b"datafile", b"data file")):
        raise BadInput(f"{path.name}: the header of the NRRD file does not end", "Copy or download it again.")
    first, *rest = text.decode("utf-8", "replace").splitlines()
    lines, sizes = [first[: len(START) + 1]], ""
    for line in rest:
        name, colon, value = line.partition(":")
        known = _FIELDS.get(name.strip().lower())
        if not colon or known is None or value.startswith("="):
            continue
        if known == "sizes":
            sizes = value.strip()
        elif known == "space directions":
            # pynrrd takes each blank for the end of a vector
            value = re.sub(r"\(([^)]*)\)", lambda vector: f"({''.join(vector[1].split())}) ", value.lower())
        lines.append(f"{known}: {value.strip()}")
    # it cuts fractions off, and takes what it cannot hold for something else
    words = sizes.split()
    if not 2 <= len(words) <= 16 or not all(word.isdecimal() and len(word) < 19 and int(word) > 0 for word in words):
        raise BadInput(
            f"{path.name}: the sizes of the NRRD file read {sizes[:60]!r}; two or more whole numbers above zero are"
            " needed",
            "Export it again.",
        )
    try:
        fields = dict(nrrd.read_header(lines))
    except (NRRDError, ValueError, IndexError, OverflowError) as error:
        # without what it says: it quotes the header, in which damage may join a name to a number
        raise BadInput(
            f"{path.name}: the header of the NRRD file is damaged, or of a version after 5",
            "Copy or download it again, or export it as version 5.",
        ) from error
    return fields, found.end() if found else len(start)


def _kind(fields: dict[str, Any], path: Path) -> np.dtype[Any]:
    said = str(fields.get("type", "")).lower()
    # one value of nothing, for what pynrrd makes of the type
    one = {
        "type": said,
        "endian": str(fields.get("endian", "little")).lower(),
        "encoding": "raw",
        "dimension": 1,
        "sizes": np.ones(1, dtype=np.int64),
    }
    try:
        kind: np.dtype[Any] = nrrd.read_data(one, io.BytesIO(bytes(16))).dtype
    except (KeyError, ValueError) as error:
        raise Unsupported(f"{path.name}: values of NRRD type {said[:40]!r} are not read; numbers are") from error
    except NRRDError as error:
        raise BadInput(
            f"{path.name}: the NRRD header gives an order of bytes other than big and little", "Export it again."
        ) from error
    return kind


def _axes(fields: dict[str, Any], path: Path) -> _Axes:
    sizes = tuple(int(size) for size in fields["sizes"])
    kinds = [kind.lower() for kind in fields.get("kinds", [])]
    if any(colour in kind for kind in kinds for colour in _COLOURS):
        raise Unsupported(f"{path.name}: a colour image; grey ones are read")
    spacings = tuple(float(spacing) for spacing in fields.get("spacings", []))
    if len(spacings) != len(sizes):
        spacings = (math.nan,) * len(sizes)
    vectors = np.asarray(fields.get("space directions", np.empty((0, 0))), dtype=np.float64)
    # pynrrd gives none as NaN
    spatial = tuple(int(axis) for axis in np.flatnonzero(~np.isnan(vectors).all(axis=1)))
    if len(vectors) == len(sizes) and len(spatial) in (2, 3):
        return _Axes(sizes, spatial, vectors[list(spatial)], spacings)
    if len(sizes) <= 3:
        return _Axes(sizes, tuple(range(len(sizes))), None, spacings)
    domain = tuple(axis for axis, kind in enumerate(kinds) if kind in ("domain", "space"))
    if len(kinds) != len(sizes) or len(domain) not in (2, 3):
        raise BadInput(
            f"{path.name}: {len(sizes)} axes, and the NRRD file does not say which of them lie in space",
            "Export it with space directions, or with three axes.",
        )
    return _Axes(sizes, domain, None, spacings)


def _unit(fields: dict[str, Any]) -> float:
    """Return the unit of lengths in mm; files that name none mean mm."""
    words = fields.get("space units") or fields.get("units") or []
    return next((_MILLIMETRES[word.lower()] for word in words if word.lower() in _MILLIMETRES), 1.0)


def _values(fields: dict[str, Any], at: int, kind: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    """Return the stored values as one row."""
    named = fields.get("data file", "")
    data = _beside(path, named) if named else path
    at = 0 if named else at
    coding = str(fields.get("encoding", "raw")).lower()
    if coding not in ("raw", "gzip", "gz"):
        raise Unsupported(
            f"{path.name}: NRRD values in encoding {coding[:20]!r} are not read", "Export it as raw or gzip."
        )
    lines, skip = fields.get("line skip", 0), fields.get("byte skip", 0)
    if lines < 0 or skip < -1:
        raise BadInput(f"{path.name}: the NRRD header skips {lines} lines and {skip} bytes", "Export it again.")
    size, needed = data.stat().st_size, count * kind.itemsize
    most = size - at if coding == "raw" else (size - at) * MAX_INFLATION
    if max(skip, 0) + needed > most:
        raise _short(data, needed, most)
    check_memory(max(skip, 0) + 3 * needed + 4 * count, f"the volume of {path.name}")
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
