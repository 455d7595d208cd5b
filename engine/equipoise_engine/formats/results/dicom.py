"""Writer for DICOM: a folder of single-frame CT or MR images that any viewer reads.

Source: DICOM PS3.3, CT Image and MR Image information object definitions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.atomic import new_folder, sync
from equipoise_engine.formats.results.result import NOT_FOR_DIAGNOSIS, PROGRAM, check_volume, program_version, unit_of
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.volume import Volume

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
LARGEST = 65535
"""Largest stored value; values are unsigned, of 16 bits."""
HEADER_BYTES = 4096
"""Generous size of what is not pixels in one file."""
_NAME = re.compile(r"slice_\d{5}\.dcm")


@dataclass(frozen=True)
class _Scale:
    """How stored values become real ones: `value = stored * slope + intercept`, one pair for the volume."""

    slope: float
    intercept: float
    low: float
    high: float

    def store(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return the stored values `(y, x)`."""
        scaled = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        return np.clip(scaled, 0, LARGEST).astype("<u2")


@dataclass(frozen=True)
class _Series:
    """What all files of a series share."""

    study: str
    series: str
    frame: str
    date: str
    time: str


def write_dicom(volume: Volume, path: Path, watch: Watch) -> list[Path]:
    """Write a volume as a folder of DICOM files, read them back and compare; return their paths.

    Values are stored as unsigned 16 bit integers with one slope and intercept for the whole volume. The
    series is marked as derived and not for diagnostic use and carries no personal data. A folder from an
    earlier export is replaced once the new one is complete.

    Raises
    ------
    BadInput
        The target cannot be written or holds other files, a value is not finite, or a file read back differs.
    """
    check_volume(volume)
    path = Path(path)
    slices, rows, columns = volume.data.shape
    if max(rows, columns) > LARGEST or slices > 99_999:
        raise BadInput(
            f"a volume of {slices} x {rows} x {columns} is too large for DICOM;"
            f" the limit is 99999 x {LARGEST} x {LARGEST}",
            "Export it as TIFF or HDF5.",
        )
    bad = int(np.count_nonzero(~np.isfinite(volume.data)))
    if bad:
        raise BadInput(
            f"{bad} of {volume.data.size} values are not finite, which DICOM cannot hold",
            "Export it as TIFF or HDF5.",
        )
    scale = _scale(volume.data)
    now = datetime.now()
    series = _Series(
        study=generate_uid(prefix=None),
        series=generate_uid(prefix=None),
        frame=generate_uid(prefix=None),
        date=now.strftime("%Y%m%d"),
        time=now.strftime("%H%M%S"),
    )
    names = [f"slice_{index:05d}.dcm" for index in range(slices)]
    with new_folder(path, slices * (2 * rows * columns + HEADER_BYTES), _is_ours) as temporary:
        for index, name in enumerate(names):
            _dataset(volume, index, scale, series).save_as(temporary / name, enforce_file_format=True)
            sync(temporary / name)
            watch(Progress("write", index + 1, 2 * slices))
        for index, name in enumerate(names):
            _compare(temporary / name, path / name, volume.data[index], scale)
            watch(Progress("write", slices + index + 1, 2 * slices))
    return [path / name for name in names]


def _is_ours(file: Path) -> bool:
    """Whether a file comes from an earlier export."""
    if not _NAME.fullmatch(file.name):
        return False
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Manufacturer"])
    except (InvalidDicomError, OSError, EOFError, ValueError):
        return False
    return str(header.get("Manufacturer", "")) == PROGRAM


def _scale(data: NDArray[np.float32]) -> _Scale:
    low, high = float(data.min()), float(data.max())
    if low == high:
        return _Scale(1.0, float(str(DSfloat(low, auto_format=True))), low, high)
    # DICOM holds numbers as at most 16 characters, so the pair is rounded first, with some room for it.
    # Zero stays zero where nothing is negative, so that readers who know no intercept see the same ratios.
    slope = float(str(DSfloat((high - min(low, 0.0)) / (LARGEST - 3), auto_format=True)))
    intercept = float(str(DSfloat(low - slope if low < 0 else 0.0, auto_format=True)))
    return _Scale(slope, intercept, low, high)


