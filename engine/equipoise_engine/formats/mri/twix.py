"""Reader for raw data of Siemens scanners ("twix" .dat): Cartesian imaging lines, echo-planar ones among them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import centre_warnings, check_finite, line_axis, sampling_warnings
from equipoise_engine.formats.mri.parts import chosen_part, noise_wanted, part_warnings, parts
from equipoise_engine.formats.mri.ramps import Grid
from equipoise_engine.formats.mri.readouts import (
    UNCORRECTED,
    Encoding,
    Laid,
    Readout,
    filling_warnings,
    laid_out,
    navigators,
    slice_order,
    whole_size,
)
from equipoise_engine.formats.mri.twix_lines import (
    COUNTERS,
    Found,
    Lines,
    Shape,
    coil_numbers,
    line_samples,
    measurements,
    off_centre,
    sorted_lines,
)
from equipoise_engine.formats.mri.twix_protocol import Protocol, read_protocol
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known

_DAMAGE = (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError, struct.error)


def read_twix(path: Path, known: Known) -> MriAcquisition:
    """Return the last measurement in a file; the ones before it adjust the scanner. k-space is read when needed.

    Oversampling along the readout is removed, averages are averaged, readouts of the other direction are turned, and
    what was sampled on ramps of the gradient is put on a grid. The partitions of a three-dimensional scan become slices
    by a Fourier transform. Of repetitions, echoes and the like, the first is taken, or the one that is told as the
    source of the k-space: "repetition 2".

    Raises
    ------
    BadInput
        The file is damaged or cut short, or holds no imaging lines.
    Unsupported
        The scan is not Cartesian.
    """
    try:
        return _read(path, known)
    except _DAMAGE as error:
        raise BadInput(
            f"{path.name}: the Siemens raw data are damaged ({type(error).__name__}: {error})",
            "Copy or export the file again.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The part of a measurement that is read.

    Parameters
    ----------
    later
        Whether the software is VD or later.
    values
        Bytes of the file.
    before
        Where the measurements before it begin and end.
    lines
        All readouts of the measurement.
    chosen
        Value that is read of each counter, in their order.
    imaging
        Its lines of the image, all of one `shape`.
    """

    path: Path
    later: bool
    values: NDArray[np.uint8]
    before: list[tuple[int, int]]
    protocol: Protocol
    lines: Lines
    chosen: tuple[int, ...]
    imaging: list[Found]

    @property
    def shape(self) -> Shape:
        """What its lines share."""
        return self.imaging[0].shape

    def alike(self, found: list[Found]) -> list[Found]:
        """Return the readouts that are as those of the image."""
        return [one for one in found if one.shape == self.shape]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How the lines of a part are laid out.

    Parameters
    ----------
    readouts
        Those of the image, then reference lines that fill in, of which there are `filled`.
    encoding
        How they lie in k-space, once they are on a grid.
    grid
        What puts their samples on a grid, where the gradient changed.
    order
        Numbers of the slices, from first to last.
    distance
        Between slices in mm, where their places tell it.
    """

    part: _Part
    readouts: list[Readout]
    filled: int
    echo_planar: bool
    encoding: Encoding
    grid: Grid | None
    order: list[int]
    distance: float | None

    def load(self, readout: Readout) -> NDArray[np.complex64]:
        """Return the samples of a readout `(coil, sample)`."""
        part = self.part
        samples = line_samples(part.values, readout.at, part.shape)
        if self.grid is None:
            return samples
        return self.grid.straight(samples, off_centre(part.values, readout.at, part.later), readout.backwards)


def _read(path: Path, known: Known) -> MriAcquisition:
    told = told_roles(known, path, ("kspace", "noise"))
    part, counters = _part(path, told.get("kspace", ""))
    plan = _planned(part, known.keep_oversampling)
    laid = laid_out(path, plan.encoding, plan.readouts, plan.order, plan.load)
    field, slice_mm = _extent(plan, laid)
    corrected = _navigators(plan)
    noise, noise_source = _noise(part) if noise_wanted(told, path) else (None, "")
    matched = _facts(plan, laid, f"{field[0]:g} x {field[1]:g} mm, slices of {slice_mm:g} mm")
    if noise is not None:
        matched.append(Match("noise", noise_source, noise.shape, "(coil, sample)"))
    if corrected is not None:
        reason = "alternately forward and reversed readouts of each slice"
        matched.append(Match("navigators", "phase correction lines", corrected.shape, reason))
    matched += _not_used(plan, corrected is not None, noise is not None)
    return MriAcquisition(
        path=path,
        format="Siemens raw data",
        kspace=laid.kspace,
        geometry=Cartesian(
            sampled=laid.sampled,
            field_of_view_mm=field,
            slice_mm=slice_mm,
            phase_axis=line_axis(laid.sampled, 0) if laid.along_readout else 0,
            calibrated=True,
        ),
        matched=tuple(matched),
        warnings=(
            *part_warnings(counters, dict(zip(counters, part.chosen, strict=True))),
            *_warnings(plan, laid, corrected is not None),
        ),
        noise=noise,
        navigators=corrected,
        reversed_lines=laid.reversed_lines,
        sources=parts(counters, laid.kspace.shape),
    )


def _part(path: Path, told: str) -> tuple[_Part, dict[str, set[int]]]:
    """Return the part of the last measurement that is told, else its first, and the values that its counters take."""
    later, places = measurements(path)
    start, end = places[-1]
    protocol, data_start = read_protocol(path, start, end)
    trajectory = int(protocol.space.get("ucTrajectory", 1))
    if trajectory != 1:
        raise Unsupported(f"{path.name}: the readouts are not Cartesian (trajectory {trajectory})")
    lines = sorted_lines(path, data_start, end, later)
    _check_imaging(path, lines)
    counters = {name: {found.part[at] for found in lines.imaging} for at, name in enumerate(COUNTERS.values())}
    chosen = tuple(chosen_part(told, counters, path).values())
    imaging = [found for found in lines.imaging if found.part == chosen]
    if not imaging:
        raise BadInput(f"{path.name}: no imaging lines belong to {told or 'the first part'}")
    shape = imaging[0].shape
    other = next((found.shape for found in imaging if found.shape != shape), None)
    if other is not None:
        raise Unsupported(
            f"{path.name}: imaging lines of different lengths or centres ({shape.channels} x {shape.samples} around"
            f" {shape.centre}, {other.channels} x {other.samples} around {other.centre})"
        )
    part = _Part(
        path=path,
        later=later,
        values=np.memmap(path, dtype=np.uint8, mode="r"),
        before=places[:-1],
        protocol=protocol,
        lines=lines,
        chosen=chosen,
        imaging=imaging,
    )
    return part, counters


def _check_imaging(path: Path, lines: Lines) -> None:
    if not lines.imaging:
        counted = lines.others.copy()
        counted["noise adjustment"] += len(lines.noise)
        counted["phase correction navigator"] += len(lines.navigators)
        counted["calibration"] += len(lines.calibration)
        said = ", ".join(f"{count} of {name}" for name, count in sorted(counted.items()) if count) or "none at all"
        raise BadInput(f"{path.name}: the last measurement holds no imaging lines ({said})")


def _planned(part: _Part, keep_oversampling: bool) -> _Plan:
    imaging = [found.readout for found in part.imaging]
    echo_planar = any(readout.backwards for readout in imaging)
    filling = [] if echo_planar else _filling(part, imaging)
    readouts = imaging + filling
    encoding = _encoding(part, readouts, keep_oversampling)
    grid = part.protocol.grid(part.shape.samples, encoding.columns)
    if grid is not None:
        encoding = replace(encoding, samples=encoding.columns, centre=encoding.columns // 2)
    taken = {readout.slice for readout in readouts}
    order, distance = slice_order({number: place for number, place in part.lines.places.items() if number in taken})
    return _Plan(
        part=part,
        readouts=readouts,
        filled=len(filling),
        echo_planar=echo_planar,
        encoding=encoding,
        grid=grid,
        order=order,
        distance=distance,
    )


def _filling(part: _Part, imaging: list[Readout]) -> list[Readout]:
    """Return reference lines where no line of the image was measured."""
    there = {(readout.slice, readout.line, readout.partition) for readout in imaging}
    calibration = [found.readout for found in part.alike(part.lines.calibration)]
    return [r for r in calibration if (r.slice, r.line, r.partition) not in there and r.slice in part.lines.places]


def _encoding(part: _Part, readouts: list[Readout], keep_oversampling: bool) -> Encoding:
    """Return how the lines lie in k-space, after the protocol and their counters."""
    protocol, shape, lines = part.protocol, part.shape, part.lines
    base, oversampling = protocol.base, protocol.oversampling
    full = base * oversampling
    if shape.samples > full:
        raise Unsupported(
            f"{part.path.name}: readouts of {shape.samples} samples, more than the {base} pixels with"
            f" {oversampling}-fold oversampling take",
        )
    deepest = max(readout.partition for readout in readouts)
    partitions = kept = 1
    if deepest > 0:
        told = int(protocol.space.get("lPartitions", deepest + 1))
        kept = int(protocol.space.get("lImagesPerSlab", told))
        partitions = whole_size(told, lines.centre_partition, deepest)
    return Encoding(
        coils=shape.channels,
        samples=shape.samples,
        centre=shape.centre,
        columns=full,
        pixels=full if keep_oversampling else base,
        rows=whole_size(protocol.lines, lines.centre_row, max(readout.line for readout in readouts)),
        centre_row=lines.centre_row,
        partitions=partitions,
        centre_partition=lines.centre_partition if deepest > 0 else 0,
        kept_partitions=min(max(kept, 1), partitions),
    )


def _extent(plan: _Plan, laid: Laid) -> tuple[tuple[float, float], float]:
    """Return the extent `(y, x)` of the image and the distance of its slices, mm."""
    encoding, protocol = plan.encoding, plan.part.protocol
    phase_mm, readout_mm = protocol.field
    readout_mm *= encoding.pixels / protocol.base
    if encoding.partitions == 1:
        return (phase_mm, readout_mm), plan.distance or protocol.thickness
    if laid.along_readout:
        return (phase_mm, protocol.depth), readout_mm / encoding.pixels
    return (phase_mm, readout_mm), protocol.depth / encoding.partitions


def _navigators(plan: _Plan) -> NDArray[np.complex64] | None:
    """Return readouts along the middle of k-space, as `readouts.navigators`; None where there are none."""
    part = plan.part
    marked = [found.readout for found in part.alike(part.lines.navigators) if found.part == part.chosen]
    # those of three-dimensional scans belong to slabs, not to slices
    if not marked or not plan.echo_planar or plan.encoding.partitions > 1:
        return None
    return navigators(plan.encoding, marked, plan.order, plan.load)


# --- noise ------------------------------------------------------------------------------------------


def _noise(part: _Part) -> tuple[NDArray[np.complex64] | None, str]:
    """Return noise of the coils of the image `(coil, sample)`, and where it was measured.

    It is of the measurement, or of the last one before it that measured noise of the same coils.
    """
    source = "noise adjustment lines"
    noise = _noise_of(part, part.lines.noise)
    if noise is not None:
        return noise, source
    for number in range(len(part.before), 0, -1):
        start, end = part.before[number - 1]
        (length,) = struct.unpack("<I", part.values[start : start + 4].tobytes())
        try:
            found = sorted_lines(part.path, start + length, end, part.later).noise
        except BadInput:
            continue  # an adjustment that was stopped does no harm to the scan
        coils = coil_numbers(part.values, part.imaging[0])
        noise = _noise_of(part, [line for line in found if coil_numbers(part.values, line) == coils])
        if noise is not None:
            return noise, f"{source} of measurement {number}"
    return None, ""


def _noise_of(part: _Part, found: list[Found]) -> NDArray[np.complex64] | None:
    """Return the noise in readouts of as many coils as the image `(coil, sample)`, None where there are none."""
    fitting = [line for line in found if line.shape.channels == part.shape.channels]
    if not fitting:
        return None
    size = 16 * part.shape.channels * sum(line.shape.samples for line in fitting)
    check_memory(size, f"the noise of {part.path.name}")
    noise = np.concatenate([line_samples(part.values, line.readout.at, line.shape) for line in fitting], axis=1)
    check_finite(noise, part.path, "noise (coil, sample)")
    return noise


# --- what is said of it -----------------------------------------------------------------------------


def _facts(plan: _Plan, laid: Laid, extent: str) -> list[Match]:
    """Return which parts of the file the k-space was made of; `extent` says how large its image is."""
    encoding, part = plan.encoding, plan.part
    kept = "kept" if encoding.pixels == encoding.columns else "removed"
    reason = (
        f"imaging lines; {encoding.columns / part.protocol.base:g}-fold oversampling of {part.shape.samples} samples"
        f" {kept}, the line {encoding.centre_row} placed at the centre"
    )
    facts = [
        Match("k-space", f"measurement {len(part.before) + 1}", laid.kspace.shape, reason),
        Match("field of view", "MeasYaps", (), extent),
    ]
    if encoding.partitions > 1:
        how = "a Fourier transform along them gives the slices"
        if laid.along_readout:
            how = "not measured alike for all lines, so slices lie along the readout"
        facts.append(Match("slices", "partitions", (encoding.partitions,), how))
    if plan.grid is not None:
        facts.append(Match("ramp sampling", "alRegridMode", (), "samples of the gradient's ramps put on a grid"))
    if plan.filled:
        reason = "taken where no imaging line was measured"
        facts.append(Match("calibration", "reference lines", (plan.filled,), reason))
    return facts


def _not_used(plan: _Plan, corrected: bool, with_noise: bool) -> list[Match]:
    """Return what of the file is not used, by its kind."""
    lines, before = plan.part.lines, len(plan.part.before)
    others = lines.others.copy()
    others["calibration"] += len(lines.calibration) - plan.filled
    others["phase correction navigator"] += 0 if corrected else len(lines.navigators)
    others["noise adjustment"] += 0 if with_noise else len(lines.noise)
    facts = []
    if before:
        reason = f"the {before} before the last, which adjust the scanner"
        facts.append(Match("not used", "other measurements", (before,), reason))
    facts += [
        Match("not used", kind, (count,), "these lines are none of the image")
        for kind, count in sorted(others.items())
        if count
    ]
    return facts


def _warnings(plan: _Plan, laid: Laid, corrected: bool) -> list[str]:
    part = plan.part
    integrated = any(found.both for found in part.alike(part.lines.imaging))
    warnings = filling_warnings(plan.filled, integrated)
    if plan.echo_planar and not corrected:
        warnings.append(UNCORRECTED)
    if plan.grid is None and part.protocol.samples_ramps:
        warnings.append("Samples were taken while the gradient changed (ramp sampling); they are not put on a grid.")
    warnings += laid.warnings
    warnings += sampling_warnings(laid.sampled, part.shape.channels)
    if plan.encoding.partitions == 1:
        warnings += centre_warnings(laid.kspace[laid.kspace.shape[0] // 2])
    return warnings
