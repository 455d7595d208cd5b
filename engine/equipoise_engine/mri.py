"""Multi-coil Cartesian magnetic resonance imaging: A = M F S, sampling mask M, Fourier transform F, coil maps S.

Source: K. P. Pruessmann et al. 1999, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S (one set of
maps); M. Uecker et al. 2014, doi:10.1002/mrm.24751 (several sets, "soft SENSE").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.operators import LinearOperator, Physics


def centred_fft(image: Tensor) -> Tensor:
    """Return the orthonormal Fourier transform over the last two axes, zero frequency at index n // 2."""
    shifted = torch.fft.ifftshift(image, dim=(-2, -1))
    kspace: Tensor = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(-2, -1))
    return kspace


def centred_ifft(kspace: Tensor) -> Tensor:
    """Return the inverse of `centred_fft`."""
    shifted = torch.fft.ifftshift(kspace, dim=(-2, -1))
    image: Tensor = torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=(-2, -1))
    return image


def undersampling_mask(
    sampled: NDArray[np.bool_], acceleration: int, *, centre_lines: int = 24, phase_axis: int = 0
) -> NDArray[np.bool_]:
    """Return which measured k-space positions `(ky, kx)` to keep: every R-th phase-encoding line and the centre.

    Parameters
    ----------
    sampled
        What was measured `(ky, kx)`.
    acceleration
        R; the lines kept outside the centre are those with `(line - n // 2) % R == 0`.
    centre_lines
        Number of central lines that are always kept, for the coil maps.
    phase_axis
        0 where lines are rows (ky), 1 where they are columns (kx).

    Raises
    ------
    BadInput
        R is below one or leaves no line outside the centre.
    """
    lines = sampled.shape[phase_axis]
    if not 1 <= acceleration <= max(1, lines // 2):
        raise BadInput(f"acceleration {acceleration} is outside 1 to {lines // 2} for {lines} phase-encoding lines")
    offset = np.arange(lines) - lines // 2
    keep = (offset % acceleration == 0) | ((offset >= -(centre_lines // 2)) & (offset < (centre_lines + 1) // 2))
    kept: NDArray[np.bool_] = sampled & (keep[:, None] if phase_axis == 0 else keep[None, :])
    return kept


class CartesianPhysics(Physics):
    """Multi-coil Cartesian sampling.

    Images are complex `(batch, y, x)`; measurements are complex `(batch, coil, ky, kx)`, zero where not sampled.
    With several sets of maps images are `(batch, set, y, x)`: a measurement is the sum over the sets.

    Parameters
    ----------
    maps
        Coil sensitivities `(batch, coil, y, x)`, complex64, with sum over coils of |s|^2 at most one; or
        `(batch, set, coil, y, x)`, in each pixel orthogonal from set to set.
    mask
        Sampled positions `(ky, kx)`, bool; the same for all slices.

    Raises
    ------
    BadInput
        Maps have neither four nor five axes, or the mask does not fit them.
    """

    complex_image = True

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if maps.ndim not in (4, 5) or tuple(mask.shape) != tuple(maps.shape[-2:]):
            raise BadInput(f"mask {tuple(mask.shape)} does not fit coil maps {tuple(maps.shape)}")
        sets = tuple(maps.shape[1:-3])
        super().__init__((*sets, *maps.shape[-2:]), tuple(maps.shape[-3:]))
        self.maps = maps
        self.mask = mask

    @property
    def slices(self) -> int:
        """Number of slices with coil maps of their own."""
        return int(self.maps.shape[0])

    def _maps(self, x: Tensor) -> Tensor:
        maps = self.maps.to(x.dtype)
        if maps.shape[0] not in (1, x.shape[0]):
            raise BadInput(f"a batch of {x.shape[0]} does not fit the coil maps of {maps.shape[0]} slices")
        return maps

    def _coil_images(self, x: Tensor) -> Tensor:
        """Return what each coil sees `(batch, coil, y, x)` of an image."""
        maps = self._maps(x)
        if maps.ndim == 4:
            return maps * x[:, None]
        seen = maps[:, 0] * x[:, 0, None]
        for one in range(1, maps.shape[1]):
            seen.addcmul_(maps[:, one], x[:, one, None])
        return seen

    def _combined(self, seen: Tensor) -> Tensor:
        """Return the adjoint of `_coil_images`."""
        maps = self._maps(seen)
        if maps.ndim == 4:
            return torch.sum(maps.conj() * seen, dim=1)
        return torch.stack([torch.sum(one.conj() * seen, dim=1) for one in maps.unbind(1)], dim=1)

    def _masked(self, kspace: Tensor) -> Tensor:
        """Return k-space with its origin at index 0, in place without what was not sampled."""
        masked: Tensor = kspace.mul_(torch.fft.ifftshift(self.mask))
        return masked

    def _forward(self, x: Tensor) -> Tensor:
        seen = torch.fft.ifftshift(self._coil_images(x), dim=(-2, -1))
        kspace: Tensor = torch.fft.fftshift(self._masked(torch.fft.fft2(seen, norm="ortho")), dim=(-2, -1))
        return kspace

    def _adjoint(self, y: Tensor) -> Tensor:
        kspace = self._masked(torch.fft.ifftshift(y, dim=(-2, -1)))
        return self._combined(torch.fft.fftshift(torch.fft.ifft2(kspace, norm="ortho"), dim=(-2, -1)))

    def _normal(self, x: Tensor) -> Tensor:
        seen = torch.fft.ifftshift(self._coil_images(x), dim=(-2, -1))
        kspace = self._masked(torch.fft.fft2(seen, norm="ortho"))
        return self._combined(torch.fft.fftshift(torch.fft.ifft2(kspace, norm="ortho"), dim=(-2, -1)))

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x `(batch, *domain)`; k-space is not moved to its centred order in between."""
        return _Normal(self).forward(x)

    def weight(self, residual: Tensor) -> Tensor:
        """Return the residual: with these maps the spectrum of A^H A lies within [0, 1] already."""
        return residual

    def noise_like(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return white noise of unit standard deviation (of real and imaginary part) at the sampled positions."""
        return super().noise_like(y, generator) * self.mask

    def resolvent(self, b: Tensor, length: float) -> Tensor | None:
        """Return (I + length A^H A)^-1 b `(batch, y, x)` for one coil of magnitude one: then A is unitary but for M."""
        maps = self._maps(b)
        if maps.ndim != 4 or maps.shape[1] != 1 or not self._unit:
            return None
        kspace = centred_fft(maps[:, 0] * b) / (1 + length * self.mask.to(b.real.dtype))
        return maps[:, 0].conj() * centred_ifft(kspace)

    @cached_property
    def _unit(self) -> bool:
        return bool(((self.maps.abs() - 1).abs() < 1e-5).all())

    def analytic(self, y: Tensor) -> Tensor:
        """Return the zero-filled image, coils combined with their maps `(batch, *domain)`, complex."""
        return self.adjoint(y)

    def framed(self, image: Tensor) -> Tensor:
        """Return the image `(batch, y, x)`; of several sets, the root of the sum of their squared magnitudes, float.

        The phases of different sets belong to different places of the object, so that there is no common one.
        """
        if self.maps.ndim == 4:
            return image
        magnitude: Tensor = torch.linalg.vector_norm(image, dim=1)
        return magnitude

    def select(self, slices: Tensor) -> CartesianPhysics:
        """Return the physics of a part of the batch."""
        return self if self.maps.shape[0] == 1 else CartesianPhysics(self.maps[slices], self.mask)

    def joined(self, others: Sequence[Physics]) -> CartesianPhysics:
        """Return the physics with the coil maps of all; the mask is that of the scan."""
        maps = [other.maps for other in others if isinstance(other, CartesianPhysics)]
        return CartesianPhysics(torch.cat([self.maps, *maps]), self.mask)

    def thinned(self, kept: Tensor) -> CartesianPhysics:
        """Return the physics of some of the sampled positions; `kept (ky, kx)` bool."""
        return CartesianPhysics(self.maps, self.mask & kept.to(self.mask.device))

    def part(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y `(batch, coil, ky, kx)` with zeros outside the kept positions."""
        return y * kept.to(y.device)

    def withheld(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y `(batch, coil, ky, kx)` with zeros at the kept positions."""
        return y * ~kept.to(y.device)

    def random_split(self, generator: torch.Generator, share: float = 0.6) -> Tensor:
        """Draw which positions to keep `(ky, kx)`, bool: whole lines where whole lines were left out, else points.

        The centre, a twenty-fifth of k-space along an axis, is always kept: without it no part has the contrast.

        Raises
        ------
        BadInput
            Fewer than two lines or points outside the centre.
        """
        mask = self.mask.cpu()
        rows, columns = mask.any(1, keepdim=True), mask.any(0, keepdim=True)
        near_row, near_column = (
            (torch.arange(size) - size // 2).abs().reshape(shape) <= size // 50
            for size, shape in zip(mask.shape, ((-1, 1), (1, -1)), strict=True)
        )
        if not torch.equal(rows & columns, mask):
            units, centre = mask, near_row & near_column
        elif rows.float().mean() <= columns.float().mean():
            units, centre = rows, near_row
        else:
            units, centre = columns, near_column
        free = torch.nonzero((units & ~centre).flatten()).flatten()
        if free.numel() < 2:
            raise BadInput(f"k-space with {free.numel()} sampled lines or points outside its centre cannot be split")
        chosen = torch.randperm(free.numel(), generator=generator)
        kept = centre.clone().flatten()
        kept[free[chosen[: min(max(1, round(share * free.numel())), free.numel() - 1)]]] = True
        return kept.reshape(units.shape).expand_as(mask) & mask

    def to(self, device: torch.device) -> CartesianPhysics:
        """Return the physics with maps and mask on `device`."""
        return CartesianPhysics(self.maps.to(device), self.mask.to(device))


class _Normal(LinearOperator):
    """A^H A of Cartesian sampling."""

    def __init__(self, physics: CartesianPhysics) -> None:
        super().__init__(physics.domain, physics.domain)
        self._physics = physics

    def _forward(self, x: Tensor) -> Tensor:
        return self._physics._normal(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._physics._normal(y)
