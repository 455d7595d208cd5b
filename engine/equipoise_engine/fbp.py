"""Filtered back-projection of slices: parallel beam and fan beam, any set of angles, an axis off the middle.

Every ray gets a weight so that each line through the object counts once, however often it was measured: the arc its
view stands for, times its share among the rays along the same line. Rows are filtered with an apodised ramp and
gathered at the pixels with linear interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import CtGeometry, FanBeam, ParallelBeam, SliceGeometry
from equipoise_engine.projection.threads import match_threads

_Reals = NDArray[np.float64]

FBP_WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hann")

_LANES = 8
"""Slices that are back-projected side by side."""
MISSING_STEPS = 4
"""A gap between views of more than this many usual steps is missing data, and of more than"""
MISSING_RAD = math.radians(10)
"""this angle: what a few lost views leave open is still spread over their neighbours."""
TAPER_RAD = math.radians(10)
"""Arc at the ends of a scan over which doubly measured lines pass from one of their views to the other."""


def angular_weights(angle_rad: _Reals, period: float = np.pi) -> _Reals:
    """Return the arc that each view stands for `(view,)`, in radians, summing to at most the period.

    Half the gap to each neighbour, with views a period apart taken as the same; views of one direction share its arc.
    A gap that is missing data is not spread over its neighbours.

    Parameters
    ----------
    angle_rad
        `(view,)`, in any order.
    period
        pi, where opposite views are the same direction (parallel beam), or 2 pi.
    """
    found = directions(angle_rad, period)
    gaps = np.where(found.gaps > found.missing, found.usual, found.gaps)
    arcs = 0.5 * (gaps + np.roll(gaps, 1))
    return np.asarray((arcs / found.counts)[found.member], dtype=np.float64)


@dataclass(frozen=True)
class Directions:
    """The different directions among views.

    Parameters
    ----------
    angle_rad
        `(direction,)`, ascending.
    gaps
        From each to the next, the last to the first `(direction,)`, radians.
    counts
        Number of views of each direction.
    member
        Which direction each view has `(view,)`.
    usual
        The usual step between directions, radians.
    missing
        Views are missing in a gap of more than this, radians.
    """

    angle_rad: _Reals
    gaps: _Reals
    counts: NDArray[np.int64]
    member: NDArray[np.int64]
    usual: float
    missing: float


def directions(angle_rad: _Reals, period: float) -> Directions:
    """Return the directions of views, those taken as one that differ by less than a tenth of the usual step.

    So a direction that was measured twice, by an encoder that trembles, is not two with hardly an arc each. The usual
    step is the median of the gaps that are more than such a tremble; a few large gaps, where views are missing, do not
    count for it.
    """
    order = np.argsort(np.mod(angle_rad, period), kind="stable")
    ordered = np.mod(angle_rad, period)[order]
    gaps = np.diff(np.append(ordered, ordered[0] + period))
    rising = np.sort(gaps)
    core = rising[: -3 if gaps.size > 8 else -1] if gaps.size > 1 else rising
    large = float(np.quantile(core, 0.97, method="higher"))
    usual = float(np.median(core[core >= 0.1 * large])) if large > 0 else float(rising[-1])
    # where one direction ends and the next begins, all the way round
    starts = np.roll(gaps > 0.1 * usual, 1)
    if not starts.any():
        starts[0] = True
    first = int(np.flatnonzero(starts)[0])
    number = np.roll(np.cumsum(np.roll(starts, -first)) - 1, first)
    counts = np.bincount(number)
    unwrapped = np.where(np.arange(ordered.size) < first, ordered + period, ordered)
    middles = np.mod(np.bincount(number, unwrapped) / counts, period)
    member = np.empty(ordered.size, dtype=np.int64)
    rank = np.argsort(np.argsort(middles, kind="stable"), kind="stable")
    member[order] = rank[number]
    ascending = np.sort(middles)
    between = np.diff(np.append(ascending, ascending[0] + period))
    together = np.bincount(member, minlength=ascending.size)
    return Directions(ascending, between, together, member, usual, max(MISSING_STEPS * usual, MISSING_RAD))


def covers_full_turn(angle_rad: _Reals) -> bool:
    """Whether the views go all the way round, without a gap where some are missing."""
    found = directions(angle_rad, 2 * np.pi)
    largest = float(found.gaps.max())
    return found.gaps.size > 2 and largest <= found.missing and largest < np.pi / 2


def redundancy(angle_rad: _Reals, position: _Reals, fan_rad: _Reals) -> _Reals:
    """Return the share of each ray among the two that run along its line `(view, column)`, from 0 to 1.

    A line is measured again from the other side, half a turn less twice the fan angle later, at the mirrored position
    on the detector. Where that ray is missing the share is one; towards the ends of an arc of views, and towards the
    edge of a detector that is off the middle, it passes smoothly to the other ray.

    Parameters
    ----------
    angle_rad
        `(view,)`.
    position
        Signed distance of each column from the axis `(column,)`, in any unit, ascending.
    fan_rad
        Angle of each column's ray to the ray through the axis `(column,)`; zeros for a parallel beam.

    Source: F. Noo, M. Defrise, R. Clackdoyle, H. Kudo 2002, doi:10.1088/0031-9155/47/14/311; detectors off the
    middle: G. Wang 2002, doi:10.1118/1.1489043.
    """
    own = _coverage(angle_rad, angle_rad)[:, None] * _detector_coverage(position, position)
    opposite = angle_rad[:, None] + np.pi - 2 * fan_rad
    other = _coverage(angle_rad, opposite) * _detector_coverage(position, -position)
    least = 1e-9
    return np.asarray(np.maximum(own, least) / (np.maximum(own, least) + other))


def ray_arcs(angle_rad: _Reals, position: _Reals, fan_rad: _Reals) -> _Reals:
    """Return the arc that each ray stands for `(view, column)`, radians: that of its view times its share in its line.

    There are no more than pi radians of different lines, however few views are spread over the turn.

    Parameters
    ----------
    angle_rad, position, fan_rad
        As of `redundancy`.
    """
    arcs = angular_weights(angle_rad, 2 * np.pi)[:, None] * redundancy(angle_rad, position, fan_rad)
    if covers_full_turn(angle_rad):
        return np.asarray(arcs)
    return np.asarray(arcs * min(1.0, np.pi / float(arcs.sum(axis=0).mean())))


def ramp_spectrum(columns: int, window: str = "ram-lak", *, step_rad: float = 0.0) -> _Reals:
    """Return the apodised ramp |f| at the frequencies of a real transform of the zero-padded detector `(frequency,)`.

    The transform of the band-limited kernel sampled in space, which has the right mean value (A. Kak and M. Slaney
    1988, doi:10.1137/1.9780898719277, eq. 3.61); that of a curved detector with columns `step_rad` apart is stretched
    as in the filter of its section 3.4.1, in units of a column.

    Raises
    ------
    BadInput
        The window is not one of `FBP_WINDOWS`.
    """
    padded = padded_length(columns)
    offset = np.fft.fftfreq(padded, 1 / padded)
    kernel = np.zeros(padded)
    kernel[0] = 0.25
    odd = offset % 2 == 1
    distance = offset[odd] * step_rad
    stretch = np.sinc(distance / np.pi)
    kernel[odd] = -1 / (np.pi * offset[odd] * np.where(np.abs(distance) < np.pi / 2, stretch, 1.0)) ** 2
    ramp: _Reals = np.fft.rfft(kernel).real
    frequency = np.fft.rfftfreq(padded)
    match window:
        case "ram-lak":
            taper = np.ones_like(frequency)
        case "shepp-logan":
            taper = np.sinc(frequency)
        case "cosine":
            taper = np.cos(np.pi * frequency)
        case "hann":
            taper = 0.5 * (1 + np.cos(2 * np.pi * frequency))
        case _:
            raise BadInput(f"unknown filter window {window!r}", f"Choose one of {', '.join(FBP_WINDOWS)}.")
    return np.asarray(ramp * taper, dtype=np.float64)


def filter_rows(sinogram: Tensor, spectrum: Tensor) -> Tensor:
    """Return rows `(..., column)` filtered with a spectrum `(frequency,)` of the zero-padded row."""
    columns = sinogram.shape[-1]
    length = padded_length(columns)
    transformed = torch.fft.rfft(sinogram, n=length, dim=-1)
    filtered: Tensor = torch.fft.irfft(transformed * spectrum.to(sinogram.device, sinogram.dtype), n=length, dim=-1)
    return filtered[..., :columns]


def padded_length(columns: int) -> int:
    """Return the length that a detector row of so many columns is padded to: a power of two, at least twice as many."""
    return int(2 ** math.ceil(math.log2(2 * columns)))


def filtered_back_projection(
    y: Tensor, geometry: SliceGeometry, shape: tuple[int, int], pixel_mm: float, *, window: str = "ram-lak"
) -> Tensor:
    """Return the filtered back-projection `(batch, y, x)` of sinograms `(batch, view, column)`, in 1/mm.

    Parameters
    ----------
    geometry
        Its rotation centre is known.
    shape
        Rows and columns of the image, the axis in its middle. Where the image is wider than the detector, rows go on
        beyond the edge with their last value: a fall to zero would become a bright rim.
    pixel_mm
        Side of an image pixel.

    Raises
    ------
    BadInput
        The window is unknown or the rotation centre is not.
    """
    columns = y.shape[-1]
    vectors = geometry.vectors()
    centre = vectors.reference_px[1]
    rows = y.detach()
    if isinstance(geometry, FanBeam):
        rows, centre = _on_a_straight_detector(rows, geometry, centre)
    weights, spectrum = _ray_weights(geometry, columns, centre), _spectrum(geometry, columns, window)
    rows = rows * torch.from_numpy(weights).to(y.device, y.dtype)
    before, after = margins(columns, centre, max(shape) * pixel_mm / geometry.image_pixel_mm)
    if is_offset(geometry, columns):
        # what the filter spreads beyond the nearer edge belongs to lines that the other side measures
        near_first = centre < (columns - 1) / 2
        rows = torch.nn.functional.pad(rows, (before, 0) if near_first else (0, after))
        rows = torch.nn.functional.pad(rows, (0, after) if near_first else (before, 0), mode="replicate")
    elif before or after:
        rows = torch.nn.functional.pad(rows, (before, after), mode="replicate")
    centre += before
    if rows.shape[-1] != columns:
        spectrum = _spectrum(geometry, rows.shape[-1], window)
    filtered = filter_rows(rows, torch.from_numpy(spectrum))
    return back_project(filtered, _aims(geometry, centre), shape, pixel_mm)


def margins(columns: int, centre: float, wide: float) -> tuple[int, int]:
    """Return how many columns a detector lacks on either side to see an image `wide` columns wide about the axis."""
    return max(0, math.ceil(wide / 2 - centre - 0.5)), max(0, math.ceil(wide / 2 + centre + 0.5 - columns))


def is_offset(geometry: CtGeometry, columns: int) -> bool:
    """Whether the scan goes all the way round with the axis off the middle, so that it sees more than its detector."""
    if geometry.centre_px is None:
        return False
    return abs(geometry.centre_px - (columns - 1) / 2) > 1 and covers_full_turn(geometry.angle_rad)


@dataclass(frozen=True)
class Aims:
    """Which detector position each view sees a point of the image plane at, and with what weight.

    A point `(x, y)` in mm is seen at `centre + scale * t / d` with `t = x cos a + y sin a`, and
    `d = 1 + (-x sin a + y cos a) / distance`, its depth relative to the axis; the weight is `1 / d^2`. On a curved
    detector it is seen at `centre + scale * atan2(t, distance * d)`, with the weight
    `distance^2 / (t^2 + (distance d)^2)`.

    Parameters
    ----------
    angle_rad
        `(view,)`.
    centre
        Column of the axis.
    scale
        Columns per mm at the axis, or per radian of a curved detector.
    distance
        From source to axis, mm; infinite for a parallel beam.
    curved
        Whether the detector is an arc.
    """

    angle_rad: _Reals
    centre: float
    scale: float
    distance: float
    curved: bool


def back_project(filtered: Tensor, aims: Aims, shape: tuple[int, int], pixel_mm: float) -> Tensor:
    """Return filtered rows `(batch, view, column)` summed at the pixels `(batch, y, x)`, linearly interpolated."""
    cosines, sines = np.cos(aims.angle_rad), np.sin(aims.angle_rad)
    inverse = 0.0 if math.isinf(aims.distance) else 1 / aims.distance
    if filtered.device.type != "cpu":
        return _back_project_by_torch(filtered, aims, shape, pixel_mm)
    match_threads()
    settings = (aims.centre + 1, aims.scale, inverse, aims.curved, pixel_mm)
    rows = torch.nn.functional.pad(filtered, (1, 2)).numpy()
    batch = rows.shape[0]
    image = np.zeros((batch, *shape), dtype=rows.dtype)
    if batch < _LANES // 2:
        for sample in range(batch):
            _gather_one(rows[sample], cosines, sines, settings, image[sample])
        return torch.from_numpy(image)
    for start in range(0, batch, _LANES):
        # slices lie side by side: a position is then worked out once for all of them
        count = min(_LANES, batch - start)
        lanes = np.zeros((*rows.shape[1:], _LANES), dtype=rows.dtype)
        lanes[..., :count] = np.moveaxis(rows[start : start + count], 0, -1)
        out = np.zeros((*shape, _LANES), dtype=rows.dtype)
        _gather_lanes(lanes, cosines, sines, settings, out)
        image[start : start + count] = np.moveaxis(out[..., :count], -1, 0)
    return torch.from_numpy(image)


def _ray_weights(geometry: SliceGeometry, columns: int, centre: float) -> _Reals:
    """Return the weight of each ray `(view, column)`: its arc, its share in its line, and the obliquity of the fan."""
    angle = geometry.angle_rad
    offset: _Reals = np.arange(columns, dtype=np.float64) - centre
    weights: _Reals
    if isinstance(geometry, FanBeam):
        fan: _Reals = offset * geometry.pixel_mm / geometry.source_detector_mm
        if geometry.detector == "flat":
            fan = np.arctan(fan)
        weights = ray_arcs(angle, offset, fan) * np.cos(fan)
    elif is_offset(geometry, columns):
        weights = ray_arcs(angle, offset, np.zeros(columns))
    else:
        # opposite views interleave: their arcs are shared out among all directions of the half turn
        weights = np.repeat(angular_weights(angle)[:, None], columns, axis=1)
    return weights


def _spectrum(geometry: SliceGeometry, columns: int, window: str) -> _Reals:
    """Return the filter's spectrum `(frequency,)` in the unit that gives attenuation per millimetre."""
    if isinstance(geometry, FanBeam) and geometry.detector == "curved":
        step = geometry.pixel_mm / geometry.source_detector_mm
        return ramp_spectrum(columns, window, step_rad=step) / (step * geometry.source_axis_mm)
    return ramp_spectrum(columns, window) / geometry.image_pixel_mm


