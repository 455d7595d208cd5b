"""Linear operators with exact adjoints, differentiable through their adjoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput

_Map = Callable[[Tensor], Tensor]


class _Apply(torch.autograd.Function):
    """Apply a linear map; its gradient is the adjoint map, itself differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Map, adjoint: _Map) -> Tensor:
        ctx.maps = (run, adjoint)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        run, adjoint = ctx.maps
        return _Apply.apply(gradients[0], adjoint, run), None, None  # type: ignore[no-untyped-call]


class LinearOperator(ABC):
    """A linear map A between batches of arrays.

    A subclass computes `_forward` and `_adjoint`, which need not be differentiable; `forward` and `adjoint` are,
    because the gradient of a linear map is its adjoint.

    Parameters
    ----------
    domain, range
        Shape of one sample before and after the operator, without the batch axis.
    """

    def __init__(self, domain: tuple[int, ...], range: tuple[int, ...]) -> None:  # noqa: A002 - the field's term
        self.domain = domain
        self.range = range

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """Return A x `(batch, *range)` for x `(batch, *domain)`. Raises BadInput for another shape."""
        _check_shape(x, self.domain, "the operator's domain")
        result: Tensor = _Apply.apply(x, self._forward, self._adjoint)  # type: ignore[no-untyped-call]
        return result

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y `(batch, *domain)` for y `(batch, *range)`. Raises BadInput for another shape."""
        _check_shape(y, self.range, "the operator's range")
        result: Tensor = _Apply.apply(y, self._adjoint, self._forward)  # type: ignore[no-untyped-call]
        return result

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:  # noqa: N802 - the field's term
        """The adjoint operator."""
        return _Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Return the operator that applies `other`, then this one."""
        return _Composition(self, other)


class _Adjoint(LinearOperator):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.range, operator.domain)
        self._operator = operator

    def _forward(self, x: Tensor) -> Tensor:
        return self._operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._operator._forward(y)


