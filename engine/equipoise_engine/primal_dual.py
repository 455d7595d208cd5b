"""Total variation with the plain or a statistically weighted data term, by the primal-dual method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise_engine.classical import (
    Ongoing,
    Reconstructed,
    along_batch,
    check_sign,
    differences,
    divergence,
    fixed_draw,
    lengths,
    space_axes,
    starting_image,
    usable,
)
from equipoise_engine.operators import Physics, leading_eigenpairs, norms, operator_norms
from equipoise_engine.progress import Progress, Watch, unwatched

NORM_STEPS = 8
"""Lanczos steps for the norm of the scaled A."""
STACKED_STEPS = 4
"""More of them for that of A and the differences together in CT, where the leading image is close to that of A."""
NORM_MARGIN = 1.01
"""Lanczos steps approach a norm from below."""
SHARE_OF_DIFFERENCES = 0.5
"""Squared norm of the scaled differences in units of that of the scaled A; measured: no worse than any up to 2."""


@torch.no_grad()
def data_scale(physics: Physics, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean eigenvalue of A^H W A over that of A^H V A `(batch,)`, float64.

    W is the weight of the physics and V diagonal, None the identity. Times this a data term with V weighs an image on
    the average as much as the one with W, so that one strength of a prior does for both. Both traces come from one
    random vector of signs, the same in every call (M. Hutchinson 1990, doi:10.1080/03610919008812866).
    """
    batch = y.shape[0] if weights is not None or physics.slices > 1 else 1
    signs = torch.randint(2, (1, *physics.domain), generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = physics.forward(signs.to(y.device, y.dtype).expand(batch, *physics.domain))
    flat = (seen.conj() * physics.weight(seen)).real.flatten(1).sum(1, dtype=torch.float64)
    curved = norms(seen if weights is None else seen * weights.sqrt()) ** 2
    return torch.where(curved > 0, flat / curved, 1.0).expand(y.shape[0])


@torch.no_grad()
def primal_dual_total_variation(
    physics: Physics,
    y: Tensor,
    *,
    strength: float,
    tolerance: float,
    max_steps: int,
    nonnegative: bool,
    weights: Tensor | None = None,
    watch: Watch = unwatched,
) -> Reconstructed:
    """Minimise c/2 <A x - y, V (A x - y)> + s TV(x) with diagonal V by the method of Chambolle and Pock.

    c is `data_scale`; s is `strength` times the root mean square of the analytic image, as in `total_variation`. Steps
    in x and in the dual variables are the inverse norm of A, scaled, stacked on scaled differences (measured: at least
    as good as diagonal preconditioning). The iteration starts at `starting_image`.

    Parameters
    ----------
    y
        `(batch, ...)`.
    tolerance
        A sample has converged, and stays as it is, once its fixed-point residual is below.
    nonnegative
        Whether negative values are forbidden.
    weights
        Diagonal of V, shaped as y; None takes the identity.
    watch
        Called after each step, with the last values of samples that have converged. The fixed-point residual is that of
        image and dual variables together in the norm in which the iteration does not expand. Among the terms are
        "objective", "gap", by which the objective is above its minimum at the most, as long as no value of the
        minimiser is larger than the largest of the iterate, and "relative gap", all of the sample with the largest gap.

    Raises
    ------
    BadInput
        Complex images cannot be nonnegative, or the weights do not fit y.

    Source: A. Chambolle and T. Pock 2011, doi:10.1007/s10851-010-0251-1, algorithm 1; for CT E. Sidky, J. Jorgensen and
    X. Pan 2012, doi:10.1088/0031-9155/57/10/3065.
    """
    check_sign(physics, nonnegative)
    y = usable(y, weights)
    axes = space_axes(physics)
    x = starting_image(physics, y)
    level = along_batch(strength * norms(x) / math.sqrt(math.prod(physics.domain)), x)
    if nonnegative:
        x = x.clamp(min=0)
    problem = _scaled(physics, y, weights, axes)
    level = level / along_batch(problem.slope, x)
    image_step, data_step = (along_batch(1 / problem.norm, like) for like in (x, y))
    # both keep the value at the new image: that at the extrapolated one is a linear combination
    seen, slopes = problem.project(x), problem.differences(x)
    ahead_seen, ahead_slopes = seen, slopes
    data_dual, slope_dual = torch.zeros_like(seen), torch.zeros_like(slopes)
    size = norms(y).clamp(min=torch.finfo(torch.float64).tiny)
    change, objective, gap = torch.ones_like(size), torch.zeros_like(size), torch.zeros_like(size)
    ongoing, step = Ongoing(y), 0
    while step < max_steps:
        before = (x, data_dual, slope_dual)
        data_dual = (data_dual + data_step * (ahead_seen - problem.y)).div_(1 + data_step)
        slope_dual = slope_dual + image_step * ahead_slopes
        slope_dual /= (lengths(slope_dual) / level.clamp(min=torch.finfo(level.dtype).tiny)).clamp_(min=1.0)
        slope_dual *= level > 0
        descent = problem.adjoint(data_dual, slope_dual)
        x = x - image_step * descent
        if nonnegative:
            x.clamp_(min=0)
        x = ongoing.moved(x, before[0])
        new_seen, new_slopes = problem.project(x), problem.differences(x)
        ahead_seen, ahead_slopes = 2 * new_seen - seen, 2 * new_slopes - slopes
        seen, slopes = new_seen, new_slopes
        step += 1
        change = ongoing.moved(_change(before, (x, data_dual, slope_dual)), change)
        residual = seen - problem.y
        objective = 0.5 * norms(residual) ** 2 + (level * lengths(slopes)).flatten(1).sum(1, dtype=torch.float64)
        gap = ongoing.moved(objective - _dual_objective(problem.y, data_dual, x, descent, nonnegative), gap)
        worst = int(gap.argmax())
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=norms(problem.unscaled(residual)) / size,
                terms=(
                    ("objective", float(objective[worst])),
                    ("gap", float(gap[worst])),
                    ("relative gap", float(gap[worst] / objective[worst].clamp(min=torch.finfo(torch.float64).tiny))),
                ),
            )
        )
        if ongoing.end(change <= tolerance, torch.isfinite(change)):
            break
    return Reconstructed(x, ongoing.outcome, step)


