"""Cone-beam physics: the battery of an operator, and reconstructions of balls whose chords are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from equipoise_engine.cone import ConeBeamPhysics, feldkamp, natural_shape
from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import FBP_WINDOWS
from equipoise_engine.geometry import ConeBeam, VectorGeometry
from equipoise_engine.operators import adjoint_error, adjoint_tolerance, operator_norm

ROWS, COLUMNS = 40, 64


def arc(degrees: float, views: int) -> np.ndarray:
    return np.radians(np.linspace(0, degrees, views, endpoint=False)) + 0.003


def cone(angle_rad: np.ndarray, **changed: object) -> ConeBeam:
    settings: dict[str, object] = {
        "source_axis_mm": 80.0,
        "source_detector_mm": 160.0,
        "pixel_mm": 1.0,
        "row_mm": 1.0,
        "middle_px": (ROWS - 1) / 2,
        "centre_px": (COLUMNS - 1) / 2,
    }
    return ConeBeam(angle_rad, **(settings | changed))  # type: ignore[arg-type]


def small(**changed: object) -> ConeBeamPhysics:
    settings: dict[str, object] = {"middle_px": 5.5, "centre_px": 7.5, "pixel_mm": 2.0, "row_mm": 2.2}
    return ConeBeamPhysics(cone(arc(360, 9), **(settings | changed)), (12, 16))


OPERATORS = {
    "cone": lambda: small(),
    "tilted": lambda: small(roll_rad=0.05, pitch_rad=-0.08, yaw_rad=0.06),
    "off the middle": lambda: small(centre_px=5.2, middle_px=3.4),
    "larger volume": lambda: ConeBeamPhysics(small().geometry, (12, 16), (10, 20, 22)),
    "finer voxels": lambda: ConeBeamPhysics(small().geometry, (12, 16), voxel_mm=0.7),
    "turned": lambda: small().turned(0.7),
    "thinned": lambda: small().thinned(torch.arange(9) % 3 > 0),
    "many slices": lambda: ConeBeamPhysics(cone(arc(360, 12), middle_px=17.5, centre_px=7.5), (36, 16)),
}


@pytest.fixture(params=OPERATORS, name="physics")
def _physics(request: pytest.FixtureRequest) -> ConeBeamPhysics:
    return OPERATORS[request.param]()


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_adjoint_is_exact(physics: ConeBeamPhysics) -> None:
    for operator in (physics, physics.H):
        error = adjoint_error(operator, generator=torch.Generator().manual_seed(0), complex_values=False, batch=2)
        assert error < adjoint_tolerance(operator, 2)


def test_linear_and_batch_independent(physics: ConeBeamPhysics) -> None:
    x = draw((3, *physics.domain), 1)
    combined = physics.forward(2.5 * x[:1] - x[1:2])
    torch.testing.assert_close(combined, 2.5 * physics.forward(x[:1]) - physics.forward(x[1:2]))
    assert torch.equal(physics.forward(x)[1], physics.forward(x[1:2])[0])
    y = draw((3, *physics.range), 2)
    assert torch.equal(physics.fdk(y)[1], physics.fdk(y[1:2])[0])


def test_gradient_is_the_adjoint(physics: ConeBeamPhysics) -> None:
    x = draw((1, *physics.domain), 1).requires_grad_()
    y = draw((1, *physics.range), 2)
    physics.forward(x).backward(y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, physics.adjoint(y))


def test_wrong_shapes_are_refused(physics: ConeBeamPhysics) -> None:
    with pytest.raises(BadInput, match="does not fit"):
        physics.forward(draw((1, *physics.domain), 1)[:, :-1])
    with pytest.raises(BadInput, match="does not fit"):
        physics.adjoint(draw((1, *physics.range), 1)[..., :-1])


def test_weighted_normal_operator_has_norm_one(physics: ConeBeamPhysics) -> None:
    start = draw((1, *physics.domain), 3).float()
    assert 0.9 < operator_norm(physics.normal, start, steps=60) <= 1.02


def test_weight_is_symmetric_and_positive(physics: ConeBeamPhysics) -> None:
    a, b = draw((1, *physics.range), 4), draw((1, *physics.range), 5)
    torch.testing.assert_close(torch.sum(a * physics.weight(b)), torch.sum(physics.weight(a) * b))
    assert float(torch.sum(a * physics.weight(a))) > 0


def test_a_split_keeps_whole_views_and_withholds_the_rest(physics: ConeBeamPhysics) -> None:
    y = physics.forward(draw((2, *physics.domain), 6))
    kept = physics.random_split(torch.Generator().manual_seed(2))
    assert int(kept.sum()) == round(0.6 * physics.range[0])
    part, withheld = physics.part(y, kept), physics.withheld(y, kept)
    torch.testing.assert_close(physics.thinned(kept).adjoint(part) + physics.adjoint(withheld), physics.adjoint(y))
    torch.testing.assert_close(physics.part(withheld, kept), torch.zeros_like(part), rtol=0, atol=0)
    with pytest.raises(BadInput, match="one view"):
        physics.thinned(torch.arange(physics.range[0]) == 0).random_split(torch.Generator())


@pytest.mark.parametrize("tilt", [{}, {"roll_rad": 0.05, "pitch_rad": -0.08, "yaw_rad": 0.06}])
def test_turning_the_object_is_turning_the_views_back(tilt: dict[str, float]) -> None:
    physics = small(**tilt)
    x = draw((1, *physics.domain), 1)
    turned = physics.turned(math.pi / 2)
    torch.testing.assert_close(turned.forward(x), physics.forward(torch.rot90(x, 1, (-2, -1))))
    torch.testing.assert_close(turned.weight(physics.forward(x)), physics.weight(physics.forward(x)))


# --- reconstructions -------------------------------------------------------------------------------


def chords(vectors: VectorGeometry, rows: int, columns: int, centre: np.ndarray, radius: float) -> torch.Tensor:
    """Exact line integrals of a ball of density one `(1, view, row, column)`."""
    row, column = np.meshgrid(np.arange(rows, dtype=float), np.arange(columns, dtype=float), indexing="ij")
    points, directions = vectors.rays(column.ravel(), row.ravel())
    distance = np.linalg.norm(np.cross(centre - points, directions), axis=-1)
    chord = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return torch.from_numpy(chord.reshape(1, vectors.views, rows, columns))


def places(physics: ConeBeamPhysics) -> np.ndarray:
    """Coordinates (x, y, z) of the voxels `(3, z, y, x)`, mm."""
    z, y, x = ((np.arange(side) - (side - 1) / 2) * physics.voxel_mm for side in physics.domain)
    slices, rows, columns = np.meshgrid(z, -y, x, indexing="ij")
    return np.stack([columns, rows, slices])


SCANS = {
    "plain": (cone(arc(360, 120)), COLUMNS),
    "short": (cone(arc(212, 80)), COLUMNS),
    "off the middle": (cone(arc(360, 120), centre_px=34.3), COLUMNS),
    "half-fan": (cone(arc(360, 120), centre_px=13.2), 46),
    "rolled": (cone(arc(360, 120), roll_rad=0.04), COLUMNS),
    "pitched": (cone(arc(360, 120), pitch_rad=0.1), COLUMNS),
    "yawed": (cone(arc(360, 120), yaw_rad=-0.1), COLUMNS),
    "tilted, flat elements, low": (
        cone(arc(360, 120), roll_rad=-0.02, pitch_rad=-0.05, yaw_rad=0.05, row_mm=0.8, middle_px=17.0),
        COLUMNS,
    ),
}


@pytest.mark.parametrize("name", SCANS)
def test_a_ball_comes_out_at_its_place_with_its_density(name: str) -> None:
    geometry, columns = SCANS[name]
    physics = ConeBeamPhysics(geometry, (ROWS, columns))
    centre, radius, density = np.array([4.0, -3.0, 0.4]), 6.0, 0.3
    image = physics.fdk(density * chords(geometry.vectors(), ROWS, columns, centre, radius))[0].numpy()
    place = places(physics)
    distance = np.linalg.norm(place - centre[:, None, None, None], axis=0)
    middle = np.abs(place[2]) < physics.voxel_mm
    core, air = image[middle & (distance < 4.5)], image[middle & (distance > 7.5) & (distance < 9.5)]
    assert core.mean() == pytest.approx(density, rel=0.01)
    assert core.std() < 0.01 * density
    assert abs(air.mean()) < 0.01 * density
    mass = image * (distance < 7.5)
    # a short scan measures some lines once only and leaves the ball a little askew
    found = (mass * place).sum((1, 2, 3)) / mass.sum()
    np.testing.assert_allclose(found, centre, atol=0.1)


@pytest.mark.parametrize("window", FBP_WINDOWS)
def test_the_density_is_right_with_every_window_and_voxel(window: str) -> None:
    geometry = cone(arc(360, 120))
    physics = ConeBeamPhysics(geometry, (ROWS, COLUMNS), (5, 40, 44), voxel_mm=0.4)
    y = 0.3 * chords(geometry.vectors(), ROWS, COLUMNS, np.zeros(3), 6.0)
    image = physics.fdk(y.float(), window)
    assert image.dtype == torch.float32
    core = np.linalg.norm(places(physics), axis=0) < 4.5
    assert image[0].numpy()[core].mean() == pytest.approx(0.3, rel=0.01)
    torch.testing.assert_close(physics.analytic(y), physics.fdk(y))


def test_a_reconstruction_explains_what_was_measured() -> None:
    geometry = cone(arc(360, 120))
    physics = ConeBeamPhysics(geometry, (ROWS, COLUMNS))
    y = chords(geometry.vectors(), ROWS, COLUMNS, np.array([4.0, -3.0, 2.0]), 6.0)
    residual = physics.forward(physics.fdk(y)) - y
    assert float(residual.norm() / y.norm()) < 0.05


def test_an_object_wider_than_the_fan_keeps_its_level() -> None:
    geometry = cone(arc(360, 120))
    y = 0.02 * chords(geometry.vectors(), ROWS, COLUMNS, np.zeros(3), 25.0)
    roomy = ConeBeamPhysics(geometry, (ROWS, COLUMNS), (3, 120, 120))
    assert roomy.truncated
    framed = roomy.framed(roomy.fdk(y))[0, 1, 12:-12, 12:-12]
    plain = ConeBeamPhysics(geometry, (ROWS, COLUMNS), (3, 64, 64)).fdk(y)[0, 1, 12:-12, 12:-12]
    assert framed.shape == plain.shape
    assert float(framed.std() / framed.mean()) < 0.5 * float(plain.std() / plain.mean())


def test_views_filtered_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    physics = small()
    y = draw((1, *physics.range), 1)
    whole = physics.fdk(y)
    monkeypatch.setattr("equipoise_engine.cone.FILTERED_BYTES", 1)
    torch.testing.assert_close(physics.fdk(y), whole)


# --- what the detector sees ------------------------------------------------------------------------


def test_the_grid_is_what_the_detector_sees() -> None:
    geometry = cone(arc(360, 12))
    assert natural_shape(geometry, (ROWS, COLUMNS), 0.5) == (40, 64, 64)
    assert natural_shape(geometry, (ROWS, COLUMNS), 0.25) == (80, 128, 128)
    assert natural_shape(replace(geometry, row_mm=0.5), (ROWS, COLUMNS), 0.5) == (20, 64, 64)
    assert natural_shape(replace(geometry, middle_px=9.5), (ROWS, COLUMNS), 0.5) == (60, 64, 64)
    assert natural_shape(replace(geometry, centre_px=10.0), (ROWS, COLUMNS), 0.5) == (40, 107, 107)
    assert natural_shape(replace(geometry, centre_px=10.0, angle_rad=arc(200, 12)), (ROWS, COLUMNS), 0.5)[2] == 64


def test_what_stays_is_seen_in_every_view() -> None:
    geometry = cone(arc(360, 24), middle_px=15.0, centre_px=31.5)
    physics = ConeBeamPhysics(geometry, (ROWS, COLUMNS))
    seen = physics.seen(torch.ones((1, *physics.domain)))[0].numpy() > 0
    place = places(physics)[:, seen]
    vectors = geometry.vectors()
    for view in range(0, 24, 5):
        ahead = -vectors.source[view] / 80.0
        away = place - vectors.source[view][:, None]
        depth = ahead @ away
        column = 31.5 + 160.0 * (vectors.column_step[view] @ away) / depth
        row = 15.0 + 160.0 * away[2] / depth
        assert np.all((column > -1.0) & (column < COLUMNS))
        assert np.all((row > -1.0) & (row < ROWS))
    assert 0.3 < seen.mean() < 0.9


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"centre_px": None}, "rotation centre is not known"),
        ({"centre_px": 16.0}, "column 16 lies outside the detector"),
        ({"source_axis_mm": 9.0}, "reaches the source, 9 mm"),
    ],
)
def test_unusable_geometries_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        small(**changed, **({"source_detector_mm": 10.0} if "source_axis_mm" in changed else {}))


def test_an_unknown_window_is_refused() -> None:
    physics = small()
    with pytest.raises(BadInput, match="unknown filter window 'blackman'"):
        feldkamp(torch.zeros((1, *physics.range)), physics.geometry, (4, 4, 4), 1.0, window="blackman")
