"""Known fixed points: convergence, safeguards, independence of samples and of scale, resumption, cancellation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.krylov import conjugate_gradients, gmres
from equipoise_engine.operators import norms
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.solve import Anderson, Map, Outcome, Stop, solve

SIZE = 40


def linear(radii: list[float], scale: float = 1.0) -> tuple[Map, Tensor]:
    """A symmetric map per sample with spectrum in [0, radius], and its fixed points."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn((SIZE, SIZE), dtype=torch.float64, generator=generator))
    matrices = torch.stack(
        [basis @ torch.diag(torch.linspace(0, r, SIZE, dtype=torch.float64)) @ basis.T for r in radii]
    )
    offset = scale * torch.randn((len(radii), SIZE), dtype=torch.float64, generator=generator)
    fixed = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - matrices, offset[:, :, None])[:, :, 0]

    def apply(x: Tensor, samples: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", matrices[samples], x) + offset[samples]

    return apply, fixed


@pytest.mark.parametrize("method", [Anderson(), Anderson(memory=0), Anderson(memory=1), Anderson(memory=8)])
def test_finds_the_fixed_point(method: Anderson) -> None:
    apply, fixed = linear([0.5, 0.9])
    found = solve(apply, torch.zeros_like(fixed), method=method, stop=Stop(1e-11, 500))
    assert found.outcome is Outcome.CONVERGED
    torch.testing.assert_close(found.value, fixed, rtol=1e-8, atol=1e-8)


def test_anderson_needs_far_fewer_steps_than_plain_iteration() -> None:
    apply, fixed = linear([0.97])
    plain = solve(apply, torch.zeros_like(fixed), method=Anderson(memory=0), stop=Stop(1e-6, 2000))
    mixed = solve(apply, torch.zeros_like(fixed), method=Anderson(), stop=Stop(1e-6, 2000))
    assert 3 * int(mixed.steps) < int(plain.steps)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_steps_and_result_do_not_depend_on_the_scale(scale: float) -> None:
    apply, fixed = linear([0.9, 0.97])
    scaled, _ = linear([0.9, 0.97], scale)
    one = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    other = solve(scaled, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    assert torch.equal(one.steps, other.steps)
    torch.testing.assert_close(other.value / scale, one.value, rtol=1e-6, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch_and_stops_by_itself() -> None:
    apply, fixed = linear([0.3, 0.95, 0.7])
    together = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    for index in range(3):
        alone = solve(
            lambda x, samples, index=index: apply(x, samples + index),
            torch.zeros_like(fixed[:1]),
            stop=Stop(1e-8, 300),
        )
        assert int(alone.steps) == int(together.steps[index])
        torch.testing.assert_close(alone.value[0], together.value[index], rtol=1e-9, atol=1e-9)
    assert int(together.steps[0]) < int(together.steps[2]) < int(together.steps[1])


def test_a_sample_that_diverges_to_nan_leaves_the_others_alone() -> None:
    apply, fixed = linear([0.9, 0.9])

    def broken(x: Tensor, samples: Tensor) -> Tensor:
        value = apply(x, samples)
        return torch.where((samples == 0)[:, None] & (x.abs().sum(1, keepdim=True) > 0), torch.nan, value)

    found = solve(broken, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    clean = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    assert found.outcomes == (Outcome.DIVERGED, Outcome.CONVERGED)
    assert found.outcome is Outcome.DIVERGED
    assert torch.isfinite(found.value).all()
    torch.testing.assert_close(found.value[1], clean.value[1])


def test_an_expanding_map_ends_at_the_limit_and_keeps_the_best() -> None:
    found = solve(
        lambda x, samples: 1.5 * x + 1.0,
        torch.ones((1, 4), dtype=torch.float64),
        method=Anderson(memory=0),
        stop=Stop(1e-6, 20),
    )
    assert found.outcome is Outcome.MAX_STEPS
    assert float(found.residual) == pytest.approx(float(found.residuals.min()))


def test_reports_every_step_with_the_undamped_residual() -> None:
    apply, fixed = linear([0.8])
    seen: list[Progress] = []
    found = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-6, 100), watch=seen.append)
    assert [p.step for p in seen] == list(range(1, int(found.steps) + 1))
    last = seen[-1].fixed_point_residual
    assert last is not None
    assert float(last) == float(found.residuals[-1, 0]) <= 1e-6


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_continuing_is_bit_equal_to_never_having_stopped(stop_at: int) -> None:
    apply, fixed = linear([0.9, 0.97])
    whole = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-9, 40))
    part = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-9, stop_at))
    rest = solve(apply, part.last, stop=Stop(1e-9, 40))
    assert torch.equal(rest.value, whole.value)
    assert torch.equal(rest.last.x, whole.last.x)


