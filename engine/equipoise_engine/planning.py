"""How much memory a reconstruction of a scan will take, told before it starts.

The factors were measured: the growth of the resident memory of single runs on the CPU, of images of 128, 256 and 512
pixels, 64 to 900 views, 2 to 24 coils. Total variation and wavelets are the hungriest of the methods of CT, CG-SENSE of
those of MRI: of these, predictions above 30 MB were 10 % below to 25 % above what was measured; others take less.
Predictions for a GPU and for trajectories follow from the same factors and were not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch

from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.cone import natural_shape
from equipoise_engine.ct import natural_size
from equipoise_engine.fbp import padded_length
from equipoise_engine.geometry import Cartesian, ConeBeam, CtGeometry

BATCH = 8
"""Slices reconstructed together."""
SMALL_BYTES = 10 * 2**20
"""What any run takes besides."""

_FLOAT, _COMPLEX = 4, 8
# copies of the sinograms, of those as long as rows are filtered, and of the images
_SINOGRAMS, _FILTERED, _IMAGES = 6.8, 4.6, 15.5
# copies of k-space, of the complex images, and of the products of all pairs of coils of one slice
_KSPACE, _COMPLEX_IMAGES, _PAIRS = 5.5, 16.0, 3.5
_MAPS_BYTES = 60 * 10**6
_GRIDS = 4.0
"""Finer grids that trajectories are interpolated on, in images for each coil."""
_MATRIX_BYTES = 32
"""Of the sparse matrices of a GPU for each image line that a ray crosses: two pixels, twice."""
_MATRIX_SHARE = 0.25
"""Share of the free memory that sparse matrices may take; larger ones are not made."""
_TIGHT = 0.8
"""Share of what is free from which the user is told that it may not do."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a reconstruction will need, and what there is, in bytes.

    Parameters
    ----------
    host_bytes, host_free
        Of the host, for one batch of slices with an iterative method and for the volume.
    device_bytes, device_free
        Of the GPU; 0 where none computes.
    disk_bytes
        Of the volume as a float32 TIFF.
    text
        Which of them binds, for people.
    """

    host_bytes: int
    host_free: int
    device_bytes: int
    device_free: int
    disk_bytes: int
    text: str


def plan(scan: Acquisition, device: torch.device) -> MemoryPlan:
    """Return the memory that a reconstruction of all slices of a scan will need on a device."""
    match scan:
        case CtAcquisition():
            work, prepared, volume = _ct_bytes(scan)
        case MriAcquisition():
            work, prepared, volume = _mri_bytes(scan)
    host_free = int(psutil.virtual_memory().available)
    device_bytes = device_free = 0
    host = work
    if device.type == "cuda":
        device_free = int(torch.cuda.mem_get_info(device)[0])
        matrices = _matrix_bytes(scan)
        if matrices > _MATRIX_SHARE * min(host_free, device_free):
            matrices = 0
        # the matrices are made on the host
        device_bytes, host = work + matrices, prepared + matrices
    # the slices are put together to one volume in the end, beside which they stand for a moment
    host = SMALL_BYTES + max(host + volume, 2 * volume)
    text = _said(host, host_free, device_bytes, device_free)
    return MemoryPlan(host, host_free, device_bytes, device_free, volume, text)


def _ct_bytes(scan: CtAcquisition) -> tuple[int, int, int]:
    """Return what a batch of slices takes, what of that its preparation takes, and the volume, in bytes."""
    views, rows, columns = scan.shape
    side = _side(scan)
    if isinstance(scan.geometry, ConeBeam):
        # all slices of a cone beam are made at once
        slices = together = scan.slices
        sinograms = _FLOAT * views * rows * columns
    else:
        slices, together = rows, min(rows, BATCH)
        sinograms = _FLOAT * views * columns * together
    margin = 2 * (columns // 4) if scan.geometry.truncated else 0
    images = _FLOAT * together * (side + margin) ** 2
    filtered = _FILTERED * sinograms * padded_length(columns) / columns
    work = int(_SINOGRAMS * sinograms + filtered + _IMAGES * images)
    return work, int(_SINOGRAMS * sinograms), _FLOAT * slices * side**2


def _side(scan: CtAcquisition) -> int:
    """Return rows and columns of the images, as wide as the detector where the rotation centre is not usable."""
    geometry: CtGeometry = scan.geometry
    _, rows, columns = scan.shape
    if geometry.centre_px is None or not 0 <= geometry.centre_px <= columns - 1:
        return columns
    if isinstance(geometry, ConeBeam):
        return natural_shape(geometry, (rows, columns), geometry.image_pixel_mm)[1]
    return natural_size(geometry, columns)


def _mri_bytes(scan: MriAcquisition) -> tuple[int, int, int]:
    """Return what a batch of slices takes, what of that its preparation takes, and the volume, in bytes."""
    slices, coils = scan.shape[:2]
    together = min(slices, BATCH)
    kspace = _COMPLEX * together * math.prod(scan.shape[1:])
    geometry = scan.geometry
    rows, columns = scan.shape[2:] if isinstance(geometry, Cartesian) else geometry.matrix
    images = _COMPLEX * together * rows * columns
    grids = 0.0 if isinstance(geometry, Cartesian) else _GRIDS * coils * images
    pairs = _PAIRS * _COMPLEX * rows * columns * coils**2 if coils > 1 else 0.0
    prepared = int(_KSPACE * kspace + pairs + _MAPS_BYTES)
    return int(prepared + _COMPLEX_IMAGES * images + grids), prepared, _FLOAT * slices * rows * columns


def _matrix_bytes(scan: Acquisition) -> int:
    """Return the bytes of the sparse matrices of a slice of CT."""
    if not isinstance(scan, CtAcquisition) or isinstance(scan.geometry, ConeBeam):
        return 0
    views, _, columns = scan.shape
    return _MATRIX_BYTES * views * columns * _side(scan)


def _said(host: int, host_free: int, device: int, device_free: int) -> str:
    needs = [("host", host, host_free)] + ([("GPU", device, device_free)] if device_free else [])
    name, needed, free = max(needs, key=lambda need: need[1] / max(need[2], 1))
    figures = f"{_gigabytes(needed)} of {_gigabytes(free)} free"
    if needed > free:
        return f"it will not fit: {name} memory binds, {figures}; take fewer rows, or put elements together"
    if needed > _TIGHT * free:
        return f"{name} memory binds and may not do: {figures}"
    return f"everything fits; {name} memory binds: {figures}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
