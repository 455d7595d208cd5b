"""The rotation axis, found in measured scans and in ones whose axis is known exactly."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import ConeBeam, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.preprocess.centre import CentreEstimate, Vote, estimates, find_centre, tilt_of
from equipoise_engine.progress import Cancelled, Progress, unwatched
from equipoise_engine.recipe import Known

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from algotom.prep.calculation import find_center_vo

COLUMNS = 160


def sinogram(
    centre: float,
    angle_rad: np.ndarray,
    *,
    columns: int = COLUMNS,
    large: float = 0.28,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Return line integrals `(1, view, column)` of discs about an axis at column `centre`.

    `large` is the radius of the object in widths of the detector; its longest line integral is 1.
    """
    random = np.random.default_rng(seed)
    position, radius = np.arange(columns) - centre, large * columns
    total = random.normal(0.0, noise, (angle_rad.size, columns)) if noise else np.zeros((angle_rad.size, columns))
    for x, y, size, value in (
        (0.0, 0.0, 1.0, 0.5),
        (0.4, 0.2, 0.2, 1.2),
        (-0.45, 0.3, 0.13, -0.5),
        (0.1, -0.55, 0.09, 2.0),
        (-0.3, -0.3, 0.05, 1.5),
    ):
        middle = radius * (x * np.cos(angle_rad) + y * np.sin(angle_rad))
        distance = position[None, :] - middle[:, None]
        total += 2 * value / radius * np.sqrt(np.maximum((radius * size) ** 2 - distance**2, 0.0))
    return total[None].astype(np.float32)


def scan_of(sinograms: np.ndarray, geometry: CtGeometry | np.ndarray) -> CtAcquisition:
    """Return a scan with the sinograms `(slice, view, column)`."""
    return CtAcquisition(
        path=Path("made.h5"),
        format="made",
        state=DataState.ATTENUATION,
        projections=np.ascontiguousarray(sinograms.transpose(1, 0, 2)),
        geometry=ParallelBeam(geometry) if isinstance(geometry, np.ndarray) else geometry,
    )


def by(found: Vote, method: str) -> CentreEstimate:
    """Return what one method says."""
    return next(one for one in found.estimates if one.method == method)


def is_right_or_unsure(found: Vote, centre: float) -> bool:
    return abs(found.centre_px - centre) < 0.5 or (found.confidence < 0.5 and "low confidence" in found.text)


@pytest.mark.parametrize("turn", [180.0, 360.0])
@pytest.mark.parametrize("centre", [66.3, 79.5, 92.75])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_known_axis_is_found_to_half_a_pixel(turn: float, centre: float, noise: float) -> None:
    angle = np.deg2rad(np.arange(180) * turn / 180)
    found = find_centre(scan_of(sinogram(centre, angle, noise=noise), angle))
    assert found.centre_px == pytest.approx(centre, abs=0.5)
    assert found.confidence > 0.5
    assert not found.at_edge


