"""From an acquisition to what a reconstruction takes: measurements of some slices, and the physics that made them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.cone import ConeBeamPhysics, natural_shape
from equipoise_engine.ct import TomographyPhysics, natural_size
from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import is_offset
from equipoise_engine.geometry import Cartesian, ConeBeam, CtGeometry, NonCartesian
from equipoise_engine.mri import CartesianPhysics, centred_ifft, undersampling_mask
from equipoise_engine.noncartesian import (
    NonCartesianPhysics,
    calibration_in_matrix,
    calibration_kspace,
    cartesian_positions,
    noncartesian_maps,
    shift_field_of_view,
)
from equipoise_engine.operators import Physics
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.coils import calibration_size, coil_map_sets, coil_maps, walsh_maps
from equipoise_engine.preprocess.kspace_steps import noise_correlation, prepared_kspace
from equipoise_engine.preprocess.whitening import outermost
from equipoise_engine.projection.projector import Footprint


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


CoilMaps = Literal["espirit", "espirit-2", "walsh"]
CoilPart = Literal["magnitude", "phase", "eigenvalue", "noise"]
SAMPLING_SIDE = 512
"""Rows and columns of the picture of a trajectory."""
WRAPPED_EIGENVALUE = 0.9
"""Second eigenvalue of ESPIRiT above which two places of the object fall on one pixel."""
WRAPPED_SHARE = 0.02
"""Share of such pixels from which an object wraps around; measured heads that do not have none at all."""


@dataclass(frozen=True)
class Modelling:
    """How the physics of a scan is modelled.

    Parameters
    ----------
    footprint
        How a pixel meets a ray (CT): "joseph" interpolates along lines, "strip" averages over the width of an element.
    coil_maps
        Where coil sensitivities come from (MRI): "espirit", "espirit-2" with two sets for an object that wraps around
        its field of view (Cartesian), or "walsh".
    shift_px
        Pixels `(y, x)` by which the image is moved, down and to the right, fractions allowed; what leaves it on one
        side comes in on the other (MRI).
    """

    footprint: Footprint = "joseph"
    coil_maps: CoilMaps = "espirit"
    shift_px: tuple[float, float] = (0.0, 0.0)


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
    advice
        What the user should know about these measurements, "" for nothing.
    """

    y: Tensor
    physics: Physics
    view_step_rad: float | None = None
    noise: float = 0.0
    truth: Tensor | None = None
    advice: str = ""

    def select(self, slices: Tensor) -> Measured:
        """Return a part of the slices; `slices (batch,)` int64 indexes them."""
        truth = None if self.truth is None else self.truth[slices]
        return replace(self, y=self.y[slices], physics=self.physics.select(slices), truth=truth)


def measure(
    scan: Acquisition,
    slices: slice,
    device: torch.device,
    undersampling: Undersampling | None = None,
    modelling: Modelling | None = None,
) -> Measured:
    """Return prepared measurements of the slices, undersampled where asked; of a cone beam, of all of them.

    Raises
    ------
    BadInput
        The undersampling does not fit the scan, the rotation centre is unknown, or the values cannot be used.
    """
    wanted, model = undersampling or Undersampling(), modelling or Modelling()
    match scan:
        case CtAcquisition():
            return _measure_ct(scan, slices, device, wanted, model)
        case MriAcquisition():
            return _measure_mri(scan, slices, device, wanted, model)


