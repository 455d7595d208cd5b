"""Training losses, all but `supervised` from measurements only.

Each returns one value per sample, relative to the size of the data. Differences d of measurements are weighed by the
W of the physics, <d, W d>, as in the data term of the reconstruction. Noise enters as draws of it (`recorrupt`,
`equivariance`) or as the variance of each measurement (`stein_terms`): a number for white noise, an array such as
`attenuation_variance` for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from equipoise_engine.groups import Transform, virtual
from equipoise_engine.operators import Physics


class Reconstruction(Protocol):
    """f(y, physics) `(batch, y, x)`.

    With `copies` of k the batch holds k variants of each sample, all first variants, then all second ones, and so on;
    the solves of one sample's variants stop together.
    """

    def __call__(self, y: Tensor, physics: Physics, /, copies: int = 1) -> Tensor:
        """Return f(y, physics)."""


def supervised(x_hat: Tensor, x: Tensor, physics: Physics) -> Tensor:
    """Return ||x_hat - x||^2 / ||x||^2 `(batch,)` over the part of the image that is seen; x is the truth."""
    difference, whole = physics.seen(x_hat - x), physics.seen(x)
    return _inner(difference, difference) / _positive(_inner(whole, whole))


def measurement_consistency(x_hat: Tensor, y: Tensor, physics: Physics) -> Tensor:
    """Return <A x - y, W (A x - y)> / <y, W y> `(batch,)`.

    Parameters
    ----------
    x_hat
        Reconstruction f(y) `(batch, y, x)`.
    y
        Measurements `(batch, ...)`.
    """
    return _weighed(physics.forward(x_hat) - y, physics) / _size(y, physics)


# --- noise ---


def recorrupt(y: Tensor, noise: Tensor, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Return y + t w and y - w / t, whose noises are independent when y has Gaussian noise of the covariance of w.

    Reconstructing from the first and comparing with the second is, in expectation, comparing with noise-free
    measurements.

    Source: T. Pang, H. Zheng, Y. Quan, H. Ji 2021, doi:10.1109/CVPR46437.2021.00208; t^2 = a / (1 - a) with `share` a
    as in B. Monroy, J. Bacca, J. Tachella 2024, arXiv:2412.04648.

    Parameters
    ----------
    y
        Measurements `(batch, ...)`.
    noise
        w, shaped as y: sqrt(variance) times `Physics.noise_like`.
    """
    spread = (share / (1 - share)) ** 0.5
    return y + spread * noise, y - noise / spread


def attenuation_variance(y: Tensor, photons: float, readout: float = 0.0) -> Tensor:
    """Return the variance of each attenuation value, shaped as y: (1 + s^2 / n) / n with n = I0 exp(-y) photons.

    First order in the noise of the counts n, which are Poisson plus Gaussian of standard deviation s.

    Source: K. Sauer and C. Bouman 1993, doi:10.1109/78.193196; with electronic noise J.-B. Thibault et al. 2006,
    doi:10.1117/12.660281.

    Parameters
    ----------
    y
        -log(counts / I0) `(batch, view, column)`.
    photons
        I0, counts of a ray through air.
    readout
        s, in counts.
    """
    # fewer than one photon tell nothing, and first order is no order there
    counts = (photons * torch.exp(-y.detach())).clamp(min=1)
    return (1 + readout**2 / counts) / counts


@dataclass(frozen=True)
class SteinTerms:
    """What Stein's estimates are made of, each `(batch,)` and relative to <y, W y>, with V = diag(variance).

    Parameters
    ----------
    misfit
        <A f(y) - y, W (A f(y) - y)>.
    divergence
        tr(W J V), J the Jacobian of y -> A f(y), estimated with one random probe.
    noise
        tr(W V) = E <e, W e>, estimated with the same probe.
    x_hat
        f(y) `(batch, y, x)`.
    """

    misfit: Tensor
    divergence: Tensor
    noise: Tensor
    x_hat: Tensor


def stein_terms(
    y: Tensor,
    physics: Physics,
    reconstruct: Reconstruction,
    *,
    variance: Tensor | float,
    probe: Tensor,
    step: float = 1e-2,
) -> SteinTerms:
    """Return the terms of `sure` and `unsure`, from one solve of y and y + h b side by side.

    Solved together, both stop after the same number of steps, and what they lack to the fixed point cancels.

    Source: S. Ramani, T. Blu, M. Unser 2008, doi:10.1109/TIP.2008.2001404, theorem 2, with weights.

    Parameters
    ----------
    y
        Measurements `(batch, ...)`.
    variance
        Of each measurement's noise (of each of real and imaginary part), a number or shaped as y.
    probe
        b, `Physics.noise_like` y.
    step
        ||h b|| / ||y||, for each sample.
    """
    length = _length(y, probe, step)
    x_hat, base, (moved,) = _perturbed(y, physics, reconstruct, [length * probe])
    weighted = physics.weight(variance * probe)
    size = _size(y, physics)
    divergence = _inner(weighted, (moved - base) / length) / size
    return SteinTerms(_weighed(base - y, physics) / size, divergence, _inner(probe, weighted) / size, x_hat)


