"""NXtomo files: sorting frames by key, reading them lazily, and naming what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, Incomplete
from equipoise_engine.formats import read
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.recipe import AngleRange, Known, Role

Maker = Callable[..., Path]
PROJECTIONS = [3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16]
"""Frames that the maker writes with image key 0."""


def _read(path: Path) -> CtAcquisition:
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    return scan


def test_frames_are_sorted_by_key(nxtomo: Maker) -> None:
    scan = _read(nxtomo())
    assert scan.state is DataState.COUNTS
    assert scan.shape == (12, 3, 16)
    frame = (np.asarray(scan.projections[:, 0, 0], dtype=int) - 1000) // 100
    assert frame.tolist() == PROJECTIONS
    assert scan.flats is not None
    assert scan.darks is not None
    assert ((np.asarray(scan.flats[:, 0, 0], dtype=int) - 1000) // 100).tolist() == [2, 9]
    assert ((np.asarray(scan.darks[:, 0, 0], dtype=int) - 1000) // 100).tolist() == [0, 1, 17]
    assert any("1 frames are marked invalid" in warning for warning in scan.warnings)


@pytest.mark.parametrize(
    "key",
    [
        5,
        -1,
        np.s_[2:9],
        np.s_[::3],
        np.s_[::-1],
        np.s_[8:2:-2],
        np.s_[3:3],
        np.s_[:, 1, :],
        np.s_[4, 1:3, 5],
        np.s_[..., 2],
        np.s_[[0, 6, 11]],
        np.s_[np.array([9, 1]), :, ::2],
    ],
)
def test_slicing_equals_slicing_in_memory(nxtomo: Maker, key: object) -> None:
    path = nxtomo()
    scan = _read(path)
    with h5py.File(path, "r", locking=False) as file:
        whole = file["measurement/tomography/instrument/detector/data"][:][PROJECTIONS]
    assert np.array_equal(scan.projections[key], whole[key])


def test_a_view_beyond_the_end_is_an_index_error(nxtomo: Maker) -> None:
    with pytest.raises(IndexError):
        _read(nxtomo()).projections[12]


@pytest.mark.parametrize(("pixel", "millimetres"), [((2.5, "um"), 0.0025), ((1e-5, "m"), 0.01), ((0.2, "mm"), 0.2)])
def test_pixel_size_with_units_calibrates(nxtomo: Maker, pixel: tuple[float, str], millimetres: float) -> None:
    geometry = _read(nxtomo(pixel=pixel)).geometry
    assert geometry.calibrated
    assert geometry.pixel_mm == pytest.approx(millimetres)


def test_pixel_size_in_unknown_units_is_left_out(nxtomo: Maker) -> None:
    scan = _read(nxtomo(pixel=(3.0, "px")))
    assert not scan.geometry.calibrated
    assert any("3 px; it was not used" in warning for warning in scan.warnings)


def test_a_file_without_keys_is_all_projections(nxtomo: Maker) -> None:
    scan = _read(nxtomo(image_key=None, angle=np.arange(18) * 10.0))
    assert scan.shape[0] == 18
    assert any("no image keys" in warning for warning in scan.warnings)


@pytest.mark.parametrize(("name", "length"), [("image_key", 17), ("angle", 15)])
def test_lengths_that_differ_name_the_index(nxtomo: Maker, name: str, length: int) -> None:
    with pytest.raises(BadInput, match=rf"18 frames in .* but {length} (values|angles) in .*index {length} and later"):
        read(nxtomo(**{name: np.zeros(length, int)}))


def test_a_key_out_of_range_is_named(nxtomo: Maker) -> None:
    keys = np.zeros(18, int)
    keys[7] = 9
    with pytest.raises(BadInput, match="is 9 at index 7; -1 to 3 are defined"):
        read(nxtomo(image_key=keys))


def test_a_file_of_flats_only_is_refused(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match="none of the 18 image keys is 0"):
        read(nxtomo(image_key=np.ones(18, int)))


def test_missing_angles_say_where_they_were_looked_for(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match=r"no rotation angles: looked for .*sample/rotation_angle"):
        read(nxtomo(angle=None))


def test_missing_frames_are_named(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match="holds no frames"):
        read(nxtomo(data=None))


# --- what is missing, and what the user tells -----------------------------------------------------------


def _known(*roles: tuple[str, str], **changes: Any) -> Known:
    return Known(roles=tuple(Role(role=role, source=source) for role, source in roles), **changes)


def test_angles_in_a_file_that_is_missing_can_be_given(nxtomo: Maker) -> None:
    path = nxtomo(angle=None)
    with h5py.File(path, "r+") as file:
        file["measurement/tomography/sample/rotation_angle"] = h5py.ExternalLink("motors.h5", "/angle")
        file["measurement/encoder"] = np.arange(18) * 10.0
    with pytest.raises(
        Incomplete, match=r"rotation_angle is stored in another file, motors\.h5, which is miss"
    ) as caught:
        read(path)
    assert caught.value.missing == ("angles",)
    assert "/measurement/encoder" in {source.name for source in caught.value.sources}
    scan = read(path, Known(angles=AngleRange(start_deg=0.0, stop_deg=180.0)))
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 15.0)
    scan = read(path, _known(("angles", "/measurement/encoder")))
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.array(PROJECTIONS) * 10.0)
    (path.parent / "angles.txt").write_text("\n".join(str(7.5 * view) for view in range(12)))
    scan = read(path, _known(("angles", "angles.txt")))
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 7.5)


def test_angles_of_the_projections_alone_will_do(nxtomo: Maker) -> None:
    scan = _read(nxtomo(angle=np.arange(12) * 15.0))
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 15.0)


def test_the_user_chooses_flats_and_darks(nxtomo: Maker) -> None:
    path = nxtomo()
    with h5py.File(path, "r+") as file:
        file["bright"] = np.full((5, 3, 16), 7000, np.uint16)
    scan = read(path, _known(("flats", "/bright#1:4"), ("darks", "")))
    assert isinstance(scan, CtAcquisition)
    assert scan.flats is not None
    assert scan.flats.shape == (3, 3, 16)
    assert scan.darks is None
    assert {source.name for source in scan.sources} >= {"/bright", "/measurement/tomography/instrument/detector/data"}
    # frames that get another role are no projections any more
    scan = read(path, _known(("flats", "#3:6")))
    assert isinstance(scan, CtAcquisition)
    assert scan.shape[0] == 9
    assert np.rad2deg(scan.geometry.angle_rad[0]) == pytest.approx(45.0)
    with pytest.raises(BadInput, match=r"frames 3 to 99 of .* which has 18"):
        read(path, _known(("flats", "#3:99")))


def test_a_monitor_is_relative_to_the_flats(nxtomo: Maker) -> None:
    path = nxtomo()
    beam = np.linspace(100.0, 83.0, 18)
    with h5py.File(path, "r+") as file:
        file["measurement/tomography/control/data"] = beam
    scan = _read(path)
    assert scan.monitor == pytest.approx(beam[PROJECTIONS] / beam[[2, 9]].mean())
    scan = read(path, _known(("monitor", "")))
    assert isinstance(scan, CtAcquisition)
    assert scan.monitor is None
    del scan
    with h5py.File(path, "r+") as file:
        file["measurement/tomography/control/data"][4] = 0.0
    scan = _read(path)
    assert scan.monitor is None
    assert any("not above zero; it was not used" in warning for warning in scan.warnings)


def test_one_of_several_scans_is_taken_and_the_others_named(nxtomo: Maker) -> None:
    path = nxtomo()
    with h5py.File(path, "r+") as file:
        file.copy("measurement/tomography", file, "measurement/tomography2")
        file["measurement/tomography2/instrument/detector/data"][...] = 5
    scan = _read(path)
    assert scan.projections[0, 0, 0] != 5
    assert any("2 scans; the one in /measurement/tomography was taken" in warning for warning in scan.warnings)
    scan = read(path, _known(("projections", "/measurement/tomography2/instrument/detector/data")))
    assert isinstance(scan, CtAcquisition)
    assert scan.projections[0, 0, 0] == 5
    assert scan.shape[0] == 12


# --- files of the ESRF ------------------------------------------------------------------------------


@pytest.fixture
def esrf(tmp_path: Path) -> Maker:
    """Write a file with the library that the ESRF converts its scans with; keywords set distances in metres."""
    nxtomo = pytest.importorskip("nxtomo.application.nxtomo", reason="the package nxtomo is not installed")
    pint = pytest.importorskip("pint")
    units = pint.get_application_registry()

    def make(source: float | None = None, distance: float = 0.1, pixel: float = 6.5e-6) -> Path:
        path = tmp_path / "esrf.nx"
        keys = np.array([2, 1, *[0] * 12, 1, -1, -1])
        scan = nxtomo.NXtomo()
        scan.title = "made for a test"
        scan.energy = 18 * units.keV
        scan.instrument.detector.data = (100 + np.arange(keys.size * 48).reshape(-1, 3, 16)).astype(np.uint16)
        scan.instrument.detector.image_key_control = keys
        scan.instrument.detector.x_pixel_size = scan.instrument.detector.y_pixel_size = pixel * units.meter
        scan.instrument.detector.distance = distance * units.meter
        if source is not None:
            scan.instrument.source.distance = -source * units.meter
        scan.sample.rotation_angle = np.concatenate([[0, 0], np.arange(12) * 15.0, [180, 180, 90]]) * units.degree
        scan.control.data = np.linspace(200.0, 190.0, keys.size) * units.mA
        scan.save(str(path), data_path="/entry0000")
        return path

    return make


def test_alignment_images_of_the_esrf_are_left_out(esrf: Maker) -> None:
    scan = _read(esrf(source=145.0))
    assert scan.shape == (12, 3, 16)
    assert scan.projections[0, 0, 0] == 100 + 2 * 48
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 15.0)
    assert any("2 frames are alignment images" in warning for warning in scan.warnings)
    assert scan.flats is not None
    assert scan.flats.shape[0] == 2
    assert scan.monitor is not None
    assert scan.monitor[0] == pytest.approx((200 - 2 * 0.625) / (200 - 7.5 * 0.625), rel=1e-3)
    # a source so far away makes a parallel beam
    assert isinstance(scan.geometry, ParallelBeam)
    assert scan.geometry.pixel_mm == pytest.approx(6.5e-3)


def test_a_source_nearby_makes_a_cone(esrf: Maker) -> None:
    scan = _read(esrf(source=0.2, distance=0.3, pixel=1e-3))
    assert isinstance(scan.geometry, ConeBeam)
    assert scan.geometry.source_axis_mm == pytest.approx(200.0)
    assert scan.geometry.source_detector_mm == pytest.approx(500.0)
    assert scan.geometry.pixel_mm == pytest.approx(1.0)


def test_a_detector_on_its_side_is_told(nxtomo: Maker, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(100, 900, (18, 3, 16)).astype(np.uint16)
    upright = _read(nxtomo(data=data).rename(tmp_path / "upright.nxs"))
    side = read(nxtomo(data=data.swapaxes(1, 2)), Known(transposed=True))
    assert isinstance(side, CtAcquisition)
    for one, other in (
        (side.projections, upright.projections),
        (side.flats, upright.flats),
        (side.darks, upright.darks),
    ):
        assert one is not None
        assert other is not None
        assert np.array_equal(one[:], other[:])
