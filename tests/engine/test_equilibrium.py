"""Implicit gradients against long unrolled ones, through the whole equivariant imaging loss, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise_engine.acquisition import ParallelBeam
from equipoise_engine.ct import ParallelBeamPhysics
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings
from equipoise_engine.losses import equivariance, measurement_consistency
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.operators import Physics
from equipoise_engine.phantoms import random_coil_maps
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.solve import Outcome, Stop


class _Damped(nn.Module):
    """0.85 D, so that the map of a random network contracts and a long unrolled run converges."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = 0.85 * self.inner(x)
        return result


def build(modality: str) -> tuple[EquilibriumModel, Physics, Tensor]:
    torch.manual_seed(0)
    model = EquilibriumModel(Architecture(2 if modality == "mri" else 1, (4, 4, 4))).double()
    nn.init.normal_(model.denoiser.leave.weight, std=0.1)
    model.denoiser = _Damped(model.denoiser)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    if modality == "ct":
        angles = np.linspace(0, np.pi, 7, endpoint=False)
        physics: Physics = ParallelBeamPhysics(ParallelBeam(angles, 1.0, 7.5), 16)
        return model, physics, torch.randn((2, 7, 16), dtype=torch.float64, generator=generator)
    maps = random_coil_maps(2, 16, generator)[None].to(torch.complex128)
    mask = torch.from_numpy(undersampling_mask(np.ones((16, 16), dtype=np.bool_), 3, centre_lines=4))
    y = torch.randn((2, 2, 16, 16), dtype=torch.complex128, generator=generator) * mask
    return model, CartesianPhysics(maps, mask), y


def loss_of(reconstruct: object, y: Tensor, physics: Physics) -> Tensor:
    angles = torch.tensor([0.3, 2.0], dtype=torch.float64)
    x_hat = reconstruct(y, physics)  # type: ignore[operator]
    consistent = measurement_consistency(x_hat, y, physics)
    return (consistent + equivariance(x_hat, physics, reconstruct, angles=angles)).mean()  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_gradient_of_the_two_call_loss_equals_the_unrolled_one(modality: str) -> None:
    model, physics, y = build(modality)
    report = BackwardReport()

    def implicit(measured: Tensor, operator: Physics) -> Tensor:
        value, solution = model(
            measured,
            operator,
            solver=ForwardSettings(stop=Stop(1e-13, 400)),
            backward=BackwardSettings(1e-12, 200),
            report=report,
        )
        assert solution.outcome is Outcome.CONVERGED
        return value

    def unrolled(measured: Tensor, operator: Physics) -> Tensor:
        x = operator.analytic(measured.detach())
        for _ in range(300):
            x = model.step(x, measured, operator)
        return x

    gradients = []
    for reconstruct in (implicit, unrolled):
        measured = y.clone().requires_grad_()
        model.zero_grad()
        loss_of(reconstruct, measured, physics).backward()
        assert measured.grad is not None
        parts = [p.grad for p in model.parameters()] + [
            torch.view_as_real(measured.grad) if y.is_complex() else measured.grad
        ]
        gradients.append([g.clone() for g in parts if g is not None])
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm())
    assert len(report.steps) == 2
    assert report.unconverged == report.replaced == 0


def test_jacobian_free_gradients_differ_and_take_no_backward_steps() -> None:
    model, physics, y = build("ct")
    found = []
    for steps in (200, 0):
        report = BackwardReport()
        model.zero_grad()
        value, _ = model(
            y,
            physics,
            solver=ForwardSettings(stop=Stop(1e-12, 400)),
            backward=BackwardSettings(1e-12, steps),
            report=report,
        )
        value.square().sum().backward()
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
        assert bool(report.steps) == bool(steps)
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert 0.0 < float(cosine) < 0.999


def test_without_gradients_nothing_is_kept() -> None:
    model, physics, y = build("ct")
    with torch.no_grad():
        value, _ = model(y, physics)
    assert not value.requires_grad


def test_the_start_is_a_function_of_the_measurements_alone() -> None:
    model, physics, y = build("ct")
    starts: list[Tensor] = []
    original = model.step

    def step(x: Tensor, measured: Tensor, operator: Physics) -> Tensor:
        starts.append(x.detach().clone())
        return original(x, measured, operator)

    model.step = step  # type: ignore[method-assign]
    model(y, physics)
    assert torch.equal(starts[0], physics.analytic(y))


@pytest.mark.parametrize("stage", ["solve", "backward"])
def test_is_cancelled_in_the_forward_and_in_the_backward_solve(stage: str) -> None:
    model, physics, y = build("ct")

    def watch(progress: Progress) -> None:
        if progress.stage == stage and progress.step == 2:
            raise Cancelled

    def both_solves() -> None:
        value, _ = model(y, physics, backward=BackwardSettings(1e-12, 100), watch=watch)
        value.sum().backward()

    with pytest.raises(Cancelled):
        both_solves()


def test_scaling_the_measurements_scales_the_reconstruction() -> None:
    model, physics, y = build("mri")
    with torch.no_grad():
        one, a = model(y, physics, solver=ForwardSettings(stop=Stop(1e-8, 300)))
        thousand, b = model(1e3 * y, physics, solver=ForwardSettings(stop=Stop(1e-8, 300)))
    assert torch.equal(a.steps, b.steps)
    torch.testing.assert_close(thousand / 1e3, one)
