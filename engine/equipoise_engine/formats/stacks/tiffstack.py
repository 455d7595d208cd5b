"""Grey images in TIFF files: single ones, stacks of pages and ImageJ's, read page by page when they are asked for.

Source: TIFF 6.0, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf; BigTIFF,
https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

from __future__ import annotations

import logging
import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.results.result import PROGRAM
from equipoise_engine.formats.stacks.tiffpixels import MAX_RATIO, Pixels, pixels_of, read_pixels

_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_OURS = f'"program": "{PROGRAM}"'
_GREY = frozenset({0, 1})
_PALETTE = 3
# Whatever the library says of a damaged file.
_DAMAGE = (
    AttributeError,
    AssertionError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    EOFError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
    tifffile.TiffFileError,
)

# Each damaged tag would be a line of its own, with values in it; what matters is said by our errors.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF files do."""
    with path.open("rb") as stream:
        return stream.read(4) in _STARTS


def result_text(path: Path) -> str:
    """Return what this program wrote about an image into a TIFF file, as JSON text; empty where it did not."""
    try:
        with tifffile.TiffFile(path, is_ome=False) as file:
            first: Any = file.pages[0]
            said = (str((file.imagej_metadata or {}).get("Info", "")), str(first.description))
    except _DAMAGE:
        return ""
    return next((text for text in said if _OURS in text), "")


