"""One battery over every operator: exact adjoint, linearity, gradient, batch independence, shapes, dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, FanBeam, NonCartesian, ParallelBeam
from equipoise_engine.groups import Transform, virtual
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.noncartesian import NonCartesianPhysics, radial_trajectory
from equipoise_engine.operators import (
    LinearOperator,
    Physics,
    adjoint_error,
    adjoint_tolerance,
    leading_eigenpair,
    leading_eigenpairs,
    operator_norm,
    operator_norms,
)
from equipoise_engine.phantoms import random_coil_maps


def parallel(
    views: int, columns: int, centre: float, size: int | None = None, turn: float = np.pi, **settings: Any
) -> Physics:
    angles = np.linspace(0.1, 0.1 + turn, views, endpoint=False)
    return TomographyPhysics(ParallelBeam(angles, 0.7, centre), columns, size, **settings)


def fan(views: int, columns: int, **changed: Any) -> Physics:
    angles = np.linspace(0.1, 0.1 + 2 * np.pi, views, endpoint=False)
    settings = {"centre_px": (columns - 1) / 2 + 0.4} | changed
    return TomographyPhysics(FanBeam(angles, 60.0, 95.0, 1.1, **settings), columns, columns + 3)


def cone(views: int, rows: int, columns: int, **changed: Any) -> Physics:
    angles = np.linspace(0.1, 0.1 + 2 * np.pi, views, endpoint=False)
    geometry = ConeBeam(angles, 60.0, 95.0, 1.1, 1.3, (rows - 1) / 2, (columns - 1) / 2 - 0.3, **changed)
    return ConeBeamPhysics(geometry, (rows, columns))


def radial(spokes: int, samples: int, rows: int, columns: int, coils: int) -> Physics:
    maps = random_coil_maps(coils, max(rows, columns), torch.Generator().manual_seed(1))[None, :, :rows, :columns]
    trajectory = radial_trajectory(spokes, samples, (rows, columns))
    return NonCartesianPhysics(maps.to(torch.complex128), NonCartesian(trajectory, (rows, columns), (1.0, 1.0)))


def two_sets(rows: int, columns: int, coils: int) -> Physics:
    first = cartesian(rows, columns, coils)
    assert isinstance(first, CartesianPhysics)
    maps = torch.stack([0.8 * first.maps[0], 0.6 * first.maps[0].roll(3, -1).flip(0)])[None]
    return CartesianPhysics(maps, first.mask)


def cartesian(rows: int, columns: int, coils: int) -> Physics:
    maps = random_coil_maps(coils, max(rows, columns), torch.Generator().manual_seed(1))[None, :, :rows, :columns]
    mask = undersampling_mask(np.ones((rows, columns), dtype=np.bool_), 3, centre_lines=6)
    return CartesianPhysics(maps.to(torch.complex128), torch.from_numpy(mask))


def split(physics: Physics) -> torch.Tensor:
    return physics.random_split(torch.Generator().manual_seed(2))


def transformed(physics: Physics, angle_rad: float, shift: tuple[int, int]) -> Physics:
    angle = torch.tensor([angle_rad], dtype=torch.float64)
    return virtual(physics, Transform(torch.tensor([True]), angle, torch.tensor([shift])))


def turned(physics: Physics, angle_rad: float) -> Physics:
    physics_turned = physics.turned(angle_rad)
    assert physics_turned is not None
    return physics_turned


OPERATORS = {
    "parallel": lambda: parallel(19, 32, 15.5),
    "parallel, off-centre, odd": lambda: parallel(11, 33, 12.3),
    "parallel, full turn": lambda: parallel(24, 31, 15.0, turn=2 * np.pi),
    "parallel, larger image": lambda: parallel(13, 24, 11.0, size=36),
    "parallel, turned": lambda: turned(parallel(17, 24, 11.2), 0.37),
    "parallel, some views": lambda: parallel(18, 32, 15.5).thinned(torch.arange(18) % 3 > 0),
    "parallel, transformed": lambda: transformed(parallel(15, 24, 11.5), 2.1, (3, -5)),
    "Cartesian, some lines": lambda: cartesian(24, 24, 3).thinned(split(cartesian(24, 24, 3))),
    "Cartesian, transformed": lambda: transformed(cartesian(20, 26, 2), -0.8, (4, 1)),
    "parallel, strips": lambda: parallel(12, 24, 11.3, footprint="strip", engine="matrix-free"),
    "parallel, strips in a matrix": lambda: parallel(12, 24, 11.3, footprint="strip", engine="sparse"),
    "parallel, a matrix": lambda: parallel(15, 31, 14.2, engine="sparse"),
    "half-acquisition": lambda: parallel(24, 21, 4.4, turn=2 * np.pi),
    "fan, flat": lambda: fan(15, 24),
    "fan, curved": lambda: fan(14, 25, detector="curved"),
    "fan, tilted detector": lambda: fan(13, 24, yaw_rad=0.2),
    "fan, turned": lambda: turned(fan(15, 24), 0.61),
    "fan, some views": lambda: fan(18, 24).thinned(torch.arange(18) % 3 > 0),
    "cone": lambda: cone(9, 7, 16),
    "cone, tilted detector": lambda: cone(8, 6, 15, roll_rad=0.05, pitch_rad=0.1, yaw_rad=-0.08),
    "cone, turned": lambda: turned(cone(9, 6, 14), 0.61),
    "radial": lambda: radial(17, 40, 24, 24, 3),
    "radial, not square": lambda: radial(15, 40, 20, 26, 2),
    "radial, some spokes": lambda: radial(18, 40, 24, 24, 2).thinned(torch.arange(18) % 3 > 0),
    "Cartesian": lambda: cartesian(24, 24, 3),
    "Cartesian, two sets of maps": lambda: two_sets(20, 24, 3),
    "Cartesian, not square": lambda: cartesian(21, 30, 2),
    "Cartesian, one coil": lambda: cartesian(16, 16, 1),
}


@pytest.fixture(params=OPERATORS, name="physics")
def _physics(request: pytest.FixtureRequest) -> Physics:
    return OPERATORS[request.param]()


def draw(shape: tuple[int, ...], physics: Physics, seed: int) -> torch.Tensor:
    dtype = torch.complex128 if physics.complex_image else torch.float64
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_adjoint_is_exact(physics: Physics) -> None:
    generator = torch.Generator().manual_seed(0)
    for operator in (physics, physics.H):
        error = adjoint_error(operator, generator=generator, complex_values=physics.complex_image, batch=2)
        assert error < adjoint_tolerance(operator, 2)


def test_a_scale_error_of_the_adjoint_would_be_caught() -> None:
    class Wrong(LinearOperator):
        def _forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
            return y * (1 + 1e-6)

    wrong = Wrong((64, 64), (64, 64))
    error = adjoint_error(wrong, generator=torch.Generator().manual_seed(0), complex_values=False, batch=4)
    assert error > adjoint_tolerance(wrong, 4)


def test_linear(physics: Physics) -> None:
    a, b = draw((2, *physics.domain), physics, 1), draw((2, *physics.domain), physics, 2)
    combined = physics.forward(2.5 * a - b)
    torch.testing.assert_close(combined, 2.5 * physics.forward(a) - physics.forward(b))


def test_gradient_is_the_adjoint(physics: Physics) -> None:
    x = draw((1, *physics.domain), physics, 1).requires_grad_()
    y = draw((1, *physics.range), physics, 2)
    physics.forward(x).backward(y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, physics.adjoint(y))


def test_a_sample_does_not_depend_on_its_batch(physics: Physics) -> None:
    x = draw((3, *physics.domain), physics, 1)
    # a batched Fourier transform may round differently
    torch.testing.assert_close(physics.forward(x)[1], physics.forward(x[1:2])[0], rtol=0, atol=1e-13)


def test_wrong_shapes_are_refused(physics: Physics) -> None:
    x = draw((1, *physics.domain), physics, 1)
    with pytest.raises(BadInput, match="does not fit"):
        physics.forward(x[:, :-1])
    with pytest.raises(BadInput, match="does not fit"):
        physics.adjoint(x[:, :, :-1])


def test_keeps_the_precision(physics: Physics) -> None:
    x = draw((1, *physics.domain), physics, 1)
    single = x.to(torch.complex64 if physics.complex_image else torch.float32)
    assert physics.forward(x).dtype == x.dtype
    if not physics.complex_image:
        assert physics.forward(single).dtype == single.dtype
        torch.testing.assert_close(physics.forward(single).double(), physics.forward(x), rtol=1e-4, atol=1e-4)


def test_weighted_normal_operator_has_norm_one(physics: Physics) -> None:
    start = draw((1, *physics.domain), physics, 3)
    zero = torch.zeros((1, *physics.range), dtype=start.dtype)
    norm = operator_norm(lambda x: physics.gradient(x, zero), start, steps=60)
    assert 0.9 < norm <= 1.02


def test_weight_is_symmetric_and_positive(physics: Physics) -> None:
    a, b = draw((1, *physics.range), physics, 4), draw((1, *physics.range), physics, 5)
    left, right = torch.sum(a.conj() * physics.weight(b)), torch.sum(physics.weight(a).conj() * b)
    torch.testing.assert_close(left, right)
    assert torch.sum(a.conj() * physics.weight(a)).real > 0


def test_a_split_keeps_part_of_the_measurements_and_withholds_the_rest(physics: Physics) -> None:
    x = draw((2, *physics.domain), physics, 6)
    y = physics.forward(x)
    kept = split(physics)
    part, withheld = physics.part(y, kept), physics.withheld(y, kept)
    torch.testing.assert_close(part, physics.thinned(kept).forward(x))
    torch.testing.assert_close(physics.part(withheld, kept), torch.zeros_like(part), rtol=0, atol=0)
    sizes = [float(torch.sum(values.abs() ** 2)) for values in (y, part, withheld)]
    assert sizes[0] == pytest.approx(sizes[1] + sizes[2])
    assert min(sizes[1:]) > 0


def test_a_split_has_the_share_that_was_asked_for_and_differs_from_draw_to_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    views = [parallel(40, 32, 15.5).random_split(generator, 0.7) for _ in range(2)]
    assert [int(kept.sum()) for kept in views] == [28, 28]
    assert not torch.equal(*views)
    physics = cartesian(100, 96, 1)
    lines = [physics.random_split(generator, 0.5).any(1) for _ in range(2)]
    assert not torch.equal(*lines)
    sampled = physics.thinned(torch.ones(100, 96, dtype=torch.bool)).mask.any(1)  # type: ignore[attr-defined]
    for kept in lines:
        assert bool(kept[48:53].all())
        assert int((kept & sampled).sum()) == 5 + round(0.5 * (int(sampled.sum()) - 5))


def test_points_are_split_where_no_whole_lines_were_left_out() -> None:
    mask = torch.rand((30, 30), generator=torch.Generator().manual_seed(0)) < 0.4
    mask[15, 15] = True
    physics = CartesianPhysics(torch.ones((1, 1, 30, 30), dtype=torch.complex64), mask)
    kept = split(physics)
    assert bool(kept[15, 15])
    assert not bool((kept & ~mask).any())
    assert 0.5 * int(mask.sum()) < int(kept.sum()) < 0.7 * int(mask.sum())
    inner = kept[5:25, 5:25].any(1).float().mean(), kept[5:25, 5:25].any(0).float().mean()
    assert min(inner) == 1.0


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(BadInput, match="one view"):
        parallel(1, 16, 7.5).random_split(torch.Generator())
    maps = torch.ones((1, 1, 32, 32), dtype=torch.complex64)
    mask = (torch.arange(32) == 16)[:, None].expand(32, 32)
    with pytest.raises(BadInput, match="0 sampled lines"):
        CartesianPhysics(maps, mask).random_split(torch.Generator())


def test_each_sample_has_a_norm_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn((4, 9, 7), dtype=torch.complex128, generator=generator)
    # far apart in size, one of rank one, one empty
    parts = parts * torch.tensor([1.0, 1e-4, 1e3, 0.0])[:, None, None]
    parts[2] = parts[2, :, :1] * parts[2, :1]
    matrices = parts.mH @ parts
    start = torch.randn((1, 7), dtype=torch.complex128, generator=generator).expand(4, 7)

    def apply(v: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bij,bj->bi", matrices, v)

    values, vectors = leading_eigenpairs(apply, start, steps=12)
    expected, directions = torch.linalg.eigh(matrices)
    torch.testing.assert_close(values, expected[:, -1], rtol=1e-10, atol=1e-20)
    overlap = (vectors.conj() * directions[..., -1]).sum(1).abs()
    torch.testing.assert_close(overlap[:3], torch.ones(3, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(operator_norms(apply, start, steps=12), values)
    for index in range(3):
        value, vector = leading_eigenpair(lambda v, m=matrices[index]: v @ m.T, start[index], steps=12)  # type: ignore[misc]
        assert value == pytest.approx(float(values[index]), rel=1e-12)
        assert abs(torch.sum(vector.conj() * vectors[index])) == pytest.approx(1.0)
        assert operator_norm(lambda v, m=matrices[index]: v @ m.T, start[index], steps=3) <= value * (1 + 1e-12)  # type: ignore[misc]
