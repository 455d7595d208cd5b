"""What the user tells of a scan, in place of what its files say or what was guessed."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec

from equipoise_engine.acquisition import Acquisition, CtAcquisition, DataState, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.angles import evenly, repeated_views, to_radians
from equipoise_engine.geometry import LARGEST_TILT_RAD, ConeBeam, FanBeam, NonCartesian, ParallelBeam
from equipoise_engine.recipe import Beam, Known

GIVEN = "given by the user"
_CT_ONLY = ("layout", "transposed", "state", "angles", "clockwise", "centre_px", "pixel_mm", "beam")


def told(scan: Acquisition, known: Known) -> Acquisition:
    """Return a scan with what the user knows of it; roles, layout and matrix are the business of its reader.

    Raises
    ------
    BadInput
        What is told does not belong to a scan of this kind, or cannot be.
    """
    name = scan.path.name
    if known.matrix is not None and not isinstance(scan.geometry, NonCartesian):
        raise BadInput(f"{name}: the size of its images follows from its samples; another one is not taken")
    if isinstance(scan, CtAcquisition):
        scan = _told_ct(scan, known)
    else:
        given = [field for field in _CT_ONLY if getattr(known, field) != getattr(Known(), field)]
        if given:
            what = "images to transpose" if given[0] == "transposed" else given[0].removesuffix("_px")
            raise BadInput(f"{name}: an MRI scan has no {what}", "Leave it out.")
    return replace(scan, recipe=msgspec.structs.replace(scan.recipe, known=known))


def _told_ct(scan: CtAcquisition, known: Known) -> CtAcquisition:
    guessed = set(scan.guessed)
    if known.state:
        guessed.discard("state")
        match = Match("data state", GIVEN, (), known.state)
        scan = replace(scan, state=DataState(known.state), matched=_without(scan, "data state", match))
    if known.angles is not None:
        guessed.discard("angles")
        views = scan.shape[0]
        angle_rad, _, doubts = to_radians(evenly(known.angles, views), "degrees", where=scan.path.name)
        said = f"{known.angles.start_deg:g} to {known.angles.stop_deg:g} degrees"
        match = Match("angles", GIVEN, (views,), f"{said}, {'with' if known.angles.inclusive else 'without'} the end")
        # what was said of the angles that were taken before holds no more
        warnings = tuple(text for text in scan.warnings if "angles" not in text and text not in _said_of(scan))
        scan = replace(
            scan,
            geometry=replace(scan.geometry, angle_rad=angle_rad),
            matched=_without(scan, "angles", match),
            warnings=(*warnings, *doubts, *repeated_views(angle_rad)),
        )
    if known.clockwise:
        scan = replace(
            scan,
            geometry=replace(scan.geometry, angle_rad=-scan.geometry.angle_rad),
            matched=(*scan.matched, Match("direction", GIVEN, (), "all angles turned the other way")),
        )
    if known.pixel_mm is not None:
        if not isinstance(scan.geometry, ParallelBeam):
            raise BadInput(f"{scan.path.name}: the element of a diverging beam belongs to its distances")
        match = Match("pixel size", GIVEN, (), f"{known.pixel_mm:g} mm")
        scan = replace(
            scan,
            geometry=replace(scan.geometry, pixel_mm=known.pixel_mm, calibrated=True),
            matched=_without(scan, "pixel size", match),
        )
    if known.beam is not None:
        guessed.discard("beam")
        scan = _diverging(scan, known.beam)
    if known.centre_px is not None:
        last = scan.shape[2] - 1
        if not 0 <= known.centre_px <= last:
            raise BadInput(
                f"{scan.path.name}: a rotation centre at column {known.centre_px:g} lies outside the detector, whose"
                f" columns count from 0 to {last}",
                "Give the column of the axis before anything is cropped or binned.",
            )
        match = Match("rotation centre", GIVEN, (), f"column {known.centre_px:g}")
        scan = replace(
            scan,
            geometry=replace(scan.geometry, centre_px=known.centre_px),
            matched=_without(scan, "rotation centre", match),
        )
    return replace(scan, guessed=tuple(name for name in scan.guessed if name in guessed))


def _without(scan: CtAcquisition, role: str, match: Match) -> tuple[Match, ...]:
    return (*(m for m in scan.matched if m.role != role), match)


def _said_of(scan: CtAcquisition) -> tuple[str, ...]:
    return repeated_views(scan.geometry.angle_rad)


def _diverging(scan: CtAcquisition, beam: Beam) -> CtAcquisition:
    """Return a scan with a fan or a cone in place of the beam that its file was taken to have."""
    lengths = (beam.source_axis_mm, beam.source_detector_mm, beam.pixel_mm)
    rows, old = scan.shape[1], scan.geometry
    half_fan = math.atan(0.5 * scan.shape[2] * beam.pixel_mm / beam.source_detector_mm)
    if half_fan > LARGEST_TILT_RAD:
        raise BadInput(
            f"{scan.path.name}: {scan.shape[2]} columns of {beam.pixel_mm:g} mm at {beam.source_detector_mm:g} mm would"
            f" span a fan of {2 * math.degrees(half_fan):.0f} degrees",
            "Check the side of a detector element, in mm.",
        )
    geometry: FanBeam | ConeBeam
    match old:
        case ParallelBeam() if rows == 1:
            geometry = FanBeam(old.angle_rad, *lengths, old.centre_px)
        case ParallelBeam():
            geometry = ConeBeam(old.angle_rad, *lengths, beam.pixel_mm, (rows - 1) / 2, old.centre_px)
        case FanBeam():
            geometry = replace(old, source_axis_mm=lengths[0], source_detector_mm=lengths[1], pixel_mm=lengths[2])
        case ConeBeam():
            geometry = replace(
                old, source_axis_mm=lengths[0], source_detector_mm=lengths[1], pixel_mm=lengths[2], row_mm=lengths[2]
            )
    said = f"source to axis {lengths[0]:g} mm, to detector {lengths[1]:g} mm, element {lengths[2]:g} mm"
    kind = "one detector row: a fan" if rows == 1 else f"{rows} detector rows: a cone"
    # what was said about opposite views holds for parallel beams only
    warnings = tuple(text for text in scan.warnings if text not in _said_of(scan))
    match = Match("beam", GIVEN, (), f"{said}; {kind}")
    return replace(scan, geometry=geometry, matched=_without(scan, "beam", match), warnings=warnings)