def images_of_tiff(path: Path, *, results: bool = False) -> Samples:
    """Return the grey images in a file `(image, row, column)`; they are read when they are asked for.

    Parameters
    ----------
    results
        Whether images that this program made are returned, too.

    Raises
    ------
    BadInput
        The file is damaged, or its images differ.
    Unsupported
        Its images are no grey images of numbers, are compressed in a way that is not read, or were made by this
        program.
    OutOfMemory
        One image is larger than the free memory.
    """
    # other files that its text may name are none of our business: OME files are read as any other
    with _damage(path), tifffile.TiffFile(path, is_ome=False) as file:
        return _images(file, path, results)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the errors of the library into ours."""
    try:
        yield
    except _DAMAGE as error:
        raise BadInput(
            f"{path.name}: the TIFF file is damaged ({type(error).__name__}: {str(error)[:200]})",
            "Copy or export it again.",
        ) from error


def _images(file: Any, path: Path, results: bool) -> Samples:
    first = file.pages[0]
    text = file.imagej_metadata or {}
    if not results and any(_OURS in said for said in (first.description, str(text))):
        raise Unsupported(f"{path.name}: is an image that this program made, not a scan")
    _check_page(first, path, file.is_imagej)
    shape = (int(first.shape[0]), int(first.shape[1]))
    number = len(file.pages)
    _check_chain(file, path, number)
    declared = int(text.get("images", 1)) if file.is_imagej else 1
    if file.is_shaped and (said := file.shaped_metadata) and said[0].get("truncated"):
        declared = math.prod(int(n) for n in said[0]["shape"]) // max(shape[0] * shape[1], 1)
    if number == 1 and declared > 1:
        return _hyperstack(file, first, declared, path)
    found: list[Pixels] = []
    mapped = True
    for index in range(number):
        page = first if index == 0 else file.pages[index]
        if index and page.is_reduced:
            continue  # a small copy of another one
        if tuple(page.shape) != shape or page.dtype != first.dtype:
            raise BadInput(
                f"{path.name}: image {index} has shape {tuple(page.shape)} and type {page.dtype}, the first {shape} and"
                f" {first.dtype}",
                "Keep images of one size and type in a file.",
            )
        _check_page(page, path, file.is_imagej)
        mapped = mapped and page.is_memmappable
        found.append(pixels_of(page, file.byteorder, path.name))
    if mapped:
        return _mapped(path, [int(pixels.offsets[0]) for pixels in found], shape, found[0].stored)

    def load(index: int) -> NDArray[Any]:
        with _damage(path):
            return read_pixels(path, found[index])

    frames = Frames(load, (len(found), *shape), first.dtype)
    load(0)  # what cannot be decoded says so now
    return frames


def _check_chain(file: Any, path: Path, number: int) -> None:
    """Raise BadInput where the list of pages goes on outside the file; the library takes that for its end."""
    kind, stream = file.tiff, file.filehandle
    stream.seek(file.pages[number - 1].offset)
    (tags,) = struct.unpack(kind.tagnoformat, stream.read(kind.tagnosize))
    stream.seek(tags * kind.tagsize, os.SEEK_CUR)
    (after,) = struct.unpack(kind.offsetformat, stream.read(kind.offsetsize))
    size = path.stat().st_size
    if after >= size:
        raise BadInput(
            f"{path.name}: the TIFF file is damaged: image {number} should be described at byte {after} of {size}",
            "Copy or export it again.",
        )


def _check_page(page: Any, path: Path, is_imagej: bool) -> None:
    """Refuse an image that is not a grey one, or says that it is larger than it can be."""
    shape, kind = tuple(int(n) for n in page.shape), page.dtype
    grey = page.photometric in _GREY or (is_imagej and page.photometric == _PALETTE)
    if len(shape) != 2 or not grey or kind is None or kind.kind not in "iuf":
        colours = len(shape) == 3 and shape[0] in (3, 4)
        raise Unsupported(
            f"{path.name}: a TIFF image of shape {shape} and type {kind}; grey images of numbers are read",
            f"If these are {shape[0]} grey images, they were saved as the colours of one: save them as grey images."
            if colours
            else "Save it as grey values of 8, 16 or 32 bits.",
        )
    needed = shape[0] * shape[1] * int(kind.itemsize)
    size = path.stat().st_size
    stored = 0
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count and offset + count > size:
            raise BadInput(
                f"{path.name}: the TIFF file is damaged: values should lie at bytes {offset} to {offset + count} of"
                f" {size}",
                "Copy or export it again.",
            )
        stored += int(count)
    if needed > stored * (1 if page.is_memmappable else MAX_RATIO):
        raise BadInput(
            f"{path.name}: the TIFF file is damaged: an image {shape} of {kind} takes {needed} bytes, but {stored} are"
            " stored",
            "Copy or export it again.",
        )
    check_memory(2 * needed, f"the image {shape} of {path.name}")


def _hyperstack(file: Any, first: Any, number: int, path: Path) -> Samples:
    """Return images that follow each other after the only page, as ImageJ writes large stacks."""
    shape = (int(first.shape[0]), int(first.shape[1]))
    if not first.is_memmappable:
        raise BadInput(f"{path.name}: the TIFF file is damaged: {number} images, but one compressed page")
    stored = first.dtype.newbyteorder(file.byteorder)
    start, step = int(first.dataoffsets[0]), shape[0] * shape[1] * stored.itemsize
    size = path.stat().st_size
    if start + number * step > size:
        raise BadInput(
            f"{path.name}: the TIFF file is damaged: {number} images of {step} bytes from byte {start} on, but it has"
            f" {size}",
            "Copy or export it again.",
        )
    return _mapped(path, [start + index * step for index in range(number)], shape, stored)


def _mapped(path: Path, offsets: list[int], shape: tuple[int, int], stored: np.dtype[Any]) -> Samples:
    """Return images that lie at these places of a file, one after another or not."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    rows, columns = shape
    needed = rows * columns * stored.itemsize
    if max(offsets) + needed > raw.size or min(offsets) < 0:
        raise BadInput(
            f"{path.name}: the TIFF file is damaged: an image at byte {max(offsets)} takes {needed} bytes, but it has"
            f" {raw.size}",
            "Copy or export it again.",
        )
    steps = np.unique(np.diff(offsets))
    if steps.size <= 1:
        step = int(steps[0]) if steps.size else needed
        strides = (step, columns * stored.itemsize, stored.itemsize)
        return np.ndarray((len(offsets), *shape), stored, raw, offsets[0], strides)

    def load(index: int) -> NDArray[Any]:
        return np.ndarray(shape, stored, raw, offsets[index])

    return Frames(load, (len(offsets), *shape), stored.newbyteorder("="))
