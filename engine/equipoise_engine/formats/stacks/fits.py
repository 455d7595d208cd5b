"""Images in FITS files: the primary array, or the first image extension that holds values.

Source: FITS Standard 4.0, https://fits.gsfc.nasa.gov/fits_standard.html.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.hdf5 import check_memory

BLOCK, CARD = 2880, 80
MAX_HEADER_BLOCKS = 1000
MAX_UNITS = 1000
_KINDS = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_UNSIGNED = {8: (-128.0, "i1"), 16: (32768.0, "u2"), 32: (2147483648.0, "u4")}
"""Offsets by which the standard stores integers of the other sign, and their types."""

_Header = dict[str, str]


def is_fits(path: Path) -> bool:
    """Whether a file begins as FITS files do."""
    with path.open("rb") as stream:
        return re.match(rb"SIMPLE  =\s+T", stream.read(CARD)) is not None


def images_of_fits(path: Path) -> Samples:
    """Return the images in a FITS file `(image, row, column)`; they are read when they are asked for.

    Raises
    ------
    BadInput
        The file is cut short or damaged, or holds no image.
    Unsupported
        Its images are compressed, or have more than three axes.
    OutOfMemory
        One image is larger than the free memory.
    """
    size = path.stat().st_size
    packed = False
    with path.open("rb") as stream:
        for _ in range(MAX_UNITS):
            header = _header(stream, path)
            if header is None:
                break
            at = stream.tell()
            axes = _axes(header, path)
            kind = _number(header, "BITPIX", path)
            if kind not in _KINDS:
                raise BadInput(f"{path.name}: BITPIX is {kind:g}; {', '.join(map(str, _KINDS))} are allowed")
            image = header.get("XTENSION", "'IMAGE").strip("' ") == "IMAGE"
            packed = packed or header.get("ZIMAGE", "").startswith("T")
            needed = math.prod(axes) * abs(int(kind)) // 8 if axes else 0
            if image and math.prod(axes) > 1 and len(axes) >= 2:
                if at + needed > size:
                    raise BadInput(
                        f"{path.name}: its image of shape {tuple(axes)} takes {needed} bytes from byte {at}, but the"
                        f" file has {size}",
                        "The file is cut short or damaged; copy it again.",
                    )
                return _values(path, at, axes, int(kind), header)
            count = _number(header, "GCOUNT", path, 1) * (_number(header, "PCOUNT", path, 0) * abs(kind) / 8 + needed)
            if not 0 <= count <= size:
                raise BadInput(f"{path.name}: a part of {count:g} bytes in a file of {size}", "Copy the file again.")
            stream.seek(at + -(-int(count) // BLOCK) * BLOCK)
    if packed:
        raise Unsupported(f"{path.name}: its image is compressed in a table, which is not read", "Unpack it (funpack).")
    raise BadInput(f"{path.name}: the FITS file holds no image")


def _values(path: Path, at: int, axes: list[int], kind: int, header: _Header) -> Samples:
    """Return the images from a place in a file on, with the zero and the scale that the header gives."""
    while len(axes) > 3 and axes[0] == 1:
        axes = axes[1:]
    if len(axes) > 3:
        raise Unsupported(f"{path.name}: a FITS image of shape {tuple(axes)}; (image, row, column) is read")
    count, rows, columns = [1] * (3 - len(axes)) + axes
    check_memory(2 * rows * columns * abs(kind) // 8, f"one image of {path.name}")
    raw = np.memmap(path, dtype=_KINDS[kind], mode="r", offset=at, shape=(count, rows, columns))
    zero, scale = _number(header, "BZERO", path, 0.0), _number(header, "BSCALE", path, 1.0)
    if not (math.isfinite(zero) and math.isfinite(scale) and scale):
        raise BadInput(f"{path.name}: BZERO {zero:g} and BSCALE {scale:g} cannot be")
    if zero == 0 and scale == 1:
        return raw
    offset, other = _UNSIGNED.get(kind, (math.nan, ""))
    if scale == 1 and zero == offset:
        unsigned = np.dtype(other)

        def flipped(index: int) -> NDArray[Any]:
            # adding half the range is turning the highest bit
            plain = raw[index].astype(f"=u{unsigned.itemsize}")
            return np.asarray((plain ^ plain.dtype.type(1 << (8 * unsigned.itemsize - 1))).view(unsigned))

        return Frames(flipped, (count, rows, columns), unsigned)

    def scaled(index: int) -> NDArray[Any]:
        return np.asarray(raw[index].astype(np.float64) * scale + zero, dtype=np.float32)

    return Frames(scaled, (count, rows, columns), np.dtype(np.float32))


def _header(stream: BinaryIO, path: Path) -> _Header | None:
    """Return the values of a header by their keywords, None at the end of the file."""
    cards: _Header = {}
    for block in range(MAX_HEADER_BLOCKS):
        raw = stream.read(BLOCK)
        if block == 0 and (not raw or (not raw.startswith((b"SIMPLE", b"XTENSION")))):
            return None  # bytes after the last part have no meaning
        if len(raw) < BLOCK:
            raise BadInput(f"{path.name}: the FITS header is cut short", "Copy the file again.")
        for place in range(0, BLOCK, CARD):
            card = raw[place : place + CARD].decode("latin-1")
            if card.rstrip() == "END":
                return cards
            if card[8:10] == "= ":
                value = card[10:].strip()
                if not value.startswith("'"):
                    value = value.partition("/")[0].strip()
                else:
                    value = value[: value.find("'", 1) + 1]
                cards.setdefault(card[:8].rstrip(), value)
    raise BadInput(f"{path.name}: the FITS header has no end", "Copy the file again.")


def _axes(header: _Header, path: Path) -> list[int]:
    """Return the lengths of the axes, the one that runs fastest last."""
    number = _number(header, "NAXIS", path)
    if number != int(number) or not 0 <= number <= 999:
        raise BadInput(f"{path.name}: NAXIS is {number:g}; the file is damaged", "Copy it again.")
    axes = [_number(header, f"NAXIS{axis}", path) for axis in range(int(number), 0, -1)]
    if any(n < 0 or n != int(n) or n > 1 << 40 for n in axes):
        raise BadInput(f"{path.name}: axes of length {axes[:4]} cannot be; the file is damaged", "Copy it again.")
    return [int(n) for n in axes]


def _number(header: _Header, key: str, path: Path, otherwise: float | None = None) -> float:
    said = header.get(key)
    if said is None:
        if otherwise is None:
            raise BadInput(f"{path.name}: the FITS header has no {key}; the file is damaged", "Copy it again.")
        return otherwise
    try:
        value = float(said.upper().replace("D", "E"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{path.name}: {key} is {said[:40]!r}; the file is damaged", "Copy it again.")
    return value
