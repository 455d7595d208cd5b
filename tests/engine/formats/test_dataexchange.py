"""Data Exchange files: order of values, units of angles, missing parts."""

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
from equipoise_engine.recipe import AngleRange, Known, Role

Maker = Callable[..., Path]


def _read(path: Path) -> CtAcquisition:
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    return scan


def test_values_come_as_view_row_column(dataexchange: Maker) -> None:
    scan = _read(dataexchange())
    assert scan.shape == (12, 3, 16)
    assert scan.projections[7, 2, 5] == 1000 + 700 + 40 + 5
    assert scan.projections[:, 1, :].shape == (12, 16)
    assert scan.projections[2:4, ..., 3].shape == (2, 3)


def test_a_single_flat_frame_gets_its_axis(dataexchange: Maker) -> None:
    flat = np.arange(48, dtype=np.float32).reshape(3, 16) + 1
    scan = _read(dataexchange(data_white=flat))
    assert scan.flats is not None
    assert scan.flats.shape == (1, 3, 16)
    assert np.array_equal(scan.flats[0, 1:2, :], flat[1:2])
    assert np.array_equal(scan.flats[:], flat[None])


@pytest.mark.parametrize(
    ("units", "theta"),
    [("degrees", np.arange(12) * 15.0), ("rad", np.arange(12) * np.pi / 12), (None, np.arange(12) * 15.0)],
)
def test_angles_become_radians(dataexchange: Maker, units: str | None, theta: np.ndarray) -> None:
    scan = _read(dataexchange(units=units, theta=theta))
    assert scan.geometry.angle_rad == pytest.approx(np.arange(12) * np.pi / 12)


def test_angles_without_units_over_pi_are_radians_with_a_warning(dataexchange: Maker) -> None:
    theta = np.arange(40) * np.pi / 40
    scan = _read(dataexchange(units=None, theta=theta, data=np.ones((40, 3, 16), np.uint16)))
    assert scan.geometry.angle_rad == pytest.approx(theta)
    assert any("radians were taken" in warning for warning in scan.warnings)


@pytest.mark.parametrize("reach", [180.0, 360.0])
def test_missing_angles_are_found_in_the_views_with_a_warning(dataexchange: Maker, reach: float) -> None:
    angle = np.deg2rad(np.arange(40) * reach / 40)[:, None, None]
    across = np.arange(24)[None, None, :] - 12.0 - 5 * np.cos(angle) - 2 * np.sin(angle)
    counts = 1000 * np.exp(-0.1 * np.sqrt(np.maximum(25 - across**2, 0))) * np.ones((1, 3, 1))
    flat = np.full((2, 3, 24), 1000.0)
    scan = _read(dataexchange(theta=None, data=counts, data_white=flat, data_dark=flat * 0))
    assert np.ptp(scan.geometry.angle_rad) == pytest.approx(np.deg2rad(reach), rel=1 / 39)
    assert scan.guessed == ("angles",)
    assert any(f"0 to {reach:g} degrees" in warning for warning in scan.warnings)


def test_views_and_angles_must_agree(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match=r"12 projections but 11 angles in exchange/theta; no angle for index 11"):
        read(dataexchange(theta=np.arange(11) * 15.0))


def test_an_angle_that_is_not_finite_is_named(dataexchange: Maker) -> None:
    theta = np.arange(12) * 15.0
    theta[[4, 9]] = np.nan
    with pytest.raises(BadInput, match=r"exchange/theta: 2 of 12 angles are not finite; the first is index 4"):
        read(dataexchange(theta=theta))


def test_equal_angles_are_refused(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match="a span of zero"):
        read(dataexchange(theta=np.full(12, 3.0)))


def test_unknown_units_are_refused(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match="unknown units 'furlong'"):
        read(dataexchange(units="furlong"))


def test_a_short_arc_is_warned_about(dataexchange: Maker) -> None:
    scan = _read(dataexchange(theta=np.arange(12) * 5.0))
    assert any("55.0 degrees only" in warning for warning in scan.warnings)


