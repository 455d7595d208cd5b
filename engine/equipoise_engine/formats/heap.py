"""Values of variable length in HDF5 files, taken from their heaps: damaged ones crash the HDF5 library itself.

Source: HDF5 file format specification version 3.0, III.E "Disk Format: Level 1E - Global Heap", and IV.A.2.d, the class
of variable-length data types; https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported

_COLLECTION = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_REFERENCE = struct.Struct("<IQI")
MAX_OBJECTS = 1 << 16


class Table:
    """The rows of a dataset of one axis, with values of variable length.

    Parameters
    ----------
    dataset
        One axis of anything.
    path
        File named in messages.

    Raises
    ------
    BadInput
        The rows reach beyond the file.
    Unsupported
        They are compressed, or in a kind of file that needs the library.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        self._path = path
        self._dtype = dataset.dtype
        self._kind = dataset.id.get_type()
        created = dataset.file.id.get_create_plist()
        filters = dataset.id.get_create_plist().get_nfilters()
        if created.get_sizes() != (8, 8) or created.get_userblock() != 0 or filters or dataset.is_virtual:
            raise Unsupported(
                f"{path.name}: {dataset.name} is compressed, or stored in an unusual way",
                "Write the file again without compression, as h5repack -f NONE does.",
            )
        self._bytes = np.memmap(dataset.file.filename, dtype=np.uint8, mode="r")
        self._rows = self._read(dataset)
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}

    def plain(self, member: str) -> NDArray[Any]:
        """Return a member of fixed length of all rows `(row,)`."""
        offset = self._offset(member)
        dtype = self._dtype[member]
        found = np.ascontiguousarray(self._rows[:, offset : offset + dtype.itemsize])
        return np.asarray(found.view(dtype)[:, 0])

    def reals(self, member: str, at: int) -> NDArray[np.float32]:
        """Return a member of variable length of a row `(value,)`. Raises BadInput where it is damaged."""
        base = h5py.check_vlen_dtype(self._dtype[member])
        if base is None or np.dtype(base).kind != "f":
            raise BadInput(f"{self._path.name}: {member} holds no real numbers")
        found = self._values(at, self._offset(member), np.dtype(base).itemsize)
        return np.frombuffer(found, dtype=base).astype(np.float32, copy=False)

    def text(self, at: int) -> bytes:
        """Return the text of a row of a dataset of texts. Raises BadInput where it is damaged."""
        kind = h5py.check_string_dtype(self._dtype)
        if kind is None:
            raise BadInput(f"{self._path.name}: texts are stored as {self._dtype}")
        return self._values(at, 0, 1) if kind.length is None else self._rows[at].tobytes().rstrip(b"\x00")

    def _offset(self, member: str) -> int:
        return int(self._kind.get_member_offset(self._kind.get_member_index(member.encode())))

    def _values(self, at: int, within: int, size: int) -> bytes:
        """Return the bytes of a value of variable length, whose parts take `size` each."""
        length, address, index = _REFERENCE.unpack(self._rows[at, within : within + _REFERENCE.size].tobytes())
        if length == 0:
            return b""
        if address not in self._collections:
            if len(self._collections) > MAX_OBJECTS:
                self._collections.clear()
            self._collections[address] = self._collection(address)
        start, stored = self._collections[address].get(index, (0, 0))
        if stored < length * size:
            raise self._damaged(f"row {at} of {length} values is stored in {stored} bytes")
        return self._bytes[start : start + length * size].tobytes()

    def _read(self, dataset: h5py.Dataset) -> NDArray[np.uint8]:
        """Return the rows as they lie in the file `(row, byte)`."""
        text = h5py.check_string_dtype(self._dtype)
        # The library tells the size of a text in memory, not of the reference to it in the file.
        size = int(self._kind.get_size()) if text is None or text.length is not None else _REFERENCE.size
        pieces: list[tuple[int, int, int]] = []
        if dataset.chunks is None:
            offset = dataset.id.get_offset()
            pieces.append((0, -1 if offset is None else int(offset), dataset.size))
        else:
            length = int(dataset.chunks[0])
            dataset.id.chunk_iter(
                lambda info: pieces.append((int(info.chunk_offset[0]), int(info.byte_offset), length))
            )
        if dataset.size * size > self._bytes.size:
            raise self._damaged(f"{dataset.name} declares {dataset.size} rows of {size} bytes")
        rows = np.zeros((dataset.size, size), dtype=np.uint8)
        for first, offset, count in pieces:
            count = min(count, dataset.size - first)
            if first < 0 or offset < 0 or count < 0 or offset + count * size > self._bytes.size:
                raise self._damaged(f"rows from {first} lie at byte {offset}")
            rows[first : first + count] = self._bytes[offset : offset + count * size].reshape(count, size)
        return rows

    def _collection(self, address: int) -> dict[int, tuple[int, int]]:
        """Return the place and the size of each object of a heap, by its index."""
        end = self._bytes.size
        if address + _COLLECTION.size > end:
            raise self._damaged(f"a heap at byte {address}")
        mark, version, size = _COLLECTION.unpack(self._bytes[address : address + _COLLECTION.size].tobytes())
        if mark != b"GCOL" or version != 1 or address + size > end:
            raise self._damaged(f"a heap of {size} bytes at byte {address}")
        objects: dict[int, tuple[int, int]] = {}
        at, end = address + _COLLECTION.size, address + size
        while at + _OBJECT.size <= end and len(objects) < MAX_OBJECTS:
            index, _, length = _OBJECT.unpack(self._bytes[at : at + _OBJECT.size].tobytes())
            if index == 0:  # the room that is left
                break
            at += _OBJECT.size
            if at + length > end:
                raise self._damaged(f"{length} bytes at byte {at} of a heap that ends at {end}")
            objects[index] = at, length
            at += -(-length // 8) * 8
        return objects

    def _damaged(self, said: str) -> BadInput:
        return BadInput(
            f"{self._path.name}: the HDF5 file of {self._bytes.size} bytes is damaged ({said})",
            "Copy or download the file again.",
        )