def _aims(geometry: SliceGeometry, centre: float) -> Aims:
    if isinstance(geometry, ParallelBeam):
        return Aims(geometry.angle_rad, centre, 1 / geometry.pixel_mm, math.inf, False)
    curved = geometry.detector == "curved"
    scale = geometry.source_detector_mm / geometry.pixel_mm if curved else 1 / geometry.image_pixel_mm
    return Aims(geometry.angle_rad, centre, scale, geometry.source_axis_mm, curved)


def _on_a_straight_detector(rows: Tensor, geometry: FanBeam, centre: float) -> tuple[Tensor, float]:
    """Return the rows as a detector across the central ray would have measured them, and its column of the axis."""
    if geometry.yaw_rad == 0.0 or geometry.detector == "curved":
        return rows, centre
    columns = rows.shape[-1]
    # the yawed detector sees the straight one's position s at the distance t along itself, both in mm
    straight = (np.arange(columns) - centre) * geometry.pixel_mm
    depth = geometry.source_detector_mm
    turned = straight / (math.cos(geometry.yaw_rad) - straight / depth * math.sin(geometry.yaw_rad))
    place = turned / geometry.pixel_mm + centre
    left = np.clip(np.floor(place).astype(np.int64), 0, columns - 2)
    share = torch.from_numpy(np.clip(place - left, 0.0, 1.0)).to(rows.device, rows.dtype)
    seen = torch.from_numpy((place > -1) & (place < columns)).to(rows.device)
    first = torch.from_numpy(left).to(rows.device)
    return torch.where(seen, (1 - share) * rows[..., first] + share * rows[..., first + 1], 0.0), centre


