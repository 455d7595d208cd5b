"""Total variation by the primal-dual method: its minimum, its gap, its weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise_engine.classical import counts_weights, differences, lengths, total_variation
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.phantoms import random_coil_maps, random_images
from equipoise_engine.primal_dual import data_scale, primal_dual_total_variation
from equipoise_engine.progress import Progress

ANGLES = np.linspace(0, np.pi, 14, endpoint=False) + 0.05


def ct(size: int, views: int) -> tuple[TomographyPhysics, torch.Tensor, torch.Tensor]:
    angles = np.linspace(0, np.pi, views, endpoint=False)
    physics = TomographyPhysics(ParallelBeam(angles, 0.7, (size - 1) / 2), size)
    generator = torch.Generator().manual_seed(size)
    truth = 0.05 * random_images(2, size, generator).double()
    y = physics(truth)
    return physics, truth, y + 0.01 * torch.randn(y.shape, dtype=y.dtype, generator=generator)


def objective(
    physics: TomographyPhysics | CartesianPhysics | ConeBeamPhysics,
    y: torch.Tensor,
    x: torch.Tensor,
    strength: float,
    weights: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """What is minimised `(batch,)`, written down again from its definition."""
    start = physics.analytic(y).flatten(1)
    level = strength * start.norm(dim=1) / math.sqrt(start.shape[1])
    axes = len(physics.domain)
    variation = lengths(differences(x, axes)).flatten(1).sum(1)
    squares = (weights * (physics(x) - y).abs() ** 2).flatten(1).sum(1)
    scale = data_scale(physics, y, None if isinstance(weights, float) else weights)
    return 0.5 * scale * squares + level * variation


def test_it_agrees_with_the_forward_backward_method_where_both_minimise_the_same() -> None:
    # for Cartesian sampling the weight of the physics is the identity
    generator = torch.Generator().manual_seed(7)
    truth = random_images(1, 24, generator).to(torch.complex128)
    maps = random_coil_maps(2, 24, generator)[None].to(torch.complex128)
    mask = torch.from_numpy(undersampling_mask(np.ones((24, 24), dtype=np.bool_), 2, centre_lines=6))
    physics = CartesianPhysics(maps, mask)
    y = physics(truth)
    y = y + 0.02 * torch.randn(y.shape, dtype=y.dtype, generator=generator) * mask
    settings = {"strength": 0.02, "max_steps": 1500, "nonnegative": False}
    one = total_variation(physics, y, tolerance=1e-9, **settings)  # type: ignore[arg-type]
    two = primal_dual_total_variation(physics, y, tolerance=1e-8, **settings)  # type: ignore[arg-type]
    assert float(data_scale(physics, y)) == pytest.approx(1.0)
    assert float((one.image - two.image).norm() / two.image.norm()) < 1e-4
    assert float(objective(physics, y, one.image, 0.02)) == pytest.approx(
        float(objective(physics, y, two.image, 0.02)), rel=1e-6
    )


@pytest.mark.parametrize("counts", [False, True], ids=["uniform", "counts"])
def test_the_gap_bounds_the_distance_to_the_minimum(counts: bool) -> None:
    physics, _, y = ct(20, 16)
    weights = counts_weights(y) if counts else None
    told: list[Progress] = []
    settings = {"strength": 0.1, "tolerance": 0.0, "nonnegative": True, "weights": weights}
    solved = primal_dual_total_variation(physics, y[:1], max_steps=600, watch=told.append, **_one(settings))
    terms = [dict(progress.terms) for progress in told]
    least = min(term["objective"] for term in terms)
    for term in terms:
        assert term["objective"] - least <= term["gap"] * (1 + 1e-9)
    assert terms[-1]["gap"] < 1e-4 * terms[-1]["objective"]
    assert terms[-1]["relative gap"] == pytest.approx(terms[-1]["gap"] / terms[-1]["objective"])
    here = objective(physics, y[:1], solved.image, 0.1, 1.0 if weights is None else weights[:1])
    assert float(here) == pytest.approx(terms[-1]["objective"], rel=1e-9)
    # no small change lowers it
    generator = torch.Generator().manual_seed(1)
    for size in (1e-2, 1e-3):
        other = solved.image + size * solved.image.max() * torch.randn(
            solved.image.shape, dtype=y.dtype, generator=generator
        )
        assert float(objective(physics, y[:1], other.clamp(min=0), 0.1, 1.0 if weights is None else weights[:1])) > here


def _one(settings: dict[str, object]) -> dict[str, object]:
    """The settings for the first sample alone."""
    weights = settings["weights"]
    return settings | {"weights": weights[:1] if isinstance(weights, torch.Tensor) else None}


def test_without_a_prior_it_is_the_weighted_least_squares_solution() -> None:
    physics = TomographyPhysics(ParallelBeam(ANGLES, 0.8, 3.75), 8, 4)
    generator = torch.Generator().manual_seed(3)
    y = physics(torch.rand((2, 4, 4), dtype=torch.float64, generator=generator))
    y = y + 0.2 * torch.randn(y.shape, dtype=torch.float64, generator=generator)
    weights = counts_weights(y)
    spoilt = y.clone()
    spoilt[1, 3, 2], weights[1, 3, 2] = math.inf, 0.0
    solved = primal_dual_total_variation(
        physics, spoilt, strength=0.0, tolerance=1e-9, max_steps=6000, nonnegative=False, weights=weights
    )
    assert solved.outcome.value == "converged"
    dense = physics(torch.eye(16, dtype=torch.float64).reshape(16, 4, 4)).reshape(16, -1).T
    for sample in range(2):
        weighted = weights[sample].flatten()[:, None] * dense
        direct = torch.linalg.solve(dense.T @ weighted, weighted.T @ y[sample].flatten())
        torch.testing.assert_close(solved.image[sample].flatten(), direct, rtol=1e-4, atol=1e-5)


def test_one_strength_does_for_all_weightings() -> None:
    physics, truth, y = ct(32, 12)
    errors = []
    for weights in (None, counts_weights(y)):
        image = primal_dual_total_variation(
            physics, y, strength=0.02, tolerance=1e-5, max_steps=150, nonnegative=True, weights=weights
        ).image
        assert float(image.min()) >= 0
        errors.append(float((image - truth).norm()))
    ramp = total_variation(physics, y, strength=0.02, tolerance=1e-5, max_steps=150, nonnegative=True).image
    errors.append(float((ramp - truth).norm()))
    assert max(errors) < 1.5 * min(errors)
    assert max(errors) < 0.6 * float((physics.fbp(y) - truth).norm())


def test_volumes_are_smoothed_along_all_axes() -> None:
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    physics = ConeBeamPhysics(ConeBeam(angles, 60.0, 90.0, 1.5, 1.5, 5.5, 7.5), (12, 16), (6, 12, 12))
    truth = torch.zeros((1, 6, 12, 12))
    truth[:, 1:5, 3:9, 4:10] = 1.0
    y = physics(truth)
    y = y + 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))

    def solve(strength: float) -> torch.Tensor:
        return primal_dual_total_variation(
            physics, y, strength=strength, tolerance=1e-6, max_steps=80, nonnegative=True
        ).image

    rough, smooth = solve(0.001), solve(0.1)
    for axis in (1, 2, 3):
        assert float(smooth.diff(dim=axis).abs().sum()) < 0.8 * float(rough.diff(dim=axis).abs().sum())
    assert float((smooth - truth).norm()) < 0.8 * float((rough - truth).norm())
    other = total_variation(physics, y, strength=0.02, tolerance=1e-5, max_steps=40, nonnegative=True).image
    assert float((other - truth).norm()) < 0.8 * float((rough - truth).norm())


def test_complex_images_are_not_nonnegative() -> None:
    physics = CartesianPhysics(torch.ones((1, 1, 4, 4), dtype=torch.complex64), torch.ones((4, 4), dtype=torch.bool))
    for method in (primal_dual_total_variation, total_variation):
        with pytest.raises(BadInput, match="nonnegative"):
            method(
                physics,
                torch.zeros((1, 1, 4, 4), dtype=torch.complex64),
                strength=0.1,
                tolerance=0.0,
                max_steps=1,
                nonnegative=True,
            )
