"""Reader for projections of clinical scanners as DICOM-CT-PD has them: a folder with one DICOM file for each view.

Numbers in private groups tell the geometry; values are attenuation after the rescaling of DICOM. Where rows of a file
run along the detector's columns, images are turned. Circular scans of one focal spot are read.

Sources: B. Chen et al. 2015, doi:10.1118/1.4935406; T. R. Moen et al. 2021, doi:10.1002/mp.14594, table IV (tags).
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.ct.circular import Circle, rightly_turned
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.series import natural
from equipoise_engine.formats.stacks.stack import Stack, scan_of_stack
from equipoise_engine.geometry import CtGeometry, FanBeam
from equipoise_engine.recipe import Known

MAX_FILES = 200_000
FIRST_BYTES = 1 << 14
"""Bytes of a file in which its tags are looked for."""
SPREAD = 9
"""Files that are looked at first: a helical scan may have tens of thousands."""
_ROWS, _COLUMNS = 0x70291010, 0x70291011
_WIDTH, _HEIGHT, _SHAPE = 0x70291002, 0x70291006, 0x7029100B
_ANGLE, _AXIAL, _RADIAL, _DISTANCE, _CENTRE = 0x70311001, 0x70311002, 0x70311003, 0x70311031, 0x70311033
_ANGLE_SHIFT, _AXIAL_SHIFT, _RADIAL_SHIFT, _FLYING = 0x7033100B, 0x7033100C, 0x7033100D, 0x7033100E
_ANGLE_TAG = struct.pack("<HH", 0x7031, 0x1001)
_INSTANCE, _PIXELS = 0x00200013, 0x7FE00010
_OF_IMAGE = [
    *(0x00280002, 0x00280004, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103),
    *(0x00281052, 0x00281053, _PIXELS),
]
_NEEDED = [
    *(0x00280010, 0x00280011, _INSTANCE),
    *(_ROWS, _COLUMNS, _WIDTH, _HEIGHT, _SHAPE, _ANGLE, _AXIAL, _RADIAL, _DISTANCE, _CENTRE),
    *(_ANGLE_SHIFT, _AXIAL_SHIFT, _RADIAL_SHIFT, _FLYING),
]
# Whatever the library says of a damaged file.
_DAMAGE = (
    AttributeError,
    AssertionError,
    BytesLengthException,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def is_dicom_ctpd(path: Path) -> bool:
    """Whether a DICOM file, or the first one of a folder, has the angle of a projection."""
    if path.is_dir():
        first = next(filter(_is_dicom, _candidates(path)), None)
        return first is not None and is_dicom_ctpd(first)
    with path.open("rb") as stream:
        start = stream.read(FIRST_BYTES)
    return start[128:132] == b"DICM" and _ANGLE_TAG in start


def read_dicom_ctpd(path: Path, known: Known) -> CtAcquisition:
    """Return the scan of a folder of projections, or of the folder that one of them lies in.

    Raises
    ------
    BadInput
        A file is damaged, or does not fit the others.
    Unsupported
        The scan is helical, moves its focal spot, or was pieced together.
    OutOfMemory
        One image is larger than the free memory.
    """
    folder = path if path.is_dir() else path.parent
    files = [file for file in _candidates(folder) if _is_dicom(file)]
    some = sorted({round(i * (len(files) - 1) / (SPREAD - 1)) for i in range(SPREAD)})
    _check_circle([_header(files[i]) for i in some if is_dicom_ctpd(files[i])], path)
    files = [file for file in files if is_dicom_ctpd(file)]
    headers = [_header(file) for file in files]
    order = sorted(range(len(files)), key=lambda i: _instance(headers[i], i))
    files, headers = [files[i] for i in order], [headers[i] for i in order]
    _check_circle(headers, path)
    first = headers[0]
    stored = (_whole(first, 0x00280010, files[0]), _whole(first, 0x00280011, files[0]))
    rows, columns = _whole(first, _ROWS, files[0]), _whole(first, _COLUMNS, files[0])
    if stored not in ((rows, columns), (columns, rows)):
        raise BadInput(
            f"{files[0].name}: an image of {stored[0]} x {stored[1]}, but the detector has {rows} rows and {columns}"
            " columns"
        )
    turned = stored == (columns, rows) and rows != columns
    for file, header in zip(files, headers, strict=True):
        if (_whole(header, 0x00280010, file), _whole(header, 0x00280011, file)) != stored:
            raise BadInput(f"{file.name}: its image is not of {stored[0]} x {stored[1]}, as the first", "Take it away.")
        if file.stat().st_size < 2 * rows * columns:
            raise BadInput(
                f"{file.name}: {file.stat().st_size} bytes cannot hold {rows} x {columns} values; it is cut short",
                "Copy the scan again.",
            )
    check_memory(8 * rows * columns, f"one image of {path.name}")

    def load(index: int) -> NDArray[Any]:
        return _image(files[index], stored, turned)

    angle_rad = np.unwrap([_real(header, _ANGLE, file) for header, file in zip(headers, files, strict=True)])
    circle, curved = _circle(first, files[0], rows)

    def geometry(angle_rad: NDArray[np.float64]) -> CtGeometry:
        if not curved:
            return circle.geometry(angle_rad, rows, columns, path.name)
        fan = circle.geometry(angle_rad, 1, columns, path.name)
        assert isinstance(fan, FanBeam)
        return replace(fan, detector="curved")

    notes = []
    if curved and rows > 1:
        notes.append(
            f"{path.name}: the {rows} rows of the curved detector were taken as slices by themselves; those away from"
            " the middle are blurred, as their rays lean."
        )
    scan = scan_of_stack(
        Stack(
            path=path,
            format="DICOM-CT-PD",
            images=Frames(load, (len(files), rows, columns), np.dtype(np.float32)),
            # the angle of the source, which begins at the top: of the beam, half a turn on
            angle_deg=angle_rad + np.pi,
            angle_units="rad",
            geometry=geometry,
            layout="projections",
            state="attenuation",
            matched=(
                Match("projections", "the files", (), f"{len(files)} files by their instance numbers"),
                circle.match,
                Match("angles", "(7031,1001)", (len(files),), "angle of the focal spot"),
            ),
            beside=images_beside(files[0]),
        ),
        known,
    )
    scan = rightly_turned(scan, "the angle of the focal spot grows counter-clockwise")
    return replace(scan, warnings=(*notes, *scan.warnings))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _candidates(folder: Path) -> list[Path]:
    """Return the files of a folder that are called as DICOM files are."""
    try:
        files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: natural(p.name))
    except OSError as error:
        raise BadInput(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    if len(files) > MAX_FILES:
        raise BadInput(f"{folder}: more than {MAX_FILES} files; this is not the folder of one scan")
    return [p for p in files if not p.name.startswith(".") and p.suffix.lower() in ("", ".dcm", ".ima", ".dicom")]


def _header(file: Path) -> pydicom.Dataset:
    """Return the needed values of a file, all but its image."""
    try:
        with warnings.catch_warnings():
            # they may name values of the patient
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_NEEDED)
    except _DAMAGE as error:
        raise BadInput(f"{file.name}: the DICOM file is damaged ({str(error)[:200]})", "Copy it again.") from error


def _image(file: Path, stored: tuple[int, int], turned: bool) -> NDArray[np.float32]:
    """Return the attenuation of a file `(row, column)`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(file, specific_tags=_OF_IMAGE)
            if data.file_meta.TransferSyntaxUID.is_compressed:
                raise Unsupported(f"{file.name}: its image is compressed, which is not read", "Save it uncompressed.")
            values = np.asarray(data.pixel_array, dtype=np.float32)
            slope, offset = float(data.get("RescaleSlope", 1.0)), float(data.get("RescaleIntercept", 0.0))
    except _DAMAGE as error:
        raise BadInput(f"{file.name}: the DICOM file is damaged ({str(error)[:200]})", "Copy it again.") from error
    if values.shape != stored:
        raise BadInput(f"{file.name}: an image of shape {values.shape} among others of {stored}", "Copy it again.")
    values = values * np.float32(slope) + np.float32(offset)
    return np.ascontiguousarray(values.T) if turned else values