def _coverage(angle_rad: _Reals, wanted: _Reals) -> _Reals:
    """Return how well each wanted direction is measured: 1 inside an arc of views, falling to 0 towards its ends."""
    if covers_full_turn(angle_rad):
        return np.ones_like(wanted)
    found = directions(angle_rad, 2 * np.pi)
    ends = np.flatnonzero(found.gaps > found.missing)
    if ends.size == 0:
        ends = np.array([int(found.gaps.argmax())])
    ordered, usual = found.angle_rad, found.usual
    covered = np.zeros_like(wanted)
    for position, end in enumerate(ends):
        first = ordered[(ends[position - 1] + 1) % ordered.size]
        length = np.mod(ordered[end] - first, 2 * np.pi)
        along = np.mod(wanted - first + usual / 2, 2 * np.pi) - usual / 2
        inside = along <= length + usual / 2
        taper = max(min(TAPER_RAD, length / 2), usual)
        depth = np.clip(np.minimum(along + usual / 2, length + usual / 2 - along) / taper, 0.0, 1.0)
        covered = np.maximum(covered, np.where(inside, np.sin(0.5 * np.pi * depth) ** 2, 0.0))
    return covered


def _detector_coverage(position: _Reals, wanted: _Reals) -> _Reals:
    """Return 1 where a position lies well on the detector, falling to 0 at the edge that is nearer to the axis."""
    step = float(np.abs(np.diff(position)).mean()) if position.size > 1 else 1.0
    low, high = float(position.min()) - step / 2, float(position.max()) + step / 2
    near = min(-low, high)
    if abs(low + high) <= 2 * step or near <= 0:
        return ((wanted > low) & (wanted < high)).astype(np.float64)
    width = min(2 * near, max(16 * step, (high - low) / 8))
    depth = wanted - low if -low < high else high - wanted
    inside = (wanted > low) & (wanted < high)
    return np.where(inside, np.sin(0.5 * np.pi * np.clip(depth / width, 0.0, 1.0)) ** 2, 0.0)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _gather_one(rows, cosines, sines, settings, out):  # type: ignore[no-untyped-def]
    """Sum `rows (view, column)`, with zeros added on both sides, at the pixels of `out (y, x)`; see `back_project`.

    The inner loops have no branches, so that they are vectorised: a column beyond the detector is its zero neighbour.
    """
    centre, scale, inverse, curved, pixel = settings
    views, columns = rows.shape
    height, width = out.shape
    last = columns - 2.0
    one = rows.dtype.type(1)
    for row_index in numba.prange(height):
        row = out[row_index]
        y = ((height - 1) / 2 - row_index) * pixel
        for view in range(views):
            values = rows[view]
            first, step, depth, deeper = _along_row(y, cosines[view], sines[view], inverse, pixel, width)
            if curved:
                for column in range(width):
                    lateral, away = (first + column * step) * inverse, depth + column * deeper
                    place = min(max(centre + scale * math.atan2(lateral, away), 0.0), last)
                    left = int(place)
                    share = rows.dtype.type(place - left)
                    weight = rows.dtype.type(1.0 / (lateral * lateral + away * away))
                    row[column] += weight * (one - share) * values[left] + weight * share * values[left + 1]
            elif inverse == 0.0:
                for column in range(width):
                    place = min(max(centre + scale * (first + column * step), 0.0), last)
                    left = int(place)
                    share = rows.dtype.type(place - left)
                    row[column] += (one - share) * values[left] + share * values[left + 1]
            else:
                for column in range(width):
                    closer = 1.0 / (depth + column * deeper)
                    place = min(max(centre + scale * (first + column * step) * closer, 0.0), last)
                    left = int(place)
                    share = rows.dtype.type(place - left)
                    weight = rows.dtype.type(closer * closer)
                    row[column] += weight * (one - share) * values[left] + weight * share * values[left + 1]


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _gather_lanes(rows, cosines, sines, settings, out):  # type: ignore[no-untyped-def]
    """Sum `rows (view, column, lane)` at the pixels of `out (y, x, lane)`, as `_gather_one` does for one lane."""
    centre, scale, inverse, curved, pixel = settings
    views, columns, _ = rows.shape
    height, width = out.shape[0], out.shape[1]
    last = columns - 2.0
    one = rows.dtype.type(1)
    for row_index in numba.prange(height):
        y = ((height - 1) / 2 - row_index) * pixel
        for view in range(views):
            first, step, depth, deeper = _along_row(y, cosines[view], sines[view], inverse, pixel, width)
            for column in range(width):
                if curved:
                    lateral, away = (first + column * step) * inverse, depth + column * deeper
                    place = centre + scale * math.atan2(lateral, away)
                    weight = rows.dtype.type(1.0 / (lateral * lateral + away * away))
                else:
                    closer = 1.0 / (depth + column * deeper)
                    place = centre + scale * (first + column * step) * closer
                    weight = rows.dtype.type(closer * closer)
                place = min(max(place, 0.0), last)
                left = int(place)
                share = rows.dtype.type(place - left)
                near, far = weight * (one - share), weight * share
                for lane in range(_LANES):
                    out[row_index, column, lane] += near * rows[view, left, lane] + far * rows[view, left + 1, lane]