def test_frames_of_another_size_are_refused(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match=r"data_white has frames of \(3, 15\) pixels, the projections \(3, 16\)"):
        read(dataexchange(data_white=np.ones((2, 3, 15))))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.ones((12, 16)), "2 axes|shape"),
        (np.ones((12, 0, 16)), "is empty"),
        (np.ones((12, 3, 16), np.complex64), "complex64"),
    ],
)
def test_projections_of_a_wrong_form_are_refused(dataexchange: Maker, data: np.ndarray, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(dataexchange(data=data))


def test_a_dataset_that_was_never_written_is_refused(dataexchange: Maker) -> None:
    path = dataexchange(data=None)
    with h5py.File(path, "r+") as file:
        file["exchange"].create_dataset("data", (12, 3, 16), np.uint16, chunks=(1, 3, 16))
    with pytest.raises(BadInput, match="was never written"):
        read(path)


def test_missing_darks_are_warned_about(dataexchange: Maker) -> None:
    scan = _read(dataexchange(data_dark=None))
    assert scan.state is DataState.COUNTS
    assert scan.darks is None
    assert any("no dark frames" in warning for warning in scan.warnings)


def _blob(border: float, middle: float) -> np.ndarray:
    data = np.full((12, 3, 40), border, np.float32)
    data[:, :, 12:28] = middle
    return data


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (_blob(1000, 300).astype(np.uint16), DataState.COUNTS),
        (_blob(1000.0, 300.0), DataState.COUNTS),
        (_blob(1.0, 0.2), DataState.TRANSMISSION),
        (_blob(0.0, 1.4), DataState.ATTENUATION),
        (_blob(-0.05, 0.9), DataState.ATTENUATION),
    ],
)
def test_the_state_without_flats_is_decided_by_content(dataexchange: Maker, data: np.ndarray, state: DataState) -> None:
    scan = _read(dataexchange(data=data, data_white=None, data_dark=None))
    assert scan.state is state
    assert any("no open-beam frames" in warning for warning in scan.warnings)


def _known(*roles: tuple[str, str], **changes: Any) -> Known:
    return Known(roles=tuple(Role(role=role, source=source) for role, source in roles), **changes)


def test_sinogram_order_is_said_by_the_axes(dataexchange: Maker) -> None:
    usual = np.asarray(_read(dataexchange()).projections[:])
    path = dataexchange(data=np.ascontiguousarray(usual.swapaxes(0, 1)))
    with h5py.File(path, "r+") as file:
        file["exchange/data"].attrs["axes"] = "y:theta:x"
    scan = _read(path)
    assert scan.shape == (12, 3, 16)
    for key in (np.s_[:], np.s_[4], np.s_[:, 1, :], np.s_[[7, 2], :, ::2], np.s_[3:9:2, 0:2]):
        assert np.array_equal(scan.projections[key], usual[key])


def test_numbered_data_are_taken_and_the_others_named(dataexchange: Maker) -> None:
    path = dataexchange(data=None, data1=np.full((12, 3, 16), 4, np.uint16), data2=np.full((12, 3, 16), 5, np.uint16))
    scan = _read(path)
    assert scan.projections[0, 0, 0] == 4
    assert any("also holds data2; data1 was taken" in warning for warning in scan.warnings)
    scan = read(path, _known(("projections", "/exchange/data2")))
    assert isinstance(scan, CtAcquisition)
    assert scan.projections[0, 0, 0] == 5


def test_repeated_angles_at_the_ends_belong_to_other_frames(dataexchange: Maker) -> None:
    theta = np.concatenate([np.zeros(4), np.arange(12) * 15.0, np.full(3, 165.0)])
    scan = _read(dataexchange(theta=theta))
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 15.0)
    assert any("4 repeats of the first and 3 of the last" in match.reason for match in scan.matched)


