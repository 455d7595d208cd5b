"""The values of one grey image in a TIFF file, without loss: plain, LZW, Deflate, PackBits or LZMA, strips or tiles.

They are decoded here and not by a library of native code: damaged data must not be able to crash the program.

Source: TIFF 6.0, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, sections 9, 13, 14 and 15; predictor 3:
TIFF Technical Note 3, http://chriscox.org/TIFFTN3d1.pdf.
"""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numba
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import Unsupported
from equipoise_engine.formats.hdf5 import check_memory

PLAIN, LZW, DEFLATE, PACKBITS, LZMA = 1, 5, 8, 32773, 34925
COMPRESSIONS = {PLAIN: "none", LZW: "LZW", DEFLATE: "Deflate", 32946: "Deflate", PACKBITS: "PackBits", LZMA: "LZMA"}
"""Numbers of the ways to store values that are read, and their names."""
MAX_RATIO = 20_000
"""No image is compressed to fewer bytes than one in so many."""
LZMA_MEMORY = 1 << 28
"""Bytes that a stream of LZMA may ask for."""
_CLEAR, _END, _CODES = 256, 257, 4096


@dataclass(frozen=True, eq=False)
class Pixels:
    """Where the values of an image lie, and how they are stored.

    Parameters
    ----------
    shape
        `(row, column)` of the image.
    block
        `(row, column)` of a strip or a tile; strips are as wide as the image.
    dtype
        Type of the values.
    byteorder
        "<" or ">".
    bits
        Bits of a value.
    compression, predictor
        By their numbers in the file.
    offsets, counts
        Where each strip or tile lies, and its bytes `(block,)`, int64; blocks follow each other along the rows.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    dtype: np.dtype[Any]
    byteorder: str
    bits: int
    compression: int
    predictor: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks `(down, across)`."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def stored(self) -> np.dtype[Any]:
        """Type of the values in the file, with the order of its bytes."""
        return self.dtype.newbyteorder("<" if self.byteorder == "<" else ">")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a block; rows begin with a whole byte."""
        return (self.block[1] * self.bits + 7) // 8


def pixels_of(page: Any, byteorder: str, name: str) -> Pixels:
    """Return where the values of a page, as tifffile describes it, lie; the name of the file is for messages.

    Raises
    ------
    Unsupported
        They are stored in a way that is not read.
    ValueError
        What the page says does not fit together.
    """
    rows, columns = (int(n) for n in page.shape)
    if page.is_tiled:
        block = (int(page.tilelength), int(page.tilewidth))
    else:
        block = (min(int(page.rowsperstrip) or rows, rows), columns)
    kind, bits = np.dtype(page.dtype), int(page.bitspersample)
    compression, predictor = int(page.compression), int(page.predictor)
    packed = bits != 8 * kind.itemsize
    way = ""
    if compression not in COMPRESSIONS:
        way = f"compressed with {getattr(page.compression, 'name', compression)}"
    elif int(page.fillorder) != 1:
        way = "with its bits in reversed order"
    elif packed and (kind.kind != "u" or bits > 32 or predictor != 1):
        way = f"in {bits} bits a value, of type {kind}"
    elif predictor not in (1, 2, 3) or (predictor == 3 and kind.kind != "f"):
        way = f"with predictor {predictor} on values of type {kind}"
    if way:
        raise Unsupported(
            f"{name}: the TIFF image is stored {way}, which is not read",
            "Save it without compression, or with LZW or Deflate, in 8, 16 or 32 bits.",
        )
    if min(block) < 1:
        raise ValueError(f"blocks of {block[0]} x {block[1]}")
    found = Pixels(
        (rows, columns),
        block,
        kind,
        byteorder,
        bits,
        compression,
        predictor,
        np.asarray(page.dataoffsets, dtype=np.int64),
        np.asarray(page.databytecounts, dtype=np.int64),
    )
    down, across = found.blocks
    if not found.offsets.size == found.counts.size == down * across:
        raise ValueError(f"{found.offsets.size} blocks are described, and {down * across} needed")
    most = int(found.counts.max()) * (1 if compression == PLAIN else MAX_RATIO)
    if min(block[0], rows) * found.row_bytes > most:
        raise ValueError(f"blocks of {block[0]} x {block[1]} values are stored in {found.counts.max()} bytes at most")
    return found


def read_pixels(path: Path, pixels: Pixels) -> NDArray[Any]:
    """Return the values of an image `(row, column)`.

    Raises
    ------
    OutOfMemory
        A block is larger than the free memory.
    ValueError, EOFError, zlib.error, lzma.LZMAError
        They are damaged.
    """
    rows, columns = pixels.shape
    image = np.empty(pixels.shape, dtype=pixels.dtype)
    with path.open("rb") as stream:
        for number in range(pixels.offsets.size):
            down, across = divmod(number, pixels.blocks[1])
            top, left = down * pixels.block[0], across * pixels.block[1]
            # what a tile has beyond the image is stored; what the last strip would have is not
            height = min(pixels.block[0], rows - top)
            part = _block(stream, pixels, number, height)
            image[top : top + height, left : left + pixels.block[1]] = part[:, : columns - left]
    return image


