"""Pictures of what was measured, on its way to an image: raw, between the steps of its preparation, and quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise_engine import protocol
from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, ConeBeam
from equipoise_engine.measured import coil_picture, kspace_stage, sampling_picture
from equipoise_engine.methods import methods_for, run, with_defaults
from equipoise_engine.preprocess.attenuation import stages
from equipoise_engine.preprocess.selection import selected
from equipoise_engine.progress import Watch
from equipoise_engine.recipe import Selection, Span

QUICK_VIEWS = 360
"""Largest number of views of a quick image."""
QUICK_COLUMNS = 1024
"""Largest number of columns of a quick image of a slice; more are binned."""
QUICK_CONE = 128
"""The same for the volume of a cone beam."""


@dataclass(frozen=True)
class Picture:
    """A picture for the window.

    Parameters
    ----------
    pixels
        `(row, column)`, float32; NaN where there is nothing.
    caption
        What it shows, with its axes.
    count
        How many pictures of this kind there are.
    """

    pixels: NDArray[np.float32]
    caption: str
    count: int


def picture_of(scan: Acquisition, what: str, index: int, coil: int, stage: int | None, watch: Watch) -> Picture:
    """Return a picture of an open scan.

    Parameters
    ----------
    what
        CT: "projection", "sinogram" or "image"; MRI: "kspace", "phase", "sampling", "image", "coil-magnitude",
        "coil-phase", "coil-eigenvalue" or "noise" (correlation).
    index
        View of a projection, else slice.
    coil
        Coil of k-space and of coil maps.
    stage
        Number of preparation steps that are done; None for all.

    Raises
    ------
    BadInput
        There is no such picture of a scan of this kind, or no such view, slice, coil or step.
    """
    steps = scan.recipe.steps or ()
    if stage is not None and not 0 <= stage <= len(steps):
        raise BadInput(f"stage {stage} does not lie in 0 to {len(steps)}, the number of preparation steps")
    if what == "image":
        return _quick_image(scan, index, watch)
    match scan:
        case CtAcquisition():
            return _of_ct(scan, what, index, stage)
        case MriAcquisition():
            return _of_mri(scan, what, index, coil, stage)


def _of_ct(scan: CtAcquisition, what: str, index: int, stage: int | None) -> Picture:
    views, rows, _ = scan.shape
    match what:
        case "projection":
            _check(index, views, "view")
            pixels, state = stages(scan, stage, view=index, row=None)
            angle = math.degrees(scan.geometry.angle_rad[index])
            return Picture(pixels, f"view {index} at {angle:.2f} degrees (row, column), {state.value}", views)
        case "sinogram":
            _check(index, rows, "detector row")
            pixels, state = stages(scan, stage, view=None, row=index)
            return Picture(pixels, f"row {index} (view, column), {state.value}", rows)
        case _:
            raise BadInput(f"there is no picture {what!r} of a CT scan")


def _of_mri(scan: MriAcquisition, what: str, index: int, coil: int, stage: int | None) -> Picture:
    slices = scan.slices
    _check(index, slices, "slice")
    where = f"slice {index}, coil {coil}"
    match what:
        case "sampling":
            return Picture(sampling_picture(scan), "where k-space was sampled (ky, kx)", 1)
        case "kspace" | "phase":
            samples = kspace_stage(scan, index, coil, stage)
            axes = "(ky, kx)" if isinstance(scan.geometry, Cartesian) else "(readout, sample)"
            if what == "phase":
                angle = np.where(samples == 0, np.nan, np.angle(samples)).astype(np.float32)
                return Picture(angle, f"phase of {where} {axes}, radians", slices)
            with np.errstate(divide="ignore"):
                level = np.where(samples == 0, np.nan, np.log10(np.abs(samples))).astype(np.float32)
            return Picture(level, f"log10 of the magnitude of {where} {axes}", slices)
        case "coil-magnitude":
            return Picture(coil_picture(scan, index, coil, "magnitude"), f"sensitivity of {where} (y, x)", slices)
        case "coil-phase":
            said = f"phase of the sensitivity of {where} (y, x), radians"
            return Picture(coil_picture(scan, index, coil, "phase"), said, slices)
        case "coil-eigenvalue":
            said = f"largest eigenvalue of slice {index} (y, x)"
            return Picture(coil_picture(scan, index, 0, "eigenvalue"), said, slices)
        case "noise":
            said = f"correlation of the noise of the coils of slice {index} (coil, coil)"
            return Picture(coil_picture(scan, index, 0, "noise"), said, slices)
        case _:
            raise BadInput(f"there is no picture {what!r} of an MRI scan")


def _quick_image(scan: Acquisition, index: int, watch: Watch) -> Picture:
    """Return the analytic image of a slice, of fewer views and larger pixels where the scan is large."""
    _check(index, scan.slices, "slice")
    slices, at = scan.slices, index
    if isinstance(scan, CtAcquisition):
        limit = QUICK_CONE if isinstance(scan.geometry, ConeBeam) else QUICK_COLUMNS
        part = Selection(views=Span(step=max(1, scan.shape[0] // QUICK_VIEWS)), bin=max(1, -(-scan.shape[2] // limit)))
        scan = selected(scan, part)
        at = min(index * scan.slices // slices, scan.slices - 1)
    settings = protocol.ReconstructSettings(method=methods_for(scan)[0])
    method, settings = with_defaults(settings, scan)
    done = run(scan, slice(at, at + 1), settings, None, torch.device("cpu"), watch)
    image = done.image.numpy()
    # a cone beam is made as a whole
    pixels = image[at] if image.shape[0] == scan.slices > 1 else image[0]
    return Picture(np.ascontiguousarray(pixels, dtype=np.float32), f"{method.label}, slice {index} (y, x)", slices)


def _check(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise BadInput(f"{what} {index} does not lie in 0 to {count - 1}")
