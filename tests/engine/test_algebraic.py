"""SIRT and ordered subsets: what they converge to, and how fast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from equipoise_engine.algebraic import ordered_subsets, simultaneous_iterations
from equipoise_engine.classical import counts_weights
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.mri import CartesianPhysics
from equipoise_engine.phantoms import random_images
from equipoise_engine.progress import Progress

ANGLES = np.linspace(0, np.pi, 14, endpoint=False) + 0.05
SMALL = TomographyPhysics(ParallelBeam(ANGLES, 0.8, 3.75), 8, 6)
GENERATOR = torch.Generator().manual_seed(3)
NOISY = SMALL(torch.rand((2, 6, 6), dtype=torch.float64, generator=GENERATOR))
NOISY = NOISY + 0.2 * torch.randn(NOISY.shape, dtype=torch.float64, generator=GENERATOR)


def matrix(physics: TomographyPhysics) -> torch.Tensor:
    units = torch.eye(36, dtype=torch.float64).reshape(36, 6, 6)
    return physics(units).reshape(36, -1).T


def row_weights(weights: torch.Tensor | None, sample: int) -> torch.Tensor:
    """The weighting of rays that the iteration is said to minimise with."""
    if weights is not None:
        return weights[sample].flatten()
    sums = matrix(SMALL).sum(1)
    return torch.where(sums > 1e-4 * sums.max(), 1 / sums, 0.0)


@pytest.mark.parametrize("weights", [None, counts_weights(NOISY)], ids=["row sums", "counts"])
def test_it_reaches_the_weighted_least_squares_solution(weights: torch.Tensor | None) -> None:
    solved = simultaneous_iterations(
        SMALL, NOISY, tolerance=1e-10, max_steps=10000, nonnegative=False, weights=weights, relaxation=1.9
    )
    assert solved.outcome.value == "converged"
    dense = matrix(SMALL)
    for sample in range(2):
        weighted = row_weights(weights, sample)[:, None] * dense
        direct = torch.linalg.solve(dense.T @ weighted, weighted.T @ NOISY[sample].flatten())
        torch.testing.assert_close(solved.image[sample].flatten(), direct, rtol=1e-5, atol=1e-6)


def test_it_reaches_the_nonnegative_solution() -> None:
    solved = simultaneous_iterations(
        SMALL, NOISY - 0.4, tolerance=1e-10, max_steps=10000, nonnegative=True, relaxation=1.9
    )
    root = row_weights(None, 0).sqrt()
    for sample in range(2):
        direct, _ = nnls((root[:, None] * matrix(SMALL)).numpy(), (root * (NOISY[sample] - 0.4).flatten()).numpy())
        assert (direct == 0).any()
        np.testing.assert_allclose(solved.image[sample].flatten().numpy(), direct, atol=1e-5)


def test_subsets_come_closer_in_a_pass() -> None:
    angles = np.linspace(0, np.pi, 48, endpoint=False)
    physics = TomographyPhysics(ParallelBeam(angles, 1.0, 23.5), 48)
    truth = random_images(2, 48, torch.Generator().manual_seed(2))
    y = physics(truth)

    def error(subsets: int, passes: int) -> float:
        solved = simultaneous_iterations(
            physics,
            y,
            tolerance=0.0,
            max_steps=passes,
            nonnegative=True,
            subsets=ordered_subsets(angles, subsets, turn_rad=math.pi),
        )
        return float((solved.image - truth).norm() / truth.norm())

    assert error(8, 4) < error(1, 20)
    assert error(48, 2) < error(8, 4)
    assert error(1, 20) < error(1, 4)


def test_progress_tells_the_residual_of_the_iterate() -> None:
    seen: list[Progress] = []
    solved = simultaneous_iterations(SMALL, NOISY, tolerance=0.0, max_steps=4, nonnegative=True, watch=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert solved.outcome.value == "max_steps"
    for progress in seen:
        assert progress.iterate is not None
        residual = (SMALL(progress.iterate) - NOISY).flatten(1).norm(dim=1) / NOISY.flatten(1).norm(dim=1)
        torch.testing.assert_close(progress.data_residual, residual)


@pytest.mark.parametrize(("views", "count"), [(12, 1), (12, 4), (13, 5), (7, 7)])
def test_subsets_share_out_the_views(views: int, count: int) -> None:
    # angles out of order, and beyond a turn
    angles = np.random.default_rng(views).permutation(views) * np.pi / views + 2 * np.pi
    subsets = torch.stack(ordered_subsets(angles, count, turn_rad=math.pi))
    assert torch.equal(subsets.sum(0), torch.ones(views, dtype=torch.int64))
    for subset in subsets:
        directions = np.sort(np.mod(angles[subset.numpy()], np.pi)) * views / np.pi
        np.testing.assert_allclose(np.diff(directions), count, atol=1e-6)


def test_subsets_follow_on_in_bit_reversed_order() -> None:
    angles = np.arange(16) * np.pi / 16
    first = [int(np.flatnonzero(subset)[0]) for subset in ordered_subsets(angles, 8, turn_rad=math.pi)]
    assert first == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("count", [0, -1, 15])
def test_too_many_subsets_are_refused(count: int) -> None:
    with pytest.raises(BadInput, match=rf"{count} subsets of 14 views.* 1 to 14"):
        ordered_subsets(ANGLES, count, turn_rad=math.pi)


def test_a_ray_without_counts_changes_nothing() -> None:
    weights = counts_weights(NOISY)
    weights[0, 3, 2] = 0.0
    spoilt = NOISY.clone()
    spoilt[0, 3, 2] = math.inf
    subsets = ordered_subsets(ANGLES, 3, turn_rad=math.pi)
    images = [
        simultaneous_iterations(
            SMALL, y, tolerance=0.0, max_steps=5, nonnegative=True, weights=weights, subsets=subsets
        ).image
        for y in (NOISY, spoilt)
    ]
    assert torch.equal(*images)


def test_volumes_of_a_cone_beam() -> None:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    physics = ConeBeamPhysics(ConeBeam(angles, 60.0, 90.0, 1.5, 1.5, 5.5, 7.5), (12, 16), (6, 12, 12))
    truth = torch.zeros((1, 6, 12, 12))
    truth[:, 1:5, 3:9, 4:10] = 1.0
    solved = simultaneous_iterations(
        physics,
        physics(truth),
        tolerance=0.0,
        max_steps=15,
        nonnegative=True,
        subsets=ordered_subsets(angles, 5, turn_rad=2 * math.pi),
    )
    assert solved.image.shape == truth.shape
    assert float((solved.image - truth).norm() / truth.norm()) < 0.1


def test_what_does_not_fit_is_refused() -> None:
    def iterate(physics: TomographyPhysics | CartesianPhysics, y: torch.Tensor, **changed: float) -> None:
        simultaneous_iterations(physics, y, tolerance=0.0, max_steps=1, nonnegative=False, **changed)  # type: ignore[arg-type]

    for relaxation in (0.0, 2.0, math.nan):
        with pytest.raises(BadInput, match=r"between 0 and 2"):
            iterate(SMALL, NOISY, relaxation=relaxation)
    mri = CartesianPhysics(torch.ones((1, 1, 4, 4), dtype=torch.complex64), torch.ones((4, 4), dtype=torch.bool))
    with pytest.raises(BadInput, match="CT scan"):
        iterate(mri, torch.zeros((1, 1, 4, 4), dtype=torch.complex64))
    for wrong in (torch.ones((2, 14, 7)), -torch.ones((2, 14, 8)), torch.full((2, 14, 8), math.nan)):
        with pytest.raises(BadInput, match="weight"):
            simultaneous_iterations(SMALL, NOISY, tolerance=0.0, max_steps=1, nonnegative=False, weights=wrong)
    empty = [torch.ones(14, dtype=torch.bool), torch.zeros(14, dtype=torch.bool)]
    with pytest.raises(BadInput, match="no view"):
        simultaneous_iterations(SMALL, NOISY, tolerance=0.0, max_steps=1, nonnegative=False, subsets=empty)


@pytest.mark.parametrize("subsets", [1, 6])
def test_a_dense_core_is_recovered_under_its_counts(subsets: int) -> None:
    angles = np.linspace(0, np.pi, 30, endpoint=False)
    physics = TomographyPhysics(ParallelBeam(angles, 1.0, 19.5), 40)
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(40.0) - 19.5, indexing="ij")
    radius = torch.hypot(y, x)
    core = radius < 7
    truth = 0.05 * (radius < 16) + 1.2 * core
    # beside a thin slice, whose sums are far larger
    measured = physics(torch.stack([truth, 0.01 * truth]))
    assert 17 < float(measured.max()) < 20
    solved = simultaneous_iterations(
        physics,
        measured,
        tolerance=0.0,
        max_steps=120 // subsets,
        nonnegative=True,
        subsets=ordered_subsets(angles, subsets, turn_rad=math.pi),
        weights=counts_weights(measured),
    )
    inner = radius < 5.5
    assert float(solved.image[0][inner].min()) > 0.9
    assert float(solved.image[0][inner].mean()) == pytest.approx(1.25, rel=0.03)
