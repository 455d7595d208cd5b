"""The deep equilibrium node: x* = T(x*, y) forward, modular implicit differentiation backward.

The node gives vector-Jacobian products to the parameters of T and to y. So any composition of such nodes, in
particular the equivariant imaging loss, which calls the model on its own output, is differentiated by ordinary
automatic differentiation.

T comes as x - P F(x, y), with F the root function and P its preconditioner (see `fixed_point`). With u the gradient of
the loss with respect to x*, the implicit function theorem on F(x*, y) = 0 gives, for (dF/dx)^T w = u,

    gradient of the parameters = -(dF/dtheta)^T w,    gradient of y = -(dF/dy)^T w,

and v = P^-1 w solves (I - J^T) v = u with J = dT/dx. The truncated modes sum the Neumann series of that, v = u + J^T u
+ ... (phantom gradients), or take v = u alone (Jacobian-free backpropagation).

Source: A. Mehta, R. Kitichotkul, V. K. Goyal, J. Tachella 2025, arXiv:2511.18667; S. Bai, J. Z. Kolter, V. Koltun 2019,
arXiv:1909.01377; Jacobian-free: S. Wu Fung et al. 2022, arXiv:2103.12803; Neumann: Z. Geng et al. 2021,
arXiv:2111.05177.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equipoise_engine.errors import BadInput
from equipoise_engine.krylov import Solved, conjugate_gradients, gmres, outcomes_of
from equipoise_engine.operators import norms
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.solve import Anderson, Iterate, Outcome, Solution, Stop, begin, solve

BACKWARD_MODES = ("implicit", "neumann", "jacobian-free", "unrolled")
BACKWARD_SOLVERS = ("auto", "gmres", "cg", "anderson")


class RootMap(Protocol):
    """T(x, y) = x - P F(x, y) on a batch."""

    @property
    def symmetric(self) -> bool:
        """Whether dF/dx is symmetric."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Return T(x, y)."""

    def root(self, x: Tensor, y: Tensor) -> Tensor:
        """Return F(x, y), differentiable in x, y and the parameters."""

    def precondition(self, residual: Tensor) -> Tensor:
        """Return P r, P symmetric positive definite."""

    def select(self, samples: Tensor) -> Self:
        """Return the map on a part of the batch."""


@dataclass(frozen=True)
class ForwardSettings:
    """How the fixed point is found."""

    method: Anderson = field(default_factory=Anderson)
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True)
class BackwardSettings:
    """How the gradient passes the fixed point.

    Parameters
    ----------
    mode
        "implicit" solves the adjoint system; "neumann" adds `max_steps` terms of its series; "jacobian-free" takes
        none; "unrolled" replaces the solver by `max_steps` plain steps of T with a graph, also without gradients.
    tolerance
        Of the adjoint solve, relative to ||u|| (implicit).
    max_steps
        Largest number of vector-Jacobian products (implicit), terms (neumann) or steps (unrolled).
    solver
        Of the adjoint system: "gmres", "cg" (for a symmetric dF/dx), "anderson", or "auto": CG where the map says that
        it is symmetric, else GMRES.
    warm_start
        Start the adjoint solve in the span of the differences of the last forward iterates, whose images under P dF/dx
        are known (right for a symmetric dF/dx, a guess otherwise; as in Z. Ramzi et al. 2021, arXiv:2106.00553).
    samples_at_once
        How many samples of the batch share a graph of F in the backward pass; 0 takes all. Fewer need less memory, and
        each sample then takes only its own number of steps; on a GPU more are faster.
    checkpoints
        Recompute each unrolled step in the backward pass instead of keeping its graph.
    """

    mode: str = "implicit"
    tolerance: float = 1e-2
    max_steps: int = 20
    solver: str = "auto"
    warm_start: bool = False
    samples_at_once: int = 0
    checkpoints: bool = False

    def __post_init__(self) -> None:
        if self.mode not in BACKWARD_MODES:
            raise BadInput(f"unknown backward mode {self.mode!r}", f"Choose one of {', '.join(BACKWARD_MODES)}.")
        if self.solver not in BACKWARD_SOLVERS:
            raise BadInput(f"unknown backward solver {self.solver!r}", f"Choose one of {', '.join(BACKWARD_SOLVERS)}.")
        if self.max_steps < 1:
            raise BadInput(f"{self.max_steps} backward steps: at least one is needed")
        if self.samples_at_once < 0:
            raise BadInput(f"{self.samples_at_once} samples at once: at least one, or 0 for all")


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
        spanned: tuple[Tensor, Tensor] | None,
        function: RootMap,
        settings: BackwardSettings,
        report: BackwardReport,
        watch: Watch,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(solution, y, *parameters)
        ctx.rest = (spanned, function, settings, report, watch)
        return solution.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        solution, y, *parameters = ctx.saved_tensors
        spanned, function, settings, report, watch = ctx.rest
        batch = solution.shape[0]
        to_y: list[Tensor] = []
        to_parameters: list[Tensor | None] = [None] * len(parameters)
        for first in range(0, batch, settings.samples_at_once or batch):
            samples = torch.arange(first, min(batch, first + (settings.samples_at_once or batch)), device=y.device)
            whole = samples.shape[0] == batch
            part = function if whole else function.select(samples)
            span = None if spanned is None else (spanned[0][samples], spanned[1][samples])
            with torch.enable_grad():
                x = solution[samples].detach().requires_grad_()
                measured = y[samples].detach().requires_grad_(ctx.needs_input_grad[1])
                value = part.root(x, measured)
            w = _adjoint(value, x, gradients[0][samples], span, part, settings, report, watch)
            wanted = [t for t in (measured, *parameters) if t.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, -w, allow_unused=True))
            if measured.requires_grad:
                to_y.append(next(found))
            for index, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    added, before = next(found), to_parameters[index]
                    to_parameters[index] = added if before is None else before + added
        return None, torch.cat(to_y) if to_y else None, None, None, None, None, None, *to_parameters


