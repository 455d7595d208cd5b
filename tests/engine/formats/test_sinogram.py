"""Single sinograms in TIFF files: the angles that their views show, states, and files that are something else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.angles import evenly
from equipoise_engine.formats.stacks.sinogram import find_range
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.centre import find_centre
from equipoise_engine.recipe import AngleRange, Known


def _discs(angles_deg: np.ndarray, columns: int = 96, centre: float = 50.0, noise: float = 0.0) -> np.ndarray:
    """Return the exact projections `(view, column)` of discs without any symmetry."""
    angle = np.deg2rad(angles_deg)[:, None]
    position = np.arange(columns)[None, :] - centre
    views = np.zeros((angle.size, columns))
    for x, y, radius, value in ((0, 0, 30, 0.02), (12, 5, 8, 0.03), (-9, 14, 5, 0.05), (3, -17, 6, -0.01)):
        across = position - x * np.cos(angle) - y * np.sin(angle)
        views += value * 2 * np.sqrt(np.maximum(radius**2 - across**2, 0.0))
    return views + noise * views.max() * np.random.default_rng(2).normal(size=views.shape)


def _half_turn(views: int) -> np.ndarray:
    return np.arange(views) * 180.0 / views


def _read(path: Path, known: Known | None = None) -> tuple[CtAcquisition, ParallelBeam]:
    scan = read(path, known=known)
    assert isinstance(scan, CtAcquisition)
    assert isinstance(scan.geometry, ParallelBeam)
    return scan, scan.geometry


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(("views", "inclusive"), [(60, False), (61, False), (180, False), (60, True), (181, True)])
@pytest.mark.parametrize("stop", [180.0, 360.0])
def test_the_views_show_their_range(stop: float, inclusive: bool, views: int, noise: float) -> None:
    expected = AngleRange(start_deg=0.0, stop_deg=stop, inclusive=inclusive)
    found, _, sure = find_range(_discs(evenly(expected, views), noise=noise))
    assert (found, sure) == (expected, True)


@pytest.mark.parametrize("start", [0.0, 37.0])
@pytest.mark.parametrize(("views", "inclusive"), [(180, False), (181, True), (360, False), (361, True)])
def test_the_end_is_told_whichever_way_an_object_lies(views: int, inclusive: bool, start: float) -> None:
    turned = evenly(AngleRange(start_deg=start, stop_deg=start + 180, inclusive=inclusive), views)
    lines = np.zeros((views, 128))
    for x, y, wide, high, lying in ((3, 0, 40, 48, 0.2), (6, 22, 10, 5, 0.5), (-16, -13, 6, 19, -0.4)):
        angle = np.deg2rad(turned)[:, None]
        across = np.arange(128)[None, :] - 66.8 - x * np.cos(angle) - y * np.sin(angle)
        square = (wide * np.cos(angle - lying)) ** 2 + (high * np.sin(angle - lying)) ** 2
        lines += 2 * wide * high * np.sqrt(np.maximum(square - across**2, 0)) / square
    assert find_range(lines)[0].inclusive == inclusive


def test_an_image_with_views_as_columns_is_turned(tmp_path: Path) -> None:
    views = np.exp(-_discs(_half_turn(120))).astype(np.float32)
    tifffile.imwrite(tmp_path / "s.tif", views.T)
    scan, _ = _read(tmp_path / "s.tif")
    assert np.array_equal(np.asarray(scan.projections[:, 0]), views)
    assert scan.state is DataState.TRANSMISSION
    assert "layout" in scan.guessed
    assert any("The 120 columns of the image were taken as the views" in text for text in scan.warnings)
    told, _ = _read(tmp_path / "s.tif", Known(layout="sinograms"))
    assert told.shape == (96, 1, 120)
    with pytest.raises(BadInput, match="one projection is no scan"):
        _read(tmp_path / "s.tif", Known(layout="projections"))


def test_transmission_of_an_object_wider_than_the_detector_is_told_from_attenuation(tmp_path: Path) -> None:
    inner = _discs(_half_turn(90))[:, 30:70] + 0.3
    for values, state in ((inner, DataState.ATTENUATION), (np.exp(-inner), DataState.TRANSMISSION)):
        tifffile.imwrite(tmp_path / "s.tif", values.astype(np.float32))
        scan, _ = _read(tmp_path / "s.tif")
        assert scan.state is state
        assert "state" in scan.guessed


def test_angles_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", _discs(_half_turn(60)).astype(np.float32))
    with pytest.raises(BadInput, match="a span of zero"):
        _read(tmp_path / "s.tif", Known(angles=AngleRange(start_deg=5.0, stop_deg=5.0)))


@pytest.mark.parametrize("reach", [60.0, 100.0, 130.0, 250.0])
def test_views_without_mirror_images_are_a_guess(reach: float) -> None:
    _, reason, sure = find_range(_discs(np.linspace(0, reach, 100)))
    assert not sure
    assert "no views are mirror images" in reason


def test_a_sinogram_becomes_a_scan(tmp_path: Path) -> None:
    views = _discs(_half_turn(90)).astype(np.float32)
    tifffile.imwrite(tmp_path / "s.tif", views)
    scan, geometry = _read(tmp_path / "s.tif")
    assert scan.shape == (90, 1, 96)
    assert scan.state is DataState.ATTENUATION
    assert np.array_equal(np.asarray(scan.projections[:, 0]), views)
    assert np.rad2deg(geometry.angle_rad[[0, -1]]) == pytest.approx([0, 178])
    assert not geometry.calibrated
    assert any("holds no angles; 0 to 180 degrees without the end" in warning for warning in scan.warnings)
    assert find_centre(scan).centre_px == pytest.approx(50.0, abs=0.1)


def test_given_angles_and_centre_are_taken(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", _discs(np.linspace(10, 100, 31)).astype(np.float32), compression="zlib")
    known = Known(centre_px=49.5, angles=AngleRange(start_deg=10.0, stop_deg=100.0, inclusive=True))
    scan, geometry = _read(tmp_path / "s.tif", known)
    assert np.allclose(np.rad2deg(geometry.angle_rad), np.linspace(10, 100, 31))
    assert geometry.centre_px == 49.5
    assert not any("no angles" in warning for warning in scan.warnings)


@pytest.mark.parametrize(("kind", "state"), [(np.uint16, DataState.COUNTS), (np.float32, DataState.TRANSMISSION)])
def test_transmission_is_told_from_attenuation(tmp_path: Path, kind: type, state: DataState) -> None:
    transmission = np.exp(-_discs(_half_turn(60)))
    tifffile.imwrite(tmp_path / "s.tif", (transmission * (40000 if kind is np.uint16 else 1)).astype(kind))
    scan, geometry = _read(tmp_path / "s.tif")
    assert scan.state is state
    assert np.rad2deg(geometry.angle_rad[-1]) == pytest.approx(177)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bright_objects_in_whole_numbers_are_attenuation(tmp_path: Path, kind: type) -> None:
    views = _discs(_half_turn(60))
    full = np.iinfo(kind).max
    zero = round(0.1 * full)
    stored = np.rint(zero + views / views.max() * 0.85 * full).astype(kind)
    tifffile.imwrite(tmp_path / "s.tif", stored)
    scan, _ = _read(tmp_path / "s.tif")
    assert scan.state is DataState.ATTENUATION
    assert "state" in scan.guessed
    # air is zero again
    taken = np.asarray(scan.projections[:, 0])
    assert np.abs(taken[:, :8]).max() < 0.01
    assert np.allclose(taken, 0.85 * views / views.max(), atol=0.01)
    assert any("brighter than air" in text for text in scan.warnings)
    # told otherwise, numbers are what the file has
    counts, _ = _read(tmp_path / "s.tif", Known(state="counts"))
    assert counts.state is DataState.COUNTS
    assert np.array_equal(np.asarray(counts.projections[:, 0]), stored)


def test_transmission_in_whole_numbers_can_be_told(tmp_path: Path) -> None:
    transmission = np.exp(-_discs(_half_turn(60)))
    tifffile.imwrite(tmp_path / "s.tif", np.rint(transmission * 65535).astype(np.uint16))
    scan, _ = _read(tmp_path / "s.tif", Known(state="transmission"))
    assert scan.state is DataState.TRANSMISSION
    assert np.allclose(np.asarray(scan.projections[:, 0]), transmission, atol=1e-4)


def test_a_colour_image_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((20, 20, 3), np.uint8), photometric="rgb")
    with pytest.raises(Unsupported, match=r"shape \(20, 20, 3\)"):
        read(tmp_path / "s.tif")


def test_a_tiny_image_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 20), np.float32))
    with pytest.raises(BadInput, match="4 x 20 is too small"):
        read(tmp_path / "s.tif")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, _discs(np.arange(90.0)).astype(np.float32))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match=r"s\.tif: the TIFF file is damaged"):
        read(path)


def test_angles_that_cannot_be_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", _discs(np.arange(90.0)).astype(np.float32))
    with pytest.raises(BadInput, match="a span of zero"):
        read(tmp_path / "s.tif", known=Known(angles=AngleRange(start_deg=5.0, stop_deg=5.0)))
    with pytest.raises(BadInput, match="angles are not finite"):
        read(tmp_path / "s.tif", known=Known(angles=AngleRange(start_deg=0.0, stop_deg=float("nan"))))


def test_a_picture_beside_a_scan_is_no_second_scan(tmp_path: Path) -> None:
    (tmp_path / "scan.hdr").write_text("# Dimensions\n1 8 8 1 \n")
    (tmp_path / "scan.cfl").write_bytes(np.ones(64, "<c8").tobytes())
    tifffile.imwrite(tmp_path / "picture.tif", np.zeros((20, 20), np.float32))
    assert read(tmp_path).path.name == "scan.cfl"


def test_read_wood(shared_data: Path) -> None:
    scan, geometry = _read(shared_data / "ct-wood-neutron-sino" / "woodsino_0200.tif")
    assert (scan.shape, scan.state) == ((625, 1, 577), DataState.ATTENUATION)
    # the mirror image of a view lies 312.6 views later: a full turn takes 625 steps
    assert np.rad2deg(geometry.angle_rad[[0, -1]]) == pytest.approx([0.0, 360.0 * 624 / 625])
    assert find_centre(scan).centre_px == pytest.approx(283.9, abs=0.4)
    known = Known(angles=AngleRange(start_deg=0.0, stop_deg=360.0, inclusive=True))
    assert find_centre(_read(scan.path, known)[0]).centre_px == pytest.approx(284.1, abs=0.6)


@pytest.mark.parametrize("start", [0.0, 120.0])
@pytest.mark.parametrize("centre", [20.0, 30.0, 66.0])
def test_a_full_turn_about_an_axis_far_off_is_told(centre: float, start: float) -> None:
    found, reason, sure = find_range(_discs(start + np.arange(120) * 3.0, centre=centre, noise=0.01))
    assert (found.stop_deg, found.inclusive, sure) == (360.0, False, True), reason


@pytest.mark.parametrize("start", [0.0, 20.0, 90.0])
def test_half_a_turn_of_a_symmetric_object_stays_one(start: float) -> None:
    angle = np.deg2rad(start + _half_turn(180))[:, None]
    position = np.arange(128)[None, :] - 63.5
    views = np.zeros((180, 128))
    for wide, high in ((30, 55), (10, 40)):
        reach = np.hypot(wide * np.cos(angle), high * np.sin(angle))
        views += wide * high / reach**2 * np.sqrt(np.maximum(reach**2 - position**2, 0.0))
    assert find_range(views)[0].stop_deg == 180.0
