"""Scanners of circular scans: files as the makers write them, of a phantom seen by an independent projector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.cone import ConeBeamPhysics, feldkamp
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.fbp import filtered_back_projection
from equipoise_engine.formats import read
from equipoise_engine.formats.ct.circular import Circle
from equipoise_engine.geometry import ConeBeam, FanBeam, ParallelBeam
from equipoise_engine.opening import open_scan
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.progress import unwatched
from equipoise_engine.recipe import Known, Recipe, Role

SOURCE_MM, DETECTOR_MM, PIXEL_MM = 60.0, 180.0, 0.6
ROWS, COLUMNS, VIEWS = 40, 56, 72
# Balls (x, y, z, radius in mm, attenuation per mm), z up: nothing about them is symmetric.
BALLS = ((0.0, 0.0, 0.0, 4.2, 0.02), (2.4, 0.9, 0.6, 0.9, 0.25), (-0.7, 2.6, -1.1, 0.7, 0.25))
MARKS = BALLS[1:]


def seen(turned_deg: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return line integrals `(view, row, column)` of the balls turned counter-clockwise seen from above.

    The source lies at -y, the detector beyond the axis; `columns` and `rows` are the x and z of its elements in mm.
    """
    source = np.array([0.0, -SOURCE_MM, 0.0])
    elements = np.zeros((rows.size, columns.size, 3))
    elements[..., 0], elements[..., 1], elements[..., 2] = columns[None], DETECTOR_MM - SOURCE_MM, rows[:, None]
    along = elements - source
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    total = np.zeros((turned_deg.size, rows.size, columns.size))
    for view, angle in enumerate(np.radians(turned_deg)):
        for x, y, z, radius, value in BALLS:
            middle = np.array([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z])
            ahead = along @ (middle - source)
            left = radius**2 - ((middle - source) ** 2).sum() + ahead**2
            total[view] += value * 2 * np.sqrt(np.maximum(left, 0.0))
    return total


def places(count: int, shift: float = 0.0) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2 + shift) * PIXEL_MM


def volume_of(path: Path, known: Known | None = None) -> tuple[np.ndarray, CtAcquisition]:
    """Return the reconstruction of a scan as it opens `(z, y, x)`, its axis in the middle."""
    scan = open_scan(path, Recipe(known=known or Known()), unwatched)
    assert isinstance(scan, CtAcquisition)
    sinograms = torch.from_numpy(attenuation(scan, slice(0, scan.shape[1])))
    if isinstance(scan.geometry, FanBeam):
        pixel = scan.geometry.image_pixel_mm
        return filtered_back_projection(sinograms, scan.geometry, (COLUMNS, COLUMNS), pixel).numpy(), scan
    assert isinstance(scan.geometry, ConeBeam)
    geometry = replace(scan.geometry, truncated=False)
    physics = ConeBeamPhysics(geometry, scan.shape[1:])
    y = sinograms.permute(1, 0, 2)[None]
    return feldkamp(y, geometry, physics.domain, geometry.image_pixel_mm)[0].numpy(), scan


def value_at(volume: np.ndarray, x: float, y: float, z: float, voxel: float) -> float:
    """Return the mean about a place in the coordinates of the program, in mm."""
    middle = (np.array(volume.shape) - 1) / 2
    at = np.rint(middle + np.array([z, -y, x]) / voxel).astype(int)
    return float(volume[tuple(slice(n - 1, n + 2) for n in at)].mean())


def check_marks(
    volume: np.ndarray, scan: CtAcquisition, where: Callable[[float, float, float], tuple[float, ...]]
) -> None:
    """Check that the marks stand out where they should, and nowhere a mirror would put them."""
    voxel = scan.geometry.image_pixel_mm
    for x, y, z, _, value in MARKS:
        a, b, c = where(x, y, z)
        assert value_at(volume, a, b, c, voxel) == pytest.approx(value + 0.02, rel=0.3)
        for mirrored in ((-a, b, c), (a, -b, c), (b, a, c), (a, b, -c), (-a, -b, c)):
            if np.abs(np.subtract(mirrored, (a, b, c))).max() > 1.0:
                assert value_at(volume, *mirrored, voxel) < 0.1


# --- Nikon ------------------------------------------------------------------------------------------

