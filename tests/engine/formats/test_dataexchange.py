"""Data Exchange files: order of values, units of angles, missing parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read

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


def test_missing_angles_are_spread_over_half_a_turn_with_a_warning(dataexchange: Maker) -> None:
    scan = _read(dataexchange(theta=None))
    assert scan.geometry.angle_rad == pytest.approx(np.arange(12) * np.pi / 12)
    assert any("12 even steps" in warning for warning in scan.warnings)


def test_views_and_angles_must_agree(dataexchange: Maker) -> None:
    with pytest.raises(BadInput, match=r"12 projections but 11 angles; no angle for index 11"):
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