def sure(terms: SteinTerms) -> Tensor:
    """Return an estimate of <A f(y) - A x, W (A f(y) - A x)> / <y, W y> `(batch,)`, unbiased but for the denominator.

    Source: C. M. Stein 1981, doi:10.1214/aos/1176345632; for training, arXiv:2111.12855, eq. 9.
    """
    return terms.misfit + 2 * terms.divergence - terms.noise


def unsure(terms: SteinTerms, level: NoiseLevel) -> Tensor:
    """Return the Lagrangian `(batch,)` of least misfit among reconstructions of zero divergence.

    The terms are those of a variance known up to a factor (1 where the noise is white); `level` is that factor, the
    multiplier. Train by descent in the reconstruction and `raised` ascent in the level.

    Source: J. Tachella, M. Davies, L. Jacques 2024, arXiv:2409.01985, eq. 8.
    """
    return terms.misfit + 2 * level.variance * terms.divergence


@dataclass(frozen=True)
class NoiseLevel:
    """The noise variance that UNSURE learns, and the running mean of what it climbs along."""

    variance: float
    velocity: float = 0.0


def raised(level: NoiseLevel, terms: SteinTerms, rate: float = 0.05, momentum: float = 0.9) -> NoiseLevel:
    """Return the level after a step of gradient ascent with momentum on `unsure`.

    The ascent is in the logarithm of the level, so that it stays positive, and on the divergence relative to that of
    the identity, the share of the noise that the reconstruction lets through, so that it needs no scale. A share
    beyond one counts as one: the reconstruction, which has to follow the level, is then far from doing so.
    """
    share = float(terms.divergence.detach().sum() / terms.noise.detach().sum())
    share = min(1.0, max(-1.0, share))
    velocity = momentum * level.velocity + (1 - momentum) * share
    return NoiseLevel(level.variance * math.exp(rate * velocity), velocity)


def poisson_gaussian_sure(
    y: Tensor,
    physics: Physics,
    reconstruct: Reconstruction,
    *,
    gain: float,
    deviation: float,
    probe: Tensor,
    generator: torch.Generator,
    step: float = 1e-2,
) -> tuple[Tensor, Tensor]:
    """Return `sure` `(batch,)` for y = g Poisson(A x / g) + e, counts that are linear in the image, and f(y).

    First order in the gain g: the noise variance g y + s^2 is unbiased, but correlated with the noise, which the
    second derivative of A f corrects where there is Gaussian noise e of standard deviation s beside the counts.

    Source: Y. Le Montagner, E. D. Angelini, J.-C. Olivo-Marin 2014, doi:10.1109/TIP.2014.2300821; for training,
    arXiv:2111.12855.

    Parameters
    ----------
    y
        Measurements `(batch, ...)`, real.
    probe
        `Physics.noise_like` y.
    generator
        Draws the probe of the second derivative.
    """
    variance = gain * y.detach() + deviation**2
    if gain * deviation == 0:
        terms = stein_terms(y, physics, reconstruct, variance=variance, probe=probe, step=step)
        return sure(terms), terms.x_hat
    # two values with mean zero, variance one and third moment one: a symmetric probe would see no second derivative
    lower, chance = (1 - math.sqrt(5)) / 2, 0.5 + 0.5 / math.sqrt(5)
    low = torch.rand(y.shape, generator=generator).to(y) < chance
    skewed = torch.where(low, lower, lower + math.sqrt(5)).to(y.dtype)
    length, wide = _length(y, probe, step), _length(y, skewed, step)
    x_hat, base, (moved, ahead, behind) = _perturbed(
        y, physics, reconstruct, [length * probe, wide * skewed, -wide * skewed]
    )
    weighted = physics.weight(variance * probe)
    curvature = (ahead + behind - 2 * base) / wide**2
    estimate = (
        _weighed(base - y, physics)
        + 2 * _inner(weighted, (moved - base) / length)
        - 2 * gain * deviation**2 * _inner(physics.weight(skewed), curvature)
        - _inner(probe, weighted)
    )
    return estimate / _size(y, physics), x_hat


# --- what the measurements do not tell ---


