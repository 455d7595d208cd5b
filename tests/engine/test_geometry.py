"""Beams as vectors: the lines that the documentation promises, and what moving the scanner does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, FanBeam, NonCartesian, ParallelBeam, VectorGeometry

ANGLES = np.array([0.0, 0.7, 2.1, 4.4])


def fan(angle_rad: np.ndarray = ANGLES, **changed: object) -> FanBeam:
    settings: dict[str, object] = {
        "angle_rad": angle_rad,
        "source_axis_mm": 100.0,
        "source_detector_mm": 150.0,
        "pixel_mm": 0.4,
        "centre_px": 9,
    }
    return FanBeam(**(settings | changed))  # type: ignore[arg-type]


def cone(**changed: object) -> ConeBeam:
    settings: dict[str, object] = {
        "source_axis_mm": 100.0,
        "source_detector_mm": 150.0,
        "pixel_mm": 0.4,
        "row_mm": 0.5,
        "middle_px": 6.0,
        "centre_px": 9.0,
    }
    return ConeBeam(ANGLES, **(settings | changed))  # type: ignore[arg-type]


def distance(point: np.ndarray, on_ray: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distance of a point from lines `(..., 3)`."""
    return np.asarray(np.linalg.norm(np.cross(point - on_ray, direction), axis=-1))


def rays(vectors: VectorGeometry, columns: int = 20, row: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    return vectors.rays(np.arange(columns, dtype=float), np.full(columns, row))


def test_a_parallel_ray_is_the_line_of_its_equation() -> None:
    geometry = ParallelBeam(ANGLES, 0.25, 7.3)
    points, directions = rays(geometry.vectors())
    signed = (np.arange(20) - 7.3) * 0.25
    for view, angle in enumerate(ANGLES):
        normal = np.array([math.cos(angle), math.sin(angle), 0.0])
        np.testing.assert_allclose(points[view] @ normal, signed, atol=1e-12)
        np.testing.assert_allclose(directions[view] @ normal, 0.0, atol=1e-12)


@pytest.mark.parametrize("detector", ["flat", "curved"])
def test_fan_rays_leave_the_source_and_hit_their_elements(detector: str) -> None:
    geometry = fan(detector=detector)
    points, directions = rays(geometry.vectors())
    for view, angle in enumerate(ANGLES):
        source = 100.0 * np.array([math.sin(angle), -math.cos(angle), 0.0])
        np.testing.assert_allclose(distance(source, points[view], directions[view]), 0.0, atol=1e-9)
        across = np.array([math.cos(angle), math.sin(angle), 0.0])
        sine = directions[view] @ across
        offset = (np.arange(20) - 9) * 0.4 / 150.0
        np.testing.assert_allclose(sine, np.sin(offset if detector == "curved" else np.arctan(offset)), atol=1e-12)


def test_a_fan_from_far_away_is_the_parallel_beam() -> None:
    far = 1e7
    one = fan(source_axis_mm=far, source_detector_mm=far + 1.0, pixel_mm=0.25, centre_px=7.3)
    other = ParallelBeam(ANGLES, 0.25, 7.3)
    points, directions = rays(one.vectors())
    expected, ahead = rays(other.vectors())
    np.testing.assert_allclose(directions, ahead, atol=1e-6)
    np.testing.assert_allclose(distance(expected, points, directions), 0.0, atol=1e-5)


def test_a_turned_detector_sees_a_point_where_the_geometry_says() -> None:
    yaw = 0.3
    points, directions = rays(fan(yaw_rad=yaw).vectors())
    angle = ANGLES[1]
    middle = 50.0 * np.array([-math.sin(angle), math.cos(angle), 0.0])
    element = middle + 5 * 0.4 * np.array([math.cos(angle + yaw), math.sin(angle + yaw), 0.0])
    assert distance(element, points[1, 14], directions[1, 14]) < 1e-9


def test_the_middle_row_of_a_cone_is_the_fan() -> None:
    points, directions = rays(cone().vectors(), row=6.0)
    expected, wanted = rays(fan().vectors())
    np.testing.assert_allclose(directions, wanted, atol=1e-12)
    np.testing.assert_allclose(points, expected, atol=1e-12)


def test_rows_of_a_cone_grow_with_z_and_tilts_keep_the_lengths() -> None:
    plain = cone().vectors()
    _, upper = rays(plain, row=8.0)
    assert (upper[..., 2] > 0).all()
    tilted = cone(roll_rad=0.1, pitch_rad=0.2, yaw_rad=-0.1).vectors()
    np.testing.assert_allclose(np.linalg.norm(tilted.column_step, axis=-1), 0.4)
    np.testing.assert_allclose(np.linalg.norm(tilted.row_step, axis=-1), 0.5)
    np.testing.assert_allclose(np.sum(tilted.row_step * tilted.column_step, axis=-1), 0.0, atol=1e-12)
    leaning = cone(pitch_rad=0.2).vectors()
    away = leaning.detector / np.linalg.norm(leaning.detector, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.sum(leaning.row_step * away, axis=-1), 0.5 * math.sin(0.2))


@pytest.mark.parametrize("geometry", [ParallelBeam(ANGLES, 0.25, 7.3), fan(), fan(detector="curved"), cone()])
def test_moving_the_scanner_moves_its_rays(geometry: ParallelBeam | FanBeam | ConeBeam) -> None:
    turn, shift = 0.4, np.array([1.0, -2.0, 0.5])
    cosine, sine = math.cos(turn), math.sin(turn)
    rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    points, directions = rays(geometry.vectors(), row=2.0)
    moved_points, moved_directions = rays(geometry.vectors().moved(rotation, shift), row=2.0)
    np.testing.assert_allclose(moved_directions, directions @ rotation.T, atol=1e-12)
    there = points @ rotation.T + shift
    np.testing.assert_allclose(distance(there, moved_points, moved_directions), 0.0, atol=1e-9)


def test_turning_the_scanner_is_adding_to_its_angles() -> None:
    turn = 0.4
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1.0]])
    one, other = fan().vectors().moved(rotation, np.zeros(3)), fan(ANGLES + turn).vectors()
    np.testing.assert_allclose(one.source, other.source, atol=1e-12)
    np.testing.assert_allclose(one.column_step, other.column_step, atol=1e-12)


