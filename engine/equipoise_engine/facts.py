"""What the window and the command line are told of an open scan."""

from __future__ import annotations

import numpy as np
import torch

from equipoise_engine import protocol
from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.geometry import Cartesian, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.methods import methods_for
from equipoise_engine.planning import plan


def scan_facts(key: str, scan: Acquisition, device: torch.device) -> protocol.ScanFacts:
    """Return what the window and `info` show of an open scan."""
    match scan:
        case CtAcquisition():
            kind, geometry = "ct", _ct_geometry(scan)
        case MriAcquisition():
            kind, geometry = "mri", _mri_geometry(scan)
    memory = plan(scan, device)
    return protocol.ScanFacts(
        scan=key,
        path=str(scan.path),
        kind=kind,
        format=scan.format,
        state=scan.state.value,
        shape=scan.shape,
        slices=scan.slices,
        geometry=geometry,
        matched=tuple(
            protocol.MatchFact(role=m.role, source=m.source, shape=m.shape, reason=m.reason) for m in scan.matched
        ),
        warnings=scan.warnings,
        methods=methods_for(scan),
        recipe=scan.recipe,
        full_shape=scan.full_shape or scan.shape,
        guessed=scan.guessed,
        sources=scan.sources,
        memory=protocol.MemoryFacts(
            host_bytes=memory.host_bytes,
            host_free=memory.host_free,
            device_bytes=memory.device_bytes,
            device_free=memory.device_free,
            disk_bytes=memory.disk_bytes,
            text=memory.text,
        ),
    )


def _ct_geometry(scan: CtAcquisition) -> tuple[tuple[str, str], ...]:
    geometry = scan.geometry
    degrees = np.degrees(geometry.angle_rad)
    centre = "unknown" if geometry.centre_px is None else f"column {geometry.centre_px:.2f}"
    pixel = f"{geometry.image_pixel_mm:.6g} mm" if geometry.calibrated else "not given (lengths count pixels)"
    return (
        ("beam", _beam(geometry)),
        ("views", f"{degrees.size}"),
        ("angles", f"{degrees.min():.3f} to {degrees.max():.3f} degrees"),
        ("rotation centre", centre),
        ("detector", f"{scan.shape[2]} columns, {scan.shape[1]} row{'s' if scan.shape[1] > 1 else ''}"),
        ("pixel size", pixel),
        ("object", "reaches beyond the detector" if geometry.truncated else "inside the detector's view"),
    )


def _beam(geometry: CtGeometry) -> str:
    """Return the kind of beam and its lengths, for people."""
    if isinstance(geometry, ParallelBeam):
        return "parallel"
    if isinstance(geometry, FanBeam):
        kind = f"fan, {geometry.detector} detector"
    else:
        kind = "cone"
    return (
        f"{kind}; source to axis {geometry.source_axis_mm:.6g} mm, to detector {geometry.source_detector_mm:.6g} mm, "
        f"element {geometry.pixel_mm:.6g} mm"
    )


def _mri_geometry(scan: MriAcquisition) -> tuple[tuple[str, str], ...]:
    geometry = scan.geometry
    high, wide = geometry.field_of_view_mm
    extent = f"{high:.6g} x {wide:.6g} mm (y, x)" if geometry.calibrated else "not given (lengths count pixels)"
    if isinstance(geometry, Cartesian):
        rows, columns = geometry.sampled.shape
        share = float(geometry.sampled.mean())
        sampling = "Cartesian, complete" if share == 1 else f"Cartesian, {100 * share:.0f} % of k-space"
        matrix = f"{rows} x {columns} (ky, kx)"
    else:
        readouts, samples, _ = geometry.trajectory.shape
        sampling = f"{readouts} readouts of {samples} samples, not on a grid"
        matrix = f"{geometry.matrix[0]} x {geometry.matrix[1]} (y, x)"
    return (
        ("sampling", sampling),
        ("matrix", matrix),
        ("coils", f"{scan.shape[1]}"),
        ("slices", f"{scan.shape[0]}"),
        ("field of view", extent),
    )