@numba.njit(inline="always")
def _along_row(y, cosine, sine, inverse, pixel, width):  # type: ignore[no-untyped-def]
    """Return lateral position and depth at the first pixel of an image row, each with its step to the next pixel."""
    edge = (width - 1) / 2 * pixel
    return (
        y * sine - edge * cosine,
        pixel * cosine,
        1.0 + (y * cosine + edge * sine) * inverse,
        -pixel * sine * inverse,
    )


def _back_project_by_torch(filtered: Tensor, aims: Aims, shape: tuple[int, int], pixel_mm: float) -> Tensor:
    """Return what `back_project` does, with operations of torch, on any device."""
    height, width = shape
    columns = filtered.shape[-1]
    # a zero on each side stands for all that lies beyond the detector
    padded = torch.nn.functional.pad(filtered, (1, 1))
    device, wide = filtered.device, torch.float64
    y = ((height - 1) / 2 - torch.arange(height, device=device, dtype=wide))[:, None] * pixel_mm
    x = (torch.arange(width, device=device, dtype=wide) - (width - 1) / 2)[None, :] * pixel_mm
    inverse = 0.0 if math.isinf(aims.distance) else 1 / aims.distance
    out = filtered.new_zeros((filtered.shape[0], height, width))
    for view, angle in enumerate(aims.angle_rad):
        across = x * math.cos(angle) + y * math.sin(angle)
        depth = 1 + (y * math.cos(angle) - x * math.sin(angle)) * inverse
        if aims.curved:
            place = aims.centre + aims.scale * torch.atan2(across * inverse, depth)
            weight = 1 / ((across * inverse) ** 2 + depth**2)
        else:
            place, weight = aims.centre + aims.scale * across / depth, 1 / depth**2
        place = place.clamp(-1, columns)
        left = place.floor().clamp(max=columns - 1)
        share, first = (place - left).to(filtered.dtype), left.long() + 1
        row = padded[:, view]
        out += weight.to(filtered.dtype) * ((1 - share) * row[:, first] + share * row[:, first + 1])
    return out