def _block(stream: BinaryIO, pixels: Pixels, number: int, height: int) -> NDArray[Any]:
    """Return the first rows of a strip or tile."""
    needed = height * pixels.row_bytes
    check_memory(2 * needed, "a part of a TIFF image")
    stream.seek(int(pixels.offsets[number]))
    stored = stream.read(int(pixels.counts[number]))
    values = _unpacked(stored, needed, pixels.compression)
    if len(values) < needed:
        raise EOFError(f"block {number} holds {len(values)} bytes of {needed}")
    return _values(np.frombuffer(values, dtype=np.uint8, count=needed).reshape(height, -1), pixels)


def _values(data: NDArray[np.uint8], pixels: Pixels) -> NDArray[Any]:
    """Return the values in the bytes of rows `(row, byte)`."""
    kind, columns = pixels.dtype, pixels.block[1]
    if pixels.bits != 8 * kind.itemsize:
        bits = np.unpackbits(data, axis=1, count=columns * pixels.bits).reshape(data.shape[0], columns, pixels.bits)
        weights = 1 << np.arange(pixels.bits - 1, -1, -1, dtype=np.uint64)
        return (bits @ weights).astype(kind)
    if pixels.predictor == 3:
        # differences of bytes, which stand by their place in a number, the highest first
        summed = np.add.accumulate(data, axis=1, dtype=np.uint8).reshape(data.shape[0], kind.itemsize, columns)
        return np.ascontiguousarray(summed.swapaxes(1, 2)).view(kind.newbyteorder(">"))[..., 0]
    values = data.view(pixels.stored).astype(kind)
    if pixels.predictor == 2:
        # differences of whole numbers, whatever their bits stand for
        whole = np.dtype(f"u{kind.itemsize}")
        return np.add.accumulate(values.view(whole), axis=1, dtype=whole).view(kind)
    return values


def _unpacked(stored: bytes, needed: int, compression: int) -> bytes | NDArray[np.uint8]:
    """Return the first bytes of what was compressed."""
    if compression == PLAIN:
        return stored
    if compression == LZMA:
        return lzma.LZMADecompressor(memlimit=LZMA_MEMORY).decompress(stored, needed)
    if compression not in (LZW, PACKBITS):
        return zlib.decompressobj().decompress(stored, needed)
    values = np.zeros(needed, dtype=np.uint8)
    unpack = _lzw if compression == LZW else _packbits
    return values[: unpack(np.frombuffer(stored, dtype=np.uint8), values)]


@numba.njit(nogil=True, cache=True)
def _lzw(stored, values):  # type: ignore[no-untyped-def]
    """Write what LZW stored, and return how many bytes were written; a code that cannot be ends it."""
    # A string in the table is one that was written before, and the byte after it.
    start = np.zeros(_CODES, dtype=np.int64)
    length = np.zeros(_CODES, dtype=np.int64)
    width, free, before = 9, 258, -1
    held, bits, at, written = 0, 0, 0, 0
    before_start = before_length = 0
    while written < values.size:
        while bits < width and at < stored.size:
            held = ((held << 8) | int(stored[at])) & 0xFFFFFF
            bits += 8
            at += 1
        if bits < width:
            break
        code = (held >> (bits - width)) & ((1 << width) - 1)
        bits -= width
        if code == _CLEAR:
            width, free, before = 9, 258, -1
            continue
        if code == _END:
            break
        if code < 256:
            source, size = -1, 1
        elif before >= 0 and code < free:
            source, size = start[code], length[code]
        elif before >= 0 and code == free:
            source, size = before_start, before_length + 1
        else:
            break
        if before >= 0 and free < _CODES:
            start[free], length[free] = before_start, before_length + 1
            free += 1
            # the width grows one code early
            if free >= (1 << width) - 1 and width < 12:
                width += 1
        before, before_start, before_length = code, written, size
        for step in range(min(size, values.size - written)):
            values[written + step] = code if source < 0 else values[source + step]
        written += min(size, values.size - written)
    return written


@numba.njit(nogil=True, cache=True)
def _packbits(stored, values):  # type: ignore[no-untyped-def]
    """Write what PackBits stored, and return how many bytes were written."""
    at, written = 0, 0
    while at < stored.size and written < values.size:
        head = int(stored[at])
        at += 1
        if head < 128:
            size = min(head + 1, stored.size - at, values.size - written)
            values[written : written + size] = stored[at : at + size]
            at += head + 1
            written += size
        elif head > 128 and at < stored.size:
            size = min(257 - head, values.size - written)
            values[written : written + size] = stored[at]
            at += 1
            written += size
    return written
