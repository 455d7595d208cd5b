"""The classical iterative methods that every learned result is shown beside: CGLS, CG-SENSE, TV and wavelets.

Images are slices `(batch, y, x)`, volumes `(batch, z, y, x)` or sets of coil images `(batch, set, y, x)`; what is said
of `(batch, *domain)` holds for all of them. The algebraic methods stand in `algebraic`, TV with other data terms in
`primal_dual`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.operators import Physics, norms, operator_norms
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.solve import Outcome

NORM_STEPS = 12
"""Lanczos steps for the norm that damping is relative to."""


@dataclass(frozen=True)
class Reconstructed:
    """Images of a classical method and how it stopped.

    Parameters
    ----------
    image
        `(batch, *domain)`.
    outcome
        The worst in the batch.
    steps
        Iterations taken, of the sample that took most.
    """

    image: Tensor
    outcome: Outcome
    steps: int


class Ongoing:
    """Which samples of a batch are still iterated, so that none depends on how long the others take.

    Parameters
    ----------
    like
        Any tensor `(batch, ...)` of the iteration.
    """

    def __init__(self, like: Tensor) -> None:
        self.samples = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
        self._any_diverged = False
        self._all = True

    @property
    def outcome(self) -> Outcome:
        """The worst in the batch if the iteration ended here."""
        if self._any_diverged:
            return Outcome.DIVERGED
        return Outcome.MAX_STEPS if bool(self.samples.any()) else Outcome.CONVERGED

    def moved(self, after: Tensor, before: Tensor) -> Tensor:
        """Return what was computed in a step `(batch, ...)`, for samples that have ended what there was before it."""
        if self._all:
            return after
        return torch.where(self.samples.reshape(-1, *([1] * (after.ndim - 1))), after, before)

    def end(self, converged: Tensor, finite: Tensor) -> bool:
        """End samples that have converged or are not finite, both `(batch,)`, bool; return whether all have ended."""
        self._any_diverged |= bool((self.samples & ~finite).any())
        self.samples = self.samples & finite & ~converged
        self._all = bool(self.samples.all())
        return not bool(self.samples.any())


def data_residual(physics: Physics, image: Tensor, y: Tensor) -> Tensor:
    """Return ||A x - y|| / ||y|| `(batch,)`, float64."""
    return norms(physics.forward(image) - y) / norms(y).clamp(min=torch.finfo(torch.float64).tiny)


def counts_weights(y: Tensor) -> Tensor:
    """Return the statistical weight of each ray, shaped as y `(batch, view, ...)`, with mean one in each sample.

    A ray that N photons of N0 come through has a line integral of log(N0 / N), whose variance is about 1 / N: the
    weights are proportional to exp(-y). Rays without any count, which are not finite, weigh nothing. No ray has more
    photons than the open beam: a negative y weighs as much as zero.

    Source: K. Sauer and C. Bouman 1993, doi:10.1109/78.193196.
    """
    counted = torch.isfinite(y)
    flat = torch.where(counted, y.clamp(min=0), math.inf).reshape(y.shape[0], -1)
    # relative to the brightest ray, so that nothing overflows
    brightest = flat.amin(dim=1, keepdim=True)
    weights = torch.exp(torch.where(torch.isfinite(brightest), brightest, 0.0) - flat)
    mean = weights.mean(dim=1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    return (weights / mean).reshape(y.shape)


def usable(y: Tensor, weights: Tensor | None) -> Tensor:
    """Return y with zeros where it weighs nothing, so that a value that is not finite does no harm there.

    Raises
    ------
    BadInput
        The weights do not have the shape of y, or one is negative or not finite.
    """
    if weights is None:
        return y
    if weights.shape != y.shape:
        raise BadInput(f"weights of shape {tuple(weights.shape)} do not fit measurements {tuple(y.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise BadInput("a weight is negative or not finite", "Weights are numbers from 0 on.")
    return torch.where(weights > 0, y, 0.0)


def along_batch(values: Tensor, like: Tensor) -> Tensor:
    """Return values `(batch,)` in the precision of `like (batch, ...)` and shaped to be multiplied with it."""
    return values.to(like.real.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def fixed_draw(physics: Physics, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return where the search for the norm of A starts, the same random image for each sample `(batch, *domain)`.

    One sample does where neither physics nor weights differ between samples. A has no negative entries in CT: a
    positive image is far from orthogonal to its leading singular vector.
    """
    batch = y.shape[0] if weights is not None or physics.slices > 1 else 1
    generator = torch.Generator().manual_seed(0)
    if physics.complex_image:
        drawn = torch.view_as_complex(torch.randn((1, *physics.domain, 2), generator=generator))
    else:
        drawn = torch.rand((1, *physics.domain), generator=generator)
    return drawn.to(y.device, y.dtype).expand(batch, *physics.domain)


