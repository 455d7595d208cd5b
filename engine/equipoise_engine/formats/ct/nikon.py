"""Reader for scans of Nikon (X-Tek) scanners: a text file (.xtekct) and numbered TIFF projections.

Lengths are in millimetres; the object turns clockwise seen from above by `AngularStep` degrees from view to view, and
projections are drawn as seen from behind the detector, so that in the coordinates of this program, where rows grow
with z, angles fall. The axis lies `CentreOfRotationTop` and `CentreOfRotationBottom` millimetres of the detector to the
right of its middle, at its upper and lower edge.

Source: the reader of the Core Imaging Library, J. S. Jorgensen et al. 2021, doi:10.1098/rsta.2020.0192 (meaning and
signs of the values).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np

from equipoise_engine.acquisition import CtAcquisition, Match, Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.ct.circular import Circle, rightly_turned
from equipoise_engine.formats.ct.scanner_text import Section, begins_with_section, numbered_images, section_of, views_of
from equipoise_engine.formats.frames import Scaled
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.series import images_of
from equipoise_engine.formats.stacks.stack import Stack, scan_of_stack
from equipoise_engine.recipe import Known

SECTION = "XTekCT"
LARGEST_TILT_DEG = 0.5
"""Lean of the axis along the beam that a circular scan may have."""


def is_nikon(path: Path) -> bool:
    """Whether a file begins with the section of a Nikon scan."""
    return begins_with_section(path, [SECTION])


def read_nikon(path: Path, known: Known) -> CtAcquisition:
    """Return the scan that a .xtekct file describes.

    Raises
    ------
    BadInput
        A value is missing or impossible, or projections are missing or of another size.
    Unsupported
        The axis was tilted, as in laminography.
    """
    values = section_of(path, SECTION)
    count = values.count("Projections")
    found = numbered_images(_folder(values, path), _prefix(values), path)
    views, note = views_of(found, count, path)
    first = 0 if 0 in found else 1
    images = images_of([found[view + first] for view in views])
    rows, columns = int(images.shape[1]), int(images.shape[2])
    size = (values.count("DetectorPixelsY"), values.count("DetectorPixelsX"))
    if size != (rows, columns):
        raise BadInput(
            f"{path.name}: the projections have {rows} rows and {columns} columns, the detector has {size[0]} and"
            f" {size[1]}",
            "Keep the projections of one scan together, as the scanner wrote them.",
        )
    circle = _circle(values, rows, columns)
    # A scan's step may be negative where the scanner turned the other way.
    angle_deg = -(values.number("InitialAngle", 0.0) + values.number("AngularStep") * np.array(views, dtype=np.float64))
    level = values.number("WhiteLevel", 0.0)
    state, shown = "", images
    matched = [Match("projections", found[min(found)].name, (), f"numbered, {len(views)} of {count}"), circle.match]
    if level > 0 and known.state in ("", "transmission"):
        state, shown = "transmission", _transmission(images, level)
        matched.append(Match("open beam", "WhiteLevel", (), f"{level:g} counts are full transmission"))
    scan = scan_of_stack(
        Stack(
            path=path,
            format="Nikon XTekCT",
            images=shown,
            angle_deg=angle_deg,
            geometry=lambda angle_rad: circle.geometry(angle_rad, rows, columns, path.name),
            layout="projections",
            state=state,
            matched=(
                *matched,
                Match("angles", "AngularStep", (len(views),), f"{values.number('AngularStep'):g} degrees"),
            ),
            beside=images_beside(path),
        ),
        known,
    )
    scan = rightly_turned(scan, "the object of this scanner turns clockwise")
    return replace(scan, warnings=(*([note] if note else []), *scan.warnings))


def _transmission(images: Samples, level: float) -> Samples:
    return Scaled(images, 0.0, level)


def _folder(values: Section, path: Path) -> Path:
    """Return the folder of the projections: the one named, where it lies below that of the file, else its own."""
    named = PureWindowsPath(values.text("InputFolderName").strip('"')).parts
    folder = path.parent
    if named and not PureWindowsPath(*named).is_absolute() and ".." not in named:
        inner = folder.joinpath(*named)
        if inner.is_dir():
            return inner
    return folder


def _prefix(values: Section) -> str:
    name = values.text("Name").strip('"')
    if not name:
        raise BadInput(f"{values.path.name}: 'Name', which its projections begin with, is missing")
    return f"{name}_"


def _circle(values: Section, rows: int, columns: int) -> Circle:
    source_axis, source_detector = values.length("SrcToObject"), values.length("SrcToDetector")
    pixel, row = values.length("DetectorPixelSizeX"), values.length("DetectorPixelSizeY")
    tilt = values.number("ObjectTilt", 0.0)
    if abs(tilt) > LARGEST_TILT_DEG:
        raise Unsupported(
            f"{values.path.name}: the axis was tilted by {tilt:g} degrees; scans about an axis along the columns of the"
            " detector are read"
        )
    top, bottom = values.number("CentreOfRotationTop", 0.0), values.number("CentreOfRotationBottom", 0.0)
    shift, roll = (top + bottom) / 2, math.atan((bottom - top) / (rows * row))
    if values.text("ObjectOffsetX"):
        shift = values.number("ObjectOffsetX") * source_detector / source_axis
    if values.text("ObjectRoll"):
        roll = math.radians(values.number("ObjectRoll"))
    # zero is what the file has before its software looked for the axis
    centre = (columns - 1) / 2 + shift / pixel if shift else None
    return Circle(source_axis, source_detector, pixel, row, centre, roll_rad=roll)
