"""Filtered back-projection against discs whose line integrals are known, for every beam and choice of angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import (
    FBP_WINDOWS,
    Aims,
    _back_project_by_torch,
    angular_weights,
    back_project,
    covers_full_turn,
    filtered_back_projection,
    ramp_spectrum,
    ray_arcs,
    redundancy,
)
from equipoise_engine.geometry import FanBeam, ParallelBeam, SliceGeometry

COLUMNS, PIXEL = 120, 0.25
DISCS = ((4.0, 3.0, 2.0, 0.3), (-5.0, -3.0, 3.0, 0.2), (0.0, 0.0, 11.0, 0.1))
"""x, y, radius in mm and what each adds to the attenuation."""


def arc(first: float, last: float, views: int) -> np.ndarray:
    return np.radians(np.linspace(first, last, views, endpoint=False))


def sinogram(geometry: SliceGeometry, columns: int = COLUMNS) -> torch.Tensor:
    """Exact line integrals of the discs `(1, view, column)`."""
    points, directions = geometry.vectors().rays(np.arange(columns, dtype=float), np.zeros(columns))
    total = np.zeros(points.shape[:2])
    for x, y, radius, value in DISCS:
        away = np.array([x, y, 0.0]) - points
        distance = away[..., 0] * directions[..., 1] - away[..., 1] * directions[..., 0]
        total += value * 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return torch.from_numpy(total)[None]


def values(image: np.ndarray, pixel: float) -> dict[str, float]:
    """Means of an image `(y, x)` where the truth is known."""
    axis = (np.arange(image.shape[0]) - (image.shape[0] - 1) / 2) * pixel
    x, y = np.meshgrid(axis, -axis)

    def inside(x0: float, y0: float, radius: float) -> np.ndarray:
        return np.asarray((x - x0) ** 2 + (y - y0) ** 2 < radius**2)

    large = inside(0, 0, 10.3) & ~inside(4, 3, 3) & ~inside(-5, -3, 4)
    air = ~inside(0, 0, 12) & inside(0, 0, 12.5)
    return {
        "small": float(image[inside(4, 3, 1.3)].mean()),
        "other": float(image[inside(-5, -3, 2.3)].mean()),
        "large": float(image[large].mean()),
        "air": float(image[air].mean()),
        "unrest": float(image[large].std()),
    }


def fan(angle_rad: np.ndarray, centre: float = 59.5, **changed: object) -> FanBeam:
    return FanBeam(angle_rad, 60.0, 90.0, PIXEL * 1.5, centre, **changed)  # type: ignore[arg-type]


SCANS = {
    "parallel, half a turn": ParallelBeam(arc(0, 180, 240), PIXEL, 59.5),
    "parallel, off the middle": ParallelBeam(arc(20, 200, 240), PIXEL, 62.2),
    "parallel, a full turn": ParallelBeam(arc(0, 360, 480), PIXEL, 59.5),
    "parallel, a full turn, off the middle": ParallelBeam(arc(0, 360, 480), PIXEL, 65.3),
    "parallel, half-acquisition": ParallelBeam(arc(0, 360, 480), PIXEL, 20.3),
    "flat fan, a full turn": fan(arc(0, 360, 480)),
    "flat fan, off the middle": fan(arc(0, 360, 480), 62.7),
    "flat fan, a short scan": fan(arc(10, 235, 300)),
    "flat fan, two arcs": fan(np.concatenate([arc(10, 120, 150), arc(140, 350, 290)])),
    "flat fan, half-acquisition": fan(arc(0, 360, 480), 20.3),
    "flat fan, turned detector": fan(arc(0, 360, 480), yaw_rad=0.2),
    "curved fan, a full turn": fan(arc(0, 360, 480), detector="curved"),
    "curved fan, a short scan": fan(arc(10, 235, 300), detector="curved"),
    "curved fan, half-acquisition": fan(arc(0, 360, 480), 20.3, detector="curved"),
}


@pytest.mark.parametrize("name", SCANS)
def test_discs_come_out_at_their_places_with_their_values(name: str) -> None:
    geometry = SCANS[name]
    columns = 75 if "half-acquisition" in name else COLUMNS
    side = 110
    pixel = geometry.image_pixel_mm
    image = filtered_back_projection(sinogram(geometry, columns), geometry, (side, side), pixel)[0].numpy()
    found = values(image, pixel)
    assert found["small"] == pytest.approx(0.4, abs=0.002)
    assert found["other"] == pytest.approx(0.3, abs=0.002)
    assert found["large"] == pytest.approx(0.1, abs=0.001)
    assert found["air"] == pytest.approx(0.0, abs=0.004)
    assert found["unrest"] < 0.006


def test_a_short_scan_without_shares_would_be_wrong() -> None:
    geometry = fan(arc(10, 235, 300))
    offset = np.arange(COLUMNS) - 59.5
    angles = np.arctan(offset * geometry.pixel_mm / geometry.source_detector_mm)
    shares = redundancy(geometry.angle_rad, offset, angles)
    assert shares.min() < 0.1
    assert shares.max() > 0.99


@pytest.mark.parametrize("degrees", [360, 220])
def test_the_two_shares_of_a_line_make_one(degrees: int) -> None:
    angle = arc(0, degrees, 2 * degrees)
    fan_rad = np.radians(np.arange(-10.0, 10.5, 1.0))
    shares = redundancy(angle, fan_rad, fan_rad)
    checked = 0
    for view in range(0, angle.size, 7):
        for column in range(fan_rad.size):
            opposite = np.mod(angle[view] + np.pi - 2 * fan_rad[column], 2 * np.pi)
            nearest = int(np.abs(angle - opposite).argmin())
            if abs(angle[nearest] - opposite) < 1e-9:
                assert shares[view, column] + shares[nearest, -1 - column] == pytest.approx(1.0, abs=1e-6)
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("window", FBP_WINDOWS)
def test_every_window_keeps_the_mean(window: str) -> None:
    geometry = SCANS["parallel, half a turn"]
    image = filtered_back_projection(sinogram(geometry), geometry, (110, 110), PIXEL, window=window)[0].numpy()
    assert values(image, PIXEL)["large"] == pytest.approx(0.1, abs=0.002)


def test_windows_quieten_in_their_order() -> None:
    top = [ramp_spectrum(64, window)[-1] for window in FBP_WINDOWS]
    assert top == sorted(top, reverse=True)
    assert top[-1] == pytest.approx(0.0, abs=1e-12)


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown filter window 'blackman'"):
        ramp_spectrum(32, "blackman")


@pytest.mark.parametrize(("distance", "curved"), [(math.inf, False), (50.0, False), (50.0, True)])
@pytest.mark.parametrize("batch", [2, 11])
def test_torch_gathers_what_the_compiled_kernels_gather(distance: float, curved: bool, batch: int) -> None:
    rows = torch.rand((batch, 9, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    aims = Aims(arc(0, 360, 9), 18.2, 40.0 if curved else 0.8, distance, curved)
    compiled = back_project(rows, aims, (31, 33), 1.1)
    torch.testing.assert_close(_back_project_by_torch(rows, aims, (31, 33), 1.1), compiled, rtol=1e-12, atol=1e-12)
    alone = back_project(rows[1:2], aims, (31, 33), 1.1)
    assert torch.equal(alone[0], compiled[1])


def test_angular_weights_share_the_half_turn() -> None:
    even = np.linspace(0, np.pi, 12, endpoint=False)
    np.testing.assert_allclose(angular_weights(even), np.pi / 12)
    repeated = np.append(even, np.pi)
    weights = angular_weights(repeated)
    np.testing.assert_allclose(weights.sum(), np.pi)
    np.testing.assert_allclose(weights[0] + weights[-1], np.pi / 12)
    limited = np.linspace(0, np.pi / 2, 50)
    np.testing.assert_allclose(angular_weights(limited), np.pi / 98, rtol=1e-6)


@pytest.mark.parametrize("jitter", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize(
    ("degrees", "kind"),
    [
        (np.arange(361.0), "parallel"),
        (np.arange(401.0), "parallel"),
        (np.tile(np.arange(0.0, 180.0), 3), "parallel"),
        (np.repeat(np.arange(0.0, 360.0), 3), "parallel"),
        (np.arange(0.0, 1080.0), "fan"),
        (np.repeat(np.arange(0.0, 360.0), 3), "fan"),
        (np.arange(400.0, 0.0, -1.0), "fan"),
    ],
)
def test_directions_measured_more_than_once_do_not_change_the_scale(
    degrees: np.ndarray, kind: str, jitter: float
) -> None:
    angles = np.radians(degrees + jitter * np.random.default_rng(0).normal(size=degrees.size))
    geometry = ParallelBeam(angles, PIXEL, 59.5) if kind == "parallel" else fan(angles)
    image = filtered_back_projection(sinogram(geometry), geometry, (110, 110), geometry.image_pixel_mm)[0].numpy()
    assert values(image, geometry.image_pixel_mm)["large"] == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("kind", ["parallel", "fan", "half-acquisition"])
def test_random_and_lost_views_keep_the_scale(kind: str) -> None:
    generator = np.random.default_rng(1)
    turn = 180 if kind == "parallel" else 360
    for angles in (
        np.radians(generator.uniform(0, turn, 2 * turn)),
        np.radians(np.delete(np.arange(turn), range(70, 75))),
        np.radians(np.sort(generator.permutation(turn)[: int(0.6 * turn)])),
    ):
        geometry = fan(angles) if kind == "fan" else ParallelBeam(angles, PIXEL, 59.5 if kind == "parallel" else 20.3)
        columns = 75 if kind == "half-acquisition" else COLUMNS
        y = sinogram(geometry, columns)
        image = filtered_back_projection(y, geometry, (110, 110), geometry.image_pixel_mm)[0].numpy()
        assert values(image, geometry.image_pixel_mm)["large"] == pytest.approx(0.1, abs=0.008)


@pytest.mark.parametrize("degrees", [[0.0], [0.0, 90.0], [10.0, 130.0, 250.0]])
def test_few_views_stand_for_half_a_turn_in_all(degrees: list[float]) -> None:
    angles = np.radians(degrees)
    offset = np.arange(COLUMNS) - 59.5
    assert ray_arcs(angles, offset, np.arctan(offset / 1000)).sum(axis=0).mean() <= np.pi * 1.001
    assert angular_weights(angles).sum() <= np.pi * 1.001


def test_an_object_beyond_the_far_edge_of_an_offset_detector_goes_on() -> None:
    geometry = ParallelBeam(arc(0, 360, 360), PIXEL, 10.0)
    columns, radius = 50, 13.0
    points, rays = geometry.vectors().rays(np.arange(columns, dtype=float), np.zeros(columns))
    distance = points[..., 0] * rays[..., 1] - points[..., 1] * rays[..., 0]
    chords = torch.from_numpy(2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None)))[None]
    side = 131
    image = filtered_back_projection(chords, geometry, (side, side), PIXEL)[0].numpy()
    axis = (np.arange(side) - side // 2) * PIXEL
    away = np.hypot(axis[:, None], axis[None, :])
    # the detector ends 9.75 mm from the axis; beyond it one can but guess, and what lies inside shifts as a whole
    inside = image[away < 8.5]
    assert inside.mean() == pytest.approx(1.0, abs=0.2)
    assert inside.std() < 0.06


def test_a_full_turn_is_known() -> None:
    assert covers_full_turn(arc(0, 360, 90))
    assert covers_full_turn(np.append(arc(0, 360, 90), 2 * np.pi))
    assert not covers_full_turn(arc(0, 340, 340))
    assert not covers_full_turn(arc(0, 180, 90))
    assert not covers_full_turn(np.zeros(1))
    golden = np.arange(200) * math.radians(137.50776)
    assert covers_full_turn(golden)