def space_axes(physics: Physics) -> int:
    """Return how many trailing axes of an image are space: all of CT, two of MRI, whose images may come in sets."""
    return 2 if physics.complex_image else len(physics.domain)


@torch.no_grad()
def conjugate_gradients(
    physics: Physics,
    y: Tensor,
    *,
    damping: float,
    tolerance: float,
    max_steps: int,
    weights: Tensor | None = None,
    watch: Watch = unwatched,
) -> Reconstructed:
    """Minimise ||A x - y||_V^2 + damping^2 ||A||_V^2 ||x||^2 by conjugate gradients on the normal equations, from zero.

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
        A sample has converged, and stays as it is, once ||A^H V (A x - y) + ...|| is below this multiple of its first
        value.
    weights
        Diagonal of V, shaped as y; None takes the identity.
    watch
        Called after each step; the fixed-point residual is the relative change ||x_k+1 - x_k|| / ||x_k+1||, that of
        its last step for a sample that has converged.
    """
    y = usable(y, weights)

    def weighted(residual: Tensor) -> Tensor:
        return residual if weights is None else weights * residual

    ahy = physics.adjoint(weighted(y))
    square = torch.zeros(y.shape[0], dtype=torch.float64, device=y.device)
    if damping > 0:
        start = fixed_draw(physics, y, weights)
        square = square + damping**2 * operator_norms(
            lambda v: physics.adjoint(weighted(physics.forward(v))), start, steps=NORM_STEPS
        )
    x = torch.zeros_like(ahy)
    gradient = ahy
    direction = gradient
    size = norms(gradient) ** 2
    first = size.clamp(min=torch.finfo(torch.float64).tiny)
    change, ongoing, step = torch.ones_like(size), Ongoing(y), 0
    projected = torch.zeros_like(y)
    scale = norms(y).clamp(min=torch.finfo(torch.float64).tiny)
    while step < max_steps:
        measured = physics.forward(direction)
        seen = measured if weights is None else weights.sqrt() * measured
        curvature = norms(seen) ** 2 + square * norms(direction) ** 2
        length = torch.where(curvature > 0, size / curvature.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        length = length * ongoing.samples
        move = along_batch(length, x) * direction
        x = x + move
        projected = projected + along_batch(length, projected) * measured
        gradient = physics.adjoint(weighted(y - projected)) - along_batch(square, x) * x
        following = norms(gradient) ** 2
        step += 1
        change = ongoing.moved(norms(move) / norms(x).clamp(min=torch.finfo(torch.float64).tiny), change)
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=norms(usable(projected - y, weights)) / scale,
            )
        )
        if ongoing.end(following <= tolerance**2 * first, torch.isfinite(following)):
            break
        direction = gradient + along_batch(torch.where(size > 0, following / size, 0.0), x) * direction
        size = following
    return Reconstructed(x, ongoing.outcome, step)