NIKON = {
    "Name": "part",
    "SrcToObject": SOURCE_MM,
    "SrcToDetector": DETECTOR_MM,
    "DetectorPixelsX": COLUMNS,
    "DetectorPixelsY": ROWS,
    "DetectorPixelSizeX": PIXEL_MM,
    "DetectorPixelSizeY": PIXEL_MM,
    "DetectorOffsetX": 0.0,
    "CentreOfRotationTop": 0.0,
    "CentreOfRotationBottom": 0.0,
    "WhiteLevel": 60000.0,
    "Projections": VIEWS,
    "InitialAngle": 0.0,
    "AngularStep": 360.0 / VIEWS,
    "InputFolderName": "",
}


def nikon(folder: Path, images: np.ndarray | None = None, **changes: object) -> Path:
    """Write a scan as the scanner does: the object turns clockwise, images as seen from behind the detector."""
    values = NIKON | changes
    if images is None:
        turned = -(float(values["InitialAngle"]) + float(values["AngularStep"]) * np.arange(VIEWS))  # type: ignore[arg-type]
        images = seen(turned, -places(COLUMNS), -places(ROWS))
    inner = folder / str(values["InputFolderName"] or "")
    inner.mkdir(exist_ok=True, parents=True)
    for index, image in enumerate(images):
        counts = np.rint(60000 * np.exp(-image)).astype(np.uint16)
        tifffile.imwrite(inner / f"{values['Name']}_{index + 1:04d}.tif", counts)
    lines = ["[XTekCT]", *(f"{key}={value}" for key, value in values.items() if value is not None)]
    path = folder / "part.xtekct"
    path.write_text("\r\n".join([*lines, "", "[Xrays]", "XraykV=100", "AngularStep=5"]), encoding="utf-8")
    return path


def test_nikon_opens_with_the_object_where_it_was(tmp_path: Path) -> None:
    volume, scan = volume_of(nikon(tmp_path))
    assert (scan.format, scan.state, scan.shape) == ("Nikon XTekCT", DataState.TRANSMISSION, (VIEWS, ROWS, COLUMNS))
    assert isinstance(scan.geometry, ConeBeam)
    assert scan.geometry.centre_px == pytest.approx((COLUMNS - 1) / 2, abs=0.2)
    assert next(m.reason for m in scan.matched if m.role == "direction").endswith("rays measured from both ends agree")
    # rows are drawn from above: seen with z down, x runs the other way
    check_marks(volume, scan, lambda x, y, z: (-x, y, -z))


def test_nikon_says_where_the_axis_is(tmp_path: Path) -> None:
    # the axis 1.2 mm of the detector to the right of its middle, which is to the left in the world
    images = seen(-(360.0 / VIEWS) * np.arange(VIEWS), -places(COLUMNS, shift=-2.0), -places(ROWS))
    volume, scan = volume_of(nikon(tmp_path, images, CentreOfRotationTop=1.2, CentreOfRotationBottom=1.2))
    assert scan.geometry.centre_px == pytest.approx((COLUMNS - 1) / 2 + 2.0)
    check_marks(volume, scan, lambda x, y, z: (-x, y, -z))


def test_nikon_turned_the_other_way_is_noticed(tmp_path: Path) -> None:
    images = seen((360.0 / VIEWS) * np.arange(VIEWS), -places(COLUMNS), -places(ROWS))
    volume, scan = volume_of(nikon(tmp_path, images))
    assert any(m.role == "direction" and "other way" in m.reason for m in scan.matched)
    check_marks(volume, scan, lambda x, y, z: (-x, y, -z))
    told = read(tmp_path / "part.xtekct", Known(clockwise=True))
    assert np.allclose(told.geometry.angle_rad, -scan.geometry.angle_rad)  # type: ignore[union-attr]


def test_nikon_with_one_row_is_a_fan(tmp_path: Path) -> None:
    images = seen(-(360.0 / VIEWS) * np.arange(VIEWS), -places(COLUMNS), np.array([0.0]))
    volume, scan = volume_of(nikon(tmp_path, images, DetectorPixelsY=1))
    assert isinstance(scan.geometry, FanBeam)
    voxel = scan.geometry.image_pixel_mm
    at = np.rint((COLUMNS - 1) / 2 + np.array([-0.9, -2.4]) / voxel).astype(int)
    assert volume[0][at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2].mean() > 0.15