def equivariance(
    x_hat: Tensor,
    physics: Physics,
    reconstruct: Reconstruction,
    *,
    transform: Transform,
    corrupt: Callable[[Tensor], Tensor | None] | None = None,
    detach_target: bool = False,
) -> Tensor:
    """Return ||T_g x - f(A T_g x + e)||^2 / ||T_g x||^2 `(batch,)`: reconstruction commutes with the transform.

    Both norms are over the part of the image that is seen (`Physics.seen`).

    The gradient flows through both T_g x and f. Source: D. Chen, J. Tachella, M. E. Davies 2021, arXiv:2103.14756,
    eq. 8; with noise e: 2022, arXiv:2111.12855.

    Parameters
    ----------
    x_hat
        Reconstruction f(y) `(batch, y, x)`.
    transform
        T_g of each sample.
    corrupt
        Draws the noise e of measurements, which may depend on them; None, or a draw of None, adds none.
    detach_target
        Leave out the gradient through T_g x, also where it is measured.
    """
    turned = transform.cropped(transform.apply(x_hat.detach() if detach_target else x_hat))
    measured = physics.forward(turned)
    noise = None if corrupt is None else corrupt(measured.detach())
    again = reconstruct(measured if noise is None else measured + noise, physics)
    difference, whole = physics.seen(again - turned), physics.seen(turned)
    return _inner(difference, difference) / _positive(_inner(whole, whole).detach())


def splitting(y: Tensor, physics: Physics, reconstruct: Reconstruction, *, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return `measurement_consistency` on the measurements withheld from the reconstruction `(batch,)`, and f(y_1).

    Source: B. Yaman et al. 2020, arXiv:1912.07669, eq. 9 (MRI); A. A. Hendriksen, D. M. Pelt, K. J. Batenburg 2020,
    arXiv:2001.11801 (CT, there compared as images).

    Parameters
    ----------
    y
        Measurements `(batch, ...)`.
    kept
        Of `Physics.random_split`.
    """
    x_hat = reconstruct(physics.part(y, kept), physics.thinned(kept))
    residual = physics.withheld(physics.forward(x_hat) - y, kept)
    return _weighed(residual, physics) / _size(physics.withheld(y, kept), physics), x_hat


def equivariant_splitting(
    y: Tensor,
    physics: Physics,
    reconstruct: Reconstruction,
    *,
    transform: Transform,
    kept: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return <A T_g x_1 - y, W (A T_g x_1 - y)> / <y, W y> `(batch,)` and x_1 = f(y_1, A_1 T_g).

    The reconstruction sees a part A_1 T_g of the virtual operator A T_g, so that over g and the parts it is compared
    in every direction. x_1 is an image of the object transformed back: T_g x_1 is one of the object.

    With noise, y_1 is recorrupted, and the part of the comparison that it was made from takes the independent half.

    Source: V. Sechaud, J. Scanvic, Q. Barthelemy, P. Abry, J. Tachella 2025, arXiv:2510.00929.

    Parameters
    ----------
    y
        Measurements `(batch, ...)`.
    kept
        Of `Physics.random_split`.
    noise
        Another draw of the noise, shaped as y.
    """
    looking = virtual(physics, transform)
    given, target = y, y
    if noise is not None:
        given, other = recorrupt(y, noise)
        target = other + physics.withheld(y - other, kept)
    x_hat = reconstruct(looking.part(given, kept), looking.thinned(kept))
    return _weighed(looking.forward(x_hat) - target, physics) / _size(y, physics), x_hat


def _perturbed(
    y: Tensor, physics: Physics, reconstruct: Reconstruction, changes: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return f(y), A f(y), and A f(y + change) for each change, all from one solve."""
    copies = 1 + len(changes)
    # an operator that serves any batch need not be repeated
    repeated = physics if physics.slices == 1 else physics.joined([physics] * len(changes))
    images = reconstruct(torch.cat([y, *(y + change for change in changes)]), repeated, copies=copies)
    base, *moved = repeated.forward(images).chunk(copies)
    return images[: y.shape[0]], base, tuple(moved)


def _length(y: Tensor, probe: Tensor, step: float) -> Tensor:
    """Return step ||y|| / ||probe|| for each sample, shaped to multiply y."""
    ratio = step * (_inner(y, y) / _positive(_inner(probe, probe))).sqrt().detach()
    return _positive(ratio).reshape(-1, *([1] * (y.ndim - 1)))


def _weighed(d: Tensor, physics: Physics) -> Tensor:
    return _inner(d, physics.weight(d))


def _size(y: Tensor, physics: Physics) -> Tensor:
    return _positive(_weighed(y, physics))


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.reshape(a.shape[0], -1).sum(1)
