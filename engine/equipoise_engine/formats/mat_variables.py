"""The variables of MATLAB files of both kinds: up to 7.2, and 7.3, which are HDF5."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.hdf5 import attribute, check_members, check_memory, open_file

MAX_DEPTH = 16
_MATRIX, _COMPRESSED = 14, 15
_HEAD_KINDS = (6, 5, 1)
_CHAR, _SPARSE, _NUMERIC, _COMPLEX = 4, 5, range(6, 16), 1 << 11
_KINDS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13, _MATRIX, 16, 17, 18})
_START_5, _START_7 = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"
# Whatever the libraries say of damage that was not met with at a known place.
DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MatReadError,
    NameError,  # of the library's own
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

Value = Any  # NDArray, str or dict[str, Value]: what a variable of MATLAB holds


@dataclass(frozen=True)
class Variable:
    """Name, shape in the order of MATLAB, and class of a variable."""

    name: str
    shape: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.kind}"


def is_matlab(path: Path) -> bool:
    """Whether a file begins as MATLAB 5 to 7.3 files do."""
    with path.open("rb") as stream:
        start = stream.read(128)
    if start.startswith((_START_5, _START_7)):
        return True
    # Other programs write another text before the version.
    return start.startswith(b"MATLAB") and start[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


def variables_of(path: Path) -> list[Variable]:
    """Return the variables of a file. Raises BadInput where it is cut short."""
    if not _is_hdf5_kind(path):
        _check_complete(path)
        return [
            Variable(str(name), tuple(int(n) for n in shape), str(kind))
            for name, shape, kind in scipy.io.whosmat(str(path), appendmat=False)
        ]
    with open_file(path) as file:
        found = []
        for name in file:
            item = file[name]
            if not name.startswith("#"):
                shape = tuple(reversed(item.shape)) if isinstance(item, h5py.Dataset) else (1, 1)
                found.append(Variable(name, shape, attribute(item, "MATLAB_class") or "unknown"))
        return found


def _check_complete(path: Path) -> None:
    """Check the elements of a MATLAB 5 file: the library would not miss the last, and crashes on kinds it lacks.

    Those within compressed variables are left to the checksum of the compression.
    """
    values = np.memmap(path, dtype=np.uint8, mode="r")
    order = "<" if values[126:128].tobytes() == b"IM" else ">"
    at, size = 128, values.size
    while at + 8 <= size:
        kind, length = struct.unpack(f"{order}II", values[at : at + 8].tobytes())
        if kind not in (_MATRIX, _COMPRESSED):
            raise BadInput(f"{path.name}: the MATLAB file is damaged (an element of kind {kind} at byte {at})")
        if kind == _MATRIX and at + 8 + length <= size:
            _check_matrix(path, values, order, at + 8, at + 8 + length, 0)
        at += 8 + length
    if at != size:
        raise BadInput(
            f"{path.name}: the MATLAB file is cut short: {size} bytes on disk, its variables end at {at}",
            "Copy or download it again.",
        )


def _check_matrix(path: Path, values: NDArray[np.uint8], order: str, at: int, end: int, depth: int) -> None:
    """Check that the parts of a variable are those of its class, and end where it does."""
    number, begun = 0, at
    values_of: list[int] = []
    while at + 8 <= end:
        tag, length = struct.unpack(f"{order}II", values[at : at + 8].tobytes())
        kind, short = tag & 0xFFFF, tag >> 16
        start = at + (4 if short else 8)
        length = short or length
        # The first three are flags, sizes and name.
        known = kind == _HEAD_KINDS[number] if number < len(_HEAD_KINDS) else kind in _KINDS
        if not known or start + length > end or (short > 4) or depth > MAX_DEPTH or (number == 0 and length != 8):
            raise BadInput(
                f"{path.name}: the MATLAB file is damaged (an element of kind {kind} and {length} bytes at byte {at})",
                "Copy or download it again.",
            )
        if kind == _MATRIX:
            _check_matrix(path, values, order, start, start + length, depth + 1)
        if number >= len(_HEAD_KINDS):
            values_of.append(kind)
        at = start + (4 if short else -(-length // 8) * 8)
        number += 1
    if number == 0:
        return  # an empty part
    flags = struct.unpack(f"{order}I", values[begun + 8 : begun + 12].tobytes())[0]
    group, several = flags & 0xFF, 2 if flags & _COMPLEX else 1
    wanted = {_CHAR: 1, _SPARSE: 2 + several}.get(group, several if group in _NUMERIC else None)
    if wanted is not None and (len(values_of) != wanted or _MATRIX in values_of):
        raise BadInput(
            f"{path.name}: the MATLAB file is damaged (a variable of class {group} at byte {begun} has {len(values_of)}"
            f" parts, not {wanted})",
            "Copy or download it again.",
        )


def _is_hdf5_kind(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_START_7)) == _START_7


def load(path: Path, names: Iterable[str]) -> dict[str, Value]:
    """Return the values of variables, their axes in the order of MATLAB."""
    wanted = list(names)
    if not _is_hdf5_kind(path):
        loaded = scipy.io.loadmat(str(path), appendmat=False, variable_names=wanted)
        return {name: _plain(loaded[name]) for name in wanted}
    with open_file(path) as file:
        return {name: _from_hdf5(file[name], path) for name in wanted}


def _plain(value: Any) -> Value:
    """Return a value of a MATLAB 5 file with structures as dictionaries and texts as str."""
    if isinstance(value, np.ndarray) and value.dtype.names is not None:
        if value.size != 1:
            raise ValueError(f"an array of {value.size} structures")
        record = value.reshape(-1)[0]
        return {name: _plain(record[name]) for name in value.dtype.names}
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return str(value.reshape(-1)[0]) if value.size else ""
    return value


def _from_hdf5(item: h5py.Dataset | h5py.Group, path: Path) -> Value:
    """Return a value of a MATLAB 7.3 file, whose arrays lie with their axes reversed."""
    if isinstance(item, h5py.Group):
        return {name: _from_hdf5(item[name], path) for name in item}
    kind = attribute(item, "MATLAB_class")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else np.zeros((0, 0))
    check_memory(2 * item.size * item.dtype.itemsize, f"{item.name} of {path.name}")
    check_members(item.dtype, f"{item.name} of {path.name}")
    values = np.asarray(item[()])
    if kind == "char":
        return "".join(chr(int(code)) for code in values.T.reshape(-1))
    if values.dtype.names == ("real", "imag"):
        values = values["real"] + 1j * values["imag"]
    return values.T
