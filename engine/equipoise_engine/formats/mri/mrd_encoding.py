"""How the readouts of an ISMRMRD file lie in k-space, after its header and their counters."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.mri.mrd_acquisitions import REVERSE
from equipoise_engine.formats.mri.mrd_header import encoded_space, limits_of
from equipoise_engine.formats.mri.mrd_part import Part
from equipoise_engine.formats.mri.ramps import MAX_RAMP_SAMPLES, Grid, Trapezoid, gridding
from equipoise_engine.formats.mri.readouts import Encoding, Readout, whole_size

_RAMP_NAMES = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "dwellTime")
_Space = tuple[list[float], list[int]]


@dataclass(frozen=True)
class Space:
    """How readouts lie in k-space.

    Parameters
    ----------
    encoding
        Their places.
    field
        Extent `(y, x)` of the image, mm.
    depth
        Extent of a slice or slab across, mm.
    """

    encoding: Encoding
    field: tuple[float, float]
    depth: float


def space_of(part: Part, lines: Sequence[Readout], keep_oversampling: bool) -> Space:
    """Return how the lines of a part lie in k-space. Raises BadInput where the header tells no encoded space."""
    encoded = encoded_space(part.root, "encodedSpace", part.number)
    if encoded is None:
        raise BadInput(
            f"{part.path.name}: the header tells no encoded space with a field of view above 0 mm",
            "Export the file again.",
        )
    extent, matrix = encoded
    shown = encoded_space(part.root, "reconSpace", part.number)
    columns, whole_mm = _whole_readout(part, encoded)
    kept_mm = extent[0] if shown is None else min(shown[0][0], extent[0])
    pixels = columns
    if not keep_oversampling and 0 < kept_mm < 0.95 * whole_mm:
        pixels = max(1, round(columns * kept_mm / whole_mm))
    limits = limits_of(part.root, "kspace_encoding_step_1", part.number)
    rows, centre_row = _placed(limits, matrix[1], max(line.line for line in lines))
    depth = extent[2] if np.isfinite(extent[2]) and extent[2] > 0 else 1.0
    partitions, centre_partition, kept_partitions = 1, 0, 1
    deepest = max(line.partition for line in lines)
    if deepest > 0:
        limits = limits_of(part.root, "kspace_encoding_step_2", part.number)
        partitions, centre_partition = _placed(limits, matrix[2], deepest)
        kept_partitions = partitions
        if shown is not None and 0 < shown[0][2] < 0.95 * depth:
            kept_partitions = max(1, round(partitions * shown[0][2] / depth))
    encoding = Encoding(
        coils=part.coils,
        samples=part.samples,
        centre=part.centre,
        columns=columns,
        pixels=pixels,
        rows=rows,
        centre_row=centre_row,
        partitions=partitions,
        centre_partition=centre_partition,
        kept_partitions=kept_partitions,
        used=_used(part),
    )
    return Space(encoding, (extent[1], whole_mm * pixels / columns), depth)


def grid_of(part: Part, space: Space, object_pixels: int) -> Grid | None:
    """Return what puts samples of a changing gradient on a grid; None where it was constant, or is not told.

    Parameters
    ----------
    object_pixels
        Of the columns, in whose middle the object lies.
    """
    encoding = space.encoding
    positions = _ramp_positions(part.root, part.number, part.samples) if encoding.columns <= MAX_RAMP_SAMPLES else None
    if positions is None:
        return None
    matrix = gridding(positions, encoding.columns, object_pixels)
    return Grid(matrix, positions * (encoding.pixels / space.field[1]))


def _whole_readout(part: Part, encoded: _Space) -> tuple[int, float]:
    """Return the samples of a whole readout, and the extent of its image in mm."""
    extent, matrix = encoded
    columns, whole_mm = max(matrix[0], 1), extent[0]
    first = columns // 2 - part.centre
    if first >= 0 and first + part.samples <= columns:
        return columns, whole_mm
    needed = 2 * max(part.centre, part.samples - part.centre)
    # Where the matrix does not count what the readouts are oversampled, neither does its extent.
    return needed, whole_mm * needed / columns if part.samples > columns else whole_mm


def _placed(limits: tuple[int, int, int] | None, encoded: int, last: int) -> tuple[int, int]:
    """Return the size of k-space along a phase encoding, and the number of the step at its centre."""
    centre = encoded // 2
    if limits is not None and limits[0] <= limits[2] <= limits[1] and limits[1] > 0:
        centre = limits[2]
    if centre == 0 and whole_size(encoded, 0, last) > encoded > last:
        # It was not set: the lines reach as far as those of whole k-space do.
        centre = encoded // 2
    return whole_size(max(encoded, 1), centre, last), centre


def _used(part: Part) -> tuple[int, int]:
    """Return the first sample that counts of readouts that lie forward, and the one after the last."""
    forward = part.imaging[(part.heads["flags"][part.imaging] & np.uint64(REVERSE)) == 0]
    if not forward.size:
        return 0, part.samples
    before, after = (int(np.bincount(part.heads[name][forward]).argmax()) for name in ("discard_pre", "discard_post"))
    return (before, part.samples - after) if before + after < part.samples else (0, part.samples)


def _ramp_positions(root: ElementTree.Element, number: int, samples: int) -> NDArray[np.float64] | None:
    """Return where samples on a changing gradient lie, as `Trapezoid.positions`; None where it was constant."""
    found = root.findall(".//{*}encoding")
    description = found[number].find("{*}trajectoryDescription") if number < len(found) else None
    if description is None:
        return None
    told: dict[str, float] = {}
    for item in description:
        try:
            told[item.findtext("{*}name", "")] = float(item.findtext("{*}value", "nan"))
        except ValueError:
            continue
    up, flat, down, delay, dwell = (told.get(name, np.nan) for name in _RAMP_NAMES)
    count = told.get("numSamples", float(samples))
    if not np.isfinite([up, flat, down, delay, dwell]).all() or count != samples or up + down <= 0:
        return None
    # Times are in microseconds; so are dwell times, but for those of some converters, in nanoseconds.
    duration = dwell * samples
    if duration > 20 * (up + flat + down):
        duration /= 1000.0
    if delay >= up and delay + duration <= up + flat:
        return None  # all on the plateau
    return Trapezoid(up=up, flat=flat, down=down, delay=delay, duration=duration).positions(samples)