@dataclass(frozen=True)
class _Scaled:
    """A and the differences, scaled so that the data term is 1/2 ||A x - y||^2 and neither dominates.

    Parameters
    ----------
    project, differences
        Both halves of the stacked operator.
    adjoint
        The adjoint of the stacked operator, of both dual variables.
    unscaled
        Takes a residual back to measurements.
    y
        Scaled measurements.
    slope
        Factor of the differences `(1 or batch,)`, float64.
    norm
        Of the stacked operator `(1 or batch,)`, float64.
    """

    project: Callable[[Tensor], Tensor]
    differences: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor, Tensor], Tensor]
    unscaled: Callable[[Tensor], Tensor]
    y: Tensor
    slope: Tensor
    norm: Tensor


def _scaled(physics: Physics, y: Tensor, weights: Tensor | None, axes: int) -> _Scaled:
    scale = along_batch(data_scale(physics, y, weights).sqrt(), y)
    if weights is not None:
        scale = scale * weights.sqrt()
    start = fixed_draw(physics, y, weights)
    part = scale[: start.shape[0]]

    def normal(v: Tensor) -> Tensor:
        return physics.adjoint(part * (part * physics.forward(v)))

    tiny = torch.finfo(y.real.dtype).tiny
    data_norm, leading = leading_eigenpairs(normal, start, steps=NORM_STEPS)
    slope = (SHARE_OF_DIFFERENCES * data_norm.clamp(min=tiny) / (4 * axes)).sqrt()
    factor = along_batch(slope, start)

    def stacked(v: Tensor) -> Tensor:
        return normal(v) - factor**2 * divergence(differences(v, axes))

    # the random part finds what the leading image of A has no part of
    aside = 0.1 * start / along_batch(norms(start), start)
    if physics.complex_image:
        # the eigenvalues crowd, so that few steps fall short; the sum of both norms is less than a tenth too large
        norm = data_norm * (1 + SHARE_OF_DIFFERENCES)
    else:
        norm = operator_norms(stacked, leading + aside, steps=STACKED_STEPS)

    return _Scaled(
        project=lambda x: scale * physics.forward(x),
        differences=lambda x: differences(x, axes).mul_(factor),
        adjoint=lambda data, slopes: physics.adjoint(scale * data) - factor * divergence(slopes),
        unscaled=lambda residual: residual / torch.where(scale > 0, scale, 1.0),
        y=scale * y,
        slope=slope,
        norm=NORM_MARGIN * norm.clamp(min=tiny).sqrt(),
    )


def _change(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> Tensor:
    """Return the relative change `(batch,)`, float64, of image and dual variables; all three steps are equal."""
    x, data, slopes = after
    moved = norms(x - before[0]) ** 2 + norms(data - before[1]) ** 2 + norms((slopes - before[2]).transpose(0, 1)) ** 2
    reached = norms(x) ** 2 + norms(data) ** 2 + norms(slopes.transpose(0, 1)) ** 2
    return (moved / reached.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()


def _dual_objective(y: Tensor, dual: Tensor, x: Tensor, descent: Tensor, nonnegative: bool) -> Tensor:
    """Return a bound from below `(batch,)`, float64, of the objective over images within the range of x."""
    inner = (y.conj() * dual).real.flatten(1).sum(1, dtype=torch.float64)
    largest = x.abs().flatten(1).amax(1).double()
    gain = descent.clamp(max=0).abs() if nonnegative else descent.abs()
    return -0.5 * norms(dual) ** 2 - inner - largest * gain.flatten(1).sum(1, dtype=torch.float64)
