"""Images in ESRF data format (EDF): text in braces, padded to a multiple of 512 bytes, and the values after it.

Source: P. Boesecke 2007, doi:10.1107/S0021889807001100; the keys as FabIO writes them, E. B. Knudsen et al. 2013,
doi:10.1107/S0021889813000150.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.hdf5 import check_memory

FIRST_BYTES, MAX_HEADER_BYTES = 1 << 14, 1 << 20
"""Bytes that a header is looked for in first, and at most."""
MAX_FRAMES = 1_000_000
BLOCK = 512
_KINDS = {
    "signedbyte": "i1",
    "unsignedbyte": "u1",
    "signedshort": "i2",
    "unsignedshort": "u2",
    "signedinteger": "i4",
    "unsignedinteger": "u4",
    "signedlong": "i4",
    "unsignedlong": "u4",
    "signed64": "i8",
    "unsigned64": "u8",
    "float": "f4",
    "floatvalue": "f4",
    "real": "f4",
    "double": "f8",
    "doublevalue": "f8",
}
_ROTATIONS = ("srot", "rot", "theta", "hrsrot", "pmo", "omega")
"""Motors that turn the sample, the likeliest first."""
_START = re.compile(rb"^[\s\0]{0,16}\{[^{}]{0,4096}?[A-Za-z0-9_]+\s*=", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$")


@dataclass(frozen=True)
class _Image:
    """Where an image lies in its file, its shape and type, and what its header says."""

    offset: int
    shape: tuple[int, int]
    kind: np.dtype[Any]
    header: dict[str, str]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.kind.itemsize


def is_edf(path: Path) -> bool:
    """Whether a file begins as an EDF header does."""
    with path.open("rb") as stream:
        start = stream.read(8192)
    return _START.match(start) is not None and re.search(rb"(Dim_1|HeaderID|EDF_)", start) is not None


def images_of_edf(path: Path) -> Samples:
    """Return the images in an EDF file `(image, row, column)`, mapped from the disk.

    Raises
    ------
    BadInput
        The file is cut short or damaged, or its images differ.
    Unsupported
        Its values are compressed or of a type that is not read.
    OutOfMemory
        One image is larger than the free memory.
    """
    images = _images(path)
    first = images[0]
    for index, image in enumerate(images):
        if image.shape != first.shape or image.kind != first.kind:
            raise BadInput(
                f"{path.name}: image {index} has shape {image.shape} and type {image.kind}, the first {first.shape} and"
                f" {first.kind}",
                "Keep images of one size and type in a file.",
            )
    check_memory(first.bytes, f"one image of {path.name}")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    offsets = [image.offset for image in images]
    steps = np.unique(np.diff(offsets))
    if steps.size <= 1:
        step = int(steps[0]) if steps.size else first.bytes
        strides = (step, first.shape[1] * first.kind.itemsize, first.kind.itemsize)
        return np.ndarray((len(offsets), *first.shape), first.kind, raw, offsets[0], strides)

    def load(index: int) -> NDArray[Any]:
        return np.ndarray(first.shape, first.kind, raw, offsets[index])

    return Frames(load, (len(offsets), *first.shape), first.kind.newbyteorder("="))


def angles_of_edf(path: Path) -> NDArray[np.float64] | None:
    """Return the position of the motor that turns the sample for each image `(image,)`, degrees; None without one."""
    found = []
    for image in _images(path):
        names = image.header.get("motor_mne", "").lower().split()
        places = image.header.get("motor_pos", "").split()
        motors = dict(zip(names, places, strict=False))
        motor = next((name for name in _ROTATIONS if _NUMBER.match(motors.get(name, ""))), None)
        if motor is None:
            return None
        found.append(float(motors[motor]))
    return np.array(found, dtype=np.float64)


def _images(path: Path) -> list[_Image]:
    """Return the images of a file by their headers."""
    size = path.stat().st_size
    images: list[_Image] = []
    with path.open("rb") as stream:
        at = 0
        while at < size:
            stream.seek(at)
            raw = stream.read(FIRST_BYTES)
            if b"}" not in raw:
                raw += stream.read(MAX_HEADER_BYTES)
            header, length = _header(raw, path, len(images))
            if header is None:
                break  # padding at the end
            image = _image(header, at + length, path, len(images))
            stored = _whole(header.get("edf_binarysize") or header.get("size"), image.bytes, path)
            if stored < image.bytes or image.offset + image.bytes > size:
                raise BadInput(
                    f"{path.name}: image {len(images)} of {image.shape[0]} x {image.shape[1]} {image.kind} takes"
                    f" {image.bytes} bytes from byte {image.offset}, but the file has {size}, and {stored} are said to"
                    " be stored",
                    "The file is cut short or damaged; copy it again.",
                )
            images.append(image)
            at = image.offset + stored
            if len(images) > MAX_FRAMES:
                raise BadInput(f"{path.name}: more than {MAX_FRAMES} images; the file is damaged")
    if not images:
        raise BadInput(f"{path.name}: the EDF file holds no image")
    return images


def _header(raw: bytes, path: Path, index: int) -> tuple[dict[str, str] | None, int]:
    """Return the values of a header by their keys in lower case, and its length; None where nothing follows."""
    begin = raw.find(b"{")
    if begin < 0 or raw[:begin].strip(b"\0\r\n\t "):
        if index and not raw.strip(b"\0\r\n\t "):
            return None, 0
        raise BadInput(f"{path.name}: the header of image {index} is damaged", "Copy the file again.")
    end = raw.find(b"}", begin)
    if end < 0:
        raise BadInput(
            f"{path.name}: the header of image {index} has no end in {len(raw)} bytes",
            "The file is cut short or damaged; copy it again.",
        )
    values: dict[str, str] = {}
    for part in raw[begin + 1 : end].decode("latin-1").split(";"):
        key, equals, value = part.partition("=")
        if equals:
            values[key.strip().lower()] = value.strip()
    length = end + 1
    # a line ends after the brace; the values begin at the next block
    length += 2 if raw[length : length + 2] == b"\r\n" else 1 if raw[length : length + 1] == b"\n" else 0
    padded = -(-length // BLOCK) * BLOCK
    if raw[length:padded].strip(b"\0\r\n\t "):
        padded = length
    return values, _whole(values.get("edf_headersize"), padded, path) if index == 0 else padded


def _image(header: dict[str, str], offset: int, path: Path, index: int) -> _Image:
    said = header.get("datatype", "")
    kind = _KINDS.get(said.lower())
    packed = header.get("compression", "none").lower()
    if kind is None or packed not in ("none", "nocompression", ""):
        what = f"values of type {said!r}" if kind is None else f"values compressed with {packed!r}"
        raise Unsupported(
            f"{path.name}: {what} in an EDF file are not read", "Save them as FloatValue without packing."
        )
    columns, rows = _whole(header.get("dim_1"), 0, path), _whole(header.get("dim_2"), 1, path)
    if _whole(header.get("dim_3"), 1, path) != 1:
        raise Unsupported(f"{path.name}: image {index} has three axes; stacks of one header for each image are read")
    if not (0 < rows <= 1 << 24 and 0 < columns <= 1 << 24):
        raise BadInput(f"{path.name}: image {index} of {rows} x {columns} cannot be", "Copy the file again.")
    order = ">" if header.get("byteorder", "").lower() == "highbytefirst" else "<"
    return _Image(offset, (rows, columns), np.dtype(order + kind), header)


def _whole(text: str | None, otherwise: int, path: Path) -> int:
    if not text:
        return otherwise
    if not re.fullmatch(r"\d{1,15}", text):
        raise BadInput(f"{path.name}: the EDF header says {text[:40]!r} where a number is needed", "Copy it again.")
    return int(text)
