"""Algebraic reconstruction of CT: SIRT, with all views at once or ordered subsets of them in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.classical import Ongoing, Reconstructed, check_sign, usable
from equipoise_engine.errors import BadInput
from equipoise_engine.operators import Physics, norms
from equipoise_engine.progress import Progress, Watch, unwatched

GRAZING = 1e-5
"""Rays and pixels whose sum, without weights, is below this share of the largest of a sample are taken as unseen."""


def ordered_subsets(angle_rad: NDArray[np.float64], count: int, *, turn_rad: float) -> tuple[Tensor, ...]:
    """Return subsets of views `(view,)`, bool, in the order in which to use them.

    Each takes every `count`-th direction, so that it covers all of them, and follows on one as different as possible
    (bit-reversed order).

    Parameters
    ----------
    angle_rad
        Of the views `(view,)`.
    count
        Number of subsets; as many as views is SART (A. Andersen and A. Kak 1984, doi:10.1016/0161-7346(84)90008-7).
    turn_rad
        Angle after which directions repeat: pi of parallel beams, 2 pi of others.

    Raises
    ------
    BadInput
        There are fewer views than subsets, or no subset.

    Source: M. Hudson and R. Larkin 1994, doi:10.1109/42.363108.
    """
    views = angle_rad.shape[0]
    if not 1 <= count <= views:
        raise BadInput(f"{count} subsets of {views} views: the number of subsets must lie in 1 to {views}")
    rank = np.empty(views, dtype=np.int64)
    rank[np.argsort(np.mod(angle_rad, turn_rad), kind="stable")] = np.arange(views)
    bits = (count - 1).bit_length()
    spread = sorted(range(count), key=lambda k: int(f"{k:0{bits}b}"[::-1], 2) if bits else 0)
    return tuple(torch.from_numpy(rank % count == first) for first in spread)


@torch.no_grad()
def simultaneous_iterations(
    physics: Physics,
    y: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    nonnegative: bool,
    subsets: Sequence[Tensor] = (),
    weights: Tensor | None = None,
    relaxation: float = 1.0,
    watch: Watch = unwatched,
) -> Reconstructed:
    """Iterate x <- x + relaxation C A^T M (y - A x) from zero, with C the inverse column sums of A^T M A.

    Without weights M holds the inverse row sums of A and this is SIRT (P. Gilbert 1972,
    doi:10.1016/0022-5193(72)90180-4; J. Gregor and T. Benson 2008, doi:10.1109/TMI.2008.923696): it minimises
    ||A x - y||_M. With weights M is their diagonal and the step is that of separable quadratic surrogates (H. Erdogan
    and J. Fessler 1999, doi:10.1088/0031-9155/44/11/311). The spectral radius of C A^T M A is at most one because A has
    no negative entries.

    With subsets of views a step goes through all of them in turn, each with row and column sums of its own (M. Hudson
    and R. Larkin 1994, doi:10.1109/42.363108). The first passes gain nearly as much as that many steps without; in the
    end they go round a limit cycle near the minimum. An image of column sums is kept for each subset.

    Parameters
    ----------
    y
        `(batch, view, ...)`.
    tolerance
        A sample has converged, and stays as it is, once the relative change of its image in a step is below.
    nonnegative
        Whether negative values are forbidden.
    subsets
        Views `(view,)`, bool, as `ordered_subsets` gives them; none or one uses all views at once.
    weights
        Shaped as y.
    relaxation
        Above zero and below two.
    watch
        Called after each step; the fixed-point residual is the relative change of the image. With several subsets the
        data residual is that which the step met on its way, each view before it was used.

    Raises
    ------
    BadInput
        The physics is not one of CT, a subset is empty, or the relaxation is out of range.
    """
    if physics.complex_image:
        raise BadInput("row and column sums are those of a CT scan", "Use CG-SENSE for MRI.")
    check_sign(physics, nonnegative)
    if not 0 < relaxation < 2:
        raise BadInput(f"a relaxation of {relaxation:g} does not lie between 0 and 2")
    y = usable(y, weights)
    parts = _parts(physics, y, subsets, weights, relaxation)
    x = torch.zeros((y.shape[0], *physics.domain), dtype=y.dtype, device=y.device)
    tiny = torch.finfo(torch.float64).tiny
    size = norms(y).clamp(min=tiny)
    # all views at once: the residual after a step is the one that the next step needs
    residual = parts[0].y.clone()
    change, told, ongoing, step = torch.ones_like(size), torch.ones_like(size), Ongoing(y), 0
    while step < max_steps:
        before, squares = x, torch.zeros_like(size)
        for part in parts:
            if len(parts) > 1:
                residual = torch.sub(part.y, part.physics.forward(x))
                squares += norms(usable(residual, part.weights)) ** 2
            x = x + part.physics.adjoint(residual.mul_(part.rows)).mul_(part.columns)
            if nonnegative:
                x.clamp_(min=0)
        x = ongoing.moved(x, before)
        if len(parts) == 1:
            residual = torch.sub(parts[0].y, physics.forward(x))
            squares = norms(usable(residual, weights)) ** 2
        step += 1
        change = ongoing.moved(norms(x - before) / norms(x).clamp(min=tiny), change)
        told = ongoing.moved(squares.sqrt() / size, told)
        watch(
            Progress(
                "solve",
                step,
                max_steps,
                iterate=x,
                fixed_point_residual=change,
                data_residual=told,
            )
        )
        if ongoing.end(change <= tolerance, torch.isfinite(change)):
            break
    return Reconstructed(x, ongoing.outcome, step)


class _Part:
    """A subset of views with its step: rows M and columns C, times the relaxation.

    Parameters
    ----------
    physics, y, weights
        Of the subset.
    relaxation
        Goes into the columns.
    """

    def __init__(self, physics: Physics, y: Tensor, weights: Tensor | None, relaxation: float) -> None:
        self.physics, self.y, self.weights = physics, y, weights
        across = physics.forward(torch.ones((1, *physics.domain), dtype=y.dtype, device=y.device))
        least = GRAZING * _largest(across)
        self.rows = torch.where(across > least, 1 / across.clamp(min=least), 0.0) if weights is None else weights
        sums = physics.adjoint(self.rows * across)
        # weights fall with the attenuation: a pixel is unseen where it is grazed, not where it is dark
        reach = sums if weights is None else physics.adjoint(_counted(across > least, weights).to(y.dtype))
        smallest = torch.finfo(sums.dtype).tiny
        seen = (reach > GRAZING * _largest(reach)) & (sums > smallest)
        self.columns = torch.where(seen, 1 / sums.clamp(min=smallest), 0.0).mul_(relaxation)


def _parts(
    physics: Physics, y: Tensor, subsets: Sequence[Tensor], weights: Tensor | None, relaxation: float
) -> list[_Part]:
    if len(subsets) < 2:
        return [_Part(physics, y, weights, relaxation)]
    parts = []
    for kept in subsets:
        if not bool(kept.any()):
            raise BadInput("a subset holds no view", f"Use at most as many subsets as views, {kept.shape[0]}.")
        part = None if weights is None else physics.part(weights, kept)
        parts.append(_Part(physics.thinned(kept), physics.part(y, kept), part, relaxation))
    return parts


def _counted(met: Tensor, weights: Tensor) -> Tensor:
    """Return which rays meet the image and weigh something, of one sample where all do."""
    counted = weights > 0
    return met if bool(counted.all()) else met & counted


def _largest(sums: Tensor) -> Tensor:
    """Return the largest sum of each sample, shaped to be compared with them, and not zero."""
    largest = sums.flatten(1).amax(1) if sums.numel() else sums.new_zeros(sums.shape[0])
    return largest.reshape(-1, *([1] * (sums.ndim - 1))).clamp(min=torch.finfo(sums.dtype).tiny / GRAZING)