@pytest.mark.parametrize(("columns", "views"), [(64, 90), (160, 181), (512, 120), (1024, 120), (2048, 90)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_detectors_of_any_width(columns: int, views: int, noise: float) -> None:
    angle, centre = np.deg2rad(np.arange(views) * 180 / views), 0.41 * columns + 0.3
    found = find_centre(scan_of(sinogram(centre, angle, columns=columns, noise=noise), angle))
    assert is_right_or_unsure(found, centre), found.text
    if noise == 0:
        assert found.confidence > 0.5


@pytest.mark.parametrize("large", [0.28, 0.8])
def test_intensities_that_were_taken_for_attenuation_do_not_mislead(large: float) -> None:
    angle = np.deg2rad(np.arange(180))
    values = np.exp(-2.0 * sinogram(70.3, angle, large=large))
    assert is_right_or_unsure(find_centre(scan_of(values, angle)), 70.3)
    every = estimates(scan_of(values, angle), None, unwatched)
    assert every.centre_px == pytest.approx(70.3, abs=0.5)


@pytest.mark.parametrize(
    "degrees", [np.linspace(0, 180, 181), np.arange(180.0), np.arange(179.0), np.arange(0, 360, 0.8)]
)
def test_with_and_without_the_end(degrees: np.ndarray) -> None:
    angle = np.deg2rad(degrees)
    every = estimates(scan_of(sinogram(71.7, angle, noise=0.01), angle), None, unwatched)
    assert every.centre_px == pytest.approx(71.7, abs=0.3)
    assert every.confidence > 0.8
    assert {one.method for one in every.estimates} >= {"opposite views", "double wedge", "sharpness", "centre of mass"}


@pytest.mark.parametrize("share", [0.06, 0.11, 0.2, 0.86])
@pytest.mark.parametrize("large", [0.75, 1.3])
def test_a_turn_about_an_axis_off_the_middle(share: float, large: float) -> None:
    angle, centre = np.deg2rad(np.arange(0, 360, 1.5)), share * 240 + 0.4
    found = find_centre(scan_of(sinogram(centre, angle, columns=240, large=large, noise=0.01), angle))
    assert is_right_or_unsure(found, centre), found.text
    assert found.centre_px == pytest.approx(centre, abs=1.0)


def test_an_axis_near_the_edge_is_said_so() -> None:
    angle = np.deg2rad(np.arange(360))
    found = find_centre(scan_of(sinogram(28.0, angle), angle))
    assert found.centre_px == pytest.approx(28.0, abs=0.5)
    assert "near the edge of the detector of 160 columns" in found.text


def test_an_object_larger_than_the_detector_is_found() -> None:
    angle = np.deg2rad(np.arange(181))
    every = estimates(scan_of(sinogram(86.4, angle, large=0.7), angle), None, unwatched)
    assert every.centre_px == pytest.approx(86.4, abs=0.5)
    assert by(every, "opposite views").centre_px == pytest.approx(86.4, abs=0.5)
    assert by(every, "double wedge").centre_px == pytest.approx(86.4, abs=0.5)
    assert "centre of mass" not in {one.method for one in every.estimates}


def test_views_in_any_order_are_found() -> None:
    for angle in (
        np.deg2rad(np.random.default_rng(1).permutation(180) * 1.0 - 60.0),
        np.arange(200) * np.pi * (np.sqrt(5) - 1) / 2,
    ):
        every = estimates(scan_of(sinogram(71.0, angle), angle), None, unwatched)
        assert every.centre_px == pytest.approx(71.0, abs=0.3)
        assert every.confidence > 0.8


def test_an_arc_without_opposite_views_uses_the_centre_of_mass() -> None:
    angle = np.deg2rad(np.arange(140))
    found = find_centre(scan_of(sinogram(74.2, angle), angle))
    assert [one.method for one in found.estimates] == ["centre of mass"]
    assert found.centre_px == pytest.approx(74.2, abs=0.5)


@pytest.mark.parametrize("large", [0.28, 1.2])
def test_a_short_arc_is_refused(large: float) -> None:
    angle = np.deg2rad(np.arange(-30, 30))
    scan = scan_of(sinogram(74.2, angle, large=large), angle)
    for find in (find_centre, lambda one: estimates(one, None, unwatched)):
        with pytest.raises(BadInput, match=r"made\.h5: the rotation axis cannot be found: the views span 59 degrees"):
            find(scan)


def test_noise_alone_is_said_to_be_unsure() -> None:
    angle = np.deg2rad(np.arange(180))
    noise = np.random.default_rng(4).normal(0.5, 0.1, (3, 180, COLUMNS)).astype(np.float32)
    for found in (find_centre(scan_of(noise, angle)), estimates(scan_of(noise, angle), None, unwatched)):
        assert found.confidence < 0.5
        assert "low confidence" in found.text


def test_an_empty_scan_is_said_to_be_unsure() -> None:
    angle = np.deg2rad(np.arange(180))
    found = estimates(scan_of(np.zeros((2, 180, COLUMNS), dtype=np.float32), angle), None, unwatched)
    assert found.confidence < 0.5


def test_curves_have_their_lowest_point_at_the_axis() -> None:
    angle = np.deg2rad(np.arange(0, 360, 1.5))
    found = estimates(scan_of(sinogram(73.3, angle), angle), None, unwatched)
    assert len(found.estimates) == 5
    for one in found.estimates:
        positions, metric = np.array(one.positions_px), np.array(one.metric)
        assert positions.size == metric.size > 20
        assert (np.diff(positions) > 0).all()
        assert np.isfinite(metric).all()
        assert positions[np.argmin(metric)] == pytest.approx(73.3, abs=1.0), one.method
        assert one.centre_px == pytest.approx(73.3, abs=0.3), one.method


def test_an_axis_beyond_the_range_is_said_to_be_at_its_edge() -> None:
    angle = np.deg2rad(np.arange(181))
    scan = scan_of(sinogram(60.0, angle), angle)
    found = estimates(scan, (70.0, 100.0), unwatched)
    assert found.confidence < 0.5
    assert by(found, "centre of mass").at_edge
    assert by(found, "centre of mass").centre_px == 70.0
    inside = estimates(scan, (55.0, 70.0), unwatched)
    assert inside.centre_px == pytest.approx(60.0, abs=0.3)
    for one in inside.estimates:
        assert one.positions_px[0] >= 55.0
        assert one.positions_px[-1] <= 70.0


@pytest.mark.parametrize("between", [(-1.0, 50.0), (80.0, 80.5), (100.0, 160.0), (90.0, 60.0), (float("nan"), 80.0)])
def test_a_range_that_cannot_be_looked_at_is_refused(between: tuple[float, float]) -> None:
    angle = np.deg2rad(np.arange(181))
    with pytest.raises(BadInput, match=r"must lie in 0 to 159 and be 2 wide"):
        estimates(scan_of(sinogram(60.0, angle), angle), between, unwatched)


def test_looking_for_the_axis_can_be_stopped() -> None:
    angle = np.deg2rad(np.arange(181))

    def stop(progress: Progress) -> None:
        if progress.total > 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        estimates(scan_of(sinogram(60.0, angle), angle), None, stop)


@pytest.mark.parametrize("centre", [71.25, 84.5])
def test_the_double_wedge_is_where_another_program_finds_it(centre: float) -> None:
    angle = np.deg2rad(np.arange(181))
    values = sinogram(centre, angle, noise=0.005)
    other = float(find_center_vo(values[0], start=60, stop=100, ncore=1))
    own = by(estimates(scan_of(values, angle), None, unwatched), "double wedge").centre_px
    assert own == pytest.approx(other, abs=0.5)
    assert own == pytest.approx(centre, abs=0.25)


def test_tooth(shared_data: Path) -> None:
    scan = read(shared_data / "ct-tooth-dxchange" / "tooth.h5", Known())
    assert isinstance(scan, CtAcquisition)
    start = time.perf_counter()
    found = find_centre(scan)
    assert time.perf_counter() - start < 1.0
    assert found.centre_px == pytest.approx(296.0, abs=0.5)
    assert found.confidence > 0.8


def test_all_methods_agree_on_a_truncated_synchrotron_scan(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "i13_24737_nxtomo.nxs", Known())
    assert isinstance(scan, CtAcquisition)
    assert find_centre(scan).centre_px == pytest.approx(85.5, abs=0.5)
    found = estimates(scan, None, unwatched)
    assert {one.method for one in found.estimates} == {"opposite views", "double wedge", "sharpness"}
    for one in found.estimates:
        assert one.centre_px == pytest.approx(85.5, abs=0.5)
    assert found.confidence > 0.9


def test_a_full_turn_without_opposite_views_is_compared_between_its_views(shared_data: Path) -> None:
    # 625 views of a full turn: half a turn later comes a place between two views
    scan = read(shared_data / "ct-wood-neutron-sino" / "woodsino_0200.tif", Known())
    assert isinstance(scan, CtAcquisition)
    found = find_centre(scan)
    assert by(found, "lines measured twice").centre_px == pytest.approx(284.1, abs=0.5)
    assert found.centre_px == pytest.approx(284.1, abs=0.5)
    assert found.confidence > 0.8


def test_a_measured_fan(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "htc2022_tb_merged.mat", Known())
    assert isinstance(scan, CtAcquisition)
    found = find_centre(scan)
    assert found.centre_px == pytest.approx(279.5, abs=0.5)
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
    scan = scan_of(fan_sinogram(geometry, 120), replace(geometry, centre_px=None))
    found = find_centre(scan)
    assert found.centre_px == pytest.approx(centre, abs=0.15)
    assert found.confidence > 0.5


def test_the_axis_of_a_cone_is_that_of_its_middle_fan() -> None:
    angles = np.radians(np.arange(0, 360, 2.0))
    fan = FanBeam(angles, 60.0, 90.0, 0.375, 57.2)
    rows = np.concatenate([np.zeros((2, 180, 120)), fan_sinogram(fan, 120), np.zeros((3, 180, 120))]).astype(np.float32)
    cone = ConeBeam(angles, 60.0, 90.0, 0.375, 0.375, 2.2)
    every = estimates(scan_of(rows, cone), None, unwatched)
    assert {one.method for one in every.estimates} == {"lines measured twice", "sharpness"}
    assert every.centre_px == pytest.approx(57.2, abs=0.15)


def test_a_fan_that_sees_every_line_once_cannot_tell() -> None:
    geometry = FanBeam(np.radians(np.arange(0, 120, 1.5)), 60.0, 90.0, 0.375, 59.5)
    with pytest.raises(BadInput, match="measured from both of its ends"):
        find_centre(scan_of(fan_sinogram(geometry, 120), geometry))


def test_three_turns_of_a_fan_are_three_times_the_same() -> None:
    angles = np.radians(np.tile(np.arange(0.0, 360.0, 1.5), 3))
    geometry = FanBeam(angles, 60.0, 90.0, 0.375, 57.2)
    assert find_centre(scan_of(fan_sinogram(geometry, 120), geometry)).centre_px == pytest.approx(57.2, abs=0.1)


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("beam", ["fan", "parallel"])
def test_an_axis_is_not_found_from_hardly_any_view(views: int, beam: str) -> None:
    angles = np.radians(np.arange(views) * 170.0 / max(views - 1, 1))
    geometry = FanBeam(angles, 60.0, 90.0, 0.375, 57.2)
    scan = scan_of(fan_sinogram(geometry, 120), geometry if beam == "fan" else angles)
    with pytest.raises(BadInput, match="rotation axis cannot be found"):
        estimates(scan, None, unwatched)


def leaning(angle_deg: float, rows: int = 48) -> CtAcquisition:
    """Return a scan of discs, of another size in each row, about an axis that leans to higher columns on top."""
    angle = np.deg2rad(np.arange(0, 181, 3.0))
    upright = np.concatenate([sinogram(79.5, angle, large=0.22 + 0.002 * row) for row in range(rows)])
    row, column = np.meshgrid(np.arange(rows) - (rows - 1) / 2, np.arange(COLUMNS) - 79.5, indexing="ij")
    turn = np.deg2rad(angle_deg)
    place = np.stack(
        [
            row * np.cos(turn) - column * np.sin(turn) + (rows - 1) / 2,
            row * np.sin(turn) + column * np.cos(turn) + 79.5,
        ]
    )
    frames = [map_coordinates(upright[:, view], place, order=1, mode="nearest") for view in range(angle.size)]
    return scan_of(np.stack(frames, axis=1), angle)


@pytest.mark.parametrize("angle_deg", [-1.5, 0.0, 0.7])
def test_a_leaning_axis_is_found(angle_deg: float) -> None:
    found, error = tilt_of(leaning(angle_deg))
    assert found == pytest.approx(angle_deg, abs=max(0.15, 3 * error))
    assert error < 0.2


def test_a_tilt_needs_rows() -> None:
    angle = np.deg2rad(np.arange(0, 181, 3.0))
    with pytest.raises(BadInput, match="1 detector rows do not tell a tilt; 8 are the fewest"):
        tilt_of(scan_of(sinogram(79.5, angle), angle))
    with pytest.raises(BadInput, match="parallel beams only"):
        tilt_of(scan_of(np.zeros((9, 61, 20)), FanBeam(angle, 60.0, 90.0, 0.375)))
    with pytest.raises(BadInput, match="the axis is found in 0 of 10 parts"):
        tilt_of(scan_of(np.zeros((40, 61, 32), dtype=np.float32), angle))


@pytest.mark.parametrize("degrees", [180, 360])
def test_a_dead_column_is_not_taken_for_the_axis(degrees: int) -> None:
    angle = np.deg2rad(np.arange(120) * degrees / 120)
    values = sinogram(47.5, angle, columns=96, noise=0.01)
    values[:, :, 33] = 0.7
    values[:, :, 60:62] = 0.2
    found = find_centre(scan_of(values, angle))
    assert found.centre_px == pytest.approx(47.5, abs=0.5), found.text
    assert found.confidence > 0.5
