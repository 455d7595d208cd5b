"""What DICOM files are, and what their headers say of the images in them.

Sources: DICOM PS3.3, C.7.6.2 (image plane) and C.7.6.16 (functional groups); PS3.10 (files); mosaics of Siemens:
https://nipy.org/nibabel/dicom/siemens_csa.html.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.ct.dicom_ctpd import is_dicom_ctpd
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.results.result import PROGRAM

_RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
_DIRECTORY = "1.2.840.10008.1.3.10"
_COMPANIONS = frozenset(
    {".txt", ".json", ".xml", ".csv", ".md", ".pdf", ".png", ".jpg", ".jpeg", ".bval", ".bvec", ".html", ".ini", ".inf"}
)
"""Files that may lie among DICOM images and say nothing about what the folder is."""
# Whatever the library says of a damaged file.
_DAMAGE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)

# Its lines quote values of the files, which may be those of a patient.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One image of a series.

    Parameters
    ----------
    index
        Which frame of its file, or which tile of a mosaic.
    shape
        `(row, column)`.
    position, orientation
        Of the middle of the first element, and of rows and columns: mm along left, posterior and head; or None.
    pixel_mm
        From row to row and from column to column, or None.
    step_mm
        From slice to slice as the file says it, or None.
    slope, intercept
        From stored values to those they stand for.
    number
        What orders images without a position.
    """

    file: Path
    index: int
    shape: tuple[int, int]
    position: Vector | None
    orientation: Vector | None
    pixel_mm: tuple[float, float] | None
    step_mm: float | None
    slope: float
    intercept: float
    number: tuple[int, int]


@dataclass(frozen=True)
class DicomFile:
    """A file of a series: what its header says.

    Parameters
    ----------
    tiles
        Number of images in a mosaic; 0 where it is none.
    """

    path: Path
    header: Dataset
    series: str
    instance: str
    tiles: int


def is_dicom_image(path: Path) -> bool:
    """Whether a file is DICOM, with or without the preamble, and holds no raw projections."""
    return starts_as_dicom(path) and not is_dicom_ctpd(path)


def is_dicom_series(folder: Path) -> bool:
    """Whether a folder holds DICOM images, and nothing that may be a scan."""
    try:
        files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return False
    if any(p.name.upper() == "DICOMDIR" and p.is_file() and starts_as_dicom(p) for p in files):
        return True
    found = False
    for file in files:
        if not file.is_file() or file.suffix.lower() in _COMPANIONS:
            continue
        if not starts_as_dicom(file):
            return False
        # the first tells whether they are raw
        if not found and not is_dicom_image(file):
            return False
        found = True
    return found


