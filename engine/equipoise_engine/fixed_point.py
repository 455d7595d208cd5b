"""The maps T whose fixed points are reconstructions.

Proximal gradient, regularisation by denoising, half-quadratic splitting. All have one form, T(x) = x - P F(x): `root`
is F, whose zeros are the fixed points, and `precondition` is P, symmetric positive definite, which changes how fast
they are found but not where they lie. The fixed point is differentiated through F (see `equilibrium`), where P needs no
gradient; a map that is unrolled away from its fixed point is differentiated through P too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.krylov import conjugate_gradients
from equipoise_engine.operators import Physics

Denoise = Callable[[Tensor], Tensor]
"""D on images `(batch, y, x)`, real or complex."""

FIXED_POINTS = ("pgd", "red", "hqs")


@dataclass(frozen=True)
class FixedPointMap(ABC):
    """T on the image space of a batch of measurements.

    Parameters
    ----------
    physics
        Of the batch.
    denoise
        D.
    weigh
        Gives the map's own positive scalar `()`, with a graph to the parameter behind it where gradients are wanted.
    symmetric
        Whether the Jacobian of D is symmetric, and so that of F where the map allows.
    """

    physics: Physics
    denoise: Denoise
    weigh: Callable[[], Tensor]
    symmetric: bool

    @property
    def weight(self) -> Tensor:
        """The map's own positive scalar `()`: what it weighs is said by each map."""
        return self.weigh()

    @abstractmethod
    def root(self, x: Tensor, y: Tensor) -> Tensor:
        """Return F(x, y) `(batch, y, x)`, differentiable in x, y, the weight and the parameters of D."""

    @abstractmethod
    def precondition(self, residual: Tensor) -> Tensor:
        """Return P r `(batch, y, x)`."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Return T(x, y) = x - P F(x, y) `(batch, y, x)`."""
        return x - self.precondition(self.root(x, y))

    def select(self, samples: Tensor) -> FixedPointMap:
        """Return the map on a part of the batch; `samples (active,)` int64."""
        return replace(self, physics=self.physics.select(samples))


@dataclass(frozen=True)
class ProximalGradient(FixedPointMap):
    """T(x) = D(x - g A^H W (A x - y)), g in (0, 2) the weight of the data. F = x - T, P = identity.

    Source: D. Gilton, G. Ongie, R. Willett 2021, arXiv:2102.07944, eq. 11.
    """

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Return T(x, y) `(batch, y, x)`."""
        return self.denoise(x - self.weight * self.physics.gradient(x, y))

    def root(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x - T(x, y)."""
        return x - self.step(x, y)

    def precondition(self, residual: Tensor) -> Tensor:
        """Return the residual."""
        return residual


@dataclass(frozen=True)
class RegularisationByDenoising(FixedPointMap):
    """F(x) = A^H (A x - y) / L + lambda (x - D(x)), lambda the strength of the prior, L = ||A||^2.

    The data term is that of white noise. P = (S + lambda)^-1 with S the spectrum of A^H A / L, taken as if it were a
    convolution: for CT a ramp that saturates where the prior dominates. F does not contain P, so neither does the
    fixed point.

    Source: Y. Romano, M. Elad, P. Milanfar 2017, arXiv:1611.02862, eq. 18.
    """

    spectrum: Tensor
    scale: Tensor

    def root(self, x: Tensor, y: Tensor) -> Tensor:
        """Return A^H (A x - y) / L + lambda (x - D(x)) `(batch, y, x)`."""
        data = self.physics.adjoint(self.physics.forward(x) - y)
        scale = self.scale.to(data.real.dtype)[:, None, None]
        return data / scale + self.weight * (x - self.denoise(x))

    def precondition(self, residual: Tensor) -> Tensor:
        """Return (S + lambda)^-1 r `(batch, y, x)`, a convolution on the zero-padded image."""
        rows, columns = residual.shape[-2:]
        size = (2 * rows, 2 * columns)
        factor = 1 / (self.spectrum.to(residual.real.dtype) + self.weight.to(residual.real.dtype))
        changed: Tensor = torch.fft.ifft2(torch.fft.fft2(residual, s=size) * factor)[..., :rows, :columns]
        return changed.to(residual.dtype) if residual.is_complex() else changed.real.to(residual.dtype)

    def select(self, samples: Tensor) -> RegularisationByDenoising:
        """Return the map on a part of the batch."""
        chosen = samples if self.spectrum.shape[0] > 1 else torch.zeros_like(samples[:1])
        return replace(
            self,
            physics=self.physics.select(samples),
            spectrum=self.spectrum[chosen],
            scale=self.scale[chosen],
        )


