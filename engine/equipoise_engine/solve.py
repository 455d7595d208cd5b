"""Fixed-point solvers on batches: safeguards, per-sample stopping, and a state to continue from bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.operators import norms
from equipoise_engine.progress import Progress, Watch, unwatched

Map = Callable[[Tensor, Tensor], Tensor]
"""T(x, samples): the map on the samples `(active,)` int64 of the batch; x is `(active, ...)`."""


class Outcome(Enum):
    """Why a solver stopped."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Stop:
    """When to stop.

    Parameters
    ----------
    tolerance
        A sample has converged once ||T(x) - x|| <= tolerance ||T(x)||.
    max_steps
        Largest number of evaluations of T.
    min_steps
        Least number of evaluations of T, however small the residual.
    copies
        The batch holds so many variants of each sample, all first variants, then all second ones, and so on. The
        variants of a sample stop together, so that the errors of their solves cancel in a difference.
    """

    tolerance: float = 1e-4
    max_steps: int = 100
    min_steps: int = 1
    copies: int = 1


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of type II. Picard iteration is `Anderson(memory=0)`.

    Parameters
    ----------
    memory
        Number of earlier iterates that are mixed.
    regularisation
        Added to the diagonal of the Gram matrix, relative to its mean diagonal: the result does not depend on the
        scale.
    growth
        A residual above this multiple of the best one, or weights whose absolute sum exceeds `max_weight`, drop the
        history and take a plain step.

    Source: H. F. Walker and P. Ni 2011, doi:10.1137/10078356X; safeguards as in J. Zhang, B. O'Donoghue, S. Boyd 2020,
    doi:10.1137/18M1232772.
    """

    memory: int = 5
    regularisation: float = 1e-8
    growth: float = 2.0
    max_weight: float = 1e3


@dataclass(frozen=True)
class Iterate:
    """The state of a solve after some steps: continuing from it is bit-equal to never having stopped.

    Parameters
    ----------
    x
        Next point at which T is evaluated `(batch, ...)`.
    best, best_residual
        The finite T(x) of smallest residual so far `(batch, ...)`, and that residual `(batch,)` float64.
    points, values
        Earlier x and T(x), oldest first, `(batch, memory, ...)`; `depth (batch,)` int64 of them are valid, at the end.
    active
        Samples that still iterate `(batch,)`, bool.
    step
        Number of evaluations of T so far.
    steps
        Those of each sample `(batch,)`, int64.
    residual
        Of each sample's last step `(batch,)`, float64.
    """

    x: Tensor
    best: Tensor
    best_residual: Tensor
    points: Tensor
    values: Tensor
    depth: Tensor
    active: Tensor
    step: int
    steps: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Solution:
    """What a solve gave.

    Parameters
    ----------
    value
        The best finite T(x) per sample `(batch, ...)`.
    outcomes
        Why each sample stopped.
    residual
        ||T(x) - x|| / ||T(x)|| of `value`, per sample `(batch,)`, float64.
    residuals
        The residual after each step `(step, batch)`, float64; a finished sample keeps its last one.
    steps
        Number of evaluations of T per sample `(batch,)`, int64.
    last
        Where to continue.
    """

    value: Tensor
    outcomes: tuple[Outcome, ...]
    residual: Tensor
    residuals: Tensor
    steps: Tensor
    last: Iterate

    @property
    def outcome(self) -> Outcome:
        """The worst outcome in the batch."""
        for worst in (Outcome.DIVERGED, Outcome.MAX_STEPS):
            if worst in self.outcomes:
                return worst
        return Outcome.CONVERGED


def begin(x: Tensor, method: Anderson) -> Iterate:
    """Return the state before the first step from `x` `(batch, ...)`."""
    batch = x.shape[0]
    empty = x.new_zeros((batch, method.memory, *x.shape[1:]))
    return Iterate(
        x=x,
        best=x,
        best_residual=torch.full((batch,), torch.inf, dtype=torch.float64, device=x.device),
        points=empty,
        values=empty.clone(),
        depth=torch.zeros(batch, dtype=torch.int64, device=x.device),
        active=torch.ones(batch, dtype=torch.bool, device=x.device),
        step=0,
        steps=torch.zeros(batch, dtype=torch.int64, device=x.device),
        residual=torch.full((batch,), torch.inf, dtype=torch.float64, device=x.device),
    )


@torch.no_grad()
def solve(
    function: Map,
    start: Tensor | Iterate,
    *,
    method: Anderson | None = None,
    stop: Stop | None = None,
    watch: Watch = unwatched,
    measure: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    """Find x with T(x) = x, each sample of the batch by itself.

    A sample that has converged, or whose T(x) is no longer finite, is taken out of the batch; no sample changes
    another.

    Parameters
    ----------
    function
        T, given the active samples of the batch and their indices.
    start
        First point `(batch, ...)`, or the state of an earlier solve to continue.
    method
        Acceleration; None takes `Anderson()`.
    stop
        Tolerance and step limit; the limit counts the steps of an earlier solve too. None takes `Stop()`.
    watch
        Called after every step with the current image and residuals; may raise Cancelled.
    measure
        Gives the data residual `(batch,)` of an image for `watch`.

    Returns
    -------
    Solution
        Not converging is an outcome, not an error.
    """
    method = method or Anderson()
    stop = stop or Stop()
    state = start if isinstance(start, Iterate) else begin(start, method)
    batch = state.x.shape[0]
    if batch % stop.copies:
        raise BadInput(f"a batch of {batch} does not hold {stop.copies} variants of each sample")
    history: list[Tensor] = []
    broken = torch.zeros(batch, dtype=torch.bool, device=state.x.device)
    while state.step < stop.max_steps and bool(state.active.any()):
        samples = torch.nonzero(state.active)[:, 0]
        x = state.x[samples]
        value = function(x, samples)
        change = norms(value - x)
        current = change / norms(value).clamp(min=torch.finfo(torch.float64).tiny)
        finite = torch.isfinite(change)
        current = torch.where(finite, current, torch.inf)
        broken = broken.index_copy(0, samples, ~finite)
        state = _advance(state, samples, x, value, current, finite, method, stop)
        history.append(state.residual)
        watch(
            Progress(
                "solve",
                state.step,
                stop.max_steps,
                iterate=state.best,
                fixed_point_residual=state.residual,
                data_residual=None if measure is None else measure(state.best),
            )
        )
    outcomes = tuple(
        Outcome.DIVERGED if lost else Outcome.CONVERGED if value <= stop.tolerance else Outcome.MAX_STEPS
        for lost, value in zip(broken.tolist(), state.best_residual.tolist(), strict=True)
    )
    residuals = torch.stack(history) if history else state.residual[None]
    return Solution(state.best, outcomes, state.best_residual, residuals, state.steps, state)


def _advance(
    state: Iterate,
    samples: Tensor,
    x: Tensor,
    value: Tensor,
    residual: Tensor,
    finite: Tensor,
    method: Anderson,
    stop: Stop,
) -> Iterate:
    """Take T(x) of the active samples into the state and choose their next points."""
    wide = (-1, *([1] * (x.ndim - 1)))
    known = state.best_residual[samples]
    better = finite & (residual < known)
    best = torch.where(better.reshape(wide), value, state.best[samples])
    best_residual = torch.where(better, residual, known)
    trusted = finite & (residual <= method.growth * known)
    following = torch.where(finite.reshape(wide), value, x)
    points, values, depth = state.points, state.values, state.depth
    if method.memory:
        kept = torch.where(trusted, state.depth[samples], 0)
        new_points = torch.cat([state.points[samples][:, 1:], x[:, None]], dim=1)
        new_values = torch.cat([state.values[samples][:, 1:], value[:, None]], dim=1)
        kept = (kept + finite.long()).clamp(max=method.memory)
        following, kept = _mix(new_points, new_values, kept, following, method)
        points = points.index_copy(0, samples, new_points)
        values = values.index_copy(0, samples, new_values)
        depth = depth.index_copy(0, samples, kept)
    return replace(
        state,
        x=state.x.index_copy(0, samples, following),
        best=state.best.index_copy(0, samples, best),
        best_residual=state.best_residual.index_copy(0, samples, best_residual),
        points=points,
        values=values,
        depth=depth,
        steps=state.steps.index_add(0, samples, torch.ones_like(samples)),
        residual=state.residual.index_copy(0, samples, residual),
        active=_still_active(state, samples, finite, residual, stop),
        step=state.step + 1,
    )


def _still_active(state: Iterate, samples: Tensor, finite: Tensor, residual: Tensor, stop: Stop) -> Tensor:
    wanting = residual > stop.tolerance
    if state.step + 1 < stop.min_steps:
        wanting = torch.ones_like(wanting)
    if stop.copies > 1:
        everywhere = torch.zeros_like(state.active).index_copy(0, samples, finite & wanting)
        some = everywhere.reshape(stop.copies, -1).any(0).repeat(stop.copies)
        wanting = some[samples]
    return state.active.index_copy(0, samples, finite & wanting)


def _mix(points: Tensor, values: Tensor, depth: Tensor, plain: Tensor, method: Anderson) -> tuple[Tensor, Tensor]:
    """Return the accelerated next points, and how much of the history stays valid."""
    batch, memory = points.shape[:2]
    differences = (values - points).reshape(batch, memory, -1)
    # one product a sample, so that a sample's result does not depend on how many share the batch
    gram = torch.stack([(one.conj() @ one.T).real for one in differences]).double()
    valid = torch.arange(memory, device=depth.device) >= memory - depth[:, None]
    both = valid[:, :, None] & valid[:, None, :]
    gram = torch.where(both, gram, 0.0)
    scale = gram.diagonal(dim1=1, dim2=2).sum(1) / depth.clamp(min=1)
    usable = (depth > 1) & torch.isfinite(scale) & (scale > 0)
    scale = torch.where(usable, scale, 1.0)
    identity = torch.eye(memory, dtype=gram.dtype, device=gram.device)
    matrix = torch.where(both, gram / scale[:, None, None], 0.0) + method.regularisation * identity
    matrix = torch.where(both | identity.bool(), matrix, 0.0)
    matrix = torch.where(usable[:, None, None], matrix, identity)
    matrix = matrix + identity * (~valid).double()[:, None, :]
    ones = valid.double()
    solved, trouble = torch.linalg.solve_ex(matrix, ones[:, :, None])
    weights = torch.where(valid, solved[:, :, 0], 0.0)
    total = weights.sum(1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    good = usable & (trouble == 0) & torch.isfinite(weights).all(1) & (weights.abs().sum(1) <= method.max_weight)
    weights = torch.where(good[:, None], weights, 0.0)
    # an entry outside the valid part may be anything, even not finite; it must not reach the sum
    safe = torch.where(valid.reshape(batch, memory, *([1] * (points.ndim - 2))), values, 0.0)
    mixed = torch.einsum("bm,bm...->b...", weights.to(values.dtype), safe)
    wide = (-1, *([1] * (plain.ndim - 1)))
    kept = torch.where(good | (depth <= 1), depth, 1)
    return torch.where(good.reshape(wide), mixed, plain), kept