def starts_as_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with the preamble or with elements at once."""
    with path.open("rb") as stream:
        start = stream.read(512)
    return start[128:132] == b"DICM" or _has_elements(start, path.stat().st_size)


def _has_elements(start: bytes, size: int) -> bool:
    """Whether a file begins with elements of the groups 2 and 8 in ascending order, as files without preamble do."""
    at, last = 0, (0, 0)
    for _ in range(3):
        if at + 12 > len(start):
            return False
        group, element = struct.unpack_from("<HH", start, at)
        if group not in (0x0002, 0x0008) or (group, element) <= last:
            return False
        kind = start[at + 4 : at + 6]
        if kind.isalpha() and kind.isupper():
            if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
                length, head = struct.unpack_from("<I", start, at + 8)[0], 12
            else:
                length, head = struct.unpack_from("<H", start, at + 6)[0], 8
        else:
            length, head = struct.unpack_from("<I", start, at + 4)[0], 8
        if length > min(size, 4096) or (length % 2 and group == 0x0002):
            return False
        last = (group, element)
        at += head + length
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of the library into ours, and keep what it has to say of values to ourselves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGE as error:
        # the text may quote a value of the file, which may be the name of a patient
        raise BadInput(
            f"{path.name}: the DICOM file is damaged or cut short ({type(error).__name__})",
            "Copy or export it again.",
        ) from error


def _header(path: Path) -> Dataset:
    with reading(path):
        _check_deflated(path)
        return pydicom.dcmread(path, force=True, stop_before_pixels=True)


def _check_deflated(path: Path) -> None:
    """Raise OutOfMemory where a file that is compressed as a whole grows beyond the free memory."""
    with path.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    with path.open("rb") as stream:
        stream.seek(144 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflate, grown = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflate.eof and (block := inflate.unconsumed_tail or stream.read(1 << 20)):
            grown += len(inflate.decompress(block, 1 << 24))
            check_memory(4 * grown, f"the compressed file {path.name}")


# --- headers -----------------------------------------------------------------------------------------------


def value_of(item: Dataset, name: str) -> Any:
    """Return a value of a header, None where it is missing, empty or cannot be understood."""
    try:
        value = item.get(name)
    except _DAMAGE:
        return None
    return None if value is None or value == "" else value


def _numbers(item: Dataset | None, name: str, count: int) -> Vector | None:
    """Return finite numbers, or None."""
    value = None if item is None else value_of(item, name)
    if value is None:
        return None
    try:
        several = tuple(float(v) for v in (value if count > 1 else (value,)))
    except (TypeError, ValueError):
        return None
    return several if len(several) == count and all(math.isfinite(v) for v in several) else None


def _number_of(item: Dataset | None, name: str) -> float | None:
    several = _numbers(item, name, 1)
    return None if several is None else several[0]


def whole_of(item: Dataset, name: str, otherwise: int) -> int:
    """Return a whole number of a header, or another one where it is missing."""
    value = _number_of(item, name)
    return otherwise if value is None else int(value)


def first_of(item: Dataset | None, name: str) -> Dataset | None:
    """Return the first item of a sequence, or None."""
    value = None if item is None else value_of(item, name)
    return value[0] if isinstance(value, pydicom.Sequence) and len(value) else None


def opened_file(path: Path) -> DicomFile:
    """Return what the header of a file with an image says. Raises Unsupported where it holds none."""
    header = _header(path)
    with reading(path):
        meta = header.get("file_meta", Dataset())
        kind = value_of(header, "SOPClassUID") or value_of(meta, "MediaStorageSOPClassUID")
        if is_dicom_ctpd(path):
            raise Unsupported(f"{path.name}: holds raw projections, no image", "Open it as a scan.")
        has_pixels = whole_of(header, "Rows", 0) > 0 and whole_of(header, "Columns", 0) > 0
        if not has_pixels or kind in (_RT_DOSE, _DIRECTORY):
            said = f" (its kind is {kind.name})" if isinstance(kind, pydicom.uid.UID) and not kind.is_private else ""
            raise Unsupported(f"{path.name}: holds no image{said}", "Open a DICOM file with an image.")
        return DicomFile(
            path,
            header,
            str(value_of(header, "SeriesInstanceUID") or ""),
            str(value_of(header, "SOPInstanceUID") or ""),
            _tiles(header),
        )


def _tiles(header: Dataset) -> int:
    """Return how many images a mosaic has; 0 where it is none."""
    kind = value_of(header, "ImageType")
    if kind is None or "MOSAIC" not in kind:
        return 0
    with_number = header.get((0x0019, 0x100A))
    try:
        return int(with_number.value) if with_number is not None else _tiles_of_csa(header)
    except (TypeError, ValueError):
        return 0


def _tiles_of_csa(header: Dataset) -> int:
    """Return how many images a mosaic has after the private header of the vendor.

    An element of it begins with a name of 64 bytes and 20 bytes about its values, of which each follows 16 bytes with
    its length.
    """
    element = header.get((0x0029, 0x1010))
    blob = bytes(element.value) if element is not None and isinstance(element.value, bytes) else b""
    at = blob.find(b"NumberOfImagesInMosaic\0")
    text = blob[at + 64 + 20 + 16 : at + 64 + 20 + 16 + 12] if at >= 0 else b""
    digits = text.split(b"\0")[0].strip()
    return int(digits) if digits.isdigit() else 0


def frames_of(file: DicomFile) -> list[Frame]:
    """Return the images of a file, in its order."""
    header = file.header
    rows, columns = whole_of(header, "Rows", 0), whole_of(header, "Columns", 0)
    number = whole_of(header, "InstanceNumber", 0)
    count = whole_of(header, "NumberOfFrames", 1)
    if count < 1:
        raise BadInput(f"{file.path.name}: the DICOM file says that it has {count} frames", "Export it again.")
    if file.tiles:
        return _tile_frames(file, rows, columns, number)
    groups = value_of(header, "PerFrameFunctionalGroupsSequence")
    each: list[Dataset | None] = list(groups) if isinstance(groups, pydicom.Sequence) else []
    # the number of frames is only declared: there are no more than their values take
    bits = max(whole_of(header, "BitsAllocated", 16), 1)
    most = max(1, file.path.stat().st_size * 8 * 2000 // (rows * columns * bits))
    if count > most:
        raise BadInput(
            f"{file.path.name}: {count} frames of {rows} x {columns} do not fit into {file.path.stat().st_size} bytes",
            "The file is damaged or cut short; copy or export it again.",
        )
    shared = first_of(header, "SharedFunctionalGroupsSequence")
    offsets = _numbers(header, "GridFrameOffsetVector", count)
    plain = _frame(file, 0, (rows, columns), (None, None), number)
    frames = []
    for index in range(count):
        own = each[index] if index < len(each) else None
        if own is None and shared is None:
            frame = Frame(**{**vars(plain), "index": index, "number": (number, index)})
            if count > 1:
                frame = Frame(**{**vars(frame), "position": _shifted(plain, offsets, index)})
        else:
            frame = _frame(file, index, (rows, columns), (own, shared), number)
        frames.append(frame)
    return frames


def _shifted(plain: Frame, offsets: Vector | None, index: int) -> Vector | None:
    """Return where a frame of a file without functional groups lies, where that is said."""
    if offsets is None or plain.position is None or plain.orientation is None:
        return None
    return tuple(np.asarray(plain.position) + offsets[index] * normal_of(plain.orientation))


def _frame(
    file: DicomFile, index: int, shape: tuple[int, int], groups: tuple[Dataset | None, Dataset | None], number: int
) -> Frame:
    header = file.header

    def part(name: str) -> Dataset:
        """Return the functional group of this frame, else of all frames, else the header itself."""
        return next((found for group in groups if (found := first_of(group, name)) is not None), header)

    measures, values = part("PixelMeasuresSequence"), part("PixelValueTransformationSequence")
    position = _numbers(part("PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = _numbers(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if orientation is not None and not np.linalg.norm(normal_of(orientation)) > 0.5:
        orientation = None
    pixel = _numbers(measures, "PixelSpacing", 2) or _numbers(measures, "ImagerPixelSpacing", 2)
    if pixel is not None and not min(pixel) > 0:
        pixel = None
    step = _number_of(measures, "SpacingBetweenSlices") or _number_of(measures, "SliceThickness")
    slope, intercept = _number_of(values, "RescaleSlope"), _number_of(values, "RescaleIntercept")
    if slope is None and is_ours(header) and (mapping := first_of(header, "RealWorldValueMappingSequence")):
        slope = _number_of(mapping, "RealWorldValueSlope")
        intercept = _number_of(mapping, "RealWorldValueIntercept")
    return Frame(
        file.path,
        index,
        shape,
        position,
        orientation,
        None if pixel is None else (pixel[0], pixel[1]),
        None if step is None or step == 0 else abs(step),
        1.0 if slope is None or slope == 0 else slope,
        0.0 if intercept is None else intercept,
        (number, index),
    )


def _tile_frames(file: DicomFile, rows: int, columns: int, number: int) -> list[Frame]:
    """Return the tiles of a mosaic, which fill a square of tiles row by row."""
    side = math.isqrt(file.tiles - 1) + 1
    if rows % side or columns % side:
        raise BadInput(
            f"{file.path.name}: a mosaic of {rows} x {columns} does not divide into {side} x {side} tiles for"
            f" {file.tiles} images",
            "Export it again, as one image per file.",
        )
    whole = _frame(file, 0, (rows // side, columns // side), (None, None), number)
    # the position is that of the corner of the mosaic, not of a tile: slices keep the order that they have
    return [
        Frame(**{**vars(whole), "index": index, "position": None, "number": (number, index)})
        for index in range(file.tiles)
    ]


def is_ours(header: Dataset) -> bool:
    """Whether this program wrote a file."""
    return str(value_of(header, "Manufacturer") or "") == PROGRAM


def normal_of(orientation: Vector) -> NDArray[np.float64]:
    """Return the direction `(3,)` across images whose rows and columns have these."""
    return np.cross(orientation[:3], orientation[3:])