def test_nikon_reads_what_it_names(tmp_path: Path) -> None:
    images = np.zeros((VIEWS, ROWS, COLUMNS))
    path = nikon(tmp_path, images, InputFolderName="raw", CentreOfRotationTop=-1.2, InitialAngle=30, ObjectTilt=0.0)
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    assert isinstance(scan.geometry, ConeBeam)
    assert np.asarray(scan.projections[3]).mean() == pytest.approx(1.0)
    assert np.degrees(scan.geometry.angle_rad[:2]) == pytest.approx([-30.0, -35.0])
    assert scan.geometry.centre_px == pytest.approx((COLUMNS - 1) / 2 - 1.0)
    assert np.tan(scan.geometry.roll_rad) == pytest.approx(1.2 / (ROWS * PIXEL_MM))
    # the folder as a whole, and other flats than the level of the file
    assert read(tmp_path).path == path
    tifffile.imwrite(tmp_path / "white.tif", np.full((ROWS, COLUMNS), 50000, np.uint16))
    told = read(path, Known(state="counts", roles=(Role(role="flats", source="white.tif"),)))
    assert isinstance(told, CtAcquisition)
    assert told.flats is not None
    assert (told.state, told.flats.shape) == (DataState.COUNTS, (1, ROWS, COLUMNS))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"SrcToObject": None}, BadInput, "'SrcToObject' is missing"),
        ({"SrcToObject": "far"}, BadInput, "'SrcToObject' is 'far'"),
        ({"SrcToDetector": 10.0}, BadInput, "10 mm"),
        ({"DetectorPixelSizeX": 0}, BadInput, "above zero"),
        ({"DetectorPixelSizeX": 1e6}, BadInput, "would span"),
        ({"DetectorPixelsX": 55}, BadInput, "40 rows and 56 columns"),
        ({"Projections": 7.5}, BadInput, "whole number"),
        ({"Projections": 1000}, BadInput, "928 of 1000 images are missing: part_0073.tif"),
        ({"Name": None}, BadInput, "'Name'"),
        ({"ObjectTilt": 30.0}, Unsupported, "tilted by 30"),
    ],
)
def test_nikon_names_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], error: type[EquipoiseError], said: str
) -> None:
    path = nikon(tmp_path, np.zeros((VIEWS, ROWS, COLUMNS)))
    lines = [f"{key}={value}" for key, value in (NIKON | changes).items() if value is not None]
    path.write_text("[XTekCT]\n" + "\n".join(lines))
    with pytest.raises(error, match=said):
        read(path)


def test_views_whose_images_are_missing_are_left_out(tmp_path: Path) -> None:
    path = nikon(tmp_path)
    for number in (5, 6, 70):
        (tmp_path / f"part_{number:04d}.tif").unlink()
    volume, scan = volume_of(path)
    assert scan.shape[0] == VIEWS - 3
    assert any("part_0005.tif, part_0006.tif, part_0070.tif" in warning for warning in scan.warnings)
    check_marks(volume, scan, lambda x, y, z: (-x, y, -z))


# --- SkyScan ----------------------------------------------------------------------------------------

SKYSCAN = {
    "Filename Prefix": "tooth_",
    "Number Of Files": VIEWS,
    "Number Of Rows": ROWS,
    "Number Of Columns": COLUMNS,
    "Optical Axis (line)": "  15",
    "Object to Source (mm)": "60,000",
    "Camera to Source (mm)": DETECTOR_MM,
    "Image Pixel Size (um)": 1000 * PIXEL_MM * SOURCE_MM / DETECTOR_MM,
    "Depth (bits)": 16,
    "Rotation Step (deg)": 360.0 / VIEWS,
    "Use 360 Rotation": "YES",
    "Flat Field Correction": "ON",
    "Rotation Direction": "CC",
}