@torch.no_grad()
def _adjoint(
    value: Tensor,
    x: Tensor,
    u: Tensor,
    spanned: tuple[Tensor, Tensor] | None,
    function: RootMap,
    settings: BackwardSettings,
    report: BackwardReport,
    watch: Watch,
) -> Tensor:
    """Return w = P v for (I - J^T) v = u, or for the series cut short; `value` is F(x) with its graph."""

    def transposed(w: Tensor) -> Tensor:
        """Return (dF/dx)^T w."""
        product: Tensor = torch.autograd.grad(value, x, w, retain_graph=True)[0]
        return product

    def residual(v: Tensor) -> Tensor:
        """Return (I - J^T) v."""
        return transposed(function.precondition(v))

    if settings.mode == "jacobian-free":
        return function.precondition(u)
    if settings.mode == "neumann":
        term, v = u, u
        for step in range(settings.max_steps):
            term = term - residual(term)
            v = v + term
            watch(Progress("backward", step + 1, settings.max_steps))
        report.steps.append(settings.max_steps)
        return function.precondition(v)
    tolerance, limit = settings.tolerance, settings.max_steps
    solver = settings.solver
    if solver == "auto":
        solver = "cg" if function.symmetric else "gmres"
    if solver == "cg":
        # F_x is symmetric: P F_x w = P u, and P F_x dX is known
        start = None if spanned is None else _in_span(spanned, function.precondition(u))
        solved = conjugate_gradients(
            transposed,
            u,
            precondition=function.precondition,
            start=start,
            tolerance=tolerance,
            max_steps=limit,
            watch=watch,
        )
        w = solved.value
        lost = torch.tensor([outcome is Outcome.DIVERGED for outcome in solved.outcomes], device=u.device)
        if bool(lost.any()):
            # F_x is not positive definite there
            others = gmres(residual, u, tolerance=tolerance, max_steps=limit, watch=watch)
            wide = lost.reshape(-1, *([1] * (u.ndim - 1)))
            w = torch.where(wide, function.precondition(others.value), w)
            outcomes = tuple(
                second if replaced else first
                for first, second, replaced in zip(solved.outcomes, others.outcomes, lost.tolist(), strict=True)
            )
            solved = replace(solved, outcomes=outcomes, steps=solved.steps + others.steps)
    else:
        start = None if spanned is None else _in_span(spanned, u)
        if solver == "anderson":
            solved = _by_anderson(residual, u, start, tolerance=tolerance, max_steps=limit, watch=watch)
        else:
            solved = gmres(residual, u, start=start, tolerance=tolerance, max_steps=limit, watch=watch)
        w = function.precondition(solved.value)
    report.steps.append(solved.steps)
    report.unconverged += solved.outcomes.count(Outcome.MAX_STEPS)
    finite = torch.isfinite(norms(w))
    report.replaced += int((~finite).sum())
    return torch.where(finite.reshape(-1, *([1] * (w.ndim - 1))), w, function.precondition(u))


def _by_anderson(
    residual: Callable[[Tensor], Tensor],
    u: Tensor,
    start: Tensor | None,
    *,
    tolerance: float,
    max_steps: int,
    watch: Watch,
) -> Solved:
    """Iterate v = u + J^T v with acceleration; the step limit counts evaluations."""
    wide = (-1, *([1] * (u.ndim - 1)))
    whole = norms(u)
    safe = torch.where(whole > 0, whole, 1.0).to(u.real.dtype).reshape(wide)
    begun: Tensor | Iterate = u if start is None else torch.where(torch.isfinite(norms(start)).reshape(wide), start, u)
    stop = Stop(tolerance, max_steps)
    steps = 0
    while True:
        # the solver holds ||v' - v|| against ||v'||, which is larger than ||u|| where modes are slow
        found = solve(
            lambda v, samples: v - (residual(_scatter(v, samples, u)) - u)[samples], begun, stop=stop, watch=watch
        )
        left = norms((u - residual(found.value)) / safe)
        steps = found.last.step + 1
        waiting = torch.isfinite(left) & (left > tolerance)
        if not bool(waiting.any()) or found.last.step >= max_steps:
            break
        stop = replace(stop, tolerance=stop.tolerance / 4)
        begun = replace(found.last, active=waiting)
    return Solved(found.value, outcomes_of(found.value, left, tolerance), steps, left)


