"""Implicit gradients against long unrolled ones, through the losses they serve, in double precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.groups import rotate
from equipoise_engine.losses import measurement_consistency
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.operators import Physics
from equipoise_engine.phantoms import random_coil_maps
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.solve import Anderson, Outcome, Solution, Stop

Reconstruct = Callable[[Tensor, Physics], Tensor]
MAPS = ("pgd", "red", "hqs")


class _Damped(nn.Module):
    """0.85 D, so that the map of a random network contracts and a long unrolled run converges."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.symmetric = inner.symmetric

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = 0.85 * self.inner(x)
        return result


def build(
    modality: str, fixed_point: str = "pgd", network: str = "unet", side: int = 16
) -> tuple[EquilibriumModel, Physics, Tensor]:
    torch.manual_seed(0)
    model = EquilibriumModel(Architecture(1 if modality == "ct" else 2, (4, 4, 4), network, fixed_point)).double()
    if fixed_point == "red":
        nn.init.constant_(model.step_logit, 0.0)
    # small enough for I - J_D to stay positive, large enough for J_D to matter
    nn.init.normal_(model.denoiser.leave.weight, std=0.01 if network == "gradient-step" else 0.1)
    model.denoiser = _Damped(model.denoiser)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    if modality == "ct":
        angles = np.linspace(0, np.pi, 7, endpoint=False)
        physics: Physics = TomographyPhysics(ParallelBeam(angles, 1.0, (side - 1) / 2), side)
        return model, physics, torch.randn((2, 7, side), dtype=torch.float64, generator=generator)
    coils = 1 if modality == "single-coil" else 2
    maps = random_coil_maps(coils, side, generator)[None].to(torch.complex128)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.from_numpy(undersampling_mask(np.ones((side, side), dtype=np.bool_), 3, centre_lines=4))
    y = torch.randn((2, coils, side, side), dtype=torch.complex128, generator=generator) * mask
    return model, CartesianPhysics(maps, mask), y


def implicit(
    model: EquilibriumModel, settings: BackwardSettings, report: BackwardReport | None = None, copies: int = 1
) -> Reconstruct:
    def reconstruct(y: Tensor, physics: Physics) -> Tensor:
        value, solution = model(
            y, physics, solver=ForwardSettings(stop=Stop(1e-12, 800)), backward=settings, report=report
        )
        assert solution.outcome is Outcome.CONVERGED
        result: Tensor = value
        return result

    return reconstruct


def unrolled(model: EquilibriumModel, steps: int) -> Reconstruct:
    def reconstruct(y: Tensor, physics: Physics) -> Tensor:
        value, _ = model(y, physics, backward=BackwardSettings("unrolled", max_steps=steps))
        result: Tensor = value
        return result

    return reconstruct


def two_calls(reconstruct: Reconstruct, y: Tensor, physics: Physics) -> Tensor:
    """Measurement consistency and equivariance, written out: the second call takes what the first gave."""
    x_hat = reconstruct(y, physics)
    turned = rotate(x_hat, torch.tensor([0.3, 2.0], dtype=torch.float64))
    again = reconstruct(physics.forward(turned), physics)
    equivariant = (again - turned).abs().square().sum() / turned.abs().square().sum()
    return measurement_consistency(x_hat, y, physics).sum() + equivariant


def three_calls(reconstruct: Reconstruct, y: Tensor, physics: Physics) -> Tensor:
    """The same with the divergence of Stein's estimate: one call more, on perturbed measurements."""
    probe = physics.noise_like(y, torch.Generator().manual_seed(5))
    moved = physics.forward(reconstruct(y + 0.1 * probe, physics)) - physics.forward(reconstruct(y, physics))
    divergence = (probe.conj() * moved).real.sum() if y.is_complex() else (probe * moved).sum()
    return two_calls(reconstruct, y, physics) + 0.1 * divergence


def gradients(
    loss: Callable[[Reconstruct, Tensor, Physics], Tensor],
    reconstruct: Reconstruct,
    model: EquilibriumModel,
    y: Tensor,
    physics: Physics,
) -> list[Tensor]:
    measured = y.clone().requires_grad_()
    model.zero_grad()
    loss(reconstruct, measured, physics).backward()
    assert measured.grad is not None
    return [p.grad.clone() for p in model.parameters() if p.grad is not None] + [measured.grad.clone()]


