"""The rotation axis, found in measured scans and in ones whose axis is known exactly."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import FanBeam
from equipoise_engine.preprocess.centre import centre_of, fan_centre_of, find_centre

COLUMNS = 160


def _sinogram(
    centre: float, angle_rad: np.ndarray, *, large: float = 1.0, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Return line integrals `(1, view, column)` of discs, in pixels, about an axis at column `centre`."""
    random = np.random.default_rng(seed)
    position = np.arange(COLUMNS) - centre
    total = random.normal(0.0, noise, (angle_rad.size, COLUMNS)) if noise else np.zeros((angle_rad.size, COLUMNS))
    for x, y, radius, value in ((0, 0, 45, 0.02), (18, 9, 9, 0.05), (-20, 14, 6, -0.02), (4, -24, 4, 0.08)):
        middle = large * (x * np.cos(angle_rad) + y * np.sin(angle_rad))
        distance = position[None, :] - middle[:, None]
        total += 2 * value * np.sqrt(np.maximum((large * radius) ** 2 - distance**2, 0.0))
    return total[None].astype(np.float32)


@pytest.mark.parametrize("turn", [180.0, 360.0])
@pytest.mark.parametrize("centre", [66.3, 79.5, 92.75])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_known_axis_is_found_to_half_a_pixel(turn: float, centre: float, noise: float) -> None:
    angle = np.deg2rad(np.arange(180) * turn / 180)
    found = centre_of(_sinogram(centre, angle, noise=noise), angle)
    assert found.centre_px == pytest.approx(centre, abs=0.5)
    assert found.confidence > 0.5


def test_an_object_larger_than_the_detector_is_found() -> None:
    angle = np.deg2rad(np.arange(181))
    found = centre_of(_sinogram(86.4, angle, large=2.2), angle)
    assert found.centre_px == pytest.approx(86.4, abs=0.5)
    assert found.method == "opposite views"


def test_views_in_any_order_are_found() -> None:
    angle = np.deg2rad(np.random.default_rng(1).permutation(180) * 1.0 - 60.0)
    assert centre_of(_sinogram(71.0, angle), angle).centre_px == pytest.approx(71.0, abs=0.5)


def test_an_arc_without_opposite_views_uses_the_centre_of_mass() -> None:
    angle = np.deg2rad(np.arange(140))
    found = centre_of(_sinogram(74.2, angle), angle)
    assert found.method == "centre of mass"
    assert found.centre_px == pytest.approx(74.2, abs=0.5)


def test_a_short_arc_is_refused() -> None:
    angle = np.deg2rad(np.arange(60))
    with pytest.raises(BadInput, match=r"made\.h5: the rotation axis cannot be found: the views span 59 degrees"):
        centre_of(_sinogram(74.2, angle), angle, name="made.h5")


def test_noise_alone_is_said_to_be_unsure() -> None:
    angle = np.deg2rad(np.arange(180))
    noise = np.random.default_rng(4).normal(0.5, 0.1, (3, 180, COLUMNS)).astype(np.float32)
    found = centre_of(noise, angle)
    assert found.confidence < 0.5
    assert "low confidence" in found.text


def test_an_axis_near_the_edge_is_said_so() -> None:
    angle = np.deg2rad(np.arange(360))
    found = centre_of(_sinogram(28.0, angle), angle)
    assert found.centre_px == pytest.approx(28.0, abs=0.5)
    assert "near the edge" in found.text
    assert found.confidence < 0.5


def test_tooth(shared_data: Path) -> None:
    scan = read(shared_data / "ct-tooth-dxchange" / "tooth.h5")
    assert isinstance(scan, CtAcquisition)
    start = time.perf_counter()
    found = find_centre(scan)
    assert time.perf_counter() - start < 1.0
    assert found.centre_px == pytest.approx(296.0, abs=0.5)
    assert found.confidence > 0.8


def test_a_truncated_synchrotron_scan(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "i13_24737_nxtomo.nxs")
    assert isinstance(scan, CtAcquisition)
    found = find_centre(scan)
    assert found.centre_px == pytest.approx(85.5, abs=0.5)
    assert found.confidence > 0.8


def fan_sinogram(geometry: FanBeam, columns: int) -> np.ndarray:
    """Exact line integrals of three discs with a little noise, `(1, view, column)`."""
    points, directions = geometry.vectors().rays(np.arange(columns, dtype=float), np.zeros(columns))
    total = np.random.default_rng(0).normal(scale=0.02, size=points.shape[:2])
    for x, y, radius, value in ((4.0, 3.0, 2.0, 0.3), (-5.0, -3.0, 3.0, 0.2), (0.0, 0.0, 8.0, 0.1)):
        away = np.array([x, y, 0.0]) - points
        distance = away[..., 0] * directions[..., 1] - away[..., 1] * directions[..., 0]
        total += value * 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return total[None].astype(np.float32)


@pytest.mark.parametrize(
    ("centre", "degrees", "detector"),
    [(59.5, 360, "flat"), (50.3, 360, "curved"), (63.7, 240, "flat"), (33.2, 360, "flat")],
)
def test_the_axis_of_a_fan_is_found_from_lines_measured_twice(
    centre: float, degrees: int, detector: Literal["flat", "curved"]
) -> None:
    angles = np.radians(np.arange(10, 10 + degrees, 1.5))
    geometry = FanBeam(angles, 60.0, 90.0, 0.375, centre, detector=detector)
    found = fan_centre_of(fan_sinogram(geometry, 120), replace(geometry, centre_px=None))
    assert found.centre_px == pytest.approx(centre, abs=0.1)
    assert found.confidence > 0.5


def test_a_fan_that_sees_every_line_once_cannot_tell() -> None:
    geometry = FanBeam(np.radians(np.arange(0, 120, 1.5)), 60.0, 90.0, 0.375, 59.5)
    with pytest.raises(BadInput, match="measured from both of its ends"):
        fan_centre_of(fan_sinogram(geometry, 120), geometry)


def test_a_full_turn_without_opposite_views_is_compared_between_its_views(shared_data: Path) -> None:
    # 625 views of a full turn: half a turn later comes a place between two views
    scan = read(shared_data / "ct-wood-neutron-sino" / "woodsino_0200.tif")
    assert isinstance(scan, CtAcquisition)
    found = find_centre(scan)
    assert found.method == "lines measured twice"
    assert found.centre_px == pytest.approx(284.1, abs=0.5)


def test_three_turns_of_a_fan_are_three_times_the_same() -> None:
    angles = np.radians(np.tile(np.arange(0.0, 360.0, 1.5), 3))
    geometry = FanBeam(angles, 60.0, 90.0, 0.375, 57.2)
    assert fan_centre_of(fan_sinogram(geometry, 120), geometry).centre_px == pytest.approx(57.2, abs=0.1)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_an_axis_is_not_found_from_hardly_any_view(views: int) -> None:
    angles = np.radians(np.arange(views) * 180.0 / max(views - 1, 1) + 0.5 * np.arange(views))
    geometry = FanBeam(angles, 60.0, 90.0, 0.375, 57.2)
    with pytest.raises(BadInput, match="rotation axis cannot be found"):
        fan_centre_of(fan_sinogram(geometry, 120), geometry)