def test_views_can_be_left_out() -> None:
    kept = np.array([True, False, True, False])
    some = fan().vectors().select(kept)
    assert some.views == 2
    np.testing.assert_array_equal(some.detector, fan().vectors().detector[kept])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source_axis_mm": 160.0}, "160 mm does not lie between the source and the detector at 150 mm"),
        ({"source_axis_mm": 0.0}, "axis at 0 mm"),
        ({"source_detector_mm": math.inf}, "detector at inf mm"),
        ({"pixel_mm": 0.0}, "element of 0 mm"),
        ({"pixel_mm": math.nan}, "element of nan mm"),
        ({"yaw_rad": 1.5}, "yaw of 85.94 degrees"),
        ({"yaw_rad": 0.1, "detector": "curved"}, "curved detector"),
        ({"angle_rad": np.array([0.0, math.nan])}, "angle of view 1 is not finite"),
        ({"angle_rad": np.zeros(0)}, "not one for each view"),
        ({"centre_px": math.inf}, "inf is no place"),
    ],
)
def test_impossible_lengths_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        fan(**changed)


def test_an_unknown_axis_is_told() -> None:
    with pytest.raises(BadInput, match="rotation centre is not known"):
        fan(centre_px=None).vectors()


@pytest.mark.parametrize(
    ("trajectory", "density", "said"),
    [
        (np.zeros((4, 2)), None, r"shape \(4, 2\)"),
        (np.full((1, 3, 2), np.nan), None, "not finite"),
        (np.full((1, 3, 2), 40.0), None, r"\|ky\| = 40, beyond 32"),
        (np.zeros((1, 3, 2)), np.ones((2, 3)), r"density of shape \(2, 3\)"),
    ],
)
def test_impossible_trajectories_are_refused(trajectory: np.ndarray, density: np.ndarray | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        NonCartesian(trajectory, (64, 64), (64.0, 64.0), density)


@pytest.mark.parametrize(
    "changed", [{"roll_rad": math.nan}, {"middle_px": math.nan}, {"pitch_rad": 1.5}, {"row_mm": 0.0}]
)
def test_impossible_cones_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        cone(**changed)


@pytest.mark.parametrize("pixel_mm", [0.0, -1.0, math.inf])
def test_a_parallel_beam_needs_a_length(pixel_mm: float) -> None:
    with pytest.raises(BadInput, match="not a length above zero"):
        ParallelBeam(ANGLES, pixel_mm)
