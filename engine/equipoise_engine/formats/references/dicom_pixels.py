"""The values of images in DICOM files: as they are stored, or compressed with RLE, JPEG or JPEG 2000.

Sources: DICOM PS3.3, C.7.6.3 (pixels) and C.11.1 (rescaling); PS3.5, annex A (transfer syntaxes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.references.dicom_header import DicomFile, Frame, first_of, reading, value_of, whole_of
from equipoise_engine.progress import Progress, Watch

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Beside native values. What is lossless or lossy JPEG of another kind needs a library that nothing else here needs.
_DECODED = frozenset({RLELossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000})
_NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)


def values_of(frames: Sequence[Frame], files: dict[Path, DicomFile], watch: Watch) -> NDArray[np.float32]:
    """Return the images `(slice, row, column)`."""
    shape = (len(frames), *frames[0].shape)
    check_memory(4 * math.prod(shape), f"the volume {shape} of {frames[0].file.name}")
    data = np.empty(shape, dtype=np.float32)
    kept: tuple[Path, NDArray[Any], bool] | None = None
    for number, frame in enumerate(frames):
        if kept is None or kept[0] != frame.file:
            kept = (frame.file, *_stored(files[frame.file]))
        _, stored, inverted = kept
        image = _tile(stored, frame, files[frame.file].tiles) if files[frame.file].tiles else stored[frame.index]
        if image.shape != frame.shape:
            raise BadInput(
                f"{frame.file.name}: an image of {image.shape} where {frame.shape} was declared", "Export it again."
            )
        values = image.astype(np.float64)
        if inverted and image.dtype.kind in "iu":
            values = _inverted(values, files[frame.file].header)
        data[number] = frame.slope * values + frame.intercept
        watch(Progress("read", number + 1, len(frames)))
    return data


def _stored(file: DicomFile) -> tuple[NDArray[Any], bool]:
    """Return the stored values of a file `(frame, row, column)`, and whether the lowest is white."""
    path, header = file.path, file.header
    samples, colours = whole_of(header, "SamplesPerPixel", 1), str(value_of(header, "PhotometricInterpretation") or "")
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise Unsupported(f"{path.name}: a colour image ({samples} samples, {colours}); grey ones are read")
    if first_of(header, "ModalityLUTSequence") is not None:
        raise Unsupported(f"{path.name}: its values are given by a lookup table, which is not read")
    count, bits = whole_of(header, "NumberOfFrames", 1), whole_of(header, "BitsAllocated", 16)
    rows, columns = whole_of(header, "Rows", 0), whole_of(header, "Columns", 0)
    check_memory(rows * columns * count * max(bits // 8, 1) * 2, f"the image of {path.name}")
    with reading(path):
        whole = pydicom.dcmread(path, force=True)
        if not any(name in whole for name in _PIXELS):
            raise BadInput(f"{path.name}: the values of the image are missing", "Copy or export it again.")
        coding = _coding(whole, path)
        needed = (rows * columns * count * bits + 7) // 8
        there = max(len(whole[name].value or b"") for name in _PIXELS if name in whole)
        if coding in _NATIVE and there < needed:
            raise BadInput(
                f"{path.name}: the image {rows} x {columns} takes {needed} bytes, but {there} are stored",
                "The file is cut short; copy or export it again.",
            )
        stored = np.asarray(whole.pixel_array)
    return stored.reshape(-1, *stored.shape[-2:]), colours == "MONOCHROME1"


def _coding(whole: Dataset, path: Path) -> str:
    """Return the transfer syntax of a file; it is set where the file does not say it."""
    meta = whole.file_meta
    coding = meta.get("TransferSyntaxUID")
    if not coding:
        implicit, little = whole.original_encoding
        if implicit:
            coding = ImplicitVRLittleEndian
        else:
            coding = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = coding
    if coding not in _NATIVE | _DECODED:
        name = coding.name if not coding.is_private else "a private way"
        raise Unsupported(
            f"{path.name}: the image is compressed with {name} ({coding}), which is not read",
            "Export it without compression, as gdcmconv --raw or dcmdjpeg do.",
        )
    return str(coding)


def _tile(stored: NDArray[Any], frame: Frame, tiles: int) -> NDArray[Any]:
    rows, columns = frame.shape
    down, across = divmod(frame.index, math.isqrt(tiles - 1) + 1)
    return stored[0, down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]


def _inverted(values: NDArray[np.float64], header: Dataset) -> NDArray[np.float64]:
    """Return values of which the highest is white, where the lowest was."""
    bits = whole_of(header, "BitsStored", 16)
    return -1.0 - values if whole_of(header, "PixelRepresentation", 0) else (2.0**bits - 1.0) - values