def skyscan(folder: Path, images: np.ndarray | None = None, **changes: object) -> Path:
    """Write a scan as the scanner does: the object turns counter-clockwise, drawn from behind the camera."""
    values = SKYSCAN | {key.replace("_", " "): value for key, value in changes.items()}
    if images is None:
        # line 15 from below is in the plane of the source: row 24 from above
        images = seen(360.0 / VIEWS * np.arange(VIEWS), -places(COLUMNS, -1.5), -places(ROWS, -4.5))
    for index, image in enumerate(images):
        counts = np.rint(58000 * np.exp(-image)).astype(np.uint16)
        tifffile.imwrite(folder / f"tooth_{index:08d}.tif", counts)
    # what else lies in such a folder
    tifffile.imwrite(folder / "tooth__spr.tif", np.zeros((8, 8), np.uint8))
    (folder / "tooth__spr.bmp").write_bytes(b"BM nothing")
    (folder / "tooth_.txt").write_text("notes")
    lines = ["[System]", "Scanner=SkyScan1275", "Camera Pixel Size (um)=75.0", "[User]", "User Name=somebody"]
    lines += ["[Acquisition]", *(f"{key}={value}" for key, value in values.items() if value is not None)]
    lines += ["[Reconstruction]", "Reconstruction Program=NRecon", "Rotation Step (deg)=9"]
    path = folder / "tooth_.log"
    path.write_text("\r\n".join(lines), encoding="latin-1")
    return path


def test_skyscan_opens_with_the_object_where_it_was(tmp_path: Path) -> None:
    volume, scan = volume_of(skyscan(tmp_path))
    assert (scan.format, scan.state, scan.shape) == ("Bruker SkyScan", DataState.COUNTS, (VIEWS, ROWS, COLUMNS))
    assert isinstance(scan.geometry, ConeBeam)
    assert scan.geometry.middle_px == 24
    assert scan.geometry.centre_px == pytest.approx((COLUMNS - 1) / 2 + 1.5, abs=0.3)
    assert scan.geometry.pixel_mm == pytest.approx(PIXEL_MM)
    check_marks(volume, scan, lambda x, y, z: (-x, y, -z))
    assert next(m.reason for m in scan.matched if m.role == "direction").endswith("rays measured from both ends agree")
    assert "somebody" not in repr(scan)
    assert read(tmp_path).format == "Bruker SkyScan"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Number_Of_Rows": 41}, "'Number of Rows' is 41, but the projections have 40"),
        ({"Number_Of_Files": 500}, "tooth_00000072.tif"),
        ({"Filename_Prefix": "bone_"}, "bone_0000.tif"),
        ({"Rotation_Step_(deg)": None}, "'Rotation Step"),
        ({"Image_Pixel_Size_(um)": -1}, "above zero"),
    ],
)
def test_skyscan_names_what_is_wrong(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = skyscan(tmp_path, np.zeros((VIEWS, ROWS, COLUMNS)), **changes)
    with pytest.raises(BadInput) as raised:
        read(path)
    assert said in raised.value.message


def test_skyscan_of_a_parallel_beam_and_the_other_direction(tmp_path: Path) -> None:
    images = np.zeros((VIEWS, ROWS, COLUMNS))
    images[:, 3:9, 20:30] = np.linspace(0, 1, VIEWS)[:, None, None]
    changes = {"Object_to_Source_(mm)": 1e6, "Camera_to_Source_(mm)": None, "Rotation_Direction": "CW"}
    scan = read(skyscan(tmp_path, images, **changes))
    assert isinstance(scan, CtAcquisition)
    assert isinstance(scan.geometry, ParallelBeam)
    assert (scan.geometry.pixel_mm, scan.geometry.calibrated) == (pytest.approx(0.2), True)
    assert np.degrees(scan.geometry.angle_rad[1]) == pytest.approx(-5.0)


def test_a_text_file_of_another_kind_is_no_scan(tmp_path: Path) -> None:
    path = tmp_path / "setup.log"
    path.write_text("[System]\nScanner=other\n")
    with pytest.raises(Unsupported):
        read(path)
    path.write_bytes(b"[Acquisition]\nNumber Of Files=3\0\0")
    with pytest.raises(BadInput, match="no text file"):
        read(path)


# --- circles ----------------------------------------------------------------------------------------


def test_lengths_that_cannot_be_are_named() -> None:
    angles = np.radians(np.arange(8.0))
    with pytest.raises(BadInput, match=r"s\.log: the rotation axis at 9 mm"):
        Circle(9.0, 5.0, 0.1, 0.1).geometry(angles, 3, 16, "s.log")
    assert isinstance(Circle(5.0, 9.0, 0.1, 0.1).geometry(angles, 1, 16, "s.log"), FanBeam)
