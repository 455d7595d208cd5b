"""The classical methods: they converge to what they minimise, and say when they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise_engine.acquisition import ParallelBeam
from equipoise_engine.classical import conjugate_gradients, data_residual, total_variation, wavelet
from equipoise_engine.ct import ParallelBeamPhysics
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.phantoms import random_coil_maps, random_images, simulate_kspace
from equipoise_engine.progress import Progress


@pytest.fixture(name="ct")
def _ct() -> tuple[ParallelBeamPhysics, torch.Tensor, torch.Tensor]:
    physics = ParallelBeamPhysics(ParallelBeam(np.linspace(0, np.pi, 24, endpoint=False), 1.0, 31.5), 64)
    truth = random_images(2, 64, torch.Generator().manual_seed(2))
    return physics, truth, physics(truth)


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(10 * torch.log10(truth.abs().max() ** 2 / (image - truth).abs().square().mean()))


def test_cgls_solves_the_normal_equations() -> None:
    physics = ParallelBeamPhysics(ParallelBeam(np.linspace(0, np.pi, 40, endpoint=False), 1.0, 7.5), 16)
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


def test_stopping_at_the_limit_is_said(ct: tuple[ParallelBeamPhysics, torch.Tensor, torch.Tensor]) -> None:
    physics, _, y = ct
    assert conjugate_gradients(physics, y, damping=0.0, tolerance=1e-12, max_steps=3).outcome.value == "max_steps"


def test_tv_beats_fbp_from_few_views_and_lowers_its_objective(
    ct: tuple[ParallelBeamPhysics, torch.Tensor, torch.Tensor],
) -> None:
    physics, truth, y = ct
    solved = total_variation(physics, y, strength=0.005, tolerance=1e-4, max_steps=200, nonnegative=True)
    assert psnr(solved.image, truth) > psnr(physics.fbp(y), truth) + 4
    assert float(solved.image.min()) >= 0


def test_stronger_tv_gives_less_variation(ct: tuple[ParallelBeamPhysics, torch.Tensor, torch.Tensor]) -> None:
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
