"""Krylov solvers on batches of linear systems, one Krylov space a sample: GMRES and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise_engine.operators import norms
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.solve import Outcome

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solved:
    """What a linear solver gave.

    Parameters
    ----------
    value
        v `(batch, ...)`.
    outcomes
        Why each sample stopped.
    steps
        Number of applications of M.
    residual
        ||u - M v|| / ||u|| as the recurrence has it `(batch,)`, float64.
    """

    value: Tensor
    outcomes: tuple[Outcome, ...]
    steps: int
    residual: Tensor


@torch.no_grad()
def gmres(
    apply: Apply,
    right: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    start: Tensor | None = None,
    watch: Watch = unwatched,
) -> Solved:
    """Solve M v = u for each sample; keeps one vector for each step.

    Parameters
    ----------
    apply
        M on a batch `(batch, ...)`, real linear (it may act on complex values).
    right
        u `(batch, ...)`.
    tolerance
        Stop once ||u - M v|| <= tolerance ||u|| for every sample.
    max_steps
        Largest number of applications of M.
    start
        First v `(batch, ...)`, used for the samples whose residual it lowers; None starts from zero. Costs one
        application of M.
    watch
        Called after every step with the relative residual; may raise Cancelled.

    Source: Y. Saad and M. H. Schultz 1986, doi:10.1137/0907058. Inner products are real, so complex values are pairs
    of reals.
    """
    batch = right.shape[0]
    wide = (-1, *([1] * (right.ndim - 1)))
    whole = norms(right)
    steps = 0
    first, begun = right, torch.zeros_like(right)
    if start is not None and max_steps > 1:
        steps = 1
        left = right - apply(start)
        helpful = (norms(left) < whole).reshape(wide)
        first, begun = torch.where(helpful, left, right), torch.where(helpful, start, 0)
    size = norms(first)
    usable = torch.isfinite(size) & (size > 0)
    safe = torch.where(usable, size, 1.0)
    basis = [torch.where(usable.reshape(wide), first / safe.to(right.real.dtype).reshape(wide), 0)]
    hessenberg = torch.zeros((batch, 1, 0), dtype=torch.float64, device=right.device)
    coefficients = torch.zeros((batch, 0), dtype=torch.float64, device=right.device)
    share = torch.where(whole > 0, size / whole.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    relative = share
    while steps < max_steps and not bool(((relative <= tolerance) | ~usable).all()):
        column = len(basis) - 1
        vector = apply(basis[-1])
        hessenberg = torch.nn.functional.pad(hessenberg, (0, 1, 0, 1))
        for earlier, kept in enumerate(basis):
            overlap = _dots(kept, vector)
            hessenberg[:, earlier, column] = overlap
            vector = vector - overlap.to(vector.real.dtype).reshape(wide) * kept
        length = norms(vector)
        hessenberg[:, column + 1, column] = length
        steps += 1
        target = torch.zeros((batch, column + 2, 1), dtype=torch.float64, device=right.device)
        target[:, 0] = 1.0
        part = torch.where(torch.isfinite(hessenberg), hessenberg, 0.0)
        # a sample that has converged keeps its combination, whatever its mates still need
        done = (relative <= tolerance)[:, None]
        best = (torch.linalg.pinv(part) @ target)[:, :, 0]
        coefficients = torch.where(done, torch.nn.functional.pad(coefficients, (0, 1)), best)
        misfit = torch.linalg.vector_norm(target[:, :, 0] - (part @ coefficients[:, :, None])[:, :, 0], dim=1)
        relative = torch.where(done[:, 0], relative, misfit * share)
        watch(Progress("backward", steps, max_steps, fixed_point_residual=relative))
        growing = torch.isfinite(length) & (length > 1e-14)
        if not bool((growing & usable).any()):
            break
        divisor = torch.where(growing, length, 1.0).to(vector.real.dtype).reshape(wide)
        basis.append(torch.where(growing.reshape(wide), vector / divisor, 0))
    combined = begun
    for index in range(coefficients.shape[1]):
        combined = combined + (coefficients[:, index] * size).to(right.real.dtype).reshape(wide) * basis[index]
    return Solved(combined, outcomes_of(combined, relative, tolerance), steps, relative)


@torch.no_grad()
def conjugate_gradients(
    apply: Apply,
    right: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    precondition: Apply | None = None,
    start: Tensor | None = None,
    watch: Watch = unwatched,
) -> Solved:
    """Solve M v = u for each sample, M symmetric positive definite; arguments as for `gmres`.

    Parameters
    ----------
    precondition
        An approximate inverse of M, symmetric positive definite; None takes the identity.

    Source: M. R. Hestenes and E. Stiefel 1952, doi:10.6028/jres.049.044. A sample whose curvature <d, M d> is not
    positive stops where it is, with the outcome "diverged": M is not positive definite.
    """
    wide = (-1, *([1] * (right.ndim - 1)))
    whole = norms(right)
    tiny = torch.finfo(torch.float64).tiny
    steps = 0
    v, residual = torch.zeros_like(right), right
    if start is not None and max_steps > 1:
        steps = 1
        left = right - apply(start)
        helpful = (norms(left) < whole).reshape(wide)
        v, residual = torch.where(helpful, start, 0), torch.where(helpful, left, right)
    scaled = residual if precondition is None else precondition(residual)
    direction = scaled
    product = _dots(residual, scaled)
    relative = torch.where(whole > 0, norms(residual) / whole.clamp(min=tiny), 0.0)
    running = torch.isfinite(product) & (product > 0) & (relative > tolerance)
    broken = torch.zeros_like(running)
    while steps < max_steps and bool(running.any()):
        image = apply(direction)
        steps += 1
        curvature = _dots(direction, image)
        definite = torch.isfinite(curvature) & (curvature > 0)
        broken = broken | (running & ~definite)
        running = running & definite
        length = torch.where(running, product / torch.where(running, curvature, 1.0), 0.0)
        factor = length.to(right.real.dtype).reshape(wide)
        # a stopped sample may hold values that are not finite: zero times them must not reach the sum
        moving = running.reshape(wide)
        v = v + torch.where(moving, factor * direction, 0)
        residual = residual - torch.where(moving, factor * image, 0)
        relative = torch.where(whole > 0, norms(residual) / whole.clamp(min=tiny), 0.0)
        watch(Progress("backward", steps, max_steps, fixed_point_residual=relative))
        running = running & (relative > tolerance)
        scaled = residual if precondition is None else precondition(residual)
        following = _dots(residual, scaled)
        growth = torch.where(running, following / torch.where(product > 0, product, 1.0), 0.0)
        direction = scaled + torch.where(moving, growth.to(right.real.dtype).reshape(wide) * direction, 0)
        product = following
    outcomes = tuple(
        Outcome.DIVERGED if lost else outcome
        for outcome, lost in zip(outcomes_of(v, relative, tolerance), broken.tolist(), strict=True)
    )
    return Solved(v, outcomes, steps, relative)


def outcomes_of(value: Tensor, relative: Tensor, tolerance: float) -> tuple[Outcome, ...]:
    """Return why each sample of a linear solve stopped, from its value and its relative residual `(batch,)`."""
    finite = torch.isfinite(norms(value))
    return tuple(
        Outcome.DIVERGED if not ok else Outcome.CONVERGED if left <= tolerance else Outcome.MAX_STEPS
        for ok, left in zip(finite.tolist(), relative.tolist(), strict=True)
    )


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the real inner product of each sample `(batch,)`, float64."""
    product = (left.conj() * right).real if left.is_complex() else left * right
    return product.reshape(left.shape[0], -1).double().sum(1)