def _check_circle(headers: list[pydicom.Dataset], path: Path) -> None:
    """Refuse scans whose source does not stay on one circle."""
    name = path.name
    heights = np.array([_real(header, _AXIAL, path, 0.0) for header in headers])
    step = _real(headers[0], _HEIGHT, path)
    if np.ptp(heights) > 0.1 * step:
        raise Unsupported(
            f"{name}: the table moved by {np.ptp(heights):.4g} mm during the scan: helical scans and those of several"
            " circles are not read",
            "Open the files of one circle, or a scan that was rebinned.",
        )
    radii = np.array([_real(header, _RADIAL, path) for header in headers])
    shifts = [[_real(h, tag, path, 0.0) for h in headers] for tag in (_ANGLE_SHIFT, _AXIAL_SHIFT, _RADIAL_SHIFT)]
    mode = _text(headers[0], _FLYING)
    if mode not in ("", "FFSNONE") or any(np.ptp(shift) > 1e-6 for shift in shifts):
        raise Unsupported(
            f"{name}: its focal spot moves ({mode or 'its shifts differ'}): scans of one focal spot are read"
        )
    if np.ptp(radii) > 1e-3 * radii.mean():
        raise Unsupported(f"{name}: its source comes nearer to the axis during the scan ({np.ptp(radii):.4g} mm)")