@dataclass(frozen=True)
class HalfQuadraticSplitting(FixedPointMap):
    """T(x) = (I + g B)^-1 (D(x) + g A^H W y), B = A^H W A. F(x) = x - D(x) + g A^H W (A x - y), P = (I + g B)^-1.

    P has a closed form for Cartesian MRI with one coil and is found by conjugate gradients otherwise.

    Source: K. Zhang, W. Zuo, S. Gu, L. Zhang 2017, arXiv:1704.03264, eq. 6.
    """

    def root(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x - D(x) + g A^H W (A x - y) `(batch, y, x)`."""
        return x - self.denoise(x) + self.weight * self.physics.gradient(x, y)

    def precondition(self, residual: Tensor) -> Tensor:
        """Return (I + g B)^-1 r `(batch, y, x)`, differentiable in r and g."""
        result: Tensor = _Resolvent.apply(residual, self.weight, self.physics)  # type: ignore[no-untyped-call]
        return result

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Return T(x, y) `(batch, y, x)`."""
        data = self.physics.adjoint(self.physics.weight(y))
        return self.precondition(self.denoise(x) + self.weight * data)


class _Resolvent(torch.autograd.Function):
    """(I + g B)^-1 b; its derivative in b is itself, in g minus itself times B times the result."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, length: Tensor, physics: Physics) -> Tensor:
        value = _resolve(b, float(length), physics)
        ctx.save_for_backward(value, length)
        ctx.physics = physics
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        value, length = ctx.saved_tensors
        spread: Tensor = _Resolvent.apply(gradients[0], length, ctx.physics)  # type: ignore[no-untyped-call]
        to_length = None
        if ctx.needs_input_grad[1]:
            normal = ctx.physics.normal(value)
            to_length = -torch.sum((spread.conj() * normal).real).to(length.dtype)
        return spread, to_length, None


def _resolve(b: Tensor, length: float, physics: Physics) -> Tensor:
    closed = physics.resolvent(b, length)
    if closed is not None:
        return closed
    precise = torch.finfo(b.real.dtype).eps
    solved = conjugate_gradients(
        lambda v: v + length * physics.normal(v), b, tolerance=max(20 * precise, 1e-12), max_steps=200
    )
    return solved.value


def build_map(
    name: str, physics: Physics, denoise: Denoise, weigh: Callable[[], Tensor], *, symmetric: bool
) -> FixedPointMap:
    """Return the map of that name for a batch of measurements.

    Parameters
    ----------
    name
        One of `FIXED_POINTS`.
    weigh
        Gives g of "pgd" and "hqs", lambda of "red"; positive `()`.
    symmetric
        Whether the Jacobian of D is symmetric.

    Raises
    ------
    BadInput
        The name is unknown.
    """
    match name:
        case "pgd":
            # J = J_D (I - g B): a product, which is not symmetric even if both factors are
            return ProximalGradient(physics, denoise, weigh, False)
        case "red":
            spectrum, scale = _response(physics, weigh())
            return RegularisationByDenoising(physics, denoise, weigh, symmetric, spectrum, scale)
        case "hqs":
            return HalfQuadraticSplitting(physics, denoise, weigh, symmetric)
        case _:
            raise BadInput(f"unknown fixed-point map {name!r}", f"Choose one of {', '.join(FIXED_POINTS)}.")


@torch.no_grad()
def _response(physics: Physics, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectrum S of A^H A / L `(1 or batch, 2 y, 2 x)`, at least zero, and L `(1 or batch,)`.

    S is the transform of the answer to a point in the middle of the image; L is its largest value.
    """
    rows, columns = physics.domain
    dtype = torch.complex64 if physics.complex_image else torch.float32
    point = torch.zeros((physics.slices, rows, columns), dtype=dtype, device=like.device)
    point[:, rows // 2, columns // 2] = 1
    answer = physics.adjoint(physics.forward(point))
    padded = torch.nn.functional.pad(answer, (0, columns, 0, rows))
    centred = torch.roll(padded, (-(rows // 2), -(columns // 2)), (-2, -1))
    spectrum = torch.fft.fft2(centred).real.clamp(min=0)
    scale = spectrum.amax(dim=(-2, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    return spectrum / scale[:, None, None], scale
