"""The classical iterative methods that every learned result is shown beside: CGLS, CG-SENSE, TV and wavelets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pywt
import torch
from torch import Tensor

from equipoise_engine.operators import Physics, norms, operator_norm
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.solve import Outcome


@dataclass(frozen=True)
class Reconstructed:
    """Images of a classical method and how it stopped.

    Parameters
    ----------
    image
        `(batch, y, x)`.
    outcome
        The worst in the batch.
    steps
        Iterations taken.
    """

    image: Tensor
    outcome: Outcome
    steps: int


def data_residual(physics: Physics, image: Tensor, y: Tensor) -> Tensor:
    """Return ||A x - y|| / ||y|| `(batch,)`, float64."""
    return norms(physics.forward(image) - y) / norms(y).clamp(min=torch.finfo(torch.float64).tiny)


@torch.no_grad()
def conjugate_gradients(
    physics: Physics, y: Tensor, *, damping: float, tolerance: float, max_steps: int, watch: Watch = unwatched
) -> Reconstructed:
    """Minimise ||A x - y||^2 + damping^2 ||A||^2 ||x||^2 by conjugate gradients on the normal equations, from zero.

    With damping zero this is CGLS (M. R. Hestenes and E. Stiefel 1952, doi:10.6028/jres.049.044), whose early
    iterates are the regularised ones; with coil maps in A it is CG-SENSE (K. P. Pruessmann et al. 2001,
    doi:10.1002/mrm.1241).

    Parameters
    ----------
    y
        `(batch, ...)`.
    damping
        Relative to the largest singular value of A.
    tolerance
        A sample has converged once ||A^H (A x - y) + ...|| is below this multiple of its first value.
    watch
        Called after each step; the fixed-point residual is the relative change ||x_k+1 - x_k|| / ||x_k+1||.
    """
    ahy = physics.adjoint(y)
    square = 0.0
    if damping > 0:
        square = damping**2 * operator_norm(lambda v: physics.adjoint(physics.forward(v)), ahy, steps=8)
    x = torch.zeros_like(ahy)
    gradient = ahy
    direction = gradient
    size = norms(gradient) ** 2
    first = size.clamp(min=torch.finfo(torch.float64).tiny)
    wide = (-1, 1, 1)
    outcome, step = Outcome.MAX_STEPS, 0
    projected = torch.zeros_like(y)
    while step < max_steps:
        measured = physics.forward(direction)
        curvature = norms(measured) ** 2 + square * norms(direction) ** 2
        length = torch.where(curvature > 0, size / curvature.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        move = length.to(x.real.dtype).reshape(wide) * direction
        x = x + move
        projected = projected + length.to(x.real.dtype).reshape(-1, *([1] * (y.ndim - 1))) * measured
        gradient = physics.adjoint(y - projected) - square * x
        following = norms(gradient) ** 2
        step += 1
        change = norms(move) / norms(x).clamp(min=torch.finfo(torch.float64).tiny)
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=norms(projected - y) / norms(y).clamp(min=torch.finfo(torch.float64).tiny),
            )
        )
        if not bool(torch.isfinite(following).all()):
            outcome = Outcome.DIVERGED
            break
        if bool((following <= tolerance**2 * first).all()):
            outcome = Outcome.CONVERGED
            break
        direction = gradient + torch.where(size > 0, following / size, 0.0).to(x.real.dtype).reshape(wide) * direction
        size = following
    return Reconstructed(x, outcome, step)


@torch.no_grad()
def starting_image(physics: Physics, y: Tensor) -> Tensor:
    """Return where an iteration starts `(batch, y, x)`, a function of y alone.

    The analytic image; for a truncated object the eighth iterate of CGLS, whose level is right where that of the
    analytic image is not.
    """
    if not physics.truncated:
        return physics.analytic(y)
    return conjugate_gradients(physics, y, damping=0.0, tolerance=0.0, max_steps=8).image


@torch.no_grad()
def total_variation(
    physics: Physics,
    y: Tensor,
    *,
    strength: float,
    tolerance: float,
    max_steps: int,
    nonnegative: bool,
    watch: Watch = unwatched,
) -> Reconstructed:
    """Minimise 1/2 <A x - y, W (A x - y)> + s TV(x) by an accelerated forward-backward method with an inner dual solve.

    W is the weight of the physics, which makes the outer iteration well conditioned; s is `strength` times the root
    mean square of the analytic image, so that it does not depend on the unit of y.

    Parameters
    ----------
    y
        `(batch, ...)`.
    tolerance
        Stop once the relative change of the image is below, for every sample.
    nonnegative
        Whether negative values are forbidden (CT).
    watch
        Called after each step; the fixed-point residual is the relative change of the image.

    Source: A. Beck and M. Teboulle 2009, doi:10.1109/TIP.2009.2028245, with the restart of B. O'Donoghue and E.
    Candes 2015, doi:10.1007/s10208-013-9150-3.
    """
    x = starting_image(physics, y)
    level = strength * norms(x) / math.sqrt(math.prod(physics.domain))
    dual = torch.zeros((2, *x.shape), dtype=x.dtype, device=x.device)

    def prox(target: Tensor) -> Tensor:
        nonlocal dual
        value, dual = _total_variation_prox(target, level, dual, nonnegative)
        return value

    return _accelerated(physics, y, x, prox, tolerance, max_steps, watch)


@torch.no_grad()
def wavelet(
    physics: Physics,
    y: Tensor,
    *,
    strength: float,
    tolerance: float,
    max_steps: int,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Reconstructed:
    """Minimise 1/2 <A x - y, W (A x - y)> + s ||details of x||_1 in an orthonormal Daubechies basis of four taps.

    The basis is moved to a random place in each step (cycle spinning), which leaves no blocks; so the objective
    changes a little from step to step, and the relative change of the image ends at a floor. W and s are those of
    `total_variation`; complex coefficients shrink by their magnitude.

    Parameters
    ----------
    y
        `(batch, ...)`.
    tolerance
        Stop once the relative change of the image is below, for every sample.
    seed
        Of the random places.
    watch
        Called after each step; the fixed-point residual is the relative change of the image.

    Source: M. Lustig, D. Donoho, J. M. Pauly 2007, doi:10.1002/mrm.21391; cycle spinning: M. Figueiredo and R. Nowak
    2003, doi:10.1109/TIP.2003.814255.
    """
    x = starting_image(physics, y)
    level = (strength * norms(x) / math.sqrt(math.prod(physics.domain))).to(x.real.dtype).reshape(-1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = physics.domain
    # few enough coarse coefficients, which are free, that any sampling sees them
    levels = max(1, int(math.log2(min(rows, columns))) - 2)
    block = 2**levels

    def prox(target: Tensor) -> Tensor:
        shift = torch.randint(block, (2,), generator=generator).tolist()
        padded = torch.nn.functional.pad(target, (0, -columns % block, 0, -rows % block))
        moved = torch.roll(padded, shift, (-2, -1))
        shrunk = torch.roll(_shrink_details(moved, level, levels), [-s for s in shift], (-2, -1))
        return shrunk[..., :rows, :columns]

    return _accelerated(physics, y, x, prox, tolerance, max_steps, watch)


def _accelerated(
    physics: Physics,
    y: Tensor,
    x: Tensor,
    prox: Callable[[Tensor], Tensor],
    tolerance: float,
    max_steps: int,
    watch: Watch,
) -> Reconstructed:
    """Iterate x = prox(x - A^H W (A x - y)) with momentum, restarted where it points uphill."""
    ahead, momentum = x, 1.0
    outcome, step = Outcome.MAX_STEPS, 0
    while step < max_steps:
        following = prox(ahead - physics.gradient(ahead, y))
        grown = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
        turning = torch.sum(((ahead - following).conj() * (following - x)).real) > 0
        if bool(turning):
            grown = 1.0
        ahead = following + ((momentum - 1) / grown) * (following - x)
        reached = norms(following)
        # an image without any positive value goes to zero at once: that is a change of one, not an infinite one
        scale = torch.where(reached > 0, reached, norms(x)).clamp(min=torch.finfo(torch.float64).tiny)
        change = norms(following - x) / scale
        x, momentum = following, grown
        step += 1
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=data_residual(physics, x, y),
            )
        )
        if not bool(torch.isfinite(change).all()):
            outcome = Outcome.DIVERGED
            break
        if bool((change <= tolerance).all()):
            outcome = Outcome.CONVERGED
            break
    return Reconstructed(x, outcome, step)


def _total_variation_prox(
    target: Tensor, level: Tensor, dual: Tensor, nonnegative: bool, steps: int = 10
) -> tuple[Tensor, Tensor]:
    """Return argmin 1/2 ||x - target||^2 + level TV(x) and the dual field `(2, batch, y, x)` it starts from next time.

    Dual projected gradients (A. Chambolle 2004, doi:10.1023/B:JMIV.0000011325.36760.1e).
    """
    strength = level.to(target.real.dtype).reshape(-1, 1, 1)
    project: Callable[[Tensor], Tensor] = (lambda v: v.clamp(min=0)) if nonnegative else (lambda v: v)
    safe = strength.clamp(min=torch.finfo(target.real.dtype).tiny)
    for _ in range(steps):
        x = project(target + strength * _divergence(dual))
        dual = dual + _differences(x) / (8 * safe)
        length = torch.sqrt(dual[0].abs() ** 2 + dual[1].abs() ** 2).clamp(min=1.0)
        dual = dual / length
    return project(target + strength * _divergence(dual)), dual


def _shrink_details(image: Tensor, level: Tensor, levels: int) -> Tensor:
    """Return the image `(batch, y, x)` with the magnitudes of its wavelet details lowered by `level (batch, 1, 1)`."""
    least = level.cpu().numpy()
    settings = {"wavelet": "db2", "mode": "periodization", "axes": (-2, -1)}
    coarse, *details = pywt.wavedec2(image.cpu().numpy(), level=levels, **settings)
    shrunk = [tuple(pywt.threshold(part, least, mode="soft") for part in scale) for scale in details]
    restored = pywt.waverec2([coarse, *shrunk], **settings)
    return torch.from_numpy(restored).to(image.device, image.dtype)


def _differences(x: Tensor) -> Tensor:
    """Forward differences `(2, batch, y, x)`, zero at the last row and column."""
    down = torch.zeros_like(x)
    across = torch.zeros_like(x)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    across[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return torch.stack([down, across])


def _divergence(field: Tensor) -> Tensor:
    """The negative adjoint of `_differences` `(batch, y, x)`."""
    result = torch.zeros_like(field[0])
    result[:, :-1] += field[0][:, :-1]
    result[:, 1:] -= field[0][:, :-1]
    result[:, :, :-1] += field[1][:, :, :-1]
    result[:, :, 1:] -= field[1][:, :, :-1]
    return result
