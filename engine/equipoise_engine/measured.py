"""From an acquisition to what a reconstruction takes: measurements of some slices, and the physics that made them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.ct import ParallelBeamPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.operators import Physics
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.coils import coil_maps


@dataclass(frozen=True)
class Undersampling:
    """Which part of a complete scan to use, as if it had been measured with less.

    Parameters
    ----------
    views_every
        Every k-th view (CT).
    accelerate
        One of R phase-encoding lines, and the centre (MRI).
    """

    views_every: int = 1
    accelerate: int = 1


@dataclass(frozen=True)
class Measured:
    """Measurements of some slices and the physics that made them.

    Parameters
    ----------
    y
        CT `(slice, view, column)` float32, dimensionless; MRI `(slice, coil, ky, kx)` complex64.
    physics
        For all these slices.
    view_step_rad
        Spacing of equally spaced CT views, whose multiples are no useful rotations; None otherwise.
    noise
        Standard deviation of the noise in y (of each of real and imaginary part); 0 where it is not known.
    truth
        What was measured `(slice, y, x)`, known for simulated measurements only.
    """

    y: Tensor
    physics: Physics
    view_step_rad: float | None = None
    noise: float = 0.0
    truth: Tensor | None = None

    def select(self, slices: Tensor) -> Measured:
        """Return a part of the slices; `slices (batch,)` int64 indexes them."""
        truth = None if self.truth is None else self.truth[slices]
        return replace(self, y=self.y[slices], physics=self.physics.select(slices), truth=truth)


def measure(
    scan: Acquisition, slices: slice, device: torch.device, undersampling: Undersampling | None = None
) -> Measured:
    """Return prepared measurements of the slices, undersampled where asked.

    Raises
    ------
    BadInput
        The undersampling does not fit the scan, the rotation centre is unknown, or the values cannot be used.
    """
    wanted = undersampling or Undersampling()
    match scan:
        case CtAcquisition():
            return _measure_ct(scan, slices, device, wanted)
        case MriAcquisition():
            return _measure_mri(scan, slices, device, wanted)


def kspace_of(scan: MriAcquisition, slices: slice, undersampling: Undersampling) -> tuple[Tensor, Tensor]:
    """Return undersampled k-space `(slice, coil, ky, kx)` complex64 and its mask `(ky, kx)` bool.

    Raises
    ------
    BadInput
        The acceleration does not fit the scan, or values are not finite.
    """
    if undersampling.views_every != 1:
        raise BadInput("an MRI scan has no views to leave out", "Use an acceleration instead.")
    kspace = np.asarray(scan.kspace[slices], dtype=np.complex64)
    if not np.isfinite(kspace).all():
        first = [int(i) for i in np.argwhere(~np.isfinite(kspace))[0]]
        raise BadInput(
            f"{scan.path.name}: {int((~np.isfinite(kspace)).sum())} k-space values are not finite, the first at "
            f"(slice, coil, ky, kx) = {first}"
        )
    mask = scan.geometry.sampled
    if undersampling.accelerate != 1:
        mask = undersampling_mask(mask, undersampling.accelerate, phase_axis=scan.geometry.phase_axis)
    return torch.from_numpy(kspace * mask), torch.from_numpy(np.ascontiguousarray(mask))


def _measure_ct(scan: CtAcquisition, slices: slice, device: torch.device, wanted: Undersampling) -> Measured:
    if wanted.accelerate != 1:
        raise BadInput("a CT scan has no phase-encoding lines to leave out", "Leave out views instead.")
    views = scan.projections.shape[0]
    largest = max(1, views // 2)
    if not 1 <= wanted.views_every <= largest:
        raise BadInput(f"every {wanted.views_every}-th of {views} views: the step must lie in 1 to {largest}")
    sinograms = attenuation(scan, slices)[:, :: wanted.views_every]
    angles = scan.geometry.angle_rad[:: wanted.views_every]
    columns = sinograms.shape[-1]
    size = columns + 2 * (columns // 4) if scan.geometry.truncated else columns
    physics = ParallelBeamPhysics(replace(scan.geometry, angle_rad=angles), columns, size)
    y = torch.from_numpy(np.ascontiguousarray(sinograms)).to(device)
    return Measured(y, physics, _equal_step(angles), sinogram_noise(sinograms))


def is_truncated(sinograms: NDArray[np.float32]) -> bool:
    """Whether the object outreaches the detector: an edge of `(slice, view, column)` sees over 10 % of the peak."""
    sinograms = sinograms[sinograms.any(axis=(1, 2))]
    if sinograms.size == 0:
        return False
    edge = max(1, sinograms.shape[-1] // 50)
    peak = float(np.median(sinograms.max(axis=-1)))
    left, right = np.median(sinograms[..., :edge]), np.median(sinograms[..., -edge:])
    return bool(max(left, right) > 0.1 * peak)


def sinogram_noise(sinograms: NDArray[np.float32]) -> float:
    """Return the standard deviation of white noise in sinograms `(slice, view, column)`, empty slices left out.

    From the median of the finest diagonal Haar coefficients, which edges hardly enter (D. L. Donoho and I. M.
    Johnstone 1994, doi:10.1093/biomet/81.3.425).
    """
    across = np.diff(sinograms[sinograms.any(axis=(1, 2))], axis=2)
    diagonal = 0.5 * np.diff(across, axis=1)
    return float(np.median(np.abs(diagonal)) / 0.6745) if diagonal.size else 0.0


def kspace_noise(kspace: Tensor, mask: Tensor) -> float:
    """Return the standard deviation of real and imaginary part of the noise in k-space `(slice, coil, ky, kx)`.

    From the median magnitude of the sampled outermost tenth of positions, where there is hardly any signal; empty
    slices are left out.
    """
    filled = kspace[kspace.abs().amax(dim=(1, 2, 3)) > 0]
    if filled.shape[0] == 0:
        return 0.0
    rows, columns = mask.shape
    y = (torch.arange(rows) - rows // 2) / (rows / 2)
    x = (torch.arange(columns) - columns // 2) / (columns / 2)
    radius = torch.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    outer = mask & (radius >= torch.quantile(radius[mask], 0.9))
    return float(filled[..., outer].abs().median()) / math.sqrt(2 * math.log(2))


def _equal_step(angles: NDArray[np.float64]) -> float | None:
    steps = np.abs(np.diff(angles))
    usual = float(np.median(steps)) if steps.size else 0.0
    if usual == 0.0 or np.ptp(steps) > 0.05 * usual:
        return None
    return usual


def _measure_mri(scan: MriAcquisition, slices: slice, device: torch.device, wanted: Undersampling) -> Measured:
    kspace, mask = kspace_of(scan, slices, wanted)
    maps = torch.stack([_maps(one, mask) for one in kspace])
    physics = CartesianPhysics(maps, mask).to(device)
    return Measured(kspace.to(device), physics, noise=kspace_noise(kspace, mask))


def _maps(kspace: Tensor, mask: Tensor) -> Tensor:
    """Return coil maps `(coil, y, x)`; a slice without any signal, as beyond the object, has equal ones."""
    if not bool(kspace.any()):
        return torch.full_like(kspace, 1 / math.sqrt(kspace.shape[0]))
    return torch.from_numpy(coil_maps(kspace.numpy(), mask.numpy()))
