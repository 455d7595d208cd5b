"""The classical methods: they converge to what they minimise, and say when they do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from equipoise_engine.algebraic import ordered_subsets, simultaneous_iterations
from equipoise_engine.classical import (
    Reconstructed,
    conjugate_gradients,
    counts_weights,
    data_residual,
    differences,
    divergence,
    total_variation,
    wavelet,
)
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.phantoms import random_coil_maps, random_images, simulate_kspace
from equipoise_engine.primal_dual import primal_dual_total_variation
from equipoise_engine.progress import Progress


@pytest.fixture(name="ct")
def _ct() -> tuple[TomographyPhysics, torch.Tensor, torch.Tensor]:
    physics = TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, 24, endpoint=False), 1.0, 31.5), 64)
    truth = random_images(2, 64, torch.Generator().manual_seed(2))
    return physics, truth, physics(truth)


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(10 * torch.log10(truth.abs().max() ** 2 / (image - truth).abs().square().mean()))


def test_cgls_solves_the_normal_equations() -> None:
    physics = TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, 40, endpoint=False), 1.0, 7.5), 16)
    truth = torch.rand((2, 16, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = physics(truth)
    seen: list[Progress] = []
    solved = conjugate_gradients(physics, y, damping=0.0, tolerance=1e-12, max_steps=2000, watch=seen.append)
    assert solved.outcome.value == "converged"
    assert float(data_residual(physics, solved.image, y).max()) < 1e-8
    assert [p.step for p in seen] == list(range(1, solved.steps + 1))
    told = seen[-1].data_residual
    assert told is not None
    torch.testing.assert_close(told, data_residual(physics, solved.image, y), rtol=1e-2, atol=1e-10)


def test_damped_cg_solves_the_damped_problem() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = random_coil_maps(3, 16, generator)
    mask = torch.from_numpy(undersampling_mask(np.ones((16, 16), dtype=np.bool_), 3, centre_lines=4))
    physics = CartesianPhysics(maps[None].to(torch.complex128), mask)
    y = torch.randn((1, 3, 16, 16), dtype=torch.complex128, generator=generator) * mask
    solved = conjugate_gradients(physics, y, damping=0.3, tolerance=1e-11, max_steps=300)
    gradient = physics.adjoint(physics(solved.image) - y)
    # the normal operator of these maps has norm one, to the precision of the power iteration
    ratio = -(gradient / solved.image)
    assert float((ratio - ratio.mean()).abs().max() / ratio.abs().mean()) < 1e-6
    assert float(ratio.mean().real) == pytest.approx(0.09, rel=0.15)


def test_stopping_at_the_limit_is_said(ct: tuple[TomographyPhysics, torch.Tensor, torch.Tensor]) -> None:
    physics, _, y = ct
    assert conjugate_gradients(physics, y, damping=0.0, tolerance=1e-12, max_steps=3).outcome.value == "max_steps"


def test_tv_beats_fbp_from_few_views_and_lowers_its_objective(
    ct: tuple[TomographyPhysics, torch.Tensor, torch.Tensor],
) -> None:
    physics, truth, y = ct
    solved = total_variation(physics, y, strength=0.005, tolerance=1e-4, max_steps=200, nonnegative=True)
    assert psnr(solved.image, truth) > psnr(physics.fbp(y), truth) + 4
    assert float(solved.image.min()) >= 0


def test_stronger_tv_gives_less_variation(ct: tuple[TomographyPhysics, torch.Tensor, torch.Tensor]) -> None:
    physics, _, y = ct
    variation = []
    for strength in (0.002, 0.05, 0.5):
        image = total_variation(physics, y, strength=strength, tolerance=1e-4, max_steps=100, nonnegative=False).image
        variation.append(float(image.diff(dim=1).abs().sum() + image.diff(dim=2).abs().sum()))
    assert variation[0] > variation[1] > variation[2]


def test_sense_unfolds_what_zero_filling_aliases() -> None:
    generator = torch.Generator().manual_seed(6)
    truth = random_images(1, 64, generator).to(torch.complex64)
    maps = random_coil_maps(6, 64, generator)
    mask = torch.from_numpy(undersampling_mask(np.ones((64, 64), dtype=np.bool_), 3, centre_lines=8))
    physics = CartesianPhysics(maps[None], mask)
    y = simulate_kspace(truth, maps, 1e-3, generator) * mask
    solved = conjugate_gradients(physics, y, damping=0.02, tolerance=1e-4, max_steps=60)
    assert psnr(solved.image, truth) > psnr(physics.analytic(y), truth) + 8


def test_wavelet_shrinkage_denoises_a_complete_scan() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = random_images(2, 48, generator).to(torch.complex64)
    maps = torch.ones((1, 48, 48), dtype=torch.complex64)
    physics = CartesianPhysics(maps[None], torch.ones((48, 48), dtype=torch.bool))
    y = simulate_kspace(truth, maps, 0.1, generator)
    solved = wavelet(physics, y, strength=0.5, tolerance=1e-4, max_steps=40)
    assert psnr(solved.image, truth) > psnr(physics.analytic(y), truth) + 3


def test_wavelets_fill_in_what_was_not_sampled() -> None:
    generator = torch.Generator().manual_seed(5)
    # sides that no power of two divides
    truth = random_images(2, 60, generator).to(torch.complex64)
    maps = torch.ones((1, 60, 60), dtype=torch.complex64)
    mask = torch.rand((60, 60), generator=generator) < 1 / 3
    mask[26:34, 26:34] = True
    physics = CartesianPhysics(maps[None], mask)
    y = simulate_kspace(truth, maps, 1e-3, generator) * mask
    seen: list[Progress] = []
    solved = wavelet(physics, y, strength=0.003, tolerance=1e-4, max_steps=100, watch=seen.append)
    assert psnr(solved.image, truth) > psnr(physics.analytic(y), truth) + 3.5
    assert [p.step for p in seen] == list(range(1, solved.steps + 1))
    again = wavelet(physics, y, strength=0.003, tolerance=1e-4, max_steps=100)
    assert torch.equal(solved.image, again.image)


def test_strong_wavelet_shrinkage_leaves_the_mean() -> None:
    truth = random_images(1, 32, torch.Generator().manual_seed(1)).to(torch.complex64)
    maps = torch.ones((1, 1, 32, 32), dtype=torch.complex64)
    physics = CartesianPhysics(maps, torch.ones((32, 32), dtype=torch.bool))
    solved = wavelet(physics, physics(truth), strength=1e3, tolerance=1e-6, max_steps=1)
    # no detail is left, and an orthonormal basis keeps the mean in its coarsest coefficients
    torch.testing.assert_close(solved.image.mean(), truth.mean(), rtol=1e-4, atol=1e-6)
    assert float((solved.image - truth).norm()) > 0.2 * float(truth.norm())
    unshrunk = wavelet(physics, physics(truth), strength=0.0, tolerance=1e-6, max_steps=1)
    torch.testing.assert_close(unshrunk.image, truth, rtol=1e-4, atol=1e-5)


def test_wavelets_leave_nothing_as_it_is() -> None:
    physics = CartesianPhysics(
        torch.ones((1, 1, 16, 16), dtype=torch.complex64), torch.ones((16, 16), dtype=torch.bool)
    )
    solved = wavelet(
        physics, torch.zeros((2, 1, 16, 16), dtype=torch.complex64), strength=0.1, tolerance=0, max_steps=2
    )
    assert not solved.image.any()


def test_the_weight_of_a_ray_is_its_share_of_the_counts() -> None:
    counts = torch.tensor([[[1000.0, 10.0], [1.0, 989.0]], [[5.0, 5.0], [5.0, 5.0]]], dtype=torch.float64)
    y = torch.log(1e4 / counts)
    torch.testing.assert_close(counts_weights(y), counts / counts.mean(dim=(1, 2), keepdim=True))
    y[0, 0, 1], y[0, 1, 0] = torch.inf, torch.nan
    expected = torch.tensor([[1000.0, 0.0], [0.0, 989.0]], dtype=torch.float64)
    torch.testing.assert_close(counts_weights(y)[0], expected / expected.mean())
    # no ray has more photons than the open beam: noise below zero takes nothing from the others
    y = torch.tensor([[[-8.0, 0.0], [1.0, 2.0]]], dtype=torch.float64)
    assert torch.equal(counts_weights(y), counts_weights(y.clamp(min=0)))
    y = torch.log(1e4 / counts)
    # far out of the range of the exponential function
    torch.testing.assert_close(counts_weights(y[1:] - 1e4), torch.ones((1, 2, 2), dtype=torch.float64))
    assert not counts_weights(torch.full((1, 2, 2), torch.inf)).any()


def test_weighted_cgls_solves_the_weighted_problem() -> None:
    angles = np.linspace(0, np.pi, 14, endpoint=False) + 0.05
    physics = TomographyPhysics(ParallelBeam(angles, 0.8, 3.75), 8, 6)
    generator = torch.Generator().manual_seed(3)
    y = physics(torch.rand((2, 6, 6), dtype=torch.float64, generator=generator))
    y = y + 0.2 * torch.randn(y.shape, dtype=torch.float64, generator=generator)
    weights = counts_weights(y)
    spoilt = y.clone()
    spoilt[1, 3, 2], weights[1, 3, 2] = torch.nan, 0.0
    seen: list[Progress] = []
    solved = conjugate_gradients(
        physics, spoilt, damping=0.0, tolerance=1e-12, max_steps=300, weights=weights, watch=seen.append
    )
    assert solved.outcome.value == "converged"
    dense = physics(torch.eye(36, dtype=torch.float64).reshape(36, 6, 6)).reshape(36, -1).T
    for sample in range(2):
        weighted = weights[sample].flatten()[:, None] * dense
        direct = torch.linalg.solve(dense.T @ weighted, weighted.T @ y[sample].flatten())
        torch.testing.assert_close(solved.image[sample].flatten(), direct, rtol=1e-8, atol=1e-9)
    # the residual is that of the rays that count
    y[1, 3, 2] = physics(solved.image)[1, 3, 2]
    told = seen[-1].data_residual
    assert told is not None
    usable = torch.where(weights > 0, y, 0.0).flatten(1).norm(dim=1)
    torch.testing.assert_close(told, (physics(solved.image) - y).flatten(1).norm(dim=1) / usable)
    with pytest.raises(BadInput, match=r"weights of shape \(2, 14\)"):
        conjugate_gradients(physics, y, damping=0.0, tolerance=0.0, max_steps=1, weights=weights[..., 0])


@pytest.mark.parametrize(("shape", "axes"), [((2, 5, 7), 2), ((2, 4, 5, 6), 3), ((2, 3, 5, 6), 2), ((1, 1, 5, 6), 3)])
def test_divergence_is_the_negative_adjoint_of_the_differences(shape: tuple[int, ...], axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.complex128, generator=generator)
    field = torch.randn((axes, *shape), dtype=torch.complex128, generator=generator)
    left, right = torch.sum(differences(x, axes) * field.conj()), -torch.sum(x * divergence(field).conj())
    assert abs(left - right) < 1e-12 * abs(left)
    # only the last axes are space
    ramp = torch.arange(shape[-1], dtype=torch.float64).expand(shape)
    found = differences(ramp, axes)
    assert not found[:-1].any()
    assert (found[-1][..., :-1] == 1).all()


def test_sets_of_images_are_regularised_apart() -> None:
    generator = torch.Generator().manual_seed(8)
    truth = torch.stack([random_images(1, 32, generator), 0.5 * random_images(1, 32, generator)], dim=1)
    # each set is seen by a coil of its own, so that the problem falls into two
    maps = torch.zeros((1, 2, 2, 32, 32), dtype=torch.complex64)
    maps[:, 0, 0], maps[:, 1, 1] = 1, 1
    mask = torch.from_numpy(undersampling_mask(np.ones((32, 32), dtype=np.bool_), 2, centre_lines=8))
    physics = CartesianPhysics(maps, mask)
    y = physics(truth.to(torch.complex64))
    y = y + 0.01 * torch.randn(y.shape, dtype=y.dtype, generator=generator) * mask
    alone = CartesianPhysics(torch.ones((1, 1, 32, 32), dtype=torch.complex64), mask)
    level = float(physics.analytic(y).abs().square().mean().sqrt())
    both = total_variation(physics, y, strength=0.01, tolerance=0.0, max_steps=150, nonnegative=False).image
    for index in range(2):
        part = y[:, index, None]
        strength = 0.01 * level / float(alone.analytic(part).abs().square().mean().sqrt())
        one = total_variation(alone, part, strength=strength, tolerance=0.0, max_steps=150, nonnegative=False).image
        assert float((both[:, index] - one).norm() / one.norm()) < 1e-3
    for solved in (both, wavelet(physics, y, strength=0.01, tolerance=0.0, max_steps=30).image):
        assert solved.shape == truth.shape
        assert psnr(solved, truth) > psnr(physics.analytic(y), truth) + 2


def test_volumes_of_a_cone_beam() -> None:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    physics = ConeBeamPhysics(ConeBeam(angles, 60.0, 90.0, 1.5, 1.5, 5.5, 7.5), (12, 16), (6, 12, 12))
    truth = torch.zeros((1, 6, 12, 12))
    truth[:, 1:5, 3:9, 4:10] = 0.2
    y = physics(truth)
    y = y + 0.04 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))

    def error(image: torch.Tensor) -> float:
        assert image.shape == truth.shape
        return float((image - truth).norm() / truth.norm())

    analytic = error(physics.fdk(y))
    assert error(conjugate_gradients(physics, y, damping=0.0, tolerance=0.0, max_steps=8).image) < analytic
    assert (
        error(conjugate_gradients(physics, y, damping=0.0, tolerance=0.0, max_steps=8, weights=counts_weights(y)).image)
        < analytic
    )
    assert error(wavelet(physics, y, strength=0.02, tolerance=0.0, max_steps=20).image) < analytic
    smooth = total_variation(physics, y, strength=0.02, tolerance=0.0, max_steps=30, nonnegative=True).image
    assert error(smooth) < 0.5 * analytic


VIEWS = np.linspace(0, np.pi, 20, endpoint=False)
Method = Callable[[torch.Tensor], Reconstructed]


def _unlike() -> tuple[TomographyPhysics, torch.Tensor]:
    """Three slices of which one is clean, one faint and noisy, and one dense."""
    physics = TomographyPhysics(ParallelBeam(VIEWS, 1.0, 23.5), 48)
    truth = random_images(3, 48, torch.Generator().manual_seed(2))
    truth = truth / truth.amax((1, 2), keepdim=True) * torch.tensor([0.02, 0.001, 0.4])[:, None, None]
    y = physics(truth)
    drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    return physics, y + drawn * torch.tensor([0.0, 0.01, 0.05])[:, None, None]


def _methods(physics: TomographyPhysics) -> dict[str, Method]:
    return {
        "damped": lambda y: conjugate_gradients(physics, y, damping=0.03, tolerance=1e-3, max_steps=30),
        "damped counts": lambda y: conjugate_gradients(
            physics, y, damping=0.03, tolerance=3e-2, max_steps=25, weights=counts_weights(y)
        ),
        "tv": lambda y: total_variation(physics, y, strength=0.02, tolerance=2e-3, max_steps=60, nonnegative=True),
        "wavelet": lambda y: wavelet(physics, y, strength=0.02, tolerance=4e-2, max_steps=40),
        "primal-dual": lambda y: primal_dual_total_variation(
            physics, y, strength=0.02, tolerance=1e-2, max_steps=60, nonnegative=True, weights=counts_weights(y)
        ),
        "sirt": lambda y: simultaneous_iterations(
            physics, y, tolerance=1e-2, max_steps=60, nonnegative=True, weights=counts_weights(y)
        ),
        "subsets": lambda y: simultaneous_iterations(
            physics,
            y,
            tolerance=1e-2,
            max_steps=30,
            nonnegative=True,
            subsets=ordered_subsets(VIEWS, 4, turn_rad=math.pi),
        ),
    }


@pytest.mark.parametrize("name", _methods(_unlike()[0]))
def test_a_slice_does_not_depend_on_which_others_it_is_made_with(name: str) -> None:
    physics, y = _unlike()
    method = _methods(physics)[name]
    together = method(y)
    alone = [method(one[None]) for one in y]
    for image, one in zip(together.image, alone, strict=True):
        assert float((image - one.image[0]).norm() / one.image.norm()) < 1e-5
    steps = [one.steps for one in alone]
    assert together.steps == max(steps)
    # some end before others
    assert len(set(steps)) > 1


@pytest.mark.parametrize("name", ["damped", "tv", "wavelet", "subsets"])
def test_a_slice_that_cannot_be_made_does_not_end_the_others(name: str) -> None:
    physics, y = _unlike()
    method = _methods(physics)[name]
    spoilt = y.clone()
    spoilt[1, 4] = 1e38
    found = method(spoilt)
    assert found.outcome.value == "diverged"
    for index in (0, 2):
        one = method(y[index, None]).image[0]
        assert float((found.image[index] - one).norm() / one.norm()) < 1e-5