def _scatter(v: Tensor, samples: Tensor, like: Tensor) -> Tensor:
    """Return the batch with `v` at `samples` and zeros elsewhere: the graph of the whole batch is one."""
    return v if samples.shape[0] == like.shape[0] else torch.zeros_like(like).index_copy(0, samples, v)


def _span(solution: Solution) -> tuple[Tensor, Tensor]:
    """Return differences dX of the forward iterates and (I - J) dX `(batch, memory - 1, ...)`, zero where not valid."""
    last = solution.last
    valid = torch.arange(last.points.shape[1], device=last.depth.device) >= last.points.shape[1] - last.depth[:, None]
    both = (valid[:, 1:] & valid[:, :-1]).reshape(*valid[:, 1:].shape, *([1] * (last.points.ndim - 2)))
    moved = torch.where(both, last.points[:, 1:] - last.points[:, :-1], 0)
    answered = torch.where(both, last.values[:, 1:] - last.values[:, :-1], 0)
    return moved, moved - answered


def _in_span(spanned: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
    """Return the v in the span of dX that minimises ||u - (I - J) v|| `(batch, ...)`."""
    moved, left = spanned
    batch, count = moved.shape[:2]
    rows = left.reshape(batch, count, -1)
    flat = u.reshape(batch, -1)
    if rows.is_complex():
        rows, flat = torch.view_as_real(rows).flatten(2), torch.view_as_real(flat).flatten(1)
    rows, flat = rows.double(), flat.double()
    gram = torch.einsum("bin,bjn->bij", rows, rows)
    right = torch.einsum("bin,bn->bi", rows, flat)
    weights = (torch.linalg.pinv(gram, rtol=1e-8, hermitian=True) @ right[:, :, None])[:, :, 0]
    return torch.einsum("bi,bi...->b...", weights.to(moved.dtype), moved)


def equilibrium(
    function: RootMap,
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
    function
        T, as a root function and its preconditioner.
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
    if backward.mode == "unrolled":
        return _unrolled(function, y, x0, backward, forward.stop.tolerance, watch, measure)
    held = y.detach()
    whole = y.shape[0]

    def frozen(x: Tensor, samples: Tensor) -> Tensor:
        if samples.shape[0] == whole:
            return function.step(x, held)
        return function.select(samples).step(x, held[samples])

    start = x0 if isinstance(x0, Iterate) else x0.detach()
    solution = solve(frozen, start, method=forward.method, stop=forward.stop, watch=watch, measure=measure)
    needed = y.requires_grad or any(p.requires_grad for p in parameters)
    if not (torch.is_grad_enabled() and needed):
        return solution.value, solution
    spanned = _span(solution) if backward.warm_start and forward.method.memory > 1 else None
    value: Tensor = _Implicit.apply(  # type: ignore[no-untyped-call]
        solution.value, y, spanned, function, backward, report or BackwardReport(), watch, *parameters
    )
    return value, solution


def _unrolled(
    function: RootMap,
    y: Tensor,
    x0: Tensor | Iterate,
    settings: BackwardSettings,
    tolerance: float,
    watch: Watch,
    measure: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Solution]:
    """Take `max_steps` plain steps with a graph; says what a solver would say of the last of them."""
    x = x0.x if isinstance(x0, Iterate) else x0.detach()
    history = []
    for step in range(settings.max_steps):
        if settings.checkpoints and torch.is_grad_enabled():
            value: Tensor = checkpoint(function.step, x, y, use_reentrant=False)
        else:
            value = function.step(x, y)
        residual = norms(value - x) / norms(value).clamp(min=torch.finfo(torch.float64).tiny)
        history.append(torch.where(torch.isfinite(residual), residual, torch.inf))
        x = value
        with torch.no_grad():
            data = None if measure is None else measure(x.detach())
        watch(
            Progress(
                "solve",
                step + 1,
                settings.max_steps,
                iterate=x.detach(),
                fixed_point_residual=history[-1],
                data_residual=data,
            )
        )
    outcomes = tuple(
        Outcome.DIVERGED if left == float("inf") else Outcome.CONVERGED if left <= tolerance else Outcome.MAX_STEPS
        for left in history[-1].tolist()
    )
    steps = torch.full((x.shape[0],), settings.max_steps, dtype=torch.int64, device=x.device)
    last = begin(x.detach(), Anderson(memory=0))
    return x, Solution(x.detach(), outcomes, history[-1], torch.stack(history), steps, last)
