"""GMRES on batches of linear systems, one Krylov space a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equipoise_engine.operators import norms
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.solve import Outcome


@torch.no_grad()
def gmres(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    watch: Watch = unwatched,
) -> tuple[Tensor, tuple[Outcome, ...], int]:
    """Solve M v = u for each sample, from zero.

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
    watch
        Called after every step with the relative residual; may raise Cancelled.

    Returns
    -------
    tuple
        v `(batch, ...)`, why each sample stopped, and the number of applications of M.

    Source: Y. Saad and M. H. Schultz 1986, doi:10.1137/0907058. Inner products are real, so complex values are pairs
    of reals.
    """
    batch = right.shape[0]
    size = norms(right)
    wide = (-1, *([1] * (right.ndim - 1)))
    usable = torch.isfinite(size) & (size > 0)
    safe = torch.where(usable, size, 1.0)
    basis = [torch.where(usable.reshape(wide), right / safe.to(right.real.dtype).reshape(wide), 0)]
    hessenberg = torch.zeros((batch, max_steps + 1, max_steps), dtype=torch.float64, device=right.device)
    coefficients = torch.zeros((batch, 0), dtype=torch.float64, device=right.device)
    relative = torch.ones(batch, dtype=torch.float64, device=right.device)
    steps = 0
    while steps < max_steps:
        vector = apply(basis[-1])
        for earlier, kept in enumerate(basis):
            overlap = _dots(kept, vector)
            hessenberg[:, earlier, steps] = overlap
            vector = vector - overlap.to(vector.real.dtype).reshape(wide) * kept
        length = norms(vector)
        hessenberg[:, steps + 1, steps] = length
        steps += 1
        part = hessenberg[:, : steps + 1, :steps]
        target = torch.zeros((batch, steps + 1, 1), dtype=torch.float64, device=right.device)
        target[:, 0] = 1.0
        part = torch.where(torch.isfinite(part), part, 0.0)
        coefficients = (torch.linalg.pinv(part) @ target)[:, :, 0]
        relative = torch.linalg.vector_norm(target[:, :, 0] - (part @ coefficients[:, :, None])[:, :, 0], dim=1)
        watch(Progress("backward", steps, max_steps, fixed_point_residual=relative))
        growing = torch.isfinite(length) & (length > 1e-14)
        if bool(((relative <= tolerance) | ~usable | ~growing).all()):
            break
        divisor = torch.where(growing, length, 1.0).to(vector.real.dtype).reshape(wide)
        basis.append(torch.where(growing.reshape(wide), vector / divisor, 0))
    combined = torch.zeros_like(right)
    for index in range(coefficients.shape[1]):
        combined = combined + (coefficients[:, index] * size).to(right.real.dtype).reshape(wide) * basis[index]
    finite = torch.isfinite(norms(combined))
    outcomes = tuple(
        Outcome.DIVERGED if not ok else Outcome.CONVERGED if value <= tolerance or not used else Outcome.MAX_STEPS
        for ok, value, used in zip(finite.tolist(), relative.tolist(), usable.tolist(), strict=True)
    )
    return combined, outcomes, steps


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the real inner product of each sample `(batch,)`, float64."""
    product = (left.conj() * right).real if left.is_complex() else left * right
    return product.reshape(left.shape[0], -1).double().sum(1)