def test_is_cancelled_at_the_step_that_asks() -> None:
    apply, fixed = linear([0.99])
    calls = 0

    def watch(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if progress.step == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        solve(apply, torch.zeros_like(fixed), stop=Stop(1e-12, 1000), watch=watch)
    assert calls == 5


def test_complex_images_are_solved_too() -> None:
    apply, fixed = linear([0.9])
    turned = torch.complex(fixed, -2 * fixed)

    def complex_map(x: Tensor, samples: Tensor) -> Tensor:
        value = apply(x.real, samples)
        return torch.complex(value, apply(-x.imag / 2, samples) * -2)

    found = solve(complex_map, torch.zeros_like(turned), stop=Stop(1e-11, 300))
    torch.testing.assert_close(found.value, turned, rtol=1e-8, atol=1e-8)


def test_a_continued_solve_counts_the_steps_of_each_sample_and_keeps_its_last_residual() -> None:
    apply, fixed = linear([0.3, 0.95])
    whole = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, 300))
    part = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, int(whole.steps[0]) + 2))
    rest = solve(apply, part.last, stop=Stop(1e-8, 300))
    assert torch.equal(rest.steps, whole.steps)
    assert torch.equal(rest.residuals, whole.residuals[part.last.step :])


def test_variants_of_a_sample_stop_together() -> None:
    apply, fixed = linear([0.3, 0.6, 0.95, 0.6])
    found = solve(apply, torch.zeros_like(fixed), stop=Stop(1e-8, 300, copies=2))
    assert found.steps[0] == found.steps[2]
    assert found.steps[1] == found.steps[3]
    assert found.steps[0] != found.steps[1]
    with pytest.raises(BadInput, match="a batch of 4 does not hold 3 variants"):
        solve(apply, torch.zeros_like(fixed), stop=Stop(copies=3))


def test_conjugate_gradients_solve_definite_systems_and_say_where_one_is_not() -> None:
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn((SIZE, SIZE), dtype=torch.float64, generator=generator))
    good = basis @ torch.diag(torch.linspace(0.1, 3.0, SIZE, dtype=torch.float64)) @ basis.T
    bad = basis @ torch.diag(torch.linspace(-1.0, 3.0, SIZE, dtype=torch.float64)) @ basis.T
    matrices = torch.stack([good, bad])
    right = torch.stack([torch.ones(SIZE, dtype=torch.float64), basis[:, 0]])
    diagonal = matrices.diagonal(dim1=1, dim2=2).abs()
    for precondition in (None, lambda r: r / diagonal):
        found = conjugate_gradients(
            lambda v: torch.einsum("bij,bj->bi", matrices, v),
            right,
            tolerance=1e-9,
            max_steps=300,
            precondition=precondition,
        )
        assert found.outcomes[0] is Outcome.CONVERGED
        torch.testing.assert_close(found.value[0], torch.linalg.solve(good, right[0]), rtol=1e-6, atol=1e-8)
    first = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), right, tolerance=1e-9, max_steps=300)
    assert first.outcomes[1] is Outcome.DIVERGED
    # from the solution there is nothing left to do but to see it
    again = conjugate_gradients(lambda v: v @ good, right[:1], tolerance=1e-6, max_steps=300, start=first.value[:1])
    assert again.steps == 1


def test_a_sample_of_gmres_does_not_change_while_slower_ones_go_on() -> None:
    generator = torch.Generator().manual_seed(3)
    easy = 2 * torch.eye(SIZE, dtype=torch.float64)
    easy[0, 0] = 2.1
    hard = torch.eye(SIZE, dtype=torch.float64) + 0.1 * torch.randn(
        (SIZE, SIZE), dtype=torch.float64, generator=generator
    )
    right = torch.randn((2, SIZE), dtype=torch.float64, generator=generator)
    matrices = torch.stack([easy, hard])
    both = gmres(lambda v: torch.einsum("bij,bj->bi", matrices, v), right, tolerance=1e-1, max_steps=60)
    alone = gmres(lambda v: v @ easy.T, right[:1], tolerance=1e-1, max_steps=60)
    assert alone.steps < both.steps
    torch.testing.assert_close(both.value[0], alone.value[0], rtol=1e-9, atol=1e-12)


def test_gmres_solves_nonsymmetric_systems_sample_by_sample() -> None:
    generator = torch.Generator().manual_seed(3)
    matrices = torch.eye(SIZE, dtype=torch.float64) + 0.1 * torch.randn(
        (2, SIZE, SIZE), dtype=torch.float64, generator=generator
    )
    right = torch.randn((2, SIZE), dtype=torch.float64, generator=generator) * torch.tensor([[1.0], [1e-7]])
    solved = gmres(lambda v: torch.einsum("bij,bj->bi", matrices, v), right, tolerance=1e-10, max_steps=60)
    found, outcomes, steps = solved.value, solved.outcomes, solved.steps
    exact = torch.linalg.solve(matrices, right[:, :, None])[:, :, 0]
    assert outcomes == (Outcome.CONVERGED, Outcome.CONVERGED)
    assert steps <= SIZE
    assert float((norms(found - exact) / norms(exact)).max()) < 1e-8


def test_gmres_says_when_it_has_not_converged_and_handles_a_zero_right_side() -> None:
    matrices = torch.roll(torch.eye(SIZE, dtype=torch.float64), 1, 0)
    right = torch.zeros((2, SIZE), dtype=torch.float64)
    right[0, 0] = 1.0
    solved = gmres(lambda v: v @ matrices, right, tolerance=1e-6, max_steps=5)
    found, outcomes = solved.value, solved.outcomes
    assert outcomes[0] is Outcome.MAX_STEPS
    assert outcomes[1] is Outcome.CONVERGED
    assert torch.equal(found[1], torch.zeros(SIZE, dtype=torch.float64))