def _circle(header: pydicom.Dataset, file: Path, rows: int) -> tuple[Circle, bool]:
    """Return the lengths of a scan, and whether its detector is an arc about the source."""
    shape = _text(header, _SHAPE)
    if shape not in ("", "CYLINDRICAL", "FLAT"):
        raise Unsupported(f"{file.name}: a detector of shape {shape!r}; flat and cylindrical ones are read")
    centre = _reals(header, _CENTRE, file)
    if len(centre) != 2:
        raise BadInput(f"{file.name}: the central element (7031,1033) has {len(centre)} numbers, not two")
    # elements are counted from one
    column, row = centre[0] - 1.0, centre[1] - 1.0
    circle = Circle(
        _real(header, _RADIAL, file) + _real(header, _RADIAL_SHIFT, file, 0.0),
        _real(header, _DISTANCE, file) + _real(header, _RADIAL_SHIFT, file, 0.0),
        _real(header, _WIDTH, file),
        _real(header, _HEIGHT, file),
        column,
        row if 0 <= row <= rows - 1 else None,
    )
    return circle, shape != "FLAT"


def _raw(header: pydicom.Dataset, tag: int, file: Path) -> Any:
    """Return a value; private ones may come as bytes."""
    try:
        return header[tag].value if tag in header else None
    except _DAMAGE as error:
        raise BadInput(f"{file.name}: ({tag >> 16:04x},{tag & 0xFFFF:04x}) is damaged", "Copy it again.") from error


def _reals(header: pydicom.Dataset, tag: int, file: Path) -> list[float]:
    value = _raw(header, tag, file)
    if value is None:
        return []
    if isinstance(value, bytes):
        count = len(value) // 4
        return [float(n) for n in struct.unpack(f"<{count}f", value[: 4 * count])]
    try:
        several = [value] if isinstance(value, (int, float, str)) else list(value)
        return [float(n) for n in several]
    except (TypeError, ValueError) as error:
        raise BadInput(f"{file.name}: ({tag >> 16:04x},{tag & 0xFFFF:04x}) is no number", "Copy it again.") from error


def _real(header: pydicom.Dataset, tag: int, file: Path, otherwise: float | None = None) -> float:
    values = _reals(header, tag, file)
    if not values and otherwise is not None:
        return otherwise
    if len(values) != 1 or not np.isfinite(values[0]):
        raise BadInput(
            f"{file.name}: ({tag >> 16:04x},{tag & 0xFFFF:04x}) is {values}; one number is needed",
            "Copy the scan again.",
        )
    return values[0]


def _whole(header: pydicom.Dataset, tag: int, file: Path) -> int:
    value = _raw(header, tag, file)
    if isinstance(value, bytes) and len(value) == 2:
        value = struct.unpack("<H", value)[0]
    if not isinstance(value, int) or not 0 < value <= 1 << 16:
        raise BadInput(f"{file.name}: ({tag >> 16:04x},{tag & 0xFFFF:04x}) is no size of a detector", "Copy it again.")
    return value


def _instance(header: pydicom.Dataset, otherwise: int) -> int:
    try:
        return int(header[_INSTANCE].value)
    except _DAMAGE:
        return otherwise


def _text(header: pydicom.Dataset, tag: int) -> str:
    value = header[tag].value if tag in header else ""
    said = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return said.strip("\0 ").upper()