def furthest(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(("modality", "fixed_point"), list(itertools.product(("ct", "mri"), MAPS)))
def test_gradient_of_the_two_call_loss_equals_the_unrolled_one(modality: str, fixed_point: str) -> None:
    model, physics, y = build(modality, fixed_point)
    report = BackwardReport()
    found = gradients(
        two_calls, implicit(model, BackwardSettings(tolerance=1e-12, max_steps=300), report), model, y, physics
    )
    exact = gradients(two_calls, unrolled(model, 120), model, y, physics)
    assert furthest(found, exact) <= 1e-6
    assert len(report.steps) == 2
    assert report.unconverged == report.replaced == 0


@pytest.mark.long
def test_gradient_of_the_three_call_loss_equals_the_unrolled_one() -> None:
    model, physics, y = build("ct")
    settings = BackwardSettings(tolerance=1e-12, max_steps=300)
    found = gradients(three_calls, implicit(model, settings), model, y, physics)
    exact = gradients(three_calls, unrolled(model, 120), model, y, physics)
    assert furthest(found, exact) <= 1e-6


def test_samples_of_different_speed_share_a_batch_without_harm() -> None:
    model, physics, y = build("ct")
    # the network is homogeneous but not linear: another image, another Jacobian, another number of steps
    other = torch.cat([y[:1], torch.zeros_like(y[:1]) + 1.0])
    settings = BackwardSettings(tolerance=1e-12, max_steps=300)
    _, solution = model(other, physics, solver=ForwardSettings(stop=Stop(1e-12, 800)))
    assert int(solution.steps[0]) != int(solution.steps[1])
    found = gradients(two_calls, implicit(model, settings), model, other, physics)
    exact = gradients(two_calls, unrolled(model, 120), model, other, physics)
    assert furthest(found, exact) <= 1e-6


@pytest.mark.long
@pytest.mark.parametrize(("modality", "fixed_point"), [("ct", "red"), ("single-coil", "hqs")])
def test_every_adjoint_solver_gives_the_same_gradient_for_a_symmetric_denoiser(modality: str, fixed_point: str) -> None:
    model, physics, y = build(modality, fixed_point, "gradient-step")
    exact = gradients(two_calls, unrolled(model, 240), model, y, physics)
    for solver in ("gmres", "anderson", "cg"):
        settings = BackwardSettings(tolerance=1e-10, max_steps=300, solver=solver)
        assert furthest(gradients(two_calls, implicit(model, settings), model, y, physics), exact) <= 1e-6, solver


def test_a_symmetric_jacobian_is_solved_by_conjugate_gradients_in_no_more_steps() -> None:
    model, physics, y = build("ct", "red", "gradient-step")
    steps = {}
    for solver in ("auto", "cg", "gmres"):
        report = BackwardReport()
        gradients(
            two_calls, implicit(model, BackwardSettings("implicit", 1e-6, 200, solver), report), model, y, physics
        )
        steps[solver] = report.steps
    assert steps["auto"] == steps["cg"]


@pytest.mark.long
@pytest.mark.parametrize(("modality", "fixed_point"), [("ct", "pgd"), ("ct", "red"), ("single-coil", "hqs")])
def test_neumann_series_approach_the_exact_gradient_from_the_jacobian_free_one(modality: str, fixed_point: str) -> None:
    model, physics, y = build(modality, fixed_point)
    exact = gradients(two_calls, implicit(model, BackwardSettings(tolerance=1e-12, max_steps=300)), model, y, physics)
    errors = []
    for settings in (
        BackwardSettings("jacobian-free"),
        BackwardSettings("neumann", max_steps=5),
        BackwardSettings("neumann", max_steps=40),
        BackwardSettings("neumann", max_steps=300),
    ):
        report = BackwardReport()
        errors.append(furthest(gradients(two_calls, implicit(model, settings, report), model, y, physics), exact))
        assert report.steps == ([] if settings.mode == "jacobian-free" else [settings.max_steps] * 2)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-6


def test_a_warm_start_of_the_adjoint_solve_changes_the_steps_and_not_the_gradient() -> None:
    model, physics, y = build("ct", "red", "gradient-step")
    found, steps = [], []
    for warm in (False, True):
        report = BackwardReport()
        settings = BackwardSettings("implicit", 1e-10, 300, "gmres", warm)
        found.append(gradients(two_calls, implicit(model, settings, report), model, y, physics))
        steps.append(report.steps)
    assert furthest(found[1], found[0]) <= 1e-7
    assert steps[0] != steps[1]


@pytest.mark.parametrize(("modality", "fixed_point"), [("ct", "pgd"), ("mri", "red")])
def test_samples_one_after_the_other_give_the_gradient_of_all_at_once(modality: str, fixed_point: str) -> None:
    model, physics, y = build(modality, fixed_point)
    found = [
        gradients(
            two_calls,
            implicit(model, BackwardSettings(tolerance=1e-11, max_steps=300, samples_at_once=at_once)),
            model,
            y,
            physics,
        )
        for at_once in (0, 1)
    ]
    assert furthest(found[1], found[0]) <= 1e-8


@pytest.mark.parametrize("checkpoints", [False, True])
def test_unrolled_takes_its_steps_and_says_that_it_has_not_converged(checkpoints: bool) -> None:
    model, physics, y = build("ct")
    settings = BackwardSettings("unrolled", max_steps=4, checkpoints=checkpoints)
    value, solution = model(y, physics, backward=settings)
    x = physics.analytic(y)
    for _ in range(4):
        x = model.step(x, y, physics)
    torch.testing.assert_close(value, x)
    assert solution.outcome is Outcome.MAX_STEPS
    assert solution.residuals.shape == (4, 2)
    parts = torch.autograd.grad(value.sum(), list(model.parameters()))
    torch.testing.assert_close(parts, torch.autograd.grad(x.sum(), list(model.parameters())))


@pytest.mark.parametrize("fixed_point", MAPS)
def test_an_unrolled_run_is_differentiated_away_from_the_fixed_point_too(fixed_point: str) -> None:
    model, physics, y = build("ct", fixed_point)
    settings = BackwardSettings("unrolled", max_steps=3)

    def loss() -> Tensor:
        value, _ = model(y, physics, backward=settings)
        return value.square().sum()

    (found,) = torch.autograd.grad(loss(), [model.step_logit])
    values = []
    for change in (1e-5, -1e-5):
        with torch.no_grad():
            model.step_logit += change
            values.append(float(loss()))
            model.step_logit -= change
    assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("fixed_point", ["red", "hqs"])
@torch.no_grad()
def test_the_map_is_the_root_function_behind_its_preconditioner(fixed_point: str) -> None:
    for modality in ("ct", "mri", "single-coil"):
        model, physics, y = build(modality, fixed_point)
        function = model.map(physics)
        x = torch.randn((2, 16, 16), dtype=y.dtype, generator=torch.Generator().manual_seed(2))
        expected = x - function.precondition(function.root(x, y))
        torch.testing.assert_close(function.step(x, y), expected, rtol=1e-8, atol=1e-10)
        other = torch.randn((2, 16, 16), dtype=y.dtype, generator=torch.Generator().manual_seed(3))
        left = torch.sum((function.precondition(x).conj() * other).real)
        right = torch.sum((x.conj() * function.precondition(other)).real)
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
        assert float(torch.sum((x.conj() * function.precondition(x)).real)) > 0


def test_the_preconditioner_of_red_keeps_the_fixed_point_and_saves_steps() -> None:
    model, _, _ = build("ct", "red", "gradient-step")
    nn.init.constant_(model.step_logit, -3.0)
    physics = TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, 40, endpoint=False), 1.0, 15.5), 32)
    y = torch.randn((2, 40, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    function = model.map(physics)
    first = function.root(torch.zeros((2, 32, 32), dtype=torch.float64), y).norm()

    def descend(precondition: Callable[[Tensor], Tensor], limit: int) -> tuple[Tensor, int]:
        x = physics.analytic(y)
        for step in range(limit):
            residual = function.root(x, y)
            if float(residual.norm() / first) < 1e-4:
                return x, step
            x = x - 0.9 * precondition(residual)
        return x, limit

    with torch.no_grad():
        preconditioned, few = descend(function.precondition, 500)
        plain, many = descend(lambda residual: residual, 500)
        found, solution = model(y, physics, solver=ForwardSettings(stop=Stop(1e-9, 800)))
        assert solution.outcome is Outcome.CONVERGED
        assert float(function.root(found, y).norm() / first) < 1e-7
    assert 3 * few < many
    torch.testing.assert_close(preconditioned, found, rtol=1e-2, atol=1e-2 * float(found.abs().max()))
    torch.testing.assert_close(plain, found, rtol=1e-1, atol=1e-1 * float(found.abs().max()))


def test_the_closed_form_of_half_quadratic_splitting_is_the_solution_of_its_system() -> None:
    _, physics, y = build("single-coil", "hqs")
    b = torch.randn((2, 16, 16), dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    closed = physics.resolvent(b, 3.0)
    assert closed is not None
    torch.testing.assert_close(closed + 3.0 * physics.normal(closed), b)
    assert build("mri", "hqs")[1].resolvent(b, 3.0) is None


@pytest.mark.parametrize("fixed_point", ["red", "hqs"])
def test_a_stronger_prior_explains_the_data_less(fixed_point: str) -> None:
    model, physics, y = build("ct", fixed_point)
    residuals = []
    with torch.no_grad():
        for strength in (0.1, 1.0, 10.0):
            x, _ = model(y, physics, strength=strength, solver=ForwardSettings(stop=Stop(1e-8, 800)))
            residuals.append(float(measurement_consistency(x, y, physics).sum()))
    assert residuals == sorted(residuals)
    assert residuals[2] > 1.2 * residuals[0]


def test_a_strength_is_refused_where_there_is_none() -> None:
    model, physics, y = build("ct", "pgd")
    with pytest.raises(BadInput, match="no strength to choose, and 2 was asked for"):
        model(y, physics, strength=2.0)
    model, physics, y = build("ct", "red")
    with pytest.raises(BadInput, match="-1 is not a positive number"):
        model(y, physics, strength=-1.0)


@pytest.mark.parametrize("fixed_point", MAPS)
def test_a_sample_does_not_depend_on_its_batch_mates(fixed_point: str) -> None:
    model, physics, y = build("ct", fixed_point)
    solver = ForwardSettings(stop=Stop(1e-8, 400))
    with torch.no_grad():
        together, both = model(y, physics, solver=solver)
        alone, one = model(y[1:], physics, solver=solver)
        mates, _ = model(torch.stack([torch.full_like(y[0], torch.nan), y[1]]), physics, solver=solver)
    assert int(both.steps[1]) == int(one.steps[0])
    torch.testing.assert_close(together[1], alone[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(mates[1], alone[0], rtol=1e-6, atol=1e-9)


def test_a_sample_without_finite_gradient_does_not_spoil_the_others() -> None:
    model, physics, y = build("ct")
    for settings in (BackwardSettings(solver="gmres"), BackwardSettings(solver="anderson")):
        report = BackwardReport()
        measured = y.clone().requires_grad_()
        value, _ = model(measured, physics, backward=settings, report=report)
        weights = torch.ones_like(value)
        weights[0, 3, 3] = torch.inf
        (found,) = torch.autograd.grad((weights * value).sum(), measured)
        value, _ = model(measured, physics, backward=settings)
        (clean,) = torch.autograd.grad(value.sum(), measured)
        torch.testing.assert_close(found[1], clean[1], rtol=1e-6, atol=1e-9)
        assert report.replaced == 1


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("fixed_point", MAPS)
def test_steps_and_gradients_do_not_depend_on_the_scale_of_the_data_and_of_the_loss(
    fixed_point: str, scale: float
) -> None:
    found, steps, solves = [], [], []
    for data, loss in ((1.0, 1.0), (scale, 1.0), (1.0, scale)):
        model, physics, y = build("ct", fixed_point)
        report = BackwardReport()
        measured = (data * y).requires_grad_()
        value, solution = model(measured, physics, solver=ForwardSettings(stop=Stop(1e-8, 300)), report=report)
        (gradient,) = torch.autograd.grad(loss * value.sum(), measured)
        found.append(gradient / loss)
        steps.append(report.steps)
        solves.append(solution.steps.tolist())
    assert steps[0] == steps[1] == steps[2]
    assert solves[0] == solves[1] == solves[2]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-12)


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """The bytes that autograd holds for the backward pass, each storage counted once."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    assert kept.requires_grad
    return sum(held.values())


def test_memory_between_forward_and_backward_does_not_grow_with_the_steps() -> None:
    model, physics, y = build("ct", side=32)

    def by_steps(steps: int) -> int:
        def run() -> Tensor:
            value, solution = model(y, physics, solver=ForwardSettings(stop=Stop(1e-30, steps)))
            assert int(solution.steps.max()) == steps
            result: Tensor = value
            return result

        return saved_bytes(run)

    def unrolled_by_steps(steps: int) -> int:
        return saved_bytes(lambda: unrolled(model, steps)(y, physics))

    assert by_steps(5) == by_steps(40)
    assert unrolled_by_steps(20) > 3 * unrolled_by_steps(5)
    # x*, y and the parameters: less than one evaluation of the network keeps
    assert by_steps(5) < 0.5 * unrolled_by_steps(1)


def test_without_gradients_nothing_is_kept() -> None:
    model, physics, y = build("ct")
    with torch.no_grad():
        value, _ = model(y, physics)
    assert not value.requires_grad


def test_the_start_is_a_function_of_the_measurements_alone() -> None:
    model, physics, y = build("ct")
    starts: list[Tensor] = []
    hook = model.denoiser.register_forward_pre_hook(lambda module, given: starts.append(given[0][:, 0].clone()))
    with torch.no_grad():
        model(y, physics)
    hook.remove()
    analytic = physics.analytic(y)
    expected = analytic - 2 * torch.sigmoid(model.step_logit) * physics.gradient(analytic, y)
    torch.testing.assert_close(starts[0], expected)


def test_warm_and_cold_solves_meet_within_their_tolerance() -> None:
    model, physics, y = build("ct")
    tolerance = 1e-6
    solver = ForwardSettings(stop=Stop(tolerance, 400))
    solves: list[Solution] = []
    with torch.no_grad():
        x_hat, _ = model(y, physics, solver=solver)
        turned = rotate(x_hat, torch.tensor([0.3, 2.0], dtype=torch.float64))
        again = physics.forward(turned)
        values = []
        for start in (None, turned):
            value, solution = model(again, physics, solver=solver, start=start)
            values.append(value)
            solves.append(solution)
    with torch.no_grad():
        plain = ForwardSettings(method=Anderson(memory=0), stop=Stop(1e-30, 40))
        _, picard = model(again, physics, solver=plain)
    rate = float((picard.residuals[-1] / picard.residuals[-2]).max())
    assert rate < 1
    bound = 2 * tolerance / (1 - rate) * float(values[0].norm())
    assert float((values[0] - values[1]).norm()) <= bound


@pytest.mark.parametrize("stage", ["solve", "backward"])
@pytest.mark.parametrize("mode", ["implicit", "neumann"])
def test_is_cancelled_in_the_forward_and_in_the_backward_solve(stage: str, mode: str) -> None:
    model, physics, y = build("ct")

    def watch(progress: Progress) -> None:
        if progress.stage == stage and progress.step == 2:
            raise Cancelled

    def both_solves() -> None:
        value, _ = model(y, physics, backward=BackwardSettings(mode, 1e-12, 100), watch=watch)
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "magic"}, "unknown backward mode 'magic'"),
        ({"solver": "magic"}, "unknown backward solver 'magic'"),
        ({"max_steps": 0}, "0 backward steps"),
        ({"samples_at_once": -1}, "-1 samples at once"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        BackwardSettings(**wrong)  # type: ignore[arg-type]
