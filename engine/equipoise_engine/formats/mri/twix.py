"""Reader for raw data of Siemens scanners ("twix" .dat): Cartesian imaging lines, echo-planar ones among them.

The headers are taken apart by twixtools (P. Ehses), after whose reading ramps of the gradient are told. Names of
persons in them are read by nothing here.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import centre_warnings, check_finite, line_axis, sampling_warnings
from equipoise_engine.formats.mri.readouts import (
    MAX_RAMP_SAMPLES,
    UNCORRECTED,
    Encoding,
    Grid,
    Laid,
    Readout,
    chosen_part,
    filling_warnings,
    gridding,
    laid_out,
    navigators,
    noise_wanted,
    part_warnings,
    parts,
    ramp_positions,
    slice_order,
    whole_size,
)
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known

MAX_MEASUREMENTS = 64
MAX_HEADER_BYTES = 256 << 20
_ENTRY_BYTES = 152
_FIRST_PART = re.compile(rb"\w{4,}\x00")
# Lines that are none of the image, by the flag that says so, in the order of asking.
_OTHER_LINES = {
    "RTFEEDBACK": "navigator",
    "HPFEEDBACK": "navigator",
    "REFPHASESTABSCAN": "phase stabilisation",
    "PHASESTABSCAN": "phase stabilisation",
    "SYNCDATA": "synchronisation data",
    "RETRO_DUMMYSCAN": "dummy",
    "noname60": "navigator",
    "SLICE_ACCEL_REFSCAN": "single-band reference",
    "SLICE_ACCEL_PHASCOR": "single-band reference",
}
_OTHER_COUNTERS = {"Eco": "echo", "Phs": "phase", "Rep": "repetition", "Set": "set", "Ida": "index a"}
_TRAPEZOID, _SINE = 2, 4
# Place of the off-centre distance in the header of a readout, in bytes.
_OFF_CENTRE, _OFF_CENTRE_LATER = 68, 88
# Place of the number of its coil in the header of a channel of the software VD, in bytes.
_COIL_NUMBER = 24
_DAMAGE = (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError, struct.error)


@dataclass(frozen=True)
class _Shape:
    """What readouts of a kind share.

    Parameters
    ----------
    channels, samples
        Coils and samples of a readout.
    before, between
        Bytes of headers before the first channel, and before each channel's samples.
    centre
        Sample at the centre of k-space.
    """

    channels: int
    samples: int
    before: int
    between: int
    centre: int

    @property
    def size(self) -> int:
        """Bytes of a readout with its headers."""
        return self.before + self.channels * (self.between + 8 * self.samples)


@dataclass(frozen=True)
class _Found:
    """A readout of some kind: where it lies, its shape, and its other counters."""

    readout: Readout
    shape: _Shape
    part: tuple[int, ...]
    both: bool
    """Whether an imaging line is a reference line as well."""


@dataclass(frozen=True)
class _Lines:
    """The readouts of a measurement, sorted out.

    Parameters
    ----------
    imaging, calibration, navigators, noise
        In the order in which they were measured.
    places
        Middle of each slice `(3,)`, mm, by its number.
    centre_row, centre_partition
        Numbers of the line and of the partition at the centre of k-space.
    others
        How many readouts there are that are none of these, by their kind.
    """

    imaging: list[_Found] = field(default_factory=list)
    calibration: list[_Found] = field(default_factory=list)
    navigators: list[_Found] = field(default_factory=list)
    noise: list[_Found] = field(default_factory=list)
    places: dict[int, tuple[float, ...]] = field(default_factory=dict)
    centre_row: int = 0
    centre_partition: int = 0
    others: Counter[str] = field(default_factory=Counter)


def is_twix(path: Path) -> bool:
    """Whether a file begins as raw data of Siemens scanners do, of the software VB or of VD and later."""
    start = _header_start(path)
    if start is None:
        return False
    with path.open("rb") as stream:
        stream.seek(start)
        head = stream.read(8 + 48)
    return len(head) == 56 and struct.unpack("<I", head[:4])[0] > 8 and _FIRST_PART.match(head, 8) is not None


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


def _header_start(path: Path) -> int | None:
    """Return where the header of the first measurement would begin."""
    with path.open("rb") as stream:
        start = stream.read(24)
    if len(start) < 24:
        return None
    first, count = struct.unpack("<II", start[:8])
    if first >= 10000 or count > MAX_MEASUREMENTS:
        return 0  # VB: the file is one measurement
    (offset,) = struct.unpack("<Q", start[16:24])
    return int(offset) if count and offset + 56 < path.stat().st_size else None


def _measurements(path: Path) -> tuple[bool, list[tuple[int, int]]]:
    """Return whether the software is VD or later, and where each measurement begins and ends."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        first, count = struct.unpack("<II", stream.read(8))
        if first >= 10000 or count > MAX_MEASUREMENTS:
            return False, [(0, size)]
        entries = [struct.unpack("<QQ", stream.read(_ENTRY_BYTES)[8:24]) for _ in range(count)]
    if count == 1 and entries[0][1] == 0:
        entries = [(entries[0][0], size - entries[0][0])]
    for number, (offset, length) in enumerate(entries):
        if offset + length > size:
            raise BadInput(
                f"{path.name}: measurement {number + 1} of {count} ends at byte {offset + length}, the file of {size}"
                " bytes before it",
                "The file is cut short; copy or export it again.",
            )
    return True, [(int(offset), int(offset + length)) for offset, length in entries]