@pytest.mark.parametrize(
    ("pixel", "millimetres"), [((1.2e-6, None), 1.2e-3), ((1.2, "um"), 1.2e-3), ((0.5, "mm"), 0.5), ((3.4, None), None)]
)
def test_pixels_are_metres_unless_they_say_otherwise(
    dataexchange: Maker, pixel: tuple[float, str | None], millimetres: float | None
) -> None:
    path = dataexchange()
    with h5py.File(path, "r+") as file:
        made = file.create_dataset("measurement/instrument/detector/actual_pixel_size_x", data=pixel[0])
        if pixel[1] is not None:
            made.attrs["units"] = pixel[1]
    scan = _read(path)
    assert scan.geometry.calibrated == (millimetres is not None)
    if millimetres is not None:
        assert scan.geometry.pixel_mm == pytest.approx(millimetres)
    else:
        assert any("it was not used" in warning for warning in scan.warnings)


def test_the_user_names_other_parts(dataexchange: Maker) -> None:
    path = dataexchange(theta=np.full(12, np.nan), steps=np.arange(12) * 7.5)
    with pytest.raises(BadInput, match="not finite"):
        read(path)
    scan = read(path, _known(("angles", "exchange/steps"), ("flats", "exchange/data#0:2"), ("darks", "")))
    assert isinstance(scan, CtAcquisition)
    assert scan.shape[0] == 10
    assert scan.darks is None
    assert scan.flats is not None
    assert scan.flats.shape == (2, 3, 16)
    # the angles were one for each frame
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(2, 12) * 7.5)
    scan = read(path, Known(angles=AngleRange(start_deg=0.0, stop_deg=90.0)))
    assert isinstance(scan, CtAcquisition)
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(12) * 7.5)
    with pytest.raises(Incomplete, match="said to have no angles"):
        read(path, _known(("angles", "")))


def test_the_user_says_that_images_are_sinograms(dataexchange: Maker) -> None:
    usual = np.asarray(_read(dataexchange()).projections[:])
    path = dataexchange(data=np.ascontiguousarray(usual.swapaxes(0, 1)))
    with pytest.raises(BadInput, match="12, 16"):
        read(path)
    scan = read(path, Known(layout="sinograms"))
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[:], usual)
    scan = read(path, _known(("projections", "exchange/data#2:10"), layout="sinograms"))
    assert isinstance(scan, CtAcquisition)
    assert np.array_equal(scan.projections[:], usual[2:10])


def test_projections_elsewhere_replace_missing_ones(dataexchange: Maker) -> None:
    path = dataexchange(data=None, corrected=np.full((12, 3, 16), 9, np.uint16))
    with h5py.File(path, "r+") as file:
        file["exchange/data"] = h5py.ExternalLink("gone.h5", "/data")
    with pytest.raises(BadInput, match=r"gone\.h5, which is missing"):
        read(path)
    scan = read(path, _known(("projections", "/exchange/corrected")))
    assert isinstance(scan, CtAcquisition)
    assert scan.projections[0, 0, 0] == 9


def test_a_detector_on_its_side_is_told(dataexchange: Maker, tmp_path: Path) -> None:
    upright = _read(dataexchange().rename(tmp_path / "upright.h5"))
    data, white = upright.projections[:], upright.flats
    assert white is not None
    flats = white[:]
    turned = dataexchange(data=data.swapaxes(1, 2), data_white=flats.swapaxes(1, 2), data_dark=None)
    side = read(turned.rename(tmp_path / "side.h5"), Known(transposed=True))
    assert isinstance(side, CtAcquisition)
    assert side.flats is not None
    assert np.array_equal(side.projections[:], data)
    assert np.array_equal(side.projections[[1, 4], 2, 3:], data[[1, 4], 2, 3:])
    assert np.array_equal(side.flats[:], flats)
    # images of a detector row whose columns are the views, beside frames of the detector
    known = Known(transposed=True, layout="sinograms")
    rows = read(dataexchange(data=data.transpose(1, 2, 0), data_white=flats, data_dark=None), known)
    assert isinstance(rows, CtAcquisition)
    assert rows.flats is not None
    assert np.array_equal(rows.projections[2:5], data[2:5])
    assert np.array_equal(rows.flats[:], flats)