class _Composition(LinearOperator):
    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if inner.range != outer.domain:
            raise BadInput(f"cannot compose: the inner operator gives {inner.range}, the outer takes {outer.domain}")
        super().__init__(inner.domain, outer.range)
        self._outer, self._inner = outer, inner

    def _forward(self, x: Tensor) -> Tensor:
        return self._outer._forward(self._inner._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._inner._adjoint(self._outer._adjoint(y))


class Physics(LinearOperator):
    """The operator of an imaging modality: what a reconstruction method needs beside forward and adjoint.

    A batch is a batch of slices. `weight` is a symmetric positive definite operator W on the measurements, so scaled
    that ||A^H W A|| = 1: gradient steps of length one on 1/2 <A x - y, W (A x - y)> are stable, and W is chosen to
    make the nonzero spectrum of A^H W A as flat as the sampling allows.
    """

    complex_image: bool
    """Whether images are complex64 (MRI) or float32 (CT)."""
    truncated: bool = False
    """Whether part of the object lies where few measurements see it, so that the analytic image is far off."""

    @property
    def slices(self) -> int:
        """Number of slices that differ in their physics; 1 where one operator serves a batch of any size."""
        return 1

    @abstractmethod
    def weight(self, residual: Tensor) -> Tensor:
        """Return W r `(batch, *range)`."""

    @abstractmethod
    def analytic(self, y: Tensor) -> Tensor:
        """Return the direct image of y `(batch, *domain)`: filtered back-projection or zero-filled transform."""

    @abstractmethod
    def select(self, slices: Tensor) -> Physics:
        """Return the physics of a part of the batch; `slices` `(batch,)` int64 indexes the batch axis."""

    @abstractmethod
    def joined(self, others: Sequence[Physics]) -> Physics:
        """Return the physics of the slices of this one and of others of the same scan, one after the other."""

    @abstractmethod
    def to(self, device: torch.device) -> Physics:
        """Return the physics with its tensors on `device`."""

    @abstractmethod
    def thinned(self, kept: Tensor) -> Physics:
        """Return the physics of a part of the measurements, those that `random_split` or a mask like it keeps."""

    @abstractmethod
    def part(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return the measurements that the thinned physics has, out of y `(batch, *range)`."""

    @abstractmethod
    def withheld(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y `(batch, *range)` with zeros where measurements are kept: what the thinned physics lacks."""

    @abstractmethod
    def random_split(self, generator: torch.Generator, share: float = 0.6) -> Tensor:
        """Draw which measurements to keep, bool: about `share` of those that are measured together.

        Raises
        ------
        BadInput
            There are too few to keep some and withhold some.
        """

    def turned(self, angle_rad: float) -> Physics | None:
        """Return the physics of A T_g, T_g a counter-clockwise rotation, where that needs no image turned, else None.

        A rotated object in a fixed scanner is a fixed object in a scanner turned back.
        """
        return None

    def noise_like(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return white noise of unit standard deviation (of each of real and imaginary part) where y was measured."""
        if y.is_complex():
            drawn = torch.view_as_complex(torch.randn((*y.shape, 2), generator=generator))
        else:
            drawn = torch.randn(y.shape, generator=generator)
        return drawn.to(y.device, y.dtype)

    def seen(self, image: Tensor) -> Tensor:
        """Return the image `(batch, y, x)` with zeros where the measurements say next to nothing about it."""
        return image

    def framed(self, image: Tensor) -> Tensor:
        """Return the part of an image `(batch, y, x)` that people look at; the rest only explains the measurements."""
        return image

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return A^H W (A x - y) `(batch, *domain)`."""
        return self.adjoint(self.weight(self.forward(x) - y))

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H W A x `(batch, *domain)`, a symmetric map of norm one."""
        return self.adjoint(self.weight(self.forward(x)))

    def resolvent(self, b: Tensor, length: float) -> Tensor | None:
        """Return (I + length A^H W A)^-1 b `(batch, *domain)` where it has a closed form, else None."""
        return None


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample `(batch,)`, float64, for x `(batch, ...)`."""
    flat = x.detach().reshape(x.shape[0], -1)
    size: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return size.double()


def operator_norm(apply: _Map, start: Tensor, *, steps: int = 16) -> float:
    """Return the largest eigenvalue of a symmetric positive semidefinite map, rather a little below than above it.

    Parameters
    ----------
    apply
        The map, on tensors shaped as `start`.
    start
        `(batch, ...)`, not orthogonal to the leading eigenvector.
    steps
        Of the Lanczos process; a few tell what would take the power iteration many.

    Source: C. Lanczos 1950, doi:10.6028/jres.045.026.
    """
    return leading_eigenpair(apply, start, steps=steps)[0]


def leading_eigenpair(apply: _Map, start: Tensor, *, steps: int = 16) -> tuple[float, Tensor]:
    """Return the largest eigenvalue of a symmetric positive semidefinite map and its vector, of length one.

    See `operator_norm`; the whole of `start` is one vector.
    """
    values, vectors = leading_eigenpairs(lambda v: apply(v[0])[None], start[None], steps=steps)
    return float(values[0]), vectors[0]


def operator_norms(apply: _Map, start: Tensor, *, steps: int = 16) -> Tensor:
    """Return the largest eigenvalue for each sample `(batch,)`, float64; see `leading_eigenpairs`."""
    return leading_eigenpairs(apply, start, steps=steps)[0]


def leading_eigenpairs(apply: _Map, start: Tensor, *, steps: int = 16) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue of each sample's symmetric positive semidefinite map, and its vector.

    The Lanczos process of each sample is its own, so that a value does not depend on what it is computed with. Every
    vector is made orthogonal to all earlier ones, which the few steps can afford.

    Parameters
    ----------
    apply
        The maps, on tensors shaped as `start`; no sample may enter the result of another.
    start
        `(batch, ...)`, in no sample orthogonal to the leading eigenvector.
    steps
        Of the Lanczos process.

    Returns
    -------
    values
        `(batch,)`, float64, zero where the start is.
    vectors
        `(batch, ...)`, each of length one.

    Source: C. Lanczos 1950, doi:10.6028/jres.045.026.
    """
    batch, kind = start.shape[0], start.real.dtype
    along = (batch, *([1] * (start.ndim - 1)))

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).reshape(batch, -1).sum(1).reshape(along)

    def unit(vector: Tensor, length: Tensor) -> Tensor:
        inverse = torch.where(length > 0, 1 / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
        return vector * inverse.to(kind).reshape(along)

    basis = [unit(start, norms(start))]
    projected = torch.zeros((batch, steps, steps), dtype=torch.float64)
    for step in range(steps):
        following = apply(basis[-1])
        projected[:, step, step] = inner(basis[-1], following).real.reshape(batch).double().cpu()
        if step == steps - 1:
            break
        for vector in basis:
            following = following - inner(vector, following) * vector
        length = norms(following)
        # an invariant space: it holds the leading vector, as far as the start has a part of it
        largest = projected.diagonal(dim1=1, dim2=2).abs().amax(1).to(length.device)
        length = torch.where(length > 1e-6 * largest, length, 0.0)
        if not bool(length.any()):
            break
        projected[:, step, step + 1] = projected[:, step + 1, step] = length.cpu()
        basis.append(unit(following, length))
    values, shares = torch.linalg.eigh(projected[:, : len(basis), : len(basis)])
    leading = torch.zeros_like(start)
    for index, vector in enumerate(basis):
        leading = leading + shares[:, index, -1].to(start.device, kind).reshape(along) * vector
    return values[:, -1].to(start.device), leading


def adjoint_error(
    operator: LinearOperator, *, generator: torch.Generator, complex_values: bool, batch: int = 1
) -> float:
    """Return |<A x, y> - <x, A^H y>| / (||A x|| ||y||) in double precision for random x, y.

    An exact pair stays below 50 eps sqrt(n), with n the number of values in x and y.
    """
    dtype = torch.complex128 if complex_values else torch.float64
    x = torch.randn((batch, *operator.domain), dtype=dtype, generator=generator)
    y = torch.randn((batch, *operator.range), dtype=dtype, generator=generator)
    ax, ahy = operator.forward(x), operator.adjoint(y)
    left, right = torch.sum(ax * y.conj()), torch.sum(x * ahy.conj())
    scale = torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y)
    return float(torch.abs(left - right) / scale)


def adjoint_tolerance(operator: LinearOperator, batch: int = 1) -> float:
    """Return the bound 50 eps sqrt(n) that an exact adjoint meets in double precision."""
    size = batch * (math.prod(operator.domain) + math.prod(operator.range))
    return 50 * torch.finfo(torch.float64).eps * math.sqrt(size)


def _check_shape(x: Tensor, sample: tuple[int, ...], what: str) -> None:
    if tuple(x.shape[1:]) != sample:
        raise BadInput(f"an array of shape {tuple(x.shape)} does not fit {what} (batch, {', '.join(map(str, sample))})")
