"""The deep equilibrium node: x* = T(x*, y) forward, modular implicit differentiation backward.

The node gives vector-Jacobian products to the parameters of T and to y. So any composition of such nodes, in
particular the equivariant imaging loss, which calls the model on its own output, is differentiated by ordinary
automatic differentiation.

Source: A. Mehta, R. Kitichotkul, V. K. Goyal, J. Tachella 2025, arXiv:2511.18667; S. Bai, J. Z. Kolter, V. Koltun 2019,
arXiv:1909.01377.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equipoise_engine.krylov import gmres
from equipoise_engine.operators import norms
from equipoise_engine.progress import Watch, unwatched
from equipoise_engine.solve import Anderson, Iterate, Outcome, Solution, Stop, solve

StepMap = Callable[[Tensor, Tensor, Tensor], Tensor]
"""T(x, y, samples), differentiable in x, y and the parameters; `samples (active,)` says which of the batch they are."""


@dataclass(frozen=True)
class ForwardSettings:
    """How the fixed point is found."""

    method: Anderson = field(default_factory=Anderson)
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True)
class BackwardSettings:
    """How (I - J^T) v = u is solved in the backward pass, J = dT/dx at the fixed point.

    Parameters
    ----------
    tolerance
        Relative to ||u||.
    max_steps
        Largest number of vector-Jacobian products; 0 takes v = u (Jacobian-free backpropagation, arXiv:2103.12803).
    """

    tolerance: float = 1e-2
    max_steps: int = 20


@dataclass
class BackwardReport:
    """What the backward solves of a training step did; filled as they run.

    Parameters
    ----------
    steps
        Vector-Jacobian products of each solve.
    unconverged
        Number of samples that met the step limit.
    replaced
        Number of samples whose solution was not finite and was replaced by v = u.
    """

    steps: list[int] = field(default_factory=list)
    unconverged: int = 0
    replaced: int = 0


class _Implicit(torch.autograd.Function):
    """Pass x* on and differentiate it by the implicit function theorem; keeps x* and y, never a graph of the solve."""

    @staticmethod
    def forward(
        ctx: Any,
        solution: Tensor,
        y: Tensor,
        step: StepMap,
        settings: BackwardSettings,
        report: BackwardReport,
        watch: Watch,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(solution, y, *parameters)
        ctx.rest = (step, settings, report, watch)
        return solution.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        solution, y, *parameters = ctx.saved_tensors
        step, settings, report, watch = ctx.rest
        u = gradients[0]
        with torch.enable_grad():
            x = solution.detach().requires_grad_()
            measured = y.detach().requires_grad_(ctx.needs_input_grad[1])
            value = step(x, measured, torch.arange(x.shape[0], device=x.device))

        def apply(v: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(value, x, v, retain_graph=True)[0]
            return v - product

        v = u
        if settings.max_steps:
            v, outcomes, steps = gmres(
                apply, u, tolerance=settings.tolerance, max_steps=settings.max_steps, watch=watch
            )
            report.steps.append(steps)
            report.unconverged += outcomes.count(Outcome.MAX_STEPS)
            finite = torch.isfinite(norms(v))
            report.replaced += int((~finite).sum())
            v = torch.where(finite.reshape(-1, *([1] * (v.ndim - 1))), v, u)
        wanted = [t for t in (measured, *parameters) if t.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, v, allow_unused=True))
        to_y, *to_parameters = [next(found) if t.requires_grad else None for t in (measured, *parameters)]
        return None, to_y, None, None, None, None, *to_parameters


def equilibrium(
    step: StepMap,
    y: Tensor,
    x0: Tensor | Iterate,
    parameters: tuple[Tensor, ...],
    *,
    forward: ForwardSettings,
    backward: BackwardSettings,
    report: BackwardReport | None = None,
    watch: Watch = unwatched,
    measure: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Solution]:
    """Return x* = T(x*, y) as a differentiable function of y and the parameters, and how it was found.

    Parameters
    ----------
    step
        T.
    y
        Measurements `(batch, ...)`.
    x0
        Where the solve starts `(batch, ...)`, or the state of an earlier solve; has no gradient. It must depend on y
        alone: a start that already solves the equivariance loss is a fixed point of an untrained map.
    parameters
        Everything else that T depends on and that may need a gradient.
    report
        Filled by the backward pass.
    watch
        Called at every iterate of the forward and of the backward solve.
    measure
        Gives the data residual `(batch,)` of an image for `watch`.
    """
    held = y.detach()
    whole = y.shape[0]

    def frozen(x: Tensor, samples: Tensor) -> Tensor:
        return step(x, held if samples.shape[0] == whole else held[samples], samples)

    start = x0 if isinstance(x0, Iterate) else x0.detach()
    solution = solve(frozen, start, method=forward.method, stop=forward.stop, watch=watch, measure=measure)
    needed = y.requires_grad or any(p.requires_grad for p in parameters)
    if not (torch.is_grad_enabled() and needed):
        return solution.value, solution
    value: Tensor = _Implicit.apply(  # type: ignore[no-untyped-call]
        solution.value, y, step, backward, report or BackwardReport(), watch, *parameters
    )
    return value, solution