def _read(path: Path, known: Known) -> MriAcquisition:
    told = told_roles(known, path, ("kspace", "noise"))
    later, measurements = _measurements(path)
    start, end = measurements[-1]
    header, data_start = _header(path, start, end)
    protocol = header["MeasYaps"]
    space = protocol["sKSpace"]
    if int(space.get("ucTrajectory", 1)) != 1:
        raise Unsupported(f"{path.name}: the readouts are not Cartesian (trajectory {space['ucTrajectory']})")
    lines = _sort_lines(path, data_start, end, later)
    _check_imaging(path, lines)
    counters = {name: {found.part[at] for found in lines.imaging} for at, name in enumerate(_OTHER_COUNTERS.values())}
    chosen = chosen_part(told.get("kspace", ""), counters, path)
    part = tuple(chosen.values())
    imaging = [found for found in lines.imaging if found.part == part]
    if not imaging:
        raise BadInput(f"{path.name}: no imaging lines belong to {told.get('kspace') or 'the first part'}")
    shape = imaging[0].shape
    other = next((found.shape for found in imaging if found.shape != shape), None)
    if other is not None:
        raise Unsupported(
            f"{path.name}: imaging lines of different lengths or centres ({shape.channels} x {shape.samples} around"
            f" {shape.centre}, {other.channels} x {other.samples} around {other.centre})"
        )
    readouts = [found.readout for found in imaging]
    echo_planar = any(readout.backwards for readout in readouts)
    filled, calibration = 0, [found.readout for found in lines.calibration if found.shape == shape]
    if calibration and not echo_planar:
        there = {(readout.slice, readout.line, readout.partition) for readout in readouts}
        missing = [r for r in calibration if (r.slice, r.line, r.partition) not in there and r.slice in lines.places]
        readouts, filled = readouts + missing, len(missing)
    encoding = _encoding(path, header, lines, shape, readouts, known.keep_oversampling)
    grid = _ramps(header, shape.samples, encoding.columns)
    if grid is not None:
        encoding = replace(encoding, samples=encoding.columns, centre=encoding.columns // 2)
    values = np.memmap(path, dtype=np.uint8, mode="r")

    def load(readout: Readout) -> NDArray[np.complex64]:
        samples = _samples(values, readout.at, shape)
        if grid is None:
            return samples
        return grid.straight(samples, _off_centre(values, readout.at, later), readout.backwards)

    taken = {readout.slice for readout in readouts}
    order, distance = slice_order({number: place for number, place in lines.places.items() if number in taken})
    laid = laid_out(path, encoding, readouts, order, load)
    extent = protocol["sSliceArray"]["asSlice"][0]
    extra = float(space.get("dPhaseOversamplingForDialog", 0.0))
    thickness = float(extent.get("dThickness", 1.0))
    phase_mm, readout_mm = float(extent["dPhaseFOV"]) * (1 + extra), float(extent["dReadoutFOV"])
    oversampling = encoding.columns / int(space["lBaseResolution"])
    readout_mm *= oversampling * encoding.pixels / encoding.columns
    field_of_view, slice_mm = (phase_mm, readout_mm), distance or thickness
    if encoding.partitions > 1:
        depth = thickness * (1 + float(space.get("dSliceOversamplingForDialog", 0.0)))
        slice_mm = depth / encoding.partitions
        if laid.along_readout:
            field_of_view, slice_mm = (phase_mm, depth), readout_mm / encoding.pixels
    marked = [found.readout for found in lines.navigators if found.part == part and found.shape == shape]
    corrected = navigators(encoding, marked, order, load) if marked and echo_planar else None
    if corrected is not None and encoding.partitions > 1:
        corrected = None  # they belong to slabs, not to slices
    noise, noise_source = None, "noise adjustment lines"
    if noise_wanted(told, path):
        noise = _noise(path, values, lines.noise, shape.channels)
        if noise is None and (found := _noise_before(path, measurements[:-1], later, imaging[0])) is not None:
            noise, noise_source = found[0], f"noise adjustment lines of measurement {found[1]}"
    kept = "kept" if encoding.pixels == encoding.columns else "removed"
    matched = [
        Match(
            "k-space",
            f"measurement {len(measurements)}",
            laid.kspace.shape,
            f"imaging lines; {oversampling:g}-fold oversampling of {shape.samples} samples {kept}, the line"
            f" {encoding.centre_row} placed at the centre",
        ),
        Match(
            "field of view",
            "MeasYaps",
            (),
            f"{field_of_view[0]:g} x {field_of_view[1]:g} mm, slices of {slice_mm:g} mm",
        ),
    ]
    if encoding.partitions > 1:
        matched.append(Match("slices", "partitions", (encoding.partitions,), _depth(laid)))
    if grid is not None:
        matched.append(Match("ramp sampling", "alRegridMode", (), "samples of the gradient's ramps put on a grid"))
    if filled:
        matched.append(Match("calibration", "reference lines", (filled,), "taken where no imaging line was measured"))
    if noise is not None:
        matched.append(Match("noise", noise_source, noise.shape, "(coil, sample)"))
    if corrected is not None:
        reason = "alternately forward and reversed readouts of each slice"
        matched.append(Match("navigators", "phase correction lines", corrected.shape, reason))
    if len(measurements) > 1:
        before = f"the {len(measurements) - 1} before the last, which adjust the scanner"
        matched.append(Match("not used", "other measurements", (len(measurements) - 1,), before))
    others = lines.others.copy()
    others["calibration"] += len(lines.calibration) - filled
    others["phase correction navigator"] += 0 if corrected is not None else len(lines.navigators)
    others["noise adjustment"] += 0 if noise is not None else len(lines.noise)
    matched += [
        Match("not used", kind, (count,), "these lines are none of the image")
        for kind, count in sorted(others.items())
        if count
    ]
    warnings = part_warnings(counters, chosen)
    warnings += filling_warnings(filled, any(found.shape == shape and found.both for found in lines.imaging))
    if echo_planar and corrected is None:
        warnings.append(UNCORRECTED)
    if grid is None and _regrid_mode(header) > 1:
        warnings.append("Samples were taken while the gradient changed (ramp sampling); they are not put on a grid.")
    return MriAcquisition(
        path=path,
        format="Siemens raw data",
        kspace=laid.kspace,
        geometry=Cartesian(
            sampled=laid.sampled,
            field_of_view_mm=field_of_view,
            slice_mm=slice_mm,
            phase_axis=line_axis(laid.sampled, 0) if laid.along_readout else 0,
            calibrated=True,
        ),
        matched=tuple(matched),
        warnings=(
            *warnings,
            *laid.warnings,
            *sampling_warnings(laid.sampled, shape.channels),
            *(centre_warnings(laid.kspace[laid.kspace.shape[0] // 2]) if encoding.partitions == 1 else ()),
        ),
        noise=noise,
        navigators=corrected,
        reversed_lines=laid.reversed_lines,
        sources=parts(counters, laid.kspace.shape),
    )


def _depth(laid: Laid) -> str:
    if laid.along_readout:
        return "not measured alike for all lines, so slices lie along the readout"
    return "a Fourier transform along them gives the slices"


def _encoding(
    path: Path,
    header: dict[str, Any],
    lines: _Lines,
    shape: _Shape,
    readouts: list[Readout],
    keep_oversampling: bool,
) -> Encoding:
    """Return how the lines lie in k-space, after the protocol and their counters."""
    space = header["MeasYaps"]["sKSpace"]
    base = int(space["lBaseResolution"])
    oversampling = max(round(_first_number(header, "flReadoutOSFactor", 2.0)), 1)
    full = base * oversampling
    if shape.samples > full:
        raise Unsupported(
            f"{path.name}: readouts of {shape.samples} samples, more than the {base} pixels with {oversampling}-fold"
            " oversampling take",
        )
    last = max(readout.line for readout in readouts)
    extra = 1 + float(space.get("dPhaseOversamplingForDialog", 0.0))
    rows = whole_size(round(int(space["lPhaseEncodingLines"]) * extra), lines.centre_row, last)
    deepest = max(readout.partition for readout in readouts)
    partitions = kept = 1
    if deepest > 0:
        kept = int(space.get("lImagesPerSlab", space.get("lPartitions", deepest + 1)))
        partitions = whole_size(int(space.get("lPartitions", deepest + 1)), lines.centre_partition, deepest)
    return Encoding(
        coils=shape.channels,
        samples=shape.samples,
        centre=shape.centre,
        columns=full,
        pixels=full if keep_oversampling else base,
        rows=rows,
        centre_row=lines.centre_row,
        partitions=partitions,
        centre_partition=lines.centre_partition if deepest > 0 else 0,
        kept_partitions=min(max(kept, 1), partitions),
    )


def _header(path: Path, start: int, end: int) -> tuple[dict[str, Any], int]:
    """Return the header of a measurement by its parts, and where its lines begin."""
    from twixtools import twixprot  # its import takes most of a second

    with path.open("rb") as stream:
        stream.seek(start)
        length, _ = struct.unpack("<II", stream.read(8))
        if length > min(MAX_HEADER_BYTES, end - start):
            raise BadInput(
                f"{path.name}: a header of {length} bytes in a measurement of {end - start}",
                "The file is cut short or damaged; copy or export it again.",
            )
        stream.seek(start)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            header = cast(dict[str, Any], twixprot.parse_twix_hdr(stream))
    if "MeasYaps" not in header:
        raise BadInput(f"{path.name}: the header has no protocol (MeasYaps)", "Copy or export the file again.")
    return header, start + int(length)


def _sort_lines(path: Path, start: int, end: int, later: bool) -> _Lines:
    """Return the readouts of a measurement by what they are for."""
    from twixtools import mdh_def

    kind = mdh_def.Scan_header if later else mdh_def.VB17_header
    between = ctypes.sizeof(mdh_def.Channel_header if later else mdh_def.VB17_header)
    head = ctypes.sizeof(kind)
    before = head if later else 0
    bits = {name: 1 << at for at, name in enumerate(mdh_def.mask_id)}
    values = np.memmap(path, dtype=np.uint8, mode="r")
    lines = _Lines()
    centre: tuple[int, int] | None = None
    position, ended = start, False
    while position + head <= end:
        line = kind.from_buffer_copy(values[position : position + head])
        flags = int(line.EvalInfoMask)
        if flags & bits["ACQEND"]:
            ended = True
            break
        shape = _Shape(int(line.UsedChannels), int(line.SamplesInScan), before, between, int(line.CenterCol))
        synchronised = flags & bits["SYNCDATA"]
        size = int(mdh_def.get_dma_len(line)) if synchronised else shape.size
        if size < head or position + size > end or (not synchronised and 0 in (shape.channels, shape.samples)):
            break
        counter = line.Counter
        other = next((name for flag, name in _OTHER_LINES.items() if flags & bits[flag]), None)
        readout = Readout(position, int(counter.Sli), int(counter.Lin), int(counter.Par), bool(flags & bits["REFLECT"]))
        both = bool(flags & bits["PATREFANDIMASCAN"])
        found = _Found(readout, shape, tuple(int(getattr(counter, name)) for name in _OTHER_COUNTERS), both)
        if other is not None:
            lines.others[other] += 1
        elif flags & bits["NOISEADJSCAN"]:
            lines.noise.append(found)
        elif flags & bits["PHASCOR"]:
            # those of reference lines have their own phases
            if flags & bits["PATREFSCAN"]:
                lines.others["calibration"] += 1
            else:
                lines.navigators.append(found)
        elif flags & bits["PATREFSCAN"] and not both:
            lines.calibration.append(found)
        else:
            centre = centre or (int(line.CenterLin), int(line.CenterPar))
            place = line.SliceData.SlicePos
            lines.places.setdefault(readout.slice, (float(place.Sag), float(place.Cor), float(place.Tra)))
            lines.imaging.append(found)
        position += size
    if not ended:
        raise BadInput(
            f"{path.name}: the lines end at byte {position} of {end} without the mark of the end of the scan",
            "The file is cut short or damaged, or the scan was stopped; export it again.",
        )
    return lines if centre is None else replace(lines, centre_row=centre[0], centre_partition=centre[1])


def _check_imaging(path: Path, lines: _Lines) -> None:
    if not lines.imaging:
        counted = lines.others.copy()
        counted["noise adjustment"] += len(lines.noise)
        counted["phase correction navigator"] += len(lines.navigators)
        counted["calibration"] += len(lines.calibration)
        said = ", ".join(f"{count} of {name}" for name, count in sorted(counted.items()) if count) or "none at all"
        raise BadInput(f"{path.name}: the last measurement holds no imaging lines ({said})")


def _samples(values: NDArray[np.uint8], position: int, shape: _Shape) -> NDArray[np.complex64]:
    """Return the samples of a readout `(coil, sample)`."""
    block = values[position + shape.before : position + shape.size].reshape(shape.channels, -1)
    return np.ascontiguousarray(block[:, shape.between :]).view("<c8")


def _noise(path: Path, values: NDArray[np.uint8], found: list[_Found], channels: int) -> NDArray[np.complex64] | None:
    """Return the noise of the coils `(coil, sample)`, None where it was not measured for them."""
    fitting = [line for line in found if line.shape.channels == channels]
    if not fitting:
        return None
    check_memory(16 * channels * sum(line.shape.samples for line in fitting), f"the noise of {path.name}")
    noise = np.concatenate([_samples(values, line.readout.at, line.shape) for line in fitting], axis=1)
    check_finite(noise, path, "noise (coil, sample)")
    return noise


def _noise_before(
    path: Path, measurements: list[tuple[int, int]], later: bool, image: _Found
) -> tuple[NDArray[np.complex64], int] | None:
    """Return noise of the coils of an image from the measurements before it, and the number of the one it is of.

    None where no measurement is of noise, or is of other coils.
    """
    values = np.memmap(path, dtype=np.uint8, mode="r")
    for number in range(len(measurements), 0, -1):
        start, end = measurements[number - 1]
        (length,) = struct.unpack("<I", values[start : start + 4].tobytes())
        try:
            found = _sort_lines(path, start + length, end, later).noise
        except BadInput:
            continue  # an adjustment that was stopped does no harm to the scan
        found = [line for line in found if _coils(values, line) == _coils(values, image)]
        noise = _noise(path, values, found, image.shape.channels)
        if noise is not None:
            return noise, number
    return None


def _coils(values: NDArray[np.uint8], found: _Found) -> bytes:
    """Return the numbers of the coils of a readout of the software VD or later, as they are stored."""
    first = found.readout.at + found.shape.before
    block = values[first : found.readout.at + found.shape.size].reshape(found.shape.channels, -1)
    return block[:, _COIL_NUMBER : _COIL_NUMBER + 2].tobytes()


# --- ramp sampling ----------------------------------------------------------------------------------


def _regrid_mode(header: dict[str, Any]) -> int:
    return int(_regrid(header, "alRegridMode", 1.0))


def _regrid(header: dict[str, Any], name: str, otherwise: float) -> float:
    """Return the first value of a list of the header about ramp sampling."""
    for part in ("Meas", "MeasYaps"):
        value = header.get(part, {}).get(name)
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            return float(value[0])
    return otherwise


def _ramps(header: dict[str, Any], samples: int, columns: int) -> Grid | None:
    """Return what puts the samples on a grid; None where the gradient was constant, or its shape is not told."""
    mode = _regrid_mode(header)
    names = ("alRegridRampupTime", "alRegridFlattopTime", "alRegridRampdownTime", "alRegridDelaySamplesTime")
    up, flat, down, delay = (_regrid(header, name, -1.0) for name in names)
    duration = _regrid(header, "aflRegridADCDuration", -1.0)
    if mode not in (_TRAPEZOID, _SINE) or columns > MAX_RAMP_SAMPLES:
        return None
    reached = ramp_positions(samples, up=up, flat=flat, down=down, delay=delay, duration=duration, sine=mode == _SINE)
    if reached is None:
        return None
    base = int(header["MeasYaps"]["sKSpace"]["lBaseResolution"])
    extent = float(header["MeasYaps"]["sSliceArray"]["asSlice"][0]["dReadoutFOV"])
    return Grid(gridding(reached, columns, base), reached * base / extent)


def _off_centre(values: NDArray[np.uint8], position: int, later: bool) -> float:
    """Return how far off the centre of the magnet a readout was taken, mm."""
    at = position + (_OFF_CENTRE_LATER if later else _OFF_CENTRE)
    (found,) = struct.unpack("<f", values[at : at + 4].tobytes())
    return float(found) if np.isfinite(found) else 0.0


def _first_number(header: dict[str, Any], name: str, otherwise: float) -> float:
    """Return the first number of this name in the parts of the header."""
    for part in header.values():
        value = part.get(name) if isinstance(part, dict) else None
        if isinstance(value, (int, float)):
            return float(value)
    return otherwise