def _number(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _dataset(volume: Volume, index: int, scale: _Scale, series: _Series) -> FileDataset:
    """Return one slice as a complete DICOM object."""
    is_ct = volume.modality == "ct"
    image = volume.data[index]
    depth, height, width = (float(size) for size in volume.voxel_mm)
    instance = generate_uid(prefix=None)
    kind = UID(CT_IMAGE_STORAGE if is_ct else MR_IMAGE_STORAGE)

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID = kind
    made.SOPInstanceUID = instance
    made.InstanceCreationDate, made.InstanceCreationTime = series.date, series.time

    made.PatientName, made.PatientID = "Anonymous^", "ANONYMOUS"
    made.PatientBirthDate, made.PatientSex = "", ""
    made.StudyInstanceUID, made.StudyID = series.study, "1"
    made.StudyDate, made.StudyTime = series.date, series.time
    made.ReferringPhysicianName, made.AccessionNumber = "", ""
    made.SeriesInstanceUID, made.SeriesNumber = series.series, 1
    made.SeriesDate, made.SeriesTime = series.date, series.time
    made.SeriesDescription = f"{PROGRAM} {volume.provenance.get('method', 'reconstruction')}"[:64]
    made.Modality = "CT" if is_ct else "MR"
    made.PatientPosition = ""
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = series.frame, ""
    made.Manufacturer, made.ManufacturerModelName = PROGRAM, PROGRAM
    made.SoftwareVersions = program_version()

    made.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if is_ct else "OTHER"]
    made.InstanceNumber, made.AcquisitionNumber = index + 1, None
    made.ContentDate, made.ContentTime = series.date, series.time
    made.DerivationDescription = _derivation(volume)
    comments = [NOT_FOR_DIAGNOSIS, "Orientation with respect to a patient is not known."]
    if is_ct:
        comments.append(f"Values are linear attenuation in {unit_of(volume)}, not Hounsfield units.")
    if not volume.calibrated:
        comments.append("Pixel size is not known; 1 mm stands for one pixel.")
    made.ImageComments = " ".join(comments)
    made.BurnedInAnnotation, made.LossyImageCompression, made.ImageLaterality = "NO", "00", "U"
    made.ContributingEquipmentSequence = [_equipment()]

    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.ImagePositionPatient = [
        _number(-(image.shape[1] - 1) / 2 * width),
        _number(-(image.shape[0] - 1) / 2 * height),
        _number((volume.first_slice + index) * depth),
    ]
    made.PixelSpacing = [_number(height), _number(width)]
    made.SliceThickness = _number(depth)
    made.SliceLocation = _number((volume.first_slice + index) * depth)
    if is_ct:
        made.KVP = None
        made.RescaleSlope, made.RescaleIntercept = _number(scale.slope), _number(scale.intercept)
    else:
        made.SpacingBetweenSlices = _number(depth)
        made.ScanningSequence, made.SequenceVariant, made.ScanOptions = "RM", "NONE", ""
        made.MRAcquisitionType, made.EchoTrainLength = "2D", None
        made.RepetitionTime, made.EchoTime = None, None
        # In stored values. For CT it would count real ones, and no window may be narrower than one.
        made.WindowCenter, made.WindowWidth = LARGEST // 2, LARGEST

    made.RealWorldValueMappingSequence = [_mapping(scale, volume)]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = image.shape
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.PixelData = scale.store(image).tobytes()
    made["PixelData"].VR = "OW"
    return made


def _derivation(volume: Volume) -> str:
    method = volume.provenance.get("method", "unknown method")
    return f"Reconstructed by {PROGRAM} {program_version()} with {method}; values in {unit_of(volume)}"[:1024]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _equipment() -> Dataset:
    """Return what program made the images."""
    equipment = Dataset()
    equipment.Manufacturer = PROGRAM
    equipment.ManufacturerModelName = PROGRAM
    equipment.SoftwareVersions = program_version()
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    return equipment


def _mapping(scale: _Scale, volume: Volume) -> Dataset:
    """Return how stored values become real ones, and their unit.

    MR images have no rescale slope of their own, and CT images no word for a unit other than Hounsfield's.
    """
    mapping = Dataset()
    mapping.RealWorldValueFirstValueMapped = 0
    mapping.RealWorldValueLastValueMapped = LARGEST
    mapping.RealWorldValueIntercept = scale.intercept
    mapping.RealWorldValueSlope = scale.slope
    if volume.modality == "ct":
        mapping.LUTExplanation, mapping.LUTLabel = "Linear attenuation coefficient", "ATTENUATION"
        unit = "/mm" if volume.calibrated else "/{pixel}"
        mapping.MeasurementUnitsCodeSequence = [_code(unit, "UCUM", unit_of(volume))]
    else:
        mapping.LUTExplanation, mapping.LUTLabel = "Signal magnitude", "MAGNITUDE"
        mapping.MeasurementUnitsCodeSequence = [_code("1", "UCUM", "no units")]
    return mapping


def _compare(file: Path, final: Path, image: NDArray[np.float32], scale: _Scale) -> None:
    """Check that what a reader gets from a file is the slice, to half a step."""
    read = pydicom.dcmread(file)
    if "RescaleSlope" in read:
        slope, intercept = float(read.RescaleSlope), float(read.RescaleIntercept)
    else:
        mapping = read.RealWorldValueMappingSequence[0]
        slope, intercept = float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    values = read.pixel_array.astype(np.float64) * slope + intercept
    limit = 0.5 * scale.slope * (1 + 1e-6) + 1e-12 * max(abs(scale.low), abs(scale.high))
    if values.shape != image.shape or float(np.max(np.abs(values - image))) > limit:
        raise BadInput(f"{final}: the image reads back differently", "The drive is faulty; try another.")