def kspace_of(
    scan: MriAcquisition, slices: slice, undersampling: Undersampling, modelling: Modelling | None = None
) -> tuple[Tensor, Cartesian | NonCartesian]:
    """Return undersampled and prepared k-space `(slice, coil, ...)` complex64, and where it was sampled.

    Of Cartesian k-space `(slice, coil, ky, kx)` what is left out is zero; of other sampling, readouts are left out.
    What is left is prepared by the steps of the scan's recipe, each slice alone, so that no slice depends on which
    others are made.

    Raises
    ------
    BadInput
        The acceleration does not fit the scan, values are not finite, or a step does not suit the scan.
    """
    if undersampling.views_every != 1:
        raise BadInput("an MRI scan has no views to leave out", "Use an acceleration instead.")
    model = modelling or Modelling()
    kspace = np.asarray(scan.kspace[slices], dtype=np.complex64)
    if not np.isfinite(kspace).all():
        first = [int(i) for i in np.argwhere(~np.isfinite(kspace))[0]]
        axes = "ky, kx" if isinstance(scan.geometry, Cartesian) else "readout, sample"
        raise BadInput(
            f"{scan.path.name}: {int((~np.isfinite(kspace)).sum())} k-space values are not finite, the first at "
            f"(slice, coil, {axes}) = {first}"
        )
    step = undersampling.accelerate
    geometry: Cartesian | NonCartesian
    match scan.geometry:
        case Cartesian(sampled=mask, phase_axis=axis):
            if step != 1:
                mask = undersampling_mask(mask, step, phase_axis=axis)
            geometry = replace(scan.geometry, sampled=np.ascontiguousarray(mask))
            kspace = kspace * mask
        case NonCartesian(trajectory=trajectory, density=density):
            largest = max(1, trajectory.shape[0] // 2)
            if not 1 <= step <= largest:
                raise BadInput(f"acceleration {step} is outside 1 to {largest} for {trajectory.shape[0]} readouts")
            kept = density if density is None else np.ascontiguousarray(density[::step])
            geometry = replace(scan.geometry, trajectory=np.ascontiguousarray(trajectory[::step]), density=kept)
            kspace = kspace[:, :, ::step]
    kspace = prepared_kspace(scan, range(scan.slices)[slices], kspace, geometry)
    measured = torch.from_numpy(np.ascontiguousarray(kspace))
    if any(model.shift_px):
        positions, matrix = _positions(geometry)
        measured = shift_field_of_view(measured, positions, model.shift_px, matrix)
    return measured, geometry


def _positions(geometry: Cartesian | NonCartesian) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return where samples lie in cycles per field of view `(..., 2)`, and the matrix of the image."""
    matrix = _matrix(geometry)
    return geometry.trajectory if isinstance(geometry, NonCartesian) else cartesian_positions(matrix), matrix


def _matrix(geometry: Cartesian | NonCartesian) -> tuple[int, int]:
    if isinstance(geometry, NonCartesian):
        return geometry.matrix
    rows, columns = geometry.sampled.shape
    return rows, columns


def kspace_stage(scan: MriAcquisition, index: int, coil: int, stage: int | None = None) -> NDArray[np.complex64]:
    """Return k-space of a slice and coil `(ky, kx)` or `(readout, sample)`, complex64, on its way through the steps.

    Parameters
    ----------
    stage
        How many steps of the recipe are done, 0 for none; None for all.

    Raises
    ------
    BadInput
        There is no such slice, coil (after coil compression there are fewer) or stage; or as `prepared_kspace`.
    """
    _check_slice(scan, index)
    stored = np.asarray(scan.kspace[index], dtype=np.complex64)[None]
    values = prepared_kspace(scan, (index,), stored, scan.geometry, stage)[0]
    _check_coil(scan, coil, values.shape[0])
    return np.asarray(values[coil])


def sampling_picture(scan: MriAcquisition) -> NDArray[np.float32]:
    """Return where k-space was measured `(row, column)`, float32, lowest ky on top and lowest kx on the left.

    Of Cartesian sampling 1 where it was measured and 0 elsewhere, `(ky, kx)`; of other sampling how many samples fall
    into each of 512 x 512 cells, which span k-space of the matrix and a sample more on each side.
    """
    if isinstance(scan.geometry, Cartesian):
        return scan.geometry.sampled.astype(np.float32)
    reach = np.array(scan.geometry.matrix) / 2 + 1
    cells = np.floor((scan.geometry.trajectory / reach + 1) * (SAMPLING_SIDE / 2)).astype(np.intp)
    rows, columns = np.clip(cells, 0, SAMPLING_SIDE - 1).reshape(-1, 2).T
    counts = np.bincount(rows * SAMPLING_SIDE + columns, minlength=SAMPLING_SIDE**2)
    return counts.reshape(SAMPLING_SIDE, SAMPLING_SIDE).astype(np.float32)


def coil_picture(scan: MriAcquisition, index: int, coil: int, part: CoilPart) -> NDArray[np.float32]:
    """Return a picture of the coils in a prepared slice, float32.

    Parameters
    ----------
    index, coil
        Slice, and coil after the preparation; "eigenvalue" and "noise" are of all coils.
    part
        "magnitude" 0 to 1 and "phase" in radians of the sensitivity `(y, x)`; "eigenvalue" `(y, x)`, the largest of
        ESPIRiT: near one where one set of sensitivities explains what the coils saw, lower where nothing does; "noise"
        `(coil, coil)`, 0 to 1: how alike the noise of two coils is, before it is whitened.

    Raises
    ------
    BadInput
        There is no such slice, coil or part, the centre of k-space is too small or empty; or as `kspace_of`.

    Source: M. Uecker et al. 2014, doi:10.1002/mrm.24751.
    """
    if part not in get_args(CoilPart):
        raise BadInput(f"there is no picture {part!r} of coils", f"Choose one of {', '.join(get_args(CoilPart))}.")
    _check_slice(scan, index)
    if part == "noise":
        return noise_correlation(scan, index)
    kspace, geometry = kspace_of(scan, slice(index, index + 1), Undersampling())
    if part == "eigenvalue":
        if not bool(kspace.any()):
            return np.zeros(_matrix(geometry), dtype=np.float32)
        if isinstance(geometry, Cartesian):
            values, sampled = kspace[0].numpy(), geometry.sampled
        else:
            values, sampled = calibration_in_matrix(kspace[0], geometry)
        return np.asarray(coil_map_sets(values, sampled, sets=1).eigenvalues[0])
    _check_coil(scan, coil, int(kspace.shape[1]))
    one = _maps(kspace[0], geometry, Modelling())[coil].numpy()
    return np.asarray(np.abs(one) if part == "magnitude" else np.angle(one), dtype=np.float32)


def _check_slice(scan: MriAcquisition, index: int) -> None:
    if not 0 <= index < scan.slices:
        raise BadInput(f"{scan.path.name}: there is no slice {index}; the scan has 0 to {scan.slices - 1}")


def _check_coil(scan: MriAcquisition, coil: int, coils: int) -> None:
    if not 0 <= coil < coils:
        raise BadInput(f"{scan.path.name}: there is no coil {coil}; there are 0 to {coils - 1} at this stage")


def coil_images(kspace: Tensor, geometry: Cartesian | NonCartesian) -> Tensor:
    """Return an image of each coil `(slice, coil, y, x)`, complex, by one transform of k-space `(slice, coil, ...)`."""
    if isinstance(geometry, Cartesian):
        return centred_ifft(kspace)
    alone = torch.ones((1, 1, *geometry.matrix), dtype=kspace.dtype, device=kspace.device)
    images = NonCartesianPhysics(alone, geometry).analytic(kspace.reshape(-1, 1, *kspace.shape[2:]))
    return images.reshape(*kspace.shape[:2], *geometry.matrix)


def _measure_ct(
    scan: CtAcquisition, slices: slice, device: torch.device, wanted: Undersampling, model: Modelling
) -> Measured:
    if wanted.accelerate != 1:
        raise BadInput("a CT scan has no phase-encoding lines to leave out", "Leave out views instead.")
    views = scan.projections.shape[0]
    largest = max(1, views // 2)
    if not 1 <= wanted.views_every <= largest:
        raise BadInput(f"every {wanted.views_every}-th of {views} views: the step must lie in 1 to {largest}")
    angles = scan.geometry.angle_rad[:: wanted.views_every]
    geometry = replace(scan.geometry, angle_rad=angles)
    rows = slice(None) if isinstance(geometry, ConeBeam) else slices
    sinograms = np.ascontiguousarray(attenuation(scan, rows)[:, :: wanted.views_every])
    y = torch.from_numpy(sinograms).to(device)
    physics: Physics
    if isinstance(geometry, ConeBeam):
        y = y.movedim(0, 1)[None].contiguous()
        physics = _cone_physics(geometry, scan.shape[1], scan.shape[2])
    else:
        columns = sinograms.shape[-1]
        size = natural_size(geometry, columns) + (2 * (columns // 4) if geometry.truncated else 0)
        physics = TomographyPhysics(geometry, columns, size, footprint=model.footprint)
    return Measured(y, physics, _equal_step(angles), sinogram_noise(sinograms))


def _cone_physics(geometry: ConeBeam, rows: int, columns: int) -> ConeBeamPhysics:
    if not geometry.truncated:
        return ConeBeamPhysics(geometry, (rows, columns))
    slices, high, wide = natural_shape(geometry, (rows, columns), geometry.image_pixel_mm)
    margin = 2 * (columns // 4)
    return ConeBeamPhysics(geometry, (rows, columns), (slices, high + margin, wide + margin))


def is_truncated(sinograms: NDArray[np.float32], geometry: CtGeometry) -> bool:
    """Whether the object outreaches the detector: an edge of `(slice, view, column)` sees over 10 % of the peak.

    Where the axis is off the middle of a full turn, the other side measures what is beyond the nearer edge.
    """
    sinograms = sinograms[sinograms.any(axis=(1, 2))]
    if sinograms.size == 0:
        return False
    edge = max(1, sinograms.shape[-1] // 50)
    peak = float(np.median(sinograms.max(axis=-1)))
    left, right = np.median(sinograms[..., :edge]), np.median(sinograms[..., -edge:])
    columns = sinograms.shape[-1]
    if is_offset(geometry, columns):
        assert geometry.centre_px is not None
        return bool((right if geometry.centre_px < (columns - 1) / 2 else left) > 0.1 * peak)
    return bool(max(left, right) > 0.1 * peak)


def sinogram_noise(sinograms: NDArray[np.float32]) -> float:
    """Return the standard deviation of white noise in sinograms `(slice, view, column)`, empty slices left out.

    From the median of the finest diagonal Haar coefficients, which edges hardly enter (D. L. Donoho and I. M.
    Johnstone 1994, doi:10.1093/biomet/81.3.425).
    """
    across = np.diff(sinograms[sinograms.any(axis=(1, 2))], axis=2)
    diagonal = 0.5 * np.diff(across, axis=1)
    return float(np.median(np.abs(diagonal)) / 0.6745) if diagonal.size else 0.0


def kspace_noise(kspace: Tensor, geometry: Cartesian | NonCartesian) -> float:
    """Return the standard deviation of real and imaginary part of the noise in k-space `(slice, coil, ...)`.

    From the median magnitude of the sampled outermost tenth of positions, where there is hardly any signal; empty
    slices are left out.
    """
    filled = kspace[kspace.abs().amax(dim=(1, 2, 3)) > 0]
    if filled.shape[0] == 0:
        return 0.0
    outer = torch.from_numpy(outermost(geometry))
    return float(filled[..., outer].abs().median()) / math.sqrt(2 * math.log(2))


def _equal_step(angles: NDArray[np.float64]) -> float | None:
    steps = np.abs(np.diff(angles))
    usual = float(np.median(steps)) if steps.size else 0.0
    if usual == 0.0 or np.ptp(steps) > 0.05 * usual:
        return None
    return usual


def _measure_mri(
    scan: MriAcquisition, slices: slice, device: torch.device, wanted: Undersampling, model: Modelling
) -> Measured:
    kspace, geometry = kspace_of(scan, slices, wanted, model)
    maps = torch.stack([_maps(one, geometry, model) for one in kspace])
    physics: Physics
    if isinstance(geometry, Cartesian):
        physics = CartesianPhysics(maps, torch.from_numpy(geometry.sampled))
    else:
        physics = NonCartesianPhysics(maps, geometry)
    advice = _wrapping(kspace, geometry) if model.coil_maps == "espirit" else ""
    return Measured(kspace.to(device), physics.to(device), noise=kspace_noise(kspace, geometry), advice=advice)


def _wrapping(kspace: Tensor, geometry: Cartesian | NonCartesian) -> str:
    """Return a warning where the object is larger than its field of view, judged by the first slice with a signal."""
    filled = [one for one in kspace if bool(one.any())]
    if not isinstance(geometry, Cartesian) or not filled or kspace.shape[1] < 2:
        return ""
    second = coil_map_sets(filled[0].numpy(), geometry.sampled).eigenvalues[1]
    share = float((second > WRAPPED_EIGENVALUE).mean())
    if share < WRAPPED_SHARE:
        return ""
    return (
        f"Two places of the object fall on one pixel in {100 * share:.0f} % of the image: it is larger than its field "
        'of view. One set of coil sensitivities leaves fringes there; the coil maps "ESPIRiT, two sets" do not.'
    )


def _maps(kspace: Tensor, geometry: Cartesian | NonCartesian, model: Modelling) -> Tensor:
    """Return coil maps `(coil, y, x)`, or two sets of them; a slice without any signal has one of equal ones."""
    coils = kspace.shape[0]
    two = model.coil_maps == "espirit-2"
    if two and not isinstance(geometry, Cartesian):
        raise BadInput("two sets of coil maps are there for Cartesian sampling only", "Choose espirit or walsh.")
    if not bool(kspace.any()):
        equal = torch.full((coils, *_matrix(geometry)), 1 / math.sqrt(coils), dtype=kspace.dtype)
        # a second set alike would make A^H A of norm two
        return torch.stack([equal, torch.zeros_like(equal)]) if two else equal
    if model.coil_maps == "walsh":
        return torch.from_numpy(walsh_maps(_blurred_images(kspace, geometry).numpy()))
    if not isinstance(geometry, Cartesian):
        return torch.from_numpy(noncartesian_maps(kspace, geometry))
    if two:
        return torch.from_numpy(coil_map_sets(kspace.numpy(), geometry.sampled).maps)
    return torch.from_numpy(coil_maps(kspace.numpy(), geometry.sampled))


def _blurred_images(kspace: Tensor, geometry: Cartesian | NonCartesian) -> Tensor:
    """Return coil images `(coil, y, x)` from the fully sampled centre of k-space `(coil, ...)`, tapered: no aliases."""
    if isinstance(geometry, Cartesian):
        rows, columns = geometry.sampled.shape
        height, width = calibration_size(geometry.sampled)
        top, left = rows // 2 - height // 2, columns // 2 - width // 2
        centre = kspace[:, top : top + height, left : left + width]
    else:
        rows, columns = geometry.matrix
        centre = torch.from_numpy(calibration_kspace(kspace, geometry))
        height, width = centre.shape[1:]
        top, left = rows // 2 - height // 2, columns // 2 - width // 2
    if min(height, width) == 0:
        raise BadInput("k-space has no fully sampled centre, which coil sensitivities are made from")
    down, across = (torch.hann_window(size + 2, periodic=False)[1:-1] for size in (height, width))
    padded = kspace.new_zeros((kspace.shape[0], rows, columns))
    padded[:, top : top + height, left : left + width] = centre * down[:, None] * across
    return centred_ifft(padded)
