"""Projections of clinical scanners in DICOM files, as pydicom writes them: circular scans, and refused ones."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.fbp import filtered_back_projection
from equipoise_engine.formats import read
from equipoise_engine.formats.ct.dicom_ctpd import is_dicom_ctpd
from equipoise_engine.geometry import ConeBeam, FanBeam
from equipoise_engine.preprocess.attenuation import attenuation

VIEWS, ROWS, COLUMNS = 72, 2, 60
SOURCE_MM, DETECTOR_MM, WIDTH_MM, CENTRE = 500.0, 1000.0, 8.0, 31.25
SLOPE = 1e-4
# discs (x, y, radius in mm, attenuation per mm)
DISCS = ((0.0, 0.0, 80.0, 0.005), (40.0, 15.0, 12.0, 0.03))
PHI = np.radians(20.0 + 360.0 / VIEWS * np.arange(VIEWS))


def projections(phi: np.ndarray, curved: bool = True, backwards: bool = False) -> np.ndarray:
    """Return line integrals `(view, column)`; the source lies at (-sin phi, cos phi), columns grow with the angle."""
    place = np.arange(COLUMNS) + 1 - CENTRE
    gamma = place * WIDTH_MM / DETECTOR_MM if curved else np.arctan(place * WIDTH_MM / DETECTOR_MM)
    if backwards:
        gamma = -gamma
    total = np.zeros((phi.size, COLUMNS))
    for view, angle in enumerate(phi):
        source = SOURCE_MM * np.array([-np.sin(angle), np.cos(angle)])
        # from the source to the axis, then turned about the source
        heading = np.arctan2(-source[1], -source[0]) - gamma
        along = np.stack([np.cos(heading), np.sin(heading)])
        for x, y, radius, value in DISCS:
            offset = np.array([x, y]) - source
            ahead = offset @ along
            total[view] += value * 2 * np.sqrt(np.maximum(radius**2 - offset @ offset + ahead**2, 0))
    return total


def write(
    folder: Path, values: np.ndarray | None = None, *, implicit: bool = False, turned: bool = True, **changes: object
) -> Path:
    """Write a scan; `changes` replace tags of all files by their hexadecimal numbers, or of one view as functions."""
    folder.mkdir(exist_ok=True)
    values = projections(PHI) if values is None else values
    for view in range(VIEWS):
        image = np.rint(np.broadcast_to(values[view], (ROWS, COLUMNS)) / SLOPE).astype("<u2")
        stored = image.T if turned else image
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID = meta.MediaStorageSOPClassUID
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.PatientName = "Somebody"
        data.InstanceNumber = view + 1
        data.Rows, data.Columns = stored.shape
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.RescaleSlope, data.RescaleIntercept = SLOPE, 0.0
        data.PixelData = np.ascontiguousarray(stored).tobytes()
        tags: dict[str, tuple[str, object]] = {
            "70291002": ("FL", WIDTH_MM),
            "70291006": ("FL", 1.5),
            "7029100B": ("CS", "CYLINDRICAL"),
            "70291010": ("US", ROWS),
            "70291011": ("US", COLUMNS),
            "70311001": ("FL", float(PHI[view] % (2 * np.pi))),
            "70311002": ("FL", 12.0),
            "70311003": ("FL", SOURCE_MM),
            "70311031": ("FL", DETECTOR_MM),
            "70311033": ("FL", [CENTRE, 1.5]),
            "7033100B": ("FL", 0.0),
            "7033100E": ("CS", "FFSNONE"),
        }
        for tag, (kind, value) in tags.items():
            change = changes.get(f"t{tag}", value)
            given = change(view) if callable(change) else change
            if given is not None:
                data.add_new(int(tag, 16), kind, given)
        # names are not in the order of the views
        data.save_as(folder / f"p{(view * 5) % VIEWS if view % 2 else view:04d}_{view}.dcm", enforce_file_format=True)
    return folder


def ct(path: Path) -> CtAcquisition:
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    return scan


def check_image(scan: CtAcquisition) -> None:
    assert isinstance(scan.geometry, FanBeam)
    sinogram = torch.from_numpy(attenuation(scan, slice(0, 1)))
    image = filtered_back_projection(sinogram, scan.geometry, (60, 60), 4.0)[0].numpy()

    def at(x: float, y: float) -> float:
        row, column = round(29.5 - y / 4), round(29.5 + x / 4)
        return float(image[row - 1 : row + 2, column - 1 : column + 2].mean())

    assert at(40, 15) == pytest.approx(0.035, rel=0.15)
    for x, y in ((-40, 15), (40, -15), (-40, -15), (15, 40), (-15, 40)):
        assert at(x, y) == pytest.approx(0.005, abs=0.003)


@pytest.mark.parametrize("implicit", [False, True])
def test_a_circular_scan_opens_with_the_object_where_it_was(tmp_path: Path, implicit: bool) -> None:
    scan = ct(write(tmp_path / "s", implicit=implicit))
    assert (scan.format, scan.shape, scan.state) == ("DICOM-CT-PD", (VIEWS, ROWS, COLUMNS), DataState.ATTENUATION)
    geometry = scan.geometry
    assert isinstance(geometry, FanBeam)
    assert (geometry.detector, geometry.centre_px) == ("curved", pytest.approx(CENTRE - 1))
    assert np.asarray(scan.projections[3, 1]) == pytest.approx(projections(PHI)[3], abs=1e-4)
    check_image(scan)
    assert next(m.reason for m in scan.matched if m.role == "direction").endswith("rays measured from both ends agree")
    assert "Somebody" not in repr(scan)
    # one of its files stands for all
    assert ct(next((tmp_path / "s").iterdir())).shape == scan.shape


def test_columns_that_run_the_other_way_are_noticed(tmp_path: Path) -> None:
    scan = ct(write(tmp_path / "s", projections(PHI, backwards=True), turned=False))
    assert "other way" in next(m.reason for m in scan.matched if m.role == "direction")


def test_a_flat_detector_is_a_cone(tmp_path: Path) -> None:
    scan = ct(write(tmp_path / "s", projections(PHI, curved=False), t7029100B="FLAT"))
    assert isinstance(scan.geometry, ConeBeam)
    assert (scan.geometry.middle_px, scan.geometry.row_mm) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"t70311002": lambda view: 0.5 * view}, Unsupported, "helical"),
        ({"t7033100E": "FFSZ"}, Unsupported, "focal spot moves"),
        ({"t7033100B": lambda view: 0.001 * (view % 2)}, Unsupported, "focal spot moves"),
        ({"t70311003": lambda view: 500.0 + 5 * view}, Unsupported, "nearer to the axis"),
        ({"t7029100B": "SPHERICAL"}, Unsupported, "SPHERICAL"),
        ({"t70311031": None}, BadInput, r"\(7031,1031\)"),
        ({"t70311031": 10.0}, BadInput, "10 mm"),
        ({"t70291010": 3}, BadInput, "3 rows"),
        ({"t70311033": [1.0]}, BadInput, "not two"),
    ],
)
def test_scans_that_cannot_be_read_are_named(
    tmp_path: Path, changes: dict[str, object], error: type[EquipoiseError], said: str
) -> None:
    with pytest.raises(error, match=said):
        read(write(tmp_path / "s", np.zeros((VIEWS, COLUMNS)), **changes))  # type: ignore[arg-type]


def test_images_of_patients_are_no_projections(shared_data: Path) -> None:
    assert not is_dicom_ctpd(shared_data / "ref-dicom-ct" / "CT_small.dcm")
    assert not is_dicom_ctpd(shared_data / "ref-dicom-ct")


def test_a_file_that_is_damaged_never_crashes(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    file = sorted(folder.iterdir())[0]
    raw = file.read_bytes()
    random = np.random.default_rng(4)
    for _ in range(10):
        damaged = bytearray(raw)
        damaged[int(random.integers(132, len(raw)))] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        with contextlib.suppress(EquipoiseError):
            np.asarray(ct(folder).projections[...])
    for share in (0.3, 0.7, 0.95):
        file.write_bytes(raw)
        os.truncate(file, int(len(raw) * share))
        with contextlib.suppress(EquipoiseError):
            np.asarray(ct(folder).projections[...])