@torch.no_grad()
def starting_image(physics: Physics, y: Tensor) -> Tensor:
    """Return where an iteration starts `(batch, *domain)`, a function of y alone.

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
        A sample has converged, and stays as it is, once the relative change of its image is below.
    nonnegative
        Whether negative values are forbidden (CT).
    watch
        Called after each step; the fixed-point residual is the relative change of the image in the sample's last step.

    Raises
    ------
    BadInput
        Complex images cannot be nonnegative.

    Source: A. Beck and M. Teboulle 2009, doi:10.1109/TIP.2009.2028245, with the restart of B. O'Donoghue and E.
    Candes 2015, doi:10.1007/s10208-013-9150-3.
    """
    check_sign(physics, nonnegative)
    x = starting_image(physics, y)
    level = strength * norms(x) / math.sqrt(math.prod(physics.domain))
    dual = torch.zeros((space_axes(physics), *x.shape), dtype=x.dtype, device=x.device)

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
        A sample has converged, and stays as it is, once the relative change of its image is below.
    seed
        Of the random places.
    watch
        Called after each step; the fixed-point residual is the relative change of the image in the sample's last step.

    Source: M. Lustig, D. Donoho, J. M. Pauly 2007, doi:10.1002/mrm.21391; cycle spinning: M. Figueiredo and R. Nowak
    2003, doi:10.1109/TIP.2003.814255.
    """
    x = starting_image(physics, y)
    level = along_batch(strength * norms(x) / math.sqrt(math.prod(physics.domain)), x)
    generator = torch.Generator().manual_seed(seed)
    axes = tuple(range(-space_axes(physics), 0))
    space = physics.domain[axes[0] :]
    # few enough coarse coefficients, which are free, that any sampling sees them
    levels = max(1, int(math.log2(min(space))) - 2)
    block = 2**levels
    padding = [amount for size in reversed(space) for amount in (0, -size % block)]
    inside: tuple[Any, ...] = (..., *(slice(size) for size in space))

    def prox(target: Tensor) -> Tensor:
        shift = torch.randint(block, (len(space),), generator=generator).tolist()
        moved = torch.roll(torch.nn.functional.pad(target, padding), shift, axes)
        shrunk = torch.roll(_shrink_details(moved, level, levels, axes), [-s for s in shift], axes)
        return shrunk[inside]

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
    """Iterate x = prox(x - A^H W (A x - y)) with momentum, restarted where it points uphill, for each sample."""
    ahead, momentum = x, torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    # A is applied to each new image once: what it gives of the point ahead is a combination of two images'
    seen = physics.forward(x)
    ahead_seen = seen
    size = norms(y).clamp(min=torch.finfo(torch.float64).tiny)
    change, ongoing, step = torch.ones_like(size), Ongoing(x), 0
    while step < max_steps:
        following = ongoing.moved(prox(ahead - physics.adjoint(physics.weight(ahead_seen - y))), x)
        following_seen = physics.forward(following)
        moved = following - x
        turning = ((ahead - following).conj() * moved).real.flatten(1).sum(1) > 0
        grown = torch.where(turning, 1.0, 0.5 * (1 + (1 + 4 * momentum**2).sqrt()))
        push = (momentum - 1) / grown
        ahead = following + along_batch(push, x) * moved
        ahead_seen = following_seen + along_batch(push, y) * (following_seen - seen)
        reached = norms(following)
        # an image without any positive value goes to zero at once: that is a change of one, not an infinite one
        scale = torch.where(reached > 0, reached, norms(x)).clamp(min=torch.finfo(torch.float64).tiny)
        change = ongoing.moved(norms(moved) / scale, change)
        x, seen, momentum = following, following_seen, grown
        step += 1
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=norms(seen - y) / size,
            )
        )
        if ongoing.end(change <= tolerance, torch.isfinite(change)):
            break
    return Reconstructed(x, ongoing.outcome, step)


def check_sign(physics: Physics, nonnegative: bool) -> None:
    """Raise BadInput where a complex image is asked to be nonnegative."""
    if nonnegative and physics.complex_image:
        raise BadInput("a complex image cannot be nonnegative", "Allow negative values.")


def differences(x: Tensor, axes: int) -> Tensor:
    """Return forward differences along the last axes `(axes, batch, *domain)`, zero at the last index of each."""
    field = x.new_zeros((axes, *x.shape))
    for part, axis in zip(field, range(x.ndim - axes, x.ndim), strict=True):
        size = x.shape[axis] - 1
        torch.sub(x.narrow(axis, 1, size), x.narrow(axis, 0, size), out=part.narrow(axis, 0, size))
    return field


def divergence(field: Tensor) -> Tensor:
    """Return the negative adjoint of `differences` `(batch, *domain)`."""
    axes = field.shape[0]
    result = torch.zeros_like(field[0])
    for part, axis in zip(field, range(result.ndim - axes, result.ndim), strict=True):
        inner = part.narrow(axis, 0, result.shape[axis] - 1)
        result.narrow(axis, 0, inner.shape[axis]).add_(inner)
        result.narrow(axis, 1, inner.shape[axis]).sub_(inner)
    return result


def lengths(field: Tensor) -> Tensor:
    """Return the Euclidean lengths `(batch, *domain)`, real, of vectors `(axes, batch, *domain)`."""
    # components first; complex ones have two more
    parts = torch.view_as_real(field).movedim(-1, 0).flatten(0, 1) if field.is_complex() else field
    squares = parts[0].square()
    for part in parts[1:]:
        squares.addcmul_(part, part)
    return squares.sqrt_()


def _total_variation_prox(
    target: Tensor, level: Tensor, dual: Tensor, nonnegative: bool, steps: int = 10
) -> tuple[Tensor, Tensor]:
    """Return argmin 1/2 ||x - target||^2 + level TV(x) and the dual field `(axes, batch, *domain)` it ends with.

    Dual projected gradients (A. Chambolle 2005, doi:10.1007/11585978_10); the norm of the differences
    along n axes is at most 2 sqrt(n).
    """
    strength = along_batch(level, target)
    axes = dual.shape[0]
    length = 4 * axes * strength.clamp(min=torch.finfo(target.real.dtype).tiny)
    dual = dual.clone()
    for _ in range(steps):
        dual += _divided(differences(_explained(target, strength, dual, nonnegative), axes), length)
        dual = _divided(dual, lengths(dual).clamp_(min=1.0))
    return _explained(target, strength, dual, nonnegative), dual


def _divided(values: Tensor, divisor: Tensor) -> Tensor:
    """Return the values divided in place by real numbers, which for complex ones is quicker part by part."""
    if values.is_complex():
        torch.view_as_real(values).div_(divisor.unsqueeze(-1))
        return values
    return values.div_(divisor)


def _explained(target: Tensor, strength: Tensor, dual: Tensor, nonnegative: bool) -> Tensor:
    """Return the image that belongs to a dual field."""
    image = divergence(dual).mul_(strength).add_(target)
    return image.clamp_(min=0) if nonnegative else image


def _shrink_details(image: Tensor, level: Tensor, levels: int, axes: tuple[int, ...]) -> Tensor:
    """Return the image `(batch, *domain)`, its wavelet details lowered in magnitude by `level (batch, 1, ...)`."""
    least = level.cpu().numpy()
    settings = {"wavelet": "db2", "mode": "periodization", "axes": axes}
    coarse, *details = pywt.wavedecn(image.cpu().numpy(), level=levels, **settings)
    shrunk = [{name: _shrunk(part, least) for name, part in scale.items()} for scale in details]
    restored = pywt.waverecn([coarse, *shrunk], **settings)
    return torch.from_numpy(restored).to(image.device, image.dtype)


def _shrunk(values: NDArray[Any], least: NDArray[Any]) -> NDArray[Any]:
    """Return the values with their magnitudes lowered, at most to zero; zeros, too, stay zero."""
    magnitude = np.abs(values)
    cut = np.divide(least, magnitude, out=np.ones_like(magnitude), where=magnitude > least)
    return np.asarray(values * (1 - cut))
