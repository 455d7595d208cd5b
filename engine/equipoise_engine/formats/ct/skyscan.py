"""Reader for scans of Bruker SkyScan scanners: a text file (.log) and numbered TIFF projections.

`Image Pixel Size (um)` is that of the detector seen at the axis. `Optical Axis (line)`, the line that the plane of the
source meets, is taken as counted from the lowest; no description that says so was found. Projections are flat-fielded
by the scanner up to a factor: they are counts whose brightest pixels are the open beam. Beyond ten metres the beam
counts as parallel.

Sources: files of many models as tomo-meta describes them, https://tomo-meta.readthedocs.io/en/latest/tomometa/lab.html;
the direction is that of the TIGRE toolbox, A. Biguri et al. 2016, doi:10.1088/2057-1976/2/5/055010.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.ct.circular import Circle, rightly_turned
from equipoise_engine.formats.ct.scanner_text import Section, begins_with_section, numbered_images, section_of, views_of
from equipoise_engine.formats.stacks.folder import images_beside
from equipoise_engine.formats.stacks.series import images_of
from equipoise_engine.formats.stacks.stack import Stack, scan_of_stack
from equipoise_engine.geometry import CtGeometry, ParallelBeam
from equipoise_engine.recipe import Known

PARALLEL_MM = 10_000.0
"""Distance of a source from which on its beam is taken as parallel."""


def is_skyscan(path: Path) -> bool:
    """Whether a file is the text file of a SkyScan scan."""
    if not begins_with_section(path, ["System", "Acquisition"]):
        return False
    with path.open("rb") as stream:
        return b"[acquisition]" in stream.read(1 << 16).lower()


def is_skyscan_folder(path: Path) -> bool:
    """Whether a folder holds the text file of one SkyScan scan."""
    return len(_logs(path)) == 1


def _logs(folder: Path) -> list[Path]:
    """Return the text files of scans in a folder; those of reconstructions repeat them."""
    try:
        logs = [p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".log" and p.is_file()]
        return [log for log in logs if not log.stem.lower().endswith("_rec") and is_skyscan(log)]
    except OSError:
        return []


def read_skyscan(path: Path, known: Known) -> CtAcquisition:
    """Return the scan that a .log file of a SkyScan scanner describes, or that of a folder with one.

    Raises
    ------
    BadInput
        A value is missing or impossible, or projections are missing or of another size.
    """
    if path.is_dir():
        path = _logs(path)[0]
    values = section_of(path, "System", "Acquisition")
    count = values.count("Number of Files")
    prefix = values.text("Filename Prefix") or path.stem
    found = numbered_images(path.parent, prefix, path)
    views, note = views_of(found, count, path)
    first = 0 if 0 in found else 1
    images = images_of([found[view + first] for view in views])
    rows, columns = int(images.shape[1]), int(images.shape[2])
    for key, size in (("Number of Rows", rows), ("Number of Columns", columns)):
        if values.text(key) and values.count(key) != size:
            raise BadInput(
                f"{path.name}: {key!r} is {values.count(key)}, but the projections have {size}",
                "Keep the projections of one scan together, as the scanner wrote them.",
            )
    step = values.number("Rotation Step (deg)")
    backwards = values.text("Rotation Direction").upper() == "CW"
    angle_deg = (-step if backwards else step) * np.array(views, dtype=np.float64)
    circle = _circle(values, rows)

    def geometry(angle_rad: NDArray[np.float64]) -> CtGeometry:
        if circle.source_axis_mm > PARALLEL_MM:
            pixel_mm = circle.pixel_mm * circle.source_axis_mm / circle.source_detector_mm
            return ParallelBeam(angle_rad, pixel_mm, calibrated=True)
        return circle.geometry(angle_rad, rows, columns, path.name)

    scan = scan_of_stack(
        Stack(
            path=path,
            format="Bruker SkyScan",
            images=images,
            angle_deg=angle_deg,
            geometry=geometry,
            layout="projections",
            state="counts",
            matched=(
                Match("projections", found[min(found)].name, (), f"numbered, {len(views)} of {count}"),
                circle.match,
                Match("angles", "Rotation Step (deg)", (len(views),), f"{step:g} degrees"),
            ),
            beside=images_beside(path),
        ),
        known,
    )
    turning = "clockwise" if backwards else "counter-clockwise"
    scan = rightly_turned(scan, f"the object turns {turning}, as the file says or is usual")
    return replace(scan, warnings=(*([note] if note else []), *scan.warnings))


def _circle(values: Section, rows: int) -> Circle:
    source_axis = values.length("Object to Source (mm)")
    source_detector = values.number("Camera to Source (mm)", 2 * source_axis)
    if source_detector <= source_axis:
        # only the size at the axis counts, as of a detector anywhere
        source_detector = 2 * source_axis
    element = values.length("Image Pixel Size (um)") * 1e-3 * source_detector / source_axis
    line = values.number("Optical Axis (line)", (rows - 1) / 2)
    # lines are counted from below, rows from above
    middle = rows - 1 - line if 0 <= line < rows else None
    return Circle(source_axis, source_detector, element, element, middle_px=middle)
